// Package translate rewrites the headers of one packet between IPv6 and IPv4
// as RFC 7915 lays down. It stands in the middle of the way of a packet: tun
// reads a packet into a buffer, Parse finds its flow, somebody else decides
// which flow that becomes on the other side (package mapping), Rewrite turns
// the headers in place, and tun writes the same buffer.
//
// The package is pure: functions over bytes and offload metadata. It knows no
// prefix, no table, no clock and no goroutine, and it allocates nothing.
package translate

import "net/netip"

// Headroom is how many bytes a buffer must leave free in front of a packet. An
// ICMP error grows most: an IPv6 header for an IPv4 one, and a quote of an IPv4
// header alone, in front of an extension, padded to 128 bytes: 128 in all.
const Headroom = 128

// Packet is one packet, or one GSO super-packet, in a worker's buffer. It is
// made once per worker and reused; it owns nothing and keeps no reference to
// anything but Buf. It is not for concurrent use.
type Packet struct {
	// Buf is the worker's buffer. Buf[:Off] is headroom for the longer header
	// of the other family, at least Headroom bytes; Buf[Off:Off+Len] is the
	// packet. Parse takes padding behind the packet off Len.
	Buf      []byte
	Off, Len int

	// Offload is what the device said of the packet on reading and is to be
	// told on writing.
	Offload Offload

	// Flow is read from the outer headers by Parse.
	Flow Flow
	// Quoted is the flow of the packet inside an ICMP error, as it stands
	// there, valid when HasQuote reports true.
	Quoted Flow

	// ID generates IPv4 identifications (RFC 7915 5.1): its low 16 bits are
	// the next one. Rewrite advances it by one per packet that needed one, and
	// by one per segment of a super-packet. The owner seeds it.
	ID uint32

	// FragmentIDs are the IPv4 identifications that fragments may have whose
	// sender shares its IPv4 address with others (RFC 7597 8.3.3). Parse makes
	// it the zero value, which is any.
	FragmentIDs IDs

	outer header
	quote header // of the packet inside an ICMP error; quote.start is 0 without one
	icmp  icmpError

	v6        bool  // the family of the packet as it came
	checksum  uint8 // where the transport checksum is, from outer.l4; 0: there is none
	l4Header  uint8 // length of the transport header of a super-packet
	echo      bool  // an ICMP echo request or reply
	mtu       int   // of the error that answers TooBig
	cut       cutter
	assembled [minIPv6MTU]byte // an ICMP error under translation; headers of fragments
}

// IDs are Size IPv4 identifications from First on; if Size is 0, all of them.
type IDs struct{ First, Size uint16 }

// of makes an identification of these of a longer one, always the same of the
// same.
func (r IDs) of(id uint32) uint16 {
	if r.Size == 0 {
		return uint16(id)
	}
	return r.First + uint16(id%uint32(r.Size))
}

// Offload is the GSO and checksum metadata of a packet. It has the fields of
// tun.Header one by one, so that one converts to the other at no cost. Numbers
// are in host byte order; offsets count from the start of the packet.
type Offload struct {
	Flags      uint8  // NeedsCsum or 0
	GSOType    uint8  // GSONone … GSOUDPL4, possibly | GSOECN
	HdrLen     uint16 // all headers of a super-packet
	GSOSize    uint16 // payload bytes per segment
	CsumStart  uint16 // where the checksummed part begins
	CsumOffset uint16 // where the checksum is, from CsumStart
}

// The values of Offload, as <linux/virtio_net.h> numbers them.
const (
	NeedsCsum = 1 // Flags: the checksum field holds the uninverted pseudo-header sum

	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOUDPL4 = 5
	GSOECN   = 0x80
)

// Frag says which part of a datagram a packet is.
type Frag uint8

// The parts of a datagram.
const (
	Whole Frag = iota // not a fragment, or an atomic one (RFC 6946)
	First             // offset 0, more to come: the transport header is here
	Later             // offset above 0: no transport header, ports are 0
)

// Flow is one direction of a conversation, of either family. Both addresses
// are of one family; IPv4 addresses are plain, never IPv4-mapped.
type Flow struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // host byte order; for ICMP echo both are the identifier; 0 where there is none
	Proto            uint8  // ICMP is 1 in an IPv4 flow and 58 in an IPv6 flow
	Frag             Frag
}

// Reversed is the flow of the answers.
func (f Flow) Reversed() Flow {
	f.Src, f.Dst = f.Dst, f.Src
	f.SrcPort, f.DstPort = f.DstPort, f.SrcPort
	return f
}

