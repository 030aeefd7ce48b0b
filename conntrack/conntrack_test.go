package conntrack

import (
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

var (
	clientA = netip.MustParseAddr("2001:db8::a")
	clientB = netip.MustParseAddr("2001:db8::b")
	clientC = netip.MustParseAddr("2001:db8::c")
	shared  = netip.MustParseAddr("198.51.100.1")
	server  = netip.MustParseAddr("203.0.113.5")
	other   = netip.MustParseAddr("203.0.113.6")

	rangeA = sessions(clientA, shared, 1920, 2047)
	rangeB = sessions(clientB, shared, 2944, 3071)
)

const (
	numTCP, numUDP, numICMP = 6, 17, 1
)

func newTable(t testing.TB, edit func(*Config)) *Table {
	t.Helper()
	c := Default()
	c.Sessions = 10_000
	if edit != nil {
		edit(&c)
	}
	table, err := New(c, 0)
	require.NoError(t, err)
	return table
}

// out sends a packet of a client to a remote and returns the external port.
func out(table *Table, r mapping.Range, proto uint8, port uint16, remote netip.Addr, remotePort uint16, flags uint8, now uint32) (uint16, Reason) {
	f := translate.Flow{Src: r.IPv4, Dst: remote, SrcPort: port, DstPort: remotePort, Proto: proto}
	if proto == numICMP {
		f.DstPort = port
	}
	reason := table.Out(&r, &f, flags, now)
	return f.SrcPort, reason
}

// in sends a packet from a remote to an external port and returns the client's.
func in(table *Table, r mapping.Range, proto uint8, port uint16, remote netip.Addr, remotePort uint16, flags uint8, now uint32) (uint16, Reason) {
	f := translate.Flow{Src: remote, Dst: r.IPv4, SrcPort: remotePort, DstPort: port, Proto: proto}
	if proto == numICMP {
		f.SrcPort = port
	}
	reason := table.In(&r, &f, flags, now)
	return f.DstPort, reason
}

// mustOut is out where it has to succeed.
func mustOut(t testing.TB, table *Table, r mapping.Range, proto uint8, port uint16, flags uint8, now uint32) uint16 {
	t.Helper()
	external, reason := out(table, r, proto, port, server, 80, flags, now)
	require.Equal(t, OK, reason)
	return external
}

// alive reports whether a mapping answers, without refreshing it.
func alive(table *Table, r mapping.Range, proto uint8, external uint16, now uint32) bool {
	f := translate.Flow{Src: server, Dst: r.IPv4, SrcPort: 80, DstPort: external, Proto: proto}
	return table.PeekIn(&r, &f, now) == OK
}

func TestEndpointIndependent(t *testing.T) {
	table := newTable(t, nil)
	for _, proto := range []uint8{numTCP, numUDP, 33, 136} {
		external, reason := out(table, rangeA, proto, 40000, server, 80, flagSYN, 0)
		require.Equal(t, OK, reason)
		assert.True(t, external >= rangeA.Session && external <= rangeA.Last, external)
		again, reason := out(table, rangeA, proto, 40000, other, 443, flagSYN, 0)
		require.Equal(t, OK, reason)
		assert.Equal(t, external, again, "mapping is endpoint-independent")
		internal, reason := in(table, rangeA, proto, external, netip.MustParseAddr("192.0.2.77"), 9, flagSYN, 0)
		require.Equal(t, OK, reason, "filtering is endpoint-independent")
		assert.EqualValues(t, 40000, internal)
		_, reason = in(table, rangeB, proto, external, server, 80, 0, 0)
		assert.Equal(t, NoSession, reason, "another's")
	}
	_, reason := in(table, rangeA, numICMP, rangeA.Session, server, 0, 0, 0)
	assert.Equal(t, NoSession, reason, "ports of other protocols are not identifiers")
}

func TestEcho(t *testing.T) {
	table := newTable(t, nil)
	f := translate.Flow{Src: shared, Dst: server, SrcPort: 77, DstPort: 77, Proto: numberICMPv6}
	require.Equal(t, OK, table.Out(&rangeA, &f, 0, 0))
	assert.Equal(t, f.SrcPort, f.DstPort)
	assert.True(t, f.SrcPort >= rangeA.Session && f.SrcPort <= rangeA.Last)
	elsewhere := translate.Flow{Src: shared, Dst: other, SrcPort: 77, DstPort: 77, Proto: numberICMPv6}
	require.Equal(t, OK, table.Out(&rangeA, &elsewhere, 0, 0))
	assert.Equal(t, f.SrcPort, elsewhere.SrcPort, "whatever it asks (RFC 5508 REQ-1a)")
	reply := f.Reversed()
	reply.Proto = numICMP
	peek := reply
	require.Equal(t, OK, table.In(&rangeA, &reply, 0, 0))
	assert.EqualValues(t, []uint16{77, 77}, []uint16{reply.SrcPort, reply.DstPort})
	require.Equal(t, OK, table.PeekIn(&rangeA, &peek, 0))
	assert.Equal(t, reply, peek)
}

func TestReasons(t *testing.T) {
	table := newTable(t, func(c *Config) { c.Sessions, c.ClientSessions = 200, 150 })
	for proto, want := range map[uint8]Reason{47: NoPorts, 50: NoPorts, 2: NoPorts, 0: NoPorts} {
		f := translate.Flow{Src: shared, Dst: server, SrcPort: 1, DstPort: 2, Proto: proto}
		was := f
		assert.Equal(t, want, table.Out(&rangeA, &f, flagSYN, 0), proto)
		assert.Equal(t, want, table.In(&rangeA, &f, flagSYN, 0), proto)
		assert.Equal(t, want, table.PeekOut(&rangeA, &f, 0), proto)
		assert.Equal(t, want, table.PeekIn(&rangeA, &f, 0), proto)
		assert.Equal(t, was, f, "nothing is changed")
	}
	port, reason := out(table, rangeA, numTCP, 40000, server, 80, flagACK, 0)
	assert.Equal(t, NotSYN, reason)
	assert.EqualValues(t, 40000, port, "nothing is changed")
	assert.Zero(t, table.Len())

	for i := range uint16(128) {
		mustOut(t, table, rangeA, numUDP, i, 0, 0)
	}
	_, reason = out(table, rangeA, numUDP, 128, server, 80, 0, 0)
	assert.Equal(t, PartFull, reason)
	for i := range uint16(22) { // the ports of another protocol are others
		mustOut(t, table, rangeA, numTCP, i, flagSYN, 0)
	}
	_, reason = out(table, rangeA, numTCP, 22, server, 80, flagSYN, 0)
	assert.Equal(t, ClientFull, reason, "150 flows")
	_, reason = out(table, rangeA, numTCP, 21, other, 80, flagSYN, 0)
	assert.Equal(t, ClientFull, reason, "another flow of a mapping")
	for i := range uint16(50) {
		mustOut(t, table, rangeB, numUDP, i, 0, 0)
	}
	_, reason = out(table, rangeB, numUDP, 50, server, 80, 0, 0)
	assert.Equal(t, TableFull, reason, "200 flows")
	assert.Equal(t, 200, table.Len())
	assert.Equal(t, 150, table.End(clientA))
	mustOut(t, table, rangeB, numUDP, 50, 0, 0)
	assert.Equal(t, 51, table.Len())

	seen := map[string]bool{}
	for r := OK; r < reasonCount; r++ {
		assert.NotEmpty(t, r.String())
		assert.False(t, seen[r.String()], r)
		seen[r.String()] = true
	}
}

// TestLifetimes holds every timer to its end: the last tick at which a session
// is there and the first at which it is not, also across the clock's wrap.
func TestLifetimes(t *testing.T) {
	for _, c := range []struct {
		name   string
		proto  uint8
		flags  []uint8 // alternately from the client and to it
		lasts  uint32
		refuse Reason // to a packet that opens nothing
	}{
		{"UDP", numUDP, []uint8{0}, 300, OK},
		{"UDP answered", numUDP, []uint8{0, 0}, 300, OK},
		{"UDP-Lite", 136, []uint8{0}, 300, OK},
		{"DCCP", 33, []uint8{0}, 7440, OK},
		{"ICMP", numICMP, []uint8{0}, 60, OK},
		{"SYN", numTCP, []uint8{flagSYN}, 240, NotSYN},
		{"refused", numTCP, []uint8{flagSYN, flagRST | flagACK}, 240, NotSYN},
		{"established", numTCP, []uint8{flagSYN, flagSYN | flagACK}, 7440, NotSYN},
		{"reset", numTCP, []uint8{flagSYN, flagSYN | flagACK, flagRST}, 240, NotSYN},
		{"one FIN", numTCP, []uint8{flagSYN, flagSYN | flagACK, flagFIN}, 7440, NotSYN},
		{"both FINs", numTCP, []uint8{flagSYN, flagSYN | flagACK, flagFIN, flagFIN}, 240, NotSYN},
		{"late ACK", numTCP, []uint8{flagSYN, flagSYN | flagACK, flagFIN, flagFIN, flagACK}, 240, NotSYN},
		{"after reset", numTCP, []uint8{flagSYN, flagSYN | flagACK, flagRST, flagACK}, 7440, NotSYN},
	} {
		for _, start := range []uint32{0, math.MaxUint32 - 3} {
			for _, sweep := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s from %d, sweep %v", c.name, start, sweep), func(t *testing.T) {
					table, err := New(Default(), start)
					require.NoError(t, err)
					var external uint16
					for i, flags := range c.flags {
						if i%2 == 0 {
							external = mustOut(t, table, rangeA, c.proto, 7, flags, start)
						} else {
							_, reason := in(table, rangeA, c.proto, external, server, 80, flags, start)
							require.Equal(t, OK, reason)
						}
					}
					sweepAt := func(now uint32) {
						if sweep {
							assert.False(t, table.Expire(now))
						}
					}
					sweepAt(start + c.lasts)
					assert.True(t, alive(table, rangeA, c.proto, external, start+c.lasts))
					sweepAt(start + c.lasts + 1)
					if sweep {
						assert.Zero(t, table.Len())
					}
					assert.False(t, alive(table, rangeA, c.proto, external, start+c.lasts+1))
					_, reason := out(table, rangeA, c.proto, 7, server, 80, flagACK, start+c.lasts+1)
					assert.Equal(t, c.refuse, reason)
				})
			}
		}
	}
}

