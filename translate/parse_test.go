package translate

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseFlow(t *testing.T) {
	a := netip.MustParseAddr
	flow4 := func(proto uint8, sport, dport uint16, frag Frag) Flow {
		return Flow{Src: a(client4), Dst: a(server4), Proto: proto, SrcPort: sport, DstPort: dport, Frag: frag}
	}
	flow6 := func(proto uint8, sport, dport uint16, frag Frag) Flow {
		return Flow{Src: a(client6), Dst: a(server6), Proto: proto, SrcPort: sport, DstPort: dport, Frag: frag}
	}
	data := pattern(64)
	for _, c := range []struct {
		name string
		in   []byte
		want Flow
	}{
		{"TCP 4", ip4{proto: 6}.around(tcp(4000, 80, 0, nil)), flow4(6, 4000, 80, Whole)},
		{"TCP 6", ip6{next: 6}.around(tcp(4000, 80, 0, nil)), flow6(6, 4000, 80, Whole)},
		{"UDP 6", ip6{next: 17}.around(udp(4000, 80, nil)), flow6(17, 4000, 80, Whole)},
		{"SCTP", ip4{proto: 132}.around(append(udp(4000, 80, nil), 0, 0, 0, 0)), flow4(132, 4000, 80, Whole)},
		{"ESP has no ports", ip4{proto: 50}.around(data), flow4(50, 0, 0, Whole)},
		{"echo 4", ip4{proto: 1}.around(icmpMessage(8, 0, 0x12345678, nil)), flow4(1, 0x1234, 0x1234, Whole)},
		{"echo 6", ip6{next: 58}.around(icmpMessage(129, 0, 0x12345678, nil)), flow6(58, 0x1234, 0x1234, Whole)},
		{"first fragment", ip6{next: 44}.around(fragHeader(6, 0, true, 1, tcp(1, 2, 0, pattern(4)))), flow6(6, 1, 2, First)},
		{"later fragment", ip4{proto: 17, flags: 8}.around(data), flow4(17, 0, 0, Later)},
		{"atomic fragment", ip6{next: 44}.around(fragHeader(6, 0, false, 1, tcp(1, 2, 0, nil))), flow6(6, 1, 2, Whole)},
		{"error has no ports", sealed(ip4{proto: 1}.around(icmpMessage(3, 3, 0, ip4{proto: 17}.around(udp(1, 2, nil))))), flow4(1, 0, 0, Whole)},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Packet{Flow: Flow{SrcPort: 9, DstPort: 9, Frag: Later}}
			load(p, c.in, Offload{})
			o := testOptions
			require.Equal(t, OK, p.Parse(&o))
			assert.Equal(t, c.want, p.Flow)
			assert.Equal(t, Flow{Src: c.want.Dst, Dst: c.want.Src, SrcPort: c.want.DstPort, DstPort: c.want.SrcPort, Proto: c.want.Proto, Frag: c.want.Frag}, p.Flow.Reversed())
		})
	}
}

// The flow of a quoted packet is as it stands in the quote.
func TestParseQuoted(t *testing.T) {
	for _, c := range []struct {
		name         string
		quote4       []byte
		quote6       []byte
		sport, dport uint16
		frag         Frag
	}{
		{"UDP", ip4{proto: 17}.around(udp(7, 8, nil)), ip6{next: 17}.around(udp(7, 8, nil)), 7, 8, Whole},
		{"TCP, four bytes of it", quoteOf(ip4{proto: 6}.around(tcp(7, 8, 0, nil)), 24), quoteOf(ip6{next: 6}.around(tcp(7, 8, 0, nil)), 44), 7, 8, Whole},
		{"TCP, three bytes of it", quoteOf(ip4{proto: 6}.around(tcp(7, 8, 0, nil)), 23), quoteOf(ip6{next: 6}.around(tcp(7, 8, 0, nil)), 43), 0, 0, Whole},
		{"echo", ip4{proto: 1}.around(icmpMessage(8, 0, 7<<16, nil)), ip6{next: 58}.around(icmpMessage(128, 0, 7<<16, nil)), 7, 7, Whole},
		{"first fragment", ip4{proto: 17, flags: mf}.around(udp(7, 8, nil)), ip6{next: 44}.around(fragHeader(17, 0, true, 0, udp(7, 8, nil))), 7, 8, First},
		{"later fragment", ip4{proto: 17, flags: 100}.around(udp(7, 8, nil)), ip6{next: 44}.around(fragHeader(17, 800, false, 0, udp(7, 8, nil))), 0, 0, Later},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Packet{}
			load(p, sealed(ip4{proto: 1, src: server4, dst: client4}.around(icmpMessage(3, 3, 0, c.quote4))), Offload{})
			require.Equal(t, OK, p.Parse(&testOptions))
			require.True(t, p.HasQuote())
			assert.Equal(t, Flow{Src: netip.MustParseAddr(client4), Dst: netip.MustParseAddr(server4), SrcPort: c.sport, DstPort: c.dport, Proto: c.quote4[9], Frag: c.frag}, p.Quoted)

			load(p, sealed(ip6{next: 58, src: server6, dst: client6}.around(icmpMessage(1, 4, 0, c.quote6))), Offload{})
			require.Equal(t, OK, p.Parse(&testOptions))
			require.True(t, p.HasQuote())
			_, proto, _ := slowL4(c.quote6)
			assert.Equal(t, Flow{Src: netip.MustParseAddr(client6), Dst: netip.MustParseAddr(server6), SrcPort: c.sport, DstPort: c.dport, Proto: proto, Frag: c.frag}, p.Quoted)

			load(p, ip6{next: 17}.around(udp(1, 2, nil)), Offload{})
			require.Equal(t, OK, p.Parse(&testOptions))
			assert.False(t, p.HasQuote(), "left over from the packet before")
		})
	}
}

