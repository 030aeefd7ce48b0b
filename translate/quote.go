package translate

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// parseQuote reads the packet that the ICMP error b quotes and reports whether
// it can be translated. Of the quote only the IP headers must be there whole;
// its checksums are nobody's business. What no translated packet can have
// looked like is refused: ICMP other than echo, fragments of ICMP, a routing
// header with segments left.
func (p *Packet) parseQuote(b []byte) bool {
	h, q, e := &p.outer, &p.quote, &p.icmp
	start := h.l4 + icmpHeaderLen
	e.quoteEnd, e.extension = h.end, 0
	if n := p.lengthAttribute(b[h.l4:]); n > 0 && start+n+minExtension <= h.end && (n >= minExtendedQuote || isExtension(b[start+n:h.end])) {
		e.extension = start + n
		e.quoteEnd = start + n
	}
	if e.quoteEnd <= start {
		return false
	}
	there := b[:e.quoteEnd]
	f := &p.Quoted
	*f = Flow{}
	if p.v6 {
		if b[start]>>4 != 6 || q.readIPv6(there, start) != OK || q.routing != 0 {
			return false
		}
		f.Src, f.Dst = addrFrom6(b[start+ipv6Src:]), addrFrom6(b[start+ipv6Dst:])
		if ipv4HeaderLen+q.end-q.l4 > maxPacket {
			return false
		}
	} else {
		if b[start]>>4 != 4 || q.readIPv4(there, start) != OK {
			return false
		}
		f.Src, f.Dst = addrFrom4(b[start+ipv4Src:]), addrFrom4(b[start+ipv4Dst:])
	}
	f.Proto = q.proto
	switch {
	case q.offset > 0:
		f.Frag = Later
	case q.more:
		f.Frag = First
	}
	if e.extension != 0 { // what follows the quoted packet is padding
		e.quoteEnd = min(e.quoteEnd, q.end)
	}
	return p.parseQuotedTransport(b[q.l4:min(e.quoteEnd, q.end)])
}

// isExtension reports whether b is an extension by its version and checksum (RFC
// 4884 7). It is asked behind a quote of less than 128 bytes, which RFC 4884 3
// does not allow but some routers send: the byte of the length attribute may
// have meant something else to older ones.
func isExtension(b []byte) bool {
	return b[0]>>4 == extensionVersion && (b[2] == 0 && b[3] == 0 || checksum.Checksum(b, 0) == 0xffff)
}

// lengthAttribute is the length of the quote in an ICMP error that has an
// extension, in bytes (RFC 4884 4); 0 where there is no such attribute.
func (p *Packet) lengthAttribute(m []byte) int {
	switch {
	case !p.v6:
		return int(m[icmpRest+1]) * 4
	case m[0] == icmp6Unreachable, m[0] == icmp6TimeExceeded:
		return int(m[icmpRest]) * 8
	}
	return 0
}

func (p *Packet) parseQuotedTransport(l4 []byte) bool {
	f := &p.Quoted
	switch f.Proto {
	case protoICMPv4, protoICMPv6, protoIGMP:
		if p.v6 != (f.Proto == protoICMPv6) || f.Proto == protoIGMP || f.Frag != Whole || len(l4) < icmpHeaderLen {
			return false
		}
		if _, echo := echoType(l4[0], p.v6); !echo {
			return false
		}
		f.SrcPort = binary.BigEndian.Uint16(l4[icmpRest:])
		f.DstPort = f.SrcPort
		return true
	case nextHopByHop, nextRouting, nextFragment, nextDestination:
		return false
	}
	if _, _, ports := transport(f.Proto); ports && f.Frag != Later && len(l4) >= 4 {
		f.SrcPort = binary.BigEndian.Uint16(l4)
		f.DstPort = binary.BigEndian.Uint16(l4[2:])
	}
	return true
}

// rewriteError translates an ICMP error and the packet it quotes (RFC 7915
// 4.2-4.5, 5.2-5.5). The result is put together aside and then takes the place
// of the packet, with the same end.
func (p *Packet) rewriteError(o *Options, to, quoted *Flow) {
	h := &p.outer
	b := p.Buf[p.Off : p.Off+p.Len]
	headerLen, limit := ipv6HeaderLen, minIPv6MTU
	if p.v6 {
		headerLen, limit = ipv4HeaderLen, maxICMPv4
	}
	out := p.assembled[:limit]
	m := out[headerLen:]
	n, rest := p.quoteInto(m[icmpHeaderLen:], b)
	n += icmpHeaderLen
	m = m[:n]
	p.translateQuote(m[icmpHeaderLen:], b, o, quoted)

	switch {
	case p.icmp.typ == icmp6TooBig && !p.v6:
		mtu := int(binary.BigEndian.Uint16(b[h.l4+icmpRest+2:]))
		rest = uint32(packetTooBigMTU(o, mtu, p.quote.end-p.quote.start))
	case p.icmp.typ == icmp4Unreachable && p.icmp.code == code4FragNeeded && p.v6:
		rest = uint32(fragNeededMTU(o, binary.BigEndian.Uint32(b[h.l4+icmpRest:]), p.quote.ipv6Len()-ipv4HeaderLen))
	case p.icmp.typ == icmp6Parameter && !p.v6:
		rest = uint32(p.icmp.pointer)
	case p.icmp.typ == icmp4Parameter && p.v6:
		rest = uint32(p.icmp.pointer) << 24
	}
	m[0], m[1], m[icmpChecksum], m[icmpChecksum+1] = p.icmp.typ, p.icmp.code, 0, 0
	binary.BigEndian.PutUint32(m[icmpRest:], rest)

	if p.v6 {
		putIPv4(out, o.trafficClass(h.tos), headerLen+n, p.outerID(), 0, h.ttl-1, protoICMPv4, ipv4AddrOf(to.Src), ipv4AddrOf(to.Dst))
	} else {
		putIPv6(out, o.trafficClass(h.tos), n, protoICMPv6, h.ttl-1, ipv6AddrOf(to.Src), ipv6AddrOf(to.Dst))
	}
	p.checksumError(m, b)

	p.Off += p.Len - headerLen - n
	p.Len = headerLen + n
	p.Offload = Offload{}
	copy(p.Buf[p.Off:], out[:p.Len])
}

