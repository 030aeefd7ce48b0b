package natless

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

var update = flag.Bool("update", false, "write docs/verdicts.md anew")

// TestVerdictsAreDocumented holds docs/verdicts.md to the table of verdicts.
// After a change of the table: go test -run TestVerdictsAreDocumented -update .
func TestVerdictsAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Verdicts

What can become of a packet. The names are stable: ` + "`natless stats`, `natless trace` and `natless pcap`" + ` use them, and so may scripts.
An ICMP error is sent where one is allowed (RFC 1122 3.2.2, RFC 4443 2.4), at most 200 a second for each verdict and worker.

| verdict | what it means, and what to do | ICMP error | RFC |
|---|---|---|---|
`)
	for v := range translate.Verdict(translate.Verdicts) {
		info := v.Info()
		require.NotEmpty(t, info.Name, "verdict %d", v)
		require.NotEmpty(t, info.Advice, info.Name)
		require.NotEmpty(t, info.Section, info.Name)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", info.Name, info.Advice, info.Reply, info.Section)
	}
	const file = "docs/verdicts.md"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o644))
	}
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(page))
}
