package mapping

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/translate"
)

// example is a configuration with some of everything.
func example() Config {
	return Config{
		Pref64: pfx("2001:db8:64::/96"),
		Maps: []Map{
			{IPv4: pfx("198.51.100.0/24"), IPv6: pfx("2001:db8:1::/120"), Label: "web", Origin: "natless.toml:12"},
			{IPv4: pfx("198.51.100.7/32"), IPv6: pfx("2001:db8:2::7/128"), Origin: "natless.toml:17"},
			{IPv4: pfx("169.254.64.9/32"), IPv6: pfx("2001:db8:2::9/128"), Origin: "flag"},
			{IPv4: pfx("198.18.0.0/16"), IPv6: pfx("2001:db8:3::/64"), Origin: "flag"},
		},
		Pools: []Pool{
			{IPv4: pfx("169.254.64.0/28"), Clients: []netip.Prefix{pfx("2001:db8:c::/64")}, Idle: time.Hour, Quarantine: 5 * time.Minute, Origin: "natless.toml:20"},
		},
		OwnIPv4: addr("169.254.64.1"),
		OwnIPv6: addr("fd00::1"),
		Hairpin: true,
	}
}

func table(t testing.TB, c Config) *Table {
	x, err := New(c)
	require.NoError(t, err)
	return x
}

func flow(src, dst string) translate.Flow {
	f := translate.Flow{Src: addr(src), Dst: addr(dst), SrcPort: 4000, DstPort: 80, Proto: 6}
	return f
}

