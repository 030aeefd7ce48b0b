package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/natless/natless/internal/inet"
	"github.com/natless/natless/mapping"
)

// Limits of the kernel and of the protocols.
const (
	maxName      = 15  // IFNAMSIZ - 1
	maxQueues    = 256 // MAX_TAP_QUEUES
	minMTU6      = 1280
	minMTU4      = 68 // RFC 791 3.2
	maxMTU       = 65535
	minPool      = 8   // its addresses are counted in memory
	maxSocket    = 107 // sockaddr_un.sun_path - 1
	readerSuffix = len("-ro")
	maxPort      = 65535

	maxSessions = 1 << 26 // of package conntrack
	maxRanges   = 1 << 30 // of package mapping, in a pool
)

const portRange = "port-range"

// Validate reports everything that is wrong with the configuration and can be
// known without looking at the host, joined with errors.Join.
func (c *Config) Validate() error {
	r := report{c: c}
	c.check(&r)
	return r.err()
}

// check looks at values, then at what they mean together. Values that were
// given and could not be read are still zero, and are not reported again.
func (c *Config) check(r *report) {
	c.checkNotYet(r)
	c.checkDevice(r)
	c.checkFirewall(r)
	c.checkLinks(r)
	c.checkMTUs(r)
	c.checkPref64(r)
	c.checkOwn(r)
	c.checkMaps(r)
	c.checkRefused(r)
	c.checkTranslatable(r)
	c.checkPools(r)
	c.checkControl(r)
	c.checkState(r)
	c.checkDNS64(r)
	c.checkRA(r)
}

// checkNotYet refuses what the contract names and this version does not do: no
// key is read and then ignored.
func (c *Config) checkNotYet(r *report) {
	for i, p := range c.Pools {
		if p.Mode == "stateful" {
			r.add(element("pool", i)+".mode", `stateful: this version does not have it: expected "one-to-one" or "port-range"`)
		}
	}
}

func (c *Config) checkDevice(r *report) {
	d := c.Device
	if why := badName(d.Name); why != "" {
		r.add("device.name", "%s: %s", given(d.Name), why)
	}
	if d.Queues < 0 || d.Queues > maxQueues {
		r.add("device.queues", "%d: expected 0 (one per CPU, at most 8) or 1 to %d", d.Queues, maxQueues)
	}
}

func (c *Config) checkFirewall(r *report) {
	if c.Network.Firewall != "open" {
		return
	}
	if !c.Network.Manage {
		r.add("network.firewall", `open: network.manage is false, which leaves the host to you: expected "name"`)
	}
	if strings.HasSuffix(c.Device.Name, "+") {
		r.add("device.name", `%s: iptables takes it for all names that begin so: expected another where network.firewall is "open"`, given(c.Device.Name))
	}
}

// checkLinks looks at the links that are named as uplinks and as leading to
// clients.
func (c *Config) checkLinks(r *report) {
	named := map[string]string{}
	for _, list := range []struct {
		key   string
		links []string
	}{{"network.uplinks", c.Network.Uplinks}, {"network.client_links", c.Network.ClientLinks}} {
		for i, name := range list.links {
			path := element(list.key, i)
			if why := badName(name); why != "" {
				r.add(path, "%s: %s", given(name), why)
			} else if name == c.Device.Name {
				r.add(path, "%s: natless's own device: expected another link", given(name))
			} else if before, ok := named[name]; ok {
				r.add(path, "%s: named before, in %s: expected each link once, as an uplink or as one to clients", given(name), before)
			}
			named[name] = list.key
		}
	}
}

// badName is why the kernel, or sysctl, would not have a device of that name.
func badName(name string) string {
	switch {
	case name == "":
		return "expected the name of a device"
	case len(name) > maxName:
		return fmt.Sprintf("%d bytes long: expected at most %d", len(name), maxName)
	case name == "." || name == ".." || name == "all" || name == "default":
		return "the kernel keeps this name to itself: expected another"
	case strings.ContainsFunc(name, func(r rune) bool {
		return r == '/' || r == ':' || r == '%' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}):
		return "expected a name without /, :, %, spaces and control characters"
	}
	return ""
}

