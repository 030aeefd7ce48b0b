package mapping

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

func TestSeen(t *testing.T) {
	for _, c := range []struct{ pref64, v6, want string }{
		{"2001:db8:64::/96", "2001:db8:64::c000:200/120", "192.0.2.0/24"},
		{"2001:db8:64::/96", "2001:db8:64::c000:207/128", "192.0.2.7/32"},
		{"2001:db8:64::/96", "2001:db8:64::/97", "0.0.0.0/1"},
		{"2001:db8:64::/96", "2001:db8:64::/96", ""},
		{"2001:db8:64::/96", "2001:db8:65::/120", ""},
		{"2001:db8::/32", "2001:db8:c000:200::/56", "192.0.2.0/24"},
		{"2001:db8::/32", "2001:db8:c000:207::/70", "192.0.2.7/32"},
		{"2001:db8:100::/40", "2001:db8:1c0:2:7::/80", "192.0.2.7/32"},
		{"2001:db8:100::/40", "2001:db8:1c0:2::/68", "192.0.2.0/24"},
		{"2001:db8:100::/40", "2001:db8:1c0:2:700::/72", ""}, // the u octet is not zero
		{"2001:db8:64::/64", "2001:db8:64:0:c0:2::/96", "192.0.2.0/24"},
		{"2001:db8:64::/64", "2001:db8:64::c0:2:700:1/128", "192.0.2.7/32"}, // the suffix is ignored
	} {
		p, err := ParsePrefix64(pfx(c.pref64))
		require.NoError(t, err)
		got, ok := p.Seen(pfx(c.v6).Masked())
		assert.Equal(t, c.want != "", ok, c.v6)
		if ok {
			assert.Equal(t, c.want, got.String(), "%s in %s", c.v6, c.pref64)
		}
	}
}

// Hosts numbered from pref64 (RFC 6052 2, IPv4-translatable addresses) are
// mapped to the IPv4 addresses inside, and their address means nobody else.
func TestInsidePref64(t *testing.T) {
	for _, c := range []struct{ pref64, v6 string }{
		{"2001:db8:64::/96", "2001:db8:64::cb00:7100/120"},
		{"64:ff9b::/96", "64:ff9b::cb00:7100/120"},
		{"2001:db8:6400::/40", "2001:db8:64cb:71::/72"},
		{"2001:db8:64::/48", "2001:db8:64:cb00:71::/80"},
		{"2001:db8:64::/64", "2001:db8:64:0:cb:71::/96"},
		{"2001:db8::/32", "2001:db8:cb00:7100::/56"},
	} {
		p, err := ParsePrefix64(pfx(c.pref64))
		require.NoError(t, err)
		x := table(t, Config{
			Pref64: pfx(c.pref64), OwnIPv4: addr("169.254.64.1"), OwnIPv6: addr("fd00::1"), Hairpin: true,
			Maps:  []Map{{IPv4: pfx("203.0.113.0/24"), IPv6: pfx(c.v6)}, {IPv4: pfx("198.51.100.9/32"), IPv6: pfx("2001:db9::9/128")}},
			Pools: []Pool{{IPv4: pfx("169.254.64.0/20"), Clients: []netip.Prefix{pfx("fd01::/64")}, Idle: time.Hour}},
		})
		host, server := p.Embed(addr("203.0.113.7")), p.Embed(addr("192.0.2.1"))
		f := translate.Flow{Src: host, Dst: server, Proto: 6}
		out, v := x.Resolve(f, 1)
		assert.Equal(t, translate.OK, v, c.pref64)
		assert.Equal(t, translate.Flow{Src: addr("203.0.113.7"), Dst: addr("192.0.2.1"), Proto: 6}, out)
		back, v := x.Resolve(out.Reversed(), 1)
		assert.Equal(t, translate.OK, v)
		assert.Equal(t, f.Reversed(), back)

		// No packet for the host comes this way unless no route leads to it.
		_, v = x.Resolve(translate.Flow{Src: addr("fd01::5"), Dst: host, Proto: 6}, 1)
		assert.Equal(t, translate.DestinationUnmapped, v)
		// Others under pref64 are no clients.
		_, v = x.Resolve(translate.Flow{Src: server, Dst: p.Embed(addr("192.0.2.2")), Proto: 6}, 1)
		assert.Equal(t, translate.SourceRefused, v)
		// To a client elsewhere it is a hairpin, and by its own address.
		hairpin := translate.Flow{Src: host, Dst: p.Embed(addr("198.51.100.9")), Proto: 6}
		out, v = x.Resolve(hairpin, 1)
		assert.Equal(t, translate.Hairpin, v)
		back, v = x.HairpinBack(out)
		assert.Equal(t, translate.OK, v)
		assert.Equal(t, translate.Flow{Src: host, Dst: addr("2001:db9::9"), Proto: 6}, back)

		assert.Equal(t, RuleMap, x.Explain(host).Rule)
		assert.Equal(t, addr("203.0.113.7"), x.Explain(host).Other)
		v6, ok := x.Reach(addr("203.0.113.7"))
		assert.True(t, ok)
		assert.Equal(t, host, v6)
		assert.True(t, x.Permits(host))
	}
}

