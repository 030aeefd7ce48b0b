package conntrack

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/mapping"
)

// model is what a Table has to be, slow and obvious: a list of mappings, each
// with its flows, on a clock that does not wrap.
type model struct {
	limit, total int
	now          uint64
	mappings     []*modelMapping
}

type modelMapping struct {
	r        mapping.Range
	proto    uint8
	internal uint16
	external uint16
	flows    []*modelFlow
}

type modelFlow struct {
	remote netip.AddrPort
	state  State
	seen   uint64
	until  uint64 // the last tick
}

// seconds are the lifetimes, from the RFCs.
var seconds = map[lifetime]uint64{established: 7440, transitory: 240, incomingSYN: 6}
var seconds4 = map[uint8]uint64{numUDP: 300, numICMP: 60, 33: 7440, 136: 300}

// forget drops what is over.
func (m *model) forget() {
	var left []*modelMapping
	for _, mp := range m.mappings {
		mp.flows = slices.DeleteFunc(mp.flows, func(f *modelFlow) bool { return f.until < m.now })
		if len(mp.flows) > 0 {
			left = append(left, mp)
		}
	}
	m.mappings = left
}

func (m *model) end(client netip.Addr) (flows int) {
	flows = m.count(client)
	m.mappings = slices.DeleteFunc(m.mappings, func(mp *modelMapping) bool { return mp.r.Client == client })
	return flows
}

// count is the flows of a client, or of all.
func (m *model) count(client netip.Addr) (n int) {
	for _, mp := range m.mappings {
		if !client.IsValid() || mp.r.Client == client {
			n += len(mp.flows)
		}
	}
	return n
}

func (m *model) incoming(client netip.Addr) (n int) {
	for _, mp := range m.mappings {
		for _, f := range mp.flows {
			if mp.r.Client == client && f.state == V4Init {
				n++
			}
		}
	}
	return n
}

func (m *model) find(is func(*modelMapping) bool) *modelMapping {
	if i := slices.IndexFunc(m.mappings, is); i >= 0 {
		return m.mappings[i]
	}
	return nil
}

func (mp *modelMapping) flow(remote netip.AddrPort) *modelFlow {
	for _, f := range mp.flows {
		if f.remote == remote {
			return f
		}
	}
	return nil
}

func (m *model) full(client netip.Addr) Reason {
	switch {
	case m.count(client) >= m.limit:
		return ClientFull
	case m.count(netip.Addr{}) >= m.total:
		return TableFull
	}
	return OK
}

func (m *model) add(mp *modelMapping, remote netip.AddrPort, s State, lives uint64) {
	mp.flows = append(mp.flows, &modelFlow{remote, s, m.now, m.now + lives})
}

// step is what a packet does to a flow of TCP.
func (m *model) step(f *modelFlow, v6 bool, flags uint8) {
	r := transitions[f.state][eventOf(v6, flags)]
	f.state, f.seen = r.state, m.now
	if r.lives != keep {
		f.until = m.now + seconds[r.lives]
	}
}

// out says what a client's packet has to come to. Where that is a new mapping,
// its port is 0 and the mapping the last.
func (m *model) out(r mapping.Range, proto uint8, port uint16, remote netip.AddrPort, flags uint8) (uint16, Reason) {
	mp := m.find(func(mp *modelMapping) bool {
		return mp.r.Client == r.Client && mp.proto == proto && mp.internal == port &&
			mp.r.IPv4 == r.IPv4 && r.Session <= mp.external && mp.external <= r.Last
	})
	syn, ack, rst := flags&0x02 != 0, flags&0x10 != 0, flags&0x04 != 0
	state, lives, opens := V6Init, uint64(240), syn && !rst
	if ack {
		state = Trans
	}
	if proto != numTCP {
		state, lives, opens = Open, seconds4[proto], true
	}
	if mp == nil {
		if !opens {
			return 0, NotSYN
		}
		if old := m.find(func(mp *modelMapping) bool { return mp.r.Client == r.Client }); old != nil && old.r != r {
			m.end(r.Client)
		}
		taken := 0
		for _, mp := range m.mappings {
			if mp.r.Client == r.Client && mp.proto == proto {
				taken++
			}
		}
		switch full := m.full(r.Client); {
		case full == ClientFull:
			return 0, full
		case taken == int(r.Last-r.Session)+1:
			return 0, PartFull
		case full != OK:
			return 0, full
		}
		mp = &modelMapping{r: r, proto: proto, internal: port}
		m.add(mp, remote, state, lives)
		m.mappings = append(m.mappings, mp)
		return 0, OK
	}
	if proto != numTCP {
		f := mp.flows[0]
		f.remote, f.seen, f.until = remote, m.now, m.now+lives
		return mp.external, OK
	}
	if f := mp.flow(remote); f != nil {
		m.step(f, true, flags)
		return mp.external, OK
	}
	if !opens {
		return mp.external, OK
	}
	if full := m.full(r.Client); full != OK {
		return 0, full
	}
	m.add(mp, remote, state, lives)
	return mp.external, OK
}

