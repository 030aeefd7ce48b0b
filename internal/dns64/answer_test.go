package dns64

import (
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const signature = " 60 IN RRSIG "

// zone is what the upstream of TestAnswer has. Names are told apart by what is
// special about them.
var zone = []string{
	"both.example. 60 IN A 192.0.2.1", "both.example. 60 IN AAAA 2001:db8::1",
	"six.example. 60 IN AAAA 2001:db8::6",
	"four.example. 60 IN A 192.0.2.4", "four.example. 60 IN A 192.0.2.5",
	"long.example. 3600 IN A 192.0.2.6",
	"long.nosoa.example. 3600 IN A 192.0.2.6",
	"short.nosoa.example. 60 IN A 192.0.2.6",
	"long.longsoa.example. 3600 IN A 192.0.2.6",
	"hostile.example. 60 IN AAAA 2001:db8:64::10.0.0.1", "hostile.example. 60 IN AAAA 2001:db8:64::192.0.2.1",
	"hostile.only.example. 60 IN AAAA 2001:db8:64::10.0.0.1",
	"mapped.example. 60 IN A 198.51.100.7",
	"private.example. 60 IN A 10.0.0.1",
	"partly.example. 60 IN A 10.0.0.1", "partly.example. 60 IN A 192.0.2.8",
	"excluded.example. 60 IN A 192.0.2.9", "excluded.example. 60 IN AAAA ::ffff:192.0.2.9",
	"somewhat.example. 60 IN A 192.0.2.10", "somewhat.example. 60 IN AAAA 2001:db8:bad::1", "somewhat.example. 60 IN AAAA 2001:db8::10",
	"somewhat.example." + signature + "AAAA 8 2 60 20300101000000 20200101000000 1 example. AAAA",
	"only.excluded.example. 60 IN AAAA 2001:db8:bad::2",
	"text.example. 60 IN TXT \"hello\"",
	"alias.example. 30 IN CNAME two.example.", "two.example. 50 IN CNAME four.example.",
	"alias6.example. 30 IN CNAME six.example.",
	"nowhere.example. 30 IN CNAME missing.example.",
	"textalias.example. 30 IN CNAME text.example.",
	"loop.example. 30 IN CNAME pool.example.", "pool.example. 30 IN CNAME loop.example.",
	"signed.example. 60 IN CNAME target.example.",
	"signed.example." + signature + "CNAME 8 2 60 20300101000000 20200101000000 1 example. AAAA",
	"target.example. 60 IN A 192.0.2.11",
	"target.example." + signature + "A 8 2 60 20300101000000 20200101000000 1 example. AAAA",
	"1.2.0.192.in-addr.arpa. 60 IN PTR both.example.",
	"7.100.51.198.in-addr.arpa. 60 IN PTR mapped.example.",
	"host.example. 60 IN PTR x.example.",
}

func arpa(t testing.TB, addr string) string {
	t.Helper()
	name, err := dns.ReverseAddr(addr)
	require.NoError(t, err)
	return name
}

// TestAnswer has the cases of RFC 6147 5 one by one.
func TestAnswer(t *testing.T) {
	u := scripted(t, append(zone, arpa(t, "2001:db8:d::1")+" 60 IN PTR native.example.")...)
	const negative = "example. 900 IN SOA ns.example. hostmaster.example. 1 3600 600 86400 300"
	ip := func(a string) string { return arpa(t, a) }
	for name, c := range map[string]struct {
		ask    string // name, type, and words of packetOf
		code   int
		answer []string
		ns     string
		asked  string // of the upstream, types
	}{
		"AAAA data is passed on, and A not asked for": {"both.example. AAAA", 0, []string{"both.example. 60 IN AAAA 2001:db8::1"}, "", "AAAA"},
		"AAAA only":                                        {"six.example. AAAA", 0, []string{"six.example. 60 IN AAAA 2001:db8::6"}, "", "AAAA"},
		"A only":                                           {"four.example. AAAA", 0, []string{"four.example. 60 IN AAAA 2001:db8:64::c000:204", "four.example. 60 IN AAAA 2001:db8:64::c000:205"}, "", "AAAA A"},
		"the TTL of the SOA is shorter":                    {"long.example. AAAA", 0, []string{"long.example. 300 IN AAAA 2001:db8:64::c000:206"}, "", "AAAA A"},
		"there is no SOA":                                  {"long.nosoa.example. AAAA", 0, []string{"long.nosoa.example. 600 IN AAAA 2001:db8:64::c000:206"}, "", "AAAA A"},
		"there is no SOA, and A is shorter":                {"short.nosoa.example. AAAA", 0, []string{"short.nosoa.example. 60 IN AAAA 2001:db8:64::c000:206"}, "", "AAAA A"},
		"the TTL of the SOA is longer":                     {"long.longsoa.example. AAAA", 0, []string{"long.longsoa.example. 3600 IN AAAA 2001:db8:64::c000:206"}, "", "AAAA A"},
		"AAAA of refused ones under pref64":                {"hostile.example. AAAA", 0, []string{"hostile.example. 60 IN AAAA 2001:db8:64::c000:201"}, "", "AAAA"},
		"nothing but such":                                 {"hostile.only.example. AAAA", 0, []string{}, negative, "AAAA A"},
		"a map has the address":                            {"mapped.example. AAAA", 0, []string{"mapped.example. 60 IN AAAA 2001:db8:2::7"}, "", "AAAA A"},
		"packets to the address are refused":               {"private.example. AAAA", 0, []string{}, negative, "AAAA A"},
		"packets to some of them are":                      {"partly.example. AAAA", 0, []string{"partly.example. 60 IN AAAA 2001:db8:64::c000:208"}, "", "AAAA A"},
		"all AAAA excluded":                                {"excluded.example. AAAA", 0, []string{"excluded.example. 60 IN AAAA 2001:db8:64::c000:209"}, "", "AAAA A"},
		"some AAAA excluded":                               {"somewhat.example. AAAA", 0, []string{"somewhat.example. 60 IN AAAA 2001:db8::10"}, "", "AAAA"},
		"with DO what signs excluded AAAA too is left out": {"somewhat.example. AAAA do", 0, []string{"somewhat.example. 60 IN AAAA 2001:db8::10"}, "", "AAAA"},
		"all AAAA excluded, and no A":                      {"only.excluded.example. AAAA", 0, []string{}, negative, "AAAA A"},
		"a name that is not there":                         {"missing.example. AAAA", 3, []string{}, negative, "AAAA"},
		"neither AAAA nor A":                               {"text.example. AAAA", 0, []string{}, negative, "AAAA A"},
		"aliases to A":                                     {"alias.example. AAAA", 0, []string{"alias.example. 30 IN CNAME two.example.", "two.example. 50 IN CNAME four.example.", "four.example. 60 IN AAAA 2001:db8:64::c000:204", "four.example. 60 IN AAAA 2001:db8:64::c000:205"}, "", "AAAA A"},
		"an alias to AAAA":                                 {"alias6.example. AAAA", 0, []string{"alias6.example. 30 IN CNAME six.example.", "six.example. 60 IN AAAA 2001:db8::6"}, "", "AAAA"},
		"an alias to nowhere":                              {"nowhere.example. AAAA", 3, []string{"nowhere.example. 30 IN CNAME missing.example."}, negative, "AAAA"},
		"an alias to neither":                              {"textalias.example. AAAA", 0, []string{"textalias.example. 30 IN CNAME text.example."}, negative, "AAAA A"},
		"aliases in a circle":                              {"loop.example. AAAA", 2, []string{}, "", "AAAA AAAA A A"},
		"with DO what signs A is left out":                 {"signed.example. AAAA do", 0, []string{"signed.example. 60 IN CNAME target.example.", "signed.example. 60 IN RRSIG CNAME 8 2 60 20300101000000 20200101000000 1 example. AAAA", "target.example. 60 IN AAAA 2001:db8:64::c000:20b"}, "", "AAAA A"},
		"CD without DO":                                    {"four.example. AAAA cd", 0, []string{"four.example. 60 IN AAAA 2001:db8:64::c000:204", "four.example. 60 IN AAAA 2001:db8:64::c000:205"}, "", "AAAA A"},
		"with DO and CD nothing is synthesised":            {"four.example. AAAA do cd", 0, []string{}, negative, "AAAA"},
		"with DO and CD nothing is excluded":               {"excluded.example. AAAA do cd", 0, []string{"excluded.example. 60 IN AAAA ::ffff:192.0.2.9"}, "", "AAAA"},
		"with DO and CD no PTR either":                     {ip("2001:db8:64::c000:201") + " PTR do cd", 3, []string{}, negative, "PTR"},
		"A":                                                {"four.example. A", 0, []string{"four.example. 60 IN A 192.0.2.4", "four.example. 60 IN A 192.0.2.5"}, "", "A"},
		"another type":                                     {"text.example. TXT", 0, []string{"text.example. 60 IN TXT \"hello\""}, "", "TXT"},
		"a name in other letters":                          {"FOUR.eXample. A", 0, []string{"FOUR.eXample. 60 IN A 192.0.2.4", "FOUR.eXample. 60 IN A 192.0.2.5"}, "", "A"},
		"CNAME itself":                                     {"loop.example. CNAME", 0, []string{"loop.example. 30 IN CNAME pool.example."}, "", "CNAME"},
		"PTR of what is under pref64":                      {ip("2001:db8:64::c000:201") + " PTR", 0, []string{ip("2001:db8:64::c000:201") + " 60 IN CNAME 1.2.0.192.in-addr.arpa.", "1.2.0.192.in-addr.arpa. 60 IN PTR both.example."}, "", "PTR"},
		"PTR of what nobody named":                         {ip("2001:db8:64::c000:202") + " PTR", 3, []string{}, negative, "PTR PTR"},
		"PTR of what is mapped":                            {ip("2001:db8:2::7") + " PTR", 0, []string{ip("2001:db8:2::7") + " 60 IN CNAME 7.100.51.198.in-addr.arpa.", "7.100.51.198.in-addr.arpa. 60 IN PTR mapped.example."}, "", "PTR PTR"},
		"PTR of others":                                    {ip("2001:db8:d::1") + " PTR", 0, []string{ip("2001:db8:d::1") + " 60 IN PTR native.example."}, "", "PTR"},
		"PTR of no address":                                {"host.example. PTR", 0, []string{"host.example. 60 IN PTR x.example."}, "", "PTR"},
		"PTR of half an address":                           {"1.0.ip6.arpa. PTR", 3, []string{}, negative, "PTR"},
		"ipv4only.arpa AAAA":                               {"ipv4only.arpa. AAAA", 0, []string{"ipv4only.arpa. 86400 IN AAAA 2001:db8:64::c000:aa", "ipv4only.arpa. 86400 IN AAAA 2001:db8:64::c000:ab"}, "", ""},
		"ipv4only.arpa AAAA, validated":                    {"ipv4only.arpa. AAAA do cd", 0, []string{"ipv4only.arpa. 86400 IN AAAA 2001:db8:64::c000:aa", "ipv4only.arpa. 86400 IN AAAA 2001:db8:64::c000:ab"}, "", ""},
		"ipv4only.arpa A":                                  {"IPv4Only.arpa. A", 0, []string{"IPv4Only.arpa. 86400 IN A 192.0.0.170", "IPv4Only.arpa. 86400 IN A 192.0.0.171"}, "", ""},
		"ipv4only.arpa TXT":                                {"ipv4only.arpa. TXT", 0, []string{}, "ipv4only.arpa. 86400 IN SOA ipv4only.arpa. nobody.invalid. 1 86400 86400 86400 86400", ""},
		"ipv4only.arpa NS":                                 {"ipv4only.arpa. NS", 0, []string{}, "ipv4only.arpa. 86400 IN SOA ipv4only.arpa. nobody.invalid. 1 86400 86400 86400 86400", ""},
		"ipv4only.arpa SOA":                                {"ipv4only.arpa. SOA", 0, []string{}, "ipv4only.arpa. 86400 IN SOA ipv4only.arpa. nobody.invalid. 1 86400 86400 86400 86400", ""},
		"ipv4only.arpa DS is of the zone above":            {"ipv4only.arpa. DS", 3, []string{}, negative, "DS"},
		"below ipv4only.arpa":                              {"x.ipv4only.arpa. A", 3, []string{}, "ipv4only.arpa. 86400 IN SOA ipv4only.arpa. nobody.invalid. 1 86400 86400 86400 86400", ""},
		"192.0.0.170 PTR is asked as any":                  {ip("192.0.0.170") + " PTR", 3, []string{}, negative, "PTR"},
		"PTR of an address of ipv4only.arpa":               {ip("2001:db8:64::c000:aa") + " PTR", 0, []string{ip("2001:db8:64::c000:aa") + " 600 IN CNAME 170.0.0.192.in-addr.arpa.", "170.0.0.192.in-addr.arpa. 86400 IN PTR ipv4only.arpa."}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := serverOf(t, small(), u.addr)
			u.questions()
			words := strings.Fields(c.ask)
			m := get(t, s, words[0], dns.StringToType[words[1]], words[2:]...)
			assert.Equal(t, dns.RcodeToString[c.code], dns.RcodeToString[m.Rcode])
			assert.Equal(t, c.answer, lines(m.Answer))
			ns := []string{}
			if c.ns != "" {
				ns = append(ns, c.ns)
			}
			assert.Equal(t, ns, lines(m.Ns))
			asked := u.questions()
			for i, q := range asked {
				asked[i] = q[strings.LastIndexByte(q, ' ')+1:]
			}
			assert.Equal(t, c.asked, strings.Join(asked, " "))
			assert.True(t, m.Response && m.RecursionAvailable && m.RecursionDesired && !m.Authoritative && !m.AuthenticatedData)
			assert.Equal(t, words[0], m.Question[0].Name, "as it was asked")
			assert.Equal(t, strings.Contains(c.ask, " do"), m.IsEdns0().Do())
			assert.Equal(t, strings.Contains(c.ask, " cd"), m.CheckingDisabled)
		})
	}
}

