// Package mapping decides who is who: which IPv4 address stands for an IPv6
// address, and the other way round. In the way of a packet it comes between
// the two halves of package translate: Parse finds the flow, a Table turns the
// flow into that of the other side or names why it cannot, Rewrite makes the
// packet so.
//
// Three things map an address: a prefix with the IPv4 address inside (RFC
// 6052, prefix64.go), explicit mappings (RFC 7757, entry.go), and leases from
// pools, one IPv4 address per IPv6 client (lease.go).
//
// All of it is in one immutable snapshot behind an atomic pointer. Workers
// read it without a lock. Whoever changes it holds the table's mutex, makes a
// new snapshot that shares what did not change, and publishes it with the next
// revision.
package mapping

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/natless/natless/translate"
)

const (
	icmp4 = 1
	icmp6 = 58
)

// Table answers which address means what. Its methods may be called from any
// goroutine.
type Table struct {
	pref64      Prefix64
	own4, own6  netip.Addr
	own64       netip.Addr // own4 as IPv6 clients see it: under pref64
	rfc6791     []netip.Prefix
	rfc6791Size uint64
	hairpin     bool
	now         func() time.Time
	maps        []Map
	pools       []*pool

	current atomic.Pointer[snapshot]
	tick    atomic.Uint32 // of the last Expire, for listings

	mu    sync.Mutex // held by whoever changes anything
	local []netip.Prefix
}

// snapshot is the table at one revision. It is never changed; only the stamps
// of leases in it are.
//
// The two tries hold everything that is known of an address, so that the
// longest match settles precedence too: a map of one address beats the pool
// around it, a pool beats the refused block around it, and a refused block
// beats a map of the whole address space.
type snapshot struct {
	v4, v6   *bart.Fast[*entry]
	revision uint64
}

// missing says what is done about a source that has no counterpart.
type missing uint8

const (
	lend    missing = iota // lease it an address if it is IPv6; and leases count as used
	refuse                 // name it
	standIn                // let natless's own address, or one of rfc6791, speak for it
)

// Resolve is the flow that f becomes on the other side. A permitted client's
// first packet leases it an address; every other call takes no lock and
// allocates nothing. tick is the caller's coarse clock in seconds, the same
// that Expire is told.
//
// Besides OK the verdict may be Hairpin: the flow is translated, its
// destination is a client of natless again, and HairpinBack tells how it comes
// back. Any other verdict drops the packet, and the flow is then meaningless.
// OwnAddress comes only for a source that could be answered.
func (t *Table) Resolve(f translate.Flow, tick uint32) (translate.Flow, translate.Verdict) {
	s := t.current.Load()
	if f.Src.Is4() {
		return t.to6(s, f, tick, lend)
	}
	return t.to4(s, f, tick, lend)
}

// Lookup is Resolve without consequences: it leases nothing and no lease
// counts as used. It serves packets quoted in ICMP errors (reversed) and
// traces.
func (t *Table) Lookup(f translate.Flow) (translate.Flow, translate.Verdict) {
	s := t.current.Load()
	if f.Src.Is4() {
		return t.to6(s, f, 0, refuse)
	}
	return t.to4(s, f, 0, refuse)
}

// ResolveError is Lookup for the outer flow of an ICMP error, where a source
// that has no counterpart is no reason to drop: path MTU discovery depends on
// it. To IPv4 such an error leaves with a random address of rfc6791 (RFC 6791
// 4), to IPv6 with natless's own. It never leases. Sources that nobody can
// have (loopback, multicast, pref64 itself and the like) are refused all the
// same.
func (t *Table) ResolveError(f translate.Flow) (translate.Flow, translate.Verdict) {
	s := t.current.Load()
	if f.Src.Is4() {
		return t.to6(s, f, 0, standIn)
	}
	return t.to4(s, f, 0, standIn)
}

// HairpinBack is the second half of a hairpin (RFC 7757 4.2.2): the way back
// to IPv6 of a flow for which Resolve, Lookup or ResolveError said Hairpin.
// The source is translated by pref64 even if a map has it, so that answers
// come through natless too. For a packet quoted in an ICMP error it is called
// with the reversed flow, as Lookup is.
func (t *Table) HairpinBack(f translate.Flow) (translate.Flow, translate.Verdict) {
	e, _ := t.current.Load().v4.Lookup(f.Dst)
	if e == nil || e.kind > kindLease || !t.pref64.IsValid() {
		return translate.Flow{}, translate.DestinationUnmapped
	}
	f.Dst = e.to6(f.Dst)
	f.Src = t.pref64.embed(number4(f.Src))
	return protocol6(f), translate.OK
}

// Own reports whether a is an address of natless itself. Its IPv4 address
// under pref64 is one too: that is where IPv6 clients meet it.
func (t *Table) Own(a netip.Addr) bool {
	return a.IsValid() && (a == t.own6 || a == t.own4 || a == t.own64)
}

// Revision counts the changes of the table.
func (t *Table) Revision() uint64 { return t.current.Load().revision }

