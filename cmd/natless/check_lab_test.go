package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// TestLabCheckTellsTheExit holds what scripts go by: check fails where something
// stands in the way, and says in its last line that nothing does; its --diff knows
// how the running natless was started, and is empty after a reload.
func TestLabCheckTellsTheExit(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	free, err := w.Host.Command(t.Context(), lab.Binary(t), "check", "--state-dir", w.Host.StateDir()).CombinedOutput()
	require.NoError(t, err, "%s", free)
	assert.True(t, strings.HasSuffix(string(free), "\nnothing stands in the way\n"), "%s", free)

	readOnly := func(form string) ([]byte, error) {
		return w.Host.Command(t.Context(), "unshare", "-m", "sh", "-ec",
			`mount -t tmpfs -o ro none /mnt; exec "$0" check --state-dir /mnt/natless -o "$1"`, lab.Binary(t), form).Output()
	}
	out, err := readOnly("table")
	assert.ErrorContains(t, err, "exit status 1")
	assert.True(t, strings.HasSuffix(string(out), "\nstands in the way:\n  no lease can be saved: state.dir /mnt/natless: /mnt: read-only file system\n"), "%s", out)
	out, err = readOnly("json")
	assert.ErrorContains(t, err, "exit status 1")
	var report struct{ Actions, Conflicts, Obstacles []string }
	require.NoError(t, json.Unmarshal(out, &report))
	assert.Len(t, report.Obstacles, 1)
	assert.NotEmpty(t, report.Actions)

	w.run(t, setup{flags: []string{"--pref64", lab.Pref64, "--on-exit", "keep"}})
	assert.Empty(t, w.query(t, "check", "--diff"))
	require.NoError(t, os.WriteFile(w.daemon.Config, []byte(own+"hairpin = \"off\"\n"), 0o600))
	said, err := w.daemon.Query(t.Context(), "check", "--diff")
	assert.ErrorContains(t, err, "exit status 1")
	assert.Equal(t, "- translation.hairpin = \"intrinsic\"\n+ translation.hairpin = \"off\"\nnatless: comparing with the running natless: 1 values differ\n", said)
	w.query(t, "reload")
	assert.Empty(t, w.query(t, "check", "--diff"))

	require.NoError(t, os.WriteFile(w.daemon.Config, []byte("[device\n"), 0o600))
	for _, args := range [][]string{{"check", "--diff"}, {"reload"}} {
		_, err = w.daemon.Query(t.Context(), args...)
		assert.ErrorContains(t, err, "exit status 2", args)
	}
}

// No time helps who may not ask.
func TestLabWaitEndsWithoutPermission(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, setup{})
	began := time.Now()
	c := w.Host.Command(t.Context(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", lab.Binary(t), "status", "--wait=1h", "--socket", w.daemon.Socket)
	out, err := c.CombinedOutput()
	assert.ErrorContains(t, err, "exit status 1")
	assert.Contains(t, string(out), "permission denied: only root may ask")
	assert.Less(t, time.Since(began), 20*time.Second)
}

// What import makes passes check, on a host that has nothing against it.
func TestLabImportPassesCheck(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	file := filepath.Join(t.TempDir(), "tayga.conf")
	require.NoError(t, os.WriteFile(file, []byte("tun-device nat64\nipv4-addr 192.168.255.1\nprefix 2001:db8:64::/96\n"+
		"dynamic-pool 192.168.255.0/24\ndata-dir /var/spool/tayga\nmap 203.0.113.7 2001:db8:2::7\nmap 203.0.113.7 2001:db8:2::8\n"), 0o600))
	out, err := w.Host.Command(t.Context(), "sh", "-ec",
		`cd "$(dirname "$1")"; "$0" import tayga "$1" >natless.toml; "$0" check -c natless.toml --state-dir ''`, lab.Binary(t), file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "create TUN device nat64")
	assert.True(t, strings.HasSuffix(string(out), "\nnothing stands in the way\n"), "%s", out)
}
