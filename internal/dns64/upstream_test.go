package dns64

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bad starts an upstream that does one thing.
func bad(t *testing.T, do func(w dns.ResponseWriter, q *dns.Msg)) *upstreamRig {
	t.Helper()
	u := &upstreamRig{do: do}
	u.start(t)
	return u
}

func rcode(code int) func(w dns.ResponseWriter, q *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) }
}

// TestBadUpstream: with one that is of no use, the other's answer comes; alone
// it makes for a server failure, or for what it said.
func TestBadUpstream(t *testing.T) {
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	for name, c := range map[string]struct {
		do    func(w dns.ResponseWriter, q *dns.Msg) // nil: nobody is there
		alone int
	}{
		"nobody there": {nil, dns.RcodeServerFailure},
		"silent":       {func(dns.ResponseWriter, *dns.Msg) {}, dns.RcodeServerFailure},
		"failing":      {rcode(dns.RcodeServerFailure), dns.RcodeServerFailure},
		"refusing":     {rcode(dns.RcodeRefused), dns.RcodeRefused},
		"answers another question": {func(w dns.ResponseWriter, q *dns.Msg) {
			q.Question[0].Name = "bank.example."
			w.WriteMsg(new(dns.Msg).SetReply(q))
		}, dns.RcodeServerFailure},
		"answers with another ID": {func(w dns.ResponseWriter, q *dns.Msg) {
			q.Id++
			w.WriteMsg(new(dns.Msg).SetReply(q))
		}, dns.RcodeServerFailure},
		"echoes":  {func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(q) }, dns.RcodeServerFailure},
		"garbage": {func(w dns.ResponseWriter, q *dns.Msg) { w.Write([]byte(strings.Repeat("\xff", 40))) }, dns.RcodeServerFailure},
		"cut short": {func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			m.Answer = rrs(t, "four.example. 60 IN A 192.0.2.1")
			data, _ := m.Pack()
			w.Write(data[:len(data)-2])
		}, dns.RcodeServerFailure},
		"aliases in a circle": {func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			m.Answer = rrs(t, "four.example. 60 IN CNAME x.example.", "x.example. 60 IN CNAME four.example.")
			w.WriteMsg(m)
		}, dns.RcodeServerFailure},
		"truncated by UDP, and by TCP nothing": {func(w dns.ResponseWriter, q *dns.Msg) {
			if w.RemoteAddr().Network() == "udp" {
				m := new(dns.Msg).SetReply(q)
				m.Truncated = true
				w.WriteMsg(m)
			}
		}, dns.RcodeServerFailure},
		"truncated by UDP, and by TCP another ID": {func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			if m.Truncated = w.RemoteAddr().Network() == "udp"; !m.Truncated {
				m.Id++
			}
			w.WriteMsg(m)
		}, dns.RcodeServerFailure},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := closed
			if c.do != nil {
				addr = bad(t, c.do).addr
			}
			l := small()
			l.ask, l.query = 4*time.Second, 10*time.Second
			s := serverOf(t, l, addr, scripted(t, zone...).addr)
			assert.Len(t, get(t, s, "four.example.", dns.TypeA).Answer, 2)
			s = serverOf(t, small(), addr)
			m := get(t, s, "four.example.", dns.TypeA)
			assert.Equal(t, dns.RcodeToString[c.alone], dns.RcodeToString[m.Rcode])
			assert.Empty(t, m.Answer)
		})
	}
}

// TestForgery: what is not the answer is passed over, and the answer found.
func TestForgery(t *testing.T) {
	u := scripted(t, zone...)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		forged := new(dns.Msg).SetReply(q)
		forged.Answer = rrs(t, "four.example. 60 IN A 192.0.2.66")
		forged.Id++
		w.WriteMsg(forged)
		forged.Id--
		forged.Question = []dns.Question{{Name: "bank.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
		w.WriteMsg(forged)
		w.Write([]byte("x"))
		answers()
	})
	s := serverOf(t, small(), u.addr)
	assert.Equal(t, []string{"four.example. 60 IN A 192.0.2.4", "four.example. 60 IN A 192.0.2.5"}, lines(get(t, s, "four.example.", dns.TypeA).Answer))
}

// TestForgedCase: an answer that is right but for the case of letters may be a
// guess: the truth is asked for by TCP.
func TestForgedCase(t *testing.T) {
	u := scripted(t, zone...)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		if w.RemoteAddr().Network() == "udp" {
			q.Question[0].Name = swapped(q.Question[0].Name)
			forged := new(dns.Msg).SetReply(q)
			forged.Answer = rrs(t, "four.example. 60 IN A 192.0.2.66")
			w.WriteMsg(forged)
			return
		}
		answers()
	})
	s := serverOf(t, small(), u.addr)
	assert.Equal(t, []string{"four.example. 60 IN A 192.0.2.4", "four.example. 60 IN A 192.0.2.5"}, lines(get(t, s, "four.example.", dns.TypeA).Answer))
	assert.False(t, s.Status().Upstreams[0].Plain, "it is not the upstream's doing")
}

