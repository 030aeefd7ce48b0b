package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	confinement "github.com/natless/natless/internal/confine"
	"github.com/natless/natless/internal/lab"
)

// threadsOf reads /proc/PID/task/TID/status of every thread of a process.
func threadsOf(t *testing.T, pid int) (list []map[string]string) {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	require.NoError(t, err)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			fields[key] = strings.TrimSpace(value)
		}
		list = append(list, fields)
	}
	return list
}

// TestLabConfined holds what natless at work can do, whoever started it: in every
// thread it has the few rights it needs, and the kernel refuses the rest.
func TestLabConfined(t *testing.T) {
	w := start(t, setup{})
	pings(t, w.client, client1) // it works
	const kept = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_NET_BIND_SERVICE
	threads := threadsOf(t, w.daemon.Process.Pid)
	require.Greater(t, len(threads), 3)
	for _, thread := range threads {
		for field, want := range map[string]string{
			"CapEff": fmt.Sprintf("%016x", kept), "CapPrm": fmt.Sprintf("%016x", kept), "CapBnd": fmt.Sprintf("%016x", kept),
			"CapInh": fmt.Sprintf("%016x", 0), "CapAmb": fmt.Sprintf("%016x", 0),
			"NoNewPrivs": "1", "Seccomp": "2",
		} {
			assert.Equal(t, want, thread[field], "%s of thread %s", field, thread["Pid"])
		}
	}

	var status struct {
		Confinement confinement.State `json:"confinement"`
		Degraded    bool              `json:"degraded"`
	}
	require.NoError(t, json.Unmarshal([]byte(w.query(t, "status", "-o", "json")), &status))
	c := status.Confinement
	assert.Equal(t, []string{"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"}, c.Capabilities)
	assert.True(t, c.NoNewPrivs)
	assert.Equal(t, "natless", c.Seccomp)
	if mentions(c.Problems, "this kernel has none") {
		t.Logf("no Landlock: %v", c.Problems)
	} else {
		assert.Positive(t, c.Landlock)
		assert.Empty(t, c.Problems)
		// A file of root's that natless has no business with: it is led there by its
		// own configuration, and does not get at it.
		secret := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(secret, []byte(own), 0o600))
		former, err := os.ReadFile(w.daemon.Config)
		require.NoError(t, err)
		require.NoError(t, os.Remove(w.daemon.Config))
		require.NoError(t, os.Symlink(secret, w.daemon.Config))
		_, err = w.asks().Reload(t.Context())
		require.ErrorContains(t, err, "permission denied: natless at work reads only what is in the directories that were there when it started")
		// One that is replaced as editors do it is read.
		require.NoError(t, os.WriteFile(w.daemon.Config+".new", former, 0o600))
		require.NoError(t, os.Rename(w.daemon.Config+".new", w.daemon.Config))
		_, err = w.asks().Reload(t.Context())
		require.NoError(t, err)
	}
	assert.Contains(t, w.query(t, "status"), "CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW; no new privileges; system calls: natless's own; files by Landlock")

	// The right to run programs was given up, so a reload does not ask for it.
	rewrite(t, w.daemon, own+"[network]\nfirewall = \"open\"\n")
	_, err := w.asks().Reload(t.Context())
	assert.ErrorContains(t, err, "needs a restart: network.firewall")
}

func mentions(list []string, part string) bool {
	return strings.Contains(strings.Join(list, "\n"), part)
}

// TestLabConfinedPrograms holds that what --firewall runs gets no more than that.
func TestLabConfinedPrograms(t *testing.T) {
	w := start(t, setup{config: own + "[network]\nfirewall = \"open\"\n"})
	text := w.query(t, "status")
	assert.Contains(t, text, "system calls: those of programs")
	for _, thread := range threadsOf(t, w.daemon.Process.Pid) {
		assert.Equal(t, "2", thread["Seccomp"])
		assert.Equal(t, "1", thread["NoNewPrivs"])
	}
}

// TestLabLockedOut has an unprivileged user lock all that it can open where
// natless is about to start, and natless's socket and state in one directory.
func TestLabLockedOut(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	one := t.TempDir()
	for _, dir := range []string{one, filepath.Dir(one)} {
		d, err := os.Open(dir)
		require.NoError(t, err)
		defer d.Close()
		require.NoError(t, unix.Flock(int(d.Fd()), unix.LOCK_EX))
	}
	socket := filepath.Join(one, "natless.sock")
	d, err := w.Host.Natless(lab.Binary(t), own, "--socket", socket, "--state-dir", one, "--pref64", lab.Pref64)
	require.NoError(t, err)
	d.Socket = socket
	began := time.Now()
	require.NoError(t, d.Start())
	defer func() { assert.NoError(t, d.Stop(), d.Output()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, d.Ready(ctx), d.Output())
	assert.Less(t, time.Since(began), 10*time.Second)
}

// TestLabStateDamaged damages the state under a running natless: what is in force
// is in memory, and is written anew.
func TestLabStateDamaged(t *testing.T) {
	s := setup{flags: []string{"--pref64", lab.Pref64}}
	w := start(t, s)
	pings(t, w.client, client1)
	lease := w.leaseOf(t, client1)
	first, second := netip.MustParsePrefix("203.0.113.8/32"), netip.MustParsePrefix("203.0.113.9/32")
	add := func(p netip.Prefix) error {
		_, err := w.asks().AddMap(t.Context(), p, netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:77::%d", p.Addr().As4()[3])), 128), "")
		return err
	}
	require.NoError(t, add(first))
	require.NoError(t, os.Truncate(filepath.Join(w.Host.StateDir(), "natless.db"), 5000))
	require.NoError(t, add(second), "written anew")
	assert.Contains(t, w.query(t, "status"), "written anew from memory")
	aside, err := filepath.Glob(filepath.Join(w.Host.StateDir(), "natless.db.set-aside-*"))
	require.NoError(t, err)
	assert.Len(t, aside, 1)
	require.NoError(t, w.daemon.Kill())
	w.run(t, s)
	assert.Equal(t, lease, w.leaseOf(t, client1))
	maps := w.query(t, "map", "ls")
	assert.Contains(t, maps, first.Addr().String())
	assert.Contains(t, maps, second.Addr().String())
}
