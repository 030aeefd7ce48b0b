package translate

import (
	"encoding/binary"
	"net/netip"
)

// What natless's own packets carry: the usual initial hop limit, and the
// precedence that RFC 1812 4.3.2.5 asks of ICMP errors.
const (
	ownHopLimit     = 64
	internetControl = 0xc0
)

// WriteError writes the ICMP error that answers p, about which Parse, the
// mapping or Rewrite said v, to dst and returns its length. It is a whole
// packet in the family of p, from the address from to the source of p, with
// complete checksums and no offload, of at most 576 (IPv4, RFC 1812 4.3.2.3) or
// 1280 bytes (IPv6, RFC 4443 2.4); dst holds 1280. It quotes p as it was on the
// wire: of a super-packet the first segment, with its checksum complete.
//
// To OwnAddress a host would answer: that it has no such protocol or port. TCP
// gets port unreachable, as firewalls that reject do: natless has no TCP that
// could reset, and a client gives up at once all the same.
//
// It returns 0 where no error may be sent: the verdict has none; p is an ICMP
// error or a later fragment; its source is no single host or its destination
// is multicast or broadcast, except for Packet Too Big (RFC 1122 3.2.2, RFC
// 1812 4.3.2.7, RFC 4443 2.4); from is of the other family. Rate limits are the
// caller's.
func WriteError(dst []byte, p *Packet, v Verdict, from netip.Addr) int {
	if p.HasQuote() || p.Flow.Frag == Later || from.Is4() == p.v6 || !from.IsValid() {
		return 0
	}
	if p.v6 {
		typ, code, rest := p.reply6(v)
		if typ == 0 || !answerable6(p.Flow.Src, p.Flow.Dst, typ) || p.isError6() {
			return 0
		}
		n := ipv6HeaderLen + icmpHeaderLen
		n += p.quoteWire(dst[n:minIPv6MTU])
		m := dst[ipv6HeaderLen:n]
		putICMP(m, typ, code, rest)
		putIPv6(dst, 0, len(m), protoICMPv6, ownHopLimit, ipv6AddrOf(from), ipv6AddrOf(p.Flow.Src))
		sum := sumBytes(pseudoIPv6(dst[ipv6Src:], len(m), protoICMPv6), m)
		binary.BigEndian.PutUint16(m[icmpChecksum:], ^fold(sum))
		return n
	}
	typ, code, rest := p.reply4(v)
	if typ == 0 || !answerable4(p.Flow.Src, p.Flow.Dst) {
		return 0
	}
	n := ipv4HeaderLen + icmpHeaderLen
	n += p.quoteWire(dst[n:maxICMPv4])
	m := dst[ipv4HeaderLen:n]
	putICMP(m, typ, code, rest)
	binary.BigEndian.PutUint16(m[icmpChecksum:], ^fold(sumBytes(0, m)))
	putIPv4(dst, internetControl, n, p.nextID(1), 0, ownHopLimit, protoICMPv4, ipv4AddrOf(from), ipv4AddrOf(p.Flow.Src))
	return n
}

// reply4 is the ICMPv4 error that answers v; typ is 0 where there is none.
func (p *Packet) reply4(v Verdict) (typ, code uint8, rest uint32) {
	switch v {
	case HopLimit:
		return icmp4TimeExceeded, 0, 0
	case TooBig:
		return icmp4Unreachable, code4FragNeeded, uint32(p.mtu)
	case SourceRoute:
		return icmp4Unreachable, code4SourceRoute, 0
	case DestinationUnmapped, PoolFull, StateUnavailable, SessionPortsFull, ClientSessionsFull, SessionsFull:
		return icmp4Unreachable, code4Host, 0
	case PrivateIPv4, ClientNotPermitted, HairpinOff: // RFC 7915 4.4
		return icmp4Unreachable, code4Prohibited, 0
	case UDPZeroChecksum, UDPZeroFragment: // RFC 7915 4.4
		return icmp4Unreachable, code4Prohibited, 0
	case NoPorts: // RFC 6146 3.4
		return icmp4Unreachable, code4Protocol, 0
	case OwnAddress: // RFC 1122 3.2.2.1
		switch p.outer.proto {
		case protoICMPv4:
			return 0, 0, 0
		case protoUDP, protoTCP:
			return icmp4Unreachable, code4Port, 0
		}
		return icmp4Unreachable, code4Protocol, 0
	}
	return 0, 0, 0
}

