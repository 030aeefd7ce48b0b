package daemon

import (
	"context"

	"github.com/natless/natless/mapping"
)

// endSessions has a client's sessions end with its lease. Nothing would come by
// them any more; they would take memory until their time was over.
func (d *daemon) endSessions(ctx context.Context) {
	if d.sessions == nil {
		return
	}
	seen := d.table.Revision()
	for ctx.Err() == nil {
		changed := d.table.Changed()
		events, err := d.table.Events(seen, 1024)
		if err != nil { // too many changes at once: what was missed ends by its own time
			seen = d.table.Revision()
			continue
		}
		for _, e := range events {
			if e.Op == mapping.OpLeaseEnded && e.Lease.Ports != "" {
				d.sessions.End(e.Lease.IPv6)
			}
			seen = e.Revision
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}
