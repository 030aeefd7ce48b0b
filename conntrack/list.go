package conntrack

import (
	"iter"
	"net/netip"
)

// Session is one flow, as listings show it.
type Session struct {
	Client     netip.Addr
	ClientPort uint16 // or echo identifier
	IPv4       netip.Addr
	Port       uint16         // external
	Protocol   uint8          // of IPv4
	Remote     netip.AddrPort // of protocols other than TCP the one the client last sent to
	State      State
	Idle       uint32 // seconds since its last packet
	Expires    uint32 // seconds until it ends unless refreshed
}

// listed is how many mappings are read under one lock.
const listed = 128

// Sessions lists the sessions of a client, or of all if the address is the
// zero Addr. What is opened or ends meanwhile may be there or not. No lock is
// held while the caller has a Session.
func (t *Table) Sessions(client netip.Addr, now uint32) iter.Seq[Session] {
	return func(yield func(Session) bool) {
		if client.IsValid() {
			c := addressOf(client)
			t.shard(t.hash(c)).list(c, now, yield)
			return
		}
		for i := range t.shards {
			s := &t.shards[i]
			for _, c := range s.clients() {
				if !s.list(c, now, yield) {
					return
				}
			}
		}
	}
}

// clients are those that have sessions. It takes the mutex.
func (s *shard) clients() []address {
	s.mu.Lock()
	defer s.mu.Unlock()
	clients := make([]address, 0, len(s.owners))
	for c := range s.owners {
		clients = append(clients, c)
	}
	return clients
}

// list lists the sessions of a client and reports whether to go on. It takes
// the mutex again and again.
func (s *shard) list(c address, now uint32, yield func(Session) bool) bool {
	var rows []Session
	for p := range protocols {
		for from := 0; from >= 0; {
			rows, from = s.page(rows[:0], c, p, from, now)
			for _, r := range rows {
				if !yield(r) {
					return false
				}
			}
		}
	}
	return true
}

// page adds the sessions of some of a client's mappings, from a place in its
// session part on, and returns where the next page begins, -1 behind the last.
// It takes the mutex.
func (s *shard) page(rows []Session, c address, p protocol, from int, now uint32) ([]Session, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.owners[c]
	if o == nil {
		return rows, -1
	}
	k := key{c, s.t.hash(c), o.part}
	ports := &o.ports[p]
	for range listed {
		at := ports.next(from)
		if at < 0 {
			return rows, -1
		}
		rows = s.rows(rows, s.findIn(&k, p, o.part.first+uint16(at)), now)
		from = at + 1
	}
	return rows, from
}

// rows adds the flows of a mapping.
func (s *shard) rows(rows []Session, m uint32, now uint32) []Session {
	mp := &s.t.slots.mappings[m]
	for i := mp.flows; i != 0; i = s.t.slots.flows[i].next {
		fl := &s.t.slots.flows[i]
		if fl.expired(now) {
			continue
		}
		remote := netip.AddrPortFrom(addr4(fl.peer.v4), fl.peer.port)
		if mp.protocol == protocolICMP {
			remote = netip.AddrPortFrom(remote.Addr(), 0)
		}
		rows = append(rows, Session{
			Client: mp.client.addr(), ClientPort: mp.internal,
			IPv4: addr4(mp.v4), Port: mp.external, Protocol: numbers[mp.protocol],
			Remote: remote, State: fl.state,
			Idle:    uint32(max(0, int32(now-fl.seen))), // a worker's clock may be ahead
			Expires: fl.deadline + 1 - now,
		})
	}
	return rows
}
