package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
)

// testPlan is what natless asks for by default, and a map.
func testPlan() Plan {
	pool := prefixes("169.254.64.0/20")
	return Plan{
		Device: "natless0", Manage: true, Local: true,
		IPv6:       prefixes("64:ff9b::/96", "fd00:64::1/128"),
		IPv4:       append(prefixes("198.51.100.7/32"), pool...),
		Masquerade: pool,
		Inbound:    prefixes("198.51.100.7/32"),
		Clients:    prefixes("2001:db8:7::/64"),
	}
}

// testHost makes what natless finds: an uplink, a link of clients, forwarding
// off, a table and a route of somebody else's.
func testHost(t *testing.T) {
	t.Helper()
	inNamespace(t)
	addLink(t, "uplink", "192.0.2.2/24", "2001:db8:ff::2/64")
	addLink(t, "clients", "2001:db8:1::1/64")
	addRoute(t, "0.0.0.0/0", "uplink", "192.0.2.1")
	addRoute(t, "::/0", "uplink", "2001:db8:ff::1")
	addRoute(t, "203.0.113.0/24", "uplink", "192.0.2.9")
	nft(t, `table inet foreign { chain c { type filter hook forward priority 5; ip saddr 203.0.113.1 drop; }; }`)
	calm(t)
}

// kill leaves h as a killed process would: the kernel closes its files.
func kill(h *Host, shut func()) {
	if h != nil {
		h.lock.file.Close()
	}
	shut()
}

func start(t *testing.T, p Plan) (*Host, func()) {
	t.Helper()
	h, err := Prepare(p)
	require.NoError(t, err)
	index, shut := openTUN(t, p.Device, false)
	require.NoError(t, h.Attach(index))
	return h, shut
}

// managed is a host that nothing was done to yet.
func managed(p Plan) *Host {
	h := &Host{device: missing}
	h.aim(p)
	return h
}

func TestCloseLeavesTheHostAsItWas(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	h, shut := start(t, testPlan())
	err := h.Close()
	require.NoError(t, err)
	shut()
	require.Empty(t, difference(before, snapshot(t)))
	require.NoDirExists(t, runDir)
}

func TestDownClearsWhatAKilledRunLeft(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	h, shut := start(t, testPlan())
	kill(h, shut)
	require.NotEmpty(t, difference(before, snapshot(t)))
	lines, err := Down()
	require.NoError(t, err)
	require.NotEmpty(t, lines)
	require.Empty(t, difference(before, snapshot(t)))
	require.NoDirExists(t, runDir)

	lines, err = Down()
	require.NoError(t, err)
	require.Empty(t, lines)
}

func TestStartInterruptedAtAnyStep(t *testing.T) {
	needsNamespaces(t)
	for name, end := range map[string]func(t *testing.T, h *Host, shut func()){
		"killed": func(t *testing.T, h *Host, shut func()) {
			kill(h, shut)
			_, err := Down()
			require.NoError(t, err)
		},
		"stopped": func(t *testing.T, h *Host, shut func()) {
			err := h.Close()
			require.NoError(t, err)
			shut()
		},
	} {
		finished := false
		for n := 0; !finished && !t.Failed() && n < 100; n++ {
			t.Run(fmt.Sprintf("%s before %d", name, n), func(t *testing.T) {
				testHost(t)
				before := snapshot(t)
				h, err := Prepare(testPlan())
				require.NoError(t, err)
				index, shut := openTUN(t, "natless0", false)
				finished = dieBefore(n, func() error { return h.Attach(index) })
				end(t, h, shut)
				require.Empty(t, difference(before, snapshot(t)))
				require.NoDirExists(t, runDir)
			})
			require.True(t, n > 10 || !finished, "there is more to a start")
		}
	}
}

// dieBefore runs do and stops dead before its n-th change, or tells that it
// came to its end.
func dieBefore(n int, do func() error) (finished bool) {
	type death struct{}
	beforeChange = func(string) {
		if n == 0 {
			panic(death{})
		}
		n--
	}
	defer func() {
		beforeChange = func(string) {}
		if r := recover(); r != nil {
			if _, ok := r.(death); !ok {
				panic(r)
			}
		}
	}()
	if err := do(); err != nil {
		panic(err)
	}
	return true
}

