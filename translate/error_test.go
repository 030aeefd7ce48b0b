package translate

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// judged loads b and has it judged until v comes out.
func judged(t *testing.T, o *Options, b []byte, of Offload, v Verdict) *Packet {
	p := &Packet{ID: 0x1234}
	load(p, b, of)
	got := p.Parse(o)
	if got == OK && (v == HopLimit || v == TooBig) {
		got = p.Rewrite(o, new(mapped(p.Flow)), nil)
	}
	if v < SourceRefused {
		require.Equal(t, v, got, got.String())
	} else { // the mapping's
		require.Equal(t, OK, got, got.String())
	}
	require.Equal(t, b, p.Buf[p.Off:p.Off+p.Len], "a refused packet changed")
	return p
}

func TestWriteError(t *testing.T) {
	long := pattern(1600)
	udp4 := sealed(ip4{proto: 17, ttl: 1}.around(udp(53, 53, pattern(80))))
	udp6 := sealed(ip6{next: 17, hops: 1}.around(udp(53, 53, pattern(80))))
	routed4 := sealed(ip4{proto: 17, opts: []byte{1, 131, 7, 4, 1, 2, 3, 4}}.around(udp(53, 53, pattern(80))))
	routed6 := ip6{next: 60}.around(slices.Concat([]byte{43, 0, 1, 4, 0, 0, 0, 0, 17, 2, 4, 1}, make([]byte, 20), udp(53, 53, pattern(80))))
	tcp4 := sealed(ip4{proto: 6, flags: df, id: 77}.around(tcp(4000, 80, 0x18, long)))
	tcp6 := sealed(ip6{next: 6}.around(tcp(4000, 80, 0x18, long)))
	first4 := ip4{proto: 17, flags: df | mf}.around(sealed(ip4{proto: 17}.around(udp(1, 2, long)))[20:1500])
	super4 := partial(ip4{proto: 6, flags: df, id: 77}.around(tcp(4000, 80, 0x99, pattern(5000))))
	super6 := partial(ip6{next: 6}.around(tcp(4000, 80, 0x99, pattern(5000))))
	superUDP6 := partial(ip6{next: 17, hops: 1}.around(udp(53, 53, pattern(5000))))
	far6 := partial(ip6{next: 60, hops: 1}.around(append(append([]byte{6, 153}, make([]byte, 1230)...), tcp(4000, 80, 0x18, pattern(5000))...)))
	of4, of6, ofUDP6 := gso(GSOTCPv4, 1448, 40, 20, 16), gso(GSOTCPv6, 1452, 60, 40, 16), gso(GSOUDPL4, 1000, 48, 40, 6)
	narrow := Options{IPv4MTU: 1400, IPv6MTU: 1400, LowestIPv6MTU: 1280}
	tiny := Options{IPv4MTU: 576, IPv6MTU: 1280, LowestIPv6MTU: 1280}
	for _, c := range []struct {
		name      string
		in        []byte
		of        Offload
		v         Verdict
		o         Options
		typ, code byte
		rest      uint32
		quote     []byte // nil: in
	}{
		{name: "hop limit 4", in: udp4, v: HopLimit, typ: 11},
		{name: "hop limit 6", in: udp6, v: HopLimit, typ: 3},
		{name: "source route", in: routed4, v: SourceRoute, typ: 3, code: 5},
		{name: "routing header", in: sealed(routed6), v: RoutingHeader, typ: 4, rest: 51},
		{name: "too big 4", in: tcp4, v: TooBig, typ: 3, code: 4, rest: 1480},
		{name: "too big 6", in: tcp6, v: TooBig, typ: 2, rest: 1520},
		{name: "too big, narrow 4", in: tcp4, v: TooBig, o: narrow, typ: 3, code: 4, rest: 1380},
		{name: "too big, narrow 6", in: tcp6, v: TooBig, o: narrow, typ: 2, rest: 1420},
		{name: "too big, narrower than the minimum", in: tcp6, v: TooBig, o: tiny, typ: 2, rest: 1280},
		{name: "too big fragment", in: first4, v: TooBig, typ: 3, code: 4, rest: 1472},
		{name: "too big super-packet 4", in: super4, of: of4, v: TooBig, o: narrow, typ: 3, code: 4, rest: 1380, quote: slowSegments(super4, of4)[0]},
		{name: "too big super-packet 6", in: super6, of: of6, v: TooBig, o: narrow, typ: 2, rest: 1420, quote: slowSegments(super6, of6)[0]},
		{name: "hop limit of a super-packet", in: superUDP6, of: ofUDP6, v: HopLimit, typ: 3, quote: slowSegments(superUDP6, ofUDP6)[0]},
		{name: "partial checksum", in: partial(udp6), of: gso(0, 0, 0, 40, 6), v: HopLimit, typ: 3, quote: udp6},
		{name: "partial checksum 4", in: partial(udp4), of: gso(0, 0, 0, 20, 6), v: HopLimit, typ: 11, quote: udp4},
		{name: "partial checksum of echo", in: partial(ip6{next: 58, hops: 1}.around(icmpMessage(128, 0, 7, pattern(9)))), of: gso(0, 0, 0, 0, 0), v: HopLimit, typ: 3,
			quote: sealed(ip6{next: 58, hops: 1}.around(icmpMessage(128, 0, 7, pattern(9))))},
		{name: "super-packet whose extension headers fill the quote", in: far6, of: of6, v: HopLimit, typ: 3, quote: slowSegments(far6, of6)[0]},
		{name: "malformed transport behind a source route", in: ip4{proto: 17, opts: []byte{131, 7, 4, 1, 2, 3, 4, 0}}.around(nil), v: Truncated},
		{name: "unmapped 4", in: udp4, v: DestinationUnmapped, typ: 3, code: 1},
		{name: "unmapped 6", in: udp6, v: DestinationUnmapped, typ: 1, code: 3},
		{name: "pool full 4", in: udp4, v: PoolFull, typ: 3, code: 1},
		{name: "pool full 6", in: udp6, v: PoolFull, typ: 1, code: 3},
		{name: "state unavailable 4", in: udp4, v: StateUnavailable, typ: 3, code: 1},
		{name: "state unavailable 6", in: udp6, v: StateUnavailable, typ: 1, code: 3},
		{name: "private 6", in: udp6, v: PrivateIPv4, typ: 1, code: 1},
		{name: "not permitted 6", in: udp6, v: ClientNotPermitted, typ: 1, code: 5},
		{name: "hairpin off 6", in: udp6, v: HairpinOff, typ: 1, code: 1},
		{name: "UDP without checksum", in: zeroed(udp4), v: UDPZeroChecksum, o: Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280, DropUDPZero: true}, typ: 3, code: 13},
		{name: "first of UDP without checksum", in: zeroed(ip4{proto: 17, flags: mf}.around(udp(53, 53, pattern(80)))), v: UDPZeroFragment, typ: 3, code: 13},
		{name: "extension behind the fragment header", in: ip6{next: 44}.around(fragHeader(60, 0, true, 7, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(53, 53, pattern(80))...))), v: FragmentExtension, typ: 1, code: 1},
		{name: "the same of an atomic fragment", in: ip6{next: 44}.around(fragHeader(51, 0, false, 7, pattern(80))), v: FragmentExtension, typ: 1, code: 1},
		{name: "own, UDP 4", in: udp4, v: OwnAddress, typ: 3, code: 3},
		{name: "own, UDP 6", in: udp6, v: OwnAddress, typ: 1, code: 4},
		{name: "own, TCP 4", in: tcp4, v: OwnAddress, typ: 3, code: 3},
		{name: "own, TCP 6", in: tcp6, v: OwnAddress, typ: 1, code: 4},
		{name: "own, GRE 4", in: ip4{proto: 47}.around(pattern(80)), v: OwnAddress, typ: 3, code: 2},
		{name: "own, GRE 6", in: ip6{next: 47}.around(pattern(80)), v: OwnAddress, typ: 4, code: 1, rest: 6},
		{name: "own, GRE behind options", in: ip6{next: 60}.around(append([]byte{47, 1, 1, 4, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 1, 0}, pattern(80)...)), v: OwnAddress, typ: 4, code: 1, rest: 40},
		{name: "own, GRE in an atomic fragment behind options", in: ip6{next: 60}.around(append([]byte{44, 0, 1, 4, 0, 0, 0, 0}, fragHeader(47, 0, false, 7, pattern(80))...)), v: OwnAddress, typ: 4, code: 1, rest: 48},
		{name: "hairpin off 4", in: udp4, v: HairpinOff, typ: 3, code: 13},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := or(c.o, testOptions)
			p := judged(t, &o, c.in, c.of, c.v)
			if c.typ == 0 {
				assert.Zero(t, WriteError(make([]byte, 1280), p, c.v, netip.MustParseAddr(router4)))
				return
			}
			quote := c.quote
			if quote == nil {
				quote = c.in
			}
			var want []byte
			from := netip.MustParseAddr(router6)
			if c.in[0]>>4 == 6 {
				want = sealed(ip6{next: 58, src: router6, dst: client6}.around(icmpMessage(c.typ, c.code, c.rest, quoteOf(quote, 1232))))
			} else {
				from = netip.MustParseAddr(router4)
				want = sealed(ip4{proto: 1, tos: 0xc0, id: 0x1234, src: router4, dst: client4}.around(icmpMessage(c.typ, c.code, c.rest, quoteOf(quote, 548))))
			}
			dst := make([]byte, 1280)
			n := WriteError(dst, p, c.v, from)
			assert.Equal(t, want, dst[:n])
		})
	}
}

