package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/translate"
)

func statusCommand() *cobra.Command {
	var ask asking
	var wait time.Duration
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What the running natless is, has and lacks",
		Long: `Begins with "ok", or with "degraded: " and why, and shows then what changes: how
full the pools are, what is attached, warnings; last what is always the same. It
fails when natless does not run, or cannot do all it was asked for.

With --wait it waits until natless is ready. It gives up when the time is over, and
at once where waiting is no use: when this user may not ask, or when systemd says
that the unit has failed.

With --watch it is asked each second until it is interrupted: in place on a
terminal, otherwise one answer after the other, with the packets of a second and
what changed last.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			if watch {
				return watchStatus(cmd, &ask)
			}
			ctx, stop := background()
			defer stop()
			s, err := askStatus(ctx, &ask, wait)
			if err != nil {
				return err
			}
			if err := ask.object(cmd.OutOrStdout(), s, func(r *rows) { tabulateStatus(r, s) }); err != nil {
				return err
			}
			if s.Degraded {
				return errors.New("natless is degraded")
			}
			return nil
		}),
	}
	ask.register(cmd)
	limited := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("wait") && wait <= 0 {
			return fmt.Errorf("--wait=%v: expected a duration above 0, such as 30s", wait)
		}
		return limited(cmd, args)
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until natless is ready, so long at most (30s unless given)")
	cmd.Flags().Lookup("wait").NoOptDefVal = "30s"
	cmd.Flags().BoolVar(&watch, "watch", false, "ask each second")
	cmd.MarkFlagsMutuallyExclusive("wait", "watch")
	return cmd
}

// askStatus asks once, or with a limit until there is an answer or none can come.
func askStatus(ctx context.Context, ask *asking, limit time.Duration) (control.Status, error) {
	over := time.Now().Add(limit)
	failing := 0 // looks in a row that found the unit failed
	for i := 0; ; i++ {
		s, err := ask.client().Status(ctx)
		switch {
		case err == nil || limit == 0 || ctx.Err() != nil || errors.Is(err, fs.ErrPermission):
			return s, err
		case time.Now().After(over):
			return s, fmt.Errorf("not ready after %v: %w", limit, err)
		}
		if i%5 == 0 { // systemd is not asked each time
			unit := failedUnit(ctx, ask.socket.Socket())
			if failing++; unit == "" || hostnet.Running() != nil {
				failing = 0 // one that was started by hand may be about to answer
			}
			if failing > 1 {
				return s, fmt.Errorf("%s has failed: journalctl -u %[1]s says why: %w", unit, err)
			}
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// failedUnit is the unit whose natless is at a socket, where systemd has given it up;
// "" for none, or where there is no systemd.
func failedUnit(ctx context.Context, socket string) string {
	ctx, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=Id,ActiveState,Environment", "natless.service", "natless@*.service").Output()
	if err != nil {
		return ""
	}
	for block := range strings.SplitSeq(string(out), "\n\n") {
		unit := map[string]string{}
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			unit[key] = value
		}
		at := config.Default().Control.Socket
		for _, variable := range strings.Fields(unit["Environment"]) {
			if path, ok := strings.CutPrefix(variable, config.SocketVariable+"="); ok {
				at = path
			}
		}
		if unit["ActiveState"] == "failed" && at == socket {
			return unit["Id"]
		}
	}
	return ""
}

// watchStatus shows the status each second, on a terminal with the packets of a
// second, and which of its lines changed last.
func watchStatus(cmd *cobra.Command, ask *asking) error {
	var traffic meter
	var last change
	return poll(cmd, &ask.output, func(ctx context.Context, out io.Writer) error {
		s, err := ask.client().Status(ctx)
		if err != nil {
			return err
		}
		if ask.json() {
			return ask.object(out, s, nil)
		}
		n, err := ask.client().Stats(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		traffic.read(counters(n, false), now)
		return ask.object(out, s, func(r *rows) {
			tabulateStatus(r, s)
			r.insert(1, "packets", fmt.Sprintf("IPv6 %s in, %s out; IPv4 %s in, %s out",
				traffic.rate("ipv6_in"), traffic.rate("ipv6_out"), traffic.rate("ipv4_in"), traffic.rate("ipv4_out")))
			if line := last.read(r.lines, now); line != "" {
				r.insert(2, "changed", line)
			}
		})
	})
}

// tabulateStatus begins with whether all is well, and ends with what is always the
// same.
func tabulateStatus(r *rows, s control.Status) {
	verdict := "ok"
	if s.Degraded {
		verdict = "degraded: " + cmp.Or(strings.Join(s.Problems, "; "), strings.Join(s.Warnings, "; "))
	}
	r.add(verdict)
	for _, w := range s.Warnings {
		if !slices.Contains(s.Problems, w) {
			r.add("warning", w)
		}
	}
	r.add("uptime", time.Duration(s.Uptime)*time.Second)
	for _, tabulate := range []func(*rows, control.Status){
		poolRows, clientRows, advertisingRows, nameRows, linkRows, settingRows,
	} {
		tabulate(r, s)
	}
}

func poolRows(r *rows, s control.Status) {
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
}

func clientRows(r *rows, s control.Status) {
	if s.Sessions != nil {
		r.add("sessions", fmt.Sprintf("%d of at most %d", s.Sessions.Open, s.Sessions.Max))
	}
	r.add("attached", s.Attached)
	r.add("revision", s.Revision)
}

func advertisingRows(r *rows, s control.Status) {
	for _, a := range s.RA {
		r.add("advertising", advertising(a))
	}
}

func nameRows(r *rows, s control.Status) {
	d := s.DNS64
	if d == nil {
		return
	}
	r.add("DNS64", listed(d.Listen))
	r.add("DNS queries", fmt.Sprintf("%d, %d answers synthesised, %d of others refused", d.Queries, d.Synthesised, d.Refused))
	for _, u := range d.Upstreams {
		state := ""
		if u.Failing {
			state = ", does not answer"
		}
		r.add("upstream", u.Address.String()+state)
	}
}

func linkRows(r *rows, s control.Status) {
	for _, role := range []hostnet.Role{hostnet.RoleUplink, hostnet.RoleClient, hostnet.RoleUnknown} {
		for _, l := range shownLinks(s.Links, role) {
			r.add(linkTitles[role], l)
		}
	}
}

// settingRows are what stays as it is while natless runs.
func settingRows(r *rows, s control.Status) {
	r.add("state", cmp.Or(s.State.Dir, "in memory"))
	pref64 := "none"
	if s.Pref64.IsValid() {
		pref64 = s.Pref64.String()
	}
	r.add("pref64", pref64)
	r.add("own addresses", fmt.Sprintf("%v, %v", s.OwnIPv4, s.OwnIPv6))
	r.add("device", fmt.Sprintf("%s, mtu %d, queues %d, of %d rings each", s.Device, s.MTU, s.Queues, s.Rings))
	r.add("offloads", s.Offloads)
	r.add("refused", strings.Join(s.Refused, "; "))
	r.add("confined", s.Confined)
	r.add("configuration", strings.Join(append([]string{cmp.Or(s.File, "none")}, s.Flags...), " "))
	r.add("version", s.Version)
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
	return fmt.Sprintf("on %s from %v: %d sent, the last at %s", a.Interface, a.Address, a.Sent, local(a.Last))
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
terminal, otherwise one answer after the other, with how much each grows in a
second, and when it grew last.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			var m *meter
			show := func(ctx context.Context, out io.Writer) error {
				s, err := ask.client().Stats(ctx)
				if err != nil {
					return err
				}
				return ask.object(out, s, func(r *rows) { tabulateStats(r, counters(s, explain), m) })
			}
			if watch {
				m = new(meter)
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

// counter is one of those that natless keeps, and what there is to say of it.
type counter struct {
	name string
	n    uint64
	note string
}

// counters are those in the order in which they are shown: of the verdicts those
// that occurred, or with their explanations all.
func counters(s control.Stats, explain bool) (list []counter) {
	for _, t := range []struct {
		name string
		control.Traffic
	}{{"ipv6_in", s.IPv6In}, {"ipv4_out", s.IPv4Out}, {"ipv4_in", s.IPv4In}, {"ipv6_out", s.IPv6Out}} {
		list = append(list, counter{t.name, t.Packets, fmt.Sprintf("%d bytes", t.Bytes)})
	}
	for v := range translate.Verdict(translate.Verdicts) {
		c := counter{name: v.String(), n: s.Verdicts[v.String()]}
		if explain {
			c.note = explanation(v)
		}
		if c.n > 0 || explain {
			list = append(list, c)
		}
	}
	return append(list, counter{"errors_sent", s.ErrorsSent, ""}, counter{"errors_suppressed", s.ErrorsSuppressed, ""},
		counter{"write_errors", s.WriteErrors, ""}, counter{"held", s.Held, ""}, counter{"device_drops", s.DeviceDrops, ""})
}

// tabulateStats shows counters; with a meter, which reads them, also how they grow.
func tabulateStats(r *rows, list []counter, m *meter) {
	if m != nil {
		m.read(list, time.Now())
		r.add("COUNTER", "TOTAL", "RATE", "CHANGED", "WHAT")
	}
	for _, c := range list {
		if m == nil {
			r.add(c.name, c.n, c.note)
			continue
		}
		r.add(c.name, c.n, m.rate(c.name), m.changed(c.name), c.note)
	}
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
