package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Protocol marks natless's routes; `ip route show proto 64` lists them. No
// other program of iproute2's rt_protos has it.
const Protocol = 64

// Metrics of natless's routes. The blackhole beside each route to the device
// takes over when the device goes, so that what is meant for natless never
// follows the default route out.
const (
	metricDevice    = 64
	metricBlackhole = 6464
)

func isOurs(r route) bool { return isDeviceRoute(r) || isBlackhole(r) }

func isDeviceRoute(r route) bool {
	return r.protocol == Protocol && r.table == unix.RT_TABLE_MAIN &&
		r.kind == unix.RTN_UNICAST && r.metric == metricDevice
}

func isBlackhole(r route) bool {
	return r.protocol == Protocol && r.table == unix.RT_TABLE_MAIN &&
		r.kind == unix.RTN_BLACKHOLE && r.metric == metricBlackhole
}

type routeSet struct{ device, blackholes []change }

// routeChanges lists which of natless's routes to drop and to add. Old ones
// lead to another device of the name.
func (h *Host) routeChanges(v *view) (old []change, drop, add routeSet) {
	wanted, before := h.targets.routed(v), h.wanted
	h.wanted = wanted
	onDevice, blackholed := map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
	for _, r := range v.routes {
		if !isOurs(r) {
			continue
		}
		_, found := slices.BinarySearchFunc(wanted, r.dst, comparePrefix)
		stale := !found
		switch {
		case isBlackhole(r) && stale:
			drop.blackholes = append(drop.blackholes, routeDrop(v, r))
		case isBlackhole(r):
			blackholed[r.dst] = true
		case !slices.Equal(r.links, []int{h.device}):
			old = append(old, routeDrop(v, r))
		case stale:
			drop.device = append(drop.device, routeDrop(v, r))
		default:
			onDevice[r.dst] = true
		}
	}
	for _, p := range wanted {
		if !blackholed[p] {
			add.blackholes = append(add.blackholes, h.routeAdd(p, 0, before, fmt.Sprintf("add blackhole route %s metric %d", p, metricBlackhole)))
		}
		if !onDevice[p] {
			text := fmt.Sprintf("add route %s dev %s metric %d", p, h.plan.Device, metricDevice)
			add.device = append(add.device, h.routeAdd(p, h.device, before, text))
		}
	}
	return old, drop, add
}

// routeAdd never replaces: a route of the same prefix and metric is another's.
// Others removed it if it was wanted before too.
func (h *Host) routeAdd(p netip.Prefix, device int, before []netip.Prefix, text string) change {
	_, again := slices.BinarySearchFunc(before, p, comparePrefix)
	return change{key: text, text: text, again: h.settled && again, do: func() error {
		r := newNetlinkRoute(p, device)
		err := netlink.RouteAdd(r)
		if errors.Is(err, unix.EEXIST) {
			return errors.New("another program has put a route of the same prefix and metric there")
		}
		return err
	}}
}

// IPNet is a prefix as package netlink takes it.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func newNetlinkRoute(p netip.Prefix, device int) *netlink.Route {
	r := &netlink.Route{
		Dst:      IPNet(p),
		Protocol: Protocol, Table: unix.RT_TABLE_MAIN,
		Type: unix.RTN_BLACKHOLE, Priority: metricBlackhole,
	}
	if device != 0 {
		r.Type, r.Priority, r.LinkIndex, r.Scope = unix.RTN_UNICAST, metricDevice, device, netlink.SCOPE_LINK
	}
	return r
}

func routeDrop(v *view, r route) change {
	text := "remove " + v.describe(r)
	return change{key: text, text: text, do: func() error { return removeRoute(r) }}
}

func removeRoute(r route) error {
	device := 0
	if isDeviceRoute(r) && len(r.links) == 1 {
		device = r.links[0]
	}
	err := netlink.RouteDel(newNetlinkRoute(r.dst, device))
	if errors.Is(err, unix.ESRCH) {
		return nil // gone with its device in the meantime
	}
	return err
}

func removeRoutes(v *view, which func(route) bool) (done []string, err error) {
	var errs []error
	for _, r := range v.routes {
		if !which(r) {
			continue
		}
		line := "removed " + v.describe(r)
		beforeChange(line)
		if err := removeRoute(r); err != nil {
			errs = append(errs, fmt.Errorf("removing %s: %w", v.describe(r), err))
			continue
		}
		done = append(done, line)
	}
	return done, errors.Join(errs...)
}
