package translate

import (
	"encoding/binary"
	"net/netip"
	"unsafe"
)

// Offsets and sizes of the IPv6 header and its extensions (RFC 8200 3, 4).
const (
	ipv6HeaderLen = 40
	ipv6Payload   = 4
	ipv6Next      = 6
	ipv6HopLimit  = 7
	ipv6Src       = 8
	ipv6Dst       = 24

	nextHopByHop    = 0
	nextRouting     = 43
	nextFragment    = 44
	nextAuth        = 51
	nextDestination = 60
	nextMobility    = 135
	nextHIP         = 139
	nextShim6       = 140

	segmentsLeft      = 3 // in a routing header
	fragmentHeaderLen = 8

	minIPv6MTU = 1280 // RFC 8200 5; also the largest ICMPv6 error (RFC 4443 2.4)
)

// readIPv6 reads the IPv6 header at b[start:] and walks its extension headers
// up to the transport header; b ends where the bytes end, and the packet may
// be longer.
func (h *header) readIPv6(b []byte, start int) Verdict {
	if len(b) < start+ipv6HeaderLen {
		return Truncated
	}
	ip := b[start : start+ipv6HeaderLen]
	h.start, h.l4 = start, start+ipv6HeaderLen
	h.end = h.l4 + int(binary.BigEndian.Uint16(ip[ipv6Payload:]))
	h.tos = ip[0]<<4 | ip[1]>>4
	h.ttl, h.proto = ip[ipv6HopLimit], ip[ipv6Next]
	h.routing, h.offset, h.id, h.fragmented, h.more, h.df = 0, 0, 0, false, false, false
	if h.proto == protoTCP || h.proto == protoUDP {
		return OK
	}
	return h.walkExtensions(b[:min(len(b), h.end)])
}

// walkExtensions skips the extension headers that have no meaning in IPv4
// (RFC 7915 5.1).
func (h *header) walkExtensions(b []byte) Verdict {
	for first := true; ; first = false {
		switch h.proto {
		case nextHopByHop:
			if !first { // RFC 8200 4.3: directly behind the IPv6 header only
				return BadHeader
			}
		case nextRouting, nextDestination:
		case nextFragment:
			return h.readFragment(b)
		default:
			return OK
		}
		if len(b) < h.l4+8 {
			return Truncated
		}
		size := (int(b[h.l4+1]) + 1) * 8
		if len(b) < h.l4+size {
			return Truncated
		}
		if h.proto == nextRouting && b[h.l4+segmentsLeft] != 0 && h.routing == 0 {
			h.routing = h.l4 + segmentsLeft - h.start
		}
		h.proto = b[h.l4]
		h.l4 += size
	}
}

// readFragment reads the fragment header at b[h.l4:]. Extension headers behind
// it count in the offsets of the fragments, so that they cannot be taken out
// of some without all (RFC 7915 5.1.1).
func (h *header) readFragment(b []byte) Verdict {
	if len(b) < h.l4+fragmentHeaderLen {
		return Truncated
	}
	f := b[h.l4 : h.l4+fragmentHeaderLen]
	offset := binary.BigEndian.Uint16(f[2:])
	h.fragmented = true
	h.proto = f[0]
	h.offset = int(offset &^ 7)
	h.more = offset&1 != 0
	h.id = binary.BigEndian.Uint32(f[4:])
	h.l4 += fragmentHeaderLen
	switch h.proto {
	case nextHopByHop, nextRouting, nextFragment, nextAuth, nextDestination, nextMobility, nextHIP, nextShim6:
		return FragmentExtension
	}
	return OK
}

// parseIPv6 reads the packet b, which begins with an IPv6 header, and cuts
// padding off p.Len.
func (p *Packet) parseIPv6(b []byte, o *Options) Verdict {
	if len(b) < ipv6HeaderLen {
		return Truncated
	}
	p.Flow.Src, p.Flow.Dst = addrFrom6(b[ipv6Src:]), addrFrom6(b[ipv6Dst:])
	h := &p.outer
	size := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[ipv6Payload:]))
	if size > len(b) {
		return Truncated
	}
	p.Len = size
	if v := h.readIPv6(b, 0); v != OK {
		if v == FragmentExtension {
			p.partOf()
		}
		return v
	}
	if v := p.parseTransport(b[:size], o); v != OK {
		return v
	}
	if h.routing != 0 {
		return RoutingHeader
	}
	return OK
}