// TestIncomingSYN: a SYN from outside is remembered for six seconds, does not
// keep the client's ports, and the answer makes a connection of it whether it
// is still remembered or not.
func TestIncomingSYN(t *testing.T) {
	for _, answer := range []uint32{1, 60} {
		table := newTable(t, nil)
		external := mustOut(t, table, rangeA, numTCP, 7, flagSYN, 0)
		_, reason := in(table, rangeA, numTCP, external, other, 5, flagSYN, 0)
		require.Equal(t, OK, reason)
		assert.Equal(t, 2, table.Len())
		table.Expire(6)
		assert.Equal(t, 2, table.Len())
		table.Expire(7)
		assert.Equal(t, 1, table.Len())

		_, reason = in(table, rangeA, numTCP, external, other, 5, flagSYN, 8)
		require.Equal(t, OK, reason)
		_, reason = out(table, rangeA, numTCP, 7, other, 5, flagSYN|flagACK, 8+answer)
		require.Equal(t, OK, reason)
		_, reason = in(table, rangeA, numTCP, external, other, 5, flagACK, 8+answer)
		require.Equal(t, OK, reason)
		table.Expire(8 + answer + 7440)
		require.Equal(t, 1, table.Len(), "answered after %d seconds", answer)
		assert.True(t, alive(table, rangeA, numTCP, external, 8+answer+7440))
	}
}

