package conntrack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func newFragments(t testing.TB, edit func(*FragmentConfig)) *Fragments {
	t.Helper()
	c := DefaultFragments()
	if edit != nil {
		edit(&c)
	}
	f, err := NewFragments(c)
	require.NoError(t, err)
	return f
}

var aDatagram = Datagram{server, shared, 4711, numUDP}

// next takes all that waits.
func next(f *Fragments, d Datagram) (packets []string) {
	buf := make([]byte, 1<<16)
	for {
		n, ok := f.Next(&d, buf)
		if !ok {
			return packets
		}
		packets = append(packets, string(buf[:n]))
	}
}

func TestFragmentsFollow(t *testing.T) {
	f := newFragments(t, nil)
	d := aDatagram
	waiting, reason := f.First(&d, Ports{53, 1920}, 0)
	assert.Equal(t, OK, reason)
	assert.Zero(t, waiting)
	ports, reason := f.Later(&d, []byte("later"), 0)
	assert.Equal(t, OK, reason)
	assert.Equal(t, Ports{53, 1920}, ports)
	assert.Empty(t, next(f, d), "it did not wait")
	for i, another := range []Datagram{{other, shared, 4711, numUDP}, {server, other, 4711, numUDP}, {server, shared, 4712, numUDP}, {server, shared, 4711, numTCP}} {
		_, reason = f.Later(&another, nil, 0)
		assert.Equal(t, Held, reason, i)
	}
	_, reason = f.First(&d, Ports{54, 1921}, 1)
	assert.Equal(t, OK, reason)
	ports, _ = f.Later(&d, nil, 1)
	assert.Equal(t, Ports{54, 1921}, ports, "the newer first fragment counts")
}

func TestFragmentsWait(t *testing.T) {
	f := newFragments(t, nil)
	d := aDatagram
	var want []string
	for _, n := range []int{1, 0, 511, 512, 513, 1480, 65535, 8} {
		packet := bytes.Repeat([]byte{byte(n)}, n)
		want = append(want, string(packet))
		_, reason := f.Later(&d, packet, 0)
		require.Equal(t, Held, reason)
		clear(packet) // it has been copied
	}
	assert.Empty(t, next(f, d), "the first has not come")
	waiting, reason := f.First(&d, Ports{1, 2}, 2)
	assert.Equal(t, OK, reason)
	assert.Equal(t, len(want), waiting)
	assert.Equal(t, want, next(f, d))
	assert.Empty(t, next(f, d))
	assert.Zero(t, f.Lost())
	assert.Equal(t, f.config.Bytes/blockSize, f.blocks.left)
}

// TestFragmentTime: RFC 6146 4 has FRAGMENT_MIN 2 seconds, also where the
// clock wraps.
func TestFragmentTime(t *testing.T) {
	for _, start := range []uint32{0, math.MaxUint32} {
		f := newFragments(t, nil)
		known, waiting := aDatagram, aDatagram
		waiting.ID++
		f.First(&known, Ports{1, 2}, start)
		f.Later(&waiting, []byte("early"), start)
		assert.False(t, f.Expire(start+2))
		_, reason := f.Later(&known, nil, start+2)
		assert.Equal(t, OK, reason)
		_, reason = f.Later(&known, nil, start+3)
		assert.Equal(t, Held, reason)
		n, _ := f.First(&waiting, Ports{1, 2}, start+3)
		assert.Zero(t, n, "it waited in vain")
		assert.EqualValues(t, 1, f.Lost())
		assert.False(t, f.Expire(start+6))
		assert.EqualValues(t, 2, f.Lost())
		assert.Empty(t, f.index)
		assert.Empty(t, f.sources)
	}
}

