package config

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/natless/natless/internal/inet"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// private are the ranges whose addresses mean nothing beyond a link or a
// network: pools in them are masqueraded unless the operator says otherwise. A
// pool of documentation addresses stands for one of public ones, as in tests.
var private = inet.Prefixes(inet.Of(inet.IPv4, inet.Link, inet.Network))

// AllowPrivate reports whether IPv4 addresses that are not globally reachable
// are reached through pref64 (private_ipv4; RFC 6052 3.1).
func (c *Config) AllowPrivate() bool {
	if c.Translation.PrivateIPv4 == "auto" {
		return c.Translation.Pref64 != inet.WellKnown
	}
	return c.Translation.PrivateIPv4 == "allow"
}

// Masquerade is the IPv4 sources to masquerade when they leave the host. Where
// natless's own address is of no pool, it is as good as a pool of its own.
func (c *Config) Masquerade() []netip.Prefix {
	var sources []netip.Prefix
	add := func(p netip.Prefix, on bool) {
		within := func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }
		if on || c.Network.Masquerade == "auto" && slices.ContainsFunc(private, within) {
			sources = append(sources, p)
		}
	}
	for _, p := range c.Pools {
		add(p.IPv4, c.Network.Masquerade == "on")
	}
	own := c.OwnIPv4()
	inPool := slices.ContainsFunc(c.Pools, func(p Pool) bool { return p.IPv4.Contains(own) })
	if own.IsValid() && own != inet.Dummy && !inPool {
		add(netip.PrefixFrom(own, 32), false)
	}
	return sources
}

// Permitted is which IPv6 sources are permitted at all: the clients of all
// pools and the IPv6 sides of the maps, and whether "local" is among them.
func (c *Config) Permitted() (prefixes []netip.Prefix, local bool) {
	prefixes = make([]netip.Prefix, 0, len(c.Maps)+len(c.Pools))
	for _, p := range c.Pools {
		more, here := p.Prefixes()
		prefixes, local = append(prefixes, more...), local || here
	}
	for _, m := range c.Mappings() {
		prefixes = append(prefixes, m.IPv6)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes), local
}

// Mappings are the maps, and those that translatable stands for. The result is
// not to be changed: without translatable it is Maps, of which there may be a
// million.
func (c *Config) Mappings() []Map {
	if len(c.Translation.Translatable) == 0 {
		return c.Maps
	}
	list := slices.Clone(c.Maps)
	for i, p := range c.Translation.Translatable {
		if v6, ok := c.translatable(p); ok {
			at := c.given[element("translation.translatable", i)]
			list = append(list, Map{IPv4: p, IPv6: v6, Label: "translatable", Origin: fmt.Sprintf("%s:%d", c.File, at.line)})
		}
	}
	return list
}

// translatable is the IPv6 prefix of the addresses that stand for those of an
// IPv4 one by pref64; false where there is none, as where the u octet is in
// the midst of what follows (RFC 6052 2.2).
func (c *Config) translatable(p netip.Prefix) (netip.Prefix, bool) {
	pref64, err := mapping.ParsePrefix64(c.Translation.Pref64)
	if err != nil || !p.IsValid() || p.Bits() < leastTranslatable(c.Translation.Pref64) {
		return netip.Prefix{}, false
	}
	bits := c.Translation.Pref64.Bits() + p.Bits()
	if n := c.Translation.Pref64.Bits(); n > 32 && n < 96 {
		bits += 8 // the u octet
	}
	return netip.PrefixFrom(pref64.Embed(p.Addr()), bits), true
}

// leastTranslatable is the shortest IPv4 prefix whose addresses are one prefix
// by pref64: what follows it must not hold the u octet.
func leastTranslatable(pref64 netip.Prefix) int {
	if n := pref64.Bits(); n > 32 && n < 64 {
		return 64 - n
	}
	return 0
}

// Prefixes is the pool's clients apart: prefixes, and whether "local" is one.
func (p Pool) Prefixes() (prefixes []netip.Prefix, local bool) {
	for _, c := range p.Clients {
		if c.Local {
			local = true
			continue
		}
		prefixes = append(prefixes, c.IPv6)
	}
	return prefixes, local
}

