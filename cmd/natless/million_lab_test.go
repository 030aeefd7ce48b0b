package main_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// BenchmarkLabMillionMaps runs natless with a file of one mapping and with one
// of a million, by turns: time from start to ready, resident memory, the times
// of a reload that changes one mapping and of `map add`, and the rate of one
// TCP stream as a ratio.
func BenchmarkLabMillionMaps(b *testing.B) {
	const rounds = 3
	rates := map[int][]float64{}
	for b.Loop() {
		for range rounds {
			for _, maps := range []int{1, 1_000_000} {
				r := measureMaps(b, maps, 1)
				rates[maps] = append(rates[maps], r.rate)
				r.report(b, strconv.Itoa(maps))
			}
		}
	}
	b.ReportMetric(median(rates[1_000_000])/median(rates[1]), "rate-ratio")
}

// BenchmarkLabMapsApart is the same for as many mappings as may be apart from
// each other: every second address, each with routes of its own.
func BenchmarkLabMapsApart(b *testing.B) {
	for b.Loop() {
		measureMaps(b, apart, 2).report(b, "apart")
	}
}

// apart is how many maps with routes of their own there may be, beside
// natless's own addresses, pref64, the pool and what is added.
const apart = 1<<14 - 16

type mapsResult struct {
	ready, reload, add time.Duration
	rate, resident     float64 // bytes per second, MiB
}

func (r mapsResult) report(b *testing.B, of string) {
	b.ReportMetric(r.ready.Seconds(), "s-ready-"+of)
	b.ReportMetric(r.reload.Seconds(), "s-reload-"+of)
	b.ReportMetric(float64(r.add.Milliseconds()), "ms-add-"+of)
	b.ReportMetric(r.resident, "MiB-"+of)
}

// measureMaps runs natless with so many maps, each so many addresses from the
// last.
func measureMaps(b *testing.B, maps, step int) (r mapsResult) {
	b.Helper()
	lab.Require(b)
	n, err := lab.Build(1)
	require.NoError(b, err)
	defer n.Close()
	file := filepath.Join(b.TempDir(), "maps.toml")
	require.NoError(b, writeMaps(file, maps, step))
	d, err := n.Host.Natless(lab.Binary(b), own, "-c", file)
	require.NoError(b, err)
	begun := time.Now()
	require.NoError(b, d.Start())
	defer d.Stop()
	require.NoError(b, d.Ready(b.Context()), d.Output())
	r.ready = time.Since(begun)
	w := &world{Network: n, client: n.Clients[0], daemon: d}
	got, stop := w.stream(b)
	time.Sleep(500 * time.Millisecond)
	before, begun := got.Load(), time.Now()
	time.Sleep(3 * time.Second)
	r.rate = float64(got.Load()-before) / time.Since(begun).Seconds()
	require.NoError(b, stop())
	r.resident = resident(b, d.Process.Pid)

	for i := range 5 { // the last is as good as any
		begun = time.Now()
		out, err := d.Query(b.Context(), "map", "add", fmt.Sprintf("203.0.113.%d", 2*i), fmt.Sprintf("2001:db8:7::%d", i))
		r.add = time.Since(begun)
		require.NoError(b, err, "%s", out)
	}
	require.NoError(b, writeMaps(file, maps+1, step))
	begun = time.Now()
	out, err := d.Query(b.Context(), "reload")
	r.reload = time.Since(begun)
	require.NoError(b, err, "%s", out)
	return r
}

// resident is the memory that a process has, in MiB.
func resident(t testing.TB, pid int) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			require.NoError(t, err)
			return kib / 1024
		}
	}
	require.Fail(t, "no VmRSS")
	return 0
}

// TestLabTooManyRoutes has more maps apart from each other than there may be
// routes: a start says so, and makes none.
func TestLabTooManyRoutes(t *testing.T) {
	lab.Require(t)
	n, err := lab.Build(1)
	require.NoError(t, err)
	defer n.Close()
	before := snapshot(t, n.Host)
	file := filepath.Join(t.TempDir(), "maps.toml")
	require.NoError(t, writeMaps(file, 1<<15, 2))
	d, err := n.Host.Natless(lab.Binary(t), own, "-c", file)
	require.NoError(t, err)
	require.NoError(t, d.Start())
	require.Error(t, d.Ready(t.Context()))
	require.Regexp(t, `preparing the host: 327\d\d prefixes would need routes to the device, more than 16384: `, d.Output())
	unchanged(t, n.Host, before, "after the refusal")
}

// writeMaps writes a configuration of so many mappings of one address each,
// each so many addresses from the last.
func writeMaps(file string, maps, step int) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintf(w, "[translation]\npref64 = %q\nipv6 = %q\n", lab.Pref64, lab.OwnIPv6)
	first := binary.BigEndian.Uint32(netip.MustParseAddr("10.16.0.0").AsSlice())
	for i := range uint32(maps) {
		v4 := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, first+i*uint32(step))))
		fmt.Fprintf(w, "[[map]]\nipv4 = \"%v\"\nipv6 = \"2001:db8:5::%x:%x\"\n", v4, i>>16+1, i&0xffff)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}
