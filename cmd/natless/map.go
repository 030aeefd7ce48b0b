package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

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
	cmd.AddCommand(mapListCommand(), mapGetCommand())
	return cmd
}

func mapListCommand() *cobra.Command {
	var ask asking
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List pref64 and the explicit mappings; the longest match decides, pref64 last",
		Args:  cobra.NoArgs,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := background()
			defer stop()
			return listing(&ask, cmd.OutOrStdout(), ask.client().Maps(ctx),
				[]any{"RULE", "IPV4", "IPV6", "LABEL", "ORIGIN"},
				func(r control.Row) []any { return []any{r.Rule, r.IPv4, r.IPv6, orDash(r.Label), orDash(r.Origin)} })
		}),
	}
	ask.register(cmd)
	return cmd
}

func mapGetCommand() *cobra.Command {
	var ask asking
	var file string
	cmd := &cobra.Command{
		Use:   "get ADDR",
		Short: "The other side of an address, and the rule that decides it",
		Long: `Tells what an address of either family becomes on the other side, and which
rule decides that. With -c it answers from a configuration, without a daemon.`,
		Args: cobra.ExactArgs(1),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddr(args[0])
			if err != nil {
				return fmt.Errorf("looking up %q: expected an IPv4 or IPv6 address", args[0])
			}
			x, err := explain(&ask, file, addr)
			if err != nil {
				return err
			}
			return ask.object(cmd.OutOrStdout(), x, func(r *rows) { tabulateExplanation(r, x) })
		}),
	}
	ask.register(cmd)
	cmd.Flags().StringVarP(&file, "config", "c", "", "answer from this configuration `FILE`")
	return cmd
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
		return nil, err
	}
	local, err := hostnet.Local(c.Device.Name)
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
	r.add("because", x.Detail)
	if x.Verdict != "" {
		r.add("verdict", x.Verdict)
	}
	if x.Map != nil && x.Map.Label != "" {
		r.add("label", x.Map.Label)
	}
	if x.Origin != "" {
		r.add("origin", x.Origin)
	}
}

func leaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "Addresses lent from pools",
		RunE:  wantsCommand,
	}
	cmd.AddCommand(leaseListCommand())
	return cmd
}

func leaseListCommand() *cobra.Command {
	var ask asking
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List what is lent now",
		Args:  cobra.NoArgs,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := background()
			defer stop()
			return listing(&ask, cmd.OutOrStdout(), ask.client().Leases(ctx),
				[]any{"IPV4", "IPV6", "POOL", "SINCE", "IDLE"},
				func(l mapping.Lease) []any {
					return []any{l.IPv4, l.IPv6, l.Pool, l.Since.Local().Format(time.DateTime), time.Duration(l.Idle) * time.Second}
				})
		}),
	}
	ask.register(cmd)
	return cmd
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
