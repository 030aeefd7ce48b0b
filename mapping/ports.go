package mapping

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natless/natless/translate"
)

// Clients of a pool may share its IPv4 addresses: each owns a range of ports
// of one (as MAP-T divides them, RFC 7597). The last ports of a range are kept
// for sessions. TCP and UDP with a port of the others are translated without
// state and without a change of the port, in both directions.
//
// A lease of such a pool is one of an address and a range. On the IPv6 side it
// is an entry like any other. On the IPv4 side one entry has the leases of an
// address by the number of their range, so that a port finds its client by
// arithmetic.

// Ports says how a pool divides the ports of its addresses. The zero value:
// not at all.
type Ports struct {
	PerClient   int // the k-th range of an address begins at First + k x PerClient
	Session     int // of these, the last, for sessions only
	First, Last int // both included
}

// RestRange is the shortest quarantine of a range: whoever spoke with its
// former client may for so long take the next one's packets for his (TCP's
// 2 MSL, RFC 9293 3.4.1).
const RestRange = 4 * time.Minute

// Check says what cannot be; the zero value can.
func (p Ports) Check() error {
	switch {
	case p == Ports{}:
		return nil
	case p.First < 1 || p.Last > 65535 || p.First > p.Last:
		return fmt.Errorf("ports %d to %d: expected a first and a last one of 1 to 65535", p.First, p.Last)
	case p.PerClient < 2 || p.PerClient > p.Last-p.First+1:
		return fmt.Errorf("%d ports per client: expected 2 to %d, which is all of %d to %d", p.PerClient, p.Last-p.First+1, p.First, p.Last)
	case p.Session < 1 || p.Session >= p.PerClient:
		return fmt.Errorf("%d of %d ports for sessions: expected 1 to %d", p.Session, p.PerClient, p.PerClient-1)
	}
	return nil
}

// Clients is how many share an address, 1 where none is divided.
func (p Ports) Clients() int {
	if p.PerClient == 0 {
		return 1
	}
	return (p.Last - p.First + 1) / p.PerClient
}

// has reports whether a lease of the ports first to last is one of these; 0:
// of whole addresses.
func (p Ports) has(first, last uint16) bool {
	if p.PerClient == 0 {
		return first == 0
	}
	from := int(first) - p.First
	return from >= 0 && from%p.PerClient == 0 && int(last)-int(first) == p.PerClient-1 && int(last) <= p.Last
}

// number is which range begins with a port.
func (p Ports) number(first uint16) uint32 {
	if p.PerClient == 0 {
		return 0
	}
	return uint32((int(first) - p.First) / p.PerClient)
}

// of is the k-th range of an address; nil where none is divided.
func (p Ports) of(client, v4 netip.Addr, k uint32) *Range {
	if p.PerClient == 0 {
		return nil
	}
	first := p.First + int(k)*p.PerClient
	last := first + p.PerClient - 1
	return &Range{Client: client, IPv4: v4, First: uint16(first), Last: uint16(last), Session: uint16(last - p.Session + 1)}
}

// Range is the ports First to Last, both included, of an IPv4 address that are
// one client's. It must not be changed, and never is: a client that gets
// another gets another Range.
type Range struct {
	Client, IPv4 netip.Addr
	First, Last  uint16
	Session      uint16 // from here on they are for sessions only
}

// Stateless reports whether arithmetic alone translates packets of the
// client's with that port on the IPv4 side.
func (r *Range) Stateless(proto uint8, port uint16) bool {
	return (proto == protoTCP || proto == protoUDP) && port >= r.First && port < r.Session
}

// Ranges are those of the two ends of a flow; nil: the end does not share its
// IPv4 address. Where one is not nil, what the table says of a flow depends on
// its ports.
type Ranges struct{ Src, Dst *Range }

// ResolveRanges translates the addresses of a flow, in place, to those of the
// other side. A permitted client's first packet leases it an address: at once,
// or with Keep after it was saved, and until then the verdict is LeasePending.
// Calls take no lock and allocate nothing, except that without Keep that first
// packet does. tick is the caller's coarse clock in seconds, the same that
// Expire is told.
//
// Besides OK the verdict may be Hairpin: the flow is translated, its
// destination is a client of natless again, and HairpinBackRanges tells how it
// comes back. Any other verdict drops the packet, and the flow is then
// meaningless. OwnAddress comes only for a source that could be answered.
//
// Ports stay where Ranges says that they take a session: to IPv4 that of the
// source, to IPv6 that of the destination. Of a later fragment they must be
// those of its first. ICMP to a shared address is OwnAddress, since natless
// answers echo there. If somebody has the identifier, Dst is not nil all the
// same, and the addresses are translated (of a hairpin, the first half): an
// echo reply may belong to a session.
func (t *Table) ResolveRanges(f *translate.Flow, tick uint32) (Ranges, translate.Verdict) {
	v, x := t.resolve(f, tick, lend)
	return x, v
}

// LookupRanges is ResolveRanges without consequences: it leases nothing and no
// lease counts as used. It serves packets quoted in ICMP errors (reversed).
func (t *Table) LookupRanges(f translate.Flow) (translate.Flow, Ranges, translate.Verdict) {
	v, x := t.resolve(&f, 0, refuse)
	return f, x, v
}

