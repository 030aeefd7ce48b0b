package daemon

import (
	"fmt"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/ra"
)

// Advertisements is what a configuration asks to be told to the hosts of links.
// What a restart keeps on the host it keeps with those, too: their flows go on.
func Advertisements(c *config.Config) ra.Config {
	return ra.Config{
		Interfaces: c.RA.Interfaces,
		Prefix:     c.Translation.Pref64,
		Lifetime:   c.RA.Lifetime,
		Withdraw:   c.Network.OnExit == "remove",
	}
}

// advertising is how it goes with them, as the control socket shows it.
func advertising(status []ra.Status) []control.Advertising {
	list := make([]control.Advertising, len(status)) // a list in JSON even when empty
	for i, s := range status {
		list[i] = control.Advertising(s)
	}
	return list
}

// raProblems are where none can be sent, and what other routers say against
// them, which may be as the operator wants it.
func raProblems(status []ra.Status) (silent, others []string) {
	for _, s := range status {
		if s.Problem != "" {
			silent = append(silent, fmt.Sprintf("no router advertisements on %s: %s", s.Interface, s.Problem))
		}
		for _, o := range s.Others {
			others = append(others, fmt.Sprintf("on %s %s", s.Interface, o))
		}
	}
	return silent, others
}