// Ports is how the pool divides the ports of its addresses; the zero value: not
// at all.
func (p *Pool) Ports() mapping.Ports {
	if p.Mode != portRange {
		return mapping.Ports{}
	}
	return mapping.Ports{PerClient: p.PortsPerClient, Session: p.SessionPorts, First: p.FirstPort, Last: p.LastPort}
}

// SharesAddresses reports whether a pool has clients share its addresses.
func (c *Config) SharesAddresses() bool {
	return slices.ContainsFunc(c.Pools, func(p Pool) bool { return p.Mode == portRange })
}

// timeWait is how long Linux keeps the port of a connection that was closed
// from it from connecting to the same destination.
const timeWait = time.Minute

// sessionBytes is what a session takes at most (conntrack.TestMemory).
const sessionBytes = 200

// Notes are what is worth knowing before natless runs with c: what a pool of
// shared addresses gives a client, and what it costs.
func (c *Config) Notes() []string {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	for i := range c.Pools {
		p := &c.Pools[i]
		ports := p.Ports()
		if ports.PerClient == 0 {
			continue
		}
		stateless := ports.PerClient - ports.Session
		note("pool %v: %d clients share an address, each with %d ports without state and %d for sessions: about %.0f new connections "+
			"a second to one destination, since a port rests for a minute in TIME_WAIT, or more with tcp_tw_reuse",
			p.IPv4, ports.Clients(), stateless, ports.Session, max(1, float64(stateless)/timeWait.Seconds()))
		if slices.Contains(c.Masquerade(), p.IPv4) {
			note("pool %v: clients share its addresses, but it is masqueraded: the kernel tracks every flow and may change its port, "+
				"so that nothing is gained over mode = \"one-to-one\"", p.IPv4)
		}
	}
	if c.SharesAddresses() {
		note("sessions take %[2]d MiB when there are %[1]d, the most there may be", c.Sessions.Max, c.Sessions.Max*sessionBytes>>20)
	}
	return notes
}

// OwnIPv4 is natless's own IPv4 address: the one configured, or else the first
// usable address of the pools, or else the dummy address of nodes that have no
// other (RFC 7600): ICMP errors come from it, and it means nothing to others.
func (c *Config) OwnIPv4() netip.Addr {
	if c.Translation.IPv4.IsValid() {
		return c.Translation.IPv4
	}
	if c.own4.IsValid() {
		return c.own4
	}
	if a := c.firstFree(c.Pools); a.IsValid() || len(c.Pools) > 0 {
		return a
	}
	return inet.Dummy
}

// firstFree is the first address of the pools that is neither mapped nor taken.
func (c *Config) firstFree(pools []Pool, taken ...netip.Prefix) netip.Addr {
	var from []mapping.Pool
	for _, p := range pools {
		from = append(from, mapping.Pool{IPv4: p.IPv4})
	}
	var lost []mapping.Map
	for _, m := range c.Mappings() {
		if slices.ContainsFunc(pools, func(p Pool) bool { return p.IPv4.Overlaps(m.IPv4) }) {
			lost = append(lost, mapping.Map{IPv4: m.IPv4})
		}
	}
	for _, p := range taken {
		lost = append(lost, mapping.Map{IPv4: p})
	}
	return mapping.DefaultOwnIPv4(from, lost)
}

// OwnIPv6 is natless's own IPv6 address: the one configured, or else a ULA
// (RFC 4193) made from the identity of the machine and the name of the device,
// so that it is the same after every start, and two on one host differ.
func (c *Config) OwnIPv6() netip.Addr {
	if c.Translation.IPv6.IsValid() {
		return c.Translation.IPv6
	}
	id, _ := machineID(os.ReadFile)
	return ula(id, c.Device.Name)
}

