package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/config"
)

// TestWrongConfigurationExits2 holds that every command tells a configuration that
// is wrong, which no second try mends, from what has failed.
func TestWrongConfigurationExits2(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("NATLESS_SOCKET", "/nowhere/natless.sock")
	files := map[string]string{
		"syntax":   "[device\n",
		"unknown":  "[device]\nnmae = \"x\"\n",
		"value":    "[device]\nmtu = 5\n",
		"type":     "[device]\nmtu = \"1500\"\n",
		"conflict": "[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\n[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::2\"\n",
		"later":    "[[pool]]\nmode = \"stateful\"\n",
	}
	for name, text := range files {
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	}
	require.NoError(t, os.Mkdir("directory", 0o700))
	// Should a configuration get through, the state ends it before anything on this
	// host is touched.
	const nowhere = "run --state-dir /proc/nowhere"
	commands := []string{
		nowhere + " -c", "check -c", "check --diff -c", "check --snippets -c", "down -c", "map get 192.0.2.1 -c",
		"trace udp 192.0.2.1 1 192.0.2.2 2 -c", "pcap in out -c", "map import",
	}
	for _, command := range commands {
		for _, name := range []string{"syntax", "unknown", "value", "type", "conflict", "later", "directory", "missing"} {
			if command == "map import" && (name == "missing" || name == "directory") {
				continue // a file of maps is no configuration, and may come yet
			}
			_, _, err := says(t, "", strings.Fields(command+" "+name)...)
			require.Error(t, err, "%s %s", command, name)
			assert.Equal(t, exitUsage, exitCode(err), "%s %s: %v", command, name, err)
		}
	}
	flags := []string{
		"--pref64 192.0.2.0/24", "--pref64 2001:db8::/65", "--map 192.0.2.1", "--pool 0.0.0.0/0", "--pool-mode stateful", "--clients 192.0.2.1",
	}
	of := map[string][]string{nowhere: {"--device a/b", "--queues -1", "--masquerade no", "--on-exit stay", "--socket here", "--dns64 ::"}}
	for _, command := range []string{nowhere, "check", "check --diff", "check --snippets", "pcap in out"} {
		for _, flag := range append(of[command], flags...) {
			_, _, err := says(t, "", strings.Fields(command+" "+flag)...)
			require.Error(t, err, "%s %s", command, flag)
			assert.Equal(t, exitUsage, exitCode(err), "%s %s: %v", command, flag, err)
		}
	}
	t.Setenv("NATLESS_SOCKET", "relative")
	_, _, err := says(t, "", strings.Fields(nowhere)...)
	assert.ErrorContains(t, err, "$NATLESS_SOCKET")
	assert.Equal(t, exitUsage, exitCode(err))
}

// The running daemon says of a reload which of the two it was.
func TestReloadOfWrongConfigurationExits2(t *testing.T) {
	f := newFake()
	f.serve(t)
	for code, err := range map[int]error{
		exitUsage:  fmt.Errorf("reloading: %w", config.Wrong(errors.New("f:3: map.lable: unknown key"))),
		exitFailed: errors.New("reloading: needs a restart: device.mtu: 0 -> 1400"),
	} {
		f.reload = func() ([]string, error) { return nil, err }
		_, _, got := says(t, "", "reload")
		assert.EqualError(t, got, err.Error())
		assert.Equal(t, code, exitCode(got))
	}
}