func (c *Config) checkMTUs(r *report) {
	t := c.Translation
	mtu := func(path string, n, least int) {
		if n != 0 && (n < least || n > maxMTU) {
			r.add(path, "%d: expected 0 or %d to %d", n, least, maxMTU)
		} else if device := c.Device.MTU; path != "device.mtu" && device >= minMTU6 && n > device {
			r.add(path, "%d: more than device.mtu, which is %d: expected at most that", n, device)
		}
	}
	mtu("device.mtu", c.Device.MTU, minMTU6)
	mtu("translation.ipv6_mtu", t.IPv6MTU, minMTU6)
	mtu("translation.ipv4_mtu", t.IPv4MTU, minMTU4)

	const lowest = "translation.lowest_ipv6_mtu"
	switch {
	case t.LowestIPv6MTU < minMTU6 || t.LowestIPv6MTU > maxMTU:
		r.add(lowest, "%d: expected %d to %d", t.LowestIPv6MTU, minMTU6, maxMTU)
	case t.IPv6MTU >= minMTU6 && t.LowestIPv6MTU > t.IPv6MTU:
		r.add(lowest, "%d: more than ipv6_mtu, which is %d: expected at most that", t.LowestIPv6MTU, t.IPv6MTU)
	case c.Device.MTU >= minMTU6 && t.LowestIPv6MTU > c.Device.MTU:
		r.add(lowest, "%d: more than device.mtu, which is %d: expected at most that", t.LowestIPv6MTU, c.Device.MTU)
	}
}

// checkPref64 asks of pref64 what RFC 6052 2.2 asks of it.
func (c *Config) checkPref64(r *report) {
	const path = "translation.pref64"
	p := c.Translation.Pref64
	if !p.IsValid() {
		return
	}
	if !slices.Contains([]int{32, 40, 48, 56, 64, 96}, p.Bits()) {
		r.add(path, "%v: prefix length %d is none of 32, 40, 48, 56, 64, 96", p, p.Bits())
	} else if p.Addr().As16()[8] != 0 {
		r.add(path, "%v: bits 64 to 71 are not zero (RFC 6052 2.2): expected a prefix that has them zero", p)
	} else {
		r.unicast(path, p)
	}
}

// nobodys are the addresses that go from no host to another. Link-local and
// reserved ones of IPv4 do not either, but pools may have them, whose addresses
// are translated once more before they leave the host.
var nobodys = inet.Prefixes(slices.Concat(inet.Of(inet.IPv4, inet.Nobody), inet.Of(inet.IPv6, inet.Nobody, inet.Link)))

// unicast reports whether every address of p may go from host to host, and
// adds the problem when not.
func (r *report) unicast(path string, p netip.Prefix) bool {
	i := slices.IndexFunc(nobodys, p.Overlaps)
	if i < 0 {
		return true
	}
	what := fmt.Sprint(p)
	if p.IsSingleIP() {
		what = p.Addr().String()
	}
	r.add(path, "%s: in or around %v, which is no host's: expected unicast addresses", what, nobodys[i])
	return false
}

// checkOwn looks at natless's own addresses and at what stands in for routers.
func (c *Config) checkOwn(r *report) {
	own := func(path string, a netip.Addr) {
		if !a.IsValid() {
			return
		}
		if one := netip.PrefixFrom(a, a.BitLen()); r.unicast(path, one) {
			if b, _ := inet.Around(one); b.Prefix == one && b.Reach == inet.Link {
				r.add(path, "%v: a %s address: expected another", a, b.Name)
			}
			if seen, ok := c.standsFor(one); ok && seen.Addr() != c.OwnIPv4() {
				c.checkLent(r, path, a.String(), seen)
			}
		}
		for _, m := range c.Maps {
			// Inside a larger map it is taken out of it, as from a pool.
			if all := netip.PrefixFrom(a, a.BitLen()); m.IPv4 == all || m.IPv6 == all {
				r.add(path, "%v: is mapped at %s: expected an address that is not", a, m.Origin)
				return
			}
		}
	}
	own("translation.ipv4", cmp.Or(c.Translation.IPv4, c.own4))
	own("translation.ipv6", c.Translation.IPv6)
	if !c.OwnIPv4().IsValid() {
		r.add("translation.ipv4", "not given, and no pool has an address for it: expected natless's own IPv4 address")
	}
	for i, p := range c.Translation.RFC6791 {
		c.checkStandIn(r, element("translation.rfc6791_ipv4", i), p)
	}
}