func TestFragmentBounds(t *testing.T) {
	f := newFragments(t, func(c *FragmentConfig) {
		*c = FragmentConfig{Datagrams: 3, SourceDatagrams: 2, Bytes: 6 * blockSize, SourceBytes: 4 * blockSize, Timeout: 2}
	})
	of := func(src netip.Addr, id uint32) *Datagram { return &Datagram{src, shared, id, numUDP} }
	hold := func(src netip.Addr, id uint32, n int) Reason {
		_, reason := f.Later(of(src, id), make([]byte, n), 0)
		return reason
	}
	assert.Equal(t, FragmentsFull, hold(server, 1, 5*blockSize), "more than a source may have")
	assert.Equal(t, Held, hold(server, 1, 3*blockSize))
	assert.Equal(t, FragmentsFull, hold(server, 2, blockSize+1))
	assert.Equal(t, Held, hold(server, 2, 1))
	assert.Equal(t, Held, hold(other, 1, blockSize+1))
	assert.Equal(t, FragmentsFull, hold(other, 1, 1), "more than all may have")
	assert.Equal(t, FragmentsFull, hold(shared, 1, 1))
	_, reason := f.First(of(shared, 1), Ports{}, 0)
	assert.Equal(t, FragmentsFull, reason, "more datagrams than there may be")
	// A source at its bound loses the oldest.
	_, reason = f.First(of(server, 3), Ports{1, 2}, 0)
	assert.Equal(t, OK, reason)
	assert.EqualValues(t, 1, f.Lost())
	waiting, _ := f.First(of(server, 2), Ports{1, 2}, 0)
	assert.Equal(t, 1, waiting)
	waiting, _ = f.First(of(other, 1), Ports{1, 2}, 0)
	assert.Equal(t, 1, waiting, "another's is untouched")
}

func TestFragmentConfig(t *testing.T) {
	for want, edit := range map[string]func(*FragmentConfig){
		"fragments of 0 datagrams": func(c *FragmentConfig) { c.Datagrams = 0 },
		"0 from one source":        func(c *FragmentConfig) { c.SourceDatagrams = 0 },
		"511 bytes of fragments":   func(c *FragmentConfig) { c.Bytes = 511 },
		"511 from one source":      func(c *FragmentConfig) { c.SourceBytes = 511 },
		"timeout of 1 seconds":     func(c *FragmentConfig) { c.Timeout = 1 },
	} {
		c := DefaultFragments()
		edit(&c)
		_, err := NewFragments(c)
		assert.ErrorContains(t, err, want)
	}
}

func TestFragmentsExpireIsBounded(t *testing.T) {
	f := newFragments(t, nil)
	for i := range uint32(1000) {
		_, reason := f.Later(&Datagram{server, shared, i, numUDP}, []byte{1}, 0)
		require.Equal(t, Held, reason)
	}
	calls := 1
	for ; f.Expire(3); calls++ {
		require.Less(t, calls, 10)
	}
	assert.Equal(t, 4, calls)
	assert.EqualValues(t, 1000, f.Lost())
}

// TestFragmentsAllocate: only a source that is not known yet costs memory.
func TestFragmentsAllocate(t *testing.T) {
	f := newFragments(t, nil)
	d := aDatagram
	stays := aDatagram
	buf, packet := make([]byte, 2000), make([]byte, 1480)
	now := uint32(0)
	assert.Zero(t, testing.AllocsPerRun(5000, func() {
		now++
		f.First(&stays, Ports{}, now)
		d.ID = 5000 + now
		f.Later(&d, packet, now)
		f.First(&d, Ports{1, 2}, now)
		f.Next(&d, buf)
		f.Later(&d, packet, now)
	}))
}