func TestMalformed(t *testing.T) {
	good4, good6 := sealed(ip4{proto: 17}.around(udp(1, 2, nil))), sealed(ip6{next: 17}.around(udp(1, 2, nil)))
	patched := func(b []byte, at int, v ...byte) []byte {
		b = append([]byte{}, b...)
		copy(b[at:], v)
		if b[0]>>4 == 4 && len(b) >= 20 && int(b[0]&15)*4 <= len(b) {
			return hops(b, b[8])
		}
		return b
	}
	icmp4 := func(m ...byte) []byte { return ip4{proto: 1}.around(m) }
	quote4 := func(q []byte) []byte { return sealed(ip4{proto: 1}.around(icmpMessage(3, 3, 0, q))) }
	quote6 := func(q []byte) []byte { return sealed(ip6{next: 58}.around(icmpMessage(1, 4, 0, q))) }
	for _, c := range []struct {
		name string
		in   []byte
		want Verdict
	}{
		{"nothing", nil, NotIP},
		{"version 5", []byte{0x55, 0}, NotIP},
		{"19 bytes of IPv4", good4[:19], Truncated},
		{"39 bytes of IPv6", good6[:39], Truncated},
		{"IHL 4", patched(good4, 0, 0x44), BadHeader},
		{"IHL past the end", ip4{proto: 17}.around(nil)[:20:20], Truncated},
		{"IHL 15 of 28 bytes", append([]byte{0x4f}, good4[1:]...), Truncated},
		{"total length 19", patched(good4, 2, 0, 19), BadHeader},
		{"total length past the end", patched(good4, 2, 0, 29), Truncated},
		{"payload length past the end", patched(good6, 4, 0, 9), Truncated},
		{"IPv4 checksum", append(append([]byte{}, good4[:8]...), append([]byte{63}, good4[9:]...)...), BadIPv4Checksum},
		{"7 bytes of UDP", ip4{proto: 17}.around(make([]byte, 7)), Truncated},
		{"19 bytes of TCP", ip6{next: 6}.around(make([]byte, 19)), Truncated},
		{"11 bytes of SCTP", ip6{next: 132}.around(make([]byte, 11)), Truncated},
		{"TCP data offset 4", ip6{next: 6}.around(patched(tcp(1, 2, 0, nil), 12, 0x40)), BadHeader},
		{"TCP data offset past the end", ip6{next: 6}.around(patched(tcp(1, 2, 0, nil), 12, 0x60)), Truncated},
		{"7 bytes of ICMP", icmp4(8, 0, 0, 0, 0, 0, 0), Truncated},
		{"ICMP error without a quote", icmp4(3, 3, 0, 0, 0, 0, 0, 0), ICMPQuote},
		{"quote of another family", quote4(good6), ICMPQuote},
		{"quote of another family 6", quote6(good4), ICMPQuote},
		{"quote with IHL 4", quote4(patched(good4, 0, 0x44)), ICMPQuote},
		{"quote with total length 19", quote4(patched(good4, 2, 0, 19)), ICMPQuote},
		{"quote of IGMP", quote4(ip4{proto: 2}.around(make([]byte, 8))), ICMPQuote},
		{"quote of ICMPv6 in IPv4", quote4(ip4{proto: 58}.around(make([]byte, 8))), ICMPQuote},
		{"quote of ICMPv4 in IPv6", quote6(ip6{next: 1}.around(make([]byte, 8))), ICMPQuote},
		{"quote of a fragment of ICMP", quote4(ip4{proto: 1, flags: mf}.around(icmpMessage(8, 0, 0, nil))), ICMPQuote},
		{"quote of 7 bytes of ICMP", quote4(ip4{proto: 1}.around(icmpMessage(8, 0, 0, nil)[:7])), ICMPQuote},
		{"quote of timestamp", quote4(ip4{proto: 1}.around(icmpMessage(13, 0, 0, nil))), ICMPQuote},
		{"quote of neighbour discovery", quote6(ip6{next: 58}.around(icmpMessage(135, 0, 0, nil))), ICMPQuote},
		{"quote of what would be an extension header", quote4(ip4{proto: 44}.around(make([]byte, 8))), ICMPQuote},
		{"quote that ends in an extension header", quote6(ip6{next: 60}.around([]byte{17, 1, 0, 0, 0, 0, 0, 0})), ICMPQuote},
		{"quote of a packet too long for IPv4", quote6(ip6{next: 17, payload: 65535}.around(udp(1, 2, nil))), ICMPQuote},
		{"quote of the longest packet", quote6(ip6{next: 17, payload: 65515}.around(udp(1, 2, nil))), OK},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Packet{}
			load(p, c.in, Offload{})
			v := p.Parse(&testOptions)
			assert.Equal(t, c.want, v, v.String())
			assert.Equal(t, c.want == OK, p.HasQuote())
			assert.False(t, p.IsEchoRequest())
		})
	}
}

