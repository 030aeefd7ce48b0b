package hostnet

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
)

func needsNamespaces(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Skip(t, "network namespaces need root")
	}
}

// inNamespace moves the test to a network namespace of its own, on a thread
// that ends with it, with records in a folder of its own.
func inNamespace(t *testing.T) {
	t.Helper()
	needsNamespaces(t)
	runtime.LockOSThread() // never unlocked: the thread must not serve others
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		testenv.Skip(t, "making a network namespace: "+err.Error())
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		testenv.Skip(t, err.Error())
	}
	tun.Close()
	old := runDir
	runDir = filepath.Join(t.TempDir(), "run")
	t.Cleanup(func() { runDir = old })
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
}

// addLink makes one end of a veth pair with addresses and returns its index.
// The other end stays without addresses.
func addLink(t *testing.T, name string, addrs ...string) int {
	t.Helper()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	require.NoError(t, netlink.LinkAdd(pair))
	quiet(t, name)
	quiet(t, name+"p")
	for _, end := range []string{name + "p", name} {
		l, err := netlink.LinkByName(end)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(l))
	}
	for _, a := range addrs {
		addAddr(t, name, a)
	}
	return linkIndex(t, name)
}

// quiet keeps a link from changing its addresses by itself.
func quiet(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, writeSysctl(sysctlPath("ipv6", name, "addr_gen_mode"), "1"))
	require.NoError(t, writeSysctl(sysctlPath("ipv6", name, "accept_dad"), "0"))
}

func addAddr(t *testing.T, name, addr string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	a, err := netlink.ParseAddr(addr)
	require.NoError(t, err)
	a.Flags = unix.IFA_F_NODAD
	require.NoError(t, netlink.AddrAdd(l, a))
}

func linkIndex(t *testing.T, name string) int {
	t.Helper()
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	return l.Attrs().Index
}

// addRoute adds a route over a link, through a router when via is given.
func addRoute(t *testing.T, dst, link, via string) {
	t.Helper()
	require.NoError(t, netlink.RouteAdd(testRoute(t, dst, link, via)))
}

func testRoute(t *testing.T, dst, link, via string) *netlink.Route {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	r := &netlink.Route{LinkIndex: linkIndex(t, link), Dst: &net.IPNet{
		IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if via != "" {
		r.Gw = net.ParseIP(via)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// lastTUN is the file of the device that openTUN opened last.
var lastTUN int

// openTUN makes a TUN device that goes when the returned function is called,
// or with persist stays.
func openTUN(t *testing.T, name string, persist bool) (index int, shut func()) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	req, err := unix.NewIfreq(name)
	require.NoError(t, err)
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	if persist {
		require.NoError(t, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	}
	lastTUN = fd
	open := true
	shut = func() {
		if open {
			unix.Close(fd)
			open = false
		}
	}
	t.Cleanup(shut)
	return linkIndex(t, name), shut
}

// nft runs the nft program, where there is one.
func nft(t *testing.T, command string) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		testenv.Skip(t, "nft is not installed")
	}
	out, err := exec.Command(path, command).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// snapshot is the whole state of the network namespace, in lines.
func snapshot(t *testing.T) []string {
	t.Helper()
	lines := append(links(t), strings.Split(nft(t, "list ruleset"), "\n")...)
	return append(lines, sysctls(t)...)
}

// links is what snapshot tells of links, addresses, routes and rules.
func links(t *testing.T) []string {
	t.Helper()
	var lines []string
	links, err := netlink.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		a := l.Attrs()
		lines = append(lines, fmt.Sprintf("link %d %s %s mtu %d qlen %d master %d up %t group %d alias %q",
			a.Index, a.Name, l.Type(), a.MTU, a.TxQLen, a.MasterIndex, a.Flags&net.FlagUp != 0, a.Group, a.Alias))
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	require.NoError(t, err)
	for _, a := range addrs {
		lines = append(lines, fmt.Sprintf("addr %s on %d scope %d flags %d", a.IPNet, a.LinkIndex, a.Scope, a.Flags))
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		require.NoError(t, err)
		for _, r := range routes {
			lines = append(lines, fmt.Sprintf("route table %d type %d %v", r.Table, r.Type, r))
		}
		rules, err := netlink.RuleList(family)
		require.NoError(t, err)
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("rule %d %v", family, r))
		}
	}
	return lines
}

// calm waits until the kernel is done with links that just came up.
func calm(t *testing.T) {
	t.Helper()
	last, same := []string(nil), 0
	require.True(t, within(longEnough, func() bool {
		now := links(t)
		if slices.Equal(now, last) {
			same++
		} else {
			same = 0
		}
		last = now
		return same >= 3 && complete(t)
	}))
}

// complete tells whether the kernel, which takes its time, has made the routes
// that go with IPv6 addresses and links.
func complete(t *testing.T) bool {
	t.Helper()
	v, err := look()
	require.NoError(t, err)
	has := func(dst netip.Prefix, index int) bool {
		return slices.ContainsFunc(v.routes, func(r route) bool {
			return r.table == unix.RT_TABLE_LOCAL && r.dst == dst && slices.Equal(r.links, []int{index})
		})
	}
	for _, a := range v.addrs {
		if a.addr.Is6() && !has(netip.PrefixFrom(a.addr, 128), a.index) {
			return false
		}
	}
	for _, l := range v.links {
		if l.kind == "veth" && l.up && !has(netip.MustParsePrefix("ff00::/8"), l.index) {
			return false
		}
	}
	return true
}

// counting are sysctls that show what happens and set nothing.
var counting = []string{"nf_conntrack_count"}

func sysctls(t *testing.T) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(procNet, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || slices.Contains(counting, d.Name()) {
			return nil
		}
		if value, ok := readSysctl(path); ok {
			lines = append(lines, path+" = "+value)
		}
		return nil
	})
	require.NoError(t, err)
	return lines
}

// difference lists what is only in one of two snapshots.
func difference(before, after []string) string {
	var b strings.Builder
	only := func(mark string, these, those []string) {
		known := map[string]bool{}
		for _, l := range those {
			known[l] = true
		}
		for _, l := range these {
			if !known[l] {
				b.WriteString(mark + l + "\n")
			}
		}
	}
	only("- ", before, after)
	only("+ ", after, before)
	return b.String()
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// rules are the lines of a table's chains, without its sets.
func rules(table string) []string {
	_, chains, _ := strings.Cut(table, "\tchain ")
	return strings.Split(chains, "\n")
}