// A map inside pref64 may be of another IPv4 address. That which the IPv6
// address stood for is nobody's then.
func TestInsidePref64AsAnother(t *testing.T) {
	c := Config{Pref64: pfx("2001:db8:64::/96"), OwnIPv4: addr("198.51.100.200"), OwnIPv6: addr("fd00::1"), Hairpin: true,
		Maps: []Map{{IPv4: pfx("198.51.100.9/32"), IPv6: pfx("2001:db9::9/128")}}}
	x := table(t, c)
	before := x.Explain(addr("0.0.0.5"))
	m := add("203.0.113.5/32", "2001:db8:64::192.0.2.5/128")
	tiny := add("203.0.113.6/32", "2001:db8:64::5/128") // of the unspecified
	_, err := x.Apply([]Change{m, tiny}, "me")
	require.NoError(t, err)
	for _, host := range []string{"2001:db8:64::192.0.2.5", "2001:db8:64::5"} {
		out, v := x.Resolve(flow(host, "2001:db8:64::192.0.2.1"), 1)
		assert.Equal(t, translate.OK, v)
		back, v := x.Resolve(out.Reversed(), 1)
		assert.Equal(t, translate.OK, v)
		assert.Equal(t, flow(host, "2001:db8:64::192.0.2.1").Reversed(), back)
		_, v = x.Resolve(flow("2001:db9::9", host), 1)
		assert.Equal(t, translate.DestinationUnmapped, v, "it is the host's own address")
	}
	out, v := x.Resolve(flow("2001:db9::9", "2001:db8:64::203.0.113.5"), 1)
	assert.Equal(t, translate.Hairpin, v)
	back, v := x.HairpinBack(out)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, addr("2001:db8:64::192.0.2.5"), back.Dst)
	_, v = x.Resolve(flow("192.0.2.5", "198.51.100.9"), 1)
	assert.Equal(t, translate.SourceRefused, v, "it would come from the host's address")
	assert.Contains(t, x.Explain(addr("192.0.2.5")).Detail, "is taken by map 203.0.113.5/32")

	_, err = x.Apply([]Change{remove("203.0.113.5/32"), remove("2001:db8:64::5/128")}, "me")
	require.NoError(t, err)
	_, v = x.Resolve(flow("192.0.2.5", "198.51.100.9"), 1)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, before, x.Explain(addr("0.0.0.5")), "what was hidden is back")
	assert.Equal(t, table(t, c).current.Load().counts, x.current.Load().counts)
}

// natless's own IPv6 address may lie in pref64, also as the one that stands for
// its IPv4 address.
func TestOwnInsidePref64(t *testing.T) {
	for own, outside := range map[string]string{"2001:db8:64::203.0.113.1": "203.0.113.1", "2001:db8:64::169.254.64.1": "169.254.64.1"} {
		x := table(t, Config{
			Pref64: pfx("2001:db8:64::/96"), OwnIPv4: addr("169.254.64.1"), OwnIPv6: addr(own), Hairpin: true,
			Maps:  []Map{{IPv4: pfx("198.51.100.9/32"), IPv6: pfx("2001:db9::9/128")}},
			Pools: []Pool{{IPv4: pfx("169.254.64.0/20"), Clients: []netip.Prefix{pfx("fd01::/64")}, Idle: time.Hour}},
		})
		assert.True(t, x.Own(addr(own)))
		_, v := x.Resolve(flow("2001:db9::9", own), 1)
		assert.Equal(t, translate.OwnAddress, v)
		_, v = x.Resolve(flow(own, "2001:db8:64::192.0.2.1"), 1)
		assert.Equal(t, translate.SourceRefused, v)
		_, v = x.Resolve(flow(outside, "198.51.100.9"), 1)
		assert.Equal(t, translate.SourceRefused, v)
		assert.Equal(t, RuleOwn, x.Explain(addr(own)).Rule)
		if outside != "169.254.64.1" {
			_, v = x.Resolve(flow("198.51.100.77", outside), 1)
			assert.Equal(t, translate.DestinationUnmapped, v, "that is no address of natless's in IPv4")
		}
	}
}

