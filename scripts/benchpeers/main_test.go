package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Every measurement, of the kernel and of natless, gives its figures, and they
// are possible ones. How good they are is not for a test to say.
func TestEverythingIsMeasured(t *testing.T) {
	lab.Require(t)
	file := filepath.Join(t.TempDir(), "figures.json")
	s, err := parseFlags([]string{"--rounds", "1", "--time", "200ms", "--tcp", "own", "--contender", "native,natless1", "--baseline", "native",
		"--natless", lab.Binary(t), "--json", file,
		"--peer", `again=exec "` + lab.Binary(t) + `" run -c /dev/null --device nl0 --pref64 $PREF64 --pool $POOL --clients $CLIENTS --masquerade off --state-dir "" --socket $DIR/s`}, io.Discard)
	require.NoError(t, err)
	// Of other ways from client to server one measurement will do.
	peer := *s
	peer.contenders, peer.measurements, peer.json = []string{"again", "nat44"}, measurements[:1], ""
	require.NoError(t, run(context.Background(), &peer, io.Discard, io.Discard))

	var out, progress bytes.Buffer
	require.NoError(t, run(context.Background(), s, &out, &progress), progress.String())
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	var got report
	require.NoError(t, json.Unmarshal(b, &got))
	require.Len(t, got.Raw, 2*len(measurements))
	for i, r := range got.Raw {
		m := measurements[i/2]
		require.Equal(t, m.name, r.Measurement)
		require.Empty(t, r.Error)
		for _, c := range m.columns {
			v, ok := r.Figures[c.key]
			assert.True(t, ok || r.Contender != "natless1", "%s of %s: no %s", r.Measurement, r.Contender, c.key)
			assert.True(t, v >= 0 || c == added, "%s of %s: %s is %g", r.Measurement, r.Contender, c.key, v)
		}
		assert.Equal(t, r.Contender == "natless1", r.Figures[residentIdle.key] > 1, "%s of %s: %v", r.Measurement, r.Contender, r.Figures)
	}
	for _, name := range []string{"tcp1-flood:", "×native", "resident size", "natless1", "Round 1: load"} {
		assert.Contains(t, out.String(), name)
	}
	assert.Contains(t, progress.String(), "at most", "the time is told in advance")
}

func TestSoak(t *testing.T) {
	lab.Require(t)
	s, err := parseFlags([]string{"--soak", "1s", "--natless", lab.Binary(t)}, io.Discard)
	require.NoError(t, err)
	var out, progress bytes.Buffer
	require.NoError(t, run(context.Background(), s, &out, &progress), progress.String())
	assert.Contains(t, out.String(), growth.head)
	assert.Contains(t, out.String(), "natless2")
}

// What ends by itself has failed, with its last words, and the rest goes on.
func TestFailingPeer(t *testing.T) {
	lab.Require(t)
	s, err := parseFlags([]string{"--only", "tcp1", "--tcp", "own", "--contender", "native,broken", "--rounds", "1", "--time", "100ms",
		"--peer", "broken=echo $PREF64 is not for me; exit 3"}, io.Discard)
	require.NoError(t, err)
	var out bytes.Buffer
	assert.EqualError(t, run(context.Background(), s, &out, io.Discard), "1 of 2 measurements failed")
	assert.Contains(t, out.String(), "broken failed in 1 of 1 rounds: broken ended: exit status 3: 2001:db8:64::/96 is not for me")
}

// A run that is stopped leaves no process behind.
func TestStop(t *testing.T) {
	lab.Require(t)
	mark := filepath.Join(t.TempDir(), "pid")
	s, err := parseFlags([]string{"--only", "tcp1", "--contender", "slow",
		"--peer", "slow=sh -c 'echo $$ > " + mark + "; exec sleep 60' & wait"}, io.Discard)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	assert.ErrorContains(t, run(ctx, s, io.Discard, io.Discard), "stopped in round 1")
	pid, err := os.ReadFile(mark)
	require.NoError(t, err)
	// Nobody may have waited for it yet.
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	assert.True(t, err != nil || strings.Contains(string(stat), ") Z "), "%s", stat)
}

