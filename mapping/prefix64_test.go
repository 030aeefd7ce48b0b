package mapping

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var (
	addr = netip.MustParseAddr
	pfx  = netip.MustParsePrefix
)

// lengths are the six of RFC 6052 2.2.
var lengths = []int{32, 40, 48, 56, 64, 96}

func pref(t require.TestingT, s string) Prefix64 {
	p, err := ParsePrefix64(pfx(s))
	require.NoError(t, err)
	return p
}

// The tables of RFC 6052 2.4.
func TestPrefix64Examples(t *testing.T) {
	for prefix, want := range map[string]string{
		"2001:db8::/32":            "2001:db8:c000:221::",
		"2001:db8:100::/40":        "2001:db8:1c0:2:21::",
		"2001:db8:122::/48":        "2001:db8:122:c000:2:2100::",
		"2001:db8:122:300::/56":    "2001:db8:122:3c0:0:221::",
		"2001:db8:122:344::/64":    "2001:db8:122:344:c0:2:2100::",
		"2001:db8:122:344::/96":    "2001:db8:122:344::192.0.2.33",
		"64:ff9b::/96":             "64:ff9b::192.0.2.33",
		"64:ff9b:1:fffe::/96":      "64:ff9b:1:fffe::192.0.2.33",
		"2001:db8:1:2:0:3:4:0/112": "",
	} {
		t.Run(prefix, func(t *testing.T) {
			p, err := ParsePrefix64(pfx(prefix))
			if want == "" {
				require.ErrorContains(t, err, "32, 40, 48, 56, 64 and 96")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, addr(want), p.Embed(addr("192.0.2.33")))
			v4, ok := p.Extract(addr(want))
			assert.True(t, ok)
			assert.Equal(t, addr("192.0.2.33"), v4)
			assert.Equal(t, pfx(prefix), p.Prefix())
		})
	}
}

func TestPrefix64Refused(t *testing.T) {
	for prefix, why := range map[string]string{
		"2001:db8::/95":                  "32, 40, 48, 56, 64 and 96",
		"2001:db8::/33":                  "32, 40, 48, 56, 64 and 96",
		"2001:db8:0:0:100::/96":          "bits 64 to 71",
		"2001:db8:0:0:ff00::/96":         "bits 64 to 71",
		"2001:db8::1/96":                 "bits behind the prefix are set, expected 2001:db8::/96",
		"192.0.2.0/24":                   "not an IPv6 prefix",
		"::ffff:0:0/96":                  "v4-mapped",
		"fe80::/64":                      "link-local",
		"ff00::/32":                      "multicast",
		"::/96":                          "unspecified",
		"2001:db8:1:2:3:4:5:6/128":       "32, 40, 48, 56, 64 and 96",
		"2001:db8:ffff:ffff:ff::/96":     "",
		"2001:db8:ffff:ffff:ff:ff::/96":  "",
		"2001:db8:ffff:ffff:0:ffff::/96": "",
	} {
		_, err := ParsePrefix64(pfx(prefix))
		if why == "" {
			assert.NoError(t, err)
			continue
		}
		assert.ErrorContains(t, err, why)
		assert.ErrorContains(t, err, "pref64 "+pfx(prefix).String())
	}
	_, err := ParsePrefix64(netip.Prefix{})
	assert.Error(t, err)
}

func TestPrefix64UOctetAndSuffix(t *testing.T) {
	p := pref(t, "2001:db8:122::/48")
	_, ok := p.Extract(addr("2001:db8:122:c000:102:2100::"))
	assert.False(t, ok, "the u octet must be zero")
	v4, ok := p.Extract(addr("2001:db8:122:c000:2:2100:1234:5678"))
	assert.True(t, ok, "the suffix is reserved")
	assert.Equal(t, addr("192.0.2.33"), v4)
	for _, a := range []netip.Addr{addr("2001:db8:123:c000:2:2100::"), addr("192.0.2.33"), {}} {
		_, ok = p.Extract(a)
		assert.False(t, ok)
	}
}

func TestPrefix64None(t *testing.T) {
	var p Prefix64
	assert.False(t, p.IsValid())
	_, ok := p.Extract(addr("::192.0.2.33"))
	assert.False(t, ok)
	_, ok = p.Extract(addr("::"))
	assert.False(t, ok)
}

// Extract undoes Embed, the u octet is zero, and the address is under the
// prefix, for any prefix and address.
func TestPrefix64Law(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPref64(t)
		v4 := drawAddr4(t, "IPv4")
		v6 := p.Embed(v4)
		require.True(t, p.Prefix().Contains(v6))
		if p.Prefix().Bits() != 96 {
			require.Zero(t, v6.As16()[8])
		}
		back, ok := p.Extract(v6)
		require.True(t, ok)
		require.Equal(t, v4, back)
	})
}

func drawPref64(t *rapid.T) Prefix64 {
	b := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "prefix"))
	b[0], b[8] = 0x20, 0
	n := rapid.SampledFrom(lengths).Draw(t, "length")
	p, err := ParsePrefix64(netip.PrefixFrom(netip.AddrFrom16(b), n).Masked())
	require.NoError(t, err)
	return p
}

func drawAddr4(t *rapid.T, label string) netip.Addr {
	return addr4(rapid.Uint32().Draw(t, label))
}
