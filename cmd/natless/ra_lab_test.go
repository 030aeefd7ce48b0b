package main_test

import (
	"net"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	api "github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/lab"
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// ra is own with router advertisements: the shortest lifetime there is, so one
// every 3 to 4 seconds.
func ra(interfaces string) string {
	return own + "[ra]\ninterfaces = [" + interfaces + "]\nlifetime = \"12s\"\n"
}

// advertised is a router advertisement to all nodes in a captured packet.
func advertised(b []byte) (m *ndp.RouterAdvertisement, from netip.Addr, ok bool) {
	if len(b) < 40 || b[0]>>4 != 6 || b[6] != 58 || netip.AddrFrom16([16]byte(b[24:40])) != allNodes {
		return nil, from, false
	}
	parsed, err := ndp.ParseMessage(b[40:])
	if err != nil || b[7] != ndp.HopLimit {
		return nil, from, false
	}
	m, ok = parsed.(*ndp.RouterAdvertisement)
	return m, netip.AddrFrom16([16]byte(b[8:24])), ok
}

// pref64 is the one that natless is to send.
func pref64(lifetime time.Duration) *ndp.RouterAdvertisement {
	return &ndp.RouterAdvertisement{Options: []ndp.Option{
		&ndp.PREF64{Prefix: netip.MustParsePrefix(lab.Pref64), Lifetime: lifetime},
	}}
}

// withdraws reports whether a captured packet takes the prefix back.
func withdraws(b []byte) bool {
	m, _, ok := advertised(b)
	return ok && reflect.DeepEqual(m, pref64(0))
}

// advertisements waits until there are n, and returns all.
func advertisements(t *testing.T, c *lab.Capture, n int) (list []*ndp.RouterAdvertisement, last netip.Addr) {
	t.Helper()
	seen := 0
	c.Wait(30*time.Second, func(b []byte) bool {
		if _, _, ok := advertised(b); ok {
			seen++
		}
		return seen == n
	})
	for _, b := range c.Packets() {
		if m, from, ok := advertised(b); ok {
			list, last = append(list, m), from
		}
	}
	require.GreaterOrEqual(t, len(list), n, "router advertisements")
	return list, last
}

// speak sends a message from an interface of a node, as another program there
// would.
func speak(t *testing.T, n *lab.Node, link string, m ndp.Message, to netip.Addr) {
	t.Helper()
	conn := listenNDP(t, n, link)
	defer conn.Close()
	require.NoError(t, conn.WriteTo(m, nil, to))
}

// listenNDP opens a socket at the link-local address of an interface.
func listenNDP(t *testing.T, n *lab.Node, link string) (conn *ndp.Conn) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		ifi.Name = strconv.Itoa(ifi.Index) // names are remembered across namespaces
		conn, _, err = ndp.Listen(ifi, ndp.LinkLocal)
		return err
	}))
	return conn
}

// waitStatus waits until it is as wanted, and returns it also when it never is.
func (w *world) waitStatus(t *testing.T, wanted func(api.Status) bool) api.Status {
	t.Helper()
	var s api.Status
	for range 400 {
		if s = w.status(t); wanted(s) {
			return s
		}
		time.Sleep(50 * time.Millisecond)
	}
	assert.Fail(t, "the status never is as wanted", "%+v", s)
	return s
}

// noDefault takes the client's default route away: what it has then it heard
// of.
func noDefault(t *testing.T, n *lab.Network) {
	t.Helper()
	for _, r := range defaults(t, n.Clients[0]) {
		require.NoError(t, n.Clients[0].Netlink.RouteDel(&r))
	}
}

func defaults(t *testing.T, n *lab.Node) (list []netlink.Route) {
	t.Helper()
	all, err := n.Netlink.RouteList(nil, netlink.FAMILY_V6)
	require.NoError(t, err)
	for _, r := range all {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			list = append(list, r)
		}
	}
	return list
}

// heardByKernel is how many router advertisements a node's kernel has counted.
func heardByKernel(t *testing.T, n *lab.Node) (count int) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); f[0] == "Icmp6InRouterAdvertisements" {
				count, err = strconv.Atoi(f[1])
				return err
			}
		}
		return nil
	}))
	return count
}

