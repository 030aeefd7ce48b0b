package oracle

import (
	"encoding/binary"
	"net/netip"
)

// reply is an ICMP error by family.
type reply struct{ kind4, code4, kind6, code6 uint8 }

const none = 255 // no such reply in this family

// replies are the ICMP errors that answer verdicts. The first four are asked
// for by RFC 7915 4.1 and 5.1; the others are the mapping's, with the code of
// RFC 7915 4.4 and 5.4 where somebody decided against the packet, and host or
// address unreachable where nobody is there.
var replies = map[string]reply{
	HopLimit:      {11, 0, 3, 0},
	TooBig:        {3, 4, 2, 0},
	SourceRoute:   {3, 5, none, none},
	RoutingHeader: {none, none, 4, 0},

	"destination_unmapped": {3, 1, 1, 3},
	"pool_full":            {3, 1, 1, 3},
	"state_unavailable":    {3, 1, 1, 3},
	"private_ipv4":         {3, 13, 1, 1},
	"client_not_permitted": {3, 13, 1, 5},
	"source_unmapped":      {none, none, 1, 5},
	"hairpin_off":          {3, 13, 1, 1},

	"no_ports":             {3, 2, 1, 4},
	UDPZeroChecksum:        {3, 13, none, none}, // RFC 7915 4.4
	UDPZeroFragment:        {3, 13, none, none},
	FragmentExtension:      {none, none, 1, 1}, // RFC 7915 5.4
	"session_ports_full":   {3, 1, 1, 3},
	"client_sessions_full": {3, 1, 1, 3},
	"sessions_full":        {3, 1, 1, 3},
}

// Originate is the whole packet with the ICMP error that natless sends from
// its own address when pkt came to verdict; nil when there is none or none is
// allowed (RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4).
func Originate(pkt []byte, verdict string, s Settings, from netip.Addr) []byte {
	s = s.sane()
	r, ok := replies[verdict]
	if verdict == "own_address" && len(pkt) > 0 {
		r, ok = ownReply(pkt), true
	}
	if !ok || len(pkt) == 0 {
		return nil
	}
	if pkt[0]>>4 == 4 && r.kind4 != none {
		return originate4(pkt, verdict, r, s, from)
	}
	if pkt[0]>>4 == 6 && r.kind6 != none {
		return originate6(pkt, verdict, r, s, from)
	}
	return nil
}

// ownReply is what a host says that has neither the protocol nor, of UDP, the
// port (RFC 1122 3.2.2.1, RFC 4443 3.1, RFC 8200 4). To ICMP it says nothing.
func ownReply(pkt []byte) reply {
	if pkt[0]>>4 == 4 {
		switch pkt[9] {
		case protoICMP4:
			return reply{none, none, none, none}
		case protoUDP, protoTCP:
			return reply{3, 3, none, none}
		}
		return reply{3, 2, none, none}
	}
	switch proto, _ := unknownHeader(pkt); proto {
	case protoICMP6:
		return reply{none, none, none, none}
	case protoUDP, protoTCP:
		return reply{none, none, 1, 4}
	}
	return reply{none, none, 4, 1}
}

// unknownHeader is the first header that a translator does not walk over, and
// where the packet says which it is.
func unknownHeader(pkt []byte) (proto uint8, field int) {
	proto, field = pkt[6], 6
	for at := 40; at+8 <= len(pkt); {
		length := int(pkt[at+1])*8 + 8
		switch proto {
		case protoHopByHop, protoRouting, protoDestOpts:
		case protoFragment:
			return pkt[at], at
		default:
			return proto, field
		}
		proto, field, at = pkt[at], at, at+length
	}
	return proto, field
}

func originate4(pkt []byte, verdict string, r reply, s Settings, from netip.Addr) []byte {
	total := int(binary.BigEndian.Uint16(pkt[2:]))
	pkt = pkt[:total]
	headerLen := int(pkt[0]&15) * 4
	field := binary.BigEndian.Uint16(pkt[6:])
	src, dst := netip.AddrFrom4([4]byte(pkt[12:])), netip.AddrFrom4([4]byte(pkt[16:]))
	switch {
	case field&0x1fff != 0: // not the first fragment
		return nil
	case src.As4()[0] == 0, src.IsLoopback(), src.As4()[0] >= 224: // nobody, or not one host
		return nil
	case dst.IsMulticast(), dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return nil
	case pkt[9] == protoICMP4 && (total == headerLen || !isQuery4(pkt[headerLen])):
		return nil
	}
	var rest [4]byte
	if verdict == TooBig {
		mtu := s.IPv6MTU - 20
		if field&0x2000 != 0 { // there will be a Fragment header
			mtu -= 8
		}
		binary.BigEndian.PutUint16(rest[2:], uint16(mtu))
	}
	body := append([]byte{r.kind4, r.code4, 0, 0}, rest[:]...)
	body = append(body, pkt[:min(len(pkt), limit4-20-8)]...)
	binary.BigEndian.PutUint16(body[2:], adjust(0, 0, sum(body)))
	return packet{
		version:  4,
		src:      from,
		dst:      src,
		tos:      0xc0, // RFC 1812 4.3.2.5: internetwork control
		id:       uint32(s.ID),
		ttl:      64,
		proto:    protoICMP4,
		declared: len(body),
		body:     body,
	}.build4()
}

