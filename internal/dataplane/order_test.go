package dataplane

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/tun"
)

// What one flow sends through a device of several queues comes out in the order
// it went in, in both directions, while answers go back at the same time.
func TestFlowsKeepTheirOrder(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			flowsKeepTheirOrder(t, offload)
		}
	})
}

// inNamespace runs f as root in a new network namespace, or skips.
func inNamespace(t *testing.T, f func()) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "network namespaces need root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done) // also on FailNow
		runtime.LockOSThread()
		ns, err := netns.New() // ends with the thread
		if err != nil {
			testenv.Skip(t, "no network namespace to be had: "+err.Error())
		}
		defer ns.Close()
		f()
	}()
	<-done
}

// flowsKeepTheirOrder has client and server in one namespace: what the client
// sends goes out by the device as IPv6 and comes in again as IPv4.
func flowsKeepTheirOrder(t *testing.T, offload bool) {
	const flows, packets, window = 4, 4000, 64
	d, err := tun.Open(tun.Config{Name: "nl0", Queues: 3, Rings: 4, Offload: offload})
	if err != nil {
		testenv.Skip(t, err.Error())
	}
	defer d.Close()
	if !d.Features().Steering {
		testenv.Skip(t, "no program can be attached to a TUN device here")
	}
	around(t, "nl0")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1+flows)
	plane := New(Config{Queues: d.Queues(), Resolver: &resolver{}, Join: d.Features().USO})
	go func() { ended <- plane.Run(ctx) }()

	server := listen(t, server4, 53)
	defer server.Close()
	for i := range flows {
		client := listen(t, one6, 4000+i)
		defer client.Close()
		to := &net.UDPAddr{IP: net.ParseIP(server6), Port: 53}
		underway := make(chan struct{}, window)
		go func() {
			for n := range uint32(packets) {
				select {
				case underway <- struct{}{}:
				case <-time.After(10 * time.Millisecond): // one was lost
				}
				_, _ = client.WriteToUDP(binary.BigEndian.AppendUint32(nil, n), to)
			}
		}()
		go func() {
			ended <- ascending(client, packets, func([]byte, *net.UDPAddr) {
				select {
				case <-underway:
				default:
				}
			})
		}()
	}
	atServer := ascending(server, flows*packets, func(b []byte, from *net.UDPAddr) { _, _ = server.WriteToUDP(b, from) })
	assert.NoError(t, atServer, "offload %v, at the server", offload)
	for range flows {
		assert.NoError(t, <-ended, "offload %v, at a client", offload)
	}
	c := plane.Counters()
	link, err := netlink.LinkByName("nl0")
	require.NoError(t, err)
	writes, joined := link.Attrs().Statistics.RxPackets, d.Features().USO
	assert.Equal(t, joined, writes < c.IPv4Out.Packets+c.IPv6Out.Packets, "%d writes for %+v", writes, c)
	cancel()
	require.NoError(t, <-ended)
}

type disorder struct {
	from     string
	last, is uint32
}

func (e disorder) Error() string {
	return e.from + ": " + strconv.Itoa(int(e.is)) + " came after " + strconv.Itoa(int(e.last))
}

// ascending receives numbered packets, as many as come of count, and hands each
// on. Numbers of one sender ascend, or it is an error.
func ascending(s *net.UDPConn, count int, then func([]byte, *net.UDPAddr)) error {
	last := map[string]uint32{}
	b := make([]byte, 100)
	for n := range count {
		_ = s.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		size, from, err := s.ReadFromUDP(b)
		if err != nil && n > count/2 {
			return nil // some may be lost
		}
		if err != nil {
			return err
		}
		is := binary.BigEndian.Uint32(b)
		if before, seen := last[from.String()]; seen && is <= before {
			return disorder{from.String(), before, is}
		}
		last[from.String()] = is
		then(b[:size], from)
	}
	return nil
}

func listen(t *testing.T, ip string, port int) *net.UDPConn {
	s, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip), Port: port})
	require.NoError(t, err)
	return s
}

// around gives the namespace the addresses of a client and a server, and routes
// what each thinks of the other to the device.
func around(t *testing.T, device string) {
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	d, err := netlink.LinkByName(device)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
	require.NoError(t, netlink.LinkSetUp(d))
	for _, a := range []string{one6 + "/128", server4 + "/32"} {
		parsed, err := netlink.ParseAddr(a)
		require.NoError(t, err)
		parsed.Flags = unix.IFA_F_NODAD // usable at once
		require.NoError(t, netlink.AddrReplace(lo, parsed))
	}
	for _, r := range []string{"64:ff9b::/96", one4 + "/32"} {
		_, dst, err := net.ParseCIDR(r)
		require.NoError(t, err)
		require.NoError(t, netlink.RouteReplace(&netlink.Route{LinkIndex: d.Attrs().Index, Dst: dst}))
	}
}