func (m *model) in(r mapping.Range, proto uint8, port uint16, remote netip.AddrPort, flags uint8) (uint16, Reason) {
	mp := m.mapped(r, proto, port)
	if mp == nil {
		return 0, NoSession
	}
	if proto != numTCP {
		if f := mp.flows[0]; f.remote.Addr() == remote.Addr() {
			f.seen, f.until = m.now, m.now+seconds4[proto]
		}
		return mp.internal, OK
	}
	if f := mp.flow(remote); f != nil {
		m.step(f, false, flags)
	} else if flags&0x16 == 0x02 && m.full(r.Client) == OK && m.incoming(r.Client) < m.limit/4 {
		m.add(mp, remote, V4Init, 6)
	}
	return mp.internal, OK
}

func (m *model) mapped(r mapping.Range, proto uint8, port uint16) *modelMapping {
	return m.find(func(mp *modelMapping) bool {
		return mp.r.Client == r.Client && mp.r.IPv4 == r.IPv4 && mp.proto == proto && mp.external == port
	})
}

// sessions is the listing.
func (m *model) sessions() (rows []Session) {
	for _, mp := range m.mappings {
		for _, f := range mp.flows {
			remote := f.remote
			if mp.proto == numICMP {
				remote = netip.AddrPortFrom(remote.Addr(), 0)
			}
			rows = append(rows, Session{
				mp.r.Client, mp.internal, mp.r.IPv4, mp.external, mp.proto,
				remote, f.state, uint32(m.now - f.seen), uint32(f.until + 1 - m.now),
			})
		}
	}
	return sorted(rows)
}

func sorted(rows []Session) []Session {
	slices.SortFunc(rows, func(a, b Session) int {
		return cmp.Or(a.Client.Compare(b.Client), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), a.Remote.Compare(b.Remote))
	})
	return rows
}

// TestModel drives a Table and the model with the same packets, clock and ends
// of leases, and compares every answer and, after every step, every session.
// There are far more shards and buckets than sessions, so in some runs all
// collide.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Default()
		c.Sessions = rapid.SampledFrom([]int{12, 30, 10_000}).Draw(t, "sessions")
		c.ClientSessions = rapid.SampledFrom([]int{3, 8, 20, 10_000}).Draw(t, "client sessions")
		start := rapid.SampledFrom([]uint32{0, 1000, math.MaxUint32 - 100, math.MaxUint32 - 8000, math.MaxInt32 - 300}).Draw(t, "start")
		// Without it nothing but the packets themselves makes expired sessions
		// go, and the place they take is bounded by the table as a whole.
		sweep := c.Sessions < 10_000 || rapid.Bool().Draw(t, "sweep")
		table, err := New(c, start)
		require.NoError(t, err)
		if rapid.Bool().Draw(t, "collide") {
			collide(table)
		}
		m := &model{limit: c.ClientSessions, total: c.Sessions}
		tick := func() uint32 { return start + uint32(m.now) }

		ranges := []mapping.Range{
			sessions(clientA, shared, 1920, 1923), sessions(clientB, shared, 2944, 2947),
			sessions(clientC, other, 1920, 1989),
			sessions(clientA, shared, 1922, 1925), sessions(clientA, other, 1920, 1923), // after a move
		}
		drawRange := func(t *rapid.T) mapping.Range {
			return ranges[rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 1, 2, 2, 3, 4}).Draw(t, "range")]
		}
		drawProto := rapid.SampledFrom([]uint8{numTCP, numTCP, numTCP, numUDP, numUDP, numICMP, 33, 136})
		drawRemote := func(t *rapid.T, proto uint8, port uint16) netip.AddrPort {
			a := rapid.SampledFrom([]netip.Addr{server, other}).Draw(t, "remote")
			if proto == numICMP {
				return netip.AddrPortFrom(a, port)
			}
			return netip.AddrPortFrom(a, rapid.SampledFrom([]uint16{80, 443}).Draw(t, "remote port"))
		}
		drawFlags := rapid.SampledFrom([]uint8{flagSYN, flagSYN, flagSYN, flagSYN | flagACK, flagSYN | flagACK, flagACK, flagFIN | flagACK, flagRST, flagRST | flagSYN, 0})

		actions := map[string]func(*rapid.T){
			"out": func(t *rapid.T) {
				r, proto, flags := drawRange(t), drawProto.Draw(t, "proto"), drawFlags.Draw(t, "flags")
				port := rapid.Uint16Range(1, 6).Draw(t, "port")
				remote := drawRemote(t, proto, port)
				if len(m.mappings) > 0 && rapid.IntRange(0, 2).Draw(t, "mapped") > 0 {
					mp := rapid.SampledFrom(m.mappings).Draw(t, "mapping")
					r, proto, port = mp.r, mp.proto, mp.internal
					if remote = drawRemote(t, proto, port); rapid.Bool().Draw(t, "flow") {
						remote = rapid.SampledFrom(mp.flows).Draw(t, "of").remote
					}
				}
				want, reason := m.out(r, proto, port, remote, flags)
				got, gotReason := out(table, r, proto, port, remote.Addr(), remote.Port(), flags, tick())
				require.Equal(t, reason, gotReason)
				switch {
				case reason != OK:
					require.Equal(t, port, got)
				case want != 0:
					require.Equal(t, want, got)
				default: // a new mapping, with any port that nobody has
					require.True(t, r.Session <= got && got <= r.Last, got)
					require.Nil(t, m.mapped(r, proto, got), "port %d is another's", got)
					m.mappings[len(m.mappings)-1].external = got
				}
			},
			"in": func(t *rapid.T) {
				r, proto, flags := drawRange(t), drawProto.Draw(t, "proto"), drawFlags.Draw(t, "flags")
				port := rapid.Uint16Range(r.Session, min(r.Last, r.Session+5)).Draw(t, "port")
				remote := drawRemote(t, proto, port)
				if len(m.mappings) > 0 && rapid.IntRange(0, 3).Draw(t, "mapped") > 0 {
					mp := rapid.SampledFrom(m.mappings).Draw(t, "mapping")
					r, proto, port = mp.r, mp.proto, mp.external
					if remote = drawRemote(t, proto, port); rapid.Bool().Draw(t, "flow") {
						remote = rapid.SampledFrom(mp.flows).Draw(t, "of").remote
					}
				}
				want, reason := m.in(r, proto, port, remote, flags)
				got, gotReason := in(table, r, proto, port, remote.Addr(), remote.Port(), flags, tick())
				require.Equal(t, reason, gotReason)
				if reason == OK {
					require.Equal(t, want, got)
				}
			},
			"time": func(t *rapid.T) {
				step := rapid.SampledFrom([]uint64{1, 1, 1, 6, 7, 50, 120, 0}).Draw(t, "seconds")
				if step == 0 {
					step = rapid.SampledFrom([]uint64{59, 60, 61, 239, 240, 241, 299, 300, 301, 7439, 7440, 7441, 9000}).Draw(t, "many seconds")
				}
				m.now += step
				m.forget()
				for i := 0; sweep && table.Expire(tick()); i++ {
					require.Less(t, i, 10)
				}
			},
			"end": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "rarely") > 0 {
					t.Skip("a skipped step is drawn again")
				}
				client := drawRange(t).Client
				n, flows := table.End(client), m.end(client)
				require.True(t, n == flows || !sweep && n > flows, "%d, %d", n, flows)
			},
			"": func(t *rapid.T) {
				require.Equal(t, m.sessions(), sorted(slices.Collect(table.Sessions(netip.Addr{}, tick()))))
				if sweep {
					require.Equal(t, m.count(netip.Addr{}), table.Len())
				}
				require.NoError(t, consistent(table))
			},
		}
		actions["out again"], actions["in again"] = actions["out"], actions["in"] // oftener than the rest
		t.Repeat(actions)
	})
}