// swapped is a name in the other case.
func swapped(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' {
			return r - 'a' + 'A'
		} else if r >= 'A' {
			return r - 'A' + 'a'
		}
		return r
	}, name)
}

// TestPlainUpstream: one that loses the case of letters is asked by TCP once, and
// then in lower case; and one without TCP still is of use.
func TestPlainUpstream(t *testing.T) {
	for _, tcp := range []bool{true, false} {
		u := scripted(t, zone...)
		u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
			q.Question[0].Name = strings.ToLower(q.Question[0].Name)
			if w.RemoteAddr().Network() == "tcp" && !tcp {
				w.Close()
				return
			}
			answers()
		})
		s := serverOf(t, small(), u.addr)
		for _, name := range []string{"four.example.", "both.example.", "long.example."} {
			assert.NotEmpty(t, get(t, s, name, dns.TypeA).Answer, name)
		}
		assert.True(t, s.Status().Upstreams[0].Plain)
		assert.Equal(t, []string{"udp both.example. A", "udp long.example. A"}, u.questions()[map[bool]int{true: 2, false: 3}[tcp]:])
	}
}

// TestMixedCase: names are asked for in a case that nobody can foretell, and
// nothing of that reaches clients.
func TestMixedCase(t *testing.T) {
	seen := map[string]bool{}
	u := scripted(t, zone...)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		u.mu.Lock()
		seen[q.Question[0].Name] = true
		u.mu.Unlock()
		m := fromZone(rrs(t, zone...), q)
		m.Compress = true // names in the answer are those of the question
		if len(m.Answer) > 0 {
			m.Answer[0].Header().Name = q.Question[0].Name
		}
		w.WriteMsg(m)
	})
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		if !strings.HasSuffix(strings.ToLower(q.Question[0].Name), ".tree.example.") {
			answers()
			return
		}
		m := new(dns.Msg).SetReply(q)
		target := q.Question[0].Name[:len("www.")] + "example.net."
		m.Answer = append(rrs(t, "tree.example. 60 IN DNAME example.net."),
			&dns.CNAME{Hdr: header(q.Question[0].Name, dns.TypeCNAME, 60), Target: target},
			&dns.A{Hdr: header(target, dns.TypeA, 60), A: net.IPv4(192, 0, 2, 1)})
		w.WriteMsg(m)
	})
	for range 50 {
		s := serverOf(t, small(), u.addr)
		assert.Equal(t, []string{"tree.example. 60 IN DNAME example.net.", "www.tree.example. 60 IN CNAME www.example.net.", "www.example.net. 60 IN A 192.0.2.1"},
			lines(get(t, s, "www.tree.example.", dns.TypeA).Answer))
		assert.Equal(t, "alias.example. 30 IN CNAME two.example.", lines(get(t, s, "alias.example.", dns.TypeA).Answer)[0])
		assert.Equal(t, []string{soa}, lines(get(t, s, "alias.missing.example.", dns.TypeA).Ns))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	assert.Greater(t, len(seen), 90)
}

// TestSlow: an answer that comes after the first try is over still is one, and
// the upstream goes on being asked.
func TestSlow(t *testing.T) {
	u := scripted(t, zone...)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		time.Sleep(firstTry + 200*time.Millisecond)
		answers()
	})
	l := small()
	l.ask, l.query = 3*time.Second, 7*time.Second
	s := serverOf(t, l, u.addr)
	assert.Len(t, get(t, s, "four.example.", dns.TypeA).Answer, 2)
	assert.False(t, s.Status().Upstreams[0].Failing)
}

func TestTruncated(t *testing.T) {
	u := scripted(t, zone...)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		if w.RemoteAddr().Network() == "tcp" {
			answers()
			return
		}
		m := new(dns.Msg).SetReply(q)
		m.Truncated = true
		data, _ := m.Pack()
		data[7] = 9 // answers that are not there
		w.Write(data)
	})
	s := serverOf(t, small(), u.addr)
	assert.Len(t, get(t, s, "four.example.", dns.TypeA).Answer, 2)
	assert.Equal(t, []string{"udp four.example. A", "tcp four.example. A"}, u.questions())
}

// TestBeforeEDNS: an upstream that does not know EDNS is asked without.
func TestBeforeEDNS(t *testing.T) {
	u := scripted(t, zone...)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		if q.IsEdns0() != nil {
			w.WriteMsg(new(dns.Msg).SetRcodeFormatError(q))
			return
		}
		answers()
	})
	s := serverOf(t, small(), u.addr)
	assert.Len(t, get(t, s, "four.example.", dns.TypeA).Answer, 2)
}

