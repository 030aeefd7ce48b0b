package config

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

func mustParse(t *testing.T, file string) *Config {
	t.Helper()
	c, err := parse("f", []byte(file))
	require.NoError(t, err)
	return c
}

func TestNotes(t *testing.T) {
	assert.Empty(t, Default().Notes())
	c := mustParse(t, "[[pool]]\nmode = \"port-range\"\n[[pool]]\nipv4 = \"203.0.113.0/24\"\nmode = \"port-range\"\nports_per_client = 256\n[sessions]\nmax = 100000")
	const rest = " a second to one destination, since a port rests for a minute in TIME_WAIT, or more with tcp_tw_reuse"
	assert.Equal(t, []string{
		"pool 169.254.64.0/20: 63 clients share an address, each with 896 ports without state and 128 for sessions: about 15 new connections" + rest,
		"pool 169.254.64.0/20: clients share its addresses, but it is masqueraded: the kernel tracks every flow and may change its port, " +
			`so that nothing is gained over mode = "one-to-one"`,
		"pool 203.0.113.0/24: 252 clients share an address, each with 128 ports without state and 128 for sessions: about 2 new connections" + rest,
		"sessions take 19 MiB when there are 100000, the most there may be",
	}, c.Notes())
}

func TestOwnIPv4(t *testing.T) {
	for want, file := range map[string]string{
		"169.254.64.1": "",
		"192.0.2.1":    "translation.ipv4 = \"192.0.2.1\"",
		"203.0.113.1":  "[[pool]]\nipv4 = \"203.0.113.0/30\"\n[[map]]\nipv4 = \"203.0.113.2\"\nipv6 = \"2001:db8::2\"",
		// The first addresses of the pool are mapped, by nested maps.
		"203.0.113.16": "[[pool]]\nipv4 = \"203.0.113.0/24\"\n[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"2001:db8::1\"\n" +
			"[[map]]\nipv4 = \"203.0.113.0/28\"\nipv6 = \"2001:db8:1::/120\"",
		"198.51.100.8": "[[pool]]\nipv4 = \"198.51.100.8/31\"",
	} {
		assert.Equal(t, want, mustParse(t, file).OwnIPv4().String())
	}
	// At the end of the address space there is no next address.
	end := Default()
	end.Pools[0].IPv4 = netip.MustParsePrefix("255.255.255.255/32")
	end.Maps = []Map{{IPv4: netip.MustParsePrefix("255.255.255.0/24")}}
	assert.False(t, end.OwnIPv4().IsValid())
}

func TestOwnIPv6(t *testing.T) {
	c := mustParse(t, "translation.ipv6 = \"2001:db8::1\"")
	assert.Equal(t, "2001:db8::1", c.OwnIPv6().String())

	one := ula("0123456789abcdef", "natless0")
	assert.True(t, netip.MustParsePrefix("fd00::/8").Contains(one))
	assert.Equal(t, one, ula("0123456789abcdef", "natless0"), "the same after every start")
	assert.NotEqual(t, one, ula("0123456789abcdef", "natless1"), "another for another device")
	assert.NotEqual(t, one, ula("0123456789abcdee", "natless0"), "another for another machine")
	assert.Equal(t, Default().OwnIPv6(), Default().OwnIPv6())
}

func TestLinkULA(t *testing.T) {
	one := LinkULA("web")
	assert.Equal(t, one, LinkULA("web"), "the same every time")
	assert.NotEqual(t, one, LinkULA("web2"))
	assert.True(t, netip.MustParsePrefix("fd00::/8").Contains(one.Addr()))
	assert.Equal(t, one.Masked(), one)
	assert.Equal(t, 64, one.Bits())
}