func TestCloseKilledAtAnyStep(t *testing.T) {
	needsNamespaces(t)
	finished := false
	for n := 0; !finished && !t.Failed() && n < 100; n++ {
		t.Run(fmt.Sprintf("before %d", n), func(t *testing.T) {
			testHost(t)
			before := snapshot(t)
			h, shut := start(t, testPlan())
			finished = dieBefore(n, func() error { return h.Close() })
			kill(h, shut)
			_, err := Down()
			require.NoError(t, err)
			require.Empty(t, difference(before, snapshot(t)))
			require.NoDirExists(t, runDir)
		})
		require.True(t, n > 5 || !finished, "there is more to a stop")
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	testHost(t)
	h, _ := start(t, testPlan())
	before := snapshot(t)
	_, err := Prepare(testPlan())
	var running *RunningError
	require.ErrorAs(t, err, &running)
	require.Equal(t, os.Getpid(), running.PID)
	_, err = Down()
	require.ErrorContains(t, err, "stop it first")
	require.Empty(t, difference(before, snapshot(t)))
	err = h.Close()
	require.NoError(t, err)
}

func TestRestartTakesOver(t *testing.T) {
	for name, next := range map[string]func(*Plan){
		"the same plan": func(*Plan) {},
		"another pool": func(p *Plan) {
			p.IPv4 = prefixes("198.18.0.0/20")
			p.Masquerade = p.IPv4
			p.Inbound = nil
		},
		"another device": func(p *Plan) { p.Device = "natless1" },
		"other clients":  func(p *Plan) { p.Local = false },
		"left alone":     func(p *Plan) { p.Manage, p.IPv4, p.IPv6 = false, nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			testHost(t)
			before := snapshot(t)
			kill(start(t, testPlan()))
			p := testPlan()
			next(&p)
			h, shut := start(t, p)
			for _, r := range routesOfOurs(t) {
				require.Contains(t, managed(p).targets.merged, r.dst)
			}
			err := h.Close()
			require.NoError(t, err)
			shut()
			require.Empty(t, difference(before, snapshot(t)))
			require.NoDirExists(t, runDir)
		})
	}
}

func routesOfOurs(t *testing.T) []route {
	t.Helper()
	v, err := look()
	require.NoError(t, err)
	return slices.DeleteFunc(v.routes, func(r route) bool { return r.protocol != Protocol })
}

func TestUpdateChangesRoutes(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	h, shut := start(t, testPlan())
	p := testPlan()
	p.IPv4 = append(p.IPv4, prefixes("198.51.100.8/32", "169.254.65.0/24")...)
	p.IPv6 = p.IPv6[:1]
	p.Inbound = append(p.Inbound, prefixes("198.51.100.8/32")...)
	require.NoError(t, h.Update(p))
	var routed []netip.Prefix
	for _, r := range routesOfOurs(t) {
		routed = append(routed, r.dst)
	}
	want := prefixes("169.254.64.0/20", "198.51.100.7/32", "198.51.100.8/32", "64:ff9b::/96")
	require.ElementsMatch(t, append(want, want...), routed, "each has a route to the device and a blackhole")
	require.Contains(t, nft(t, "list table ip natless"), "198.51.100.7-198.51.100.8")

	good := snapshot(t)
	p.IPv4 = append(p.IPv4, prefixes("192.0.2.0/28")...)
	require.ErrorContains(t, h.Update(p), "192.0.2.0/28: overlaps address 192.0.2.2 of uplink")
	require.Empty(t, difference(good, snapshot(t)))
	err := h.Close()
	require.NoError(t, err)
	shut()
	require.Empty(t, difference(before, snapshot(t)))
}

