package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// lender lends 203.0.113.N to 2001:db8::N, if verdict says so.
type lender struct {
	resolver
	verdict func(client int) translate.Verdict
	asks    int
}

func (l *lender) ResolveRanges(f *translate.Flow, _ uint32) (mapping.Ranges, translate.Verdict) {
	l.asks++
	src := f.Src.As16()
	client := int(src[15])
	v := l.verdict(client)
	dst := f.Dst.As16()
	f.Src, f.Dst = netip.AddrFrom4([4]byte{203, 0, 113, src[15]}), netip.AddrFrom4([4]byte(dst[12:]))
	return mapping.Ranges{}, v
}

// number is the packet's number, which every packet of these tests has in its
// last bytes.
func number(packet []byte) int { return int(binary.BigEndian.Uint32(packet[len(packet)-4:])) }

// from is a UDP packet of a client.
func from(client, number, size int) []byte {
	data := make(gopacket.Payload, size-48)
	binary.BigEndian.PutUint32(data[len(data)-4:], uint32(number))
	return build(ip(fmt.Sprintf("2001:db8::%x", client), server6, 64), &layers.UDP{SrcPort: 1, DstPort: 2}, data)
}

// holdBench is a worker fed by hand whose clients get the verdict, which a
// test may change.
type holdBench struct {
	*worker
	*Plane
	q *queue
	*lender
}

func newHoldBench(v translate.Verdict) *holdBench {
	b := &holdBench{q: newQueue()}
	b.lender = &lender{}
	b.says(v)
	b.Plane = New(Config{
		Queues: []tun.Queue{b.q}, Resolver: b.lender, IPv4: addr(own4), IPv6: addr(own6),
		Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
	})
	b.worker = b.Plane.workers[0]
	return b
}

func (b *holdBench) says(v translate.Verdict) {
	b.verdict = func(int) translate.Verdict { return v }
}

// feed is a turn of the worker's loop in which a packet is read.
func (b *holdBench) feed(packet []byte, h tun.Header) {
	b.retryIfDue()
	b.handle(copy(b.translator.packet.Buf[headroom:], packet), &h)
}

// woken is a turn in which the queue has no packet.
func (b *holdBench) woken() bool {
	select {
	case <-b.q.woken:
		b.retry()
		return true
	default:
		return false
	}
}

// came are the numbers of the packets that left since it was asked last.
func (b *holdBench) came() (numbers []int) {
	for _, p := range b.q.written() {
		numbers = append(numbers, number(p))
	}
	return numbers
}

func (b *holdBench) counted(v translate.Verdict) int { return int(b.Counters().Verdicts[v]) }

func TestHeldUntilWake(t *testing.T) {
	b := newHoldBench(translate.LeasePending)
	b.feed(from(1, 1, 100), tun.Header{})
	b.feed(from(1, 2, 100), tun.Header{})
	assert.Empty(t, b.came())
	assert.Equal(t, 1, b.asks, "the second waits behind the first")
	b.Wake()
	require.True(t, b.woken())
	assert.Empty(t, b.came(), "somebody else's lease came")
	c := b.Counters()
	assert.EqualValues(t, 2, c.Held)
	assert.EqualValues(t, 2, c.IPv6In.Packets)
	assert.Zero(t, c.Verdicts, "a held packet has no verdict yet")

	b.says(translate.OK)
	b.feed(from(1, 3, 100), tun.Header{})
	assert.Empty(t, b.came(), "the third overtakes nobody")
	b.Wake()
	require.True(t, b.woken())
	assert.Equal(t, []int{1, 2, 3}, b.came())
	c = b.Counters()
	assert.Zero(t, c.Held)
	assert.EqualValues(t, 3, c.Verdicts[translate.OK])
	assert.Zero(t, c.Verdicts[translate.LeasePending])
	assert.EqualValues(t, 3, c.IPv6In.Packets)

	b.Wake()
	assert.False(t, b.woken(), "nothing is held")
}

