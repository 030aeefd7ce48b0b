package hostnet

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// view is the network namespace at one moment, as far as natless cares.
type view struct {
	links  map[int]link
	addrs  []address
	routes []route
	// What links lead to, see assign.
	uplinks, clients map[int]bool
	roles            []LinkRole
	rules            *foreigns // see foreign
}

type link struct {
	index    int
	name     string
	kind     string // as `ip -d link` prints it: veth, tun, …
	mtu      int
	up       bool
	loopback bool
	master   int  // the bridge or the like that it is a port of; 0: none
	vrf      bool // it is in a VRF, or is one
	queues   int  // of a TUN device: how many are open
}

// kinds of links
const (
	kindTUN    = "tun"
	kindTAP    = "tap"
	kindBridge = "bridge"
	kindVeth   = "veth"
	kindDummy  = "dummy"
	kindNetkit = "netkit"
	kindVRF    = "vrf"
)

type address struct {
	addr  netip.Addr
	index int
	lent  bool // for a time, by DHCP or a router advertisement
}

type route struct {
	dst      netip.Prefix
	table    int
	protocol int
	kind     int // RTN_*
	metric   int
	links    []int // where it leads, by interface index
	gateway  bool  // through a router
}

// look reads links, addresses and the routes of all tables but those of VRFs,
// which are worlds of their own.
func look() (*view, error) {
	v := &view{links: map[int]link{}}
	vrfTables := map[int]bool{}

	var links []netlink.Link
	err := retry(func() (err error) { links, err = netlink.LinkList(); return }, dumped)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	for _, l := range links {
		v.links[l.Attrs().Index] = newLink(l)
		if vrf, ok := l.(*netlink.Vrf); ok {
			vrfTables[int(vrf.Table)] = true
		}
	}
	for i, l := range v.links {
		l.vrf = l.kind == kindVRF || v.links[l.master].kind == kindVRF
		v.links[i] = l
	}

	var addrs []netlink.Addr
	err = retry(func() (err error) { addrs, err = netlink.AddrList(nil, netlink.FAMILY_ALL); return }, dumped)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !v.links[a.LinkIndex].vrf {
			v.addrs = append(v.addrs, address{addr.Unmap(), a.LinkIndex, a.Flags&unix.IFA_F_PERMANENT == 0})
		}
	}

	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		var routes []netlink.Route
		err := retry(func() (err error) {
			routes, err = netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
			return
		}, dumped)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range routes {
			if n := newRoute(family, r); !vrfTables[n.table] {
				v.routes = append(v.routes, n)
			}
		}
	}
	return v, nil
}

func newLink(l netlink.Link) link {
	a := l.Attrs()
	n := link{
		index: a.Index, name: a.Name, kind: l.Type(), mtu: a.MTU,
		up: a.Flags&net.FlagUp != 0, loopback: a.Flags&net.FlagLoopback != 0, master: a.MasterIndex,
	}
	if tun, ok := l.(*netlink.Tuntap); ok {
		n.queues, n.kind = tun.Queues, kindTAP
		if tun.Mode == netlink.TUNTAP_MODE_TUN {
			n.kind = kindTUN
		}
	}
	return n
}

func newRoute(family int, r netlink.Route) route {
	n := route{
		dst: everything(family), table: r.Table, protocol: int(r.Protocol), kind: r.Type,
		metric: r.Priority, gateway: r.Gw != nil || r.Via != nil,
	}
	if r.Dst != nil {
		addr, _ := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		n.dst = netip.PrefixFrom(addr.Unmap(), ones) // the default route of IPv4 comes with 16 bytes
	}
	if r.LinkIndex != 0 {
		n.links = append(n.links, r.LinkIndex)
	}
	for _, hop := range r.MultiPath {
		n.links = append(n.links, hop.LinkIndex)
		n.gateway = n.gateway || hop.Gw != nil || hop.Via != nil
	}
	return n
}