// TestErrorAboutAAAA: whatever goes wrong about AAAA, the A records are asked
// for (RFC 6147 5.1.2, 5.1.3); what goes wrong about A is an error.
func TestErrorAboutAAAA(t *testing.T) {
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError, -1} {
		u := scripted(t, zone...)
		var bad atomic.Uint32
		bad.Store(uint32(dns.TypeAAAA))
		u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
			switch {
			case uint32(q.Question[0].Qtype) != bad.Load():
				answers()
			case rcode >= 0:
				w.WriteMsg(new(dns.Msg).SetRcode(q, rcode))
			}
		})
		s := serverOf(t, small(), u.addr)
		m := get(t, s, "long.example.", dns.TypeAAAA)
		assert.Equal(t, []string{"long.example. 600 IN AAAA 2001:db8:64::c000:206"}, lines(m.Answer), dns.RcodeToString[rcode])

		m = get(t, s, "text.example.", dns.TypeAAAA)
		assert.Equal(t, dns.RcodeSuccess, m.Rcode, "neither")
		assert.Len(t, m.Ns, 1)

		bad.Store(uint32(dns.TypeA))
		s.cache.clear()
		m = get(t, s, "four.example.", dns.TypeAAAA)
		assert.NotEqual(t, dns.RcodeSuccess, m.Rcode)
		assert.Empty(t, m.Answer)
	}
}

