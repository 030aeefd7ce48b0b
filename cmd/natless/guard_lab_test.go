package main_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// Who sits on the uplink can use natless neither from IPv6 nor to open
// connections to clients; only what is mapped explicitly is open to him.
func TestLabNeighboursRefused(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		const neighbour = "2001:db8:ffff::"
		w := start(t, setup{offload: offload, before: func(t *testing.T, n *lab.Network) {
			require.NoError(t, n.Server.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"))
			require.NoError(t, n.Host.Address("wan", neighbour+"1/64"))
			require.NoError(t, n.Server.Address("eth0", neighbour+"2/64"))
			require.NoError(t, n.Server.Route("::/0", neighbour+"1", ""))
		}})
		// The client takes a lease: its address in the pool is real.
		_, err := lab.Ping(t.Context(), w.client, "", netip.MustParseAddr(lab.Server6), 56)
		require.NoError(t, err)
		lease := ""
		for _, word := range strings.Fields(w.query(t, "lease", "ls")) {
			if a, err := netip.ParseAddr(word); err == nil && netip.MustParsePrefix(pool).Contains(a) {
				lease = word
			}
		}
		require.NotEmpty(t, lease)
		ln, err := w.client.Listen("tcp", "["+client1+"]:8080")
		require.NoError(t, err)
		defer ln.Close()

		atClient, err := w.client.Capture("eth0")
		require.NoError(t, err)
		atServer, err := w.Server.Capture("eth0")
		require.NoError(t, err)
		for _, target := range []string{
			server6,                 // IPv6 from the uplink into pref64
			"[" + lab.OwnIPv6 + "]", // or to natless itself
			lease,                   // a new IPv4 connection into the pool
			"169.254.64.77",         // or to what is lent to nobody
		} {
			refused(t, w.Server, target)
		}
		for _, b := range atClient.Packets() {
			assert.False(t, b[6] == unix.IPPROTO_TCP || b[40] == 128, "the client saw a SYN or an echo request: %x", b)
		}
		for _, b := range atServer.Packets() {
			src, v4 := netip.AddrFrom4([4]byte(b[12:16])), b[0]>>4 == 4
			assert.False(t, v4 && b[9] == unix.IPPROTO_TCP && src.String() != lab.ServerIPv4, "translated: %x", b)
		}
		assert.NotContains(t, w.query(t, "lease", "ls"), neighbour)

		// Explicitly mapped is open, and the client still gets out.
		serve(t, w.client, lab.MappedIPv6)
		_, err = lab.Download(t.Context(), w.Server.HTTP(""), lab.MappedIPv4+":8080", make([]byte, 1<<20), nil)
		require.NoError(t, err)
		_, err = lab.Download(t.Context(), w.client.HTTP(""), server6+":8080", make([]byte, 1<<20), nil)
		require.NoError(t, err)
	})
}

// refused asserts that neither TCP nor an echo request reach a target.
func refused(t *testing.T, n *lab.Node, target string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	conn, err := n.Dial(ctx, "tcp", target+":8080")
	if assert.Error(t, err, target) {
		assert.NotErrorIs(t, err, unix.ECONNREFUSED, "%s answered", target)
	} else {
		conn.Close()
	}
	ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	a, err := lab.Ping(ctx, n, "", netip.MustParseAddr(strings.Trim(target, "[]")), 56)
	assert.Error(t, err, "%s answered the ping: %v", target, a)
}

// A client that lies about where it is does not get through: the host expects
// 2001:db8:2::2 behind another link.
func TestLabSpoofedClient(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload, clients: 2})
		require.NoError(t, w.client.Address("eth0", "2001:db8:2::2/128"))
		atServer, err := w.Server.Capture("eth0")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err = lab.Ping(ctx, w.client, "2001:db8:2::2", netip.MustParseAddr(lab.Server6), 56)
		assert.Error(t, err)
		assert.Empty(t, atServer.Packets(), "the server was reached")
		assert.NotContains(t, w.query(t, "lease", "ls"), "2001:db8:2::2")
	})
}

