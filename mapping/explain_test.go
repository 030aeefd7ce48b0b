package mapping

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

// explained is the example with one lease, made at noon and last used at tick
// 130 of 160.
func explained(t *testing.T) *Table {
	c := example()
	c.GlobalOnly = true
	c.Now = func() time.Time { return time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC) }
	x := table(t, c)
	for _, tick := range []uint32{100, 130} {
		_, v := x.Resolve(flow(client, "2001:db8:64::192.0.0.9"), tick)
		require.Equal(t, translate.OK, v)
	}
	x.Expire(160)
	return x
}

// The words are for people, the rest is for scripts; both are told here whole.
func TestExplain(t *testing.T) {
	x := explained(t)
	const lease = "leased from pool 169.254.64.0/28 (natless.toml:20) to 2001:db8:c::5 since 2030-01-02T12:00:00Z, idle for 30s, nothing has come back for it yet"
	for _, c := range []struct{ address, other, rule, verdict, origin, detail string }{
		{"198.51.100.5", "2001:db8:1::5", "map", "", "natless.toml:12", "map 198.51.100.0/24 = 2001:db8:1::/120 (natless.toml:12), labelled \"web\""},
		{"198.51.100.7", "2001:db8:2::7", "map", "", "natless.toml:17", "map 198.51.100.7/32 = 2001:db8:2::7/128 (natless.toml:17)"},
		{"2001:db8:1::5", "198.51.100.5", "map", "", "natless.toml:12", "map 198.51.100.0/24 = 2001:db8:1::/120 (natless.toml:12), labelled \"web\""},
		{"169.254.64.2", client, "lease", "", "natless.toml:20", lease},
		{client, "169.254.64.2", "lease", "", "natless.toml:20", lease},
		{"169.254.64.5", "", "pool", "destination_unmapped", "natless.toml:20", "an address of pool 169.254.64.0/28 (natless.toml:20), not lent"},
		{"2001:db8:c::6", "", "pool", "", "natless.toml:20", "a client of pool 169.254.64.0/28 (natless.toml:20); its first packet leases an address"},
		{"2001:db8:d::6", "", "unmapped", "client_not_permitted", "", "no map covers it, and no pool's clients permit it"},
		{"192.0.0.9", "2001:db8:64::192.0.0.9", "pref64", "", "", "behind pref64 2001:db8:64::/96"},
		{"2001:db8:64::192.0.0.9", "192.0.0.9", "pref64", "", "", "192.0.0.9 under pref64 2001:db8:64::/96"},
		{"2001:db8:64::198.51.100.5", "198.51.100.5", "pref64", "", "natless.toml:12",
			"198.51.100.5 under pref64 2001:db8:64::/96: map 198.51.100.0/24 = 2001:db8:1::/120 (natless.toml:12), labelled \"web\"; reached by hairpin"},
		{"2001:db8:64::169.254.64.5", "169.254.64.5", "pref64", "destination_unmapped", "natless.toml:20",
			"169.254.64.5 under pref64 2001:db8:64::/96: an address of pool 169.254.64.0/28 (natless.toml:20), not lent"},
		{"10.0.0.1", "", "refused", "private_ipv4", "", "a private address, which must not stand behind pref64 2001:db8:64::/96"},
		{"2001:db8:64::10.0.0.1", "10.0.0.1", "refused", "private_ipv4", "",
			"10.0.0.1 under pref64 2001:db8:64::/96: a private address, which must not stand behind pref64 2001:db8:64::/96"},
		{"169.254.169.254", "", "refused", "destination_refused", "", "a cloud metadata address, refused whatever map it lies in"},
		{"2001:db8:64::127.0.0.1", "127.0.0.1", "refused", "destination_refused", "",
			"127.0.0.1 under pref64 2001:db8:64::/96: a loopback address, refused whatever map it lies in"},
		{"::ffff:192.0.2.1", "", "refused", "source_refused", "", "a v4-mapped address, refused whatever map it lies in"},
		{"fe80::1%eth0", "", "refused", "source_refused", "", "a link-local address, refused whatever map it lies in"},
		{"169.254.64.1", "", "own", "", "", "an address of natless itself: it answers ping"},
		{"fd00::1", "", "own", "", "", "an address of natless itself: it answers ping"},
		{"2001:db8:64::169.254.64.1", "169.254.64.1", "own", "", "",
			"169.254.64.1 under pref64 2001:db8:64::/96: an address of natless itself: it answers ping"},
	} {
		t.Run(c.address, func(t *testing.T) {
			got := x.Explain(addr(c.address))
			assert.Equal(t, c.detail, got.Detail)
			assert.Equal(t, c.rule, string(got.Rule))
			assert.Equal(t, c.verdict, got.Verdict)
			assert.Equal(t, c.origin, got.Origin)
			if c.other == "" {
				assert.False(t, got.Other.IsValid())
			} else {
				assert.Equal(t, addr(c.other), got.Other)
			}
		})
	}
	assert.Len(t, x.Leases(), 1, "explaining makes none")
	assert.Equal(t, RuleUnmapped, x.Explain(netip.Addr{}).Rule)

	c := example()
	c.Hairpin = false
	assert.Equal(t, "hairpin_off", table(t, c).Explain(addr("2001:db8:64::198.51.100.5")).Verdict)
	c = example()
	c.Pref64 = pfx("2001:db8:64::/48")
	assert.Equal(t, RuleUnmapped, table(t, c).Explain(addr("2001:db8:64:0:ff00::")).Rule)
	bare := table(t, Config{})
	assert.Equal(t, "source_unmapped", bare.Explain(addr(client)).Verdict)
	assert.Equal(t, "destination_unmapped", bare.Explain(addr("192.0.2.1")).Verdict)
}

