package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	api "github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/mapping"
)

// asks is a client of the world's daemon.
func (w *world) asks() *api.Client { return api.NewClient(w.daemon.Socket) }

// leaseOf is the address lent to a client; invalid if there is none.
func (w *world) leaseOf(t *testing.T, client string) netip.Addr {
	t.Helper()
	for l, err := range api.Decoded[mapping.Lease](w.asks().Leases(t.Context())) {
		require.NoError(t, err)
		if l.IPv6 == netip.MustParseAddr(client) {
			return l.IPv4
		}
	}
	return netip.Addr{}
}

// pings asserts that a node reaches the server from an address.
func pings(t *testing.T, n *lab.Node, source string) {
	t.Helper()
	_, err := lab.Ping(t.Context(), n, source, netip.MustParseAddr(lab.Server6), 56)
	require.NoError(t, err, "from %s", source)
}

// hears reports whether a datagram comes in time, and from whom.
func hears(t *testing.T, conn net.PacketConn, want string, patience time.Duration) (from net.Addr, heard bool) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 64)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return nil, false
		}
		if string(buf[:n]) == want {
			return from, true
		}
	}
}

func hearing(t *testing.T, n *lab.Node, address string) net.PacketConn {
	t.Helper()
	conn, err := n.ListenPacket("udp", address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// flowing has a client download without end, with content checked, until the
// function it returns is called, which asserts that nothing broke. Each request
// would be given up after a stall of a few seconds.
func flowing(t *testing.T, n *lab.Node) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	rounds := 0
	go func() {
		buf := make([]byte, 1<<20)
		for ctx.Err() == nil {
			if _, err := lab.Download(ctx, n.HTTP(""), server6+":8080", buf, nil); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
			rounds++
		}
		done <- nil
	}()
	return func() {
		t.Helper()
		cancel()
		assert.NoError(t, <-done, "other flows are disturbed")
		assert.NotZero(t, rounds)
	}
}

// A packet sent right after the answer to a change goes by the new table, 200
// times, while another client's downloads go on.
func TestLabMapsChangeUnderLoad(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload, clients: 2})
		const moving = "203.0.113.9"
		var homes []net.PacketConn
		var sides []netip.Prefix
		for _, a := range []string{"2001:db8:1::91", "2001:db8:1::92"} {
			require.NoError(t, w.client.Address("eth0", a+"/64"))
			homes = append(homes, hearing(t, w.client, "["+a+"]:9000"))
			sides = append(sides, netip.MustParsePrefix(a+"/128"))
		}
		server, err := w.Server.Dial(t.Context(), "udp", moving+":9000")
		require.NoError(t, err)
		defer server.Close()
		v4 := netip.MustParsePrefix(moving + "/32")
		defer flowing(t, w.Clients[1])()

		last := w.asks()
		revision, err := last.AddMap(t.Context(), v4, sides[1], "moving")
		require.NoError(t, err)
		for i := range 200 {
			home := i % 2
			next, err := w.asks().Batch(t.Context(), []mapping.Change{
				{Remove: sides[1-home]}, {Add: &mapping.Map{IPv4: v4, IPv6: sides[home], Label: "moving"}},
			})
			require.NoError(t, err)
			require.Greater(t, next, revision)
			revision = next
			word := fmt.Sprint("round ", i)
			_, err = server.Write([]byte(word))
			require.NoError(t, err)
			_, heard := hears(t, homes[home], word, 5*time.Second)
			require.True(t, heard, "%s went elsewhere", word)
		}
		for _, conn := range homes {
			_, stray := hears(t, conn, "nothing more", 10*time.Millisecond)
			assert.False(t, stray)
		}

		_, err = w.asks().RemoveMap(t.Context(), v4)
		require.NoError(t, err)
		_, err = server.Write([]byte("late"))
		require.NoError(t, err)
		_, heard := hears(t, homes[1], "late", 200*time.Millisecond)
		assert.False(t, heard, "a removed map is in force")
		for _, r := range ours(t, w.Host) {
			assert.False(t, r.Dst.Contains(net.ParseIP(moving)), "a route of the removed map: %v", r)
		}
		_, err = w.asks().RemoveMap(t.Context(), v4)
		assert.ErrorIs(t, err, mapping.ErrUnknown)
	})
}

