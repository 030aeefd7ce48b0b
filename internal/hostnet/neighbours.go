package hostnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/mapping"
)

// What natless translates for a client comes out of the device, so that a rule of
// the host about the link of that client does not see it. Where the host would
// not let clients reach each other, or itself, they are not to do it through
// natless. Here the host is asked whether it would. What cannot be evaluated
// counts as no.

// around is what the mapping needs to know of the links of clients.
func (h *Host) around(v *view) mapping.Around {
	links := v.these(v.clientLinks(h.plan, h.device))
	a := mapping.Around{Ways: v.ways(links)}
	if h.plan.Guarded {
		a.Meet, a.All = h.meeting(v, links)
		a.Host = !v.shutsHost(links)
	}
	return a
}

// nowhere is the link of what is reached some other way than over one link to
// clients.
const nowhere = -1

// ways are the host's own IPv6 addresses, and how it reaches what is behind links.
func (v *view) ways(links []link) []mapping.Way {
	found := map[netip.Prefix]mapping.Way{}
	add := func(r route, link int) {
		w := mapping.Way{Prefix: r.dst, Link: link, Router: r.gateway || link == nowhere}
		if other, there := found[r.dst]; there && other != w {
			w.Link, w.Router = nowhere, true // by tables or metrics: nobody knows
		}
		found[r.dst] = w
	}
	behind := func(r route) bool {
		return len(r.links) == 1 && slices.ContainsFunc(links, func(l link) bool { return l.index == r.links[0] })
	}
	var inside []netip.Prefix
	for _, r := range v.routes {
		if r.leadsTo6() && !r.isDefault() && behind(r) {
			add(r, r.links[0])
			inside = append(inside, r.dst)
		}
	}
	inside = covering(inside)
	for _, r := range v.routes {
		if r.leadsTo6() && !r.isDefault() && !behind(r) && contained(inside, r.dst) {
			add(r, nowhere)
		}
	}
	for _, a := range v.addrs {
		if a.addr.Is6() && a.addr.IsGlobalUnicast() {
			p := netip.PrefixFrom(a.addr, 128)
			found[p] = mapping.Way{Prefix: p}
		}
	}
	list := make([]mapping.Way, 0, len(found))
	for _, w := range found {
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b mapping.Way) int { return comparePrefix(a.Prefix, b.Prefix) })
	return list
}

// pairwise is up to how many links each is compared with each: that is done anew
// at every change of the host.
const pairwise = 32

// meeting lists the links between which, and on which, IPv6 passes without
// natless, or tells that it does between all. Between links it does where this
// host forwards by somebody else's will, and no rule may drop any of it.
func (h *Host) meeting(v *view, links []link) (pairs [][2]int, all bool) {
	rules := v.foreign()
	if rules.err != nil || slices.ContainsFunc(rules.links, (*foreign).mayDrop) {
		return nil, false
	}
	chains := rules.at("ip", nftables.ChainHookPrerouting, nftables.ChainHookForward)
	forwards := h.forwardsAnyway(v, links) && !routesByLink()
	if forwards && !slices.ContainsFunc(chains, (*foreign).mayDrop) {
		return nil, true
	}
	passes := func(a, b link) bool {
		return !slices.ContainsFunc(chains, func(f *foreign) bool { return !f.passes(way{in: a.name, out: b.name}) })
	}
	for i, a := range links {
		seen := slices.ContainsFunc(v.bridgesSeen(), func(b linkRef) bool { return b.index == a.index })
		if a.neighbourly() && (!seen || passes(a, a)) || forwards && passes(a, a) {
			pairs = append(pairs, [2]int{a.index, a.index})
		}
		if !forwards || len(links) > pairwise {
			continue
		}
		for _, b := range links[i+1:] {
			if passes(a, b) && passes(b, a) {
				pairs = append(pairs, [2]int{a.index, b.index})
			}
		}
	}
	return pairs, false
}

// neighbourly tells whether those on the link reach each other without this host.
// Of a network of cables and radio, where others may keep them apart, nobody knows.
func (l link) neighbourly() bool {
	return l.kind == kindVeth || l.kind == kindBridge && bridgesAll(l)
}

// bridgesAll tells whether a bridge passes packets between all of its ports.
func bridgesAll(l link) bool {
	found, err := netlink.LinkByIndex(l.index)
	if err != nil {
		return false
	}
	bridge, ok := found.(*netlink.Bridge)
	if !ok || bridge.VlanFiltering != nil && *bridge.VlanFiltering {
		return false
	}
	var links []netlink.Link
	if err := retry(func() (err error) { links, err = netlink.LinkList(); return }, dumped); err != nil {
		return false
	}
	return !slices.ContainsFunc(links, func(port netlink.Link) bool {
		if port.Attrs().MasterIndex != l.index {
			return false
		}
		info, err := netlink.LinkGetProtinfo(port)
		return err != nil || info.Isolated
	})
}

// forwardsAnyway reports whether IPv6 is forwarded between links of clients, and
// not because natless wants it.
func (h *Host) forwardsAnyway(v *view, links []link) bool {
	if all, _ := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding)); all == yes {
		return h.rec.find(setting{Family: "ipv6", Key: keyForwarding}) < 0
	}
	return len(links) > 0 && !slices.ContainsFunc(links, func(l link) bool {
		return h.opens(v, setting{Family: "ipv6", Index: l.index, Key: keyForceForwarding, Set: yes})
	})
}

// routesByLink tells whether the way of a packet may depend on the link that it
// comes in by.
func routesByLink() bool {
	rules, err := netlink.RuleList(unix.AF_INET6)
	return err != nil || slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.IifName != "" })
}

