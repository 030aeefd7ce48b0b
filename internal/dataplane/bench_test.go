package dataplane

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// nowhere is a queue that takes everything.
type nowhere struct{ tun.Queue }

func (nowhere) Write([]byte, int, int, tun.Header) error { return nil }

// BenchmarkHandle is what a packet costs between reading and writing, with a
// table of one mapping.
func BenchmarkHandle(b *testing.B) {
	table, err := mapping.New(mapping.Config{
		Pref64:  netip.MustParsePrefix("64:ff9b::/96"),
		Maps:    []mapping.Map{{IPv4: netip.MustParsePrefix("192.0.2.1/32"), IPv6: netip.MustParsePrefix("2001:db8::1/128")}},
		OwnIPv4: netip.MustParseAddr("192.0.2.254"), OwnIPv6: netip.MustParseAddr("2001:db8::ffff"),
	})
	require.NoError(b, err)
	for _, way := range []struct{ name, src, dst string }{
		{"6to4", "2001:db8::1", "64:ff9b::c633:6401"},
		{"4to6", "198.51.100.1", "192.0.2.1"},
	} {
		packet := tcp(way.src, way.dst, 1500)
		b.Run(way.name+"/tcp1500", func(b *testing.B) {
			p := New(Config{Queues: []tun.Queue{nowhere{}}, Resolver: table, Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1520}})
			w := p.workers[0]
			b.ReportAllocs()
			for b.Loop() {
				copy(w.translator.packet.Buf[headroom:], packet)
				w.handle(len(packet), tun.Header{})
			}
			require.Equal(b, uint64(b.N), p.Counters().Verdicts[translate.OK])
		})
	}
}
