package inet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTables(t *testing.T) {
	for _, table := range [][]Block{IPv4, IPv6} {
		assert.True(t, slices.IsSortedFunc(table, func(a, b Block) int { return a.Prefix.Compare(b.Prefix) }), "by address")
		for i, b := range table {
			assert.Equal(t, b.Prefix.Masked(), b.Prefix)
			assert.NotEmpty(t, b.Name)
			if i > 0 {
				assert.NotEqual(t, table[i-1].Prefix, b.Prefix)
			}
		}
	}
}

// The column "Globally Reachable" of the registries of IANA (RFC 6890), and what
// is around.
func TestReach(t *testing.T) {
	for a, want := range map[string]string{
		"0.0.0.0": "unspecified", "0.255.255.255": "unspecified", "1.0.0.0": "", "9.255.255.255": "", "10.0.0.0": "private",
		"100.63.255.255": "", "100.64.0.0": "private", "100.127.255.255": "private", "100.128.0.0": "", "127.0.0.1": "loopback",
		"169.253.255.255": "", "169.254.0.1": "link-local", "169.254.169.253": "link-local", "169.254.169.254": "cloud metadata",
		"172.15.255.255": "", "172.16.0.0": "private", "172.31.255.255": "private", "172.32.0.0": "",
		"191.255.255.255": "", "192.0.0.0": "protocol", "192.0.0.8": "protocol", "192.0.0.9": "PCP anycast", "192.0.0.10": "TURN anycast",
		"192.0.0.11": "protocol", "192.0.0.170": "protocol", "192.0.0.255": "protocol", "192.0.1.0": "", "192.0.2.0": "documentation", "192.0.3.0": "",
		"192.88.98.255": "", "192.88.99.0": "6to4 relay", "192.88.99.255": "6to4 relay", "192.167.255.255": "", "192.168.0.0": "private",
		"192.31.196.1": "AS112", "192.52.193.1": "AMT", "192.175.48.1": "AS112",
		"198.17.255.255": "", "198.18.0.0": "benchmarking", "198.19.255.255": "benchmarking", "198.20.0.0": "", "198.51.100.1": "documentation",
		"203.0.112.255": "", "203.0.113.0": "documentation", "223.255.255.255": "", "224.0.0.0": "multicast", "239.255.255.255": "multicast",
		"240.0.0.0": "class E", "255.255.255.254": "class E", "255.255.255.255": "broadcast",
		"::": "unspecified", "::1": "loopback", "::2": "", "::ffff:192.0.2.1": "v4-mapped", "64:ff9b::1": "NAT64", "64:ff9b:1::1": "local NAT64",
		"100::1": "discard-only", "2001::1": "Teredo", "2001:1::1": "PCP anycast", "2001:1::4": "protocol", "2001:2::1": "benchmarking",
		"2001:10::1": "ORCHID", "2001:20::1": "ORCHIDv2", "2001:db8::1": "documentation", "2001:db9::1": "", "2002::1": "6to4",
		"3fff::1": "documentation", "5f00::1": "segment routing", "fd00::1": "unique local", "fe80::1": "link-local", "ff02::1": "multicast",
		"2606:4700::1111": "",
	} {
		addr := netip.MustParseAddr(a)
		b, ok := Around(netip.PrefixFrom(addr, addr.BitLen()))
		assert.Equal(t, want, b.Name, a)
		assert.Equal(t, want != "", ok, a)
	}
	for p, want := range map[string]string{"169.254.0.0/15": "", "169.254.169.254/31": "link-local", "192.0.0.8/30": "protocol", "fe80::/9": ""} {
		b, _ := Around(netip.MustParsePrefix(p))
		assert.Equal(t, want, b.Name, p)
	}
}

// Narrow is what is neither refused always nor globally reachable, to the
// address.
func TestNarrow(t *testing.T) {
	narrow := Narrow()
	for _, b := range IPv4 {
		last := b.Prefix.Addr().As4()
		for i := b.Prefix.Bits(); i < 32; i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		for _, a := range []netip.Addr{b.Prefix.Addr(), b.Prefix.Addr().Prev(), netip.AddrFrom4(last), netip.AddrFrom4(last).Next()} {
			if !a.IsValid() {
				continue
			}
			around, ok := Around(netip.PrefixFrom(a, 32))
			want := ok && around.Reach >= Network && around.Reach < Global
			in := 0
			for _, n := range narrow {
				if n.Prefix.Contains(a) {
					in++
				}
			}
			assert.Equal(t, want, in == 1, "%v: in %d", a, in)
		}
	}
	assert.Contains(t, Prefixes(narrow), netip.MustParsePrefix("192.0.0.11/32"))
	assert.NotContains(t, Prefixes(narrow), netip.MustParsePrefix("192.0.0.0/24"))
}