func TestMachineID(t *testing.T) {
	files := map[string]string{"/proc/sys/kernel/hostname": "web\n", "/proc/sys/kernel/random/boot_id": "b00t\n"}
	read := func(path string) ([]byte, error) {
		if data, ok := files[path]; ok {
			return []byte(data), nil
		}
		return nil, errors.New("no such file")
	}
	check := func(want string, wantStable bool) {
		t.Helper()
		id, stable := machineID(read)
		assert.Equal(t, want, id)
		assert.Equal(t, wantStable, stable)
	}
	check("web\nb00t\n", false)
	files["/etc/machine-id"] = "\n" // as container images have it
	check("web\nb00t\n", false)
	files["/etc/machine-id"] = "uninitialized\n"
	check("web\nb00t\n", false)
	files["/var/lib/dbus/machine-id"] = "d\n"
	check("d", true)
	files["/etc/machine-id"] = "m\n"
	check("m", true)
}

func TestAllowPrivate(t *testing.T) {
	for file, want := range map[string]bool{
		"":                                     false,
		"pref64 = \"64:ff9b:1::/96\"":          true,
		"pref64 = \"\"":                        true,
		"private_ipv4 = \"allow\"":             true,
		"private_ipv4 = \"deny\"\npref64=\"\"": false,
	} {
		assert.Equal(t, want, mustParse(t, "[translation]\n"+file).AllowPrivate(), file)
	}
}

func TestMasquerade(t *testing.T) {
	pools := "[[pool]]\n[[pool]]\nipv4 = \"203.0.113.0/24\"\n[[pool]]\nipv4 = \"100.64.0.0/10\"\n[[pool]]\nipv4 = \"172.0.0.0/8\"\n"
	prefix := netip.MustParsePrefix
	assert.Equal(t, []netip.Prefix{prefix("169.254.64.0/20"), prefix("100.64.0.0/10")}, mustParse(t, pools).Masquerade())
	assert.Len(t, mustParse(t, pools+"[network]\nmasquerade = \"on\"").Masquerade(), 4)
	assert.Empty(t, mustParse(t, pools+"[network]\nmasquerade = \"off\"").Masquerade())
	for pool, masqueraded := range map[string]bool{ // by the registry of special addresses
		"10.1.0.0/16": true, "192.0.0.0/29": true, "198.18.0.0/24": true, "192.168.1.0/24": true, "240.1.0.0/16": true,
		"192.0.2.0/24": false, "192.88.99.0/24": false, "1.0.0.0/24": false,
	} {
		assert.Equal(t, masqueraded, len(mustParse(t, "[[pool]]\nipv4 = \""+pool+"\"").Masquerade()) == 1, pool)
	}
	own := mustParse(t, "translation.ipv4 = \"10.9.9.9\"\n[[pool]]\nipv4 = \"203.0.113.0/24\"")
	assert.Equal(t, []netip.Prefix{prefix("10.9.9.9/32")}, own.Masquerade(), "natless's own address, of no pool")
}

// Explicit mappings alone need no pool, and no other key.
func TestMapsOnly(t *testing.T) {
	c := mustParse(t, "pool = []\ntranslation.pref64 = \"\"\n[[map]]\nipv4 = \"0.0.0.0/0\"\nipv6 = \"2001:db8::/96\"")
	assert.Empty(t, c.Pools)
	assert.Equal(t, "192.0.0.8", c.OwnIPv4().String()) // RFC 7600
	assert.Empty(t, c.Masquerade())
	// The pool that nobody wrote is link-local, which no map reaches into.
	for _, pref64 := range []string{"translation.pref64 = \"\"\n", ""} {
		c := mustParse(t, pref64+"[[map]]\nipv4 = \"0.0.0.0/0\"\nipv6 = \"2001:db8::/96\"")
		assert.Equal(t, "169.254.64.1", c.OwnIPv4().String())
	}
	_, err := parse("f", []byte("[[map]]\nipv4 = \"0.0.0.0/0\"\nipv6 = \"2001:db8::/96\"\n[[pool]]\nipv4 = \"203.0.113.0/24\""))
	assert.ErrorContains(t, err, "pool.ipv4: 203.0.113.0/24", "another is all taken")
}

