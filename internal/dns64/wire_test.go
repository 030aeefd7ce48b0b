package dns64

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// moving is a table that changes.
type moving struct {
	table
	to netip.Addr // where 192.0.2.4 is reached; not valid: nowhere
}

func (m *moving) Reach(v4 netip.Addr) (netip.Addr, bool) {
	if v4 == netip.MustParseAddr("192.0.2.4") {
		return m.to, m.to.IsValid()
	}
	return m.table.Reach(v4)
}

// frozen is a server whose clock stands still, with all that TestAgain asks
// about in its cache.
func frozen(t testing.TB) (s *Server, now *time.Time) {
	s = serverOf(t, small()) // which asks nobody
	s.upstreams.file = "/nonexistent/resolv.conf"
	at := time.Unix(1000, 0)
	s.now = func() time.Time { return at }
	for _, do := range []bool{false, true} {
		put(t, s, question{name: "four.example.", qtype: dns.TypeAAAA, do: do}, soa)
		put(t, s, question{name: "four.example.", qtype: dns.TypeA, do: do}, "", "four.example. 3600 IN A 192.0.2.4", "four.example. 100 IN A 192.0.2.5")
		put(t, s, question{name: "big.example.", qtype: dns.TypeTXT, do: do}, "", large("big.example.", 1000)...)
	}
	put(t, s, question{name: "alias.example.", qtype: dns.TypeAAAA}, "")
	put(t, s, question{name: "alias.example.", qtype: dns.TypeA}, "", "alias.example. 3600 IN CNAME x.example.", "x.example. 3600 IN A 192.0.2.6")
	put(t, s, question{name: "none.example.", qtype: dns.TypeAAAA, cd: true}, soa)
	put(t, s, question{name: "none.example.", qtype: dns.TypeA, cd: true}, soa)
	return s, &at
}

// TestAgain: the second answer is that of a server which takes everything to
// pieces, at whatever age.
func TestAgain(t *testing.T) {
	g, room := new(glance), make([]byte, maxUDP)
	for _, ask := range []string{
		"four.example. AAAA", "four.example. AAAA noedns", "four.example. AAAA do", "FOUR.Example. AAAA", "four.example. A",
		"big.example. TXT", "big.example. TXT do", "big.example. TXT noedns", "alias.example. AAAA", "none.example. AAAA cd", "none.example. A cd",
	} {
		s, now := frozen(t)
		whole, then := frozen(t)
		words := strings.Fields(ask)
		q := packetOf(t, words[0], dns.StringToType[words[1]], words[2:]...)
		assert.Nil(t, s.again(room, g, q), "%s: nobody has asked yet", ask)
		_, before := s.cache.usage()
		first := s.handle(parse(q), client, false)
		_, after := s.cache.usage()
		assert.GreaterOrEqual(t, after, before+len(first)-optSize, "%s: it counts", ask)
		for _, age := range []time.Duration{0, 1, 99, 101, 599, 601, 899, 901} {
			*now = now.Add(age * time.Second)
			*then = *now
			again := s.again(room, g, q)
			require.NotNil(t, again, ask)
			assert.Equal(t, whole.handle(parse(q), client, true), again, "%s at %d s", ask, age)
			assert.Equal(t, words[0], parsed(t, again).Question[0].Name)
			assert.Contains(t, []int{dns.RcodeSuccess, dns.RcodeNameError}, parsed(t, again).Rcode, ask)
		}
		assert.Zero(t, testing.AllocsPerRun(100, func() { s.again(room, g, q) }), "%s: garbage", ask)
		*now = now.Add(2 * time.Hour)
		assert.Nil(t, s.again(room, g, q), "%s: when it is not kept any more", ask)
	}
}