// TestStrangers: those whom the client did not send to neither refresh its
// sessions nor take more of them than a quarter.
func TestStrangers(t *testing.T) {
	table := newTable(t, func(c *Config) { c.ClientSessions = 40 })
	external := mustOut(t, table, rangeA, numUDP, 7, 0, 0)
	_, reason := in(table, rangeA, numUDP, external, other, 5, 0, 200)
	require.Equal(t, OK, reason)
	assert.False(t, alive(table, rangeA, numUDP, external, 301))
	external = mustOut(t, table, rangeA, numUDP, 7, 0, 400)
	_, reason = in(table, rangeA, numUDP, external, server, 9999, 0, 600)
	require.Equal(t, OK, reason)
	assert.True(t, alive(table, rangeA, numUDP, external, 701), "an answer refreshes")

	table.End(clientA)
	external = mustOut(t, table, rangeA, numTCP, 7, flagSYN, 1000)
	for i := range uint16(100) {
		_, reason := in(table, rangeA, numTCP, external, other, i, flagSYN, 1000)
		require.Equal(t, OK, reason)
		_, reason = in(table, rangeA, numTCP, external, other, 1000+i, flagACK, 1000)
		require.Equal(t, OK, reason)
	}
	assert.Equal(t, 1+10, table.Len())
	for i := range uint16(29) {
		mustOut(t, table, rangeA, numTCP, 100+i, flagSYN, 1000)
	}
	// What has expired is in nobody's way, even before the wheel comes by.
	for i := range uint16(10) {
		mustOut(t, table, rangeA, numTCP, 200+i, flagSYN, 1007)
	}
}

