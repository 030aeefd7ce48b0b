package translate

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Packets at the very edge of a limit, each beside its like where the edge is
// one byte wide.

// behind is an IPv6 packet whose transport header l4 begins at, after one
// destination options header of padding; at-40 is a multiple of 8, from 8 on.
func behind(at int, h ip6, l4 []byte) []byte {
	options := make([]byte, at-40)
	options[0], options[1] = h.next, byte((at-40)/8-1)
	for i := 2; i < len(options); { // PadN, of 257 bytes at most
		n := min(len(options)-i, 257)
		if len(options)-i-n == 1 {
			n--
		}
		options[i], options[i+1] = 1, byte(n-2)
		i += n
	}
	h.next = 60
	return h.around(append(options, l4...))
}

// The sum of two IPv6 addresses carries out of its highest word, and that is
// still part of the sum (RFC 1071 1).
func TestSumCarries(t *testing.T) {
	const src, dst = "2001:db8::fedc:ba98:7654:3210", "2001:db8::ffff:ffff:ffff:fff0"
	six := sealed(ip6{next: 6, src: src, dst: dst}.around(tcp(4000, 80, 0x10, pattern(9))))
	four := sealed(ip4{proto: 6, id: 0x1234}.around(tcp(4000, 80, 0x10, pattern(9))))
	for _, c := range []struct {
		name, src, dst string
		in, want       []byte
	}{
		{"6→4", client4, server4, six, four},
		{"4→6", src, dst, four, six},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Packet{ID: 0x1234}
			load(p, c.in, Offload{})
			require.Equal(t, OK, p.Parse(&testOptions))
			to := withPorts(Flow{Src: netip.MustParseAddr(c.src), Dst: netip.MustParseAddr(c.dst)}, p.Flow)
			require.Equal(t, OK, p.Rewrite(&testOptions, &to, nil))
			assert.Equal(t, hops(c.want, 63), p.Buf[p.Off:p.Off+p.Len])
		})
	}
}

// An error quotes the packet as it was on the wire (RFC 4443 3), wherever the
// quote ends: before, inside or right behind what offload left undone.
func TestQuoteEndsInHeader(t *testing.T) {
	u, big := udp(53, 53, nil), pattern(3000)
	last := behind(1224, ip6{next: 17, hops: 1}, udp(53, 53, big))
	for _, c := range []struct {
		name string
		in   []byte
		of   Offload
	}{
		{"checksum ends the packet", ip6{next: 17, hops: 1}.around(u), gso(0, 0, 0, 40, 6)},
		{"checksum ends the quote", last, gso(0, 0, 0, 1224, 6)},
		{"checksum begins behind the quote", behind(1216, ip6{next: 6, hops: 1}, tcp(4000, 80, 0x10, big)), gso(0, 0, 0, 1216, 16)},
		{"headers of a super-packet end the quote", last, gso(GSOUDPL4, 1000, 1232, 1224, 6)},
		{"a super-packet without data", ip6{next: 6, hops: 1}.around(tcp(4000, 80, 0x99, nil)), gso(GSOTCPv6, 1000, 60, 40, 16)},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := partial(c.in)
			p := judged(t, &testOptions, in, c.of, HopLimit)
			quote := slowSegments(in, c.of)[0]
			want := sealed(ip6{next: 58, src: router6, dst: client6}.around(icmpMessage(3, 0, 0, quoteOf(quote, 1232))))
			dst := make([]byte, 1280)
			assert.Equal(t, want, dst[:WriteError(dst, p, HopLimit, netip.MustParseAddr(router6))])
		})
	}
}

// The last fragment may be as large as the MTU, also when that is no multiple
// of 8 as it has to be for the others (RFC 8200 4.5).
func TestCutToTheByte(t *testing.T) {
	o := Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1283}
	for _, c := range []struct {
		l4    int
		sizes []int
	}{
		{1232 + 1235, []int{1280, 1283}},
		{1232 + 1236, []int{1280, 1280, 52}},
		{1243, []int{1283}}, // whole
		{1244, []int{1280, 60}},
	} {
		in := sealed(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(c.l4-8))))
		_, v, out := run(&o, in, Offload{})
		var sizes []int
		for _, b := range out {
			sizes = append(sizes, len(b))
		}
		assert.Equal(t, c.sizes, sizes, "%d bytes", c.l4)
		want := hops(sealed(ip6{next: 17}.around(in[20:])), 63)
		want = sealed(want)
		if v == Fragmented {
			assert.Equal(t, want, reassembled(t, out))
		} else {
			assert.Equal(t, want, out[0])
		}
	}
}