func everything(family int) netip.Prefix {
	if family == netlink.FAMILY_V4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// isDefault also takes the halves and eighths of the address space that VPNs
// and providers use in place of a default route (0.0.0.0/1, 2000::/3).
func (r route) isDefault() bool {
	return r.kind == unix.RTN_UNICAST && r.dst.Bits() <= 3
}

// leadsTo tells whether packets may follow the route over a link of the host.
func (r route) leadsTo() bool {
	return r.kind == unix.RTN_UNICAST && r.table != unix.RT_TABLE_LOCAL
}

// leadsTo6 is leadsTo for IPv6 beyond the link itself.
func (r route) leadsTo6() bool {
	return r.leadsTo() && r.dst.Addr().Is6() && (r.isDefault() || r.dst.Addr().IsGlobalUnicast())
}

// local lists the IPv6 prefixes that count as local: the host's own addresses
// and what it reaches over links to clients.
func (v *view) local() []netip.Prefix {
	found := map[netip.Prefix]bool{}
	for _, a := range v.addrs {
		if a.addr.Is6() && a.addr.IsGlobalUnicast() {
			found[netip.PrefixFrom(a.addr, 128)] = true
		}
	}
	for _, r := range v.routes {
		if !r.leadsTo6() || r.isDefault() {
			continue
		}
		if slices.ContainsFunc(r.links, func(i int) bool { return !v.clients[i] }) {
			continue
		}
		found[r.dst] = true
	}
	return slices.SortedFunc(maps.Keys(found), comparePrefix)
}

// byName finds a link, or the zero link.
func (v *view) byName(name string) link {
	for _, l := range v.links {
		if l.name == name {
			return l
		}
	}
	return link{}
}

// device is the index of the link of that name, or missing.
func (v *view) device(name string) int {
	if l := v.byName(name); l.index != 0 {
		return l.index
	}
	return missing
}

// sorted lists the links in the order of their indexes.
func (v *view) sorted() []link {
	return slices.SortedFunc(maps.Values(v.links), func(a, b link) int { return cmp.Compare(a.index, b.index) })
}

// these are the links of a set, sorted by index.
func (v *view) these(indexes map[int]bool) []link {
	return slices.DeleteFunc(v.sorted(), func(l link) bool { return !indexes[l.index] })
}

// names lists the names of links in alphabetical order.
func (v *view) names(indexes map[int]bool) []string {
	var names []string
	for _, l := range v.these(indexes) {
		names = append(names, l.name)
	}
	slices.Sort(names)
	return names
}

// refs are the links of a set by index and name, sorted by index.
func (v *view) refs(indexes map[int]bool) (refs []linkRef) {
	for _, l := range v.these(indexes) {
		refs = append(refs, linkRef{l.index, l.name})
	}
	return refs
}

// describe names a route for people.
func (v *view) describe(r route) string {
	var parts []string
	for _, i := range r.links {
		parts = append(parts, "over "+v.links[i].name)
	}
	if r.kind != unix.RTN_UNICAST {
		parts = append(parts, "of type "+kindName(r.kind))
	}
	if r.table != unix.RT_TABLE_MAIN {
		parts = append(parts, "in table "+tableName(r.table))
	}
	parts = append(parts, "protocol "+netlink.RouteProtocol(r.protocol).String())
	return fmt.Sprintf("route %s (%s)", r.dst, strings.Join(parts, ", "))
}

func kindName(kind int) string {
	switch kind {
	case unix.RTN_LOCAL:
		return "local"
	case unix.RTN_BLACKHOLE:
		return "blackhole"
	case unix.RTN_UNREACHABLE:
		return "unreachable"
	case unix.RTN_PROHIBIT:
		return "prohibit"
	case unix.RTN_THROW:
		return "throw"
	}
	return strconv.Itoa(kind)
}

func tableName(table int) string {
	switch table {
	case unix.RT_TABLE_LOCAL:
		return "local"
	case unix.RT_TABLE_DEFAULT:
		return "default"
	}
	return strconv.Itoa(table)
}