// Warnings are what the operator should know though nothing is wrong.
func (c *Config) Warnings() []string {
	var warnings []string
	if _, stable := machineID(os.ReadFile); !stable && !c.Translation.IPv6.IsValid() {
		warnings = append(warnings, "this host has no /etc/machine-id: natless's own IPv6 address changes at every boot unless translation.ipv6 is set")
	}
	if len(c.Translation.Translatable) > 0 && c.Translation.Pref64 == inet.WellKnown {
		warnings = append(warnings, "translation.translatable with pref64 64:ff9b::/96: no host should be numbered from the well-known prefix, "+
			"since nobody else can route to it (RFC 6052 3.1): use a prefix of your own")
	}
	return warnings
}

// ula is an address in fd00::/8 whose 40 random bits come from the machine's
// id. The id itself is a secret (machine-id(5)): it is only the key of a hash.
func ula(id, device string) netip.Addr {
	mac := hmac.New(sha256.New, []byte(id))
	mac.Write([]byte("natless's own IPv6 address\x00" + device))
	a := [16]byte{0: 0xfd, 15: 1}
	copy(a[1:6], mac.Sum(nil))
	return netip.AddrFrom16(a)
}

// LinkULA is a /64 in fd00::/8 for a link of that name, always the same on this
// machine.
func LinkULA(name string) netip.Prefix {
	id, _ := machineID(os.ReadFile)
	mac := hmac.New(sha256.New, []byte(id))
	mac.Write([]byte("natless's link\x00" + name))
	a := [16]byte{0: 0xfd}
	copy(a[1:8], mac.Sum(nil))
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// machineID identifies the machine. Where it has no id of its own, host name
// and boot stand in for it, which is not stable.
func machineID(readFile func(string) ([]byte, error)) (id string, stable bool) {
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		data, err := readFile(path)
		if id := strings.TrimSpace(string(data)); err == nil && id != "" && id != "uninitialized" {
			return id, true
		}
	}
	name, _ := readFile("/proc/sys/kernel/hostname")
	boot, _ := readFile("/proc/sys/kernel/random/boot_id")
	return string(name) + string(boot), false
}

// MarshalJSON gives the configuration in force under the names and in the
// notation of the file.
func (c *Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(plain(reflect.ValueOf(c).Elem()))
}

// plain turns a field of Config into what encoding/json writes as the file
// would have it.
func plain(v reflect.Value) any {
	switch {
	case isTable(v.Type()):
		table := map[string]any{}
		for _, f := range reflect.VisibleFields(v.Type()) {
			if key, ok := f.Tag.Lookup("toml"); ok {
				table[key] = plain(v.FieldByIndex(f.Index))
			}
		}
		return table
	case v.Kind() == reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(v.Index(i))
		}
		return list
	}
	switch v := v.Interface().(type) {
	case time.Duration:
		return formatDuration(v)
	case Client:
		return v.String()
	}
	return v.Interface() // addresses and prefixes are text, "" when zero
}

// Options are the settings of the translation, for a device of that MTU in
// bytes.
func (c *Config) Options(deviceMTU int) translate.Options {
	t := c.Translation
	known := func(mtu int) int {
		if mtu == 0 {
			return deviceMTU
		}
		return min(mtu, deviceMTU)
	}
	ipv6 := known(t.IPv6MTU)
	return translate.Options{
		IPv4MTU:       known(t.IPv4MTU),
		IPv6MTU:       ipv6,
		LowestIPv6MTU: min(t.LowestIPv6MTU, ipv6),
		DropUDPZero:   t.UDPZeroChecksum == "drop",
		KeepUDPZero:   t.UDPZeroChecksum == "forward",
		ZeroTOS:       t.TrafficClass == "zero",
	}
}

// String says what the name server does; "" when there is none.
func (d DNS64) String() string {
	if len(d.Listen) == 0 {
		return ""
	}
	upstreams := "the host's own resolvers"
	if len(d.Upstreams) > 0 {
		upstreams = joined(d.Upstreams)
	}
	return fmt.Sprintf("DNS64 at %s, asking %s", joined(d.Listen), upstreams)
}

func joined(list []netip.AddrPort) string {
	text := make([]string, len(list))
	for i, a := range list {
		text[i] = a.String()
	}
	return strings.Join(text, ", ")
}
