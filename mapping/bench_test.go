package mapping

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
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
					if _, v := x.ResolveRanges(&f, 1); v != translate.OK {
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

// BenchmarkApply adds a map and removes it again, among so many, in changes of
// one and of a thousand.
func BenchmarkApply(b *testing.B) {
	for _, maps := range []int{1, 1000000} {
		x, _ := manyMaps(b, maps)
		for _, changes := range []int{1, 1000} {
			var adds, removes []Change
			for i := range changes {
				m := Map{IPv4: netip.PrefixFrom(addr4(0x0c00_0000+uint32(i)*797), 32), IPv6: netip.PrefixFrom(addr6(0x2001_0db8_2000_0000+uint64(i/16), rand.Uint64()), 128)}
				adds, removes = append(adds, Change{Add: &m}), append(removes, Change{Remove: m.IPv4})
			}
			b.Run(fmt.Sprintf("maps=%d/changes=%d", maps, changes), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					for _, c := range [][]Change{adds, removes} {
						if _, err := x.Apply(c, "me"); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

// BenchmarkMillion is what a million maps cost: to make a table of them, to
// make it anew of the same, to add them while it is in use, and to list them.
func BenchmarkMillion(b *testing.B) {
	const n = 1000000
	c, _ := manyConfig(n)
	b.Run("New", func(b *testing.B) {
		var before, after runtime.MemStats
		for b.Loop() {
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.StartTimer()
			x, err := New(c)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&after)
			runtime.KeepAlive(x)
			b.StartTimer()
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/map")
	})
	x, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Reload", func(b *testing.B) {
		for b.Loop() {
			if _, err := x.Reload(c, "me"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("MapsAt", func(b *testing.B) {
		for b.Loop() {
			count := 0
			_, maps := x.MapsAt()
			for range maps {
				count++
			}
			if count != n {
				b.Fatal(count)
			}
		}
	})
	var changes []Change
	for i := range c.Maps {
		changes = append(changes, Change{Add: &c.Maps[i]})
	}
	b.Run("Apply", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			x, err := New(benchConfig())
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if _, err := x.Apply(changes, "me"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("DefaultOwnIPv4", func(b *testing.B) {
		for b.Loop() {
			DefaultOwnIPv4([]Pool{{IPv4: pfx("11.0.0.0/8")}}, c.Maps)
		}
	})
}

// manyConfig maps n addresses to as many of clients scattered over n/16
// networks.
func manyConfig(n int) (Config, []netip.Addr) {
	c := benchConfig()
	clients := make([]netip.Addr, n)
	for i := range n {
		clients[i] = addr6(0x2001_0db8_1000_0000+uint64(i/16), rand.Uint64()|1<<63)
		c.Maps = append(c.Maps, Map{IPv4: netip.PrefixFrom(addr4(0x0b00_0000+uint32(i)), 32), IPv6: netip.PrefixFrom(clients[i], 128)})
	}
	return c, clients
}

func manyMaps(b *testing.B, n int) (*Table, []netip.Addr) {
	c, clients := manyConfig(n)
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
