package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/attach"
	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/mapping"
)

func leaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "Addresses lent from pools",
		RunE:  wantsCommand,
	}
	cmd.AddCommand(leaseListCommand(), leaseReleaseCommand())
	return cmd
}

func leaseListCommand() *cobra.Command {
	var ask asking
	var within leaseFilter
	var at pastTime
	var watch bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List what is lent now, or was at a time",
		Long: `Lists what is lent from the pools. With --at it asks the history, which goes back
as far as state.history: who had which address at that time.

With --watch the list is followed by what changes until it is interrupted: in
place on a terminal, otherwise as a line for each change.`,
		Example: `  natless lease ls --client 2001:db8:1::/64
  natless lease ls --at "2026-01-31 14:05" --pool 169.254.64.7
  natless lease ls --at 90m --pool 203.0.113.7 --port 40000`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			if !at.IsZero() {
				return pastListing(at.Time, &within).list(&ask, cmd.OutOrStdout())
			}
			return leaseListing(&within, watch).run(cmd, &ask, watch)
		}),
	}
	ask.more = true
	ask.register(cmd)
	within.register(cmd)
	cmd.Flags().Var(&at, "at", "what was lent at this `TIME`: 2026-01-31T14:05:00Z, \"2026-01-31 14:05\" by the local clock, or so long ago: 90m, 2d")
	cmd.Flags().BoolVar(&watch, "watch", false, "go on with what changes")
	cmd.MarkFlagsMutuallyExclusive("at", "watch")
	return cmd
}

// leaseListing is the leases now, a row for each client, who may share the IPv4
// address with others. Idle times are of the moment: a list that goes on is
// without them.
func leaseListing(within *leaseFilter, watch bool) *listing[mapping.Lease] {
	l := &listing[mapping.Lease]{
		name: "lease ls",
		ask:  func(ctx context.Context, c *control.Client) (control.Listing, error) { return c.ListLeases(ctx) },
		few:  5,
		head: []any{"IPV4", "PORTS", "IPV6", "IDLE", "LABEL", "POOL", "SINCE", "PINNED"},
		cells: func(l mapping.Lease) []any {
			pinned := "-"
			if l.Pinned {
				pinned = "yes"
			}
			return []any{l.IPv4, orDash(l.Ports), l.IPv6, time.Duration(l.Idle) * time.Second, orDash(l.Label), l.Pool, local(l.Since), pinned}
		},
		admit: func(l mapping.Lease) bool { return within.admit(l.IPv4, l.IPv6, l.Label, l.Ports) },
		compare: func(a, b mapping.Lease) int {
			return cmp.Or(a.IPv4.Compare(b.IPv4), cmp.Compare(firstPort(a.Ports), firstPort(b.Ports)))
		},
		event: func(e mapping.Event) (l mapping.Lease, there, is bool) {
			if e.Lease == nil {
				return l, false, false
			}
			return *e.Lease, e.Op != mapping.OpLeaseEnded, true
		},
	}
	if watch {
		const idle = 3
		head, cells := l.head, l.cells
		l.few--
		l.head = slices.Delete(head, idle, idle+1)
		l.cells = func(l mapping.Lease) []any { return slices.Delete(cells(l), idle, idle+1) }
	}
	return l
}

// leaseFilter admits leases that are all of what is given.
type leaseFilter struct {
	sides
	port port
}

func (f *leaseFilter) register(cmd *cobra.Command) {
	f.sides.register(cmd)
	cmd.Flags().Var(&f.port, "port", "only whose port of the IPv4 address this `PORT` is, or was")
}

func (f *leaseFilter) admit(v4, v6 netip.Addr, label, ports string) bool {
	return f.sides.admit(single(v4), single(v6), label) && f.port.admits(ports)
}

// port is a flag: a port, or 0 for all.
type port uint16

func (p *port) Type() string { return "port" }

func (p *port) String() string {
	if *p == 0 {
		return ""
	}
	return strconv.Itoa(int(*p))
}

func (p *port) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return errors.New("expected a port, 1 to 65535")
	}
	*p = port(n)
	return nil
}

// admits a range of ports that the port is in. Who has none has all of the address.
func (p *port) admits(ports string) bool {
	if *p == 0 || ports == "" {
		return true
	}
	r, err := attach.ParsePorts(ports)
	return err == nil && r.First <= uint16(*p) && uint16(*p) <= r.Last
}

