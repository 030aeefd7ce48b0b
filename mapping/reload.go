package mapping

import (
	"container/heap"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Diff is what Reload changed.
type Diff struct {
	Revision     uint64
	MapsAdded    []MapInfo
	MapsRemoved  []MapInfo // a map with another counterpart or label is removed and added
	LeasesEnded  []Lease
	PoolsChanged bool
	RulesChanged bool // rfc6791, hairpin, private addresses
}

// reload is a stage of another configuration.
type reload struct {
	*stage
	diff    Diff
	adopted []netip.Prefix // maps added at runtime that the configuration has now
	kept    []kept
	strange []strange
}

// strange is a part of a pool that no pool lent before.
type strange struct {
	pool *pool
	part netip.Prefix
}

// kept is a lease that goes on, and its pool from now on.
type kept struct {
	lease *lease
	pool  *pool
}

// CheckReload tells what Reload would refuse now. It changes nothing.
func (t *Table) CheckReload(c Config) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	_, err := t.stageReload(c, "")
	return err
}

// Reload has another configuration in force, all or nothing, as one revision.
// Pref64 and natless's own addresses must be what they are. Maps added at
// runtime stay; one that the configuration has too becomes the
// configuration's, and one that conflicts with it is ErrConflict. Leases that
// still fit go on, with all that is known of them; the others end. by says who
// asked.
//
// Where a map was asked for may change without an event: lines of a file move.
func (t *Table) Reload(c Config, by string) (Diff, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	r, err := t.stageReload(c, by)
	if err != nil {
		return Diff{}, err
	}
	if len(r.adopted)+len(r.ended) > 0 {
		if err := t.save(Batch{RemoveMaps: r.adopted, Leases: endings(r.ended, t.now())}); err != nil {
			return Diff{}, err
		}
	}
	before := t.formerOf(r.strange)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle(r, before)
	r.diff.Revision = t.announce(r.snapshot(), r.events)
	return r.diff, nil
}

func (t *Table) stageReload(c Config, by string) (*reload, error) {
	old := t.current.Load()
	switch {
	case c.Pref64 != t.pref64.prefix:
		return nil, fmt.Errorf("pref64 cannot change while running: it is %v", t.pref64.prefix)
	case c.OwnIPv4 != t.own4 || c.OwnIPv6 != t.own6:
		return nil, fmt.Errorf("natless's own addresses cannot change while running: they are %v and %v", t.own4, t.own6)
	}
	g, err := t.build(c)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	for _, p := range g.pools {
		p.permit(t.local)
	}
	t.mu.Unlock()
	r := &reload{stage: g}
	if err := r.keepMaps(old); err != nil {
		return nil, err
	}
	r.events = nil
	r.compareMaps(old, by)
	r.keepLeases(old, by)
	r.comparePolicy(old, by)
	return r, nil
}

