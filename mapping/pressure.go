package mapping

import (
	"cmp"
	"net/netip"
	"slices"
)

const (
	lacking = 3   // seconds that a refused client counts: it asks again every two
	lacked  = 256 // refused clients that count at most
	active  = 60  // seconds since its last packet in which a lease is active
	evicted = 4   // leases of one pool that end early in one second, at most
)

// lack notes that no pool had an address for a client.
func (s *policy) lack(client netip.Addr, tick uint32) {
	for _, p := range s.pools {
		if p.permits(client) && len(p.refusals) < lacked {
			p.refusals[client] = tick
		}
	}
}

// relieve ends leases early in pools that lack addresses: first those that
// nobody ever answered, once they had a minute for it. If there are none, and
// fewer addresses are unlent (in quarantine, that is) than clients were
// refused, then the proven ones that were idle the longest, which must be a
// minute at least. An ended lease's address goes into quarantine like any
// other, so that it serves others only then: hence no more end than were
// refused. So it is with every range.
func (t *Table) relieve(tick uint32) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.stage(0)
	for _, p := range g.pools {
		demand := p.demand(tick)
		if demand == 0 {
			continue
		}
		supply := int(p.usable - p.lent)
		served := p.spare.len
		if p.Ports != (Ports{}) {
			served = supply
		}
		list := p.unanswered(tick, demand-served)
		for _, l := range list {
			l.forfeit = true
		}
		if len(list) == 0 && supply < demand {
			list = p.idlest(tick, min(evicted, demand-supply))
		}
		for _, l := range list {
			g.end(l, endPressure)
		}
	}
	t.endAll(g)
}

// demand is how many clients found no address in the last seconds.
func (p *pool) demand(tick uint32) int {
	for client, at := range p.refusals {
		if reached(tick, at+lacking) {
			delete(p.refusals, client)
		}
	}
	return len(p.refusals)
}

// unanswered lists leases that had their time to be proven and are not, at
// most n.
func (p *pool) unanswered(tick uint32, n int) (list []*lease) {
	for _, l := range p.due {
		if len(list) >= n {
			break
		}
		if !l.proven.Load() && reached(tick, l.seen+proof) {
			list = append(list, l)
		}
	}
	return list
}

// idlest lists the leases that were idle the longest, at most n. A pool whose
// leases do not end by being idle has none.
func (p *pool) idlest(tick uint32, n int) (list []*lease) {
	if p.Idle == 0 {
		return nil
	}
	idle := func(l *lease) uint32 { return tick - l.stamp.Load() }
	for _, l := range p.due {
		if stamp := l.stamp.Load(); !reached(tick, stamp+active) || len(list) == n && idle(list[n-1]) >= tick-stamp {
			continue
		}
		list = append(list, l)
		slices.SortStableFunc(list, func(a, b *lease) int { return cmp.Compare(idle(b), idle(a)) })
		list = list[:min(n, len(list))]
	}
	return list
}
