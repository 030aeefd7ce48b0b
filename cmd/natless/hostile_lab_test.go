package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// soon is how long a command may take, whatever a container does to it.
const soon = 5 * time.Second

// attackers is a world, and a process of an unprivileged user's who is root in
// namespaces of its own. To strike it locks its namespace and breaks its resolv.conf.
func attackers(t *testing.T) (w *world, pid string, strike func()) {
	t.Helper()
	lab.Require(t)
	if lab.Inside() {
		testenv.Skip(t, "there is one user in this user namespace")
	}
	w = attaching(t)
	c := w.Host.Command(t.Context(), "/usr/bin/unshare", "--user", "--map-root-user", "--mount", "--net", "/bin/sh", "-ec", `
		PATH=/usr/sbin:/usr/bin:/sbin:/bin
		mount -t tmpfs tmpfs /etc
		cd /etc
		echo nameserver 2001:db8::1 >resolv.conf
		touch ready
		while [ -e ready ]; do sleep 0.02; done
		rm resolv.conf
		mkfifo resolv.conf
		touch done
		exec flock /proc/self/ns/net sleep 60`)
	c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	require.NoError(t, c.Start())
	t.Cleanup(func() { _, _ = c.Process.Kill(), c.Wait() })
	pid = fmt.Sprint(c.Process.Pid)
	etc := "/proc/" + pid + "/root/etc/"
	there := func(name string) func() bool {
		return func() bool { _, err := os.Stat(etc + name); return err == nil }
	}
	until(t, "ready", there("ready"))
	return w, pid, func() {
		require.NoError(t, os.Remove(etc+"ready"))
		until(t, "struck", there("done"))
		until(t, "locked", func() bool {
			f, err := os.Open("/proc/" + pid + "/ns/net")
			require.NoError(t, err)
			defer f.Close()
			return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
		})
	}
}

// at is query, within a time.
func (w *world) at(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	out, err := w.daemon.Query(ctx, args...)
	require.NoError(t, err, "%v: %s", args, out)
	return out
}

// A container that locks its namespace and breaks its resolv.conf is detached all
// the same, by detach and by down, and a line says what it has broken.
func TestLabDetachBrokenContainer(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprint("down=", down), func(t *testing.T) {
			t.Parallel()
			w, pid, strike := attackers(t)
			host := snapshot(t, w.Host)
			w.query(t, "attach", pid, "--link", "--dns", "fd00::53")
			strike()
			const broken = "/etc/resolv.conf of process %s: it is not a regular file; it stays as it is"
			if !down {
				assert.Contains(t, w.at(t, "detach", pid), "natless: note: "+fmt.Sprintf(broken, pid))
				assert.Empty(t, w.ps(t))
				becomes(t, w.Host, host, "after detach")
				return
			}
			link := w.ps(t)[0].Host.Link
			require.NoError(t, w.daemon.Kill())
			said := w.at(t, "down", "--state-dir="+w.Host.StateDir())
			assert.Contains(t, said, "detached "+pid+": took back link "+link)
			assert.Contains(t, said, fmt.Sprintf(broken, pid))
			_, err := w.Host.Netlink.LinkByName(link)
			assert.ErrorAs(t, err, new(netlink.LinkNotFoundError))
			assert.Empty(t, w.at(t, "down", "--state-dir="+w.Host.StateDir()))
		})
	}
}

// What down cannot take back keeps it from nothing else.
func TestLabDownGoesOn(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	inside := snapshot(t, box)
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	require.NoError(t, w.daemon.Kill())
	// The record of what natless has changed on the host is damaged.
	var key uint64
	require.NoError(t, w.Host.Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		key, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	}))
	record := fmt.Sprintf("/run/natless/host-%d.json", key)
	was, err := os.ReadFile(record)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(record, []byte("{"), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	said, _ := w.daemon.Query(ctx, "down", "--state-dir="+w.Host.StateDir())
	assert.Contains(t, said, "detached "+box.Path())
	unchanged(t, box, inside, "after down")
	if _, err := os.Stat(record); err == nil {
		require.NoError(t, os.WriteFile(record, was, 0o600))
	}
	w.at(t, "down", "--state-dir="+w.Host.StateDir())
	assert.NoFileExists(t, record)
}

// What natless may not restore of the host's when a container is gone a command does.
func TestLabDetachGoneContainer(t *testing.T) {
	lab.Require(t)
	if lab.Inside() {
		testenv.Skip(t, "there is one user in this user namespace")
	}
	w := attaching(t)
	dir := t.TempDir()
	kept := filepath.Join(dir, "resolv.conf")
	const before = "nameserver 2001:db8::1\n"
	require.NoError(t, os.WriteFile(kept, []byte(before), 0o644))
	c := w.box(t, "box").Command(t.Context(), "/usr/bin/unshare", "--mount", "/bin/sh", "-ec",
		`PATH=/usr/sbin:/usr/bin:/sbin:/bin; mount -t tmpfs tmpfs /etc; touch /etc/resolv.conf; mount --bind "$0" /etc/resolv.conf; touch /etc/ready; exec sleep 60`, kept)
	require.NoError(t, c.Start())
	defer func() { _, _ = c.Process.Kill(), c.Wait() }()
	until(t, "ready", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc/ready", c.Process.Pid))
		return err == nil
	})
	engine(t, w.Dir, func(name string) map[string]any {
		return map[string]any{
			"Id": name, "Name": name, "State": map[string]any{"Status": "running", "Running": true, "Pid": c.Process.Pid},
			"ResolvConfPath": kept,
		}
	})
	w.query(t, "attach", "docker:web", "--link", "--dns", "fd00::53")
	text, err := os.ReadFile(kept)
	require.NoError(t, err)
	require.Equal(t, "# by natless attach\nnameserver fd00::53\n", string(text))

	require.NoError(t, c.Process.Kill())
	until(t, "without a lease", func() bool { return !strings.Contains(w.query(t, "lease", "ls"), "web") })
	if list := w.ps(t); assert.Len(t, list, 1, "natless is confined") {
		assert.True(t, list[0].Gone)
		assert.Contains(t, w.query(t, "ps"), "broken: its target is gone; natless detach takes back what is left of it")
	}
	w.at(t, "detach", "web")
	assert.Empty(t, w.ps(t))
	text, err = os.ReadFile(kept)
	require.NoError(t, err)
	assert.Equal(t, before, string(text))
}

