package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/trace"
)

func traceCommand() *cobra.Command {
	var ask asking
	var file string
	cmd := &cobra.Command{
		Use:   "trace PACKET...",
		Short: "What would become of a packet, step by step",
		Long: `Takes a packet through all the steps of translation and shows what was found
and decided, by which rule and which section of which RFC, and what leaves. The
running daemon answers by its tables as they are; with -c FILE it is answered
from a configuration, without a daemon. Nothing is sent and nothing is leased: a
client without a lease is shown with the address it would get.

PACKET is the packet in hex from its IP header on, spaced as you like and with
the offsets of a hex dump or without, or words:

  tcp SRC SPORT DST DPORT   a SYN
  udp SRC SPORT DST DPORT
  icmp SRC DST              an echo request

then, if need be: ttl N (TTL or hop limit; 64), len N (bytes in the whole
packet; no more than its headers), df (IPv4: do not fragment). With - the packet
is read from standard input.

The exit code is 0 whether the packet would leave or not: the answer is the
verdict, "leaves" and "verdict" with -o json.`,
		Example: `  natless trace tcp 2001:db8::5 4000 2001:db8:64::c000:201 80
  natless trace udp 192.0.2.1 53 198.51.100.5 4000 len 1500 df -c natless.toml
  xxd -p packet.bin | natless trace - -o json | jq -r .verdict`,
		RunE: func(cmd *cobra.Command, args []string) error {
			packet, err := readPacket(args, cmd.InOrStdin())
			if err != nil {
				return err // wrong usage
			}
			return does(func(cmd *cobra.Command, _ []string) error {
				r, err := traced(&ask, file, packet)
				if err != nil {
					return err
				}
				return ask.object(cmd.OutOrStdout(), r, func(rows *rows) { tabulateTrace(rows, r) })
			})(cmd, args)
		},
	}
	ask.register(cmd)
	cmd.Flags().StringVarP(&file, "config", "c", "", "answer from this configuration `FILE`")
	return cmd
}

func readPacket(args []string, in io.Reader) ([]byte, error) {
	if len(args) != 1 || args[0] != "-" {
		return trace.ReadPacket(strings.Join(args, " "))
	}
	text, err := io.ReadAll(io.LimitReader(in, 16*trace.MaxPacket)) // a hex dump has offsets and spaces
	if err != nil {
		return nil, &failure{fmt.Errorf("reading the packet: %w", err)}
	}
	return trace.ReadPacket(string(text))
}

func traced(ask *asking, file string, packet []byte) (r trace.Report, err error) {
	if file != "" {
		return traceOffline(file, packet)
	}
	ctx, stop := background()
	defer stop()
	data, err := ask.client().Trace(ctx, packet)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}

func traceOffline(file string, packet []byte) (r trace.Report, err error) {
	c, err := config.Load(file)
	if err != nil {
		return r, err
	}
	t, err := offlineTracing(c)
	if err != nil {
		return r, err
	}
	return trace.Trace(t, packet), nil
}

// offlineTracing is what packets meet in a daemon that begins on this host
// with the configuration.
func offlineTracing(c *config.Config) (t trace.Config, err error) {
	table, err := offline(c)
	if err != nil {
		return t, err
	}
	mtu := c.Device.MTU
	if mtu == 0 {
		if mtu, err = hostnet.ChooseMTU(c.Device.Name); err != nil {
			return t, err
		}
	}
	return daemon.Tracing(c, table, mtu), nil
}

func tabulateTrace(rows *rows, r trace.Report) {
	rows.add("packet", r.Packet.Text)
	for _, s := range r.Steps {
		rows.add(strings.ReplaceAll(s.Step, "_", " "), s)
	}
	rows.add("verdict", fmt.Sprintf("%s: %s (%s)", r.Verdict, r.Advice, r.Section))
	for _, p := range r.Out {
		rows.add("leaves", p.Text)
	}
	switch {
	case r.Error != nil:
		rows.add("dropped", "and answered with this ICMP error")
		rows.add("error", r.Error.Text)
	case !r.Leaves:
		rows.add("dropped", "without an answer")
	}
}
