package mapping

import (
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

const vectorDir = "../testdata/mapping"

// vector is one packet of testdata/mapping; the head of each file there tells
// its form.
type vector struct {
	name, verdict string
	config        Config
	back          bool
	in, out       []byte
}

func readVectors(t *testing.T) (all []*vector) {
	files, err := filepath.Glob(filepath.Join(vectorDir, "*.txt"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var v *vector
		var data *[]byte // what lines of hex go to
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSuffix(line, "\n")
			if line == "" || line[0] == '#' {
				continue
			}
			if digits, ok := strings.CutPrefix(line, "  "); ok {
				b, err := hex.DecodeString(digits)
				require.NoError(t, err, line)
				*data = append(*data, b...)
				continue
			}
			key, value, ok := strings.Cut(line, ":")
			require.True(t, ok, "%s: no key: %s", file, line)
			value = strings.TrimSpace(value)
			switch key {
			case "packet":
				v = &vector{name: value, config: Config{OwnIPv4: addr("203.0.113.1"), OwnIPv6: addr("fd00:1::1"), Hairpin: true}}
				all = append(all, v)
			case "pref64":
				v.config.Pref64 = pfx(value)
			case "map":
				four, six, _ := strings.Cut(value, " ")
				v.config.Maps = append(v.config.Maps, Map{IPv4: plain(four), IPv6: plain(six)})
			case "rfc6791":
				v.config.RFC6791 = append(v.config.RFC6791, pfx(value))
			case "pass":
				v.back = value == "back"
			case "in":
				data = &v.in
			case "out":
				data = &v.out
			case "verdict":
				v.verdict = value
			default:
				require.Fail(t, "no such key", "%s: %s", file, key)
			}
		}
	}
	return all
}

// plain is a prefix whose length may be left out.
func plain(s string) netip.Prefix {
	if strings.Contains(s, "/") {
		return pfx(s)
	}
	return netip.PrefixFrom(addr(s), addr(s).BitLen())
}

// resolve asks the table as the dataplane does: of an ICMP error also for the
// packet it quotes, which went the other way.
func (v *vector) resolve(x *Table, p *translate.Packet) (to, quoted translate.Flow, verdict translate.Verdict) {
	outer := func(f translate.Flow) (translate.Flow, translate.Verdict) { return x.Resolve(f, 1) }
	inner := x.Lookup
	switch {
	case v.back:
		outer, inner = x.HairpinBack, x.HairpinBack
	case p.HasQuote():
		outer = x.ResolveError
	}
	if to, verdict = outer(p.Flow); !verdict.Leaves() || !p.HasQuote() {
		return to, quoted, verdict
	}
	answer, found := inner(p.Quoted.Reversed())
	if !found.Leaves() {
		return to, quoted, translate.QuoteUnmapped
	}
	return to, answer.Reversed(), verdict
}

// Packets that go through a table: what the examples of the RFCs say of
// addresses, seen from the wire.
func TestVectors(t *testing.T) {
	o := translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280}
	for _, v := range readVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			x := table(t, v.config)
			p := &translate.Packet{ID: 0x1234, Buf: append(make([]byte, translate.Headroom), v.in...), Off: translate.Headroom, Len: len(v.in)}
			require.Equal(t, translate.OK, p.Parse(&o))
			to, quoted, verdict := v.resolve(x, p)
			require.Equal(t, v.verdict, verdict.String())
			if v.out == nil {
				return
			}
			require.Equal(t, translate.OK, p.Rewrite(&o, &to, &quoted))
			assert.Equal(t, hex.EncodeToString(v.out), hex.EncodeToString(p.Buf[p.Off:p.Off+p.Len]))
		})
	}
}

// What an illegal source is to RFC 7915 4.1 and 5.1, with RFC 1812 5.3.7: the
// packet is dropped and nobody is told.
func TestIllegalSourceIsSilent(t *testing.T) {
	x := table(t, example())
	for _, src := range []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.255.255", "255.255.255.255"} {
		_, v := x.Resolve(flow(src, "198.51.100.5"), 1)
		assert.Equal(t, translate.SourceRefused, v, src)
	}
	for _, src := range []string{"::", "::1", "ff02::1", "ff0e::1", "::ffff:192.0.2.1"} {
		_, v := x.Resolve(flow(src, "2001:db8:64::192.0.2.1"), 1)
		assert.Equal(t, translate.SourceRefused, v, src)
	}
	assert.Empty(t, translate.SourceRefused.Info().Reply)
}

