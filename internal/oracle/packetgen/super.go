package packetgen

import "encoding/binary"

// Partial is a packet whose checksum is left to the hardware, as a TUN device
// with offloads hands it out; with a Size it is a super-packet.
type Partial struct {
	Packet        []byte
	ChecksumStart int // from the start of the packet
	ChecksumAt    int // from ChecksumStart
	Size          int // payload of a segment, 0: not a super-packet
	UDP, ECN      bool
}

// Partial4 makes an IPv4 packet with a partial checksum.
func Partial4(s *Source) Partial { return partial(s, 4) }

// Partial6 makes an IPv6 packet with a partial checksum.
func Partial6(s *Source) Partial { return partial(s, 6) }

func partial(s *Source, version int) Partial {
	p := Partial{Size: pick(s, 1448, 1428, 1208, 0, 536, 1440, 8, s.Below(9000), 1220+s.Below(80))}
	p.UDP = s.OneIn(2)
	proto := byte(6)
	if p.UDP {
		proto = 17
	}
	if p.Size == 0 {
		proto = pick(s, proto, 136, 33, icmpOf(version), proto)
	}
	h := partialHeader(s, version, proto)
	addresses := h[12:20]
	if version == 6 {
		addresses = h[8:40]
	}
	var body []byte
	if proto == icmpOf(version) {
		p.ChecksumAt, p.UDP = 2, false
		if s.OneIn(2) {
			body = echo(s, version, addresses, 2000)
		} else {
			body = icmpError(s, version, addresses, 2000, 0)
		}
	} else {
		body = partialTransport(s, &p, proto)
	}
	most := 65535 - len(h) - len(body)
	n := size(s, most)
	if p.Size > 0 { // a few segments, the last one full or not
		n = min(most, p.Size+1+s.Below(8*p.Size))
		if s.OneIn(4) {
			n = most
		}
		// More than 64 segments is more than the kernel makes of UDP.
		n = max(p.Size+1, min(n, 64*p.Size))
	}
	if proto != icmpOf(version) {
		body = append(body, filler(s, n)...)
	}
	if proto == 17 {
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	}
	pseudo := binary.BigEndian.AppendUint32(append([]byte{}, addresses...), uint32(len(body)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	if proto == icmp4 { // has no pseudo-header
		pseudo = nil
	}
	binary.BigEndian.PutUint16(body[p.ChecksumAt:], ^checksum(pseudo))
	p.ChecksumStart = len(h)
	if version == 4 {
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(body)))
		setHeaderChecksum(h)
	} else {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)-40+len(body)))
	}
	p.Packet = append(h, body...)
	return p
}

func partialHeader(s *Source, version int, proto byte) []byte {
	if version == 4 {
		h := make([]byte, 20)
		h[0], h[1], h[8], h[9] = 0x45, tos(s), hops(s), proto
		binary.BigEndian.PutUint16(h[4:], s.Uint16())
		h[6] = pick[byte](s, 0x40, 0)
		copy(h[12:], address4(s))
		copy(h[16:], address4(s))
		if s.OneIn(8) {
			h[0] = 0x46
			h = append(h, 1, 1, 1, 0)
		}
		return h
	}
	h := make([]byte, 40)
	h[0], h[1], h[6], h[7] = 0x60, tos(s)<<4, proto, hops(s)
	copy(h[8:], address6(s))
	copy(h[24:], address6(s))
	if s.OneIn(8) {
		h[6] = pick[byte](s, 0, 60)
		h = append(h, proto, 0, 1, 4, 0, 0, 0, 0)
	}
	return h
}

func partialTransport(s *Source, p *Partial, proto byte) []byte {
	var b []byte
	switch proto {
	case 6:
		p.ChecksumAt = 16
		b = make([]byte, 20)
		binary.BigEndian.PutUint32(b[4:], s.Uint32())
		b[12], b[13] = 0x50, pick[byte](s, 0x10, 0x18, 0x19, s.Byte())
		if b[13]&0x80 != 0 {
			p.ECN = true
		}
		if s.OneIn(2) { // timestamps
			b[12] = 0x80
			b = append(b, 1, 1, 8, 10, s.Byte(), 0, 0, 0, 0, 0, 0, 0)
		}
	case 33:
		p.ChecksumAt = 6
		b = make([]byte, 16)
		b[4], b[8] = 4, 5
	default:
		p.ChecksumAt = 6
		b = make([]byte, 8)
		binary.BigEndian.PutUint16(b[4:], 8)
	}
	ports(s, b)
	return b
}
