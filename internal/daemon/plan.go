package daemon

import (
	"net/netip"
	"slices"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/dataplane"
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
		Open:       c.Network.Firewall == "open",
		Keep:       c.Network.OnExit == "keep",
		Masquerade: c.Masquerade(),
		Guarded:    c.Translation.Hairpin != "intrinsic",
		Apart:      c.Translation.Hairpin == "off",

		Uplinks:     c.Network.Uplinks,
		ClientLinks: c.Network.ClientLinks,
	}
	permitted, local := c.Permitted()
	p.Clients, p.Local = hostnet.Merge(permitted), local
	if c.Translation.Pref64.IsValid() {
		p.IPv6 = append(p.IPv6, c.Translation.Pref64)
	}
	p.IPv6 = append(p.IPv6, single(c.OwnIPv6()))
	p.IPv4 = make([]netip.Prefix, 0, len(c.Maps)+1+len(c.Translation.RFC6791)+len(c.Pools))
	p.IPv4 = append(p.IPv4, single(c.OwnIPv4())) // whoever sees it in a traceroute may ping it
	for i := range c.Maps {
		p.IPv4 = append(p.IPv4, c.Maps[i].IPv4)
	}
	// Shared addresses that nothing masquerades need no tracked connections:
	// that is what they are for.
	closed := slices.Clone(c.Translation.RFC6791)
	for i := range c.Pools {
		pool := &c.Pools[i]
		if pool.Ports() != (mapping.Ports{}) && !slices.Contains(p.Masquerade, pool.IPv4) {
			p.IPv4 = append(p.IPv4, pool.IPv4)
		} else {
			closed = append(closed, pool.IPv4)
		}
	}
	p.Inbound = slices.Clip(p.IPv4) // the same piece of memory: there may be a million
	p.IPv4 = append(p.IPv4, closed...)
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
		Hairpin:      c.Translation.Hairpin != "off",
		Guarded:      c.Translation.Hairpin == "guarded",
		AllowPrivate: c.AllowPrivate(),
		Maps:         c.Maps,
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

// Sharing is what clients that share addresses need of the dataplane, if the
// configuration has any.
func Sharing(c *config.Config) (s dataplane.Sharing, err error) {
	if !c.SharesAddresses() {
		return s, nil
	}
	sizes := conntrack.Default()
	sizes.Sessions, sizes.ClientSessions = c.Sessions.Max, c.Sessions.MaxPerClient
	return dataplane.NewSharing(sizes)
}

// Tracing is what packets are traced by, with the table of a configuration and
// the MTU of the device in bytes.
func Tracing(c *config.Config, table *mapping.Table, mtu int) trace.Config {
	return trace.Config{Table: table, Options: c.Options(mtu), IPv4: c.OwnIPv4(), IPv6: c.OwnIPv6()}
}