// TestPeek: quoted packets open and refresh nothing (RFC 5508 REQ-4 to REQ-7).
func TestPeek(t *testing.T) {
	table := newTable(t, nil)
	f := translate.Flow{Src: shared, Dst: server, SrcPort: 7, DstPort: 53, Proto: numUDP}
	assert.Equal(t, NoSession, table.PeekOut(&rangeA, &f, 0))
	assert.Zero(t, table.Len())
	external := mustOut(t, table, rangeA, numUDP, 7, 0, 0)
	require.Equal(t, OK, table.PeekOut(&rangeA, &f, 300))
	assert.Equal(t, external, f.SrcPort)
	back := f.Reversed()
	require.Equal(t, OK, table.PeekIn(&rangeA, &back, 300))
	assert.EqualValues(t, 7, back.DstPort)
	f.SrcPort = 7
	assert.Equal(t, NoSession, table.PeekOut(&rangeA, &f, 301))
	assert.EqualValues(t, 7, f.SrcPort)
}

// TestManyConnections: connections of one source port live and die each for
// itself.
func TestManyConnections(t *testing.T) {
	table := newTable(t, nil)
	const n = 500
	var external uint16
	for i := range uint16(n) {
		var reason Reason
		external, reason = out(table, rangeA, numTCP, 7, server, i, flagSYN, 0)
		require.Equal(t, OK, reason)
		_, reason = in(table, rangeA, numTCP, external, server, i, flagSYN|flagACK, 0)
		require.Equal(t, OK, reason)
	}
	for i := range uint16(n) {
		if i != 250 {
			_, reason := out(table, rangeA, numTCP, 7, server, i, flagRST, 10)
			require.Equal(t, OK, reason)
		}
	}
	assert.Equal(t, n, table.Len())
	table.Expire(10 + 241)
	assert.Equal(t, 1, table.Len())
	rows := slices.Collect(table.Sessions(clientA, 251))
	require.Len(t, rows, 1)
	assert.Equal(t, Session{
		Client: clientA, ClientPort: 7, IPv4: shared, Port: external, Protocol: numTCP,
		Remote: netip.AddrPortFrom(server, 250), State: Established, Idle: 251, Expires: 7440 - 250,
	}, rows[0])
}

