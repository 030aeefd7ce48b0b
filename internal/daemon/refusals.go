package daemon

import (
	"context"
	"time"

	"github.com/natless/natless/translate"
)

// toldVerdicts are the refusals that an operator can and usually wants to
// mend. Each is logged when it occurs, at most once a minute; the others are
// counters only, but for a full pool and a state that cannot be saved, which the
// table's keeper tells of itself.
var toldVerdicts = map[translate.Verdict]string{
	translate.PrivateIPv4:        "refused private IPv4 addresses behind pref64: set translation.private_ipv4 = \"allow\", or use another translation.pref64 such as 64:ff9b:1::/96 (RFC 8215)",
	translate.LeaseLimited:       "more new IPv6 clients at once than leases are made for: if it lasts, somebody may be making up source addresses",
	translate.ClientNotPermitted: "refused IPv6 sources that no pool's clients permit: add them to clients, or give them a [[map]]",
}

const (
	refusalPoll  = time.Second
	refusalQuiet = time.Minute
)

// reportRefusals logs the told verdicts from the counters, so that the way of
// packets need not.
func (d *daemon) reportRefusals(ctx context.Context) {
	seen := map[translate.Verdict]uint64{}
	told := map[translate.Verdict]time.Time{}
	every(ctx, refusalPoll, func() {
		counters := d.plane.Counters()
		for v, text := range toldVerdicts {
			n := counters.Verdicts[v]
			if n == seen[v] || time.Since(told[v]) < refusalQuiet {
				continue
			}
			d.log.Warn(text, "verdict", v.String(), "packets", n-seen[v])
			seen[v], told[v] = n, time.Now()
		}
	})
}
