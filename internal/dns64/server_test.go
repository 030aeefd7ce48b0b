package dns64

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// serving is a server at work on a port of the loopback.
func serving(t *testing.T, l limits, upstreams ...netip.AddrPort) (*Server, netip.AddrPort) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := free.Addr().(*net.TCPAddr).AddrPort()
	require.NoError(t, free.Close())
	s, err := open(table{}, Settings{Listen: []netip.AddrPort{at}, Upstreams: upstreams, Synthesise: Missing}, slog.New(slog.DiscardHandler), l)
	require.NoError(t, err)
	served := make(chan error)
	go func() { served <- s.Serve(t.Context()) }()
	t.Cleanup(func() { assert.NoError(t, <-served) }) // the context ends before
	return s, at
}

func TestUDP(t *testing.T) {
	u := scripted(t, zone...)
	_, at := serving(t, small(), u.addr)
	conn, err := net.Dial("udp", at.String())
	require.NoError(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Write(packetOf(t, "four.example.", dns.TypeAAAA))
	require.NoError(t, err)
	buffer := make([]byte, 4096)
	n, err := conn.Read(buffer)
	require.NoError(t, err)
	m := parsed(t, buffer[:n])
	assert.EqualValues(t, 4711, m.Id)
	assert.Len(t, m.Answer, 2)
}

// TestPipelining: the queries of one connection are answered as they are done,
// not in their order (RFC 7766 6.2.1.1).
func TestPipelining(t *testing.T) {
	u := scripted(t, zone...)
	release := make(chan struct{})
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		if strings.EqualFold(q.Question[0].Name, "text.example.") {
			<-release
		}
		answers()
	})
	l := small()
	l.ask, l.query = 10*time.Second, 10*time.Second
	_, at := serving(t, l, u.addr)
	c, err := net.Dial("tcp", at.String())
	require.NoError(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	conn := &dns.Conn{Conn: c}
	for _, q := range []struct {
		name  string
		qtype uint16
	}{{"text.example.", dns.TypeTXT}, {"four.example.", dns.TypeA}, {"six.example.", dns.TypeAAAA}} {
		_, err := conn.Write(packetOf(t, q.name, q.qtype))
		require.NoError(t, err)
	}
	var order []string
	for i := range 3 {
		if i == 2 {
			close(release)
		}
		m, err := conn.ReadMsg()
		require.NoError(t, err)
		order = append(order, strings.ToLower(m.Question[0].Name))
	}
	assert.Equal(t, "text.example.", order[2])
}

// TestConnections: a connection that asks nothing is closed, and beyond the
// limit they wait.
func TestConnections(t *testing.T) {
	u := scripted(t, zone...)
	l := small()
	l.connections, l.idle = 1, 200*time.Millisecond
	_, at := serving(t, l, u.addr)
	first, err := net.Dial("tcp", at.String())
	require.NoError(t, err)
	defer first.Close()
	second, err := dns.Dial("tcp", at.String())
	require.NoError(t, err)
	defer second.Close()
	second.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = second.Write(packetOf(t, "four.example.", dns.TypeA))
	require.NoError(t, err)
	_, err = second.ReadMsg()
	require.NoError(t, err, "it is served when the first is closed")
	first.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = first.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
}

// TestLongQuery: who announces a query that nobody needs is let go.
func TestLongQuery(t *testing.T) {
	_, at := serving(t, small(), scripted(t).addr)
	c, err := net.Dial("tcp", at.String())
	require.NoError(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = c.Write([]byte{(maxQuery + 1) >> 8, (maxQuery + 1) & 255})
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
}

// TestLimitsAreDocumented holds docs/dns64.md to the limits there are.
func TestLimitsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/dns64.md")
	require.NoError(t, err)
	l := defaultLimits
	for what, most := range map[string]string{
		"queries under way; more are dropped, or wait by TCP":                            fmt.Sprint(l.queries),
		"questions that upstreams are asked at once; for more there is a server failure": fmt.Sprint(l.asking),
		"bytes of a query":                               fmt.Sprint(maxQuery),
		"TCP connections; others wait":                   fmt.Sprint(l.connections),
		"queries at once of one connection; others wait": fmt.Sprint(l.pipeline),
		"time of a connection without a query":           fmt.Sprintf("%g s", l.idle.Seconds()),
		"time for upstreams to answer a question":        fmt.Sprintf("%g s", l.ask.Seconds()),
		"answers kept":                                   fmt.Sprintf("%d, and %d MiB", l.entries, l.bytes>>20),
	} {
		assert.Contains(t, string(page), "| "+what+" | "+most+" |\n")
	}
	assert.Contains(t, string(page), fmt.Sprintf("at most %d a second", l.refusals))
	assert.Contains(t, string(page), fmt.Sprintf("more than %d, are a", maxChain))
}

