package attach

import (
	"encoding/binary"
	"encoding/json"
	"errors"
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
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/lockfile"
	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
)

// What containers and neighbours do to what natless works on.

// soon is how long a command may take, whatever is done to it.
const soon = 5 * time.Second

// within asserts that something does not hang. What does is left behind.
func within(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(soon):
		t.Fatal(what + " hangs")
	}
}

// nobody is a user of the host's without rights.
const nobody = 65534

// needUsers skips a test where there is no other user than this.
func needUsers(t *testing.T) {
	t.Helper()
	if lab.Inside() {
		testenv.Skip(t, "there is one user in this user namespace")
	}
}

// box is a process of nobody's who is root in namespaces of its own, whose /etc is
// its own too. The script says what is there.
func (r *rig) box(t *testing.T, script string) (pid string) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	require.NoError(t, syscall.Mkfifo(ready, 0o666))
	require.NoError(t, os.Chmod(ready, 0o666))
	for dir := filepath.Dir(ready); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	c := r.host.Command(t.Context(), "/usr/bin/unshare", "--user", "--map-root-user", "--mount", "--net", "/bin/sh", "-ec",
		"export PATH=/usr/sbin:/usr/bin:/sbin:/bin; mount -t tmpfs tmpfs /etc; "+script+"\necho ready >"+ready+"; exec sleep 60")
	c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	c.Stderr = os.Stderr
	require.NoError(t, c.Start())
	t.Cleanup(func() { _, _ = c.Process.Kill(), c.Wait() })
	within(t, "the box", func() {
		text, err := os.ReadFile(ready)
		assert.NoError(t, err)
		assert.Equal(t, "ready\n", string(text))
	})
	return fmt.Sprint(c.Process.Pid)
}

// A process of an unprivileged user's, whose namespaces are its own, has natless
// write no file that it could not write itself, whatever is at the name.
func TestResolverOfHostileProcess(t *testing.T) {
	r := newRig(t)
	needUsers(t)
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	victim, theirs := filepath.Join(dir, "victim"), filepath.Join(dir, "theirs")
	const text = "nameserver 2001:db8::1\nsecret\n"
	require.NoError(t, os.WriteFile(victim, []byte(text), 0o666))
	require.NoError(t, os.Chmod(victim, 0o666)) // even one that anybody may write
	require.NoError(t, os.WriteFile(theirs, []byte(text), 0o600))
	require.NoError(t, os.Chown(theirs, nobody, nobody))
	before := r.snapshots(t)
	for script, want := range map[string]string{
		"ln -s " + victim + " /etc/resolv.conf":                                               "it is a symbolic link",
		"ln -s " + theirs + " /etc/resolv.conf":                                               "it is a symbolic link",
		"touch /etc/resolv.conf; mount --bind " + victim + " /etc/resolv.conf":                "it belongs to user 0",
		"mkfifo /etc/resolv.conf":                                                             "it is not a regular file",
		"mkdir /etc/resolv.conf":                                                              "it is not a regular file",
		"touch /etc/resolv.conf; mount --bind /dev/null /etc/resolv.conf":                     "it is not a regular file",
		"touch /etc/resolv.conf; mount --bind /proc/sys/kernel/core_pattern /etc/resolv.conf": "it is a setting of the kernel's",
		"umount /etc; mount --bind " + dir + " /etc":                                          "permission denied", // no file there
		"head -c 20000 /dev/zero | tr '\\0' x >/etc/resolv.conf":                              "it is longer than 16384 bytes",
		"printf '\\377' >/etc/resolv.conf":                                                    "it is not text",
	} {
		pid := r.box(t, script)
		within(t, script, func() {
			_, err := r.attach(t, pid, Options{Link: true, DNS: nameserver})
			assert.ErrorContains(t, err, want, script)
		})
		now, err := os.ReadFile(victim)
		require.NoError(t, err)
		assert.Equal(t, text, string(now), script)
		assert.NoFileExists(t, filepath.Join(dir, "resolv.conf"), script)
		assert.Empty(t, r.records, script)
	}
	now := r.snapshots(t)
	assert.Empty(t, before[0].Diff(now[0]))

	// A file of its own it has pointed, and back.
	pid := r.box(t, "echo 'nameserver 2001:db8::1' >/etc/resolv.conf")
	_, err := r.attach(t, pid, Options{Link: true, DNS: nameserver})
	require.NoError(t, err)
	file := "/proc/" + pid + "/root/etc/resolv.conf"
	pointed, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "# by natless attach\nnameserver fd00::53\n", string(pointed))
	_, err = r.detach(t, pid)
	require.NoError(t, err)
	pointed, err = os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "nameserver 2001:db8::1\n", string(pointed))

	// And one that was not there is made, and goes again.
	pid = r.box(t, "true")
	_, err = r.attach(t, pid, Options{Link: true, DNS: nameserver})
	require.NoError(t, err)
	file = "/proc/" + pid + "/root/etc/resolv.conf"
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.EqualValues(t, nobody, info.Sys().(*syscall.Stat_t).Uid, "of the box's own")
	_, err = r.detach(t, pid)
	require.NoError(t, err)
	assert.NoFileExists(t, file)
}