// TestSections: authority and additional sections of a synthesised answer are
// those of the answer about A, and nothing in them is synthesised (RFC 6147
// 5.3.2, 5.4). AD is never set (5.5).
func TestSections(t *testing.T) {
	u := scripted(t)
	u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = rrs(t, "four.example. 60 IN A 192.0.2.4")
			m.Ns = rrs(t, "example. 60 IN NS ns.example.")
			m.Extra = rrs(t, "ns.example. 60 IN A 192.0.2.53")
			m.SetEdns0(1232, false)
		}
		m.AuthenticatedData = true
		w.WriteMsg(m)
	})
	s := serverOf(t, small(), u.addr)
	m := get(t, s, "four.example.", dns.TypeAAAA)
	assert.Equal(t, []string{"example. 60 IN NS ns.example."}, lines(m.Ns))
	assert.Equal(t, []string{"ns.example. 60 IN A 192.0.2.53"}, lines(m.Extra))
	assert.Nil(t, get(t, s, "four.example.", dns.TypeAAAA, "noedns").IsEdns0(), "no OPT for who sent none")
	assert.False(t, m.AuthenticatedData, "what is synthesised nobody has signed")
	assert.False(t, get(t, s, "four.example.", dns.TypeA).AuthenticatedData, "natless has not validated it")
}

