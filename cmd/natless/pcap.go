package main

import (
	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/capture"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/translate"
)

func pcapCommand() *cobra.Command {
	var settings settings
	var form output
	cmd := &cobra.Command{
		Use:   "pcap IN OUT",
		Short: "Translate a capture offline",
		Long: `Translates each packet of the capture IN (pcap or pcapng; raw IP, Ethernet or
Linux cooked) as a daemon with this configuration would, and writes what would
leave to OUT (pcap, raw IP): the packets translated, fragments, echo replies and
the ICMP errors that natless would send, each at the time of the packet it comes
of. Packets of either family may be in one capture. Leases are made and end by
the time of the capture, in memory; no daemon is asked. OUT is replaced when all
of it is done.

Frames without an IP packet and packets that the capture cut short are counted
and left out. "local" among the clients is what is local to this host: for a
capture from elsewhere name the clients, with --clients.`,
		Example: `  natless pcap in.pcapng out.pcap --clients 2001:db8::/32 --map 192.0.2.1=2001:db8::1`,
		Args:    cobra.ExactArgs(2),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			c, err := settings.load()
			if err != nil {
				return err
			}
			t, err := offlineTracing(c)
			if err != nil {
				return err
			}
			sharing, err := daemon.Sharing(c)
			if err != nil {
				return err
			}
			ctx, stop := background()
			defer stop()
			s, err := capture.File(ctx, capture.Config{Resolver: t.Table, Sharing: sharing, Options: t.Options, IPv4: t.IPv4, IPv6: t.IPv6}, args[0], args[1])
			if err != nil {
				return err
			}
			return form.object(cmd.OutOrStdout(), s, func(r *rows) { tabulateCapture(r, s) })
		}),
	}
	form.register(cmd)
	settings.registerOnly(cmd, "config", "pref64", "map", "pool", "pool-mode", "clients")
	return cmd
}

func tabulateCapture(r *rows, s capture.Summary) {
	r.add("frames", s.Frames)
	r.add("written", s.Written)
	for _, left := range []struct {
		name, why string
		n         uint64
	}{
		{"not_ip_frames", "Left out: they carry no IP packet.", s.NotIP},
		{"cut_short", "Left out: the capture holds a part of the packet only (its snap length).", s.CutShort},
	} {
		if left.n > 0 {
			r.add(left.name, left.n, left.why)
		}
	}
	for v := range translate.Verdict(translate.Verdicts) {
		if n := s.Verdicts[v.String()]; n > 0 {
			r.add(v, n, explanation(v))
		}
	}
	r.add("errors_sent", s.ErrorsSent)
	if s.ErrorsSuppressed > 0 {
		r.add("errors_suppressed", s.ErrorsSuppressed, "ICMP errors that the rate limit keeps back.")
	}
}