const client = "2001:db8:c::5" // the first to lease, so it gets 169.254.64.2

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		name, src, dst string
		verdict        translate.Verdict
		toSrc, toDst   string
	}{
		// 6→4 source: map, then lease. Destination: pref64.
		{"lease", client, "2001:db8:64::192.0.2.1", translate.OK, "169.254.64.2", "192.0.2.1"},
		{"map", "2001:db8:1::5", "2001:db8:64::192.0.2.1", translate.OK, "198.51.100.5", "192.0.2.1"},
		{"map of one, taken out of a pool", "2001:db8:2::9", "2001:db8:64::192.0.2.1", translate.OK, "169.254.64.9", "192.0.2.1"},
		{"map of a longer suffix", "2001:db8:3::5:0:0:0", "2001:db8:64::192.0.2.1", translate.OK, "198.18.0.5", "192.0.2.1"},
		{"stranger", "2001:db8:d::5", "2001:db8:64::192.0.2.1", translate.ClientNotPermitted, "", ""},
		{"map as destination", client, "2001:db8:1::5", translate.OK, "169.254.64.2", "198.51.100.5"},
		{"no such destination", client, "2001:db8:d::1", translate.DestinationUnmapped, "", ""},
		{"a client's address as destination", client, client, translate.DestinationUnmapped, "", ""},

		// 6→4 hairpin.
		{"to a map", client, "2001:db8:64::198.51.100.5", translate.Hairpin, "169.254.64.2", "198.51.100.5"},
		{"to the map inside a map", client, "2001:db8:64::198.51.100.7", translate.Hairpin, "169.254.64.2", "198.51.100.7"},
		{"to a map in a pool", client, "2001:db8:64::169.254.64.9", translate.Hairpin, "169.254.64.2", "169.254.64.9"},
		{"to a lease", "2001:db8:1::5", "2001:db8:64::169.254.64.2", translate.Hairpin, "198.51.100.5", "169.254.64.2"},
		{"to an unlent address", client, "2001:db8:64::169.254.64.14", translate.DestinationUnmapped, "", ""},

		// 6→4 refusals.
		{"from pref64", "2001:db8:64::192.0.2.9", "2001:db8:64::192.0.2.1", translate.SourceRefused, "", ""},
		{"from unspecified", "::", "2001:db8:64::192.0.2.1", translate.SourceRefused, "", ""},
		{"from loopback", "::1", "2001:db8:64::192.0.2.1", translate.SourceRefused, "", ""},
		{"from link-local", "fe80::5", "2001:db8:64::192.0.2.1", translate.SourceRefused, "", ""},
		{"from multicast", "ff02::1", "2001:db8:64::192.0.2.1", translate.SourceRefused, "", ""},
		{"from v4-mapped", "::ffff:192.0.2.9", "2001:db8:64::192.0.2.1", translate.SourceRefused, "", ""},
		{"from natless", "fd00::1", "2001:db8:64::192.0.2.1", translate.SourceRefused, "", ""},
		{"to unspecified", client, "2001:db8:64::0.0.0.0", translate.DestinationRefused, "", ""},
		{"to this network", client, "2001:db8:64::0.1.2.3", translate.DestinationRefused, "", ""},
		{"to loopback", client, "2001:db8:64::127.0.0.1", translate.DestinationRefused, "", ""},
		{"to metadata", client, "2001:db8:64::169.254.169.254", translate.DestinationRefused, "", ""},
		{"to multicast", client, "2001:db8:64::224.0.0.251", translate.DestinationRefused, "", ""},
		{"to class E", client, "2001:db8:64::240.0.0.1", translate.DestinationRefused, "", ""},
		{"to broadcast", client, "2001:db8:64::255.255.255.255", translate.DestinationRefused, "", ""},
		{"to IPv6 multicast", client, "ff0e::1", translate.DestinationRefused, "", ""},
		{"to IPv6 link-local", client, "fe80::1", translate.DestinationRefused, "", ""},
		{"to v4-mapped", client, "::ffff:192.0.2.1", translate.DestinationRefused, "", ""},
		{"to private", client, "2001:db8:64::10.1.2.3", translate.PrivateIPv4, "", ""},
		{"to private", client, "2001:db8:64::172.31.2.3", translate.PrivateIPv4, "", ""},
		{"to private", client, "2001:db8:64::192.168.2.3", translate.PrivateIPv4, "", ""},
		{"to shared", client, "2001:db8:64::100.127.2.3", translate.PrivateIPv4, "", ""},
		{"to natless", client, "fd00::1", translate.OwnAddress, "", ""},
		{"to natless by IPv4", client, "2001:db8:64::169.254.64.1", translate.OwnAddress, "", ""},
		{"from nowhere to natless", "::", "fd00::1", translate.SourceRefused, "", ""},

		// 4→6 source: map, then pref64. Destination: map, then lease.
		{"to lease", "192.0.2.1", "169.254.64.2", translate.OK, "2001:db8:64::192.0.2.1", client},
		{"to map", "192.0.2.1", "198.51.100.5", translate.OK, "2001:db8:64::192.0.2.1", "2001:db8:1::5"},
		{"to nested map", "192.0.2.1", "198.51.100.7", translate.OK, "2001:db8:64::192.0.2.1", "2001:db8:2::7"},
		{"to map with a longer suffix", "192.0.2.1", "198.18.2.3", translate.OK, "2001:db8:64::192.0.2.1", "2001:db8:3:0:203::"},
		{"from map", "198.51.100.5", "169.254.64.2", translate.OK, "2001:db8:1::5", client},
		{"from lease", "169.254.64.2", "198.51.100.5", translate.OK, "2001:db8:64::169.254.64.2", "2001:db8:1::5"},
		{"to unlent", "192.0.2.1", "169.254.64.14", translate.DestinationUnmapped, "", ""},
		{"to nobody", "192.0.2.1", "203.0.113.1", translate.DestinationUnmapped, "", ""},
		{"to loopback", "192.0.2.1", "127.0.0.1", translate.DestinationRefused, "", ""},
		{"to multicast", "192.0.2.1", "224.0.0.1", translate.DestinationRefused, "", ""},
		{"to metadata", "192.0.2.1", "169.254.169.254", translate.DestinationRefused, "", ""},
		{"to private", "192.0.2.1", "10.0.0.1", translate.DestinationUnmapped, "", ""},
		{"to natless", "192.0.2.1", "169.254.64.1", translate.OwnAddress, "", ""},
		{"from natless", "169.254.64.1", "169.254.64.2", translate.SourceRefused, "", ""},
		{"from loopback", "127.0.0.1", "169.254.64.2", translate.SourceRefused, "", ""},
		{"from unspecified", "0.0.0.0", "169.254.64.2", translate.SourceRefused, "", ""},
		{"from multicast", "224.0.0.1", "169.254.64.2", translate.SourceRefused, "", ""},
		{"from class E", "250.0.0.1", "169.254.64.2", translate.SourceRefused, "", ""},
		{"from link-local", "169.254.1.1", "169.254.64.2", translate.SourceRefused, "", ""},
		{"from private", "10.0.0.1", "169.254.64.2", translate.PrivateIPv4, "", ""},
		{"from private to natless", "10.0.0.1", "169.254.64.1", translate.OwnAddress, "", ""},
		{"from multicast to natless", "224.0.0.1", "169.254.64.1", translate.SourceRefused, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := example()
			e.GlobalOnly = c.verdict == translate.PrivateIPv4
			x := table(t, e)
			_, v := x.Resolve(flow(client, "2001:db8:64::192.0.0.9"), 100)
			require.Equal(t, translate.OK, v)
			before := len(x.Leases())

			in := flow(c.src, c.dst)
			out, verdict := x.Resolve(in, 100)
			require.Equal(t, c.verdict.String(), verdict.String())
			again, same := x.Lookup(in)
			assert.Equal(t, verdict, same, "Lookup agrees")
			assert.Len(t, x.Leases(), before, "nothing was lent")
			if !verdict.Leaves() {
				return
			}
			assert.Equal(t, out, again)
			in.Src, in.Dst = addr(c.toSrc), addr(c.toDst)
			assert.Equal(t, in, out)
		})
	}
}

