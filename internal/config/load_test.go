package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"net/netip"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestExample holds contrib/natless.toml to what its first lines say.
func TestExample(t *testing.T) {
	path := filepath.Join("..", "..", "contrib", "natless.toml")
	c, err := Load(path)
	require.NoError(t, err)
	want := Default()
	want.File = path
	require.Len(t, c.Pools, 1)
	want.Pools[0].Origin = c.Pools[0].Origin
	given := c.given
	c.given = nil
	want.Translation.RFC6791 = c.Translation.RFC6791 // [] and left out are the same
	assert.Empty(t, c.Translation.RFC6791)
	want.Translation.Translatable = c.Translation.Translatable
	assert.Empty(t, c.Translation.Translatable)
	assert.Empty(t, c.DNS64.Listen)
	assert.Empty(t, c.DNS64.Upstreams)
	want.DNS64.Listen, want.DNS64.Upstreams = c.DNS64.Listen, c.DNS64.Upstreams
	want.RA.Interfaces = c.RA.Interfaces
	assert.Empty(t, c.RA.Interfaces)
	want.Network.Uplinks, want.Network.ClientLinks = c.Network.Uplinks, c.Network.ClientLinks
	assert.Empty(t, slices.Concat(c.Network.Uplinks, c.Network.ClientLinks))
	assert.Equal(t, want, c)

	for _, key := range []string{
		"device.name", "device.mtu", "device.queues", "device.offload",
		"network.manage", "network.masquerade", "network.on_exit", "network.uplinks", "network.client_links",
		"translation.pref64", "translation.ipv4", "translation.ipv6", "translation.rfc6791_ipv4",
		"translation.lowest_ipv6_mtu", "translation.ipv6_mtu", "translation.ipv4_mtu",
		"translation.udp_zero_checksum", "translation.traffic_class", "translation.hairpin", "translation.private_ipv4",
		"pool[0].ipv4", "pool[0].clients", "pool[0].mode", "pool[0].idle", "pool[0].max_life", "pool[0].quarantine",
		"control.socket", "control.group", "control.read_group", "state.dir", "state.history", "log.level", "log.format", "ra.interfaces", "ra.lifetime",
		"dns64.listen", "dns64.upstreams", "dns64.exclude", "dns64.synthesise",
	} {
		assert.Contains(t, given, key)
	}
}

func TestEverythingGiven(t *testing.T) {
	c, err := parse("f", []byte(`
device = { name = "nat6", mtu = 9000, queues = 2, offload = "off" }
[network]
manage = false
masquerade = "on"
on_exit = "keep"
[translation]
pref64 = "2001:db8:64::/48"
ipv4 = "192.0.2.1"
ipv6 = "2001:db8::1"
rfc6791_ipv4 = ["192.0.2.8/29", "192.0.2.3"]
lowest_ipv6_mtu = 1400
ipv6_mtu = 1500
ipv4_mtu = 1480
udp_zero_checksum = "drop"
traffic_class = "zero"
hairpin = "off"
private_ipv4 = "deny"
[[map]]
ipv4 = "198.51.100.0/24"
ipv6 = "2001:db8:1::/120"
label = "web"
[[map]]
ipv4 = "198.51.100.7"
ipv6 = "2001:db8:2::7"
[[pool]]
ipv4 = "203.0.113.0/24"
clients = ["local", "2001:db8:3::/64", "2001:db8::9"]
mode = "one-to-one"
idle = "1d12h"
max_life = "30d"
quarantine = "0"
[[pool]]
ipv4 = "10.0.0.0/24"
[control]
socket = "/run/x.sock"
group = "adm"
read_group = "monitor"
[dns64]
listen = ["[fd00::1]:5353", "fd00::2"]
upstreams = ["192.0.2.53"]
exclude = []
synthesise = "all"
[log]
level = "debug"
format = "json"
`))
	require.NoError(t, err)
	prefix := netip.MustParsePrefix
	second := defaultPool()
	second.IPv4, second.Origin = prefix("10.0.0.0/24"), "f:33"
	first := defaultPool()
	first.IPv4, first.Origin = prefix("203.0.113.0/24"), "f:26"
	first.Clients = []Client{{Local: true}, {IPv6: prefix("2001:db8:3::/64")}, {IPv6: prefix("2001:db8::9/128")}}
	first.Idle, first.MaxLife, first.Quarantine = 36*time.Hour, 30*day, 0
	want := Default()
	want.File = "f"
	want.Device = Device{Name: "nat6", MTU: 9000, Queues: 2, Offload: "off"}
	want.Network = Network{Manage: false, Masquerade: "on", Firewall: "name", OnExit: "keep"}
	want.Translation = Translation{
		Pref64: prefix("2001:db8:64::/48"), IPv4: netip.MustParseAddr("192.0.2.1"), IPv6: netip.MustParseAddr("2001:db8::1"),
		RFC6791:       []netip.Prefix{prefix("192.0.2.8/29"), prefix("192.0.2.3/32")},
		LowestIPv6MTU: 1400, IPv6MTU: 1500, IPv4MTU: 1480,
		UDPZeroChecksum: "drop", TrafficClass: "zero", Hairpin: "off", PrivateIPv4: "deny",
	}
	want.Maps = []Map{
		{IPv4: prefix("198.51.100.0/24"), IPv6: prefix("2001:db8:1::/120"), Label: "web", Origin: "f:19"},
		{IPv4: prefix("198.51.100.7/32"), IPv6: prefix("2001:db8:2::7/128"), Origin: "f:23"},
	}
	want.Pools = []Pool{first, second}
	want.Control = Control{Socket: "/run/x.sock", Group: "adm", ReadGroup: "monitor"}
	want.Log = Log{Level: "debug", Format: "json"}
	want.DNS64 = DNS64{
		Listen:    []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:5353"), netip.MustParseAddrPort("[fd00::2]:53")},
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")},
		Exclude:   []netip.Prefix{}, Synthesise: "all",
	}
	c.given = nil
	assert.Equal(t, want, c)
}

