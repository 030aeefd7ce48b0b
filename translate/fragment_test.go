package translate

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Fragments go over one by one: offset, more and identification are carried
// (RFC 7915 4.1, 5.1.1).
func TestFragments(t *testing.T) {
	whole6 := sealed(ip6{next: 17}.around(udp(4000, 53, pattern(2000))))[40:]
	whole4 := sealed(ip4{proto: 17}.around(udp(4000, 53, pattern(2000))))[20:]
	for _, c := range []struct {
		name         string
		from, to     int
		more         bool
		six, four    []byte
		id6          uint32
		only4to6     bool
		flags        uint16
		onlyFrom6to4 bool
	}{
		{name: "first", from: 0, to: 1200, more: true, id6: 0xbeef},
		{name: "middle", from: 800, to: 1600, more: true, id6: 0xbeef},
		{name: "last", from: 1600, to: 2008, id6: 0xbeef},
		{name: "first with a wide identification", from: 0, to: 1200, more: true, id6: 0xdeadbeef, onlyFrom6to4: true},
		{name: "atomic", from: 0, to: 2008, id6: 0xdeadbeef, onlyFrom6to4: true},
		{name: "first with DF", from: 0, to: 1200, more: true, id6: 0xbeef, flags: df, only4to6: true},
	} {
		six := ip6{next: 44}.around(fragHeader(17, c.from, c.more, c.id6, whole6[c.from:c.to]))
		flags := uint16(c.from / 8)
		if c.more {
			flags |= mf
		}
		four := ip4{proto: 17, id: 0xbeef, flags: flags | c.flags}.around(whole4[c.from:c.to])
		o := Options{IPv4MTU: 1500, IPv6MTU: 2100, LowestIPv6MTU: 2100}
		if !c.only4to6 {
			t.Run(c.name+" 6→4", func(t *testing.T) {
				p, v, out := run(&o, six, Offload{})
				require.Equal(t, OK, v, v.String())
				assert.Equal(t, hops(four, 63), out[0])
				assert.Equal(t, uint32(0x1234), p.ID, "the generator is not for fragments")
			})
		}
		if !c.onlyFrom6to4 {
			t.Run(c.name+" 4→6", func(t *testing.T) {
				_, v, out := run(&o, four, Offload{})
				require.Equal(t, OK, v, v.String())
				assert.Equal(t, hops(six, 63), out[0])
			})
		}
	}
}

// reassembled puts IPv6 fragments together again, as RFC 8200 4.5 says, and
// returns the packet without fragment header.
func reassembled(t *testing.T, frags [][]byte) []byte {
	var data []byte
	id := binary.BigEndian.Uint32(frags[0][44:])
	for i, f := range frags {
		require.Equal(t, byte(44), f[6])
		require.Equal(t, len(f)-40, int(binary.BigEndian.Uint16(f[4:])))
		field := binary.BigEndian.Uint16(f[42:])
		require.Equal(t, len(data), int(field&^7), "offset")
		require.Equal(t, i < len(frags)-1, field&1 == 1, "more")
		require.Equal(t, id, binary.BigEndian.Uint32(f[44:]))
		data = append(data, f[48:]...)
	}
	f := frags[0]
	six := append([]byte{}, f[:40]...)
	six[6] = f[40]
	binary.BigEndian.PutUint16(six[4:], uint16(len(data)))
	return append(six, data...)
}

func TestCut(t *testing.T) {
	zero := sealed(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(3001))))
	binary.BigEndian.PutUint16(zero[26:], 0)
	for _, c := range []struct {
		name string
		in   []byte
		of   Offload
		want []byte
		n    int
		o    Options
	}{
		{name: "one byte too many", in: sealed(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(1233)))),
			want: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(1233)))), n: 2},
		{name: "UDP", in: sealed(ip4{proto: 17, id: 7, opts: []byte{1, 1, 1, 0}}.around(udp(4000, 53, pattern(3001)))),
			want: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(3001)))), n: 3},
		{name: "UDP without checksum", in: zero,
			want: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(3001)))), n: 3},
		{name: "partial checksum", in: partial(ip4{proto: 6, id: 7}.around(tcp(4000, 80, 0x18, pattern(3001)))), of: gso(0, 0, 0, 20, 16),
			want: sealed(ip6{next: 6}.around(tcp(4000, 80, 0x18, pattern(3001)))), n: 3},
		{name: "echo", in: sealed(ip4{proto: 1, id: 7}.around(icmpMessage(8, 0, 0x00010002, pattern(3000)))),
			want: sealed(ip6{next: 58}.around(icmpMessage(128, 0, 0x00010002, pattern(3000)))), n: 3},
		{name: "the largest packet", in: sealed(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(65507)))),
			want: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(65507)))), n: 54},
		{name: "lowest MTU of 1400", in: sealed(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(1400)))),
			want: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(1400)))), n: 2, o: Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1400}},
		{name: "MTU less than the lowest", in: sealed(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(2600)))),
			want: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(2600)))), n: 3, o: Options{IPv4MTU: 1500, IPv6MTU: 1300, LowestIPv6MTU: 1400}},
		{name: "MTU below the minimum", in: sealed(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(1233)))),
			want: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(1233)))), n: 2, o: Options{IPv4MTU: 1500, IPv6MTU: 600, LowestIPv6MTU: 500}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := or(c.o, testOptions)
			_, v, out := run(&o, c.in, c.of)
			require.Equal(t, Fragmented, v, v.String())
			assert.Len(t, out, c.n)
			for _, f := range out {
				assert.LessOrEqual(t, len(f), o.lowestIPv6MTU())
				assert.Equal(t, uint32(7), binary.BigEndian.Uint32(f[44:]))
			}
			assert.Equal(t, hops(c.want, 63), reassembled(t, out))
		})
	}
}

