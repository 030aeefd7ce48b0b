// Command benchpeers measures how fast natless is beside what else could stand
// in its place: native IPv6 forwarding, the kernel's NAT44, TAYGA where it is
// installed, and any translator named with --peer. scripts/bench-peers builds
// and runs it. It installs nothing, and touches only namespaces of its own:
//
//	client 2001:db8:1::2 ── host (the translator) ── server 203.0.113.2
//	       192.0.2.2                                        2001:db8:2::2
//
// Rounds are interleaved: every round measures every contender, each in new
// namespaces, so that whatever else the machine does falls on all of them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: scripts/bench-peers [flags]

Measures one TCP stream each way, four streams, UDP of 64, 512 and 1400 bytes
and the round-trip time, through native IPv6 forwarding, kernel NAT44, natless
(bin/natless, by "make build"), TAYGA where installed, and every --peer.

A --peer command runs by sh in the host's namespace until it gets SIGTERM. It
makes its own device and routes, by these variables: PREF64, POOL (IPv4, routed
here by the server), CLIENTS (IPv6), OWN4 (in the pool), OWN6, DIR (scratch).

`

type settings struct {
	Rounds  int      `json:"rounds"`
	Seconds int      `json:"seconds"`
	Only    []string `json:"only,omitempty"`
	Measure []string `json:"measure,omitempty"`
	json    string
	natless string
	peers   []contender
}

func main() {
	s, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (*settings, error) {
	s := &settings{}
	list := func(to *[]string) func(string) error {
		return func(v string) error { *to = append(*to, strings.Split(v, ",")...); return nil }
	}
	f := flag.NewFlagSet("bench-peers", flag.ContinueOnError)
	f.Usage = func() { fmt.Fprint(f.Output(), usage); f.PrintDefaults() }
	f.IntVar(&s.Rounds, "rounds", 5, "rounds over all contenders")
	f.IntVar(&s.Seconds, "seconds", 5, "seconds per measurement")
	f.StringVar(&s.json, "json", "", "write every figure to this `file`")
	f.StringVar(&s.natless, "natless", "bin/natless", "the natless `binary`")
	f.Func("only", "contenders to measure, `comma-separated` (default all there are)", list(&s.Only))
	f.Func("measure", "of tcp,tcp-reverse,tcp-4,udp-64,udp-512,udp-1400,rtt (default all)", list(&s.Measure))
	f.Func("peer", "another translator, `name=command`; repeatable", func(v string) error {
		name, command, ok := strings.Cut(v, "=")
		if !ok || name == "" || command == "" {
			return errors.New("expected name=command")
		}
		s.peers = append(s.peers, contender{name: name, target: translated, command: command})
		return nil
	})
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 || s.Rounds < 1 || s.Seconds < 1 {
		return nil, errors.New("expected flags only, at least one round and one second")
	}
	return s, nil
}

func run(ctx context.Context, s *settings) (err error) {
	contenders, measures, err := choose(s)
	if err != nil {
		return err
	}
	// A measurement that hangs is given up 8 seconds late; usually none does.
	each := time.Duration(s.Seconds)*time.Second + 400*time.Millisecond
	total := time.Duration(s.Rounds*len(contenders)) * (time.Duration(len(measures))*each + 1500*time.Millisecond)
	ctx, cancel := context.WithTimeoutCause(ctx, total*3/2+time.Minute, errors.New("it took far longer than planned"))
	defer cancel()
	fmt.Fprintf(os.Stderr, "%d rounds, %d contenders, %d measurements of %d s: about %v, at most %v\n", s.Rounds,
		len(contenders), len(measures), s.Seconds, total.Round(time.Second), (total*3/2 + time.Minute).Round(time.Second))

	r := &report{Settings: s, Machine: machine()}
	before := cpuNow()
	steps, step := s.Rounds*len(contenders)*len(measures), 0
	for round := 1; round <= s.Rounds; round++ {
		first := (round - 1) % len(contenders) // nobody is always first
		for _, c := range slices.Concat(contenders[first:], contenders[:first]) {
			results := measureAll(ctx, c, measures, s.Seconds, func(v result) {
				step++
				fmt.Fprintf(os.Stderr, "[%d/%d] round %d  %-16s %-12s %s\n", step, steps, round, c.name, v.Measure, v)
			})
			if ctx.Err() != nil {
				return fmt.Errorf("stopped in round %d: %w", round, context.Cause(ctx))
			}
			for _, v := range results {
				v.Round = round
				r.Raw = append(r.Raw, v)
			}
		}
	}
	r.Machine.Others, r.Machine.OthersPercent = before.othersSince()
	r.summarize(contenders, measures)
	r.print(os.Stdout)
	if s.json != "" {
		b, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.json, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if n := r.failures(); n > 0 {
		return fmt.Errorf("%d of %d measurements failed", n, steps)
	}
	return nil
}