// to4 translates a flow from IPv6 to IPv4. Source: map, then lease.
func (t *Table) to4(s *snapshot, f translate.Flow, tick uint32, m missing) (translate.Flow, translate.Verdict) {
	src, _ := s.v6.Lookup(f.Src)
	if src != nil && src.kind > kindLease && !(m == standIn && src.excusable()) {
		return translate.Flow{}, translate.SourceRefused
	}
	dst, verdict := t.destination4(s, f.Dst)
	if !verdict.Leaves() {
		return translate.Flow{}, verdict
	}
	f.Dst = dst

	switch {
	case src == nil || src.kind > kindLease:
		from, v := t.unmappedSource4(f.Src, tick, m)
		if v != translate.OK {
			return translate.Flow{}, v
		}
		f.Src = from
	default:
		if m == lend {
			src.used(tick)
		}
		f.Src = src.to4(f.Src)
	}
	if f.Proto == icmp6 {
		f.Proto = icmp4
	}
	return f, verdict
}

// destination4 is the IPv4 destination an IPv6 one means: a map's, then one
// under pref64. The latter is a hairpin where a client has it. No map overlaps
// pref64 (New sees to it), so an address under pref64 need not be looked for
// among the maps.
func (t *Table) destination4(s *snapshot, a netip.Addr) (netip.Addr, translate.Verdict) {
	v4, ok := t.pref64.extract(halves(a))
	if !ok {
		e, _ := s.v6.Lookup(a)
		if e == nil {
			return a, translate.DestinationUnmapped
		}
		return e.to4(a), e.verdict6()
	}
	dst := addr4(v4)
	e, _ := s.v4.Lookup(dst)
	if e == nil {
		return dst, translate.OK
	}
	return dst, e.verdict4(t.hairpin)
}

// unmappedSource4 finds an IPv4 source for an IPv6 one that no map and no
// lease has.
func (t *Table) unmappedSource4(a netip.Addr, tick uint32, m missing) (netip.Addr, translate.Verdict) {
	switch {
	case m == lend:
		return t.lease(a, tick)
	case m == standIn && t.rfc6791Size > 0:
		return t.standIn4(), translate.OK
	case len(t.pools) > 0 && !t.permits(a):
		return a, translate.ClientNotPermitted
	}
	return a, translate.SourceUnmapped
}

// standIn4 is a random address of rfc6791: RFC 6791 4 asks for one, so that a
// traceroute through several unmapped routers does not look like a loop.
func (t *Table) standIn4() netip.Addr {
	n := uint64(0)
	if t.rfc6791Size > 1 {
		n = rand.Uint64N(t.rfc6791Size)
	}
	for _, p := range t.rfc6791 {
		if n < size4(p) {
			return addr4(number4(p.Addr()) + uint32(n))
		}
		n -= size4(p)
	}
	panic("mapping: rfc6791Size is not the sum of rfc6791")
}

// to6 translates a flow from IPv4 to IPv6. Destination: map, then lease.
// Source: map, then pref64.
func (t *Table) to6(s *snapshot, f translate.Flow, tick uint32, m missing) (translate.Flow, translate.Verdict) {
	src, verdict := t.source6(s, f.Src)
	if verdict != translate.OK {
		if m != standIn || verdict == translate.SourceRefused && !t.excusable4(s, f.Src) || !t.own6.IsValid() {
			return translate.Flow{}, verdict
		}
		src = t.own6
	}
	dst, _ := s.v4.Lookup(f.Dst)
	if dst == nil || dst.kind > kindLease {
		return translate.Flow{}, dst.unreached()
	}
	if m == lend {
		dst.used(tick)
	}
	f.Src, f.Dst = src, dst.to6(f.Dst)
	return protocol6(f), translate.OK
}

// source6 is the IPv6 source that an IPv4 one means: a map's, else the one
// under pref64. A leased address, or an unlent one of a pool, goes by pref64
// too: it is not what its client is known by on the IPv6 side.
func (t *Table) source6(s *snapshot, a netip.Addr) (netip.Addr, translate.Verdict) {
	e, _ := s.v4.Lookup(a)
	if e != nil {
		switch e.kind {
		case kindMap:
			return e.to6(a), translate.OK
		case kindPrivate:
			if t.pref64.IsValid() {
				return a, translate.PrivateIPv4
			}
		case kindLease, kindPool:
		default:
			return a, translate.SourceRefused
		}
	}
	if !t.pref64.IsValid() {
		return a, translate.SourceUnmapped
	}
	return t.pref64.embed(number4(a)), translate.OK
}

func (t *Table) excusable4(s *snapshot, a netip.Addr) bool {
	e, _ := s.v4.Lookup(a)
	return e != nil && e.excusable()
}

func protocol6(f translate.Flow) translate.Flow {
	if f.Proto == icmp4 {
		f.Proto = icmp6
	}
	return f
}

// publish makes a new snapshot the current one. The mutex must be held.
func (t *Table) publish(v4, v6 *bart.Fast[*entry]) {
	t.current.Store(&snapshot{v4, v6, t.current.Load().revision + 1})
}