// A fragment that is too large becomes smaller fragments of the same datagram.
func TestCutFragment(t *testing.T) {
	data := pattern(1480)
	for _, more := range []bool{true, false} {
		flags := uint16(185)
		if more {
			flags |= mf
		}
		_, v, out := run(&testOptions, ip4{proto: 17, id: 9, flags: flags}.around(data), Offload{})
		require.Equal(t, Fragmented, v)
		require.Len(t, out, 2)
		assert.Equal(t, hops(ip6{next: 44}.around(fragHeader(17, 1480, true, 9, data[:1232])), 63), out[0])
		assert.Equal(t, hops(ip6{next: 44}.around(fragHeader(17, 1480+1232, more, 9, data[1232:])), 63), out[1])
	}
}

// Fragments that could confuse whoever looks for ports in them.
func TestBadFragments(t *testing.T) {
	for _, c := range []struct {
		name    string
		proto   byte
		offset  int
		more    bool
		data    []byte
		verdict Verdict
	}{
		{"tiny first of TCP", 6, 0, true, tcp(1, 2, 0, nil)[:16], BadFragment},
		{"first of TCP without its options", 6, 0, true, tcpOptions(1, 2, 0, nil)[:24], BadFragment},
		{"first of TCP with its options", 6, 0, true, tcpOptions(1, 2, 0, nil), OK},
		{"first of TCP with data offset 4", 6, 0, true, append(append(pattern(12), 0x40), pattern(11)...), BadHeader},
		{"first of UDP with its header alone", 17, 0, true, udp(1, 2, nil), UDPZeroFragment},
		{"second of TCP over its ports", 6, 8, false, pattern(64), BadFragment},
		{"second of TCP over its checksum", 6, 16, false, pattern(64), BadFragment},
		{"second of TCP behind its header", 6, 24, false, pattern(64), OK},
		{"second of UDP", 17, 8, false, pattern(64), OK},
		{"second of DCCP over its ports", 33, 8, false, pattern(64), BadFragment},
		{"second of SCTP over its header", 132, 8, false, pattern(64), BadFragment},
		{"without data", 17, 64, false, nil, BadFragment},
		{"first without data", 17, 0, true, nil, BadFragment},
		{"of 9 bytes, not the last", 17, 64, true, pattern(9), BadFragment},
		{"of 9 bytes, the last", 17, 64, false, pattern(9), OK},
		{"up to the last byte", 17, 65504, false, pattern(11), OK},
		{"past the last byte", 17, 65504, false, pattern(12), BadFragment},
		{"of ICMP", 1, 0, true, icmpMessage(8, 0, 1, pattern(8)), ICMPFragment},
		{"later of ICMP", 1, 64, false, pattern(64), ICMPFragment},
		{"of ICMP, without data", 1, 64, false, nil, BadFragment},
		{"of ESP", 50, 0, true, pattern(8), OK},
	} {
		t.Run(c.name, func(t *testing.T) {
			flags := uint16(c.offset / 8)
			if c.more {
				flags |= mf
			}
			_, v, _ := run(&testOptions, ip4{proto: c.proto, flags: flags}.around(c.data), Offload{})
			assert.Equal(t, c.verdict, v, v.String())
			if c.proto == 1 {
				c.proto = 58
			}
			if c.verdict == UDPZeroFragment {
				c.verdict = OK // IPv4 only
			}
			_, v, _ = run(&testOptions, ip6{next: 44}.around(fragHeader(c.proto, c.offset, c.more, 1, c.data)), Offload{})
			assert.Equal(t, c.verdict, v, v.String())
		})
	}
}
