package daemon

import (
	"net/netip"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/trace"
	"github.com/natless/natless/mapping"
)

// Plan is what a configuration asks of the host.
func Plan(c *config.Config) hostnet.Plan {
	p := hostnet.Plan{
		Device:     c.Device.Name,
		MTU:        c.Device.MTU,
		Manage:     c.Network.Manage,
		Keep:       c.Network.OnExit == "keep",
		Masquerade: c.Masquerade(),
	}
	p.Clients, p.Local = c.Permitted()
	if c.Translation.Pref64.IsValid() {
		p.IPv6 = append(p.IPv6, c.Translation.Pref64)
	}
	p.IPv6 = append(p.IPv6, single(c.OwnIPv6()))
	own := single(c.OwnIPv4())
	p.IPv4 = append(p.IPv4, own)
	p.Inbound = append(p.Inbound, own) // whoever sees it in a traceroute may ping it
	p.IPv4 = append(p.IPv4, c.Translation.RFC6791...)
	for _, m := range c.Maps {
		p.IPv4 = append(p.IPv4, m.IPv4)
		p.Inbound = append(p.Inbound, m.IPv4)
	}
	for _, pool := range c.Pools {
		p.IPv4 = append(p.IPv4, pool.IPv4)
	}
	return p
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Mapping is what a configuration says about who is who.
func Mapping(c *config.Config) mapping.Config {
	m := mapping.Config{
		Pref64:       c.Translation.Pref64,
		OwnIPv4:      c.OwnIPv4(),
		OwnIPv6:      c.OwnIPv6(),
		RFC6791:      c.Translation.RFC6791,
		Hairpin:      c.Translation.Hairpin == "intrinsic",
		AllowPrivate: c.AllowPrivate(),
	}
	for _, e := range c.Maps {
		m.Maps = append(m.Maps, mapping.Map{IPv4: e.IPv4, IPv6: e.IPv6, Label: e.Label, Origin: e.Origin})
	}
	for _, pool := range c.Pools {
		clients, local := pool.Prefixes()
		m.Pools = append(m.Pools, mapping.Pool{
			IPv4: pool.IPv4, Clients: clients, Local: local, Origin: pool.Origin,
			Idle: pool.Idle, MaxLife: pool.MaxLife, Quarantine: pool.Quarantine, Ports: pool.Ports(),
		})
	}
	return m
}

// Tracing is what packets are traced by, with the table of a configuration and
// the MTU of the device in bytes.
func Tracing(c *config.Config, table *mapping.Table, mtu int) trace.Config {
	return trace.Config{Table: table, Options: c.Options(mtu), IPv4: c.OwnIPv4(), IPv6: c.OwnIPv6()}
}
