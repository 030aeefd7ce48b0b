package mapping

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

// Links 1 and 2 meet, and those on 1 do; behind 3 is a router.
func someLinks() Around {
	return Around{
		Ways: []Way{
			{Prefix: pfx("2001:db8:1::/64"), Link: 1},
			{Prefix: pfx("2001:db8:1::1/128")},
			{Prefix: pfx("2001:db8:2::/64"), Link: 2},
			{Prefix: pfx("2001:db8:3::/64"), Link: 3, Router: true},
		},
		Meet: [][2]int{{1, 1}, {1, 2}},
	}
}

func guarded(t *testing.T, own ...Map) *Table {
	maps := append(own,
		Map{IPv4: pfx("198.51.100.1/32"), IPv6: pfx("2001:db8:1::1/128")}, // of the host
		Map{IPv4: pfx("198.51.100.10/32"), IPv6: pfx("2001:db8:1::10/128")},
		Map{IPv4: pfx("198.51.100.11/32"), IPv6: pfx("2001:db8:1::11/128")},
		Map{IPv4: pfx("198.51.100.20/32"), IPv6: pfx("2001:db8:2::20/128")},
		Map{IPv4: pfx("198.51.100.21/32"), IPv6: pfx("2001:db8:2::21/128")},
		Map{IPv4: pfx("198.51.100.30/32"), IPv6: pfx("2001:db8:3::30/128")},
		Map{IPv4: pfx("198.51.100.99/32"), IPv6: pfx("2001:db8:9::99/128")}, // somewhere
	)
	return table(t, Config{
		Pref64: pfx("64:ff9b::/96"), Maps: maps, OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"), Hairpin: true, Guarded: true,
		Pools: []Pool{{IPv4: pfx("203.0.113.0/28"), Clients: []netip.Prefix{pfx("2001:db8:1::/64"), pfx("2001:db8:3::/64")}}},
	})
}

func TestHairpinsAreGuarded(t *testing.T) {
	x := guarded(t)
	reaches := func(from, to string) bool {
		f := flow(from, "64:ff9b::"+to)
		before := f
		_, v := x.ResolveRanges(&f, 0)
		require.Contains(t, []translate.Verdict{translate.Hairpin, translate.HairpinOff}, v)
		back := flow(from, to)
		back.Dst, back.DstPort = before.Dst, before.SrcPort
		_, ofError := x.ResolveError(back)
		require.Equal(t, v, ofError, "an error takes no other way")
		return v == translate.Hairpin
	}
	assert.False(t, reaches("2001:db8:1::10", "198.51.100.11"), "nothing is known yet")
	assert.True(t, reaches("2001:db8:1::10", "198.51.100.10"), "itself")

	before := x.Revision()
	x.SetAround(someLinks())
	assert.Greater(t, x.Revision(), before, "workers ask anew")
	assert.True(t, reaches("2001:db8:1::10", "198.51.100.11"), "on a link that meets itself")
	assert.True(t, reaches("2001:db8:1::10", "198.51.100.20"), "between links that meet")
	assert.True(t, reaches("2001:db8:2::20", "198.51.100.10"), "and back")
	assert.False(t, reaches("2001:db8:2::20", "198.51.100.21"), "on a link that keeps its clients apart")
	assert.False(t, reaches("2001:db8:1::10", "198.51.100.30"), "to another link")
	assert.False(t, reaches("2001:db8:1::10", "198.51.100.99"), "to who knows where")
	assert.False(t, reaches("2001:db8:9::99", "198.51.100.10"), "from who knows where")
	assert.False(t, reaches("2001:db8:1::10", "198.51.100.1"), "to an address of the host")
	assert.False(t, reaches("2001:db8:1::1", "198.51.100.10"), "which would get no answer either")

	same := x.Revision()
	x.SetAround(someLinks())
	assert.Equal(t, same, x.Revision(), "that is no news")
	all := someLinks()
	all.All = true
	x.SetAround(all)
	assert.True(t, reaches("2001:db8:9::99", "198.51.100.30"))
	assert.False(t, reaches("2001:db8:1::10", "198.51.100.1"), "what is forwarded is not what the host takes")
	all.Host = true
	x.SetAround(all)
	assert.True(t, reaches("2001:db8:1::10", "198.51.100.1"))
}

// Of a shared address the client counts that has the port.
func TestSharedHairpinsAreGuarded(t *testing.T) {
	p := Pool{
		IPv4: pfx("203.0.113.1/32"), Clients: []netip.Prefix{pfx("2001:db8:1::/64"), pfx("2001:db8:2::/64"), pfx("2001:db8:3::/64")},
		Quarantine: RestRange, Ports: Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535},
	}
	x := table(t, Config{Pref64: pfx("64:ff9b::/96"), Pools: []Pool{p}, OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"), Hairpin: true, Guarded: true})
	x.SetAround(someLinks())
	for i, client := range []string{"2001:db8:1::10", "2001:db8:2::20", "2001:db8:3::30"} {
		f := flow(client, "64:ff9b::192.0.2.9")
		r, v := x.ResolveRanges(&f, 0)
		require.Equal(t, translate.OK, v)
		require.EqualValues(t, 1024*(i+1), r.Src.First)
	}
	for port, want := range map[uint16]translate.Verdict{
		1024: translate.Hairpin, 2048: translate.Hairpin, 3072: translate.HairpinOff, 4096: translate.DestinationUnmapped,
	} {
		f := flow("2001:db8:1::10", "64:ff9b::203.0.113.1")
		f.DstPort = port
		_, v := x.ResolveRanges(&f, 0)
		assert.Equal(t, want, v, port)
	}
}

func TestSpeaksFor(t *testing.T) {
	x := guarded(t, Map{IPv4: pfx("192.0.2.128/25"), IPv6: pfx("2001:db8:3:1::/121")})
	const hard, soft = true, false
	for _, c := range []struct {
		why, host, dst string
		hard, soft     bool
	}{
		{"itself", "2001:db8:1::10", "2001:db8:1::10", true, true},
		{"this host, which forwards to it", "2001:db8:1::1", "2001:db8:2::20", true, true},
		{"a neighbour", "2001:db8:1::11", "2001:db8:1::10", false, false},
		{"a client without a lease", "2001:db8:1::77", "2001:db8:1::10", false, false},
		{"a client on another link", "2001:db8:2::20", "2001:db8:1::10", false, false},
		{"no client, of one that no router is before", "2001:db8:2::77", "2001:db8:1::10", false, false},
		{"a client, of one behind a router", "2001:db8:1::10", "2001:db8:3::30", false, true},
		{"a router, of one behind it", "2001:db8:9::1", "2001:db8:3::30", true, true},
		{"a router that is a client, of another behind it", "2001:db8:3::1", "2001:db8:3::30", false, true},
		{"a router inside the prefix of a map", "2001:db8:3:1::1", "2001:db8:3:1::70", true, true},
		{"a host inside the prefix of a map, of another", "2001:db8:3:1::1", "2001:db8:1::10", false, false},
		{"of one who knows where", "2001:db8:1::10", "2001:db8:9::99", false, true},
	} {
		x.SetAround(someLinks())
		assert.Equal(t, c.hard, x.SpeaksFor(addr(c.host), addr(c.dst), hard), c.why)
		assert.Equal(t, c.soft, x.SpeaksFor(addr(c.host), addr(c.dst), soft), c.why)
	}
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		x.SpeaksFor(addr("2001:db8:1::11"), addr("2001:db8:1::10"), hard)
		x.around.Load().lets(addr("2001:db8:1::11"), addr("2001:db8:2::10"))
	}))
}