// TestExpiredConnection: one connection of several of a source port is over.
// Before the wheel comes by it is found no more and in nobody's way.
func TestExpiredConnection(t *testing.T) {
	table := newTable(t, func(c *Config) { c.ClientSessions = 4 })
	external := mustOut(t, table, rangeA, numTCP, 7, flagSYN, 0)
	for _, port := range []uint16{1, 2, 3} {
		_, reason := out(table, rangeA, numTCP, 7, other, port, flagSYN, 100)
		require.Equal(t, OK, reason)
	}
	_, reason := out(table, rangeA, numTCP, 7, other, 4, flagSYN, 240)
	assert.Equal(t, ClientFull, reason)
	_, reason = in(table, rangeA, numTCP, external, server, 80, flagSYN, 241)
	require.Equal(t, OK, reason)
	states := map[netip.AddrPort]State{}
	for s := range table.Sessions(clientA, 241) {
		states[s.Remote] = s.State
	}
	assert.Equal(t, V4Init, states[netip.AddrPortFrom(server, 80)], "it is not the old one that is established now")
	assert.Len(t, states, 4)

	table = newTable(t, func(c *Config) { c.ClientSessions = 2 })
	mustOut(t, table, rangeA, numTCP, 8, flagSYN, 0)
	mustOut(t, table, rangeA, numTCP, 7, flagSYN, 100)
	_, reason = out(table, rangeA, numTCP, 7, other, 4, flagSYN, 240)
	assert.Equal(t, ClientFull, reason)
	_, reason = out(table, rangeA, numTCP, 7, other, 4, flagSYN, 241)
	assert.Equal(t, OK, reason)
}

// collide has the sessions of the three clients of these tests meet in one bucket
// of one shard: a table of one bucket, and a seed that gives them one shard.
func collide(table *Table) {
	clients := []address{addressOf(clientA), addressOf(clientB), addressOf(clientC)}
	apart := func(c address) bool { return table.shard(table.hash(c)) != table.shard(table.hash(clients[0])) }
	for table.mask = 0; slices.ContainsFunc(clients, apart); {
		table.seed = maphash.MakeSeed() // one in shardCount squared will do
	}
}

// TestSamePart: even if a range is given to another client before the first
// one's sessions have been ended, nobody meets another's.
func TestSamePart(t *testing.T) {
	table := newTable(t, nil)
	collide(table)
	mustOut(t, table, rangeB, numUDP, 1, 0, 0)
	external := mustOut(t, table, rangeA, numUDP, 7, 0, 0)
	_, reason := in(table, sessions(clientB, shared, rangeA.Session, rangeA.Last), numUDP, external, server, 80, 0, 0)
	assert.Equal(t, NoSession, reason)
}

func TestEndAndMove(t *testing.T) {
	table := newTable(t, nil)
	for i := range uint16(50) {
		mustOut(t, table, rangeA, numUDP, i, 0, 0)
		mustOut(t, table, rangeA, numTCP, i, flagSYN, 0)
	}
	kept := mustOut(t, table, rangeB, numUDP, 1, 0, 0)
	assert.Equal(t, 100, table.End(clientA))
	assert.Zero(t, table.End(clientA))
	assert.True(t, alive(table, rangeB, numUDP, kept, 0))
	assert.Equal(t, 1, table.Len())

	old := mustOut(t, table, rangeA, numUDP, 1, 0, 0)
	moved := sessions(clientA, netip.MustParseAddr("198.51.100.2"), 5000, 5001)
	external := mustOut(t, table, moved, numUDP, 2, 0, 0)
	assert.True(t, external == 5000 || external == 5001)
	assert.False(t, alive(table, rangeA, numUDP, old, 0), "another range ends what was there")
	assert.Equal(t, 2, table.Len())
	again := mustOut(t, table, sessions(clientA, moved.IPv4, 5001, 5002), numUDP, 2, 0, 0)
	assert.True(t, again == 5001 || again == 5002)
	assert.Equal(t, 2, table.Len())
}

