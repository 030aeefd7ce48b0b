package conntrack

import (
	"math/rand/v2"
	"testing"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// flowOf is a packet of the client's i-th session that fill made, as it leaves.
func flowOf(r *mapping.Range, proto uint8, i int) translate.Flow {
	return translate.Flow{Src: r.IPv4, Dst: server, SrcPort: uint16(i), DstPort: 80, Proto: proto}
}

// BenchmarkLookup is one packet of a session that is there, drawn from all of
// them or from a thousand. The time includes drawing.
func BenchmarkLookup(b *testing.B) {
	const clients = 1000
	ranges := make([]mapping.Range, clients)
	for i := range ranges {
		ranges[i] = clientRange(i)
	}
	for _, size := range []struct {
		name             string
		sessions, active int
	}{{"1000 active of 100000", 100_000, 1000}, {"1000000", 1_000_000, 1_000_000}} {
		table := newTable(b, func(c *Config) { c.Sessions = size.sessions })
		fill(b, table, size.sessions, clients, 0)
		replies := make([]translate.Flow, size.sessions)
		for i := range replies {
			proto := []uint8{numUDP, numTCP}[i/clients%2]
			replies[i] = flowOf(&ranges[i%clients], proto, i/clients)
			table.PeekOut(&ranges[i%clients], &replies[i], 0)
			replies[i] = replies[i].Reversed()
		}
		for _, c := range []struct {
			name  string
			proto uint8
			in    bool
		}{{"UDP out", numUDP, false}, {"UDP in", numUDP, true}, {"TCP out", numTCP, false}, {"TCP in", numTCP, true}} {
			odd := 0
			if c.proto == numTCP {
				odd = 1
			}
			pick := func(r *rand.Rand) (client, i int) { // of those that fill made of the protocol
				n := r.IntN(size.active)
				return n % clients, n/clients&^1 | odd
			}
			run := func(b *testing.B, each func(r *rand.Rand)) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					r := rand.New(rand.NewPCG(1, rand.Uint64()))
					for pb.Next() {
						each(r)
					}
				})
			}
			b.Run(size.name+"/"+c.name, func(b *testing.B) {
				run(b, func(r *rand.Rand) {
					client, i := pick(r)
					f, want := flowOf(&ranges[client], c.proto, i), OK
					var reason Reason
					if c.in {
						f = replies[i*clients+client]
						reason = table.In(&ranges[client], &f, flagACK, 1)
					} else {
						reason = table.Out(&ranges[client], &f, flagACK, 1)
					}
					if reason != want {
						b.Error(reason)
					}
				})
			})
		}
	}
}

// BenchmarkOpen opens sessions of a thousand clients in turn while the table
// stays 90% full, and each client's part too: for every one that is opened
// another expires, whose end is part of the time.
func BenchmarkOpen(b *testing.B) {
	const clients, perTick = 1000, 3000
	table := newTable(b, func(c *Config) { c.Sessions = 1_000_000 })
	ranges := make([]mapping.Range, clients)
	for i := range ranges {
		ranges[i] = clientRange(i)
	}
	n := 0
	open := func() {
		f := flowOf(&ranges[n%clients], numUDP, n/clients)
		now := uint32(n / perTick)
		if reason := table.Out(&ranges[n%clients], &f, 0, now); reason != OK {
			b.Fatal(n, reason)
		}
		if n++; n%perTick == 0 {
			for table.Expire(now + 1) {
			}
		}
	}
	for range 1_000_000 {
		open()
	}
	b.ReportAllocs()
	for b.Loop() {
		open()
	}
	b.ReportMetric(float64(table.Len()), "sessions")
}

// BenchmarkExpire is what one session's end costs when a million end at once.
// Run it with -benchtime=1000000x or more.
func BenchmarkExpire(b *testing.B) {
	const sessions = 1_000_000
	table := newTable(b, func(c *Config) { c.Sessions = sessions })
	now := uint32(0)
	for n := 0; n < b.N; n += sessions {
		b.StopTimer()
		fill(b, table, sessions, 1000, now)
		now += 301
		b.StartTimer()
		for table.Expire(now) {
		}
		b.StopTimer()
		if table.Len() != 0 {
			b.Fatal(table.Len())
		}
	}
}

// BenchmarkFragments is a datagram of two fragments in the wrong order.
func BenchmarkFragments(b *testing.B) {
	f := newFragments(b, nil)
	d := aDatagram
	buf, packet := make([]byte, 2000), make([]byte, 1480)
	b.ReportAllocs()
	for b.Loop() {
		d.ID++
		f.Later(&d, packet, d.ID/5000)
		f.First(&d, Ports{1, 2}, d.ID/5000)
		f.Next(&d, buf)
	}
}