// Parse reads the headers of the packet and its offload: the flow, the quoted
// flow, and what Rewrite needs. It changes no byte of the packet; it takes
// padding behind the packet off Len. The verdict is OK, or why the packet
// cannot be translated. Of several faults the first counts:
//
//  1. NotIP: no byte, or a version other than 4 and 6.
//  2. IPv4: Truncated (20 bytes), BadHeader (IHL below 5), Truncated (IHL),
//     BadHeader (total length below IHL), Truncated (total length),
//     BadIPv4Checksum, BadHeader (an option before the end of the list that
//     runs past the header or is too short).
//     IPv6: Truncated (40 bytes, payload length); then the extension headers
//     in their order: BadHeader (hop-by-hop options behind another header),
//     Truncated, FragmentExtension (an extension header other than ESP behind
//     the fragment header, also an atomic one: RFC 7915 5.1.1).
//  3. Fragments that are not atomic: BadFragment (without data, not the last
//     and not of a multiple of 8 bytes, reaching past 65515 bytes).
//  4. ICMPType: ICMP of the other family, IGMP. BadHeader: an IPv4 protocol
//     number that IPv6 would take for an extension header (0, 43, 44, 60).
//  5. ICMP: ICMPFragment, Truncated (8 bytes), ICMPType (RFC 7915 4.2, 5.2),
//     ICMPQuote.
//     TCP, UDP, UDP-Lite, DCCP, SCTP in a later fragment: BadFragment (it
//     begins inside the transport header, which has 20, 8, 8, 12, 12 bytes);
//     in a whole packet or first fragment: Truncated or BadFragment (that
//     header is not there whole); TCP: BadHeader (data offset below 5),
//     Truncated or BadFragment (the header with options is not there whole);
//     UDP, unless in a super-packet: BadHeader (length below 8), Truncated
//     (length, of a whole packet); IPv4 UDP without checksum: UDPZeroFragment
//     (unless o says to keep it), UDPZeroChecksum (if o says so).
//  6. Offload: BadHeader (NeedsCsum on a fragment, or on a protocol other than
//     TCP, UDP, UDP-Lite, DCCP, ICMP; a GSO type that is unknown or not that
//     of the packet, a packet with a fragment header, GSO without NeedsCsum,
//     without a segment size). Offsets and header lengths are not trusted and
//     not looked at.
//  7. SourceRoute: a loose or strict source route that has not run out (RFC
//     7915 4.1). RoutingHeader: segments left (RFC 7915 5.1).
func (p *Packet) Parse(o *Options) Verdict {
	b := p.Buf[p.Off : p.Off+p.Len]
	p.quote.start = 0
	p.FragmentIDs = IDs{}
	p.checksum, p.l4Header, p.echo = 0, 0, false
	p.Flow.SrcPort, p.Flow.DstPort, p.Flow.Frag = 0, 0, Whole
	if len(b) == 0 {
		return p.notIP()
	}
	switch b[0] >> 4 {
	case 6:
		p.v6 = true
		return p.parseIPv6(b, o)
	case 4:
		p.v6 = false
		return p.parseIPv4(b, o)
	}
	return p.notIP()
}

func (p *Packet) notIP() Verdict {
	p.Flow = Flow{}
	return NotIP
}

// HasQuote reports whether the packet is an ICMP error, whose quoted packet
// has the flow Quoted.
func (p *Packet) HasQuote() bool { return p.quote.start != 0 }

// HardError reports whether the packet is an ICMPv6 error at which its receiver
// may end a connection (RFC 5461 2). Packet Too Big and Time Exceeded, which
// routers send, are none.
func (p *Packet) HardError() bool {
	if !p.v6 || !p.HasQuote() {
		return false
	}
	typ := p.Buf[p.Off+p.outer.l4]
	return typ == icmp6Unreachable || typ == icmp6Parameter
}

// IsEchoRequest reports whether the packet is an ICMP echo request.
func (p *Packet) IsEchoRequest() bool {
	if !p.echo {
		return false
	}
	typ := p.Buf[p.Off+p.outer.l4]
	return typ == icmp4Echo && !p.v6 || typ == icmp6Echo && p.v6
}

// IsEchoReply reports whether the packet is an ICMP echo reply.
func (p *Packet) IsEchoReply() bool { return p.echo && !p.IsEchoRequest() }

// TCPFlags is the byte of flags in the packet's TCP header, 0 where there is
// none. A super-packet has those of its first segment and of its last.
func (p *Packet) TCPFlags() uint8 {
	if p.outer.proto != protoTCP || p.Flow.Frag == Later {
		return 0
	}
	return p.Buf[p.Off+p.outer.l4+tcpFlags]
}

// FragmentID is the identification of the datagram that a fragment belongs to.
func (p *Packet) FragmentID() uint32 { return p.outer.id }

// HasPorts reports whether natless knows where the ports of a protocol are. Of
// ICMP it says no.
func HasPorts(proto uint8) bool {
	_, _, ports := transport(proto)
	return ports
}

// Options are the settings of translation that an operator chooses. They are
// read-only while packets are under way.
type Options struct {
	IPv4MTU       int  // the largest IPv4 packet that may leave with DF, in bytes, at least 68
	IPv6MTU       int  // the largest IPv6 packet that may leave, in bytes; less than 1280 counts as 1280
	LowestIPv6MTU int  // IPv4 packets without DF are cut to this or to IPv6MTU, whichever is less (RFC 7915 4.1); less than 1280 counts as 1280
	DropUDPZero   bool // drop unfragmented IPv4 UDP without a checksum instead of computing one (RFC 7915 4.5)
	KeepUDPZero   bool // forward it without one, fragments too (RFC 6935 5, RFC 6936)
	ZeroTOS       bool // zero the traffic class instead of copying it (RFC 7915 4.1, 5.1)
}

// lowestIPv6MTU and ipv6MTU are the options with their floor: no IPv6 link has
// an MTU below 1280 (RFC 8200 5).
func (o *Options) ipv6MTU() int       { return max(o.IPv6MTU, minIPv6MTU) }
func (o *Options) lowestIPv6MTU() int { return min(max(o.LowestIPv6MTU, minIPv6MTU), o.ipv6MTU()) }

// trafficClass is the TOS or traffic class of a translated packet.
func (o *Options) trafficClass(tos uint8) uint8 {
	if o.ZeroTOS {
		return 0
	}
	return tos
}
