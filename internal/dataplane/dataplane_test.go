package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Who is who in these tests: two clients, a server, and natless itself.
const (
	one6, one4       = "2001:db8::1", "192.0.2.1"
	two6, two4       = "2001:db8::2", "192.0.2.2"
	oneSeen, twoSeen = "64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2" // by each other
	server6, server4 = "64:ff9b::198.51.100.1", "198.51.100.1"
	liar6            = "2001:db8:9::2"                // a client that speaks for another
	router6, router4 = "2001:db8:9::1", "192.0.2.253" // without counterpart, and its stand-in
	own6, own4       = "2001:db8::ffff", "192.0.2.254"
	nobody6          = "2001:db8:dead::1"
)

// resolver knows the addresses above, and notes what it is asked.
type resolver struct {
	mu       sync.Mutex
	asked    []string
	revision atomic.Uint64
	ticks    []uint32
	expired  atomic.Uint32
}

var (
	across = map[netip.Addr]netip.Addr{
		addr(one6): addr(one4), addr(two6): addr(two4), addr(server6): addr(server4), addr(twoSeen): addr(two4),
		addr(one4): addr(one6), addr(two4): addr(two6), addr(server4): addr(server6),
	}
	back = map[netip.Addr]netip.Addr{addr(one4): addr(oneSeen), addr(two4): addr(two6), addr(router4): addr("64:ff9b::192.0.2.253")}
)

func cross(f translate.Flow, by map[netip.Addr]netip.Addr) (translate.Flow, translate.Verdict) {
	src, dst := by[f.Src], by[f.Dst]
	hairpin := f.Dst == addr(twoSeen)
	f.Src, f.Dst = src, dst
	switch {
	case !src.IsValid():
		return f, translate.SourceUnmapped
	case !dst.IsValid():
		return f, translate.DestinationUnmapped
	case hairpin:
		return f, translate.Hairpin
	}
	return f, translate.OK
}

func (r *resolver) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, what)
}

func (r *resolver) ResolveRanges(f *translate.Flow, tick uint32) (_ mapping.Ranges, v translate.Verdict) {
	r.note("resolve")
	r.mu.Lock()
	r.ticks = append(r.ticks, tick)
	r.mu.Unlock()
	*f, v = cross(*f, across)
	return mapping.Ranges{}, v
}

func (r *resolver) ResolveError(f translate.Flow) (translate.Flow, translate.Verdict) {
	r.note("error")
	if f.Src == addr(router6) {
		to, v := cross(translate.Flow{Src: addr(one6), Dst: f.Dst}, across)
		to.Src = addr(router4)
		return to, v
	}
	return cross(f, across)
}

func (r *resolver) LookupRanges(f translate.Flow) (translate.Flow, mapping.Ranges, translate.Verdict) {
	r.note("lookup")
	f, v := cross(f, across)
	return f, mapping.Ranges{}, v
}

func (r *resolver) HairpinBackRanges(f translate.Flow) (translate.Flow, mapping.Ranges, translate.Verdict) {
	r.note("back")
	f, v := cross(f, back)
	return f, mapping.Ranges{}, v
}

func (r *resolver) SpeaksFor(host, dst netip.Addr, _ bool) bool { return host != addr(liar6) }

func (r *resolver) Shared(netip.Addr) bool { return false }

func (r *resolver) Own(a netip.Addr) bool { return a == addr(own6) || a == addr(own4) }
func (r *resolver) Revision() uint64      { return r.revision.Load() }
func (r *resolver) Expire(tick uint32)    { r.expired.Store(tick) }

// queue hands out what is put into in, and keeps what is written.
type queue struct {
	in     chan []byte
	fault  error // of Read, when in is closed
	refuse error // of Write

	gathers atomic.Int32

	mu      sync.Mutex
	out     [][]byte
	headers []tun.Header // of out
	once    sync.Once
	closed  chan struct{}
	woken   chan struct{}
}

func newQueue() *queue {
	return &queue{in: make(chan []byte, 100), closed: make(chan struct{}), woken: make(chan struct{}, 1)}
}

func (q *queue) Read(buf []byte, off int) (int, tun.Header, error) {
	select {
	case b, ok := <-q.in:
		if !ok {
			return 0, tun.Header{}, q.fault
		}
		return copy(buf[off:], b), tun.Header{}, nil
	case <-q.woken:
		return 0, tun.Header{}, tun.ErrWoken
	case <-q.closed:
		return 0, tun.Header{}, os.ErrClosed
	}
}

func (q *queue) ReadMore(buf []byte, off int) (int, tun.Header, bool) {
	select {
	case b, ok := <-q.in:
		return copy(buf[off:], b), tun.Header{}, ok
	default:
		return 0, tun.Header{}, false
	}
}