// What somebody else takes away comes back: each route to the device and its
// blackhole, the nftables table, the device's being up, and what the kernel
// drops when an address of the uplink goes and returns.
func TestLabComesBack(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		works(t, w)
		before := snapshot(t, w.Host)

		for _, r := range ours(t, w.Host) {
			require.NoError(t, w.Host.Netlink.RouteDel(&r), "%s", r)
			comesBack(t, w.Host, before, "the route "+r.String())
		}
		removeTables(t, w.Host)
		comesBack(t, w.Host, before, "the nftables table")
		works(t, w)

		link := device(t, w.Host)
		require.NoError(t, w.Host.Netlink.LinkSetDown(link))
		comesBack(t, w.Host, before, "the device that was set down")
		works(t, w)

		// An uplink that loses its address, and gets it again as from DHCP.
		require.NoError(t, w.Host.RemoveAddress("wan", lab.HostIPv4+"/24"))
		require.NoError(t, w.Host.Address("wan", lab.HostIPv4+"/24"))
		require.NoError(t, w.Host.Route("0.0.0.0/0", lab.ServerIPv4, ""))
		comesBack(t, w.Host, before, "the uplink's address")
		works(t, w)

		// The clients' link, too: the address of the router on it.
		require.NoError(t, w.Host.RemoveAddress("lan1", "2001:db8:1::1/64"))
		require.NoError(t, w.Host.Address("lan1", "2001:db8:1::1/64"))
		comesBack(t, w.Host, before, "the clients' router's address")
		works(t, w)
	})
}

func works(t *testing.T, w *world) {
	t.Helper()
	_, err := lab.Download(t.Context(), w.client.HTTP(""), server6+":8080", make([]byte, 256<<10), nil)
	require.NoError(t, err)
}

// comesBack waits until a node is as it was.
func comesBack(t *testing.T, n *lab.Node, before lab.Snapshot, what string) {
	t.Helper()
	var diff []string
	for range 50 {
		if diff = before.Diff(snapshot(t, n)); len(diff) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	require.Empty(t, diff, "%s does not come back", what)
}

// ours lists the routes to natless's device and the blackholes beside them.
func ours(t *testing.T, n *lab.Node) (ours []netlink.Route) {
	t.Helper()
	index := device(t, n).Index
	routes, err := n.Netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	require.NoError(t, err)
	for _, r := range routes {
		if r.LinkIndex == index && r.Protocol != unix.RTPROT_KERNEL || r.Type == unix.RTN_BLACKHOLE {
			ours = append(ours, r)
		}
	}
	require.NotEmpty(t, ours)
	return ours
}

// removeTables removes every nftables table of a node.
func removeTables(t *testing.T, n *lab.Node) {
	t.Helper()
	ruleset(t, n, func(c *nftables.Conn) {
		tables, err := c.ListTables()
		require.NoError(t, err)
		require.NotEmpty(t, tables)
		for _, table := range tables {
			c.DelTable(table)
		}
	})
}

// What cannot be translated is counted by name and, where the RFCs ask for it,
// answered by natless itself.
func TestLabRefusals(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		const prefix = "64:ff9b::/96"
		const stranger = "2001:db8:99::2"
		const global = "192.0.0.9" // of the special addresses one that the prefix may stand for (RFC 7723)
		w := start(t, setup{offload: offload, clients: 2, before: func(t *testing.T, n *lab.Network) {
			require.NoError(t, n.Clients[0].Address("eth0", stranger+"/128"))
			require.NoError(t, n.Host.Route(stranger+"/128", client1, ""))
			require.NoError(t, n.Server.Address("eth0", global+"/32"))
		}, flags: []string{}, config: own + "pref64 = \"" + prefix + "\"\n" +
			"[network]\nmasquerade = \"off\"\n" +
			"[[pool]]\nipv4 = \"203.0.113.0/30\"\nclients = [\"2001:db8:1::/64\", \"2001:db8:2::/64\"]\n"})
		ping := func(k int, source, target string) (lab.Answer, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			return lab.Ping(ctx, w.Clients[k-1], source, lab.Embed(prefix, target), 56)
		}
		answered := func(a lab.Answer, err error, code int) {
			t.Helper()
			require.Error(t, err)
			assert.Equal(t, lab.OwnIPv6, a.From.String())
			assert.Equal(t, ipv6.ICMPTypeDestinationUnreachable, a.Type)
			assert.Equal(t, code, a.Code)
		}
		_, err := ping(1, client1, global)
		require.NoError(t, err)
		for _, special := range []string{"10.0.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", lab.ServerIPv4, "203.0.113.9"} {
			a, err := ping(1, client1, special)
			answered(a, err, 1)
		}
		a, err := ping(1, stranger, global)
		answered(a, err, 5)
		_, err = ping(1, client1, "169.254.169.254")
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		// Of four addresses one is natless's own and one another's already.
		for _, source := range []string{"2001:db8:2::2", "2001:db8:2::80"} {
			_, _ = ping(2, source, global) // at most two are left
		}
		a, err = ping(1, "2001:db8:1::80", global)
		answered(a, err, 3)

		var stats struct{ Verdicts map[string]int }
		require.NoError(t, json.Unmarshal([]byte(w.query(t, "stats", "-o", "json")), &stats))
		for _, name := range []string{"private_ipv4", "client_not_permitted", "destination_refused", "pool_full"} {
			assert.Positive(t, stats.Verdicts[name], name)
		}
	})
}