// TestBad has every kind of mistake with the whole message.
func TestBad(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"unknown key":          {"[device]\nnmae = \"x\"", `f:2: device.nmae: unknown key: did you mean device.name?`},
		"unknown, no idea":     {"[log]\nverbosity = 3", `f:2: log.verbosity: unknown key: expected one of level, format`},
		"unknown table":        {"\n[devise]\nname = \"x\"", `f:2: devise: unknown key: did you mean device?`},
		"unknown subtable":     {"[device]\n[device.more]", `f:2: device.more: unknown key: expected one of name, mtu, queues, offload`},
		"in the wrong table":   {"pref64 = \"64:ff9b::/96\"", `f:1: pref64: unknown key: did you mean translation.pref64?`},
		"unknown in a map":     {"[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\nlable = \"x\"", `f:4: map.lable: unknown key: did you mean map.label?`},
		"unknown inline":       {"device = {\n name = \"x\",\n mut = 1500 }", `f:3: device.mut: unknown key: did you mean device.mtu?`},
		"strange key":          {"\"a\\nb\" = 1", `f:1: "a\nb": unknown key: expected one of device, network, translation, map, pool, sessions, control, state, log, dns64, ra`},
		"not TOML":             {"\n[device\n", `f:2: column 8: not TOML: expected ']' to close table name`},
		"twice":                {"[device]\nmtu = 1500\nmtu = 1500", `f:3: column 1: not TOML: key mtu is already defined`},
		"table of one":         {"[map]\nipv4 = \"192.0.2.1\"", `f:1: map: a table: expected a list of tables, [[map]]`},
		"not a table":          {"device = 3", `f:1: device: 3: expected a table, [device]`},
		"number in quotes":     {"[device]\nmtu = \"1500\"", `f:2: device.mtu: 1500: expected a whole number, without quotes`},
		"number with a point":  {"[device]\nmtu = 1500.5", `f:2: device.mtu: 1500.5: expected a whole number, without quotes`},
		"huge number":          {"[device]\nqueues = 4294967297", `f:2: device.queues: 4294967297: expected a smaller number`},
		"word for a bool":      {"[network]\nmanage = \"yes\"", `f:2: network.manage: yes: expected true or false, without quotes`},
		"enum":                 {"[device]\noffload = \"on\"", `f:2: device.offload: on: expected "auto" or "off"`},
		"enum of another type": {"[device]\noffload = false", `f:2: device.offload: false: expected "auto" or "off"`},
		"enum of three":        {"[translation]\nprivate_ipv4 = \"\"", `f:2: translation.private_ipv4: "": expected "auto", "allow" or "deny"`},
		"no list":              {"[[pool]]\nclients = \"local\"", `f:2: pool.clients: local: expected a list, in brackets`},

		"name too long":  {"[device]\nname = \"a-very-long-name\"", `f:2: device.name: a-very-long-name: 16 bytes long: expected at most 15`},
		"name with /":    {"[device]\nname = \"a/b\"", `f:2: device.name: a/b: expected a name without /, :, %, spaces and control characters`},
		"name empty":     {"[device]\nname = \"\"", `f:2: device.name: "": expected the name of a device`},
		"name all":       {"[device]\nname = \"all\"", `f:2: device.name: all: the kernel keeps this name to itself: expected another`},
		"mtu low":        {"[device]\nmtu = 1279", `f:2: device.mtu: 1279: expected 0 or 1280 to 65535`},
		"mtu high":       {"[device]\nmtu = 65536", `f:2: device.mtu: 65536: expected 0 or 1280 to 65535`},
		"mtu negative":   {"[device]\nmtu = -1", `f:2: device.mtu: -1: expected 0 or 1280 to 65535`},
		"queues":         {"[device]\nqueues = 257", `f:2: device.queues: 257: expected 0 (one per CPU, at most 8) or 1 to 256`},
		"ipv6_mtu":       {"[translation]\nipv6_mtu = 1000", `f:2: translation.ipv6_mtu: 1000: expected 0 or 1280 to 65535`},
		"ipv4_mtu":       {"[translation]\nipv4_mtu = 67", `f:2: translation.ipv4_mtu: 67: expected 0 or 68 to 65535`},
		"above device":   {"device.mtu = 1500\n[translation]\nipv4_mtu = 1501", `f:3: translation.ipv4_mtu: 1501: more than device.mtu, which is 1500: expected at most that`},
		"lowest":         {"[translation]\nlowest_ipv6_mtu = 1279", `f:2: translation.lowest_ipv6_mtu: 1279: expected 1280 to 65535`},
		"lowest, ipv6":   {"[translation]\nlowest_ipv6_mtu = 1400\nipv6_mtu = 1300", `f:2: translation.lowest_ipv6_mtu: 1400: more than ipv6_mtu, which is 1300: expected at most that`},
		"lowest, device": {"[translation]\nlowest_ipv6_mtu = 1600\n[device]\nmtu = 1500", `f:2: translation.lowest_ipv6_mtu: 1600: more than device.mtu, which is 1500: expected at most that`},

		"prefix length":       {"[translation]\npref64 = \"2001:db8::/95\"", `f:2: translation.pref64: 2001:db8::/95: prefix length 95 is none of 32, 40, 48, 56, 64, 96`},
		"no such length":      {"[translation]\npref64 = \"2001:db8::/129\"", `f:2: translation.pref64: 2001:db8::/129: the prefix length 129 is none of 0 to 128`},
		"IPv4 for IPv6":       {"[translation]\npref64 = \"192.0.2.0/24\"", `f:2: translation.pref64: 192.0.2.0/24: an IPv4 prefix where an IPv6 prefix belongs`},
		"bits behind":         {"[translation]\npref64 = \"2001:db8::1/96\"", `f:2: translation.pref64: 2001:db8::1/96: bits are set behind the prefix: expected 2001:db8::/96`},
		"bits 64 to 71":       {"[translation]\npref64 = \"2001:db8:0:0:100::/96\"", `f:2: translation.pref64: 2001:db8:0:0:100::/96: bits 64 to 71 are not zero (RFC 6052 2.2): expected a prefix that has them zero`},
		"pref64 a loopback":   {"[translation]\npref64 = \"::/96\"", `f:2: translation.pref64: ::/96: in or around ::/128, which is no host's: expected unicast addresses`},
		"pref64 no prefix":    {"[translation]\npref64 = \"nat64\"", `f:2: translation.pref64: nat64: expected an IPv6 prefix, such as 2001:db8::/64`},
		"pref64 a number":     {"[translation]\npref64 = 96", `f:2: translation.pref64: 96: expected an IPv6 prefix in quotes, such as "2001:db8::/64"`},
		"own IPv4 is IPv6":    {"[translation]\nipv4 = \"2001:db8::1\"", `f:2: translation.ipv4: 2001:db8::1: an IPv6 address where an IPv4 address belongs`},
		"own IPv6 is IPv4":    {"[translation]\nipv6 = \"192.0.2.1\"", `f:2: translation.ipv6: 192.0.2.1: an IPv4 address where an IPv6 address belongs`},
		"own IPv6 mapped":     {"[translation]\nipv6 = \"::ffff:192.0.2.1\"", `f:2: translation.ipv6: ::ffff:192.0.2.1: an IPv4-mapped IPv6 address: expected an IPv6 address`},
		"own IPv6 zone":       {"[translation]\nipv6 = \"fe80::1%eth0\"", `f:2: translation.ipv6: fe80::1%eth0: an address with a zone: expected an IPv6 address without one`},
		"own IPv4 prefix":     {"[translation]\nipv4 = \"192.0.2.1/24\"", `f:2: translation.ipv4: 192.0.2.1/24: expected an IPv4 address, such as 192.0.2.1`},
		"own IPv4 multicast":  {"[translation]\nipv4 = \"224.0.0.1\"", `f:2: translation.ipv4: 224.0.0.1: in or around 224.0.0.0/4, which is no host's: expected unicast addresses`},
		"own IPv6 is lent":    {"[translation]\nipv6 = \"64:ff9b::169.254.64.5\"", `f:2: translation.ipv6: 64:ff9b::a9fe:4005: by pref64 it stands for 169.254.64.5, of the pool 169.254.64.0/20 at default: expected another`},
		"own IPv4 metadata":   {"[translation]\nipv4 = \"169.254.169.254\"", `f:2: translation.ipv4: 169.254.169.254: a cloud metadata address: expected another`},
		"own IPv4 in a map":   {"[translation]\nipv4 = \"192.0.2.9\"\n[[map]]\nipv4 = \"192.0.2.9\"\nipv6 = \"2001:db8::9\"", `f:2: translation.ipv4: 192.0.2.9: is mapped at f:3: expected an address that is not`},
		"translatable":        {"[translation]\ntranslatable = [\"192.0.2.1/24\"]", `f:2: translation.translatable: 192.0.2.1/24: bits are set behind the prefix: expected 192.0.2.0/24`},
		"translatable, none":  {"[translation]\npref64 = \"\"\ntranslatable = [\"192.0.2.0/24\"]", `f:3: translation.translatable: 192.0.2.0/24: translation.pref64 is "", so no host has such an address: expected a pref64`},
		"translatable, short": {"[translation]\npref64 = \"2001:db8::/40\"\ntranslatable = [\"192.0.0.0/16\"]", `f:3: translation.translatable: 192.0.0.0/16: bits 64 to 71 of the addresses are zero (RFC 6052 2.2): expected prefixes of at least /24 with pref64 2001:db8::/40`},
		"translatable twice":  {"[translation]\ntranslatable = [\"192.0.2.0/24\", \"192.0.2.8\"]", `f:2: translation.translatable: 192.0.2.8: overlaps 192.0.2.0/24 before: expected each address once`},
		"translatable link":   {"[translation]\ntranslatable = [\"169.254.1.0/24\"]", `f:2: translation.translatable: 169.254.1.0/24: in 169.254.0.0/16, link-local (RFC 3927), which natless never translates: expected addresses outside`},
		"translatable mapped": {"[translation]\ntranslatable = [\"192.0.2.0/24\"]\n[[map]]\nipv4 = \"192.0.2.0/24\"\nipv6 = \"2001:db8::/120\"", `f:2: translation.translatable: 192.0.2.0/24: mapped at f:3: expected either`},
		"rfc6791":             {"[translation]\nrfc6791_ipv4 = [\n\"192.0.2.0/24\",\n\"2001:db8::/64\",\n]", `f:4: translation.rfc6791_ipv4: 2001:db8::/64: an IPv6 prefix where an IPv4 prefix belongs`},
		"rfc6791 link-local":  {"[translation]\nrfc6791_ipv4 = [\"160.0.0.0/4\"]", `f:2: translation.rfc6791_ipv4: 160.0.0.0/4: in or around 169.254.0.0/16, link-local (RFC 3927), whose packets no router would take: expected other addresses`},
		"rfc6791 not unicast": {"[translation]\nrfc6791_ipv4 = [\"127.0.0.0/8\"]", `f:2: translation.rfc6791_ipv4: 127.0.0.0/8: in or around 127.0.0.0/8, which is no host's: expected unicast addresses`},

		"rfc6791 in a map":  {"[translation]\nrfc6791_ipv4 = [\"192.0.2.0/24\"]\n[[map]]\nipv4 = \"192.0.2.9\"\nipv6 = \"2001:db8::9\"", `f:2: translation.rfc6791_ipv4: 192.0.2.0/24: overlaps the map of 192.0.2.9/32 at f:3: expected addresses that no client has`},
		"rfc6791 in a pool": {"[translation]\nrfc6791_ipv4 = [\"198.51.100.0/24\"]\n[[pool]]\nipv4 = \"198.51.100.0/23\"", `f:2: translation.rfc6791_ipv4: 198.51.100.0/24: overlaps the pool 198.51.100.0/23 at f:3: expected addresses that no client has`},

		"map is pref64":   {"[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"64:ff9b::/96\"", `f:3: map.ipv6: 64:ff9b::/96: overlaps pref64, 64:ff9b::/96: expected a prefix outside, or inside and longer`},
		"map is lent":     {"[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"64:ff9b::169.254.64.5\"", `f:3: map.ipv6: 64:ff9b::a9fe:4005/128: by pref64 it stands for 169.254.64.5, of the pool 169.254.64.0/20 at default: expected another`},
		"map link-local":  {"[[map]]\nipv4 = \"169.254.1.0/24\"\nipv6 = \"2001:db8::/120\"", `f:2: map.ipv4: 169.254.1.0/24: in 169.254.0.0/16, link-local (RFC 3927), which natless never translates: expected addresses outside`},
		"map metadata":    {"[[pool]]\nipv4 = \"169.254.0.0/16\"\n[[map]]\nipv4 = \"169.254.169.254\"\nipv6 = \"2001:db8::1\"", `f:4: map.ipv4: 169.254.169.254: in 169.254.169.254/32, cloud metadata, which natless never translates: expected addresses outside`},
		"map class E":     {"[[map]]\nipv4 = \"240.0.0.0/4\"\nipv6 = \"2001:db8::/100\"", `f:2: map.ipv4: 240.0.0.0/4: in 240.0.0.0/4, class E (RFC 1112), which natless never translates: expected addresses outside`},
		"map multicast":   {"[[map]]\nipv4 = \"192.0.2.0/24\"\nipv6 = \"ff05::/120\"", `f:3: map.ipv6: ff05::/120: in ff00::/8, multicast (RFC 4291), which natless never translates: expected addresses outside`},
		"map without":     {"[[map]]\nipv4 = \"192.0.2.1\"", `f:1: map.ipv6: missing: expected an IPv6 prefix in quotes, such as "2001:db8::/64"`},
		"map families":    {"[[map]]\nipv4 = \"2001:db8::1\"\nipv6 = \"2001:db8::1\"", `f:2: map.ipv4: 2001:db8::1: an IPv6 address where an IPv4 address belongs`},
		"map bits behind": {"[[map]]\nipv4 = \"192.0.2.1/24\"\nipv6 = \"2001:db8::/120\"", `f:2: map.ipv4: 192.0.2.1/24: bits are set behind the prefix: expected 192.0.2.0/24`},
		"map mapped":      {"[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"::ffff:0:0/96\"", `f:3: map.ipv6: ::ffff:0:0/96: an IPv4-mapped IPv6 address: expected an IPv6 prefix`},
		"map label":       {"[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\nlabel = \"a\\nb\"", `f:4: map.label: "a\nb": expected printable characters only`},
		"map empty":       {"[[map]]\nipv4 = \"\"\nipv6 = \"2001:db8::/120\"", `f:2: map.ipv4: "": expected an IPv4 prefix, such as 192.0.2.0/24`},
		"map too small":   {"[[map]]\nipv4 = \"192.0.2.0/24\"\nipv6 = \"2001:db8::/121\"", `f:3: map.ipv6: 2001:db8::/121: too small for 192.0.2.0/24: expected a prefix length of at most 120`},
		"mapped twice, IPv4": {"[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\n[[map]]\nipv4 = \"192.0.2.1/32\"\nipv6 = \"2001:db8::2\"",
			`f:5: map.ipv4: 192.0.2.1/32: mapped before at f:1: expected each prefix once`},
		"mapped twice, IPv6": {"map = [{ipv4 = \"192.0.2.1\", ipv6 = \"2001:db8::1\"},\n\n{ipv4 = \"192.0.2.2\", ipv6 = \"2001:db8::1\"}]",
			`f:3: map.ipv6: 2001:db8::1/128: mapped before at f:1: expected each prefix once`},
		"label of two lines": {"[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\nlabel = \"a\\nb\"",
			`f:4: map.label: "a\nb": expected printable characters only`},

		"pool family":       {"[[pool]]\nipv4 = \"fd00::/64\"", `f:2: pool.ipv4: fd00::/64: an IPv6 prefix where an IPv4 prefix belongs`},
		"pool not unicast":  {"[[pool]]\nipv4 = \"239.0.0.0/24\"", `f:2: pool.ipv4: 239.0.0.0/24: in or around 224.0.0.0/4, which is no host's: expected unicast addresses`},
		"pool of all":       {"[[pool]]\nipv4 = \"10.0.0.0/7\"", `f:2: pool.ipv4: 10.0.0.0/7: too large: expected a prefix length of at least 8`},
		"pools overlap":     {"[[pool]]\n[[pool]]\nipv4 = \"169.254.65.0/24\"", `f:3: pool.ipv4: 169.254.65.0/24: overlaps the pool 169.254.64.0/20 at f:1: expected pools apart from each other`},
		"pool all own":      {"[[pool]]\nipv4 = \"192.0.2.1\"", `f:2: pool.ipv4: 192.0.2.1/32: maps and natless's own address, 192.0.2.1, leave none for clients: expected a larger pool, or fewer addresses in maps`},
		"pool all mapped":   {"[translation]\nipv4 = \"203.0.113.1\"\n[[map]]\nipv4 = \"192.0.2.0/24\"\nipv6 = \"2001:db8::/120\"\n[[pool]]\nipv4 = \"192.0.2.0/25\"", `f:7: pool.ipv4: 192.0.2.0/25: maps and natless's own address, 203.0.113.1, leave none for clients: expected a larger pool, or fewer addresses in maps`},
		"nobody":            {"[[pool]]\nclients = []", `f:2: pool.clients: an empty list: expected IPv6 prefixes, or "local"`},
		"client family":     {"[[pool]]\nclients = [\"local\", \"10.0.0.0/8\"]", `f:2: pool.clients: 10.0.0.0/8: an IPv4 prefix where an IPv6 prefix belongs`},
		"client a word":     {"[[pool]]\nclients = [\"everybody\"]", `f:2: pool.clients: everybody: expected an IPv6 prefix in quotes, or "local"`},
		"client a number":   {"[[pool]]\nclients = [6]", `f:2: pool.clients: 6: expected an IPv6 prefix in quotes, or "local"`},
		"negative duration": {"[[pool]]\nidle = \"-5m\"", `f:2: pool.idle: -5m: a negative duration: expected a duration such as "1h30m", "30d" or "0"`},
		"negative days":     {"[[pool]]\nquarantine = \"-5d\"", `f:2: pool.quarantine: -5d: a negative duration: expected a duration such as "1h30m", "30d" or "0"`},
		"no unit":           {"[[pool]]\nidle = \"5\"", `f:2: pool.idle: 5: expected a duration such as "1h30m", "30d" or "0"`},
		"a number of what":  {"[[pool]]\nidle = 3600", `f:2: pool.idle: 3600: expected a duration such as "1h30m", "30d" or "0"`},
		"days behind":       {"[[pool]]\nidle = \"1h3d\"", `f:2: pool.idle: 1h3d: expected a duration such as "1h30m", "30d" or "0"`},
		"half a minus":      {"[[pool]]\nidle = \"3d-1h\"", `f:2: pool.idle: 3d-1h: expected a duration such as "1h30m", "30d" or "0"`},
		"a thousand years":  {"[[pool]]\nidle = \"7301d\"", `f:2: pool.idle: 7301d: expected at most 7300d`},
		"soon idle":         {"[[pool]]\nidle = \"999ms\"", `f:2: pool.idle: 999ms: expected "0" or at least 1s`},
		"short life":        {"[[pool]]\nmax_life = \"20ms\"", `f:2: pool.max_life: 20ms: expected "0" or at least 1s`},

		"socket relative": {"[control]\nsocket = \"natless.sock\"", `f:2: control.socket: natless.sock: expected an absolute path, such as "/run/natless/natless.sock"`},
		"socket too long": {"[control]\nsocket = \"/" + strings.Repeat("x", 107) + "\"", `f:2: control.socket: /` + strings.Repeat("x", 107) + `: 108 bytes long: expected at most 107`},

		"stateful":      {"[[pool]]\nmode = \"stateful\"", `f:2: pool.mode: stateful: this version does not have it: expected "one-to-one" or "port-range"`},
		"mode":          {"[[pool]]\nmode = \"many\"", `f:2: pool.mode: many: expected "one-to-one", "port-range" or "stateful"`},
		"ports":         {"[[pool]]\nports_per_client = 1024", `f:2: pool.ports_per_client: means nothing to a pool of mode "one-to-one": leave the key out, or set mode = "port-range"`},
		"session ports": {"[[pool]]\nsession_ports = 128", `f:2: pool.session_ports: means nothing to a pool of mode "one-to-one": leave the key out, or set mode = "port-range"`},
		"first port":    {"[[pool]]\nfirst_port = 1024", `f:2: pool.first_port: means nothing to a pool of mode "one-to-one": leave the key out, or set mode = "port-range"`},
		"last port": {"[[pool]]\nmode = \"port-range\"\n[[pool]]\nipv4 = \"192.0.2.0/24\"\nlast_port = 65535",
			`f:5: pool.last_port: means nothing to a pool of mode "one-to-one": leave the key out, or set mode = "port-range"`},
		"many ranges": {"[[pool]]\nmode = \"port-range\"\nipv4 = \"11.0.0.0/8\"\nports_per_client = 512",
			`f:4: pool.ports_per_client: 512: 11.0.0.0/8 has more than 1073741824 ranges of so many: expected a smaller pool, or more ports per client`},
		"sessions of nobody":            {"[sessions]\nmax = 1000000", `f:2: sessions.max: no pool has mode = "port-range", which alone has sessions: leave the key out`},
		"sessions per client of nobody": {"[sessions]\nmax_per_client = 4096", `f:2: sessions.max_per_client: no pool has mode = "port-range", which alone has sessions: leave the key out`},
		"no sessions":                   {"[[pool]]\nmode = \"port-range\"\n[sessions]\nmax = 0", `f:4: sessions.max: 0: expected 1 to 67108864`},
		"too many sessions":             {"[[pool]]\nmode = \"port-range\"\n[sessions]\nmax = 67108865", `f:4: sessions.max: 67108865: expected 1 to 67108864`},
		"no sessions per client":        {"[[pool]]\nmode = \"port-range\"\n[sessions]\nmax_per_client = 0", `f:4: sessions.max_per_client: 0: expected 1 to 1000000, which is sessions.max`},
		"more per client than in all": {"[[pool]]\nmode = \"port-range\"\n[sessions]\nmax = 100\nmax_per_client = 101",
			`f:5: sessions.max_per_client: 101: expected 1 to 100, which is sessions.max`},
		"state":              {"[state]\ndir = \"natless\"", `f:2: state.dir: natless: expected an absolute path, such as "/var/lib/natless", or ""`},
		"history":            {"[state]\nhistory = \"1ms\"", `f:2: state.history: 1ms: expected "0" or at least 1s`},
		"ra name":            {"[ra]\ninterfaces = [\"eth 0\"]", `f:2: ra.interfaces: "eth 0": expected a name without /, :, %, spaces and control characters`},
		"ra twice":           {"[ra]\ninterfaces = [\n\"eth0\",\n\"eth0\"]", `f:4: ra.interfaces: eth0: named before: expected each interface once`},
		"ra own":             {"[ra]\ninterfaces = [\"natless0\"]", `f:2: ra.interfaces: natless0: natless's own device, behind which no host listens: expected an interface with clients`},
		"ra no pref64":       {"translation.pref64 = \"\"\n[ra]\ninterfaces = [\"eth0\"]", `f:3: ra.interfaces: translation.pref64 is "", so there is nothing to advertise: expected a pref64`},
		"ra short":           {"[ra]\nlifetime = \"11s\"", `f:2: ra.lifetime: 11s: expected 12s to 18h12m8s, which is 65528 seconds (RFC 8781 4)`},
		"ra long":            {"[ra]\nlifetime = \"18h12m9s\"", `f:2: ra.lifetime: 18h12m9s: expected 12s to 18h12m8s, which is 65528 seconds (RFC 8781 4)`},
		"dns64 everywhere":   {"[dns64]\nlisten = [\n \"[::]:53\",\n]", `f:3: dns64.listen: [::]:53: every address of the host, those on its uplinks among them: expected the addresses that clients are told of`},
		"dns64 name":         {"[dns64]\nlisten = [\"localhost\"]", `f:2: dns64.listen: localhost: expected an address, with a port unless it is 53, such as [2001:db8::1]:53 or 192.0.2.1`},
		"dns64 no port":      {"[dns64]\nlisten = [\"[fd00::1]:\"]", `f:2: dns64.listen: [fd00::1]:: expected an address, with a port unless it is 53, such as [2001:db8::1]:53 or 192.0.2.1`},
		"dns64 port 0":       {"[dns64]\nlisten = [\"[fd00::1]:0\"]", `f:2: dns64.listen: [fd00::1]:0: expected an address, with a port unless it is 53, such as [2001:db8::1]:53 or 192.0.2.1`},
		"dns64 one bracket":  {"[dns64]\nlisten = [\"[fd00::1\"]", `f:2: dns64.listen: [fd00::1: expected an address, with a port unless it is 53, such as [2001:db8::1]:53 or 192.0.2.1`},
		"dns64 zone":         {"[dns64]\nlisten = [\"fe80::1%eth0\"]", `f:2: dns64.listen: fe80::1%eth0: an address with a zone: expected an IPv4 or IPv6 address without one`},
		"dns64 link-local":   {"[dns64]\nlisten = [\"fe80::1\"]", `f:2: dns64.listen: [fe80::1]:53: expected an address that clients can ask from any link`},
		"dns64 twice":        {"[dns64]\nlisten = [\"fd00::1\", \"[fd00::1]:53\"]", `f:2: dns64.listen: [fd00::1]:53: given twice`},
		"dns64 in pref64":    {"[dns64]\nlisten = [\"64:ff9b::1\"]", `f:2: dns64.listen: [64:ff9b::1]:53: lies in pref64, 64:ff9b::/96: expected an address of the host`},
		"dns64 own":          {"translation.ipv6 = \"fd00::1\"\n[dns64]\nlisten = [\"fd00::1\"]", `f:3: dns64.listen: [fd00::1]:53: natless's own address, which is translated and on no link: expected an address of the host`},
		"dns64 exclude":      {"[dns64]\nexclude = [\"192.0.2.0/24\"]", `f:2: dns64.exclude: 192.0.2.0/24: an IPv4 prefix where an IPv6 prefix belongs`},
		"upstream unusable":  {"[dns64]\nupstreams = [\"0.0.0.0\"]", `f:2: dns64.upstreams: 0.0.0.0:53: expected the address of a resolver`},
		"upstream twice":     {"[dns64]\nupstreams = [\"192.0.2.53\", \"192.0.2.53:53\"]", `f:2: dns64.upstreams: 192.0.2.53:53: given twice`},
		"upstream is itself": {"[dns64]\nlisten = [\"fd00::1\"]\nupstreams = [\"fd00::1\"]", `f:3: dns64.upstreams: [fd00::1]:53: is in dns64.listen: natless would ask itself`},

		"firewall": {"[network]\nmanage = false\nfirewall = \"open\"",
			`f:3: network.firewall: open: network.manage is false, which leaves the host to you: expected "name"`},
		"links": {"[network]\nuplinks = [\"wan\", \"a b\"]\nclient_links = [\"wan\", \"natless0\"]",
			"f:2: network.uplinks: \"a b\": expected a name without /, :, %, spaces and control characters\n" +
				"f:3: network.client_links: wan: named before, in network.uplinks: expected each link once, as an uplink or as one to clients\n" +
				"f:3: network.client_links: natless0: natless's own device: expected another link"},
		"firewall of many": {"[device]\nname = \"nat+\"\n[network]\nfirewall = \"open\"",
			`f:2: device.name: nat+: iptables takes it for all names that begin so: expected another where network.firewall is "open"`},
		"several": {"[network]\nmasquerade = 1\n[device]\nmtu = 5\n[translation]\npref64 = \"::1\"",
			"f:2: network.masquerade: 1: expected \"auto\", \"on\" or \"off\"\n" +
				"f:4: device.mtu: 5: expected 0 or 1280 to 65535\n" +
				"f:6: translation.pref64: ::1/128: prefix length 128 is none of 32, 40, 48, 56, 64, 96"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parse("f", []byte(test.file))
			assert.EqualError(t, err, test.want)
			assert.Nil(t, c)
		})
	}
}

