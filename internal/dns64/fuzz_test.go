package dns64

import (
	"bytes"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzQuery: whatever a client or a stranger sends, the answer is well-formed,
// about that query and within the limits, and the same when it is given again.
func FuzzQuery(f *testing.F) {
	for _, words := range [][]string{nil, {"noedns"}, {"do"}, {"do", "cd"}} {
		f.Add(packetOf(f, "four.example.", dns.TypeAAAA, words...))
		f.Add(packetOf(f, arpa(f, "2001:db8:64::c000:201"), dns.TypePTR, words...))
		f.Add(packetOf(f, "ipv4only.arpa.", dns.TypeAAAA, words...))
	}
	s, _ := frozen(f)
	g, room := new(glance), make([]byte, maxUDP)
	f.Fuzz(func(t *testing.T, data []byte) {
		s.handle(parse(data), client, true)
		if again := s.again(room, g, data); again != nil {
			if answer := s.handle(parse(data), client, true); !bytes.Equal(again, answer) {
				t.Fatalf("%x is answered by %x, before by %x", data, again, answer)
			}
		}
		for _, udp := range []bool{true, false} {
			answer := s.handle(parse(data), client, udp)
			if answer == nil {
				continue
			}
			m := parsed(t, answer)
			if m.Id != uint16(data[0])<<8|uint16(data[1]) || !m.Response {
				t.Fatalf("%x is no answer to %x", answer, data)
			}
			if udp && len(answer) > maxUDP {
				t.Fatalf("%d bytes", len(answer))
			}
		}
		if answer := s.handle(parse(data), foreign, true); len(answer) > len(data) {
			t.Fatalf("%x is told a stranger who sent %x", answer, data)
		}
	})
}

// FuzzAnswer: whatever an upstream answers, clients get well-formed answers
// without records that were not asked for, also from the cache.
func FuzzAnswer(f *testing.F) {
	add := func(qtype uint16, answer ...string) {
		m := new(dns.Msg)
		m.SetQuestion("n.example.", qtype)
		m.Id, m.Response = 0, true
		m.Answer = rrs(f, answer...)
		m.Ns = rrs(f, soa)
		data, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, qtype)
	}
	add(dns.TypeA, "n.example. 60 IN A 192.0.2.1")
	add(dns.TypeAAAA)
	add(dns.TypeAAAA, "n.example. 60 IN AAAA ::ffff:192.0.2.1", "n.example. 60 IN AAAA 2001:db8::1")
	add(dns.TypeA, "n.example. 60 IN CNAME m.example.", "m.example. 60 IN A 192.0.2.1", "n.example."+signature+"CNAME 8 2 60 20300101000000 20200101000000 1 example. AAAA")
	add(dns.TypeA, "example. 60 IN DNAME example.net.", "n.example. 60 IN CNAME n.example.net.", "n.example.net. 60 IN A 10.0.0.1")
	add(dns.TypeTXT, "n.example. 60 IN TXT \"x\"")
	s := serverOf(f, small())
	s.upstreams.file = "/nonexistent/resolv.conf"
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	f.Fuzz(func(t *testing.T, data []byte, qtype uint16) {
		asked := new(dns.Msg)
		asked.SetQuestion("n.example.", qtype)
		asked.Id = 0
		m := new(dns.Msg)
		if m.Unpack(data) != nil || !answers(asked, m) {
			return
		}
		q := question{name: "n.example.", qtype: qtype}
		if vet(q, m) != nil {
			return
		}
		for _, rr := range m.Answer {
			if rrtype := rr.Header().Rrtype; qtype == dns.TypeA && rrtype != dns.TypeA && rrtype != dns.TypeCNAME && rrtype != dns.TypeDNAME {
				t.Fatalf("%v in an answer about A", rr)
			}
		}
		life := lifetime(m)
		if life < 0 || life > maxTTL*time.Second {
			t.Fatalf("kept for %v", life)
		}
		packed, err := m.Pack()
		if err != nil {
			return
		}
		s.cache.clear()
		e, flight, _ := s.cache.get(q, now)
		if e != nil {
			t.Fatal("the cache has what nobody asked for")
		}
		flight.packed = packed
		s.cache.land(q, flight, time.Minute, now)
		for _, qtype := range []uint16{qtype, dns.TypeAAAA} {
			query := packetOf(t, "n.example.", qtype, "noedns")
			first := s.handle(parse(query), client, true)
			if again := s.again(make([]byte, maxUDP), new(glance), query); again != nil && !bytes.Equal(first, again) {
				t.Fatalf("%x, then %x", first, again)
			}
			answer := parsed(t, first)
			for _, rr := range answer.Answer {
				if rr.Header().Ttl > maxTTL {
					t.Fatalf("%v is kept for ever", rr)
				}
			}
		}
	})
}
