package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/mapping"
)

// sides are those of a map that was added at runtime.
type sides struct{ v4, v6 netip.Prefix }

func runtimeSides(t *mapping.Table) (list []sides) {
	for _, m := range t.RuntimeMaps() {
		list = append(list, sides{m.IPv4, m.IPv6})
	}
	return list
}

// withAdded is the plan of a configuration with the maps that were added at
// runtime.
func withAdded(p hostnet.Plan, added []sides) hostnet.Plan {
	for _, m := range added {
		p.Added = append(p.Added, m.v4, m.v6)
		p.Hosts = appendInside(p.Hosts, p.IPv6, m.v6)
	}
	return p
}

// Change makes changes of the table, and of the host where they ask for it:
// routes are there before a new map is in force, and as long as an old one is.
func (d *daemon) Change(changes []mapping.Change, by string) (revision uint64, err error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.table.Check(changes); err != nil {
		return 0, err
	}
	plan := d.inForce.Load().plan
	during, after := addedBy(d.added, changes)
	if len(during) > len(d.added) {
		if err := d.host.Update(withAdded(plan, during)); err != nil {
			return 0, refusedByHost(err)
		}
	}
	revision, err = d.table.Apply(changes, by)
	if err != nil {
		return 0, errors.Join(err, d.host.Update(withAdded(plan, d.added)))
	}
	d.added = after
	if len(after) < len(during) {
		if err := d.host.Update(withAdded(plan, after)); err != nil {
			d.log.Warn("routes of removed maps remain for now", "error", err)
		}
	}
	return revision, nil
}

// addedBy is what of the maps added at runtime is there while changes are made,
// what was before among it, and after. Both can be very many.
func addedBy(before []sides, changes []mapping.Change) (during, after []sides) {
	during = slices.Clone(before)
	place := map[netip.Prefix]int{} // in during, of either side
	if slices.ContainsFunc(changes, func(c mapping.Change) bool { return c.Add == nil }) {
		for i, m := range before {
			place[m.v4], place[m.v6] = i, i
		}
	}
	gone := map[int]bool{}
	for _, c := range changes {
		if c.Add != nil {
			m := sides{c.Add.IPv4, c.Add.IPv6}
			place[m.v4], place[m.v6] = len(during), len(during)
			during = append(during, m)
		} else if i, ok := place[c.Remove]; ok {
			gone[i] = true
		}
	}
	if len(gone) == 0 {
		return during, during
	}
	for i, m := range during {
		if !gone[i] {
			after = append(after, m)
		}
	}
	return during, after
}

// refusedByHost says of a conflict with the host that it is one.
func refusedByHost(err error) error {
	if errors.Is(err, hostnet.ErrConflict) {
		return fmt.Errorf("%w with the host: %w", mapping.ErrConflict, err)
	}
	return fmt.Errorf("changing the host's routes: %w", err)
}

// Release ends a lease. Routes are those of its pool, and stay.
func (d *daemon) Release(a netip.Addr, by string) (mapping.Lease, error) {
	return d.table.Release(a, by)
}

func (d *daemon) LeasesAt(at time.Time, yield func(any) bool) error {
	return d.table.History(at, func(l mapping.SavedLease) bool {
		return yield(control.PastLease{IPv4: l.IPv4, IPv6: l.IPv6, Ports: l.Ports(), Since: l.Since, Until: l.Until, Label: l.Label})
	})
}

func (d *daemon) Revision() uint64 { return d.table.Revision() }

func (d *daemon) Events(after uint64, max int) ([]mapping.Event, error) {
	return d.table.Events(after, max)
}

func (d *daemon) Changed() <-chan struct{} { return d.table.Changed() }