// reply6 is the ICMPv6 error that answers v; typ is 0 where there is none.
func (p *Packet) reply6(v Verdict) (typ, code uint8, rest uint32) {
	switch v {
	case HopLimit:
		return icmp6TimeExceeded, 0, 0
	case TooBig:
		return icmp6TooBig, 0, uint32(p.mtu)
	case RoutingHeader:
		return icmp6Parameter, code6Field, uint32(p.outer.routing)
	case DestinationUnmapped, PoolFull, StateUnavailable, SessionPortsFull, ClientSessionsFull, SessionsFull:
		return icmp6Unreachable, code6Address, 0
	case PrivateIPv4, HairpinOff:
		return icmp6Unreachable, code6Prohibited, 0
	case NoPorts: // RFC 6146 3.4
		return icmp6Unreachable, code6Port, 0
	case SourceUnmapped, ClientNotPermitted: // RFC 7915 5.4
		return icmp6Unreachable, code6Policy, 0
	case FragmentExtension: // RFC 7915 5.4
		return icmp6Unreachable, code6Prohibited, 0
	case OwnAddress:
		switch p.outer.proto {
		case protoICMPv6:
			return 0, 0, 0
		case protoUDP, protoTCP: // RFC 4443 3.1
			return icmp6Unreachable, code6Port, 0
		}
		_, _, field, _ := upperLayer(p.Buf[p.Off : p.Off+p.outer.l4])
		return icmp6Parameter, code6NextHeader, uint32(field) // RFC 8200 4
	}
	return 0, 0, 0
}

// isError6 reports whether an IPv6 packet is, or may be, an ICMPv6 error or a
// redirect, which nothing may answer (RFC 4443 2.4 (e)), behind whatever headers.
func (p *Packet) isError6() bool {
	b := p.Buf[p.Off : p.Off+p.Len]
	proto, at, _, later := upperLayer(b)
	return later || proto == protoICMPv6 && (at >= len(b) || b[at] < icmp6Informational || b[at] == icmp6Redirect)
}

// answerable4 reports whether an ICMPv4 error may answer a packet from src to
// dst. Broadcasts of subnets cannot be known here.
func answerable4(src, dst netip.Addr) bool {
	return singleHost(src) && !dst.IsMulticast() && dst != broadcast
}

// answerable6 does the same for an ICMPv6 error of the type typ.
func answerable6(src, dst netip.Addr, typ uint8) bool {
	return singleHost(src) && (!dst.IsMulticast() || typ == icmp6TooBig)
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// singleHost reports whether a can be one host: not unspecified (nor in 0/8),
// loopback, multicast or class E.
func singleHost(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	if !a.Is4() {
		return true
	}
	first := a.As4()[0]
	return first != 0 && first < 240
}

func putICMP(m []byte, typ, code uint8, rest uint32) {
	m[0], m[1], m[2], m[3] = typ, code, 0, 0
	binary.BigEndian.PutUint32(m[icmpRest:], rest)
}

// quoteWire copies as much of the packet as dst holds, as it was on the wire,
// and returns how much. What offload left undone is done.
func (p *Packet) quoteWire(dst []byte) int {
	h := &p.outer
	b := p.Buf[p.Off : p.Off+p.Len]
	size := h.l4 + p.wirePayload()
	n := copy(dst, b[:size])
	dst = dst[:n]
	if p.Offload.Flags&NeedsCsum == 0 {
		return n
	}
	if !p.super() {
		at := h.l4 + int(p.checksum)
		if p.checksum == 0 {
			at = h.l4 + icmpChecksum
		}
		if at+2 <= n {
			p.putChecksumAt(dst[at:], sumBytes(0, b[h.l4:]))
		}
		return n
	}
	if p.v6 {
		binary.BigEndian.PutUint16(dst[ipv6Payload:], uint16(size-ipv6HeaderLen))
	} else {
		binary.BigEndian.PutUint16(dst[ipv4Total:], uint16(size))
		binary.BigEndian.PutUint16(dst[ipv4Checksum:], 0)
		binary.BigEndian.PutUint16(dst[ipv4Checksum:], ^sumHeader(dst[:h.l4]))
	}
	data := h.l4 + int(p.l4Header)
	if data > n {
		return n
	}
	head := dst[h.l4:data]
	p.segmentHeader(head, 0, size-data, p.segments() == 1)
	var sum uint64
	if p.v6 {
		sum = pseudoIPv6(b[ipv6Src:], size-h.l4, h.proto)
	} else {
		sum = pseudoIPv4(b[ipv4Src:], size-h.l4, h.proto)
	}
	sum = sumBytes(sumBytes(sum, head), b[data:size])
	p.putChecksumAt(head[p.checksum:], sum)
	return n
}
