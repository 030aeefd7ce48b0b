package hostnet

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Role says what a link leads to. From links to clients alone may strangers to
// the plan use natless. Of a link that nothing is known of yet, as of an uplink
// before its DHCP lease, the guard thinks what is safe: that it is none.
type Role string

// The roles of links.
const (
	RoleUplink  Role = "uplink"  // to others
	RoleClient  Role = "client"  // to clients
	RoleUnknown Role = "unknown" // not to clients, as far as anybody knows
)

// LinkRole is the role of a link, and why it has it.
type LinkRole struct {
	Link string `json:"link"`
	Role Role   `json:"role"`
	Why  string `json:"why"`
}

// linkRef is a link as rules know it: by its index, which stays when it is
// renamed. The name is for people.
type linkRef struct {
	index int
	name  string
}

// uplinkSeen is a link that carried a default route since the host was started.
type uplinkSeen struct {
	Index int    `json:"index"`
	Name  string `json:"name,omitempty"` // "": whoever comes under its name is another
}

func (u uplinkSeen) is(l link) bool { return u.Index == l.index || u.Name != "" && u.Name == l.name }

// isContainerKind tells links that container engines and hypervisors make.
func (l link) isContainerKind() bool {
	return slices.Contains([]string{kindVeth, kindTAP, kindDummy, kindNetkit}, l.kind)
}

// inward tells links that lead to guests of this host: such as engines make, and
// bridges that all ports of are such. Where natless runs in a container itself
// one is its uplink, which has its default route from the start.
func (v *view) inward(l link) bool {
	if l.kind != kindBridge {
		return l.isContainerKind()
	}
	for _, port := range v.links {
		if port.master == l.index && !port.isContainerKind() {
			return false
		}
	}
	return true
}

// carriers are the links that carry a default route of either family in any
// table. One by router advertisement counts where routers are: a container that
// says it is one is none.
func (v *view) carriers() map[int]bool {
	up := map[int]bool{}
	for _, r := range v.routes {
		if !r.isDefault() {
			continue
		}
		for _, i := range r.links {
			l := v.links[i]
			if r.protocol != unix.RTPROT_RA || !v.inward(l) {
				up[i] = true
			}
		}
	}
	return up
}

// assign gives every link its role. Ports have none: packets come in by what
// they are ports of.
func (v *view) assign(p Plan, device int, seen []uplinkSeen) {
	v.uplinks, v.clients, v.roles = map[int]bool{}, map[int]bool{}, []LinkRole{}
	carriers := v.carriers()
	delete(carriers, device)
	known := len(p.Uplinks) > 0 || len(carriers) > 0 || len(seen) > 0
	for _, l := range v.sorted() {
		if l.loopback || l.index == device || l.master != 0 && !l.vrf {
			continue
		}
		role, why := v.role(l, p, carriers[l.index], known, seen)
		v.roles = append(v.roles, LinkRole{l.name, role, why})
		v.uplinks[l.index], v.clients[l.index] = role == RoleUplink, role == RoleClient
	}
}

// noUplinkKnown is why a link counts as nothing: it may be the uplink itself,
// before its default route has come.
const noUplinkKnown = "no uplink is known yet"

// role is that of one link. known: some uplink is.
func (v *view) role(l link, p Plan, carries, known bool, seen []uplinkSeen) (Role, string) {
	switch {
	case slices.Contains(p.ClientLinks, l.name):
		return RoleClient, "named in client_links"
	case slices.Contains(p.Uplinks, l.name):
		return RoleUplink, "named in uplinks"
	case carries:
		return RoleUplink, "carries a default route"
	case slices.ContainsFunc(seen, func(u uplinkSeen) bool { return u.is(l) }):
		return RoleUplink, "carried a default route"
	case l.vrf:
		return RoleUnknown, "is in a VRF"
	case v.inward(l):
		return RoleClient, "leads to guests of this host"
	case !known:
		return RoleUnknown, noUplinkKnown
	case v.isGuestOn(l):
		return RoleUnknown, "this host has its address there by DHCP or router advertisement"
	case !v.serves(l):
		return RoleUnknown, "this host has no IPv6 address of its own there"
	}
	return RoleClient, "this host has an IPv6 address of its own there, and no default route"
}

// isGuestOn tells whether others gave this host an address on the link. One that
// a router has there for a time may be of a prefix that was delegated to it.
func (v *view) isGuestOn(l link) bool {
	forwarding, _ := readSysctl(sysctlPath("ipv6", l.name, keyForwarding))
	return slices.ContainsFunc(v.addrs, func(a address) bool {
		return a.index == l.index && a.lent && (a.addr.Is4() || forwarding != yes)
	})
}

// serves tells whether the host has a lasting IPv6 address there, as a router
// has where its clients are.
func (v *view) serves(l link) bool {
	return slices.ContainsFunc(v.addrs, func(a address) bool {
		return a.index == l.index && a.addr.Is6() && a.addr.IsGlobalUnicast() && !a.lent
	})
}

// remember writes down which links carry default routes, since they do not lead
// to clients when those go, and tells whether that is news. A link is forgotten
// when it is gone, unless it may come back under its name, as that of a modem
// does, and when it is named a link to clients.
func (r *record) remember(v *view, p Plan, device int) bool {
	before := r.Uplinks
	kept := slices.DeleteFunc(slices.Clone(before), func(u uplinkSeen) bool {
		l, there := v.links[u.Index]
		return !there && u.Name == "" || slices.Contains(p.ClientLinks, l.name) || slices.Contains(p.ClientLinks, u.Name)
	})
	for i := range v.carriers() {
		l, there := v.links[i]
		seen := uplinkSeen{Index: i, Name: l.name}
		if l.isContainerKind() {
			seen.Name = ""
		}
		if there && !l.loopback && i != device && !slices.Contains(kept, seen) && !slices.Contains(p.ClientLinks, l.name) {
			kept = slices.DeleteFunc(kept, func(u uplinkSeen) bool { return u.is(l) })
			kept = append(kept, seen)
		}
	}
	r.Uplinks = kept
	return !slices.Equal(before, kept)
}

// lookAs is look with the roles of the links; rec may be nil.
func lookAs(p Plan, device int, rec *record) (*view, error) {
	v, err := look()
	if err != nil {
		return nil, err
	}
	if rec != nil {
		v.assign(p, device, rec.Uplinks)
	} else {
		v.assign(p, device, nil)
	}
	return v, nil
}

// look is lookAs for a host at work, which remembers what it sees.
func (h *Host) look() (*view, error) {
	v, err := lookAs(h.plan, h.device, h.rec)
	if err != nil {
		return nil, err
	}
	h.roles, h.doubtful = v.roles, v.doubts(h.plan)
	if h.rec.remember(v, h.plan, h.device) {
		return v, h.rec.save()
	}
	return v, nil
}

// Links are the roles of all links at the last look.
func (h *Host) Links() []LinkRole {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.roles)
}

// keepsOut tells whether there is a link that not everybody is let in from.
func (v *view) keepsOut() bool {
	return slices.ContainsFunc(v.roles, func(r LinkRole) bool { return r.Role != RoleClient })
}
