package conntrack

import (
	"fmt"
	"net/netip"
	"sync"
)

// Datagram is what the fragments of one datagram have in common (RFC 791 3.2,
// RFC 8200 4.5), before translation.
type Datagram struct {
	Src, Dst netip.Addr
	ID       uint32
	Proto    uint8
}

// Ports are those of a datagram, in its first fragment.
type Ports struct{ Src, Dst uint16 }

// FragmentConfig bounds Fragments. The memory is reserved at once and becomes
// resident as it is used.
type FragmentConfig struct {
	Datagrams       int    // whose ports are known, or of which fragments wait
	SourceDatagrams int    // of these, from one source
	Bytes           int    // of waiting fragments; each takes a multiple of 512
	SourceBytes     int    // of these, from one source
	Timeout         uint32 // seconds, at least 2 (RFC 6146 4, FRAGMENT_MIN)
}

// DefaultFragments is the configuration without any wishes.
func DefaultFragments() FragmentConfig {
	return FragmentConfig{Datagrams: 16384, SourceDatagrams: 4096, Bytes: 4 << 20, SourceBytes: 512 << 10, Timeout: 2}
}

// blockSize is the unit in which waiting fragments take memory: three hold
// most, and the last fragment of a datagram is often short.
const blockSize = 512

func (c *FragmentConfig) check() error {
	const most int64 = 1 << 24
	if c.Datagrams < 1 || int64(c.Datagrams) > most || c.SourceDatagrams < 1 {
		return fmt.Errorf("conntrack: fragments of %d datagrams, %d from one source: expected 1 to %d", c.Datagrams, c.SourceDatagrams, most)
	}
	if c.Bytes < blockSize || int64(c.Bytes) > most*blockSize || c.SourceBytes < blockSize {
		return fmt.Errorf("conntrack: %d bytes of fragments, %d from one source: expected %d to %d", c.Bytes, c.SourceBytes, blockSize, most*blockSize)
	}
	if c.Timeout < 2 || c.Timeout > maxTimeout {
		return fmt.Errorf("conntrack: a fragment timeout of %d seconds: expected 2 (RFC 6146 3.4) to %d", c.Timeout, maxTimeout)
	}
	return nil
}

// Fragments knows the ports of fragmented datagrams (RFC 6146 3.4), so that
// later fragments can follow their first, in any order and on any queue. A
// worker that has resolved a first fragment calls First, and then Next for
// those that came too early. A later fragment goes on with the ports that Later
// gives; where there are none yet it is copied and waits.
//
// Nothing is reassembled, so that of overlaps and duplicates the receiver is
// the judge (RFC 5722). A first fragment without its whole transport header,
// or a later one that begins inside it (RFC 1858), must not come here: package
// translate refuses both. Where two first fragments of a datagram have
// different ports the newer counts: identifications come again soon on a fast
// link, and whoever forges one can only have a datagram never be completed.
//
// Time and memory are bounded, for each source too: one that has as many
// datagrams as it may loses the oldest, and of one that has as many bytes
// waiting no more wait. Since sources can be made up, IPv4 and IPv6 should
// have one Fragments each, so that neither side takes the other's memory.
//
// Its methods may be called from any goroutine. They take one lock; only those
// that meet a new source allocate.
type Fragments struct {
	config FragmentConfig

	mu      sync.Mutex
	index   map[datagramKey]uint32
	sources map[address]*source
	all     []datagram // all[0] is none
	free    uint32     // chained by newer
	unused  uint32     // the first that was never used
	queue   queue      // by age
	blocks  blocks
	lost    uint64
}

// datagramKey is a Datagram without pointers.
type datagramKey struct {
	src, dst address
	id       uint32
	proto    uint8
}

func keyOf(d *Datagram) datagramKey {
	return datagramKey{addressOf(d.Src), addressOf(d.Dst), d.ID, d.Proto}
}

// source is what the bounds of one source are about.
type source struct {
	queue     queue
	datagrams int
	blocks    int
}

// queue is datagrams by age.
type queue struct{ oldest, newest uint32 }

type datagram struct {
	key    datagramKey
	source *source
	ports  Ports
	known  bool   // ports are
	born   uint32 // tick
	held   held
	links  [2]link // in the queue of all, in that of its source
}

type link struct{ older, newer uint32 }

const (
	ofAll = iota
	ofSource
)

// NewFragments makes a Fragments that knows nothing. Errors come from the
// configuration.
func NewFragments(c FragmentConfig) (*Fragments, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Fragments{
		config:  c,
		index:   make(map[datagramKey]uint32),
		sources: make(map[address]*source),
		all:     make([]datagram, c.Datagrams+1),
		unused:  1,
		blocks:  newBlocks(c.Bytes / blockSize),
	}, nil
}

// First tells the ports of a datagram, before translation. It is to be called
// when its first fragment has been resolved, also if that was refused: the
// later ones then meet the same. waiting is how many of them Next has. The
// reason is OK or FragmentsFull; then the later ones will be refused, while
// the first may go on.
func (f *Fragments) First(d *Datagram, p Ports, now uint32) (waiting int, _ Reason) {
	key := keyOf(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now, 2)
	i := f.find(&key, now)
	if i == 0 {
		if i = f.add(&key, now); i == 0 {
			return 0, FragmentsFull
		}
	}
	g := &f.all[i]
	g.ports, g.known, g.born = p, true, now
	f.renew(i)
	return g.held.count, OK
}

