package daemon

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/mapping"
)

const example = `
[device]
name = "nat6"
mtu = 9000
[network]
manage = false
on_exit = "keep"
[translation]
pref64 = "2001:db8:64::/96"
ipv6 = "2001:db8::1"
rfc6791_ipv4 = ["192.0.2.0/28"]
hairpin = "off"
[[map]]
ipv4 = "198.51.100.0/24"
ipv6 = "2001:db8:1::/120"
label = "web"
[[map]]
ipv4 = "169.254.64.1"
ipv6 = "2001:db8:2::1"
[[pool]]
clients = ["local", "2001:db8:3::/64"]
quarantine = "0"
`

// load reads a configuration; file is the name it has in places.
func load(t *testing.T, text string) (c *config.Config, file string, err error) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "natless.toml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c, err = config.Load(file)
	return c, file, err
}

func TestMapping(t *testing.T) {
	prefix := netip.MustParsePrefix
	c, file, err := load(t, example)
	require.NoError(t, err)
	assert.Equal(t, mapping.Config{
		Pref64: prefix("2001:db8:64::/96"),
		Maps: []mapping.Map{
			{IPv4: prefix("198.51.100.0/24"), IPv6: prefix("2001:db8:1::/120"), Label: "web", Origin: file + ":13"},
			{IPv4: prefix("169.254.64.1/32"), IPv6: prefix("2001:db8:2::1/128"), Origin: file + ":17"},
		},
		Pools: []mapping.Pool{{
			IPv4: prefix("169.254.64.0/20"), Clients: []netip.Prefix{prefix("2001:db8:3::/64")}, Local: true,
			Idle: time.Hour, Origin: file + ":20",
		}},
		OwnIPv4: netip.MustParseAddr("169.254.64.2"), OwnIPv6: netip.MustParseAddr("2001:db8::1"),
		RFC6791:      []netip.Prefix{prefix("192.0.2.0/28")},
		AllowPrivate: true,
	}, Mapping(c))

	usual := Mapping(config.Default())
	assert.True(t, usual.Hairpin)
	assert.True(t, usual.Guarded)
	assert.False(t, usual.AllowPrivate)
}

func TestPlan(t *testing.T) {
	prefixes := func(list ...string) (p []netip.Prefix) {
		for _, s := range list {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	c, _, err := load(t, example)
	require.NoError(t, err)
	p := Plan(c)
	assert.ElementsMatch(t, prefixes("2001:db8:64::/96", "2001:db8::1/128"), p.IPv6)
	assert.ElementsMatch(t, prefixes("169.254.64.0/20", "169.254.64.2/32", "169.254.64.1/32", "192.0.2.0/28", "198.51.100.0/24"), p.IPv4)
	p.IPv6, p.IPv4 = nil, nil
	assert.Equal(t, hostnet.Plan{
		Device: "nat6", MTU: 9000, Manage: false, Keep: true, Guarded: true, Apart: true, // of the host: its own addresses
		Masquerade: prefixes("169.254.64.0/20"),
		Inbound:    prefixes("169.254.64.2/32", "198.51.100.0/24", "169.254.64.1/32"),
		Clients:    prefixes("2001:db8:1::/120", "2001:db8:2::1/128", "2001:db8:3::/64"),
		Local:      true,
	}, p)

	c, _, err = load(t, `
[[pool]]
ipv4 = "203.0.113.0/28"
mode = "port-range"
[[pool]]
ipv4 = "10.0.0.0/24"
mode = "port-range"
[[pool]]
ipv4 = "198.51.100.0/24"`)
	require.NoError(t, err)
	p = Plan(c)
	assert.Equal(t, prefixes("10.0.0.0/24"), p.Masquerade)
	assert.Equal(t, prefixes("203.0.113.1/32", "203.0.113.0/28"), p.Inbound, "shared addresses are open, unless they are masqueraded")
	assert.ElementsMatch(t, prefixes("203.0.113.1/32", "203.0.113.0/28", "10.0.0.0/24", "198.51.100.0/24"), p.IPv4)

	c, _, err = load(t, "[translation]\npref64 = \"\"\nipv6 = \"2001:db8::1\"")
	require.NoError(t, err)
	p = Plan(c)
	assert.Equal(t, prefixes("2001:db8::1/128"), p.IPv6)
	assert.True(t, p.Manage)
	assert.False(t, p.Keep)
}

// TestConfigurationRefusesFirst holds that whatever the mapping refuses, the
// configuration has refused before, with its place in the file.
func TestConfigurationRefusesFirst(t *testing.T) {
	file := filepath.Join(t.TempDir(), "natless.toml")
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		// Few addresses, so that they meet.
		v4 := rapid.SampledFrom([]string{"192.0.2.0/29", "192.0.2.0/30", "192.0.2.0/31", "192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.4/30",
			"198.51.100.7", "10.0.0.0/8", "127.0.0.1", "240.0.0.0/8", "169.254.64.0/20", "0.0.0.0/0"})
		v6 := rapid.SampledFrom([]string{"2001:db8::/125", "2001:db8::/127", "2001:db8::1", "2001:db8::2", "2001:db8:64::/96", "2001:db8:64::1",
			"2001:db8:1::/64", "fe80::1", "::ffff:0:0/96", "::/0"})
		addr4 := rapid.SampledFrom([]string{"", "192.0.2.0", "192.0.2.1", "192.0.2.2", "198.51.100.7", "240.0.0.1", "127.0.0.1"})
		addr6 := rapid.SampledFrom([]string{"", "2001:db8::1", "2001:db8:64::1", "2001:db8:1::1", "fe80::1"})
		pref64 := rapid.SampledFrom([]string{"", "64:ff9b::/96", "2001:db8:64::/96", "2001:db8::/32", "::/96"})

		text := fmt.Sprintf("[translation]\npref64 = %q\nipv4 = %q\nipv6 = %q\nrfc6791_ipv4 = [", pref64.Draw(t, "pref64"), addr4.Draw(t, "ipv4"), addr6.Draw(t, "ipv6"))
		for range rapid.IntRange(0, 1).Draw(t, "stand-ins") {
			text += fmt.Sprintf("%q,", v4.Draw(t, "stand-in"))
		}
		text += "]\n"
		for range rapid.IntRange(0, 3).Draw(t, "maps") {
			text += fmt.Sprintf("[[map]]\nipv4 = %q\nipv6 = %q\n", v4.Draw(t, "map 4"), v6.Draw(t, "map 6"))
		}
		for range rapid.IntRange(0, 2).Draw(t, "pools") {
			text += fmt.Sprintf("[[pool]]\nipv4 = %q\nclients = [%q]\nmode = %q\nidle = %q\n", v4.Draw(t, "pool"), v6.Draw(t, "client"),
				rapid.SampledFrom([]string{"one-to-one", "port-range"}).Draw(t, "mode"), rapid.SampledFrom([]string{"0", "1s", "7300d"}).Draw(t, "idle"))
		}
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		c, err := config.Load(file)
		if err != nil {
			return
		}
		accepted++
		_, err = mapping.New(Mapping(c))
		require.NoError(t, err, text)
	})
	assert.NotZero(t, accepted)
}