// A map that is wider than what is refused does not go round the refusal:
// neither way, of neither family, also of an ICMP error and what it quotes.
func TestWideMaps(t *testing.T) {
	x := table(t, Config{
		Pref64: pfx("2001:db8:64::/96"), OwnIPv4: addr("169.254.64.1"), OwnIPv6: addr("2001:db8:a::1"), Hairpin: true,
		Maps: []Map{
			{IPv4: pfx("160.0.0.0/4"), IPv6: pfx("2001:db8:a::a000:0/100")},
			{IPv4: pfx("96.0.0.0/3"), IPv6: pfx("fc00::/6")},         // holds fe80::/10 and ff00::/8
			{IPv4: pfx("192.0.2.0/24"), IPv6: pfx("::/104")},         // holds ::1, and :: itself
			{IPv4: pfx("16.0.0.0/8"), IPv6: pfx("2001:db8:a::/104")}, // holds natless's own
		},
		Pools: []Pool{{IPv4: pfx("169.254.64.0/20"), Clients: []netip.Prefix{pfx("2001:db8:c::/64")}, Idle: time.Hour}},
	})
	_, v := x.Resolve(flow("2001:db8:c::5", "2001:db8:64::192.0.2.1"), 1)
	require.Equal(t, translate.Hairpin, v)
	for _, v6 := range []string{
		"2001:db8:a::a9fe:a9fe", "2001:db8:a::a9fe:101", // metadata, link-local
		"2001:db8:a::a9fe:4001", "2001:db8:a::a9fe:4002", "2001:db8:a::a9fe:4077", // natless's own, lent, of the pool
		"fe80::1", "febf::1", "ff02::1", "::1", "::",
	} {
		_, v := x.Resolve(flow("2001:db8:c::5", v6), 1)
		assert.Equal(t, translate.DestinationRefused, v, "to %s", v6)
		_, v = x.Resolve(flow(v6, "2001:db8:64::198.51.100.1"), 1)
		assert.Equal(t, translate.SourceRefused, v, "from %s", v6)
		_, v = x.Lookup(flow(v6, "2001:db8:64::198.51.100.1"))
		assert.Equal(t, translate.SourceRefused, v, "quoted, from %s", v6)
	}
	out, v := x.ResolveError(flow("2001:db8:a::a9fe:a9fe", "2001:db8:64::198.51.100.1"))
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, addr("169.254.64.1"), out.Src, "natless speaks for a router without an address")
	_, v = x.ResolveError(flow("2001:db8:c::5", "2001:db8:a::a9fe:a9fe"))
	assert.Equal(t, translate.DestinationRefused, v)

	// 96/3 begins as fc00::/6 does: 11111110 10 are fe80, so 2 bits on of 96/3.
	fe80, ff02, loopback, own := "116.0.0.0", "120.1.2.3", "192.0.2.0", "16.0.0.0"
	for _, v4 := range []string{fe80, ff02, loopback} {
		_, v := x.Resolve(flow("198.51.100.1", v4), 1)
		assert.Equal(t, translate.DestinationRefused, v, "to %s", v4)
		_, v = x.Resolve(flow(v4, "160.0.0.1"), 1)
		assert.Equal(t, translate.SourceRefused, v, "from %s", v4)
		out, v := x.ResolveError(flow(v4, "160.0.0.1"))
		if v == translate.OK {
			assert.Equal(t, addr("2001:db8:a::1"), out.Src, "natless speaks")
		}
		_, v = x.HairpinBack(flow("160.0.0.1", v4))
		assert.NotEqual(t, translate.OK, v)
	}
	_, v = x.Resolve(flow("198.51.100.1", own), 1)
	assert.Equal(t, translate.OK, v, "only ::1 of it is natless's")
	_, ok := x.Reach(addr(fe80))
	assert.False(t, ok)

	// What is not refused goes on.
	out, v = x.Resolve(flow("2001:db8:a::a9fd:1", "2001:db8:64::198.51.100.1"), 1)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, addr("169.253.0.1"), out.Src)
	out, v = x.Resolve(flow("198.51.100.1", "169.253.0.1"), 1)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, addr("2001:db8:a::a9fd:1"), out.Dst)
}