// checkStandIn looks at one of rfc6791_ipv4: a stand-in for routers that is a
// client too would put words in the client's mouth.
func (c *Config) checkStandIn(r *report, path string, p netip.Prefix) {
	if !p.IsValid() || p.IsSingleIP() && p.Addr() == c.OwnIPv4() || !r.routable(path, p) {
		return
	}
	for _, m := range c.Maps {
		if m.IPv4.Overlaps(p) {
			r.add(path, "%v: overlaps the map of %v at %s: expected addresses that no client has", p, m.IPv4, m.Origin)
			return
		}
	}
	for _, pool := range c.Pools {
		if pool.IPv4.Overlaps(p) {
			r.add(path, "%v: overlaps the pool %v at %s: expected addresses that no client has", p, pool.IPv4, pool.Origin)
			return
		}
	}
}

func (c *Config) checkMaps(r *report) {
	before4 := repeated(c.Maps, func(m *Map) netip.Prefix { return m.IPv4 })
	before6 := repeated(c.Maps, func(m *Map) netip.Prefix { return m.IPv6 })
	for i := range c.Maps {
		m := &c.Maps[i]
		add := func(key, format string, args ...any) { r.add(element("map", i)+key, format, args...) }
		if err := mapping.CheckLabel(m.Label); err != nil {
			add(".label", "%s: %v", given(m.Label), err)
		}
		for _, side := range []struct {
			key    string
			prefix netip.Prefix
			family family
			before map[int]int
		}{{".ipv4", m.IPv4, 4, before4}, {".ipv6", m.IPv6, 6, before6}} {
			if !side.prefix.IsValid() {
				if _, given := r.given(element("map", i) + side.key); !given {
					add(side.key, "missing: expected %s", inQuotes(side.family.prefix()))
				}
				continue
			}
			if first, ok := side.before[i]; ok {
				add(side.key, "%v: mapped before at %s: expected each prefix once", side.prefix, c.Maps[first].Origin)
			}
		}
		if !m.IPv4.IsValid() || !m.IPv6.IsValid() {
			continue
		}
		// RFC 7757 3.2: the IPv6 suffix is at least as long as the IPv4 one.
		if room := 128 - m.IPv6.Bits(); room < 32-m.IPv4.Bits() {
			add(".ipv6", "%v: too small for %v: expected a prefix length of at most %d", m.IPv6, m.IPv4, 96+m.IPv4.Bits())
		}
		if p := c.Translation.Pref64; p.Overlaps(m.IPv6) && m.IPv6.Bits() <= p.Bits() {
			add(".ipv6", "%v: overlaps pref64, %v: expected a prefix outside, or inside and longer", m.IPv6, p)
		}
		if seen, ok := c.standsFor(m.IPv6); ok && seen != m.IPv4 {
			c.checkLent(r, element("map", i)+".ipv6", m.IPv6.String(), seen)
		}
	}
}

// checkRefused looks for maps of addresses that natless never translates.
func (c *Config) checkRefused(r *report) {
	pools := c.lending()
	for i := range c.Maps {
		m := &c.Maps[i]
		for _, side := range []struct {
			key    string
			prefix netip.Prefix
		}{{".ipv4", m.IPv4}, {".ipv6", m.IPv6}} {
			if !side.prefix.IsValid() {
				continue
			}
			if b, refused := mapping.RefusedAround(side.prefix, pools); refused {
				r.add(element("map", i)+side.key, "%s: in %v, which natless never translates: expected addresses outside", Short(side.prefix), b)
			}
		}
	}
}

