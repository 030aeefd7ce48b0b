package trace

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func config(t *testing.T) Config {
	t.Helper()
	return configOf(t, false)
}

func configOf(t *testing.T, globalOnly bool) Config {
	t.Helper()
	c := mapping.Config{
		GlobalOnly: globalOnly,
		Pref64:     netip.MustParsePrefix("64:ff9b::/96"),
		Maps:       []mapping.Map{{IPv4: netip.MustParsePrefix("192.0.2.0/29"), IPv6: netip.MustParsePrefix("2001:db8::/125"), Origin: "natless.toml:4"}},
		Pools: []mapping.Pool{{
			IPv4: netip.MustParsePrefix("198.51.100.0/29"), Clients: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}, Origin: "natless.toml:7",
		}},
		OwnIPv4: addr("198.51.100.1"), OwnIPv6: addr("2001:db8:ffff::1"), Hairpin: true,
	}
	table, err := mapping.New(c)
	require.NoError(t, err)
	return Config{
		Table: table, Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
		IPv4: c.OwnIPv4, IPv6: c.OwnIPv6,
	}
}

// lines are the steps of a trace as people see them.
func lines(r Report) (said []string) {
	for _, s := range r.Steps {
		said = append(said, s.Step+": "+s.String())
	}
	return said
}

func words(t *testing.T, c Config, text string) Report {
	t.Helper()
	b, err := ReadPacket(text)
	require.NoError(t, err)
	return Trace(c, b)
}