// TestVet: what an upstream adds to its answer does not reach clients.
func TestVet(t *testing.T) {
	for name, c := range map[string]struct {
		qtype     uint16
		have, got []string
	}{
		"others' names": {dns.TypeA, []string{"www.example. 60 IN A 192.0.2.1", "bank.example. 60 IN A 192.0.2.66"}, []string{"www.example. 60 IN A 192.0.2.1"}},
		"other types":   {dns.TypeA, []string{"www.example. 60 IN A 192.0.2.1", "www.example. 60 IN TXT \"x\""}, []string{"www.example. 60 IN A 192.0.2.1"}},
		"another class": {dns.TypeA, []string{"www.example. 60 CH A 192.0.2.1"}, []string{}},
		"DNAME": {dns.TypeA, []string{"example. 60 IN DNAME example.net.", "www.example. 60 IN CNAME www.example.net.", "www.example.net. 60 IN A 192.0.2.1"},
			[]string{"example. 60 IN DNAME example.net.", "www.example. 60 IN CNAME www.example.net.", "www.example.net. 60 IN A 192.0.2.1"}},
		"a foreign DNAME":  {dns.TypeA, []string{"other. 60 IN DNAME example.net.", "www.example. 60 IN A 192.0.2.1"}, []string{"www.example. 60 IN A 192.0.2.1"}},
		"nobody asked":     {dns.TypeA, []string{"www.example. 60 IN A 192.0.2.1", "www.example." + signature + "A 8 2 60 20300101000000 20200101000000 1 example. AAAA"}, []string{"www.example. 60 IN A 192.0.2.1"}},
		"everything asked": {dns.TypeANY, []string{"www.example. 60 IN A 192.0.2.1", "www.example. 60 IN TXT \"x\""}, []string{"www.example. 60 IN A 192.0.2.1", "www.example. 60 IN TXT \"x\""}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &dns.Msg{Answer: rrs(t, c.have...)}
			require.NoError(t, vet(question{name: "www.example.", qtype: c.qtype}, m))
			assert.Equal(t, c.got, lines(m.Answer))
		})
	}

	var long []dns.RR
	for i := range maxChain + 1 {
		name := strings.Repeat("a", i+1) + ".example."
		long = append(long, &dns.CNAME{Hdr: header(name, dns.TypeCNAME, 60), Target: "a" + name})
	}
	q := question{name: "a.example.", qtype: dns.TypeA}
	assert.ErrorIs(t, vet(q, &dns.Msg{Answer: long}), errLoop)
	assert.NoError(t, vet(q, &dns.Msg{Answer: long[:maxChain]}))
}

