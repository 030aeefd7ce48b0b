package mapping

import (
	"net/netip"
	"sync/atomic"

	"github.com/natless/natless/translate"
)

// kind is what an entry of the table says of the addresses under it.
type kind uint8

const (
	kindMap   kind = iota // an explicit mapping
	kindLease             // lent to a client. Up to here an entry maps.
	kindRange             // lent to a client, a range of its ports: maps too, on the IPv6 side

	kindShared  // of a pool, shared by clients
	kindPool    // of a pool, not lent
	kindOwn     // natless's own
	kindTaken   // the IPv6 address that stands for it by pref64 is somebody's own
	kindPref64  // under pref64
	kindPrivate // not to be seen behind pref64 (RFC 6052 3.1)
	kindBeyond  // link-local, class E: routers have them, natless does not reach them
	kindIllegal // nobody can have them: loopback, multicast, …
)

// entry is what the table knows of a prefix. Where it maps, the leading 32
// minus host bits of the IPv4 address are v4's, the leading bits of the IPv6
// address are v6's, and between them go the host bits: the IPv4 suffix is the
// head of the IPv6 suffix (RFC 7757 3.3). What the IPv6 suffix has more is
// zero on the way to IPv6 and ignored on the way to IPv4.
type entry struct {
	v4, v6 netip.Addr    // the first addresses of the prefixes
	host   uint8         // bits of the IPv4 suffix; 0 for one address, as leases are
	shift  uint8         // bits of the IPv6 suffix that have no counterpart
	kind   kind          //
	wide   bool          // maps: parts are others', so what comes of it must be looked up
	self   bool          // maps: the IPv6 addresses are those that stand for the IPv4 ones by pref64; kindTaken: by natless
	stamp  atomic.Uint32 // leases: the tick of the last packet
	proven atomic.Bool   // leases: something came back for the client
	of     any           // off the hot path: *Map, *lease, *pool or the name of a block
}

func newEntry(k kind, v4, v6 netip.Prefix, of any) *entry {
	e := new(entry)
	e.set(k, v4, v6, of)
	return e
}

func (e *entry) set(k kind, v4, v6 netip.Prefix, of any) {
	e.kind, e.v4, e.v6, e.of = k, v4.Addr(), v6.Addr(), of
	e.host = uint8(32 - v4.Bits())
	e.shift = uint8(128-v6.Bits()) - e.host
}

// to6 is the IPv6 address of an IPv4 address under e, by RFC 7757 3.3.1.
func (e *entry) to6(a netip.Addr) netip.Addr {
	if e.host == 0 {
		return e.v6
	}
	suffix := uint64(number4(a)) & (1<<e.host - 1)
	hi, lo := halves(e.v6)
	if e.shift >= 64 {
		return addr6(hi|suffix<<(e.shift-64), lo)
	}
	return addr6(hi|suffix>>(64-e.shift), lo|suffix<<e.shift)
}

// to4 is the IPv4 address of an IPv6 address under e, by RFC 7757 3.3.2.
func (e *entry) to4(a netip.Addr) netip.Addr {
	if e.host == 0 {
		return e.v4
	}
	hi, lo := halves(a)
	suffix := hi >> (e.shift - 64)
	if e.shift < 64 {
		suffix = hi<<(64-e.shift) | lo>>e.shift
	}
	return addr4(number4(e.v4) | uint32(suffix&(1<<e.host-1)))
}

// used notes traffic on an entry that maps, if it is a lease's. The stamp is
// written only when it changes, so that workers do not fight for its cache
// line.
func (e *entry) used(tick uint32) {
	if e.kind != kindMap && e.stamp.Load() != tick {
		e.stamp.Store(tick)
	}
}

// heard notes traffic that comes for a lease, which proves that somebody
// answers its client.
func (t *Table) heard(e *entry, tick uint32) {
	if e.kind == kindLease {
		t.answered(e, tick)
	}
}

func (t *Table) answered(e *entry, tick uint32) {
	e.used(tick)
	if !e.proven.Load() {
		t.prove(e)
	}
}

// prove notes that, once for each lease.
func (t *Table) prove(e *entry) {
	if e.proven.CompareAndSwap(false, true) && t.keeper != nil {
		t.keeper.prove(e)
	}
}

