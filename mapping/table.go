// Package mapping decides who is who: which IPv4 address stands for an IPv6
// address, and the other way round. In the way of a packet it comes between
// the two halves of package translate: Parse finds the flow, a Table turns the
// flow into that of the other side or names why it cannot, Rewrite makes the
// packet so.
//
// Three things map an address: a prefix with the IPv4 address inside (RFC
// 6052, prefix64.go), explicit mappings (RFC 7757, entry.go), and leases from
// pools, one IPv4 address per IPv6 client (lease.go) or a range of its ports
// (ports.go).
//
// All of it is in one immutable snapshot behind an atomic pointer. Workers
// read it without a lock. Whoever changes it makes a new snapshot that shares
// what did not change (stage.go), has it saved where it must outlive the
// process, and publishes it with the next revision, of which a journal tells
// those who watch (journal.go). Maps are changed by Apply (apply.go), the
// configuration by Reload (reload.go). Leases are made by a goroutine that
// waits for the disk, so that workers need not (keeper.go), or for whoever asks
// (lend.go). A namespace that was set up for natless pins its own (attach.go).
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
	icmp4    = 1
	icmp6    = 58
	protoTCP = 6
	protoUDP = 17
)

// Table answers which address means what. Its methods may be called from any
// goroutine.
type Table struct {
	pref64     Prefix64
	own4, own6 netip.Addr
	own64      netip.Addr // own4 as IPv6 clients see it: under pref64
	now        func() time.Time

	current atomic.Pointer[snapshot]
	tick    atomic.Uint32 // of the last Expire, for listings
	journal journal
	keeper  *keeper // nil: leases are made at once, by whoever resolves

	neighbours atomic.Bool // the host lets clients reach each other, see SetNeighbours

	// writing is held by whoever changes anything but who is local, also while
	// the change is being saved. Workers, listings and traces never wait for it.
	writing sync.Mutex
	// mu guards the state of pools and what is below. To write it needs writing
	// too, which is taken first. It is never held while anything is saved.
	mu       sync.Mutex
	local    []netip.Prefix
	networks map[uint64]int // leases by the upper half of their clients' addresses

	attachments map[string]Attachment // by ID
	shelved     []Map                 // those that are saved and not in force
	pins        map[netip.Addr]int    // how many of them a client has

	lending chan struct{} // has one while Lend is at work
}

// snapshot is the table at one revision. It is never changed; only the stamps
// of leases in it are.
//
// The two tries hold everything that is known of an address, so that the
// longest match settles precedence too: a map of one address beats the pool
// around it, a pool beats the refused block around it, and a refused block
// beats a map of the whole address space.
type snapshot struct {
	*policy
	v4, v6   *bart.Fast[*entry]
	octets   octets // that v4 knows anything of: of most of the Internet nothing, and a lookup is spared
	counts   *octetCounts
	revision uint64
}

// policy is what only Reload changes.
type policy struct {
	pools        []*pool
	rfc6791      []netip.Prefix
	rfc6791Size  uint64
	hairpin      bool
	guarded      bool // hairpin is only while SetNeighbours says so
	allowPrivate bool
	ownShared    bool // natless's own IPv4 address is the only one of a pool whose clients share it
}

// missing says what is done about a source that has no counterpart.
type missing uint8

const (
	lend    missing = iota // lease it an address if it is IPv6; and leases count as used
	refuse                 // name it
	standIn                // let natless's own address, or one of rfc6791, speak for it
	foresee                // say what lend would do
)

// ResolveError is LookupRanges for the outer flow of an ICMP error, where a source
// that has no counterpart is no reason to drop: path MTU discovery depends on
// it. To IPv4 such an error leaves with a random address of rfc6791 (RFC
// 6791), to IPv6 with natless's own. It never leases. Sources that nobody can
// have (loopback, multicast, pref64 itself and the like) are refused all the
// same.
//
// Where clients share the destination's address, DstPort leads: it must be the
// SrcPort of the packet that the error quotes.
func (t *Table) ResolveError(f translate.Flow) (translate.Flow, translate.Verdict) {
	v, _ := t.resolve(&f, 0, standIn)
	return f, v
}