func TestSessions(t *testing.T) {
	table := newTable(t, nil)
	assert.Empty(t, slices.Collect(table.Sessions(netip.Addr{}, 0)))
	wide := sessions(clientA, shared, 1, 65535)
	for i := range uint16(1000) { // more than a page
		mustOut(t, table, wide, numUDP, i, 0, 5)
	}
	echo := mustOut(t, table, rangeB, numICMP, 9, 0, 7)
	ports := map[uint16]bool{}
	for s := range table.Sessions(clientA, 10) {
		assert.Equal(t, clientA, s.Client)
		assert.EqualValues(t, 5, s.Idle)
		assert.EqualValues(t, 296, s.Expires)
		ports[s.ClientPort] = true
	}
	assert.Len(t, ports, 1000)
	assert.Len(t, slices.Collect(table.Sessions(netip.Addr{}, 10)), 1001)
	rows := slices.Collect(table.Sessions(clientB, 10))
	require.Len(t, rows, 1)
	assert.Equal(t, Session{
		Client: clientB, ClientPort: 9, IPv4: netip.MustParseAddr("198.51.100.1"), Port: echo, Protocol: numICMP,
		Remote: netip.MustParseAddrPort("203.0.113.5:0"), State: Open, Idle: 3, Expires: 58,
	}, rows[0])
	assert.Empty(t, slices.Collect(table.Sessions(netip.Addr{}, 1000)), "expired, if not yet forgotten")
	for range table.Sessions(netip.Addr{}, 10) {
		break
	}
	for range table.Sessions(clientA, 10) { // no lock is held: this would hang
		table.End(clientA)
	}
	assert.Equal(t, 1, table.Len())
}

func TestConfig(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"0 sessions: expected 1 to":              func(c *Config) { c.Sessions = 0 },
		"67108865 sessions":                      func(c *Config) { c.Sessions = maxSessions + 1 },
		"0 sessions per client":                  func(c *Config) { c.ClientSessions = 0 },
		"TCP established timeout of 7439 second": func(c *Config) { c.Timeouts.TCPEstablished = 7439 },
		"TCP transitory timeout of 239 seconds":  func(c *Config) { c.Timeouts.TCPTransitory = 239 },
		"TCP incoming SYN timeout of 5 seconds":  func(c *Config) { c.Timeouts.TCPIncomingSYN = 5 },
		"UDP timeout of 119 seconds: expected 1": func(c *Config) { c.Timeouts.UDP = 119 },
		"ICMP timeout of 59 seconds":             func(c *Config) { c.Timeouts.ICMP = 59 },
		"DCCP timeout of 0 seconds":              func(c *Config) { c.Timeouts.DCCP = 0 },
		"UDP timeout of 1073741825 seconds":      func(c *Config) { c.Timeouts.UDP = maxTimeout + 1 },
	} {
		c := Default()
		edit(&c)
		_, err := New(c, 0)
		assert.ErrorContains(t, err, want)
	}
}

// TestLongTimeouts: a lifetime of more than a turn of the wheel, and a clock
// that jumps over several turns.
func TestLongTimeouts(t *testing.T) {
	table := newTable(t, func(c *Config) { c.Timeouts.UDP = 3*wheelSize + 5 })
	external := mustOut(t, table, rangeA, numUDP, 7, 0, 0)
	for now := uint32(0); now <= 3*wheelSize+5; now += 100 {
		table.Expire(now)
		require.True(t, alive(table, rangeA, numUDP, external, now), now)
	}
	table.Expire(3*wheelSize + 5)
	assert.Equal(t, 1, table.Len())
	table.Expire(3*wheelSize + 6)
	assert.Zero(t, table.Len())

	external = mustOut(t, table, rangeA, numUDP, 7, 0, 3*wheelSize+6)
	mustOut(t, table, rangeA, numICMP, 7, 0, 3*wheelSize+6)
	table.Expire(6*wheelSize + 5)
	assert.Equal(t, 1, table.Len())
	assert.True(t, alive(table, rangeA, numUDP, external, 6*wheelSize+5))
	table.Expire(20 * wheelSize)
	assert.Zero(t, table.Len())
}

// TestExpireIsBounded: one call leaves what is too much for it to the next.
func TestExpireIsBounded(t *testing.T) {
	table := newTable(t, func(c *Config) { c.Sessions, c.ClientSessions = 60_000, 60_000 })
	wide := sessions(clientA, shared, 1, 65535)
	for i := range uint16(50_000) {
		mustOut(t, table, wide, numUDP, i, 0, 0)
	}
	calls, was := 1, table.Len()
	for ; table.Expire(301); calls++ {
		assert.LessOrEqual(t, was-table.Len(), expireCall)
		was = table.Len()
		require.Less(t, calls, 10)
	}
	assert.Zero(t, table.Len())
	assert.Equal(t, 4, calls)
}

