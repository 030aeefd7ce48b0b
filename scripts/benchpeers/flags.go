package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

const usage = `usage: scripts/bench-peers [flags]

Measures natless beside native IPv6 forwarding, kernel NAT44, TAYGA where it is
installed and every --peer, in throwaway network namespaces: a client, a host
that forwards or translates, a server. Everything shares this machine's CPUs.
Runs as root, or without where user namespaces are allowed. Ctrl-C ends it and
leaves nothing behind.

Contenders:
  native, nat44     the kernel alone
  tayga             as the distribution packages it
  natless1, 2, 4    bin/natless with as many queues, offloads on
  natless1-off, 2-off                             and off

Measurements:
%s
A --peer command runs by sh in the host's namespace, as a process group that
gets SIGTERM in the end; start the translator with exec. It makes its own device
and routes; forwarding is on. Its environment:
  PREF64   %s, by which clients reach IPv4
  POOL     %s, which the server routes to the host
  CLIENTS  %s, who may use it
  OWN4     %s, in POOL, and
  OWN6     %s: the translator's own addresses, on no link
  DIR      an empty directory, removed in the end
Whatever runs in the host's namespace counts as the translator's CPU time and
resident size. Another build of natless is a peer too:
  --peer 'before=exec /tmp/natless run -c /dev/null --device nl0 --pref64 $PREF64
    --pool $POOL --clients $CLIENTS --masquerade off --state-dir "" --socket $DIR/s'

A question answered in half a minute:
  scripts/bench-peers --only tcp1 --contender native,natless2 --rounds 3 --time 3s

Flags:
`

// settings are what the flags say.
type settings struct {
	Rounds    int           `json:"rounds"`
	Time      time.Duration `json:"time_ns"` // of each measurement
	Soak      time.Duration `json:"soak_ns,omitempty"`
	FloodRate int           `json:"flood_packets_per_s"` // 0: as many as one thread can send
	TCP       string        `json:"tcp_by"`              // what sends and receives in tcp1, tcp1-reverse and tcp4
	Baselines []string      `json:"baselines"`

	contenders   []string // none: all
	measurements []measurement
	peers        []contender
	natless      string
	json         string
}

// takes is how long one measurement takes.
func (s *settings) takes() time.Duration {
	if s.Soak > 0 {
		return s.Soak
	}
	return s.Time
}

// parseFlags writes the help to out when asked for.
func parseFlags(args []string, out io.Writer) (*settings, error) {
	s := &settings{Baselines: []string{"native", "tayga"}}
	var only []string
	list := func(to *[]string) func(string) error {
		return func(v string) error { *to = strings.Split(v, ","); return nil }
	}
	f := flag.NewFlagSet("bench-peers", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprintf(out, usage, describe(measurements), pref64, pool, clients, own4, own6)
		f.PrintDefaults()
	}
	f.IntVar(&s.Rounds, "rounds", 5, "rounds over all measurements and contenders")
	f.DurationVar(&s.Time, "time", 10*time.Second, "how long each measurement takes")
	f.DurationVar(&s.Soak, "soak", 0, "measure nothing but resident size, for so long at full rate while 1,000 TCP flows\ncome and go; contender natless2 and one round unless told otherwise")
	f.IntVar(&s.FloodRate, "flood", 0, "packets per second of the measurements under flood; 0: all that one thread can send")
	f.StringVar(&s.TCP, "tcp", defaultTCP(), "what sends TCP streams: `program` iperf3, which is the default where it is installed, or own, which costs the ends less")
	f.StringVar(&s.json, "json", "", "write every figure to this `file`")
	f.StringVar(&s.natless, "natless", "bin/natless", "the natless `binary`")
	f.Func("contender", "who is measured, `comma-separated` (default everybody who is there)", list(&s.contenders))
	f.Func("only", "what is measured, `comma-separated` (default everything)", list(&only))
	f.Func("baseline", "contenders that the ratios are to, `comma-separated` (default native,tayga)", list(&s.Baselines))
	f.Func("peer", "another contender, `name=command`; repeatable", func(v string) error {
		c, err := parsePeer(v)
		s.peers = append(s.peers, c)
		return err
	})
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("%q: expected flags only", f.Arg(0))
	case s.Rounds < 1 || s.Time <= 0 || s.Soak < 0 || s.FloodRate < 0:
		return nil, errors.New("rounds and times have to be more than nothing")
	case s.TCP != byIperf && s.TCP != byOwn:
		return nil, fmt.Errorf("--tcp %s: expected iperf3 or own", s.TCP)
	case s.Soak > 0 && given["only"]:
		return nil, errors.New("--soak measures nothing else: leave out --only")
	}
	if s.Soak > 0 {
		s.measurements = []measurement{soak}
		if !given["rounds"] {
			s.Rounds = 1
		}
		if !given["contender"] {
			s.contenders = []string{"natless2"}
		}
		return s, nil
	}
	var err error
	s.measurements, err = pick("measurement", measurements, only, func(m measurement) string { return m.name })
	return s, err
}

func parsePeer(v string) (contender, error) {
	name, command, ok := strings.Cut(v, "=")
	if !ok || name == "" || strings.TrimSpace(command) == "" {
		return contender{}, fmt.Errorf("%q: expected name=command", v)
	}
	return contender{name: name, target: translated, command: command}, nil
}

// pick keeps the named ones, in the order of all; no names keep all.
func pick[T any](what string, all []T, names []string, name func(T) string) ([]T, error) {
	if len(names) == 0 {
		return slices.Clone(all), nil
	}
	var known []string
	for _, v := range all {
		known = append(known, name(v))
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("no %s is called %q, only %s", what, n, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return !slices.Contains(names, name(v)) }), nil
}
