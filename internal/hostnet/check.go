package hostnet

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Report is what a plan would do to this host, in words.
type Report struct {
	Device    string     `json:"device"`
	MTU       int        `json:"mtu"`
	Actions   []string   `json:"actions"`   // in the order in which they would be done
	Conflicts []string   `json:"conflicts"` // why it would be refused
	Warnings  []string   `json:"warnings"`
	Firewalls []Firewall `json:"firewalls"` // of others, that stand in the way
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
	section("would do", r.Actions)
	section("stands in the way", r.Conflicts)
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
	r := Report{
		Device: p.Device, MTU: h.mtu, Actions: []string{"create TUN device " + p.Device},
		Conflicts: []string{}, Warnings: []string{}, Firewalls: []Firewall{}, // [] in JSON
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
	clashes := h.targets.conflicts(v.beside(p.Hosts), h.device)
	if p.Manage {
		r.Conflicts = append(r.Conflicts, h.basis.excess()...)
		r.Conflicts = append(r.Conflicts, clashes...)
		r.Warnings = append(r.Warnings, h.warnings(v, p.Clients)...)
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
func (h *Host) warnings(v *view, clients []netip.Prefix) []string {
	var list []string
	warn := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	spec := h.tableSpec(v, forwardingPlan{})
	switch {
	case len(spec.Masquerade) > 0:
		warn("masquerading %s switches connection tracking on in this network namespace", joined(spec.Masquerade))
	case spec.Stateful && len(spec.Uplinks) > 0:
		warn("telling answers from new connections switches connection tracking on in this network namespace")
	}
	if all, _ := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding)); all != yes && !hasForceForwarding() {
		warn("this kernel forwards IPv6 on all links or none (per link from Linux 6.17): " +
			"it would be raised for all, and stay so on exit")
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
	return append(list, v.shutOut(clients)...)
}

// shutOut names the clients that will not get in because they are beyond an
// uplink.
func (v *view) shutOut(clients []netip.Prefix) []string {
	var list []string
	for _, c := range covering(clients) {
		over, inside := map[int]bool{}, false
		for _, r := range v.towards([]netip.Prefix{c}) {
			for _, i := range r.links {
				over[i] = over[i] || v.uplinks[i]
				inside = inside || !v.uplinks[i]
			}
		}
		if names := v.names(over); !inside && len(names) > 0 {
			list = append(list, fmt.Sprintf("clients %s are reached over %s, which carries a default route: "+
				"no IPv6 is let in from there", c, strings.Join(names, ", ")))
		}
	}
	return list
}

// Local lists the IPv6 prefixes that count as "local" at this moment: the
// host's own addresses and what it reaches over links, other than the device
// of that name, that carry no default route of either family in any table.
func Local(device string) ([]netip.Prefix, error) {
	v, err := look()
	if err != nil {
		return nil, err
	}
	return slices.Clip(v.local(v.device(device))), nil
}
