package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Changes are what attach makes of a namespace, and of the host for it, but for
// the resolvers of those who hold it. They are written down before any of them is
// made, with all that undoing takes.
type Changes struct {
	Link    *Link    `json:"link,omitempty"`
	Route   *Route   `json:"route,omitempty"` // to pref64
	Names   *Route   `json:"names,omitempty"` // to natless's DNS64
	Sysctls []Sysctl `json:"sysctls,omitempty"`
}

// beforeStep lets tests stop attach dead at any step.
var beforeStep = func(string) {}

// routes are those inside the namespace.
func (c *Changes) routes() (list []*Route) {
	for _, r := range []*Route{c.Route, c.Names} {
		if r != nil {
			list = append(list, r)
		}
	}
	return list
}

// make makes what is inside the namespace, over the link that is there. It stops
// at the first error: then undo takes back what was done.
func (c *Changes) make(n *Namespace) error {
	for _, r := range c.routes() {
		beforeStep("adding the route")
		if err := r.add(n); err != nil {
			return fmt.Errorf("adding the route to %v: %w", r.To, err)
		}
	}
	for _, s := range c.Sysctls {
		beforeStep("setting " + s.Name)
		if err := n.setSysctl(s.Name, s.Set); err != nil {
			return fmt.Errorf("setting %s: %w", s.text(s.Set), err)
		}
	}
	return nil
}

func (s Sysctl) text(value string) string {
	return strings.ReplaceAll(s.Name, "/", ".") + " = " + strings.Join(strings.Fields(value), " ")
}

// undo takes back what is inside and still as it was made, whether or not all of it
// was done; a second time it does nothing. The lines say what others have changed
// since, which stays. Whatever fails, it goes on with the rest.
func (c *Changes) undo(n *Namespace) (stays []string, err error) {
	var errs []error
	for i := len(c.Sysctls) - 1; i >= 0; i-- {
		line, err := c.Sysctls[i].restore(n)
		if line != "" {
			stays = append(stays, line)
		}
		errs = append(errs, err)
	}
	for _, r := range slices.Backward(c.routes()) {
		beforeStep("removing the route")
		if err := r.remove(n); err != nil {
			errs = append(errs, fmt.Errorf("removing the route to %v: %w", r.To, err))
		}
	}
	return stays, errors.Join(errs...)
}

// unlink takes back the link, by its end on the host.
func (c *Changes) unlink() error {
	if c.Link == nil {
		return nil
	}
	beforeStep("removing the link")
	if err := c.Link.remove(); err != nil {
		return fmt.Errorf("removing link %s: %w", c.Link.Host, err)
	}
	return nil
}

// restore sets a setting back, unless others have set it since.
func (s Sysctl) restore(n *Namespace) (stays string, err error) {
	beforeStep("setting back " + s.Name)
	now, err := n.sysctl(s.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && now == s.Was:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("looking at %s: %w", s.Name, err)
	case now != s.Set:
		return s.text(now) + " was set by others", nil
	}
	if err := n.setSysctl(s.Name, s.Was); err != nil {
		return "", fmt.Errorf("setting back %s: %w", s.text(s.Was), err)
	}
	return "", nil
}