// What may not change says why, and changes nothing.
func TestLabChangesRefused(t *testing.T) {
	w := start(t, setup{})
	before := snapshot(t, w.Host)
	_, err := w.asks().RemoveMap(t.Context(), netip.MustParsePrefix(lab.MappedIPv4+"/32"))
	assert.ErrorContains(t, err, "--map has it", "an entry of the configuration")
	for prefix, want := range map[string]string{
		lab.HostIPv4 + "/32": "198.51.100.1/32: overlaps address 198.51.100.1 of wan",
		"198.51.100.128/25":  "198.51.100.128/25: overlaps route 198.51.100.0/24 (over wan",
		lab.MappedIPv4:       "is mapped already",
		ownIPv4:              ownIPv4,
	} {
		if !strings.Contains(prefix, "/") {
			prefix += "/32"
		}
		p := netip.MustParsePrefix(prefix)
		_, err := w.asks().AddMap(t.Context(), p, netip.PrefixFrom(netip.MustParseAddr("2001:db8:1::9000"), 96+p.Bits()).Masked(), "")
		assert.ErrorIs(t, err, mapping.ErrConflict, prefix)
		assert.ErrorContains(t, err, want)
	}
	unchanged(t, w.Host, before, "after refused changes")
}

// Maps added at runtime and leases outlive natless, however it ends.
func TestLabStateSurvives(t *testing.T) {
	ends := map[string]func(*lab.Daemon) error{
		"SIGTERM": (*lab.Daemon).Stop,
		"SIGKILL": (*lab.Daemon).Kill,
	}
	lab.Require(t)
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setup{clients: 2, flags: []string{"--pref64", lab.Pref64}}
			w := start(t, s)
			const client2 = "2001:db8:2::2"
			pings(t, w.client, client1)
			pings(t, w.Clients[1], client2)
			first, second := w.leaseOf(t, client1), w.leaseOf(t, client2)
			require.True(t, first.IsValid() && second.IsValid())
			added := netip.MustParsePrefix("203.0.113.9/32")
			_, err := w.asks().AddMap(t.Context(), added, netip.MustParsePrefix(lab.MappedIPv6+"/128"), "added")
			require.NoError(t, err)

			require.NoError(t, end(w.daemon))
			w.run(t, s)
			assert.Equal(t, first, w.leaseOf(t, client1))
			assert.Equal(t, second, w.leaseOf(t, client2))
			// Had they to lease anew, the second would be first.
			pings(t, w.Clients[1], client2)
			pings(t, w.client, client1)
			assert.Equal(t, first, w.leaseOf(t, client1))
			assert.Equal(t, second, w.leaseOf(t, client2))
			_, err = lab.Ping(t.Context(), w.Server, "", added.Addr(), 56)
			assert.NoError(t, err, "the added map is in force, with its route")
			_, err = w.asks().RemoveMap(t.Context(), added)
			assert.NoError(t, err)

			require.NoError(t, end(w.daemon))
			w.run(t, s)
			rows := w.query(t, "map", "ls", "-o", "json")
			assert.NotContains(t, rows, added.String())
		})
	}
}

// rewrite puts another configuration in a daemon's file.
func rewrite(t *testing.T, d *lab.Daemon, config string) {
	t.Helper()
	require.NoError(t, os.WriteFile(d.Config, []byte(config), 0o600))
}

const reloadable = own + `
[[map]]
ipv4 = "203.0.113.9"
ipv6 = "2001:db8:1::91"
[[pool]]
ipv4 = "169.254.64.0/24"
`

