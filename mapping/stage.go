package mapping

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
)

// stage is a snapshot in the making, and what must be done to the pools once
// it is the current one. It refuses what cannot be before anything changed, so
// that it can simply be thrown away.
type stage struct {
	t *Table
	*policy
	v4, v6  *bart.Fast[*entry]
	counts  *octetCounts
	owned   bool // v4 and v6 are of this stage alone, to be changed in place
	counted bool // so are counts

	taken  map[*pool]int64 // addresses that maps took out of a pool, less those they gave back
	moves  []move
	ended  []*lease
	events []Event
}

// move is a map that came to lie in a pool, or lies there no longer.
type move struct {
	pool   *pool
	prefix netip.Prefix
	added  bool
	n      uint32 // addresses that this takes out of the pool, or gives back
}

// many is how many changes are cheaper made in a copy of the whole table than
// each by copying what it touches.
const many = 1 << 13

// stage begins with the current snapshot. writing must be held, or mu.
func (t *Table) stage(changes int) *stage {
	s := t.current.Load()
	g := &stage{t: t, policy: s.policy, v4: s.v4, v6: s.v6, counts: s.counts, taken: map[*pool]int64{}}
	if changes >= many {
		g.v4, g.v6, g.owned = s.v4.Clone(), s.v6.Clone(), true
	}
	return g
}

// snapshot is what the stage has become.
func (g *stage) snapshot() *snapshot {
	return &snapshot{policy: g.policy, v4: g.v4, v6: g.v6, counts: g.counts, octets: g.counts.set()}
}

func (g *stage) put4(p netip.Prefix, e *entry) {
	if !e.lent() {
		if _, there := g.v4.Get(p); !there {
			g.count(p, 1)
		}
	}
	if g.owned {
		g.v4.Insert(p, e)
	} else {
		g.v4 = g.v4.InsertPersist(p, e)
	}
}

func (g *stage) put6(p netip.Prefix, e *entry) {
	if g.owned {
		g.v6.Insert(p, e)
	} else {
		g.v6 = g.v6.InsertPersist(p, e)
	}
}

func (g *stage) drop4(p netip.Prefix, e *entry) {
	if !e.lent() {
		g.count(p, -1)
	}
	if g.owned {
		g.v4.Delete(p)
	} else {
		g.v4 = g.v4.DeletePersist(p)
	}
}

func (g *stage) drop6(p netip.Prefix) {
	if g.owned {
		g.v6.Delete(p)
	} else {
		g.v6 = g.v6.DeletePersist(p)
	}
}

// count notes a prefix in the first octets. Leases need none: they come and go
// inside their pools.
func (g *stage) count(p netip.Prefix, by int) {
	if !g.counted {
		counts := *g.counts
		g.counts, g.counted = &counts, true
	}
	g.counts.change(p, by)
}

// lent reports whether an entry of the IPv4 side has leases.
func (e *entry) lent() bool {
	return e.kind == kindLease || e.kind == kindShared && e.of.(*shared).lent > 0
}

// putLease enters a lease.
func (g *stage) putLease(l *lease) {
	if l.ports != nil {
		g.putRange(l)
	} else {
		g.put4(netip.PrefixFrom(l.v4, 32), &l.entry)
	}
	g.put6(netip.PrefixFrom(l.v6, 128), &l.entry)
}

// end takes a lease out. by says why.
func (g *stage) end(l *lease, by string) {
	if l.ports != nil {
		g.dropRange(l)
	} else {
		g.vacate(l, &l.entry)
	}
	g.drop6(netip.PrefixFrom(l.v6, 128))
	g.ended = append(g.ended, l)
	g.tell(OpLeaseEnded, l, by)
}

// vacate takes the entry of an address out that has no lease any more. What it
// hid appears again: the pool, whose prefix may be that very address.
func (g *stage) vacate(l *lease, e *entry) {
	p := netip.PrefixFrom(l.v4, 32)
	if pool := l.pool.Load(); pool.IPv4 == p {
		g.put4(p, pool.entry)
		return
	}
	g.drop4(p, e)
}

