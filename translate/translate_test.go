package translate

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	both = iota
	only6to4
	only4to6
)

// pair is a packet in either family. Each is built apart from the other, and
// each must become the other, but for the hop limit.
type pair struct {
	name string
	dir  int
	six  []byte
	four []byte
	o6   Offload
	o4   Offload
}

// quoteOf is the packet b as an ICMP error would quote it.
func quoteOf(b []byte, n int) []byte { return b[:min(n, len(b))] }

func gso(typ, size int, headers, l4, csum uint16) Offload {
	return Offload{Flags: NeedsCsum, GSOType: uint8(typ), GSOSize: uint16(size), HdrLen: headers, CsumStart: l4, CsumOffset: csum}
}

func pairs() []pair {
	small := pattern(100)
	inner4 := sealed(ip4{proto: 6, flags: df, src: server4, dst: client4, ttl: 3}.around(tcp(80, 4000, 0x10, pattern(1300))))
	inner6 := sealed(ip6{next: 6, src: server6, dst: client6, hops: 3}.around(tcp(80, 4000, 0x10, pattern(1300))))
	innerUDP4 := sealed(ip4{proto: 17, src: server4, dst: client4, ttl: 1}.around(udp(33434, 33435, small)))
	innerUDP6 := sealed(ip6{next: 17, src: server6, dst: client6, hops: 1}.around(udp(33434, 33435, small)))
	innerEcho4 := sealed(ip4{proto: 1, src: server4, dst: client4}.around(icmpMessage(8, 0, 0x00070001, small)))
	innerEcho6 := sealed(ip6{next: 58, src: server6, dst: client6}.around(icmpMessage(128, 0, 0x00070001, small)))
	err4 := func(typ, code byte, rest uint32, quote []byte) []byte {
		return sealed(ip4{proto: 1, id: 0x1234}.around(icmpMessage(typ, code, rest, quote)))
	}
	err6 := func(typ, code byte, rest uint32, quote []byte) []byte {
		return sealed(ip6{next: 58}.around(icmpMessage(typ, code, rest, quote)))
	}
	super4 := func(proto byte, flags uint16, l4 []byte) []byte {
		return partial(ip4{proto: proto, flags: flags, id: 0x1234}.around(l4))
	}
	super6 := func(proto byte, l4 []byte) []byte { return partial(ip6{next: proto}.around(l4)) }
	big := pattern(60000)
	return []pair{
		{name: "TCP", six: sealed(ip6{next: 6, tc: 0xb8}.around(tcp(4000, 80, 0x18, small))),
			four: sealed(ip4{proto: 6, tos: 0xb8, id: 0x1234}.around(tcp(4000, 80, 0x18, small)))},
		{name: "TCP 1500", six: sealed(ip6{next: 6}.around(tcpOptions(4000, 80, 0x10, pattern(1420)))),
			four: sealed(ip4{proto: 6, flags: df, id: 0x1234}.around(tcpOptions(4000, 80, 0x10, pattern(1420))))},
		{name: "TCP 1260, the largest without DF", six: sealed(ip6{next: 6}.around(tcp(4000, 80, 0x10, pattern(1220)))),
			four: sealed(ip4{proto: 6, id: 0x1234}.around(tcp(4000, 80, 0x10, pattern(1220))))},
		{name: "TCP 1261, the smallest with DF", six: sealed(ip6{next: 6}.around(tcp(4000, 80, 0x10, pattern(1221)))),
			four: sealed(ip4{proto: 6, flags: df, id: 0x1234}.around(tcp(4000, 80, 0x10, pattern(1221))))},
		{name: "UDP", six: sealed(ip6{next: 17}.around(udp(53, 53, small))),
			four: sealed(ip4{proto: 17, id: 0x1234}.around(udp(53, 53, small)))},
		{name: "UDP of odd length", six: sealed(ip6{next: 17}.around(udp(53, 53, pattern(33)))),
			four: sealed(ip4{proto: 17, id: 0x1234}.around(udp(53, 53, pattern(33))))},
		{name: "UDP without checksum", dir: only4to6, six: sealed(ip6{next: 17}.around(udp(53, 53, small))),
			four: ip4{proto: 17}.around(udp(53, 53, small))},
		{name: "UDP without checksum stays so from IPv6", dir: only6to4, six: ip6{next: 17}.around(udp(53, 53, small)),
			four: ip4{proto: 17, id: 0x1234}.around(udp(53, 53, small))},
		{name: "UDP-Lite", six: sealed(ip6{next: 136}.around(udp(53, 53, small))),
			four: sealed(ip4{proto: 136, id: 0x1234}.around(udp(53, 53, small)))},
		{name: "DCCP", six: sealed(ip6{next: 33}.around(udp(5001, 5001, small))),
			four: sealed(ip4{proto: 33, id: 0x1234}.around(udp(5001, 5001, small)))},
		{name: "SCTP", six: ip6{next: 132}.around(small), four: ip4{proto: 132, id: 0x1234}.around(small)},
		{name: "ESP", six: ip6{next: 50}.around(small), four: ip4{proto: 50, id: 0x1234}.around(small)},
		{name: "GRE without data", six: ip6{next: 47}.around(nil), four: ip4{proto: 47, id: 0x1234}.around(nil)},
		{name: "echo request", six: sealed(ip6{next: 58}.around(icmpMessage(128, 0, 0x12340001, small))),
			four: sealed(ip4{proto: 1, id: 0x1234}.around(icmpMessage(8, 0, 0x12340001, small)))},
		{name: "echo reply", six: sealed(ip6{next: 58}.around(icmpMessage(129, 0, 0x12340001, nil))),
			four: sealed(ip4{proto: 1, id: 0x1234}.around(icmpMessage(0, 0, 0x12340001, nil)))},

		{name: "port unreachable", six: err6(1, 4, 0, innerUDP6), four: err4(3, 3, 0, innerUDP4)},
		{name: "time exceeded", six: err6(3, 0, 0, innerEcho6), four: err4(11, 0, 0, innerEcho4)},
		{name: "too big", six: err6(2, 0, 1400, quoteOf(inner6, 500)), four: err4(3, 4, 1380, quoteOf(inner4, 480))},
		{name: "protocol unreachable", six: err6(4, 1, 6, innerUDP6), four: err4(3, 2, 0, innerUDP4)},
		{name: "quote of 8 bytes", six: err6(1, 4, 0, quoteOf(inner6, 48)), four: err4(3, 3, 0, quoteOf(inner4, 28))},
		{name: "quote cut to 576", dir: only6to4, six: err6(3, 0, 0, quoteOf(inner6, 1232)), four: err4(11, 0, 0, quoteOf(inner4, 548))},

		{name: "partial checksum TCP", six: super6(6, tcp(4000, 80, 0x18, small)), four: super4(6, 0, tcp(4000, 80, 0x18, small)),
			o6: gso(0, 0, 0, 40, 16), o4: gso(0, 0, 0, 20, 16)},
		{name: "partial checksum UDP", six: super6(17, udp(53, 53, small)), four: super4(17, 0, udp(53, 53, small)),
			o6: gso(0, 0, 0, 40, 6), o4: gso(0, 0, 0, 20, 6)},
		{name: "TCP super-packet", six: super6(6, tcpOptions(4000, 80, 0x18, big)), four: super4(6, df, tcpOptions(4000, 80, 0x18, big)),
			o6: gso(GSOTCPv6, 1400, 72, 40, 16), o4: gso(GSOTCPv4, 1400, 52, 20, 16)},
		{name: "TCP super-packet with ECN", six: super6(6, tcp(4000, 80, 0x98, big)), four: super4(6, df, tcp(4000, 80, 0x98, big)),
			o6: gso(GSOTCPv6|GSOECN, 1400, 60, 40, 16), o4: gso(GSOTCPv4|GSOECN, 1400, 40, 20, 16)},
		{name: "UDP super-packet", six: super6(17, udp(53, 53, big)), four: super4(17, df, udp(53, 53, big)),
			o6: gso(GSOUDPL4, 1400, 48, 40, 6), o4: gso(GSOUDPL4, 1400, 28, 20, 6)},
		{name: "super-packet of small segments", six: super6(17, udp(53, 53, big)), four: super4(17, 0, udp(53, 53, big)),
			o6: gso(GSOUDPL4, 1232, 48, 40, 6), o4: gso(GSOUDPL4, 1232, 28, 20, 6)},
	}
}

