package control

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/natless/natless/internal/confine"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/mapping"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type row struct {
	IPv4 string `json:"ipv4"`
	N    int    `json:"n"`
}

// source is a daemon of fixed answers.
type source struct {
	Source // of the rest, nothing is asked
	maps   iter.Seq[any]
	config any
}

func (source) Status() Status {
	return Status{
		Version: "1.2.3", Uptime: 42, File: "/etc/natless/natless.toml", Flags: []string{"--queues=2"}, Device: "natless0", Offloads: "tso", Queues: 2, Rings: 8, MTU: 1500,
		Pref64: netip.MustParsePrefix("64:ff9b::/96"), OwnIPv4: netip.MustParseAddr("192.0.2.1"),
		Pools:    []mapping.PoolInfo{{IPv4: netip.MustParsePrefix("192.0.2.0/24"), Size: 256, Usable: 254, Lent: 3}},
		Networks: []mapping.Network{}, Revision: 7, RA: []Advertising{{Interface: "lan", Problem: "down"}}, Links: []hostnet.LinkRole{{Link: "wan", Role: "uplink", Why: "carries a default route"}}, Refused: []string{"a"}, Warnings: []string{"a <b>"}, Problems: []string{"a <b>"}, Degraded: true,
		Confined: confine.State{Capabilities: []string{"CAP_NET_ADMIN"}, NoNewPrivs: true, Seccomp: "natless", Landlock: 7, Problems: []string{}},
	}
}

func (source) Stats() Stats {
	return Stats{Verdicts: map[string]uint64{"translated": 5}, IPv6In: Traffic{Packets: 5, Bytes: 500}, ErrorsSent: 1}
}
func (s source) Maps() (uint64, iter.Seq[any]) { return 7, s.maps }
func (source) Leases() (uint64, iter.Seq[any]) { return 7, Each(slices.Values([]row{})) }
func (source) Sessions(client netip.Addr) iter.Seq[Session] {
	return slices.Values([]Session{{Protocol: "udp", Client: client, State: "open"}})
}
func (source) Explain(a netip.Addr) any { return map[string]any{"address": a} }
func (s source) Config() any            { return s.config }
func (source) Trace(packet []byte) any  { return map[string]int{"bytes": len(packet)} }
func rows(n int) iter.Seq[any]          { return func(yield func(any) bool) { some(n, yield) } }
func some(n int, yield func(any) bool) {
	for i := range n {
		if !yield(row{"192.0.2.1", i}) {
			return
		}
	}
}

// start serves the source, with the limits changed as the test likes.
func start(t *testing.T, src Source, change func(*limits)) (path string, s *Server) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run", "natless.sock")
	s, err := Listen(path, "", "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	if change != nil {
		l := defaultLimits
		change(&l)
		s = newServer(s.sockets, s.log, l)
	}
	done := make(chan error)
	go func() { done <- s.Serve(src) }()
	t.Cleanup(func() {
		assert.NoError(t, s.Close())
		assert.NoError(t, <-done)
		assert.NoFileExists(t, path)
	})
	return path, s
}

// say sends raw bytes and returns the connection.
func say(t *testing.T, path, request string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, request)
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	return c
}

func TestQuestions(t *testing.T) {
	path, _ := start(t, source{maps: rows(10000), config: map[string]string{"a": "b"}}, nil)
	c, ctx := NewClient(path), t.Context()

	status, err := c.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, source{}.Status(), status)
	stats, err := c.Stats(ctx)
	require.NoError(t, err)
	assert.Equal(t, source{}.Stats(), stats)
	cfg, err := c.Config(ctx)
	require.NoError(t, err)
	assert.JSONEq(t, `{"a": "b"}`, string(cfg))
	for _, a := range []string{"192.0.2.7", "2001:db8::7"} {
		answer, err := c.Explain(ctx, netip.MustParseAddr(a))
		require.NoError(t, err)
		assert.JSONEq(t, `{"address": "`+a+`"}`, string(answer))
	}

	n := 0
	for r, err := range Decoded[row](c.Maps(ctx)) {
		require.NoError(t, err)
		require.Equal(t, row{"192.0.2.1", n}, r)
		n++
	}
	assert.Equal(t, 10000, n)
	for range c.Maps(ctx) {
		break // the server notices
	}
	for range c.Leases(ctx) {
		assert.Fail(t, "there are none")
	}

	_, err = c.Explain(ctx, netip.MustParseAddr("fe80::1%eth0"))
	assert.EqualError(t, err, `"fe80::1%eth0": expected an IPv4 or IPv6 address`)
}