// routable reports whether routers take packets from p, and adds the problem
// when not.
func (r *report) routable(path string, p netip.Prefix) bool {
	for _, b := range inet.Of(inet.IPv4, inet.Link) {
		if p.Overlaps(b.Prefix) {
			r.add(path, "%s: in or around %v, whose packets no router would take: expected other addresses", Short(p), b)
			return false
		}
	}
	return r.unicast(path, p)
}

// standsFor is the IPv4 prefix that an IPv6 one inside pref64 stands for, if
// any.
func (c *Config) standsFor(p netip.Prefix) (netip.Prefix, bool) {
	if !p.Addr().Is6() || !c.Translation.Pref64.Overlaps(p) {
		return netip.Prefix{}, false
	}
	pref64, err := mapping.ParsePrefix64(c.Translation.Pref64)
	if err != nil {
		return netip.Prefix{}, false
	}
	return pref64.Seen(p)
}

// checkLent refuses that an IPv6 address is somebody's own which clients know
// as that of who leased the IPv4 address inside.
func (c *Config) checkLent(r *report, path, what string, seen netip.Prefix) {
	for _, pool := range c.Pools {
		if pool.IPv4.Overlaps(seen) {
			r.add(path, "%s: by pref64 it stands for %s, of the pool %v at %s: expected another", what, Short(seen), pool.IPv4, pool.Origin)
		}
	}
}

// lending are the pools as package mapping has them, by their addresses alone.
func (c *Config) lending() []mapping.Pool {
	list := make([]mapping.Pool, len(c.Pools))
	for i, p := range c.Pools {
		list[i].IPv4 = p.IPv4
	}
	return list
}

// checkTranslatable looks at the IPv4 prefixes that hosts are numbered from by
// pref64.
func (c *Config) checkTranslatable(r *report) {
	pref64 := c.Translation.Pref64
	for i, p := range c.Translation.Translatable {
		path := element("translation.translatable", i)
		if !p.IsValid() || !r.unicast(path, p) {
			continue
		}
		if b, refused := mapping.RefusedAround(p, c.lending()); refused {
			r.add(path, "%s: in %v, which natless never translates: expected addresses outside", Short(p), b)
		}
		if !pref64.IsValid() {
			r.add(path, `%s: translation.pref64 is "", so no host has such an address: expected a pref64`, Short(p))
		} else if n := leastTranslatable(pref64); p.Bits() < n {
			r.add(path, "%s: bits 64 to 71 of the addresses are zero (RFC 6052 2.2): expected prefixes of at least /%d with pref64 %v", Short(p), n, pref64)
		}
		if j := slices.IndexFunc(c.Translation.Translatable[:i], p.Overlaps); j >= 0 {
			r.add(path, "%s: overlaps %s before: expected each address once", Short(p), Short(c.Translation.Translatable[j]))
		}
		for _, m := range c.Maps {
			if m.IPv4 == p {
				r.add(path, "%s: mapped at %s: expected either", Short(p), m.Origin)
			}
		}
	}
}

// repeated finds the maps whose prefix, on one side, is that of a map before,
// and the first of those, by number.
func repeated(maps []Map, side func(*Map) netip.Prefix) map[int]int {
	order := make([]int32, len(maps))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(i, j int32) int {
		return cmp.Or(side(&maps[i]).Compare(side(&maps[j])), cmp.Compare(i, j))
	})
	found, first := map[int]int{}, 0
	for n := 1; n < len(order); n++ {
		if side(&maps[order[n]]) != side(&maps[order[first]]) {
			first = n
			continue
		}
		found[int(order[n])] = int(order[first])
	}
	return found
}

