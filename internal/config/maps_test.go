package config

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/mapping"
)

func TestNewMap(t *testing.T) {
	m, err := NewMap("192.0.2.7", "2001:db8::7", "web")
	require.NoError(t, err)
	assert.Equal(t, Map{IPv4: netip.MustParsePrefix("192.0.2.7/32"), IPv6: netip.MustParsePrefix("2001:db8::7/128"), Label: "web"}, m)
	for args, want := range map[string]string{
		"192.0.2.7/24 2001:db8::/120 -":  "V4: 192.0.2.7/24: bits are set behind the prefix: expected 192.0.2.0/24",
		"192.0.2.0/24 2001:db8::/121 -":  "V6: 2001:db8::/121: too small for 192.0.2.0/24: expected a prefix length of at most 120",
		"192.0.2.0/33 web -":             "V4: 192.0.2.0/33: the prefix length 33 is none of 0 to 32\nV6: web: expected an IPv6 prefix, such as 2001:db8::/64",
		"192.0.2.7 ::ffff:192.0.2.7 -":   "V6: ::ffff:192.0.2.7: an IPv4-mapped IPv6 address: expected an IPv6 address",
		"192.0.2.7 fe80::1%eth0 -":       "V6: fe80::1%eth0: an address with a zone: expected an IPv6 address without one",
		"192.0.2.7 2001:db8::7 a\tb":     `--label: "a\tb": expected printable characters only`,
		"192.0.2.7 2001:db8::7 a\xffb":   `--label: "a\xffb": expected printable characters only`,
		"192.0.2.7 2001:db8::7 \u202eab": `--label: "\u202eab": expected printable characters only`,
	} {
		a := strings.SplitN(args, " ", 3)
		_, err := NewMap(a[0], a[1], a[2])
		assert.EqualError(t, err, want, args)
	}
}

func TestParsePrefix(t *testing.T) {
	p, err := ParsePrefix("192.0.2.1", 0)
	require.NoError(t, err)
	assert.Equal(t, netip.MustParsePrefix("192.0.2.1/32"), p)
	_, err = ParsePrefix("2001:db8::/32", 0)
	assert.NoError(t, err)
	_, err = ParsePrefix("web", 0)
	assert.EqualError(t, err, "expected an IPv4 or IPv6 prefix, such as 192.0.2.0/24 or 2001:db8::/64")
	_, err = ParsePrefix("192.0.2.1", 6)
	assert.EqualError(t, err, "an IPv4 address where an IPv6 address belongs")
}

func TestWriteMaps(t *testing.T) {
	var out strings.Builder
	require.NoError(t, WriteMaps(&out, nil))
	assert.Empty(t, out.String())
	require.NoError(t, WriteMaps(&out, []Map{
		{IPv4: netip.MustParsePrefix("192.0.2.1/32"), IPv6: netip.MustParsePrefix("2001:db8::1/128"), Label: `a "b" \c <d>`, Origin: "x"},
		{IPv4: netip.MustParsePrefix("198.51.100.0/24"), IPv6: netip.MustParsePrefix("2001:db8:1::/120")},
	}))
	assert.Equal(t, `[[map]]
ipv4 = "192.0.2.1"
ipv6 = "2001:db8::1"
label = "a \"b\" \\c <d>"

[[map]]
ipv4 = "198.51.100.0/24"
ipv6 = "2001:db8:1::/120"
`, out.String())
	got, err := ReadMaps(strings.NewReader(out.String()), "f")
	require.NoError(t, err)
	assert.Equal(t, "f:1", got[0].Origin)
	assert.Equal(t, "f:6", got[1].Origin)
}

// TestMapsRoundTrip holds that what is written is read as the same, by ReadMaps
// and as a part of a configuration.
func TestMapsRoundTrip(t *testing.T) {
	printable := rapid.StringOf(rapid.Rune()).Filter(func(s string) bool { return mapping.CheckLabel(s) == nil })
	rapid.Check(t, func(t *rapid.T) {
		seen := map[netip.Prefix]bool{}
		var want []Map
		for range rapid.IntRange(0, 5).Draw(t, "maps") {
			bits := rapid.IntRange(0, 32).Draw(t, "bits")
			v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4"))), bits).Masked()
			v6 := netip.PrefixFrom(netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6"))), rapid.IntRange(0, 96+bits).Draw(t, "bits6")).Masked()
			if v6.Addr().Is4In6() || seen[v4] || seen[v6] {
				continue
			}
			seen[v4], seen[v6] = true, true
			want = append(want, Map{IPv4: v4, IPv6: v6, Label: printable.Draw(t, "label")})
		}
		var file bytes.Buffer
		require.NoError(t, WriteMaps(&file, want))
		got, err := ReadMaps(bytes.NewReader(file.Bytes()), "f")
		require.NoError(t, err)
		for i := range got {
			got[i].Origin = ""
		}
		assert.Equal(t, want, got)
	})
}

// TestQuote holds that any string at all is read back by another's reader.
func TestQuote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.String().Draw(t, "s")
		var got struct{ S string }
		require.NoError(t, toml.Unmarshal([]byte("S = "+quote(want)), &got))
		assert.Equal(t, want, got.S)
	})
	assert.Equal(t, `"\u007f"`, quote("\x7f"))
}