// A worker that always has a packet to read hears of Wake all the same.
func TestHeldOnABusyWorker(t *testing.T) {
	b := newHoldBench(translate.OK)
	b.verdict = func(client int) translate.Verdict {
		if client == 1 {
			return translate.LeasePending
		}
		return translate.OK
	}
	b.feed(from(1, 1, 100), tun.Header{})
	b.feed(from(2, 2, 100), tun.Header{})
	assert.Equal(t, []int{2}, b.came(), "others pass")
	b.says(translate.OK)
	b.Wake()
	b.feed(from(2, 3, 100), tun.Header{})
	assert.Equal(t, []int{1, 3}, b.came())
}

// Packets come out as if they had never been held.
func TestHeldAsTheyCame(t *testing.T) {
	for _, k := range kinds() {
		if k.name == "error" { // leases nothing
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			var out [2][][]byte
			for i, v := range []translate.Verdict{translate.OK, translate.LeasePending} {
				b := newHoldBench(v)
				b.translator.packet.ID = 7
				b.feed(k.to4.packet, k.to4.header)
				if v == translate.LeasePending {
					require.Empty(t, b.q.written())
					assert.Equal(t, k.to4.packet, b.holding.bytes[:b.holding.used])
					assert.Equal(t, k.to4.header, b.holding.packets[0].header)
					b.feed(from(200, 2, 100), tun.Header{}) // which overwrites what the worker had in hand
					b.says(translate.OK)
					b.Wake()
					require.True(t, b.woken())
				}
				require.NotEmpty(t, b.q.out)
				out[i] = append(b.q.out[:1:1], fmt.Append(nil, b.q.headers[0]))
			}
			assert.Equal(t, out[0], out[1])
		})
	}
}

func TestHeldPerSource(t *testing.T) {
	b := newHoldBench(translate.LeasePending)
	for i := range heldPerSource + 2 {
		b.feed(from(1, i, 100), tun.Header{})
	}
	b.feed(from(2, 20, 100), tun.Header{})
	assert.EqualValues(t, heldPerSource+1, b.Counters().Held)
	assert.Equal(t, 2, b.counted(translate.LeasePending))
	b.says(translate.OK)
	b.retry()
	assert.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 20}, b.came())
}

func TestHeldInAll(t *testing.T) {
	for _, c := range []struct{ size, fit int }{{100, heldPackets}, {65000, heldBytes / 65000}} {
		b := newHoldBench(translate.LeasePending)
		h := tun.Header{Flags: translate.NeedsCsum, GSOType: translate.GSOUDPL4, GSOSize: 1000}
		if c.size == 100 {
			h = tun.Header{}
		}
		for round := range 3 {
			for i := range c.fit + 3 {
				b.feed(from(i, i, c.size), h)
			}
			assert.EqualValues(t, c.fit, b.Counters().Held)
			assert.Equal(t, 3*(round+1), b.counted(translate.LeasePending))
			assert.Empty(t, b.came())
			b.says(translate.OK)
			b.retry()
			for i, n := range b.came() {
				assert.Equal(t, i, n)
			}
			assert.Equal(t, c.fit*(round+1), b.counted(translate.OK))
			b.says(translate.LeasePending)
			b.revision.Add(1) // their leases ended
		}
	}
}

func TestHeldTooLong(t *testing.T) {
	b := newHoldBench(translate.LeasePending)
	b.feed(from(1, 1, 100), tun.Header{})
	b.Plane.tick.Store(1)
	b.feed(from(1, 2, 100), tun.Header{})
	b.Plane.tick.Store(heldTicks)
	b.retry()
	assert.EqualValues(t, 2, b.Counters().Held)
	b.Plane.tick.Store(heldTicks + 1)
	b.retry()
	assert.EqualValues(t, 1, b.Counters().Held)
	assert.Equal(t, 1, b.counted(translate.LeasePending))
	b.Plane.tick.Store(heldTicks + 2)
	b.says(translate.OK)
	b.retry()
	assert.Equal(t, []int{2}, b.came(), "at the last moment")
	assert.Zero(t, b.Counters().Held)
}