// TestStrangers: who may not ask is told so by an answer no larger than the
// query, so many times a second, and never gets more.
func TestStrangers(t *testing.T) {
	u := scripted(t, zone...)
	l := small()
	l.refusals = 3
	s := serverOf(t, l, u.addr)
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	q := packetOf(t, "four.example.", dns.TypeAAAA)
	for range 2 {
		for i := range 5 {
			answer := s.handle(parse(q), foreign, true)
			if i >= l.refusals {
				assert.Nil(t, answer)
				continue
			}
			m := parsed(t, answer)
			assert.Equal(t, dns.RcodeRefused, m.Rcode)
			assert.Empty(t, m.Answer)
			assert.LessOrEqual(t, len(answer), len(q))
		}
		now = now.Add(time.Second)
	}
	assert.Nil(t, s.handle(parse(q[:len(q)-1]), foreign, true), "what is malformed is not answered")
	assert.EqualValues(t, 11, s.Status().Refused)
	assert.Zero(t, s.Status().Queries)
	assert.Empty(t, u.questions())

	for a, want := range map[string]bool{"::1": true, "127.0.0.1": true, "::ffff:127.0.0.1": true, "2001:db8:c::1": true, "192.0.2.1": false} {
		assert.Equal(t, want, s.permits(netip.MustParseAddr(a)), a)
	}
}

