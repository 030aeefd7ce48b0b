package translate

import "encoding/binary"

// Types and codes of ICMP (RFC 792, RFC 1191, RFC 1812) and of ICMPv6 (RFC 4443).
const (
	icmpHeaderLen = 8
	icmpChecksum  = 2
	icmpRest      = 4 // identifier, MTU, pointer or RFC 4884 length

	icmp4EchoReply    = 0
	icmp4Unreachable  = 3
	icmp4Echo         = 8
	icmp4TimeExceeded = 11
	icmp4Parameter    = 12

	code4Net             = 0
	code4Host            = 1
	code4Protocol        = 2
	code4Port            = 3
	code4FragNeeded      = 4
	code4SourceRoute     = 5
	code4NetUnknown      = 6
	code4HostUnknown     = 7
	code4Isolated        = 8
	code4NetProhibited   = 9
	code4HostProhibited  = 10
	code4NetTOS          = 11
	code4HostTOS         = 12
	code4Prohibited      = 13
	code4Precedence      = 15
	code4Pointer         = 0
	code4ParameterLength = 2

	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
	icmp6Parameter    = 4
	icmp6Echo         = 128
	icmp6Redirect     = 137

	icmp6Informational = 128 // and what is above (RFC 4443 2.1)

	icmp6EchoReply = 129

	code6NoRoute     = 0
	code6Prohibited  = 1
	code6BeyondScope = 2
	code6Address     = 3
	code6Port        = 4
	code6Policy      = 5
	code6Field       = 0
	code6NextHeader  = 1
)

// RFC 4884: the quote of an ICMP error that has an extension is at least this
// long, and an extension at least as long as its header.
const (
	minExtendedQuote = 128
	minExtension     = 4
	extensionVersion = 2
)

// icmpError is an ICMP error as it will be on the other side, and where its
// parts are on this side, from the start of the packet.
type icmpError struct {
	typ, code uint8
	pointer   uint8 // of a parameter problem
	quoteEnd  int   // where the quoted packet, as far as it is there, ends
	extension int   // where the RFC 4884 extension begins; 0: there is none
}

// toICMPv6 is the table of RFC 7915 4.2: what an ICMPv4 error becomes.
func toICMPv6(typ, code, pointer uint8) (e icmpError, ok bool) {
	switch typ {
	case icmp4Unreachable:
		switch code {
		case code4Net, code4Host, code4SourceRoute, code4NetUnknown, code4HostUnknown, code4Isolated, code4NetTOS, code4HostTOS:
			return icmpError{typ: icmp6Unreachable, code: code6NoRoute}, true
		case code4NetProhibited, code4HostProhibited, code4Prohibited, code4Precedence:
			return icmpError{typ: icmp6Unreachable, code: code6Prohibited}, true
		case code4Protocol:
			return icmpError{typ: icmp6Parameter, code: code6NextHeader, pointer: ipv6Next}, true
		case code4Port:
			return icmpError{typ: icmp6Unreachable, code: code6Port}, true
		case code4FragNeeded:
			return icmpError{typ: icmp6TooBig}, true
		}
	case icmp4TimeExceeded:
		return icmpError{typ: icmp6TimeExceeded, code: code}, true
	case icmp4Parameter:
		if code != code4Pointer && code != code4ParameterLength {
			return e, false
		}
		pointer, ok = toIPv6Pointer(pointer)
		return icmpError{typ: icmp6Parameter, code: code6Field, pointer: pointer}, ok
	}
	return e, false
}

// toIPv6Pointer is figure 3 of RFC 7915.
func toIPv6Pointer(pointer uint8) (uint8, bool) {
	switch {
	case pointer <= 1: // version, IHL; TOS
		return pointer, true
	case pointer <= 3: // total length
		return ipv6Payload, true
	case pointer == ipv4TTL:
		return ipv6HopLimit, true
	case pointer == ipv4Proto:
		return ipv6Next, true
	case pointer >= ipv4Src && pointer < ipv4Dst:
		return ipv6Src, true
	case pointer >= ipv4Dst && pointer < ipv4HeaderLen:
		return ipv6Dst, true
	}
	return 0, false
}

// toICMPv4 is the table of RFC 7915 5.2: what an ICMPv6 error becomes.
func toICMPv4(typ, code uint8, pointer uint32) (e icmpError, ok bool) {
	switch typ {
	case icmp6Unreachable:
		switch code {
		case code6NoRoute, code6BeyondScope, code6Address:
			return icmpError{typ: icmp4Unreachable, code: code4Host}, true
		case code6Prohibited:
			return icmpError{typ: icmp4Unreachable, code: code4HostProhibited}, true
		case code6Port:
			return icmpError{typ: icmp4Unreachable, code: code4Port}, true
		}
	case icmp6TooBig:
		return icmpError{typ: icmp4Unreachable, code: code4FragNeeded}, true
	case icmp6TimeExceeded:
		return icmpError{typ: icmp4TimeExceeded, code: code}, true
	case icmp6Parameter:
		switch code {
		case code6Field:
			e = icmpError{typ: icmp4Parameter, code: code4Pointer}
			e.pointer, ok = toIPv4Pointer(pointer)
			return e, ok
		case code6NextHeader:
			return icmpError{typ: icmp4Unreachable, code: code4Protocol}, true
		}
	}
	return e, false
}

