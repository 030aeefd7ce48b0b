package dataplane

import (
	"encoding/binary"
	"math/bits"

	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// A client's first packets must not leave before its lease is on disk, and a
// worker never waits for a disk. Until then it holds them back rather than
// dropping them: a dropped SYN costs the client a second. Plane.Wake has held
// packets tried again. No packet overtakes one of its source that came before
// it through the same queue, and what leaves is what would have left at once.

const (
	// heldPackets bounds what one worker holds. A new client sends one SYN, or
	// a few queries, and a lease takes milliseconds: this is thousands of new
	// clients a second.
	heldPackets = 64
	// heldBytes bounds their bytes. First packets are small, and yet a few
	// super-packets of UDP fit.
	heldBytes = 256 << 10
	// heldPerSource keeps one talkative source from filling the list.
	heldPerSource = 8
	// heldTicks is how long one is held at most. Senders have tried again by
	// then, and a disk that slow is no moment's matter.
	heldTicks = 2
	// triedEvery is how many packets a busy worker handles at least between two
	// trials of all it holds, so that neither a flood of new sources nor its
	// many wakes cost the others more than 2 trials a packet.
	triedEvery = heldPackets / 2
)

// holding is what one worker holds back, in the order it came.
type holding struct {
	packets [heldPackets]held
	n       int
	bytes   []byte // of the packets, one after another
	used    int

	// marks counts packets by the hash of their source, so that the packets of
	// others under way need no search.
	marks [1 << marksBits]uint8

	wakes uint32 // of the Plane, when they were tried last
	rest  int    // packets to handle before they may be tried again without ErrWoken
}

const marksBits = 10

type held struct {
	source source
	header tun.Header
	size   int
	since  uint32 // tick
}

// source is an IPv6 source address.
type source struct{ a, b uint64 }

// sourceOf is the source of an IPv6 packet as its header has it. Of others, and
// of what is too short to have one, it is zero, and such are never held.
func sourceOf(packet []byte) source {
	if len(packet) < 40 || packet[0]>>4 != 6 {
		return source{}
	}
	return source{binary.BigEndian.Uint64(packet[8:]), binary.BigEndian.Uint64(packet[16:])}
}

func (l *holding) mark(s source) *uint8 {
	return &l.marks[(s.a^bits.RotateLeft64(s.b, 17))*0x9e3779b97f4a7c15>>(64-marksBits)]
}

// of is how many packets of the source are held.
func (l *holding) of(s source) (n int) {
	if *l.mark(s) == 0 {
		return 0
	}
	for i := range l.n {
		if l.packets[i].source == s {
			n++
		}
	}
	return n
}

// holds reports whether the packet has to wait behind others of its source.
func (l *holding) holds(packet []byte) bool {
	return l.n > 0 && l.of(sourceOf(packet)) > 0
}

// add takes a copy of the packet, or reports that there is no room for it.
func (l *holding) add(packet []byte, h *tun.Header, tick uint32) bool {
	s := sourceOf(packet)
	if s == (source{}) || l.n == heldPackets || l.used+len(packet) > heldBytes || l.of(s) >= heldPerSource {
		return false
	}
	l.packets[l.n] = held{s, *h, len(packet), tick}
	l.n++
	l.used += copy(l.bytes[l.used:], packet)
	*l.mark(s)++
	return true
}

// keep moves packet i, whose bytes begin at from, to the end of those that stay.
func (l *holding) keep(i, from int) {
	p := l.packets[i]
	l.packets[l.n] = p
	l.n++
	if l.used != from {
		copy(l.bytes[l.used:], l.bytes[from:from+p.size])
	}
	l.used += p.size
}

// hold keeps the packet for later, or drops it if there is no room.
func (w *worker) hold(packet []byte, h *tun.Header) {
	if !w.holding.add(packet, h, w.tick.Load()) {
		w.verdicts[translate.LeasePending].Add(1)
		return
	}
	w.held.Store(int32(w.holding.n))
}

// retryIfDue comes before each packet. A Wake that found nothing held did not
// wake the queue, and one for a busy queue is not heard there.
func (w *worker) retryIfDue() {
	l := &w.holding
	if l.n == 0 {
		return
	}
	if l.rest--; l.rest < 0 && w.wakes.Load() != l.wakes {
		w.retry()
	}
}

// retry tries all held packets again, and drops those held for too long.
func (w *worker) retry() {
	l := &w.holding
	l.wakes = w.wakes.Load() // first: what changes from here on has a Wake of its own
	tick := w.tick.Load()
	all, from := l.n, 0
	l.n, l.used = 0, 0
	for i := range all {
		p := &l.packets[i]
		start, mark := from, l.mark(p.source)
		from += p.size
		// What stays holds back what comes behind it: its lease may come into
		// force between the two.
		if l.of(p.source) > 0 || !w.release(p, l.bytes[start:from], tick) {
			l.keep(i, start)
			continue
		}
		*mark--
	}
	l.rest = 0
	if l.n > 0 {
		l.rest = triedEvery
	}
	w.held.Store(int32(l.n))
}

// release takes a held packet through all its steps, unless it has to stay.
func (w *worker) release(p *held, packet []byte, tick uint32) bool {
	if !w.open.Load() {
		w.verdicts[translate.Unguarded].Add(1)
		return true
	}
	n := copy(w.translator.packet.Buf[headroom:], packet)
	o := w.translator.handle(n, &p.header, tick, w)
	// LeaseLimited says nothing here: its lease was asked for before.
	if (o.Verdict == translate.LeasePending || o.Verdict == translate.LeaseLimited) && tick-p.since <= heldTicks {
		return false
	}
	w.done(o, tick)
	return true
}

// Wake has the workers try again what they hold back because its lease was
// pending: leases came into force, or were refused. It costs nothing where
// nothing is held.
func (p *Plane) Wake() {
	p.wakes.Add(1) // before held is read: a worker sets held, and then reads wakes
	for _, w := range p.workers {
		if w.held.Load() > 0 {
			w.queue.Wake()
		}
	}
}