// TestPortRanges looks at how pools divide the ports of their addresses.
func TestPortRanges(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"default":     {func(*Config) {}, ""},
		"one address": {func(c *Config) { c.Pools[0].IPv4 = netip.MustParsePrefix("192.0.2.7/32") }, ""},
		"mapped": {func(c *Config) {
			c.Pools[0].IPv4 = netip.MustParsePrefix("192.0.2.7/32")
			c.Translation.IPv4 = netip.MustParseAddr("192.0.2.1")
			c.Maps = []Map{{IPv4: c.Pools[0].IPv4, IPv6: netip.MustParsePrefix("2001:db8::7/128")}}
		}, "pool.ipv4: 192.0.2.7/32: maps and natless's own address, 192.0.2.1, leave none for clients: expected a larger pool, or fewer addresses in maps"},
		"quarantine":    {func(c *Config) { c.Pools[0].Quarantine = 239 * time.Second }, "pool.quarantine: 3m59s: expected at least 4m, since clients share addresses"},
		"first port":    {func(c *Config) { c.Pools[0].FirstPort = 0 }, "pool.first_port: 0: expected 1 to 65535"},
		"last port":     {func(c *Config) { c.Pools[0].LastPort = 1023 }, "pool.last_port: 1023: expected 1024, which is first_port, to 65535"},
		"high port":     {func(c *Config) { c.Pools[0].LastPort = 65536 }, "pool.last_port: 65536: expected 1024, which is first_port, to 65535"},
		"no room":       {func(c *Config) { c.Pools[0].LastPort = 2046 }, "pool.ports_per_client: 1024: expected 2 to 1023, which is all of first_port to last_port"},
		"no session":    {func(c *Config) { c.Pools[0].SessionPorts = 0 }, "pool.session_ports: 0: expected 1 to 1023, less than ports_per_client"},
		"only sessions": {func(c *Config) { c.Pools[0].SessionPorts = 1024 }, "pool.session_ports: 1024: expected 1 to 1023, less than ports_per_client"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			c.Pools[0].Mode = portRange
			test.change(c)
			if err := c.Validate(); test.want == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.want)
			}
			key, _, _ := strings.Cut(test.want, ":")
			assert.Equal(t, strings.Contains(key, "port"), c.Pools[0].Ports().Check() != nil, "mapping says the same")
		})
	}
}

