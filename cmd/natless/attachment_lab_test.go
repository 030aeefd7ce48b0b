package main_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/mapping"
)

// named makes a network namespace that a file keeps, as `ip netns add` does,
// and returns its ID.
func named(t *testing.T, file string) (id string) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		made <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), file, "", unix.MS_BIND, "")
	}()
	require.NoError(t, <-made)
	t.Cleanup(func() { _ = unix.Unmount(file, unix.MNT_DETACH) })
	var s unix.Stat_t
	require.NoError(t, unix.Stat(file, &s))
	return fmt.Sprintf("%x:%x", s.Dev, s.Ino)
}

// unname takes the file away, and the namespace with it.
func unname(t *testing.T, file string) {
	t.Helper()
	require.NoError(t, unix.Unmount(file, 0))
	require.NoError(t, os.Remove(file))
}

// attached lists the targets that are attached.
func (w *world) attached(t *testing.T) (targets []string) {
	t.Helper()
	for a, err := range w.asks().Attachments(t.Context()) {
		require.NoError(t, err)
		targets = append(targets, a.Target)
	}
	return targets
}

// records is how many attachments natless keeps a record of.
func (w *world) records(t *testing.T) int {
	t.Helper()
	status, err := w.asks().Status(t.Context())
	require.NoError(t, err)
	return status.Attached
}

// keeps waits until natless keeps no more records than that.
func (w *world) keeps(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); w.records(t) > n; time.Sleep(50 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "still attached: %v", w.attached(t))
	}
}

// attach has a client leased and attached, and says what it has.
func (w *world) attach(t *testing.T, a mapping.Attachment) mapping.Attachment {
	t.Helper()
	a.Label, a.Count = "box", 1
	_, err := w.asks().Lend(t.Context(), a.IPv6, "")
	require.NoError(t, err)
	got, err := w.asks().Attach(t.Context(), a)
	require.NoError(t, err)
	return got
}

// looks waits until natless has looked at what is attached: it detaches what is
// gone then, here a namespace whose client is mapped and has no lease.
func (w *world) looks(t *testing.T) {
	t.Helper()
	before := len(w.attached(t))
	file := filepath.Join(w.Dir, "probe")
	a := mapping.Attachment{Target: "probe", Count: 1, ID: named(t, file), Namespace: file, IPv6: netip.MustParseAddr(lab.MappedIPv6)}
	_, err := w.asks().Attach(t.Context(), a)
	require.NoError(t, err)
	unname(t, file)
	w.keeps(t, before)
}

// TestLabAttachments has namespaces go away while natless runs, and while it
// does not: each is detached by itself, and its lease ends. While it is there
// that outlives natless.
func TestLabAttachments(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	s := setup{}
	w := start(t, s)
	file := filepath.Join(w.Dir, "web")
	client := netip.MustParseAddr(client1)
	a := mapping.Attachment{Target: "web", ID: named(t, file), Namespace: file, IPv6: client}
	got := w.attach(t, a)
	assert.NotEmpty(t, got.Seen)
	again := func() {
		require.NoError(t, w.daemon.Kill())
		w.run(t, s)
	}
	stays := func(when string) {
		t.Helper()
		assert.Equal(t, []string{"web"}, w.attached(t), when)
		assert.Equal(t, got.IPv4, w.leaseOf(t, client1), when)
		status, err := w.asks().Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 1, status.Attached)
		assert.False(t, status.Degraded, "%v", status.Warnings)
	}
	stays("at first")
	again()
	w.looks(t)
	stays("after kill -9")
	assert.Contains(t, w.query(t, "lease", "ls", "--label", "box", "-o", "wide"), "  yes\n")
	assert.Contains(t, w.query(t, "map", "get", client1), `labelled "box", pinned by an attachment`)
	release, err := w.daemon.Query(t.Context(), "lease", "release", client1)
	require.Error(t, err)
	assert.Contains(t, release, "it is pinned by the attachment of web (box): natless detach ends it")

	ended := func(when string) {
		t.Helper()
		w.looks(t)
		assert.Empty(t, w.attached(t), when)
		assert.False(t, w.leaseOf(t, client1).IsValid(), when)
		status, err := w.asks().Status(t.Context())
		require.NoError(t, err)
		assert.EqualValues(t, 1, status.Pools[0].Quarantined, when)
		assert.Contains(t, w.daemon.Output(), "detached: the target is gone", when)
	}
	unname(t, file)
	assert.Empty(t, w.attached(t), "at once")
	ended("it went away")

	// Again, and away while natless is away.
	a.ID = named(t, file)
	assert.Equal(t, got.IPv4, w.attach(t, a).IPv4, "its own again")
	unname(t, file)
	a.ID = named(t, file)
	assert.Equal(t, got.IPv4, w.attach(t, a).IPv4, "right after, by another")
	w.looks(t)
	stays("by another")
	require.NoError(t, w.daemon.Kill())
	unname(t, file)
	w.run(t, s)
	ended("it went away while natless was away")

	// Another in its place.
	a.ID = named(t, file)
	assert.Equal(t, got.IPv4, w.attach(t, a).IPv4, "its own again")
	require.NoError(t, w.daemon.Kill())
	unname(t, file)
	a.ID = named(t, file)
	w.run(t, s)
	ended("another is in its place")

	// Where natless sees nothing it says so, and ends nothing.
	hidden := a
	hidden.Namespace = "/proc/1/nowhere"
	hidden = w.attach(t, hidden)
	assert.Empty(t, hidden.Seen)
	w.looks(t)
	assert.Equal(t, []string{"web"}, w.attached(t))
	_, err = w.asks().Detach(t.Context(), hidden.ID)
	require.NoError(t, err)
	assert.Empty(t, w.attached(t))
}

