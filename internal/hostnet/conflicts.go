package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/inet"
)

// ErrConflict is what errors of Prepare and Update wrap when the host already
// uses for something else what the plan wants.
var ErrConflict = errors.New("conflict with the host")

// conflictError names what stands in the way, a line for each.
type conflictError []string

func (e conflictError) Error() string      { return strings.Join(e, "\n") }
func (conflictError) Is(target error) bool { return target == ErrConflict }

// conflicts names every prefix of a list from covering that the host already
// uses for something else, and what for. Taken is all that the plan wants.
//
// An address of the host inside a prefix would become unreachable, and packets
// from it are dropped on input. A foreign route inside a prefix, or equal to
// it, would take packets from natless. A prefix inside the subnet of a link
// would need neighbours to be told, by proxy ARP, and takes addresses that are
// theirs. An IPv4 prefix inside any other route takes addresses that are in
// use elsewhere; for IPv6 that is the ordinary case of a pref64 cut from a
// site's own prefix. Lying inside a default route, inside a route that leads
// nowhere, or inside one for zeroconf addresses, is no conflict.
func conflicts(list, taken []netip.Prefix, v *view, device int) []string {
	culprits := map[int]string{} // by place in the list
	for _, a := range v.addrs {
		from, to := overlapping(list, netip.PrefixFrom(a.addr, a.addr.BitLen()))
		for i := from; i < to && culprits[i] == ""; i++ {
			culprits[i] = v.describeAddress(a)
		}
	}
	for _, r := range v.routes {
		if isOurs(r) {
			continue
		}
		for from, to := overlapping(list, r.dst); from < to; from++ {
			if culprits[from] == "" && v.clashes(list[from], r, device) {
				culprits[from] = v.describe(r)
			}
		}
	}
	var found []string
	for _, i := range slices.Sorted(maps.Keys(culprits)) {
		text := fmt.Sprintf("%s: overlaps %s", list[i], culprits[i])
		if free, ok := v.propose(list[i], taken, device); ok {
			text += fmt.Sprintf("; %s is free", free)
		}
		found = append(found, text)
	}
	return found
}

// beside is the view without what lies in prefixes that are hosts' own.
func (v *view) beside(hosts []netip.Prefix) *view {
	if len(hosts) == 0 {
		return v
	}
	within := func(p netip.Prefix) bool {
		return slices.ContainsFunc(hosts, func(q netip.Prefix) bool { return covers(q, p) })
	}
	rest := *v
	rest.addrs = slices.DeleteFunc(slices.Clone(v.addrs), func(a address) bool { return within(netip.PrefixFrom(a.addr, a.addr.BitLen())) })
	rest.routes = slices.DeleteFunc(slices.Clone(v.routes), func(r route) bool { return within(r.dst) })
	return &rest
}

// deviceConflicts names what keeps natless from the device it wants, before it
// has it.
func deviceConflicts(p Plan, v *view) []string {
	device := v.byName(p.Device)
	switch {
	case device.index == 0:
		return nil
	case device.kind != kindTUN:
		return []string{fmt.Sprintf("device %s: a link of that name exists, of type %s", p.Device, device.kind)}
	case device.queues > 0:
		return []string{fmt.Sprintf("device %s: another program holds it open", p.Device)}
	}
	return nil
}

// culprit describes the first use of a prefix that stands in natless's way, or
// is empty.
func (v *view) culprit(want netip.Prefix, device int) string {
	for _, a := range v.addrs {
		if want.Contains(a.addr) {
			return v.describeAddress(a)
		}
	}
	for _, r := range v.routes {
		if v.clashes(want, r, device) {
			return v.describe(r)
		}
	}
	return ""
}

func (v *view) describeAddress(a address) string {
	return fmt.Sprintf("address %s of %s, whose packets go to the host itself", a.addr, v.links[a.index].name)
}

func (v *view) clashes(want netip.Prefix, r route, device int) bool {
	if isOurs(r) || !r.dst.Overlaps(want) {
		return false
	}
	if r.table == unix.RT_TABLE_LOCAL {
		return r.kind == unix.RTN_LOCAL
	}
	if len(r.links) == 1 && r.links[0] == device {
		return false // the operator's own route to the device
	}
	if r.kind == unix.RTN_MULTICAST || r.kind == unix.RTN_BROADCAST || r.kind == unix.RTN_ANYCAST {
		return false
	}
	if covers(want, r.dst) {
		return true
	}
	if r.isZeroconf() {
		return false
	}
	if r.kind != unix.RTN_UNICAST || r.isDefault() {
		return false
	}
	return !r.gateway || want.Addr().Is4()
}

// zeroconf is where hosts without DHCP number themselves (RFC 3927). Network
// managers put a route to all of it on some link, whether or not anybody there
// has such an address. Natless's, being longer, comes first.
var zeroconf = netip.MustParsePrefix("169.254.0.0/16")

func (r route) isZeroconf() bool { return r.dst == zeroconf && !r.gateway }

// shadowed names the zeroconf routes that natless takes a part of.
func (v *view) shadowed(p Plan) (list []string) {
	for _, r := range v.routes {
		from, to := overlapping(p.IPv4, r.dst)
		if r.isZeroconf() && r.leadsTo() && from < to {
			list = append(list, fmt.Sprintf("%s: hosts without DHCP there that gave themselves an address in %s are not reached any more",
				v.describe(r), joined(p.IPv4[from:to])))
		}
	}
	return list
}

// poolRanges are where a default pool may go, the best first: addresses that
// mean nothing beyond a link or network (inet.Link, inet.Network).
var poolRanges = []netip.Prefix{
	netip.MustParsePrefix("169.254.64.0/18"), // clear of what clouds use at both ends of 169.254/16
	netip.MustParsePrefix("198.18.0.0/15"),   // benchmarking: in use the least of all
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("10.0.0.0/8"),
}

// propose finds a free prefix of the same length for a pool of private
// addresses. Others were chosen because they are those addresses and no others.
func (v *view) propose(want netip.Prefix, taken []netip.Prefix, device int) (netip.Prefix, bool) {
	private := slices.ContainsFunc(inet.Of(inet.IPv4, inet.Link, inet.Network), func(b inet.Block) bool { return b.Prefix.Overlaps(want) })
	if !private || want.Bits() > 30 || !want.Addr().Is4() {
		return netip.Prefix{}, false
	}
	for _, r := range poolRanges {
		if p, ok := v.firstFree(r, want.Bits(), taken, device); ok {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// enoughTries bounds the search in ranges that are full of small routes.
const enoughTries = 256

func (v *view) firstFree(r netip.Prefix, bits int, taken []netip.Prefix, device int) (netip.Prefix, bool) {
	if bits < r.Bits() {
		return netip.Prefix{}, false
	}
	next := r.Addr()
	for range enoughTries {
		p := netip.PrefixFrom(next, bits)
		if !r.Contains(next) {
			break
		}
		if !slices.ContainsFunc(taken, p.Overlaps) && v.culprit(p, device) == "" {
			return p, true
		}
		b := p.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+1<<(32-bits))
		next = netip.AddrFrom4(b)
	}
	return netip.Prefix{}, false
}
