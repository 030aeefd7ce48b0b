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
	if err := deleteFlows(flows); err != nil {
		return fmt.Errorf("deleting the tracked connections of %d addresses: %w", len(flows), err)
	}
	return nil
}

func deleteFlows(such netlink.CustomConntrackFilter) error {
	if count, _ := readSysctl(filepath.Join(procNet, "netfilter", "nf_conntrack_count")); count == "" || count == "0" {
		return nil
	}
	err := retry(func() error {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, such)
		return err
	}, dumped)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil // the last two: a kernel without conntrack's netlink part
	}
	return err
}

// forgetUnmasqueraded deletes what connection tracking knows of flows that began
// while no rule masqueraded them. They would stay as they are: the kernel looks for
// a translation at a flow's first packet alone.
func forgetUnmasqueraded(pools []netip.Prefix) error {
	if len(pools) == 0 {
		return nil
	}
	if err := deleteFlows(unmasqueraded(pools)); err != nil {
		return fmt.Errorf("deleting tracked connections that are not masqueraded: %w", err)
	}
	return nil
}

// unmasqueraded matches flows from prefixes that leave with their own source.
type unmasqueraded []netip.Prefix

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (p unmasqueraded) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	a, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	return flow.Reverse.DstIP.Equal(flow.Forward.SrcIP) &&
		slices.ContainsFunc(p, func(x netip.Prefix) bool { return x.Contains(a.Unmap()) })
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
	a, _ := netip.AddrFromSlice(ip)
	return slices.ContainsFunc(f[a.Unmap()], func(p mapping.Portion) bool {
		return p.Last == 0 || p.First <= port && port <= p.Last
	})
}
