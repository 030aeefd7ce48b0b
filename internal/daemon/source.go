package daemon

import (
	"iter"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/trace"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// The methods here are the daemon as the control socket shows it.

func (d *daemon) Status() control.Status {
	c := d.config()
	wrong, warnings := d.problems()
	return control.Status{
		Version:  d.version,
		Uptime:   int64(time.Since(d.started).Seconds()),
		File:     absolute(c.File),
		Flags:    c.Flags,
		Device:   d.device.Name(),
		Offloads: d.device.Features().String(),
		Queues:   len(d.device.Queues()),
		Rings:    d.device.Features().Rings,
		MTU:      d.host.MTU(),
		Pref64:   c.Translation.Pref64,
		OwnIPv4:  c.OwnIPv4(),
		OwnIPv6:  c.OwnIPv6(),
		Pools:    d.table.Pools(),
		Networks: d.table.Networks(),
		Sessions: d.sessionCount(),
		Attached: d.attached(),
		State:    control.State{Dir: c.State.Dir, Problem: d.stateProblem()},
		Revision: d.table.Revision(),
		DNS64:    d.nameStatus(),
		RA:       advertising(d.ra.Status()),
		Links:    d.host.Links(),
		Refused:  d.refused(),
		Confined: d.confined,
		Warnings: warnings,
		Problems: wrong,
		Degraded: len(wrong) > 0,
	}
}

// absolute is a path as other processes find it; "" for none.
func absolute(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func (d *daemon) Stats() control.Stats {
	c := d.plane.Counters()
	s := control.Stats{
		Verdicts:         map[string]uint64{},
		IPv4In:           control.Traffic(c.IPv4In),
		IPv6In:           control.Traffic(c.IPv6In),
		IPv4Out:          control.Traffic(c.IPv4Out),
		IPv6Out:          control.Traffic(c.IPv6Out),
		ErrorsSent:       c.ErrorsSent,
		ErrorsSuppressed: c.ErrorsLimited,
		WriteErrors:      c.WriteErrors,
		Held:             c.Held,
		DeviceDrops:      d.device.Drops(),
	}
	for v, n := range c.Verdicts {
		s.Verdicts[translate.Verdict(v).String()] = n
	}
	return s
}

func (d *daemon) Maps() (uint64, iter.Seq[any]) {
	revision, maps := d.table.MapsAt()
	pref64 := d.config().Translation.Pref64
	return revision, func(yield func(any) bool) {
		for m := range maps {
			if !yield(control.Row{Rule: mapping.RuleMap, MapInfo: m}) {
				return
			}
		}
		if pref64.IsValid() {
			yield(control.Row{Rule: mapping.RulePref64, MapInfo: mapping.MapInfo{
				IPv4: netip.PrefixFrom(netip.IPv4Unspecified(), 0), IPv6: pref64,
			}})
		}
	}
}

func (d *daemon) Leases() (uint64, iter.Seq[any]) {
	revision, leases := d.table.LeasesAt()
	return revision, control.Each(leases)
}

// sessionCount is nil where no clients share an address.
func (d *daemon) sessionCount() *control.Sessions {
	if d.sessions == nil {
		return nil
	}
	return &control.Sessions{Open: d.sessions.Len(), Max: d.config().Sessions.Max}
}

func (d *daemon) Sessions(client netip.Addr) iter.Seq[control.Session] {
	return func(yield func(control.Session) bool) {
		if d.sessions == nil {
			return
		}
		var last netip.Addr // they come client by client
		var label string
		for s := range d.sessions.Sessions(client, d.plane.Tick()) {
			if s.Client != last {
				last, label = s.Client, ""
				if l := d.table.Explain(last).Lease; l != nil {
					label = l.Label
				}
			}
			if !yield(control.SessionOf(s, label)) {
				return
			}
		}
	}
}

func (d *daemon) Explain(a netip.Addr) any { return d.table.Explain(a) }
func (d *daemon) Config() any              { return d.config() }

func (d *daemon) Trace(packet []byte) any {
	c := Tracing(d.config(), d.table, d.host.MTU())
	c.Sessions, c.Tick = d.sessions, d.plane.Tick()
	return trace.Trace(c, packet)
}