// What the target does to its resolv.conf once it is attached neither stops detach
// and down nor has them write anywhere else.
func TestResolverBrokenLater(t *testing.T) {
	r := newRig(t)
	needUsers(t)
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	victim := filepath.Join(dir, "victim")
	before, err := r.host.Snapshot()
	require.NoError(t, err)
	for _, down := range []bool{false, true} {
		for script, want := range map[string]string{
			"mkfifo resolv.conf":                           "it is not a regular file; it stays as it is",
			"mkdir resolv.conf":                            "it is not a regular file; it stays as it is",
			"ln -s " + victim + " resolv.conf":             "it is a symbolic link, which natless does not follow; it stays as it is",
			"ln -s . loop; ln -s x x; ln -s x resolv.conf": "it is a symbolic link",
			"head -c 20000 /dev/zero >resolv.conf":         "it is longer than 16384 bytes",
			"echo theirs >resolv.conf":                     "was changed by others",
			"cd /; umount -l /etc":                         "", // the host's own, which has another owner
		} {
			pid := r.box(t, `echo nameserver 2001:db8::1 >/etc/resolv.conf; mkfifo /etc/go; chmod 0666 /etc/go; (read go </etc/go; cd /etc; rm resolv.conf; `+script+`; mkdir -p /etc/done) >/dev/null 2>&1 &`)
			_, err := r.attach(t, pid, Options{Link: true, DNS: nameserver})
			require.NoError(t, err)
			set := "# by natless attach\nnameserver fd00::53\n" // what restore looks for
			require.NoError(t, os.WriteFile(victim, []byte(set), 0o644))
			within(t, "the box", func() {
				assert.NoError(t, os.WriteFile("/proc/"+pid+"/root/etc/go", []byte("go\n"), 0))
				for begun := time.Now(); time.Since(begun) < time.Second; time.Sleep(5 * time.Millisecond) {
					if _, err := os.Stat("/proc/" + pid + "/root/etc/done"); err == nil || want == "" {
						return
					}
				}
			})
			var lines []string
			within(t, script, func() {
				if !down {
					got, err := r.detach(t, pid)
					assert.NoError(t, err)
					lines = got.Warnings
					return
				}
				assert.NoError(t, r.host.Do(func() error {
					for _, a := range r.records {
						lines, err = Undo(t.Context(), r.fake, a, false, lockfile.Wait{})
					}
					return err
				}))
			})
			assert.Contains(t, strings.Join(lines, "\n"), want, script)
			assert.Empty(t, r.records, script)
			text, err := os.ReadFile(victim)
			require.NoError(t, err)
			assert.Equal(t, set, string(text), script)
			now, err := r.host.Snapshot()
			require.NoError(t, err)
			assert.Empty(t, before.Diff(now), script)
		}
	}
}