// quoteInto copies the quoted packet behind the room for its new IP headers,
// and the extension behind it, into the room dst. It returns their length and
// the rest of the ICMP header with the length attribute. The extension goes
// where the new type has no length attribute (RFC 4884 4). Where room is short
// the quote is cut, with an extension down to 128 bytes; an extension that does
// not fit even so goes whole, for half of one has a wrong checksum. A short
// quote in front of one is padded to 128 bytes (RFC 4884 3).
func (p *Packet) quoteInto(dst, b []byte) (n int, rest uint32) {
	body := b[p.quote.l4:p.icmp.quoteEnd]
	headerLen, unit, shift := p.quote.ipv6Len(), 8, 24
	if p.v6 {
		headerLen, unit, shift = ipv4HeaderLen, 4, 16
	}
	n = headerLen + len(body)
	extension := b[p.icmp.extension:p.outer.end]
	if p.icmp.extension == 0 || len(extension) > len(dst)-minExtendedQuote || !p.v6 && p.icmp.typ != icmp6Unreachable && p.icmp.typ != icmp6TimeExceeded {
		n = min(n, len(dst))
		copy(dst[headerLen:n], body)
		return n, 0
	}
	field := max(minExtendedQuote, (n+unit-1)/unit*unit)
	field = min(field, max(minExtendedQuote, (len(dst)-len(extension))/unit*unit))
	n = min(n, field)
	copy(dst[headerLen:n], body)
	clear(dst[n:field])
	return field + copy(dst[field:], extension), uint32(field/unit) << shift
}

// translateQuote writes the IP headers of the quoted packet at m and makes its
// transport header fit. Its hop limit stays (RFC 7915 4.3, 5.3), and so does
// identification 0, as nobody knows what it was.
func (p *Packet) translateQuote(m, b []byte, o *Options, to *Flow) {
	q := &p.quote
	headerLen, size := ipv4HeaderLen, q.end-q.l4
	var delta, pseudo uint64
	if p.v6 {
		was := b[q.start+ipv6Src : q.start+ipv6HeaderLen]
		src, dst := ipv4AddrOf(to.Src), ipv4AddrOf(to.Dst)
		putIPv4(m, o.trafficClass(q.tos), headerLen+size, uint16(q.id), q.ipv4Flags(headerLen+size), q.ttl, ipv4Protocol(q.proto), src, dst)
		delta = sumIPv4(^sumIPv6(0, was), m[ipv4Src:])
		pseudo = ^pseudoIPv6(was, size, protoICMPv6)
	} else {
		headerLen = q.ipv6Len()
		src, dst := ipv6AddrOf(to.Src), ipv6AddrOf(to.Dst)
		next := ipv6NextHeader(q.proto)
		if q.fragmented {
			putIPv6(m, o.trafficClass(q.tos), fragmentHeaderLen+size, nextFragment, q.ttl, src, dst)
			putFragment(m[ipv6HeaderLen:], next, q.offset, q.more, q.id)
		} else {
			putIPv6(m, o.trafficClass(q.tos), size, next, q.ttl, src, dst)
		}
		delta = sumIPv6(^sumIPv4(0, b[q.start+ipv4Src:]), m[ipv6Src:])
		pseudo = pseudoIPv6(m[ipv6Src:], size, protoICMPv6)
	}
	l4 := m[headerLen:]
	l4 = l4[:min(len(l4), size, p.icmp.quoteEnd-q.l4)]
	if p.Quoted.Frag == Later {
		return
	}
	if q.proto == protoICMPv4 || q.proto == protoICMPv6 {
		translateEcho(l4, p.v6, pseudo, &p.Quoted, to)
		return
	}
	if q.proto == protoSCTP { // whose CRC stays: it covers more than a quote has
		if len(l4) >= 4 {
			putPorts(l4, to)
		}
		return
	}
	_, csum, _ := transport(q.proto)
	translateTransport(l4, q.proto, csum, false, delta, &p.Quoted, to)
}

// checksumError sets the checksum of the translated ICMP error m so that it is
// as right or as wrong as that of the packet b was.
func (p *Packet) checksumError(m, b []byte) {
	h := &p.outer
	was := sumBytes(0, b[h.l4:h.end])
	is := sumBytes(0, m)
	if p.v6 {
		was = add(was, pseudoIPv6(b[ipv6Src:], h.end-h.l4, protoICMPv6))
	} else {
		is = add(is, pseudoIPv6(p.assembled[ipv6Src:], len(m), protoICMPv6))
	}
	if p.Offload.Flags&NeedsCsum != 0 {
		was = 0xffff
	}
	binary.BigEndian.PutUint16(m[icmpChecksum:], canonical(fold(add(was, ^is))))
}

// canonical is a checksum as it is computed: 0 and not its other form.
func canonical(field uint16) uint16 {
	if field == 0xffff {
		return 0
	}
	return field
}