// engine answers as Docker about containers that all are as told.
func engine(t *testing.T, dir string, container func(name string) map[string]any) {
	t.Helper()
	socket := filepath.Join(dir, "docker.sock")
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	s := http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		assert.NoError(t, json.NewEncoder(out).Encode(container(strings.Split(r.URL.Path, "/")[2])))
	})}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	t.Setenv("DOCKER_HOST", "unix://"+socket)
}

// Where a command works on a namespace another says so, and waits as long as it is
// told.
func TestLabAttachWaits(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	id := w.ps(t)[0].ID
	// As a command of natless's would: this is where its locks are.
	file := "/run/natless/locks/namespace-" + strings.ReplaceAll(id, ":", "-")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	_, err = f.WriteString("7\n")
	require.NoError(t, err)
	for _, args := range [][]string{{"attach", box.Path()}, {"detach", "box"}, {"port-range", "set", "box"}, {"port-range", "unset", "box"}} {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		out, err := w.daemon.Query(ctx, append(args, "--timeout", "200ms")...)
		cancel()
		var exit *exec.ExitError
		if assert.ErrorAs(t, err, &exit, out) {
			assert.Equal(t, 1, exit.ExitCode())
		}
		assert.Contains(t, out, "natless: note: waiting for another natless (process 7), which works on it too\n")
		assert.Contains(t, out, "another natless (process 7) works on it too and has not ended within 200ms: wait for it (--timeout is how long), or end it\n")
	}
	require.NoError(t, os.Remove(file))
	require.NoError(t, f.Close())
	w.at(t, "detach", "box")
	assert.NoFileExists(t, file)
}

// What a container calls its links does not reach the terminal as it is.
func TestLabNamesOnTerminals(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "\x1b[2Jeth"
	require.NoError(t, box.Netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))
	require.NoError(t, box.Address(attrs.Name, "192.0.2.2/24"))
	w.refused(t, `192.0.2.2 on \x1b[2Jeth`, "attach", box.Path())
	// Nor what the user gives, which a script may have from elsewhere.
	w.refused(t, `finding \x1b[2Jweb: `, "attach", "\x1b[2Jweb")
}

// An attachment whose pool is taken away is shown as broken, and works again by
// itself when the pool is back, with the address it had.
func TestLabAttachmentHeals(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	file := filepath.Join(t.TempDir(), "natless.toml")
	with := func(pool, clients string) {
		text := own + "pref64 = \"" + lab.Pref64 + "\"\n[[pool]]\nipv4 = \"" + pool + "\"\nclients = [" + clients + "]\n"
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	with("169.254.64.0/20", `"local"`)
	w := build(t, setup{})
	w.run(t, setup{flags: []string{"-c", file}})
	box := w.box(t, "box")
	w.query(t, "attach", w.client.Path(), "--label", "first") // so that the next free address is another
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	w.query(t, "detach", "first")
	before := w.ps(t)[0]
	assert.Empty(t, before.Problem)
	assert.Regexp(t, `(?m)^TARGET .* SINCE +STATE\n.* box .* ok$`, w.query(t, "ps"))

	with("169.254.64.0/20", `"2001:db8:77::/64"`)
	w.query(t, "reload")
	with("169.254.96.0/20", `"2001:db8:77::/64"`)
	w.query(t, "reload")
	assert.Equal(t, "no such entry: "+before.IPv6.String()+" has neither a lease nor a map", w.ps(t)[0].Problem)
	assert.Regexp(t, `(?m) box .* broken: no such entry: .* has neither a lease nor a map$`, w.query(t, "ps"))
	with("169.254.64.0/20", `"local"`)
	w.query(t, "reload")
	assert.Equal(t, []any{"", before.IPv4}, []any{w.ps(t)[0].Problem, w.ps(t)[0].IPv4})
	assert.Contains(t, w.query(t, "lease", "ls", "--label", "box"), before.IPv4.String())
	w.query(t, "status")
	w.reaches(t, box)

	// Without its link it does not work either.
	link, err := w.Host.Netlink.LinkByName(before.Host.Link)
	require.NoError(t, err)
	require.NoError(t, w.Host.Netlink.LinkDel(link))
	assert.Equal(t, "its link "+before.Host.Link+" is gone", w.ps(t)[0].Problem)
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	assert.Empty(t, w.ps(t)[0].Problem)
	w.reaches(t, box)
}