// TestMalformed: what is no query of ours gets the code for it, or nothing.
func TestMalformed(t *testing.T) {
	u := scripted(t, zone...)
	s := serverOf(t, small(), u.addr)
	for name, c := range map[string]struct {
		change func(m *dns.Msg)
		want   int
	}{
		"two questions":     {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"no question":       {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		"notify":            {func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		"a later EDNS":      {func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"another class":     {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"without recursion": {func(m *dns.Msg) { m.RecursionDesired = false }, dns.RcodeRefused},
		"zone transfer":     {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			m := parsed(t, packetOf(t, "four.example.", dns.TypeAAAA))
			c.change(m)
			data, err := m.Pack()
			require.NoError(t, err)
			answer := parsed(t, s.handle(parse(data), client, true))
			assert.Equal(t, c.want, answer.Rcode)
			assert.EqualValues(t, 4711, answer.Id)
			assert.Empty(t, answer.Answer)
		})
	}
	q := packetOf(t, "four.example.", dns.TypeAAAA)
	assert.Nil(t, s.handle(parse(q[:headerSize-1]), client, true), "shorter than a header")
	assert.Equal(t, dns.RcodeFormatError, parsed(t, s.handle(parse(q[:headerSize+3]), client, true)).Rcode)
	q[2] |= flagQR
	assert.Nil(t, s.handle(parse(q), client, true), "an answer: answering it would make a loop")
	assert.Empty(t, u.questions())
}

// large has a name with so much text.
func large(name string, bytes int) (records []string) {
	for i := range bytes / 200 {
		records = append(records, fmt.Sprintf("%s 60 IN TXT \"%03d%s\"", name, i, strings.Repeat("x", 190)))
	}
	return records
}

// TestAmplification: over UDP an answer is at most 1232 bytes, or 512 for who
// says nothing of more; one that would be larger is no larger than the query
// and an OPT record.
func TestAmplification(t *testing.T) {
	var records []string
	for n := 200; n <= 3000; n += 200 {
		records = append(records, large(fmt.Sprintf("n%d.example.", n), n)...)
	}
	u := scripted(t, records...)
	s := serverOf(t, small(), u.addr)
	const opt = 11
	worst := 0.0
	for n := 200; n <= 3000; n += 200 {
		for _, size := range []int{0, 100, 512, 1232, 4096, 65535} {
			m := parsed(t, packetOf(t, fmt.Sprintf("n%d.example.", n), dns.TypeTXT, "noedns"))
			most := minUDP
			if size > 0 {
				m.SetEdns0(uint16(size), false)
				most = min(max(size, minUDP), maxUDP)
			}
			q, err := m.Pack()
			require.NoError(t, err)
			answer := s.handle(parse(q), client, true)
			got := parsed(t, answer)
			assert.LessOrEqual(t, len(answer), most)
			if got.Truncated {
				assert.LessOrEqual(t, len(answer), len(q), "truncated")
				assert.Empty(t, got.Answer)
				whole := parsed(t, s.handle(parse(q), client, false))
				assert.False(t, whole.Truncated)
				assert.Len(t, whole.Answer, n/200, "by TCP")
			}
			worst = max(worst, float64(len(answer))/float64(len(q)))
		}
	}
	shortest := headerSize + 1 + 4 + opt // about the root
	t.Logf("an answer is at most %.1f times its query here; no answer can be more than %d/%d = %.1f times",
		worst, maxUDP, shortest, float64(maxUDP)/float64(shortest))
}

// TestEDNS has the sizes that clients may name (RFC 6891 6.2.3).
func TestEDNS(t *testing.T) {
	u := scripted(t, large("n.example.", 800)...)
	s := serverOf(t, small(), u.addr)
	for size, truncated := range map[uint16]bool{0: true, 511: true, 512: true, 1200: false, 4096: false} {
		m := parsed(t, packetOf(t, "n.example.", dns.TypeTXT, "noedns"))
		if size > 0 {
			m.SetEdns0(size, false)
		}
		q, err := m.Pack()
		require.NoError(t, err)
		got := parsed(t, s.handle(parse(q), client, true))
		assert.Equal(t, truncated, got.Truncated, size)
		assert.Equal(t, size > 0, got.IsEdns0() != nil, size)
	}
}

// TestBounds: a flood of questions for which there is no answer holds no more
// goroutines than the limits allow, and what it had is given back.
func TestBounds(t *testing.T) {
	silent := &upstreamRig{do: func(dns.ResponseWriter, *dns.Msg) {}}
	silent.start(t)
	l := small()
	l.queries, l.asking = 40, 20
	s, at := serving(t, l, silent.addr)
	conn, err := net.Dial("udp", at.String())
	require.NoError(t, err)
	defer conn.Close()
	before := runtime.NumGoroutine()
	most := 0
	for i := range 2000 {
		_, err := conn.Write(packetOf(t, fmt.Sprintf("n%d.example.", i), dns.TypeAAAA))
		require.NoError(t, err)
		assert.LessOrEqual(t, len(s.queries), l.queries)
		assert.LessOrEqual(t, len(s.asking), l.asking)
		most = max(most, runtime.NumGoroutine())
	}
	// Of each query its own, and of the scripted upstream one for each question.
	assert.LessOrEqual(t, most, before+l.queries+2*2*l.asking)
	assert.Positive(t, s.Status().Dropped)
	for range 1000 {
		if len(s.queries) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	assert.Empty(t, s.queries)
	assert.Empty(t, s.asking)
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	assert.Empty(t, s.cache.flights)
}

// TestMemory: whatever is asked, the cache keeps to its limits.
func TestMemory(t *testing.T) {
	u := &upstreamRig{do: func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = rrs(t, q.Question[0].Name+" 60 IN TXT \""+strings.Repeat("x", 250)+"\"")
		w.WriteMsg(m)
	}}
	u.start(t)
	l := small()
	l.entries, l.bytes = 50, 8000
	s := serverOf(t, l, u.addr)
	largest := 0
	for i := range 300 {
		name := fmt.Sprintf("n%d.example.", i)
		for range 2 { // the second time what clients are answered is kept, too
			assert.Len(t, get(t, s, name, dns.TypeTXT).Answer, 1)
		}
		entries, bytes := s.cache.usage()
		assert.LessOrEqual(t, entries, l.entries)
		assert.LessOrEqual(t, bytes, l.bytes)
		largest = max(largest, bytes)
	}
	assert.Greater(t, largest, l.bytes/2, "it does keep something")
	u.questions()
	get(t, s, "n299.example.", dns.TypeTXT)
	assert.Empty(t, u.questions(), "the latest is there")
	get(t, s, "n0.example.", dns.TypeTXT)
	assert.Len(t, u.questions(), 1, "the first is not")
}

// TestCoalescing: who asks the same at the same time waits for one question.
func TestCoalescing(t *testing.T) {
	u := scripted(t, "n.example. 0 IN A 192.0.2.1") // which is not kept
	release := make(chan struct{})
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		<-release
		answers()
	})
	s := serverOf(t, defaultLimits, u.addr)
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() { assert.Len(t, get(t, s, "n.example.", dns.TypeA).Answer, 1) })
	}
	for range 1000 {
		u.mu.Lock()
		n := len(u.asked)
		u.mu.Unlock()
		if n > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	asking.Wait()
	assert.Len(t, u.questions(), 1)
}