func TestResolveProtocol(t *testing.T) {
	x := table(t, example())
	f := flow("2001:db8:1::5", "2001:db8:64::192.0.2.1")
	f.Proto, f.Frag = 58, translate.Later
	out, _ := x.Resolve(f, 1)
	assert.EqualValues(t, 1, out.Proto)
	assert.Equal(t, translate.Later, out.Frag)
	back, _ := x.Resolve(out.Reversed(), 1)
	assert.Equal(t, f.Reversed(), back)
}

// What a drop looks like before anything is leased: no packet that goes
// nowhere may take an address.
func TestNoLeaseForADrop(t *testing.T) {
	c := example()
	c.GlobalOnly = true
	x := table(t, c)
	for _, dst := range []string{"2001:db8:64::10.0.0.1", "2001:db8:64::192.0.2.1", "2001:db8:64::169.254.169.254", "fd00::1", "2001:db8:d::1", "2001:db8:64::169.254.64.1"} {
		_, v := x.Resolve(flow(client, dst), 1)
		assert.False(t, v.Leaves(), dst)
	}
	assert.Empty(t, x.Leases())
	assert.EqualValues(t, 1, x.Revision())

	_, v := x.Lookup(flow(client, "2001:db8:64::192.0.0.9"))
	assert.Equal(t, translate.SourceUnmapped, v)
	assert.Empty(t, x.Leases())
}

func TestPrivateAllowed(t *testing.T) {
	c := example()
	c.GlobalOnly = false
	x := table(t, c)
	out, v := x.Resolve(flow(client, "2001:db8:64::10.0.0.1"), 1)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, addr("10.0.0.1"), out.Dst)
	_, v = x.Resolve(flow("10.0.0.1", "169.254.64.2"), 1)
	assert.Equal(t, translate.OK, v)
}

// A map comes before pref64: the private block is no concern of its addresses.
// A block within the map's range that nobody can have stays refused.
func TestBlocksAgainstMaps(t *testing.T) {
	c := Config{Pref64: pfx("64:ff9b::/96"), Maps: []Map{
		{IPv4: pfx("0.0.0.0/0"), IPv6: pfx("2001:db8:4::/96")},
		{IPv4: pfx("192.168.0.0/24"), IPv6: pfx("2001:db8:5::/64")},
	}}
	x := table(t, c)
	for v4, v6 := range map[string]string{"10.1.2.3": "2001:db8:4::10.1.2.3", "192.168.0.5": "2001:db8:5:0:500::", "192.168.1.5": "2001:db8:4::192.168.1.5"} {
		out, v := x.Resolve(flow("203.0.113.1", v4), 1)
		assert.Equal(t, translate.OK, v)
		assert.Equal(t, addr(v6), out.Dst)
	}
	// Refused means refused, both ways: nor does the map's IPv6 side reach it.
	for _, v4 := range []string{"127.0.0.1", "169.254.169.254", "224.0.0.1", "240.0.0.1", "255.255.255.255", "0.0.0.0"} {
		v6 := "2001:db8:4::" + v4
		_, v := x.Resolve(flow("2001:db8:5:0:500::", v6), 1)
		assert.Equal(t, translate.DestinationRefused, v, v6)
		_, v = x.Resolve(flow(v6, "2001:db8:4::203.0.113.1"), 1)
		assert.Equal(t, translate.SourceRefused, v, v6)
		assert.Equal(t, RuleRefused, x.Explain(addr(v6)).Rule)
		_, _, ok := x.Behind(addr(v6))
		assert.False(t, ok)
		assert.False(t, x.Permits(addr(v6)))
		_, v = x.Resolve(flow("203.0.113.1", v4), 1)
		assert.Equal(t, translate.DestinationRefused, v, v4)
		_, v = x.Resolve(flow(v4, "203.0.113.1"), 1)
		assert.Equal(t, translate.SourceRefused, v, v4)
	}
}