// Time passes without a packet.
func TestHeldTooLongAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHoldBench(translate.LeasePending)
		done := make(chan error)
		go func() { done <- b.Run(t.Context()) }()
		b.q.in <- from(1, 1, 100)
		time.Sleep(heldTicks*time.Second + time.Second/2)
		assert.EqualValues(t, 1, b.Counters().Held)
		time.Sleep(time.Second)
		assert.Zero(t, b.Counters().Held)
		assert.Equal(t, 1, b.counted(translate.LeasePending))
		b.q.fault = assert.AnError
		close(b.q.in)
		assert.ErrorIs(t, <-done, assert.AnError)
	})
}

// A client may be granted its lease before the worker has put the packet away.
func TestWakeBeforeHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHoldBench(translate.OK)
		b.verdict = func(int) translate.Verdict {
			b.says(translate.OK)
			b.Wake()
			return translate.LeasePending
		}
		done := make(chan error)
		go func() { done <- b.Run(t.Context()) }()
		b.q.in <- from(1, 1, 100)
		synctest.Wait() // in no time
		assert.Equal(t, []int{1}, b.came())
		b.q.fault = assert.AnError
		close(b.q.in)
		assert.ErrorIs(t, <-done, assert.AnError)
	})
}

func TestHeldAndRefused(t *testing.T) {
	for _, v := range []translate.Verdict{translate.PoolFull, translate.StateUnavailable, translate.ClientNotPermitted} {
		b := newHoldBench(translate.LeasePending)
		packet := from(1, 1, 100)
		b.feed(packet, tun.Header{})
		b.says(v)
		b.Wake()
		require.True(t, b.woken())
		out := b.q.written()
		require.Len(t, out, 1)
		p := between(t, out[0], own6, one6)
		assert.Equal(t, packet, p.Layer(layers.LayerTypeICMPv6).LayerPayload()[4:], "the error quotes the packet as it came")
		c := b.Counters()
		assert.EqualValues(t, 1, c.Verdicts[v])
		assert.EqualValues(t, 1, c.ErrorsSent)
		assert.Zero(t, c.Held)
	}
}

// Its lease was asked for when it came, and may yet be made.
func TestHeldAndLimited(t *testing.T) {
	b := newHoldBench(translate.LeaseLimited)
	b.feed(from(1, 1, 100), tun.Header{})
	assert.Zero(t, b.Counters().Held, "not asked for")
	b.says(translate.LeasePending)
	b.feed(from(2, 2, 100), tun.Header{})
	b.says(translate.LeaseLimited)
	b.retry()
	assert.EqualValues(t, 1, b.Counters().Held)
	b.says(translate.OK)
	b.retry()
	assert.Equal(t, []int{2}, b.came())
	assert.Equal(t, 1, b.counted(translate.LeaseLimited))
}

// However many wakes there are, a busy worker tries few held packets for each
// one it handles.
func TestWakesOfABusyWorkerAreBounded(t *testing.T) {
	b := newHoldBench(translate.LeasePending)
	for i := range heldPackets {
		b.feed(from(i+10, i, 100), tun.Header{})
	}
	packets := 10 * triedEvery
	b.asks = 0
	for range packets {
		b.Wake()
		b.feed(tcp(server4, one4, 100), tun.Header{})
	}
	tries := b.asks - packets // each packet asks for itself
	assert.InDelta(t, 10*heldPackets, tries, heldPackets)
	assert.EqualValues(t, heldPackets, b.Counters().Held)
}