func TestParseIperf(t *testing.T) {
	rate, received, err := parseIperf([]byte(`{"end": {"sum_received": {"bytes": 1250, "bits_per_second": 1e4}}}`))
	require.NoError(t, err)
	assert.Equal(t, 1e4, rate)
	assert.EqualValues(t, 1250, received)
	_, _, err = parseIperf([]byte(`{"error": "unable to connect"}`))
	assert.EqualError(t, err, "iperf3: unable to connect")
	for _, nothing := range []string{"", "{}", `{"end": {"sum_received": {"bytes": 0}}}`} {
		_, _, err = parseIperf([]byte(nothing))
		assert.Error(t, err, nothing)
	}
}

func TestFlags(t *testing.T) {
	s, err := parseFlags([]string{"--rounds", "2", "--time", "3s", "--only", "tcp4,tcp1", "--contender", "native,x",
		"--peer", "x=run x -y=z", "--baseline", "x", "--flood", "1000"}, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, []string{"native", "x"}, s.contenders)
	assert.Equal(t, []contender{{name: "x", target: translated, command: "run x -y=z"}}, s.peers)
	assert.Equal(t, []string{"tcp1", "tcp4"}, names(s.measurements), "in their own order")
	assert.Equal(t, 3*time.Second, s.takes())

	s, err = parseFlags(nil, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, names(measurements), names(s.measurements))
	assert.Equal(t, 5, s.Rounds)
	assert.Equal(t, 10*time.Second, s.takes())

	s, err = parseFlags([]string{"--soak", "10m"}, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, []string{"soak"}, names(s.measurements))
	assert.Equal(t, []string{"natless2"}, s.contenders)
	assert.Equal(t, 1, s.Rounds)
	assert.Equal(t, 10*time.Minute, s.takes())

	for _, bad := range [][]string{{"--rounds", "0"}, {"--time", "0s"}, {"--soak", "-1s"}, {"--flood", "-1"}, {"--peer", "x"},
		{"--peer", "=run"}, {"--peer", "x= "}, {"word"}, {"--soak", "1m", "--only", "tcp1"}, {"--only", "sctp"}} {
		_, err := parseFlags(bad, io.Discard)
		assert.Error(t, err, "%q", bad)
	}
	_, err = parseFlags([]string{"--only", "tcp1,sctp"}, io.Discard)
	assert.ErrorContains(t, err, `no measurement is called "sctp", only tcp1, `)

	var help bytes.Buffer
	_, err = parseFlags([]string{"-h"}, &help)
	assert.ErrorIs(t, err, flag.ErrHelp)
	for _, m := range measurements {
		assert.Contains(t, help.String(), m.name)
	}
}

func names(all []measurement) (names []string) {
	for _, m := range all {
		names = append(names, m.name)
	}
	return names
}

func TestChooseContenders(t *testing.T) {
	choose := func(args ...string) ([]string, string, error) {
		s, err := parseFlags(args, io.Discard)
		require.NoError(t, err)
		var progress strings.Builder
		all, err := chooseContenders(s, &progress)
		var names []string
		for _, c := range all {
			names = append(names, c.name)
		}
		return names, progress.String(), err
	}
	got, said, err := choose("--natless", "/nonexistent/natless", "--contender", "natless1,native,x", "--peer", "x=true")
	require.NoError(t, err)
	assert.Equal(t, []string{"native", "x"}, got)
	assert.Contains(t, said, "natless1 is left out: ")
	assert.Contains(t, said, "(make build)")

	_, _, err = choose("--peer", "native=true")
	assert.EqualError(t, err, `two contenders are called "native"`)
	_, _, err = choose("--contender", "jool")
	assert.ErrorContains(t, err, `no contender is called "jool", only native, nat44, natless1,`)
	_, _, err = choose("--baseline", "jool")
	assert.ErrorContains(t, err, `no contender is called "jool"`)
}