// What the mapping makes of ports and identifiers is written, with the
// checksum; of a quote likewise.
func TestRewritePorts(t *testing.T) {
	moved := func(f Flow) Flow {
		f = mapped(f)
		f.SrcPort, f.DstPort = f.SrcPort+1000, f.DstPort+2000
		return f
	}
	data := pattern(30)
	quote6 := sealed(ip6{next: 17, src: server6, dst: client6}.around(udp(7, 8, data)))
	quote4 := sealed(ip4{proto: 17, src: server4, dst: client4}.around(udp(1007, 2008, data)))
	quoteEcho6 := sealed(ip6{next: 58, src: server6, dst: client6}.around(icmpMessage(129, 0, 7<<16|1, data)))
	quoteEcho4 := sealed(ip4{proto: 1, src: server4, dst: client4}.around(icmpMessage(0, 0, 1007<<16|1, data)))
	for _, c := range []struct {
		name     string
		in, want []byte
		of       Offload
	}{
		{"TCP", sealed(ip6{next: 6}.around(tcp(7, 8, 0, data))), sealed(ip4{proto: 6, id: 1}.around(tcp(1007, 2008, 0, data))), Offload{}},
		{"UDP to IPv6", sealed(ip4{proto: 17}.around(udp(7, 8, data))), sealed(ip6{next: 17}.around(udp(1007, 2008, data))), Offload{}},
		{"UDP without checksum", ip4{proto: 17}.around(udp(7, 8, data)), sealed(ip6{next: 17}.around(udp(1007, 2008, data))), Offload{}},
		{"partial", partial(ip6{next: 6}.around(tcp(7, 8, 0, data))), partial(ip4{proto: 6, id: 1}.around(tcp(1007, 2008, 0, data))), gso(0, 0, 0, 40, 16)},
		{"echo", sealed(ip6{next: 58}.around(icmpMessage(128, 0, 7<<16|1, data))), sealed(ip4{proto: 1, id: 1}.around(icmpMessage(8, 0, 1007<<16|1, data))), Offload{}},
		{"SCTP", ip6{next: 132}.around(sctp(7, 8, 0)), ip4{proto: 132, id: 1}.around(sctp(1007, 2008, 0)), Offload{}},
		{"SCTP with a wrong CRC", ip6{next: 132}.around(sctp(7, 8, 0xbad)), ip4{proto: 132, id: 1}.around(sctp(1007, 2008, 0xbad)), Offload{}},
		{"quote of the head of SCTP", sealed(ip6{next: 58}.around(icmpMessage(1, 4, 0, ip6{next: 132, src: server6, dst: client6, payload: 32}.around(sctp(7, 8, 0)[:8])))),
			sealed(ip4{proto: 1, id: 1}.around(icmpMessage(3, 3, 0, sealed(ip4{proto: 132, src: server4, dst: client4, total: 52}.around(sctp(1007, 2008, 0)[:8]))))), Offload{}},
		{"ESP has none", ip6{next: 50}.around(pattern(32)), ip4{proto: 50, id: 1}.around(pattern(32)), Offload{}},
		{"quote", sealed(ip6{next: 58}.around(icmpMessage(1, 4, 0, quote6))), sealed(ip4{proto: 1, id: 1}.around(icmpMessage(3, 3, 0, quote4))), Offload{}},
		{"quoted echo", sealed(ip6{next: 58}.around(icmpMessage(1, 4, 0, quoteEcho6))), sealed(ip4{proto: 1, id: 1}.around(icmpMessage(3, 3, 0, quoteEcho4))), Offload{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Packet{ID: 1}
			load(p, c.in, c.of)
			require.Equal(t, OK, p.Parse(&testOptions))
			var quoted Flow
			if p.HasQuote() {
				quoted = moved(p.Quoted)
			}
			require.Equal(t, OK, p.Rewrite(&testOptions, new(moved(p.Flow)), &quoted))
			assert.Equal(t, hops(c.want, 63), p.Buf[p.Off:p.Off+p.Len])
		})
	}
}