// A client that autoconfigures learns pref64 and nothing else: its kernel, which
// listens, is afterwards as it was before. When natless ends the prefix is
// taken back.
func TestLabAdvertisement(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{before: noDefault})
	before := snapshot(t, w.client)
	c, err := w.client.Capture("eth0")
	require.NoError(t, err)
	w.run(t, setup{config: ra(`"lan1"`)})

	list, from := advertisements(t, c, 3)
	for _, m := range list {
		assert.Equal(t, pref64(16*time.Second), m) // 12 s, in units of 8
	}
	assert.True(t, from.IsLinkLocalUnicast(), from)
	assert.GreaterOrEqual(t, heardByKernel(t, w.client), 3)
	unchanged(t, w.client, before, "after advertisements")

	s := w.waitStatus(t, func(s api.Status) bool { return len(s.RA) == 1 && s.RA[0].Sent >= 3 })
	assert.False(t, s.Degraded, s.Warnings)
	assert.Equal(t, "lan1", s.RA[0].Interface)
	assert.Equal(t, from, s.RA[0].Address)
	assert.Contains(t, w.query(t, "status"), "on lan1 from "+from.String()+": ")

	assert.Contains(t, w.query(t, "check", "-c", w.daemon.Config),
		"send router advertisements on lan1: PREF64 64:ff9b::/96 for 16s, every 3s to 4s, and no default router\n")
	assert.Contains(t, w.query(t, "check", "-c", w.daemon.Config, "--snippets"), "interface lan1 {")

	require.NoError(t, w.daemon.Stop())
	assert.GreaterOrEqual(t, time.Since(s.RA[0].Last), 3*time.Second, "between two advertisements")
	assert.NotNil(t, c.Wait(10*time.Second, withdraws), "the prefix is taken back")
	unchanged(t, w.client, before, "after the end")
}

// What a restart keeps on the host is kept with the hosts of the link.
func TestLabAdvertisementKept(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	c, err := w.client.Capture("eth0")
	require.NoError(t, err)
	w.run(t, setup{config: ra(`"lan1"`), flags: []string{"--pref64", lab.Pref64, "--on-exit", "keep"}})
	advertisements(t, c, 1)
	require.NoError(t, w.daemon.Stop())
	assert.Nil(t, c.Wait(time.Second, withdraws))
}

// Who comes up asks, and is answered before the next one is due, which is after
// 16 seconds.
func TestLabSolicitation(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	c, err := w.client.Capture("eth0")
	require.NoError(t, err)
	w.run(t, setup{config: own + "[ra]\ninterfaces = [\"lan1\"]\n"})
	list, _ := advertisements(t, c, 1)
	require.Len(t, list, 1)
	asked := time.Now()
	speak(t, w.client, "eth0", &ndp.RouterSolicitation{}, allRouters)
	list, _ = advertisements(t, c, 2)
	assert.Equal(t, pref64(10*time.Minute), list[1])
	assert.Less(t, time.Since(asked), 15*time.Second, "answered, and not by the next one")
}

// Interfaces come, go down, come back and change their address.
func TestLabAdvertisementFollows(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	w.daemon = launch(t, w.Host, setup{config: ra(`"lan1", "later"`)}) // not wholly ready: one is missing
	s := w.waitStatus(t, func(s api.Status) bool { return s.Degraded && len(s.RA) > 0 && s.RA[0].Sent > 0 })
	assert.Contains(t, s.Warnings, "no router advertisements on later: there is no such interface")

	require.NoError(t, lab.Wire(w.Host, "later", w.client, "eth9", 0))
	c, err := w.client.Capture("eth9")
	require.NoError(t, err)
	sent := func(s api.Status) bool { return !s.Degraded && s.RA[1].Sent > 0 }
	w.waitStatus(t, sent)
	list, old := advertisements(t, c, 1)
	assert.Equal(t, pref64(16*time.Second), list[0])

	require.NoError(t, w.Host.Netlink.LinkSetDown(link(t, w.Host, "later")))
	s = w.waitStatus(t, func(s api.Status) bool { return s.Degraded })
	assert.Contains(t, s.Warnings, "no router advertisements on later: the interface is down")
	require.NoError(t, w.Host.Up("later"))
	w.waitStatus(t, sent)
	advertisements(t, c, len(list)+1)

	require.NoError(t, w.Host.RemoveAddress("later", old.String()+"/64"))
	s = w.waitStatus(t, func(s api.Status) bool { return s.Degraded })
	assert.Contains(t, s.Warnings, "no router advertisements on later: the interface has no link-local address")
	const other = "fe80::77"
	require.NoError(t, w.Host.Address("later", other+"/64"))
	s = w.waitStatus(t, func(s api.Status) bool { return !s.Degraded && s.RA[1].Address.String() == other })
	assert.Empty(t, s.Warnings)
	_, from := advertisements(t, c, 1)
	assert.Equal(t, other, from.String())

	// Another interface of that name.
	require.NoError(t, w.Host.Netlink.LinkDel(link(t, w.Host, "later")))
	require.NoError(t, lab.Wire(w.Host, "later", w.client, "eth9", 0))
	c, err = w.client.Capture("eth9")
	require.NoError(t, err)
	w.waitStatus(t, func(s api.Status) bool { return !s.Degraded && s.RA[1].Address.String() != other })
	advertisements(t, c, 1)
}