// TestAgainTTL has the TTLs that synthesised records tell in time: what is left
// of the A record and of the SOA, and not more than its minimum, or than 600.
func TestAgainTTL(t *testing.T) {
	s, now := frozen(t)
	start := *now
	g, room := new(glance), make([]byte, maxUDP)
	for name, want := range map[string]map[int][]uint32{
		"four.example.":  {0: {300, 100}, 50: {300, 50}, 200: {300, 0}, 700: {200, 0}, 1000: {0, 0}},
		"alias.example.": {0: {3600, 600}, 1000: {2600, 600}, 3100: {500, 500}},
	} {
		q := packetOf(t, name, dns.TypeAAAA)
		s.handle(parse(q), client, true)
		for age, want := range want {
			*now = start.Add(time.Duration(age) * time.Second)
			var got []uint32
			for _, rr := range parsed(t, s.again(room, g, q)).Answer {
				got = append(got, rr.Header().Ttl)
			}
			assert.Equal(t, want, got, "%s at %d s", name, age)
		}
		*now = start
	}
}

// TestAgainReach: what is synthesised is kept for as long as the table says the
// same.
func TestAgainReach(t *testing.T) {
	s, _ := frozen(t)
	m := &moving{to: mapped6}
	s.table = m
	g, room := new(glance), make([]byte, maxUDP)
	q := packetOf(t, "four.example.", dns.TypeAAAA)
	for _, to := range []string{"2001:db8:2::4", "2001:db8:2::5", "", "2001:db8:2::4"} {
		m.to, _ = netip.ParseAddr(to)
		assert.Nil(t, s.again(room, g, q), "to %s", to)
		answer := s.handle(parse(q), client, true)
		assert.Equal(t, to != "", strings.Contains(fmt.Sprint(parsed(t, answer)), "\t"+to+"\n"))
		assert.Equal(t, answer, s.again(room, g, q))
	}
}

// TestPlain: what is not plain is left to who reads all of it.
func TestPlain(t *testing.T) {
	plain := packetOf(t, "four.example.", dns.TypeAAAA)
	at := len(plain) - optSize
	g := new(glance)
	require.True(t, g.read(plain))
	for name, change := range map[string]func(p []byte) []byte{
		"an answer":         func(p []byte) []byte { p[2] |= flagQR; return p },
		"without recursion": func(p []byte) []byte { p[2] &^= flagRD; return p },
		"another opcode":    func(p []byte) []byte { p[2] |= 4 << 3; return p },
		"a code":            func(p []byte) []byte { p[3] |= 1; return p },
		"two questions":     func(p []byte) []byte { p[5] = 2; return p },
		"an answer in it":   func(p []byte) []byte { p[7] = 1; return p },
		"an authority":      func(p []byte) []byte { p[9] = 1; return p },
		"two OPT":           func(p []byte) []byte { p[11] = 2; return append(p, p[at:]...) },
		"OPT not counted":   func(p []byte) []byte { p[11] = 0; return p },
		"no OPT":            func(p []byte) []byte { return p[:at] },
		"more behind it":    func(p []byte) []byte { return append(p, 0) },
		"another class":     func(p []byte) []byte { p[at-1] = 3; return p },
		"an odd letter":     func(p []byte) []byte { p[headerSize+1] = '.'; return p },
		"a long label":      func(p []byte) []byte { p[headerSize] = 64; return p },
		"a pointer":         func(p []byte) []byte { p[headerSize] = 0xc0; return p },
		"another record":    func(p []byte) []byte { p[at+2] = byte(dns.TypeA); return p },
		"OPT of a name":     func(p []byte) []byte { p[at] = 1; return p },
		"a later EDNS":      func(p []byte) []byte { p[at+6] = 1; return p },
		"an option":         func(p []byte) []byte { p[at+10] = 4; return append(p, 0, 10, 0, 0) },
	} {
		assert.False(t, g.read(change(append([]byte{}, plain...))), name)
	}
	for n := range plain {
		assert.False(t, g.read(plain[:n]), n)
	}
	long := packetOf(t, strings.Repeat(strings.Repeat("x", 62)+".", 4), dns.TypeA) // 253 bytes on the wire
	assert.True(t, g.read(long))
}
