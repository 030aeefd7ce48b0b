package packetgen

import "encoding/binary"

// upper makes what follows the IP headers: its protocol number and its bytes,
// at most most. addresses is source and destination; depth is above 0 inside
// an ICMP error.
func upper(s *Source, version int, addresses []byte, f shape, most, depth int) (byte, []byte) {
	kind := s.Below(16)
	if f.offset > 0 {
		return pick[byte](s, 17, 6, 17, icmpOf(version), 50, 136, 33, 132, s.Byte()), filler(s, max(1-s.Below(2), size(s, most)))
	}
	switch kind {
	case 0, 1:
		return 17, udp(s, addresses, most)
	case 2, 3:
		return 6, tcp(s, addresses, most)
	case 4, 5:
		return icmpOf(version), echo(s, version, addresses, most)
	case 6, 7, 8, 9:
		if depth > 0 && !s.OneIn(8) {
			return 17, udp(s, addresses, most)
		}
		return icmpOf(version), icmpError(s, version, addresses, most, depth)
	case 10:
		return 136, udpLite(s, addresses, most)
	case 11:
		return 33, dccp(s, addresses, most)
	case 12: // SCTP
		return 132, filler(s, min(most, size(s, most)+12*s.Below(2)))
	case 13: // ESP, GRE, nothing
		return pick[byte](s, 50, 47, 59, 51, 4, 41), filler(s, size(s, most))
	case 14: // other ICMP
		return icmpOf(version), otherICMP(s, version, addresses, most)
	}
	if s.OneIn(2) {
		return 6, tcp(s, addresses, most)
	}
	// IGMP, the other family's ICMP, extension headers where none belong
	return pick[byte](s, 2, icmpOf(10-version), 0, 43, 44, 60, 135, 139, 140, s.Byte()), filler(s, size(s, most))
}

func icmpOf(version int) byte {
	if version == 4 {
		return icmp4
	}
	return icmp6
}

