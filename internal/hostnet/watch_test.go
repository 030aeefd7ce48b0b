package hostnet

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/natless/natless/mapping"
)

// longEnough is waited for what must come, on a machine with other things to do.
const longEnough = 30 * time.Second

// watched collects what a Watch in the test's namespace says.
type watched struct {
	mu     sync.Mutex
	events []Event
	local  []netip.Prefix
	around atomic.Pointer[mapping.Around]
}

func watch(t *testing.T, h *Host) *watched {
	t.Helper()
	ns, err := netns.Get()
	require.NoError(t, err)
	w := &watched{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			ended <- err
			return
		}
		ended <- h.Watch(ctx, w.report, w.setLocal, func(a mapping.Around) { w.around.Store(&a) })
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	require.Eventually(t, func() bool { return w.localNow() != nil }, longEnough, 5*time.Millisecond)
	return w
}

func (w *watched) report(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

func (w *watched) setLocal(p []netip.Prefix) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.local = p
}

func (w *watched) localNow() []netip.Prefix {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.local
}

// says waits for an event of a kind whose text holds a part.
func (w *watched) says(t *testing.T, k Kind, part string) {
	t.Helper()
	ok := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.ContainsFunc(w.events, func(e Event) bool { return e.Kind == k && strings.Contains(e.Text, part) })
	}
	if !within(longEnough, ok) {
		w.mu.Lock()
		defer w.mu.Unlock()
		t.Fatalf("no event %s %q in %v", k, part, w.events)
	}
}

func within(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}

// returns waits until the namespace is again as in a snapshot.
func returns(t *testing.T, to []string) {
	t.Helper()
	var left string
	same := func() bool {
		left = difference(to, snapshot(t))
		return left == ""
	}
	if !within(longEnough, same) {
		t.Fatal(left)
	}
}

func TestWatchPutsBackWhatOthersUndo(t *testing.T) {
	newerKernel(t)
	testHost(t)
	h, _ := start(t, testPlan())
	w := watch(t, h)
	calm(t)
	good := snapshot(t)
	device, err := netlink.LinkByName("natless0")
	require.NoError(t, err)

	require.NoError(t, netlink.RouteDel(newNetlinkRoute(netip.MustParsePrefix("64:ff9b::/96"), h.device)))
	w.says(t, Restored, "add route 64:ff9b::/96 dev natless0")
	require.NoError(t, netlink.RouteDel(newNetlinkRoute(netip.MustParsePrefix("169.254.64.0/20"), 0)))
	w.says(t, Restored, "add blackhole route 169.254.64.0/20")
	require.NoError(t, netlink.LinkSetDown(device))
	w.says(t, Restored, "set link natless0 up")
	require.NoError(t, netlink.LinkSetMTU(device, 1400))
	w.says(t, Restored, "set link natless0 mtu 1500")
	nft(t, "delete table ip natless")
	w.says(t, Restored, "replace table ip natless")
	nft(t, "delete table ip6 natless")
	w.says(t, Restored, "replace table ip natless")
	require.NoError(t, writeSysctl(sysctlPath("ipv6", "clients", keyForceForwarding), no))
	w.says(t, Restored, "net.ipv6.conf.clients.force_forwarding")
	require.NoError(t, writeSysctl(sysctlPath("ipv4", "uplink", keyForwarding), no))
	w.says(t, Restored, "net.ipv4.conf.uplink.forwarding")
	returns(t, good)

	for _, rule := range []string{"flush chain ip natless forward", "add element ip6 natless links { uplink }", "add rule ip6 natless forward accept"} {
		nft(t, rule)
		returns(t, good)
	}
}

func TestWatchFollowsLinks(t *testing.T) {
	newerKernel(t)
	testHost(t)
	before := snapshot(t)
	h, shut := start(t, testPlan())
	w := watch(t, h)
	require.ElementsMatch(t, prefixes("2001:db8:ff::2/128", "2001:db8:1::1/128", "2001:db8:1::/64"), w.localNow())

	addLink(t, "later", "2001:db8:2::1/64")
	w.says(t, Followed, "net.ipv6.conf.later.force_forwarding = 1")
	require.Contains(t, nft(t, "list set ip6 natless links"), `"later"`)
	require.True(t, within(longEnough, func() bool {
		return slices.Contains(w.localNow(), netip.MustParsePrefix("2001:db8:2::/64"))
	}))

	// With a default route it is no link of clients any more.
	addAddr(t, "later", "203.0.113.129/25")
	r := testRoute(t, "0.0.0.0/0", "later", "203.0.113.130")
	r.Table = 1234
	require.NoError(t, netlink.RouteAdd(r))
	w.says(t, Followed, "set back net.ipv6.conf.later.force_forwarding = 0")
	w.says(t, Followed, "net.ipv4.conf.later.forwarding = 1")
	require.True(t, within(longEnough, func() bool {
		return !slices.Contains(w.localNow(), netip.MustParsePrefix("2001:db8:2::/64"))
	}))
	require.True(t, within(longEnough, func() bool {
		return !strings.Contains(nft(t, "list set ip6 natless links"), `"later"`)
	}))

	later, err := netlink.LinkByName("later")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkDel(later))
	err = h.Close()
	require.NoError(t, err)
	shut()
	require.Empty(t, difference(before, snapshot(t)))
}

func TestWatchTellsOfClashes(t *testing.T) {
	testHost(t)
	h, _ := start(t, testPlan())
	w := watch(t, h)
	addAddr(t, "clients", "169.254.70.1/24")
	w.says(t, Clash, "169.254.64.0/20: overlaps address 169.254.70.1 of clients")
	l, err := netlink.LinkByName("clients")
	require.NoError(t, err)
	require.NoError(t, netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(169, 254, 70, 1).To4(), Mask: net.CIDRMask(24, 32)}}))
	w.says(t, Resolved, "169.254.70.1")
}

func TestWatchDoesNotFightForEver(t *testing.T) {
	newerKernel(t)
	testHost(t)
	h, _ := start(t, testPlan())
	w := watch(t, h)
	path := sysctlPath("ipv6", "clients", keyForceForwarding)
	for range putBacks {
		require.NoError(t, writeSysctl(path, no))
		require.True(t, within(longEnough, func() bool { now, _ := readSysctl(path); return now == yes }))
	}
	require.NoError(t, writeSysctl(path, no))
	w.says(t, Paused, "net.ipv6.conf.clients.force_forwarding")
	now, _ := readSysctl(path)
	require.Equal(t, no, now)
}

func TestWatchLeavesTheGuardToGlobalForwarding(t *testing.T) {
	testHost(t)
	h, _ := start(t, testPlan())
	w := watch(t, h)
	require.Contains(t, nft(t, "list table ip natless"), "@opened")
	require.NoError(t, writeSysctl("/proc/sys/net/ipv4/ip_forward", yes))
	w.says(t, Followed, "replace table")
	require.NotContains(t, nft(t, "list table ip natless"), "@opened")

	// What raised all links is not natless's to lower on one.
	err := h.Close()
	require.NoError(t, err)
	now, _ := readSysctl(sysctlPath("ipv4", "uplink", keyForwarding))
	require.Equal(t, yes, now)
}
