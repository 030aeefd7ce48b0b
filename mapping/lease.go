package mapping

import (
	"container/heap"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/natless/natless/translate"
)

// A lease is an entry of one IPv4 and one IPv6 address in the same tables as
// the explicit mappings, so that a client's packets cost what mapped ones
// cost. This file makes and ends leases; everything in it but used and permits
// runs under the table's mutex.
//
// Nothing here depends on the size of a pool. Its addresses are handed out in
// ascending order by a cursor, and those that came back stand in a queue, the
// longest unused in front. A lease is looked at when it could first have
// ended, found in a heap, and not before.

// remembered is how many returned addresses a pool keeps for their former
// clients before it prefers them to addresses never lent. It bounds the memory
// that clients who never come back cost.
const remembered = 1 << 16

// batch is how many leases Expire looks at before it lets others at the mutex.
const batch = 256

type lease struct {
	entry
	pool  *pool
	since time.Time
	born  uint32 // tick
	due   uint32 // tick at which it could have ended
}

// pool is a Pool at work.
type pool struct {
	Pool
	permitted atomic.Pointer[bart.Lite] // clients, with what is local resolved
	entry     *entry                    // of its addresses while they are not lent
	size      uint32                    // addresses
	usable    uint32                    // addresses that can be lent
	next      uint32                    // the first that was never lent, counted from the start
	lent      uint32
	due       leaseHeap
	queue     returnedQueue
	former    map[netip.Addr]*returned // those in queue, by client
}

