package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/dns64"
	"github.com/natless/natless/mapping"
)

// names is the mapping table as the name server asks it.
type names struct{ *mapping.Table }

func (n names) Embed(v4 netip.Addr) (netip.Addr, bool) {
	p := n.Pref64()
	if !p.IsValid() {
		return netip.Addr{}, false
	}
	return p.Embed(v4), true
}

func (n names) Behind(v6 netip.Addr) (v4 netip.Addr, mapped, ok bool) {
	v4, rule, ok := n.Table.Behind(v6)
	return v4, rule == mapping.RuleMap, ok
}

func (n names) Why(v4 netip.Addr) (rule, detail string) {
	x := n.Explain(v4)
	switch x.Rule {
	case mapping.RuleLease, mapping.RulePool:
		x.Detail = "an address of the pool " + x.Pool + ": a name must not lead clients to one another"
	case mapping.RuleOwn:
		x.Detail = "an address of natless itself"
	}
	return string(x.Rule), x.Detail
}

func nameSettings(c *config.Config) dns64.Settings {
	return dns64.Settings{Listen: c.DNS64.Listen, Upstreams: c.DNS64.Upstreams, Exclude: c.DNS64.Exclude, Synthesise: c.DNS64.Synthesise}
}

// namesOn reports whether anybody can be answered.
func (d *daemon) namesOn() bool { return len(d.config().DNS64.Listen) > 0 }

// DNS answers a question as clients are answered, and explains it.
func (d *daemon) DNS(ctx context.Context, name, qtype string) (any, error) {
	if !d.namesOn() {
		return nil, errors.New("DNS64 is off: dns64.listen names no address")
	}
	x, err := d.names.Explain(ctx, name, qtype)
	if err != nil {
		return nil, fmt.Errorf("asking DNS64: %w", err)
	}
	return x, nil
}

// nameStatus is what the name server does; nil where it is off.
func (d *daemon) nameStatus() *dns64.Status {
	if !d.namesOn() {
		return nil
	}
	s := d.names.Status()
	return &s
}

// AbsentNames says of addresses that DNS64 listens at that nobody gets there
// now. They may come later, as that of a bridge does with its first container.
func AbsentNames(list []netip.AddrPort) (lines []string) {
	for _, a := range list {
		lines = append(lines, fmt.Sprintf("DNS64 cannot be asked at %v yet: no link of this host that is up has the address: "+
			"give it to one (ip address add %v dev LINK), or change dns64.listen", a, single(a.Addr())))
	}
	return lines
}
