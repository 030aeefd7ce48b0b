package hostnet

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Report is what a plan would do to this host, in words.
type Report struct {
	Device    string     `json:"device"`
	MTU       int        `json:"mtu"`
	Actions   []string   `json:"actions"`   // in the order in which they would be done
	Conflicts []string   `json:"conflicts"` // why it would be refused
	Warnings  []string   `json:"warnings"`
	Firewalls []Firewall `json:"firewalls"` // of others, that stand in the way
	Links     []LinkRole `json:"links"`     // and what they count as
	Reach     []string   `json:"reach"`     // what clients can reach that they could not before
}

// String is the report for people, one line for each of its points but for the
// table's text.
func (r Report) String() string {
	var b strings.Builder
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		b.WriteString(title + ":\n")
		for _, l := range lines {
			b.WriteString("  " + strings.ReplaceAll(l, "\n", "\n  ") + "\n")
		}
	}
	var links []string
	for _, l := range r.Links {
		links = append(links, fmt.Sprintf("%s: %s: %s", l.Link, l.Role, l.Why))
	}
	section("would do", r.Actions)
	section("stands in the way", r.Conflicts)
	section("links", links)
	section("what clients can reach that they could not before", r.Reach)
	section("to know", r.Warnings)
	return b.String()
}

// Check tells exactly what Prepare and Attach would do on this host, and what
// stands in the way. It changes nothing.
func Check(p Plan) (Report, error) {
	key, err := namespaceKey()
	if err != nil {
		return Report{}, err
	}
	rec, err := readRecord(key)
	if err != nil {
		return Report{}, err
	}
	v, err := look()
	if err != nil {
		return Report{}, err
	}
	rec.adopt()
	running := Running()
	h := &Host{mtu: resolveMTU(p, v), rec: rec, device: v.device(p.Device)}
	h.aim(p)
	v.assign(h.plan, h.device, rec.Uplinks)
	r := Report{
		Device: p.Device, MTU: h.mtu, Actions: []string{"create TUN device " + p.Device},
		Conflicts: []string{}, Warnings: []string{}, Firewalls: []Firewall{}, Links: v.roles, Reach: []string{}, // [] in JSON
	}
	if rec.damage != nil {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the record of what natless changed here is damaged (%v): it would be set aside", rec.damage))
		r.Warnings = append(r.Warnings, v.unknown()...)
	}
	if h.device != missing {
		r.Actions[0] = "use the existing TUN device " + p.Device
	}
	for _, c := range h.changes(v) {
		r.Actions = append(r.Actions, c.text)
	}
	if running == nil {
		r.Conflicts = append(r.Conflicts, deviceConflicts(p, v)...)
	}
	r.Firewalls = append(r.Firewalls, firewalls(v, p)...)
	toOpen := opens(p, r.Firewalls)
	r.Conflicts = append(r.Conflicts, unopenable(toOpen)...)
	clashes := h.targets.conflicts(v, h.device)
	if p.Manage {
		r.Conflicts = append(r.Conflicts, h.basis.excess()...)
		r.Conflicts = append(r.Conflicts, clashes...)
		r.Warnings = append(r.Warnings, h.warnings(v)...)
		r.Reach = h.reach(v)
	} else {
		r.Warnings = append(r.Warnings, clashes...)
	}
	if running != nil {
		r.Warnings = append(r.Warnings, running.Error()+": a second would be refused")
	} else if rec.Was != nil || len(rec.Settings) > 0 || len(rec.Opened) > 0 {
		r.Warnings = append(r.Warnings, "what an earlier natless left here would be taken over")
	}
	for _, f := range r.Firewalls {
		if slices.Contains(toOpen, f.opening) {
			continue // an action opens it
		}
		r.Warnings = append(r.Warnings, f.String())
	}
	return r, nil
}

// warnings are what is worth knowing before natless manages this host.
func (h *Host) warnings(v *view) []string {
	var list []string
	warn := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	spec := h.tableSpec(v, forwardingPlan{})
	switch {
	case len(spec.Masquerade) > 0:
		warn("masquerading %s switches connection tracking on in this network namespace", joined(spec.Masquerade))
	case spec.Stateful:
		warn("telling answers from new connections switches connection tracking on in this network namespace")
	}
	if all, _ := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding)); all != yes && !hasForceForwarding() {
		warn("this kernel forwards IPv6 on all links or none (per link from Linux 6.17): " +
			"it would be raised for all, pass nothing but natless's packets, and be lowered on exit")
	}
	if _, ok := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding)); !ok {
		warn("this kernel has no IPv6")
	}
	if conn, err := nftables.New(); err != nil {
		warn("nftables cannot be reached: %v", err)
	} else if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		warn("nftables cannot be read: %v", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		warn("no TUN device can be opened: %v", err)
	}
	return append(list, v.doubts(h.plan)...)
}

// Doubtful says of which links natless does not know what they lead to.
func (h *Host) Doubtful() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.doubtful
}

// doubts are what is not known of the links and keeps clients out, the links
// named that are not there, and what natless takes from others.
func (v *view) doubts(p Plan) (list []string) {
	var closed []string
	for _, r := range v.roles {
		if r.Why == noUplinkKnown {
			closed = append(closed, r.Link)
		}
	}
	if len(closed) > 0 {
		list = append(list, fmt.Sprintf("no uplink is known, so that no client is let in over %s: they do not count as leading to clients "+
			"until some link carries a default route; or name links in network.uplinks or network.client_links", strings.Join(closed, ", ")))
	}
	for _, r := range v.routes {
		if r.isDefault() && r.protocol == unix.RTPROT_RA && slices.ContainsFunc(r.links, func(i int) bool { return v.clients[i] && !v.carriers()[i] }) {
			list = append(list, fmt.Sprintf("%s: a link to clients has made itself this host's router: remove the route, "+
				"or name the link in network.uplinks if it is none to clients", v.describe(r)))
		}
	}
	list = append(list, v.shadowed(p)...)
	for _, name := range slices.Concat(p.Uplinks, p.ClientLinks) {
		if v.byName(name).index == 0 {
			list = append(list, fmt.Sprintf("link %s, which the configuration names, is not there", name))
		}
	}
	return list
}

// Local lists the IPv6 prefixes that count as "local" at this moment under a
// plan: the host's own addresses and what it reaches over links to clients.
func Local(p Plan) ([]netip.Prefix, error) {
	key, err := namespaceKey()
	if err != nil {
		return nil, err
	}
	rec, err := readRecord(key)
	if err != nil {
		return nil, err
	}
	v, err := look()
	if err != nil {
		return nil, err
	}
	v.assign(p, v.device(p.Device), rec.Uplinks)
	return slices.Clip(v.local()), nil
}
