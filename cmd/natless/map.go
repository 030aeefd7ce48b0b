package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/mapping"
)

// wantsCommand is what a command does that only holds others.
func wantsCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	return errors.New(cmd.CommandPath() + ": expected a command; see " + cmd.CommandPath() + " --help")
}

func mapCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "map",
		Short: "The mapping table",
		RunE:  wantsCommand,
	}
	cmd.AddCommand(
		mapListCommand(), mapGetCommand(), mapAddCommand(), mapRemoveCommand(),
		mapExportCommand(), mapImportCommand(),
	)
	return cmd
}

func mapListCommand() *cobra.Command {
	var ask asking
	var within sides
	var watch bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List pref64 and the explicit mappings; the longest match decides, pref64 last",
		Long: `Lists pref64 and the explicit mappings: those of the configuration, and those
added while natless runs. The longest match decides, pref64 last.

With --watch the list is followed by what changes until it is interrupted: in
place on a terminal, otherwise as a line for each change.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			l := mapListing(func(r control.Row) bool { return within.admit(r.IPv4, r.IPv6, r.Label) })
			return l.run(cmd, &ask, watch)
		}),
	}
	ask.register(cmd)
	within.register(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "go on with what changes")
	return cmd
}

func mapListing(admit func(control.Row) bool) *listing[control.Row] {
	return &listing[control.Row]{
		name: "map ls",
		ask:  func(ctx context.Context, c *control.Client) (control.Listing, error) { return c.ListMaps(ctx) },
		head: []any{"RULE", "IPV4", "IPV6", "LABEL", "ORIGIN"},
		cells: func(r control.Row) []any {
			return []any{r.Rule, r.IPv4, r.IPv6, orDash(r.Label), localTimes(orDash(r.Origin))}
		},
		admit: admit,
		compare: func(a, b control.Row) int {
			if a.Rule != b.Rule {
				return strings.Compare(string(a.Rule), string(b.Rule)) // map, pref64
			}
			return a.IPv4.Compare(b.IPv4)
		},
		event: func(e mapping.Event) (r control.Row, there, is bool) {
			if e.Map == nil {
				return r, false, false
			}
			return control.Row{Rule: mapping.RuleMap, MapInfo: *e.Map}, e.Op == mapping.OpMapAdded, true
		},
	}
}

func mapGetCommand() *cobra.Command {
	var ask asking
	var file string
	cmd := &cobra.Command{
		Use:   "get ADDR",
		Short: "The other side of an address, and the rule that decides it",
		Long: `Tells what an address of either family becomes on the other side, and which
rule decides that. With -c it answers from a configuration, without a daemon.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := address(args[0])
			if err != nil {
				return fmt.Errorf("looking up %w", err)
			}
			return does(func(cmd *cobra.Command, _ []string) error {
				x, err := explain(&ask, file, addr)
				if err != nil {
					return err
				}
				return ask.object(cmd.OutOrStdout(), x, func(r *rows) { tabulateExplanation(r, x) })
			})(cmd, args)
		},
	}
	ask.register(cmd)
	cmd.Flags().StringVarP(&file, "config", "c", "", "answer from this configuration `FILE`")
	return cmd
}

// address reads an argument. Its error begins with what was given.
func address(arg string) (netip.Addr, error) {
	a, err := netip.ParseAddr(arg)
	switch {
	case err != nil:
		return a, fmt.Errorf("%q: expected an IPv4 or IPv6 address", arg)
	case a.Is4In6() || a.Zone() != "":
		return a, fmt.Errorf("%q: expected an IPv4 or IPv6 address as packets carry it: neither IPv4-mapped nor with a zone", arg)
	}
	return a, nil
}

func explain(ask *asking, file string, addr netip.Addr) (x mapping.Explanation, err error) {
	if file != "" {
		return explainOffline(file, addr)
	}
	ctx, stop := background()
	defer stop()
	data, err := ask.client().Explain(ctx, addr)
	if err != nil {
		return x, err
	}
	return x, json.Unmarshal(data, &x)
}

func explainOffline(file string, addr netip.Addr) (x mapping.Explanation, err error) {
	c, err := config.Load(file)
	if err != nil {
		return x, err
	}
	table, err := offline(c)
	if err != nil {
		return x, err
	}
	return table.Explain(addr), nil
}

// offline is the table that a daemon with the configuration would begin with
// on this host.
func offline(c *config.Config) (*mapping.Table, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	table, err := mapping.New(daemon.Mapping(c))
	if err != nil {
		return nil, config.Wrong(err)
	}
	local, err := hostnet.Local(daemon.Plan(c))
	if err != nil {
		return nil, err
	}
	table.SetLocal(local)
	return table, nil
}

