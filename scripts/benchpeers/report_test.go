package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	assert.Zero(t, median(nil))
	assert.Equal(t, 7.0, median([]float64{7}))
	assert.Equal(t, 2.5, median([]float64{4, 1, 3, 2}))
	values := []float64{9, 1, 2}
	assert.Equal(t, 2.0, median(values))
	assert.Equal(t, []float64{9, 1, 2}, values, "they stay as they are")
}

func TestQuantile(t *testing.T) {
	var hundred []int
	for i := range 100 {
		hundred = append(hundred, i+1)
	}
	assert.Equal(t, 50, quantile(hundred, 0.5))
	assert.Equal(t, 99, quantile(hundred, 0.99))
	assert.Equal(t, 100, quantile(hundred, 1))
	assert.Equal(t, 1, quantile(hundred, 0))
	assert.Equal(t, 3, quantile([]int{3}, 0.99))
	assert.Zero(t, quantile([]int(nil), 0.5))
}

func TestDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0123: "0.012", 0.9949: "0.995", 0.996: "1.00", 1: "1.00", 9.99: "9.99", 9.996: "10.0",
		12.34: "12.3", 99.96: "100", 123.4: "123", 40304: "40304", -12.34: "-12.3"} {
		assert.Equal(t, want, digits(v), "%g", v)
	}
}

// sample is two rounds of three contenders; TAYGA fails once.
func sample() *report {
	r := &report{
		Settings:   &settings{Rounds: 2, Time: time.Second, Baselines: []string{"native", "tayga"}},
		contenders: []contender{{name: "native"}, {name: "natless1"}, {name: "tayga"}},
		Rounds:     []shared{{Round: 1, LoadBefore: 0.5, LoadAfter: 1.25, Percent: 12, Others: []string{"cc 3.0 s"}}},
	}
	for _, m := range measurements {
		switch m.name {
		case "tcp1", "rtt", "udp1400", "udp1400-gro":
			r.Settings.measurements = append(r.Settings.measurements, m)
		}
	}
	add := func(round int, m, c string, f figures) {
		r.Raw = append(r.Raw, result{Round: round, Measurement: m, Contender: c, Figures: f})
	}
	add(1, "tcp1", "native", figures{gbit.key: 10})
	add(1, "tcp1", "natless1", figures{gbit.key: 8, cpuMiB.key: 300, residentIdle.key: 5, residentLoad.key: 6})
	add(1, "tcp1", "tayga", figures{gbit.key: 1, cpuMiB.key: 3000})
	add(2, "tcp1", "native", figures{gbit.key: 20})
	add(2, "tcp1", "natless1", figures{gbit.key: 4, cpuMiB.key: 500, residentIdle.key: 7, residentLoad.key: 9})
	r.Raw = append(r.Raw, result{Round: 2, Measurement: "tcp1", Contender: "tayga", Error: "it died"})
	add(1, "rtt", "native", figures{p50.key: 10, p99.key: 20})
	add(1, "rtt", "natless1", figures{p50.key: 30, p99.key: 90})
	add(1, "rtt", "tayga", figures{p50.key: 50, p99.key: 95})
	add(2, "rtt", "natless1", figures{p50.key: 31, p99.key: 91}) // without native: nothing is added to it
	add(1, "udp1400", "natless1", figures{perCPU.key: 400})
	add(1, "udp1400-gro", "natless1", figures{perCPU.key: 1000})
	r.summarize()
	return r
}

func TestSummary(t *testing.T) {
	r := sample()
	get := func(measurement, contender string, c column) line {
		l, ok := r.line(measurement, contender, c.key)
		require.True(t, ok, "%s of %s in %s", c.key, contender, measurement)
		return l
	}
	assert.Equal(t, line{Measurement: "tcp1", Contender: "natless1", Figure: gbit.key, Rounds: 2, Median: 6, Min: 4, Max: 8,
		Ratios: map[string]float64{"native": 0.4, "tayga": 6}}, get("tcp1", "natless1", gbit))
	assert.Equal(t, 1, get("tcp1", "tayga", gbit).Rounds, "the other has failed")
	assert.Equal(t, 400.0, get("tcp1", "natless1", cpuMiB).Median)
	assert.Nil(t, get("tcp1", "natless1", cpuMiB).Ratios)
	assert.Equal(t, 1, r.failures())

	assert.Equal(t, line{Measurement: "rtt", Contender: "natless1", Figure: added.key, Rounds: 1, Median: 20, Min: 20, Max: 20,
		Ratios: map[string]float64{"tayga": 0.5}}, get("rtt", "natless1", added))
	_, ok := r.line("rtt", "native", added.key)
	assert.False(t, ok)
	assert.Equal(t, 2.5, get("udp1400-gro", "natless1", groGain).Median)
}

func TestPrint(t *testing.T) {
	var out strings.Builder
	sample().print(&out)
	assert.Contains(t, out.String(), `Round 1: load 0.50 before, 1.25 after; others used 12% of the CPUs: cc 3.0 s

tcp1: one TCP stream, client to server
            Gbit/s  least–most  ×native  ×tayga  CPU µs/MiB
    native    15.0   10.0–20.0     1.00    15.0            
  natless1    6.00   4.00–8.00    0.400    6.00         400
     tayga    1.00   1.00–1.00    0.067    1.00        3000
  tayga failed in 1 of 2 rounds: it died
`)
	assert.Contains(t, out.String(), `
resident size
            idle MiB  most at load MiB    by
  natless1      6.00              9.00  tcp1
`)
	assert.NotContains(t, out.String(), unanswered.head, "a column without figures")
}

func TestDatagrams(t *testing.T) {
	assert.Equal(t, int64(100+20+3), datagrams4(`Tcp: RtoAlgorithm InSegs
Tcp: 1 5000
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 100 7 23 9 20 0 0 0 3
UdpLite: InDatagrams NoPorts
UdpLite: 1000 1000
`))
	assert.Equal(t, int64(40+5), datagrams6(`Ip6InReceives                   	99
Udp6InDatagrams                 	40
Udp6NoPorts                     	1
Udp6InErrors                    	5
Udp6RcvbufErrors                	5
UdpLite6InDatagrams             	77
`))
	assert.Zero(t, datagrams4(""))
	assert.Zero(t, datagrams6("\n"))
}

func TestParseStat(t *testing.T) {
	p, used, ok := parseStat([]byte("42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 1 0"))
	require.True(t, ok)
	assert.Equal(t, process{42, "a (b) c"}, p)
	assert.Equal(t, 1750*time.Millisecond, used)
	for _, bad := range []string{"", "42", "42 (x", ") 1 (", "42 (x) S 1"} {
		_, _, ok := parseStat([]byte(bad))
		assert.False(t, ok, "%q", bad)
	}
}

func TestShared(t *testing.T) {
	cc, idle := process{7, "cc"}, process{8, "idle"}
	a := look{load: 1, total: 100 * time.Second, idle: 50 * time.Second, own: 5 * time.Second,
		processes: map[process]time.Duration{cc: time.Second, idle: time.Hour}}
	b := look{load: 2, total: 110 * time.Second, idle: 52 * time.Second, own: 11 * time.Second,
		processes: map[process]time.Duration{cc: 3 * time.Second, idle: time.Hour}}
	assert.Equal(t, shared{Round: 4, LoadBefore: 1, LoadAfter: 2, Percent: 20, Others: []string{"cc 2.0 s"}}, a.until(b, 4))
}
