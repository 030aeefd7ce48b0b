package mapping

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"

	"github.com/natless/natless/translate"
)

// This file is where workers and the keeper meet. A worker that has a packet
// of a client without a lease leaves a request and goes on. Nothing here waits
// or grows, however many packets come.

const (
	asking  = 4096 // requests that wait for the keeper
	denying = 4096 // clients whose denial is remembered
	proofs  = 1024 // leases that wait to be noted as proven
)

// counter is where requests are left.
type counter struct {
	requests chan netip.Addr
	proofs   chan *entry
	nudge    chan struct{}
	denied   atomic.Pointer[map[netip.Addr]denial]
	// asked has a mark for each client whose request is on its way, so that the
	// many packets of one client leave one request. Marks of different clients
	// in one place cost a request too many and nothing else.
	asked [asking]atomic.Uint64
	seed  maphash.Seed // secret, so that nobody can choose whose mark is overwritten
}

// denial is what a client without a lease is told for a moment, instead of
// asking again with each packet.
type denial struct {
	verdict translate.Verdict
	tick    uint32
}

// over reports whether the client may ask again: after the tick that follows.
func (d denial) over(tick uint32) bool { return !reached(d.tick+1, tick) }

func (c *counter) init() {
	c.requests = make(chan netip.Addr, asking)
	c.proofs = make(chan *entry, proofs)
	c.nudge = make(chan struct{}, 1)
	c.denied.Store(&map[netip.Addr]denial{})
	c.seed = maphash.MakeSeed()
}

// ask leaves a request for a lease, and says what becomes of the packet.
func (c *counter) ask(client netip.Addr, tick uint32) translate.Verdict {
	if d, ok := (*c.denied.Load())[client]; ok && !d.over(tick) {
		return d.verdict
	}
	place, mark := c.mark(client)
	if place.Load() == mark {
		return translate.LeasePending
	}
	place.Store(mark) // before the request, which takes it away again
	select {
	case c.requests <- client:
		return translate.LeasePending
	default:
		place.CompareAndSwap(mark, 0)
		return translate.LeaseLimited
	}
}

// mark is the mark of a client and its place.
func (c *counter) mark(client netip.Addr) (*atomic.Uint64, uint64) {
	hi, lo := halves(client)
	h := maphash.Comparable(c.seed, [2]uint64{hi, lo})
	return &c.asked[h%asking], h | 1
}

// answered lets a client ask anew.
func (c *counter) answered(client netip.Addr) {
	place, mark := c.mark(client)
	place.CompareAndSwap(mark, 0)
}

// publishDenials makes denials known, and forgets those that are over.
func (c *counter) publishDenials(more map[netip.Addr]translate.Verdict, tick uint32) {
	next := make(map[netip.Addr]denial, len(more))
	for client, v := range more {
		if len(next) == denying {
			break
		}
		next[client] = denial{v, tick}
	}
	for client, d := range *c.denied.Load() {
		if _, again := next[client]; !again && !d.over(tick) && len(next) < denying {
			next[client] = d
		}
	}
	c.denied.Store(&next)
}

// prove tells the keeper that something came back for a lease. When too many
// are told at once it finds out by itself, when it next looks at the lease.
func (c *counter) prove(e *entry) {
	select {
	case c.proofs <- e:
	default:
	}
}

// wakeUp has the keeper look at the time.
func (c *counter) wakeUp() {
	select {
	case c.nudge <- struct{}{}:
	default:
	}
}