// lease finds or makes the lease of a client.
func (t *Table) lease(client netip.Addr, tick uint32) (netip.Addr, translate.Verdict) {
	if !t.permits(client) { // asked without the lock, for those who try often
		return t.stranger(client)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.current.Load()
	if e, _ := s.v6.Lookup(client); e != nil { // another worker was faster
		return e.to4(client), translate.OK
	}
	p, addr := t.take(s, client, tick)
	if p == nil {
		return client, translate.PoolFull
	}

	l := &lease{pool: p, since: t.now(), born: tick}
	l.kind, l.v4, l.v6, l.of = kindLease, addr, client, l
	l.stamp.Store(tick)
	p.lent++
	p.watch(l)
	t.publish(s.v4.InsertPersist(netip.PrefixFrom(addr, 32), &l.entry), s.v6.InsertPersist(netip.PrefixFrom(client, 128), &l.entry))
	return addr, translate.OK
}

// permits reports whether any pool lends to a client. It takes no lock.
func (t *Table) permits(client netip.Addr) bool {
	return slices.ContainsFunc(t.pools, func(p *pool) bool { return p.permits(client) })
}

func (p *pool) permits(client netip.Addr) bool { return p.permitted.Load().Contains(client) }

// take takes an address for a client out of the first pool that can.
func (t *Table) take(s *snapshot, client netip.Addr, tick uint32) (*pool, netip.Addr) {
	p, a, r := t.offer(s, client, tick)
	switch {
	case p == nil:
	case r != nil:
		p.reuse(r)
	default:
		p.next++
	}
	return p, a
}

// offer is the address that a client would be lent now, and its place in the
// queue of its pool if it was lent before: the one the client had before
// wherever that is, else one of the first pool with any left. The pool is nil
// when there is none.
func (t *Table) offer(s *snapshot, client netip.Addr, tick uint32) (*pool, netip.Addr, *returned) {
	for _, p := range t.pools {
		if r := p.former[client]; r != nil && p.permits(client) {
			return p, r.addr, r
		}
	}
	for _, p := range t.pools {
		if !p.permits(client) {
			continue
		}
		if a, r := p.choose(s, tick); a.IsValid() {
			return p, a, r
		}
	}
	return nil, netip.Addr{}, nil
}

// choose is an address that nobody has, invalid if there is none, and its
// place in the queue if it was lent before.
func (p *pool) choose(s *snapshot, tick uint32) (netip.Addr, *returned) {
	oldest := p.queue.first
	if oldest != nil && !reached(tick, oldest.until) {
		oldest = nil
	}
	if oldest == nil || p.queue.len < remembered {
		if a := p.fresh(s); a.IsValid() {
			return a, nil
		}
	}
	if oldest == nil {
		return netip.Addr{}, nil
	}
	return oldest.addr, oldest
}

// fresh is the next address that was never lent, invalid when all were: the
// one that next then counts to. What a map or natless itself has is stepped
// over, whole prefixes at a time.
func (p *pool) fresh(s *snapshot) netip.Addr {
	start := number4(p.IPv4.Addr())
	for p.next < p.size {
		a := addr4(start + p.next)
		taken, e, _ := s.v4.LookupPrefixLPM(netip.PrefixFrom(a, 32))
		if e == p.entry {
			return a
		}
		p.next = number4(last4(taken)) - start + 1
	}
	return netip.Addr{}
}

// foresee is what lease would say, and leases nothing.
func (t *Table) foresee(client netip.Addr) (netip.Addr, translate.Verdict) {
	if !t.permits(client) {
		return t.stranger(client)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.current.Load()
	if e, _ := s.v6.Lookup(client); e != nil {
		return e.to4(client), translate.OK
	}
	p, a, _ := t.offer(s, client, t.tick.Load())
	if p == nil {
		return client, translate.PoolFull
	}
	return a, translate.OK
}

// stranger is the verdict on a client that no pool lends to.
func (t *Table) stranger(client netip.Addr) (netip.Addr, translate.Verdict) {
	if len(t.pools) == 0 {
		return client, translate.SourceUnmapped
	}
	return client, translate.ClientNotPermitted
}

// reuse takes a returned address out of the queue.
func (p *pool) reuse(r *returned) {
	p.queue.remove(r)
	if p.former[r.client] == r {
		delete(p.former, r.client)
	}
}

// watch enters a lease in the heap by when it could end, if ever.
func (p *pool) watch(l *lease) {
	idle, life := ticks(p.Idle), ticks(p.MaxLife)
	switch {
	case idle == 0 && life == 0:
		return
	case life == 0:
		l.due = l.stamp.Load() + idle
	case idle == 0:
		l.due = l.born + life
	default:
		l.due = earlier(l.stamp.Load()+idle, l.born+life)
	}
	heap.Push(&p.due, l)
}

// Expire ends the leases whose time has come. It is to be called about once a
// second with the tick that Resolve is given.
func (t *Table) Expire(tick uint32) {
	t.tick.Store(tick)
	for t.expire(tick) {
	}
}

// expire ends at most a batch of leases and reports whether there is more to
// do.
func (t *Table) expire(tick uint32) (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.current.Load()
	v4, v6 := s.v4, s.v6
	left := batch
	for _, p := range t.pools {
		for ; left > 0 && len(p.due) > 0 && reached(tick, p.due[0].due); left-- {
			l := heap.Pop(&p.due).(*lease)
			if !l.over(tick) {
				p.watch(l)
				continue
			}
			v4 = v4.DeletePersist(netip.PrefixFrom(l.v4, 32))
			v6 = v6.DeletePersist(netip.PrefixFrom(l.v6, 128))
			p.takeBack(l, tick)
		}
	}
	if v4 != s.v4 {
		t.publish(v4, v6)
	}
	return left == 0
}

// over reports whether a lease has been idle for too long, or lived too long.
func (l *lease) over(tick uint32) bool {
	idle := ticks(l.pool.Idle)
	return idle > 0 && reached(tick, l.stamp.Load()+idle) || l.aged(tick)
}

func (l *lease) aged(tick uint32) bool {
	life := ticks(l.pool.MaxLife)
	return life > 0 && reached(tick, l.born+life)
}

// takeBack queues the address of a lease that ended. Its client finds it again
// there, unless the lease came to its maximum age: an active client would have
// it back at once, and max_life would mean nothing.
func (p *pool) takeBack(l *lease, tick uint32) {
	p.lent--
	r := &returned{addr: l.v4, until: tick + ticks(p.Quarantine)}
	if !l.aged(tick) {
		r.client = l.v6
		p.former[l.v6] = r
	}
	p.queue.add(r)
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
	for _, p := range t.pools {
		p.permit(t.local)
	}
	s := t.current.Load()
	t.publish(s.v4, s.v6)
}

// permit sets who may lease.
func (p *pool) permit(local []netip.Prefix) {
	permitted := new(bart.Lite)
	for _, x := range p.Clients {
		permitted.Insert(x)
	}
	if p.Local {
		for _, x := range local {
			permitted.Insert(x)
		}
	}
	p.permitted.Store(permitted)
}

// ticks is a duration in whole seconds, rounded up.
func ticks(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

// reached reports whether tick is at or after t. Ticks wrap around.
func reached(tick, t uint32) bool { return int32(tick-t) >= 0 }

func earlier(a, b uint32) uint32 {
	if reached(a, b) {
		return b
	}
	return a
}

// leaseHeap has the lease that is due first on top.
type leaseHeap []*lease

func (h leaseHeap) Len() int           { return len(h) }
func (h leaseHeap) Less(i, j int) bool { return !reached(h[i].due, h[j].due) }
func (h leaseHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *leaseHeap) Push(x any)        { *h = append(*h, x.(*lease)) }
func (h *leaseHeap) Pop() any {
	last := len(*h) - 1
	l := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return l
}

// returned is an address that came back. Once its quarantine is over anybody
// can have it; its former client always can.
type returned struct {
	addr       netip.Addr
	client     netip.Addr // invalid: nobody's
	until      uint32     // tick
	prev, next *returned
}

// returnedQueue is a list in the order of return, which is the order of until
// as well, since a pool has one quarantine.
type returnedQueue struct {
	first, last *returned
	len         int
}

func (q *returnedQueue) add(r *returned) {
	r.prev = q.last
	if q.last == nil {
		q.first = r
	} else {
		q.last.next = r
	}
	q.last = r
	q.len++
}

func (q *returnedQueue) remove(r *returned) {
	if r.prev == nil {
		q.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		q.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	q.len--
}
