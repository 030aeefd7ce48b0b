package mapping

import (
	"container/heap"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/natless/natless/translate"
)

// A lease is an entry of one IPv4 and one IPv6 address in the same tables as
// the explicit mappings, so that a client's packets cost what mapped ones
// cost. This file says how leases begin and end, pool.go where addresses come
// from and go to. A lease is looked at when it could first have ended, found
// in a heap, and not before.

// batch is how many leases are looked at before others are let at the mutex.
const batch = 256

// proof is how many seconds a lease lasts, and may be idle, until something
// has come back for its client. A client that nobody answers is made up, or
// cannot use what it has.
const proof = 60

// Why a lease ended, in events.
const (
	endIdle       = "idle"
	endMaxLife    = "max_life"
	endUnanswered = "unanswered" // nothing came back for it
	endPressure   = "pool full"  // others need an address more
)

type lease struct {
	entry
	pool  atomic.Pointer[pool] // Reload moves leases between pools
	since time.Time
	ports *Range // nil: all of them
	born  uint32 // tick of since
	seen  uint32 // tick since which this process has it
	due   uint32 // tick at which it could have ended
	place int32  // in the heap of its pool; -1: in none
	noted bool   // that it is proven
	known bool   // the client, or who was called the same, was proven when it had the address before

	forfeit bool // others need an address more: it is not kept for this client

	pinned atomic.Bool // by an attachment: it stays until that goes
	label  atomic.Pointer[string]
}

// portion is what the lease is of.
func (l *lease) portion() Portion {
	first, last := l.bounds()
	return Portion{l.v4, first, last}
}

// newLease is the lease of what a pool lends as its unit n. mu must be held.
func (t *Table) newLease(p *pool, n uint32, v6 netip.Addr, since time.Time, tick uint32) *lease {
	v4 := p.addr(n)
	l := &lease{since: since, born: tick, seen: tick, place: -1, ports: p.Ports.of(v6, v4, n%p.per)}
	k := kindLease
	if l.ports != nil {
		k = kindRange
	}
	l.set(k, netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128), l)
	l.pool.Store(p)
	l.stamp.Store(tick)
	t.pin(l)
	return l
}

// labelled is what it was called; "" if nothing.
func (l *lease) labelled() string {
	if s := l.label.Load(); s != nil {
		return *s
	}
	return ""
}

func (l *lease) relabel(s string) {
	if s != l.labelled() { // of a million most have none
		l.label.Store(&s)
	}
}

// saved is the lease as a Store keeps it.
func (l *lease) saved(until time.Time) SavedLease {
	first, last := l.bounds()
	return SavedLease{
		IPv4: l.v4, First: first, Last: last, IPv6: l.v6, Since: l.since, Until: until,
		Proven: l.proven.Load(), Label: l.labelled(),
	}
}

// bounds are the first and the last of a lease's ports; 0 if it has them all.
func (l *lease) bounds() (first, last uint16) {
	if l.ports == nil {
		return 0, 0
	}
	return l.ports.First, l.ports.Last
}

// lease is what becomes of a packet whose source has no lease yet.
func (t *Table) lease(s *snapshot, client netip.Addr, tick uint32) (netip.Addr, *Range, translate.Verdict) {
	switch {
	case !s.permits(client):
		return client, nil, s.stranger()
	case t.keeper != nil:
		return client, nil, t.keeper.ask(client, tick)
	}
	return t.leaseNow(client, tick)
}

// leaseNow makes the lease of a client, without Keep.
func (t *Table) leaseNow(client netip.Addr, tick uint32) (netip.Addr, *Range, translate.Verdict) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.current.Load()
	if e, _ := s.v6.Lookup(client); e != nil { // another worker was faster
		return e.source(client)
	}
	s.wake(tick)
	o := t.offer(s, client, "", tick)
	if o.pool == nil {
		return client, nil, translate.PoolFull
	}
	o.take()
	g := t.stage(1)
	l := t.newLease(o.pool, o.unit, client, t.now(), tick)
	g.begin(l, "")
	t.enter(l)
	t.publish(g)
	return l.source(client)
}

// source is what an entry of the IPv6 side makes of a source under it.
func (e *entry) source(a netip.Addr) (netip.Addr, *Range, translate.Verdict) {
	if e.kind == kindRange {
		return e.v4, e.of.(*lease).ports, translate.OK
	}
	return e.to4(a), nil, translate.OK
}

// begin adds a lease that a client came for, or that somebody asked for.
func (g *stage) begin(l *lease, by string) {
	g.putLease(l)
	g.tell(OpLeaseMade, l, by)
}

// tell has an event of a lease as it is now.
func (g *stage) tell(op Op, l *lease, by string) {
	info := g.t.leaseInfo(&l.entry)
	g.events = append(g.events, Event{Op: op, By: by, Lease: &info})
}

