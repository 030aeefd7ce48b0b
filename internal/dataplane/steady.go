package dataplane

import (
	"encoding/binary"
	"math/bits"
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
const steadyBits = 11

type passage struct {
	question
	changes *atomic.Uint32
	count   uint32 // of changes
	port    uint16 // which the session gives
}

// question is all that what a session makes of a packet depends on.
type question struct {
	r                 *mapping.Range
	remote            uint32
	tick              uint32
	local, remotePort uint16 // local as it was in the packet
	proto             uint8
	out               bool
}

// unsteady are the flags of TCP that do something to a session.
const unsteady = 0x01 | 0x02 | 0x04 // FIN, SYN, RST

// at is the only place for what is asked.
func (s *steady) at(q *question) *[2]passage {
	h := uint64(q.remote)<<32 | uint64(q.remotePort)<<16 | uint64(q.local)
	h ^= bits.RotateLeft64(uint64(q.r.First)<<32|uint64(number4(q.r.IPv4)), 17)
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

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