// TestSynthesise: whether names that have AAAA records are answered by their A
// records.
func TestSynthesise(t *testing.T) {
	const native, made = "both.example. 60 IN AAAA 2001:db8::1", "both.example. 60 IN AAAA 2001:db8:64::c000:201"
	records := append(zone, "hidden.example. 60 IN A 10.0.0.1", "hidden.example. 60 IN AAAA 2001:db8::2", "old.example. 3600 IN A 192.0.2.1", "old.example. 3600 IN AAAA 2001:db8::3")
	for _, c := range []struct {
		mode string
		ipv6 bool // the host has it
		want string
	}{{Missing, false, native}, {Missing, true, native}, {All, false, made}, {All, true, made}, {Auto, true, native}, {Auto, false, made}} {
		u := scripted(t, records...)
		s := serverOf(t, small(), u.addr)
		s.ways.look = func(a netip.Addr) way {
			if a.Is6() && !c.ipv6 {
				return way{}
			}
			return way{links: []int{2}}
		}
		settings := *s.settings.Load()
		settings.Synthesise = c.mode
		s.set(settings)
		assert.Equal(t, []string{c.want}, lines(get(t, s, "both.example.", dns.TypeAAAA).Answer), "%+v", c)
		assert.Equal(t, map[bool]string{true: All, false: Missing}[c.want == made], s.Status().Synthesise)
		assert.Equal(t, []string{"six.example. 60 IN AAAA 2001:db8::6"}, lines(get(t, s, "six.example.", dns.TypeAAAA).Answer), "it has no other")
		assert.Equal(t, []string{"hidden.example. 60 IN AAAA 2001:db8::2"}, lines(get(t, s, "hidden.example.", dns.TypeAAAA).Answer), "its A leads nowhere")
		assert.Equal(t, []string{native}, lines(get(t, s, "both.example.", dns.TypeAAAA, "do", "cd").Answer), "who validates synthesises (RFC 6147 5.5)")
		x, err := s.Explain(t.Context(), "both.example", "AAAA")
		require.NoError(t, err)
		if c.want == made {
			require.Len(t, x.Left, 1)
			assert.Equal(t, mustAddr("2001:db8::1"), x.Left[0].Address)
			assert.Contains(t, x.Left[0].Why, "dns64.synthesise = \""+c.mode+"\"")
			assert.Equal(t, []string{"old.example. 600 IN AAAA 2001:db8:64::c000:201"}, lines(get(t, s, "old.example.", dns.TypeAAAA).Answer), "no SOA tells of a TTL (RFC 6147 5.1.7)")
		}
		u.script(func(w dns.ResponseWriter, q *dns.Msg, answers func()) {
			if q.Question[0].Qtype == dns.TypeA {
				w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
				return
			}
			answers()
		})
		s.cache.clear()
		assert.Equal(t, []string{native}, lines(get(t, s, "both.example.", dns.TypeAAAA).Answer), "what is wrong with A does not count where there is AAAA")
	}
}

