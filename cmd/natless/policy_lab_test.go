package main_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// answers reports whether a node gets an answer from an address.
func answers(t *testing.T, n *lab.Node, source, target string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	a, err := lab.Ping(ctx, n, source, netip.MustParseAddr(target), 56)
	return err == nil && a.Reached
}

// Hosts that carry IPv4 addresses behind pref64 as their own are clients as by a
// map, both ways, although pref64 is routed to natless; natless's own address
// may lie there too.
func TestLabTranslatable(t *testing.T) {
	lab.Require(t)
	const router, host = "2001:db8:64::203.0.113.1", "2001:db8:64::203.0.113.7"
	w := start(t, setup{
		before: func(t *testing.T, n *lab.Network) {
			require.NoError(t, n.Host.Address("lan1", router+"/120"))
			require.NoError(t, n.Clients[0].Address("eth0", host+"/120"))
		},
		config: "[translation]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8:64::192.0.2.1\"\npref64 = \"" + lab.Pref64 + "\"\ntranslatable = [\"203.0.113.0/24\"]\n",
		flags:  []string{},
	})
	assert.True(t, answers(t, w.client, host, lab.Server6), "the host reaches IPv4")
	assert.True(t, answers(t, w.Server, "", "203.0.113.7"), "and is reached from there")
	assert.True(t, answers(t, w.client, client1, "2001:db8:64::192.0.2.1"), "natless itself")
	assert.Contains(t, w.query(t, "map", "ls"), "203.0.113.0/24")
	// Who has no such address pretends to be a server.
	require.NoError(t, w.client.Address("eth0", "2001:db8:64::198.51.100.77/128"))
	assert.False(t, pingsSoon(t, w.client, "2001:db8:64::198.51.100.77", lab.Server6))
	assert.Zero(t, w.verdict(t, "own_address"))
}

func pingsSoon(t *testing.T, n *lab.Node, source, target string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	a, err := lab.Ping(ctx, n, source, netip.MustParseAddr(target), 56)
	return err == nil && a.Reached
}

// A map around a refused range does not reach into it, in neither direction.
func TestLabWideMap(t *testing.T) {
	lab.Require(t)
	w := start(t, setup{flags: []string{"--pref64", lab.Pref64, "--map", "160.0.0.0/4=2001:db8:a::a000:0/100"}})
	out, err := w.Host.Command(t.Context(), "ip", "-6", "route", "add", "2001:db8:a::/64", "dev", "natless0").CombinedOutput()
	require.NoError(t, err, string(out))
	for i, target := range []string{"2001:db8:a::a9fe:a9fe", "2001:db8:a::a9fe:101", "2001:db8:a::a9fe:4001"} {
		conn, err := w.client.Dial(t.Context(), "udp", "["+target+"]:80")
		require.NoError(t, err)
		_, err = conn.Write([]byte("metadata"))
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		w.counted(t, "destination_refused", i+1)
	}
	assert.Zero(t, w.verdict(t, "translated"))
	assert.Contains(t, w.query(t, "map", "get", "2001:db8:a::a9fe:a9fe"), "refused")
	_, err = w.daemon.Query(t.Context(), "map", "add", "169.254.169.254", "2001:db8:1::80")
	assert.ErrorContains(t, err, "map add")
}

// Explicit mappings alone: a pool that nobody wrote does not stand in the way of
// a map of everything, and none is needed.
func TestLabMapsOnly(t *testing.T) {
	lab.Require(t)
	const own = "[translation]\npref64 = \"\"\nipv6 = \"" + lab.OwnIPv6 + "\"\n[network]\nmanage = false\n"
	for name, pool := range map[string]string{"169.254.64.1": "", "192.0.0.8": "pool = []\n"} {
		t.Run(name, func(t *testing.T) {
			w := start(t, setup{
				before: func(t *testing.T, n *lab.Network) {
					require.NoError(t, n.Host.SetSysctl("net/ipv6/conf/all/forwarding", "1"))
					require.NoError(t, n.Host.SetSysctl("net/ipv4/ip_forward", "1"))
				},
				config: pool + own,
				flags:  []string{"--map", "0.0.0.0/0=" + lab.Pref64, "--map", lab.MappedIPv4 + "=" + lab.MappedIPv6},
			})
			for _, route := range []string{"-6 route add " + lab.Pref64, "route add " + lab.MappedIPv4 + "/32"} {
				out, err := w.Host.Command(t.Context(), "ip", append(strings.Fields(route), "dev", "natless0")...).CombinedOutput()
				require.NoError(t, err, string(out))
			}
			assert.True(t, answers(t, w.client, lab.MappedIPv6, lab.Server6))
			assert.True(t, answers(t, w.Server, "", lab.MappedIPv4))
			assert.Equal(t, name, w.status(t).OwnIPv4.String())
		})
	}
}

// natless's own addresses say that nobody is there, so that a traceroute by UDP
// ends and a connection fails at once.
func TestLabOwnAddressesAnswer(t *testing.T) {
	lab.Require(t)
	w := start(t, setup{config: "[translation]\nipv4 = \"203.0.113.1\"\nipv6 = \"" + lab.OwnIPv6 + "\"\n"})
	for _, c := range []struct {
		node    *lab.Node
		address string
	}{{w.client, "[" + lab.OwnIPv6 + "]:33434"}, {w.Server, "203.0.113.1:33434"}} {
		conn, err := c.node.Dial(t.Context(), "udp", c.address)
		require.NoError(t, err)
		_, err = conn.Write([]byte("traceroute"))
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(lab.Stall)))
		_, err = conn.Read(make([]byte, 1))
		assert.ErrorIs(t, err, syscall.ECONNREFUSED, c.address)
		require.NoError(t, conn.Close())
		_, err = c.node.Dial(t.Context(), "tcp", c.address)
		assert.ErrorIs(t, err, syscall.ECONNREFUSED, c.address)
	}
}

// UDP without checksum may be forwarded without one, to receivers that take it
// (RFC 6935, RFC 6936), also in fragments.
func TestLabUDPWithoutChecksumForwarded(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload, config: own + "udp_zero_checksum = \"forward\"\n"})
		in, err := w.client.ListenPacket("udp", "["+lab.MappedIPv6+"]:9")
		require.NoError(t, err)
		defer in.Close()
		control(t, in.(net.Conn), func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1) })
		out := unchecked(t, w.Server, lab.MappedIPv4+":9")
		for _, size := range []int{9, 4 << 10} {
			_, err := out.Write(make([]byte, size))
			require.NoError(t, err)
			require.NoError(t, in.SetReadDeadline(time.Now().Add(lab.Stall)))
			n, _, err := in.ReadFrom(make([]byte, 8<<10))
			require.NoError(t, err, "%d bytes", size)
			assert.Equal(t, size, n)
		}
		assert.Zero(t, w.verdict(t, "udp_zero_fragment"))
	})
}
