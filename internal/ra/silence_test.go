package ra

import (
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/ipv6"

	"github.com/natless/natless/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestHush(t *testing.T) {
	now := time.Unix(1000, 0)
	for lifetime, want := range map[time.Duration]silence{
		0:                   {now, false},
		time.Minute:         {now.Add(time.Minute), true},
		65535 * time.Second: {now.Add(maxSilence), true},
	} {
		assert.Equal(t, want, hush(lifetime, now))
	}
	assert.True(t, hush(time.Minute, now).reigns(now.Add(time.Hour)), "nobody was asked")
	assert.False(t, hush(0, now).reigns(now))
}

// TestForgedSilence: an advertisement that somebody on the link forges from this
// host's address, with the longest lifetime, silences natless for a moment: then
// it asks, and goes on when nobody answers, but not while somebody does. One from
// another address does not silence it, nor one that was forwarded.
func TestForgedSilence(t *testing.T) {
	lab.Require(t)
	before := maxSilence
	maxSilence = time.Second
	l := &link{log: slog.New(slog.DiscardHandler), others: map[netip.Addr]other{}, end: make(chan bool, 1)}
	l2, err := lab.New()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l2.Close()) })
	host, err := l2.Node("host")
	require.NoError(t, err)
	client, err := l2.Node("client")
	require.NoError(t, err)
	require.NoError(t, lab.Wire(host, "lan", client, "eth0", 0))
	at := linkLocal(t, host, "lan")
	require.NoError(t, client.Address("eth0", at.addr.String()+"/64"))
	same := speaker(t, client, at.addr)
	require.NoError(t, client.Address("eth0", "fe80::77/64"))
	foreign := speaker(t, client, netip.MustParseAddr("fe80::77"))
	doing := task{place: at, prefix: netip.MustParsePrefix("64:ff9b::/96"), lifetime: MinLifetime}
	ended := make(chan error, 1)
	go func() { ended <- host.Do(func() error { return l.advertise(doing) }) }()
	t.Cleanup(func() {
		l.end <- false
		require.NoError(t, <-ended)
		maxSilence = before
	})
	sends := func(more uint64) {
		t.Helper()
		was := l.now().Sent
		for range 400 {
			if l.now().Sent >= was+more {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatal("nothing is sent")
	}
	sends(1)
	forge := func(from *ndp.Conn, hops int, lifetime time.Duration) {
		t.Helper()
		cm := &ipv6.ControlMessage{HopLimit: hops}
		require.NoError(t, from.WriteTo(&ndp.RouterAdvertisement{RouterLifetime: lifetime}, cm, allNodes))
	}
	forge(foreign, ndp.HopLimit, 65535*time.Second)
	forge(same, ndp.HopLimit-1, 65535*time.Second)
	sends(1)
	assert.Empty(t, l.now().Problem)

	forge(same, ndp.HopLimit, 65535*time.Second)
	for range 100 {
		if l.now().Problem != "" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	assert.Contains(t, l.now().Problem, "forges its advertisements")
	sends(1)
	assert.Empty(t, l.now().Problem)

	// Somebody who answers.
	require.NoError(t, same.SetReadDeadline(time.Now().Add(10*time.Second)))
	require.NoError(t, same.JoinGroup(allRouters))
	forge(same, ndp.HopLimit, time.Hour)
	time.Sleep(100 * time.Millisecond)
	was := l.now().Sent
	for range 2 {
		for {
			b := make([]byte, 1500)
			_, _, _, err := same.ReadRaw(b)
			require.NoError(t, err)
			if b[0] == solicitation {
				break
			}
		}
		forge(same, ndp.HopLimit, time.Hour)
	}
	assert.Equal(t, was, l.now().Sent)
	assert.NotEmpty(t, l.now().Problem)
}

// linkLocal is where an interface of a node is, when its address can be used.
func linkLocal(t *testing.T, n *lab.Node, name string) (at place) {
	t.Helper()
	for range 100 {
		if err := n.Do(func() (err error) { at, err = find(name, netip.Addr{}); return err }); err == nil {
			return at
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("no link-local address")
	return at
}

// speaker is a socket at an address of eth0.
func speaker(t *testing.T, n *lab.Node, from netip.Addr) (conn *ndp.Conn) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		ifi.Name = strconv.Itoa(ifi.Index) // names are remembered across namespaces
		conn, _, err = ndp.Listen(ifi, ndp.Addr(from.String()))
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	return conn
}