func TestPairs(t *testing.T) {
	for _, c := range pairs() {
		one := func(dir string, in, want []byte, inOffload, wantOffload Offload) {
			t.Run(c.name+" "+dir, func(t *testing.T) {
				o := testOptions
				p, v, out := run(&o, in, inOffload)
				require.Equal(t, OK, v, v.String())
				require.Len(t, out, 1)
				assert.Equal(t, hops(want, 63), out[0])
				assert.Equal(t, wantOffload, p.Offload)
			})
		}
		if c.dir != only4to6 {
			one("6→4", c.six, c.four, c.o6, c.o4)
		}
		if c.dir != only6to4 {
			one("4→6", c.four, c.six, c.o4, c.o6)
		}
	}
}

// A refusing verdict leaves the packet as it was, for WriteError quotes it.
func TestRefusalTouchesNothing(t *testing.T) {
	for _, c := range pairs() {
		for _, b := range [][]byte{c.six, c.four} {
			b = hops(b, 1)
			o := testOptions
			p, v, _ := run(&o, b, Offload{})
			require.Equal(t, HopLimit, v)
			assert.Equal(t, b, p.Buf[p.Off:p.Off+p.Len])
		}
	}
}

// No packet of any kind, translated, refused, cut or answered, costs an
// allocation.
func TestNoAllocations(t *testing.T) {
	own4, own6 := netip.MustParseAddr(router4), netip.MustParseAddr(router6)
	dst := make([]byte, 1500)
	p := &Packet{Buf: make([]byte, 70000)}
	for _, c := range readVectors(t) {
		own := own4
		if c.in[0]>>4 == 6 {
			own = own6
		}
		n := testing.AllocsPerRun(5, func() {
			load(p, c.in, c.offload)
			v := p.Parse(&c.options)
			if v == OK {
				v = p.Rewrite(&c.options, withPorts(c.to, p.Flow), withPorts(c.quoted, p.Quoted))
			}
			for more := v == Fragmented; more; {
				_, more = p.NextFragment(dst)
			}
			if !v.Leaves() {
				sink += WriteError(dst, p, v, own)
			}
			load(p, c.in, c.offload)
			if p.Parse(&c.options) == OK && p.IsEchoRequest() {
				p.AnswerEcho()
			}
		})
		assert.Zero(t, n, c.name)
	}
}