func (q *queue) Gather() { q.gathers.Add(1) }

func (q *queue) Write(buf []byte, off, n int, h tun.Header) error {
	if q.refuse != nil {
		return q.refuse
	}
	clear(buf[off-tun.HeaderLen : off]) // as a device does
	q.mu.Lock()
	defer q.mu.Unlock()
	q.out = append(q.out, slices.Clone(buf[off:off+n]))
	q.headers = append(q.headers, h)
	return nil
}

func (q *queue) Wake() {
	select {
	case q.woken <- struct{}{}:
	default:
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) written() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.out
	q.out, q.headers = nil, nil
	return out
}

// bench is a worker that is fed by hand.
type bench struct {
	*Plane
	q *queue
	*resolver
}

func newBench(set ...func(*Config)) *bench {
	b := &bench{q: newQueue(), resolver: &resolver{}}
	c := Config{
		Queues: []tun.Queue{b.q}, Resolver: b.resolver, IPv4: addr(own4), IPv6: addr(own6),
		Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
	}
	for _, f := range set {
		f(&c)
	}
	b.Plane = New(c)
	return b
}

// handle takes a packet through and returns what was written.
func (b *bench) handle(packet []byte) [][]byte {
	b.asked, b.ticks = nil, nil
	w := b.workers[0]
	w.handle(copy(w.translator.packet.Buf[headroom:], packet), &tun.Header{})
	return b.q.written()
}

func (b *bench) counted(v translate.Verdict) int { return int(b.Counters().Verdicts[v]) }

// Layers, taken apart again.

func decode(t *testing.T, b []byte) gopacket.Packet {
	t.Helper()
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	p := gopacket.NewPacket(b, first, gopacket.Default)
	require.Nil(t, p.ErrorLayer(), "%x", b)
	return p
}

// between checks the addresses of a packet.
func between(t *testing.T, b []byte, src, dst string) gopacket.Packet {
	t.Helper()
	p := decode(t, b)
	f := p.NetworkLayer().NetworkFlow()
	from, _ := netip.AddrFromSlice(f.Src().Raw())
	to, _ := netip.AddrFromSlice(f.Dst().Raw())
	assert.Equal(t, addr(src), from)
	assert.Equal(t, addr(dst), to)
	return p
}

func echo6(src, dst string) []byte {
	return build(ip(src, dst, 64), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)},
		&layers.ICMPv6Echo{Identifier: 7, SeqNumber: 1}, gopacket.Payload("natless"))
}

func echo4(src, dst string) []byte {
	return build(ip(src, dst, 64), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7, Seq: 1}, gopacket.Payload("natless"))
}

// unreachable6 is an ICMPv6 error about a packet.
func unreachable6(src, dst string, quote []byte) []byte {
	return build(ip(src, dst, 64), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 4)}, gopacket.Payload(append(make([]byte, 4), quote...)))
}

func unreachable4(src, dst string, quote []byte) []byte {
	return build(ip(src, dst, 64), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(quote))
}

func TestTranslated(t *testing.T) {
	b := newBench()
	out := b.handle(tcp(one6, server6, 100))
	require.Len(t, out, 1)
	p := between(t, out[0], one4, server4)
	assert.Equal(t, layers.TCPPort(80), p.Layer(layers.LayerTypeTCP).(*layers.TCP).DstPort)
	assert.Equal(t, []string{"resolve"}, b.asked)

	out = b.handle(tcp(server4, one4, 100))
	require.Len(t, out, 1)
	between(t, out[0], server6, one6)

	assert.Equal(t, 2, b.counted(translate.OK))
	c := b.Counters()
	assert.Equal(t, Traffic{1, 100}, c.IPv6In)
	assert.Equal(t, Traffic{1, 80}, c.IPv4Out)
	assert.Equal(t, Traffic{1, 100}, c.IPv4In)
	assert.Equal(t, Traffic{1, 120}, c.IPv6Out)
}

func TestMalformedIsAskedAboutNobody(t *testing.T) {
	b := newBench()
	for _, packet := range [][]byte{nil, {0}, tcp(one6, server6, 100)[:50]} {
		assert.Empty(t, b.handle(packet))
		assert.Empty(t, b.asked)
	}
	assert.Equal(t, 2, b.counted(translate.NotIP))
	assert.Equal(t, 1, b.counted(translate.Truncated))
}