// addMap adds a map to a table that has its pools already. e is room for its
// entry. Leases whose clients it covers end.
func (g *stage) addMap(m *Map, e *entry, by string) error {
	pools := g.lending()
	if err := cmp.Or(m.check(g.t.pref64), m.allowed(pools)); err != nil {
		return fmt.Errorf("%v: %w", m, err)
	}
	for _, check := range []func(*Map) error{g.free4, g.free6, g.beside, g.leasable} {
		if err := check(m); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
	}
	for _, l := range g.leasesUnder(m) {
		g.end(l, by)
	}
	if p := g.poolAround(m.IPv4); p != nil {
		n := p.lendable(g.v4, m.IPv4)
		g.taken[p] += int64(n)
		g.moves = append(g.moves, move{p, m.IPv4, true, n})
	}
	e.set(kindMap, m.IPv4, m.IPv6, m)
	if err := g.enterMap(m, e, pools); err != nil {
		return fmt.Errorf("%v: %w", m, err)
	}
	g.settlePrivate(m.IPv4)
	g.events = append(g.events, Event{Op: OpMapAdded, By: by, Map: (*MapInfo)(m)})
	return nil
}

// free4 refuses a map whose IPv4 prefix is somebody's.
func (g *stage) free4(m *Map) error {
	e, _ := g.v4.Get(m.IPv4)
	if e == nil {
		return nil
	}
	switch e.kind {
	case kindMap:
		return conflict("%v is mapped already, by %v", m.IPv4, e.of)
	case kindOwn:
		return conflict("%v is an address of natless itself", m.IPv4)
	case kindTaken:
		return conflict("the IPv6 address that stands for %v by pref64 is taken by %v", m.IPv4, e.of)
	}
	if p := e.pool(); p != nil && p.IPv4 == m.IPv4 {
		return conflict("it takes all of %v", p)
	}
	return nil
}

func (g *stage) free6(m *Map) error {
	e, _ := g.v6.Get(m.IPv6)
	if e == nil {
		return nil
	}
	switch e.kind {
	case kindMap:
		return conflict("%v is mapped already, by %v", m.IPv6, e.of)
	case kindOwn:
		return conflict("%v is an address of natless itself", m.IPv6)
	}
	return nil
}

// beside refuses a map that would come to lie over a pool, over a stand-in of
// rfc6791 or inside one, as New does.
func (g *stage) beside(m *Map) error {
	for _, p := range g.pools {
		if m.IPv4.Bits() <= p.IPv4.Bits() && g.covers(m.IPv4, p.IPv4) {
			return conflict("it takes all of %v", p)
		}
	}
	for _, r := range g.rfc6791 {
		if r.Bits() == 32 && r.Addr() == g.t.own4 {
			continue
		}
		if r.Overlaps(m.IPv4) && (m.IPv4.Bits() >= r.Bits() || g.covers(m.IPv4, r)) {
			return conflict("it overlaps rfc6791 %v", r)
		}
	}
	return nil
}

// covers reports whether nothing in the table comes between a wide prefix and
// a narrow one.
func (g *stage) covers(wide, narrow netip.Prefix) bool {
	if !wide.Overlaps(narrow) {
		return false
	}
	for between, e := range g.v4.Supernets(narrow) {
		if e.kind == kindPrivate {
			continue // which comes only where no map is
		}
		if between != narrow || e.pool() == nil && e.kind != kindLease { // a lease: of a pool of one address
			return between.Bits() <= wide.Bits() // it replaces a block of its own length
		}
	}
	return true
}

// leasable refuses a map of addresses that are lent to others, and one that
// leaves a pool nothing to lend.
func (g *stage) leasable(m *Map) error {
	p := g.poolAround(m.IPv4)
	if p == nil {
		return nil
	}
	probe := newEntry(kindMap, m.IPv4, m.IPv6, nil)
	var other *lease
	for _, e := range g.v4.Subnets(m.IPv4) {
		if !e.leases(func(l *lease) bool {
			other = l
			return m.IPv6.Contains(l.v6) && probe.to4(l.v6) == l.v4
		}) {
			return conflict("%v is lent to %v: release it first", other.v4, other.v6)
		}
	}
	if int64(p.usable) == g.taken[p]+int64(p.lendable(g.v4, m.IPv4)) {
		return conflict("no address of %v would be left to lend", p)
	}
	return nil
}

// leasesUnder lists the leases that a map ends: those of clients that it
// covers, for a map comes before a lease.
func (g *stage) leasesUnder(m *Map) (list []*lease) {
	for _, e := range g.v6.Subnets(m.IPv6) {
		if e.leased() {
			list = append(list, e.of.(*lease))
		}
	}
	return list
}