func TestMapsOnly(t *testing.T) {
	x := table(t, Config{Maps: []Map{{IPv4: pfx("198.51.100.0/24"), IPv6: pfx("2001:db8:1::/120")}, {IPv4: pfx("192.0.2.0/24"), IPv6: pfx("2001:db8:9::/64")}}})
	out, v := x.Resolve(flow("2001:db8:1::5", "2001:db8:9:0:700::"), 1)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, flow("198.51.100.5", "192.0.2.7"), out)
	out, v = x.Resolve(out.Reversed(), 1)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, flow("2001:db8:1::5", "2001:db8:9:0:700::").Reversed(), out)

	_, v = x.Resolve(flow("2001:db8:1::5", "64:ff9b::192.0.2.1"), 1)
	assert.Equal(t, translate.DestinationUnmapped, v)
	_, v = x.Resolve(flow("2001:db8:7::5", "2001:db8:9:0:700::"), 1)
	assert.Equal(t, translate.SourceUnmapped, v)
	_, v = x.Resolve(flow("203.0.113.1", "198.51.100.5"), 1)
	assert.Equal(t, translate.SourceUnmapped, v)
	_, v = x.ResolveError(flow("203.0.113.1", "198.51.100.5"))
	assert.Equal(t, translate.SourceUnmapped, v, "nobody to stand in")
	_, v = x.ResolveError(flow("2001:db8:7::5", "2001:db8:9:0:700::"))
	assert.Equal(t, translate.SourceUnmapped, v, "nobody to stand in")
	assert.False(t, x.Own(netip.Addr{}))
}

// The table of RFC 7757 3.2, with pref64 elsewhere, since its last row maps
// addresses under the well-known prefix.
func TestRFC7757Examples(t *testing.T) {
	x := table(t, Config{Pref64: pfx("2001:db8:64::/96"), Maps: []Map{
		{IPv4: pfx("192.0.2.1/32"), IPv6: pfx("2001:db8:aaaa::/128")},
		{IPv4: pfx("192.0.2.2/32"), IPv6: pfx("2001:db8:bbbb::b/128")},
		{IPv4: pfx("192.0.2.16/28"), IPv6: pfx("2001:db8:cccc::/124")},
		{IPv4: pfx("192.0.2.128/26"), IPv6: pfx("2001:db8:dddd::/64")},
		{IPv4: pfx("192.0.2.192/29"), IPv6: pfx("2001:db8:eeee:8::/62")},
		{IPv4: pfx("192.0.2.224/31"), IPv6: pfx("64:ff9b::/127")},
	}})
	for _, c := range []struct{ v4, v6 string }{
		{"192.0.2.1", "2001:db8:aaaa::"},
		{"192.0.2.2", "2001:db8:bbbb::b"},
		{"192.0.2.16", "2001:db8:cccc::"},
		{"192.0.2.24", "2001:db8:cccc::8"},
		{"192.0.2.31", "2001:db8:cccc::f"},
		{"192.0.2.128", "2001:db8:dddd::"},
		{"192.0.2.152", "2001:db8:dddd:0:6000::"},
		{"192.0.2.191", "2001:db8:dddd:0:fc00::"},
		{"192.0.2.192", "2001:db8:eeee:8::"},
		{"192.0.2.194", "2001:db8:eeee:9::"},
		{"192.0.2.197", "2001:db8:eeee:a:8000::"},
		{"192.0.2.199", "2001:db8:eeee:b:8000::"},
		{"192.0.2.224", "64:ff9b::"},
		{"192.0.2.225", "64:ff9b::1"},
	} {
		assert.Equal(t, addr(c.v6), x.Explain(addr(c.v4)).Other)
		assert.Equal(t, addr(c.v4), x.Explain(addr(c.v6)).Other)
	}
	// Bits of the IPv6 suffix without a counterpart are ignored.
	assert.Equal(t, addr("192.0.2.152"), x.Explain(addr("2001:db8:dddd:0:6123:4567:89ab:cdef")).Other)
	assert.Equal(t, RuleUnmapped, x.Explain(addr("64:ff9b::2")).Rule)
}

