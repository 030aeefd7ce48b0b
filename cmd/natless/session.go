package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
)

func sessionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "Flows that take memory",
		RunE:  wantsCommand,
	}
	cmd.AddCommand(sessionListCommand())
	return cmd
}

func sessionListCommand() *cobra.Command {
	var ask asking
	f := sessionFilter{
		client:   prefix{family: 6},
		protocol: word{of: slices.Sorted(maps.Values(control.Protocols))},
		state:    word{of: control.States()},
	}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the flows that take memory, or some of them",
		Long: `Lists the sessions: flows of clients that share an IPv4 address (pools with
mode = "port-range") whose ports arithmetic does not settle. Flows from the
stateless part of a client's ports are not among them, nor is anything where
each client has an address of its own.`,
		Example: `  natless session ls --client 2001:db8:1::/64 --protocol tcp --state established
  natless session ls --remote 192.0.2.80:443 -o json`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			return sessionListing(&f).list(&ask, cmd.OutOrStdout())
		}),
	}
	ask.more = true
	ask.register(cmd)
	cmd.Flags().Var(&f.client, "client", "only those of clients inside this `PREFIX`")
	cmd.Flags().Var(&f.protocol, "protocol", "only those of this `PROTOCOL`: "+strings.Join(f.protocol.of, ", "))
	cmd.Flags().Var(&f.state, "state", "only those in this `STATE`: "+strings.Join(f.state.of, ", "))
	cmd.Flags().Var(&f.remote, "remote", "only those whose far end is this `ADDRESS`, prefix or address:port")
	cmd.Flags().Var(&f.label, "label", "only those of clients with this label, or with one that this `PATTERN` matches (*, ?, [a-z])")
	for _, w := range []struct {
		name string
		of   []string
	}{{"protocol", f.protocol.of}, {"state", f.state.of}} {
		completeWords(cmd, w.name, w.of)
	}
	return cmd
}

func sessionListing(f *sessionFilter) *listing[control.Session] {
	return &listing[control.Session]{
		ask: func(ctx context.Context, c *control.Client) (control.Listing, error) {
			if f.client.IsSingleIP() { // the daemon need not look at the others
				return c.ListSessions(ctx, f.client.Addr())
			}
			return c.ListSessions(ctx, netip.Addr{})
		},
		few:  5,
		head: []any{"PROTOCOL", "CLIENT", "IPV4", "REMOTE", "STATE", "IDLE", "EXPIRES", "LABEL"},
		cells: func(s control.Session) []any {
			remote := s.Remote.String()
			if s.RemotePort != 0 {
				remote = netip.AddrPortFrom(s.Remote, s.RemotePort).String()
			}
			return []any{
				s.Protocol, netip.AddrPortFrom(s.Client, s.ClientPort), netip.AddrPortFrom(s.IPv4, s.Port), remote, s.State,
				time.Duration(s.Idle) * time.Second, time.Duration(s.Expires) * time.Second, orDash(s.Label),
			}
		},
		admit: f.admit,
	}
}

// sessionFilter admits sessions that are all of what is given.
type sessionFilter struct {
	client          prefix
	protocol, state word
	remote          remote
	label           pattern
}

func (f *sessionFilter) admit(s control.Session) bool {
	return f.client.admits(single(s.Client)) && f.protocol.admits(s.Protocol) && f.state.admits(s.State) &&
		f.remote.admits(s.Remote, s.RemotePort) && f.label.admits(s.Label)
}

// word is a flag: one of some words, or none.
type word struct {
	is string
	of []string
}

func (w *word) Type() string   { return "word" }
func (w *word) String() string { return w.is }

func (w *word) Set(s string) error {
	if !slices.Contains(w.of, s) {
		return errors.New("expected one of " + strings.Join(w.of, ", "))
	}
	w.is = s
	return nil
}

func (w *word) admits(s string) bool { return w.is == "" || s == w.is }

// remote is a flag: an IPv4 address or prefix, or an address and port.
type remote struct {
	prefix
	port uint16 // 0: any
}

func (r *remote) String() string {
	if r.port != 0 {
		return fmt.Sprintf("%v:%d", r.Addr(), r.port)
	}
	return r.prefix.String()
}

func (r *remote) Set(s string) error {
	addr, port, withPort := strings.Cut(s, ":")
	p, err := config.ParsePrefix(addr, 4)
	n := uint64(0)
	if withPort && err == nil {
		n, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || withPort && (n == 0 || !p.IsSingleIP()) {
		return errors.New("expected an IPv4 address or prefix, or an address and port such as 192.0.2.80:443")
	}
	r.Prefix, r.port = p, uint16(n)
	return nil
}

func (r *remote) admits(a netip.Addr, port uint16) bool {
	return r.prefix.admits(single(a)) && (r.port == 0 || port == r.port)
}
