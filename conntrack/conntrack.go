// Package conntrack remembers what arithmetic cannot know: the sessions of
// clients that share an IPv4 address, and the ports of fragmented datagrams.
//
// In the way of a packet it comes after package mapping. That has found which
// client a packet belongs to and which part of the client's port range is kept
// for sessions (Session to Last of a mapping.Range), in both directions by
// arithmetic, and has translated the addresses. A Table then changes the ports:
//
//   - IPv6 to IPv4, the source port outside the stateless part, or an echo
//     request: Out changes the client's port to one of the session part.
//   - IPv4 to IPv6, the destination port in a session part, or an echo reply:
//     In changes it back.
//   - The packet quoted in an ICMP error: PeekIn for an error from IPv4, PeekOut
//     for one from IPv6, with the quoted flow reversed. They open and refresh
//     nothing.
//   - A hairpin is Out for the one client and then In for the other.
//   - Later fragments have no ports. Fragments has those of their first, or
//     holds them until it comes; then they are PeekOut or PeekIn.
//   - End when a lease ends or its range becomes another. Expire every second.
//
// # Sessions
//
// A mapping ties a client's port (or echo identifier) of a protocol to an
// external port, whatever it talks to (RFC 4787 REQ-1). It is there as long as
// it has a flow. A mapping of TCP has one flow for each remote address and
// port, which goes through the states of RFC 6146 3.5.2 (tcp.go), for one
// source port may have many connections. Any other mapping has one flow that
// stands for all.
//
// Filtering is endpoint-independent (RFC 4787 REQ-8, RFC 6146 3.5.1): whoever
// sends to the external port of a mapping reaches the client. A filter would
// protect nothing, since the stateless part of the same client has none. But
// strangers change little: a mapping of UDP or ICMP is refreshed by what the
// client sends and by answers from the address it last sent to (RFC 4787 REQ-6
// leaves inbound refresh open), and no more than a quarter of a client's
// sessions can be made from outside, by SYNs, for six seconds each.
//
// External ports are drawn evenly from all that are free in the session part
// (RFC 6056 3.3.1, RFC 7857 9, with the runtime's ChaCha8). Parity of ports is not kept:
// RFC 4787 REQ-4 recommended that for RTP, RFC 7857 8 made it optional, and it
// would leave half as many ports to choose from, and to guess.
//
// # Bounds
//
// All memory for sessions is reserved by New; the system gives it as it is
// used for the first time. A client has at most the ports of its session part,
// for each protocol, and Config.ClientSessions flows; all have at most
// Config.Sessions.
//
// Nobody can have it take more than that costs: 4 MiB, 200 bytes for each of
// Config.Sessions (116 when a million are there), and for each client that has
// some 1 KiB and, for each protocol, a bit for each port of its session part.
// Fragments take 512 bytes for each of FragmentConfig.Datagrams, and nine
// eighths of FragmentConfig.Bytes.
//
// A client's sessions are behind one of 64 locks, chosen by its address. A
// packet takes one lock once and, unless it opens a session, allocates
// nothing. Expiry is by timer wheel: a packet only moves its flow's deadline,
// and the wheel finds out when it comes by. A flow whose time has come is gone
// at once, whether the wheel has been there or not.
package conntrack

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync/atomic"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// Timeouts are how long a session is kept without a packet that refreshes it,
// in seconds. A session lives at least that long: a clock of whole seconds
// makes it up to a second more.
type Timeouts struct {
	TCPEstablished uint32 // RFC 5382 REQ-5, RFC 6146 4 (TCP_EST and TCP_TRANS): at least 2 hours and 4 minutes
	TCPTransitory  uint32 // RFC 5382 REQ-5, RFC 6146 4 (TCP_TRANS): at least 4 minutes
	TCPIncomingSYN uint32 // RFC 5382 REQ-4, RFC 6146 4 (TCP_INCOMING_SYN): at least 6 seconds
	UDP            uint32 // RFC 4787 REQ-5, RFC 6146 4 (UDP_DEFAULT, UDP_MIN): 5 minutes, at least 2; UDP-Lite too
	ICMP           uint32 // RFC 5508 REQ-2, RFC 6146 4 (ICMP_DEFAULT): at least 60 seconds
	DCCP           uint32 // RFC 5597 REQ-5: as TCPEstablished, since its states are not observed; SCTP too
}

// Config is what a Table is made of.
type Config struct {
	Sessions       int // flows altogether, 1 to 1<<26
	ClientSessions int // flows of one client
	Timeouts       Timeouts
}

// Default is the configuration without any wishes.
func Default() Config {
	return Config{
		Sessions:       1_000_000,
		ClientSessions: 4096,
		Timeouts:       Timeouts{TCPEstablished: 7440, TCPTransitory: 240, TCPIncomingSYN: 6, UDP: 300, ICMP: 60, DCCP: 7440},
	}
}

// Limits of Config. The clock wraps, so that times are compared by their
// difference, which must stay far from half its range.
const (
	maxSessions = 1 << 26
	maxTimeout  = 1 << 30
)