func TestResolveError(t *testing.T) {
	c := example()
	c.RFC6791 = []netip.Prefix{pfx("203.0.113.8/30"), pfx("203.0.113.64/32")}
	x := table(t, c)

	// To IPv4: a mapped source keeps its address, another gets a stand-in.
	out, v := x.ResolveError(flow("2001:db8:1::5", "2001:db8:64::192.0.2.1"))
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, addr("198.51.100.5"), out.Src)
	seen := map[string]int{}
	for range 1000 {
		out, v = x.ResolveError(flow("2001:db8:ffff::1", "2001:db8:64::192.0.2.1"))
		require.Equal(t, translate.OK, v)
		seen[out.Src.String()]++
	}
	for _, a := range []string{"203.0.113.8", "203.0.113.9", "203.0.113.10", "203.0.113.11", "203.0.113.64"} {
		assert.Greater(t, seen[a], 100, a)
	}
	assert.Len(t, seen, 5)
	_, v = x.ResolveError(flow(client, "2001:db8:64::192.0.2.1"))
	assert.Equal(t, translate.OK, v, "a client without a lease is a router like others")
	assert.Empty(t, x.Leases())
	_, v = x.ResolveError(flow("fe80::1", "2001:db8:64::192.0.2.1"))
	assert.Equal(t, translate.OK, v)
	_, v = x.ResolveError(flow("fd00::1", "2001:db8:64::198.51.100.5"))
	assert.Equal(t, translate.Hairpin, v)
	for _, src := range []string{"::", "::1", "ff02::1", "::ffff:192.0.2.1", "2001:db8:64::1"} {
		_, v = x.ResolveError(flow(src, "2001:db8:64::192.0.2.1"))
		assert.Equal(t, translate.SourceRefused, v, src)
	}
	_, v = x.ResolveError(flow("2001:db8:ffff::1", "2001:db8:d::1"))
	assert.Equal(t, translate.DestinationUnmapped, v)

	// To IPv6: own address for all that cannot be represented.
	c.GlobalOnly = true
	x = table(t, c)
	for src, want := range map[string]string{
		"192.0.0.9": "2001:db8:64::192.0.0.9", "198.51.100.5": "2001:db8:1::5",
		"10.0.0.1": "fd00::1", "192.0.2.1": "fd00::1", "169.254.169.254": "fd00::1", "169.254.1.1": "fd00::1", "240.0.0.1": "fd00::1", "169.254.64.1": "fd00::1",
	} {
		out, v = x.ResolveError(flow(src, "198.51.100.5"))
		assert.Equal(t, translate.OK, v, src)
		assert.Equal(t, flow(want, "2001:db8:1::5"), out)
	}
	for _, src := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		_, v = x.ResolveError(flow(src, "198.51.100.5"))
		assert.Equal(t, translate.SourceRefused, v, src)
	}

	// Without rfc6791 natless's own address speaks.
	out, _ = table(t, example()).ResolveError(flow("2001:db8:ffff::1", "2001:db8:64::192.0.2.1"))
	assert.Equal(t, addr("169.254.64.1"), out.Src)
}

// A hairpinned exchange looks to each client as if the other were behind
// pref64 (RFC 7757 4.2.2), also where maps would say otherwise.
func TestHairpinBack(t *testing.T) {
	x := table(t, example())
	there, v := x.Resolve(flow("2001:db8:1::5", "2001:db8:64::198.51.100.7"), 1)
	require.Equal(t, translate.Hairpin, v)
	back, v := x.HairpinBack(there)
	require.Equal(t, translate.OK, v)
	assert.Equal(t, flow("2001:db8:64::198.51.100.5", "2001:db8:2::7"), back)

	answer, v := x.Resolve(back.Reversed(), 1)
	require.Equal(t, translate.Hairpin, v)
	answer, v = x.HairpinBack(answer)
	require.Equal(t, translate.OK, v)
	assert.Equal(t, flow("2001:db8:1::5", "2001:db8:64::198.51.100.7").Reversed(), answer)

	_, v = x.HairpinBack(flow("198.51.100.5", "203.0.113.1"))
	assert.Equal(t, translate.DestinationUnmapped, v)

	c := example()
	c.Hairpin = false
	x = table(t, c)
	for _, dst := range []string{"198.51.100.7", "169.254.64.9", "169.254.64.5"} {
		_, v = x.Resolve(flow("2001:db8:1::5", "2001:db8:64::"+dst), 1)
		assert.Equal(t, translate.HairpinOff, v)
	}
}

func TestOwn(t *testing.T) {
	x := table(t, example())
	for a, own := range map[string]bool{"169.254.64.1": true, "fd00::1": true, "2001:db8:64::169.254.64.1": true, "169.254.64.2": false, "fd00::2": false} {
		assert.Equal(t, own, x.Own(addr(a)), a)
	}
}