// consistent checks what a Table must be inside: every flow filed ahead and in
// time, every mapping found by both its ports, bits and counts right.
func consistent(table *Table) error {
	flows, mappings := 0, map[uint32]bool{}
	for n := range table.shards {
		s := &table.shards[n]
		perClient, incoming := map[address]int{}, map[address]int{}
		for b, head := range s.wheel {
			for i := head; i != 0; i = table.slots.flows[i].down {
				fl := &table.slots.flows[i]
				mp := &table.slots.mappings[fl.mapping]
				flows++
				mappings[fl.mapping] = true
				perClient[mp.client]++
				if fl.state == V4Init {
					incoming[mp.client]++
				}
				ahead := int32(fl.filed - s.done)
				if fl.filed%wheelSize != uint32(b) || ahead < 1 || ahead > wheelSize || int32(fl.deadline+1-fl.filed) < 0 {
					return fmt.Errorf("flow %d until %d is filed under %d, in bucket %d, at %d", i, fl.deadline, fl.filed, b, s.done)
				}
				o := s.owners[mp.client]
				k := key{mp.client, table.hash(mp.client), o.part}
				if s.findOut(&k, mp.protocol, mp.internal) != fl.mapping || s.findIn(&k, mp.protocol, mp.external) != fl.mapping {
					return fmt.Errorf("mapping %d is not found by both its ports", fl.mapping)
				}
				if !o.ports[mp.protocol].has(int(mp.external - o.part.first)) {
					return fmt.Errorf("port %d is used and not taken", mp.external)
				}
			}
		}
		for c, o := range s.owners {
			used := 0
			for p := range o.ports {
				used += o.ports[p].used
			}
			for m := range mappings {
				if table.slots.mappings[m].client == c {
					used--
				}
			}
			if o.flows != perClient[c] || o.flows == 0 || o.incoming != incoming[c] || used != 0 {
				return fmt.Errorf("client %v: %d flows, %d incoming, %d ports too many", c, o.flows-perClient[c], o.incoming-incoming[c], used)
			}
		}
	}
	if flows != table.Len() {
		return fmt.Errorf("%d flows in wheels, %d in use", flows, table.Len())
	}
	return nil
}
