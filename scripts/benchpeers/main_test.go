package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseIperf(t *testing.T) {
	var r result
	require.NoError(t, parseIperf([]byte(`{"end":{"sum_sent":{"bytes":9},"sum_received":{"bytes":125,"bits_per_second":2e9}}}`), &r))
	assert.Equal(t, result{Value: 2, Bytes: 125}, r)

	r = result{}
	require.NoError(t, parseIperf([]byte(`{"end":{"sum":{"bytes":6400,"seconds":2,"packets":100,"lost_packets":40,"lost_percent":40}}}`), &r))
	assert.Equal(t, result{Value: 0.03, Loss: 40, Bytes: 3840, Packets: 60}, r)

	assert.EqualError(t, parseIperf([]byte(`{"end":{},"error":"unable to connect"}`), &r), "iperf3: unable to connect")
	assert.Error(t, parseIperf([]byte(`{"end":{}}`), &r))
	assert.Error(t, parseIperf(nil, &r))
}

func TestPingTimes(t *testing.T) {
	assert.Equal(t, []float64{45, 1300}, pingTimes([]byte("64 bytes: ttl=63 time=0.045 ms\nnothing\n64 bytes: ttl=63 time=1.3 ms\n")))
}

func TestSummary(t *testing.T) {
	cost := 2.0
	r := report{Raw: []result{
		{Contender: "native", Measure: "tcp", Value: 8},
		{Contender: "native", Measure: "tcp", Value: 10},
		{Contender: "tayga", Measure: "tcp", Value: 1, CPUMiB: &cost},
		{Contender: "tayga", Measure: "tcp", Value: 2},
		{Contender: "tayga", Measure: "tcp", Value: 9},
		{Contender: "tayga", Measure: "tcp", Error: "it died"},
		{Contender: "tayga", Measure: "rtt", Value: 100},
	}}
	r.summarize([]contender{{name: "native"}, {name: "tayga"}}, []measurement{{name: "tcp"}})
	assert.Equal(t, []line{
		{Measure: "tcp", Contender: "native", Rounds: 2, Median: 9, Min: 8, Max: 10, ToNative: 1, ToTayga: 4.5},
		{Measure: "tcp", Contender: "tayga", Rounds: 3, Median: 2, Min: 1, Max: 9, ToNative: 2. / 9, ToTayga: 1, CPUMiB: 2, Error: "it died"},
	}, r.Summary)
	assert.Equal(t, 1, r.failures())
}

func TestFlags(t *testing.T) {
	s, err := parseFlags([]string{"--rounds", "2", "--only", "native,tayga", "--peer", "x=run x -y=z"})
	require.NoError(t, err)
	assert.Equal(t, []string{"native", "tayga"}, s.Only)
	assert.Equal(t, []contender{{name: "x", target: translated, command: "run x -y=z"}}, s.peers)
	for _, bad := range [][]string{{"--rounds", "0"}, {"--peer", "x"}, {"word"}} {
		_, err := parseFlags(bad)
		assert.Error(t, err, "%q", bad)
	}
	_, err = pick(measurements, []string{"tcp", "sctp"}, func(m measurement) string { return m.name })
	assert.ErrorContains(t, err, `"sctp" is not known, expected of tcp,`)
}