func TestSteps(t *testing.T) {
	const (
		parse6 = "parse: TCP from 2001:db8::1 port 1 to "
		source = "source: 2001:db8::1 becomes 192.0.2.1: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4) (RFC 7757 3.3)"
	)
	for _, c := range []struct {
		packet, verdict string
		leaves          bool
		steps           []string
		out             int
		err             string
	}{
		{"tcp 2001:db8::1 1 64:ff9b::203.0.113.9 2", "translated", true, []string{
			parse6 + "64:ff9b::cb00:7109 port 2 (RFC 7915 5.1)",
			source,
			"destination: 64:ff9b::cb00:7109 becomes 203.0.113.9: 203.0.113.9 under pref64 64:ff9b::/96 (RFC 6052 2.3)",
		}, 1, ""},
		{"tcp 2001:db8:1::1 1 64:ff9b::203.0.113.9 2", "translated", true, []string{
			"parse: TCP from 2001:db8:1::1 port 1 to 64:ff9b::cb00:7109 port 2 (RFC 7915 5.1)",
			"source: 2001:db8:1::1 becomes 198.51.100.2: a client of pool 198.51.100.0/29 (natless.toml:7); its first packet leases an address (RFC 7915 4.1, 5.1)",
			"destination: 64:ff9b::cb00:7109 becomes 203.0.113.9: 203.0.113.9 under pref64 64:ff9b::/96 (RFC 6052 2.3)",
		}, 1, ""},
		{"tcp 2001:db8::1 1 64:ff9b::192.0.2.2 2", "hairpinned", true, []string{
			parse6 + "64:ff9b::c000:202 port 2 (RFC 7915 5.1)",
			source,
			"destination: 64:ff9b::c000:202 becomes 192.0.2.2: 192.0.2.2 under pref64 64:ff9b::/96: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4); reached by hairpin (RFC 6052 2.3)",
			"hairpin_source: 192.0.2.1 becomes 64:ff9b::c000:201: the source by pref64, so that answers take the same way (RFC 7757 4.2.2)",
			"hairpin_destination: 192.0.2.2 becomes 2001:db8::2: a client too, so back to IPv6 at once (RFC 7757 4.2.2)",
		}, 1, ""},
		{"udp 203.0.113.9 53 192.0.2.2 2 len 1500", "fragmented", true, []string{
			"parse: UDP from 203.0.113.9 port 53 to 192.0.2.2 port 2 (RFC 7915 4.1)",
			"source: 203.0.113.9 becomes 64:ff9b::cb00:7109: behind pref64 64:ff9b::/96 (RFC 6052 2.3)",
			"destination: 192.0.2.2 becomes 2001:db8::2: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4) (RFC 7757 3.3)",
		}, 2, ""},
		{"udp 203.0.113.9 53 192.0.2.2 2 len 1500 df", "too_big", false, []string{
			"parse: UDP from 203.0.113.9 port 53 to 192.0.2.2 port 2 (RFC 7915 4.1)",
			"source: 203.0.113.9 becomes 64:ff9b::cb00:7109: behind pref64 64:ff9b::/96 (RFC 6052 2.3)",
			"destination: 192.0.2.2 becomes 2001:db8::2: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4) (RFC 7757 3.3)",
		}, 0, "IPv4 198.51.100.1 > 203.0.113.9, ttl 64, 576 bytes, traffic class 0xc0; ICMP DestinationUnreachable(FragmentationNeeded), MTU 1480, about [IPv4 203.0.113.9 > 192.0.2.2, ttl 64, 1500 bytes, DF; UDP 53 > 2, 520 bytes of data]"},
		{"udp 198.51.100.5 53 192.0.2.2 2", "translated", true, []string{ // an answer that came by the kernel
			"parse: UDP from 198.51.100.5 port 53 to 192.0.2.2 port 2 (RFC 7915 4.1)",
			"source: 198.51.100.5 becomes 64:ff9b::c633:6405: as a source it goes by pref64 (RFC 6052 2.3)",
			"destination: 192.0.2.2 becomes 2001:db8::2: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4) (RFC 7757 3.3)",
		}, 1, ""},
		{"icmp 2001:db8::1 2001:db8:ffff::1", "answered", true, []string{
			"parse: ICMPv6 from 2001:db8::1 to 2001:db8:ffff::1, identifier 1 (RFC 7915 5.1)",
			"own: 2001:db8:ffff::1: natless itself, which answers ping and serves nothing else (RFC 1122 3.2.2, RFC 4443 4.2)",
		}, 1, ""},
		{"tcp 2001:db8::1 1 2001:db8:ffff::1 2", "own_address", false, []string{
			parse6 + "2001:db8:ffff::1 port 2 (RFC 7915 5.1)",
			"own: 2001:db8:ffff::1: natless itself, which answers ping and serves nothing else (RFC 1122 3.2.2, RFC 4443 4.2)",
		}, 0, "IPv6 2001:db8:ffff::1 > 2001:db8::1, hop limit 64, 108 bytes; ICMPv6 DestinationUnreachable(PortUnreachable), about [IPv6 2001:db8::1 > 2001:db8:ffff::1, hop limit 64, 60 bytes; TCP 1 > 2 SYN, 0 bytes of data]"},
		{"tcp 2001:db8::1 1 64:ff9b::10.0.0.1 2", "private_ipv4", false, []string{
			parse6 + "64:ff9b::a00:1 port 2 (RFC 7915 5.1)",
			"source: 2001:db8::1: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4) (RFC 7757 3.3)",
			"destination: 64:ff9b::a00:1: 10.0.0.1 under pref64 64:ff9b::/96: a private address, which must not stand behind pref64 64:ff9b::/96 (RFC 7915 4.1, 5.1)",
		}, 0, "IPv6 2001:db8:ffff::1 > 2001:db8::1, hop limit 64, 108 bytes; ICMPv6 DestinationUnreachable(AdminProhibited), about [IPv6 2001:db8::1 > 64:ff9b::a00:1, hop limit 64, 60 bytes; TCP 1 > 2 SYN, 0 bytes of data]"},
		{"tcp 2001:db8::1 1 2001:db8:1::1 2", "destination_unmapped", false, []string{
			parse6 + "2001:db8:1::1 port 2 (RFC 7915 5.1)",
			"source: 2001:db8::1: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4) (RFC 7757 3.3)",
			"destination: 2001:db8:1::1: a client of pool 198.51.100.0/29 (natless.toml:7); its first packet leases an address; as a destination it is reached by its IPv4 address under pref64 alone (RFC 7915 4.1, 5.1)",
		}, 0, "IPv6 2001:db8:ffff::1 > 2001:db8::1, hop limit 64, 108 bytes; ICMPv6 DestinationUnreachable(AddressUnreachable), about [IPv6 2001:db8::1 > 2001:db8:1::1, hop limit 64, 60 bytes; TCP 1 > 2 SYN, 0 bytes of data]"},
		{"60", "truncated", false, []string{
			"parse: not a packet that can be translated (RFC 791 3.1, RFC 8200 3)",
		}, 0, ""},
	} {
		r := words(t, configOf(t, c.verdict == "private_ipv4"), c.packet)
		assert.Equal(t, c.verdict, r.Verdict, c.packet)
		assert.Equal(t, c.leaves, r.Leaves, c.packet)
		assert.Equal(t, c.steps, lines(r), c.packet)
		assert.Len(t, r.Out, c.out, c.packet)
		if c.err == "" {
			assert.Nil(t, r.Error, c.packet)
		} else if assert.NotNil(t, r.Error, c.packet) {
			assert.Equal(t, c.err, r.Error.Text, c.packet)
		}
	}
}

