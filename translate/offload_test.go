package translate

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// slowSegments is what the kernel makes of a super-packet: its segments,
// complete, with IPv4 identifications counted up.
func slowSegments(b []byte, of Offload) [][]byte {
	if of.GSOType == GSONone {
		if of.Flags == NeedsCsum {
			b = sealed(b)
		}
		return [][]byte{b}
	}
	at, proto, _ := slowL4(b)
	head := at + 8
	if proto == 6 {
		head = at + int(b[at+12]>>4)*4
	}
	var out [][]byte
	for k, data := 0, b[head:]; k == 0 || len(data) > 0; k++ {
		n := min(len(data), int(of.GSOSize))
		s := append(slices.Clone(b[:head]), data[:n]...)
		data = data[n:]
		if proto == 6 {
			seq := binary.BigEndian.Uint32(s[at+4:])
			binary.BigEndian.PutUint32(s[at+4:], seq+uint32(k)*uint32(of.GSOSize))
			if len(data) > 0 {
				s[at+13] &^= 0x09 // FIN, PSH
			}
			if k > 0 {
				s[at+13] &^= 0x80 // CWR
			}
		} else {
			binary.BigEndian.PutUint16(s[at+4:], uint16(8+n))
		}
		if s[0]>>4 == 4 {
			binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
			binary.BigEndian.PutUint16(s[4:], binary.BigEndian.Uint16(s[4:])+uint16(k))
			s = hops(s, s[8])
		} else {
			binary.BigEndian.PutUint16(s[4:], uint16(len(s)-40))
		}
		out = append(out, sealed(s))
	}
	return out
}

// An IPv4 super-packet without DF whose segments are too large is segmented,
// then cut: the same packets as if the kernel had segmented it before.
func TestCutSuperPacket(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		of   Offload
	}{
		{"TCP", partial(ip4{proto: 6, id: 0xfffe}.around(tcpOptions(4000, 80, 0x99, pattern(5000)))), gso(GSOTCPv4|GSOECN, 1448, 52, 20, 16)},
		{"TCP with a short last segment", partial(ip4{proto: 6, id: 3}.around(tcp(4000, 80, 0x18, pattern(1461)))), gso(GSOTCPv4, 1460, 40, 20, 16)},
		{"UDP", partial(ip4{proto: 17, id: 3}.around(udp(53, 53, pattern(60001)))), gso(GSOUDPL4, 1472, 28, 20, 6)},
		{"UDP of one segment", partial(ip4{proto: 17, id: 3}.around(udp(53, 53, pattern(1400)))), gso(GSOUDPL4, 1472, 28, 20, 6)},
		{"jumbo segments", partial(ip4{proto: 6, id: 3, opts: []byte{1, 1, 1, 1}}.around(tcp(4000, 80, 0x18, pattern(40000)))), gso(GSOTCPv4, 8960, 44, 24, 16)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, v, out := run(&testOptions, c.in, c.of)
			require.Equal(t, Fragmented, v, v.String())
			var want [][]byte
			for _, s := range slowSegments(c.in, c.of) {
				_, v, ps := run(&testOptions, s, Offload{})
				require.True(t, v.Leaves())
				want = append(want, ps...)
			}
			assert.Equal(t, want, out)
		})
	}
}

// segmentLaw: translating and segmenting may change places, but for the
// identifications and the DF of a short last segment. What is cut or too big
// is so either way.
func segmentLaw(t require.TestingT, o *Options, in []byte, of Offload) {
	segments := slowSegments(in, of)
	p, v, got := run(o, in, of)
	if v == OK {
		got = slowSegments(got[0], p.Offload)
		if in[0]>>4 == 6 {
			require.Equal(t, uint32(0x1234+len(segments)), p.ID, "one identification per segment")
		}
	}
	var want [][]byte
	for k, s := range segments {
		_, w, out := run(o, s, Offload{})
		if k == 0 {
			require.Equal(t, w, v, v.String())
		}
		if !w.Leaves() {
			return
		}
		want = append(want, out...)
	}
	require.Len(t, got, len(want))
	for k := range want {
		if want[k][0]>>4 == 4 {
			for _, b := range [][]byte{got[k], want[k]} {
				b[4], b[5] = 0, 0
				if k == len(want)-1 {
					b[6] = 0
				}
				copy(b, hops(b, b[8]))
			}
		}
		require.Equal(t, want[k], got[k], k)
	}
}