func TestGood(t *testing.T) {
	for name, file := range map[string]string{
		"nothing":             "",
		"no pref64":           "translation.pref64 = \"\"",
		"dns64":               "[dns64]\nlisten = [\"fd00::1\", \"[fd00::1]:5353\", \"[fd00::2]\"]\nupstreams = [\"192.0.2.53\", \"192.0.2.53:5353\"]\nexclude = [\"::ffff:0:0/96\", \"2001:db8::/32\"]",
		"off, said so":        "[dns64]\nlisten = []\n[ra]\ninterfaces = []\n[state]\ndir = \"\"",
		"no pool":             "pool = []\ntranslation.ipv4 = \"192.0.2.1\"",
		"ra, shortest":        "[ra]\ninterfaces = [\"eth0\", \"br-lan\"]\nlifetime = \"12s\"",
		"ra, longest":         "[ra]\nlifetime = \"18h12m8s\"",
		"nested maps":         "[[map]]\nipv4 = \"192.0.2.0/24\"\nipv6 = \"2001:db8::/120\"\n[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"",
		"a larger IPv6 side":  "[[map]]\nipv4 = \"192.0.2.0/24\"\nipv6 = \"2001:db8::/64\"",
		"mapped clients":      "[[pool]]\nclients = [\"::/0\"]",
		"own inside a map":    "translation.ipv4 = \"192.0.2.1\"\n[[map]]\nipv4 = \"192.0.2.0/24\"\nipv6 = \"2001:db8::/120\"",
		"own among rfc6791":   "translation.rfc6791_ipv4 = [\"169.254.64.1\", \"192.0.2.0/24\"]",
		"no history":          "[state]\nhistory = \"0\"",
		"never idle":          "[[pool]]\nidle = \"0\"",
		"CRLF":                "[device]\r\nmtu = 1500\r\n",
		"ranges":              "[[pool]]\nmode = \"port-range\"\nports_per_client = 512\nsession_ports = 64\nfirst_port = 4096\nlast_port = 60000\n[sessions]\nmax = 10\nmax_per_client = 10",
		"both modes":          "[[pool]]\n[[pool]]\nipv4 = \"192.0.2.0/24\"\nmode = \"port-range\"\n[sessions]\nmax = 5000",
		"a pool and own IPv4": "translation.ipv4 = \"192.0.2.1\"\n[[pool]]\nipv4 = \"192.0.2.2\"",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse("f", []byte(file))
			assert.NoError(t, err)
		})
	}
}

