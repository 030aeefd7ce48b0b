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
		src, dst := p.Flow.Dst.As16(), p.Flow.Src.As16()
		putIPv6(b[start:], h.tos, len(m), protoICMPv6, ownHopLimit, &src, &dst)
	} else {
		putIPv4(b[start:], h.tos, ipv4HeaderLen+len(m), p.nextID(1), 0, ownHopLimit, protoICMPv4, p.Flow.Dst.As4(), p.Flow.Src.As4())
	}
	p.Off += start
	p.Len -= start
	p.Offload = Offload{}
}