// toIPv4Pointer is figure 6 of RFC 7915.
func toIPv4Pointer(pointer uint32) (uint8, bool) {
	switch {
	case pointer <= 1: // version, traffic class; traffic class, flow label
		return uint8(pointer), true
	case pointer == ipv6Payload, pointer == ipv6Payload+1:
		return ipv4Total, true
	case pointer == ipv6Next:
		return ipv4Proto, true
	case pointer == ipv6HopLimit:
		return ipv4TTL, true
	case pointer >= ipv6Src && pointer < ipv6Dst:
		return ipv4Src, true
	case pointer >= ipv6Dst && pointer < ipv6HeaderLen:
		return ipv4Dst, true
	}
	return 0, false
}

// echoType is the other family's type of an echo message, if it is one.
func echoType(typ uint8, v6 bool) (uint8, bool) {
	switch {
	case v6 && typ == icmp6Echo:
		return icmp4Echo, true
	case v6 && typ == icmp6EchoReply:
		return icmp4EchoReply, true
	case !v6 && typ == icmp4Echo:
		return icmp6Echo, true
	case !v6 && typ == icmp4EchoReply:
		return icmp6EchoReply, true
	}
	return 0, false
}

// parseICMP reads an ICMP message, or refuses the ICMP of the other family and
// IGMP, which have no counterpart (RFC 7915 4.2).
func (p *Packet) parseICMP(b []byte) Verdict {
	h := &p.outer
	if !p.v6 && h.proto != protoICMPv4 || p.v6 && h.proto != protoICMPv6 {
		return ICMPType
	}
	if p.Flow.Frag != Whole {
		return ICMPFragment
	}
	m := b[h.l4:]
	if len(m) < icmpHeaderLen {
		return Truncated
	}
	if _, p.echo = echoType(m[0], p.v6); p.echo {
		id := binary.BigEndian.Uint16(m[icmpRest:])
		p.Flow.SrcPort, p.Flow.DstPort = id, id
		return OK
	}
	var ok bool
	if p.v6 {
		p.icmp, ok = toICMPv4(m[0], m[1], binary.BigEndian.Uint32(m[icmpRest:]))
	} else {
		p.icmp, ok = toICMPv6(m[0], m[1], m[icmpRest])
	}
	if !ok {
		return ICMPType
	}
	if !p.parseQuote(b) {
		p.quote.start = 0
		return ICMPQuote
	}
	return OK
}

// translateEcho makes an echo message that of the other family, in place.
// pseudo is what the pseudo headers of ICMPv6 bring in or take out.
func translateEcho(m []byte, v6 bool, pseudo uint64, flow, to *Flow) {
	was := binary.BigEndian.Uint16(m)
	m[0], _ = echoType(m[0], v6)
	delta := add(pseudo, replaced(uint32(was), uint32(binary.BigEndian.Uint16(m))))
	if flow.SrcPort != to.SrcPort {
		binary.BigEndian.PutUint16(m[icmpRest:], to.SrcPort)
		delta = add(delta, replaced(uint32(flow.SrcPort), uint32(to.SrcPort)))
	}
	field := binary.BigEndian.Uint16(m[icmpChecksum:])
	binary.BigEndian.PutUint16(m[icmpChecksum:], adjust(field, delta))
}

// plateaus are the likely path MTUs of RFC 1191 7.1 that IPv6 can use.
var plateaus = [...]int{65535, 32000, 17914, 8166, 4352, 2002, 1492}

// packetTooBigMTU is the MTU of an ICMPv6 Packet Too Big made of an ICMPv4
// Fragmentation Needed about a packet of total bytes (RFC 7915 4.2). A router
// older than RFC 1191 gives 0.
func packetTooBigMTU(o *Options, mtu, total int) int {
	if mtu == 0 {
		for _, plateau := range plateaus {
			if plateau < total {
				mtu = plateau
				break
			}
		}
	}
	return max(minIPv6MTU, min(mtu+ipv6HeaderLen-ipv4HeaderLen, o.ipv6MTU(), o.IPv4MTU+ipv6HeaderLen-ipv4HeaderLen))
}

// fragNeededMTU is the MTU of an ICMPv4 Fragmentation Needed made of an ICMPv6
// Packet Too Big about a packet whose headers shrink by shrink bytes (RFC 7915
// 5.2). No IPv6 link has an MTU below 1280, and no node reduces its path MTU
// below that (RFC 8201 4): whoever says so is broken, or wants to slow down all
// who share the address.
func fragNeededMTU(o *Options, mtu uint32, shrink int) int {
	told := max(minIPv6MTU, int(min(mtu, 1<<17)))
	return max(minIPv4MTU, min(told-shrink, o.IPv4MTU, o.ipv6MTU()-shrink, maxPacket))
}
