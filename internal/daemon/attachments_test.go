package daemon

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/proc"
	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
)

func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	started, err := proc.Started(pid)
	require.NoError(t, err)
	return started
}

// A process is there until it has ended, also while nobody has heard of its
// end, and is not one that has its number later.
func TestSightOfProcess(t *testing.T) {
	c := exec.Command("sleep", "60")
	require.NoError(t, c.Start())
	a := mapping.Attachment{PID: c.Process.Pid, Started: startOf(t, c.Process.Pid), Namespace: "/nowhere"}
	first, err := sight(a)
	require.NoError(t, err)
	again, err := sight(a)
	require.NoError(t, err)
	assert.Equal(t, first, again)
	other := a
	other.Started++
	_, err = sight(other)
	assert.ErrorIs(t, err, errGone)

	require.NoError(t, c.Process.Kill())
	for begun := time.Now(); err == nil && time.Since(begun) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		_, err = sight(a)
	}
	assert.ErrorIs(t, err, errGone, "a zombie has left its namespace")
	require.Error(t, c.Wait())
	_, err = sight(a)
	assert.ErrorIs(t, err, errGone)
}

func TestGone(t *testing.T) {
	a := mapping.Attachment{PID: os.Getpid(), Started: startOf(t, os.Getpid()), Boot: boot()}
	require.NotEmpty(t, a.Boot)
	seen, err := sight(a)
	require.NoError(t, err)
	a.Seen = seen
	assert.False(t, gone(a))
	other := a
	other.Started++
	assert.True(t, gone(other))
	other.Seen = ""
	assert.False(t, gone(other), "it was never seen")
	other.Boot = "another"
	assert.True(t, gone(other), "nor can it be there")
}

// A file that is not the namespace is none that was seen, nor is one that has
// its number and came to be later.
func TestSightOfFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "web")
	a := mapping.Attachment{ID: "4:f0000123", Namespace: name}
	_, err := sight(a)
	assert.ErrorIs(t, err, errGone)
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	_, err = sight(a)
	assert.ErrorIs(t, err, errGone)
	var s unix.Stat_t
	require.NoError(t, unix.Stat(name, &s))
	a.ID = fmt.Sprintf("%x:%x", s.Dev, s.Ino)
	seen, err := sight(a)
	require.NoError(t, err)
	again, err := sight(a)
	require.NoError(t, err)
	assert.Equal(t, seen, again)
	for begun := time.Now(); again == seen && time.Since(begun) < 10*time.Second; time.Sleep(time.Millisecond) {
		require.NoError(t, os.Chmod(name, 0o400)) // which changes the time
		again, err = sight(a)
		require.NoError(t, err)
	}
	assert.NotEqual(t, seen, again)
	a.Namespace = name + "/further"
	_, err = sight(a)
	assert.ErrorIs(t, err, errGone)
}

func TestLostByReload(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::5")
	ended := []mapping.Lease{
		{IPv4: netip.MustParseAddr("192.0.2.7"), IPv6: v6, Pinned: true},
		{IPv4: netip.MustParseAddr("192.0.2.8"), IPv6: v6.Next()},
	}
	assert.Equal(t, []string{"the attachment of web has lost 192.0.2.7: no pool has that for 2001:db8::5 any more: attach it again"},
		lostByReload(ended, []mapping.Attachment{{Target: "web", IPv6: v6}, {Target: "db", IPv6: v6.Prev()}}))
}

// What the daemon may not take back of a target that is gone stays recorded without
// a lease, until a command of root's does.
func TestDetachWithoutRights(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "it takes root to own files as another")
	}
	client := netip.MustParseAddr("2001:db8::5")
	table, err := mapping.New(mapping.Config{
		Pref64:  netip.MustParsePrefix("64:ff9b::/96"),
		OwnIPv4: netip.MustParseAddr("192.0.2.1"), OwnIPv6: netip.MustParseAddr("fd00::1"),
		Pools: []mapping.Pool{{IPv4: netip.MustParsePrefix("192.0.2.0/29"), Clients: []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")}}},
	})
	require.NoError(t, err)
	_, err = table.Keep(mapping.Keeper{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	_, err = table.Lend(t.Context(), client, "web", "me")
	require.NoError(t, err)
	dir := t.TempDir()
	file := filepath.Join(dir, "resolv.conf")
	require.NoError(t, os.WriteFile(file, []byte("set\n"), 0o644))
	a, err := table.Attach(mapping.Attachment{
		ID: "4:1", Target: "web", Label: "web", Namespace: "/run/netns/web", IPv6: client, Count: 1,
		Undo: json.RawMessage(`{"holders":[{"target":"web","resolver":{"path":"` + file + `","was":"was\n","set":"set\n"}}]}`),
	}, "me")
	require.NoError(t, err)
	d := &daemon{table: table, log: slog.New(slog.DiscardHandler)}

	require.NoError(t, os.Chown(dir, 65534, 65534))
	require.NoError(t, d.detach(a))
	assert.Empty(t, table.Leases())
	require.Len(t, table.Attachments(), 1)
	assert.Zero(t, d.attached())
	assert.Empty(t, d.unheld())
	for x := range d.Attachments() {
		assert.Equal(t, "its target is gone; natless detach takes back what is left of it", x.(mapping.Attachment).Problem)
	}

	require.NoError(t, os.Chown(dir, 0, 0))
	require.NoError(t, d.detach(table.Attachments()[0]))
	assert.Empty(t, table.Attachments())
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "was\n", string(text))
}
