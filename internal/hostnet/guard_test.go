package hostnet

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// Whatever somebody does to natless's tables closes the guard before they are
// put back, and only that opens it.
func TestGuardCloses(t *testing.T) {
	needsNamespaces(t)
	for _, command := range []string{
		"flush ruleset", "delete table ip natless", "flush chain ip6 natless forward", "add rule ip6 natless forward accept",
		"add element ip6 natless links { uplink }", "add table ip natless { flags dormant; }",
		"chain ip natless forward { policy drop; }", "delete chain ip natless postrouting",
	} {
		t.Run(command, func(t *testing.T) {
			testHost(t)
			h, _ := start(t, testPlan())
			w := watch(t, h)
			require.True(t, h.Guarded().Load())
			require.Empty(t, h.Unguarded())

			h.mu.Lock() // natless cannot put anything back
			nft(t, command)
			require.True(t, within(longEnough, func() bool { return !h.Guarded().Load() }))
			require.Contains(t, h.Unguarded(), "natless passes no packets: its nftables tables were removed or changed")
			h.mu.Unlock()
			w.says(t, Restored, "replace table ip natless")
			require.True(t, within(longEnough, h.Guarded().Load))
			require.Empty(t, h.Unguarded())
		})
	}
}

// What natless itself does to its tables, and others to theirs, interrupts
// nothing.
func TestGuardStaysOpen(t *testing.T) {
	testHost(t)
	h, _ := start(t, testPlan())
	watch(t, h)
	var closed atomic.Int32
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			default:
				if !h.Guarded().Load() {
					closed.Add(1)
				}
			}
		}
	}()
	plan := testPlan()
	for i := range 20 {
		plan.Uplinks = []string{[]string{"clients", "uplink"}[i%2]}
		require.NoError(t, h.Update(plan))
		if i%5 == 0 {
			nft(t, "add table ip theirs { chain c { }; }; delete table ip theirs")
		}
	}
	time.Sleep(2 * gather)
	close(done)
	require.Zero(t, closed.Load())
}

// Where others remove the tables again and again natless waits, and is closed
// for so long; nothing forwards because of it.
func TestGuardStaysClosedWhileNatlessWaits(t *testing.T) {
	for name, older := range map[string]bool{"per link": false, "older kernel": true} {
		t.Run(name, func(t *testing.T) {
			if older {
				olderKernel(t)
			}
			testHost(t)
			h, _ := start(t, testPlan())
			w := watch(t, h)
			for range putBacks {
				nft(t, "flush ruleset")
				require.True(t, within(longEnough, func() bool { return strings.Contains(nft(t, "list tables"), "ip6 natless") && h.Guarded().Load() }))
			}
			forwards := func() bool {
				all, _ := readSysctl(sysctlPath("ipv6", "all", keyForwarding))
				client, _ := readSysctl(sysctlPath("ipv6", "clients", "force_forwarding"))
				uplink, _ := readSysctl(sysctlPath("ipv4", "uplink", keyForwarding))
				return all == yes || client == yes || uplink == yes
			}
			require.True(t, forwards())
			nft(t, "flush ruleset")
			w.says(t, Paused, "another program keeps undoing this, natless waits a minute: replace table ip natless")
			require.True(t, within(longEnough, func() bool { return !forwards() }))
			require.False(t, h.Guarded().Load())
			require.True(t, within(longEnough, func() bool {
				return strings.Contains(h.Unguarded(), "another program keeps undoing its nftables tables; it puts them back after ")
			}))
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, e := range w.events {
				require.False(t, e.Kind == Paused && !strings.Contains(e.Text, "nftables") && !strings.Contains(e.Text, "replace table"), e.Text)
			}
		})
	}
}

// A device that another network namespace has is behind no guard.
func TestGuardClosesWithoutTheDevice(t *testing.T) {
	testHost(t)
	h, shut := start(t, testPlan())
	watch(t, h)
	shut()
	require.True(t, within(longEnough, func() bool { return !h.Guarded().Load() }))
	require.Contains(t, h.Unguarded(), "device natless0 is gone")
}

// Rules know the device and the other links by their index: no name opens
// anything.
func TestNamesOpenNothing(t *testing.T) {
	p := newPacketHost(t)
	require.NoError(t, writeSysctl(sysctlPath("ipv6", "all", keyForwarding), yes)) // the guard alone is in the way
	require.NoError(t, p.h.settle())
	rename := func(from, to string) {
		t.Helper()
		l, err := netlink.LinkByName(from)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetName(l, to))
	}
	same := func(what string) {
		t.Helper()
		p.uplink.send(strangers(t))
		require.Nil(t, p.device(), what)
		p.uplink.send(udp(t, "198.51.100.1:53", "169.254.64.5:4000"))
		require.Nil(t, p.device(), what)
		p.clients.send(clients(t))
		require.NotNil(t, p.device(), what)
	}
	rename("natless0", "other")
	same("the device has another name")
	rename("clientsp", "natless0")
	same("and another link has its name")
	rename("natless0", "clientsp")
	rename("uplink", "wan")
	same("the uplink has another name")
	rename("clients", "uplink")
	same("and a link to clients has its name")
	w := watch(t, p.h)
	w.says(t, Restored, "set link other name natless0")
	same("natless has followed")
}