func TestOwnAddress(t *testing.T) {
	b := newBench()
	for _, c := range []struct {
		packet   []byte
		src, dst string
		reply    gopacket.LayerType
	}{
		{echo6(one6, own6), own6, one6, layers.LayerTypeICMPv6},
		{echo4(server4, own4), own4, server4, layers.LayerTypeICMPv4},
	} {
		out := b.handle(c.packet)
		require.Len(t, out, 1)
		p := between(t, out[0], c.src, c.dst)
		assert.Contains(t, []byte{129, 0}, p.Layer(c.reply).LayerContents()[0])
		assert.Equal(t, len(c.packet), len(out[0]))
		assert.Empty(t, b.asked)
	}
	assert.Empty(t, b.handle(tcp(one6, own6, 100)))
	assert.Empty(t, b.handle(tcp(server4, own4, 100)))
	assert.Equal(t, 2, b.counted(translate.Answered))
	assert.Equal(t, 2, b.counted(translate.OwnAddress))
}

func TestErrors(t *testing.T) {
	b := newBench()
	// The server has one's packet to a closed port.
	out := b.handle(unreachable4(server4, one4, tcp(one4, server4, 100)))
	require.Len(t, out, 1)
	p := between(t, out[0], server6, one6)
	between(t, p.Layer(layers.LayerTypeICMPv6).LayerPayload()[4:], one6, server6)
	assert.Equal(t, []string{"error", "lookup"}, b.asked)

	// A router that nobody knows cannot deliver the server's packet.
	out = b.handle(unreachable6(router6, server6, tcp(server6, one6, 100)))
	require.Len(t, out, 1)
	p = between(t, out[0], router4, server4)
	between(t, p.Layer(layers.LayerTypeICMPv4).LayerPayload(), server4, one4)

	assert.Equal(t, 2, b.counted(translate.OK))
}

func TestQuoteUnmapped(t *testing.T) {
	b := newBench()
	assert.Empty(t, b.handle(unreachable6(one6, server6, tcp(server6, nobody6, 100))))
	assert.Equal(t, []string{"error", "lookup"}, b.asked)
	assert.Equal(t, 1, b.counted(translate.QuoteUnmapped))

	assert.Empty(t, b.handle(unreachable6(nobody6, server6, tcp(server6, one6, 100))))
	assert.Equal(t, []string{"error"}, b.asked)
	assert.Equal(t, 1, b.counted(translate.SourceUnmapped))
}

func TestHairpin(t *testing.T) {
	b := newBench()
	out := b.handle(tcp(one6, twoSeen, 100))
	require.Len(t, out, 1)
	p := between(t, out[0], oneSeen, two6)
	assert.Equal(t, uint8(63), p.Layer(layers.LayerTypeIPv6).(*layers.IPv6).HopLimit, "twice translated, by one router")
	assert.Equal(t, tcp(one6, twoSeen, 100)[40:56], out[0][40:56], "but for the checksum TCP is as it was")
	assert.Equal(t, []string{"resolve", "back"}, b.asked)

	// Two's packet did not reach one's port: both the error and what it quotes
	// go there and back.
	out = b.handle(unreachable6(one6, twoSeen, tcp(twoSeen, one6, 100)))
	require.Len(t, out, 1)
	p = between(t, out[0], oneSeen, two6)
	between(t, p.Layer(layers.LayerTypeICMPv6).LayerPayload()[4:], two6, oneSeen)
	assert.Equal(t, []string{"error", "lookup", "back", "back"}, b.asked)

	out = b.handle(unreachable6(router6, twoSeen, tcp(twoSeen, one6, 100)))
	require.Len(t, out, 1)
	between(t, out[0], "64:ff9b::192.0.2.253", two6)
	assert.Equal(t, 3, b.counted(translate.Hairpin))
	assert.Zero(t, b.counted(translate.OK))

	// A hop limit of 2 is enough for one router, of 1 it is not.
	out = b.handle(build(ip(one6, twoSeen, 2), &layers.UDP{SrcPort: 1, DstPort: 2}))
	require.Len(t, out, 1)
	p = between(t, out[0], oneSeen, two6)
	assert.Equal(t, uint8(1), p.Layer(layers.LayerTypeIPv6).(*layers.IPv6).HopLimit)
	out = b.handle(build(ip(one6, twoSeen, 1), &layers.UDP{SrcPort: 1, DstPort: 2}))
	require.Len(t, out, 1)
	between(t, out[0], own6, one6)
	assert.Equal(t, 1, b.counted(translate.HopLimit))
}

func TestFragmented(t *testing.T) {
	b := newBench()
	h := ip(server4, one4, 64).(*layers.IPv4)
	h.Flags = 0
	data := make([]byte, 1400)
	for i := range data {
		data[i] = byte(i)
	}
	out := b.handle(build(h, &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload(data)))
	require.Len(t, out, 2)
	var whole []byte
	for _, f := range out {
		assert.LessOrEqual(t, len(f), 1280)
		p := between(t, f, server6, one6)
		whole = append(whole, p.Layer(layers.LayerTypeIPv6Fragment).LayerPayload()...)
	}
	assert.Equal(t, data, whole[8:])
	assert.Equal(t, 1, b.counted(translate.Fragmented))
	assert.EqualValues(t, 2, b.Counters().IPv6Out.Packets)
}

