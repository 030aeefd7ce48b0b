package translate

import (
	"encoding/binary"
	"math/bits"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// Checksums (RFC 1071) are kept as 64-bit one's complement accumulators: 64-bit
// words are added with their carry brought around, and fold brings the sum to
// 16 bits. A difference is the sum of what comes in and the complement of what
// goes out (RFC 1624).

// add is the one's complement sum.
func add(sum, x uint64) uint64 {
	s, carry := bits.Add64(sum, x, 0)
	return s + carry
}

// fold reduces an accumulator to 16 bits. It is 0 only for an accumulator of 0.
// Adding a word to itself with its halves swapped leaves the sum of the halves,
// with its carry, in the upper one.
func fold(sum uint64) uint16 {
	half := uint32((sum + bits.RotateLeft64(sum, 32)) >> 32)
	return uint16((half + bits.RotateLeft32(half, 16)) >> 16)
}

// sumHeader is the folded sum of an IPv4 header, whose length is a multiple of 4.
func sumHeader(b []byte) uint16 {
	h := b[:ipv4HeaderLen]
	sum := uint64(binary.BigEndian.Uint32(h[0:])) + uint64(binary.BigEndian.Uint32(h[4:])) +
		uint64(binary.BigEndian.Uint32(h[8:])) + uint64(binary.BigEndian.Uint32(h[12:])) +
		uint64(binary.BigEndian.Uint32(h[16:]))
	for b = b[ipv4HeaderLen:]; len(b) >= 4; b = b[4:] {
		sum += uint64(binary.BigEndian.Uint32(b))
	}
	return fold(sum)
}

// sumBytes adds b, as if it began at an even offset.
func sumBytes(sum uint64, b []byte) uint64 {
	return add(sum, uint64(checksum.Checksum(b, 0)))
}

// sumIPv6 adds the two addresses of an IPv6 header, which stand at b.
func sumIPv6(sum uint64, b []byte) uint64 {
	b = b[:32]
	s, c := bits.Add64(sum, binary.BigEndian.Uint64(b[0:]), 0)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(b[8:]), c)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(b[16:]), c)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(b[24:]), c)
	return s + c
}

// sumIPv4 adds the two addresses of an IPv4 header, which stand at b.
func sumIPv4(sum uint64, b []byte) uint64 {
	b = b[:8]
	return add(sum, uint64(binary.BigEndian.Uint32(b))+uint64(binary.BigEndian.Uint32(b[4:])))
}

// pseudoIPv6 is the sum of the IPv6 pseudo header (RFC 8200 8.1) for the two
// addresses at b.
func pseudoIPv6(b []byte, length int, next uint8) uint64 {
	return add(sumIPv6(0, b), uint64(length)+uint64(next))
}

// pseudoIPv4 is the sum of the IPv4 pseudo header for the two addresses at b.
func pseudoIPv4(b []byte, length int, proto uint8) uint64 {
	return add(sumIPv4(0, b), uint64(length)+uint64(proto))
}

// adjust is the checksum field after the covered data changed by delta. A
// wrong checksum stays wrong by as much.
func adjust(field uint16, delta uint64) uint16 {
	return ^fold(add(uint64(^field), delta))
}

// replaced is the difference that a 32-bit word makes which replaces another.
func replaced(was, is uint32) uint64 {
	return uint64(^was) + uint64(is)
}

// sumAddrs adds two IPv6 addresses.
func sumAddrs(sum uint64, src, dst ipv6Addr) uint64 {
	s, c := bits.Add64(sum, src.hi, 0)
	s, c = bits.Add64(s, src.lo, c)
	s, c = bits.Add64(s, dst.hi, c)
	s, c = bits.Add64(s, dst.lo, c)
	return s + c
}

// complete turns the uninverted pseudo-header sum in the checksum field of the
// transport header at l4, which the whole of l4 belongs to, into the checksum.
func (p *Packet) complete(l4 []byte) {
	p.putChecksumAt(l4[p.checksum:], sumBytes(0, l4))
	p.Offload = Offload{}
}

// putChecksumAt writes the checksum field of the packet's protocol at b, given
// the sum of all that it covers. UDP knows no checksum of 0.
func (p *Packet) putChecksumAt(b []byte, sum uint64) {
	field := ^fold(sum)
	if field == 0 && (p.outer.proto == protoUDP || p.outer.proto == protoUDPLite) {
		field = 0xffff
	}
	binary.BigEndian.PutUint16(b, field)
}

// completeICMP does the same for an ICMP message. No device asks for it.
func (p *Packet) completeICMP(b []byte) {
	if p.Offload.Flags&NeedsCsum == 0 {
		return
	}
	m := b[p.outer.l4:]
	binary.BigEndian.PutUint16(m[icmpChecksum:], ^checksum.Checksum(m, 0))
	p.Offload = Offload{}
}

// completeUDP computes the checksum of a whole UDP datagram at l4 that has
// none (RFC 7915 4.5). pseudo is the sum of its IPv6 addresses.
func completeUDP(l4 []byte, pseudo uint64) {
	if binary.BigEndian.Uint16(l4[udpChecksum:]) != 0 {
		return
	}
	length := binary.BigEndian.Uint16(l4[udpLength:])
	sum := add(pseudo, uint64(length)+protoUDP)
	field := ^fold(sumBytes(sum, l4[:length]))
	if field == 0 {
		field = 0xffff
	}
	binary.BigEndian.PutUint16(l4[udpChecksum:], field)
}
