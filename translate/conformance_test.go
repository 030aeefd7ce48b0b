package translate

import (
	"bytes"
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
	assert.Len(t, b, 48+128)
	assert.True(t, checksumsValid(b))
	assert.Zero(t, b[44], "no length attribute: there is no extension")
	assert.Equal(t, netip.MustParseAddr(server6), netip.AddrFrom16([16]byte(b[56:72])), "the quote begins behind the ICMP header")

	// One that fits behind the shortest quote stays whole.
	fits := extension[:1280-48-128]
	_, v, out = run(&testOptions, sealed(ip4{proto: 1}.around(icmpMessage(11, 0, 32<<16, append(quote[:128:128], fits...)))), Offload{})
	require.Equal(t, OK, v)
	b = out[0]
	assert.Len(t, b, 1280)
	assert.True(t, checksumsValid(b))
	assert.EqualValues(t, 16, b[44])
	assert.Equal(t, fits, b[48+128:])
}

// To IPv4 the same, within 576 bytes.
func TestLongExtensionTo4(t *testing.T) {
	quote := append(ip6{next: 17, src: server6, dst: client6}.around(udp(4000, 53, pattern(80))), make([]byte, 8)...) // 128 bytes and padding
	quote = append(quote, make([]byte, 136-len(quote)%136)...)[:136]
	for size, whole := range map[int]bool{576 - 28 - 128: true, 576 - 28 - 124: false} {
		in := sealed(ip6{next: 58}.around(icmpMessage(3, 0, 17<<24, append(quote[:136:136], pattern(size)...))))
		_, v, out := run(&testOptions, in, Offload{})
		require.Equal(t, OK, v)
		b := out[0]
		assert.True(t, checksumsValid(b))
		if whole {
			assert.Len(t, b, 576)
			assert.EqualValues(t, 32, b[25])
			assert.Equal(t, pattern(size), b[28+128:])
		} else {
			assert.Zero(t, b[25])
			assert.Len(t, b, 28+108)
		}
	}
}

// Some routers quote less than 128 bytes in front of an extension, as one with
// MPLS labels (RFC 4950): it is kept, and the quote padded as RFC 4884 3 asks.
func TestShortQuoteWithExtension(t *testing.T) {
	labels := []byte{0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0xff} // version 2, without checksum
	sum := bytes.Clone(labels)
	binary.BigEndian.PutUint16(sum[2:], ^checksumOf(sum))
	wrong := bytes.Clone(sum)
	wrong[11]--
	quote4 := ip4{proto: 17, src: server4, dst: client4}.around(udp(4000, 53, nil))       // 28 bytes
	quote6 := ip6{next: 17, src: server6, dst: client6}.around(udp(4000, 53, pattern(8))) // 56 bytes
	for _, c := range []struct {
		name      string
		in        []byte
		extension []byte
		at        int // of the length attribute
		words     byte
		header    int
	}{
		{"4 to 6", ip4{proto: 1}.around(icmpMessage(11, 0, 7<<16, append(quote4[:28:28], labels...))), labels, 44, 16, 48},
		{"4 to 6, checksum", ip4{proto: 1}.around(icmpMessage(3, 3, 7<<16, append(quote4[:28:28], sum...))), sum, 44, 16, 48},
		{"4 to 6, wrong checksum", ip4{proto: 1}.around(icmpMessage(11, 0, 7<<16, append(quote4[:28:28], wrong...))), nil, 44, 0, 48},
		{"6 to 4", ip6{next: 58}.around(icmpMessage(3, 0, 7<<24, append(quote6[:56:56], labels...))), labels, 25, 32, 28},
		{"6 to 4, checksum", ip6{next: 58}.around(icmpMessage(1, 4, 7<<24, append(quote6[:56:56], sum...))), sum, 25, 32, 28},
		{"6 to 4, wrong checksum", ip6{next: 58}.around(icmpMessage(3, 0, 7<<24, append(quote6[:56:56], wrong...))), nil, 25, 0, 28},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, v, out := run(&testOptions, sealed(c.in), Offload{})
			require.Equal(t, OK, v)
			b := out[0]
			assert.True(t, checksumsValid(b))
			assert.Equal(t, c.words, b[c.at])
			if c.extension != nil {
				assert.Equal(t, c.extension, b[c.header+128:])
			}
		})
	}
}

func checksumOf(b []byte) uint16 { return fold(sumBytes(0, b)) }

// UDP without checksum may be forwarded without one (RFC 6935 5, RFC 6936), its
// fragments too.
func TestKeepUDPZero(t *testing.T) {
	o := testOptions
	o.KeepUDPZero = true
	zero := udp(4000, 53, pattern(64))
	zero[6], zero[7] = 0, 0
	for name, in := range map[string][]byte{
		"whole": ip4{proto: 17}.around(zero), "first": ip4{proto: 17, flags: mf}.around(zero),
	} {
		_, v, out := run(&o, in, Offload{})
		require.Equal(t, OK, v, name)
		b := out[0]
		assert.Equal(t, zero, b[len(b)-len(zero):], name)
	}
	_, v, out := run(&o, ip4{proto: 17}.around(func() []byte { b := udp(4000, 53, pattern(2000)); b[6], b[7] = 0, 0; return b }()), Offload{})
	require.Equal(t, Fragmented, v)
	assert.Equal(t, []byte{0, 0}, out[0][48+6:48+8])
}
