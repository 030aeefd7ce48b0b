package oracle_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/oracle/packetgen"
	"github.com/natless/natless/translate"
)

// With -seeds the random scenes that cover something new become seeds of the
// fuzz targets:
//
//	go test -run TestRandomScenes -covermode=set -coverpkg=github.com/natless/natless/translate \
//	    -seeds testdata/fuzz -rounds 100000 ./internal/oracle
var (
	seeds  = flag.String("seeds", "", "write the scenes that cover new statements to this folder")
	rounds = flag.Int("rounds", 6000, "random scenes for each target")
)

// TestRandomScenes is fuzzing in small, in every run of the tests: random
// decisions, both translators compared. It holds that most packets get past
// the parser and that every verdict translate itself can come to is reached.
func TestRandomScenes(t *testing.T) {
	clear(reached)
	parsed, total := 0, 0
	for i, target := range []struct {
		name    string
		compare func(testing.TB, []byte)
	}{
		{"Fuzz4to6", func(t testing.TB, data []byte) { newScene(data, packetgen.IPv4).compare(t) }},
		{"Fuzz6to4", func(t testing.TB, data []byte) { newScene(data, packetgen.IPv6).compare(t) }},
		{"FuzzOffload4to6", func(t testing.TB, data []byte) { compareOffload(t, data, packetgen.Partial4) }},
		{"FuzzOffload6to4", func(t testing.TB, data []byte) { compareOffload(t, data, packetgen.Partial6) }},
	} {
		n := *rounds
		if i >= 2 {
			n /= 10 // super-packets are long
		}
		rng := rand.New(rand.NewPCG(uint64(i), 7))
		covered, kept := testing.Coverage(), 0
		for range n {
			data := make([]byte, 40+rng.IntN(200))
			for j := range data {
				if rng.IntN(3) > 0 { // leave a good deal plain
					data[j] = byte(rng.Uint32())
				}
			}
			target.compare(t, data)
			if *seeds == "" || testing.Coverage() <= covered {
				continue
			}
			covered = testing.Coverage()
			kept++
			path := filepath.Join(*seeds, target.name, fmt.Sprintf("covers-%03d", kept))
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", data), 0o644))
		}
		if i < 2 {
			total += n
		}
	}
	for name, n := range reached {
		switch name {
		case "translated", "fragmented", "answered", "hop_limit", "too_big", "source_unmapped", "destination_unmapped", "quote_unmapped":
			parsed += n
		}
	}
	t.Logf("%d%% parsed, %v", parsed*100/(total+total/10), reached)
	if *rounds < 6000 {
		return
	}
	assert.Greater(t, parsed*2, total+total/10, "packets past the parser")
	for v := range translate.Verdict(translate.Verdicts) {
		if v == translate.Hairpin || v >= translate.SourceRefused && v != translate.SourceUnmapped && v != translate.DestinationUnmapped && v != translate.QuoteUnmapped {
			continue // only the mapping says so
		}
		assert.NotZero(t, reached[v.String()], "%s", v)
	}
}
