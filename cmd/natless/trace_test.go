package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// natless runs a command in this process.
func natless(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	cmd := root()
	var out bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&out)
	err := cmd.Execute()
	return out.String(), err
}

// usage reports whether an error is one of wrong usage.
func usage(err error) bool { return err != nil && exitCode(err) == exitUsage }

// documented is a section of docs/cli.md as a session: each command and what
// it prints.
func documented(t *testing.T, section string) (session [][2]string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/cli.md")
	require.NoError(t, err)
	_, text, found := strings.Cut(string(page), "\n## "+section+"\n")
	require.True(t, found)
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		line, block := strings.CutPrefix(line, "    ")
		command, is := strings.CutPrefix(line, "$ ")
		switch {
		case block && is:
			session = append(session, [2]string{strings.TrimSpace(command)})
		case block && len(session) > 0 && session[len(session)-1][1] != "end":
			session[len(session)-1][1] += line
		case len(session) > 0:
			return session
		}
	}
	return session
}

// TestTraceAsDocumented holds that docs/cli.md shows what the command prints.
func TestTraceAsDocumented(t *testing.T) {
	session := documented(t, "natless trace")
	require.Len(t, session, 3)
	t.Chdir(t.TempDir())
	for _, s := range session {
		words := strings.Fields(s[0])
		if words[0] == "cat" {
			require.NoError(t, os.WriteFile(words[1], []byte(s[1]), 0o600))
			continue
		}
		out, err := natless(t, "", words[1:]...)
		require.NoError(t, err, s[0])
		assert.Equal(t, s[1], out, s[0])
	}
}

const traceConfig = `
[device]
mtu = 1500
[translation]
ipv6 = "2001:db8:ffff::1"
[[map]]
ipv4 = "192.0.2.1"
ipv6 = "2001:db8::1"
`

func TestTraceInput(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("natless.toml", []byte(traceConfig), 0o600))
	const digits = "600000000008110120010db80000000000000000000000010064ff9b0000000000000000cb0071090001000200089617"
	for _, c := range []struct {
		in   string
		args []string
	}{
		{"", strings.Fields("udp 2001:db8::1 1 64:ff9b::203.0.113.9 2 ttl 1")},
		{"", []string{"udp 2001:db8::1 1 64:ff9b::203.0.113.9 2", "ttl", "1"}},
		{"", []string{digits}},
		{"", []string{digits[:7], digits[7:]}},
		{"0x0000: " + digits[:32] + "\n0x0010: " + digits[32:] + "\n", []string{"-"}},
		{"udp 2001:db8::1 1 64:ff9b::203.0.113.9 2 ttl 1\n", []string{"-"}},
	} {
		out, err := natless(t, c.in, append([]string{"trace", "-c", "natless.toml", "-o", "json"}, c.args...)...)
		require.NoError(t, err, "an answer is no failure")
		var r struct {
			Packet  struct{ Hex string }
			Verdict string
			Leaves  bool
		}
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		assert.Equal(t, digits, r.Packet.Hex)
		assert.Equal(t, "hop_limit", r.Verdict)
		assert.False(t, r.Leaves)
	}

	_, err := natless(t, "", "trace", "-c", "natless.toml", "zz")
	assert.True(t, usage(err))
	assert.EqualError(t, err, `reading the packet: "zz": expected hex digits, or words that begin with tcp, udp or icmp`)
	_, err = natless(t, "", "trace", "-c", "natless.toml", "-")
	assert.True(t, usage(err))
	_, err = natless(t, "", "trace")
	assert.True(t, usage(err))
	_, err = natless(t, "", "trace", "-c", "none.toml", "60")
	assert.True(t, usage(err))
	assert.ErrorContains(t, err, "none.toml")
	_, err = natless(t, "", "trace", "--socket", "none.sock", "60")
	assert.False(t, usage(err))
	assert.ErrorContains(t, err, "is natless running?")
}
