package translate

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What RFC 7915 has dropped silently is answered by nobody.
func TestSilentDrops(t *testing.T) {
	for _, v := range []Verdict{ICMPType, ICMPQuote, SourceRefused, BadHeader, BadIPv4Checksum, Truncated, NotIP, BadFragment} {
		for _, b := range [][]byte{sealed(ip4{proto: 17}.around(udp(1, 2, nil))), sealed(ip6{next: 17}.around(udp(1, 2, nil)))} {
			p := &Packet{}
			load(p, b, Offload{})
			require.Equal(t, OK, p.Parse(&testOptions))
			from := router4
			if b[0]>>4 == 6 {
				from = router6
			}
			assert.Zero(t, WriteError(make([]byte, 1280), p, v, netip.MustParseAddr(from)), v.String())
		}
	}
}

// IPv6 packets of up to 1280 bytes leave as IPv4 packets that may be
// fragmented, whatever the MTU there: the link's router, which is the kernel
// under natless, cuts them (RFC 7915 5.1.1, last paragraph).
func TestSmallPacketsAreLeftToIPv4(t *testing.T) {
	o := Options{IPv4MTU: 576, IPv6MTU: 1500, LowestIPv6MTU: 1280}
	for _, size := range []int{600, 1280} {
		in := sealed(ip6{next: 17}.around(udp(4000, 53, pattern(size-48))))
		_, v, out := run(&o, in, Offload{})
		require.Equal(t, OK, v, v.String())
		assert.Zero(t, binary.BigEndian.Uint16(out[0][6:]), "DF, MF and offset")
		assert.Len(t, out[0], size-20)
	}
	_, v, _ := run(&o, sealed(ip6{next: 17}.around(udp(4000, 53, pattern(1281-48)))), Offload{})
	assert.Equal(t, TooBig, v)
}

// Identifications come from a generator, one each, also where they are not
// needed (RFC 7915 5.1); those of fragments are carried (5.1.1).
func TestIdentifications(t *testing.T) {
	p := &Packet{ID: 0xfffe}
	for i, want := range []uint16{0xfffe, 0xffff, 0, 1} {
		load(p, sealed(ip6{next: 17}.around(udp(4000, 53, pattern(i)))), Offload{})
		require.Equal(t, OK, p.Parse(&testOptions))
		require.Equal(t, OK, p.Rewrite(&testOptions, new(mapped(p.Flow)), nil))
		assert.Equal(t, want, binary.BigEndian.Uint16(p.Buf[p.Off+4:]))
	}
}

// The hop limit of a quoted packet is the one that its reader has to see (RFC
// 7915 4.3, 5.3), even one that could not be forwarded any more.
func TestQuotedHopLimit(t *testing.T) {
	u := udp(4000, 53, pattern(40))
	for _, n := range []byte{0, 1, 64, 255} {
		in := sealed(ip4{proto: 1}.around(icmpMessage(11, 0, 0, hops(ip4{proto: 17, src: server4, dst: client4}.around(u), n))))
		_, v, out := run(&testOptions, in, Offload{})
		require.Equal(t, OK, v)
		assert.Equal(t, n, out[0][48+7])

		in = sealed(ip6{next: 58}.around(icmpMessage(3, 0, 0, hops(ip6{next: 17, src: server6, dst: client6}.around(u), n))))
		_, v, out = run(&testOptions, in, Offload{})
		require.Equal(t, OK, v)
		assert.Equal(t, n, out[0][28+8])
	}
}

// Where the error becomes too large an extension is cut off, and at least 128
// bytes of the quote stay in front of it (RFC 7915 4.2, RFC 4884 3).
func TestLongExtension(t *testing.T) {
	extension := pattern(1200)
	quote := append(ip4{proto: 17, src: server4, dst: client4}.around(udp(4000, 53, pattern(80))), make([]byte, 20)...) // 108 bytes and padding
	in := sealed(ip4{proto: 1}.around(icmpMessage(11, 0, 32<<16, append(quote, extension...))))
	_, v, out := run(&testOptions, in, Offload{})
	require.Equal(t, OK, v)
	b := out[0]
	assert.Len(t, b, 1280)
	assert.True(t, checksumsValid(b))
	words := int(b[44])
	assert.GreaterOrEqual(t, words*8, 128)
	assert.Equal(t, extension[:1280-48-words*8], b[48+words*8:])
	assert.Equal(t, netip.MustParseAddr(server6), netip.AddrFrom16([16]byte(b[56:72])), "the quote begins behind the ICMP header")
}