// isQuery4 reports an ICMP type that is known not to be an error.
func isQuery4(kind uint8) bool {
	switch kind {
	case 0, 8, 9, 10, 13, 14, 15, 16, 17, 18:
		return true
	}
	return false
}

func originate6(pkt []byte, verdict string, r reply, s Settings, from netip.Addr) []byte {
	pkt = pkt[:40+int(binary.BigEndian.Uint16(pkt[4:]))]
	src, dst := netip.AddrFrom16([16]byte(pkt[8:])), netip.AddrFrom16([16]byte(pkt[24:]))
	switch {
	case src.IsUnspecified(), src.IsLoopback(), src.IsMulticast():
		return nil
	case dst.IsMulticast() && verdict != TooBig: // RFC 4443 2.4 (e.3)
		return nil
	}
	proto, at, segmentsLeft, later := walk6(pkt)
	if later || proto == protoICMP6 && (at >= len(pkt) || pkt[at] < 128 || pkt[at] == 137) {
		return nil
	}
	var rest [4]byte
	switch verdict {
	case TooBig:
		binary.BigEndian.PutUint32(rest[:], uint32(max(1280, s.IPv4MTU+20)))
	case "own_address":
		if r.kind6 == 4 {
			_, field := unknownHeader(pkt)
			binary.BigEndian.PutUint32(rest[:], uint32(field))
		}
	case RoutingHeader:
		binary.BigEndian.PutUint32(rest[:], uint32(segmentsLeft))
	}
	body := append([]byte{r.kind6, r.code6, 0, 0}, rest[:]...)
	body = append(body, pkt[:min(len(pkt), limit6-40-8)]...)
	binary.BigEndian.PutUint16(body[2:], adjust(0, 0, sum(body)+pseudo(from, src, protoICMP6, len(body))))
	return packet{
		version:  6,
		src:      from,
		dst:      src,
		ttl:      64,
		proto:    protoICMP6,
		declared: len(body),
		body:     body,
	}.build6()
}

// walk6 goes to the upper-layer header as far as the packet holds together,
// and remembers where the first unspent routing header tells its segments left.
func walk6(pkt []byte) (proto uint8, at, segmentsLeft int, later bool) {
	proto, at = pkt[6], 40
	for at+8 <= len(pkt) {
		switch proto {
		case protoRouting:
			if pkt[at+3] != 0 && segmentsLeft == 0 {
				segmentsLeft = at + 3
			}
			proto, at = pkt[at], at+int(pkt[at+1])*8+8
		case protoHopByHop, protoDestOpts:
			proto, at = pkt[at], at+int(pkt[at+1])*8+8
		case protoAH: // RFC 4302 2.2
			proto, at = pkt[at], at+int(pkt[at+1])*4+8
		case protoMobility, protoHIP, protoShim6:
			proto, at = pkt[at], at+int(pkt[at+1])*8+8
		case protoFragment:
			if binary.BigEndian.Uint16(pkt[at+2:])&^7 != 0 {
				return pkt[at], at + 8, segmentsLeft, true
			}
			proto, at = pkt[at], at+8
		default:
			return proto, at, segmentsLeft, false
		}
	}
	return proto, at, segmentsLeft, false
}

// Answer is the reply to an echo request that Read accepts: type and addresses
// turned, everything in front of the message made anew (RFC 792, RFC 4443
// 4.2), with the request's type of service (RFC 1349 5.1).
func Answer(pkt []byte, s Settings) []byte {
	d := Read(pkt, s).d
	reply := packet{
		version:  d.version,
		src:      d.dst,
		dst:      d.src,
		tos:      d.tos,
		ttl:      64,
		proto:    d.proto,
		id:       uint32(s.ID),
		declared: len(d.body),
		body:     clone(d.body),
	}
	reply.body[0] = map[int]uint8{4: 0, 6: 129}[d.version]
	old := binary.BigEndian.Uint16(d.body[2:])
	binary.BigEndian.PutUint16(reply.body[2:], adjust(old, sum(d.body[:2]), sum(reply.body[:2])))
	if d.version == 4 {
		return reply.build4()
	}
	return reply.build6()
}