func TestNewRefuses(t *testing.T) {
	m := func(v4, v6, origin string) Map { return Map{IPv4: pfx(v4), IPv6: pfx(v6), Origin: origin} }
	pool := func(v4 string) Pool { return Pool{IPv4: pfx(v4), Local: true, Origin: "natless.toml:20"} }
	for _, c := range []struct {
		name   string
		change func(*Config)
		errors []string
	}{
		{"same IPv4 twice", func(c *Config) { c.Maps = append(c.Maps, m("198.51.100.0/24", "2001:db8:8::/120", "natless.toml:30")) },
			[]string{"map 198.51.100.0/24 = 2001:db8:8::/120 (natless.toml:30): ", "already", "(natless.toml:12)"}},
		{"same IPv6 twice", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "2001:db8:1::/120", "flag")) },
			[]string{"map 203.0.113.0/24 = 2001:db8:1::/120 (flag): 2001:db8:1::/120 is mapped already", "(natless.toml:12)"}},
		{"IPv6 suffix too short", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "2001:db8:8::/121", "")) },
			[]string{"map 203.0.113.0/24 = 2001:db8:8::/121: ", "expected an IPv6 prefix of at most /120"}},
		{"host bits of IPv4", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.1/24", "2001:db8:8::/120", "")) },
			[]string{"expected 203.0.113.0/24"}},
		{"host bits of IPv6", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "2001:db8:8::1/120", "")) },
			[]string{"expected 2001:db8:8::/120"}},
		{"families swapped", func(c *Config) { c.Maps = append(c.Maps, m("2001:db8:8::/120", "203.0.113.0/24", "")) },
			[]string{"2001:db8:8::/120 is not an IPv4 prefix"}},
		{"IPv4 twice", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "203.0.113.0/24", "")) },
			[]string{"203.0.113.0/24 is not an IPv6 prefix"}},
		{"v4-mapped", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "::ffff:203.0.113.0/120", "")) },
			[]string{"is not an IPv6 prefix"}},
		{"map is pref64", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "2001:db8:64::/96", "f:1")) },
			[]string{"(f:1): ", "overlaps pref64 2001:db8:64::/96"}},
		{"map under pref64 of a pool's address", func(c *Config) {
			c.Maps = append(c.Maps, m("203.0.113.5/32", "2001:db8:64::a9fe:4005/128", "f:1"))
		}, []string{"pool 169.254.64.0/28", "the IPv6 address that stands for 169.254.64.5/32 by pref64 is taken by map 203.0.113.5/32"}},
		{"map under pref64 of another's", func(c *Config) {
			c.Maps = append(c.Maps, m("203.0.113.7/32", "2001:db8:64::c633:6407/128", "f:1"))
		}, []string{"(f:1): ", "by pref64 it stands for 198.51.100.7/32, which is taken by map 198.51.100.7/32"}},
		{"map in link-local", func(c *Config) { c.Maps = append(c.Maps, m("169.254.1.0/24", "2001:db8:8::/120", "f:1")) },
			[]string{"(f:1): ", "169.254.1.0/24 is refused: it lies in 169.254.0.0/16, link-local (RFC 3927)"}},
		{"map of metadata in a pool", func(c *Config) {
			c.Pools[0].IPv4 = pfx("169.254.0.0/16")
			c.Maps = append(c.Maps, m("169.254.169.254/32", "2001:db8:8::1/128", "f:1"))
		}, []string{"169.254.169.254/32, cloud metadata"}},
		{"map of IPv6 link-local", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.7/32", "fe80::7/128", "f:1")) }, []string{"fe80::/10"}},
		{"map of IPv6 multicast", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "ff05::/120", "f:1")) }, []string{"ff00::/8"}},
		{"map over pref64", func(c *Config) { c.Maps = append(c.Maps, m("203.0.113.0/24", "2001:db8:64::/64", "")) },
			[]string{"overlaps pref64"}},
		{"map is own IPv4", func(c *Config) { c.OwnIPv4 = addr("198.51.100.7") },
			[]string{"own IPv4 address 198.51.100.7: taken by map 198.51.100.7/32", "(natless.toml:17)"}},
		{"map is own IPv6", func(c *Config) { c.OwnIPv6 = addr("2001:db8:2::7") },
			[]string{"own IPv6 address 2001:db8:2::7: taken by map"}},
		{"own IPv4 of the wrong family", func(c *Config) { c.OwnIPv4 = addr("2001:db8::1") }, []string{"not an IPv4 address"}},
		{"own IPv4 is loopback", func(c *Config) { c.OwnIPv4 = addr("127.0.0.1") }, []string{"a loopback address"}},
		{"own IPv4 is metadata", func(c *Config) {
			c.Pools[0].IPv4, c.OwnIPv4 = pfx("169.254.0.0/16"), addr("169.254.169.254")
		}, []string{"cloud metadata"}},
		{"own IPv6 of the wrong family", func(c *Config) { c.OwnIPv6 = addr("192.0.2.1") }, []string{"not an IPv6 address"}},
		{"own IPv6 is a pool's address by pref64", func(c *Config) { c.OwnIPv6 = addr("2001:db8:64::169.254.64.5") },
			[]string{"pool 169.254.64.0/28", "169.254.64.5/32 by pref64 is taken by natless itself"}},
		{"own IPv6 is a map's address by pref64", func(c *Config) { c.OwnIPv6 = addr("2001:db8:64::198.51.100.7") }, []string{"taken by map 198.51.100.7/32"}},
		{"own IPv6 is link-local", func(c *Config) { c.OwnIPv6 = addr("fe80::1") }, []string{"a link-local address"}},
		{"bad pref64", func(c *Config) { c.Pref64 = pfx("2001:db8::/95") }, []string{"pref64 2001:db8::/95"}},
		{"pools overlap", func(c *Config) { c.Pools = append(c.Pools, pool("169.254.0.0/16")) },
			[]string{"pool 169.254.0.0/16 (natless.toml:20): overlaps pool 169.254.64.0/28"}},
		{"pool in a map", func(c *Config) { c.Pools = append(c.Pools, pool("198.51.100.128/25")) },
			[]string{"pool 198.51.100.128/25 (natless.toml:20): all of it is taken by map 198.51.100.0/24", "(natless.toml:12)"}},
		{"pool eaten by maps", func(c *Config) {
			c.Pools = append(c.Pools, pool("203.0.113.0/30"))
			c.Maps = append(c.Maps, m("203.0.113.0/31", "2001:db8:8::/127", ""), m("203.0.113.2/31", "2001:db8:8::2/127", ""))
		}, []string{"pool 203.0.113.0/30", "no address is left"}},
		{"pool of natless's own address", func(c *Config) { c.Pools = append(c.Pools, pool("203.0.113.1/32")); c.OwnIPv4 = addr("203.0.113.1") },
			[]string{"all of it is taken by natless itself"}},
		{"pool of IPv6", func(c *Config) { c.Pools = append(c.Pools, pool("2001:db8::/64")) }, []string{"not an IPv4 prefix"}},
		{"pool with host bits", func(c *Config) { c.Pools = append(c.Pools, pool("203.0.113.1/24")) }, []string{"expected 203.0.113.0/24"}},
		{"pool too large", func(c *Config) { c.Pools = append(c.Pools, pool("12.0.0.0/7")) }, []string{"larger than a /8"}},
		{"pool of loopback", func(c *Config) { c.Pools = append(c.Pools, pool("127.1.0.0/16")) }, []string{"loopback"}},
		{"pool for nobody", func(c *Config) { c.Pools[0].Clients = nil }, []string{"no client may lease"}},
		{"pool for IPv4", func(c *Config) { c.Pools[0].Clients = []netip.Prefix{pfx("10.0.0.0/8")} }, []string{"client 10.0.0.0/8"}},
		{"negative duration", func(c *Config) { c.Pools[0].Idle = -1 }, []string{"negative"}},
		{"endless duration", func(c *Config) { c.Pools[0].Quarantine = 1 << 62 }, []string{"a duration above"}},
		{"rfc6791 in a pool", func(c *Config) { c.RFC6791 = []netip.Prefix{pfx("169.254.64.4/32")} }, []string{"rfc6791 169.254.64.4/32: overlaps pool"}},
		{"rfc6791 in a map", func(c *Config) { c.RFC6791 = []netip.Prefix{pfx("198.51.100.4/32")} }, []string{"overlaps map"}},
		{"rfc6791 after natless's own", func(c *Config) {
			c.RFC6791 = []netip.Prefix{pfx("169.254.64.1/32"), pfx("169.254.64.4/32")}
		}, []string{"rfc6791 169.254.64.4/32"}},
		{"rfc6791 around a map", func(c *Config) { c.RFC6791 = []netip.Prefix{pfx("198.51.0.0/16")} }, []string{"overlaps map 198.51.100.0/24"}},
		{"rfc6791 is link-local", func(c *Config) { c.RFC6791 = []netip.Prefix{pfx("169.254.1.0/24")} }, []string{"overlaps link-local"}},
		{"rfc6791 around class E", func(c *Config) { c.RFC6791 = []netip.Prefix{pfx("192.0.0.0/2")} }, []string{"overlaps"}},
		{"rfc6791 is multicast", func(c *Config) { c.RFC6791 = []netip.Prefix{pfx("224.0.0.0/24")} }, []string{"overlaps multicast"}},
		{"rfc6791 of IPv6", func(c *Config) { c.RFC6791 = []netip.Prefix{pfx("2001:db8::/64")} }, []string{"not an IPv4 prefix"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := example()
			c.change(&config)
			_, err := New(config)
			require.Error(t, err)
			for _, s := range c.errors {
				assert.ErrorContains(t, err, s)
			}
		})
	}
}