// Maps that come and go join and part routes. At no moment is an address of
// those that stay without its way to the device.
func TestUpdateKeepsTheOthersRouted(t *testing.T) {
	testHost(t)
	h, _ := start(t, testPlan())
	p := testPlan()
	p.Added = prefixes("198.51.100.16/32", "198.51.100.18/31", "198.51.100.20/30", "2001:db8:7::/64")
	require.NoError(t, h.Update(p))

	steps := 0
	beforeChange = func(string) {
		steps++
		for _, a := range []string{"198.51.100.16", "198.51.100.18", "198.51.100.23", "198.51.100.7"} {
			found, err := netlink.RouteGet(net.ParseIP(a))
			require.NoError(t, err, "%s is in a black hole", a)
			require.Equal(t, h.device, found[0].LinkIndex, a)
		}
	}
	t.Cleanup(func() { beforeChange = func(string) {} })
	few := p
	p.Added = append(p.Added, prefixes("198.51.100.17/32")...)
	require.NoError(t, h.Update(p))
	count := 0
	for _, r := range routesOfOurs(t) {
		if netip.MustParsePrefix("198.51.100.16/28").Overlaps(r.dst) {
			require.Equal(t, netip.MustParsePrefix("198.51.100.16/29"), r.dst)
			count++
		}
	}
	require.Equal(t, 2, count, "one route to the device, one blackhole")
	require.NoError(t, h.Update(few))
	require.NotZero(t, steps)

	steps = 0
	few.Local, few.Clients = true, nil
	require.NoError(t, h.Update(few))
	steps = 0
	require.NoError(t, h.Update(few))
	require.Zero(t, steps, "nothing to do")
	beforeChange = func(string) {}
	err := h.Close()
	require.NoError(t, err)
	require.ErrorContains(t, h.Update(p), "about to end")
}

// What stands in the way of a map that was added at runtime is told, and is
// nobody else's harm.
func TestAddedMapsKeepNobodyFromStarting(t *testing.T) {
	testHost(t)
	p := testPlan()
	p.Added = prefixes("192.0.2.2/32") // the uplink's own
	h, _ := start(t, p)
	p.Added = append(p.Added, prefixes("198.51.100.16/32")...)
	require.NoError(t, h.Update(p))
	p.Added = append(p.Added, prefixes("192.0.2.77/32")...)
	err := h.Update(p)
	require.ErrorIs(t, err, ErrConflict)
	require.EqualError(t, err, "192.0.2.77/32: overlaps route 192.0.2.0/24 (over uplink, protocol kernel)")
	err = h.Close()
	require.NoError(t, err)

	p.Added, p.IPv4 = nil, append(p.IPv4, prefixes("192.0.2.2/32")...)
	_, err = Prepare(p)
	require.ErrorIs(t, err, ErrConflict)
}

func TestKeep(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	p := testPlan()
	p.Keep = true
	h, shut := start(t, p)
	err := h.Close()
	require.NoError(t, err)
	shut()
	kept := snapshot(t)
	left := difference(before, kept)
	require.Contains(t, left, "ip saddr @masqueraded")
	require.Contains(t, left, "64:ff9b::/96")
	require.NotContains(t, left, "/proc/sys")
	require.NotContains(t, left, "opened")

	// A start that gets nowhere leaves it so.
	h, err = Prepare(p)
	require.NoError(t, err)
	err = h.Close()
	require.NoError(t, err)
	require.Empty(t, difference(kept, snapshot(t)))

	h, shut = start(t, p)
	err = h.Close()
	require.NoError(t, err)
	shut()
	require.Empty(t, difference(kept, snapshot(t)))

	_, err = Down()
	require.NoError(t, err)
	require.Empty(t, difference(before, snapshot(t)))
	require.NoDirExists(t, runDir)
}

func TestOperatorsDeviceIsPutBack(t *testing.T) {
	for _, up := range []bool{false, true} {
		t.Run(map[bool]string{false: "down", true: "up"}[up], func(t *testing.T) {
			testHost(t)
			index, shut := openTUN(t, "natless0", true)
			l, err := netlink.LinkByIndex(index)
			require.NoError(t, err)
			require.NoError(t, netlink.LinkSetMTU(l, 1300))
			if up {
				require.NoError(t, netlink.LinkSetUp(l))
			}
			calm(t) // with a carrier the kernel gives the device an address
			shut()
			addRouteWhenUp(t, up, "198.51.100.7/32", "natless0") // the operator's own, no clash
			calm(t)
			before := snapshot(t)
			for _, end := range []func(h *Host, shut func()){
				func(h *Host, shut func()) {
					err := h.Close()
					require.NoError(t, err)
					shut()
				},
				func(h *Host, shut func()) {
					kill(h, shut)
					_, err := Down()
					require.NoError(t, err)
				},
			} {
				h, shut := start(t, testPlan())
				require.Equal(t, index, h.device)
				require.NotEmpty(t, difference(before, snapshot(t)))
				end(h, shut)
				calm(t)
				require.Empty(t, difference(before, snapshot(t)))
			}
		})
	}
}

