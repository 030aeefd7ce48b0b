package config

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
)

// wellKnown is the prefix of RFC 6052 2.1.
var wellKnown = netip.MustParsePrefix("64:ff9b::/96")

// private are the ranges whose addresses mean nothing beyond the host: pools
// in them are masqueraded unless the operator says otherwise.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
}

// AllowPrivate reports whether private IPv4 addresses are reached through
// pref64 (private_ipv4; RFC 6052 3.1).
func (c *Config) AllowPrivate() bool {
	if c.Translation.PrivateIPv4 == "auto" {
		return c.Translation.Pref64 != wellKnown
	}
	return c.Translation.PrivateIPv4 == "allow"
}

// Masquerade is the IPv4 sources to masquerade when they leave the host.
func (c *Config) Masquerade() []netip.Prefix {
	var sources []netip.Prefix
	for _, p := range c.Pools {
		within := func(q netip.Prefix) bool { return q.Bits() <= p.IPv4.Bits() && q.Contains(p.IPv4.Addr()) }
		switch c.Network.Masquerade {
		case "on":
			sources = append(sources, p.IPv4)
		case "auto":
			if slices.ContainsFunc(private, within) {
				sources = append(sources, p.IPv4)
			}
		}
	}
	return sources
}

// Permitted is which IPv6 sources are permitted at all: the clients of all
// pools and the IPv6 sides of the maps, and whether "local" is among them.
func (c *Config) Permitted() (prefixes []netip.Prefix, local bool) {
	for _, p := range c.Pools {
		more, here := p.Prefixes()
		prefixes, local = append(prefixes, more...), local || here
	}
	for _, m := range c.Maps {
		prefixes = append(prefixes, m.IPv6)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes), local
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

// OwnIPv4 is natless's own IPv4 address: the one configured, or else the first
// usable address of the pools. It is the zero Addr when there is neither,
// which Validate refuses.
func (c *Config) OwnIPv4() netip.Addr {
	if c.Translation.IPv4.IsValid() {
		return c.Translation.IPv4
	}
	for _, p := range c.Pools {
		if a := c.free(p, netip.Addr{}); a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// free is the first address of the pool that is not the address of its
// network, in no map, and not taken.
func (c *Config) free(p Pool, taken netip.Addr) netip.Addr {
	var lost []netip.Prefix
	for _, m := range c.Maps {
		if m.IPv4.Overlaps(p.IPv4) {
			lost = append(lost, m.IPv4)
		}
	}
	if taken.IsValid() {
		lost = append(lost, netip.PrefixFrom(taken, 32))
	}
	slices.SortFunc(lost, netip.Prefix.Compare)

	a := p.IPv4.Addr()
	if p.IPv4.Bits() < 31 {
		a = a.Next()
	}
	for _, l := range lost {
		if l.Contains(a) {
			a = last(l).Next()
		}
	}
	if !p.IPv4.Contains(a) {
		return netip.Addr{}
	}
	return a
}

// last is the highest address of an IPv4 prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
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
