package hostnet

import (
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// forwardingPlan is how packets get from link to link.
type forwardingPlan struct {
	device []change // what the device needs before routes can lead to it
	links  []change
	// Links that forward only because natless made them: the table keeps them
	// from forwarding what is not natless's.
	opened4, opened6 map[int]bool
	raised6          bool // all links forward IPv6 only because natless made them
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
	links := append(deaf(v.deafLinks(h.plan, clients)), announcing(clients)...)
	if !h.resting {
		links = slices.Concat(links, h.forwarding4(v, f.opened4), h.forwarding6(v, clients, &f))
	}
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

func (h *Host) forwarding6(v *view, clients []link, f *forwardingPlan) (list []setting) {
	all, _ := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding))
	if h.raises(all) {
		f.raised6 = true
		return h.globalForwarding(v)
	}
	if all == yes {
		return nil
	}
	for _, l := range clients {
		s := setting{Family: "ipv6", Index: l.index, Key: keyForceForwarding, Set: yes}
		list = append(list, s)
		f.opened6[l.index] = h.opens(v, s)
	}
	return append(list, setting{Family: "ipv6", Index: h.device, Key: keyForceForwarding, Set: yes})
}

// deafLinks are the links to clients that need not hear a router: none is there,
// and a container that says it is one would become that of the host
// (CVE-2020-13401). Not where the host's own router may be among the clients, on
// the one link that it has.
func (v *view) deafLinks(p Plan, clients []link) []link {
	if p.Local {
		clients = v.these(v.clients)
	}
	carriers, uplinks := v.carriers(), v.these(v.uplinks)
	return slices.DeleteFunc(slices.Clone(clients), func(l link) bool {
		return !v.clients[l.index] || carriers[l.index] || !v.inward(l) && len(uplinks) == 0
	})
}

// deaf has links hear neither router advertisements nor redirects.
func deaf(links []link) (list []setting) {
	for _, l := range links {
		for _, key := range []string{keyAcceptRA, keyAutoconf, keyAcceptRedirects} {
			list = append(list, setting{Family: "ipv6", Index: l.index, Key: key, Set: no})
		}
		list = append(list, setting{Family: "ipv4", Index: l.index, Key: keyAcceptRedirects, Set: no})
	}
	return list
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

// clientLinks are those that clients may be behind: with Local links to clients
// that lead somewhere, and those that lead to the clients that are named, which
// may be uplinks too.
func (v *view) clientLinks(p Plan, device int) map[int]bool {
	links := v.linksOf(v.towards(p.Clients), device, route.leadsTo6)
	if p.Local {
		maps.Copy(links, v.linksOf(v.routes, device, func(r route) bool {
			return r.leadsTo6() && !slices.ContainsFunc(r.links, func(i int) bool { return !v.clients[i] })
		}))
	}
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

// towards lists the routes that packets to any part of the prefixes, which are
// sorted and apart, may take: those inside a prefix, and the longest around it
// in each table.
func (v *view) towards(prefixes []netip.Prefix) (list []route) {
	type place struct{ prefix, table int }
	around := map[place][]route{}
	for _, r := range v.routes {
		from, to := overlapping(prefixes, r.dst)
		if !r.leadsTo() || from == to {
			continue
		}
		if covers(prefixes[from], r.dst) {
			list = append(list, r)
			continue
		}
		for i := from; i < to; i++ {
			at := place{i, r.table}
			switch longest := around[at]; {
			case len(longest) == 0 || r.dst.Bits() > longest[0].dst.Bits():
				around[at] = []route{r}
			case r.dst.Bits() == longest[0].dst.Bits():
				around[at] = append(longest, r)
			}
		}
	}
	for _, longest := range around {
		list = append(list, longest...)
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

// globalForwarding raises forwarding for all links. A host that forwards does
// not hear router advertisements any more, so links that give it its own default
// route by them are first told to go on. What was 0 stays 0.
func (h *Host) globalForwarding(v *view) []setting {
	var list []setting
	for _, l := range v.sorted() {
		if l.loopback || l.index == h.device || v.clients[l.index] {
			continue
		}
		s := setting{Family: "ipv6", Index: l.index, Key: keyAcceptRA, Set: acceptRAForwarding}
		now, _ := readSysctl(sysctlPath("ipv6", l.name, keyAcceptRA))
		i := h.rec.find(s)
		if now == acceptRA && v.hearsRouter(l.index) || i >= 0 && h.rec.Settings[i].Set == s.Set { // once told, until the end
			list = append(list, s)
		}
	}
	return append(list, setting{Family: "ipv6", Key: keyForwarding, Set: yes})
}

// hearsRouter tells whether a default route by router advertisement stands on
// the link.
func (v *view) hearsRouter(index int) bool {
	return slices.ContainsFunc(v.routes, func(r route) bool {
		return r.isDefault() && r.dst.Addr().Is6() && r.protocol == unix.RTPROT_RA && slices.Contains(r.links, index)
	})
}
