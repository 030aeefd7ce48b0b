package hostnet

import (
	"maps"
	"net/netip"
	"slices"
)

// forwardingPlan is how packets get from link to link.
type forwardingPlan struct {
	device []change // what the device needs before routes can lead to it
	links  []change
	// Links that forward only because natless made them: the table keeps them
	// from forwarding what is not natless's.
	opened4, opened6 map[int]bool
}

// forwarding switches forwarding on where packets come in that natless has to
// do with: on the device and on the links of clients for IPv6, on the device
// and the links that IPv4 answers may come from for IPv4.
func (h *Host) forwarding(v *view) forwardingPlan {
	f := forwardingPlan{opened4: map[int]bool{}, opened6: map[int]bool{}}
	device := h.deviceSettings(v)
	for _, s := range device {
		f.device = append(f.device, h.want(v, s)...)
	}
	clients := v.these(v.clientLinks(h.plan, h.device))
	links := slices.Concat(h.forwarding4(v, f.opened4), h.forwarding6(v, clients, f.opened6), announcing(clients))
	for _, s := range links {
		f.links = append(f.links, h.want(v, s)...)
	}
	f.links = append(f.links, h.unwanted(v, append(device, links...))...)
	return f
}

func (h *Host) forwarding4(v *view, opened map[int]bool) (list []setting) {
	all, _ := readSysctl(sysctlPath("ipv4", allLinks, keyForwarding))
	for _, l := range v.these(v.ipv4Links(h.device)) {
		s := setting{Family: "ipv4", Index: l.index, Key: keyForwarding, Set: yes}
		list = append(list, s)
		opened[l.index] = all != yes && h.opens(v, s)
	}
	return list
}

func (h *Host) forwarding6(v *view, clients []link, opened map[int]bool) (list []setting) {
	all, _ := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding))
	if h.raises(all) {
		return h.globalForwarding(v)
	}
	if all == yes {
		return nil
	}
	for _, l := range clients {
		s := setting{Family: "ipv6", Index: l.index, Key: keyForceForwarding, Set: yes}
		list = append(list, s)
		opened[l.index] = h.opens(v, s)
	}
	return append(list, setting{Family: "ipv6", Index: h.device, Key: keyForceForwarding, Set: yes})
}

// announcing has bridges of clients tell of a new MAC address. A bridge that was
// given none has that of one of its ports, and so another when the port goes:
// clients behind the others would send to the old one until their neighbour
// entry is stale, for up to a minute (RFC 4861 7.2.6).
func announcing(clients []link) (list []setting) {
	for _, l := range clients {
		if l.kind == kindBridge {
			list = append(list, setting{Family: "ipv6", Index: l.index, Key: keyNDISCNotify, Set: yes})
		}
	}
	return list
}

// opens tells whether the setting is, or is about to become, natless's doing.
func (h *Host) opens(v *view, s setting) bool {
	name, _ := s.name(v)
	now, _ := readSysctl(sysctlPath(s.Family, name, s.Key))
	return h.rec.find(s) >= 0 || now != s.Set
}

// ipv4Links are those that IPv4 packets for natless may come in by: any that a
// route leads to.
func (v *view) ipv4Links(device int) map[int]bool {
	return v.linksOf(v.routes, device, func(r route) bool { return r.leadsTo() && r.dst.Addr().Is4() })
}

// clientLinks are those that clients may be behind: with Local any that leads
// somewhere, else those that lead to clients. Uplinks are not among them; no
// client is let in from there.
func (v *view) clientLinks(p Plan, device int) map[int]bool {
	routes := v.routes
	if !p.Local {
		routes = v.towards(p.Clients)
	}
	links := v.linksOf(routes, device, route.leadsTo6)
	maps.DeleteFunc(links, func(i int, _ bool) bool { return v.uplinks[i] })
	return links
}

// linksOf are the links that such routes lead over, but for loopback and the
// device.
func (v *view) linksOf(routes []route, device int, such func(route) bool) map[int]bool {
	links := map[int]bool{}
	for _, r := range routes {
		if !such(r) {
			continue
		}
		for _, i := range r.links {
			if i != device && !v.links[i].loopback {
				links[i] = true
			}
		}
	}
	return links
}

// towards lists the routes that packets to any part of the prefixes may take:
// those inside a prefix, and the longest around it in each table.
func (v *view) towards(prefixes []netip.Prefix) []route {
	var list []route
	for _, p := range prefixes {
		around := map[int]int{}
		for _, r := range v.routes {
			if r.leadsTo() && covers(r.dst, p) {
				around[r.table] = max(around[r.table], r.dst.Bits())
			}
		}
		for _, r := range v.routes {
			if r.leadsTo() && r.dst.Overlaps(p) && (r.dst.Bits() >= p.Bits() || r.dst.Bits() == around[r.table]) {
				list = append(list, r)
			}
		}
	}
	return list
}

// deviceSettings are those of the device itself. Where it would filter by
// reverse path strictly, it does so loosely: all its sources are routed to it,
// but policy routing may show another way first.
func (h *Host) deviceSettings(v *view) []setting {
	list := []setting{
		{Family: "ipv6", Index: h.device, Key: keyDisableIPv6, Set: no},
		{Family: "ipv4", Index: h.device, Key: keySendRedirects, Set: no},
		{Family: "ipv4", Index: h.device, Key: keyForwarding, Set: yes},
	}
	filter := setting{Family: "ipv4", Index: h.device, Key: keyRPFilter, Set: loose}
	all, _ := readSysctl(sysctlPath("ipv4", allLinks, keyRPFilter))
	own, _ := readSysctl(sysctlPath("ipv4", h.sysctlName(v), keyRPFilter))
	if max(all, own) == strict || h.rec.find(filter) >= 0 {
		list = append(list, filter)
	}
	return list
}

// raises tells whether IPv6 forwarding has to be, or was, raised globally
// because the kernel cannot do it per link.
func (h *Host) raises(all string) bool {
	if h.rec.find(setting{Family: "ipv6", Key: keyForwarding}) >= 0 {
		return true
	}
	return all != yes && !hasForceForwarding()
}

func hasForceForwarding() bool {
	_, ok := readSysctl(sysctlPath("ipv6", allLinks, keyForceForwarding))
	return ok
}

// globalForwarding first lets the links that hear router advertisements go on
// hearing them while forwarding, then raises it. What was 0 stays 0.
func (h *Host) globalForwarding(v *view) []setting {
	var list []setting
	for _, l := range v.sorted() {
		if l.loopback || l.index == h.device {
			continue
		}
		if now, _ := readSysctl(sysctlPath("ipv6", l.name, keyAcceptRA)); now == acceptRA {
			list = append(list, setting{Family: "ipv6", Index: l.index, Key: keyAcceptRA, Set: acceptRAForwarding})
		}
	}
	return append(list, setting{Family: "ipv6", Key: keyForwarding, Set: yes})
}