// TestRandomness: ports and IDs differ from question to question.
func TestRandomness(t *testing.T) {
	ports, ids := map[string]bool{}, map[uint16]bool{}
	u := scripted(t)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		u.mu.Lock()
		ports[w.RemoteAddr().String()], ids[q.Id] = true, true
		u.mu.Unlock()
		answers()
	})
	s := serverOf(t, small(), u.addr)
	for i := range 50 {
		get(t, s, strings.Repeat("a", i+1)+".nosoa.", dns.TypeA)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	assert.Greater(t, len(ports), 25)
	assert.Greater(t, len(ids), 40)
}

// TestBits: DO and CD reach the upstream, and answers to who sets them are kept
// apart from others.
func TestBits(t *testing.T) {
	var seen []string
	u := scripted(t, zone...)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		bits := ""
		if q.IsEdns0().Do() {
			bits += "do "
		}
		if q.CheckingDisabled {
			bits += "cd "
		}
		u.mu.Lock()
		seen = append(seen, bits)
		u.mu.Unlock()
		answers()
	})
	s := serverOf(t, small(), u.addr)
	for range 2 {
		get(t, s, "four.example.", dns.TypeA)
		get(t, s, "four.example.", dns.TypeA, "do")
		get(t, s, "four.example.", dns.TypeA, "cd")
		get(t, s, "four.example.", dns.TypeA, "do", "cd")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	assert.Equal(t, []string{"", "do ", "cd ", "do cd "}, seen)
}

// TestRest: an upstream that failed is asked after the others, the longer the
// more often it failed, and then by one question first.
func TestRest(t *testing.T) {
	u := &upstreams{}
	first, second := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")
	u.set([]netip.AddrPort{first, second}, nil)
	now := time.Unix(1000, 0)
	order := func() (list []netip.AddrPort) {
		for _, o := range u.order(now) {
			list = append(list, o.addr)
		}
		return list
	}
	assert.Equal(t, []netip.AddrPort{first, second}, order())
	for _, rest := range []time.Duration{firstRest, 2 * firstRest, 4 * firstRest, 8 * firstRest, 16 * firstRest, 32 * firstRest, longRest, longRest} {
		u.failed(u.list[0], now)
		assert.Equal(t, []netip.AddrPort{second, first}, order())
		now = now.Add(rest - 1)
		assert.Equal(t, []netip.AddrPort{second, first}, order())
		now = now.Add(1)
		assert.Equal(t, []netip.AddrPort{first, second}, order(), "one tries it")
		assert.Equal(t, []netip.AddrPort{second, first}, order(), "the others do not")
	}
	u.answered(u.list[0])
	assert.Equal(t, []netip.AddrPort{first, second}, order())
	assert.Equal(t, []netip.AddrPort{first, second}, order())
}

// TestResolvConf: the host's resolvers are followed, without the server itself.
func TestResolvConf(t *testing.T) {
	file := conf(t, "# of the host\nnameserver 192.0.2.1\nnameserver 2001:db8::53\nnameserver fd00::1\nnameserver fe80::1%eth0\nsearch example.com\n")
	u := &upstreams{file: file, self: []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:53")}}
	now := time.Now()
	order := func() (list []string) {
		for _, o := range u.order(now) {
			list = append(list, o.addr.String())
		}
		return list
	}
	assert.Equal(t, []string{"192.0.2.1:53", "[2001:db8::53]:53"}, order(), "three are read, and one is the server itself")
	u.failed(u.list[0], now.Add(-time.Minute))

	write := func(text string) {
		require.NoError(t, os.WriteFile(file+".new", []byte(text), 0o600))
		require.NoError(t, os.Rename(file+".new", file))
		now = now.Add(lookAgain)
	}
	write("nameserver 127.0.0.53\nnameserver 192.0.2.1\n")
	assert.Equal(t, []string{"127.0.0.53:53", "192.0.2.1:53"}, order())
	assert.Equal(t, 1, u.list[1].failures, "what is known of those that stay is kept")

	require.NoError(t, os.Remove(file))
	now = now.Add(lookAgain)
	assert.Equal(t, []string{"127.0.0.53:53"}, order()[:1], "while it is away those before are asked")
	assert.Contains(t, u.problem, "resolv.conf")
	write("nameserver fd00::1\n")
	assert.Empty(t, order())
	assert.Empty(t, u.problem)

	s := serverOf(t, small())
	s.upstreams.file = file
	s.upstreams.self = u.self
	assert.Equal(t, dns.RcodeServerFailure, get(t, s, "four.example.", dns.TypeA).Rcode)
	assert.Equal(t, "there is no upstream to ask: "+file+" names none but this server itself: set dns64.upstreams", s.Status().Problem)

	u.set([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:53")}, nil)
	now = now.Add(lookAgain)
	assert.Equal(t, []string{"192.0.2.9:53"}, order(), "those of the configuration come before")
}
