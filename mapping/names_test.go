package mapping

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

// TestReach holds that names lead where packets go: of an address that Reach
// gives, a packet of a client's gets through, and the others it does not give.
// Nor does it give a client's, though packets get there.
func TestReach(t *testing.T) {
	x := explained(t)
	for a, want := range map[string]string{
		"192.0.0.9":       "2001:db8:64::192.0.0.9",
		"198.51.100.5":    "2001:db8:1::5", // mapped
		"198.51.100.7":    "2001:db8:2::7", // mapped inside another map
		"169.254.64.2":    "",              // of a pool, lent: packets get there
		"169.254.64.5":    "",              // of a pool, not lent
		"10.0.0.1":        "",              // private
		"169.254.169.254": "",
		"127.0.0.1":       "",
		"0.0.0.0":         "",
		"224.0.0.1":       "",
		"255.255.255.255": "",
		"169.254.64.1":    "", // natless itself
	} {
		got, ok := x.Reach(addr(a))
		assert.Equal(t, want != "", ok, a)
		if want != "" {
			assert.Equal(t, addr(want), got, a)
		}
		under := x.Pref64().Embed(addr(a))
		_, v := x.Foresee(translate.Flow{Src: addr(client), Dst: under, Proto: 6})
		assert.Equal(t, v.Leaves(), ok || a == "169.254.64.2", "%s: %v", a, v)
	}

	_, err := x.Apply([]Change{{Add: &Map{IPv4: netip.MustParsePrefix("10.0.0.1/32"), IPv6: netip.MustParsePrefix("2001:db8:9::1/128")}}}, "somebody")
	require.NoError(t, err)
	got, ok := x.Reach(addr("10.0.0.1"))
	assert.True(t, ok, "a map that was added makes it public")
	assert.Equal(t, addr("2001:db8:9::1"), got)

	c := example()
	c.Pref64 = netip.Prefix{}
	x = table(t, c)
	_, ok = x.Reach(addr("192.0.0.9"))
	assert.False(t, ok)
	got, ok = x.Reach(addr("198.51.100.5"))
	assert.True(t, ok)
	assert.Equal(t, addr("2001:db8:1::5"), got)
	assert.False(t, x.Pref64().IsValid())
}

func TestBehind(t *testing.T) {
	x := explained(t)
	for _, c := range []struct {
		address, other string
		rule           Rule
	}{
		{"2001:db8:64::203.0.113.80", "203.0.113.80", RulePref64},
		{"2001:db8:64::10.0.0.1", "10.0.0.1", RulePref64},
		{"2001:db8:1::5", "198.51.100.5", RuleMap},
		{client, "", RuleUnmapped}, // leased: it is known by another address
		{"2001:db8:d::6", "", RuleUnmapped},
		{"fe80::1", "", RuleUnmapped},
	} {
		v4, rule, ok := x.Behind(addr(c.address))
		assert.Equal(t, c.rule, rule, c.address)
		assert.Equal(t, c.other != "", ok, c.address)
		if ok {
			assert.Equal(t, addr(c.other), v4, c.address)
		}
	}
}

func TestPermits(t *testing.T) {
	x := explained(t)
	x.SetLocal([]netip.Prefix{netip.MustParsePrefix("2001:db8:e::/64")})
	for a, want := range map[string]bool{
		client:            true,
		"2001:db8:c::6":   true, // of a pool's clients
		"2001:db8:1::5":   true, // mapped
		"2001:db8:d::6":   false,
		"fe80::1":         false,
		"fd00::1":         false, // natless itself
		"2001:db8:64::1":  false,
		"::ffff:10.0.0.1": false,
		"192.0.2.1":       false,
	} {
		assert.Equal(t, want, x.Permits(addr(a)), a)
	}
}