// healthy is a source without anything to warn of.
type healthy struct{ source }

func (healthy) Status() Status { return Status{} }

func TestNoWarnings(t *testing.T) {
	path, _ := start(t, healthy{}, nil)
	answer, err := io.ReadAll(say(t, path, "GET /v1/status HTTP/1.0\r\n\r\n"))
	require.NoError(t, err)
	assert.Contains(t, string(answer), `"warnings":[]`)
}

// TestShape holds what scripts rely on: paths, codes, types, names.
func TestShape(t *testing.T) {
	path, _ := start(t, source{maps: rows(2)}, nil)
	for _, test := range []struct {
		request     string
		code        int
		contentType string
		body        string
	}{
		{"GET /v1/status", 200, "application/json", `{"version":"1.2.3","uptime_seconds":42,"config_file":"/etc/natless/natless.toml","flags":["--queues=2"],"device":"natless0","offloads":"tso","queues":2,"rings":8,"mtu":1500,` +
			`"pref64":"64:ff9b::/96","own_ipv4":"192.0.2.1","own_ipv6":"","pools":[{"ipv4":"192.0.2.0/24","clients":null,"local":false,"size":256,"usable":254,"lent":3,"quarantined":0,"free":0,"idle_seconds":0,"max_life_seconds":0,"quarantine_seconds":0}],"networks":[],"attached":0,"state":{"dir":""},` +
			`"revision":7,"ra":[{"interface":"lan","address":"","sent":0,"problem":"down"}],"links":[{"link":"wan","role":"uplink","why":"carries a default route"}],"refused":["a"],"confinement":{"capabilities":["CAP_NET_ADMIN"],"no_new_privs":true,"seccomp":"natless","landlock":7,"problems":[]},"warnings":["a \u003cb\u003e"],"problems":["a \u003cb\u003e"],"degraded":true}` + "\n"},
		{"GET /v1/stats", 200, "application/json", `{"verdicts":{"translated":5},"ipv6_in":{"packets":5,"bytes":500},"ipv4_in":{"packets":0,"bytes":0},"ipv6_out":{"packets":0,"bytes":0},"ipv4_out":{"packets":0,"bytes":0},` +
			`"errors_sent":1,"errors_suppressed":0,"write_errors":0,"held":0,"device_drops":0}` + "\n"},
		{"GET /v1/map", 200, "application/x-ndjson", `{"ipv4":"192.0.2.1","n":0}` + "\n" + `{"ipv4":"192.0.2.1","n":1}` + "\n"},
		{"GET /v1/lease", 200, "application/x-ndjson", ""},
		{"GET /v1/map/2001:db8::1", 200, "application/json", `{"address":"2001:db8::1"}` + "\n"},
		{"GET /v1/map/web", 400, "application/json", `{"error":"\"web\": expected an IPv4 or IPv6 address"}` + "\n"},
		{"GET /v1/map/::ffff:192.0.2.1", 400, "application/json", `{"error":"\"::ffff:192.0.2.1\": expected an IPv4 or IPv6 address"}` + "\n"},
		{"GET /v1/session", 200, "application/x-ndjson", `{"protocol":"udp","client":"","client_port":0,"ipv4":"","port":0,"remote":"","state":"open","idle_seconds":0,"expires_seconds":0}` + "\n"},
		{"GET /v1/session?client=2001:db8::1", 200, "application/x-ndjson", `{"protocol":"udp","client":"2001:db8::1","client_port":0,"ipv4":"","port":0,"remote":"","state":"open","idle_seconds":0,"expires_seconds":0}` + "\n"},
		{"GET /v1/session?client=192.0.2.1", 400, "application/json", `{"error":"client=\"192.0.2.1\": expected an IPv6 address"}` + "\n"},
		{"GET /v1/session?client=", 400, "application/json", `{"error":"client=\"\": expected an IPv6 address"}` + "\n"},
		{"GET /v1/session?remote=192.0.2.1", 400, "application/json", `{"error":"the query \"remote=192.0.2.1\": no such parameter here"}` + "\n"},
		{"GET /v1/sessions", 404, "application/json", `{"error":"\"/v1/sessions\": no such path in this version"}` + "\n"},
		{"GET /", 404, "application/json", `{"error":"\"/\": no such path in this version"}` + "\n"},
		{"GET //v1/map", 404, "application/json", `{"error":"\"//v1/map\": no such path in this version"}` + "\n"},
		{"GET /v1/map/../status", 404, "application/json", `{"error":"\"/v1/map/../status\": no such path in this version"}` + "\n"},
		{"GET /v1/trace", 405, "application/json", `{"error":"GET: expected POST"}` + "\n"},
		{"PUT /v1/map/192.0.2.1", 405, "application/json", `{"error":"PUT: expected GET or DELETE"}` + "\n"},
		{"HEAD /v1/status", 405, "application/json", ""},
		{"GET /v1/map?after=1", 400, "application/json", `{"error":"the query \"after=1\": no such parameter here"}` + "\n"},
	} {
		conn := say(t, path, test.request+" HTTP/1.1\r\nHost: natless\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: strings.Fields(test.request)[0]})
		require.NoError(t, err, test.request)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err, test.request)
		assert.Equal(t, test.code, resp.StatusCode, test.request)
		assert.Equal(t, test.contentType, resp.Header.Get("Content-Type"), test.request)
		assert.Equal(t, test.body, string(body), test.request)
		conn.Close()
	}
}

