package conntrack

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

const (
	shardBits  = 6
	shardCount = 1 << shardBits
)

// shard is the sessions of some of the clients. Its methods run under its
// mutex.
type shard struct {
	mu     sync.Mutex
	t      *Table
	owners map[address]*owner // clients with sessions

	// Buckets of mappings by the client's port and by the external one, and of
	// flows of TCP by mapping and peer. Their number is fixed, so that nothing
	// ever has to be sorted anew.
	out, in, flows []uint32

	// changes counts what may make a packet come to something else than the one
	// before it, as Table.Changes says. It is apart from the mutex, which is
	// written all the time.
	changes atomic.Uint32

	wheel [wheelSize]uint32 // flows by the tick they are filed under
	done  uint32            // the tick up to which the wheel has turned
}

// owner is a client that has sessions.
type owner struct {
	part     part
	flows    int
	incoming int // flows in V4Init
	ports    [protocols]portSet
}

// outbound finds or makes the session of a client's packet and returns its
// external port.
func (s *shard) outbound(k *key, p protocol, internal uint16, to peer, flags uint8, now uint32) (uint16, Reason) {
	m := s.findOut(k, p, internal)
	if m == 0 || !s.alive(m, now) {
		return s.open(k, p, internal, to, flags, now)
	}
	external := s.t.slots.mappings[m].external
	if p != protocolTCP {
		fl := s.first(m)
		if fl.peer != to {
			fl.peer = to
			s.changes.Add(1)
		}
		s.refresh(fl, idle[p], now)
		return external, OK
	}
	if i := s.findFlow(m, to, now); i != 0 {
		s.step(i, true, flags, now)
		return external, OK
	}
	state, opens := begin(flags)
	if !opens { // RFC 6146 3.5.2.2: it is translated and leaves no trace
		return external, OK
	}
	return external, s.admit(k, m, to, state, now)
}

// inbound finds the session of a packet from outside and returns the client's
// port.
func (s *shard) inbound(k *key, p protocol, external uint16, from peer, flags uint8, now uint32) (uint16, Reason) {
	m := s.findIn(k, p, external)
	if m == 0 || !s.alive(m, now) {
		return 0, NoSession
	}
	internal := s.t.slots.mappings[m].internal
	if p != protocolTCP {
		if fl := s.first(m); fl.peer.v4 == from.v4 {
			s.refresh(fl, idle[p], now)
		}
		return internal, OK
	}
	if i := s.findFlow(m, from, now); i != 0 {
		s.step(i, false, flags, now)
		return internal, OK
	}
	if flags&(flagSYN|flagRST|flagACK) == flagSYN {
		// Where there is no room for it, the client's answer makes the flow.
		_ = s.admit(k, m, from, V4Init, now)
	}
	return internal, OK
}

// open makes a mapping and its first flow. What has expired may be in the way
// of it: then the wheel is turned first.
func (s *shard) open(k *key, p protocol, internal uint16, to peer, flags uint8, now uint32) (uint16, Reason) {
	state := Open
	if p == protocolTCP {
		var opens bool
		if state, opens = begin(flags); !opens {
			return 0, NotSYN
		}
	}
	m, reason := s.create(k, p, internal)
	if reason != OK {
		s.advance(now, expireLock)
		if m, reason = s.create(k, p, internal); reason != OK {
			return 0, reason
		}
	}
	mp := &s.t.slots.mappings[m]
	s.start(mp.flows, to, state, now)
	return mp.external, OK
}

// create makes a mapping with a flow that has yet to be started.
func (s *shard) create(k *key, p protocol, internal uint16) (uint32, Reason) {
	o := s.owners[k.client]
	if o != nil && o.part != k.part { // the client has another range now
		s.end(k.client, o)
		o = nil
	}
	if o != nil && o.flows >= s.t.limit {
		return 0, ClientFull
	}
	if o != nil && o.ports[p].used == k.part.size() {
		return 0, PartFull
	}
	fl, m := s.t.slots.take(true)
	if fl == 0 {
		return 0, TableFull
	}
	if o == nil {
		o = &owner{part: k.part}
		s.owners[k.client] = o
	}
	o.flows++
	mp := &s.t.slots.mappings[m]
	*mp = portMapping{
		client: k.client, v4: k.part.v4, protocol: p, internal: internal,
		external: k.part.first + uint16(o.ports[p].take(k.part.size())), flows: fl,
	}
	s.t.slots.flows[fl] = flow{mapping: m}
	out, in := s.bucketOut(k.hash, p, internal), s.bucketIn(k.hash, p, mp.external)
	mp.nextOut, mp.nextIn = *out, *in
	*out, *in = m, m
	return m, OK
}

