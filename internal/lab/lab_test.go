package lab

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"

	"github.com/natless/natless/internal/testenv"
)

func TestMain(m *testing.M) { Main(m) }

// forwarding is a Network whose host forwards plain IPv6 between a client and
// the server.
func forwarding(t *testing.T) (n *Network, server netip.Addr) {
	t.Helper()
	Require(t)
	n, err := Build(1)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	require.NoError(t, n.Server.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"))
	require.NoError(t, n.Server.Address("eth0", plain6+"2/64"))
	require.NoError(t, n.Host.Address("wan", plain6+"1/64"))
	require.NoError(t, n.Server.Route("::/0", plain6+"1", ""))
	require.NoError(t, n.Host.SetSysctl("net/ipv6/conf/all/forwarding", "1"))
	return n, netip.MustParseAddr(plain6 + "2")
}

func TestPlainForwarding(t *testing.T) {
	ctx := t.Context()
	n, server := forwarding(t)
	client := n.Clients[0]

	a, err := Ping(ctx, client, "", server, 56)
	require.NoError(t, err)
	assert.Equal(t, server, a.From)

	hops, err := Traceroute(ctx, client, "", server)
	require.NoError(t, err)
	require.Len(t, hops, 2)
	assert.Equal(t, "2001:db8:1::1", hops[0].From.String())
	assert.False(t, hops[0].Reached)
	assert.Equal(t, server, hops[1].From)

	a, err = Ping(ctx, n.Host, "", netip.MustParseAddr(ServerIPv4), 56)
	require.NoError(t, err)
	assert.Equal(t, ServerIPv4, a.From.String())

	ln, err := n.Server.Listen("tcp", fmt.Sprintf("[%s]:8080", server))
	require.NoError(t, err)
	defer ln.Close()
	go Serve(ln)
	address := ln.Addr().String()
	down, err := Download(ctx, client.HTTP(""), address, make([]byte, 8<<20), nil)
	require.NoError(t, err)
	assert.Equal(t, "2001:db8:1::2", down.Client)
	up, err := Upload(ctx, client.HTTP("2001:db8:1::80"), address, 8<<20)
	require.NoError(t, err)
	assert.Equal(t, "2001:db8:1::80", up.Client)

	conn, err := n.Server.ListenPacket("udp", fmt.Sprintf("[%s]:7", server))
	require.NoError(t, err)
	defer conn.Close()
	go Echo(conn)
	require.NoError(t, Exchange(ctx, client, "", conn.LocalAddr().String(), 1232))
}

func TestTransfersDoNotHang(t *testing.T) {
	t.Parallel()
	n, server := forwarding(t)
	ln, err := n.Server.Listen("tcp", fmt.Sprintf("[%s]:8080", server))
	require.NoError(t, err)
	defer ln.Close()
	go Serve(ln)
	start := time.Now()
	_, err = Download(t.Context(), n.Clients[0].HTTP(""), ln.Addr().String(), make([]byte, 64<<20), func(got int) {
		if got > 1<<20 {
			_ = n.Host.SetSysctl("net/ipv6/conf/all/forwarding", "0")
		}
	})
	require.Error(t, err)
	assert.Less(t, time.Since(start), 2*Stall)
}

func TestDownloadNoticesChange(t *testing.T) {
	n, server := forwarding(t)
	ln, err := n.Server.Listen("tcp", fmt.Sprintf("[%s]:8080", server))
	require.NoError(t, err)
	defer ln.Close()
	go Serve(ln)
	buf := make([]byte, 1<<20)
	_, err = Download(t.Context(), n.Clients[0].HTTP(""), ln.Addr().String(), buf, func(got int) { buf[got/2] ^= 1 })
	require.ErrorContains(t, err, "SHA-256")
}

func TestCaptureTooBig(t *testing.T) {
	n, server := forwarding(t)
	c, err := n.Clients[0].Capture("eth0")
	require.NoError(t, err)
	require.NoError(t, n.Host.SetMTU("wan", 1400)) // not the server's end: it would offer a smaller MSS
	ln, err := n.Server.Listen("tcp", fmt.Sprintf("[%s]:8080", server))
	require.NoError(t, err)
	defer ln.Close()
	go Serve(ln)
	_, err = Upload(t.Context(), n.Clients[0].HTTP(""), ln.Addr().String(), 4<<20)
	require.NoError(t, err)
	tooBig := c.Wait(time.Second, func(b []byte) bool { return len(b) > 48 && b[6] == 58 && b[40] == 2 })
	require.NotNil(t, tooBig)
	assert.Equal(t, "00000578", hex.EncodeToString(tooBig[44:48])) // 1400
	syns := 0
	for _, b := range c.Packets() {
		if b[6] == 6 {
			syns++
			assert.NotZero(t, b[40+13]&2)
		}
	}
	assert.Equal(t, 2, syns)
	// IPv4 goes through the other half of the filter.
	c, err = n.Server.Capture("eth0")
	require.NoError(t, err)
	_, err = Ping(t.Context(), n.Host, "", netip.MustParseAddr(ServerIPv4), 56)
	require.NoError(t, err)
	require.NotNil(t, c.Wait(time.Second, func(b []byte) bool { return b[0]>>4 == 4 && b[9] == 1 && b[20] == 8 }))
	conn, err := n.Server.Listen("tcp", ServerIPv4+":80")
	require.NoError(t, err)
	defer conn.Close()
	peer, err := n.Host.Dial(t.Context(), "tcp", conn.Addr().String())
	require.NoError(t, err)
	peer.Close()
	require.NotNil(t, c.Wait(time.Second, func(b []byte) bool { return b[0]>>4 == 4 && b[9] == 6 && b[33] == 2 }))
}

func TestDoComesBack(t *testing.T) {
	n, _ := forwarding(t)
	home, err := netns.Get()
	require.NoError(t, err)
	defer home.Close()
	require.NoError(t, n.Host.Do(func() error {
		inside, err := netns.Get()
		require.NoError(t, err)
		defer inside.Close()
		assert.True(t, inside.Equal(n.Host.ns))
		return n.Server.Do(func() error { return nil })
	}))
	for range 20 {
		now, err := netns.Get()
		require.NoError(t, err)
		assert.True(t, now.Equal(home))
		now.Close()
	}
}

func TestCommandRunsInsideAndDies(t *testing.T) {
	n, _ := forwarding(t)
	out, err := n.Server.Command(t.Context(), "readlink", "/proc/self/ns/net").CombinedOutput()
	require.NoError(t, err)
	inside, err := os.Readlink(n.Server.path)
	require.NoError(t, err)
	assert.Equal(t, inside, strings.TrimSpace(string(out)))

	sleep := n.Server.Command(context.Background(), "sleep", "60")
	require.NoError(t, sleep.Start())
	require.NoError(t, n.Close())
	assert.Error(t, sleep.Wait())
	require.NoError(t, n.Close(), "a second time")
	_, err = os.Stat(n.Dir)
	assert.True(t, os.IsNotExist(err))
}

func TestSnapshot(t *testing.T) {
	n, _ := forwarding(t)
	before, err := n.Host.Snapshot()
	require.NoError(t, err)
	again, err := n.Host.Snapshot()
	require.NoError(t, err)
	assert.Empty(t, before.Diff(again))
	assert.Greater(t, len(before), 500)

	require.NoError(t, n.Host.SetSysctl("net/ipv4/ip_forward", "1"))
	require.NoError(t, n.Host.Address("lan1", "2001:db8:9::1/64"))
	require.NoError(t, n.Host.Route("203.0.113.0/24", ServerIPv4, ""))
	require.NoError(t, n.Host.SetMTU("wan", 1400))
	after, err := n.Host.Snapshot()
	require.NoError(t, err)
	diff := strings.Join(before.Diff(after), "\n")
	for _, want := range []string{"changed: sysctl /proc/sys/net/ipv4/ip_forward 1, was 0", "new: address lan1 2001:db8:9::1/64", "203.0.113.0/24", "changed: link wan"} {
		assert.Contains(t, diff, want)
	}
}

// A lab whose process was killed leaves nothing but a directory and, when it
// was to be kept, names and processes; Down takes them.
func TestPersistAndDown(t *testing.T) {
	Require(t)
	t.Cleanup(Alone(t))
	t.Setenv("TMPDIR", t.TempDir()) // Down is not to meet other labs of this machine
	n, err := Build(1)
	require.NoError(t, err)
	sleep := n.Host.Command(context.Background(), "sleep", "60")
	sleep.Detach()
	require.NoError(t, sleep.Start())
	ended := make(chan error, 1)
	go func() { ended <- sleep.Wait() }()
	require.NoError(t, n.Persist())
	require.NoError(t, n.Close())
	assert.ElementsMatch(t, []string{"natless-lab-client", "natless-lab-host", "natless-lab-server"}, Standing())
	ns, err := netns.GetFromPath(filepath.Join(namedNamespaces, n.Host.NetNS()))
	require.NoError(t, err)
	assert.True(t, ns.Equal(n.Host.ns))
	ns.Close()

	done, err := Down()
	require.NoError(t, err)
	assert.Contains(t, strings.Join(done, "\n"), "in use and stays")
	assert.Empty(t, Standing())
	// What Persist wrote down is enough, once the lab's process has ended.
	require.NoError(t, n.lock.Close())
	done, err = Down()
	require.NoError(t, err)
	assert.Contains(t, strings.Join(done, "\n"), "removed "+n.Dir)
	select {
	case <-ended:
	case <-time.After(Stall):
		t.Error("the process lives")
	}
	done, err = Down()
	require.NoError(t, err)
	assert.Empty(t, done)
}

// Without root a lab takes a user namespace and a TUN device for everybody; it
// says so when it cannot have them.
func TestWithoutRoot(t *testing.T) {
	Require(t)
	if Inside() {
		testenv.Skip(t, "only the real root can become somebody else")
	}
	l, err := New()
	require.NoError(t, err)
	defer l.Close()
	n, err := l.Node("machine")
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "natless-test-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	b, err := os.ReadFile(self)
	require.NoError(t, err)
	program := filepath.Join(dir, "lab.test")
	require.NoError(t, os.WriteFile(program, b, 0o755))

	run := func(mode uint32) string {
		c := exec.Command(program, "-test.run=^TestPlainForwarding$", "-test.v")
		c.Dir = dir
		c.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out strings.Builder
		c.Stdout, c.Stderr = &out, &out
		require.NoError(t, os.Chmod(dir, 0o777))
		require.NoError(t, n.RunWithTUN(c, mode), "%s", &out)
		return out.String()
	}
	if b, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(b)) != "0" {
		assert.Contains(t, run(0o666), "--- PASS: TestPlainForwarding")
	}
	assert.Contains(t, run(0o600), "/dev/net/tun: permission denied (its mode is 0600; without root it takes 0666)")
	assert.Contains(t, run(0), "/dev/net/tun: no such file or directory")
}
