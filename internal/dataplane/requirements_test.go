package dataplane

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// What RFC 4787, 5382, 5508 and 7597 ask of a whole translator whose clients
// share an address, with a real table and real sessions. docs/conformance.md
// names the tests here.

const (
	sharedAddress = "203.0.113.7"
	sharedSeen    = "64:ff9b::203.0.113.7" // by the clients
	owner6        = "2001:db8::1"          // who has the ports 1024 to 2047
	neighbour6    = "2001:db8::2"          // and 2048 to 3071
	theirs        = 1024 + 896             // the first of owner6's session part
)

// sharer is a Translator that is fed by hand.
type sharer struct {
	*Translator
	table    *mapping.Table
	sessions *conntrack.Table
	out      [][]byte
}

func (s *sharer) Put(buf []byte, off, n int, _ tun.Header) {
	s.out = append(s.out, append([]byte(nil), buf[off:off+n]...))
}

func newSharer(t *testing.T) *sharer {
	t.Helper()
	prefix := netip.MustParsePrefix
	table, err := mapping.New(mapping.Config{
		Pref64: prefix("64:ff9b::/96"), OwnIPv4: addr(sharedAddress), OwnIPv6: addr("fd00::1"), Hairpin: true,
		Pools: []mapping.Pool{{
			IPv4: prefix(sharedAddress + "/32"), Clients: []netip.Prefix{prefix("2001:db8::/64")}, Quarantine: mapping.RestRange,
			Ports: mapping.Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535},
		}},
	})
	require.NoError(t, err)
	for k, client := range []string{owner6, neighbour6} {
		f := translate.Flow{Src: addr(client), Dst: addr(server6), SrcPort: 1024, DstPort: 80, Proto: 17}
		x, v := table.ResolveRanges(&f, 0)
		require.Equal(t, translate.OK, v)
		require.EqualValues(t, 1024+1024*k, x.Src.First, "the tests rely on it")
	}
	sharing, err := NewSharing(conntrack.Default())
	require.NoError(t, err)
	o := translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280}
	return &sharer{
		Translator: NewTranslator(table, sharing, o, addr(sharedAddress), addr("fd00::1")),
		table:      table, sessions: sharing.Sessions.(*conntrack.Table),
	}
}

// takes hands a packet over and returns what leaves and the verdict.
func (s *sharer) takes(packet []byte, tick uint32) ([][]byte, translate.Verdict) {
	s.out = nil
	o := s.Translate(packet, tick, s)
	for more := true; more; {
		_, more = s.Next(tick, s)
	}
	return s.out, o.Verdict
}

// passes is takes for a packet that leaves as one.
func (s *sharer) passes(t *testing.T, packet []byte, tick uint32) []byte {
	t.Helper()
	out, v := s.takes(packet, tick)
	require.True(t, v.Leaves(), v)
	require.Len(t, out, 1)
	return out[0]
}

func datagram(src string, srcPort uint16, dst string, dstPort uint16) []byte {
	return build(ip(src, dst, 64), &layers.UDP{SrcPort: layers.UDPPort(srcPort), DstPort: layers.UDPPort(dstPort)}, gopacket.Payload("natless"))
}

func segment(src string, srcPort uint16, dst string, dstPort uint16, syn, ack bool) []byte {
	return build(ip(src, dst, 64), &layers.TCP{SrcPort: layers.TCPPort(srcPort), DstPort: layers.TCPPort(dstPort), SYN: syn, ACK: ack, Window: 1})
}

// ports are those of a packet.
func ports(t *testing.T, b []byte) (src, dst uint16) {
	t.Helper()
	f := decode(t, b).TransportLayer().TransportFlow()
	return binary.BigEndian.Uint16(f.Src().Raw()), binary.BigEndian.Uint16(f.Dst().Raw())
}

// TestPortsOfARange: the stateless part goes both ways as it is, any other port
// becomes one of the session part, and never another client's.
func TestPortsOfARange(t *testing.T) {
	s := newSharer(t)
	for _, packet := range [][]byte{datagram(owner6, 1024, server6, 99), segment(owner6, theirs-1, server6, 80, false, true)} {
		b := s.passes(t, packet, 0)
		between(t, b, sharedAddress, server4)
		was, _ := ports(t, packet)
		src, _ := ports(t, b)
		assert.Equal(t, was, src)
	}
	b := s.passes(t, segment(server4, 80, sharedAddress, 1500, true, false), 0)
	between(t, b, server6, owner6)
	between(t, s.passes(t, datagram(server4, 99, sharedAddress, 2048), 0), server6, neighbour6)
	assert.Zero(t, s.sessions.Len(), "all without memory")

	for _, port := range []uint16{1, 500, 1023, theirs, 2047, 2048, 40000, 65535} {
		b := s.passes(t, datagram(owner6, port, server6, 99), 0)
		src, _ := ports(t, b)
		assert.True(t, src >= theirs && src < 2048, "%d became %d", port, src)
		back := s.passes(t, datagram(server4, 99, sharedAddress, src), 0)
		between(t, back, server6, owner6)
		_, dst := ports(t, back)
		assert.Equal(t, port, dst)
	}
}