// TestShorterLifetime: a session filed for two hours that is reset ends after
// four minutes, and one refreshed after that does not.
func TestShorterLifetime(t *testing.T) {
	table := newTable(t, nil)
	external := mustOut(t, table, rangeA, numTCP, 7, flagSYN, 0)
	_, reason := in(table, rangeA, numTCP, external, server, 80, flagSYN|flagACK, 0)
	require.Equal(t, OK, reason)
	for now := range uint32(300) { // the wheel finds it refreshed
		table.Expire(now)
	}
	mustOut(t, table, rangeA, numTCP, 7, flagRST, 300)
	table.Expire(540)
	assert.Equal(t, 1, table.Len())
	table.Expire(541)
	assert.Zero(t, table.Len())
}

// TestHairpin: the client's packet leaves with its external address and port
// (RFC 4787 REQ-9) and finds the other client.
func TestHairpin(t *testing.T) {
	table := newTable(t, nil)
	b := mustOut(t, table, rangeB, numUDP, 5000, 0, 0)
	f := translate.Flow{Src: shared, Dst: shared, SrcPort: 6000, DstPort: b, Proto: numUDP}
	require.Equal(t, OK, table.Out(&rangeA, &f, 0, 0))
	assert.True(t, f.SrcPort >= rangeA.Session && f.SrcPort <= rangeA.Last)
	require.Equal(t, OK, table.In(&rangeB, &f, 0, 0))
	assert.EqualValues(t, 5000, f.DstPort)
}

// TestNoAllocations: packets of sessions that are there cost no memory.
func TestNoAllocations(t *testing.T) {
	table := newTable(t, nil)
	u := mustOut(t, table, rangeA, numUDP, 7, 0, 0)
	c := mustOut(t, table, rangeA, numTCP, 7, flagSYN, 0)
	now := uint32(0)
	assert.Zero(t, testing.AllocsPerRun(1000, func() {
		now++
		mustOut(t, table, rangeA, numUDP, 7, 0, now)
		mustOut(t, table, rangeA, numTCP, 7, flagSYN, now)
		out(table, rangeA, numTCP, 7, server, 81, flagACK, now)
		in(table, rangeA, numUDP, u, server, 80, 0, now)
		in(table, rangeA, numTCP, c, server, 80, flagACK, now)
		in(table, rangeA, numTCP, 1, server, 80, flagACK, now)
		alive(table, rangeA, numUDP, u, now)
		out(table, rangeA, 47, 1, server, 1, 0, now)
		table.Expire(now)
	}))
	// Nor does opening, of a client that has sessions already.
	assert.Zero(t, testing.AllocsPerRun(1000, func() {
		now += 301
		mustOut(t, table, rangeA, numTCP, 7, flagSYN, now-300)
		mustOut(t, table, rangeA, numTCP, 7, flagACK, now-150)
		mustOut(t, table, rangeA, numUDP, uint16(now), 0, now)
		table.Expire(now)
	}))
}

// TestTogether has many goroutines at few clients, with clocks that differ. The
// race detector judges; in the end nothing may be left.
func TestTogether(t *testing.T) {
	table := newTable(t, func(c *Config) { c.Sessions = 500 })
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := sessions(netip.AddrFrom16([16]byte{0x20, 1, 15: byte(g % 4)}), shared, uint16(2000+g%4*100), uint16(2099+g%4*100))
			for i := range uint32(5000) {
				now := i / 10
				port := uint16(g/4*1000) + uint16(i%150)
				proto := []uint8{numTCP, numUDP, numICMP}[i%3]
				external, reason := out(table, r, proto, port, server, 80, flagSYN, now)
				if reason == OK {
					internal, reason := in(table, r, proto, external, server, 80, flagSYN|flagACK, now)
					if reason == OK { // somebody may have ended it meanwhile, and the port be another's of the client
						assert.Less(t, internal%1000, uint16(150))
					}
				}
				switch {
				case i%1000 == 0:
					table.End(r.Client)
				case i%100 == 0:
					table.Expire(now)
				case i%250 == 1:
					for s := range table.Sessions(netip.Addr{}, now) {
						assert.True(t, s.Port >= 2000 && s.Port < 2400)
					}
				}
			}
		})
	}
	wg.Wait()
	for table.Expire(100_000) {
	}
	assert.Zero(t, table.Len())
	for i := range table.shards {
		assert.Empty(t, table.shards[i].owners)
	}
}