func link(t *testing.T, n *lab.Node, name string) netlink.Link {
	t.Helper()
	l, err := n.Netlink.LinkByName(name)
	require.NoError(t, err)
	return l
}

// Only links of the configuration are advertised on, and a reload begins and
// ends that, link by link.
func TestLabAdvertisementReload(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{clients: 2})
	var c [2]*lab.Capture
	for i := range c {
		var err error
		c[i], err = w.Clients[i].Capture("eth0")
		require.NoError(t, err)
	}
	w.run(t, setup{config: ra(`"lan1"`)})
	advertisements(t, c[0], 1)
	assert.Nil(t, c[1].Wait(0, func(b []byte) bool { _, _, ok := advertised(b); return ok }), "lan2 is not in the configuration")
	require.NoError(t, os.WriteFile(w.daemon.Config, []byte(strings.Replace(ra(`"lan2"`), "12s", "1h", 1)), 0o600))
	out := w.query(t, "reload")
	assert.Contains(t, out, "ra.interfaces")
	assert.Contains(t, out, "ra.lifetime")
	assert.NotNil(t, c[0].Wait(10*time.Second, withdraws), "lan1 is told that it is over")
	list, _ := advertisements(t, c[1], 1)
	assert.Equal(t, pref64(time.Hour), list[0])
	s := w.waitStatus(t, func(s api.Status) bool { return true })
	require.Len(t, s.RA, 1)
	assert.Equal(t, "lan2", s.RA[0].Interface)
}

// Where another program makes this host a default router, an advertisement from
// the same address that says it is none would take the route from all hosts:
// natless falls silent, also at its end.
func TestLabAnotherRouterHere(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, setup{config: ra(`"lan1"`), before: noDefault})
	w.waitStatus(t, func(s api.Status) bool { return len(s.RA) > 0 && s.RA[0].Sent > 0 })
	assert.Empty(t, defaults(t, w.client))
	speak(t, w.Host, "lan1", &ndp.RouterAdvertisement{RouterLifetime: 30 * time.Minute}, allNodes)
	s := w.waitStatus(t, func(s api.Status) bool { return s.Degraded })
	assert.Contains(t, strings.Join(s.Warnings, "\n"), "another program")

	// None may come for longer than it takes from one to the next.
	c, err := w.client.Capture("eth0")
	require.NoError(t, err)
	silent := func(b []byte) bool { _, _, ok := advertised(b); return ok }
	assert.Nil(t, c.Wait(5*time.Second, silent), "natless goes on")
	require.NoError(t, w.daemon.Stop())
	assert.Nil(t, c.Wait(0, silent), "natless has a last word")
	assert.Len(t, defaults(t, w.client), 1, "the client's default route, which it heard of")
}

// It asks first whether there is such a program.
func TestLabAnotherRouterHereBefore(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	conn := listenNDP(t, w.Host, "lan1")
	defer conn.Close()
	require.NoError(t, conn.JoinGroup(allRouters))
	go func() {
		b := make([]byte, 1500)
		for {
			_, _, from, err := conn.ReadRaw(b)
			if err != nil {
				return
			}
			if b[0] == 133 {
				_ = conn.WriteTo(&ndp.RouterAdvertisement{RouterLifetime: 30 * time.Minute}, nil, from)
			}
		}
	}()
	w.daemon = launch(t, w.Host, setup{config: ra(`"lan1"`)})
	s := w.waitStatus(t, func(s api.Status) bool { return len(s.RA) > 0 && s.RA[0].Problem != "" })
	assert.Contains(t, s.RA[0].Problem, "another program")
	assert.Zero(t, s.RA[0].Sent)
}

// What other routers say of prefixes is told of, and theirs to say.
func TestLabOtherPrefixes(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, setup{config: ra(`"lan1"`)})
	say := func(prefix string, lifetime time.Duration) {
		speak(t, w.client, "eth0", &ndp.RouterAdvertisement{Options: []ndp.Option{
			&ndp.PREF64{Prefix: netip.MustParsePrefix(prefix), Lifetime: lifetime},
		}}, allNodes)
	}
	tells := func(what string) {
		t.Helper()
		s := w.waitStatus(t, func(s api.Status) bool { return strings.Contains(strings.Join(s.Warnings, "\n"), what) })
		assert.False(t, s.Degraded)
	}
	w.waitStatus(t, func(s api.Status) bool { return len(s.RA) > 0 && s.RA[0].Sent > 0 })
	say("2001:db8:aaaa::/96", time.Hour)
	tells("advertises another prefix, 2001:db8:aaaa::/96")
	say(lab.Pref64, 0)
	tells("takes " + lab.Pref64 + " back")
	say(lab.Pref64, time.Hour)
	s := w.waitStatus(t, func(s api.Status) bool { return len(s.RA) > 0 && len(s.RA[0].Others) == 0 })
	assert.Empty(t, s.Warnings)
}