func tabulateExplanation(r *rows, x mapping.Explanation) {
	r.add("address", x.Address)
	if x.Other.IsValid() {
		r.add("other side", x.Other)
	}
	r.add("rule", x.Rule)
	r.add("because", localTimes(x.Detail))
	if x.Verdict != "" {
		r.add("verdict", x.Verdict)
	}
	if x.Map != nil && x.Map.Label != "" {
		r.add("label", x.Map.Label)
	}
	if x.Lease != nil && x.Lease.Label != "" {
		r.add("label", x.Lease.Label)
	}
	if x.Origin != "" {
		r.add("origin", localTimes(x.Origin))
	}
}

func mapAddCommand() *cobra.Command {
	var ask asking
	var label string
	cmd := &cobra.Command{
		Use:   "add V4 V6",
		Short: "Add an explicit mapping while natless runs",
		Long: `Maps an IPv4 address to an IPv6 address, or a prefix to a prefix (RFC 7757). The
mapping is in force when the command returns, is kept in state.dir, and is
removed by "natless map rm". One that is in force already is left as it is.`,
		Example: `  natless map add 192.0.2.7 2001:db8::7 --label web
  natless map add 198.51.100.0/24 2001:db8:1::/120`,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := config.NewMap(args[0], args[1], label)
			if err != nil {
				if _, swapped := config.NewMap(args[1], args[0], label); swapped == nil {
					err = fmt.Errorf("expected the IPv4 side first: natless map add %s %s", args[1], args[0])
				}
				return fmt.Errorf("adding a mapping: %w", err)
			}
			return does(func(cmd *cobra.Command, _ []string) error {
				ctx, stop := background()
				defer stop()
				a, err := addMap(ctx, ask.client(), m)
				if err != nil {
					return err
				}
				if a.Already {
					return ask.line(cmd.OutOrStdout(), a, "already %s (%s), revision %d", sidesOf(m), localTimes(a.origin), a.Revision)
				}
				return ask.line(cmd.OutOrStdout(), a, "added %s, revision %d", sidesOf(m), a.Revision)
			})(cmd, args)
		},
	}
	ask.register(cmd)
	cmd.Flags().StringVar(&label, "label", "", "`NAME` that listings show and filter by")
	return cmd
}

// added is a mapping that is in force since a revision.
type added struct {
	IPv4     netip.Prefix `json:"ipv4"`
	IPv6     netip.Prefix `json:"ipv6"`
	Label    string       `json:"label,omitempty"`
	Revision uint64       `json:"revision"`
	Already  bool         `json:"already,omitempty"`

	origin string // of what was there
}

// addMap adds a mapping, unless it is in force already with the same sides, and the
// label where one is asked for.
func addMap(ctx context.Context, c *control.Client, m config.Map) (added, error) {
	a := added{IPv4: m.IPv4, IPv6: m.IPv6, Label: m.Label}
	there, err := mapOf(ctx, c, m.IPv4.Addr())
	if err != nil {
		return a, err
	}
	if there == nil || there.IPv4 != m.IPv4 || there.IPv6 != m.IPv6 || m.Label != "" && there.Label != m.Label {
		a.Revision, err = c.AddMap(ctx, m.IPv4, m.IPv6, m.Label)
		return a, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop() // the rows of the list are not wanted
	list, err := c.ListMaps(ctx)
	a.Label, a.Revision, a.Already, a.origin = there.Label, list.Revision, true, there.Origin
	return a, err
}

// mapOf is the mapping that decides about an address, if one does.
func mapOf(ctx context.Context, c *control.Client, a netip.Addr) (*mapping.MapInfo, error) {
	data, err := c.Explain(ctx, a)
	if err != nil {
		return nil, err
	}
	var x mapping.Explanation
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, fmt.Errorf("looking up %v: %w", a, err)
	}
	return x.Map, nil
}

// sidesOf is a mapping in words.
func sidesOf(m config.Map) string { return config.Short(m.IPv4) + " = " + config.Short(m.IPv6) }

func mapRemoveCommand() *cobra.Command {
	var ask asking
	cmd := &cobra.Command{
		Use:   "rm ADDR|PREFIX",
		Short: "Remove an explicit mapping that was added while natless ran",
		Long: `Removes the mapping whose IPv4 or IPv6 side is exactly this address or prefix.
One of the configuration is not removed: change the file, and "natless reload".`,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := config.ParsePrefix(args[0], 0)
			if err != nil {
				return fmt.Errorf("removing %q: %w", args[0], err)
			}
			return does(func(cmd *cobra.Command, _ []string) error {
				ctx, stop := background()
				defer stop()
				revision, err := ask.client().RemoveMap(ctx, p)
				if err != nil {
					return err
				}
				return ask.line(cmd.OutOrStdout(), struct {
					Prefix   netip.Prefix `json:"prefix"`
					Revision uint64       `json:"revision"`
				}{p, revision}, "removed %s, revision %d", config.Short(p), revision)
			})(cmd, args)
		},
	}
	ask.register(cmd)
	cmd.ValidArgsFunction = completeRows(&ask, mapListing(func(r control.Row) bool { return r.Runtime }),
		func(r control.Row) string { return config.Short(r.IPv4) + "\t" + config.Short(r.IPv6) + " " + r.Label })
	return cmd
}
