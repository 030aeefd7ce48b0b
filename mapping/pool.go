package mapping

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
)

// What a pool does with its addresses, or with the ranges of ports that it
// divides them in: its units, counted from its start. Nothing here depends on
// the size of a pool. Addresses never lent are handed out in ascending order by a cursor.
// Those that came back stand in one of two queues: whole addresses that nobody
// ever answered are lent again first, without quarantine and at once, so that a
// flood of made up clients uses the same few over and over; the rest, and every
// range, waits for its quarantine and, as long as there are others, for its
// former client, or who comes by the same label.

// remembered is how many returned addresses a pool keeps for their former
// clients before it prefers them to addresses never lent. It bounds the memory
// that clients who never come back cost.
const remembered = 1 << 16

// pool is a Pool at work.
type pool struct {
	Pool
	permitted atomic.Pointer[bart.Lite] // clients, with what is local resolved
	entry     *entry                    // of its addresses while they are not lent
	per       uint32                    // units of an address
	size      uint32                    // units
	first     uint32                    // that may be lent
	stranger  bool                      // what was lent from it before this process is not known

	usable   uint32 // units that can be lent
	next     uint32 // the first that may never have been lent
	lent     uint32
	due      leaseHeap
	rested   returnedQueue // proven leases', ranges, and what maps took
	spare    returnedQueue // of leases that nobody answered
	returned map[uint32]*returned
	wide     *bart.Fast[*returned]    // those of rested that are more than one unit
	former   map[netip.Addr]*returned // those in rested that are kept, by client
	labels   map[string][]*returned   // and by label, in the order of return

	refusals map[netip.Addr]uint32 // clients that it had no address for, and the tick
}

func (p *pool) permits(client netip.Addr) bool { return p.permitted.Load().Contains(client) }

// permits reports whether any pool lends to a client. It takes no lock.
func (s *policy) permits(client netip.Addr) bool {
	return slices.ContainsFunc(s.pools, func(p *pool) bool { return p.permits(client) })
}

// addr is the address that a unit is, or is of.
func (p *pool) addr(unit uint32) netip.Addr { return addr4(number4(p.IPv4.Addr()) + unit/p.per) }