func (c *Config) checkPools(r *report) {
	for i, p := range c.Pools {
		path := element("pool", i)
		c.checkPoolAddresses(r, path+".ipv4", i)
		if len(p.Clients) == 0 {
			r.add(path+".clients", `an empty list: expected IPv6 prefixes, or "local"`)
		}
		// Timers run in seconds.
		if p.Idle > 0 && p.Idle < time.Second {
			r.add(path+".idle", `%s: expected "0" or at least 1s`, formatDuration(p.Idle))
		}
		if p.MaxLife > 0 && p.MaxLife < time.Second {
			r.add(path+".max_life", `%s: expected "0" or at least 1s`, formatDuration(p.MaxLife))
		}
		if p.Mode == portRange {
			checkPorts(r, path, p)
			continue
		}
		for _, key := range []string{"ports_per_client", "session_ports", "first_port", "last_port"} {
			if _, ok := c.given[path+"."+key]; ok {
				r.add(path+"."+key, `means nothing to a pool of mode %q: leave the key out, or set mode = "port-range"`, p.Mode)
			}
		}
	}
	if !c.SharesAddresses() {
		for _, key := range []string{"sessions.max", "sessions.max_per_client"} {
			if _, ok := c.given[key]; ok {
				r.add(key, `no pool has mode = "port-range", which alone has sessions: leave the key out`)
			}
		}
	}
	if s := c.Sessions; s.Max < 1 || s.Max > maxSessions {
		r.add("sessions.max", "%d: expected 1 to %d", s.Max, maxSessions)
	} else if s.MaxPerClient < 1 || s.MaxPerClient > s.Max {
		r.add("sessions.max_per_client", "%d: expected 1 to %d, which is sessions.max", s.MaxPerClient, s.Max)
	}
}

// checkPorts looks at how a pool divides the ports of its addresses.
func checkPorts(r *report, path string, p Pool) {
	if p.Quarantine < mapping.RestRange {
		r.add(path+".quarantine", "%s: expected at least %s, since clients share addresses", formatDuration(p.Quarantine), formatDuration(mapping.RestRange))
	}
	room := p.LastPort - p.FirstPort + 1
	switch {
	case p.FirstPort < 1 || p.FirstPort > maxPort:
		r.add(path+".first_port", "%d: expected 1 to %d", p.FirstPort, maxPort)
	case p.LastPort < p.FirstPort || p.LastPort > maxPort:
		r.add(path+".last_port", "%d: expected %d, which is first_port, to %d", p.LastPort, p.FirstPort, maxPort)
	case p.PortsPerClient < 2 || p.PortsPerClient > room:
		r.add(path+".ports_per_client", "%d: expected 2 to %d, which is all of first_port to last_port", p.PortsPerClient, room)
	case p.SessionPorts < 1 || p.SessionPorts >= p.PortsPerClient:
		r.add(path+".session_ports", "%d: expected 1 to %d, less than ports_per_client", p.SessionPorts, p.PortsPerClient-1)
	case p.IPv4.IsValid() && (room/p.PortsPerClient)<<(32-p.IPv4.Bits()) > maxRanges:
		r.add(path+".ports_per_client", "%d: %v has more than %d ranges of so many: expected a smaller pool, or more ports per client", p.PortsPerClient, p.IPv4, maxRanges)
	}
}

func (c *Config) checkPoolAddresses(r *report, path string, i int) {
	p := c.Pools[i].IPv4
	if !r.unicast(path, p) {
		return
	}
	if p.Bits() < minPool {
		r.add(path, "%v: too large: expected a prefix length of at least %d", p, minPool)
		return
	}
	own := c.OwnIPv4()
	lost := []netip.Prefix{netip.PrefixFrom(own, 32)}
	if c.Pools[i].Mode == portRange && p == lost[0] {
		lost = nil // natless shares it with the clients
	}
	if !c.firstFree(c.Pools[i:i+1], lost...).IsValid() {
		taken := "maps leave"
		if own.IsValid() {
			taken = fmt.Sprintf("maps and natless's own address, %v, leave", own)
		}
		r.add(path, "%v: %s none for clients: expected a larger pool, or fewer addresses in maps", p, taken)
	}
	for _, other := range c.Pools[:i] {
		if p.Overlaps(other.IPv4) {
			r.add(path, "%v: overlaps the pool %v at %s: expected pools apart from each other", p, other.IPv4, other.Origin)
			return
		}
	}
}