func TestDefaultOwnIPv4(t *testing.T) {
	pools := []Pool{{IPv4: pfx("192.0.2.0/30")}, {IPv4: pfx("203.0.113.4/32")}}
	assert.Equal(t, addr("192.0.2.1"), DefaultOwnIPv4(pools, nil))
	maps := []Map{{IPv4: pfx("192.0.2.2/32")}, {IPv4: pfx("192.0.2.0/31")}}
	assert.Equal(t, addr("192.0.2.3"), DefaultOwnIPv4(pools, maps))
	maps[0].IPv4 = pfx("192.0.2.2/31")
	assert.Equal(t, addr("203.0.113.4"), DefaultOwnIPv4(pools, maps))
	assert.False(t, DefaultOwnIPv4([]Pool{{}, {IPv4: pfx("2001:db8::/64")}}, maps).IsValid())
	assert.Equal(t, addr("203.0.113.4"), DefaultOwnIPv4(append([]Pool{{}}, pools...), maps))
}

// From IPv4 to IPv6 and back is the identity for any map, and the address on
// the other side is what slow arithmetic on bit strings says.
func TestMapLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n4 := rapid.IntRange(0, 32).Draw(t, "IPv4 length")
		n6 := rapid.IntRange(8, 96+n4).Draw(t, "IPv6 length")
		p4 := netip.PrefixFrom(drawAddr4(t, "IPv4"), n4).Masked()
		b := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "IPv6"))
		b[0] = 0x20
		p6 := netip.PrefixFrom(netip.AddrFrom16(b), n6).Masked()
		e := newEntry(kindMap, p4, p6, nil)

		suffix := rapid.Uint32().Draw(t, "suffix")
		v4 := addr4(number4(p4.Addr()) | uint32(uint64(suffix)&(1<<(32-n4)-1)))
		v6 := e.to6(v4)
		require.Equal(t, slowTo6(v4, p4, p6), v6)
		require.Equal(t, v4, e.to4(v6))

		// Trailing bits make no difference on the way to IPv4.
		noise := v6.As16()
		for i := n6 + 32 - n4; i < 128; i++ {
			if rapid.Bool().Draw(t, "bit") {
				noise[i/8] |= 0x80 >> (i % 8)
			}
		}
		require.Equal(t, v4, e.to4(netip.AddrFrom16(noise)))
	})
}