func addRouteWhenUp(t *testing.T, up bool, dst, link string) {
	t.Helper()
	if up {
		addRoute(t, dst, link, "")
	}
}

func TestUnmanagedTouchesTheDeviceOnly(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	p := testPlan()
	p.Manage = false
	p.MTU = 1400
	h, shut := start(t, p)
	for _, l := range strings.Split(strings.TrimSpace(difference(before, snapshot(t))), "\n") {
		if !strings.Contains(l, "natless0") {
			require.Contains(t, l, "+ route table 255 type 5", "the kernel's own multicast route")
		}
	}
	require.Equal(t, 1400, h.MTU())
	err := h.Close()
	require.NoError(t, err)
	shut()
	require.Empty(t, difference(before, snapshot(t)))
}

// without force_forwarding, as before Linux 6.17.
func olderKernel(t *testing.T) {
	t.Helper()
	key := keyForceForwarding
	keyForceForwarding = "no_such_setting"
	t.Cleanup(func() { keyForceForwarding = key })
}

// newerKernel is for tests of what the other has not.
func newerKernel(t *testing.T) {
	t.Helper()
	if _, ok := readSysctl(sysctlPath("ipv6", allLinks, "force_forwarding")); !ok {
		testenv.Skip(t, "force_forwarding needs Linux 6.17")
	}
	key := keyForceForwarding
	keyForceForwarding = forceForwarding("")
	t.Cleanup(func() { keyForceForwarding = key })
}

// Where IPv6 forwarding is raised for all links, those alone go on hearing
// routers that have their default route from one, and all is taken back.
func TestGlobalForwarding(t *testing.T) {
	olderKernel(t)
	testHost(t)
	addLink(t, "modem", "2001:db8:fe::2/64")
	addLink(t, "forwards", "2001:db8:fd::2/64")
	require.NoError(t, writeSysctl(sysctlPath("ipv6", "forwards", keyForwarding), yes))
	byAdvertisement(t, "modem")
	calm(t)
	before := snapshot(t)
	p := testPlan()
	p.Uplinks = []string{"modem"}
	r, err := Check(p)
	require.NoError(t, err)
	require.Contains(t, r.String(), "be lowered on exit")
	for name, end := range map[string]func(h *Host, shut func()){
		"stopped": func(h *Host, shut func()) { require.NoError(t, h.Close()); shut() },
		"killed": func(h *Host, shut func()) {
			kill(h, shut)
			_, err := Down()
			require.NoError(t, err)
		},
	} {
		h, shut := start(t, p)
		value := func(link, key string) string {
			v, _ := readSysctl(sysctlPath("ipv6", link, key))
			return v
		}
		require.Equal(t, "1", value("all", keyForwarding))
		require.Equal(t, "2", value("modem", keyAcceptRA))
		require.Equal(t, "1", value("uplink", keyAcceptRA), "its default route is not by advertisement")
		require.Equal(t, "0", value("clients", keyAcceptRA))
		require.NoError(t, netlink.RouteDel(advertised(t, "modem")))
		require.NoError(t, h.settle())
		require.Equal(t, "2", value("modem", keyAcceptRA), "a router that is quiet for a while")
		byAdvertisement(t, "modem")
		end(h, shut)
		calm(t)
		require.Empty(t, difference(before, snapshot(t)), name)
	}
}

// byAdvertisement gives a link the route that a router's advertisement would.
func byAdvertisement(t *testing.T, link string) {
	t.Helper()
	require.NoError(t, netlink.RouteAdd(advertised(t, link)))
}