// SpeaksFor reports whether the host at an IPv6 address may say that a packet to
// dst could not be delivered. A client may say it of itself, and a router inside
// the prefix of a map of that prefix. Who is no client may be a router on the way.
func (t *Table) SpeaksFor(host, dst netip.Addr) bool {
	if host == dst {
		return true
	}
	s := t.current.Load()
	e, _ := s.v6.Lookup(host)
	if e == nil || e.kind > kindRange {
		return !s.permits(host)
	}
	other, _ := s.v6.Lookup(dst)
	return e.kind == kindMap && other == e
}

// Own reports whether a is an address of natless itself and of nobody else.
// Its IPv4 address under pref64 is one too: that is where IPv6 clients meet it.
func (t *Table) Own(a netip.Addr) bool {
	return a.IsValid() && (a == t.own6 || (a == t.own4 || a == t.own64) && !t.current.Load().ownShared)
}

// Revision counts the changes of the table.
func (t *Table) Revision() uint64 { return t.current.Load().revision }

// resolve translates a flow of either family in place. What it calls returns
// addresses, which go in registers.
func (t *Table) resolve(f *translate.Flow, tick uint32, m missing) (v translate.Verdict, x Ranges) {
	if f.Src.Is4() {
		f.Src, f.Dst, v, x.Dst = t.to6(f, tick, m)
		if f.Proto == icmp4 {
			f.Proto = icmp6
		}
		return v, x
	}
	f.Src, f.Dst, v, x = t.to4(f, tick, m)
	if f.Proto == icmp6 {
		f.Proto = icmp4
	}
	return v, x
}

// to4 translates a source and a destination from IPv6 to IPv4. Source: map,
// then lease.
func (t *Table) to4(f *translate.Flow, tick uint32, m missing) (src4, dst4 netip.Addr, _ translate.Verdict, x Ranges) {
	src := f.Src
	s := t.current.Load()
	e, _ := s.v6.Lookup(src)
	mapped := e != nil && e.kind <= kindRange
	if !mapped && e != nil && !(m == standIn && e.excusable()) {
		return src, f.Dst, translate.SourceRefused, Ranges{}
	}
	dst4, verdict, answerer := t.destination4(s, f, tick, m)
	if !verdict.Leaves() && !(mapped && answerer != nil) {
		return src, f.Dst, verdict, Ranges{}
	}
	if mapped {
		if m == lend {
			e.used(tick)
		}
		if e.kind == kindRange {
			x.Src = e.of.(*lease).ports
		}
		x.Dst = answerer
		return e.to4(src), dst4, verdict, x
	}
	src4, r, v := t.unmappedSource4(s, src, tick, m)
	if v != translate.OK {
		return src, f.Dst, v, Ranges{}
	}
	x.Src = r
	return src4, dst4, verdict, x
}

// destination4 is the IPv4 destination an IPv6 one means: a map's, then one
// under pref64. The latter is a hairpin where a client has it. No map overlaps
// pref64 (New sees to it), so an address under pref64 need not be looked for
// among the maps. Of OwnAddress the Range is that of the client whose session
// an echo reply may belong to, if any.
func (t *Table) destination4(s *snapshot, f *translate.Flow, tick uint32, m missing) (netip.Addr, translate.Verdict, *Range) {
	a := f.Dst
	v4, ok := t.pref64.extract(halves(a))
	if !ok {
		e, _ := s.v6.Lookup(a)
		if e == nil {
			return a, translate.DestinationUnmapped, nil
		}
		if v := e.verdict6(); v != translate.OK {
			return a, v, nil
		}
		return e.to4(a), translate.OK, nil
	}
	dst := addr4(v4)
	if !s.octets.has(v4) {
		return dst, translate.OK, nil
	}
	e, _ := s.v4.Lookup(dst)
	if e == nil {
		return dst, translate.OK, nil
	}
	if e.kind == kindShared {
		v, r := t.hairpin(e, f, tick, m, t.hairpins(s))
		return dst, v, r
	}
	v := e.verdict4(t.hairpins(s))
	if m == lend && v == translate.Hairpin {
		t.heard(e, tick)
	}
	return dst, v, nil
}

