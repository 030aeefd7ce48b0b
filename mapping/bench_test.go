package mapping

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/natless/natless/translate"
)

// BenchmarkResolve resolves the flow of a TCP packet in either direction,
// among so many mappings, from one client, from 1,000 of them and from all at
// random. A mapping is an explicit one, or for "lease" a lent address.
func BenchmarkResolve(b *testing.B) {
	for _, maps := range []int{1, 1000, 1000000} {
		x, clients := manyMaps(b, maps)
		benchmarkFlows(b, fmt.Sprintf("maps=%d", maps), x, clients)
	}
	x, clients := manyLeases(b, 1000)
	benchmarkFlows(b, "leases=1000", x, clients)
}

func benchmarkFlows(b *testing.B, name string, x *Table, clients []netip.Addr) {
	server := x.pref64.Embed(addr("203.0.113.80"))
	for _, active := range slices.Compact([]int{1, min(1000, len(clients)), len(clients)}) {
		out := make([]translate.Flow, active)
		back := make([]translate.Flow, active)
		for i, j := range rand.New(rand.NewPCG(1, 2)).Perm(len(clients))[:active] {
			out[i] = translate.Flow{Src: clients[j], Dst: server, SrcPort: 4000, DstPort: 443, Proto: 6}
			f, v := x.Resolve(out[i], 1)
			if v != translate.OK {
				b.Fatal(v)
			}
			back[i] = f.Reversed()
		}
		for _, way := range []struct {
			name  string
			flows []translate.Flow
		}{{"6to4", out}, {"4to6", back}} {
			b.Run(fmt.Sprintf("%s/active=%d/%s", name, active, way.name), func(b *testing.B) {
				b.ReportAllocs()
				var f translate.Flow
				for i := 0; b.Loop(); {
					f = way.flows[i]
					if v := x.ResolveIn(&f, 1); v != translate.OK {
						b.Fatal(v)
					}
					if i++; i == active {
						i = 0
					}
				}
			})
		}
	}
}

// BenchmarkCopy is the yardstick of BenchmarkResolve: a flow by value through a
// call that does nothing, and the copy that BenchmarkResolve makes itself.
func BenchmarkCopy(b *testing.B) {
	in := flow("192.0.2.1", "11.0.0.0")
	b.Run("call", func(b *testing.B) {
		for b.Loop() {
			if f, v := nothing(in); v != translate.OK {
				b.Fatal(f, v)
			}
		}
	})
	b.Run("assign", func(b *testing.B) {
		var f translate.Flow
		for b.Loop() {
			f = in
			f.Proto++
		}
	})
}

//go:noinline
func nothing(f translate.Flow) (translate.Flow, translate.Verdict) {
	f.Proto++
	return f, translate.OK
}

// BenchmarkLease is a first packet and its lease's end, among a million
// mappings.
func BenchmarkLease(b *testing.B) {
	for _, maps := range []int{1, 1000000} {
		b.Run(fmt.Sprintf("maps=%d", maps), func(b *testing.B) {
			x, _ := manyMaps(b, maps)
			f := translate.Flow{Src: addr("2001:db8:c::5"), Dst: x.pref64.Embed(addr("203.0.113.80")), Proto: 6}
			tick := uint32(1)
			for b.Loop() {
				if _, v := x.Resolve(f, tick); v != translate.OK {
					b.Fatal(v)
				}
				tick += 2
				x.Expire(tick)
			}
		})
	}
}

func benchConfig() Config {
	return Config{
		Pref64:  pfx("64:ff9b::/96"),
		Pools:   []Pool{{IPv4: pfx("169.254.64.0/20"), Clients: []netip.Prefix{pfx("2001:db8:c::/48")}, Idle: 1}},
		OwnIPv4: addr("169.254.64.1"), OwnIPv6: addr("fd00::1"),
		Hairpin: true,
	}
}

// manyMaps maps n addresses to as many of clients scattered over n/16 networks.
func manyMaps(b *testing.B, n int) (*Table, []netip.Addr) {
	c := benchConfig()
	clients := make([]netip.Addr, n)
	for i := range n {
		clients[i] = addr6(0x2001_0db8_1000_0000+uint64(i/16), rand.Uint64()|1<<63)
		c.Maps = append(c.Maps, Map{IPv4: netip.PrefixFrom(addr4(0x0b00_0000+uint32(i)), 32), IPv6: netip.PrefixFrom(clients[i], 128)})
	}
	x, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	return x, clients
}

func manyLeases(b *testing.B, n int) (*Table, []netip.Addr) {
	x, err := New(benchConfig())
	if err != nil {
		b.Fatal(err)
	}
	clients := make([]netip.Addr, n)
	for i := range n {
		clients[i] = addr6(0x2001_0db8_000c_0000, rand.Uint64())
	}
	return x, clients
}
