package mapping

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/natless/natless/translate"
)

// Keep makes the table durable: from then on RunKeeper makes leases, and not
// workers. What the store has is in force when Keep returns, before which no
// worker may start. Maps that the configuration does not allow any more are
// reported in problems and stay in the store; leases that it does not allow
// have ended. An error means that the store cannot be read.
func (t *Table) Keep(k Keeper) (problems []string, err error) {
	if k.Log == nil {
		k.Log = slog.New(slog.DiscardHandler)
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	t.keeper = &keeper{
		Keeper: k, table: t, clock: time.Now,
		admission: admission{networks: map[uint64]*bucket{}},
		admitted:  map[netip.Addr]bool{}, refuse: map[netip.Addr]translate.Verdict{},
		told: map[string]time.Time{},
	}
	t.keeper.init()
	if k.Store == nil {
		for _, p := range t.current.Load().pools {
			p.stranger = true
		}
		return nil, nil
	}
	saved, err := t.keeper.read()
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	problems, b := t.load(saved)
	if err := t.save(b); err != nil {
		k.Log.Warn("state was loaded and cannot be saved", "error", err) // workers hear of it when they ask
	}
	return problems, nil
}

// load puts in force what was saved. There is no new revision: nobody has seen
// the table yet.
func (t *Table) load(saved Saved) (problems []string, b Batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.stage(len(saved.Maps) + len(saved.Leases))
	entries := make([]entry, len(saved.Maps))
	for i := range saved.Maps {
		m := &saved.Maps[i]
		m.Runtime = true
		if g.adopted(m) {
			b.RemoveMaps = append(b.RemoveMaps, m.IPv4)
		} else if err := g.addMap(m, &entries[i], ""); err != nil {
			problems = append(problems, err.Error())
			t.shelved = append(t.shelved, *m)
		}
	}
	for _, a := range saved.Attachments {
		t.record(a)
	}
	now := t.now()
	var leases []*lease
	var ended []SavedLease
	dropped := 0
	// The newest first, in case that a client is said to have two.
	slices.SortFunc(saved.Leases, func(a, b SavedLease) int { return b.Since.Compare(a.Since) })
	for _, x := range saved.Leases {
		if !x.Until.IsZero() {
			ended = append(ended, x)
			continue
		}
		if p := g.fits(x); p != nil && (p.Local || p.permits(x.IPv6)) {
			l := t.newLease(p, p.unit(x.IPv4, x.First), x.IPv6, x.Since, t.tick.Load())
			l.born -= age(now.Sub(x.Since))
			l.proven.Store(x.Proven)
			l.noted = x.Proven
			l.relabel(x.Label)
			g.putLease(l)
			leases = append(leases, l)
			continue
		}
		if dropped++; dropped <= 10 {
			t.keeper.Log.Warn("a lease of before is dropped: no pool has it for this client any more", "ipv4", x.IPv4, "ipv6", x.IPv6)
		}
		x.Until = now
		ended = append(ended, x)
		b.Leases = append(b.Leases, x)
	}
	if dropped > 10 {
		t.keeper.Log.Warn("and so are others", "leases", dropped-10)
	}
	for _, m := range g.moves {
		m.pool.lose(m.prefix, m.n)
	}
	for _, l := range leases {
		t.enter(l)
	}
	g.keepAll(g.former(ended))
	s := g.snapshot()
	s.revision = t.current.Load().revision
	t.current.Store(s)
	return problems, b
}

// adopted reports whether the configuration has the very map that was added at
// runtime. Then it is the configuration's.
func (g *stage) adopted(m *Map) bool {
	e, _ := g.v4.Get(m.IPv4)
	if e == nil || e.kind != kindMap {
		return false
	}
	there := e.of.(*Map)
	return !there.Runtime && there.IPv6 == m.IPv6
}

// fits is the pool that can lend what a lease is of to its client as things
// are; nil if none can.
func (g *stage) fits(x SavedLease) *pool {
	if !x.IPv4.Is4() || !x.IPv6.Is6() || x.IPv6.Is4In6() {
		return nil
	}
	if e, _ := g.v6.Lookup(x.IPv6); e != nil {
		return nil
	}
	p := g.poolOf(netip.PrefixFrom(x.IPv4, 32))
	if p == nil || !p.Ports.has(x.First, x.Last) || g.lends(x.IPv4, p.Ports.number(x.First)) {
		return nil
	}
	return p
}

// lends reports whether the k-th range of an address is lent.
func (g *stage) lends(v4 netip.Addr, k uint32) bool {
	e, _ := g.v4.Lookup(v4)
	return e.lends(k)
}

// former is what is known of the addresses of leases that have ended.
func (g *stage) former(ended []SavedLease) (list []*returned) {
	slices.SortFunc(ended, func(a, b SavedLease) int {
		return cmp.Or(a.Until.Compare(b.Until), a.IPv4.Compare(b.IPv4))
	})
	tick, now := g.t.tick.Load(), g.t.now()
	for i, x := range ended {
		rests := x.Proven || x.First != 0
		r := &returned{
			prefix: netip.PrefixFrom(x.IPv4, 32), ports: [2]uint16{x.First, x.Last}, client: x.IPv6, label: x.Label, at: tick - age(now.Sub(x.Until)),
			kept: rests && len(ended)-i <= remembered, spare: !rests,
		}
		if x.IPv6 == nobody {
			r.client, r.kept = netip.Addr{}, false
		}
		if p := g.poolOf(r.prefix); p != nil && p.MaxLife > 0 && x.Until.Sub(x.Since) >= p.MaxLife {
			r.kept = false
		}
		list = append(list, r)
	}
	return list
}

// keepAll has pools keep what came back, each its own.
func (g *stage) keepAll(list []*returned) {
	slices.SortStableFunc(list, func(a, b *returned) int { return int(int32(a.at - b.at)) })
	for _, r := range list {
		p := g.poolOf(r.prefix)
		if p == nil {
			continue
		}
		if !p.Ports.has(r.ports[0], r.ports[1]) { // addresses are divided in another way now
			if r.spare {
				continue
			}
			r.ports, r.client, r.kept = [2]uint16{}, netip.Addr{}, false
		}
		if p.single(r) && g.lends(r.addr(), p.Ports.number(r.ports[0])) {
			continue
		}
		if there := p.at(r); there != nil {
			p.forget(there)
		}
		p.keep(r)
	}
}

// poolOf is the pool that can lend addresses as things are; nil if none can.
func (g *stage) poolOf(x netip.Prefix) *pool {
	e, _ := g.v4.LookupPrefix(x)
	p := e.pool()
	if p == nil || p.lendable(g.v4, x) == 0 {
		return nil
	}
	return p
}

// age is a time that has passed, in ticks that can be told apart.
func age(d time.Duration) uint32 { return uint32(min(max(0, d), longest) / time.Second) }