// hairpins reports whether clients reach each other.
func (t *Table) hairpins(s *snapshot) bool { return s.hairpin && (!s.guarded || t.neighbours.Load()) }

// unmappedSource4 finds an IPv4 source for an IPv6 one that no map and no
// lease has.
func (t *Table) unmappedSource4(s *snapshot, a netip.Addr, tick uint32, m missing) (netip.Addr, *Range, translate.Verdict) {
	switch {
	case m == lend:
		return t.lease(s, a, tick)
	case m == foresee:
		return t.foresee(s, a)
	case m == standIn && s.rfc6791Size > 0:
		return s.standIn4(), nil, translate.OK
	case len(s.pools) > 0 && !s.permits(a):
		return a, nil, translate.ClientNotPermitted
	}
	return a, nil, translate.SourceUnmapped
}

// standIn4 is a random address of rfc6791: RFC 6791 asks for one, so that a
// traceroute through several unmapped routers does not look like a loop.
func (s *policy) standIn4() netip.Addr {
	n := rand.Uint64N(s.rfc6791Size)
	for _, p := range s.rfc6791 {
		if n < size4(p) {
			return addr4(number4(p.Addr()) + uint32(n))
		}
		n -= size4(p)
	}
	panic("mapping: rfc6791Size is not the sum of rfc6791")
}

// to6 translates a source and a destination from IPv4 to IPv6. Destination:
// map, then lease.
func (t *Table) to6(f *translate.Flow, tick uint32, m missing) (src6, dst6 netip.Addr, _ translate.Verdict, _ *Range) {
	dst := f.Dst
	s := t.current.Load()
	src6, verdict := t.source6(s, f.Src, m)
	if verdict != translate.OK {
		if verdict != translate.SourceRefused && dst == t.own4 && (f.Proto == icmp4 || !s.ownShared) {
			verdict = translate.OwnAddress // which takes no translation
		}
		return f.Src, dst, verdict, nil
	}
	e, _ := s.v4.Lookup(dst)
	if e == nil || e.kind > kindLease {
		if e == nil || e.kind != kindShared {
			return f.Src, dst, e.unreached(), nil
		}
		l, v := t.destination(e, f, tick, m)
		if l == nil {
			return f.Src, dst, v, nil
		}
		return src6, l.v6, v, l.ports
	}
	if m == lend {
		t.heard(e, tick)
	}
	return src6, e.to6(dst), translate.OK, nil
}

// source6 is the IPv6 source that an IPv4 one means: a map's, else the one
// under pref64. A leased address, or an unlent one of a pool, goes by pref64
// too: its client is known by another address on the IPv6 side.
func (t *Table) source6(s *snapshot, a netip.Addr, m missing) (netip.Addr, translate.Verdict) {
	if number := number4(a); !s.octets.has(number) && t.pref64.IsValid() {
		return t.pref64.embed(number), translate.OK
	}
	e, _ := s.v4.Lookup(a)
	if e != nil && e.kind == kindMap {
		return e.to6(a), translate.OK
	}
	v := t.unmappedSource6(e)
	switch {
	case v == translate.OK:
		return t.pref64.embed(number4(a)), translate.OK
	case m == standIn && t.own6.IsValid() && (v != translate.SourceRefused || e.excusable()):
		return t.own6, translate.OK
	}
	return a, v
}

// unmappedSource6 is the verdict on an IPv4 source that no map has, OK if it
// goes by pref64. e is what is known of it, possibly nil.
func (t *Table) unmappedSource6(e *entry) translate.Verdict {
	switch {
	case e != nil && e.refused():
		return translate.SourceRefused
	case !t.pref64.IsValid():
		return translate.SourceUnmapped
	case e != nil && e.kind == kindPrivate:
		return translate.PrivateIPv4
	}
	return translate.OK
}
