package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

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
	return string(x.Rule), x.Detail
}

// openNames opens the name server; nil where there is to be none.
func openNames(c *config.Config, table *mapping.Table, log *slog.Logger) (*dns64.Server, error) {
	if len(c.DNS64.Listen) == 0 {
		return nil, nil
	}
	return dns64.Listen(c.DNS64.Listen, names{table}, nameSettings(c), log)
}

func nameSettings(c *config.Config) dns64.Settings {
	return dns64.Settings{Upstreams: c.DNS64.Upstreams, Exclude: c.DNS64.Exclude}
}

// setNames puts a configuration in force; what is cached stays where nothing
// has changed.
func (d *daemon) setNames(before, next *config.Config) {
	same := slices.Equal(before.DNS64.Upstreams, next.DNS64.Upstreams) && slices.Equal(before.DNS64.Exclude, next.DNS64.Exclude)
	if d.names != nil && !same {
		d.names.Set(nameSettings(next))
	}
}

// serveNames answers queries until the context ends.
func (d *daemon) serveNames(ctx context.Context) error {
	if d.names == nil {
		<-ctx.Done()
		return nil
	}
	return d.names.Serve(ctx)
}

// DNS answers a question as clients are answered, and explains it.
func (d *daemon) DNS(ctx context.Context, name, qtype string) (any, error) {
	if d.names == nil {
		return nil, errors.New("DNS64 is off: dns64.listen names no address")
	}
	x, err := d.names.Explain(ctx, name, qtype)
	if err != nil {
		return nil, fmt.Errorf("asking DNS64: %w", err)
	}
	return x, nil
}

// nameStatus is what the name server does; nil where there is none.
func (d *daemon) nameStatus() *dns64.Status {
	if d.names == nil {
		return nil
	}
	s := d.names.Status()
	return &s
}