func TestTrace(t *testing.T) {
	path, _ := start(t, source{}, nil)
	for _, size := range []int{1, 1500, maxPacket} {
		answer, err := NewClient(path).Trace(t.Context(), make([]byte, size))
		require.NoError(t, err)
		assert.JSONEq(t, fmt.Sprintf(`{"bytes": %d}`, size), string(answer))
	}
	_, err := NewClient(path).Trace(t.Context(), nil)
	assert.EqualError(t, err, "expected a packet")
	_, err = NewClient(path).Trace(t.Context(), make([]byte, maxPacket+1))
	assert.EqualError(t, err, "expected at most 65575 bytes")

	answer, err := io.ReadAll(say(t, path, "POST /v1/trace HTTP/1.1\r\nHost: natless\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"))
	require.NoError(t, err, "closed after the answer")
	assert.Contains(t, string(answer), "HTTP/1.1 400 ")
	assert.Contains(t, string(answer), `{"error":"reading the packet: `)
}

func TestBodyRefused(t *testing.T) {
	path, _ := start(t, source{}, nil)
	for _, header := range []string{"Content-Length: 1000000000", "Transfer-Encoding: chunked"} {
		conn := say(t, path, "GET /v1/status HTTP/1.1\r\nHost: natless\r\n"+header+"\r\n\r\n")
		answer, err := io.ReadAll(conn)
		require.NoError(t, err, "closed after the answer")
		assert.Contains(t, string(answer), "HTTP/1.1 413 ")
		assert.Contains(t, string(answer), `{"error":"expected a request without a body"}`)
	}
}

func TestHalfRequest(t *testing.T) {
	path, _ := start(t, source{}, func(l *limits) { l.read, l.idle = 50*time.Millisecond, 50*time.Millisecond })
	for _, half := range []string{"", "GET /v1/sta", "GET /v1/status HTTP/1.1\r\nHost:", "GET /v1/status HTTP/1.1\r\nHost: natless\r\n\r\n"} {
		_, err := io.ReadAll(say(t, path, half))
		assert.NoError(t, err, "the server closes: %q", half)
	}
	_, err := NewClient(path).Status(t.Context())
	assert.NoError(t, err)
}