// TestFragmentsTogether has the fragments of each datagram come to several
// workers in any order: each goes on exactly once.
func TestFragmentsTogether(t *testing.T) {
	f := newFragments(t, func(c *FragmentConfig) { c.SourceBytes = c.Bytes })
	const datagrams, workers = 300, 4
	var mu sync.Mutex
	gone := map[string]int{}
	count := func(packets ...string) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range packets {
			gone[p]++
		}
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range uint32(datagrams) {
				d := Datagram{server, shared, i, numUDP}
				if w == int(i)%workers {
					_, reason := f.First(&d, Ports{uint16(i), 2}, 0)
					assert.Equal(t, OK, reason)
					count(next(f, d)...)
					continue
				}
				packet := fmt.Sprintf("%d of %d", w, i)
				switch ports, reason := f.Later(&d, []byte(packet), 0); reason {
				case OK:
					assert.Equal(t, Ports{uint16(i), 2}, ports)
					count(packet)
				default:
					assert.Equal(t, Held, reason)
				}
			}
		})
	}
	wg.Wait()
	assert.Len(t, gone, datagrams*(workers-1))
	for p, n := range gone {
		assert.Equal(t, 1, n, p)
	}
}

// fragmentModel is what Fragments has to be: a list of datagrams, the oldest
// first.
type fragmentModel struct {
	c    FragmentConfig
	now  uint64
	all  []*modelDatagram
	lost uint64
}

type modelDatagram struct {
	Datagram
	born  uint64
	ports *Ports
	held  []string
}

func blocksOf(packet string) int { return max(1, (len(packet)+511)/512) }

// blocks is what waits, of a source or, without one, of all.
func (m *fragmentModel) blocks(src netip.Addr) (n int) {
	for _, g := range m.all {
		if !src.IsValid() || g.Src == src {
			for _, p := range g.held {
				n += blocksOf(p)
			}
		}
	}
	return n
}

func (m *fragmentModel) drop(i int) {
	m.lost += uint64(len(m.all[i].held))
	m.all = slices.Delete(m.all, i, i+1)
}

func (m *fragmentModel) expire() {
	for len(m.all) > 0 && m.now-m.all[0].born > uint64(m.c.Timeout) {
		m.drop(0)
	}
}

func (m *fragmentModel) find(d Datagram) *modelDatagram {
	for _, g := range m.all {
		if g.Datagram == d {
			return g
		}
	}
	return nil
}

func (m *fragmentModel) add(d Datagram) *modelDatagram {
	same, oldest := 0, 0
	for i, g := range slices.Backward(m.all) {
		if g.Src == d.Src {
			same++
			oldest = i
		}
	}
	if same >= m.c.SourceDatagrams {
		m.drop(oldest)
	}
	if len(m.all) >= m.c.Datagrams {
		return nil
	}
	g := &modelDatagram{Datagram: d, born: m.now}
	m.all = append(m.all, g)
	return g
}

func (m *fragmentModel) first(d Datagram, p Ports) (int, Reason) {
	g := m.find(d)
	if g == nil {
		if g = m.add(d); g == nil {
			return 0, FragmentsFull
		}
	}
	g.ports, g.born = &p, m.now
	m.all = append(slices.DeleteFunc(m.all, func(o *modelDatagram) bool { return o == g }), g)
	return len(g.held), OK
}

func (m *fragmentModel) later(d Datagram, packet string) (Ports, Reason) {
	g := m.find(d)
	if g != nil && g.ports != nil {
		return *g.ports, OK
	}
	n := blocksOf(packet)
	if (m.blocks(netip.Addr{})+n)*512 > m.c.Bytes || (m.blocks(d.Src)+n)*512 > m.c.SourceBytes {
		return Ports{}, FragmentsFull
	}
	if g == nil {
		if g = m.add(d); g == nil {
			return Ports{}, FragmentsFull
		}
	}
	g.held = append(g.held, packet)
	return Ports{}, Held
}

func (m *fragmentModel) next(d Datagram) (string, bool) {
	g := m.find(d)
	if g == nil || g.ports == nil || len(g.held) == 0 {
		return "", false
	}
	packet := g.held[0]
	g.held = g.held[1:]
	return packet, true
}

