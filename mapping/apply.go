package mapping

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Check tells what Apply would refuse now. It changes nothing.
func (t *Table) Check(changes []Change) error {
	t.mu.Lock() // the state of pools must stay as it is meanwhile
	defer t.mu.Unlock()
	_, err := t.stageChanges(changes, "")
	return err
}

// Apply makes all the changes in their order, or none. When it returns without
// an error they are durable and in force, as one revision. by says who asked.
//
// A map that takes an address lent to another client is refused. A lease
// whose client a new map covers ends: a map comes before a lease. Only maps
// that were added so can be removed so. Errors wrap ErrConflict, ErrUnknown or
// ErrUnavailable, or tell what is malformed.
func (t *Table) Apply(changes []Change, by string) (revision uint64, err error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	g, err := t.stageChanges(changes, by)
	if err != nil {
		return 0, err
	}
	if len(g.events) == 0 {
		return t.Revision(), nil
	}
	if err := t.save(g.batch(t.current.Load())); err != nil {
		return 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.publish(g), nil
}

func (t *Table) stageChanges(changes []Change, by string) (*stage, error) {
	g := t.stage(len(changes))
	for i, c := range changes {
		if err := g.change(c, by); err != nil {
			if len(changes) > 1 {
				err = fmt.Errorf("change %d of %d: %w", i+1, len(changes), err)
			}
			return nil, err
		}
	}
	// Only now: an error about one of these maps that names another says nothing
	// of where that is from, for neither is in force.
	origin := "added " + t.now().UTC().Format(time.RFC3339) + " by " + by
	for _, e := range g.events {
		if e.Op == OpMapAdded {
			e.Map.Origin = origin
		}
	}
	return g, nil
}

func (g *stage) change(c Change, by string) error {
	if c.Add == nil {
		return g.removeMap(c.Remove, by)
	}
	m := *c.Add
	m.Origin, m.Runtime = "", true
	return g.addMap(&m, new(entry), by)
}

// batch is what must be saved of a stage: what the prefixes that it touched
// have come to, since one batch may add and remove the same map, and the
// leases that ended.
func (g *stage) batch(before *snapshot) (b Batch) {
	seen := map[netip.Prefix]bool{}
	for _, e := range g.events {
		if e.Map == nil || seen[e.Map.IPv4] {
			continue
		}
		p := e.Map.IPv4
		seen[p] = true
		if m := runtimeMap(g.v4.Get(p)); m != nil {
			b.PutMaps = append(b.PutMaps, *m)
		} else if runtimeMap(before.v4.Get(p)) != nil {
			b.RemoveMaps = append(b.RemoveMaps, p)
		}
	}
	b.Leases = endings(g.ended, g.t.now())
	return b
}

func runtimeMap(e *entry, _ bool) *Map {
	if e != nil && e.kind == kindMap {
		if m := e.of.(*Map); m.Runtime {
			return m
		}
	}
	return nil
}

// RuntimeMaps lists the maps that were added while running, by their IPv4
// side.
func (t *Table) RuntimeMaps() []Map {
	list := []Map{}
	_, maps := t.MapsAt()
	for m := range maps {
		if m.Runtime {
			list = append(list, Map(m))
		}
	}
	return list
}

// Release ends the lease that has an address on either side. When it returns
// without an error that is durable. Until its quarantine is over the address
// is kept for its client. A pinned lease is ErrConflict: it ends with its
// attachment. by says who asked.
func (t *Table) Release(a netip.Addr, by string) (Lease, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	g := t.stage(1)
	if !a.IsValid() {
		return Lease{}, errors.New("release: not an address")
	}
	tree := g.v6
	if a.Is4() {
		tree = g.v4
	}
	e, _ := tree.Get(netip.PrefixFrom(a.WithZone(""), a.BitLen()))
	if e != nil && e.kind == kindShared && e.lent() {
		return Lease{}, conflict("release %v: clients share it: name one by its IPv6 address", a)
	}
	if e == nil || !e.leased() {
		return Lease{}, fmt.Errorf("release %v: %w: no lease has this address", a, ErrUnknown)
	}
	l := e.of.(*lease)
	if l.pinned.Load() {
		return Lease{}, conflict("release %v: it is pinned by %v: natless detach ends it", a, t.holder(l.v6))
	}
	g.end(l, by)
	if err := t.save(g.batch(t.current.Load())); err != nil {
		return Lease{}, fmt.Errorf("release %v: %w", a, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.publish(g)
	return *g.events[0].Lease, nil
}
