package main_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	api "github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/mapping"
)

// sessions are those that `natless session ls` lists.
func (w *world) sessions(t *testing.T, filters ...string) (list []api.Session) {
	t.Helper()
	for line := range strings.Lines(w.query(t, append([]string{"session", "ls", "-o", "json"}, filters...)...)) {
		var s api.Session
		require.NoError(t, json.Unmarshal([]byte(line), &s))
		list = append(list, s)
	}
	return list
}

// What takes a session is listed, and nothing else.
func TestLabSessions(t *testing.T) {
	t.Parallel()
	w := start(t, sharing("auto", 2))
	first, last := w.portsOf(t, 1)
	confine(t, w.client, first, last)
	for range 5 {
		require.NoError(t, lab.Exchange(t.Context(), w.client, "", server6+":7", 100))
		conn, err := w.client.Dial(t.Context(), "tcp", server6+":8080")
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
	}
	for _, s := range w.sessions(t) {
		assert.Equal(t, "icmp", s.Protocol, "%+v: of the pings alone", s)
	}
	assert.Empty(t, w.sessions(t, "--client", "2001:db8:2::2"))

	echoFrom(t, w.client, fmt.Sprintf("[%s]:500", client1), server6+":7", 100)
	require.NoError(t, w.client.Do(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client1), Port: 501}}
		conn, err := d.DialContext(t.Context(), "tcp", server6+":8080")
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return err
	}))
	for _, want := range []struct {
		filters []string
		port    uint16
		state   string
	}{
		{[]string{"--protocol", "udp"}, 500, "open"},
		{[]string{"--remote", lab.ServerIPv4 + ":7"}, 500, "open"},
		{[]string{"--client", client1, "--state", "established"}, 501, "established"},
		{[]string{"--remote", lab.ServerIPv4 + ":8080"}, 501, "established"},
	} {
		list := w.sessions(t, want.filters...)
		require.Len(t, list, 1, want.filters)
		s := list[0]
		assert.Equal(t, netip.MustParseAddr(client1), s.Client)
		assert.Equal(t, netip.MustParseAddr(shared4), s.IPv4)
		assert.Equal(t, want.port, s.ClientPort)
		assert.Equal(t, want.state, s.State)
		assert.True(t, s.Port > last && s.Port <= last+128, s.Port)
		assert.Equal(t, netip.MustParseAddr(lab.ServerIPv4), s.Remote)
	}

	status := w.query(t, "status")
	assert.Regexp(t, `\nsessions +\d+ of at most 1000000\n`, status)
	assert.Contains(t, status, shared4+"/32: 1 of 63 port ranges (63 an address) lent, 0 in quarantine\n")
	assert.Contains(t, w.daemon.Output(), "pool "+shared4+"/32 port-range (63 clients an address, of 1024 ports)")

	w.query(t, "lease", "release", client1)
	until(t, "ended with the lease", func() bool { return len(w.sessions(t)) == 0 })
}

// BenchmarkLabConnectionRate is how many connections a second a client of 896
// ports begins to one destination when it closes each at once, so that its
// ports fill with TIME_WAIT: with and without tcp_tw_reuse. It takes more than
// two minutes: -benchtime 1x.
func BenchmarkLabConnectionRate(b *testing.B) {
	lab.Require(b)
	lab.Binary(b)
	for b.Loop() {
		for _, c := range []struct {
			reuse string
			over  time.Duration // whole turns of the minute that TIME_WAIT takes
		}{{"0", 2 * time.Minute}, {"1", 20 * time.Second}} {
			b.ReportMetric(connectionRate(b, c.reuse, c.over), "connections/s-reuse-"+c.reuse)
		}
	}
}

func connectionRate(b *testing.B, reuse string, over time.Duration) float64 {
	b.Helper()
	n, err := lab.Build(1)
	require.NoError(b, err)
	defer func() { assert.NoError(b, n.Close()) }()
	ln, err := n.Server.Listen("tcp", lab.ServerIPv4+":80")
	require.NoError(b, err)
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = conn.Read(make([]byte, 1)); conn.Close() }() // after the client
		}
	}()
	d, err := n.Host.Natless(lab.Binary(b), own, sharing("auto", 1).flags...)
	require.NoError(b, err)
	require.NoError(b, d.Start())
	require.NoError(b, d.Ready(b.Context()))
	client := n.Clients[0]
	_, err = lab.Ping(b.Context(), client, "", netip.MustParseAddr(lab.Server6), 56) // leases
	require.NoError(b, err)
	out, err := d.Query(b.Context(), "lease", "ls", "-o", "json")
	require.NoError(b, err)
	var l mapping.Lease
	require.NoError(b, json.Unmarshal([]byte(out), &l))
	var first, last int
	_, err = fmt.Sscanf(l.Ports, "%d-%d", &first, &last)
	require.NoError(b, err)
	require.NoError(b, client.SetSysctl("net/ipv4/ip_local_port_range", fmt.Sprintf("%d %d", first, last-l.SessionPorts)))
	require.NoError(b, client.SetSysctl("net/ipv4/tcp_tw_reuse", reuse))

	const filling = 5 * time.Second // of all ports, for the first time
	begin, made := time.Now(), 0
	for time.Since(begin) < filling+over {
		conn, err := client.Dial(b.Context(), "tcp", server6+":80")
		if err != nil { // no port is free
			time.Sleep(10 * time.Millisecond)
			continue
		}
		conn.Close()
		if time.Since(begin) > filling {
			made++
		}
	}
	out, err = d.Query(b.Context(), "session", "ls", "--protocol", "tcp", "-o", "json")
	require.NoError(b, err)
	assert.Empty(b, out, "all of them without sessions")
	require.NoError(b, d.Stop())
	return float64(made) / over.Seconds()
}
