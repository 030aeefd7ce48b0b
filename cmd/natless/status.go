package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/translate"
)

func statusCommand() *cobra.Command {
	var ask asking
	var wait, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What the running natless is, has and lacks",
		Long: `Shows version, device, offloads, pools and how full they are, and warnings.
It fails when natless does not run, or cannot do all it was asked for.

With --watch it is asked each second until it is interrupted: in place on a
terminal, otherwise one answer after the other.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			if watch {
				return poll(cmd, &ask.output, func(ctx context.Context, out io.Writer) error {
					s, err := ask.client().Status(ctx)
					if err != nil {
						return err
					}
					return ask.object(out, s, func(r *rows) { tabulateStatus(r, s) })
				})
			}
			ctx, stop := background()
			defer stop()
			s, err := askStatus(ctx, ask.client(), wait)
			if err != nil {
				return err
			}
			if err := ask.object(cmd.OutOrStdout(), s, func(r *rows) { tabulateStatus(r, s) }); err != nil {
				return err
			}
			if s.Degraded {
				return errors.New("natless is degraded: see the warnings")
			}
			return nil
		}),
	}
	ask.register(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until natless is ready")
	cmd.Flags().BoolVar(&watch, "watch", false, "ask each second")
	cmd.MarkFlagsMutuallyExclusive("wait", "watch")
	return cmd
}

func askStatus(ctx context.Context, c *control.Client, wait bool) (control.Status, error) {
	for {
		s, err := c.Status(ctx)
		if err == nil || !wait {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func tabulateStatus(r *rows, s control.Status) {
	r.add("version", s.Version)
	r.add("uptime", time.Duration(s.Uptime)*time.Second)
	r.add("device", fmt.Sprintf("%s, mtu %d, queues %d, of %d rings each", s.Device, s.MTU, s.Queues, s.Rings))
	r.add("offloads", s.Offloads)
	pref64 := "none"
	if s.Pref64.IsValid() {
		pref64 = s.Pref64.String()
	}
	r.add("pref64", pref64)
	r.add("own addresses", fmt.Sprintf("%v, %v", s.OwnIPv4, s.OwnIPv6))
	for _, p := range s.Pools {
		shared := ""
		if p.PerAddress > 0 {
			shared = fmt.Sprintf(" port ranges (%d an address)", p.PerAddress)
		}
		r.add("pool", fmt.Sprintf("%v: %d of %d%s lent, %d in quarantine", p.IPv4, p.Lent, p.Usable, shared, p.Quarantined))
	}
	for _, n := range s.Networks {
		r.add("leases of", fmt.Sprintf("%v: %d", n.Prefix, n.Leases))
	}
	if s.Sessions != nil {
		r.add("sessions", fmt.Sprintf("%d of at most %d", s.Sessions.Open, s.Sessions.Max))
	}
	r.add("attached", s.Attached)
	for _, a := range s.RA {
		r.add("advertising", advertising(a))
	}
	state := "in memory"
	if s.State.Dir != "" {
		state = s.State.Dir
	}
	r.add("state", state)
	r.add("revision", s.Revision)
	if d := s.DNS64; d != nil {
		r.add("DNS64", fmt.Sprintf("%s; %d queries, %d answers synthesised, %d of others refused", listed(d.Listen), d.Queries, d.Synthesised, d.Refused))
		for _, u := range d.Upstreams {
			state := ""
			if u.Failing {
				state = ", does not answer"
			}
			r.add("upstream", u.Address.String()+state)
		}
	}
	for _, role := range []hostnet.Role{hostnet.RoleUplink, hostnet.RoleClient, hostnet.RoleUnknown} {
		for _, l := range shownLinks(s.Links, role) {
			r.add(linkTitles[role], l)
		}
	}
	r.add("refused", strings.Join(s.Refused, "; "))
	r.add("confined", s.Confined)
	for _, w := range s.Warnings {
		r.add("warning", w)
	}
}

var linkTitles = map[hostnet.Role]string{
	hostnet.RoleUplink: "uplink", hostnet.RoleClient: "links to clients", hostnet.RoleUnknown: "other link",
}

// mostLinks is how many links to clients are named: containers have one each.
const mostLinks = 8

// shownLinks are the links of a role in words: those to clients in one line, the
// others each with the reason.
func shownLinks(links []hostnet.LinkRole, role hostnet.Role) (lines []string) {
	var names []string
	for _, l := range links {
		if l.Role == role {
			names = append(names, l.Link)
			lines = append(lines, l.Link+" ("+l.Why+")")
		}
	}
	if role != hostnet.RoleClient || len(names) == 0 {
		return lines
	}
	more := ""
	if n := len(names) - mostLinks; n > 0 {
		names, more = names[:mostLinks], fmt.Sprintf(" and %d more", n)
	}
	return []string{strings.Join(names, ", ") + more}
}

// advertising is how it goes with router advertisements on an interface.
func advertising(a control.Advertising) string {
	switch {
	case a.Problem != "":
		return fmt.Sprintf("nothing on %s, see the warnings", a.Interface)
	case a.Last.IsZero():
		return fmt.Sprintf("on %s, soon", a.Interface)
	}
	return fmt.Sprintf("on %s from %v: %d sent, the last at %s", a.Interface, a.Address, a.Sent, a.Last.Format(time.TimeOnly))
}

func statsCommand() *cobra.Command {
	var ask asking
	var explain, watch bool
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Every counter, by verdict",
		Long: `Shows what became of all packets since natless started. A super-packet, many
segments in one, counts once. With --explain also what each counter means and
what to do about it.

With --watch they are asked each second until it is interrupted: in place on a
terminal, otherwise one answer after the other.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			show := func(ctx context.Context, out io.Writer) error {
				s, err := ask.client().Stats(ctx)
				if err != nil {
					return err
				}
				return ask.object(out, s, func(r *rows) { tabulateStats(r, s, explain) })
			}
			if watch {
				return poll(cmd, &ask.output, show)
			}
			ctx, stop := background()
			defer stop()
			return show(ctx, cmd.OutOrStdout())
		}),
	}
	ask.register(cmd)
	cmd.Flags().BoolVar(&explain, "explain", false, "say what each counter means and what to do")
	cmd.Flags().BoolVar(&watch, "watch", false, "ask each second")
	return cmd
}

func tabulateStats(r *rows, s control.Stats, explain bool) {
	for _, t := range []struct {
		name string
		control.Traffic
	}{{"ipv6_in", s.IPv6In}, {"ipv4_out", s.IPv4Out}, {"ipv4_in", s.IPv4In}, {"ipv6_out", s.IPv6Out}} {
		r.add(t.name, t.Packets, fmt.Sprintf("%d bytes", t.Bytes))
	}
	for v := range translate.Verdict(translate.Verdicts) {
		n := s.Verdicts[v.String()]
		if n == 0 && !explain {
			continue
		}
		cells := []any{v, n}
		if explain {
			cells = append(cells, explanation(v))
		}
		r.add(cells...)
	}
	r.add("errors_sent", s.ErrorsSent)
	r.add("errors_suppressed", s.ErrorsSuppressed)
	r.add("write_errors", s.WriteErrors)
	r.add("held", s.Held)
	r.add("device_drops", s.DeviceDrops)
}

// explanation is the verdict's row in the table of verdicts, in one line.
func explanation(v translate.Verdict) string {
	info := v.Info()
	basis := info.Section
	if info.Reply != "" {
		basis += "; answered with " + info.Reply
	}
	return fmt.Sprintf("%s (%s)", info.Advice, basis)
}

func listed(list []netip.AddrPort) string { return strings.Join(texts(list), ", ") }
