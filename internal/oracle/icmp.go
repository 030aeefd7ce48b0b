package oracle

import "encoding/binary"

func (d packet) isICMP() bool {
	return d.version == 4 && d.proto == protoICMP4 || d.version == 6 && d.proto == protoICMP6
}

// isICMPError reports an ICMP message about another packet, of the kinds that
// can be translated.
func (d packet) isICMPError() bool {
	if !d.isICMP() || d.isFragment() || len(d.body) == 0 {
		return false
	}
	if d.version == 4 {
		return d.body[0] == 3 || d.body[0] == 11 || d.body[0] == 12
	}
	return d.body[0] >= 1 && d.body[0] <= 4
}

// echoes are the query messages that have a counterpart (RFC 7915 4.2, 5.2).
var echoes4 = map[uint8]uint8{8: 128, 0: 129}
var echoes6 = map[uint8]uint8{128: 8, 129: 0}

func (d packet) echo() (uint8, bool) {
	if d.version == 4 {
		t, ok := echoes4[d.body[0]]
		return t, ok
	}
	t, ok := echoes6[d.body[0]]
	return t, ok
}

// checkICMP wants a whole message of eight bytes at least.
func (d packet) checkICMP() string {
	if _, ok := d.echo(); ok {
		return ""
	}
	if _, ok := d.errorHeader(Settings{}, packet{}); !ok {
		return ICMPType
	}
	_, quoted, why := d.splitError()
	if why != "" {
		return why
	}
	return quoted.checkQuoted()
}

// translateEcho changes type and checksum of an echo message; code,
// sequence number and data stay.
func (d packet) translateEcho(body []byte, to Flow) []byte {
	body[0], _ = d.echo()
	binary.BigEndian.PutUint16(body[4:], to.SrcPort)
	before, after := sum(d.body[:2])+sum(d.body[4:6]), sum(body[:2])+sum(body[4:6])
	if d.version == 4 {
		after += pseudo(to.Src, to.Dst, protoICMP6, d.declared)
	} else {
		before += pseudo(d.src, d.dst, protoICMP6, d.declared)
	}
	old := binary.BigEndian.Uint16(d.body[2:])
	binary.BigEndian.PutUint16(body[2:], adjust(old, before, after%65535))
	return body
}

// header is the first eight bytes of an ICMP error, without the checksum and
// the length attribute.
type header struct {
	kind, code uint8
	rest       [4]byte
	attribute  int // where in the eight bytes RFC 4884 puts its length, 0: nowhere
}

// errorHeader translates the header of an ICMP error about quoted, or says
// that it has no counterpart.
func (d packet) errorHeader(s Settings, quoted packet) (header, bool) {
	kind, code := d.body[0], d.body[1]
	if d.version == 4 {
		return d.errorHeader46(s, quoted, kind, code)
	}
	return d.errorHeader64(s, quoted, kind, code)
}

// errorHeader46 is the table of RFC 7915 4.2.
func (d packet) errorHeader46(s Settings, quoted packet, kind, code uint8) (header, bool) {
	unreachable := func(code uint8) (header, bool) { return header{kind: 1, code: code, attribute: 4}, true }
	problem := func(code uint8, pointer int) (header, bool) {
		h := header{kind: 4, code: code}
		binary.BigEndian.PutUint32(h.rest[:], uint32(pointer))
		return h, true
	}
	switch kind {
	case 3: // destination unreachable
		switch code {
		case 0, 1: // network, host
			return unreachable(0)
		case 2: // protocol: points to the next header
			return problem(1, 6)
		case 3: // port
			return unreachable(4)
		case 4: // fragmentation needed
			h := header{kind: 2}
			mtu := int(binary.BigEndian.Uint16(d.body[6:]))
			if mtu == 0 {
				mtu = plateau(quoted)
			}
			mtu = max(1280, min(mtu+20, s.IPv6MTU, s.IPv4MTU+20))
			binary.BigEndian.PutUint32(h.rest[:], uint32(mtu))
			return h, true
		case 5, 6, 7, 8: // source route failed, unknown, isolated
			return unreachable(0)
		case 9, 10: // prohibited
			return unreachable(1)
		case 11, 12: // for this type of service
			return unreachable(0)
		case 13: // prohibited
			return unreachable(1)
		case 15: // precedence cutoff
			return unreachable(1)
		}
	case 11: // time exceeded
		return header{kind: 3, code: code, attribute: 4}, true
	case 12: // parameter problem
		if code != 0 && code != 2 {
			return header{}, false
		}
		pointers := map[uint8]int{ // RFC 7915 figure 3
			0: 0,       // version, header length
			1: 1,       // type of service
			2: 4, 3: 4, // total length
			8:  7,                      // time to live
			9:  6,                      // protocol
			12: 8, 13: 8, 14: 8, 15: 8, // source
			16: 24, 17: 24, 18: 24, 19: 24, // destination
		}
		pointer, ok := pointers[d.body[4]]
		if !ok {
			return header{}, false
		}
		return problem(0, pointer)
	}
	return header{}, false
}

// plateau guesses the MTU of a router that does not tell (RFC 1191 7):
// the greatest plateau below the size of the quoted packet, but none below
// 1280 (RFC 7915 4.2).
func plateau(quoted packet) int {
	for _, p := range []int{65535, 32000, 17914, 8166, 4352, 2002, 1492} {
		if p < quoted.totalLength {
			return p
		}
	}
	return 1280 - 20
}

// errorHeader64 is the table of RFC 7915 5.2.
func (d packet) errorHeader64(s Settings, quoted packet, kind, code uint8) (header, bool) {
	unreachable := func(code uint8) (header, bool) { return header{kind: 3, code: code, attribute: 5}, true }
	switch kind {
	case 1: // destination unreachable
		switch code {
		case 0: // no route: host unreachable
			return unreachable(1)
		case 1: // prohibited
			return unreachable(10)
		case 2, 3: // scope, address
			return unreachable(1)
		case 4: // port
			return unreachable(3)
		}
	case 2: // packet too big; its code means nothing (RFC 4443 3.2)
		h := header{kind: 3, code: 4}
		difference := 20
		if quoted.fragmentHeader {
			difference = 28
		}
		mtu := max(1280, int(binary.BigEndian.Uint32(d.body[4:]))) // RFC 8201 4: less is ignored
		mtu = max(68, min(mtu-difference, s.IPv4MTU, s.IPv6MTU-difference))
		binary.BigEndian.PutUint16(h.rest[2:], uint16(mtu))
		return h, true
	case 3: // time exceeded
		return header{kind: 11, code: code, attribute: 5}, true
	case 4: // parameter problem
		if code == 1 { // unrecognized next header: protocol unreachable
			return unreachable(2)
		}
		if code != 0 {
			return header{}, false
		}
		pointer := binary.BigEndian.Uint32(d.body[4:])
		h := header{kind: 12, attribute: 5}
		switch { // RFC 7915 figure 6
		case pointer == 0: // version, traffic class
			h.rest[0] = 0
		case pointer == 1: // traffic class, flow label
			h.rest[0] = 1
		case pointer == 4 || pointer == 5: // payload length
			h.rest[0] = 2
		case pointer == 6: // next header
			h.rest[0] = 9
		case pointer == 7: // hop limit
			h.rest[0] = 8
		case pointer >= 8 && pointer <= 23: // source
			h.rest[0] = 12
		case pointer >= 24 && pointer <= 39: // destination
			h.rest[0] = 16
		default:
			return header{}, false
		}
		return h, true
	}
	return header{}, false
}
