package config

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// restarts has every key: whether a running natless has to be restarted for
// it. A new key has to be entered here, and thought about.
var restarts = map[string]bool{
	"device.name": true, "device.mtu": true, "device.queues": true, "device.offload": true,
	"network.manage": true, "network.masquerade": false, "network.firewall": false, "network.on_exit": true, "network.uplinks": false, "network.client_links": false,
	"translation.pref64": true, "translation.ipv4": true, "translation.ipv6": true, "translation.rfc6791_ipv4": false,
	"translation.lowest_ipv6_mtu": true, "translation.ipv6_mtu": true, "translation.ipv4_mtu": true,
	"translation.udp_zero_checksum": true, "translation.traffic_class": true,
	"translation.hairpin": false, "translation.private_ipv4": false, "translation.translatable": false,
	"map.ipv4": false, "map.ipv6": false, "map.label": false,
	"pool.ipv4": false, "pool.clients": false, "pool.mode": false, "pool.idle": false, "pool.max_life": false, "pool.quarantine": false,
	"sessions.max": true, "sessions.max_per_client": true,
	"pool.ports_per_client": false, "pool.session_ports": false, "pool.first_port": false, "pool.last_port": false,
	"control.socket": true, "control.group": true, "control.read_group": true,
	"state.dir": true, "state.history": false,
	"log.level": false, "log.format": true,
	"dns64.listen": false, "dns64.upstreams": false, "dns64.exclude": false, "dns64.synthesise": false,
	"ra.interfaces": false, "ra.lifetime": false,
}

// other changes a value.
func other(t *testing.T, v reflect.Value) {
	t.Helper()
	switch p := v.Addr().Interface().(type) {
	case *bool:
		*p = !*p
	case *int:
		*p++
	case *string:
		*p += "x"
	case *time.Duration:
		*p += time.Minute
	case *netip.Addr:
		*p = netip.MustParseAddr("2001:db8::99")
	case *netip.Prefix:
		*p = netip.MustParsePrefix("203.0.113.99/32")
	case *[]netip.Prefix:
		*p = append(*p, netip.MustParsePrefix("203.0.113.99/32"))
	case *[]netip.AddrPort:
		*p = append(*p, netip.MustParseAddrPort("[2001:db8::53]:53"))
	case *[]string:
		*p = append(*p, "x")
	case *[]Client:
		*p = append(*p, Client{IPv6: netip.MustParsePrefix("2001:db8::/64")})
	default:
		require.Failf(t, "a key of a new type", "%T", p)
	}
}

// TestEveryKeyIsLiveOrNot changes one key after the other. Each is noticed, and
// refused just when it cannot change while natless runs.
func TestEveryKeyIsLiveOrNot(t *testing.T) {
	seen := 0
	fields := reflect.VisibleFields(reflect.TypeFor[Config]())
	for _, table := range fields {
		name, ok := table.Tag.Lookup("toml")
		if !ok {
			continue
		}
		rows := table.Type.Kind() == reflect.Slice
		row := table.Type
		if rows {
			row = row.Elem()
		}
		for _, field := range reflect.VisibleFields(row) {
			key, ok := field.Tag.Lookup("toml")
			if !ok {
				continue
			}
			path := name + "." + key
			restart, known := restarts[path]
			require.True(t, known, "%s is in no list", path)
			seen++

			old, next := Default(), Default()
			for _, c := range []*Config{old, next} {
				c.Maps = []Map{{IPv4: netip.MustParsePrefix("192.0.2.1/32"), IPv6: netip.MustParsePrefix("2001:db8::1/128")}}
			}
			v := reflect.ValueOf(next).Elem().FieldByIndex(table.Index)
			if rows {
				v = v.Index(0)
			}
			other(t, v.FieldByIndex(field.Index))
			changes, err := old.CheckReload(next)
			assert.NotEmpty(t, changes, path)
			assert.Equal(t, restart, NeedsRestart(path), path)
			if restart {
				assert.ErrorContains(t, err, "needs a restart: "+path+": ")
			} else {
				assert.NoError(t, err, path)
			}
		}
	}
	assert.Len(t, restarts, seen, "keys that are not there any more")
	assert.False(t, NeedsRestart("pool[3].idle"))
	assert.False(t, NeedsRestart("map[1000].label"))
}