// ForeseeRanges is what ResolveRanges would say now, without consequences: a
// client that has no lease gets what its first packet would lease. It serves
// traces, and takes a lock where ResolveRanges does.
func (t *Table) ForeseeRanges(f translate.Flow) (translate.Flow, Ranges, translate.Verdict) {
	v, x := t.resolve(&f, 0, foresee)
	return f, x, v
}

// HairpinBackRanges is the second half of a hairpin (RFC 7757 4.2.2): the way
// back to IPv6 of a flow for which ResolveRanges, LookupRanges or ResolveError
// said Hairpin. The source is translated by pref64 even if a map has it, so
// that answers come through natless too. For a packet quoted in an ICMP error
// it is called with the reversed flow, as LookupRanges is. f has the external
// ports. Of the outer flow of an ICMP error, DstPort must be the SrcPort of the
// packet that it quotes, and the addresses are all that counts.
func (t *Table) HairpinBackRanges(f translate.Flow) (translate.Flow, Ranges, translate.Verdict) {
	e, _ := t.current.Load().v4.Lookup(f.Dst)
	var x Ranges
	if e != nil && e.kind == kindShared {
		if l := e.of.(*shared).at(f.DstPort); l != nil {
			e, x.Dst = &l.entry, l.ports
		}
	}
	if e == nil || e.kind > kindRange || !t.pref64.IsValid() {
		return f, Ranges{}, translate.DestinationUnmapped
	}
	f.Src, f.Dst = t.pref64.embed(number4(f.Src)), e.to6(f.Dst)
	if f.Proto == icmp4 {
		f.Proto = icmp6
	}
	return f, x, translate.OK
}

// Shared reports whether clients share an IPv4 address, or the one that an IPv6
// address under pref64 has inside.
func (t *Table) Shared(a netip.Addr) bool {
	var v4 uint32
	if a.Is4() {
		v4 = number4(a)
	} else if inside, ok := t.pref64.extract(halves(a)); ok {
		v4 = inside
	} else {
		return false
	}
	s := t.current.Load()
	if !s.octets.has(v4) {
		return false
	}
	e, _ := s.v4.Lookup(addr4(v4))
	return e != nil && e.kind == kindShared
}

// shared is the entry of an address that clients share, or of all those of a
// pool that nobody has a range of.
type shared struct {
	entry
	pool        *pool
	slots       []*lease // by the number of the range; nil: none is lent
	lent        uint32
	first, size uint32 // of ranges, in ports
}

func newShared(p *pool) *shared {
	x := &shared{pool: p, first: uint32(p.Ports.First), size: uint32(p.Ports.PerClient)}
	x.kind, x.of = kindShared, x
	return x
}

// with is the same address with another lease of its k-th range; nil: none.
func (x *shared) with(k uint32, l *lease) *shared {
	next := newShared(x.pool)
	next.slots = make([]*lease, x.pool.per)
	copy(next.slots, x.slots)
	next.slots[k] = l
	for _, l := range next.slots {
		if l != nil {
			next.lent++
		}
	}
	return next
}

// at is the lease that has a port; nil if none has.
func (x *shared) at(port uint16) *lease {
	// Below first the difference is greater than any number of ranges.
	if k := (uint32(port) - x.first) / x.size; k < uint32(len(x.slots)) {
		return x.slots[k]
	}
	return nil
}

// String names it as errors do.
func (x *shared) String() string { return x.pool.String() }

// destination is the client that has a port of a shared address, and what
// becomes of a packet to it.
func (t *Table) destination(e *entry, f *translate.Flow, tick uint32, m missing) (*lease, translate.Verdict) {
	l := e.of.(*shared).at(f.DstPort)
	v := translate.OK
	switch {
	case m != standIn && (f.Proto == icmp4 || f.Proto == icmp6):
		v = translate.OwnAddress
	case m != standIn && !translate.HasPorts(f.Proto):
		v = translate.NoPorts
	case l == nil:
		v = translate.DestinationUnmapped
	}
	if l != nil && m == lend {
		t.answered(&l.entry, tick)
	}
	return l, v
}

// hairpin is the verdict on a packet to a shared address under pref64, and
// what destination4 says of OwnAddress.
func (t *Table) hairpin(s *snapshot, e *entry, f *translate.Flow, tick uint32, m missing) (translate.Verdict, *Range) {
	on := s.hairpin
	if other := e.of.(*shared).at(f.DstPort); on && other != nil {
		on = t.hairpins(s, f.Src, other.v6)
	}
	if !on && m == lend {
		m = refuse // nobody is reached
	}
	l, v := t.destination(e, f, tick, m)
	switch {
	case v == translate.OwnAddress && l != nil && on:
		return v, l.ports
	case v == translate.OwnAddress:
		return v, nil
	case !on:
		return translate.HairpinOff, nil
	case v == translate.OK:
		return translate.Hairpin, nil
	}
	return v, nil
}

// putRange enters the lease of a range on the IPv4 side.
func (g *stage) putRange(l *lease) {
	e, _ := g.v4.Lookup(l.v4)
	x := e.of.(*shared)
	g.put4(netip.PrefixFrom(l.v4, 32), &x.with(x.pool.Ports.number(l.ports.First), l).entry)
}

// dropRange takes it out.
func (g *stage) dropRange(l *lease) {
	p := netip.PrefixFrom(l.v4, 32)
	e, _ := g.v4.Get(p)
	x := e.of.(*shared)
	if x.lent == 1 {
		g.vacate(l, e)
		return
	}
	g.put4(p, &x.with(x.pool.Ports.number(l.ports.First), nil).entry)
}
