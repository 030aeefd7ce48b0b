// Command benchpeers measures how fast natless is beside what else could stand
// in its place: native IPv6 forwarding, the kernel's NAT44, TAYGA where it is
// installed, and any translator named with --peer. scripts/bench-peers builds
// and runs it. It installs nothing and touches only namespaces of its own,
// which vanish with it:
//
//	client 2001:db8:1:1::2 ─┐
//	       192.0.2.2        ├─ host ── server 203.0.113.2
//	other  2001:db8:1:2::2 ─┘                 2001:db8:2::2
//	       192.0.2.130
//
// The contender forwards or translates in the host. This program itself is the
// load and the service in the other three; it needs no other program.
//
// Rounds are interleaved: a round takes each measurement of each contender
// once, the contenders of one measurement right after each other, each in new
// namespaces. Whatever else the machine does falls on all of them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/natless/natless/internal/lab"
)

func main() {
	s, err := parseFlags(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(2)
	}
	if err := lab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers: make network namespaces:", err)
		os.Exit(1)
	}
	// The kernel is to schedule the threads that make the load, as it would so
	// many programs: they need not wait for each other to enter Go.
	runtime.GOMAXPROCS(8 * runtime.NumCPU())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, s, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(1)
	}
}

// run measures what s asks for, tells progress what it does and writes the
// tables to out. What has failed is in the tables, and an error in the end.
func run(ctx context.Context, s *settings, out, progress io.Writer) error {
	contenders, err := chooseContenders(s, progress)
	if err != nil {
		return err
	}
	b := &bench{settings: s, contenders: contenders, progress: progress, started: time.Now()}
	b.steps = s.Rounds * len(contenders) * len(s.measurements)
	if b.steps == 0 {
		return errors.New("nothing is left to measure")
	}
	planned := time.Duration(b.steps) * (s.takes() + around)
	bound := planned*3/2 + time.Minute
	fmt.Fprintf(progress, "%d rounds, %d contenders, %d measurements of %v: about %v, at most %v\n", s.Rounds,
		len(contenders), len(s.measurements), s.takes(), planned.Round(time.Second), bound.Round(time.Second))
	ctx, cancel := context.WithTimeoutCause(ctx, bound, errors.New("it took far longer than planned"))
	defer cancel()

	r := &report{Machine: thisMachine(s.natless), Settings: s, contenders: contenders}
	for round := 1; round <= s.Rounds; round++ {
		before := lookAround()
		results, err := b.round(ctx, round)
		if err != nil {
			return fmt.Errorf("stopped in round %d: %w", round, err)
		}
		r.Raw = append(r.Raw, results...)
		r.Rounds = append(r.Rounds, before.until(lookAround(), round))
	}
	r.summarize()
	r.print(out)
	if s.json != "" {
		if err := r.write(s.json); err != nil {
			return fmt.Errorf("write the figures: %w", err)
		}
	}
	if n := r.failures(); n > 0 {
		return fmt.Errorf("%d of %d measurements failed", n, len(r.Raw))
	}
	return nil
}

// around is what a measurement takes besides its own time: to make namespaces,
// to wait for the translator, to warm up, to clean up.
const around = time.Second

// overdue is how much longer than that a measurement may take. Then it has
// failed, and the next one begins.
const overdue = 15 * time.Second

// bench is one run of this program.
type bench struct {
	*settings
	contenders []contender
	progress   io.Writer

	steps, done int
	started     time.Time
}

// round takes every measurement of every contender. They take turns in being
// first.
func (b *bench) round(ctx context.Context, round int) (all []result, err error) {
	for _, m := range b.measurements {
		for i := range b.contenders {
			c := b.contenders[(i+round-1)%len(b.contenders)]
			r := result{Round: round, Measurement: m.name, Contender: c.name}
			if r.Figures, err = b.once(ctx, c, m); err != nil {
				r.Error = err.Error()
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			all = append(all, r)
			b.done++
			left := time.Since(b.started) / time.Duration(b.done) * time.Duration(b.steps-b.done)
			fmt.Fprintf(b.progress, "[%d/%d, %v left] round %d  %-12s %-12s %s\n", b.done, b.steps,
				left.Round(time.Second), round, m.name, c.name, m.tell(r))
		}
	}
	return all, nil
}

// once takes one measurement in new namespaces.
func (b *bench) once(ctx context.Context, c contender, m measurement) (f figures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.takes()+around+overdue, errors.New("it hangs"))
	defer cancel()
	t, err := build(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	idle := t.resident()
	if f, err = m.run(ctx, t, b.settings); err != nil {
		return nil, err
	}
	if idle > 0 {
		f[residentIdle.key] = mib(idle)
	}
	return f, t.died()
}