// shutsHost reports whether clients are to be kept from the host's own IPv4
// addresses. They may reach them where this host takes all that comes from their
// links, and where it treats all packets alike, whoever they come from: then the
// same rules meet what comes out of the device. Rules of IPv6 alone, which that is
// past, must drop nothing; but ufw's are the same for both.
func (v *view) shutsHost(links []link) bool {
	rules := v.foreign()
	if rules.err != nil || slices.ContainsFunc(rules.links, (*foreign).mayDrop) {
		return true
	}
	chains := rules.at("", nftables.ChainHookPrerouting, nftables.ChainHookInput)
	shuts := func(l link) bool {
		return slices.ContainsFunc(chains, func(f *foreign) bool { return !f.passes(way{in: l.name}) })
	}
	return slices.ContainsFunc(links, shuts) && slices.ContainsFunc(chains, (*foreign).chooses)
}

// mayDrop reports whether some packet may end in the chain.
func (f *foreign) mayDrop() bool {
	return f.drop || f.some(rule.ends)
}

// ends reports whether packets may end at a rule.
func (r rule) ends() bool {
	goesOn := []expr.VerdictKind{expr.VerdictAccept, expr.VerdictContinue, expr.VerdictReturn, expr.VerdictJump, expr.VerdictGoto, expr.VerdictBreak}
	return r.unknown || !slices.Contains(goesOn, r.verdict)
}

// passes reports whether every packet of such a way passes the chain.
func (f *foreign) passes(w way) bool {
	switch f.certain(f.chain, w) {
	case expr.VerdictAccept:
		return true
	case expr.VerdictReturn:
		return !f.drop
	}
	return false
}

// certain is what is certain of all packets of a way in a chain: that they are
// accepted, that they are or leave it (VerdictReturn), or nothing (VerdictDrop).
func (f *foreign) certain(chain string, w way) expr.VerdictKind {
	best := expr.VerdictAccept // VerdictReturn where some have left
	for _, r := range f.rules(chain) {
		switch leads := r.verdict == expr.VerdictJump || r.verdict == expr.VerdictGoto; {
		case !r.in.fits(w.in) || !r.out.fits(w.out):
		case r.ends():
			return expr.VerdictDrop
		case r.verdict == expr.VerdictAccept && !r.more:
			return best
		case r.verdict == expr.VerdictReturn:
			if best = expr.VerdictReturn; !r.more {
				return best
			}
		case leads:
			end := f.certain(r.to, w)
			if end == expr.VerdictDrop {
				return end
			}
			if end == expr.VerdictReturn && r.verdict == expr.VerdictGoto {
				best = end
			}
			if !r.more && (end == expr.VerdictAccept || r.verdict == expr.VerdictGoto) {
				return best
			}
		}
	}
	return expr.VerdictReturn
}

// chooses reports whether it may depend on whom a packet comes from what becomes
// of it in a chain.
func (f *foreign) chooses() bool {
	if f.family == "ip6" && f.owner() != ufw && f.mayDrop() {
		return true
	}
	return f.some(func(r rule) bool {
		loopback := r.in == linkMatch{name: "lo"} // which no client's is
		return r.unread || r.byLink || r.in != (linkMatch{}) && !loopback || r.byHost && f.family != "ip"
	})
}

// some reports whether there is such a rule in the chain or in those that it
// leads to. Where a map may lead anywhere, those are all of the table.
func (f *foreign) some(such func(rule) bool) bool {
	seen := map[string]bool{}
	var in func(chain string) bool
	in = func(chain string) bool {
		if seen[chain] {
			return false
		}
		seen[chain] = true
		return slices.ContainsFunc(f.rules(chain), func(r rule) bool {
			return such(r) || r.to != "" && in(r.to) || r.unknown && slices.ContainsFunc(f.chains, in)
		})
	}
	return in(f.chain)
}

// foreign are the chains of others, read once for a view.
func (v *view) foreign() *foreigns {
	if v.rules == nil {
		v.rules = readForeign()
	}
	return v.rules
}

// HostShut reports whether clients are kept from the host's own IPv4 addresses.
func (h *Host) HostShut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.table.HostShut
}

// reach says what clients can reach under a plan that they could not before, and
// what is kept from them.
func (h *Host) reach(v *view) []string {
	a := h.around(v)
	var on []string
	for _, pair := range a.Meet {
		if one, other := v.links[pair[0]].name, v.links[pair[1]].name; one == other {
			on = append(on, "those on "+one)
		} else {
			on = append(on, "those on "+one+" and "+other)
		}
	}
	others := "each other by IPv4 addresses: "
	switch {
	case h.plan.Apart:
		others += "no, by hairpin"
	case !h.plan.Guarded:
		others += "all of them, by hairpin, whatever rules say about their links"
	case a.All:
		others += "all of them, for this host forwards IPv6 and no rule may drop any of it"
	case len(on) > 0:
		others += strings.Join(on, ", ") + ", for this host would let them"
	default:
		others += "no, for this host would not let them, as far as can be told; hairpin = \"intrinsic\" lets all"
	}
	host := fmt.Sprintf("this host's own IPv4 addresses: as its rules let in what comes by %s", h.plan.Device)
	if h.plan.Guarded && !a.Host {
		host = "this host's own IPv4 addresses: no, for its rules may ask where packets come from; hairpin = \"intrinsic\" opens them"
	}
	return []string{others, host, fmt.Sprintf("other IPv4 hosts, over %s: as rules let pass what comes by %s",
		strings.Join(v.names(v.ipv4Links(h.device)), ", "), h.plan.Device)}
}
