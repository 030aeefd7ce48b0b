package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/attach"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/lockfile"
	"github.com/natless/natless/internal/printable"
	"github.com/natless/natless/mapping"
)

// targets is what the help of several commands says.
const targets = `TARGET is the name of a namespace (as ip netns has them), a path with a slash,
a PID, or the name or id of a Podman or Docker container. Where a name means
several of them, netns:NAME, podman:NAME or docker:NAME says which.`

func attachCommand() *cobra.Command {
	var ask asking
	var o attach.Options
	var wait waiting
	var dns string
	cmd := &cobra.Command{
		Use:   "attach TARGET [--dns [ADDRESS]]",
		Short: "Set a container or a network namespace up to use natless",
		Long: `Makes sure that a container or network namespace reaches natless: an IPv6
address, a route to pref64, and a lease that stays until it is detached or goes
away. Where its pool is shared by port ranges its connections take the ports
that need no state. Everything is undone by natless detach.

` + targets,
		Example: `  natless attach web
  natless attach /run/netns/lab --link
  natless attach db --dns
  natless attach docker:db --dns fd00::53`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if args, dns, err = takeDNS(args, dns); err != nil {
				return err
			}
			if o.DNS64 = dns == ownDNS; dns != "" && !o.DNS64 {
				if o.DNS, err = address(dns); err != nil {
					return fmt.Errorf("--dns: %w", err)
				}
			}
			if err := mapping.CheckLabel(o.Label); err != nil {
				return fmt.Errorf("--label: %w", err)
			}
			return does(func(cmd *cobra.Command, args []string) error {
				ctx, stop := background()
				defer stop()
				t, err := attach.Find(ctx, args[0])
				if err != nil {
					return err
				}
				o.Wait = wait.lock(cmd)
				r, err := attach.Attach(ctx, ask.client(), t, o)
				if err != nil {
					return err
				}
				what := "attached "
				if r.Already {
					what = "already attached "
				}
				return said(cmd, &ask, r, what+name(r.Attachment, args[0]), "detach "+args[0])
			})(cmd, args)
		},
	}
	ask.register(cmd)
	cmd.Flags().BoolVar(&o.Link, "link", false, "make a link to the host, with a ULA, where it has no IPv6 that leads to natless")
	cmd.Flags().StringVar(&o.Label, "label", "", "call the lease `NAME` (default the container's or namespace's name, or for a process its unit's)")
	cmd.Flags().StringVar(&dns, "dns", "", "have its programs ask natless's DNS64, or the resolver at this `ADDRESS`")
	cmd.Flags().Lookup("dns").NoOptDefVal = ownDNS
	cmd.Flags().BoolVar(&o.Force, "force", false, "also where it has IPv4 of its own")
	wait.register(cmd)
	return cmd
}

// waiting is how long a command waits for another of natless's.
type waiting struct{ limit time.Duration }

func (w *waiting) register(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&w.limit, "timeout", lockfile.DefaultLimit, "wait so long at most for another natless that works on the same namespace")
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if w.limit <= 0 {
			return fmt.Errorf("--timeout %v: expected a duration above 0, such as 30s", w.limit)
		}
		if before == nil {
			return nil
		}
		return before(cmd, args)
	}
}

func (w *waiting) lock(cmd *cobra.Command) lockfile.Wait {
	return lockfile.Wait{Limit: w.limit, Say: func(line string) { note(cmd, line) }}
}

// ownDNS is what --dns means without an address.
const ownDNS = "natless"

// takeDNS takes the address of "--dns ADDRESS" from the arguments, where a flag
// that may stand alone leaves it.
func takeDNS(args []string, dns string) (target []string, _ string, err error) {
	if len(args) == 1 {
		return args, dns, nil
	}
	if dns == ownDNS {
		for i, a := range args {
			if _, err := netip.ParseAddr(a); err == nil {
				return []string{args[1-i]}, a, nil
			}
		}
	}
	return nil, "", fmt.Errorf("expected one target, not %s", strings.Join(args, " and "))
}

// name is what an attachment is called.
func name(a mapping.Attachment, given string) string {
	if a.Label == given || a.Label == "" {
		return given
	}
	return fmt.Sprintf("%s (%s)", given, a.Label)
}

// said writes a line of what was done, and how to undo it, and before it what
// the user should know.
func said(cmd *cobra.Command, ask *asking, r attach.Result, what, undo string) error {
	warn(cmd, r)
	line := fmt.Sprintf("%s: %v is %s", what, r.IPv6, r.Side4())
	if len(r.Done) > 0 {
		line += "; made " + strings.Join(r.Done, ", ")
	}
	return ask.line(cmd.OutOrStdout(), r, "%s; undo: natless %s", line, undo)
}

func warn(cmd *cobra.Command, r attach.Result) {
	for _, w := range r.Warnings {
		note(cmd, w)
	}
}

func note(cmd *cobra.Command, line string) {
	fmt.Fprintln(cmd.ErrOrStderr(), "natless: note:", printable.Text(line))
}