// A source under pref64 could pretend to be any IPv4 host (RFC 6052 5.1).
func TestSpoofedIPv4Source(t *testing.T) {
	for _, prefix := range []string{"64:ff9b::/96", "2001:db8:64::/96", "2001:db8:6400::/40"} {
		c := example()
		c.Pref64 = pfx(prefix)
		c.Pools[0].Clients = []netip.Prefix{pfx("::/0")}
		x := table(t, c)
		p := pref(t, prefix)
		_, v := x.Resolve(translate.Flow{Src: p.Embed(addr("192.0.2.9")), Dst: p.Embed(addr("192.0.2.1")), Proto: 17}, 1)
		assert.Equal(t, translate.SourceRefused, v, prefix)
		assert.Empty(t, x.Leases())
	}
}

// The well-known prefix must not stand for addresses that are not globally
// reachable (RFC 6052 3.1), as source or as destination.
func TestWellKnownPrefixIsGlobal(t *testing.T) {
	c := example()
	c.Pref64, c.GlobalOnly = pfx("64:ff9b::/96"), true
	c.Maps = c.Maps[:1]
	x := table(t, c)
	for v4, want := range map[string]translate.Verdict{
		"192.0.0.0": translate.PrivateIPv4, "192.0.0.8": translate.PrivateIPv4, "192.0.0.9": translate.OK, "192.0.0.10": translate.OK,
		"192.0.0.11": translate.PrivateIPv4, "192.0.0.170": translate.PrivateIPv4, "192.0.0.255": translate.PrivateIPv4, "192.0.1.0": translate.OK,
		"192.0.2.0": translate.PrivateIPv4, "192.0.2.255": translate.PrivateIPv4, "192.0.3.0": translate.OK,
		"192.88.99.1": translate.PrivateIPv4, "192.88.98.255": translate.OK, "192.88.100.0": translate.OK,
		"198.18.0.0": translate.PrivateIPv4, "198.19.255.255": translate.PrivateIPv4, "198.17.255.255": translate.OK, "198.20.0.0": translate.OK,
		"203.0.113.0": translate.PrivateIPv4, "203.0.113.255": translate.PrivateIPv4, "203.0.112.255": translate.OK, "203.0.114.0": translate.OK,
		"198.51.99.255": translate.OK, "198.51.101.0": translate.OK,
		"10.0.0.0": translate.PrivateIPv4, "10.255.255.255": translate.PrivateIPv4,
		"172.16.0.0": translate.PrivateIPv4, "172.31.255.255": translate.PrivateIPv4,
		"192.168.0.0": translate.PrivateIPv4, "192.168.255.255": translate.PrivateIPv4,
		"100.64.0.0": translate.PrivateIPv4, "100.127.255.255": translate.PrivateIPv4,
		"0.0.0.1": translate.DestinationRefused, "127.0.0.1": translate.DestinationRefused, "169.254.169.254": translate.DestinationRefused,
		"224.0.0.1": translate.DestinationRefused, "240.0.0.1": translate.DestinationRefused, "255.255.255.255": translate.DestinationRefused,
		"9.255.255.255": translate.OK, "11.0.0.0": translate.OK, "172.15.255.255": translate.OK, "172.32.0.0": translate.OK,
		"192.167.255.255": translate.OK, "192.169.0.0": translate.OK, "100.63.255.255": translate.OK, "100.128.0.0": translate.OK,
	} {
		_, v := x.Resolve(flow("2001:db8:1::5", "64:ff9b::"+v4), 1)
		assert.Equal(t, want.String(), v.String(), "to %s", v4)
		_, v = x.Resolve(flow(v4, "198.51.100.5"), 1)
		if want == translate.DestinationRefused {
			want = translate.SourceRefused
		}
		assert.Equal(t, want.String(), v.String(), "from %s", v4)
	}
}

// The table of RFC 7757 5, figure 2: where prefixes overlap, each direction
// goes by its own longest match, and there and back need not agree.
func TestOverlappingMaps(t *testing.T) {
	x := table(t, Config{Pref64: pfx("64:ff9b::/96"), Maps: []Map{
		{IPv4: pfx("0.0.0.0/0"), IPv6: pfx("2001:db8:ff00::/40")},
		{IPv4: pfx("198.51.100.64/32"), IPv6: pfx("2001:db8::abcd/128")},
	}})
	// 198.51.100.64 is c6.33.64.40: its bits follow those 40 of the prefix.
	assert.Equal(t, addr("198.51.100.64"), x.Explain(addr("2001:db8:ffc6:3364:4000::")).Other)
	assert.Equal(t, addr("2001:db8::abcd"), x.Explain(addr("198.51.100.64")).Other)
	assert.Equal(t, addr("198.51.100.64"), x.Explain(addr("2001:db8::abcd")).Other)
	assert.Equal(t, addr("2001:db8:ffc6:3364:4100::"), x.Explain(addr("198.51.100.65")).Other)
}