func (c *Config) check() error {
	if c.Sessions < 1 || c.Sessions > maxSessions {
		return fmt.Errorf("conntrack: %d sessions: expected 1 to %d", c.Sessions, maxSessions)
	}
	if c.ClientSessions < 1 {
		return fmt.Errorf("conntrack: %d sessions per client: expected at least 1", c.ClientSessions)
	}
	for _, t := range []struct {
		name       string
		value, min uint32
		section    string
	}{
		{"TCP established", c.Timeouts.TCPEstablished, 7440, "RFC 5382 REQ-5"},
		{"TCP transitory", c.Timeouts.TCPTransitory, 240, "RFC 5382 REQ-5"},
		{"TCP incoming SYN", c.Timeouts.TCPIncomingSYN, 6, "RFC 5382 REQ-4"},
		{"UDP", c.Timeouts.UDP, 120, "RFC 4787 REQ-5"},
		{"ICMP", c.Timeouts.ICMP, 60, "RFC 5508 REQ-2"},
		{"DCCP", c.Timeouts.DCCP, 7440, "RFC 5597 REQ-5"},
	} {
		if t.value < t.min || t.value > maxTimeout {
			return fmt.Errorf("conntrack: %s timeout of %d seconds: expected %d (%s) to %d", t.name, t.value, t.min, t.section, maxTimeout)
		}
	}
	return nil
}

// Table is the sessions of all clients. Its methods may be called from any
// goroutine. Clocks (now) count seconds and may wrap; callers may be a little
// apart.
type Table struct {
	limit    int // flows of one client
	incoming int // of these, made from outside and not answered yet
	lifetime [lifetimes]uint32
	seed     maphash.Seed // secret, so that nobody can choose what collides
	mask     uint64       // of the buckets of a shard
	slots    slots
	shards   [shardCount]shard
}

// New makes a Table without sessions. now is the clock that its other methods
// will be told. It reserves memory for all sessions there may be, which
// becomes resident as it is used. Errors come from the configuration.
func New(c Config, now uint32) (*Table, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	t := &Table{
		limit:    c.ClientSessions,
		incoming: c.ClientSessions / 4,
		lifetime: [lifetimes]uint32{
			established: c.Timeouts.TCPEstablished, transitory: c.Timeouts.TCPTransitory, incomingSYN: c.Timeouts.TCPIncomingSYN,
			udp: c.Timeouts.UDP, icmp: c.Timeouts.ICMP, dccp: c.Timeouts.DCCP,
		},
		seed:  maphash.MakeSeed(),
		slots: newSlots(c.Sessions),
	}
	buckets := max(64, 2<<bits.Len(uint(c.Sessions-1)/shardCount))
	t.mask = uint64(buckets - 1)
	for i := range t.shards {
		s := &t.shards[i]
		s.t, s.done = t, now
		s.owners = make(map[address]*owner)
		s.out, s.in, s.flows = make([]uint32, buckets), make([]uint32, buckets), make([]uint32, buckets)
	}
	return t, nil
}

// Out changes the source port of a packet from a client to its external port,
// and opens a session if there is none. f has IPv4 addresses already, and the
// client's ports still; flags are the byte of them in a TCP header, without
// meaning for other protocols. Of ICMP it takes echo requests only, whose identifier is in
// both ports. Unless it returns OK, f is as it was.
func (t *Table) Out(r *mapping.Range, f *translate.Flow, flags uint8, now uint32) Reason {
	s, k, p, reason := t.lock(r, f)
	if reason != OK {
		return reason
	}
	port, reason := s.outbound(&k, p, f.SrcPort, peer{number4(f.Dst), f.DstPort}, flags, now)
	s.mu.Unlock()
	if reason == OK {
		setSource(f, p, port)
	}
	return reason
}

// In changes the destination port of a packet to a client's session part to
// the client's own. f has IPv4 addresses and the external port. Of ICMP it
// takes echo replies only. Unless it returns OK, f is as it was.
func (t *Table) In(r *mapping.Range, f *translate.Flow, flags uint8, now uint32) Reason {
	s, k, p, reason := t.lock(r, f)
	if reason != OK {
		return reason
	}
	port, reason := s.inbound(&k, p, f.DstPort, peer{number4(f.Src), f.SrcPort}, flags, now)
	s.mu.Unlock()
	if reason == OK {
		setDestination(f, p, port)
	}
	return reason
}

// Changes is a counter with which the caller may spare itself Out and In: as
// long as it stays and now stays, a packet that went through one of them comes
// to the same if it comes again, and leaves no other trace than it did. Of TCP
// that holds for packets without SYN, FIN and RST. The counter is to be read
// before the packet that is remembered goes through.
func (t *Table) Changes(r *mapping.Range) *atomic.Uint32 {
	return &t.shard(t.hash(addressOf(r.Client))).changes
}