// firstPort is that of "FIRST-LAST", 0 of "".
func firstPort(ports string) uint16 {
	p, _ := attach.ParsePorts(ports)
	return p.First
}

func pastListing(at time.Time, within *leaseFilter) *listing[control.PastLease] {
	return &listing[control.PastLease]{
		ask: func(ctx context.Context, c *control.Client) (control.Listing, error) {
			return control.Listing{Rows: c.LeasesAt(ctx, at)}, nil
		},
		few:  5,
		head: []any{"IPV4", "PORTS", "IPV6", "SINCE", "LABEL", "UNTIL"},
		cells: func(l control.PastLease) []any {
			until := "-"
			if !l.Until.IsZero() {
				until = local(l.Until)
			}
			return []any{l.IPv4, orDash(l.Ports), l.IPv6, local(l.Since), orDash(l.Label), until}
		},
		admit: func(l control.PastLease) bool { return within.admit(l.IPv4, l.IPv6, l.Label, l.Ports) },
	}
}

// local is a time as all tables have it.
func local(t time.Time) string { return t.Local().Format(time.DateTime) }

// stamp is a time inside a text of the daemon's, which is for programs too.
var stamp = regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)

// localTimes has the times inside a text as tables have them.
func localTimes(text string) string {
	return stamp.ReplaceAllStringFunc(text, func(s string) string {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return s
		}
		return local(t)
	})
}

// pastTime is a flag: a time that is over.
type pastTime struct{ time.Time }

func (t *pastTime) Type() string { return "time" }

func (t *pastTime) String() string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}

func (t *pastTime) Set(s string) error {
	now := time.Now()
	at, err := parseTime(s, now)
	if err == nil && at.After(now) {
		err = fmt.Errorf("%s is to come: expected a time that is over", at.Format(time.RFC3339))
	}
	t.Time = at
	return err
}

// parseTime reads a time as people write it, or how long ago it was.
func parseTime(s string, now time.Time) (time.Time, error) {
	if ago, err := config.ParseDuration(s); err == nil {
		return now.Add(-ago), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New(`expected a time such as 2026-01-31T14:05:00Z or "2026-01-31 14:05", or how long ago, such as 90m or 2d`)
}

func leaseReleaseCommand() *cobra.Command {
	var ask asking
	cmd := &cobra.Command{
		Use:   "release ADDR",
		Short: "End the lease of an address of either family",
		Long: `Ends a lease, by its IPv4 or its IPv6 address; where clients share the IPv4
address, by the latter. A client that is still there leases an address with its
next packet: the same one, as long as nobody else has it. A lease that is pinned
by an attachment is refused: natless detach ends it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := address(args[0])
			if err != nil {
				return fmt.Errorf("releasing %w", err)
			}
			return does(func(cmd *cobra.Command, _ []string) error {
				ctx, stop := background()
				defer stop()
				l, err := ask.client().Release(ctx, a)
				if err != nil {
					return err
				}
				what := l.IPv4.String()
				if l.Ports != "" {
					what = fmt.Sprintf("ports %s of %v", l.Ports, l.IPv4)
				}
				return ask.line(cmd.OutOrStdout(), l, "released %s, which %v had since %s", what, l.IPv6, local(l.Since))
			})(cmd, args)
		},
	}
	ask.register(cmd)
	cmd.ValidArgsFunction = completeRows(&ask, leaseListing(&leaseFilter{}, false),
		func(l mapping.Lease) string {
			if l.Ports != "" {
				return l.IPv6.String() + "\t" + l.IPv4.String() + " " + l.Ports
			}
			return l.IPv4.String() + "\t" + l.IPv6.String()
		})
	return cmd
}

// completeRows completes an argument by the rows of a listing; silently by
// none when the daemon cannot be asked.
func completeRows[T any](ask *asking, l *listing[T], text func(T) string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var found []cobra.Completion
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		if list, err := l.ask(ctx, ask.client()); err == nil {
			for raw := range list.Rows {
				var row T
				if json.Unmarshal(raw, &row) == nil && l.admit(row) {
					found = append(found, text(row))
				}
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}
