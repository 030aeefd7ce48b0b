package mapping

import (
	"net/netip"
	"time"
)

// How fast leases are made at most, and how often the disk is written for
// them. A host starts hundreds of containers at once, a rack that comes back
// a thousand, and none of them waits for these. Somebody who makes up source
// addresses gets 16 leases a second from one /64 and 64 from all, which lapse
// after a minute: a thousand from one network, four thousand in all, and four
// writes a second.
var (
	rateNetwork = rate{burst: 256, perSecond: 16}
	rateAll     = rate{burst: 1024, perSecond: 64}
	rateCommits = rate{burst: 20, perSecond: 4}
)

// limited is how many /64s are remembered for their rate. Of those that asked
// long enough ago to be forgiven none is: of rateAll's admissions there can be
// half as many.
const limited = 4096

type rate struct{ burst, perSecond float64 }

// bucket has the tokens of a rate. The zero value is full.
type bucket struct {
	spent float64
	at    time.Time
}

// fill adds the tokens of the time since.
func (b *bucket) fill(r rate, now time.Time) {
	if since := now.Sub(b.at); since > 0 {
		b.spent = max(0, b.spent-since.Seconds()*r.perSecond)
		b.at = now
	}
}

// has reports whether there is a token.
func (b *bucket) has(r rate, now time.Time) bool {
	b.fill(r, now)
	return b.spent+1 <= r.burst
}

// wait is how long it takes until there is a token.
func (b *bucket) wait(r rate, now time.Time) time.Duration {
	b.fill(r, now)
	return time.Duration(max(0, (b.spent+1-r.burst)/r.perSecond) * float64(time.Second))
}

func (b *bucket) take() { b.spent++ }

// admission decides who of those who ask for a lease is heard.
type admission struct {
	all      bucket
	networks map[uint64]*bucket // by the upper half of the address
}

func (a *admission) admit(client netip.Addr, now time.Time) bool {
	if !a.all.has(rateAll, now) { // first, so that networks grows no faster than leases are made
		return false
	}
	hi, _ := halves(client)
	b := a.networks[hi]
	if b == nil {
		if len(a.networks) >= limited {
			a.forgive(now)
		}
		b = &bucket{at: now}
		a.networks[hi] = b
	}
	if !b.has(rateNetwork, now) {
		return false
	}
	b.take()
	a.all.take()
	return true
}

// forgive forgets the networks that have all their tokens back.
func (a *admission) forgive(now time.Time) {
	for hi, b := range a.networks {
		if b.fill(rateNetwork, now); b.spent == 0 {
			delete(a.networks, hi)
		}
	}
}