func TestLoad(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	assert.ErrorContains(t, err, "reading the configuration: open ")
	_, err = Load("/dev/zero")
	assert.EqualError(t, err, "reading the configuration /dev/zero: it is larger than 256 MiB")

	if _, err := os.Stat(DefaultFile); err == nil {
		t.Skip("this host has a " + DefaultFile)
	}
	c, err := Load("")
	require.NoError(t, err)
	assert.Equal(t, Default(), c)
	assert.NoError(t, c.Validate())
}

func TestDurations(t *testing.T) {
	for _, s := range []string{"0", "1s", "30s", "1m", "10m", "1m30s", "1h", "10h", "1h30m", "1h0m30s", "30d", "1d12h", "20ms"} {
		d, err := parseDuration(s)
		require.NoError(t, err, s)
		assert.Equal(t, s, formatDuration(d))
	}
}

func FuzzLoad(f *testing.F) {
	example, err := os.ReadFile(filepath.Join("..", "..", "contrib", "natless.toml"))
	require.NoError(f, err)
	f.Add(example)
	f.Add([]byte("map = [{ipv4 = \"192.0.2.1\", ipv6 = \"2001:db8::1\"}, {}]"))
	f.Add([]byte("[[map]]\n[map.x]\n[[map.y]]\n[a.b.c]\n\"\\u0000%s\".'[1]' = [[1, [2]], {c = []}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("f", data)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				assert.True(t, strings.HasPrefix(line, "f:"), "an error without a place: %q", line)
			}
			return
		}
		assert.NoError(t, c.Validate())
		_, err = c.MarshalJSON()
		assert.NoError(t, err)
		assert.True(t, c.OwnIPv4().Is4())
		assert.True(t, c.OwnIPv6().Is6())
	})
}