// foresee is what lease would say if nobody had to wait for the disk, and
// leases nothing.
func (t *Table) foresee(s *snapshot, client netip.Addr) (netip.Addr, *Range, translate.Verdict) {
	if !s.permits(client) {
		return client, nil, s.stranger()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s = t.current.Load()
	if e, _ := s.v6.Lookup(client); e != nil {
		return e.source(client)
	}
	o := t.offer(s, client, "", t.tick.Load())
	if o.pool == nil {
		return client, nil, translate.PoolFull
	}
	return t.newLease(o.pool, o.unit, client, time.Time{}, 0).source(client)
}

// stranger is the verdict on a client that no pool lends to.
func (s *policy) stranger() translate.Verdict {
	if len(s.pools) == 0 {
		return translate.SourceUnmapped
	}
	return translate.ClientNotPermitted
}

// enter counts a lease in. mu must be held.
func (t *Table) enter(l *lease) {
	p := l.pool.Load()
	p.lent++
	first, _ := l.bounds()
	delete(p.returned, p.unit(l.v4, first))
	p.watch(l, t.keeper != nil)
	hi, _ := halves(l.v6)
	t.networks[hi]++
}

// leave counts a lease out whose entry is gone, and keeps its address if it is
// still the pool's. mu must be held.
func (t *Table) leave(g *stage, l *lease) {
	p, tick := l.pool.Load(), t.tick.Load()
	p.lent--
	if l.place >= 0 {
		heap.Remove(&p.due, int(l.place))
	}
	t.uncount(l)
	if e, _ := g.v4.Lookup(l.v4); e.pool() == p {
		p.keep(givenBack(l, tick, t.rests(l)))
	}
}

// rests reports whether what a lease was of must rest before others get it, and
// is kept for its client. A whole address that nobody ever answered need not. A
// range must: its neighbours go on with the same address, and whoever heard of
// its ports cannot tell the next client from this one.
func (t *Table) rests(l *lease) bool {
	return t.keeper == nil || l.known || l.proven.Load() || l.ports != nil
}

// uncount counts a lease out of its network.
func (t *Table) uncount(l *lease) {
	hi, _ := halves(l.v6)
	if t.networks[hi]--; t.networks[hi] == 0 {
		delete(t.networks, hi)
	}
}

// watch enters a lease in the heap by when it could end, if ever. What is
// pinned ends with its attachment only.
func (p *pool) watch(l *lease, proving bool) {
	if l.pinned.Load() {
		return
	}
	ends := false
	by := func(tick uint32) {
		if !ends || !reached(tick, l.due) {
			l.due, ends = tick, true
		}
	}
	if idle := ticks(p.Idle); idle > 0 {
		by(l.stamp.Load() + idle)
	}
	if life := ticks(p.MaxLife); life > 0 {
		by(l.born + life)
	}
	if proving && !l.proven.Load() {
		by(l.unanswered())
	}
	if ends {
		heap.Push(&p.due, l)
	}
}

// unanswered is the tick at which a lease ends if nothing has come back.
func (l *lease) unanswered() uint32 {
	if stamp := l.stamp.Load(); !reached(l.seen, stamp) {
		return stamp + proof
	}
	return l.seen + proof
}

// over says why a lease ends, and nothing if it does not.
func (l *lease) over(p *pool, tick uint32, proving bool) string {
	idle := ticks(p.Idle)
	switch {
	case l.aged(p, tick):
		return endMaxLife
	case idle > 0 && reached(tick, l.stamp.Load()+idle):
		return endIdle
	case proving && !l.proven.Load() && reached(tick, l.unanswered()):
		return endUnanswered
	}
	return ""
}

func (l *lease) aged(p *pool, tick uint32) bool {
	life := ticks(p.MaxLife)
	return life > 0 && reached(tick, l.born+life)
}

// Expire tells the time, and with it ends the leases whose time has come. It
// is to be called about once a second with the tick that Resolve is given.
// With Keep it only tells the time.
func (t *Table) Expire(tick uint32) {
	t.tick.Store(tick)
	if t.keeper != nil {
		t.keeper.wakeUp()
		return
	}
	t.expire()
}

// expire ends the leases whose time has come.
func (t *Table) expire() {
	for t.expireSome() {
	}
}

// expireSome ends at most a batch of leases and reports whether there is more
// to do.
func (t *Table) expireSome() (more bool) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.stage(0)
	tick, left := t.tick.Load(), batch
	for _, p := range g.pools {
		for ; left > 0 && len(p.due) > 0 && reached(tick, p.due[0].due); left-- {
			l := heap.Pop(&p.due).(*lease)
			if why := l.over(p, tick, t.keeper != nil); why != "" {
				g.end(l, why)
				continue
			}
			p.watch(l, t.keeper != nil)
			t.keeper.noteProof(l)
		}
	}
	t.endAll(g)
	return left == 0
}

// endAll publishes the ends of leases, to be saved by and by. writing and mu
// must be held.
func (t *Table) endAll(g *stage) {
	if len(g.ended) == 0 {
		return
	}
	t.keeper.note(saveEnds, endings(g.ended, t.now())...)
	t.publish(g)
}

func endings(leases []*lease, now time.Time) []SavedLease {
	list := make([]SavedLease, len(leases))
	for i, l := range leases {
		list[i] = l.saved(now)
	}
	return list
}

// SetLocal tells what "local" among the clients of a pool means from now on.
// Leases already made stay until they end.
func (t *Table) SetLocal(prefixes []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.Equal(t.local, prefixes) {
		return
	}
	t.local = slices.Clone(prefixes)
	s := *t.current.Load()
	for _, p := range s.pools {
		p.permit(t.local)
	}
	t.announce(&s, []Event{{Op: OpChanged, By: "local networks"}})
}
