package conntrack

import "sync"

// portMapping ties a client's port to an external one. Like a flow it holds no
// pointer, so that the collector has nothing to follow; mappings and flows are
// named by their place, and place 0 is none.
type portMapping struct {
	client          address
	v4              uint32
	external        uint16
	internal        uint16
	protocol        protocol
	flows           uint32 // the first of its flows
	nextOut, nextIn uint32 // in the same bucket
}

// flow is a session: of TCP a connection, of other protocols all that a
// mapping carries.
type flow struct {
	mapping    uint32
	peer       peer // of protocols other than TCP the one the client last sent to
	state      State
	deadline   uint32 // the last tick at which it is there
	filed      uint32 // the tick at which the wheel comes by
	seen       uint32
	prev, next uint32 // of the same mapping
	up, down   uint32 // in the same bucket of the wheel
	chain      uint32 // in the same bucket of flows, for TCP; of free ones
}

// slots is the memory of all mappings and flows, of a fixed size. Each that is
// taken belongs to one shard.
type slots struct {
	flows    []flow
	mappings []portMapping

	mu          sync.Mutex
	freeFlow    uint32 // chained by chain
	freeMapping uint32 // chained by nextOut
	newFlow     uint32 // the first that was never used: it has not been touched
	newMapping  uint32
	used        int
}

func newSlots(n int) slots {
	return slots{flows: make([]flow, n+1), mappings: make([]portMapping, n+1), newFlow: 1, newMapping: 1}
}

// take gives a flow, and a mapping if that is wanted; 0 if there is none left.
// Mappings do not run out: each has a flow at least.
func (s *slots) take(withMapping bool) (fl, m uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.freeFlow != 0:
		fl = s.freeFlow
		s.freeFlow = s.flows[fl].chain
	case int(s.newFlow) < len(s.flows):
		fl = s.newFlow
		s.newFlow++
	default:
		return 0, 0
	}
	s.used++
	switch {
	case !withMapping:
	case s.freeMapping != 0:
		m = s.freeMapping
		s.freeMapping = s.mappings[m].nextOut
	default:
		m = s.newMapping
		s.newMapping++
	}
	return fl, m
}

// give takes back a flow, and its mapping unless it is 0.
func (s *slots) give(fl, m uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flows[fl].chain = s.freeFlow
	s.freeFlow = fl
	s.used--
	if m != 0 {
		s.mappings[m].nextOut = s.freeMapping
		s.freeMapping = m
	}
}

func (s *slots) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}