// silentFS mounts a file system at a path that answers nothing but that it is there.
// What it was asked the kernel waits for, also of a process that is killed.
func silentFS(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Mount("silent", path, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd))
	}
	if err != nil {
		testenv.Skip(t, "no file system in user space: "+err.Error())
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		buf := make([]byte, 1<<17)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return // unmounted
			}
			if n < 40 || binary.NativeEndian.Uint32(buf[4:]) != 26 { // FUSE_INIT
				continue
			}
			out := make([]byte, 16+64) // fuse_out_header and fuse_init_out of fuse(4)
			binary.NativeEndian.PutUint32(out, uint32(len(out)))
			copy(out[8:16], buf[8:16])
			binary.NativeEndian.PutUint32(out[16:], 7)
			binary.NativeEndian.PutUint32(out[20:], 31)
			binary.NativeEndian.PutUint32(out[36:], 4096) // max_write
			_, err = unix.Write(fd, out)
			assert.NoError(t, err)
		}
	}()
	t.Cleanup(func() {
		assert.NoError(t, unix.Unmount(path, unix.MNT_DETACH|unix.MNT_FORCE))
		<-asked
		assert.NoError(t, unix.Close(fd))
	})
}

// A file system that never answers holds nobody up for longer than a moment,
// although the kernel may not let go of the process that asked it.
func TestResolverOnSilentFileSystem(t *testing.T) {
	r := newRig(t)
	was := fileTime
	fileTime = time.Second
	defer func() { fileTime = was }()
	pid, etc := r.rooted(t)
	_, err := r.attach(t, pid, Options{Link: true, DNS: nameserver})
	require.NoError(t, err)
	silentFS(t, etc)
	within(t, "detach", func() {
		got, err := r.detach(t, pid)
		assert.NoError(t, err)
		assert.Contains(t, strings.Join(got.Warnings, "\n"), "its file system did not answer within 1s; it stays as it is")
	})
	assert.Empty(t, r.records)
	within(t, "attach", func() {
		_, err := r.attach(t, pid, Options{Link: true, DNS: nameserver})
		assert.ErrorContains(t, err, "its file system did not answer within 1s")
	})
	assert.Empty(t, r.records)
}

// rooted is a process in the client's namespace with a root of its own, whose mounts
// follow those of the test, and its /etc.
func (r *rig) rooted(t *testing.T) (pid, etc string) {
	t.Helper()
	root := t.TempDir()
	etc = filepath.Join(root, "etc")
	for _, dir := range []string{"etc", "bin", "lib", "lib64", "usr"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(etc, "resolv.conf"), []byte("nameserver 2001:db8::1\n"), 0o644))
	script := fmt.Sprintf(`PATH=/usr/sbin:/usr/bin:/sbin:/bin; for d in bin lib lib64 usr; do [ -d /$d ] && mount --rbind /$d %[1]s/$d; done; exec chroot %[1]s /bin/sleep 60`, root)
	require.NoError(t, unix.Mount(root, root, "", unix.MS_BIND, ""))
	require.NoError(t, unix.Mount("", root, "", unix.MS_SHARED, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(root, unix.MNT_DETACH)) })
	c := r.client.Command(t.Context(), "/usr/bin/unshare", "-m", "--propagation", "slave", "/bin/sh", "-c", script)
	require.NoError(t, c.Start())
	t.Cleanup(func() { _, _ = c.Process.Kill(), c.Wait() })
	pid = fmt.Sprint(c.Process.Pid)
	until := time.Now().Add(soon)
	for link := ""; link != root && time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		link, _ = os.Readlink("/proc/" + pid + "/root")
	}
	return pid, etc
}

// Whoever holds a lock on the file of its namespace, which any process inside can
// open, keeps nobody from anything.
func TestLockedNamespace(t *testing.T) {
	r := newRig(t)
	r.withRange()
	file, err := os.Open(r.client.Path())
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, unix.Flock(int(file.Fd()), unix.LOCK_EX))
	within(t, "a command", func() {
		_, err := r.attach(t, "client", Options{Link: true})
		assert.NoError(t, err)
		_, err = r.ranged(t, UnsetRange)
		assert.NoError(t, err)
		_, err = r.ranged(t, SetRange)
		assert.NoError(t, err)
		_, err = r.detach(t, "client")
		assert.NoError(t, err)
		got, err := r.attach(t, "client", Options{Link: true})
		assert.NoError(t, err)
		assert.NoError(t, r.host.Do(func() error {
			_, err := Undo(t.Context(), r.fake, got.Attachment, false, lockfile.Wait{})
			return err
		}))
	})
	assert.Empty(t, r.records)
}

