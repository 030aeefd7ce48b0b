package config

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkParseMaps reads a configuration of a million maps: its time, and
// how much memory the result keeps.
func BenchmarkParseMaps(b *testing.B) {
	const maps = 1_000_000
	var text bytes.Buffer
	for i := range maps {
		fmt.Fprintf(&text, "[[map]]\nipv4 = \"10.%d.%d.%d\"\nipv6 = \"2001:db8:5::%x:%x\"\n", 16+i>>16, i>>8&255, i&255, i>>16+1, i&0xffff)
	}
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		c, err := parse("natless.toml", text.Bytes())
		require.NoError(b, err)
		runtime.GC()
		runtime.ReadMemStats(&after)
		require.Len(b, c.Maps, maps)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/maps, "B-kept/map")
		runtime.KeepAlive(c)
	}
}
