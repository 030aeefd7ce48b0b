package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const tayga = `# the old gateway
tun-device nat64
ipv4-addr 192.0.2.1
ipv6-addr 2001:db8:1::1
prefix 2001:db8:64::/96
prefix 2001:db8:65::/96
map 192.0.2.7 2001:db8::7
map 192.0.2.7/32 2001:db8::8	# moved
map 198.51.100.0/24 2001:db8:2::/121
map broken
dynamic-pool 203.0.113.0/24
data-dir /var/spool/tayga
wkpf-strict no
udp-cksum-mode calc
log drop reject
offlink-mtu 1400
workers -1
tun-device
frobnicate "x"
`

func TestImportTayga(t *testing.T) {
	got, err := ImportTayga(strings.NewReader(tayga), "tayga.conf")
	require.NoError(t, err)
	assert.Equal(t, `# Made by natless import of TAYGA's tayga.conf.

[device]
name = "nat64"
queues = 1

[translation]
ipv4 = "192.0.2.1"
ipv6 = "2001:db8:1::1"
pref64 = "2001:db8:65::/96"
private_ipv4 = "allow"
udp_zero_checksum = "compute"
lowest_ipv6_mtu = 1400

[[map]]
ipv4 = "192.0.2.7"
ipv6 = "2001:db8::8"

[[pool]]
# TAYGA lends to every source that it sees. Here clients = ["local"] may lease; name others: clients = ["local", "2001:db8::/32"]
ipv4 = "203.0.113.0/24"
idle = "2h4m"

# Not taken over:
# line 5: prefix 2001:db8:64::/96: given again in line 6, which wins
# line 7: map 192.0.2.7 2001:db8::7: given again in line 8, which wins
# line 9: map 198.51.100.0/24 2001:db8:2::/121: natless does not accept it: map.ipv6: 2001:db8:2::/121: too small for 198.51.100.0/24: expected a prefix length of at most 120
# line 10: map broken: expected map IPV4[/LENGTH] IPV6[/LENGTH]
# line 12: data-dir /var/spool/tayga: set state.dir; leases are not carried over
# line 15: log drop reject: not needed: natless stats counts all packets by what became of them
# line 18: tun-device: expected one argument, not 0
# line 19: frobnicate "x": unknown to natless: compare docs/configuration.md
`, got.Text)
	assert.Len(t, got.Left, 8)
	c, err := parse("natless.toml", []byte(got.Text))
	require.NoError(t, err)
	assert.Len(t, c.Maps, 1)

	// Only maps: no pool and no prefix that nobody asked for.
	got, err = ImportTayga(strings.NewReader("ipv4-addr 192.0.2.1\nmap 192.0.2.7 2001:db8::7\n"), "f")
	require.NoError(t, err)
	assert.Empty(t, got.Left)
	c, err = parse("natless.toml", []byte(got.Text))
	require.NoError(t, err)
	assert.Empty(t, c.Pools)
	assert.False(t, c.Translation.Pref64.IsValid())

	_, err = ImportTayga(strings.NewReader("map 192.0.2.7 2001:db8::7\n"), "f")
	assert.ErrorContains(t, err, "TAYGA's f: nothing can be made of it that natless accepts: ")
	assert.ErrorIs(t, err, ErrWrong)
}

const jool = `{
	"comment": {"description": "sample", "notes": ["a"]},
	"instance": "gateway", "framework": "netfilter",
	"global": {
		"manually-enabled": true,
		"pool6": "2001:db8:64::/96",
		"lowest-ipv6-mtu": 1400,
		"zeroize-traffic-class": true,
		"amend-udp-checksum-zero": true,
		"eam-hairpin-mode": "off",
		"mtu-plateaus": [1400, 1280],
		"rfc6791v4-prefix": "198.51.100.0/28",
		"rfc6791v6-prefix": null
	},
	"eamt": [
		{"ipv6 prefix": "2001:db8:1::/120", "ipv4 prefix": "203.0.113.0/24"},
		{"ipv6 prefix": "2001:db8:2::9", "ipv4 prefix": "192.0.2.9/32", "comment": "x"},
		{"ipv4 prefix": "192.0.2.9", "ipv6 prefix": "2001:db8:2::a"}, {"ipv4 prefix": "192.0.2.10"}
	],
	"denylist4": ["192.0.2.128/25"]
}
`