// zeroed is an IPv4 packet whose UDP has no checksum.
func zeroed(b []byte) []byte {
	b = slices.Clone(b)
	b[26], b[27] = 0, 0
	return b
}

// What is dropped before its fragment is known is no less careful.
func TestNoErrorAboutExtensions(t *testing.T) {
	behind := func(message []byte) []byte { return append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, message...) }
	for name, c := range map[string]struct {
		in   []byte
		want bool
	}{
		"a later fragment":   {fragHeader(60, 800, true, 7, behind(pattern(80))), false},
		"an ICMPv6 error":    {fragHeader(60, 0, true, 7, behind(icmpMessage(3, 0, 0, pattern(72)))), false},
		"a redirect":         {fragHeader(60, 0, false, 7, behind(icmpMessage(137, 0, 0, pattern(72)))), false},
		"echo":               {fragHeader(60, 0, true, 7, behind(icmpMessage(128, 0, 0, pattern(72)))), true},
		"not all of a chain": {fragHeader(60, 0, true, 7, []byte{58, 0, 1, 4, 0, 0, 0, 0}), false},
		"another fragment":   {fragHeader(44, 0, true, 7, fragHeader(17, 800, true, 7, pattern(80))), false},
	} {
		p := &Packet{}
		load(p, ip6{next: 44}.around(c.in), Offload{})
		require.Equal(t, FragmentExtension, p.Parse(&testOptions), name)
		assert.Equal(t, c.want, WriteError(make([]byte, 1280), p, FragmentExtension, netip.MustParseAddr(router6)) > 0, name)
	}
	for _, in := range [][]byte{sealed(ip4{proto: 1}.around(icmpMessage(0, 0, 0, nil))), sealed(ip6{next: 58}.around(icmpMessage(129, 0, 0, nil)))} {
		p := &Packet{}
		load(p, in, Offload{})
		require.Equal(t, OK, p.Parse(&testOptions))
		for _, from := range []string{router4, router6} {
			assert.Zero(t, WriteError(make([]byte, 1280), p, OwnAddress, netip.MustParseAddr(from)), "about an echo reply to natless")
		}
	}
}

