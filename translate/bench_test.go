package translate

import (
	"encoding/binary"
	"testing"
)

// benchmarks are the packets that are measured, in both families.
func benchmarks() []pair {
	err6 := func(quote []byte) []byte { return sealed(ip6{next: 58}.around(icmpMessage(3, 0, 0, quote))) }
	err4 := func(quote []byte) []byte {
		return sealed(ip4{proto: 1}.around(icmpMessage(11, 0, 0, quote)))
	}
	tcp6 := func(n int) []byte { return sealed(ip6{next: 6}.around(tcp(4000, 80, 0x10, pattern(n)))) }
	tcp4 := func(n int) []byte { return sealed(ip4{proto: 6, flags: df}.around(tcp(4000, 80, 0x10, pattern(n)))) }
	quote6 := sealed(ip6{next: 17, src: server6, dst: client6}.around(udp(4000, 53, pattern(64))))
	quote4 := sealed(ip4{proto: 17, src: server4, dst: client4}.around(udp(4000, 53, pattern(64))))
	super := tcp(4000, 80, 0x10, pattern(65000))
	first := udp(4000, 53, pattern(1192))
	binary.BigEndian.PutUint16(first[6:], 0xbeef)
	return []pair{
		{name: "TCP-64", six: tcp6(4), four: tcp4(24)},
		{name: "TCP-1500", six: tcp6(1440), four: tcp4(1440)},
		{name: "TCP-super", six: partial(ip6{next: 6}.around(super)), four: partial(ip4{proto: 6, flags: df}.around(super)),
			o6: gso(GSOTCPv6, 1400, 60, 40, 16), o4: gso(GSOTCPv4, 1400, 40, 20, 16)},
		{name: "UDP-128", six: sealed(ip6{next: 17}.around(udp(4000, 53, pattern(80)))),
			four: sealed(ip4{proto: 17}.around(udp(4000, 53, pattern(100))))},
		{name: "echo-84", six: sealed(ip6{next: 58}.around(icmpMessage(128, 0, 1, pattern(36)))),
			four: sealed(ip4{proto: 1}.around(icmpMessage(8, 0, 1, pattern(56))))},
		{name: "ICMP-error", six: err6(quote6), four: err4(quote4)},
		{name: "first-fragment", six: ip6{next: 44}.around(fragHeader(17, 0, true, 7, first)),
			four: ip4{proto: 17, flags: mf}.around(first)},
	}
}

var sink int

// batch is how many buffers are filled before their packets are translated: a
// packet that was only just copied is still on its way to the cache, which a
// packet from a device is not.
const batch = 32

// fresh calls f with packets in fresh buffers. Of each packet the first 160
// bytes are copied, which is more than headers and quotes have.
func fresh(b *testing.B, in []byte, of Offload, f func(*Packet)) {
	p := &Packet{}
	var bufs [batch][]byte
	for i := range bufs {
		load(p, in, of)
		bufs[i], p.Buf = p.Buf, nil
	}
	head := in[:min(len(in), 160)]
	for n := 0; b.Loop(); n++ {
		if n%batch == 0 {
			for i := range bufs {
				copy(bufs[i][Headroom:], head)
			}
		}
		p.Buf, p.Off, p.Len, p.Offload = bufs[n%batch], Headroom, len(in), of
		f(p)
	}
}

// BenchmarkTranslate is parse and rewrite, of a packet in a fresh buffer.
func BenchmarkTranslate(b *testing.B) {
	each(b, func(b *testing.B, in []byte, of Offload) {
		o := testOptions
		p := &Packet{}
		load(p, in, of)
		p.Parse(&o)
		to, quoted := mapped(p.Flow), Flow{}
		if p.HasQuote() {
			quoted = mapped(p.Quoted)
		}
		fresh(b, in, of, func(p *Packet) {
			if p.Parse(&o) != OK || p.Rewrite(&o, to, quoted) != OK {
				b.Fatal(p.Flow)
			}
		})
	})
}

// BenchmarkFresh is what the fresh buffers cost in the others.
func BenchmarkFresh(b *testing.B) {
	each(b, func(b *testing.B, in []byte, of Offload) {
		fresh(b, in, of, func(*Packet) {})
	})
}

// BenchmarkCopy is a copy of the packet, to compare with.
func BenchmarkCopy(b *testing.B) {
	each(b, func(b *testing.B, in []byte, _ Offload) {
		dst := make([]byte, len(in))
		for b.Loop() {
			sink += copy(dst, in)
		}
	})
}

func each(b *testing.B, f func(*testing.B, []byte, Offload)) {
	for _, c := range benchmarks() {
		b.Run(c.name+"/6to4", func(b *testing.B) {
			b.SetBytes(int64(len(c.six)))
			b.ReportAllocs()
			f(b, c.six, c.o6)
		})
		b.Run(c.name+"/4to6", func(b *testing.B) {
			b.SetBytes(int64(len(c.four)))
			b.ReportAllocs()
			f(b, c.four, c.o4)
		})
	}
}