// slowTo6 is RFC 7757 3.3.1 on strings of bits.
func slowTo6(a netip.Addr, p4, p6 netip.Prefix) netip.Addr {
	bits := ""
	for _, x := range p6.Addr().AsSlice() {
		bits += fmt.Sprintf("%08b", x)
	}
	bits = bits[:p6.Bits()] + fmt.Sprintf("%032b", number4(a))[p4.Bits():]
	var b [16]byte
	for i, x := range bits {
		if x == '1' {
			b[i/8] |= 0x80 >> (i % 8)
		}
	}
	return netip.AddrFrom16(b)
}

// Through a whole table: what Resolve makes of a packet, it undoes for the
// answer.
func TestAnswerLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPref64(t)
		c := example()
		c.Pref64 = p.Prefix()
		c.Maps, c.GlobalOnly = c.Maps[:1], false
		if p.Prefix().Overlaps(c.Maps[0].IPv6) {
			t.Skip("pref64 over the map")
		}
		x, err := New(c)
		require.NoError(t, err)

		f := translate.Flow{Dst: p.Embed(drawAddr4(t, "server")), SrcPort: 1, DstPort: 2, Proto: rapid.SampledFrom([]uint8{6, 17, 58}).Draw(t, "protocol")}
		prefix := rapid.SampledFrom([]netip.Prefix{c.Maps[0].IPv6, c.Pools[0].Clients[0]}).Draw(t, "client")
		b := prefix.Addr().As16()
		b[15] = rapid.Byte().Draw(t, "client")
		f.Src = netip.AddrFrom16(b)
		if p.Prefix().Contains(f.Src) {
			t.Skip("pref64 over the clients")
		}

		there, v := x.Resolve(f, 1)
		if !v.Leaves() {
			return
		}
		back, v2 := x.Resolve(there.Reversed(), 1)
		if v == translate.Hairpin {
			there, v2 = x.HairpinBack(there)
			require.Equal(t, translate.OK, v2)
			there, v2 = x.Resolve(there.Reversed(), 1)
			require.Equal(t, translate.Hairpin, v2)
			back, v2 = x.HairpinBack(there)
		}
		require.Equal(t, translate.OK, v2)
		require.Equal(t, f.Reversed(), back)
	})
}

// A packet to a destination that natless reaches costs no allocation, once its
// client has a lease.
func TestResolveAllocatesNothing(t *testing.T) {
	x := table(t, example())
	for _, f := range []translate.Flow{
		flow(client, "2001:db8:64::192.0.2.1"),
		flow("2001:db8:1::5", "2001:db8:64::192.0.2.1"),
		flow("2001:db8:1::5", "2001:db8:64::198.51.100.7"),
		flow("192.0.2.1", "169.254.64.2"),
		flow("192.0.2.1", "198.51.100.5"),
		flow("2001:db8:d::5", "2001:db8:64::192.0.2.1"),
	} {
		tick := uint32(0)
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			tick++
			x.Resolve(f, tick)
			in := f
			x.ResolveRanges(&in, tick)
			x.Lookup(f)
			x.ResolveError(f)
			x.HairpinBack(f)
			x.Own(f.Dst)
		}), "%v", f)
	}
}