func TestHoldingAllocatesNothing(t *testing.T) {
	b := newHoldBench(translate.LeasePending)
	q := struct{ nowhere }{}
	b.worker.queue = wakeless{q}
	small, large, ordinary := from(1, 1, 100), from(2, 2, 65000), tcp(one6, server6, 100)
	h := tun.Header{Flags: translate.NeedsCsum, GSOType: translate.GSOUDPL4, GSOSize: 1000}
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		b.verdict = pending
		b.revision.Add(1)
		b.feed(small, tun.Header{})
		b.feed(large, h)
		b.Wake()
		b.feed(ordinary, tun.Header{})
		b.retry()
		if b.held.Load() != 3 {
			t.Fatal(b.held.Load())
		}
		b.verdict = granted
		b.retry()
		if b.held.Load() != 0 {
			t.Fatal(b.held.Load())
		}
	}))
}

func pending(int) translate.Verdict { return translate.LeasePending }
func granted(int) translate.Verdict { return translate.OK }

// wakeless is nowhere, to be woken without effect.
type wakeless struct{ tun.Queue }

func (wakeless) Wake() {}

// TestHeldOrder holds that the packets of each client leave in the order they
// came, whenever its lease comes into force (even while held packets are tried)
// or is refused, and that each leaves, is held or is counted as dropped.
func TestHeldOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newHoldBench(translate.OK)
		const clients = 40
		// after is how many asks a client has yet to make for its lease.
		var after [clients]int
		var refused [clients]bool
		b.verdict = func(c int) translate.Verdict {
			after[c]--
			switch {
			case after[c] >= 0:
				return translate.LeasePending
			case refused[c]:
				return translate.StateUnavailable
			}
			return translate.OK
		}
		for c := range clients {
			after[c] = rapid.IntRange(0, 5).Draw(t, "after")
			refused[c] = rapid.IntRange(0, 9).Draw(t, "refused") == 0
		}
		var last [clients]int
		left, errors := 0, 0
		look := func() {
			for _, p := range b.q.written() {
				if p[0]>>4 == 6 { // an ICMP error
					errors++
					continue
				}
				c, n := int(p[15]), number(p)
				if n <= last[c] {
					t.Fatalf("%d of client %d came after %d", n, c, last[c])
				}
				last[c] = n
				left++
			}
		}
		packets := 0
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				b.Wake()
			case 1:
				b.woken()
			case 2:
				if rapid.IntRange(0, 5).Draw(t, "tick") == 0 {
					b.Plane.tick.Add(1)
					b.Wake()
				}
			case 3: // its lease ends, and the cache learns of it
				after[rapid.IntRange(0, clients-1).Draw(t, "ends")] = 2
				b.revision.Add(1)
			default:
				packets++
				client := rapid.IntRange(0, clients-1).Draw(t, "client")
				size := rapid.SampledFrom([]int{60, 100, 1400, 30000, 65000}).Draw(t, "size")
				var h tun.Header
				if size > 1500 {
					h = tun.Header{Flags: translate.NeedsCsum, GSOType: translate.GSOUDPL4, GSOSize: 1000}
				}
				b.feed(from(client, packets, size), h)
			}
			look()
			checkHolding(t, &b.holding)
			c := b.Counters()
			accounted := left + int(c.Held+c.Verdicts[translate.LeasePending]+c.Verdicts[translate.StateUnavailable])
			if accounted != packets || c.Verdicts[translate.OK] != uint64(left) || c.ErrorsSent != uint64(errors) {
				t.Fatalf("%d packets came and %d left: %+v", packets, left, c)
			}
		}
	})
}

func checkHolding(t *rapid.T, l *holding) {
	bytes, marks, by := 0, 0, map[source]int{}
	for _, p := range l.packets[:l.n] {
		if sourceOf(l.bytes[bytes:bytes+p.size]) != p.source {
			t.Fatal("the bytes are another packet's")
		}
		bytes += p.size
		if by[p.source]++; by[p.source] > heldPerSource {
			t.Fatal("too many of a source")
		}
	}
	for _, m := range l.marks {
		marks += int(m)
	}
	if bytes != l.used || marks != l.n {
		t.Fatalf("%d packets of %d bytes, noted %d bytes and %d marks", l.n, bytes, l.used, marks)
	}
}

