package dataplane

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"github.com/natless/natless/mapping"
)

// steady remembers what sessions made of the last packets, so that of those
// under way one packet a second goes to the table of sessions, which is large
// and locked, and the others see a line of memory of their worker's own. It
// belongs to one Translator. What it holds is good for the tick it was learnt
// in and until something happens to a session nearby (conntrack.Table.Changes).
type steady [1 << steadyBits][2]passage

// steadyBits makes room for some thousand flows. Of those that collide the last
// two stay.
const steadyBits = 12

type passage struct {
	question
	changes *atomic.Uint32
	count   uint32 // of changes
	port    uint16 // which the session gives
}

// question is all that what a session makes of a packet depends on, in words
// that are quick to compare.
type question struct {
	r    *mapping.Range
	who  uint64 // the remote's address and port, and the port that the session is to change
	when uint64 // tick, protocol and direction
}

func ask(r *mapping.Range, remote netip.Addr, remotePort, port uint16, proto uint8, out bool, tick uint32) question {
	b := remote.As4()
	q := question{r, uint64(binary.BigEndian.Uint32(b[:]))<<32 | uint64(remotePort)<<16 | uint64(port), uint64(tick)<<9 | uint64(proto)<<1}
	if out {
		q.when |= 1
	}
	return q
}

// unsteady are the flags of TCP that do something to a session.
const unsteady = 0x01 | 0x02 | 0x04 // FIN, SYN, RST

// at is the only place for what is asked.
func (s *steady) at(q *question) *[2]passage {
	h := q.who ^ uint64(q.r.First)<<48 ^ q.when<<55 // of which the tick falls off
	return &s[h*0x9e3779b97f4a7c15>>(64-steadyBits)]
}

// find is the port that a session gave, or reports that it is to be asked.
func (s *steady) find(q *question, flags uint8) (port uint16, ok bool) {
	if flags&unsteady != 0 {
		return 0, false
	}
	set := s.at(q)
	for i := range set {
		if p := &set[i]; p.question == *q && p.changes.Load() == p.count {
			return p.port, true
		}
	}
	return 0, false
}

// keep takes what a session said, when count was what changes counted.
func (s *steady) keep(q *question, flags uint8, changes *atomic.Uint32, count uint32, port uint16) {
	if flags&unsteady != 0 {
		return
	}
	set := s.at(q)
	if set[0].question != *q {
		set[1] = set[0]
	}
	set[0] = passage{*q, changes, count, port}
}