// leased reports whether the entry is a lease's.
func (e *entry) leased() bool { return e.kind == kindLease || e.kind == kindRange }

// leases calls yield with the leases of an entry of the IPv4 side, by their
// ports, until yield returns false, and then returns false too.
func (e *entry) leases(yield func(*lease) bool) bool {
	switch e.kind {
	case kindLease:
		return yield(e.of.(*lease))
	case kindShared:
		for _, l := range e.of.(*shared).slots {
			if l != nil && !yield(l) {
				return false
			}
		}
	}
	return true
}

// pool is the pool that an entry of unlent or shared addresses is of; nil if
// it is another. e may be nil.
func (e *entry) pool() *pool {
	switch {
	case e == nil:
	case e.kind == kindPool:
		return e.of.(*pool)
	case e.kind == kindShared:
		return e.of.(*shared).pool
	}
	return nil
}

// excusable reports whether an ICMP error from such a source is to be passed
// on with a stand-in: real routers answer from link-local and class E
// addresses, and natless from its own.
func (e *entry) excusable() bool { return e.kind == kindBeyond || e.kind == kindOwn }

// refused reports whether nobody is to be seen with such a source, natless
// itself included.
func (e *entry) refused() bool {
	return e.kind == kindOwn || e.kind == kindTaken || e.kind == kindBeyond || e.kind == kindIllegal
}

// isSelf reports whether a map is of addresses that stand for themselves by
// pref64 (RFC 6052 2, IPv4-translatable). Both ways of putting an IPv4 address
// into an IPv6 one keep the order of bits, so that the first and the last
// address tell it of all.
func (e *entry) isSelf(pref64 *Prefix64) bool {
	for _, v4 := range []uint32{number4(e.v4), number4(e.v4) | uint32(1<<e.host-1)} {
		if x, ok := pref64.extract(halves(e.to6(addr4(v4)))); !ok || x != v4 {
			return false
		}
	}
	return true
}

// maps4 reports whether an IPv4 address that e, a map, makes of an IPv6 one is
// a map's, rather than refused, a pool's or natless's own: what is refused to
// the one side is so to the other.
func (s *snapshot) maps4(e *entry, a netip.Addr) bool {
	if !e.wide {
		return true
	}
	there, _ := s.v4.Lookup(a)
	return there != nil && there.kind == kindMap
}

// maps6 is the same for an IPv6 address that e makes of an IPv4 one.
func (s *snapshot) maps6(e *entry, a netip.Addr) bool {
	if !e.wide {
		return true
	}
	there, _ := s.v6.Lookup(a)
	return there != nil && there.kind == kindMap
}

// verdict6 is the verdict on an IPv6 destination that is not under pref64. A
// map there means an IPv4 node (RFC 7757 4.2.2: only a destination under pref64
// makes a hairpin). That somebody leases an address makes him no destination:
// he is known by the address under pref64.
func (e *entry) verdict6() translate.Verdict {
	switch e.kind {
	case kindMap:
		return translate.OK
	case kindOwn:
		return translate.OwnAddress
	case kindBeyond, kindIllegal:
		return translate.DestinationRefused
	}
	return translate.DestinationUnmapped
}

// verdict4 is the verdict on an IPv4 destination found under pref64. Where the
// address under pref64 is a host's own, the packet is here because no route
// leads to that host.
func (e *entry) verdict4(hairpin bool) translate.Verdict {
	switch {
	case e.self && e.kind == kindMap:
		return translate.DestinationUnmapped
	case e.self && e.kind == kindTaken:
		return translate.OwnAddress
	}
	switch e.kind {
	case kindMap, kindLease, kindShared:
		if !hairpin {
			return translate.HairpinOff
		}
		return translate.Hairpin
	case kindPool:
		if !hairpin {
			return translate.HairpinOff
		}
		return translate.DestinationUnmapped
	case kindPrivate:
		return translate.PrivateIPv4
	}
	return e.unreached()
}

// unreached is the verdict on an IPv4 destination that is no client. e may be
// nil.
func (e *entry) unreached() translate.Verdict {
	if e == nil {
		return translate.DestinationUnmapped
	}
	switch e.kind {
	case kindOwn:
		return translate.OwnAddress
	case kindBeyond, kindIllegal:
		return translate.DestinationRefused
	}
	return translate.DestinationUnmapped
}
