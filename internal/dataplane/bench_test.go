package dataplane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// nowhere is a queue and a sink that take everything.
type nowhere struct{ tun.Queue }

func (nowhere) Write([]byte, int, int, tun.Header) error { return nil }
func (nowhere) Put([]byte, int, int, tun.Header)         {}

// client is the i-th mapped client: its addresses of both families. The IPv6
// ones are spread as those of real clients are.
func client(i int) (four, six netip.Addr) {
	var b4 [4]byte
	binary.BigEndian.PutUint32(b4[:], 11<<24+uint32(i))
	b6 := [16]byte{0x20, 0x01, 0x0d, 0xb8, 1}
	binary.BigEndian.PutUint32(b6[4:], uint32(i/16))
	binary.BigEndian.PutUint64(b6[8:], (uint64(i)+1)*0x9e3779b97f4a7c15)
	return netip.AddrFrom4(b4), netip.AddrFrom16(b6)
}

func manyMaps(b *testing.B, n int) *mapping.Table {
	c := mapping.Config{
		Pref64:  netip.MustParsePrefix("64:ff9b::/96"),
		OwnIPv4: netip.MustParseAddr("192.0.2.254"), OwnIPv6: netip.MustParseAddr("2001:db8::ffff"),
	}
	for i := range n {
		four, six := client(i)
		c.Maps = append(c.Maps, mapping.Map{IPv4: netip.PrefixFrom(four, 32), IPv6: netip.PrefixFrom(six, 128)})
	}
	table, err := mapping.New(c)
	require.NoError(b, err)
	return table
}

// BenchmarkCore is parse, lookup and rewrite of a TCP packet of 1500 bytes in a
// fresh buffer, among so many explicit mappings of which so many are active,
// drawn at random: those of one round of packets, one packet each.
func BenchmarkCore(b *testing.B) {
	for _, maps := range []int{1, 1000, 1000000} {
		table := manyMaps(b, maps)
		for _, active := range []int{1, 1000, 1000000} {
			if active > maps {
				continue
			}
			drawn := rand.New(rand.NewPCG(1, 2)).Perm(maps)[:active]
			for _, way := range []string{"6to4", "4to6"} {
				b.Run(fmt.Sprintf("maps=%d/active=%d/%s", maps, active, way), func(b *testing.B) {
					benchmarkCore(b, table, way, drawn)
				})
			}
		}
	}
}

func benchmarkCore(b *testing.B, table *mapping.Table, way string, clients []int) {
	packets := make([][64]byte, len(clients)) // their headers: the payload stays as it is
	for i, c := range clients {
		four, six := client(c)
		if way == "6to4" {
			copy(packets[i][:], tcp(six.String(), "64:ff9b::c633:6401", 1500))
		} else {
			copy(packets[i][:], tcp("198.51.100.1", four.String(), 1480))
		}
	}
	size := 1500
	if way == "4to6" {
		size = 1480
	}
	t := NewTranslator(table, Sharing{}, translate.Options{IPv4MTU: 1500, IPv6MTU: 1500}, netip.Addr{}, netip.Addr{})
	var whole tun.Header
	b.ReportAllocs()
	for i := 0; b.Loop(); {
		copy(t.packet.Buf[headroom:], packets[i][:])
		if o := t.handle(size, &whole, 1, nowhere{}); o.Verdict != translate.OK {
			b.Fatal(o.Verdict)
		}
		if i++; i == len(packets) {
			i = 0
		}
	}
}

// BenchmarkKinds is the same for every kind of packet, with one mapping. ICMP
// errors are answered by the table, all others from the cache.
func BenchmarkKinds(b *testing.B) {
	table := manyMaps(b, 1)
	for _, k := range kinds() {
		for _, way := range []struct {
			name string
			way
		}{{"6to4", k.to4}, {"4to6", k.to6}} {
			b.Run(k.name+"/"+way.name, func(b *testing.B) {
				t := NewTranslator(table, Sharing{}, translate.Options{IPv4MTU: 1500, IPv6MTU: 1500}, netip.Addr{}, netip.Addr{})
				copy(t.packet.Buf[headroom:], way.packet)
				changed := way.packet[:min(len(way.packet), 160)] // by a translation, at the most
				b.SetBytes(int64(len(way.packet)))
				b.ReportAllocs()
				for b.Loop() {
					copy(t.packet.Buf[headroom:], changed)
					if o := t.handle(len(way.packet), &way.header, 1, nowhere{}); o.Verdict != translate.OK {
						b.Fatal(o.Verdict)
					}
				}
			})
			b.Run(k.name+"/"+way.name+"/copy", func(b *testing.B) {
				b.SetBytes(int64(len(way.packet)))
				benchmarkCopy(b, len(way.packet))
			})
		}
	}
}

// way is a packet that goes one way, as a device hands it out.
type way struct {
	packet []byte
	header tun.Header
}

type kind struct {
	name     string
	to4, to6 way
}

func kinds() []kind {
	four, six := client(0)
	one4, one6 := four.String(), six.String()
	const server4, server6 = "198.51.100.1", "64:ff9b::c633:6401"
	both := func(name string, to4, to6 []byte) kind { return kind{name, way{packet: to4}, way{packet: to6}} }

	super := both("tcp64k", tcp(one6, server6, 65000), tcp(server4, one4, 65000))
	super.to4.header = tun.Header{Flags: translate.NeedsCsum, GSOType: translate.GSOTCPv6, GSOSize: 1400}
	super.to6.header = tun.Header{Flags: translate.NeedsCsum, GSOType: translate.GSOTCPv4, GSOSize: 1400}

	first4 := ip(server4, one4, 64).(*layers.IPv4)
	first4.Flags = layers.IPv4MoreFragments
	first6 := append(tcp(one6, server6, 1232)[:40:40], 6, 0, 0, 1, 0, 0, 0, 9)
	first6 = append(first6, tcp(one6, server6, 1232)[40:]...)
	first6[6] = 44
	binary.BigEndian.PutUint16(first6[4:], uint16(len(first6)-40))

	return []kind{
		both("tcp64", tcp(one6, server6, 84), tcp(server4, one4, 64)),
		both("tcp1500", tcp(one6, server6, 1500), tcp(server4, one4, 1480)),
		super,
		both("udp", build(ip(one6, server6, 64), &layers.UDP{SrcPort: 1, DstPort: 2}, payload(100)),
			build(ip(server4, one4, 64), &layers.UDP{SrcPort: 1, DstPort: 2}, payload(100))),
		both("echo", echo6(one6, server6), echo4(server4, one4)),
		both("error", unreachable6(one6, server6, tcp(server6, one6, 100)), unreachable4(server4, one4, tcp(one4, server4, 100))),
		both("first-fragment", first6, build(first4, &layers.TCP{SrcPort: 4000, DstPort: 80, ACK: true}, payload(1212))),
	}
}

// BenchmarkFresh is what the fresh buffers cost in BenchmarkCore, and
// BenchmarkCopy a copy of the whole packet, to compare with.
func BenchmarkFresh(b *testing.B) { benchmarkCopy(b, 64) }
func BenchmarkCopy(b *testing.B)  { benchmarkCopy(b, 1500) }

func benchmarkCopy(b *testing.B, size int) {
	from, to := make([]byte, size), make([]byte, size)
	for b.Loop() {
		copy(to, from)
	}
}