// sctp is a packet of SCTP whose CRC (RFC 9260 6.8) is wrong by some bits.
func sctp(src, dst uint16, wrong uint32) []byte {
	b := pattern(32)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	clear(b[8:12])
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))^wrong)
	return b
}

// Senders that share an IPv4 address have identifications of their own, the
// same for all fragments of a datagram (RFC 7597 8.3.3).
func TestFragmentIDsOfThoseWhoShare(t *testing.T) {
	p := &Packet{}
	for _, offset := range []int{0, 16, 24} {
		in := ip6{next: 44}.around(fragHeader(17, offset, true, 0x12345678, udp(7, 8, pattern(8))))
		load(p, in, Offload{})
		require.Equal(t, OK, p.Parse(&testOptions))
		p.FragmentIDs = IDs{First: 2048, Size: 1000}
		require.Equal(t, OK, p.Rewrite(&testOptions, new(mapped(p.Flow)), nil))
		assert.EqualValues(t, 2048+0x12345678%1000, binary.BigEndian.Uint16(p.Buf[p.Off+4:]))
	}
}

func TestTCPFlagsAndEchoReply(t *testing.T) {
	p := &Packet{}
	for name, c := range map[string]struct {
		in    []byte
		flags uint8
		reply bool
	}{
		"TCP":          {sealed(ip6{next: 6}.around(tcp(7, 8, 0x12, nil))), 0x12, false},
		"UDP":          {sealed(ip4{proto: 17}.around(udp(7, 8, pattern(30)))), 0, false},
		"echo request": {sealed(ip6{next: 58}.around(icmpMessage(128, 0, 7, nil))), 0, false},
		"echo reply":   {sealed(ip6{next: 58}.around(icmpMessage(129, 0, 7, nil))), 0, true},
		"reply 4":      {sealed(ip4{proto: 1}.around(icmpMessage(0, 0, 7, nil))), 0, true},
		"request 4":    {sealed(ip4{proto: 1}.around(icmpMessage(8, 0, 7, nil))), 0, false},
	} {
		load(p, c.in, Offload{})
		require.Equal(t, OK, p.Parse(&testOptions), name)
		assert.Equal(t, c.flags, p.TCPFlags(), name)
		assert.Equal(t, c.reply, p.IsEchoReply(), name)
	}
}

func TestRewriteWrongFamily(t *testing.T) {
	six, four := netip.MustParseAddr(client6), netip.MustParseAddr(client4)
	for _, c := range []struct {
		in         []byte
		good, evil netip.Addr
	}{
		{sealed(ip6{next: 58}.around(icmpMessage(1, 4, 0, ip6{next: 17}.around(udp(1, 2, nil))))), four, six},
		{sealed(ip4{proto: 1}.around(icmpMessage(3, 3, 0, ip4{proto: 17}.around(udp(1, 2, nil))))), six, four},
	} {
		for _, evil := range []netip.Addr{c.evil, {}} {
			for _, w := range []struct {
				to, quoted Flow
				want       Verdict
			}{
				{Flow{Src: evil, Dst: c.good}, Flow{Src: c.good, Dst: c.good}, SourceUnmapped},
				{Flow{Src: c.good, Dst: evil}, Flow{Src: c.good, Dst: c.good}, DestinationUnmapped},
				{Flow{Src: c.good, Dst: c.good}, Flow{Src: c.good, Dst: evil}, QuoteUnmapped},
				{Flow{Src: c.good, Dst: c.good}, Flow{Src: evil, Dst: c.good}, QuoteUnmapped},
				{Flow{Src: c.good, Dst: c.good}, Flow{Src: c.good, Dst: c.good}, OK},
			} {
				p := &Packet{}
				load(p, c.in, Offload{})
				require.Equal(t, OK, p.Parse(&testOptions))
				assert.Equal(t, w.want, p.Rewrite(&testOptions, &w.to, &w.quoted))
			}
		}
	}
}