// Hosts numbered from pref64 are clients as by a map.
func TestTranslatable(t *testing.T) {
	for pref64, want := range map[string]string{
		"2001:db8:64::/96": "2001:db8:64::c000:200/120", "2001:db8:64::/64": "2001:db8:64:0:c0:2::/96", "2001:db8:6400::/56": "2001:db8:6400:c0:0:200::/88",
		"2001:db8:64::/48": "2001:db8:64:c000:2::/80", "2001:db8:6400::/40": "2001:db8:64c0:2::/72", "2001:db8::/32": "2001:db8:c000:200::/56",
	} {
		c := mustParse(t, "[translation]\npref64 = \""+pref64+"\"\ntranslatable = [\"192.0.2.0/24\"]")
		m := c.Mappings()
		require.Len(t, m, 1)
		assert.Equal(t, "192.0.2.0/24", m[0].IPv4.String())
		assert.Equal(t, want, m[0].IPv6.String())
		assert.Equal(t, "f:3", m[0].Origin)
		prefixes, _ := c.Permitted()
		assert.Equal(t, []netip.Prefix{m[0].IPv6}, prefixes)
	}
	c := mustParse(t, "translation.translatable = [\"192.0.2.0/24\"]\n[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"2001:db8::1\"")
	assert.Len(t, c.Mappings(), 2)
	assert.Len(t, c.Maps, 1)
	assert.Contains(t, strings.Join(c.Warnings(), "\n"), "RFC 6052 3.1")
	assert.NoError(t, mustParse(t, "translation.ipv6 = \"64:ff9b::203.0.113.1\"").Validate(), "natless's own may lie in pref64")
	assert.NoError(t, mustParse(t, "[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"64:ff9b::5\"").Validate(), "and so may a map")
}

func TestPermitted(t *testing.T) {
	prefix := netip.MustParsePrefix
	prefixes, local := mustParse(t, "").Permitted()
	assert.Empty(t, prefixes)
	assert.True(t, local)
	prefixes, local = mustParse(t, `
[[map]]
ipv4 = "192.0.2.1"
ipv6 = "2001:db8::1"
[[pool]]
clients = ["2001:db8:1::/64"]
[[pool]]
ipv4 = "203.0.113.0/24"
clients = ["2001:db8:1::/64", "2001:db8::/128"]
`).Permitted()
	assert.Equal(t, []netip.Prefix{prefix("2001:db8::/128"), prefix("2001:db8::1/128"), prefix("2001:db8:1::/64")}, prefixes)
	assert.False(t, local)
}

func TestOptions(t *testing.T) {
	assert.Equal(t, translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280}, Default().Options(1500))
	c := mustParse(t, "[translation]\nipv4_mtu = 1400\nipv6_mtu = 9000\nlowest_ipv6_mtu = 1600\nudp_zero_checksum = \"drop\"\ntraffic_class = \"zero\"")
	assert.Equal(t, translate.Options{IPv4MTU: 1400, IPv6MTU: 1500, LowestIPv6MTU: 1500, DropUDPZero: true, ZeroTOS: true}, c.Options(1500))
}

// TestJSON holds that a configuration is shown as a file would have it: what
// is shown can be given back.
func TestJSON(t *testing.T) {
	data, err := json.Marshal(mustParse(t, "[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\n[[pool]]\nclients = [\"local\", \"2001:db8::/64\"]\nmax_life = \"30d\""))
	require.NoError(t, err)
	var doc map[string]any
	require.NoError(t, json.Unmarshal(data, &doc))
	assert.Equal(t, []any{map[string]any{"ipv4": "192.0.2.1/32", "ipv6": "2001:db8::1/128", "label": ""}}, doc["map"])
	pool := doc["pool"].([]any)[0].(map[string]any)
	assert.Equal(t, []any{"local", "2001:db8::/64"}, pool["clients"])
	assert.Equal(t, "1h", pool["idle"])
	assert.Equal(t, "30d", pool["max_life"])
	assert.Equal(t, "", doc["translation"].(map[string]any)["ipv4"])
	assert.Equal(t, "64:ff9b::/96", doc["translation"].(map[string]any)["pref64"])
}