// TestStrangersAtAPort: what nobody has opened reaches nobody, and TCP out of
// the blue is not answered.
func TestStrangersAtAPort(t *testing.T) {
	s := newSharer(t)
	for _, packet := range [][]byte{
		datagram(server4, 99, sharedAddress, theirs),
		segment(server4, 99, sharedAddress, theirs, true, false),
	} {
		out, v := s.takes(packet, 0)
		assert.Equal(t, translate.NoSession, v)
		assert.Empty(t, out, "silently")
	}
	out, v := s.takes(carrying(&layers.IPv4{Version: 4, TTL: 64, Protocol: 47, SrcIP: addr(server4).AsSlice(), DstIP: addr(sharedAddress).AsSlice()}, "GRE"), 0)
	assert.Equal(t, translate.NoPorts, v)
	require.Len(t, out, 1)
	between(t, out[0], sharedAddress, server4)
	_, v = s.takes(segment(owner6, 500, server6, 80, false, true), 0)
	assert.Equal(t, translate.NotSYN, v)
	assert.Zero(t, s.sessions.Len())
}

// TestEchoesOfAClient: a query takes an identifier of the range, its reply
// comes back; requests from outside natless answers itself.
func TestEchoesOfAClient(t *testing.T) {
	s := newSharer(t)
	b := s.passes(t, echo6(owner6, server6), 0)
	request := between(t, b, sharedAddress, server4).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	assert.True(t, request.Id >= theirs && request.Id < 2048, request.Id)
	reply := build(ip(server4, sharedAddress, 64), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(0, 0), Id: request.Id, Seq: 1}, gopacket.Payload("natless"))
	p := between(t, s.passes(t, reply, 60), server6, owner6)
	assert.EqualValues(t, 7, p.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo).Identifier)
	between(t, s.passes(t, echo4(server4, sharedAddress), 0), sharedAddress, server4)
	between(t, s.passes(t, echo6(owner6, sharedSeen), 0), sharedSeen, owner6)
	out, v := s.takes(reply, 122)
	assert.Equal(t, translate.NoSession, v, "its time is over")
	assert.Empty(t, out)
}

// TestErrorsOfARange: an ICMP error goes to whose packet it quotes, from either
// side and whatever router sends it; it changes no session, and one about
// nothing goes nowhere.
func TestErrorsOfARange(t *testing.T) {
	s := newSharer(t)
	var gone4 []byte
	for _, port := range []uint16{1500, 500} {
		gone := s.passes(t, datagram(owner6, port, server6, 99), 0)
		gone4 = gone
		for _, router := range []string{server4, "192.0.2.99"} {
			b := s.passes(t, unreachable4(router, sharedAddress, gone), 10)
			p := between(t, b, "64:ff9b::"+router, owner6)
			quoted := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).LayerPayload()[4:]
			assert.Equal(t, addr(owner6).AsSlice(), quoted[8:24])
			assert.Equal(t, port, binary.BigEndian.Uint16(quoted[40:]))
		}
		external, _ := ports(t, gone)
		come := s.passes(t, datagram(server4, 99, sharedAddress, external), 0)
		b := s.passes(t, unreachable6(owner6, server6, come), 10)
		p := between(t, b, sharedAddress, server4)
		quoted := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).Payload
		assert.Equal(t, external, binary.BigEndian.Uint16(quoted[22:]))
	}
	list := 0
	for l := range s.sessions.Sessions(netip.Addr{}, 10) {
		assert.EqualValues(t, 10, l.Idle, "errors refresh nothing, and end nothing")
		list++
	}
	assert.Equal(t, 1, list)
	options := append(append([]byte{0x46}, gone4[1:20]...), 1, 1, 1, 0) // that a router put in, and quotes
	binary.BigEndian.PutUint16(options[2:], uint16(4+len(gone4)))
	between(t, s.passes(t, unreachable4(server4, sharedAddress, append(options, gone4[20:]...)), 10), server6, owner6)

	// Nobody has the session part of the neighbour.
	strange := build(ip(sharedAddress, server4, 60), &layers.UDP{SrcPort: theirs + 1024, DstPort: 99}, gopacket.Payload("natless"))
	out, v := s.takes(unreachable4(server4, sharedAddress, strange), 10)
	assert.Equal(t, translate.QuoteUnmapped, v)
	assert.Empty(t, out, "silently")
	out, v = s.takes(unreachable6(owner6, server6, datagram(server6, 99, owner6, 501)), 10)
	assert.Equal(t, translate.QuoteUnmapped, v)
	assert.Empty(t, out, "silently")
}