// Two commands of natless's wait for each other, and no longer than they are told.
func TestCommandsWait(t *testing.T) {
	r := newRig(t)
	got, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	lock, err := lockfile.Wait{}.Take(t.Context(), lockOf(got.ID))
	require.NoError(t, err)
	short := lockfile.Wait{Limit: 100 * time.Millisecond}
	busy := new(*lockfile.BusyError)
	within(t, "a command", func() {
		_, err := r.attach(t, "client", Options{Link: true, Wait: short})
		assert.ErrorAs(t, err, busy)
		_, err = Detach(t.Context(), r.fake, "client", short)
		assert.ErrorAs(t, err, busy)
		_, err = SetRange(t.Context(), r.fake, "client", short)
		assert.ErrorAs(t, err, busy)
		_, err = UnsetRange(t.Context(), r.fake, "client", short)
		assert.ErrorAs(t, err, busy)
		assert.ErrorAs(t, r.host.Do(func() error {
			_, err := Undo(t.Context(), r.fake, got.Attachment, false, short)
			return err
		}), busy)
	})
	time.AfterFunc(100*time.Millisecond, lock.Release)
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	assert.NoFileExists(t, filepath.Join(lockfile.Dir, lockOf(got.ID)))
}

// What a container does to the link, the routes and the settings that attach made is
// no obstacle to taking back the rest.
func TestBrokenInside(t *testing.T) {
	r := newRig(t)
	r.withRange()
	before, err := r.host.Snapshot()
	require.NoError(t, err)
	other, err := r.lab.Node("elsewhere")
	require.NoError(t, err)
	for _, script := range []string{
		"ip link set natless down; ip link set natless name mine; ip link add natless type veth peer name mine1",
		"ip link del natless",
		"ip link set natless netns " + fmt.Sprint(unix.Getpid()), // set below: the namespace of another
		"ip -6 route flush table main; ip -6 addr flush dev natless",
		"ip -6 route flush table main; ip -6 route add 2001:db8:64::/96 dev lo metric 32",
		"ip link set lo down; ip link set natless down",
	} {
		_, err := r.attach(t, "client", Options{Link: true})
		require.NoError(t, err)
		if strings.Contains(script, "netns") {
			link, err := r.client.Netlink.LinkByName(linkInside)
			require.NoError(t, err)
			file, err := os.Open(other.Path())
			require.NoError(t, err)
			require.NoError(t, r.client.Netlink.LinkSetNsFd(link, int(file.Fd())))
			require.NoError(t, file.Close())
		} else {
			_ = r.client.Command(t.Context(), "/bin/sh", "-c", "PATH=/usr/sbin:/usr/bin:/sbin:/bin; "+script).Run()
		}
		within(t, script, func() {
			_, err := r.detach(t, "client")
			assert.NoError(t, err, script)
		})
		assert.Empty(t, r.records, script)
		now, err := r.host.Snapshot()
		require.NoError(t, err)
		assert.Empty(t, before.Diff(now), script)
		require.NoError(t, r.client.Command(t.Context(), "/bin/sh", "-c",
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin; ip link del mine 2>/dev/null; ip link del natless 2>/dev/null; ip -6 route flush table main; ip link set lo up; true").Run())
	}
}

// A namespace with any number of addresses, which come and go, holds nobody up: few
// of them are asked about, and named.
func TestManyAddresses(t *testing.T) {
	r := newRig(t)
	r.wire(t, "2001:db8:1::2/64")
	require.NoError(t, r.client.Route("::/0", "2001:db8:1::1", ""))
	var batch strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&batch, "addr add 2001:db8:1::%x/64 dev eth0 nodad\n", 0x1000+i)
	}
	for i := range 20 {
		fmt.Fprintf(&batch, "addr add 192.0.2.%d/32 dev eth0\n", 1+i)
	}
	c := r.client.Command(t.Context(), "/bin/sh", "-c", "PATH=/usr/sbin:/usr/bin:/sbin:/bin; ip -force -batch -")
	c.Stdin = strings.NewReader(batch.String())
	require.NoError(t, c.Run())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		link, err := r.client.Netlink.LinkByName("eth0")
		if !assert.NoError(t, err) {
			return
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("2001:db8:1::ffff"), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = r.client.Netlink.AddrReplace(link, a), r.client.Netlink.AddrDel(link, a)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	_, err := r.attach(t, "client", Options{})
	assert.ErrorContains(t, err, "(192.0.2.1 on eth0, 192.0.2.2 on eth0, 192.0.2.3 on eth0, 192.0.2.4 on eth0, and 16 more)")
	asked := 0
	r.permits = func(a netip.Addr) error { asked++; return fmt.Errorf("%v: %w", a, mapping.ErrNotPermitted) }
	begun := time.Now()
	_, err = r.attach(t, "client", Options{Force: true})
	assert.ErrorContains(t, err, "; and 60 more")
	assert.Less(t, time.Since(begun), 2*soon)
	assert.Less(t, asked, 300)
	assert.Less(t, len(err.Error()), 1000)
}

// A name that a container gives is told apart from what a terminal obeys.
func TestNamesArePrinted(t *testing.T) {
	r := newRig(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "\x1b[2Jeth"
	require.NoError(t, r.client.Netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))
	require.NoError(t, r.client.Address(attrs.Name, "192.0.2.2/24"))
	_, err := r.attach(t, "client", Options{})
	assert.ErrorContains(t, err, `192.0.2.2 on \x1b[2Jeth`)
}

// A process is not known by what it calls itself.
func TestLabelIsNotTheProcesss(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	require.NoError(t, os.Symlink("/bin/sleep", filepath.Join(dir, "web")))
	c := r.client.Command(t.Context(), filepath.Join(dir, "web"), "60")
	require.NoError(t, c.Start())
	defer func() { _, _ = c.Process.Kill(), c.Wait() }()
	pid := fmt.Sprint(c.Process.Pid)
	for begun := time.Now(); time.Since(begun) < soon; time.Sleep(time.Millisecond) {
		if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "web\n" {
			break
		}
	}
	for _, given := range []string{pid, "/proc/" + pid + "/ns/net", "/proc/" + pid + "/task/" + pid + "/ns/net"} {
		found := find1(t, given)
		assert.NotContains(t, []string{"web", "net"}, found.Label)
		assert.NoError(t, mapping.CheckLabel(found.Label))
		assert.Equal(t, find1(t, pid).Label, found.Label)
	}
	got, err := r.attach(t, pid, Options{Link: true, Label: "web"})
	require.NoError(t, err)
	assert.Equal(t, "web", got.Label, "whoever says so")
}

// Nor is a namespace or a container by the name that some user gives it.
func TestLabelOfOtherUsers(t *testing.T) {
	_, ns := nodes(t, "web")
	noEngines(t)
	needUsers(t)
	for mode, want := range map[os.FileMode]string{0o755: "^uid-65534-web$", 0o777: "^netns-[0-9a-f]+-[0-9a-f]+-[0-9]+$"} {
		dir := t.TempDir()
		require.NoError(t, os.Symlink(ns[0].Path(), filepath.Join(dir, "web")))
		require.NoError(t, os.Chown(dir, nobody, nobody))
		require.NoError(t, os.Chmod(dir, mode))
		assert.Regexp(t, want, find1(t, filepath.Join(dir, "web")).Label)
	}
	c := ns[0].Command(t.Context(), "/bin/sleep", "60")
	require.NoError(t, c.Start())
	defer func() { _, _ = c.Process.Kill(), c.Wait() }()
	serveEngine(t, "CONTAINER_HOST", map[string]object{"web": running("f00", "web", c.Process.Pid)})
	assert.Equal(t, "web", find1(t, "podman:web").Label)
	require.NoError(t, os.Chown(strings.TrimPrefix(os.Getenv("CONTAINER_HOST"), "unix://"), nobody, nobody))
	assert.Equal(t, "uid-65534-web", find1(t, "podman:web").Label)
}

// What an engine says is a container's resolv.conf is taken for it where root alone
// decides what is there.
func TestResolverOfEngine(t *testing.T) {
	r := newRig(t)
	needUsers(t)
	pid, etc := r.rooted(t)
	dir := t.TempDir()
	kept := filepath.Join(dir, "resolv.conf")
	require.NoError(t, os.WriteFile(kept, []byte("nameserver 2001:db8::1\n"), 0o644))
	require.NoError(t, unix.Mount(kept, filepath.Join(etc, "resolv.conf"), "", unix.MS_BIND, ""))
	var number int
	_, err := fmt.Sscan(pid, &number)
	require.NoError(t, err)
	web := running("f00", "web", number)
	web["ResolvConfPath"] = kept
	serveEngine(t, "CONTAINER_HOST", map[string]object{"web": web})
	for owner, path := range map[int]string{0: kept, nobody: "/etc/resolv.conf"} {
		require.NoError(t, os.Chown(dir, owner, owner))
		got, err := r.attach(t, "web", Options{Link: true, DNS: nameserver})
		require.NoError(t, err)
		var s state
		require.NoError(t, json.Unmarshal(got.Undo, &s))
		assert.Equal(t, path, s.Holders[0].Resolver.Path)
		_, err = r.detach(t, "web")
		require.NoError(t, err)
		text, err := os.ReadFile(kept)
		require.NoError(t, err)
		assert.Equal(t, "nameserver 2001:db8::1\n", string(text))
	}
}

// Where somebody else decides what is in a folder of the host's nothing is written.
func TestResolverInForeignFolder(t *testing.T) {
	r := newRig(t)
	needUsers(t)
	dir := filepath.Join(netnsEtc, "client")
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("secret\n"), 0o600))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.Symlink(victim, filepath.Join(dir, "resolv.conf")))
	_, err := r.attach(t, "client", Options{Link: true, DNS: nameserver})
	assert.ErrorContains(t, err, "it is a symbolic link")
	require.NoError(t, os.Remove(filepath.Join(dir, "resolv.conf")))
	require.NoError(t, os.Chown(dir, nobody, nobody))
	_, err = r.attach(t, "client", Options{Link: true, DNS: nameserver})
	assert.ErrorContains(t, err, "others may change what is in the folder client")
	assert.Empty(t, r.records)
	text, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "secret\n", string(text))
}

