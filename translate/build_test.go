package translate

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Packets for tests are built here from RFC 791, 8200 and their kin, with
// checksums computed in full by the slow way, so that what the tests expect
// does not come from the code under test.

// ip4 is an IPv4 header; the zero value of a field is its usual value.
type ip4 struct {
	tos, ttl, proto byte // ttl 0: 64
	id              uint16
	flags           uint16 // DF, MF and offset as they stand in the header
	src, dst        string // "": clientV4, serverV4
	opts            []byte
	total           int // 0: right
}

const (
	df = 0x4000
	mf = 0x2000

	client4, server4 = "192.0.2.5", "198.51.100.1"
	client6, server6 = "2001:db8::5", "2001:db8:64::c633:6401"
	router4, router6 = "203.0.113.9", "2001:db8:ffff::9"
)

// counterpart is the mapping of the tests.
var counterpart = func() map[netip.Addr]netip.Addr {
	m := map[netip.Addr]netip.Addr{}
	for four, six := range map[string]string{client4: client6, server4: server6, router4: router6} {
		m[netip.MustParseAddr(four)] = netip.MustParseAddr(six)
		m[netip.MustParseAddr(six)] = netip.MustParseAddr(four)
	}
	return m
}()

// mapped is the translated flow: ports stay.
func mapped(f Flow) Flow {
	f.Src, f.Dst = counterpart[f.Src], counterpart[f.Dst]
	return f
}

func or[T comparable](v, usual T) T {
	if v == *new(T) {
		return usual
	}
	return v
}

// around puts the header in front of payload. Its checksum is right.
func (h ip4) around(payload []byte) []byte {
	b := make([]byte, 20, 60+len(payload))
	b = append(b, h.opts...)
	b[0] = 0x40 | byte(len(b)/4)
	b[1] = h.tos
	total := or(h.total, len(b)+len(payload))
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[4:], h.id)
	binary.BigEndian.PutUint16(b[6:], h.flags)
	b[8], b[9] = or(h.ttl, 64), h.proto
	copy(b[12:], netip.MustParseAddr(or(h.src, client4)).AsSlice())
	copy(b[16:], netip.MustParseAddr(or(h.dst, server4)).AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b))
	return append(b, payload...)
}

// ip6 is an IPv6 header.
type ip6 struct {
	tc, hops, next byte // hops 0: 64
	label          uint32
	src, dst       string // "": clientV6, serverV6
	payload        int    // 0: right
}

func (h ip6) around(payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	binary.BigEndian.PutUint32(b, 6<<28|uint32(h.tc)<<20|h.label)
	binary.BigEndian.PutUint16(b[4:], uint16(or(h.payload, len(payload))))
	b[6], b[7] = h.next, or(h.hops, 64)
	copy(b[8:], netip.MustParseAddr(or(h.src, client6)).AsSlice())
	copy(b[24:], netip.MustParseAddr(or(h.dst, server6)).AsSlice())
	return append(b, payload...)
}

// fragHeader is an IPv6 fragment header in front of payload; offset in bytes.
func fragHeader(next byte, offset int, more bool, id uint32, payload []byte) []byte {
	b := make([]byte, 8)
	b[0] = next
	field := uint16(offset)
	if more {
		field |= 1
	}
	binary.BigEndian.PutUint16(b[2:], field)
	binary.BigEndian.PutUint32(b[4:], id)
	return append(b, payload...)
}

// pattern is n bytes of payload, the same for each n.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func tcp(sport, dport uint16, flags byte, data []byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint32(b[4:], 0xfffffff0) // wraps in a super-packet
	binary.BigEndian.PutUint32(b[8:], 0x01020304)
	b[12], b[13], b[14] = 5<<4, flags, 0x20
	return append(b, data...)
}

// tcpOptions is tcp with timestamps.
func tcpOptions(sport, dport uint16, flags byte, data []byte) []byte {
	b := tcp(sport, dport, flags, []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8})
	b[12] = 8 << 4
	return append(b, data...)
}

func udp(sport, dport uint16, data []byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
	return append(b, data...)
}

func icmpMessage(typ, code byte, rest uint32, data []byte) []byte {
	b := make([]byte, 8)
	b[0], b[1] = typ, code
	binary.BigEndian.PutUint32(b[4:], rest)
	return append(b, data...)
}