func TestJSON(t *testing.T) {
	x := explained(t)
	for want, v := range map[string]any{
		`{"address":"169.254.64.2","other":"2001:db8:c::5","rule":"lease",
		  "detail":"leased from pool 169.254.64.0/28 (natless.toml:20) to 2001:db8:c::5 since 2030-01-02T12:00:00Z, idle for 30s, nothing has come back for it yet",
		  "lease":{"ipv4":"169.254.64.2","ipv6":"2001:db8:c::5","pool":"169.254.64.0/28","since":"2030-01-02T12:00:00Z","idle_seconds":30,"proven":false},
		  "pool":"169.254.64.0/28","origin":"natless.toml:20"}`: x.Explain(addr("169.254.64.2")),
		`{"address":"10.0.0.1","rule":"refused","verdict":"private_ipv4",
		  "detail":"a private address, which must not stand behind pref64 2001:db8:64::/96"}`: x.Explain(addr("10.0.0.1")),
		`{"ipv4":"198.51.100.0/24","ipv6":"2001:db8:1::/120","label":"web","origin":"natless.toml:12"}`:                                             x.Maps()[2],
		`[{"ipv4":"169.254.64.2","ipv6":"2001:db8:c::5","pool":"169.254.64.0/28","since":"2030-01-02T12:00:00Z","idle_seconds":30,"proven":false}]`: x.Leases(),
		`[{"ipv4":"169.254.64.0/28","clients":["2001:db8:c::/64"],"local":false,"size":16,"usable":13,"lent":1,"quarantined":0,"free":12,
		  "idle_seconds":3600,"max_life_seconds":0,"quarantine_seconds":300,"origin":"natless.toml:20"}]`: x.Pools(),
	} {
		got, err := json.Marshal(v)
		require.NoError(t, err)
		assert.JSONEq(t, want, string(got))
	}
	bare := table(t, Config{})
	for _, v := range []any{bare.Maps(), bare.Leases(), bare.Pools()} {
		got, err := json.Marshal(v)
		require.NoError(t, err)
		assert.Equal(t, "[]", string(got))
	}
}

func TestListingsInOrder(t *testing.T) {
	p := poolOf("192.0.2.0/28")
	p.Clients = nil
	p.Local = true
	x := pooled(t, p)
	got, err := json.Marshal(x.Pools()[0])
	require.NoError(t, err)
	assert.Contains(t, string(got), `"clients":[]`)
	x.SetLocal([]netip.Prefix{pfx("2001:db8::/32")})
	for i := range 5 {
		send(x, lessee(9-i), 1)
	}
	for i, l := range x.Leases() {
		assert.Equal(t, addr4(0xc000_0202+uint32(i)), l.IPv4)
		assert.Equal(t, lessee(9-i), l.IPv6)
	}
}