func TestChanges(t *testing.T) {
	old := mustParse(t, `
[[map]]
ipv4 = "192.0.2.1"
ipv6 = "2001:db8::1"
[[map]]
ipv4 = "192.0.2.2"
ipv6 = "2001:db8::2"
[[map]]
ipv4 = "192.0.2.3"
ipv6 = "2001:db8::3"
[[pool]]
ipv4 = "198.51.100.0/25"
[[pool]]
ipv4 = "198.51.100.128/26"
[[pool]]
ipv4 = "198.51.100.192/26"
`)
	next := mustParse(t, `
[device]
mtu = 9000
[log]
level = "debug"
[[map]]
ipv4 = "192.0.2.0"
ipv6 = "2001:db8::"
label = "front"
[[map]]
ipv4 = "192.0.2.3"
ipv6 = "2001:db8::33"
[[map]]
ipv4 = "192.0.2.1"
ipv6 = "2001:db8::1"
[[pool]]
ipv4 = "198.51.100.192/26"
[[pool]]
ipv4 = "198.51.100.0/25"
clients = ["local", "2001:db8:1::/64"]
idle = "2h"
[[pool]]
ipv4 = "203.0.113.0/24"
`)
	changes, err := old.CheckReload(next)
	assert.EqualError(t, err, "needs a restart: device.mtu: 0 -> 9000")
	assert.Equal(t, []string{
		"device.mtu: 0 -> 9000",
		`log.level: "info" -> "debug"`,
		`map added: 192.0.2.0/32 = 2001:db8::/128 "front"`,
		"map: 192.0.2.3/32 = 2001:db8::3/128 -> 192.0.2.3/32 = 2001:db8::33/128",
		"map removed: 192.0.2.2/32 = 2001:db8::2/128",
		"pool removed: 198.51.100.128/26",
		`pool.clients of 198.51.100.0/25: ["local"] -> ["local","2001:db8:1::/64"]`,
		`pool.idle of 198.51.100.0/25: "1h" -> "2h"`,
		"pool added: 203.0.113.0/24",
		"pool: one order -> another",
	}, changes)
	changes, err = old.CheckReload(old)
	assert.NoError(t, err)
	assert.Empty(t, changes)
}

// Room for sessions is made at the start, where a pool wants them.
func TestReloadOfRanges(t *testing.T) {
	const shared = "[[pool]]\nipv4 = \"192.0.2.0/24\"\nmode = \"port-range\"\n"
	for name, test := range map[string]struct{ old, next, want string }{
		"the first":        {"", "[[pool]]\n" + shared, "needs a restart: pool.mode: port-range, where no pool had it: there is no room for sessions"},
		"by another mode":  {"[[pool]]\nipv4 = \"192.0.2.0/24\"", shared, "needs a restart: pool.mode: port-range, where no pool had it: there is no room for sessions"},
		"the second":       {shared, shared + "[[pool]]\nipv4 = \"203.0.113.0/24\"\nmode = \"port-range\"", ""},
		"the last":         {shared, "[[pool]]\nipv4 = \"192.0.2.0/24\"", ""},
		"other ranges":     {shared, shared + "ports_per_client = 512", ""},
		"another bound":    {shared, shared + "[sessions]\nmax = 5000", "needs a restart: sessions.max: 1000000 -> 5000"},
		"and its client's": {shared, shared + "[sessions]\nmax_per_client = 5000", "needs a restart: sessions.max_per_client: 4096 -> 5000"},
	} {
		t.Run(name, func(t *testing.T) {
			changes, err := mustParse(t, test.old).CheckReload(mustParse(t, test.next))
			assert.NotEmpty(t, changes)
			if test.want == "" {
				assert.NoError(t, err)
			} else {
				assert.EqualError(t, err, test.want)
			}
		})
	}
}

// What follows from pools and maps at a start stays where it is when they
// change later.
func TestKeepOwn(t *testing.T) {
	running := mustParse(t, "")
	for name, test := range map[string]struct{ next, want string }{
		"another pool in front": {"[[pool]]\nipv4 = \"198.51.100.0/24\"\n[[pool]]", ""},
		"elsewhere now":         {"[[pool]]\nipv4 = \"198.51.100.0/24\"", ""},
		"no pool any more":      {"pool = []\ntranslation.ipv4 = \"169.254.64.1\"", ""},
		"given":                 {"translation.ipv4 = \"169.254.64.1\"", ""},
		"given another":         {"translation.ipv4 = \"192.0.2.1\"", `needs a restart: translation.ipv4: "" -> "192.0.2.1"`},
		"mapped": {"[[map]]\nipv4 = \"169.254.64.1\"\nipv6 = \"2001:db8::1\"",
			"natless's own IPv4 address, 169.254.64.1, cannot change while it runs: f: translation.ipv4: 169.254.64.1: is mapped at f:1: expected an address that is not"},
		"a stand-in's": {"translation.rfc6791_ipv4 = [\"203.0.113.0/30\"]\n[[pool]]\nipv4 = \"198.51.100.0/24\"", ""},
		"all of a pool": {"[[pool]]\nipv4 = \"198.51.100.0/24\"\n[[pool]]\nipv4 = \"169.254.64.1\"",
			"natless's own IPv4 address, 169.254.64.1, cannot change while it runs: f:4: pool.ipv4: 169.254.64.1/32: maps and natless's own address, 169.254.64.1, leave none for clients: expected a larger pool, or fewer addresses in maps"},
	} {
		t.Run(name, func(t *testing.T) {
			next := mustParse(t, test.next)
			err := next.KeepOwn(running)
			if err == nil {
				_, err = running.CheckReload(next)
			}
			if test.want != "" {
				assert.EqualError(t, err, test.want)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, "169.254.64.1", next.OwnIPv4().String())
		})
	}
}