func advertised(t *testing.T, link string) *netlink.Route {
	t.Helper()
	r := testRoute(t, "::/0", link, "fe80::1")
	r.Protocol, r.Priority = unix.RTPROT_RA, 4096
	return r
}

func TestGlobalForwardingKilledBeforeItWasRaised(t *testing.T) {
	olderKernel(t)
	testHost(t)
	addLink(t, "modem", "2001:db8:fe::2/64")
	byAdvertisement(t, "modem")
	calm(t)
	before := snapshot(t)
	p := testPlan()
	p.Uplinks = []string{"modem"}
	h, err := Prepare(p)
	require.NoError(t, err)
	index, shut := openTUN(t, "natless0", false)
	raising := "set net.ipv6.conf.all.forwarding = 1"
	beforeChange = func(text string) {
		if text == raising {
			panic(raising)
		}
	}
	t.Cleanup(func() { beforeChange = func(string) {} })
	require.PanicsWithValue(t, raising, func() { _ = h.Attach(index) })
	require.Contains(t, difference(before, snapshot(t)), "accept_ra = 2")
	kill(h, shut)
	_, err = Down()
	require.NoError(t, err)
	require.Empty(t, difference(before, snapshot(t)))
}

func TestWhatOthersSetMeanwhileStays(t *testing.T) {
	newerKernel(t)
	testHost(t)
	require.NoError(t, writeSysctl(sysctlPath("ipv4", "all", keyRPFilter), yes))
	h, shut := start(t, testPlan())
	filter, _ := readSysctl(sysctlPath("ipv4", "natless0", keyRPFilter))
	require.Equal(t, loose, filter)
	path := sysctlPath("ipv6", "clients", keyForceForwarding)
	require.NoError(t, writeSysctl(path, "0"))
	nft(t, "add table ip other")
	addRoute(t, "203.0.113.128/25", "clients", "")
	kill(h, shut)
	changed := snapshot(t)
	_, err := Down()
	require.NoError(t, err)
	require.NotContains(t, difference(changed, snapshot(t)), path)
	require.Contains(t, nft(t, "list ruleset"), "table ip other")
	require.NoError(t, netlink.RouteDel(testRoute(t, "203.0.113.128/25", "clients", "")))
}

func TestNoRecordNoChange(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	require.NoError(t, os.WriteFile(runDir, nil, 0o600))
	_, err := Prepare(testPlan())
	require.ErrorContains(t, err, "making a place for records")
	require.Empty(t, difference(before, snapshot(t)))
	require.NoError(t, os.Remove(runDir))

	h, err := Prepare(testPlan())
	require.NoError(t, err)
	index, shut := openTUN(t, "natless0", false)
	device := snapshot(t)
	path := h.rec.path
	h.rec.path = filepath.Join(runDir, "gone", "record")
	require.ErrorContains(t, h.Attach(index), "writing down what natless changes")
	require.Empty(t, difference(device, snapshot(t)))
	h.rec.path = path
	err = h.Close()
	require.NoError(t, err)
	shut()
}

func TestChooseMTU(t *testing.T) {
	testHost(t)
	mtu, err := ChooseMTU()
	require.NoError(t, err)
	require.Equal(t, 1500, mtu)
	l, err := netlink.LinkByName("clients")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetMTU(l, 9000))
	mtu, err = ChooseMTU()
	require.NoError(t, err)
	require.Equal(t, 9000, mtu)
	mtu, err = ChooseMTU("clients")
	require.NoError(t, err)
	require.Equal(t, 1500, mtu)
}

func TestRecordOfAnotherBootIsNotOurs(t *testing.T) {
	testHost(t)
	kill(start(t, testPlan()))
	key, err := namespaceKey()
	require.NoError(t, err)
	rec, err := readRecord(key)
	require.NoError(t, err)
	require.NotEmpty(t, rec.Settings)
	rec.Boot = "another"
	require.NoError(t, rec.save())
	rec, err = readRecord(key)
	require.NoError(t, err)
	require.Empty(t, rec.Settings)
	_, err = Down()
	require.NoError(t, err)
}
