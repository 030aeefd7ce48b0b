package dns64

import (
	"testing"

	"github.com/miekg/dns"
)

// BenchmarkHandle answers from the cache: first what is synthesised, then what
// was kept of that.
func BenchmarkHandle(b *testing.B) {
	s := serverOf(b, small())
	put(b, s, question{name: "four.example.", qtype: dns.TypeAAAA}, soa)
	put(b, s, question{name: "four.example.", qtype: dns.TypeA}, "", "four.example. 3600 IN A 192.0.2.4")
	packet := packetOf(b, "four.example.", dns.TypeAAAA)
	b.Run("made", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if s.handle(parse(packet), client, true) == nil {
				b.Fatal("no answer")
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		g, answer := new(glance), make([]byte, maxUDP)
		b.ReportAllocs()
		for b.Loop() {
			if s.again(answer, g, packet) == nil {
				b.Fatal("no answer")
			}
		}
	})
}