// TestBlocks compares blocks with queues of packets.
func TestBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBlocks(20)
		var queues [3]held
		var want [3][]string
		buf := make([]byte, 1<<16)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			q := rapid.IntRange(0, 2).Draw(t, "queue")
			packet := bytes.Repeat([]byte{byte(b.left)}, rapid.SampledFrom([]int{0, 1, 512, 513, 1500}).Draw(t, "size"))
			if rapid.Bool().Draw(t, "put") && b.needed(len(packet)) <= b.left {
				b.put(&queues[q], packet)
				want[q] = append(want[q], string(packet))
			} else if len(want[q]) > 0 {
				n, blocks := b.take(&queues[q], buf)
				require.Equal(t, want[q][0], string(buf[:n]))
				require.Equal(t, blocksOf(want[q][0]), blocks)
				want[q] = want[q][1:]
			}
			left := 20
			for q := range want {
				require.Equal(t, len(want[q]), queues[q].count)
				for _, p := range want[q] {
					left -= blocksOf(p)
				}
			}
			require.Equal(t, left, b.left)
		}
	})
}

// FuzzFragments drives Fragments and the model with the same calls, of which
// each takes four bytes of the input, and compares every answer.
func FuzzFragments(f *testing.F) {
	f.Add([]byte("\x00\x11\x05\x00\x01\x11\x02\x03\x02\x11\x00\x00\x00\x11\xff\x07"))
	f.Add([]byte("\x01\x00\x00\x01\x00\x01\x80\x02\x00\x02\x80\x02\x03\x00\x00\x03\x01\x02\x00\x00\x02\x02\x00\x00\x02\x02\x00\x00"))
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var many []byte
		for range 400 {
			many = binary.LittleEndian.AppendUint32(many, r.Uint32())
		}
		f.Add(many)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		c := FragmentConfig{Datagrams: 6, SourceDatagrams: 3, Bytes: 10 * 512, SourceBytes: 6 * 512, Timeout: 2}
		const start = math.MaxUint32 - 20
		got, err := NewFragments(c)
		require.NoError(t, err)
		m := &fragmentModel{c: c}
		buf := make([]byte, 2048)
		for ; len(input) >= 4; input = input[4:] {
			d := aDatagram
			d.Src = []netip.Addr{server, other, shared, clientA}[input[1]&3]
			d.ID = uint32(input[1] >> 2 & 7)
			now := uint32(start + m.now)
			switch input[0] % 4 {
			case 0:
				packet := bytes.Repeat([]byte{input[2] ^ input[3]}, int(input[2])*int(input[3]&7))
				m.expire()
				ports, reason := got.Later(&d, packet, now)
				wantPorts, want := m.later(d, string(packet))
				require.Equal(t, want, reason)
				require.Equal(t, wantPorts, ports)
			case 1:
				p := Ports{uint16(input[2]), uint16(input[3])}
				m.expire()
				waiting, reason := got.First(&d, p, now)
				wantWaiting, want := m.first(d, p)
				require.Equal(t, want, reason)
				require.Equal(t, wantWaiting, waiting)
			case 2:
				n, ok := got.Next(&d, buf)
				packet, want := m.next(d)
				require.Equal(t, want, ok)
				require.Equal(t, packet, string(buf[:n]))
			case 3:
				m.now += uint64(input[3] & 3)
				m.expire()
				require.False(t, got.Expire(uint32(start+m.now)))
			}
			require.Equal(t, m.lost, got.Lost())
			require.Len(t, got.index, len(m.all))
			require.Equal(t, c.Bytes/512-m.blocks(netip.Addr{}), got.blocks.left)
			for _, src := range []netip.Addr{server, other, shared, clientA} {
				if s := got.sources[addressOf(src)]; s != nil {
					require.Equal(t, m.blocks(src), s.blocks)
				}
			}
		}
		require.False(t, got.Expire(uint32(start+m.now+3)))
		require.Empty(t, got.index)
		require.Empty(t, got.sources)
		require.Equal(t, c.Bytes/512, got.blocks.left)
	})
}