func TestErrorsOriginated(t *testing.T) {
	b := newBench()
	out := b.handle(tcp(one6, nobody6, 100))
	require.Len(t, out, 1)
	p := between(t, out[0], own6, one6)
	assert.Equal(t, layers.CreateICMPv6TypeCode(1, 3), p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).TypeCode)
	out = b.handle(tcp(server4, "203.0.113.9", 100))
	require.Len(t, out, 1)
	p = between(t, out[0], own4, server4)
	assert.Equal(t, layers.CreateICMPv4TypeCode(3, 1), p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).TypeCode)

	assert.Empty(t, b.handle(tcp(one6, own6, 100)), "the verdict has none")
	assert.Empty(t, b.handle(unreachable6(one6, nobody6, tcp(nobody6, one6, 100))), "about an error there is none")
	c := b.Counters()
	assert.EqualValues(t, 3, c.Verdicts[translate.DestinationUnmapped])
	assert.EqualValues(t, 2, c.ErrorsSent)
	assert.Zero(t, c.ErrorsLimited)
}

func TestErrorsAreLimited(t *testing.T) {
	b := newBench()
	flood := tcp(one6, nobody6, 100)
	for range errorsPerSecond {
		require.Len(t, b.handle(flood), 1)
	}
	for range 3 {
		require.Empty(t, b.handle(flood))
	}
	spent := build(ip(one6, server6, 1), &layers.UDP{})
	require.Len(t, b.handle(spent), 1, "another verdict has an allowance of its own")
	b.tick.Store(1)
	require.Len(t, b.handle(flood), 1, "the next second")
	c := b.Counters()
	assert.EqualValues(t, errorsPerSecond+2, c.ErrorsSent)
	assert.EqualValues(t, 3, c.ErrorsLimited)
	assert.EqualValues(t, errorsPerSecond+4, c.Verdicts[translate.DestinationUnmapped])
}

func TestErrorsNeedAnAddress(t *testing.T) {
	for _, with := range []Config{{IPv4: addr(own4)}, {IPv6: addr(own6)}} {
		q := newQueue()
		with.Queues, with.Resolver = []tun.Queue{q}, &resolver{}
		p := New(with)
		b := &bench{Plane: p, q: q, resolver: &resolver{}}
		assert.Equal(t, with.IPv6.IsValid(), len(b.handle(tcp(one6, nobody6, 100))) == 1)
		assert.Equal(t, with.IPv4.IsValid(), len(b.handle(tcp(server4, "203.0.113.9", 100))) == 1)
		assert.EqualValues(t, 1, p.Counters().ErrorsSent)
		assert.Zero(t, p.Counters().ErrorsLimited)
	}
}

func TestWriteErrors(t *testing.T) {
	b := newBench()
	b.q.refuse = errors.New("no")
	assert.Empty(t, b.handle(tcp(one6, server6, 100)))
	c := b.Counters()
	assert.EqualValues(t, 1, c.WriteErrors)
	assert.EqualValues(t, 1, c.Verdicts[translate.OK])
	assert.Zero(t, c.IPv4Out)
	b.q.refuse = nil
	assert.Len(t, b.handle(tcp(one6, server6, 100)), 1)
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queues := []*queue{newQueue(), newQueue()}
		r := &resolver{}
		p := New(Config{Queues: []tun.Queue{queues[0], queues[1]}, Resolver: r})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()

		queues[0].in <- tcp(one6, server6, 100)
		queues[0].in <- tcp(one6, server6, 100)
		time.Sleep(5500 * time.Millisecond)
		queues[1].in <- tcp(server4, one4, 100)
		synctest.Wait()
		assert.EqualValues(t, 5, r.expired.Load())
		assert.Equal(t, []uint32{0, 5}, r.ticks, "the second packet is answered from the cache")
		assert.Len(t, queues[0].written(), 2)
		assert.Len(t, queues[1].written(), 1)
		assert.EqualValues(t, 3, p.Counters().Verdicts[translate.OK])

		cancel()
		assert.NoError(t, <-done)
		for _, q := range queues {
			<-q.closed
		}
	})
}

func TestRunEndsWithAQueue(t *testing.T) {
	good, bad := newQueue(), newQueue()
	bad.fault = errors.New("file descriptor in bad state")
	close(bad.in)
	p := New(Config{Queues: []tun.Queue{good, bad}, Resolver: &resolver{}})
	err := p.Run(t.Context())
	assert.EqualError(t, err, "reading packets: file descriptor in bad state")
	assert.ErrorIs(t, err, bad.fault)
	<-good.closed
	<-bad.closed
}
