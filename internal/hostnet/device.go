package hostnet

import (
	"fmt"
	"strconv"

	"github.com/vishvananda/netlink"
)

const (
	smallestMTU = 1280  // IPv6 does not work below (RFC 8200 section 5)
	usualMTU    = 1500  // what a host without other links gets
	largestMTU  = 65535 // what an IPv4 packet and a TUN device can hold

	addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
)

// ChooseMTU is the largest MTU in bytes among the host's links, but for
// loopback and those named, at least 1500: so that the device is never what
// makes a path narrow.
func ChooseMTU(except ...string) (int, error) {
	v, err := look()
	if err != nil {
		return 0, err
	}
	return v.chooseMTU(except...), nil
}

func (v *view) chooseMTU(except ...string) int {
	mtu := usualMTU
	for _, l := range v.links {
		if l.loopback || len(except) > 0 && l.name == except[0] {
			continue
		}
		mtu = max(mtu, l.mtu)
	}
	return min(mtu, largestMTU)
}

func resolveMTU(p Plan, v *view) int {
	if p.MTU == 0 {
		return v.chooseMTU(p.Device)
	}
	return max(p.MTU, smallestMTU)
}

// deviceChanges gives the device its name back, sets its MTU, which below that
// of IPv6 leaves it without any setting of IPv6, keeps the kernel from giving it
// a link-local address, and brings it up.
func (h *Host) deviceChanges(v *view) []change {
	dev := h.deviceLink(v)
	var list []change
	add := func(what string, do func(netlink.Link) error) {
		list = append(list, change{
			key: "device " + what, text: fmt.Sprintf("set link %s %s", dev.name, what), again: h.settled,
			do: func() error { return h.setDevice(v, dev, do) },
		})
	}
	if dev.name != h.plan.Device {
		add("name "+h.plan.Device, func(l netlink.Link) error { return netlink.LinkSetName(l, h.plan.Device) })
	}
	if dev.mtu != h.mtu {
		add(fmt.Sprintf("mtu %d", h.mtu), func(l netlink.Link) error { return netlink.LinkSetMTU(l, h.mtu) })
	}
	if mode, ok := h.addrGenMode(v); !ok || mode != strconv.Itoa(addrGenModeNone) {
		add("addrgenmode none", func(l netlink.Link) error {
			return netlink.LinkSetIP6AddrGenMode(l, addrGenModeNone)
		})
	}
	if !dev.up {
		add("up", netlink.LinkSetUp)
	}
	return list
}

// deviceLink is the device, or what it will be when it is not there yet.
func (h *Host) deviceLink(v *view) link {
	if l, ok := v.links[h.device]; ok {
		return l
	}
	return link{index: missing, name: h.plan.Device, mtu: usualMTU}
}

// setDevice writes down how the device was before it is touched the first time.
func (h *Host) setDevice(v *view, dev link, do func(netlink.Link) error) error {
	if h.rec.Was == nil || h.rec.Was.Index != dev.index {
		if err := h.leaveDevice(v); err != nil {
			return err
		}
		mode, _ := h.addrGenMode(v)
		h.rec.Was = &deviceState{Index: dev.index, MTU: dev.mtu, Up: dev.up, AddrGenMode: mode}
		if err := h.rec.save(); err != nil {
			return err
		}
	}
	l, err := netlink.LinkByIndex(dev.index)
	if err != nil {
		return err
	}
	return do(l)
}

// leaveDevice puts back the device of an earlier run, if it was another.
func (h *Host) leaveDevice(v *view) error {
	_, err := undoDevice(h.rec, v)
	return err
}

// addrGenMode is how the device gets its link-local address, by number.
func (h *Host) addrGenMode(v *view) (mode string, ok bool) {
	return readSysctl(sysctlPath("ipv6", h.sysctlName(v), "addr_gen_mode"))
}

// sysctlName is where the device's sysctls are, or those that it will start
// with.
func (h *Host) sysctlName(v *view) string {
	if l, ok := v.links[h.device]; ok {
		return l.name
	}
	return newLinks
}

// undoDevice gives an operator's device its state back. Natless's own is gone,
// or will be when it is closed.
func undoDevice(rec *record, v *view) ([]string, error) {
	was := rec.Was
	if was == nil {
		return nil, nil
	}
	if _, ok := v.links[was.Index]; !ok {
		return nil, nil
	}
	l, err := netlink.LinkByIndex(was.Index)
	if err != nil {
		return nil, fmt.Errorf("putting device %s back: %w", rec.Device, err)
	}
	beforeChange("put back " + rec.Device)
	if !was.Up {
		err = netlink.LinkSetDown(l)
	}
	if err == nil {
		err = netlink.LinkSetMTU(l, was.MTU)
	}
	if mode, e := strconv.Atoi(was.AddrGenMode); err == nil && e == nil {
		err = netlink.LinkSetIP6AddrGenMode(l, mode)
	}
	if err != nil {
		return nil, fmt.Errorf("putting device %s back: %w", rec.Device, err)
	}
	return []string{fmt.Sprintf("put link %s back as it was", l.Attrs().Name)}, nil
}
