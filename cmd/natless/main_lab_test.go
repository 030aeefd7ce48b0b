package main_test

import (
	"context"
	"net"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

func TestMain(m *testing.M) {
	if os.Getenv(agentVariable) != "" {
		agentMain(os.Stdin, os.Stdout)
		return
	}
	lab.Main(m)
}

const (
	server6 = "[" + lab.Server6 + "]"
	own     = "[translation]\nipv6 = \"" + lab.OwnIPv6 + "\"\n"
	client1 = "2001:db8:1::2"
	pool    = "169.254.64.0/20" // the default
	ownIPv4 = "169.254.64.1"    // its first address: natless itself
)

// eachOffload runs a test with offload auto and with offload off.
func eachOffload(t *testing.T, f func(t *testing.T, offload string)) {
	t.Helper()
	lab.Require(t)
	t.Parallel()
	for _, offload := range []string{"auto", "off"} {
		t.Run("offload="+offload, func(t *testing.T) {
			t.Parallel()
			f(t, offload)
		})
	}
}

// world is a network with natless in its host.
type world struct {
	*lab.Network
	client *lab.Node // the first
	daemon *lab.Daemon
}

// setup is what a test wants of its world; the zero value is a client, the
// documented prefix and the demo's mapped address.
type setup struct {
	clients int
	offload string
	config  string                             // "": natless's own IPv6 address, nothing else
	flags   []string                           // nil: pref64 and the mapped address
	before  func(t *testing.T, n *lab.Network) // what the host is to look like before
}

// start builds a network, with an HTTP and an echo server on ports 8080 and 7
// of the server, and starts natless in its host.
func start(t *testing.T, s setup) *world {
	t.Helper()
	w := build(t, s)
	w.run(t, s)
	return w
}

func build(t *testing.T, s setup) *world {
	t.Helper()
	lab.Require(t)
	lab.Binary(t)
	n, err := lab.Build(max(1, s.clients))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	if s.before != nil {
		s.before(t, n)
	}
	serve(t, n.Server, lab.ServerIPv4)
	return &world{Network: n, client: n.Clients[0]}
}

// run starts natless and waits until it is ready. It is stopped with the test,
// and then must not fail.
func (w *world) run(t *testing.T, s setup) {
	t.Helper()
	w.daemon = launch(t, w.Host, s)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, w.daemon.Ready(ctx))
	if s.offload != "" {
		offloadIs(t, w.Host, s.offload)
	}
}

// launch starts natless in a node and does not wait.
func launch(t *testing.T, n *lab.Node, s setup) *lab.Daemon {
	t.Helper()
	if s.config == "" {
		s.config = own
	}
	if s.flags == nil {
		s.flags = []string{"--pref64", lab.Pref64, "--map", lab.MappedIPv4 + "=" + lab.MappedIPv6}
	}
	if s.offload != "" {
		s.flags = append([]string{"--offload", s.offload}, s.flags...)
	}
	d, err := n.Natless(lab.Binary(t), s.config, s.flags...)
	require.NoError(t, err)
	require.NoError(t, d.Start())
	t.Cleanup(func() {
		select {
		case <-d.Exited: // the test has seen to it
		default:
			assert.NoError(t, d.Stop())
		}
		if t.Failed() {
			t.Logf("natless wrote:\n%s", d.Output())
		}
	})
	return d
}

// serve starts an HTTP and an echo server.
func serve(t *testing.T, n *lab.Node, address string) {
	t.Helper()
	ln, err := n.Listen("tcp", net.JoinHostPort(address, "8080"))
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	go lab.Serve(ln)
	conn, err := n.ListenPacket("udp", net.JoinHostPort(address, "7"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	go lab.Echo(conn)
}

// query runs another command against the world's daemon.
func (w *world) query(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := w.daemon.Query(ctx, args...)
	require.NoError(t, err, "%s", out)
	return out
}

// until waits until ok, which is asked in the test's own goroutine.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "still not: "+what)
	}
}

// snapshot reads the state of a node.
func snapshot(t *testing.T, n *lab.Node) lab.Snapshot {
	t.Helper()
	s, err := n.Snapshot()
	require.NoError(t, err)
	return s
}

// calm is a snapshot of a node on which nothing moves any more: links come up,
// and routes with them, in the kernel's own time.
func calm(t *testing.T, n *lab.Node) (s lab.Snapshot) {
	t.Helper()
	same := 0
	until(t, "calm", func() bool {
		last := s
		s = snapshot(t, n)
		if last != nil && len(last.Diff(s)) == 0 {
			same++
		} else {
			same = 0
		}
		return same >= 8
	})
	return s
}

// unchanged asserts that a node is as it was.
func unchanged(t *testing.T, n *lab.Node, before lab.Snapshot, when string) bool {
	t.Helper()
	return assert.Empty(t, before.Diff(snapshot(t, n)), when)
}

// device returns natless's TUN device as the kernel sees it.
func device(t *testing.T, n *lab.Node) *netlink.Tuntap {
	t.Helper()
	link, err := n.Netlink.LinkByName("natless0")
	require.NoError(t, err)
	require.IsType(t, &netlink.Tuntap{}, link)
	return link.(*netlink.Tuntap)
}

// offloadIs asserts that the kernel and the device agree on a mode: packets
// with a virtio header and TSO on the device's way out, or neither.
func offloadIs(t *testing.T, n *lab.Node, mode string) {
	t.Helper()
	header := device(t, n).Flags&netlink.TUNTAP_VNET_HDR != 0
	var tso bool
	require.NoError(t, n.Do(func() (err error) {
		tso, err = hasTSO("natless0")
		return err
	}))
	assert.Equal(t, mode == "auto", header, "virtio header")
	assert.Equal(t, mode == "auto", tso, "TCP segmentation offload")
}

// hasTSO asks the driver of a link as ethtool does.
func hasTSO(link string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GTSO}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], link)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return false, errno
	}
	return value.data != 0, nil
}

// ruleset changes the nftables rules of a node in one transaction.
func ruleset(t *testing.T, n *lab.Node, change func(c *nftables.Conn)) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			return err
		}
		change(c)
		return c.Flush()
	}))
}