// TestHairpinOfARange: clients reach each other through the shared address,
// from the external address and port, in the stateless part and by session,
// and errors find their way back.
func TestHairpinOfARange(t *testing.T) {
	s := newSharer(t)
	toward := uint16(2048 + 5)
	for _, port := range []uint16{1500, 500} {
		sent := datagram(owner6, port, sharedSeen, toward)
		b := s.passes(t, sent, 0)
		between(t, b, sharedSeen, neighbour6)
		src, dst := ports(t, b)
		assert.True(t, src >= 1024 && src < 2048, src)
		assert.Equal(t, toward, dst)

		p := between(t, s.passes(t, unreachable6(neighbour6, sharedSeen, b), 0), sharedSeen, owner6)
		quoted := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).LayerPayload()[4:]
		assert.Equal(t, port, binary.BigEndian.Uint16(quoted[40:]))

		back := s.passes(t, datagram(neighbour6, toward, sharedSeen, src), 0)
		between(t, back, sharedSeen, owner6)
		_, dst = ports(t, back)
		assert.Equal(t, port, dst)
	}
	opened := s.passes(t, segment(neighbour6, 500, server6, 80, true, false), 0)
	external, _ := ports(t, opened)
	b := s.passes(t, segment(owner6, 1500, sharedSeen, external, true, false), 0)
	between(t, b, sharedSeen, neighbour6)
	_, dst := ports(t, b)
	assert.EqualValues(t, 500, dst)
}

// TestRefusedSession: a client whose session part is full is told.
func TestRefusedSession(t *testing.T) {
	s := newSharer(t)
	for port := range uint16(128) {
		s.passes(t, datagram(owner6, port, server6, 99), 0)
	}
	out, v := s.takes(datagram(owner6, 128, server6, 99), 0)
	assert.Equal(t, translate.SessionPortsFull, v)
	require.Len(t, out, 1)
	p := between(t, out[0], "fd00::1", owner6)
	assert.Equal(t, layers.CreateICMPv6TypeCode(1, 3), p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).TypeCode)
	s.passes(t, datagram(owner6, 1500, server6, 99), 0)
	s.passes(t, datagram(neighbour6, 128, server6, 99), 0)
}

// carrying is a packet of any protocol, or a fragment.
func carrying(header gopacket.SerializableLayer, payload string) []byte {
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, header, gopacket.Payload(payload)); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// fragments4 cuts an IPv4 datagram in pieces of 64 bytes of payload.
func fragments4(packet []byte) (list [][]byte) {
	var h layers.IPv4
	_ = h.DecodeFromBytes(packet, gopacket.NilDecodeFeedback)
	payload := packet[20:]
	for off := 0; off < len(payload); off += 64 {
		piece := payload[off:min(off+64, len(payload))]
		more := layers.IPv4Flag(0)
		if off+64 < len(payload) {
			more = layers.IPv4MoreFragments
		}
		list = append(list, carrying(&layers.IPv4{
			Version: 4, TTL: h.TTL, Protocol: h.Protocol, Id: 4711, SrcIP: h.SrcIP, DstIP: h.DstIP,
			FragOffset: uint16(off / 8), Flags: more,
		}, string(piece)))
	}
	return list
}

// TestFragmentsOfARange: later fragments follow their first to whose port it
// has, in any order; without it they wait and are lost, and cost no more than
// they may. What clients send in fragments has identifications of their range.
func TestFragmentsOfARange(t *testing.T) {
	s := newSharer(t)
	external, _ := ports(t, s.passes(t, datagram(owner6, 500, server6, 99), 0))
	for _, to := range []uint16{1500, external} {
		whole := build(ip(server4, sharedAddress, 64), &layers.UDP{SrcPort: 99, DstPort: layers.UDPPort(to)}, gopacket.Payload(make([]byte, 300)))
		pieces := fragments4(whole)
		require.Len(t, pieces, 5)
		for _, order := range [][]int{{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 0, 4, 1, 3}} {
			left := 0
			for _, i := range order {
				out, _ := s.takes(pieces[i], 0)
				for _, b := range out {
					assert.Equal(t, addr(owner6).AsSlice(), b[24:40])
				}
				left += len(out)
			}
			assert.Equal(t, len(pieces), left, order)
			for tick := range uint32(4) {
				s.sharing.Expire(tick)
			}
		}
	}
	lone := fragments4(build(ip(server4, sharedAddress, 64), &layers.UDP{SrcPort: 77, DstPort: 1500}, gopacket.Payload(make([]byte, 100))))[1]
	out, v := s.takes(lone, 10)
	assert.Equal(t, translate.FragmentPending, v)
	assert.Empty(t, out)
	s.sharing.Expire(13)
	assert.EqualValues(t, 1, s.sharing.Lost())

	for _, id := range []byte{0, 1, 0xff} {
		first := carrying(&layers.IPv6{Version: 6, HopLimit: 64, NextHeader: 44, SrcIP: addr(owner6).AsSlice(), DstIP: addr(server6).AsSlice()},
			string([]byte{17, 0, 0, 1, 0xde, 0xad, 0xbe, id, 5, 220, 0, 53, 8, 0, 1, 1}))
		b := s.passes(t, first, 20)
		got := binary.BigEndian.Uint16(b[4:])
		assert.True(t, got >= 1024 && got < 2048, "%d is another's", got)
	}
}
