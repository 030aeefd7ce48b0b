package dataplane

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
)

// TestSharingModel drives two workers and the model with the same packets from
// both sides, clock, ends of leases and restarts, and compares whatever leaves
// byte for byte.
func TestSharingModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ports := mapping.Ports{PerClient: 16, Session: 4, First: 1030, Last: 1030 + 4*16 + 5}
		own := rapid.SampledFrom([]string{own4, shared4}).Draw(t, "own address")
		r := newSharingRig(t, func(c *mapping.Config, s *conntrack.Config, f *conntrack.FragmentConfig) {
			c.Pools[0].Ports, c.OwnIPv4 = ports, addr(own)
			s.Sessions = rapid.SampledFrom([]int{8, 20, 1000}).Draw(t, "sessions")
			s.ClientSessions = rapid.SampledFrom([]int{4, 9, 1000}).Draw(t, "client sessions")
			*f = conntrack.FragmentConfig{Datagrams: 6, SourceDatagrams: 3, Bytes: 6 * 512, SourceBytes: 4 * 512, Timeout: 2}
		})
		for i := range r.workers {
			r.workers[i].from4 = addr(own)
		}
		m := &model{rig: r, fail: t, own: own, ports: ports, lent: map[netip.Addr]uint16{}, returned: map[uint16]modelReturn{}}
		d := drawer{m: m}
		actions := map[string]func(*rapid.T){
			"from IPv6": func(t *rapid.T) { d.compare(t, d.from6(t, 8)) },
			"from IPv4": func(t *rapid.T) { d.compare(t, d.from4(t, 8)) },
			"fragment":  func(t *rapid.T) { d.compare(t, d.fragment(t)) },
			"error":     func(t *rapid.T) { d.compare(t, d.failure(t)) },
			"time": func(t *rapid.T) {
				n := rapid.SampledFrom([]int{1, 1, 2, 3, 6, 7, 59, 61, 120, 239, 241, 299, 301, 7441}).Draw(t, "seconds")
				r.pass(uint32(n))
				m.pass(n)
			},
			"end of a lease": func(t *rapid.T) {
				if len(m.lent) == 0 || rapid.IntRange(0, 3).Draw(t, "rarely") > 0 {
					t.Skip("a skipped step is drawn again")
				}
				client := rapid.SampledFrom(d.lent()).Draw(t, "client")
				_, err := r.table.Release(client, "test")
				require.NoError(t, err)
				m.release(client)
				if rapid.Bool().Draw(t, "with its sessions") {
					r.sessions.End(client)
					m.end(client)
				}
			},
			"restart": func(t *rapid.T) {
				if rapid.IntRange(0, 7).Draw(t, "rarely") > 0 {
					t.Skip("a skipped step is drawn again")
				}
				r.restart(t)
				for i := range r.workers {
					r.workers[i].from4 = addr(own)
				}
				m.restart()
			},
			"": func(t *rapid.T) {
				require.Equal(t, m.count(netip.Addr{}, ""), r.sessions.Len())
				require.EqualValues(t, m.lost, r.sharing.Lost())
			},
		}
		actions["from IPv6 again"], actions["from IPv4 again"], actions["fragment again"] = actions["from IPv6"], actions["from IPv4"], actions["fragment"]
		t.Repeat(actions)
	})
}

// drawer draws packets, of which many have to do with what came before.
type drawer struct {
	m      *model
	serial uint64
	left   [][]byte // the last that left
	pieces [][]byte // of datagrams
}