// admit adds a flow of TCP to a living mapping. What has expired may be in the
// way of it, as in open.
func (s *shard) admit(k *key, m uint32, to peer, state State, now uint32) Reason {
	reason := s.join(k, m, to, state, now)
	if reason != OK {
		s.advance(now, expireLock)
		reason = s.join(k, m, to, state, now)
	}
	return reason
}

func (s *shard) join(k *key, m uint32, to peer, state State, now uint32) Reason {
	o := s.owners[k.client]
	if o.flows >= s.t.limit || state == V4Init && o.incoming >= s.t.incoming {
		return ClientFull
	}
	i, _ := s.t.slots.take(false)
	if i == 0 {
		return TableFull
	}
	o.flows++
	mp := &s.t.slots.mappings[m]
	s.t.slots.flows[i] = flow{mapping: m, next: mp.flows}
	s.t.slots.flows[mp.flows].prev = i
	mp.flows = i
	s.start(i, to, state, now)
	return OK
}

// start fills a new flow of a mapping.
func (s *shard) start(i uint32, to peer, state State, now uint32) {
	fl := &s.t.slots.flows[i]
	mp := &s.t.slots.mappings[fl.mapping]
	fl.peer, fl.state, fl.seen = to, state, now
	l := idle[mp.protocol]
	switch {
	case state == V4Init:
		s.owners[mp.client].incoming++
		l = incomingSYN
	case mp.protocol == protocolTCP:
		l = transitory
	}
	fl.deadline = now + s.t.lifetime[l]
	s.file(i)
	if mp.protocol == protocolTCP {
		b := s.bucketFlow(fl.mapping, to)
		fl.chain = *b
		*b = i
	}
}

// step takes a flow of TCP through its states.
func (s *shard) step(i uint32, v6 bool, flags uint8, now uint32) {
	fl := &s.t.slots.flows[i]
	was := fl.state
	state, l := step(was, v6, flags)
	if state != was {
		fl.state = state
		s.changes.Add(1)
	}
	if was == V4Init && state != V4Init {
		s.owners[s.t.slots.mappings[fl.mapping].client].incoming--
	}
	if l == keep {
		fl.seen = now
		return
	}
	s.refresh(fl, l, now)
	if int32(fl.deadline+1-fl.filed) < 0 { // sooner than the wheel comes by
		s.unfile(i)
		s.file(i)
	}
}

// refresh gives a flow another lifetime. The wheel finds out.
func (s *shard) refresh(fl *flow, l lifetime, now uint32) {
	fl.seen, fl.deadline = now, now+s.t.lifetime[l]
}

// first is the first flow of a mapping, and the only one unless it is TCP's.
func (s *shard) first(m uint32) *flow { return &s.t.slots.flows[s.t.slots.mappings[m].flows] }

// alive reports whether a mapping has a flow whose time has not come. Flows
// whose time has come are removed until one is found, possibly with the
// mapping.
func (s *shard) alive(m uint32, now uint32) bool {
	i := s.t.slots.mappings[m].flows
	for i != 0 && s.t.slots.flows[i].expired(now) {
		next := s.t.slots.flows[i].next
		s.remove(i)
		i = next
	}
	return i != 0
}

func (fl *flow) expired(now uint32) bool { return int32(now-fl.deadline) > 0 }

// findOut finds the mapping of a client's port, 0 if there is none. One of
// another range than the client has now is none.
func (s *shard) findOut(k *key, p protocol, internal uint16) uint32 {
	m := *s.bucketOut(k.hash, p, internal)
	for m != 0 {
		mp := &s.t.slots.mappings[m]
		if mp.internal == internal && mp.protocol == p && mp.client == k.client {
			if mp.v4 != k.part.v4 || mp.external < k.part.first || mp.external > k.part.last {
				return 0
			}
			return m
		}
		m = mp.nextOut
	}
	return 0
}

