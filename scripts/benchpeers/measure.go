package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// column is one figure of a measurement.
type column struct {
	key, head string // in JSON and in the table
	// compared: its spread and its ratios to the baselines are shown too.
	compared bool
}

var (
	gbit        = column{"gbit_per_s", "Gbit/s", true}
	cpuMiB      = column{"cpu_us_per_mib", "CPU µs/MiB", false}
	offered     = column{"offered_kpackets_per_s", "k/s offered", false}
	delivered   = column{"delivered_kpackets_per_s", "k/s delivered", true}
	loss        = column{"loss_percent", "loss %", false}
	perCPU      = column{"kpackets_per_cpu_s", "k/CPU s", true}
	cpuPacket   = column{"cpu_us_per_packet", "CPU µs/packet", false}
	groGain     = column{"kpackets_per_cpu_s_to_udp1400", "×udp1400 k/CPU s", false} // see derive
	p50         = column{"p50_us", "p50 µs", true}
	p99         = column{"p99_us", "p99 µs", true}
	added       = column{"added_p50_us", "p50 added µs", true} // see derive
	unanswered  = column{"unanswered_percent", "unanswered %", false}
	connections = column{"connections_per_s", "done/s", false}
	failed      = column{"failed_connections", "failed", false}
	kept        = column{"rate_kept", "rate kept", true}
	unflooded   = column{"unflooded_gbit_per_s", "Gbit/s before", false}
	flooded     = column{"flooded_gbit_per_s", "under flood", false}
	flood       = column{"flood_kpackets_per_s", "flood k/s", false}

	residentIdle  = column{"resident_idle_mib", "idle MiB", false}
	residentLoad  = column{"resident_load_mib", "at load MiB", false}
	residentEarly = column{"resident_early_mib", "at 1/5 MiB", false}
	residentEnd   = column{"resident_end_mib", "at the end MiB", false}
	flowWrites    = column{"flow_writes_per_s", "flows' writes/s", false}
	growth        = column{"resident_growth", "end ÷ 1/5", true}
)

// figures are what one measurement has found, by key of column. What does not
// apply, as the CPU time of the kernel's own forwarding, is not there.
type figures map[string]float64

// measurement is one thing that is measured. run returns at least one figure,
// or an error.
type measurement struct {
	name, title string
	columns     []column
	run         func(context.Context, *testbed, *settings) (figures, error)
}

const thousand = 1000

var (
	bulkColumns  = []column{gbit, cpuMiB}
	udpColumns   = []column{delivered, loss, perCPU, cpuPacket, cpuMiB, offered}
	measurements = []measurement{
		{"tcp1", "one TCP stream, client to server", bulkColumns, tcp(1, upload)},
		{"tcp1-reverse", "one TCP stream, server to client", bulkColumns, tcp(1, download)},
		{"tcp4", "four TCP streams, client to server", bulkColumns, tcp(4, upload)},
		{"http", "100 new HTTP connections per second, connect and GET of 4 KiB", []column{p50, p99, connections, failed}, http100},
		{"udp64", "UDP of one flow, 64 bytes, all that one thread can send", udpColumns, udp(64, false)},
		{"udp512", "the same of 512 bytes", udpColumns, udp(512, false)},
		{"udp1400", "the same of 1400 bytes", udpColumns, udp(1400, false)},
		{"udp1400-gro", "the same with UDP GRO on the host's link to the client, polled every 50 µs", append([]column{groGain}, udpColumns...), udp(1400, true)},
		{"rtt", "round trip of an echo request per millisecond", []column{p50, added, p99, unanswered}, rtt},
		{"rtt-flood", "the same while another client floods UDP of 64 bytes", []column{p50, p99, unanswered, flood}, rttFlood},
		{"tcp1-flood", "rate of one TCP stream before and while another client floods UDP of 64 bytes", []column{kept, unflooded, flooded, flood}, tcpFlood},
	}
	soak = measurement{"soak", "resident size with four TCP streams at full rate and 1,000 TCP flows of 5 to 15 seconds coming and going",
		[]column{growth, residentEarly, residentEnd, gbit, flowWrites}, churning}
)