func TestLabReload(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload, clients: 2, config: reloadable, flags: []string{"--pref64", lab.Pref64}})
		require.NoError(t, w.client.Address("eth0", "2001:db8:1::91/64"))
		reached := func(address string) bool {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := lab.Ping(ctx, w.Server, "", netip.MustParseAddr(address), 56)
			return err == nil
		}
		pings(t, w.Clients[1], "")
		lease := w.leaseOf(t, "2001:db8:2::2")
		require.True(t, lease.IsValid())
		require.True(t, reached("203.0.113.9"))
		stop := flowing(t, w.Clients[1])

		// Another map, and a pool more.
		next := strings.Replace(reloadable, "203.0.113.9", "203.0.113.10", 1) + "[[pool]]\nipv4 = \"100.64.0.0/24\"\n"
		rewrite(t, w.daemon, next)
		changes, err := w.asks().Reload(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{
			"map added: 203.0.113.10/32 = 2001:db8:1::91/128",
			"map removed: 203.0.113.9/32 = 2001:db8:1::91/128",
			"pool added: 100.64.0.0/24",
		}, changes)
		for _, line := range changes {
			assert.Contains(t, w.daemon.Output(), line)
		}
		assert.True(t, reached("203.0.113.10"))
		assert.False(t, reached("203.0.113.9"))
		assert.Equal(t, lease, w.leaseOf(t, "2001:db8:2::2"))
		assert.Contains(t, w.query(t, "status"), "100.64.0.0/24")

		// What is bad, cannot change, or is in the host's way changes nothing.
		good := snapshot(t, w.Host)
		config, err := w.asks().Config(t.Context())
		require.NoError(t, err)
		for bad, want := range map[string]string{
			"[[map]]\nipv4 = \"203.0.113.9\"\n": "natless.toml:1: map.ipv6: missing",
			"not TOML":                          "natless.toml:1",
			next + "[device]\nmtu = 9000\n":     "needs a restart: device.mtu: 0 -> 9000",
			next + "[[map]]\nipv4 = \"198.51.100.1\"\nipv6 = \"2001:db8::1\"\n": "198.51.100.1/32: overlaps address 198.51.100.1 of wan",
			next + "[[map]]\nipv4 = \"169.254.64.1\"\nipv6 = \"2001:db8::1\"\n": "169.254.64.1",
		} {
			rewrite(t, w.daemon, bad)
			_, err := w.asks().Reload(t.Context())
			assert.ErrorContains(t, err, want)
			now, err := w.asks().Config(t.Context())
			require.NoError(t, err)
			assert.JSONEq(t, string(config), string(now), "after %q", bad)
			unchanged(t, w.Host, good, "after "+bad)
		}
		assert.True(t, reached("203.0.113.10"))

		// By signal, and back.
		rewrite(t, w.daemon, reloadable+"[log]\nlevel = \"debug\"\n")
		require.NoError(t, w.daemon.Signal(syscall.SIGHUP))
		for range 50 {
			if reached("203.0.113.9") {
				break
			}
		}
		assert.True(t, reached("203.0.113.9"))
		assert.False(t, reached("203.0.113.10"))
		w.query(t, "status")
		assert.Contains(t, w.daemon.Output(), "control request", "what the level debug tells")
		rewrite(t, w.daemon, "not TOML")
		require.NoError(t, w.daemon.Signal(syscall.SIGHUP))
		for range 100 {
			if strings.Contains(w.daemon.Output(), "the configuration stays as it was") {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		assert.Contains(t, w.daemon.Output(), "the configuration stays as it was")
		assert.True(t, reached("203.0.113.9"))
		stop()
		assert.Equal(t, lease, w.leaseOf(t, "2001:db8:2::2"))

		// Another pool in place of the one with a lease.
		rewrite(t, w.daemon, strings.Replace(reloadable, "169.254.64.0/24", "100.64.0.0/24", 1))
		changes, err = w.asks().Reload(t.Context())
		require.NoError(t, err)
		assert.Contains(t, changes, "leases ended: 1, of addresses or clients that no pool has any more")
		assert.Contains(t, w.daemon.Output(), "leases ended: 1")
	})
}