func TestReadMapsRefuses(t *testing.T) {
	const one = "[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\n"
	for file, want := range map[string]string{
		one + "[device]\nname = \"x\"\n":  "f:4: device: expected [[map]] tables and nothing else",
		"mtu = 3\n" + one:                 "f:1: mtu: expected [[map]] tables and nothing else",
		one + "colour = \"red\"":          "f:4: map.colour: unknown key: expected one of ipv4, ipv6, label",
		one + "labl = \"red\"":            "f:4: map.labl: unknown key: did you mean map.label?",
		one + one:                         "f:5: map.ipv4: 192.0.2.1/32: mapped before at f:1: expected each prefix once\nf:6: map.ipv6: 2001:db8::1/128: mapped before at f:1: expected each prefix once",
		"[[map]]\nipv4 = \"192.0.2.1\"\n": `f:1: map.ipv6: missing: expected an IPv6 prefix in quotes, such as "2001:db8::/64"`,
		"map = 3":                         "f:1: map: 3: expected a list of tables, [[map]]",
		"map 192.0.2.1 2001:db8::1":       "f:1: column 5: not TOML: ",
	} {
		_, err := ReadMaps(strings.NewReader(file), "f")
		require.Error(t, err, file)
		assert.Contains(t, err.Error(), want, file)
	}
	_, err := ReadMaps(iotest.ErrReader(errors.New("gone")), "f")
	assert.EqualError(t, err, "reading maps: gone")
	_, err = ReadTayga(iotest.ErrReader(errors.New("gone")), "f")
	assert.EqualError(t, err, "reading the configuration of TAYGA: gone")
}

func TestReadTayga(t *testing.T) {
	got, err := ReadTayga(strings.NewReader(`# a comment
tun-device nat64
prefix 2001:db8:1:ffff::/96   # of the site
	map 192.0.2.5  2001:db8::5#here
map 198.51.100.0/24 2001:db8:1::/120

dynamic-pool 192.168.255.0/24
frobnicate yes
`), "tayga.conf")
	require.NoError(t, err)
	assert.Equal(t, []Map{
		{IPv4: netip.MustParsePrefix("192.0.2.5/32"), IPv6: netip.MustParsePrefix("2001:db8::5/128"), Origin: "tayga.conf:4"},
		{IPv4: netip.MustParsePrefix("198.51.100.0/24"), IPv6: netip.MustParsePrefix("2001:db8:1::/120"), Origin: "tayga.conf:5"},
	}, got.Maps)
	assert.Equal(t, []Left{
		{2, "tun-device nat64", "set device.name"},
		{3, "prefix 2001:db8:1:ffff::/96", "set translation.pref64"},
		{7, "dynamic-pool 192.168.255.0/24", "make a [[pool]] with it as ipv4, and those who may lease as clients"},
		{8, "frobnicate yes", "unknown to natless: compare docs/configuration.md"},
	}, got.Left)

	for file, want := range map[string]string{
		"map 192.0.2.5":                           "f:1: map: expected map IPV4[/LENGTH] IPV6[/LENGTH]",
		"map 2001:db8::5 192.0.2.5":               "f:1: map: 2001:db8::5: an IPv6 address where an IPv4 address belongs\nf:1: map: 192.0.2.5: an IPv4 address where an IPv6 address belongs",
		"\nmap 192.0.2.5/24 2001:db8::/120":       "f:2: map: 192.0.2.5/24: bits are set behind the prefix: expected 192.0.2.0/24",
		"map 192.0.2.0/24 2001:db8::/121":         "f:1: map: 2001:db8::/121: too small for 192.0.2.0/24: expected a prefix length of at most 120",
		"map a b c\nmap 192.0.2.5/24 2001:db8::5": "f:1: map: expected map IPV4[/LENGTH] IPV6[/LENGTH]\nf:2: map: 192.0.2.5/24: bits are set behind the prefix: expected 192.0.2.0/24",
	} {
		_, err := ReadTayga(strings.NewReader(file), "f")
		assert.EqualError(t, err, want, file)
	}
}

// TestTaygaInstead holds that the keys that are named instead are there.
func TestTaygaInstead(t *testing.T) {
	for directive, instead := range taygaDirectives {
		rest, set := strings.CutPrefix(instead, "set ")
		if !set {
			continue
		}
		table, rest, _ := strings.Cut(rest, ".")
		field, ok := fieldByKey(reflect.TypeFor[Config](), table)
		require.True(t, ok, directive)
		_, ok = fieldByKey(field.Type, strings.FieldsFunc(rest, func(r rune) bool { return r == ',' || r == ';' })[0])
		assert.True(t, ok, directive)
	}
}

// What is wrong with every one of very many maps is not told of each.
func TestManyProblems(t *testing.T) {
	var file strings.Builder
	for range 1000 {
		file.WriteString("[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"nonsense\"\n")
	}
	_, err := ReadMaps(strings.NewReader(file.String()), "maps.toml")
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	assert.Len(t, lines, reported+1)
	assert.Contains(t, lines[0], "maps.toml:3: map.ipv6: nonsense")
	assert.Regexp(t, `^and \d+ problems more$`, lines[reported])
}