func TestAnswerEcho(t *testing.T) {
	for _, c := range []struct{ ask, answer []byte }{
		{sealed(ip4{proto: 1, tos: 4, opts: []byte{1, 1, 1, 0}}.around(icmpMessage(8, 0, 0x00050006, pattern(50)))),
			sealed(ip4{proto: 1, tos: 4, id: 0x1234, src: server4, dst: client4}.around(icmpMessage(0, 0, 0x00050006, pattern(50))))},
		{sealed(ip6{next: 60, tc: 4}.around(append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, icmpMessage(128, 0, 0x00050006, pattern(50))...))),
			sealed(ip6{next: 58, tc: 4, src: server6, dst: client6}.around(icmpMessage(129, 0, 0x00050006, pattern(50))))},
	} {
		p := &Packet{ID: 0x1234}
		load(p, hops(c.ask, 1), Offload{})
		require.Equal(t, OK, p.Parse(&testOptions))
		require.True(t, p.IsEchoRequest())
		p.AnswerEcho()
		assert.Equal(t, c.answer, slices.Clone(p.Buf[p.Off:p.Off+p.Len]))
	}
}

// Where a sum comes out as all ones the checksum is 0, except for UDP, where 0
// means that there is none.
func TestChecksumsOfZero(t *testing.T) {
	// A data word that holds the checksum makes the next one 0.
	zeroed := func(b []byte, word int) []byte {
		b = sealed(b)
		at, proto, _ := slowL4(b)
		sum := at + slowChecksumAt(proto)
		copy(b[word:], b[sum:sum+2])
		return sealed(b)
	}
	without := func(b []byte) []byte {
		b = slices.Clone(b)
		b[26], b[27] = 0, 0
		return b
	}
	long := make([]byte, 1400)
	udp6 := zeroed(ip6{next: 17}.around(udp(1, 2, make([]byte, 2))), 48)
	require.Equal(t, []byte{0xff, 0xff}, udp6[46:48])
	longUDP6 := zeroed(ip6{next: 17}.around(udp(1, 2, long)), 48)
	esp4, esp6 := ip4{proto: 50, src: server4, dst: client4}, ip6{next: 50, src: server6, dst: client6}
	error6 := zeroed(ip6{next: 58}.around(icmpMessage(3, 0, 0, esp6.around(long[:8]))), 88)
	require.Equal(t, []byte{0, 0}, error6[42:44])
	error4 := zeroed(ip4{proto: 1, id: 0x1234}.around(icmpMessage(11, 0, 0, esp4.around(long[:8]))), 48)
	require.Equal(t, []byte{0, 0}, error4[22:24])
	tcp6 := zeroed(ip6{next: 6}.around(tcp(1, 2, 0, long)), 60)
	for _, c := range []struct {
		name     string
		in, want []byte
		of       Offload
	}{
		{name: "computed UDP", in: ip4{proto: 17}.around(without(append(make([]byte, 20), udp6[40:]...))[20:]), want: udp6},
		{name: "UDP", in: sealed(ip4{proto: 17}.around(udp6[40:])), want: udp6},
		{name: "partial UDP, cut", in: partial(ip4{proto: 17, id: 7}.around(longUDP6[40:])), want: longUDP6, of: gso(0, 0, 0, 20, 6)},
		{name: "partial TCP, cut", in: partial(ip4{proto: 6, id: 7}.around(tcp6[40:])), want: tcp6, of: gso(0, 0, 0, 20, 16)},
		{name: "error 4→6", in: sealed(ip4{proto: 1}.around(icmpMessage(11, 0, 0, esp4.around(error6[88:96])))), want: error6},
		{name: "error 6→4", in: sealed(ip6{next: 58}.around(icmpMessage(3, 0, 0, esp6.around(error4[48:56])))), want: error4},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, v, out := run(&testOptions, c.in, c.of)
			require.True(t, v.Leaves(), v.String())
			got := out[0]
			if v == Fragmented {
				got = reassembled(t, out)
			}
			assert.Equal(t, hops(c.want, 63), got)
		})
	}
}

// An address is the same in words, however netip keeps it.
func TestAddressWords(t *testing.T) {
	assert.True(t, wordsFirst, "netip changed: the fast way to the words of an address is off")
	defer func(was bool) { wordsFirst = was }(wordsFirst)
	for _, wordsFirst = range []bool{true, false} {
		assert.Equal(t, ipv6Addr{0x20010db800640000, 0x00000000c6336401}, ipv6AddrOf(netip.MustParseAddr(server6)))
	}
}