// TestMemory states what a session costs when there are a million of them.
func TestMemory(t *testing.T) {
	const sessions, clients = 1_000_000, 1000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table, err := New(Default(), 0)
	require.NoError(t, err)
	fill(t, table, sessions, clients, 0)
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Equal(t, sessions, table.Len())
	each := float64(after.HeapInuse-before.HeapInuse) / sessions
	t.Logf("%.0f bytes per session", each)
	assert.Less(t, each, 200.0)
	runtime.KeepAlive(table)
}

// fill opens UDP and TCP sessions, half each.
func fill(t testing.TB, table *Table, sessions, clients int, now uint32) {
	for i := range sessions {
		proto := []uint8{numUDP, numTCP}[i/clients%2]
		r := clientRange(i % clients)
		mustOut(t, table, r, proto, uint16(i/clients), flagSYN, now)
	}
}

// clientRange gives every client an address and a session part of 1000 ports.
func clientRange(i int) mapping.Range {
	return sessions(
		netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)}),
		netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 2000, 2999,
	)
}

// sessions is a range whose session part is the ports first to last.
func sessions(client, v4 netip.Addr, first, last uint16) mapping.Range {
	return mapping.Range{Client: client, IPv4: v4, First: 1, Session: first, Last: last}
}

// TestChanges: whatever makes a packet come to something else moves the
// counter, and a packet that comes again does not.
func TestChanges(t *testing.T) {
	table := newTable(t, nil)
	changes := table.Changes(&rangeA)
	moved := func(want bool, why string, step func()) {
		t.Helper()
		before := changes.Load()
		step()
		assert.Equal(t, want, changes.Load() != before, why)
	}
	port := mustOut(t, table, rangeA, numTCP, 80, flagSYN, 0)
	moved(true, "a connection is established", func() { in(table, rangeA, numTCP, port, server, 80, flagSYN|flagACK, 0) })
	moved(false, "data", func() {
		mustOut(t, table, rangeA, numTCP, 80, flagACK, 0)
		in(table, rangeA, numTCP, port, server, 80, flagACK, 0)
	})
	moved(true, "a reset", func() { in(table, rangeA, numTCP, port, server, 80, flagRST, 0) })
	moved(true, "data behind it", func() { mustOut(t, table, rangeA, numTCP, 80, flagACK, 0) })
	udp := mustOut(t, table, rangeA, numUDP, 80, 0, 0)
	moved(false, "the same again", func() {
		mustOut(t, table, rangeA, numUDP, 80, 0, 0)
		in(table, rangeA, numUDP, udp, server, 80, 0, 0)
	})
	moved(true, "to another", func() { out(table, rangeA, numUDP, 80, other, 80, 0, 0) })
	moved(true, "a session expires", func() { table.Expire(400) })
	moved(true, "a lease ends", func() { table.End(clientA) })
}

// TestChainsStayShort: whatever the seed, sessions of neighbouring clients and
// ports spread over the buckets as by chance. With as many buckets as sessions a
// chain of more than a dozen is less likely than one in a million.
func TestChainsStayShort(t *testing.T) {
	for range 100 {
		table := newTable(t, nil)
		table.mask = 1<<12 - 1
		s := &table.shards[0]
		out, flows := map[uint64]int{}, map[uint64]int{}
		for i := range uint64(1 << 12) {
			client := table.hash(address{0x2001_0db8 << 32, i >> 4})
			out[s.bucket(client, i&15)]++
			flows[s.bucket(i, uint64(0xcb00_7105)<<16|443)]++
		}
		for _, chains := range []map[uint64]int{out, flows} {
			assert.Less(t, slices.Max(slices.Collect(maps.Values(chains))), 16)
		}
	}
}
