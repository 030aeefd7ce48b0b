package translate

import (
	"encoding/binary"
	"net/netip"
)

// Offsets and sizes of the IPv4 header (RFC 791 3.1).
const (
	ipv4HeaderLen = 20
	ipv4TOS       = 1
	ipv4Total     = 2
	ipv4ID        = 4
	ipv4Flags     = 6
	ipv4TTL       = 8
	ipv4Proto     = 9
	ipv4Checksum  = 10
	ipv4Src       = 12
	ipv4Dst       = 16

	ipv4DF         = 0x4000
	ipv4MF         = 0x2000
	ipv4OffsetMask = 0x1fff

	optionEnd         = 0
	optionNop         = 1
	optionLooseRoute  = 131
	optionStrictRoute = 137

	maxPacket   = 65535 // the largest IPv4 packet, and the largest IPv6 payload
	minIPv4MTU  = 68    // RFC 791 3.2
	maxICMPv4   = 576   // the largest ICMPv4 error (RFC 1812 4.3.2.3)
	dfThreshold = 1260  // IPv4 packets up to this leave without DF (RFC 7915 5.1)
)

// header is what was read from one IP header and its extensions. Offsets count
// from the start of the packet, also for a quoted header.
type header struct {
	start  int // of the IP header
	l4     int // of the transport header, or of a later fragment's data
	end    int // of the packet by its own length field; a quote may stop before it
	offset int // of the fragment in its datagram, in bytes
	// routing is the offset of the segments left field of the first routing
	// header that has any, from the start of the IP header; 0: there is none.
	routing int
	id      uint32

	proto, tos, ttl uint8
	fragmented      bool // an IPv4 fragment, or an IPv6 packet with a fragment header
	more            bool // more fragments follow
	df              bool // IPv4 only
}

// readIPv4 reads the fixed part of the IPv4 header at b[start:]; b ends where
// the bytes end. The packet may be longer than b.
func (h *header) readIPv4(b []byte, start int) Verdict {
	if len(b) < start+ipv4HeaderLen {
		return Truncated
	}
	ip := b[start : start+ipv4HeaderLen]
	ihl := int(ip[0]&0x0f) * 4
	if ihl < ipv4HeaderLen {
		return BadHeader
	}
	if start+ihl > len(b) {
		return Truncated
	}
	total := int(binary.BigEndian.Uint16(ip[ipv4Total:]))
	if total < ihl {
		return BadHeader
	}
	flags := binary.BigEndian.Uint16(ip[ipv4Flags:])
	h.start, h.l4, h.end, h.routing = start, start+ihl, start+total, 0
	h.tos, h.ttl, h.proto = ip[ipv4TOS], ip[ipv4TTL], ip[ipv4Proto]
	h.id = uint32(binary.BigEndian.Uint16(ip[ipv4ID:]))
	h.offset = int(flags&ipv4OffsetMask) * 8
	h.more = flags&ipv4MF != 0
	h.df = flags&ipv4DF != 0
	h.fragmented = flags&(ipv4OffsetMask|ipv4MF) != 0
	return OK
}

// parseIPv4 reads the packet b, which begins with an IPv4 header, and cuts
// padding off p.Len.
func (p *Packet) parseIPv4(b []byte, o *Options) Verdict {
	h := &p.outer
	if v := h.readIPv4(b, 0); v != OK {
		return v
	}
	if h.end > len(b) {
		return Truncated
	}
	if sumHeader(b[:h.l4]) != 0xffff {
		return BadIPv4Checksum
	}
	p.Flow.Src, p.Flow.Dst = addrFrom4(b[ipv4Src:]), addrFrom4(b[ipv4Dst:])
	p.Len = h.end
	if h.l4 == ipv4HeaderLen {
		return p.parseTransport(b[:h.end], o)
	}
	routed := checkOptions(b[ipv4HeaderLen:h.l4])
	if routed == BadHeader {
		return BadHeader
	}
	if v := p.parseTransport(b[:h.end], o); v != OK {
		return v
	}
	return routed
}

// checkOptions looks for a source route that has not run out, the one option
// that translation may not ignore (RFC 7915 4.1).
func checkOptions(opts []byte) Verdict {
	v := OK
	for len(opts) > 0 {
		switch opts[0] {
		case optionEnd:
			return v
		case optionNop:
			opts = opts[1:]
			continue
		}
		if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
			return BadHeader
		}
		if opts[0] == optionLooseRoute || opts[0] == optionStrictRoute {
			if opts[1] < 3 {
				return BadHeader
			}
			if opts[2] <= opts[1] { // the pointer counts from 1
				v = SourceRoute
			}
		}
		opts = opts[opts[1]:]
	}
	return v
}

func addrFrom4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b[:4])) }

// ipv4AddrOf is the IPv4 address a as a number.
func ipv4AddrOf(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// putIPv4 writes an IPv4 header without options over b. flags is the DF and MF
// bits and the fragment offset as they stand in the header.
func putIPv4(b []byte, tos uint8, total int, id, flags uint16, ttl, proto uint8, src, dst uint32) {
	b = b[:ipv4HeaderLen]
	w0 := 0x4500<<16 | uint32(tos)<<16 | uint32(total)
	w1 := uint32(id)<<16 | uint32(flags)
	w2 := uint32(ttl)<<24 | uint32(proto)<<16
	w2 |= uint32(^fold(uint64(w0) + uint64(w1) + uint64(w2) + uint64(src) + uint64(dst)))
	binary.BigEndian.PutUint32(b[0:], w0)
	binary.BigEndian.PutUint32(b[4:], w1)
	binary.BigEndian.PutUint32(b[8:], w2)
	binary.BigEndian.PutUint32(b[12:], src)
	binary.BigEndian.PutUint32(b[16:], dst)
}

// flags is the flags and offset field of the IPv4 header that h becomes in a
// packet of size bytes (RFC 7915 5.1, 5.1.1).
func (h *header) ipv4Flags(size int) uint16 {
	if h.fragmented {
		flags := uint16(h.offset / 8)
		if h.more {
			flags |= ipv4MF
		}
		return flags
	}
	if size > dfThreshold {
		return ipv4DF
	}
	return 0
}

// ipv4Protocol is the protocol number in IPv4 of an IPv6 next header.
func ipv4Protocol(next uint8) uint8 {
	if next == protoICMPv6 {
		return protoICMPv4
	}
	return next
}
