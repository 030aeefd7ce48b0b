package packetgen

import "encoding/binary"

const (
	icmp4 = 1
	icmp6 = 58
)

// IPv4 makes an IPv4 packet; one in some is broken.
func IPv4(s *Source) []byte { return damage(s, ipv4(s, 0)) }

// IPv6 makes an IPv6 packet; one in some is broken.
func IPv6(s *Source) []byte { return damage(s, ipv6(s, 0)) }

// hops is a time to live or hop limit.
func hops(s *Source) byte { return pick[byte](s, 64, 64, 64, 255, 2, 1, 64, s.Byte()) }

func tos(s *Source) byte { return pick[byte](s, 0, 0, s.Byte()) }

// shape is where a fragment lies.
type shape struct {
	offset uint16 // in units of eight bytes
	more   bool
}

func (f shape) whole() bool { return f.offset == 0 && !f.more }

// shapeOf decides whether a packet is a fragment, and which.
func shapeOf(s *Source) shape {
	switch s.Below(16) {
	case 11:
		return shape{0, true}
	case 12:
		return shape{pick[uint16](s, 3, 185, 154, 1000), true}
	case 13:
		return shape{pick[uint16](s, 3, 185, 154, 8000, 8188, 8189), false}
	case 14:
		return shape{pick[uint16](s, 1, 2, 1), s.OneIn(2)}
	case 15:
		return shape{s.Uint16() & 0x1fff, s.OneIn(2)}
	}
	return shape{}
}

// eighths makes most fragments that have more behind them a multiple of eight.
func (f shape) eighths(s *Source, body []byte) []byte {
	if f.more && !s.OneIn(16) {
		return append(body, make([]byte, -len(body)&7)...)
	}
	return body
}

func address4(s *Source) []byte {
	switch s.Below(16) {
	case 13:
		return binary.BigEndian.AppendUint32(nil, s.Uint32())
	case 14:
		return pick(s, []byte{224, 0, 0, 1}, []byte{255, 255, 255, 255}, []byte{127, 0, 0, 1}, []byte{0, 0, 0, 0}, []byte{240, 0, 0, 1})
	case 15:
		return []byte{255, 255, s.Byte(), s.Byte()}
	}
	return []byte{pick[byte](s, 192, 198, 203), 0, 2, s.Byte()}
}

func ipv4(s *Source, depth int) []byte {
	options := optionsOf(s)
	headerLen := 20 + len(options)
	h := make([]byte, 20)
	h[0] = 0x40 | byte(headerLen/4)
	h[1] = tos(s)
	binary.BigEndian.PutUint16(h[4:], s.Uint16())
	f := shapeOf(s)
	field := f.offset
	if f.more {
		field |= 0x2000
	}
	if s.OneIn(2) {
		field |= 0x4000
	}
	if s.OneIn(64) {
		field |= 0x8000
	}
	binary.BigEndian.PutUint16(h[6:], field)
	h[8] = hops(s)
	copy(h[12:], address4(s))
	copy(h[16:], address4(s))
	most := 65535 - headerLen
	proto, body := upper(s, 4, h[12:20], f, most, depth)
	body = f.eighths(s, body)
	body = body[:min(len(body), most)]
	h[9] = proto
	binary.BigEndian.PutUint16(h[2:], uint16(headerLen+len(body)))
	h = append(h, options...)
	setHeaderChecksum(h)
	return append(h, body...)
}

func setHeaderChecksum(h []byte) {
	n := min(len(h), int(h[0]&15)*4)
	if n < 12 {
		return
	}
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], checksum(h[:n]))
}

// optionsOf is a list of IPv4 options, padded to a multiple of four bytes.
func optionsOf(s *Source) []byte {
	var o []byte
	if !s.OneIn(5) {
		return o
	}
	for range 1 + s.Below(3) {
		switch s.Below(8) {
		case 0: // no operation
			o = append(o, 1)
		case 1: // record route
			o = append(o, 7, 7, 4, 0, 0, 0, 0)
		case 2: // timestamp
			o = append(o, 68, 8, 5, 0, 0, 0, 0, 0)
		case 3: // a source route that has run out
			o = append(o, pick[byte](s, 131, 137), 7, 8, 192, 0, 2, 1)
		case 4: // one that has not, or whose pointer says something odd
			o = append(o, pick[byte](s, 131, 137), 7, pick[byte](s, 4, 7, 8, 0, s.Byte()), 192, 0, 2, 1)
		case 5: // something unknown
			n := 2 + s.Below(6)
			o = append(o, s.Byte()|0x40, byte(n))
			o = append(o, make([]byte, n-2)...)
		case 6: // a length that may contradict
			o = append(o, pick[byte](s, 131, 137, 7, s.Byte()), s.Byte()%8)
		case 7:
			o = append(o, 0)
		}
	}
	o = append(o, make([]byte, -len(o)&3)...)
	return o[:min(len(o), 40)]
}