// describe lists measurements for the help.
func describe(all []measurement) string {
	var s strings.Builder
	for _, m := range all {
		fmt.Fprintf(&s, "  %-14s%s\n", m.name, m.title)
	}
	return s.String()
}

// use is what a testbed has done between two moments.
type use struct {
	took                             time.Duration
	cpu                              time.Duration // 0: no process translates
	received, sent, arrived, flooded int64
}

func (t *testbed) used() (u use, at time.Time, err error) {
	u.arrived, err = t.arrived()
	u.received, u.sent, u.flooded = t.received.Load(), t.sent.Load(), t.flooded.Load()
	u.cpu = t.cpu()
	return u, time.Now(), err
}

// watch says what is done in d.
func (t *testbed) watch(ctx context.Context, d time.Duration) (use, error) {
	a, start, err := t.used()
	if err == nil {
		err = pause(ctx, d)
	}
	if err != nil {
		return use{}, err
	}
	b, end, err := t.used()
	return use{
		took: end.Sub(start), cpu: b.cpu - a.cpu, received: b.received - a.received,
		sent: b.sent - a.sent, arrived: b.arrived - a.arrived, flooded: b.flooded - a.flooded,
	}, err
}

// warmed is watch after a warm-up, half a second unless d is short. The
// resident size in the end is among the figures.
func (t *testbed) warmed(ctx context.Context, d time.Duration) (u use, f figures, err error) {
	if err := pause(ctx, min(d/4, 500*time.Millisecond)); err != nil {
		return u, nil, err
	}
	u, err = t.watch(ctx, d)
	f = figures{}
	if n := t.resident(); n > 0 {
		f[residentLoad.key] = mib(n)
	}
	return u, f, err
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func (u use) gbit() float64 { return float64(8*u.received) / u.took.Seconds() / 1e9 }

// perSecond is a rate in thousands.
func (u use) perSecond(n int64) float64 { return float64(n) / u.took.Seconds() / thousand }

var errNothing = errors.New("nothing arrived")

func tcp(streams int, what byte) func(context.Context, *testbed, *settings) (figures, error) {
	return func(ctx context.Context, t *testbed, s *settings) (figures, error) {
		if s.TCP == byIperf {
			return t.iperf(ctx, streams, what, s.Time)
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		for range streams {
			if err := t.stream(ctx, what); err != nil {
				return nil, err
			}
		}
		u, f, err := t.warmed(ctx, s.Time)
		if err != nil {
			return nil, err
		}
		if u.received == 0 {
			return nil, errNothing
		}
		f[gbit.key] = u.gbit()
		if u.cpu > 0 {
			f[cpuMiB.key] = float64(u.cpu.Microseconds()) / mib(u.received)
		}
		return f, nil
	}
}

func udp(size int, gro bool) func(context.Context, *testbed, *settings) (figures, error) {
	return func(ctx context.Context, t *testbed, s *settings) (figures, error) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		if gro {
			if err := udpGRO(t.host, "client"); err != nil {
				return nil, err
			}
		}
		if err := t.datagrams(ctx, t.client, size, 0, &t.sent); err != nil {
			return nil, err
		}
		u, f, err := t.warmed(ctx, s.Time)
		if err != nil {
			return nil, err
		}
		if u.arrived == 0 || u.sent == 0 {
			return nil, errNothing
		}
		f[offered.key], f[delivered.key] = u.perSecond(u.sent), u.perSecond(u.arrived)
		// What was under way at the beginning may make it a little more than was sent.
		f[loss.key] = max(0, 100*(1-float64(u.arrived)/float64(u.sent)))
		if u.cpu > 0 {
			f[perCPU.key] = float64(u.arrived) / u.cpu.Seconds() / thousand
			f[cpuPacket.key] = float64(u.cpu.Nanoseconds()) / thousand / float64(u.arrived)
			f[cpuMiB.key] = float64(u.cpu.Microseconds()) / mib(u.arrived*int64(size))
		}
		return f, nil
	}
}

func http100(ctx context.Context, t *testbed, s *settings) (figures, error) {
	start := time.Now()
	ts, failures := t.web(ctx, s.Time, 100)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if len(ts.all) == 0 {
		return nil, fmt.Errorf("all %d connections failed: %w", ts.asked, failures[0])
	}
	f := ts.figures()
	f[connections.key] = float64(len(ts.all)) / time.Since(start).Seconds()
	f[failed.key] = float64(len(failures))
	return f, nil
}

func rtt(ctx context.Context, t *testbed, s *settings) (figures, error) {
	ts, err := t.echoes(ctx, s.Time)
	if err != nil {
		return nil, err
	}
	if len(ts.all) == 0 {
		return nil, errNothing
	}
	f := ts.figures()
	f[unanswered.key] = max(0, 100*(1-float64(len(ts.all))/float64(ts.asked)))
	return f, nil
}

func (ts times) figures() figures {
	return figures{
		p50.key: float64(quantile(ts.all, 0.50).Nanoseconds()) / thousand,
		p99.key: float64(quantile(ts.all, 0.99).Nanoseconds()) / thousand,
	}
}

// floodSize is that of the flood's datagrams, in bytes.
const floodSize = 64

func rttFlood(ctx context.Context, t *testbed, s *settings) (figures, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := t.datagrams(ctx, t.other, floodSize, s.FloodRate, &t.flooded); err != nil {
		return nil, err
	}
	if err := pause(ctx, min(s.Time/4, 500*time.Millisecond)); err != nil {
		return nil, err
	}
	before, start, err := t.used()
	if err != nil {
		return nil, err
	}
	f, err := rtt(ctx, t, s)
	if err != nil {
		return nil, err
	}
	after, end, err := t.used()
	f[flood.key] = float64(after.flooded-before.flooded) / end.Sub(start).Seconds() / thousand
	return f, err
}

// tcpFlood takes half of the time without the flood and half of it with.
func tcpFlood(ctx context.Context, t *testbed, s *settings) (figures, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := t.stream(ctx, upload); err != nil {
		return nil, err
	}
	before, f, err := t.warmed(ctx, s.Time/2)
	if err != nil {
		return nil, err
	}
	if before.received == 0 {
		return nil, errNothing
	}
	if err := t.datagrams(ctx, t.other, floodSize, s.FloodRate, &t.flooded); err != nil {
		return nil, err
	}
	during, _, err := t.warmed(ctx, s.Time/2)
	if err != nil {
		return nil, err
	}
	f[unflooded.key], f[flooded.key] = before.gbit(), during.gbit()
	f[kept.key] = during.gbit() / before.gbit()
	f[flood.key] = during.perSecond(during.flooded)
	return f, nil
}

// flows is how many there are at a time in a soak.
const flows = 1000

// churning compares the resident size after a fifth of the time, which is
// minute 2 of 10, with that at the end. Each is the mean of ten samples in the
// last twentieth of a time before.
func churning(ctx context.Context, t *testbed, s *settings) (figures, error) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		t.churn(ctx, flows)
		close(done)
	}()
	defer func() { stop(); <-done }()
	for range 4 {
		if err := t.stream(ctx, upload); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	early, err := t.residentUntil(ctx, start, s.Soak/5, s.Soak/20)
	if err != nil {
		return nil, err
	}
	trickled := t.trickled.Load()
	a, from, err := t.used()
	if err != nil {
		return nil, err
	}
	end, err := t.residentUntil(ctx, start, s.Soak, s.Soak/20)
	if err != nil {
		return nil, err
	}
	b, to, err := t.used()
	if b.received == a.received {
		return nil, errors.Join(errNothing, err)
	}
	took := to.Sub(from)
	f := figures{
		gbit.key:       use{took: took, received: b.received - a.received}.gbit(),
		flowWrites.key: float64(t.trickled.Load()-trickled) / took.Seconds(),
	}
	if end > 0 {
		f[residentEarly.key], f[residentEnd.key], f[growth.key] = mib(early), mib(end), float64(end)/float64(early)
	}
	return f, err
}

// residentUntil is the mean of ten samples in the time of length last that ends
// at after start.
func (t *testbed) residentUntil(ctx context.Context, start time.Time, at, last time.Duration) (mean int64, err error) {
	const samples = 10
	for i := range samples {
		if err := pause(ctx, time.Until(start.Add(at-last+last*time.Duration(i)/samples))); err != nil {
			return 0, err
		}
		mean += t.resident() / samples
	}
	return mean, nil
}