// Later gives the ports of a later fragment's datagram. Without them the
// reason is Held: the packet has been copied and comes back by Next, or is
// dropped when its time is over. Or it is FragmentsFull, and the packet is to be
// dropped at once.
func (f *Fragments) Later(d *Datagram, packet []byte, now uint32) (Ports, Reason) {
	key := keyOf(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now, 2)
	i := f.find(&key, now)
	if i != 0 && f.all[i].known {
		return f.all[i].ports, OK
	}
	n := f.blocks.needed(len(packet))
	if n > f.blocks.left || n > f.allowance(key.src) {
		return Ports{}, FragmentsFull
	}
	if i == 0 {
		if i = f.add(&key, now); i == 0 {
			return Ports{}, FragmentsFull
		}
	}
	f.all[i].source.blocks += n
	f.blocks.put(&f.all[i].held, packet)
	return Ports{}, Held
}

// Next copies the next waiting fragment of a datagram, whose first has been
// here, to dst and forgets it. They come in the order in which they came to
// Later. dst must have room for any packet that was given to Later. ok is false
// when there are no more.
func (f *Fragments) Next(d *Datagram, dst []byte) (n int, ok bool) {
	key := keyOf(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.index[key]
	if i == 0 || !f.all[i].known || f.all[i].held.count == 0 {
		return 0, false
	}
	g := &f.all[i]
	n, blocks := f.blocks.take(&g.held, dst)
	g.source.blocks -= blocks
	return n, true
}

// Expire forgets what is too old and reports whether some is left for another
// call, for one call does a bounded amount of work. It is to be called every
// second.
func (f *Fragments) Expire(now uint32) (more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.expire(now, expireLock)
}

// Lost is how many fragments waited in vain so far: their first did not come
// in time, or their source had too many datagrams.
func (f *Fragments) Lost() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// expire forgets at most n datagrams, the oldest first.
func (f *Fragments) expire(now uint32, n int) (more bool) {
	for i := f.queue.oldest; i != 0 && f.old(i, now); i = f.queue.oldest {
		if n == 0 {
			return true
		}
		n--
		f.forget(i)
	}
	return false
}

func (f *Fragments) old(i, now uint32) bool {
	age := int32(now - f.all[i].born) // negative if another worker's clock is ahead
	return age > int32(f.config.Timeout)
}

// find finds a datagram, 0 if there is none or it is too old.
func (f *Fragments) find(key *datagramKey, now uint32) uint32 {
	i := f.index[*key]
	if i != 0 && f.old(i, now) {
		f.forget(i)
		return 0
	}
	return i
}

// allowance is how many blocks more a source may have.
func (f *Fragments) allowance(a address) int {
	n := f.config.SourceBytes / blockSize
	if s := f.sources[a]; s != nil {
		n -= s.blocks
	}
	return n
}

// add makes room for a datagram, 0 if there is none.
func (f *Fragments) add(key *datagramKey, now uint32) uint32 {
	s := f.sources[key.src]
	if s != nil && s.datagrams >= f.config.SourceDatagrams {
		f.forget(s.queue.oldest)
		s = f.sources[key.src] // gone if that was all it had
	}
	var i uint32
	switch {
	case f.free != 0:
		i = f.free
		f.free = f.all[i].links[ofAll].newer
	case int(f.unused) < len(f.all):
		i = f.unused
		f.unused++
	default:
		return 0
	}
	if s == nil {
		s = new(source)
		f.sources[key.src] = s
	}
	s.datagrams++
	f.all[i] = datagram{key: *key, source: s, born: now}
	f.index[*key] = i
	f.push(&f.queue, ofAll, i)
	f.push(&s.queue, ofSource, i)
	return i
}

// forget drops a datagram and what waits of it.
func (f *Fragments) forget(i uint32) {
	g := &f.all[i]
	f.lost += uint64(g.held.count)
	for g.held.count > 0 {
		_, blocks := f.blocks.take(&g.held, nil)
		g.source.blocks -= blocks
	}
	f.pull(&f.queue, ofAll, i)
	f.pull(&g.source.queue, ofSource, i)
	if g.source.datagrams--; g.source.datagrams == 0 {
		delete(f.sources, g.key.src)
	}
	delete(f.index, g.key)
	g.source = nil
	g.links[ofAll].newer = f.free
	f.free = i
}

// renew makes a datagram the newest.
func (f *Fragments) renew(i uint32) {
	s := f.all[i].source
	f.pull(&f.queue, ofAll, i)
	f.pull(&s.queue, ofSource, i)
	f.push(&f.queue, ofAll, i)
	f.push(&s.queue, ofSource, i)
}

func (f *Fragments) push(q *queue, of int, i uint32) {
	f.all[i].links[of] = link{older: q.newest}
	if q.newest != 0 {
		f.all[q.newest].links[of].newer = i
	} else {
		q.oldest = i
	}
	q.newest = i
}

func (f *Fragments) pull(q *queue, of int, i uint32) {
	l := f.all[i].links[of]
	if l.older != 0 {
		f.all[l.older].links[of].newer = l.newer
	} else {
		q.oldest = l.newer
	}
	if l.newer != 0 {
		f.all[l.newer].links[of].older = l.older
	} else {
		q.newest = l.older
	}
}