func address6(s *Source) []byte {
	a := make([]byte, 16)
	switch s.Below(16) {
	case 13:
		for i := range a {
			a[i] = s.Byte()
		}
		return a
	case 14:
		switch s.Below(4) {
		case 0:
			a[0], a[1], a[15] = 0xff, 2, 1
		case 1:
			a[15] = 1
		case 2: // unspecified
		case 3:
			a[10], a[11], a[12] = 0xff, 0xff, 192
		}
		return a
	}
	copy(a, []byte{0x20, 0x01, 0x0d, 0xb8})
	a[5] = pick[byte](s, 0, 0x64, 1)
	a[14], a[15] = s.Byte(), s.Byte()
	return a
}

func ipv6(s *Source, depth int) []byte {
	h := make([]byte, 40)
	class := tos(s)
	label := uint32(0)
	if s.OneIn(2) {
		label = s.Uint32() & 0xfffff
	}
	binary.BigEndian.PutUint32(h, 6<<28|uint32(class)<<20|label)
	h[7] = hops(s)
	copy(h[8:], address6(s))
	copy(h[24:], address6(s))

	// The chain is laid down front to back; next is where the type of the
	// header to come has to be written.
	chain := []byte{}
	next := &h[6]
	add := func(kind byte, b []byte) {
		*next = kind
		at := len(chain)
		chain = append(chain, b...)
		next = &chain[at]
	}
	if s.OneIn(3) {
		for range 1 + s.Below(3) {
			kind := pick[byte](s, 0, 60, 43, 43, 60)
			b := make([]byte, 8*(1+s.Below(3)))
			b[1] = byte(len(b)/8 - 1)
			switch {
			case kind == 43:
				b[2] = pick[byte](s, 0, 2, 4)
				if s.OneIn(4) {
					b[3] = 1 + s.Byte()%4
				}
			case len(b) > 2:
				b[2], b[3] = 1, byte(len(b)-4) // PadN
			}
			if s.OneIn(24) {
				b[1] = s.Byte()
			}
			// Appending may move chain, so the type goes in before that.
			add(kind, b)
		}
	}
	f := shapeOf(s)
	if !f.whole() || s.OneIn(12) {
		b := make([]byte, 8)
		field := f.offset << 3
		if f.more {
			field |= 1
		}
		if s.OneIn(32) {
			field |= 6
			b[1] = s.Byte()
		}
		binary.BigEndian.PutUint16(b[2:], field)
		binary.BigEndian.PutUint32(b[4:], s.Uint32())
		add(44, b)
	}
	most := 65535 - len(chain)
	proto, body := upper(s, 6, h[8:40], f, most, depth)
	body = f.eighths(s, body)
	body = body[:min(len(body), most)]
	*next = proto
	binary.BigEndian.PutUint16(h[4:], uint16(len(chain)+len(body)))
	return append(append(h, chain...), body...)
}

// damage breaks one packet in six.
func damage(s *Source, b []byte) []byte {
	if s.Below(6) != 5 || len(b) < 20 {
		return b
	}
	fix := func() {
		if b[0]>>4 == 4 && !s.OneIn(4) {
			setHeaderChecksum(b)
		}
	}
	switch s.Below(6) {
	case 0: // cut short
		return b[:s.Below(len(b))]
	case 1: // cut short, and honest about it
		b = b[:max(20, s.Below(len(b)))]
		if b[0]>>4 == 4 {
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		} else {
			binary.BigEndian.PutUint16(b[4:], uint16(max(0, len(b)-40)))
		}
		fix()
	case 2: // padding behind it, as Ethernet has
		b = append(b, filler(s, 1+s.Below(46))...)
	case 3: // another length
		n := binary.BigEndian.Uint16(b[2:])
		if b[0]>>4 == 4 {
			binary.BigEndian.PutUint16(b[2:], n-uint16(s.Byte()))
		} else {
			binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])-uint16(s.Byte()))
		}
		fix()
	case 4: // a byte of the headers
		b[s.Below(min(len(b), 128))] = s.Byte()
		fix()
	case 5: // a byte of the headers, and no checksum made good
		b[s.Below(min(len(b), 128))] ^= 1 << (s.Byte() & 7)
	}
	return b
}