func (d *drawer) lent() (list []netip.Addr) {
	for c := range d.m.lent {
		list = append(list, c)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// compare sends a packet through the implementation and the model.
func (d *drawer) compare(t *rapid.T, packet []byte) {
	d.m.fail = t
	got := d.m.rig.send(rapid.IntRange(0, 1).Draw(t, "worker"), packet)
	var out [][]byte
	want := d.m.take(packet)
	require.Len(t, got, len(want))
	for i, x := range want {
		dropped := !x.verdict.Leaves()
		require.Equal(t, x.verdict.String(), got[i].Verdict.String(), "%d of %x", i, packet)
		require.Equal(t, Outcome{Verdict: x.verdict, Held: x.held, Error: dropped && len(x.out) > 0}, got[i])
		out = append(out, x.out...)
	}
	require.Len(t, d.m.rig.out, len(out))
	for i, p := range d.m.rig.out {
		require.Equal(t, withoutID(out[i]), withoutID(p), "%d of %x", i, packet)
		require.True(t, rightChecksums(p), "%x", p)
		d.left = append(d.left, p)
	}
	d.left = d.left[max(0, len(d.left)-12):]
}

// withoutID is an IPv4 packet without the identification that natless gives
// it.
func withoutID(p []byte) []byte {
	if p[0]>>4 == 6 || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
		return p
	}
	p = slices.Clone(p)
	clear(p[4:6])
	clear(p[10:12])
	return p
}

var (
	drawClient = rapid.SampledFrom([]string{amy6, amy6, amy6, bob6, bob6, cat6, "2001:db8:1::d", "2001:db8:1::e", "2001:db8:1::f", one6, nobody6})
	drawProto  = rapid.SampledFrom([]uint8{protoTCP, protoTCP, protoTCP, protoTCP, protoUDP, protoUDP, protoUDP, protoICMP, protoICMP, protoSCTP, protoDCCP, protoUDPLite, protoGRE})
	drawFlags  = rapid.SampledFrom([]uint8{flagSYN, flagSYN, flagSYN, flagSYN | flagACK, flagACK, flagFIN | flagACK, flagRST, flagRST | flagSYN, 0})
	drawServer = rapid.SampledFrom([]string{server4, remote4})
)

// port is one of somebody, or of a session, or any.
func (d *drawer) port(t *rapid.T, external bool) uint16 {
	if n := len(d.m.sessions); n > 0 && rapid.IntRange(0, 2).Draw(t, "of a session") > 0 {
		s := d.m.sessions[rapid.IntRange(0, n-1).Draw(t, "session")]
		if external {
			return s.external
		}
		return s.internal
	}
	if rapid.IntRange(0, 9).Draw(t, "far") == 0 {
		return rapid.SampledFrom([]uint16{0, 1, 1029, 1030 + 64, 65535}).Draw(t, "port")
	}
	return rapid.Uint16Range(1030, 1030+63).Draw(t, "port")
}

func (d *drawer) data(n int) []byte {
	d.serial++
	return binary.BigEndian.AppendUint64(make([]byte, n-8), d.serial)
}

func (d *drawer) from6(t *rapid.T, size int) []byte {
	src, proto, flags := drawClient.Draw(t, "client"), drawProto.Draw(t, "protocol"), drawFlags.Draw(t, "flags")
	srcPort, dstPort := d.port(t, false), uint16(80)
	if list := d.lent(); len(list) > 0 && rapid.Bool().Draw(t, "its own port") {
		src = rapid.SampledFrom(list).Draw(t, "lessee").String()
		srcPort = d.m.lent[addr(src)] + rapid.Uint16Range(0, 15).Draw(t, "port of its range")
	}
	if proto == protoICMP {
		flags = rapid.SampledFrom([]uint8{echoRequest, echoRequest, echoReply}).Draw(t, "echo")
	}
	var dst string
	switch rapid.IntRange(0, 5).Draw(t, "destination") {
	case 0, 1:
		dst, dstPort = shared6, d.port(t, true)
	case 2:
		dst = rapid.SampledFrom([]string{own6, "64:ff9b::" + d.m.own, oneSeen}).Draw(t, "own")
	default:
		dst = rapid.SampledFrom([]string{server6, remote6}).Draw(t, "server")
	}
	return whole(src, srcPort, dst, dstPort, proto, flags, d.data(size))
}

func (d *drawer) from4(t *rapid.T, size int) []byte {
	proto, flags := drawProto.Draw(t, "protocol"), drawFlags.Draw(t, "flags")
	srcPort, dst, dstPort := uint16(80), shared4, d.port(t, true)
	if proto == protoICMP {
		srcPort, flags = dstPort, rapid.SampledFrom([]uint8{echoReply, echoReply, echoRequest}).Draw(t, "echo")
	}
	if rapid.IntRange(0, 7).Draw(t, "elsewhere") == 0 {
		dst = rapid.SampledFrom([]string{d.m.own, one4, "192.0.2.77"}).Draw(t, "destination")
	}
	return whole(drawServer.Draw(t, "server"), srcPort, dst, dstPort, proto, flags, d.data(size))
}

// fragment is a piece of a datagram under way, or of a new one, in any order.
func (d *drawer) fragment(t *rapid.T) []byte {
	if len(d.pieces) == 0 || rapid.IntRange(0, 2).Draw(t, "new") == 0 {
		size := rapid.SampledFrom([]int{200, 900, 1100}).Draw(t, "size")
		var p []byte
		if rapid.Bool().Draw(t, "from IPv6") {
			p = d.from6(t, size)
		} else {
			p = d.from4(t, size)
		}
		if look(p).proto == protoICMP {
			t.Skip("fragments of ICMP are dropped")
		}
		id := rapid.SampledFrom([]uint32{1, 1, 1, 2, 17, 0xabcd}).Draw(t, "identification")
		n := rapid.SampledFrom([]int{96, 400, 600}).Draw(t, "piece")
		d.pieces = append(d.pieces, cut(p, id, n)...)
		d.pieces = d.pieces[max(0, len(d.pieces)-12):]
	}
	i := rapid.IntRange(0, len(d.pieces)-1).Draw(t, "which")
	p := d.pieces[i]
	if rapid.IntRange(0, 3).Draw(t, "and again") > 0 {
		d.pieces = slices.Delete(d.pieces, i, i+1)
	}
	return p
}

// failure is an ICMP error about a packet that left, or about any.
func (d *drawer) failure(t *rapid.T) []byte {
	var about []byte
	if len(d.left) > 0 && rapid.IntRange(0, 4).Draw(t, "any") > 0 {
		about = rapid.SampledFrom(d.left).Draw(t, "about")
	} else if rapid.Bool().Draw(t, "from IPv6") {
		about = turned(d.from6(t, 8))
	} else {
		about = turned(d.from4(t, 8))
	}
	s := look(about)
	if s.quote != nil || s.proto == protoICMP && s.offset > 0 {
		t.Skip("no error is about an error")
	}
	from := s.dst.Addr().String()
	if rapid.IntRange(0, 2).Draw(t, "router") == 0 {
		from = router6
		if s.src.Addr().Is4() {
			from = remote4
		}
	}
	return fails(from, s.src.Addr().String(), about)
}

// turned is a packet with its ends changed, ports too.
func turned(p []byte) []byte {
	s := look(p)
	return whole(s.dst.Addr().String(), s.dst.Port(), s.src.Addr().String(), s.src.Port(), s.proto, echoReply, nil)
}