// TestHeldFlows is the same beside a goroutine that makes the leases, with two
// workers and queues that run dry, for the race detector.
func TestHeldFlows(t *testing.T) {
	queues := []*queue{newQueue(), newQueue()}
	k := &keeper{granted: map[netip.Addr]bool{}, requests: make(chan netip.Addr, 64)}
	p := New(Config{
		Queues: []tun.Queue{queues[0], queues[1]}, Resolver: k,
		Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
	})
	done := make(chan error)
	go func() { done <- p.Run(t.Context()) }()
	go k.run(p)

	const packets = 6 * 100
	start := time.Now()
	for i := range packets {
		for w, q := range queues {
			q.in <- from(100*w+i/6, i+1, 100)
		}
		if i%24 == 0 {
			time.Sleep(200 * time.Microsecond)
		}
	}
	var c Counters
	for range 500 {
		c = p.Counters()
		if c.IPv6In.Packets == 2*packets && c.Held == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	assert.Less(t, time.Since(start), time.Second, "and no tick was waited for")
	assert.Zero(t, c.Held)
	lost := c.Verdicts[translate.LeasePending] + c.Verdicts[translate.LeaseLimited]
	left := uint64(0)
	for _, q := range queues {
		last := map[byte]int{}
		for _, packet := range q.written() {
			left++
			assert.Greater(t, number(packet), last[packet[15]])
			last[packet[15]] = number(packet)
		}
	}
	assert.EqualValues(t, 2*packets, left+lost)
	assert.Greater(t, left, uint64(packets))
	for _, q := range queues {
		q.fault = assert.AnError
		close(q.in)
	}
	assert.ErrorIs(t, <-done, assert.AnError)
	close(k.requests)
}

// keeper makes leases in a goroutine of its own, as a table with a store does.
type keeper struct {
	resolver
	lock     sync.Mutex
	granted  map[netip.Addr]bool
	requests chan netip.Addr
}

func (k *keeper) ResolveRanges(f *translate.Flow, _ uint32) (mapping.Ranges, translate.Verdict) {
	k.lock.Lock()
	granted := k.granted[f.Src]
	k.lock.Unlock()
	if !granted {
		select {
		case k.requests <- f.Src:
			return mapping.Ranges{}, translate.LeasePending
		default:
			return mapping.Ranges{}, translate.LeaseLimited
		}
	}
	src, dst := f.Src.As16(), f.Dst.As16()
	f.Src, f.Dst = netip.AddrFrom4([4]byte{203, 0, 113, src[15]}), netip.AddrFrom4([4]byte(dst[12:]))
	return mapping.Ranges{}, translate.OK
}

func (k *keeper) run(p *Plane) {
	for a := range k.requests {
		k.lock.Lock()
		news := !k.granted[a]
		k.granted[a] = true
		k.lock.Unlock()
		if news {
			p.Wake()
		}
	}
}

// BenchmarkHolding is an ordinary packet of 1500 bytes while nothing is held,
// and while all is that can be.
func BenchmarkHolding(b *testing.B) {
	packet := tcp(one6, server6, 1500)
	for _, held := range []int{0, heldPackets} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			w := newHoldBench(translate.LeasePending)
			w.worker.queue = wakeless{nowhere{}}
			for i := range held {
				w.feed(from(i+10, i, 100), tun.Header{})
			}
			w.says(translate.OK)
			copy(w.translator.packet.Buf[headroom:], packet)
			var h tun.Header
			b.ReportAllocs()
			for b.Loop() {
				w.retryIfDue()
				copy(w.translator.packet.Buf[headroom:], packet[:60])
				w.handle(len(packet), &h)
			}
			if int(w.Counters().Held) != held {
				b.Fatal(w.Counters().Held)
			}
		})
	}
}
