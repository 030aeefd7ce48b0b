package translate

import (
	"encoding/binary"
	"hash/crc32"
)

// Protocol numbers, and where the transport headers keep what translation
// touches.
const (
	protoICMPv4  = 1
	protoIGMP    = 2
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136

	tcpHeaderLen  = 20
	tcpSeq        = 4
	tcpDataOffset = 12
	tcpFlags      = 13
	tcpChecksum   = 16
	tcpFIN        = 0x01
	tcpPSH        = 0x08
	tcpCWR        = 0x80

	udpHeaderLen = 8
	udpLength    = 4
	udpChecksum  = 6

	dccpHeaderLen = 12
	dccpChecksum  = 6
	sctpChecksum  = 8
	sctpHeaderLen = 12
)

// transport tells the shortest header of a protocol, where in it the checksum
// over the pseudo header is (0: it has none) and whether ports begin it.
func transport(proto uint8) (size int, checksum uint8, ports bool) {
	switch proto {
	case protoTCP:
		return tcpHeaderLen, tcpChecksum, true
	case protoUDP, protoUDPLite:
		return udpHeaderLen, udpChecksum, true
	case protoDCCP:
		return dccpHeaderLen, dccpChecksum, true
	case protoSCTP:
		return sctpHeaderLen, 0, true
	}
	return 0, 0, false
}

// parseTransport reads what lies behind the IP headers of the packet b.
func (p *Packet) parseTransport(b []byte, o *Options) Verdict {
	h := &p.outer
	p.Flow.Proto = h.proto
	if h.fragmented {
		if v := p.parseFragment(); v != OK {
			return v
		}
	}
	size, csum, ports := transport(h.proto)
	l4 := b[h.l4:]
	if !ports {
		switch h.proto {
		case protoICMPv4, protoICMPv6, protoIGMP:
			if v := p.parseICMP(b); v != OK {
				return v
			}
		case nextHopByHop, nextRouting, nextFragment, nextDestination:
			return BadHeader // IPv4: they would become extension headers; walked over in IPv6
		}
	} else if p.Flow.Frag == Later {
		if h.offset < size { // it would overwrite the transport header (RFC 1858 4.2)
			return BadFragment
		}
	} else {
		if len(l4) < size {
			return p.short()
		}
		p.Flow.SrcPort = binary.BigEndian.Uint16(l4)
		p.Flow.DstPort = binary.BigEndian.Uint16(l4[2:])
		p.checksum = csum
		switch h.proto {
		case protoTCP:
			size = int(l4[tcpDataOffset]>>4) * 4
			if size < tcpHeaderLen {
				return BadHeader
			}
			if size > len(l4) {
				return p.short()
			}
			p.l4Header = uint8(size)
		case protoUDP:
			if v := p.parseUDP(l4, o); v != OK {
				return v
			}
			p.l4Header = udpHeaderLen
		}
	}
	if p.Offload.Flags&NeedsCsum|p.Offload.GSOType != 0 {
		return p.parseOffload()
	}
	return OK
}

// short is the verdict on a packet that ends inside its transport header.
func (p *Packet) short() Verdict {
	if p.Flow.Frag == First {
		return BadFragment
	}
	return Truncated
}

// parseUDP checks the length and the missing checksum of a UDP header. In a
// super-packet the kernel sets both for each segment.
func (p *Packet) parseUDP(l4 []byte, o *Options) Verdict {
	if p.Offload.GSOType == GSONone {
		length := int(binary.BigEndian.Uint16(l4[udpLength:]))
		if length < udpHeaderLen {
			return BadHeader
		}
		if length > len(l4) && p.Flow.Frag == Whole {
			return Truncated
		}
	}
	if p.v6 || p.Offload.Flags&NeedsCsum != 0 || binary.BigEndian.Uint16(l4[udpChecksum:]) != 0 {
		return OK
	}
	switch {
	case o.KeepUDPZero:
		return OK
	case p.Flow.Frag == First:
		return UDPZeroFragment
	case o.DropUDPZero:
		return UDPZeroChecksum
	}
	return OK
}

// translateTransport makes the transport header at b[h.l4:] fit the addresses
// and ports of the other family, in place. delta is the difference that the
// pseudo header makes, flow the flow as it was and to the one as it shall be.
// partial says that the field holds the uninverted pseudo-header sum, to which
// the ports do not belong. b may end anywhere behind the IP header, as quotes
// do.
func translateTransport(b []byte, proto, checksum uint8, partial bool, delta uint64, flow, to *Flow) {
	if flow.SrcPort != to.SrcPort || flow.DstPort != to.DstPort {
		if proto == protoSCTP {
			replaceSCTPPorts(b, to)
			return
		}
		if checksum == 0 || len(b) < 4 {
			return
		}
		was := binary.BigEndian.Uint32(b)
		is := uint32(to.SrcPort)<<16 | uint32(to.DstPort)
		binary.BigEndian.PutUint32(b, is)
		if !partial {
			delta = add(delta, replaced(was, is))
		}
	}
	if checksum == 0 || len(b) < int(checksum)+2 {
		return
	}
	b = b[checksum : checksum+2]
	field := binary.BigEndian.Uint16(b)
	if partial {
		binary.BigEndian.PutUint16(b, fold(add(uint64(field), delta)))
		return
	}
	if checksum == udpChecksum && proto != protoDCCP {
		if field == 0 {
			return // there is none
		}
		if field = adjust(field, delta); field == 0 {
			field = 0xffff
		}
	} else {
		field = adjust(field, delta)
	}
	binary.BigEndian.PutUint16(b, field)
}

// replaceSCTPPorts writes the ports of the SCTP packet b and makes its CRC
// (RFC 9260 6.8) as right or as wrong as it was: a CRC is linear, so that the
// difference of two packets of one length is that of their CRCs.
func replaceSCTPPorts(b []byte, to *Flow) {
	field := b[sctpChecksum:sctpHeaderLen]
	was := binary.LittleEndian.Uint32(field)
	clear(field)
	delta := crc32.Checksum(b, castagnoli)
	putPorts(b, to)
	delta ^= crc32.Checksum(b, castagnoli)
	binary.LittleEndian.PutUint32(field, was^delta)
}

func putPorts(b []byte, to *Flow) {
	binary.BigEndian.PutUint16(b, to.SrcPort)
	binary.BigEndian.PutUint16(b[2:], to.DstPort)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
