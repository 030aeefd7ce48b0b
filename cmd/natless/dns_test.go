package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/dns64"
)

func (f *fake) DNS(_ context.Context, name, qtype string) (any, error) {
	if name != "www.example.com" || qtype != "AAAA" {
		return nil, errors.New("DNS64 is off")
	}
	const from = "upstream 192.0.2.53:53"
	return dns64.Explanation{
		Name: "www.example.com.", Type: "AAAA", Code: "NOERROR", Synthesised: true, From: []string{from, from},
		Answers: []dns64.Record{{
			Name: "www.example.com.", TTL: 300, Type: "AAAA", Data: "64:ff9b::cb00:7150",
			IPv4: netip.MustParseAddr("203.0.113.80"), Rule: "pref64", Detail: "behind pref64 64:ff9b::/96",
		}},
		Steps: []string{"www.example.com. AAAA: asked " + from, "www.example.com. A: asked " + from},
	}, nil
}

// TestDNS holds docs/cli.md to what the command prints.
func TestDNS(t *testing.T) {
	newFake().serve(t)
	page, err := os.ReadFile("../../docs/cli.md")
	require.NoError(t, err)
	out := mustSay(t, "dns www.example.com")
	assert.Contains(t, string(page), "    $ natless dns www.example.com\n    "+strings.ReplaceAll(strings.TrimSpace(out), "\n", "\n    ")+"\n")
	_, _, err = says(t, "", "dns", "www.example.com", "TXT")
	assert.ErrorContains(t, err, "DNS64 is off")
}