func detachCommand() *cobra.Command {
	var ask asking
	var wait waiting
	cmd := &cobra.Command{
		Use:   "detach TARGET",
		Short: "Undo what attach did",
		Long: `Takes back what natless attach did to a container or network namespace, as far
as it is still so, and ends its lease. The address or range is kept for it until
its quarantine is over. While other targets hold the same namespace, only what
concerns this one is undone.

TARGET is as attach had it, or by its label, or by the id that natless ps -o json
has. It need not be there any more.`,
		Args: cobra.ExactArgs(1),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			ctx, stop := background()
			defer stop()
			r, err := attach.Detach(ctx, ask.client(), args[0], wait.lock(cmd))
			if err != nil {
				return err
			}
			warn(cmd, r)
			return ask.line(cmd.OutOrStdout(), r, "detached %s: %v was %s", name(r.Attachment, args[0]), r.IPv6, r.Side4())
		}),
	}
	ask.register(cmd)
	wait.register(cmd)
	cmd.ValidArgsFunction = completeRows(&ask, attachedListing(),
		func(a mapping.Attachment) string { return a.Target + "\t" + a.Label })
	return cmd
}

func psCommand() *cobra.Command {
	var ask asking
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List what is attached",
		Args:  cobra.NoArgs,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			return attachedListing().list(&ask, cmd.OutOrStdout())
		}),
	}
	ask.register(cmd)
	return cmd
}

func attachedListing() *listing[mapping.Attachment] {
	return &listing[mapping.Attachment]{
		ask:  func(ctx context.Context, c *control.Client) (control.Listing, error) { return c.ListAttachments(ctx) },
		head: []any{"TARGET", "LABEL", "IPV6", "IPV4", "PORTS", "SINCE", "STATE"},
		cells: func(a mapping.Attachment) []any {
			ipv4 := "-"
			if a.IPv4.IsValid() {
				ipv4 = a.IPv4.String()
			}
			return []any{a.Target, orDash(a.Label), a.IPv6, ipv4, cmp.Or(a.Ports, "-"), local(a.Since), health(a)}
		},
		admit: func(mapping.Attachment) bool { return true },
	}
}

// health is whether an attachment works, as far as natless sees.
func health(a mapping.Attachment) string {
	if a.Problem == "" {
		return "ok"
	}
	return "broken: " + a.Problem
}

func portRangeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "port-range",
		Short: "The ports that connections of a namespace take",
		Long: `A client of a pool of mode port-range owns a range of ports. Connections that
take one of its stateless part need no session. natless attach sees to that by
settings of the namespace, net.ipv4.ip_local_port_range and net.ipv4.tcp_tw_reuse,
which these commands show, take back and set again.

` + targets,
		RunE: wantsCommand,
	}
	cmd.AddCommand(portRangeSetCommand(), portRangeUnsetCommand(), portRangeShowCommand())
	return cmd
}

func portRangeSetCommand() *cobra.Command {
	var ask asking
	var wait waiting
	cmd := &cobra.Command{
		Use:   "set TARGET",
		Short: "Have connections of a namespace take the ports of its range",
		Args:  cobra.ExactArgs(1),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			ctx, stop := background()
			defer stop()
			r, err := attach.SetRange(ctx, ask.client(), args[0], wait.lock(cmd))
			if err != nil {
				return err
			}
			return said(cmd, &ask, r, "set the port range of "+name(r.Attachment, args[0]), "detach "+args[0])
		}),
	}
	ask.register(cmd)
	wait.register(cmd)
	return cmd
}

func portRangeUnsetCommand() *cobra.Command {
	var ask asking
	var wait waiting
	cmd := &cobra.Command{
		Use:   "unset TARGET",
		Short: "Give an attached namespace back the ports it had",
		Args:  cobra.ExactArgs(1),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			ctx, stop := background()
			defer stop()
			r, err := attach.UnsetRange(ctx, ask.client(), args[0], wait.lock(cmd))
			if err != nil {
				return err
			}
			warn(cmd, r)
			return ask.line(cmd.OutOrStdout(), r, "%s takes the ports it had before; undo: natless port-range set %s", name(r.Attachment, args[0]), args[0])
		}),
	}
	ask.register(cmd)
	wait.register(cmd)
	return cmd
}

func portRangeShowCommand() *cobra.Command {
	var form output
	cmd := &cobra.Command{
		Use:   "show TARGET",
		Short: "Show which ports connections of a namespace take, attached or not",
		Args:  cobra.ExactArgs(1),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			ctx, stop := background()
			defer stop()
			p, err := attach.ShowRange(ctx, args[0])
			if err != nil {
				return err
			}
			return form.object(cmd.OutOrStdout(), p, func(r *rows) {
				r.add("ports", p.Ports)
				r.add("reserved", orDash(p.Reserved))
				r.add("tcp_tw_reuse", p.TwReuse)
			})
		}),
	}
	form.register(cmd)
	return cmd
}
