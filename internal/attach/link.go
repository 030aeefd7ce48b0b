package attach

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/hostnet"
)

// Link is a veth pair between the host and a namespace, with a ULA on each end.
type Link struct {
	Host     string       `json:"host"`   // the name of the host's end
	Inside   string       `json:"inside"` // and of the other
	HostIPv6 netip.Prefix `json:"host_ipv6"`
	IPv6     netip.Prefix `json:"ipv6"`
}

// linkInside is the name of the namespace's end.
const linkInside = "natless"

// linkName is what the host's ends are called.
var linkName = regexp.MustCompile(`^nl-[0-9a-f]{10}$`)

// linkFor is the link that a label gets: the same each time, as long as nothing
// of the host's is in the way.
func linkFor(label string, outside, n *Namespace) (*Link, error) {
	if _, err := n.LinkByName(linkInside); err == nil {
		return nil, fmt.Errorf("it has a link named %s already", linkInside)
	}
	for k := range 100 {
		p := config.LinkULA(label + "\x00" + strconv.Itoa(k))
		a := p.Addr().As16()
		l := &Link{Host: "nl-" + hex.EncodeToString(a[1:6]), Inside: linkInside}
		a[15] = 1
		l.HostIPv6 = netip.PrefixFrom(netip.AddrFrom16(a), p.Bits())
		a[15] = 2
		l.IPv6 = netip.PrefixFrom(netip.AddrFrom16(a), p.Bits())
		taken, err := outside.has(l)
		if err != nil {
			return nil, err
		}
		if !taken {
			return l, nil
		}
	}
	return nil, errors.New("all names and addresses for its link are in use on the host")
}

// has reports whether the host uses the link's name or network.
func (n *Namespace) has(l *Link) (bool, error) {
	if _, err := n.LinkByName(l.Host); err == nil {
		return true, nil
	}
	list, err := n.addresses(netlink.FAMILY_V6)
	if err != nil {
		return false, err
	}
	for _, a := range list {
		if a.Masked().Overlaps(l.IPv6.Masked()) {
			return true, nil
		}
	}
	return false, nil
}

// make makes the link, usable at once: no duplicates are looked for where there
// are two ends. index is of the host's.
func (l *Link) make(outside, n *Namespace) (index int, err error) {
	beforeStep("making the link")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.Host
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: l.Inside, PeerNamespace: netlink.NsFd(n.file)}
	if err := outside.LinkAdd(pair); err != nil {
		return 0, withRights(err)
	}
	beforeStep("bringing up the host's end")
	if err := outside.deafen(l.Host); err != nil {
		return 0, err
	}
	if index, err = outside.bring(l.Host, l.HostIPv6); err != nil {
		return 0, err
	}
	beforeStep("bringing up the other end")
	_, err = n.bring(l.Inside, l.IPv6)
	return index, err
}

// deafen has the host's end hear neither routers nor redirects before it is up:
// who is attached would become the router of the host.
func (n *Namespace) deafen(name string) error {
	for _, key := range []string{"ipv6/conf/%s/accept_ra", "ipv6/conf/%s/autoconf", "ipv6/conf/%s/accept_redirects", "ipv4/conf/%s/accept_redirects"} {
		if err := n.setSysctl("net/"+fmt.Sprintf(key, name), "0"); err != nil {
			return err
		}
	}
	return nil
}

// bring sets an end up and gives it its address. Its settings go with it.
func (n *Namespace) bring(name string, prefix netip.Prefix) (index int, err error) {
	link, err := n.LinkByName(name)
	if err != nil {
		return 0, err
	}
	for _, key := range []string{"disable_ipv6", "accept_dad"} {
		if err := n.setSysctl("net/ipv6/conf/"+name+"/"+key, "0"); err != nil {
			return 0, err
		}
	}
	if err := n.LinkSetUp(link); err != nil {
		return 0, err
	}
	if err := n.AddrAdd(link, &netlink.Addr{IPNet: hostnet.IPNet(prefix), Flags: unix.IFA_F_NODAD}); err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// remove removes the link, by its host's end.
func (l *Link) remove() error {
	link, err := netlink.LinkByName(l.Host)
	if errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && link.Type() != "veth" {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) { // gone with its namespace
		return withRights(err)
	}
	return nil
}

// RemoveLinks removes the host's ends of all links that attach ever made here,
// and tells in lines which.
func RemoveLinks() (done []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() != "veth" || !linkName.MatchString(l.Attrs().Name) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("removing link %s: %w", l.Attrs().Name, err))
			continue
		}
		done = append(done, "removed link "+l.Attrs().Name)
	}
	return done, errors.Join(errs...)
}

// Route is a route to natless inside a namespace that pins its source.
type Route struct {
	To   netip.Prefix `json:"to"`
	Via  netip.Addr   `json:"via,omitzero"`
	Link string       `json:"link"`
	From netip.Addr   `json:"from"`
}

// metricRoute is better than that of routes by routers and by other programs, and
// another than that of the device's routes, which a natless inside the namespace
// takes for its own.
const metricRoute = 32

func (r *Route) netlink(n *Namespace) (*netlink.Route, error) {
	link, err := n.LinkByName(r.Link)
	if err != nil {
		return nil, err
	}
	return &netlink.Route{
		Dst: hostnet.IPNet(r.To), LinkIndex: link.Attrs().Index, Gw: r.Via.AsSlice(), Src: r.From.AsSlice(),
		Protocol: hostnet.Protocol, Priority: metricRoute, Table: unix.RT_TABLE_MAIN,
	}, nil
}

func (r *Route) add(n *Namespace) error {
	route, err := r.netlink(n)
	if err != nil {
		return err
	}
	err = n.RouteAdd(route)
	if errors.Is(err, unix.EEXIST) {
		return errors.New("somebody has put a route of the same prefix and metric there")
	}
	return err
}

// remove removes the route that add added; if its link or its source went, the
// kernel has done so.
func (r *Route) remove(n *Namespace) error {
	route, err := r.netlink(n)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := n.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