func TestImportJool(t *testing.T) {
	got, err := ImportJool(strings.NewReader(jool), "jool.conf")
	require.NoError(t, err)
	assert.Equal(t, `# Made by natless import of Jool's jool.conf.
# Explicit mappings and pref64 alone: nobody is lent an address.
pool = []

[translation]
pref64 = "2001:db8:64::/96"
lowest_ipv6_mtu = 1400
traffic_class = "zero"
udp_zero_checksum = "compute"
hairpin = "off"
rfc6791_ipv4 = ["198.51.100.0/28"]
# Jool has no address of its own. Set one to be seen in traceroutes; this is the dummy of RFC 7600 4.8.
ipv4 = "192.0.0.8"

[[map]]
ipv4 = "203.0.113.0/24"
ipv6 = "2001:db8:1::/120"

[[map]]
ipv4 = "192.0.2.9"
ipv6 = "2001:db8:2::a"

# Not taken over:
# line 3: instance gateway: not needed: one natless serves one network namespace
# line 3: framework netfilter: not needed: natless has a device of its own
# line 5: global.manually-enabled true: not needed: natless translates while it runs
# line 11: global.mtu-plateaus (a list of 2): not needed: the plateaus of RFC 1191 are used
# line 13: global.rfc6791v6-prefix null: no such key here: compare docs/configuration.md
# line 17: eamt 192.0.2.9/32 2001:db8:2::9: given again in line 18, which wins
# line 18: eamt 192.0.2.10 : natless does not accept it: map.ipv6: "": expected an IPv6 prefix, such as 2001:db8::/64
# line 20: denylist4 (a list of 1): no such list: what is in no map and no pool is translated by pref64 alone
`, strings.ReplaceAll(got.Text, "eamt 192.0.2.10: ", "eamt 192.0.2.10 : "))
	_, err = parse("natless.toml", []byte(got.Text))
	require.NoError(t, err)

	// Without line breaks as well, and where it is older.
	flat := strings.Join(strings.Fields(strings.ReplaceAll(jool, `"off"`, "2")), " ")
	again, err := ImportJool(strings.NewReader(flat), "jool.conf")
	require.NoError(t, err)
	assert.Contains(t, again.Text, "ipv6 = \"2001:db8:2::a\"")
	assert.NotContains(t, again.Text, "ipv6 = \"2001:db8:2::9\"")
	assert.Contains(t, again.Text, `hairpin = "intrinsic"`)
	assert.Len(t, again.Left, len(got.Left))

	for file, want := range map[string]string{
		"[]":                             "f: expected an object, as jool file handle takes it",
		"{\n\"a\": }":                    "f: line 2: not JSON: ",
		"{} {}":                          "f: line 1: not JSON: expected nothing after it",
		strings.Repeat("[", 1000):        "it is too deep",
		"":                               "unexpected EOF",
		`{"global":{"pool6":"nonsense"}`: "not JSON",
	} {
		_, err := ImportJool(strings.NewReader(file), "f")
		assert.ErrorContains(t, err, want, file)
		assert.ErrorIs(t, err, ErrWrong, file)
	}
}

func TestReadJool(t *testing.T) {
	maps, left, err := ReadJool(strings.NewReader(strings.Replace(jool, `, {"ipv4 prefix": "192.0.2.10"}`, "", 1)), "jool.conf")
	require.NoError(t, err)
	require.Len(t, maps, 2)
	assert.Equal(t, "192.0.2.9/32 2001:db8:2::a/128 jool.conf:18", fmt.Sprint(maps[1].IPv4, " ", maps[1].IPv6, " ", maps[1].Origin))
	assert.Contains(t, left, Left{6, "global.pool6 2001:db8:64::/96", "set translation.pref64"})
	assert.Contains(t, left, Left{17, "eamt 192.0.2.9/32 2001:db8:2::9", "given again in line 18, which wins"})

	csv := "IPv6 Prefix,IPv4 Prefix\n2001:db8:1::/120,203.0.113.0/24\n192.0.2.9, 2001:db8::9\n\n2001:db8::a,192.0.2.9/32\n"
	maps, left, err = ReadJool(strings.NewReader(csv), "eamt.csv")
	require.NoError(t, err)
	require.Len(t, maps, 2)
	assert.Equal(t, "2001:db8::a/128", maps[1].IPv6.String())
	assert.Equal(t, []Left{{3, "map 192.0.2.9 2001:db8::9", "given again in line 5, which wins"}}, left)
	_, _, err = ReadJool(strings.NewReader("x,y\n2001:db8::a,192.0.2.300\n"), "f")
	assert.EqualError(t, err, "f:2: map: 192.0.2.300: expected an IPv4 prefix, such as 192.0.2.0/24")
}

func TestReadTaygaLaterWins(t *testing.T) {
	got, err := ReadTayga(strings.NewReader("map 192.0.2.5 2001:db8::1\nmap 192.0.2.5 2001:db8::2\nprefix 64:ff9b::/96\nmap 192.0.2.6 2001:db8::2\n"), "f")
	require.NoError(t, err)
	require.Len(t, got.Maps, 1)
	assert.Equal(t, "192.0.2.6/32", got.Maps[0].IPv4.String())
	assert.Equal(t, []Left{
		{1, "map 192.0.2.5 2001:db8::1", "given again in line 2, which wins"},
		{2, "map 192.0.2.5 2001:db8::2", "given again in line 4, which wins"},
		{3, "prefix 64:ff9b::/96", "set translation.pref64"},
	}, got.Left)
}

// Whatever stands there, what is made of it is accepted, or nothing is made.
func TestImportIsAccepted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SampledFrom([]string{
			"tun-device", "ipv4-addr", "ipv6-addr", "prefix", "map", "dynamic-pool", "wkpf-strict", "udp-cksum-mode", "offlink-mtu", "workers", "log",
			"192.0.2.1", "192.0.2.0/24", "192.0.2.7", "0.0.0.0/0", "2001:db8::1", "2001:db8::/96", "64:ff9b::/96", "64:ff9b::1", "on", "off", "1400", "99999999999", "-1", "a\"b", "]", "forward", "nat64", "\x00", "#",
		})
		var file strings.Builder
		file.WriteString("ipv4-addr 192.0.2.1\n")
		for range rapid.IntRange(0, 12).Draw(t, "lines") {
			file.WriteString(strings.Join(rapid.SliceOfN(words, 0, 4).Draw(t, "line"), " ") + "\n")
		}
		got, err := ImportTayga(strings.NewReader(file.String()), "f")
		if err != nil {
			require.ErrorIs(t, err, ErrWrong)
			return
		}
		_, err = parse("natless.toml", []byte(got.Text))
		require.NoError(t, err, got.Text)
	})
}