// partOf notes of a packet that cannot go on which fragment it is, for the error
// that answers it.
func (p *Packet) partOf() {
	switch h := &p.outer; {
	case h.offset > 0:
		p.Flow.Frag = Later
	case h.more:
		p.Flow.Frag = First
	}
	p.Flow.Proto = p.outer.proto
}

// upperLayer is the protocol behind all headers of the IPv6 packet b, as far as
// they are there, where it is, and where the field is that says so, from the
// start of the packet. In a later fragment nobody knows.
func upperLayer(b []byte) (proto uint8, at, field int, later bool) {
	proto, at, field = b[ipv6Next], ipv6HeaderLen, ipv6Next
	for at+8 <= len(b) {
		size := (int(b[at+1]) + 1) * 8
		switch proto {
		case nextHopByHop, nextRouting, nextDestination, nextMobility, nextHIP, nextShim6:
		case nextFragment:
			if binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				return b[at], at, field, true
			}
			size = fragmentHeaderLen
		case nextAuth: // RFC 4302 2.2: in words of 4 bytes, less 2
			size = (int(b[at+1]) + 2) * 4
		default:
			return proto, at, field, false
		}
		proto, at, field = b[at], at+size, at
	}
	return proto, at, field, false
}

func addrFrom6(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[:16])) }

// ipv6Addr is an IPv6 address in two words.
type ipv6Addr struct{ hi, lo uint64 }

// wordsFirst reports whether netip.Addr begins with the two words of the
// address. Reading them saves a sixth of the whole translation to IPv6: As16
// puts bytes together that the processor cannot read back as words at once.
var wordsFirst = func() bool {
	a := netip.AddrFrom16([16]byte{0: 1, 7: 2, 8: 3, 15: 4})
	return unsafe.Sizeof(a) >= 16 && *(*ipv6Addr)(unsafe.Pointer(&a)) == ipv6Addr{1<<56 | 2, 3<<56 | 4}
}()

func ipv6AddrOf(a netip.Addr) ipv6Addr {
	if wordsFirst {
		return *(*ipv6Addr)(unsafe.Pointer(&a))
	}
	b := a.As16()
	return ipv6Addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// putIPv6 writes an IPv6 header with flow label 0 over b. payload counts the
// bytes behind it.
func putIPv6(b []byte, tos uint8, payload int, next, hops uint8, src, dst ipv6Addr) {
	b = b[:ipv6HeaderLen]
	binary.BigEndian.PutUint64(b, 6<<60|uint64(tos)<<52|uint64(payload)<<16|uint64(next)<<8|uint64(hops))
	binary.BigEndian.PutUint64(b[ipv6Src:], src.hi)
	binary.BigEndian.PutUint64(b[ipv6Src+8:], src.lo)
	binary.BigEndian.PutUint64(b[ipv6Dst:], dst.hi)
	binary.BigEndian.PutUint64(b[ipv6Dst+8:], dst.lo)
}

// putFragment writes a fragment header over b; offset is in bytes.
func putFragment(b []byte, next uint8, offset int, more bool, id uint32) {
	b = b[:fragmentHeaderLen]
	field := uint16(offset)
	if more {
		field |= 1
	}
	b[0], b[1] = next, 0
	binary.BigEndian.PutUint16(b[2:], field)
	binary.BigEndian.PutUint32(b[4:], id)
}

// ipv6NextHeader is the next header in IPv6 of an IPv4 protocol number.
func ipv6NextHeader(proto uint8) uint8 {
	if proto == protoICMPv4 {
		return protoICMPv6
	}
	return proto
}

// ipv6Len is the length of the headers of h as IPv6 headers.
func (h *header) ipv6Len() int {
	if h.fragmented {
		return ipv6HeaderLen + fragmentHeaderLen
	}
	return ipv6HeaderLen
}