// A segment of a super-packet that fits stays whole, one byte more and it is
// cut.
func TestCutSegmentToTheByte(t *testing.T) {
	of := gso(GSOUDPL4, 1400, 28, 20, 6)
	for _, c := range []struct {
		last  int
		sizes []int
	}{
		{1232, []int{1280, 48 + 176, 1280}},
		{1233, []int{1280, 48 + 176, 1280, 48 + 9}},
		{1248, []int{1280, 48 + 176, 1280, 48 + 24}},
	} {
		in := partial(ip4{proto: 17, id: 7}.around(udp(4000, 53, pattern(1400+c.last))))
		_, v, out := run(&testOptions, in, of)
		require.Equal(t, Fragmented, v)
		var sizes []int
		for _, b := range out {
			sizes = append(sizes, len(b))
		}
		require.Equal(t, c.sizes, sizes, "%d bytes in the last segment", c.last)
		want := slowSegments(in, of)[1]
		last := out[2]
		if len(out) > 3 {
			last = reassembled(t, out[2:])
		}
		assert.Equal(t, hops(sealed(ip6{next: 17}.around(want[20:])), 63), last)
	}
}

// What an IPv6 packet becomes may be as large as IPv4 has it, and no larger.
func TestLargestIPv4(t *testing.T) {
	o := Options{IPv4MTU: 65535, IPv6MTU: 65535, LowestIPv6MTU: 1280}
	for payload, want := range map[int]Verdict{65515: OK, 65516: TooBig} {
		// A protocol of which nothing but the header is touched.
		_, v, out := run(&o, ip6{next: 50}.around(pattern(payload)), Offload{})
		require.Equal(t, want, v, "%d bytes", payload)
		if v == OK {
			assert.Equal(t, hops(ip4{proto: 50, id: 0x1234, flags: df}.around(pattern(payload)), 63), out[0])
		}
	}
}

// ICMP of the other family has no translation, whatever its first bytes mean
// there, and nor has IGMP (RFC 7915 4.2).
func TestForeignICMP(t *testing.T) {
	for _, l4 := range [][]byte{
		icmpMessage(8, 0, 7, pattern(9)),
		icmpMessage(0, 0, 7, pattern(9)),
		icmpMessage(128, 0, 7, pattern(9)),
		icmpMessage(129, 0, 7, pattern(9)),
		icmpMessage(3, 0, 0, ip4{proto: 17}.around(udp(1, 2, nil))),
		icmpMessage(3, 0, 0, ip6{next: 17}.around(udp(1, 2, nil))),
		{8, 0, 0, 0},
	} {
		for name, b := range map[string][]byte{
			"ICMPv6 in IPv4":             ip4{proto: 58}.around(l4),
			"ICMPv6 in an IPv4 fragment": ip4{proto: 58, flags: 9}.around(l4),
			"IGMP in IPv4":               ip4{proto: 2}.around(l4),
			"IGMP in an IPv4 fragment":   ip4{proto: 2, flags: 9}.around(l4),
			"ICMPv4 in IPv6":             ip6{next: 1}.around(l4),
			"ICMPv4 in an IPv6 fragment": ip6{next: 44}.around(fragHeader(1, 80, false, 7, l4)),
			"IGMP in IPv6":               ip6{next: 2}.around(l4),
		} {
			_, v, _ := run(&testOptions, b, Offload{})
			assert.Equal(t, ICMPType, v, "%s: %x: %s", name, l4, v)
		}
	}
}