// A link that comes again and again under one name is no fight, and nobody's
// fault.
func TestLinksThatComeAndGoAreNoFight(t *testing.T) {
	newerKernel(t)
	testHost(t)
	h, _ := start(t, testPlan())
	w := watch(t, h)
	for range 2 * putBacks {
		addLink(t, "short", "2001:db8:2::1/64", "10.20.0.1/24")
		require.True(t, within(longEnough, func() bool {
			six, _ := readSysctl(sysctlPath("ipv6", "short", keyForceForwarding))
			four, _ := readSysctl(sysctlPath("ipv4", "short", keyForwarding))
			return six == yes && four == yes && strings.Contains(nft(t, "list set ip6 natless links"), `"short"`)
		}))
		l, err := netlink.LinkByName("short")
		require.NoError(t, err)
		require.NoError(t, netlink.LinkDel(l))
		require.True(t, within(longEnough, func() bool { return !strings.Contains(nft(t, "list set ip6 natless links"), "short") }))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		require.NotEqual(t, Paused, e.Kind, e.Text)
		require.NotEqual(t, Restored, e.Kind, e.Text)
	}
}

// On a kernel that forwards IPv6 on all links or none, what forwards because of
// natless passes only natless's packets, and nothing does when it has ended.
func TestOlderKernelForwardsNothingElse(t *testing.T) {
	olderKernel(t)
	p := newPacketHost(t)
	addAddr(t, "clients", "2001:db8:1::2/64")
	neighbour(t, "uplink", "2001:db8:ff::5", p.uplink)
	native := func(what string) {
		t.Helper()
		p.clients.send(udp(t, "[2001:db8:1::5]:4000", "[2001:db8:dead::1]:53"))
		require.Nil(t, p.uplink.receive(), "a client's, to elsewhere: %s", what)
		p.uplink.send(udp(t, "[2001:db8:ff::5]:4000", "[2001:db8:1::5]:53"))
		require.Nil(t, p.clients.receive(), "a stranger's, to a client: %s", what)
		p.uplink.send(udp(t, "[2001:db8:ff::5]:4000", "[2001:db8:dead::1]:53"))
		require.Nil(t, p.uplink.receive(), "a stranger's, back to the uplink: %s", what)
	}
	all, _ := readSysctl(sysctlPath("ipv6", "all", keyForwarding))
	require.Equal(t, yes, all)
	p.clients.send(clients(t))
	require.NotNil(t, p.device(), "natless's own passes")
	p.emit(udp(t, "[64:ff9b::c633:6401]:53", "[2001:db8:1::5]:4000"))
	require.NotNil(t, p.clients.receive(), "and so does the answer")
	native("while it runs")

	addLink(t, "later", "2001:db8:2::1/64")
	later := openWire(t, "later")
	later.send(udp(t, "[2001:db8:2::5]:4000", "[2001:db8:dead::1]:53"))
	require.Nil(t, p.uplink.receive(), "of a link that natless has not looked at")
	kill(p.h, p.shut)
	native("after a kill")
	p.start()
	require.NoError(t, p.h.Close())
	p.shut()
	all, _ = readSysctl(sysctlPath("ipv6", "all", keyForwarding))
	require.Equal(t, no, all)
	native("after its end")
}

// A program that lets its link, or on older kernels the host, forward does so
// whether it comes before natless or after.
func TestForwardingOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		older   bool
		setting setting
		link    string
	}{
		"IPv4":         {false, setting{Family: "ipv4", Key: keyForwarding}, "uplink"},
		"IPv6":         {false, setting{Family: "ipv6", Key: "force_forwarding"}, "clients"},
		"older kernel": {true, setting{Family: "ipv6", Key: keyForwarding}, "all"},
	} {
		for _, before := range []bool{true, false} {
			t.Run(name+map[bool]string{true: " before", false: " after"}[before], func(t *testing.T) {
				if newerKernel(t); c.older {
					olderKernel(t)
				}
				testHost(t)
				path := sysctlPath(c.setting.Family, c.link, c.setting.Key)
				theirs := func() { require.NoError(t, writeSysctl(path, yes)) }
				if before {
					theirs()
				}
				h, shut := start(t, testPlan())
				w := watch(t, h)
				uplink, clients := openWire(t, "uplink"), openWire(t, "clients")
				neighbour(t, "uplink", "2001:db8:ff::1", uplink)
				addAddr(t, "clients", "10.20.0.1/16")
				neighbour(t, "clients", "10.20.0.5", clients)
				passes := func() bool {
					if c.setting.Family == "ipv4" {
						uplink.send(udp(t, "192.0.2.77:4000", "10.20.0.5:53"))
						return clients.receive() != nil
					}
					clients.send(udp(t, "[2001:db8:1::5]:4000", "[2001:db8:dead::1]:53"))
					return uplink.receive() != nil
				}
				if !before {
					require.False(t, passes())
					theirs()
					w.says(t, Followed, "another program has set "+c.setting.text(c.link, yes)+" too")
				}
				require.True(t, within(longEnough, passes))
				require.NoError(t, h.Close())
				shut()
				now, _ := readSysctl(path)
				require.Equal(t, yes, now, "it is not natless's to take back")
			})
		}
	}
}

// A device that was made with an MTU below that of IPv6 has no IPv6 settings
// until its MTU is set.
func TestDeviceMadeTooSmall(t *testing.T) {
	testHost(t)
	index, shut := openTUN(t, "natless0", true)
	l, err := netlink.LinkByIndex(index)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetMTU(l, 1000))
	shut()
	before := snapshot(t)
	h, shut := start(t, testPlan())
	mode, _ := readSysctl(sysctlPath("ipv6", "natless0", "addr_gen_mode"))
	require.Equal(t, "1", mode)
	require.NoError(t, h.settle())
	require.NoError(t, h.Close())
	shut()
	require.Empty(t, difference(before, snapshot(t)))
	require.NoError(t, netlink.LinkDel(l))
}
