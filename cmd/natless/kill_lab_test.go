package main_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// killsVariable says how often TestLabKillUnderLeases kills; CI sets more.
const killsVariable = "NATLESS_KILLS"

// TestLabKillUnderLeases kills natless at random moments while clients lease
// addresses, most of the time when it has just begun to write them down. An
// observer on the IPv4 side keeps its own log of which client wore which
// address. No lease that it saw may be lost, and no address worn by two.
func TestLabKillUnderLeases(t *testing.T) {
	kills := 40
	if s := os.Getenv(killsVariable); s != "" {
		var err error
		kills, err = strconv.Atoi(s)
		require.NoError(t, err, killsVariable)
	}
	t.Parallel()
	w := build(t, setup{})
	crowd := gather(t, w)
	s := setup{
		config: own + "[network]\nmasquerade = \"off\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n" +
			"[state]\ndir = \"" + t.TempDir() + "\"\n" +
			"[[pool]]\nipv4 = \"198.18.0.0/17\"\nclients = [\"" + crowdPrefix + "\"]\n",
		flags: []string{"--pref64", lab.Pref64},
	}
	inside := 0
	for run := range kills {
		w.run(t, s)
		crowd.visit(t, 200)
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			crowd.grow(stop)
		}()
		time.Sleep(rand.N(150 * time.Millisecond))
		if run%3 > 0 {
			awaitSave(w.daemon)
			time.Sleep(rand.N(100 * time.Microsecond))
		}
		require.NoError(t, w.daemon.Kill())
		close(stop)
		<-stopped
		if out := w.daemon.Output(); strings.Count(out, savingLine) > strings.Count(out, savedLine) {
			inside++
		}
	}
	w.run(t, s)
	crowd.visit(t, len(crowd.wears))
	crowd.mu.Lock()
	defer crowd.mu.Unlock()
	t.Logf("%d kills, %d of them inside a save; %d clients came, the observer saw leases of %d of them: %d lost, %d doubled",
		kills, inside, crowd.next, len(crowd.wears), len(crowd.lost), len(crowd.doubled))
	assert.Empty(t, crowd.lost)
	assert.Empty(t, crowd.doubled)
	assert.GreaterOrEqual(t, inside*10, kills, "killed inside a save at least every tenth time")
	assert.Greater(t, len(crowd.wears), kills)
}

// The lines of the log that say when leases are written down.
const (
	savingLine = `"msg":"saving"`
	savedLine  = `"msg":"saved"`
)

// awaitSave returns when the daemon next begins to write leases down, or after
// a second.
func awaitSave(d *lab.Daemon) {
	seen := strings.Count(d.Output(), savingLine)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(20 * time.Microsecond) {
		if strings.Count(d.Output(), savingLine) > seen {
			return
		}
	}
}

// crowdPrefix holds the addresses of the crowd, all of them on one node.
const crowdPrefix = "2001:db8:1:0:1::/80"

// crowd is many clients behind one socket, and the observer that each of them
// sends its number to, which sends it back.
type crowd struct {
	clients *ipv6.PacketConn
	to      *net.UDPAddr

	mu       sync.Mutex
	next     uint32                // the first number that no client has
	wears    map[uint32]netip.Addr // the observer's log
	worn     map[netip.Addr]uint32
	answered map[uint32]int // answers that came back
	lost     []string
	doubled  []string
	cursor   uint32 // the client to visit next
}

func gather(t *testing.T, w *world) *crowd {
	t.Helper()
	prefix := netip.MustParsePrefix(crowdPrefix)
	dst := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 128)}
	lo, err := w.client.Netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, w.client.Netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL}))
	require.NoError(t, w.client.SetSysctl("net/ipv6/ip_nonlocal_bind", "1"))
	require.NoError(t, w.Host.Route(crowdPrefix, client1, ""))

	const port = "9"
	observer, err := w.Server.ListenPacket("udp", net.JoinHostPort(lab.ServerIPv4, port))
	require.NoError(t, err)
	t.Cleanup(func() { observer.Close() })
	clients, err := w.client.ListenPacket("udp", "[::]:0")
	require.NoError(t, err)
	t.Cleanup(func() { clients.Close() })
	to, err := net.ResolveUDPAddr("udp", server6+":"+port)
	require.NoError(t, err)
	c := &crowd{
		clients: ipv6.NewPacketConn(clients), to: to,
		wears: map[uint32]netip.Addr{}, worn: map[netip.Addr]uint32{}, answered: map[uint32]int{},
	}
	go c.observe(observer)
	go c.listen(clients)
	return c
}

// observe notes who wears which address, and answers.
func (c *crowd) observe(conn net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		c.note(binary.BigEndian.Uint32(buf[:n]), from.(*net.UDPAddr).AddrPort().Addr().Unmap())
		_, _ = conn.WriteTo(buf[:n], from)
	}
}

func (c *crowd) note(client uint32, a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	line := func() string { return strconv.Itoa(int(client)) + " wears " + a.String() }
	if before, ok := c.wears[client]; ok && before != a {
		c.lost = append(c.lost, line()+" and wore "+before.String())
	}
	if other, ok := c.worn[a]; ok && other != client {
		c.doubled = append(c.doubled, line()+" and so does "+strconv.Itoa(int(other)))
	}
	c.wears[client], c.worn[a] = a, client
}

func (c *crowd) listen(conn net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.answered[binary.BigEndian.Uint32(buf[:n])]++
		c.mu.Unlock()
	}
}

// send sends a packet from the address of a client.
func (c *crowd) send(client uint32) {
	src := netip.MustParsePrefix(crowdPrefix).Addr().As16()
	binary.BigEndian.PutUint32(src[12:], client)
	payload := binary.BigEndian.AppendUint32(nil, client)
	_, _ = c.clients.WriteTo(payload, &ipv6.ControlMessage{Src: src[:]}, c.to)
}

// grow has new clients come until it is stopped.
func (c *crowd) grow(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(rand.N(4 * time.Millisecond)):
		}
		c.mu.Lock()
		c.next++
		client := c.next
		c.mu.Unlock()
		c.send(client)
	}
}

// visit has up to n of the clients that were seen talk to the observer again,
// those whose turn it is, and waits for the answers. By the way it keeps their
// leases from lapsing.
func (c *crowd) visit(t *testing.T, n int) {
	t.Helper()
	c.mu.Lock()
	waiting := map[uint32]int{}
	for range c.next {
		if len(waiting) == n {
			break
		}
		c.cursor = c.cursor%c.next + 1
		if _, seen := c.wears[c.cursor]; seen {
			waiting[c.cursor] = c.answered[c.cursor]
		}
	}
	c.mu.Unlock()
	for range 100 {
		sent := 0
		for client := range waiting {
			c.send(client)
			if sent++; sent%64 == 0 {
				time.Sleep(time.Millisecond) // the device queues 500 packets
			}
		}
		time.Sleep(20 * time.Millisecond)
		c.mu.Lock()
		for client, before := range waiting {
			if c.answered[client] > before {
				delete(waiting, client)
			}
		}
		c.mu.Unlock()
		if len(waiting) == 0 {
			return
		}
	}
	require.Empty(t, waiting, "clients without an answer")
}