// The shortest options there are, and a source route that has just run out:
// its pointer, which counts from 1, is greater than its length (RFC 791 3.1).
func TestOptionsToTheByte(t *testing.T) {
	for _, c := range []struct {
		opts []byte
		want Verdict
	}{
		{[]byte{1, 1, 158, 2}, OK},
		{[]byte{158, 2, 1, 1}, OK},
		{[]byte{1, 1, 158, 1}, BadHeader},
		{[]byte{1, 1, 158, 3}, BadHeader},
		{[]byte{1, 1, 1, 158}, BadHeader},
		{[]byte{1, 1, 131, 2}, BadHeader},
		{[]byte{1, 131, 3, 4}, OK},
		{[]byte{1, 137, 3, 4}, OK},
		{[]byte{1, 131, 3, 3}, SourceRoute},
		{[]byte{131, 7, 7, 1, 2, 3, 4, 1}, SourceRoute},
		{[]byte{131, 7, 8, 1, 2, 3, 4, 1}, OK},
	} {
		_, v, _ := run(&testOptions, sealed(ip4{proto: 17, opts: c.opts}.around(udp(1, 2, nil))), Offload{})
		assert.Equal(t, c.want, v, "%x: %s", c.opts, v)
	}
}

// An extension header of which less than its first 8 bytes is there.
func TestTornExtensionHeader(t *testing.T) {
	for _, next := range []byte{0, 43, 60, 44} {
		for n := range 8 {
			_, v, _ := run(&testOptions, ip6{next: next}.around([]byte{17, 0, 0, 0, 0, 0, 0}[:n]), Offload{})
			assert.Equal(t, Truncated, v, "%d bytes of header %d: %s", n, next, v)
		}
	}
}

// TCP and DCCP have no "no checksum": zero is a checksum as any other.
func TestChecksumZeroOfTCP(t *testing.T) {
	dccp := append([]byte{0x0f, 0xa0, 0, 80, 3, 0, 0, 0, 0x20, 0, 0, 1}, 0, 0)
	for proto, l4 := range map[byte][]byte{6: tcp(4000, 80, 0x10, []byte{0, 0}), 33: dccp} {
		for _, side := range []byte{4, 6} {
			// Data equal to the checksum takes its place in the sum.
			zeroed := func(b []byte, headers int) []byte {
				checksum := sealed(b)[headers+slowChecksumAt(proto):][:2]
				copy(b[len(b)-2:], checksum)
				return sealed(b)
			}
			four, six := ip4{proto: proto, id: 0x1234}, ip6{next: proto}
			var in, want []byte
			if side == 4 {
				in = zeroed(four.around(slices.Clone(l4)), 20)
				want = sealed(six.around(slices.Clone(in[20:])))
			} else {
				in = zeroed(six.around(slices.Clone(l4)), 40)
				want = sealed(four.around(slices.Clone(in[40:])))
			}
			at, _, _ := slowL4(in)
			require.Equal(t, []byte{0, 0}, in[at+slowChecksumAt(proto):][:2])
			_, v, out := run(&testOptions, in, Offload{})
			require.Equal(t, OK, v)
			assert.Equal(t, hops(want, 63), out[0], "protocol %d from IPv%d", proto, side)
		}
	}
}

// The mapping may change one port and leave the other.
func TestOnePortChanges(t *testing.T) {
	for _, ports := range [][2]uint16{{4000, 80}, {4001, 80}, {4000, 81}, {4001, 81}} {
		for proto, l4 := range map[byte]func(src, dst uint16) []byte{
			6:  func(src, dst uint16) []byte { return tcp(src, dst, 0x10, pattern(9)) },
			17: func(src, dst uint16) []byte { return udp(src, dst, pattern(9)) },
		} {
			four4, six6 := ip4{proto: proto, id: 0x1234}, ip6{next: proto}
			for _, c := range []struct{ in, want []byte }{
				{sealed(four4.around(l4(4000, 80))), sealed(six6.around(l4(ports[0], ports[1])))},
				{sealed(six6.around(l4(4000, 80))), sealed(four4.around(l4(ports[0], ports[1])))},
			} {
				p := &Packet{ID: 0x1234}
				load(p, c.in, Offload{})
				require.Equal(t, OK, p.Parse(&testOptions))
				to := mapped(p.Flow)
				to.SrcPort, to.DstPort = ports[0], ports[1]
				require.Equal(t, OK, p.Rewrite(&testOptions, &to, nil))
				assert.Equal(t, hops(c.want, 63), p.Buf[p.Off:p.Off+p.Len], "protocol %d to ports %d", proto, ports)
			}
		}
	}
}

