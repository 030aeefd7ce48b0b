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
// of a million, by turns: time from start to ready, resident memory, and the
// rate of one TCP stream as a ratio.
func BenchmarkLabMillionMaps(b *testing.B) {
	const rounds = 3
	rates := map[int][]float64{}
	for b.Loop() {
		for range rounds {
			for _, maps := range []int{1, 1_000_000} {
				r := measureMaps(b, maps)
				rates[maps] = append(rates[maps], r.rate)
				b.ReportMetric(r.ready.Seconds(), fmt.Sprintf("s-ready-%d", maps))
				b.ReportMetric(r.resident, fmt.Sprintf("MiB-%d", maps))
			}
		}
	}
	b.ReportMetric(median(rates[1_000_000])/median(rates[1]), "rate-ratio")
}

type mapsResult struct {
	ready          time.Duration
	rate, resident float64 // bytes per second, MiB
}

func measureMaps(b *testing.B, maps int) (r mapsResult) {
	b.Helper()
	lab.Require(b)
	n, err := lab.Build(1)
	require.NoError(b, err)
	defer n.Close()
	file := filepath.Join(b.TempDir(), "maps.toml")
	require.NoError(b, writeMaps(file, maps))
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
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			r.resident = kib / 1024
		}
	}
	return r
}

// writeMaps writes a configuration of so many mappings of one address each.
func writeMaps(file string, maps int) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintf(w, "[translation]\npref64 = %q\nipv6 = %q\n", lab.Pref64, lab.OwnIPv6)
	first := binary.BigEndian.Uint32(netip.MustParseAddr("10.16.0.0").AsSlice())
	for i := range uint32(maps) {
		v4 := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, first+i)))
		fmt.Fprintf(w, "[[map]]\nipv4 = \"%v\"\nipv6 = \"2001:db8:5::%x:%x\"\n", v4, i>>16+1, i&0xffff)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}