// findIn finds the mapping of an external port, 0 if there is none.
func (s *shard) findIn(k *key, p protocol, external uint16) uint32 {
	m := *s.bucketIn(k.hash, p, external)
	for m != 0 {
		mp := &s.t.slots.mappings[m]
		if mp.external == external && mp.protocol == p && mp.v4 == k.part.v4 && mp.client == k.client {
			return m
		}
		m = mp.nextIn
	}
	return 0
}

// findFlow finds the flow of a living mapping of TCP to a peer, 0 if there is
// none.
func (s *shard) findFlow(m uint32, p peer, now uint32) uint32 {
	// Most have one flow only.
	i := s.t.slots.mappings[m].flows
	if s.t.slots.flows[i].peer == p {
		return i
	}
	i = *s.bucketFlow(m, p)
	for i != 0 {
		fl := &s.t.slots.flows[i]
		if fl.mapping == m && fl.peer == p {
			break
		}
		i = fl.chain
	}
	if i != 0 && s.t.slots.flows[i].expired(now) {
		s.remove(i)
		return 0
	}
	return i
}

// remove removes a flow, with its mapping if it was the last, and that with
// its client's entry if it was the last.
func (s *shard) remove(i uint32) {
	s.changes.Add(1)
	fl := &s.t.slots.flows[i]
	m := fl.mapping
	mp := &s.t.slots.mappings[m]
	o := s.owners[mp.client]
	o.flows--
	if fl.state == V4Init {
		o.incoming--
	}
	s.unfile(i)
	if mp.protocol == protocolTCP {
		s.unchain(i)
	}
	if fl.next != 0 {
		s.t.slots.flows[fl.next].prev = fl.prev
	}
	if fl.prev != 0 {
		s.t.slots.flows[fl.prev].next = fl.next
	} else {
		mp.flows = fl.next
	}
	if mp.flows != 0 {
		s.t.slots.give(i, 0)
		return
	}
	s.unlink(m)
	o.ports[mp.protocol].release(int(mp.external - o.part.first))
	if o.flows == 0 {
		delete(s.owners, mp.client)
	}
	s.t.slots.give(i, m)
}

// unchain takes a flow of TCP out of its bucket.
func (s *shard) unchain(i uint32) {
	fl := &s.t.slots.flows[i]
	at := s.bucketFlow(fl.mapping, fl.peer)
	for *at != i {
		at = &s.t.slots.flows[*at].chain
	}
	*at = fl.chain
}

// unlink takes a mapping out of its buckets.
func (s *shard) unlink(m uint32) {
	mp := &s.t.slots.mappings[m]
	hash := s.t.hash(mp.client)
	at := s.bucketOut(hash, mp.protocol, mp.internal)
	for *at != m {
		at = &s.t.slots.mappings[*at].nextOut
	}
	*at = mp.nextOut
	at = s.bucketIn(hash, mp.protocol, mp.external)
	for *at != m {
		at = &s.t.slots.mappings[*at].nextIn
	}
	*at = mp.nextIn
}

// end removes all of a client's flows.
func (s *shard) end(client address, o *owner) {
	k := key{client, s.t.hash(client), o.part}
	for p := range protocols {
		ports := &o.ports[p]
		for i := ports.next(0); i >= 0; i = ports.next(i) {
			s.remove(s.t.slots.mappings[s.findIn(&k, p, o.part.first+uint16(i))].flows)
		}
	}
}

func (s *shard) bucketOut(hash uint64, p protocol, internal uint16) *uint32 {
	return &s.out[s.bucket(hash, uint64(p)<<16|uint64(internal))]
}

func (s *shard) bucketIn(hash uint64, p protocol, external uint16) *uint32 {
	return &s.in[s.bucket(hash, uint64(p)<<16|uint64(external))]
}

func (s *shard) bucketFlow(m uint32, p peer) *uint32 {
	return &s.flows[s.bucket(uint64(m), uint64(p.v4)<<16|uint64(p.port))]
}

// bucket is the index of a key of two words in any of the shard's three tables.
func (s *shard) bucket(a, b uint64) uint64 {
	return maphash.Comparable(s.t.seed, [2]uint64{a, b}) & s.t.mask
}
