package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/mapping"
)

// ForgetFlows deletes what connection tracking knows of flows from or to these
// IPv4 addresses, or these ports of them, on either side of a translation, so
// that whoever has one next does not get the last one's answers. What has no
// ports stays where only some are asked for: it is for seconds. However long the
// list is, the kernel's table is read once. Where connections are not tracked
// there is nothing to do, and where natless may not, nothing to be done.
func ForgetFlows(list []mapping.Portion) error {
	flows := flowsOf{}
	for _, p := range list {
		flows[p.IPv4] = append(flows[p.IPv4], p)
	}
	if err := deleteFlows(unix.AF_INET, flows); err != nil {
		return fmt.Errorf("deleting the tracked connections of %d addresses: %w", len(flows), err)
	}
	return nil
}

func deleteFlows(family netlink.InetFamily, such netlink.CustomConntrackFilter) error {
	if count, _ := readSysctl(filepath.Join(procNet, "netfilter", "nf_conntrack_count")); count == "" || count == "0" {
		return nil
	}
	err := retry(func() error {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, such)
		return err
	}, dumped)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil // the last two: a kernel without conntrack's netlink part
	}
	return err
}

// forgetBegunWithout deletes what connection tracking knows of flows that began
// while the tables were not there. They would stay as they are: the kernel looks
// for a translation at a flow's first packet alone. Those of pools would leave with
// their own source, and where others masquerade IPv6 a client would be the host.
func forgetBegunWithout(s tableSpec, ipv6 []netip.Prefix, v *view) error {
	var err error
	if len(s.Masquerade) > 0 {
		err = deleteFlows(unix.AF_INET, unmasqueraded{s.Masquerade, v.addresses()})
	}
	if s.Foreign6 {
		err = errors.Join(err, deleteFlows(unix.AF_INET6, masqueraded(ipv6)))
	}
	if err != nil {
		return fmt.Errorf("deleting tracked connections that began without natless's tables: %w", err)
	}
	return nil
}

// unmasqueraded matches flows from prefixes that leave with their own source, and
// not for the host itself.
type unmasqueraded struct {
	pools []netip.Prefix
	host  map[netip.Addr]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (u unmasqueraded) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, seen, to := addrOf(flow.Forward.SrcIP), addrOf(flow.Reverse.DstIP), addrOf(flow.Reverse.SrcIP)
	return from == seen && !u.host[to] && inside(u.pools, from)
}

// masqueraded matches flows to prefixes whose source is another than the client's.
type masqueraded []netip.Prefix

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m masqueraded) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return addrOf(flow.Forward.SrcIP) != addrOf(flow.Reverse.DstIP) && inside(m, addrOf(flow.Forward.DstIP))
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func inside(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// addresses are the host's own.
func (v *view) addresses() map[netip.Addr]bool {
	own := map[netip.Addr]bool{}
	for _, a := range v.addrs {
		own[a.addr] = true
	}
	return own
}

// flowsOf matches the flows of portions, by their addresses.
type flowsOf map[netip.Addr][]mapping.Portion

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, t := range []netlink.IPTuple{flow.Forward, flow.Reverse} {
		if f.match(t.SrcIP, t.SrcPort) || f.match(t.DstIP, t.DstPort) {
			return true
		}
	}
	return false
}

func (f flowsOf) match(ip net.IP, port uint16) bool {
	return slices.ContainsFunc(f[addrOf(ip)], func(p mapping.Portion) bool {
		return p.Last == 0 || p.First <= port && port <= p.Last
	})
}