func TestSegmentLaw(t *testing.T) {
	for _, c := range pairs() {
		if c.o6.GSOType != GSONone {
			t.Run(c.name, func(t *testing.T) {
				segmentLaw(t, &testOptions, c.six, c.o6)
				segmentLaw(t, &testOptions, c.four, c.o4)
			})
		}
	}
	t.Run("drawn", rapid.MakeCheck(func(t *rapid.T) {
		b, of := drawn(t, rapid.Bool().Draw(t, "v6"))
		if of.GSOType == GSONone {
			t.Skip("no super-packet")
		}
		o := testOptions
		o.IPv6MTU = rapid.SampledFrom([]int{1280, 1500, 4000}).Draw(t, "mtu6")
		o.IPv4MTU = rapid.SampledFrom([]int{576, 1500, 4000}).Draw(t, "mtu4")
		segmentLaw(t, &o, b, of)
	}))
}

func TestOffloadThatContradicts(t *testing.T) {
	tcp6, tcp4 := partial(ip6{next: 6}.around(tcp(1, 2, 0, pattern(3000)))), partial(ip4{proto: 6, flags: df}.around(tcp(1, 2, 0, pattern(3000))))
	udp6 := partial(ip6{next: 17}.around(udp(1, 2, pattern(3000))))
	atomic := ip6{next: 44}.around(fragHeader(6, 0, false, 1, tcp(1, 2, 0, pattern(3000))))
	first := ip6{next: 44}.around(fragHeader(6, 0, true, 1, tcp(1, 2, 0, pattern(300))))
	for _, c := range []struct {
		name string
		b    []byte
		of   Offload
		want Verdict
	}{
		{"right", tcp6, Offload{Flags: NeedsCsum, GSOType: GSOTCPv6, GSOSize: 1000}, OK},
		{"nonsensical offsets", tcp6, Offload{Flags: NeedsCsum, GSOType: GSOTCPv6, GSOSize: 1000, HdrLen: 9, CsumStart: 7777, CsumOffset: 8}, OK},
		{"TCPv4 on IPv6", tcp6, Offload{Flags: NeedsCsum, GSOType: GSOTCPv4, GSOSize: 1000}, BadHeader},
		{"TCPv6 on IPv4", tcp4, Offload{Flags: NeedsCsum, GSOType: GSOTCPv6, GSOSize: 1000}, BadHeader},
		{"UDP on TCP", tcp4, Offload{Flags: NeedsCsum, GSOType: GSOUDPL4, GSOSize: 1000}, BadHeader},
		{"TCP on UDP", udp6, Offload{Flags: NeedsCsum, GSOType: GSOTCPv6, GSOSize: 1000}, BadHeader},
		{"unknown", udp6, Offload{Flags: NeedsCsum, GSOType: 3, GSOSize: 1000}, BadHeader},
		{"ECN alone", tcp6, Offload{Flags: NeedsCsum, GSOType: GSOECN, GSOSize: 1000}, BadHeader},
		{"without a size", tcp6, Offload{Flags: NeedsCsum, GSOType: GSOTCPv6}, BadHeader},
		{"without partial checksum", tcp6, Offload{GSOType: GSOTCPv6, GSOSize: 1000}, BadHeader},
		{"atomic fragment", atomic, Offload{Flags: NeedsCsum, GSOType: GSOTCPv6, GSOSize: 1000}, BadHeader},
		{"partial checksum of a fragment", first, Offload{Flags: NeedsCsum}, BadHeader},
		{"partial checksum of SCTP", ip6{next: 132}.around(pattern(64)), Offload{Flags: NeedsCsum}, BadHeader},
		{"partial checksum of ESP", ip4{proto: 50}.around(pattern(64)), Offload{Flags: NeedsCsum}, BadHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, v, _ := run(&testOptions, c.b, c.of)
			assert.Equal(t, c.want, v, v.String())
		})
	}
}

// A checksum that the device was to complete, but on ICMP it cannot.
func TestPartialICMP(t *testing.T) {
	four := sealed(ip4{proto: 1, id: 0x1234}.around(icmpMessage(8, 0, 5, pattern(40))))
	six := sealed(ip6{next: 58}.around(icmpMessage(128, 0, 5, pattern(40))))
	p, v, out := run(&testOptions, partial(four), Offload{Flags: NeedsCsum})
	require.Equal(t, OK, v)
	assert.Equal(t, hops(six, 63), out[0])
	assert.Zero(t, p.Offload)
	p, v, out = run(&testOptions, partial(six), Offload{Flags: NeedsCsum})
	require.Equal(t, OK, v)
	assert.Equal(t, hops(four, 63), out[0])
	assert.Zero(t, p.Offload)
	quote := sealed(ip6{next: 17, src: server6, dst: client6}.around(udp(1, 2, nil)))
	_, v, out = run(&testOptions, partial(ip6{next: 58}.around(icmpMessage(1, 4, 0, quote))), Offload{Flags: NeedsCsum})
	require.Equal(t, OK, v)
	assert.True(t, checksumsValid(out[0]))
}