// PeekOut is Out without consequences: it opens and refreshes nothing, and
// where Out would open a session it returns NoSession. It serves packets that
// ICMP errors quote (RFC 5508 REQ-4 to REQ-7), later fragments, and traces.
func (t *Table) PeekOut(r *mapping.Range, f *translate.Flow, now uint32) Reason {
	s, k, p, reason := t.lock(r, f)
	if reason != OK {
		return reason
	}
	defer s.mu.Unlock()
	m := s.findOut(&k, p, f.SrcPort)
	if m == 0 || !s.alive(m, now) {
		return NoSession
	}
	setSource(f, p, t.slots.mappings[m].external)
	return OK
}

// PeekIn is In without consequences, as PeekOut is for Out.
func (t *Table) PeekIn(r *mapping.Range, f *translate.Flow, now uint32) Reason {
	s, k, p, reason := t.lock(r, f)
	if reason != OK {
		return reason
	}
	defer s.mu.Unlock()
	m := s.findIn(&k, p, f.DstPort)
	if m == 0 || !s.alive(m, now) {
		return NoSession
	}
	setDestination(f, p, t.slots.mappings[m].internal)
	return OK
}

// CanOpen says what Out would where PeekOut says NoSession: OK if it would open
// a session, or why not. It serves traces.
func (t *Table) CanOpen(r *mapping.Range, f *translate.Flow, flags uint8, now uint32) Reason {
	s, k, p, reason := t.lock(r, f)
	if reason != OK {
		return reason
	}
	defer s.mu.Unlock()
	if _, opens := begin(flags); p == protocolTCP && !opens {
		return NotSYN
	}
	s.advance(now, expireLock)
	o := s.owners[k.client]
	if o == nil || o.part != k.part {
		o = &owner{}
	}
	switch {
	case o.flows >= t.limit:
		return ClientFull
	case o.ports[p].used == k.part.size():
		return PartFull
	case t.slots.len() == len(t.slots.flows)-1:
		return TableFull
	}
	return OK
}

// lock finds and locks the shard of a client's sessions, which the caller
// unlocks; unless the reason is OK, it locks nothing.
func (t *Table) lock(r *mapping.Range, f *translate.Flow) (s *shard, k key, p protocol, _ Reason) {
	p, reason := protocolOf(f.Proto)
	if reason != OK {
		return nil, key{}, p, reason
	}
	k = t.key(r)
	s = t.shard(k.hash)
	s.mu.Lock()
	return s, k, p, OK
}

// End removes all sessions of a client, because its lease has ended or has
// another range, and returns how many flows there were. Packets with another
// Range than those before do the same by themselves.
func (t *Table) End(client netip.Addr) int {
	c := addressOf(client)
	s := t.shard(t.hash(c))
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.owners[c]
	if o == nil {
		return 0
	}
	n := o.flows
	s.end(c, o)
	return n
}

// Work of Expire: flows looked at in one call, and under one lock.
const (
	expireCall = 16384
	expireLock = 256
)

// Expire forgets the sessions whose time has come and reports whether some are
// left for another call, for one call does a bounded amount of work. It is to
// be called every second.
func (t *Table) Expire(now uint32) (more bool) {
	left := expireCall
	for i := range t.shards {
		s := &t.shards[i]
		for done := false; !done; {
			if left < expireLock {
				return true
			}
			var worked int
			s.mu.Lock()
			worked, done = s.advance(now, expireLock)
			s.mu.Unlock()
			left -= worked
		}
	}
	return false
}

// Len is how many flows there are, those that Expire has yet to forget
// included.
func (t *Table) Len() int { return t.slots.len() }

// key is who asks, made once per packet.
type key struct {
	client address
	hash   uint64 // of client
	part   part
}

// address is an IPv6 address.
type address [2]uint64

// part is the external ports that a client's sessions may have.
type part struct {
	v4          uint32
	first, last uint16
}

func (p part) size() int { return int(p.last) - int(p.first) + 1 }

// peer is the far end of a flow. Of ICMP the port is without meaning.
type peer struct {
	v4   uint32
	port uint16
}

func (t *Table) key(r *mapping.Range) key {
	c := addressOf(r.Client)
	return key{c, t.hash(c), part{number4(r.IPv4), r.Session, r.Last}}
}

func (t *Table) shard(hash uint64) *shard { return &t.shards[hash>>(64-shardBits)] }

func (t *Table) hash(c address) uint64 { return maphash.Comparable(t.seed, c) }

func addressOf(a netip.Addr) address {
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a address) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a[0])
	binary.BigEndian.PutUint64(b[8:], a[1])
	return netip.AddrFrom16(b)
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addr4(v4 uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v4 >> 24), byte(v4 >> 16), byte(v4 >> 8), byte(v4)})
}

func setSource(f *translate.Flow, p protocol, port uint16) {
	f.SrcPort = port
	if p == protocolICMP {
		f.DstPort = port
	}
}

func setDestination(f *translate.Flow, p protocol, port uint16) {
	f.DstPort = port
	if p == protocolICMP {
		f.SrcPort = port
	}
}
