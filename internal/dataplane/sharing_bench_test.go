package dataplane

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// BenchmarkShared is a TCP packet of 1500 bytes of one of 1000 active flows, as
// BenchmarkCore has it, of clients that have an address each, of the stateless
// part of shared ones, and of sessions, of which there are 100,000. Compare
// with benchstat -col /part.
func BenchmarkShared(b *testing.B) {
	for _, part := range []string{"one-to-one", "stateless", "session"} {
		for _, way := range []string{"6to4", "4to6"} {
			b.Run("part="+part+"/"+way, func(b *testing.B) { benchmarkShared(b, part, way) })
		}
	}
}

const sharedClients, sharedSessions, sharedActive = 1000, 100_000, 1000

// sharedTranslator is one that 1000 clients have leases of, one to one or a
// range each.
func sharedTranslator(b *testing.B, ports mapping.Ports) (*Translator, *conntrack.Table) {
	c := sharingConfig()
	c.Pools[0].IPv4, c.Pools[0].Ports = netip.MustParsePrefix("203.0.112.0/20"), ports
	c.Pools[0].Clients = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
	table, err := mapping.New(c)
	require.NoError(b, err)
	sharing := Sharing{}
	var sessions *conntrack.Table
	if ports != (mapping.Ports{}) {
		sharing, err = NewSharing(conntrack.Default())
		require.NoError(b, err)
		sessions = sharing.Sessions.(*conntrack.Table)
	}
	return NewTranslator(table, sharing, translate.Options{IPv4MTU: 1500, IPv6MTU: 1500}, netip.Addr{}, netip.Addr{}), sessions
}

// lastPacket keeps the last packet.
type lastPacket struct{ packetSeen }

func (l *lastPacket) Put(buf []byte, off, n int, _ tun.Header) { l.packetSeen = look(buf[off : off+n]) }

func benchmarkShared(b *testing.B, part, way string) {
	ports := mapping.Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535}
	perClient := 1
	switch part {
	case "one-to-one":
		ports = mapping.Ports{}
	case "session":
		perClient = sharedSessions / sharedClients
	}
	t, sessions := sharedTranslator(b, ports)
	var packets [][64]byte
	for i := range sharedClients {
		_, six := client(i)
		first := &lastPacket{}
		t.Translate(whole(six.String(), 1, server6, 80, protoUDP, 0, nil), 1, nowhere{})
		for n := range perClient {
			port := uint16(2 + n)
			if part == "stateless" {
				port = 1024 + 1024*uint16(i%63)
			}
			o := t.Translate(whole(six.String(), port, server6, 80, protoTCP, flagSYN, nil), 1, first)
			require.Equal(b, translate.OK, o.Verdict)
			back := whole(server4, 80, first.src.Addr().String(), first.src.Port(), protoTCP, flagSYN|flagACK, nil)
			require.Equal(b, translate.OK, t.Translate(back, 1, nowhere{}).Verdict)
			packet := whole(six.String(), port, server6, 80, protoTCP, flagACK, make([]byte, 1440))
			if way == "4to6" {
				packet = whole(server4, 80, first.src.Addr().String(), first.src.Port(), protoTCP, flagACK, make([]byte, 1440))
				packet[6] = 0x40 // DF
				packet[10], packet[11] = 0, 0
				binary.BigEndian.PutUint16(packet[10:], ^onesSum(0, packet[:20]))
			}
			packets = append(packets, [64]byte(packet))
		}
	}
	if part == "session" {
		require.Equal(b, sharedSessions+sharedClients, sessions.Len())
	}
	r := rand.New(rand.NewPCG(1, 2))
	r.Shuffle(len(packets), func(i, j int) { packets[i], packets[j] = packets[j], packets[i] })
	packets = packets[:sharedActive]
	size := 1500
	if way == "4to6" {
		size = 1480
	}
	var whole tun.Header
	b.ReportAllocs()
	defer cpuTime(b)()
	for i := 0; b.Loop(); {
		copy(t.packet.Buf[headroom:], packets[i][:])
		if o := t.handle(size, &whole, 2, nowhere{}); o.Verdict != translate.OK {
			b.Fatal(o.Verdict)
		}
		if i++; i == len(packets) {
			i = 0
		}
	}
}

// BenchmarkNewSessions is the first packet of a session, of random clients and
// ports, through all its steps, while the table stays 90% full: others expire
// in its place, and their end is part of the time.
func BenchmarkNewSessions(b *testing.B) {
	const perTick = 3000 // of UDP, which lasts 300 seconds
	t, sessions := sharedTranslator(b, mapping.Ports{PerClient: 8192, Session: 4096, First: 8192, Last: 65535})
	var packets [sharedClients][64]byte
	for i := range packets {
		_, six := client(i)
		copy(packets[i][:], whole(six.String(), 0, server6, 53, protoUDP, 0, make([]byte, 16)))
	}
	r := rand.New(rand.NewPCG(1, 2))
	var header tun.Header
	n := 0
	open := func() {
		tick := uint32(n/perTick) + 1
		p := t.packet.Buf[headroom:]
		draw := r.Uint64()
		copy(p, packets[draw%sharedClients][:])
		binary.BigEndian.PutUint16(p[40:], uint16(draw>>16)&0x1fff) // below the range
		binary.BigEndian.PutUint32(p[36:], 0xcb000000|uint32(draw>>32)&0x3fff)
		if o := t.handle(64, &header, tick, nowhere{}); o.Verdict != translate.OK && o.Verdict != translate.ClientSessionsFull {
			b.Fatal(n, o.Verdict)
		}
		if n++; n%perTick == 0 {
			t.sharing.Expire(tick + 1)
		}
	}
	for range 1_000_000 {
		open()
	}
	b.ReportAllocs()
	defer cpuTime(b)()
	for b.Loop() {
		open()
	}
	b.ReportMetric(float64(sessions.Len()), "sessions")
}

// cpuTime reports the CPU time per operation from now to the call of what it
// returns, for machines that others use too.
func cpuTime(b *testing.B) func() {
	used := func() time.Duration {
		var u unix.Rusage
		require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}
