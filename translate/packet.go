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

// Headroom is how many bytes a buffer must leave free in front of a packet:
// the growth from the shortest IPv4 header to IPv6 with a fragment header.
const Headroom = 28

// Packet is one packet, or one GSO super-packet, in a worker's buffer. It is
// made once per worker and reused; it owns nothing and keeps no reference to
// anything but Buf.
type Packet struct {
	// Buf is the worker's buffer. Buf[:Off] is headroom for the longer header
	// of the other family; Buf[Off:Off+Len] is the packet.
	Buf      []byte
	Off, Len int

	// Offload is what the device said of the packet on reading and is to be
	// told on writing.
	Offload Offload

	// Flow is read from the outer headers by Parse.
	Flow Flow
	// Quoted is the flow of the packet inside an ICMP error, valid when
	// HasQuote reports true.
	Quoted Flow
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

// Options are the settings of translation that an operator chooses. They are
// read-only while packets are under way.
type Options struct {
	IPv4MTU       int  // the largest IPv4 packet that may leave, in bytes
	IPv6MTU       int  // the largest IPv6 packet that may leave, in bytes
	LowestIPv6MTU int  // IPv4 packets without DF are cut to this (RFC 7915 4.1)
	DropUDPZero   bool // drop unfragmented IPv4 UDP without a checksum instead of computing one (RFC 7915 4.5)
	ZeroTOS       bool // zero the traffic class instead of copying it (RFC 7915 4.1, 5.1)
}