// TestSynthesiseFollows: what is kept is not given any more when the host gets a
// way to the IPv6 Internet, or loses it.
func TestSynthesiseFollows(t *testing.T) {
	s := serverOf(t, small(), scripted(t, zone...).addr)
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	settings := *s.settings.Load()
	settings.Synthesise = Auto
	s.set(settings)
	g, room := new(glance), make([]byte, maxUDP)
	q := packetOf(t, "both.example.", dns.TypeAAAA)
	for _, ipv6 := range []bool{true, false, true} {
		s.ways.look = func(a netip.Addr) way {
			if a.Is6() && !ipv6 {
				return way{}
			}
			return way{links: []int{2}}
		}
		now = now.Add(waysLife)
		assert.Nil(t, s.again(room, g, q))
		s.handle(parse(q), client, true) // keeps beside what is in the cache
		s.handle(parse(q), client, true)
		again := s.again(room, g, q)
		require.NotNil(t, again)
		want := netip.MustParseAddr("2001:db8::1")
		if !ipv6 {
			want = netip.MustParseAddr("2001:db8:64::192.0.2.1")
		}
		assert.Equal(t, want.AsSlice(), []byte(parsed(t, again).Answer[0].(*dns.AAAA).AAAA))
	}
}

// TestOwnAddress: no name leads to an address of the host itself, also when it
// gets that later.
func TestOwnAddress(t *testing.T) {
	s := serverOf(t, small(), scripted(t, zone...).addr)
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	own := netip.MustParseAddr("192.0.2.4")
	has := false
	s.ways.look = func(a netip.Addr) way { return way{links: []int{2}, own: has && a == own} }
	g, room := new(glance), make([]byte, maxUDP)
	q := packetOf(t, "four.example.", dns.TypeAAAA)
	for _, has = range []bool{false, true, false} {
		now = now.Add(waysLife)
		assert.Nil(t, s.again(room, g, q))
		s.handle(parse(q), client, true)
		s.handle(parse(q), client, true)
		want := []string{"four.example. 60 IN AAAA 2001:db8:64::c000:205"}
		if !has {
			want = append([]string{"four.example. 60 IN AAAA 2001:db8:64::c000:204"}, want...)
		}
		var got []string
		for _, rr := range lines(parsed(t, s.again(room, g, q)).Answer) {
			got = append(got, regexp.MustCompile(` \d+ IN`).ReplaceAllString(rr, " 60 IN"))
		}
		assert.Equal(t, want, got)
		x, err := s.Explain(t.Context(), "four.example", "AAAA")
		require.NoError(t, err)
		if has {
			assert.Equal(t, []Left{{own, "an address of this host, whose services a name must not lead clients to"}}, x.Left)
		}
	}
}