// TestLabAttachedProcess has a process go away, and with it what was made on
// the host for it, and nothing else.
func TestLabAttachedProcess(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, setup{flags: []string{"--pref64", lab.Pref64}})
	c := exec.Command("sleep", "60")
	require.NoError(t, c.Start())
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
	require.NoError(t, err)
	var started uint64
	_, err = fmt.Sscan(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))[20], &started)
	require.NoError(t, err)

	for _, name := range []string{"made", "other"} {
		require.NoError(t, w.Host.Netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "1"}))
		require.NoError(t, w.Host.Up(name))
	}
	index := func(name string) int {
		link, err := w.Host.Netlink.LinkByName(name)
		require.NoError(t, err)
		return link.Attrs().Index
	}
	routes := func() (list []string) {
		all, err := w.Host.Netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: index("other")}, netlink.RT_FILTER_OIF)
		require.NoError(t, err)
		for _, r := range all {
			list = append(list, r.Dst.String())
		}
		return list
	}
	require.NoError(t, w.Host.Up("other1"))
	for _, r := range []string{"fd00:1::/64", "fd00:2::/64"} {
		require.NoError(t, w.Host.Do(func() error { return exec.Command("ip", "-6", "route", "add", r, "dev", "other").Run() }))
	}
	base := mapping.Attachment{PID: c.Process.Pid, Started: started, Namespace: fmt.Sprintf("/proc/%d/ns/net", c.Process.Pid)}
	one, two := base, base
	one.Target, one.ID, one.IPv6 = "one", "4:1", netip.MustParseAddr(client1)
	one.Host = &mapping.HostSide{Link: "made", Index: index("made"), Made: true}
	two.Target, two.ID, two.IPv6 = "two", "4:2", netip.MustParseAddr("2001:db8:1::80")
	two.Host = &mapping.HostSide{Link: "other", Index: index("other"), Routes: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")}}
	assert.NotEmpty(t, w.attach(t, one).Seen)
	assert.NotEmpty(t, w.attach(t, two).Seen)
	assert.Contains(t, routes(), "fd00:1::/64")

	require.NoError(t, c.Process.Kill()) // and nobody waits for it yet
	w.keeps(t, 0)
	_, err = w.Host.Netlink.LinkByName("made")
	assert.ErrorAs(t, err, new(netlink.LinkNotFoundError))
	assert.NotContains(t, routes(), "fd00:1::/64")
	assert.Contains(t, routes(), "fd00:2::/64")
}

// TestLabReloadUnderAttachment takes a pool away under an attachment: whoever
// reloads is told, and so is who asks for the status.
func TestLabReloadUnderAttachment(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	file := filepath.Join(t.TempDir(), "natless.toml")
	with := func(pool string) {
		text := own + "pref64 = \"" + lab.Pref64 + "\"\n[[pool]]\nipv4 = \"" + pool + "\"\n"
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	with("169.254.64.0/20")
	w := build(t, setup{})
	w.run(t, setup{config: "", flags: []string{"-c", file}})
	netns := filepath.Join(w.Dir, "web")
	w.attach(t, mapping.Attachment{Target: "web", ID: named(t, netns), Namespace: netns, IPv6: netip.MustParseAddr(client1)})
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	more := string(text) + "[[pool]]\nipv4 = \"169.254.96.0/20\"\nclients = [\"2001:db8:1::/64\"]\n"
	more = strings.Replace(more, "ipv4 = \"169.254.64.0/20\"\n", "ipv4 = \"169.254.64.0/20\"\nclients = [\"2001:db8:77::/64\"]\n", 1)
	require.NoError(t, os.WriteFile(file, []byte(more), 0o600))
	const lost = "the attachment of web (box) has lost 169.254.64.2: no pool has that for 2001:db8:1::2 any more: attach it again"
	assert.Contains(t, w.query(t, "reload"), lost)
	assert.Contains(t, w.daemon.Output(), lost)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	status, err := w.daemon.Query(ctx, "status")
	require.Error(t, err, "degraded")
	assert.Contains(t, status, "the attachment of web (box) does not work: attach it again")
}
