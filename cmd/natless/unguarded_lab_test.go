package main_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/lab"
)

// neighbour6 is who sits on the uplink's network.
const neighbour6 = "2001:db8:ffff::2"

// neighbourly gives the server IPv6 on the uplink, with the host as its router.
// The host forwards: natless's own guard alone is in its way.
func neighbourly(t *testing.T, n *lab.Network) {
	require.NoError(t, n.Host.SetSysctl("net/ipv6/conf/all/forwarding", "1"))
	require.NoError(t, n.Server.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"))
	require.NoError(t, n.Host.Address("wan", "2001:db8:ffff::1/64"))
	require.NoError(t, n.Server.Address("eth0", neighbour6+"/64"))
	require.NoError(t, n.Server.Route("::/0", "2001:db8:ffff::1", ""))
}

func withoutDefaultRoute(t *testing.T, n *lab.Network) {
	t.Helper()
	routes, err := n.Host.Netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	require.NoError(t, err)
	for _, r := range routes {
		if r.Gw != nil {
			require.NoError(t, n.Host.Netlink.RouteDel(&r))
		}
	}
}

// onCard moves the addresses of the uplink to one such as a network card, which
// engines do not make.
func onCard(t *testing.T, n *lab.Node) {
	t.Helper()
	wan, err := n.Netlink.LinkByName("wan")
	require.NoError(t, err)
	card := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "card", ParentIndex: wan.Attrs().Index}, Mode: netlink.MACVLAN_MODE_PRIVATE}
	require.NoError(t, n.Netlink.LinkAdd(card))
	require.NoError(t, n.Up("card"))
	for _, a := range []string{lab.HostIPv4 + "/24", "2001:db8:ffff::1/64"} {
		require.NoError(t, n.RemoveAddress("wan", a))
		require.NoError(t, n.Address("card", a))
	}
}

func (w *world) role(t *testing.T, link string) hostnet.Role {
	t.Helper()
	links := w.status(t).Links
	i := slices.IndexFunc(links, func(l hostnet.LinkRole) bool { return l.Link == link })
	require.GreaterOrEqual(t, i, 0)
	return links[i].Role
}

// An uplink is none the less one while it has no default route, be it lost, as
// with a DHCP lease, or not there yet, as when the host starts.
func TestLabUplinkWithoutDefaultRoute(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	stays := func(t *testing.T, w *world) {
		for _, target := range []string{server6, "[" + lab.OwnIPv6 + "]", "169.254.64.77"} {
			refused(t, w.Server, target)
		}
		assert.NotContains(t, w.query(t, "lease", "ls"), neighbour6)
	}
	t.Run("lost", func(t *testing.T) {
		t.Parallel()
		w := start(t, setup{before: neighbourly})
		works(t, w)
		withoutDefaultRoute(t, w.Network)
		time.Sleep(300 * time.Millisecond) // natless follows
		assert.Equal(t, hostnet.RoleUplink, w.role(t, "wan"))
		stays(t, w)
		works(t, w)
		assert.Contains(t, w.query(t, "status"), "wan (carried a default route)")
	})
	t.Run("not yet there", func(t *testing.T) {
		t.Parallel()
		w := start(t, setup{before: func(t *testing.T, n *lab.Network) {
			neighbourly(t, n)
			withoutDefaultRoute(t, n)
			onCard(t, n.Host)
		}})
		assert.Equal(t, hostnet.RoleUnknown, w.role(t, "card"))
		assert.Contains(t, w.query(t, "status"), "no uplink is known, so that no client is let in over card")
		works(t, w)
		stays(t, w)
		require.NoError(t, w.Host.Route("0.0.0.0/0", lab.ServerIPv4, ""))
		until(t, "an uplink", func() bool { return w.role(t, "card") == hostnet.RoleUplink })
		works(t, w)
		stays(t, w)
	})
	t.Run("named", func(t *testing.T) {
		t.Parallel()
		w := start(t, setup{before: func(t *testing.T, n *lab.Network) {
			neighbourly(t, n)
			withoutDefaultRoute(t, n)
		}, config: own + "[network]\nuplinks = [\"wan\"]\n"})
		works(t, w)
		stays(t, w)
	})
}

// Who flushes the ruleset lets nobody in, not even when natless gives up putting
// it back for a while; and status says so.
func TestLabFlushedRuleset(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, setup{before: neighbourly})
	works(t, w)
	standing := func() (list []*nftables.Table) {
		ruleset(t, w.Host, func(c *nftables.Conn) {
			var err error
			list, err = c.ListTables()
			require.NoError(t, err)
		})
		return list
	}
	until(t, "degraded", func() bool {
		if len(standing()) > 0 {
			removeTables(t, w.Host)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		out, err := w.daemon.Query(ctx, "status")
		return err != nil && assert.Contains(t, string(out), "natless passes no packets: another program keeps undoing its nftables tables")
	})
	assert.Empty(t, standing())
	for _, target := range []string{server6, "[" + lab.OwnIPv6 + "]", "169.254.64.77"} {
		refused(t, w.Server, target)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := lab.Ping(ctx, w.client, "", netip.MustParseAddr(lab.Server6), 56)
	require.Error(t, err)
	assert.Contains(t, w.query(t, "stats"), "unguarded")
}

// A host with one link translates for the neighbours there that it is told of.
func TestLabOneArmed(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, setup{
		before: func(t *testing.T, n *lab.Network) {
			neighbourly(t, n)
			require.NoError(t, n.Host.SetSysctl("net/ipv6/conf/all/forwarding", "0"))
			require.NoError(t, n.Host.Route("::/0", neighbour6, ""))
			require.NoError(t, n.Server.Address("eth0", "2001:db8:ffff::66/64"))
		},
		config: own + "[[pool]]\nclients = [\"" + neighbour6 + "/128\"]\n",
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := lab.Ping(ctx, w.Server, neighbour6, netip.MustParseAddr(lab.Server6), 56)
	require.NoError(t, err)
	assert.Contains(t, w.query(t, "lease", "ls"), neighbour6)
	other, cancelOther := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancelOther()
	_, err = lab.Ping(other, w.Server, "2001:db8:ffff::66", netip.MustParseAddr(lab.Server6), 56)
	require.Error(t, err)
}