// unreachable is an ICMPv6 error about the packet.
func unreachable(t *testing.T, src, dst, quoted string) []byte {
	t.Helper()
	quote, err := ReadPacket(quoted)
	require.NoError(t, err)
	l := &line{}
	b, err := l.packet(ends{src: addr(src), dst: addr(dst)}, 8+len(quote),
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 3)}, gopacket.Payload(append(make([]byte, 4), quote...)))
	require.NoError(t, err)
	return b
}

func TestStepsOfErrors(t *testing.T) {
	const parse = "parse: an ICMP error from 2001:db8:9::1 to 64:ff9b::cb00:7109 about UDP from 64:ff9b::cb00:7109 port 53 to "
	standIn := []string{
		"source: 2001:db8:9::1 becomes 198.51.100.1: a stand-in, with which an ICMP error leaves all the same (no map covers it, and no pool's clients permit it) (RFC 6791 4)",
		"destination: 64:ff9b::cb00:7109 becomes 203.0.113.9: 203.0.113.9 under pref64 64:ff9b::/96 (RFC 6052 2.3)",
	}
	c := config(t)
	r := Trace(c, unreachable(t, "2001:db8:9::1", "64:ff9b::203.0.113.9", "udp 64:ff9b::203.0.113.9 53 2001:db8::1 4000"))
	assert.Equal(t, "translated", r.Verdict)
	assert.Equal(t, append(append([]string{parse + "2001:db8::1 port 4000 (RFC 7915 5.2, 5.3)"}, standIn...),
		"quoted_source: 64:ff9b::cb00:7109 becomes 203.0.113.9: 203.0.113.9 under pref64 64:ff9b::/96 (RFC 6052 2.3)",
		"quoted_destination: 2001:db8::1 becomes 192.0.2.1: map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4) (RFC 7757 3.3)",
	), lines(r))
	require.Len(t, r.Out, 1)
	assert.Equal(t, "IPv4 198.51.100.1 > 203.0.113.9, ttl 63, 56 bytes; ICMP DestinationUnreachable(Host), about [IPv4 203.0.113.9 > 192.0.2.1, ttl 64, 28 bytes; UDP 53 > 4000, 0 bytes of data]", r.Out[0].Text)

	r = Trace(c, unreachable(t, "2001:db8:9::1", "64:ff9b::203.0.113.9", "udp 64:ff9b::203.0.113.9 53 2001:db8:9::2 4000"))
	assert.Equal(t, "quote_unmapped", r.Verdict)
	assert.Equal(t, append(append([]string{parse + "2001:db8:9::2 port 4000 (RFC 7915 5.2, 5.3)"}, standIn...),
		"quoted_source: 64:ff9b::cb00:7109: 203.0.113.9 under pref64 64:ff9b::/96 (RFC 6052 2.3)",
		"quoted_destination: 2001:db8:9::2: no map covers it, and no pool's clients permit it (RFC 7915 4.1, 5.1)",
	), lines(r))

	// From one client to another, who sent the packet that the error is about.
	r = Trace(c, unreachable(t, "2001:db8::1", "64:ff9b::192.0.2.2", "udp 64:ff9b::192.0.2.2 53 2001:db8::1 4000"))
	assert.Equal(t, "hairpinned", r.Verdict)
	said := lines(r)
	require.Len(t, said, 9)
	assert.Equal(t, []string{
		"hairpin_source: 192.0.2.1 becomes 64:ff9b::c000:201: the source by pref64, so that answers take the same way (RFC 7757 4.2.2)",
		"hairpin_destination: 192.0.2.2 becomes 2001:db8::2: a client too, so back to IPv6 at once (RFC 7757 4.2.2)",
		"quoted_hairpin_destination: 192.0.2.1 becomes 64:ff9b::c000:201: the source by pref64, so that answers take the same way (RFC 7757 4.2.2)",
		"quoted_hairpin_source: 192.0.2.2 becomes 2001:db8::2: a client too, so back to IPv6 at once (RFC 7757 4.2.2)",
	}, said[5:])
}