// keepMaps adds what was added at runtime.
func (r *reload) keepMaps(old *snapshot) error {
	for _, e := range old.v4.AllSorted4() {
		m := runtimeMap(e, true)
		switch {
		case m == nil:
		case r.stage.adopted(m):
			r.adopted = append(r.adopted, m.IPv4)
		default:
			if err := r.addMap(m, new(entry), ""); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reload) compareMaps(old *snapshot, by string) {
	same := func(a, b *entry) bool {
		if a == nil || b == nil || a.kind != kindMap || b.kind != kindMap {
			return false
		}
		x, y := *a.of.(*Map), *b.of.(*Map)
		x.Origin, y.Origin = "", ""
		return x == y
	}
	for p, e := range old.v4.AllSorted4() {
		if now, _ := r.v4.Get(p); e.kind == kindMap && !same(e, now) {
			m := (*MapInfo)(e.of.(*Map))
			r.diff.MapsRemoved = append(r.diff.MapsRemoved, *m)
			r.events = append(r.events, Event{Op: OpMapRemoved, By: by, Map: m})
		}
	}
	for p, e := range r.v4.AllSorted4() {
		if before, _ := old.v4.Get(p); e.kind == kindMap && !same(e, before) {
			m := (*MapInfo)(e.of.(*Map))
			r.diff.MapsAdded = append(r.diff.MapsAdded, *m)
			r.events = append(r.events, Event{Op: OpMapAdded, By: by, Map: m})
		}
	}
}

// keepLeases takes over the leases that still fit. The entries stay the same,
// so that workers go on stamping them.
func (r *reload) keepLeases(old *snapshot, by string) {
	for l := range old.leases() {
		p, before := r.fits(l.saved(time.Time{})), l.pool.Load()
		if p != nil && p.Ports.Session == before.Ports.Session && (p.permits(l.v6) || p.Local && before.Local) {
			r.putLease(l)
			r.kept = append(r.kept, kept{l, p})
			continue
		}
		info := r.t.leaseInfo(&l.entry)
		r.ended = append(r.ended, l)
		r.diff.LeasesEnded = append(r.diff.LeasesEnded, info)
		r.events = append(r.events, Event{Op: OpLeaseEnded, By: by, Lease: &info})
	}
}

func (r *reload) comparePolicy(old *snapshot, by string) {
	r.diff.PoolsChanged = !slices.EqualFunc(old.pools, r.pools, func(a, b *pool) bool {
		return a.IPv4 == b.IPv4 && slices.Equal(a.Clients, b.Clients) && a.Local == b.Local &&
			a.Idle == b.Idle && a.MaxLife == b.MaxLife && a.Quarantine == b.Quarantine &&
			a.Ports == b.Ports
	})
	r.diff.RulesChanged = old.hairpin != r.hairpin || old.guarded != r.guarded || old.globalOnly != r.globalOnly || !slices.Equal(old.rfc6791, r.rfc6791)
	if r.diff.PoolsChanged || r.diff.RulesChanged || len(r.events) == 0 {
		r.events = append(r.events, Event{Op: OpChanged, By: by})
	}
	for _, p := range r.pools {
		around := slices.IndexFunc(old.pools, func(q *pool) bool {
			return q.IPv4.Bits() <= p.IPv4.Bits() && q.IPv4.Contains(p.IPv4.Addr())
		})
		if around < 0 {
			r.strange = append(r.strange, strange{p, p.IPv4})
			continue
		}
		q := old.pools[around]
		p.stranger = q.stranger
		// What looks like a network and natless's own address may be in a pool
		// that does not lend them.
		for _, a := range []netip.Addr{q.IPv4.Addr(), r.t.own4} {
			one := netip.PrefixFrom(a, 32)
			if p.IPv4.Contains(a) && q.lendable(old.v4, one) == 0 && p.lendable(r.v4, one) > 0 {
				r.strange = append(r.strange, strange{p, one})
			}
		}
	}
}

// formerOf is what the store knows of addresses that come anew, perhaps again. If
// that cannot be known, whoever may have had them is forgotten before they are
// lent.
func (t *Table) formerOf(list []strange) (ended []SavedLease) {
	if len(list) == 0 || t.keeper == nil {
		return nil
	}
	unknown := func() []SavedLease {
		for _, s := range list {
			s.pool.stranger = true
		}
		return nil
	}
	if t.keeper.Store == nil {
		return unknown()
	}
	saved, err := t.keeper.read()
	if err != nil {
		return unknown()
	}
	for _, l := range saved.Leases {
		if !l.Until.IsZero() && slices.ContainsFunc(list, func(s strange) bool { return s.part.Contains(l.IPv4) }) {
			ended = append(ended, l)
		}
	}
	return ended
}

// settle moves leases and returned addresses to their new pools. mu must be
// held.
func (t *Table) settle(r *reload, before []SavedLease) {
	old, tick := t.current.Load(), t.tick.Load()
	for _, p := range r.pools {
		p.permit(t.local)
	}
	for _, m := range r.moves {
		m.pool.lose(m.prefix, m.n)
	}
	list := r.former(before)
	for _, p := range old.pools {
		for _, q := range []*returnedQueue{&p.rested, &p.spare} {
			for x := q.first; x != nil; x = x.next {
				list = append(list, &returned{prefix: x.prefix, ports: x.ports, client: x.client, label: x.label, kept: x.kept, at: x.at, spare: x.spare})
			}
		}
	}
	for _, m := range r.diff.MapsRemoved {
		list = append(list, &returned{prefix: m.IPv4, at: tick})
	}
	for _, k := range r.kept {
		if k.lease.place >= 0 {
			heap.Remove(&k.lease.pool.Load().due, int(k.lease.place))
		}
		k.lease.pool.Store(k.pool)
		k.pool.lent++
		k.pool.watch(k.lease, t.keeper != nil)
	}
	for _, l := range r.ended {
		t.uncount(l)
		list = append(list, givenBack(l, tick, t.rests(l)))
	}
	r.keepAll(append(list, t.keptForAttached(list, tick)...))
}