func TestRubbish(t *testing.T) {
	path, _ := start(t, source{}, nil)
	answer, err := io.ReadAll(say(t, path, "\x00\x01\x02\r\n\r\n"))
	require.NoError(t, err)
	assert.Contains(t, string(answer), "HTTP/1.1 400 ")

	conn := say(t, path, "GET /v1/status HTTP/1.1\r\nHost: natless\r\n")
	line := []byte("X: " + strings.Repeat("x", 1000) + "\r\n")
	for range 1000 {
		if _, err := conn.Write(line); err != nil {
			break // it reads no more
		}
	}
	answer, _ = io.ReadAll(conn)
	assert.Contains(t, string(answer), "HTTP/1.1 431 ")
}

// TestSlowReader holds that one who asks and does not read is let go, and
// that its answer is never held as a whole.
func TestSlowReader(t *testing.T) {
	var given atomic.Int64
	ended := make(chan struct{})
	endless := func(yield func(any) bool) {
		defer close(ended)
		for yield(row{"192.0.2.1", int(given.Add(1))}) {
		}
	}
	path, _ := start(t, source{maps: endless}, func(l *limits) { l.stall = 100 * time.Millisecond })
	say(t, path, "GET /v1/map HTTP/1.1\r\nHost: natless\r\n\r\n")
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		require.Fail(t, "still waiting for the reader")
	}
	assert.Less(t, given.Load(), int64(1<<20))
	_, err := NewClient(path).Status(t.Context())
	assert.NoError(t, err)
}

// TestBrokenList holds that a part of a list is not taken for the whole.
func TestBrokenList(t *testing.T) {
	broken := func(yield func(any) bool) {
		some(10000, yield)
		yield(math.NaN())
	}
	path, _ := start(t, source{maps: broken}, nil)
	var last error
	n := 0
	for _, err := range NewClient(path).Maps(t.Context()) {
		n, last = n+1, err
	}
	assert.ErrorIs(t, last, io.ErrUnexpectedEOF)
	assert.Greater(t, n, 1)
}

func TestUnencodable(t *testing.T) {
	path, _ := start(t, source{config: math.NaN()}, nil)
	_, err := NewClient(path).Config(t.Context())
	assert.EqualError(t, err, "the daemon could not encode its answer: see its log")
}

func TestManyConnections(t *testing.T) {
	path, _ := start(t, source{}, nil)
	for range 100 {
		say(t, path, "GET ") // holds its place until the read limit
	}
	began := time.Now()
	_, err := NewClient(path).Status(t.Context())
	assert.NoError(t, err)
	assert.Less(t, time.Since(began), defaultLimits.read)
}

func TestClientErrors(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "natless.sock")
	_, err := NewClient(path).Status(t.Context())
	assert.EqualError(t, err, "asking the daemon at "+path+": no such file or directory: is natless running?")

	stale(t, path)
	_, err = NewClient(path).Status(t.Context())
	assert.EqualError(t, err, "asking the daemon at "+path+": connection refused: is natless running?")
	for _, err := range NewClient(path).Leases(t.Context()) {
		assert.EqualError(t, err, "asking the daemon at "+path+": connection refused: is natless running?")
	}

	// Somebody else answers, and not in our words.
	other := filepath.Join(dir, "other.sock")
	l, err := net.Listen("unix", other)
	require.NoError(t, err)
	srv := &http.Server{Handler: http.NotFoundHandler()}
	go srv.Serve(l)
	defer srv.Close()
	_, err = NewClient(other).Status(t.Context())
	assert.EqualError(t, err, "asking the daemon at "+other+": 404 Not Found: 404 page not found")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = NewClient(other).Status(ctx)
	assert.EqualError(t, err, "asking the daemon at "+other+": context canceled")
}