// Whatever others have put where the namespace's file was, detach does not ask for
// long, and takes back what is on the host.
func TestNamespaceFileReplaced(t *testing.T) {
	r := newRig(t)
	before, err := r.host.Snapshot()
	require.NoError(t, err)
	for what, put := range map[string]func(path string) error{
		"a FIFO":   func(path string) error { return syscall.Mkfifo(path, 0o666) },
		"a folder": func(path string) error { return os.Mkdir(path, 0o755) },
		"a loop":   func(path string) error { return os.Symlink(path, path) },
		"a device": func(path string) error { return os.Symlink("/dev/null", path) },
		"another":  func(path string) error { return os.Symlink(r.host.Path(), path) },
		"a file": func(path string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.WriteFile(filepath.Dir(path), nil, 0o600))
		},
	} {
		path := filepath.Join(t.TempDir(), "their", "web")
		require.NoError(t, os.Mkdir(filepath.Dir(path), 0o755))
		require.NoError(t, os.Symlink(r.client.Path(), path))
		_, err := r.attach(t, path, Options{Link: true})
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		require.NoError(t, put(path), what)
		within(t, what, func() {
			_, err := r.detach(t, path)
			assert.NoError(t, err, what)
		})
		assert.Empty(t, r.records, what)
		now, err := r.host.Snapshot()
		require.NoError(t, err)
		assert.Empty(t, before.Diff(now), what)
	}
}
