package main_test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// One client floods small packets of many flows, or is flooded so by the
// server, and overloads the only worker there is. Another client's transfer goes
// on, both ways, and natless grows no larger. Without rings next to nothing is
// left of it: what is asked for here is far from that and far from what is left.
func TestLabFloodLeavesOthersTheirShare(t *testing.T) {
	const (
		flows    = 64
		tries    = 5 // other tests share the machine
		kept     = 0.25
		flooder  = "203.0.113.5" // for client 2; its ring is not client 1's
		growth   = 8 << 20
		transfer = 200 << 20
	)
	w := start(t, setup{clients: 2, flags: []string{
		"--pref64", lab.Pref64, "--queues", "1",
		"--map", "203.0.113.1=" + client1, "--map", flooder + "=2001:db8:2::2",
	}})
	if w.status(t).Rings == 1 {
		testenv.Skip(t, "the kernel refuses the program that chooses rings")
	}
	http := w.client.PatientHTTP("", 2*lab.Stall)
	down := func() (lab.Transfer, error) {
		return lab.Download(t.Context(), http, server6+":8080", make([]byte, transfer), nil)
	}
	up := func() (lab.Transfer, error) { return lab.Upload(t.Context(), http, server6+":8080", transfer) }
	fromClient := func() (stop func() int64) {
		return flood(t, w.Clients[1], netip.AddrPortFrom(netip.MustParseAddr(lab.Server6), 9), flows)
	}
	toClient := func() (stop func() int64) {
		return flood(t, w.Server, netip.AddrPortFrom(netip.MustParseAddr(flooder), 9), flows)
	}
	for _, c := range []struct {
		name     string
		transfer func() (lab.Transfer, error)
		flood    func() func() int64
	}{
		{"upload, flood from a client", up, fromClient},
		{"download, flood from a client", down, fromClient},
		{"upload, flood to a client", up, toClient},
		{"download, flood to a client", down, toClient},
	} {
		t.Run(c.name, func(t *testing.T) {
			var best float64
			for try := 0; try < tries && best < kept; try++ {
				before, err := c.transfer()
				require.NoError(t, err)
				drops, resident := w.drops(t), w.resident(t)
				stop := c.flood()
				during, err := c.transfer()
				sent, dropped := stop(), w.drops(t)-drops
				assert.Positive(t, sent)
				assert.Less(t, w.resident(t), resident+growth)
				require.NoError(t, err, "%d packets of the flood sent, %d dropped", sent, dropped)
				ratio := during.Rate() / before.Rate()
				t.Logf("%.2f of %.2f Gbit/s, while %d packets were sent in %v and %d dropped",
					ratio, before.Rate()/1e9, sent, during.Took, dropped)
				if dropped > 0 {
					best = max(best, ratio)
				}
			}
			assert.GreaterOrEqual(t, best, kept, "rate under flood to rate without")
		})
	}
}

// flood has a node send datagrams of 64 bytes, of so many flows by turns and as
// fast as a thread can. stop ends that and says how many were sent.
func flood(t *testing.T, from *lab.Node, to netip.AddrPort, flows int) (stop func() int64) {
	t.Helper()
	var sockets []int
	for range flows {
		conn, err := from.Dial(t.Context(), "udp", to.String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		raw, err := conn.(syscall.Conn).SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) { sockets = append(sockets, int(fd)) }))
	}
	var ended atomic.Bool
	sent := make(chan int64)
	go func() {
		var n int64
		packet := make([]byte, 64)
		for i := 0; !ended.Load(); i++ {
			if _, err := unix.Write(sockets[i%flows], packet); err == nil {
				n++
			}
		}
		sent <- n
	}()
	return func() int64 {
		ended.Store(true)
		return <-sent
	}
}

// drops are the packets that the device had no room for.
func (w *world) drops(t *testing.T) uint64 {
	t.Helper()
	s, err := w.asks().Stats(t.Context())
	require.NoError(t, err)
	return s.DeviceDrops
}

// resident is the daemon's memory, in bytes.
func (w *world) resident(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", w.daemon.Process.Pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "Rss:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			require.NoError(t, err)
			return kib << 10
		}
	}
	t.Fatal("smaps_rollup says nothing")
	return 0
}
