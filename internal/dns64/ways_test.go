package dns64

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestWays: what the kernel says is kept for a moment, and of so many addresses.
func TestWays(t *testing.T) {
	w, err := newWays()
	require.NoError(t, err)
	now := time.Unix(1000, 0)
	assert.Equal(t, way{links: []int{loopback}, own: true, until: now.Add(waysLife)}, w.to(mustAddr("127.0.0.1"), now))
	assert.True(t, w.over(loopback, mustAddr("::ffff:127.0.0.1"), now))
	assert.False(t, w.over(loopback+1, mustAddr("127.0.0.1"), now))
	assert.False(t, w.over(0, mustAddr("127.0.0.1"), now), "no link is known")
	w.end()
	w.end()
	assert.Empty(t, w.to(mustAddr("127.0.0.2"), now).links, "nothing is asked any more")

	asked := 0
	w.look = func(netip.Addr) way { asked++; return way{links: []int{asked}} }
	assert.True(t, w.over(1, foreign, now))
	assert.True(t, w.over(1, foreign, now.Add(waysLife-1)))
	assert.True(t, w.over(2, foreign, now.Add(waysLife)))
	a := mustAddr("2001:db8::")
	for range 3 * mostWays {
		a = a.Next()
		w.to(a, now)
		require.LessOrEqual(t, len(w.known), mostWays)
	}
}

// TestIPv6: any way to the Internet is one; an address that the host has given
// itself is none.
func TestIPv6(t *testing.T) {
	for _, c := range []struct {
		own, some bool
		want      bool
	}{{false, false, false}, {false, true, true}, {true, true, false}} {
		w := &ways{known: map[netip.Addr]way{}, look: func(a netip.Addr) way {
			if c.some && a == far[2] {
				return way{links: []int{4}, own: c.own}
			}
			return way{}
		}}
		assert.Equal(t, c.want, w.ipv6(time.Unix(1000, 0)), "%+v", c)
	}
}

// TestWrongLink: a query that came by another link than its source is reached by
// is not answered, from the cache or otherwise, nor is a stranger told anything.
func TestWrongLink(t *testing.T) {
	s, at := serving(t, small(), scripted(t, zone...).addr)
	conn, err := net.Dial("udp", at.String())
	require.NoError(t, err)
	defer conn.Close()
	ask := func(name string) error {
		conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
		_, err := conn.Write(packetOf(t, name, dns.TypeAAAA))
		require.NoError(t, err)
		_, err = conn.Read(make([]byte, maxUDP))
		return err
	}
	require.NoError(t, ask("four.example."))
	elsewhere := map[netip.Addr]way{mustAddr("127.0.0.1"): {links: []int{7}, until: time.Now().Add(time.Hour)}}
	s.ways.mu.Lock()
	before := s.ways.known
	s.ways.known = elsewhere
	s.ways.mu.Unlock()
	for _, name := range []string{"four.example.", "long.example."} {
		assert.Error(t, ask(name), name)
	}
	assert.EqualValues(t, 2, s.Status().WrongLink)
	assert.EqualValues(t, 1, s.Status().Queries)
	s.ways.mu.Lock()
	s.ways.known = before
	s.ways.mu.Unlock()
	assert.NoError(t, ask("four.example."))
}

// TestPrepare: addresses are listened at, and given up, while others go on.
func TestPrepare(t *testing.T) {
	s, first := serving(t, small(), scripted(t, zone...).addr)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	second := free.Addr().(*net.TCPAddr).AddrPort()
	settings := *s.settings.Load()
	with := func(listen ...netip.AddrPort) Settings {
		c := settings
		c.Listen = listen
		return c
	}
	answers := func(network string, at netip.AddrPort) bool {
		c := dns.Client{Net: network, Timeout: time.Second}
		_, _, err := c.Exchange(parsed(t, packetOf(t, "four.example.", dns.TypeA)), at.String())
		return err == nil
	}
	_, err = s.Prepare(with(first, second))
	assert.ErrorContains(t, err, "listening for DNS at "+second.String()+": bind: address already in use")
	assert.Equal(t, []netip.AddrPort{first}, s.Status().Listen)
	require.NoError(t, free.Close())

	change, err := s.Prepare(with(first, second))
	require.NoError(t, err)
	change.Abandon()
	assert.True(t, answers("udp", first))
	assert.False(t, answers("tcp", second))

	idle, err := net.Dial("tcp", first.String())
	require.NoError(t, err)
	defer idle.Close()
	for _, listen := range [][]netip.AddrPort{{first, second}, {second}, {}, {first}} {
		change, err := s.Prepare(with(listen...))
		require.NoError(t, err)
		change.Commit()
		for _, at := range []netip.AddrPort{first, second} {
			for _, network := range []string{"udp", "tcp"} {
				assert.Equal(t, slices.Contains(listen, at), answers(network, at), "%v of %v by %s", at, listen, network)
			}
		}
		assert.Equal(t, listen, s.Status().Listen)
	}
	idle.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = idle.Read(make([]byte, 1))
	assert.Error(t, err, "a connection to an address that was given up is closed")
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded)

	free, err = net.Listen("tcp", second.String())
	require.NoError(t, err, "an address that was given up is free")
	free.Close()
}

// TestAbsent: addresses that no link has are told of.
func TestAbsent(t *testing.T) {
	s := serverOf(t, small())
	here, nowhere := netip.MustParseAddrPort("[fd00::1]:53"), netip.MustParseAddrPort("[fd00::2]:53")
	s.ways.look = func(a netip.Addr) way { return way{links: []int{1}, own: a == here.Addr()} }
	settings := *s.settings.Load()
	settings.Listen = []netip.AddrPort{here, nowhere}
	s.set(settings)
	assert.Equal(t, []netip.AddrPort{nowhere}, s.Status().Absent)
}