func TestNoError(t *testing.T) {
	u := udp(53, 53, pattern(80))
	e4 := sealed(ip4{proto: 1}.around(icmpMessage(11, 0, 0, sealed(ip4{proto: 17}.around(u)))))
	e6 := sealed(ip6{next: 58}.around(icmpMessage(3, 0, 0, sealed(ip6{next: 17}.around(u)))))
	for _, c := range []struct {
		name string
		in   []byte
		v    Verdict
		want bool
	}{
		{"about an ordinary packet 4", sealed(ip4{proto: 17}.around(u)), DestinationUnmapped, true},
		{"about an ordinary packet 6", sealed(ip6{next: 17}.around(u)), DestinationUnmapped, true},
		{"about an error 4", e4, DestinationUnmapped, false},
		{"about an error 6", e6, DestinationUnmapped, false},
		{"about echo", sealed(ip4{proto: 1}.around(icmpMessage(8, 0, 0, nil))), DestinationUnmapped, true},
		{"about a first fragment", sealed(ip4{proto: 17, flags: mf}.around(u)), DestinationUnmapped, true},
		{"about a later fragment 4", ip4{proto: 17, flags: 9}.around(u), DestinationUnmapped, false},
		{"about a later fragment 6", ip6{next: 44}.around(fragHeader(17, 800, false, 1, u)), DestinationUnmapped, false},
		{"to the unspecified 4", sealed(ip4{proto: 17, src: "0.0.0.0"}.around(u)), DestinationUnmapped, false},
		{"to this network", sealed(ip4{proto: 17, src: "0.0.0.7"}.around(u)), DestinationUnmapped, false},
		{"to loopback 4", sealed(ip4{proto: 17, src: "127.0.0.1"}.around(u)), DestinationUnmapped, false},
		{"to multicast 4", sealed(ip4{proto: 17, src: "224.0.0.1"}.around(u)), DestinationUnmapped, false},
		{"to class E", sealed(ip4{proto: 17, src: "240.0.0.1"}.around(u)), DestinationUnmapped, false},
		{"to broadcast", sealed(ip4{proto: 17, src: "255.255.255.255"}.around(u)), DestinationUnmapped, false},
		{"about a multicast 4", sealed(ip4{proto: 17, dst: "224.0.0.1"}.around(u)), DestinationUnmapped, false},
		{"about a broadcast", sealed(ip4{proto: 17, dst: "255.255.255.255"}.around(u)), DestinationUnmapped, false},
		{"to the unspecified 6", sealed(ip6{next: 17, src: "::"}.around(u)), DestinationUnmapped, false},
		{"to loopback 6", sealed(ip6{next: 17, src: "::1"}.around(u)), DestinationUnmapped, false},
		{"to multicast 6", sealed(ip6{next: 17, src: "ff02::1"}.around(u)), DestinationUnmapped, false},
		{"about a multicast 6", sealed(ip6{next: 17, dst: "ff02::1"}.around(u)), DestinationUnmapped, false},
		{"too big about a multicast 6", sealed(ip6{next: 17, dst: "ff02::1"}.around(u)), TooBig, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Packet{}
			load(p, c.in, Offload{})
			require.Equal(t, OK, p.Parse(&testOptions))
			from, other := netip.MustParseAddr(router4), netip.MustParseAddr(router6)
			if c.in[0]>>4 == 6 {
				from, other = other, from
			}
			dst := make([]byte, 1280)
			assert.Equal(t, c.want, WriteError(dst, p, c.v, from) > 0)
			assert.Zero(t, WriteError(dst, p, c.v, other), "from the other family")
			assert.Zero(t, WriteError(dst, p, c.v, netip.Addr{}))
		})
	}
}

// A verdict has an ICMP error exactly where its row says so.
func TestReplies(t *testing.T) {
	six, four := &Packet{}, &Packet{}
	load(six, sealed(ip6{next: 17}.around(udp(1, 2, nil))), Offload{})
	load(four, sealed(ip4{proto: 17}.around(udp(1, 2, nil))), Offload{})
	require.Equal(t, OK, six.Parse(&testOptions))
	require.Equal(t, OK, four.Parse(&testOptions))
	dst := make([]byte, 1280)
	for v := OK; v < verdictCount; v++ {
		replied := WriteError(dst, six, v, netip.MustParseAddr(router6)) > 0 || WriteError(dst, four, v, netip.MustParseAddr(router4)) > 0
		assert.Equal(t, v.Info().Reply != "", replied, v.String())
		assert.NotEmpty(t, v.Info().Name)
		assert.NotEmpty(t, v.Info().Section)
		assert.NotEmpty(t, v.Info().Advice)
	}
}