// seal writes the checksum of b with its pseudo-header at offset at, now and
// then a wrong one.
func seal(s *Source, b, addresses []byte, proto byte, at int) {
	pseudo := append([]byte{}, addresses...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	b[at], b[at+1] = 0, 0
	c := checksum(pseudo, b)
	if c == 0 && (proto == 17 || proto == 136) {
		c = 0xffff
	}
	if s.OneIn(8) {
		c = pick(s, s.Uint16(), 0xffff, 1)
	}
	binary.BigEndian.PutUint16(b[at:], c)
}

func ports(s *Source, b []byte) {
	binary.BigEndian.PutUint16(b, pick(s, 4000, s.Uint16()))
	binary.BigEndian.PutUint16(b[2:], pick(s, 80, s.Uint16()))
}

func udp(s *Source, addresses []byte, most int) []byte {
	b := append(make([]byte, 8), filler(s, size(s, most-8))...)
	ports(s, b)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	if s.OneIn(32) {
		binary.BigEndian.PutUint16(b[4:], uint16(s.Below(len(b)+16)))
	}
	seal(s, b, addresses, 17, 6)
	if s.OneIn(6) {
		b[6], b[7] = 0, 0
	}
	return b
}

func udpLite(s *Source, addresses []byte, most int) []byte {
	b := append(make([]byte, 8), filler(s, size(s, most-8))...)
	ports(s, b)
	binary.BigEndian.PutUint16(b[4:], 8) // coverage
	seal(s, b, addresses, 136, 6)
	return b
}

func dccp(s *Source, addresses []byte, most int) []byte {
	b := append(make([]byte, 16), filler(s, size(s, most-16))...)
	ports(s, b)
	b[4], b[8] = 4, 5
	seal(s, b, addresses, 33, 6)
	return b
}

func tcp(s *Source, addresses []byte, most int) []byte {
	b := append(make([]byte, 20), filler(s, size(s, most-20))...)
	ports(s, b)
	binary.BigEndian.PutUint32(b[4:], s.Uint32())
	b[12], b[13] = 0x50, pick[byte](s, 0x10, 0x02, 0x19, s.Byte())
	seal(s, b, addresses, 6, 16)
	return b
}

// sealICMP writes the checksum of an ICMP message.
func sealICMP(s *Source, version int, b, addresses []byte) []byte {
	if version == 6 {
		seal(s, b, addresses, icmp6, 2)
		return b
	}
	b[2], b[3] = 0, 0
	c := checksum(b)
	if s.OneIn(8) {
		c = pick(s, s.Uint16(), 0xffff, 0)
	}
	binary.BigEndian.PutUint16(b[2:], c)
	return b
}

func echo(s *Source, version int, addresses []byte, most int) []byte {
	b := append(make([]byte, 8), filler(s, size(s, most-8))...)
	if version == 4 {
		b[0] = pick[byte](s, 8, 0)
	} else {
		b[0] = pick[byte](s, 128, 129)
	}
	if s.OneIn(32) {
		b[1] = s.Byte()
	}
	binary.BigEndian.PutUint16(b[4:], s.Uint16())
	b[7] = s.Byte()
	return sealICMP(s, version, b, addresses)
}

func otherICMP(s *Source, version int, addresses []byte, most int) []byte {
	b := filler(s, max(4, size(s, most)))
	if version == 4 {
		b[0] = pick[byte](s, 4, 5, 6, 9, 10, 13, 14, 15, 16, 17, 18, 30, s.Byte())
	} else {
		b[0] = pick[byte](s, 130, 131, 132, 133, 134, 135, 136, 137, 5, 127, 143, s.Byte())
	}
	b[1] = s.Byte() & 3
	return sealICMP(s, version, b, addresses)
}

// icmpError is an ICMP error with the packet it quotes, whole or cut, with or
// without an extension (RFC 4884).
func icmpError(s *Source, version int, addresses []byte, most, depth int) []byte {
	b := make([]byte, 8)
	if version == 4 {
		header4(s, b)
	} else {
		header6(s, b)
	}
	quote := quoteOf(s, version, addresses, depth)
	if s.OneIn(4) {
		return sealICMP(s, version, extend(s, version, b, quote, most), addresses)
	}
	if s.OneIn(24) {
		b[pick(s, 4, 5)] = s.Byte()
	}
	quote = quote[:min(len(quote), most-8)]
	return sealICMP(s, version, append(b, quote...), addresses)
}

func header4(s *Source, b []byte) {
	switch s.Below(8) {
	case 0, 1, 2:
		b[0], b[1] = 3, s.Byte()%18
	case 3:
		b[0], b[1] = 3, 3
	case 4, 5:
		b[0], b[1] = 3, 4
		binary.BigEndian.PutUint16(b[6:], pick(s, 1400, 0, 1260, 1259, 1500, 68, 65535, s.Uint16()))
	case 6:
		b[0], b[1] = 11, s.Byte()%3
	case 7:
		b[0], b[1] = 12, pick[byte](s, 0, 0, 2, 1, 3)
		b[4] = s.Byte() % 24
		if s.OneIn(16) {
			b[4] = s.Byte()
		}
	}
}

func header6(s *Source, b []byte) {
	switch s.Below(8) {
	case 0, 1:
		b[0], b[1] = 1, s.Byte()%8
	case 2:
		b[0], b[1] = 1, 4
	case 3, 4:
		b[0] = 2
		if s.OneIn(8) {
			b[1] = s.Byte()
		}
		binary.BigEndian.PutUint32(b[4:], pick(s, 1400, 1280, 1279, 0, 68, 96, 1500, 65535, 65536, s.Uint32()))
	case 5:
		b[0], b[1] = 3, s.Byte()%3
	case 6, 7:
		b[0], b[1] = 4, s.Byte()%4
		binary.BigEndian.PutUint32(b[4:], uint32(s.Below(48)))
		if s.OneIn(16) {
			binary.BigEndian.PutUint32(b[4:], s.Uint32())
		}
	}
}

// quoteOf is a packet that went the other way, from the destination of the
// error or from anywhere, cut as routers cut.
func quoteOf(s *Source, version int, addresses []byte, depth int) []byte {
	var quote []byte
	if version == 4 {
		quote = ipv4(s, depth+1)
		if !s.OneIn(4) {
			copy(quote[12:16], addresses[4:])
			setHeaderChecksum(quote)
		}
	} else {
		quote = ipv6(s, depth+1)
		if !s.OneIn(4) {
			copy(quote[8:24], addresses[16:])
		}
	}
	switch s.Below(8) {
	case 0, 1: // what RFC 792 asks for
		headerLen := 40
		if version == 4 {
			headerLen = int(quote[0]&15) * 4
		}
		quote = quote[:min(len(quote), headerLen+8)]
	case 2: // what fits
		quote = quote[:min(len(quote), pick(s, 548, 1232, 1240, 512))]
	case 3:
		quote = quote[:s.Below(len(quote)+1)]
	case 4:
		quote = damage(s, quote)
	case 5: // something behind it, perhaps an extension nobody announced
		quote = append(quote, filler(s, s.Below(200))...)
	}
	return quote
}

// extend lays a quote and an extension into an ICMP error.
func extend(s *Source, version int, b, quote []byte, most int) []byte {
	unit, attribute := 4, 5
	if version == 6 {
		unit, attribute = 8, 4
	}
	quote = quote[:min(len(quote), 128+unit*s.Below(128), 255*unit)]
	if !s.OneIn(16) {
		quote = append(quote, make([]byte, max(0, 128-len(quote)))...)
	}
	quote = append(quote, make([]byte, -len(quote)&(unit-1))...)
	b[attribute] = byte(len(quote) / unit)
	if s.OneIn(16) {
		b[attribute] = s.Byte()
	}
	object := append([]byte{0, 0, 1, 1}, filler(s, 4*s.Below(16))...)
	if s.OneIn(8) {
		object = append(object, filler(s, s.Below(1024))...)
	}
	binary.BigEndian.PutUint16(object, uint16(len(object)))
	extension := append([]byte{0x20, 0, 0, 0}, object...)
	binary.BigEndian.PutUint16(extension[2:], checksum(extension))
	b = append(append(b, quote...), extension...)
	return b[:min(len(b), most)]
}
