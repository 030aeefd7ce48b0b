package control

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPathsAreDocumented holds docs/api.md to the paths and limits there are.
func TestPathsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/api.md")
	require.NoError(t, err)
	name := regexp.MustCompile(`\{.*\}`)
	var there, told []string
	for _, r := range routes {
		there = append(there, name.ReplaceAllString(r.method+" "+r.pattern, "{}"))
		for i, parameter := range strings.Fields(r.query) {
			before := "&"
			if i == 0 {
				before = r.pattern + "?"
			}
			assert.Contains(t, string(page), before+parameter+"=")
		}
	}
	for _, m := range regexp.MustCompile("(?m)^### `(.*)`$").FindAllStringSubmatch(string(page), -1) {
		told = append(told, name.ReplaceAllString(m[1], "{}"))
	}
	slices.Sort(there)
	slices.Sort(told)
	assert.Equal(t, there, told)

	l := defaultLimits
	for what, most := range map[string]string{
		"body of `POST /v1/map`, `POST /v1/lease`, `POST /v1/attachment`, and a line of a batch": fmt.Sprint(maxBody, " bytes"),
		"body of `POST /v1/batch`":               fmt.Sprint(maxBatch, " bytes"),
		"body of `POST /v1/trace`":               fmt.Sprint(maxPacket, " bytes"),
		"headers of a request":                   fmt.Sprint(l.header, " bytes"),
		"time for a request to come in":          fmt.Sprintf("%g s", l.read.Seconds()),
		"the same for a batch, and for its turn": fmt.Sprintf("%g s", l.batch.Seconds()),
		"batches at once, of root and of all others each; more wait for their turn": fmt.Sprint(l.batches),
		"watches at once, of root and of all others each":                           fmt.Sprint(l.watches),
		"connections at once of all who are not root, on each socket":               fmt.Sprint(l.connections),
		"connections at once of one user who is not root":                           fmt.Sprint(l.userConnections),
		"watches among these": fmt.Sprint(l.userWatches),
		"requests of one user who is not root that are answered at once; more wait for a turn": fmt.Sprint(l.userTurns),
		"time between two requests of a connection":                                            fmt.Sprintf("%g s", l.idle.Seconds()),
		"time without a reader taking anything":                                                fmt.Sprintf("%g s", l.stall.Seconds()),
	} {
		assert.Contains(t, string(page), "| "+what+" | "+most+" |\n")
	}
	assert.Contains(t, string(page), fmt.Sprintf("after each %g seconds of silence", l.keepAlive.Seconds()))
	assert.Contains(t, string(page), fmt.Sprintf("no line for %g seconds", silence.Seconds()))
	for _, r := range reasons {
		assert.Contains(t, string(page), fmt.Sprintf("| %d | `%s` |", r.code, r.name))
	}
}