// A quote may end anywhere behind its IP headers (RFC 792: with 64 bits of
// data). What is there of ports is translated; of half a checksum nothing can be.
func TestQuoteEndsInPorts(t *testing.T) {
	for n := 2; n <= 8; n++ {
		before, after := sealed(ip4{proto: 17}.around(udp(4000, 53, pattern(80)))), sealed(ip6{next: 17}.around(udp(4001, 54, pattern(80))))
		if n < 4 {
			copy(after[40:], before[20:24])
		}
		if n < 8 {
			copy(after[46:], before[26:28])
		}
		in := sealed(ip4{proto: 1, src: router4, dst: client4}.around(icmpMessage(11, 0, 0, before[:20+n])))
		want := sealed(ip6{next: 58, src: router6, dst: client6, hops: 63}.around(icmpMessage(3, 0, 0, after[:40+n])))
		p := &Packet{}
		load(p, in, Offload{})
		require.Equal(t, OK, p.Parse(&testOptions))
		quoted := mapped(p.Quoted)
		quoted.SrcPort, quoted.DstPort = 4001, 54
		require.Equal(t, OK, p.Rewrite(&testOptions, new(mapped(p.Flow)), &quoted))
		assert.Equal(t, want, p.Buf[p.Off:p.Off+p.Len], "%d bytes", n)
	}
}

// The smallest extension is its header (RFC 4884 7); the quote in front of it
// is padded with zeros to a multiple of the unit of its length (RFC 4884 4).
func TestExtensionToTheByte(t *testing.T) {
	header := []byte{0x20, 0, 0xdf, 0xff}
	u := udp(4000, 53, pattern(472))
	inner4, inner6 := sealed(ip4{proto: 17}.around(u))[:128], sealed(ip6{next: 17}.around(u))[:148]
	in := sealed(ip4{proto: 1, src: router4, dst: client4}.around(icmpMessage(11, 0, 32<<16, slices.Concat(inner4, header))))
	want := sealed(ip6{next: 58, src: router6, dst: client6, hops: 63}.around(icmpMessage(3, 0, 19<<24, slices.Concat(inner6, make([]byte, 4), header))))
	_, v, out := run(&testOptions, in, Offload{})
	require.Equal(t, OK, v)
	assert.Equal(t, want, out[0])
}

// Extension headers in the quote leave room for little of its transport
// header. What pads the translated quote is zeros all the same (RFC 4884 4).
func TestPaddingBehindTornTransport(t *testing.T) {
	extension := []byte{0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4}
	l4 := tcp(4000, 80, 0x10, pattern(400))
	four := sealed(ip4{proto: 6}.around(l4))
	for _, there := range []int{8, 16} {
		at := 128 - there
		six := sealed(behind(at, ip6{next: 6}, l4))[:128]
		in := sealed(ip6{next: 58, src: router6, dst: client6}.around(icmpMessage(3, 0, 16<<24, slices.Concat(six, extension))))
		quote := slices.Concat(four[:20+there], make([]byte, 128-20-there))
		want := sealed(ip4{proto: 1, id: 0x1234, ttl: 63, src: router4, dst: client4}.around(icmpMessage(11, 0, 32<<16, slices.Concat(quote, extension))))
		_, v, out := run(&testOptions, in, Offload{})
		require.Equal(t, OK, v)
		assert.Equal(t, want, out[0], "%d bytes", there)
	}
}

// Four verdicts mean that a packet leaves, as their comment says.
func TestLeaves(t *testing.T) {
	for v := OK; v < verdictCount; v++ {
		want := v == OK || v == Hairpin || v == Fragmented || v == Answered
		assert.Equal(t, want, v.Leaves(), v.String())
	}
}