// poolAround is the pool that a longer prefix lies in.
func (g *stage) poolAround(p netip.Prefix) *pool {
	for _, q := range g.pools {
		if q.IPv4.Bits() < p.Bits() && q.IPv4.Contains(p.Addr()) {
			return q
		}
	}
	return nil
}

// removeMap removes the map that has a prefix of either family, if it was
// added at runtime.
func (g *stage) removeMap(p netip.Prefix, by string) error {
	tree := g.v6
	if p.Addr().Is4() {
		tree = g.v4
	}
	if !p.IsValid() || p != p.Masked() {
		return fmt.Errorf("remove map %v: not a prefix, or bits behind it are set", p)
	}
	e, _ := tree.Get(p)
	if e == nil || e.kind != kindMap {
		return fmt.Errorf("remove map %v: %w: no map has this prefix", p, ErrUnknown)
	}
	m := e.of.(*Map)
	if !m.Runtime {
		return conflict("remove map %v: %s has it: remove it there and natless reload", p, m.Origin)
	}
	g.unmap(m, by)
	return nil
}

// unmap takes a map out. What it hid appears again.
func (g *stage) unmap(m *Map, by string) {
	e, _ := g.v4.Get(m.IPv4)
	g.drop4(m.IPv4, e)
	g.drop6(m.IPv6)
	if seen, ok := g.t.pref64.Seen(m.IPv6); ok && !e.self {
		g.dropTaken(seen)
	}
	g.settlePrivate(m.IPv4)
	if p := g.poolAround(m.IPv4); p != nil {
		n := p.lendable(g.v4, m.IPv4)
		g.taken[p] -= int64(n)
		g.moves = append(g.moves, move{p, m.IPv4, false, n})
	}
	g.events = append(g.events, Event{Op: OpMapRemoved, By: by, Map: (*MapInfo)(m)})
}

// dropTaken undoes taken4. The block that it may have hidden appears again, a
// private one by settlePrivate.
func (g *stage) dropTaken(p netip.Prefix) {
	e, _ := g.v4.Get(p)
	g.drop4(p, e)
	for _, x := range refused4 {
		if x.Prefix == p {
			g.put4(p, &entry{kind: x.kind, of: x.Name})
		}
	}
	g.settlePrivate(p)
}

// lending lists the pools as they are configured.
func (g *stage) lending() []Pool {
	list := make([]Pool, len(g.pools))
	for i, p := range g.pools {
		list[i] = p.Pool
	}
	return list
}

// settlePrivate enters the private blocks, or takes them out, after the map of
// a prefix came or went: they are there except where a map or a pool comes
// before pref64 for all of one.
func (g *stage) settlePrivate(changed netip.Prefix) {
	if !g.globalOnly {
		return
	}
	for _, x := range private4 {
		if !changed.Overlaps(x.Prefix) || changed.Bits() > x.Prefix.Bits() {
			continue
		}
		covered, block := false, (*entry)(nil)
		for _, e := range g.v4.Supernets(x.Prefix) {
			if e.kind == kindPrivate {
				block = e
			} else {
				covered = true
			}
		}
		switch {
		case covered && block != nil:
			g.drop4(x.Prefix, block)
		case !covered && block == nil:
			g.put4(x.Prefix, &entry{kind: x.kind, of: x.Name})
		}
	}
}

// publish makes a stage the current snapshot, with the next revision, and does
// to the pools what follows from it. writing and mu must be held. It returns
// the revision.
func (t *Table) publish(g *stage) uint64 {
	for _, l := range g.ended {
		t.leave(g, l)
	}
	for _, m := range g.moves {
		if m.added {
			m.pool.lose(m.prefix, m.n)
		} else {
			m.pool.regain(m.prefix, m.n, t.tick.Load())
		}
	}
	return t.announce(g.snapshot(), g.events)
}

// announce makes a snapshot the current one, with the next revision, and tells
// of it. mu must be held.
func (t *Table) announce(s *snapshot, events []Event) uint64 {
	s.revision = t.current.Load().revision + 1
	now := t.now()
	for i := range events {
		events[i].Revision, events[i].Time = s.revision, now
	}
	t.journal.enter(change{s.revision, events}, func() { t.current.Store(s) })
	return s.revision
}

// refusal is an error of one of the kinds that change.go names, in words of
// its own.
type refusal struct {
	kind  error
	words string
}

func (r *refusal) Error() string { return r.words }
func (r *refusal) Unwrap() error { return r.kind }

func conflict(format string, args ...any) error {
	return &refusal{ErrConflict, fmt.Sprintf(format, args...)}
}
