package config

import (
	"net/netip"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// withFlags lays a command line over c.
func withFlags(t *testing.T, c *Config, args ...string) error {
	t.Helper()
	var f Flags
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.Register(set)
	require.NoError(t, set.Parse(args))
	return f.Apply(c)
}

func TestFlags(t *testing.T) {
	t.Setenv(SocketVariable, "")
	prefix := netip.MustParsePrefix
	c := Default()
	require.NoError(t, withFlags(t, c))
	c.given = nil
	assert.Equal(t, Default(), c, "no flag changes anything")

	c, err := parse("f", []byte("[device]\nmtu = 9000\n[[map]]\nipv4 = \"192.0.2.9\"\nipv6 = \"2001:db8::9\"\n[[pool]]\nidle = \"3h\""))
	require.NoError(t, err)
	require.NoError(t, withFlags(t, c, "--device", "nat6", "--pref64", "2001:db8:64::/96",
		"--map", "192.0.2.1=2001:db8::1", "--map", "198.51.100.0/24=2001:db8:1::/120",
		"--pool", "203.0.113.0/25", "--pool", "203.0.113.128/25", "--pool-mode", "one-to-one",
		"--clients", "local,2001:db8:2::/64", "--clients", "2001:db8:3::1",
		"--masquerade", "off", "--firewall", "--on-exit", "keep", "--offload", "off", "--queues", "3", "--dns64", "fd00::1,[fd00::2]:5353", "--dns64", "fd00::3", "--socket", "/tmp/s", "--state-dir", ""))
	assert.Equal(t, Device{Name: "nat6", MTU: 9000, Queues: 3, Offload: "off"}, c.Device)
	assert.Equal(t, Network{Manage: true, Masquerade: "off", Firewall: "open", OnExit: "keep"}, c.Network)
	assert.Equal(t, prefix("2001:db8:64::/96"), c.Translation.Pref64)
	assert.Equal(t, "/tmp/s", c.Control.Socket)
	assert.Equal(t, "DNS64 at [fd00::1]:53, [fd00::2]:5353, [fd00::3]:53, asking the host's own resolvers", c.DNS64.String())
	assert.Equal(t, []Map{
		{IPv4: prefix("192.0.2.9/32"), IPv6: prefix("2001:db8::9/128"), Origin: "f:3"},
		{IPv4: prefix("192.0.2.1/32"), IPv6: prefix("2001:db8::1/128"), Origin: "--map"},
		{IPv4: prefix("198.51.100.0/24"), IPv6: prefix("2001:db8:1::/120"), Origin: "--map"},
	}, c.Maps)
	pool := defaultPool()
	pool.Origin = "--pool"
	pool.Clients = []Client{{Local: true}, {IPv6: prefix("2001:db8:2::/64")}, {IPv6: prefix("2001:db8:3::1/128")}}
	first, second := pool, pool
	first.IPv4, second.IPv4 = prefix("203.0.113.0/25"), prefix("203.0.113.128/25")
	assert.Equal(t, []Pool{first, second}, c.Pools)

	c = Default()
	require.NoError(t, withFlags(t, c, "--pool-mode", "port-range"))
	assert.True(t, c.SharesAddresses())

	c = Default()
	require.NoError(t, withFlags(t, c, "--pref64", ""))
	assert.False(t, c.Translation.Pref64.IsValid())
}

func TestBadFlags(t *testing.T) {
	t.Setenv(SocketVariable, "")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--device", "a-very-long-name"}, `--device: a-very-long-name: 16 bytes long: expected at most 15`},
		{[]string{"--pref64", "2001:db8::/95"}, `--pref64: 2001:db8::/95: prefix length 95 is none of 32, 40, 48, 56, 64, 96`},
		{[]string{"--map", "192.0.2.1"}, `--map 192.0.2.1: expected V4=V6, such as 192.0.2.1=2001:db8::1`},
		{[]string{"--map", "2001:db8::1=192.0.2.1"}, "--map 2001:db8::1=192.0.2.1: 2001:db8::1: an IPv6 address where an IPv4 address belongs\n" +
			"--map 2001:db8::1=192.0.2.1: 192.0.2.1: an IPv4 address where an IPv6 address belongs"},
		{[]string{"--map", "192.0.2.1=2001:db8::1", "--map", "192.0.2.1=2001:db8::2"}, `--map 192.0.2.1=2001:db8::2: 192.0.2.1/32: mapped before at --map: expected each prefix once`},
		{[]string{"--map", "192.0.2.0/24=2001:db8::/121"}, `--map 192.0.2.0/24=2001:db8::/121: 2001:db8::/121: too small for 192.0.2.0/24: expected a prefix length of at most 120`},
		{[]string{"--pool", "192.0.2.5/24"}, `--pool: 192.0.2.5/24: bits are set behind the prefix: expected 192.0.2.0/24`},
		{[]string{"--pool", "192.0.2.0/24", "--pool", "192.0.2.0/25"}, `--pool: 192.0.2.0/25: overlaps the pool 192.0.2.0/24 at --pool: expected pools apart from each other`},
		{[]string{"--pool-mode", "stateful"}, `--pool-mode: stateful: this version does not have it: expected "one-to-one" or "port-range"`},
		{[]string{"--clients", "10.0.0.0/8"}, `--clients: 10.0.0.0/8: an IPv4 prefix where an IPv6 prefix belongs`},
		{[]string{"--dns64", "localhost"}, `--dns64: localhost: expected an address, with a port unless it is 53, such as [2001:db8::1]:53 or 192.0.2.1`},
		{[]string{"--dns64", "::"}, `--dns64: [::]:53: every address of the host, those on its uplinks among them: expected the addresses that clients are told of`},
		{[]string{"--clients", ""}, `--clients: an empty list: expected IPv6 prefixes, or "local"`},
		{[]string{"--masquerade", "yes"}, `--masquerade: yes: expected "auto", "on" or "off"`},
		{[]string{"--firewall=shut"}, `--firewall: shut: expected "name" or "open"`},
		{[]string{"--on-exit", "leave"}, `--on-exit: leave: expected "remove" or "keep"`},
		{[]string{"--offload", "on"}, `--offload: on: expected "auto" or "off"`},
		{[]string{"--queues", "-1"}, `--queues: -1: expected 0 (one per CPU, at most 8) or 1 to 256`},
		{[]string{"--socket", "s"}, `--socket: s: expected an absolute path, such as "/run/natless/natless.sock"`},
		{[]string{"--state-dir", "natless"}, `--state-dir: natless: expected an absolute path, such as "/var/lib/natless", or ""`},
	} {
		assert.EqualError(t, withFlags(t, Default(), test.args...), test.want)
	}
}

func TestSocket(t *testing.T) {
	socket := func(args ...string) string {
		var f Flags
		set := pflag.NewFlagSet("status", pflag.ContinueOnError)
		f.RegisterSocket(set)
		require.NoError(t, set.Parse(args))
		return f.Socket()
	}
	t.Setenv(SocketVariable, "")
	assert.Equal(t, "/run/natless/natless.sock", socket())
	t.Setenv(SocketVariable, "/run/other.sock")
	assert.Equal(t, "/run/other.sock", socket())
	assert.Equal(t, "/tmp/s", socket("--socket", "/tmp/s"))

	c := Default()
	require.NoError(t, withFlags(t, c))
	assert.Equal(t, "/run/other.sock", c.Control.Socket)
	require.NoError(t, withFlags(t, c, "--socket", "/tmp/s"))
	assert.Equal(t, "/tmp/s", c.Control.Socket)
	t.Setenv(SocketVariable, "other.sock")
	assert.EqualError(t, withFlags(t, Default()), `$NATLESS_SOCKET: other.sock: expected an absolute path, such as "/run/natless/natless.sock"`)
}