// The service manager hears when a reload begins and ends.
func TestLabReloadIsNotified(t *testing.T) {
	w := build(t, setup{})
	path := filepath.Join(w.Dir, "notify")
	manager, err := net.ListenPacket("unixgram", path)
	require.NoError(t, err)
	defer manager.Close()
	d, err := w.Host.Natless(lab.Binary(t), own)
	require.NoError(t, err)
	d.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	require.NoError(t, d.Start())
	defer func() { assert.NoError(t, d.Stop()) }()
	told := func() string {
		t.Helper()
		require.NoError(t, manager.SetReadDeadline(time.Now().Add(20*time.Second)))
		buf := make([]byte, 256)
		n, _, err := manager.ReadFrom(buf)
		require.NoError(t, err)
		return string(buf[:n])
	}
	assert.Equal(t, "READY=1", told())
	require.NoError(t, d.Signal(syscall.SIGHUP))
	assert.Regexp(t, `^RELOADING=1\nMONOTONIC_USEC=\d+\n$`, told())
	assert.Equal(t, "READY=1", told())
}

// State that cannot be opened is one clear error, and a host that nothing has
// touched.
func TestLabStateRefused(t *testing.T) {
	w := start(t, setup{clients: 1})
	other, err := w.Node("other")
	require.NoError(t, err)
	before := snapshot(t, other)
	file := filepath.Join(w.Dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, c := range map[string]struct{ dir, want string }{
		"a file":    {file, "not a directory"},
		"in use":    {w.Host.StateDir(), "another natless uses"},
		"no path":   {"/proc/natless", "/proc/natless"},
		"not given": {"state", "absolute path"},
	} {
		out := refuses(t, other, own, nil, "--state-dir", c.dir)
		assert.Contains(t, out, c.dir, name)
		assert.Contains(t, out, c.want, name)
		unchanged(t, other, before, "after the refusal: "+name)
	}
	pings(t, w.client, "")
}

// newClient gives a node an address that has no lease, and tries to reach the
// server from it, once.
func newClient(t *testing.T, n *lab.Node, i int) (address string, err error) {
	t.Helper()
	address = fmt.Sprintf("2001:db8:1::1:%x", i)
	require.NoError(t, n.Address("eth0", address+"/64"))
	ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
	defer cancel()
	_, err = lab.Ping(ctx, n, address, netip.MustParseAddr(lab.Server6), 56)
	return address, err
}

const unreachable = "destination unreachable, code 3"

// While the state cannot be written leases go on and new clients are refused by
// name; it goes on by itself. A full disk leaves the file the room it has, a
// read-only one none.
func TestLabStateUnavailable(t *testing.T) {
	w := build(t, setup{})
	dir := filepath.Join(w.Dir, "small")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	s := setup{flags: []string{"--pref64", lab.Pref64, "--state-dir", filepath.Join(dir, "state")}}
	w.run(t, s)
	pings(t, w.client, client1)
	lease := w.leaseOf(t, client1)
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	require.NoError(t, err)
	for range 1 << 10 {
		if _, err = ballast.Write(make([]byte, 1<<10)); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	refused, clients := "", 0
	for ; refused == "" && clients < 256; clients++ {
		if source, err := newClient(t, w.client, clients); err != nil {
			assert.ErrorContains(t, err, unreachable)
			refused = source
		}
	}
	require.NotEmpty(t, refused, "nobody was refused")
	assert.NotZero(t, w.verdict(t, "state_unavailable"))
	assert.Contains(t, w.daemon.Output(), "no space left on device")
	pings(t, w.client, client1)
	require.NoError(t, os.Remove(ballast.Name()))
	require.NoError(t, ballast.Close())
	w.recovers(t, refused)
	require.NoError(t, w.daemon.Stop())

	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	w.daemon = launch(t, w.Host, s)
	status := w.status(t)
	assert.True(t, status.Degraded)
	assert.Contains(t, status.State.Problem, "read-only file system")
	assert.Contains(t, strings.Join(status.Warnings, "\n"), "read-only file system")
	pings(t, w.client, client1)
	assert.Equal(t, lease, w.leaseOf(t, client1))
	refused, err = newClient(t, w.client, clients)
	assert.ErrorContains(t, err, unreachable)
	assert.False(t, w.leaseOf(t, refused).IsValid())
	before := snapshot(t, w.Host)
	_, err = w.asks().AddMap(t.Context(), netip.MustParsePrefix("203.0.113.9/32"), netip.MustParsePrefix("2001:db8:9::9/128"), "")
	assert.ErrorIs(t, err, mapping.ErrUnavailable)
	unchanged(t, w.Host, before, "after a map that could not be saved")
	rewrite(t, w.daemon, own+"[[pool]]\nipv4 = \"100.64.0.0/24\"\n")
	_, err = w.asks().Reload(t.Context())
	assert.ErrorIs(t, err, mapping.ErrUnavailable, "leases end with their pool")
	unchanged(t, w.Host, before, "after a reload that could not be saved")
	pings(t, w.client, client1)

	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	w.recovers(t, refused)
	assert.True(t, w.leaseOf(t, refused).IsValid())
}

// status asks until the daemon answers.
func (w *world) status(t *testing.T) (s api.Status) {
	t.Helper()
	var err error
	for range 200 {
		if s, err = w.asks().Status(t.Context()); err == nil {
			return s
		}
		time.Sleep(50 * time.Millisecond)
	}
	require.NoError(t, err)
	return s
}

// recovers waits until the state can be written again, and a client that was
// refused gets through. The refusal is remembered for a few seconds.
func (w *world) recovers(t *testing.T, client string) {
	t.Helper()
	var err error
	for range 100 {
		if _, err = lab.Ping(t.Context(), w.client, client, netip.MustParseAddr(lab.Server6), 56); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	require.NoError(t, err)
	assert.False(t, w.status(t).Degraded)
}

// Whoever is lent an address next gets no answers to its former client: what
// connection tracking knew of it is deleted.
func TestLabLeaseReleasedAndLentAnew(t *testing.T) {
	config := own + "[[pool]]\nipv4 = \"169.254.64.0/30\"\nquarantine = \"0\"\n"
	w := start(t, setup{clients: 2, config: config, flags: []string{"--pref64", lab.Pref64}})
	server := hearing(t, w.Server, lab.ServerIPv4+":9000")
	send := func(n *lab.Node, source, word string) (conn net.PacketConn, seen net.Addr) {
		t.Helper()
		conn = hearing(t, n, source)
		_, err := conn.WriteTo([]byte(word), &net.UDPAddr{IP: net.ParseIP(lab.Server6), Port: 9000})
		require.NoError(t, err)
		seen, heard := hears(t, server, word, 5*time.Second)
		require.True(t, heard, word)
		return conn, seen
	}
	first, seen := send(w.client, "["+client1+"]:4000", "first")
	_, err := server.WriteTo([]byte("answer"), seen)
	require.NoError(t, err)
	_, heard := hears(t, first, "answer", 5*time.Second)
	require.True(t, heard)
	send(w.client, "["+lab.MappedIPv6+"]:4000", "full")
	address := w.leaseOf(t, client1)

	const client2 = "2001:db8:2::2"
	released, err := w.asks().Release(t.Context(), netip.MustParseAddr(client1))
	require.NoError(t, err)
	assert.Equal(t, address, released.IPv4)
	assert.False(t, w.leaseOf(t, client1).IsValid())
	second := hearing(t, w.Clients[1], "["+client2+"]:4000")
	send(w.Clients[1], "["+client2+"]:5000", "second")
	require.Equal(t, address, w.leaseOf(t, client2))
	_, err = server.WriteTo([]byte("for the first"), seen)
	require.NoError(t, err)
	_, heard = hears(t, second, "for the first", 500*time.Millisecond)
	assert.False(t, heard, "it got what was meant for the former client")
	_, err = w.asks().Release(t.Context(), netip.MustParseAddr(client1))
	assert.ErrorIs(t, err, mapping.ErrUnknown)

	var past []map[string]any
	for row, err := range w.asks().LeasesAt(t.Context(), time.Now()) {
		require.NoError(t, err)
		var r map[string]any
		require.NoError(t, json.Unmarshal(row, &r))
		past = append(past, r)
	}
	require.Len(t, past, 2)
	assert.Equal(t, address.String(), past[0]["ipv4"])
	assert.Equal(t, client2, past[0]["ipv6"])
}