func (c *Config) checkControl(r *report) {
	s := c.Control.Socket
	switch {
	case !filepath.IsAbs(s) || strings.ContainsRune(s, 0):
		r.add("control.socket", `%s: expected an absolute path, such as "/run/natless/natless.sock"`, given(s))
	case len(s) > maxSocket:
		r.add("control.socket", "%s: %d bytes long: expected at most %d", given(s), len(s), maxSocket)
	case c.Control.ReadGroup != "" && len(s)+readerSuffix > maxSocket:
		r.add("control.socket", "%s: %d bytes long: expected at most %d with control.read_group, whose socket has a longer name", given(s), len(s), maxSocket-readerSuffix)
	}
}

func (c *Config) checkState(r *report) {
	if dir := c.State.Dir; dir != "" && (!filepath.IsAbs(dir) || strings.ContainsRune(dir, 0)) {
		r.add("state.dir", `%s: expected an absolute path, such as "/var/lib/natless", or ""`, given(dir))
	}
	if h := c.State.History; h > 0 && h < time.Second {
		r.add("state.history", `%s: expected "0" or at least 1s`, formatDuration(h))
	}
}

// checkDNS64 looks at whom the name server listens to and asks. Zero addresses
// are those that could not be read.
func (c *Config) checkDNS64(r *report) {
	d := c.DNS64
	for i, a := range d.Listen {
		path := element("dns64.listen", i)
		switch {
		case a.Addr().IsUnspecified():
			r.add(path, "%v: every address of the host, those on its uplinks among them: expected the addresses that clients are told of", a)
		case a.Addr().IsLinkLocalUnicast(), a.Addr().IsMulticast():
			r.add(path, "%v: expected an address that clients can ask from any link", a)
		case a.IsValid() && slices.Contains(d.Listen[:i], a):
			r.add(path, "%v: given twice", a)
		case c.Translation.Pref64.Contains(a.Addr()):
			r.add(path, "%v: lies in pref64, %v: expected an address of the host", a, c.Translation.Pref64)
		case a.IsValid() && (a.Addr() == c.OwnIPv4() || a.Addr() == c.Translation.IPv6):
			r.add(path, "%v: natless's own address, which is translated and on no link: expected an address of the host", a)
		}
	}
	for i, a := range d.Upstreams {
		path := element("dns64.upstreams", i)
		switch {
		case a.Addr().IsUnspecified(), a.Addr().IsMulticast():
			r.add(path, "%v: expected the address of a resolver", a)
		case a.IsValid() && slices.Contains(d.Listen, a):
			r.add(path, "%v: is in dns64.listen: natless would ask itself", a)
		case a.IsValid() && slices.Contains(d.Upstreams[:i], a):
			r.add(path, "%v: given twice", a)
		}
	}
}

// What a prefix in router advertisements may live: to be told three times it
// takes 12 seconds (RFC 4861 6.2.1), and the option has 13 bits of 8 seconds (RFC
// 8781 4).
const (
	minPrefixLife = 12 * time.Second
	maxPrefixLife = 65528 * time.Second
)

func (c *Config) checkRA(r *report) {
	if l := c.RA.Lifetime; l < minPrefixLife || l > maxPrefixLife {
		r.add("ra.lifetime", "%s: expected %s to %s, which is 65528 seconds (RFC 8781 4)", formatDuration(l),
			formatDuration(minPrefixLife), formatDuration(maxPrefixLife))
	}
	for i, name := range c.RA.Interfaces {
		path := element("ra.interfaces", i)
		if why := badName(name); why != "" {
			r.add(path, "%s: %s", given(name), why)
		} else if slices.Contains(c.RA.Interfaces[:i], name) {
			r.add(path, "%s: named before: expected each interface once", given(name))
		} else if name == c.Device.Name {
			r.add(path, "%s: natless's own device, behind which no host listens: expected an interface with clients", given(name))
		}
	}
	if len(c.RA.Interfaces) > 0 && !c.Translation.Pref64.IsValid() {
		r.add("ra.interfaces", `translation.pref64 is "", so there is nothing to advertise: expected a pref64`)
	}
}