// TestNothingChanges holds that a trace says what happens next and does not
// make it happen.
func TestNothingChanges(t *testing.T) {
	c := config(t)
	const packet = "udp 2001:db8:1::7 1 64:ff9b::203.0.113.9 2"
	for range 2 {
		r := words(t, c, packet)
		require.Len(t, r.Out, 1)
		assert.Equal(t, "IPv4 198.51.100.2 > 203.0.113.9, ttl 63, 28 bytes; UDP 1 > 2, 0 bytes of data", r.Out[0].Text)
	}
	assert.EqualValues(t, 1, c.Table.Revision())
	assert.Empty(t, c.Table.Leases())

	got := translate.Flow{Src: addr("2001:db8:1::7"), Dst: addr("64:ff9b::203.0.113.9"), Proto: 17}
	_, v := c.Table.ResolveRanges(&got, 0)
	require.Equal(t, translate.OK, v)
	assert.Equal(t, addr("198.51.100.2"), got.Src)
	assert.Equal(t, mapping.RuleLease, words(t, c, packet).Steps[1].Rule)
}

func TestPoolFull(t *testing.T) {
	c := config(t)
	client := addr("2001:db8:1::a0")
	for range 6 {
		_, v := c.Table.ResolveRanges(&translate.Flow{Src: client, Dst: addr("64:ff9b::203.0.113.9"), Proto: 17}, 0)
		require.Equal(t, translate.OK, v)
		client = client.Next()
	}
	r := words(t, c, "udp 2001:db8:1::7 1 64:ff9b::203.0.113.9 2")
	assert.Equal(t, "pool_full", r.Verdict)
	assert.NotNil(t, r.Error)
}

// TestJSON holds the names that scripts go by.
func TestJSON(t *testing.T) {
	data, err := json.Marshal(words(t, config(t), "udp 2001:db8::1 1 64:ff9b::203.0.113.9 2 ttl 1"))
	require.NoError(t, err)
	assert.JSONEq(t, `{
		"packet": {
			"text": "IPv6 2001:db8::1 > 64:ff9b::cb00:7109, hop limit 1, 48 bytes; UDP 1 > 2, 0 bytes of data", "bytes": 48,
			"hex": "600000000008110120010db80000000000000000000000010064ff9b0000000000000000cb0071090001000200089617"
		},
		"steps": [
			{"step": "parse", "text": "UDP from 2001:db8::1 port 1 to 64:ff9b::cb00:7109 port 2", "section": "RFC 7915 5.1"},
			{"step": "source", "text": "map 192.0.2.0/29 = 2001:db8::/125 (natless.toml:4)", "section": "RFC 7757 3.3",
				"from": "2001:db8::1", "to": "192.0.2.1", "rule": "map", "origin": "natless.toml:4"},
			{"step": "destination", "text": "203.0.113.9 under pref64 64:ff9b::/96", "section": "RFC 6052 2.3",
				"from": "64:ff9b::cb00:7109", "to": "203.0.113.9", "rule": "pref64"}
		],
		"verdict": "hop_limit", "leaves": false, "section": "RFC 7915 4.1, 5.1",
		"advice": "TTL or hop limit used up here. Traceroute does this; many of them otherwise mean a routing loop.",
		"out": [],
		"error": {
			"text": "IPv6 2001:db8:ffff::1 > 2001:db8::1, hop limit 64, 96 bytes; ICMPv6 TimeExceeded(HopLimitExceeded), about [IPv6 2001:db8::1 > 64:ff9b::cb00:7109, hop limit 1, 48 bytes; UDP 1 > 2, 0 bytes of data]",
			"bytes": 96,
			"hex": "6000000000383a4020010db8ffff0000000000000000000120010db80000000000000000000000010300302900000000600000000008110120010db80000000000000000000000010064ff9b0000000000000000cb0071090001000200089617"
		}
	}`, string(data))
}