// unit is the unit of an address that begins with a port; of an address that
// is divided, with port 0 the first.
func (p *pool) unit(a netip.Addr, first uint16) uint32 {
	n := (number4(a) - number4(p.IPv4.Addr())) * p.per
	if first != 0 {
		n += p.Ports.number(first)
	}
	return n
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

// returned is a unit that came back, or addresses that a map took once.
type returned struct {
	prefix     netip.Prefix
	ports      [2]uint16  // the first and the last of a range; 0: all
	client     netip.Addr // who had it last; invalid: a map, or unknown
	label      string     // what it was called
	kept       bool       // for client, or another by that label
	at         uint32     // tick of its return
	spare      bool       // without quarantine: nobody answered its client
	prev, next *returned
}

func (r *returned) addr() netip.Addr { return r.prefix.Addr() }

// single reports whether what came back is one unit.
func (p *pool) single(r *returned) bool {
	return r.prefix.Bits() == 32 && (p.Ports == Ports{} || r.ports[0] != 0)
}

func (p *pool) unitOf(r *returned) uint32 { return p.unit(r.addr(), r.ports[0]) }

// offer is a unit that a client would be lent, and where it comes from.
type offer struct {
	pool *pool // nil: none is left
	unit uint32
	from *returned // nil: the cursor
}

// offer is the address that a client would be lent now: the one the client had
// before wherever that is, else the one that was last called by its label, else
// one of the first pool with any left. What the client had by another label it
// gets only if there is nothing else: somebody may come by that.
func (t *Table) offer(s *snapshot, client netip.Addr, label string, tick uint32) offer {
	had := s.had(client)
	if had.pool != nil && (label == "" || had.from.label == "" || had.from.label == label) {
		return had
	}
	if o := s.called(label, client); o.pool != nil {
		return o
	}
	for _, p := range s.pools {
		if !p.permits(client) {
			continue
		}
		if n, r := p.choose(s, tick); n < p.size {
			return offer{p, n, r}
		}
	}
	return had
}

// had is what is kept for a client.
func (s *policy) had(client netip.Addr) offer {
	for _, p := range s.pools {
		if r := p.former[client]; r != nil && p.permits(client) {
			return offer{p, p.unitOf(r), r}
		}
	}
	return offer{}
}

// called is what came back last of all that is kept by a label and that a client
// may have.
func (s *policy) called(label string, client netip.Addr) (o offer) {
	for _, p := range s.pools {
		if len(p.labels[label]) == 0 || !p.permits(client) {
			continue
		}
		for _, r := range p.labels[label] {
			if o.pool == nil || reached(r.at, o.from.at) {
				o = offer{p, p.unitOf(r), r}
			}
		}
	}
	return o
}

// take takes what was offered out of its pool.
func (o offer) take() {
	if r := o.from; r != nil {
		o.pool.queue(r).remove(r) // it stays in returned, so that the cursor does not find it before it is in force
		o.pool.disown(r)
		return
	}
	o.pool.next = o.unit + 1
}

// putBack undoes take. What was taken since must have been put back.
func (o offer) putBack() {
	if r := o.from; r != nil {
		o.pool.queue(r).restore(r)
		o.pool.index(r)
		return
	}
	o.pool.next = o.unit
}

// choose is a unit that nobody has, p.size if there is none, and its place in a
// queue if it was lent before.
func (p *pool) choose(s *snapshot, tick uint32) (uint32, *returned) {
	if r := p.spare.first; r != nil {
		return p.unitOf(r), r
	}
	oldest := p.rested.first
	if oldest != nil && p.rests(oldest, tick) {
		oldest = nil
	}
	if oldest == nil || p.rested.len < remembered {
		if n := p.fresh(s); n < p.size {
			return n, nil
		}
	}
	if oldest == nil {
		return p.size, nil
	}
	return p.unitOf(oldest), oldest
}

// rests reports whether an address is in quarantine.
func (p *pool) rests(r *returned, tick uint32) bool {
	return !r.spare && !reached(tick, r.at+ticks(p.Quarantine))
}

// quarantined counts the units that are in quarantine.
func (p *pool) quarantined(v4 *bart.Fast[*entry], tick uint32) (n uint32) {
	for r := p.rested.last; r != nil && p.rests(r, tick); r = r.prev {
		if p.single(r) {
			n++
		}
	}
	var last netip.Prefix
	for x, r := range p.wide.AllSorted4() {
		if p.rests(r, tick) && !(last.IsValid() && last.Overlaps(x)) {
			last = x
			n += p.unlent(v4, x) - uint32(len(p.within(x)))
		}
	}
	return n
}

// fresh is the next unit that was not lent before, as far as is known, and
// p.size when all were: the one that next then counts to. What a map, natless
// itself or a client has is stepped over, and so is what came back.
func (p *pool) fresh(s *snapshot) uint32 {
	for p.next < p.size {
		if r := p.returned[p.next]; r != nil {
			p.next++
			continue
		}
		a := p.addr(p.next)
		taken, e, _ := s.v4.LookupPrefixLPM(netip.PrefixFrom(a, 32))
		if p.has(e, false) {
			r, _ := p.wide.Lookup(a)
			if r == nil {
				if !e.lends(p.next % p.per) {
					return p.next
				}
				p.next++
				continue
			}
			taken = r.prefix
		}
		p.next = p.unit(last4(taken), 0) + p.per
	}
	return p.size
}

// lends reports whether the k-th range of a shared address is lent.
func (e *entry) lends(k uint32) bool {
	if e.kind != kindShared {
		return false
	}
	slots := e.of.(*shared).slots
	return slots != nil && slots[k] != nil
}

// wake sends the cursor back to prefixes that maps took and whose quarantine
// is over. It finds there what nobody has. It must not be called between take
// and what follows.
func (p *pool) wake(tick uint32) {
	var over []*returned
	for _, r := range p.wide.All4() {
		if !p.rests(r, tick) {
			over = append(over, r)
		}
	}
	for _, r := range over {
		p.forget(r)
		p.stranger = true
		p.next = min(p.next, p.number(r.addr()))
	}
}

func (s *policy) wake(tick uint32) {
	for _, p := range s.pools {
		p.wake(tick)
	}
}

func (p *pool) number(a netip.Addr) uint32 {
	return max(p.first, p.unit(a, 0))
}

// givenBack is the address of a lease that ended. Its client finds it again,
// unless the lease came to its maximum age: an active client would have it
// back at once, and max_life would mean nothing.
func givenBack(l *lease, tick uint32, rests bool) *returned {
	first, last := l.bounds()
	return &returned{
		prefix: netip.PrefixFrom(l.v4, 32), ports: [2]uint16{first, last}, client: l.v6, label: l.labelled(), at: tick,
		kept: rests && !l.forfeit && !l.aged(l.pool.Load(), tick), spare: !rests,
	}
}

// keep enters what came back in its queue.
func (p *pool) keep(r *returned) {
	p.queue(r).add(r)
	p.index(r)
}

func (p *pool) queue(r *returned) *returnedQueue {
	if r.spare {
		return &p.spare
	}
	return &p.rested
}

func (p *pool) index(r *returned) {
	if !p.single(r) {
		p.wide.Insert(r.prefix, r)
		return
	}
	p.returned[p.unitOf(r)] = r
	if !r.kept {
		return
	}
	p.former[r.client] = r
	if r.label != "" {
		p.labels[r.label] = append(p.labels[r.label], r)
	}
}

// forget takes an address out of its queue.
func (p *pool) forget(r *returned) {
	p.queue(r).remove(r)
	p.disown(r)
	if !p.single(r) {
		p.wide.Delete(r.prefix)
		return
	}
	delete(p.returned, p.unitOf(r))
}

// at is what came back in the very place of another; nil if nothing did.
func (p *pool) at(r *returned) *returned {
	if !p.single(r) {
		there, _ := p.wide.Get(r.prefix)
		return there
	}
	return p.returned[p.unitOf(r)]
}

// disown has an address no longer kept for its client, or by its label.
func (p *pool) disown(r *returned) {
	if p.former[r.client] == r {
		delete(p.former, r.client)
	}
	if !r.kept || r.label == "" {
		return
	}
	list := p.labels[r.label]
	if i := slices.Index(list, r); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if p.labels[r.label] = list; len(list) == 0 {
		delete(p.labels, r.label)
	}
}

// lendable counts the units under x that are p's to lend, lent or not.
func (p *pool) lendable(v4 *bart.Fast[*entry], x netip.Prefix) uint32 { return p.count(v4, x, true) }

// unlent counts the units under x that are p's and not lent.
func (p *pool) unlent(v4 *bart.Fast[*entry], x netip.Prefix) uint32 { return p.count(v4, x, false) }

// has reports whether an entry inside the pool is one of the pool's unlent or
// shared addresses or, where these count, a lease's.
func (p *pool) has(e *entry, lent bool) bool {
	return e == p.entry || e.pool() == p || lent && e != nil && e.kind == kindLease
}

// count counts the units under x that are p's, those lent too or not, without
// what looks like the network.
func (p *pool) count(v4 *bart.Fast[*entry], x netip.Prefix, lent bool) uint32 {
	if e, _ := v4.LookupPrefix(x); !p.has(e, lent) {
		return 0
	}
	n := uint32(size4(x)) * p.per
	if x.Addr() == p.IPv4.Addr() {
		n -= p.first
	}
	var last netip.Prefix
	for y, e := range v4.Subnets(x) {
		if last.IsValid() && last.Contains(y.Addr()) {
			continue
		}
		if p.has(e, lent) {
			if !lent && e.kind == kindShared {
				n -= e.of.(*shared).lent
			}
			continue
		}
		last = y
		n -= uint32(size4(y)) * p.per
		if y.Addr() == p.IPv4.Addr() {
			n += p.first
		}
	}
	return n
}

// within lists the single units under x that came back.
func (p *pool) within(x netip.Prefix) (list []*returned) {
	start, size := p.unit(x.Addr(), 0), uint32(size4(x))*p.per
	if int(size) > len(p.returned) {
		for i, r := range p.returned {
			if i-start < size {
				list = append(list, r)
			}
		}
		return list
	}
	for i := range size {
		if r := p.returned[start+i]; r != nil {
			list = append(list, r)
		}
	}
	return list
}

// lose takes the addresses of a new map out of the pool, n units.
func (p *pool) lose(x netip.Prefix, n uint32) {
	p.usable -= n
	for _, r := range p.within(x) {
		p.forget(r)
	}
	var wide []*returned
	for _, r := range p.wide.Subnets(x) {
		wide = append(wide, r)
	}
	for _, r := range wide {
		p.forget(r)
	}
}

// regain gives the pool the addresses of a map that is gone, n units. They
// rest like those of leases: whoever spoke with them still may.
func (p *pool) regain(x netip.Prefix, n, tick uint32) {
	p.usable += n
	if n > 0 {
		p.keep(&returned{prefix: x, at: tick})
	}
}

// ticks is a duration in whole seconds, rounded up.
func ticks(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

// reached reports whether tick is at or after t. Ticks wrap around.
func reached(tick, t uint32) bool { return int32(tick-t) >= 0 }

// returnedQueue is a list in the order of return, which is the order in which
// quarantine ends as well, since a pool has one.
type returnedQueue struct {
	first, last *returned
	len         int
}

func (q *returnedQueue) add(r *returned) {
	r.prev, r.next = q.last, nil
	q.restore(r)
}

// restore enters r between the two that it was removed from.
func (q *returnedQueue) restore(r *returned) {
	if r.prev == nil {
		q.first = r
	} else {
		r.prev.next = r
	}
	if r.next == nil {
		q.last = r
	} else {
		r.next.prev = r
	}
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