// slowSum is the one's complement sum of b, folded.
func slowSum(bs ...[]byte) uint16 {
	var sum uint32
	for _, b := range bs {
		for i := 0; i < len(b); i++ {
			if i%2 == 0 {
				sum += uint32(b[i]) << 8
			} else {
				sum += uint32(b[i])
			}
			sum = sum&0xffff + sum>>16
		}
	}
	return uint16(sum)
}

// slowL4 finds the transport header of the whole packet b.
func slowL4(b []byte) (at int, proto byte, fragmented bool) {
	if b[0]>>4 == 4 {
		return int(b[0]&15) * 4, b[9], binary.BigEndian.Uint16(b[6:])&0x3fff != 0
	}
	at, proto = 40, b[6]
	for {
		switch proto {
		case 0, 43, 60:
			proto, at = b[at], at+(int(b[at+1])+1)*8
		case 44:
			fragmented = binary.BigEndian.Uint16(b[at+2:])&0xfff9 != 0
			proto, at = b[at], at+8
		default:
			return at, proto, fragmented
		}
	}
}

func slowChecksumAt(proto byte) int {
	switch proto {
	case 1, 58:
		return 2
	case 6:
		return 16
	case 17, 33, 136:
		return 6
	}
	return -1
}

// slowPseudo is the pseudo header of b for a transport part of n bytes.
func slowPseudo(b []byte, proto byte, n int) []byte {
	tail := []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), 0, 0, 0, proto}
	switch {
	case proto == 1:
		return nil
	case b[0]>>4 == 4:
		return append(slices.Clone(b[12:20]), tail...)
	}
	return append(slices.Clone(b[8:40]), tail...)
}

// sealed returns b with the right transport checksum.
func sealed(b []byte) []byte {
	at, proto, _ := slowL4(b)
	off := slowChecksumAt(proto)
	if off < 0 {
		return b
	}
	b = slices.Clone(b)
	field := b[at+off : at+off+2]
	field[0], field[1] = 0, 0
	sum := ^slowSum(slowPseudo(b, proto, len(b)-at), b[at:])
	if sum == 0 && (proto == 17 || proto == 136) {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
	return b
}

// partial returns b as a device hands it out: with the uninverted
// pseudo-header sum for a checksum.
func partial(b []byte) []byte {
	at, proto, _ := slowL4(b)
	b = slices.Clone(b)
	field := b[at+slowChecksumAt(proto):]
	binary.BigEndian.PutUint16(field, slowSum(slowPseudo(b, proto, len(b)-at)))
	return b
}

// checksumsValid verifies every checksum of the whole packet b.
func checksumsValid(b []byte) bool {
	if b[0]>>4 == 4 && slowSum(b[:int(b[0]&15)*4]) != 0xffff {
		return false
	}
	at, proto, fragmented := slowL4(b)
	off := slowChecksumAt(proto)
	if off < 0 || fragmented {
		return true
	}
	return slowSum(slowPseudo(b, proto, len(b)-at), b[at:]) == 0xffff
}

// hops returns the IP packet b with n in place of its hop limit.
func hops(b []byte, n byte) []byte {
	b = slices.Clone(b)
	if b[0]>>4 == 6 {
		b[7] = n
		return b
	}
	b[8] = n
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:int(b[0]&15)*4]))
	return b
}

var testOptions = Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280}

// load makes p the packet b with headroom.
func load(p *Packet, b []byte, of Offload) {
	if len(p.Buf) < Headroom+len(b) {
		p.Buf = make([]byte, Headroom+len(b))
	}
	p.Off, p.Len = Headroom, len(b)
	copy(p.Buf[p.Off:], b)
	p.Offload = of
}

// run translates b as a worker does and returns the packets that leave.
func run(o *Options, b []byte, of Offload) (p *Packet, v Verdict, out [][]byte) {
	p = &Packet{ID: 0x1234}
	load(p, b, of)
	if v = p.Parse(o); v != OK {
		return p, v, nil
	}
	var quoted Flow
	if p.HasQuote() {
		quoted = mapped(p.Quoted)
	}
	switch v = p.Rewrite(o, new(mapped(p.Flow)), &quoted); v {
	case OK:
		out = append(out, p.Buf[p.Off:p.Off+p.Len])
	case Fragmented:
		for dst := make([]byte, 1500); ; {
			n, ok := p.NextFragment(dst)
			if !ok {
				break
			}
			out = append(out, slices.Clone(dst[:n]))
		}
	}
	return p, v, out
}
