// Package oracle is a second translator between IPv6 and IPv4: slow, obvious
// and written from the RFCs alone. It stands beside the way of a packet, in
// tests only: whatever package translate does with its buffers and offsets is
// compared byte for byte with what this package says should leave.
//
// It must not import translate, and a test asserts that it does not; so it has
// its own small types, and verdicts are the stable names that users see.
//
//	oracle.go    what goes in and comes out, and the order of the steps
//	datagram.go  reading an IPv4 or IPv6 packet, building one, cutting it
//	transport.go TCP, UDP, UDP-Lite, DCCP, SCTP: ports and checksums
//	icmp.go      the ICMP tables, pointers, MTUs
//	quote.go     the packet inside an ICMP error, and RFC 4884
//	origin.go    the ICMP error that natless originates for a verdict
//	segment.go   a GSO super-packet as the kernel would cut it
package oracle

import "net/netip"

// The names of the verdicts that translation itself can come to.
const (
	Translated      = "translated"
	Fragmented      = "fragmented"
	NotIP           = "not_ip"
	Truncated       = "truncated"
	BadHeader       = "bad_header"
	BadIPv4Checksum = "bad_ipv4_checksum"
	BadFragment     = "bad_fragment"
	HopLimit        = "hop_limit"
	TooBig          = "too_big"
	SourceRoute     = "source_route"
	RoutingHeader   = "routing_header"
	ICMPFragment    = "icmp_fragment"
	ICMPType        = "icmp_type"
	ICMPQuote       = "icmp_quote"
	UDPZeroChecksum = "udp_zero_checksum"
	UDPZeroFragment = "udp_zero_fragment"

	FragmentExtension = "fragment_extension"
)

// The parts of a datagram that a flow can stand for.
const (
	Whole = "whole" // not a fragment, or an atomic one (RFC 6946)
	First = "first"
	Later = "later"
)

// Flow is one direction of a conversation.
type Flow struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // for ICMP echo both are the identifier; 0 where there is none
	Proto            uint8
	Frag             string
}

// Settings are what an operator chooses; sizes in bytes.
type Settings struct {
	IPv4MTU       int
	IPv6MTU       int
	LowestIPv6MTU int
	DropUDPZero   bool
	KeepUDPZero   bool
	ZeroTOS       bool
	ID            uint16 // the IPv4 identification of a packet that brings none
}

// sane are settings without an MTU that IPv6 does not have (RFC 8200 5).
func (s Settings) sane() Settings {
	s.IPv6MTU = max(1280, s.IPv6MTU)
	s.LowestIPv6MTU = max(1280, s.LowestIPv6MTU)
	return s
}

// Mapping gives the flow of the other family that stands for f. It is asked
// for the packet itself and, with quoted set, for the packet inside an ICMP
// error.
type Mapping func(f Flow, quoted bool) Flow

// Reading is what can be said of a packet without a mapping.
type Reading struct {
	Verdict string // Translated, or why the packet is dropped
	Flow    Flow   // zero when the packet is dropped
	Quoted  *Flow  // the flow inside an ICMP error, or nil

	FragmentHeader bool // IPv6: there is one, perhaps of an atomic fragment

	d packet
}

// Read parses pkt.
func Read(pkt []byte, s Settings) Reading {
	d, why := decode(pkt, false)
	if why == "" {
		why = d.check(s)
	}
	if why != "" {
		return Reading{Verdict: why}
	}
	r := Reading{Verdict: Translated, Flow: d.flow(), FragmentHeader: d.fragmentHeader, d: d}
	if d.isICMPError() {
		_, quoted, _ := d.splitError()
		f := quoted.flow()
		r.Quoted = &f
	}
	return r
}

// Result is what becomes of a packet.
type Result struct {
	Verdict string
	Packets [][]byte // what leaves, in order
}

// Translate reads pkt and turns it into packets of the other family. It does
// not change pkt.
func Translate(pkt []byte, s Settings, m Mapping) Result {
	s = s.sane()
	r := Read(pkt, s)
	if r.Verdict != Translated {
		return Result{Verdict: r.Verdict}
	}
	d := r.d
	if d.ttl <= 1 { // RFC 7915 4.1, 5.1: a router decrements, checks for zero
		return Result{Verdict: HopLimit}
	}
	d.ttl--
	to := m(d.flow(), false)
	if d.version == 4 {
		return d.toIPv6(s, to, m)
	}
	return d.toIPv4(s, to, m)
}

// toIPv6 is RFC 7915 4.1.
func (d packet) toIPv6(s Settings, to Flow, m Mapping) Result {
	out := packet{
		version: 6,
		src:     to.Src,
		dst:     to.Dst,
		tos:     d.tos,
		ttl:     d.ttl,
		proto:   d.proto,
		id:      d.id & 0xffff,
		offset:  d.offset,
		more:    d.more,
		body:    d.translateBody(s, to, m),
	}
	if d.proto == protoICMP4 {
		out.proto = protoICMP6
	}
	if s.ZeroTOS {
		out.tos = 0
	}
	out.fragmentHeader = d.isFragment()
	out.declared = len(out.body)

	size := 40 + len(out.body)
	if out.fragmentHeader {
		size += 8
	}
	if d.dontFragment {
		if size > s.IPv6MTU {
			return Result{Verdict: TooBig}
		}
		return Result{Verdict: Translated, Packets: [][]byte{out.build6()}}
	}
	limit := min(s.LowestIPv6MTU, s.IPv6MTU)
	if size <= limit {
		return Result{Verdict: Translated, Packets: [][]byte{out.build6()}}
	}
	out.fragmentHeader = true
	var packets [][]byte
	for _, piece := range out.cut(limit - 40 - 8) {
		packets = append(packets, piece.build6())
	}
	return Result{Verdict: Fragmented, Packets: packets}
}

// toIPv4 is RFC 7915 5.1. What leaves without DF may be larger than the MTU:
// the next IPv4 router, which is the kernel behind natless, cuts it as 5.1.1
// asks.
func (d packet) toIPv4(s Settings, to Flow, m Mapping) Result {
	out := packet{
		version: 4,
		src:     to.Src,
		dst:     to.Dst,
		tos:     d.tos,
		ttl:     d.ttl,
		proto:   d.proto,
		id:      uint32(s.ID),
		offset:  d.offset,
		more:    d.more,
		body:    d.translateBody(s, to, m),
	}
	if d.proto == protoICMP6 {
		out.proto = protoICMP4
	}
	if s.ZeroTOS {
		out.tos = 0
	}
	out.declared = len(out.body)
	size := 20 + len(out.body)
	if d.fragmentHeader {
		out.id = d.id & 0xffff
	} else {
		out.dontFragment = size > 1260
	}
	if out.dontFragment && size > s.IPv4MTU || size > 65535 {
		return Result{Verdict: TooBig}
	}
	return Result{Verdict: Translated, Packets: [][]byte{out.build4()}}
}

// translateBody is what follows the IP headers, for the other family.
func (d packet) translateBody(s Settings, to Flow, m Mapping) []byte {
	if d.part() == Later {
		return clone(d.body)
	}
	if d.isICMPError() {
		return d.translateError(s, to, m)
	}
	return d.translateTransport(s, to, false)
}