func TestExplain(t *testing.T) {
	u := scripted(t, zone...)
	s := serverOf(t, small(), u.addr)
	x, err := s.Explain(t.Context(), "partly.example", "aaaa")
	require.NoError(t, err)
	from := "upstream " + u.addr.String()
	assert.Equal(t, Explanation{
		Name: "partly.example.", Type: "AAAA", Code: "NOERROR", From: []string{from, from}, Synthesised: true,
		Answers: []Record{{Name: "partly.example.", TTL: 60, Type: "AAAA", Data: "2001:db8:64::c000:208", IPv4: mustAddr("192.0.2.8"), Rule: "pref64", Detail: "behind pref64"}},
		Left:    []Left{{mustAddr("10.0.0.1"), "a private address"}},
		Steps:   []string{"partly.example. AAAA: asked " + from, "partly.example. A: asked " + from},
	}, x)

	x, err = s.Explain(t.Context(), "partly.example.", "A")
	require.NoError(t, err)
	assert.Equal(t, []string{"cache"}, x.From)
	assert.False(t, x.Synthesised)
	assert.Len(t, x.Answers, 2)

	x, err = s.Explain(t.Context(), "excluded.example.", "AAAA")
	require.NoError(t, err)
	assert.Equal(t, "excluded by ::ffff:0.0.0.0/96 (dns64.exclude; RFC 6147 5.1.4)", x.Left[0].Why)

	x, err = s.Explain(t.Context(), "ipv4only.arpa", "AAAA")
	require.NoError(t, err)
	assert.Equal(t, []string{"local"}, x.From)
	assert.True(t, x.Synthesised)

	x, err = s.Explain(t.Context(), arpa(t, "2001:db8:64::c000:201"), "PTR")
	require.NoError(t, err)
	assert.True(t, x.Synthesised)

	for _, bad := range [][2]string{{"", "A"}, {"x", "NONSENSE"}, {"x", "AXFR"}, {strings.Repeat("a", 64) + ".example", "A"}} {
		_, err := s.Explain(t.Context(), bad[0], bad[1])
		assert.Error(t, err, bad)
	}
}
