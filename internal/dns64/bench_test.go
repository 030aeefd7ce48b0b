package dns64

import (
	"testing"
	"time"

	"github.com/miekg/dns"
)

// BenchmarkHandle answers from the cache, which synthesises.
func BenchmarkHandle(b *testing.B) {
	s := serverOf(b, small())
	for qtype, records := range map[uint16][]string{dns.TypeAAAA: nil, dns.TypeA: {"four.example. 3600 IN A 192.0.2.4"}} {
		q := question{name: "four.example.", qtype: qtype}
		m := new(dns.Msg)
		m.SetQuestion(q.name, q.qtype)
		m.Answer = rrs(b, records...)
		if records == nil {
			m.Ns = rrs(b, soa)
		}
		_, f, _ := s.cache.get(q, s.now())
		f.packed, _ = m.Pack()
		s.cache.land(q, f, time.Hour, s.now())
	}
	packet := packetOf(b, "four.example.", dns.TypeAAAA)
	b.ReportAllocs()
	for b.Loop() {
		if s.handle(parse(packet), client, true) == nil {
			b.Fatal("no answer")
		}
	}
}
