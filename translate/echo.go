package translate

import "encoding/binary"

// AnswerEcho turns the echo request, which Parse accepted, into its reply, in
// place: the addresses change places, options, extension headers and fragment
// header go, the hop limit starts anew (RFC 792, RFC 4443 4.2). A wrong
// checksum stays wrong. Off, Len and Offload are those of the reply.
func (p *Packet) AnswerEcho() {
	h := &p.outer
	b := p.Buf[p.Off : p.Off+p.Len]
	p.completeICMP(b)
	m := b[h.l4:]
	was := binary.BigEndian.Uint16(m)
	m[0] = icmp4EchoReply
	if p.v6 {
		m[0] = icmp6EchoReply
	}
	delta := replaced(uint32(was), uint32(binary.BigEndian.Uint16(m)))
	field := binary.BigEndian.Uint16(m[icmpChecksum:])
	binary.BigEndian.PutUint16(m[icmpChecksum:], adjust(field, delta))

	start := h.l4 - ipv4HeaderLen
	if p.v6 {
		start = h.l4 - ipv6HeaderLen
		putIPv6(b[start:], h.tos, len(m), protoICMPv6, ownHopLimit, ipv6AddrOf(p.Flow.Dst), ipv6AddrOf(p.Flow.Src))
	} else {
		putIPv4(b[start:], h.tos, ipv4HeaderLen+len(m), p.nextID(1), 0, ownHopLimit, protoICMPv4, ipv4AddrOf(p.Flow.Dst), ipv4AddrOf(p.Flow.Src))
	}
	p.Off += start
	p.Len -= start
	p.Offload = Offload{}
}
