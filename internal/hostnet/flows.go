package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetFlows deletes what connection tracking knows of flows from or to these
// IPv4 addresses, on either side of a translation, so that whoever has an
// address next does not get the last one's answers. However many addresses
// there are, the kernel's table is read once. Where connections are not tracked
// there is nothing to do, and where natless may not, nothing to be done.
func ForgetFlows(addrs []netip.Addr) error {
	if count, _ := readSysctl(filepath.Join(procNet, "netfilter", "nf_conntrack_count")); count == "" || count == "0" {
		return nil
	}
	flows := flowsOf{}
	for _, a := range addrs {
		flows[a] = true
	}
	err := retry(func() error {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flows)
		return err
	}, dumped)
	switch {
	case err == nil, errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil // the last two: a kernel without conntrack's netlink part
	}
	return fmt.Errorf("deleting the tracked connections of %d addresses: %w", len(addrs), err)
}

// flowsOf matches the flows of addresses.
type flowsOf map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && f[a.Unmap()] {
			return true
		}
	}
	return false
}