// stale leaves a socket as a killed daemon does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func TestListenMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "natless.sock")
	mode := func(path string) os.FileMode {
		info, err := os.Stat(path)
		require.NoError(t, err)
		return info.Mode().Perm()
	}
	s, err := Listen(path, "", "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), mode(path))
	assert.Equal(t, os.FileMode(0o755), mode(filepath.Dir(path)))
	require.NoError(t, s.Close())
	assert.NoError(t, s.Close(), "again")
	assert.NoFileExists(t, path)
	assert.NoError(t, s.Serve(source{}), "after Close")

	gid := os.Getgid()
	s, err = Listen(path, fmt.Sprint(gid), "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o660), mode(path))
	assert.Equal(t, uint32(gid), info.Sys().(*syscall.Stat_t).Gid)
	require.NoError(t, s.Close())

	_, err = Listen(path, "no-such-group", "", slog.New(slog.DiscardHandler))
	assert.EqualError(t, err, "opening the control socket "+path+": group: unknown group no-such-group")
	assert.NoFileExists(t, path)
}

func TestListenWhatIsThere(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	path := filepath.Join(dir, "natless.sock")

	stale(t, path)
	s, err := Listen(path, "", "", log)
	require.NoError(t, err, "a stale socket is replaced")
	_, err = Listen(path, "", "", log)
	assert.EqualError(t, err, "opening the control socket "+path+": another natless answers there")
	assert.FileExists(t, path)

	// Another takes the place: it is not ours to remove.
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
	require.NoError(t, s.Close())
	assert.FileExists(t, path)

	_, err = Listen(path, "", "", log)
	const foreign = ": something is there that is not a socket: move it away, or choose another path (control.socket)"
	assert.EqualError(t, err, "opening the control socket "+path+foreign)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(data))

	// Not even behind a link.
	stale(t, filepath.Join(dir, "target"))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink("target", link))
	_, err = Listen(link, "", "", log)
	assert.EqualError(t, err, "opening the control socket "+link+foreign)

	_, err = Listen(filepath.Join(path, "natless.sock"), "", "", log)
	assert.ErrorContains(t, err, "not a directory")
}

// TestListenAtOnce holds that of many daemons that find one stale socket, one
// gets it.
func TestListenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "natless.sock")
	for range 20 {
		stale(t, path)
		var won atomic.Pointer[Server]
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				s, err := Listen(path, "", "", slog.New(slog.DiscardHandler))
				if err == nil {
					assert.True(t, won.CompareAndSwap(nil, s), "two of them")
				}
			})
		}
		wg.Wait()
		require.NotNil(t, won.Load())
		require.NoError(t, won.Load().Close())
	}
}

// TestPeer holds that the log tells who asked.
func TestPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "natless.sock")
	var buf strings.Builder
	s, err := Listen(path, "", "", slog.New(slog.NewJSONHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- s.Serve(source{}) }()
	_, err = NewClient(path).Status(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, <-done)
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(buf.String()), &line))
	assert.Equal(t, "/v1/status", line["path"])
	assert.Equal(t, fmt.Sprintf("pid %d, uid %d, gid %d", os.Getpid(), os.Getuid(), os.Getgid()), line["peer"])
}

// TestCloseUnderWay holds that a reader that takes its time does not keep the
// daemon from ending.
func TestCloseUnderWay(t *testing.T) {
	reached := make(chan struct{})
	endless := func(yield func(any) bool) {
		close(reached)
		for yield(row{}) {
		}
	}
	path, s := start(t, source{maps: endless}, func(l *limits) { l.shutdown = 50 * time.Millisecond })
	say(t, path, "GET /v1/map HTTP/1.1\r\nHost: natless\r\n\r\n")
	<-reached
	began := time.Now()
	require.NoError(t, s.Close())
	assert.Less(t, time.Since(began), 10*time.Second)
	assert.NoFileExists(t, path)
}

func TestRemoveStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	require.False(t, RemoveStale(path), "nothing is there")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.False(t, RemoveStale(path), "a file is somebody's")
	require.NoError(t, os.Remove(path))
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	require.False(t, RemoveStale(path), "somebody answers")
	ln.SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())
	require.True(t, RemoveStale(path))
	require.NoFileExists(t, path)
}
