package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

func at(a string, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr(a), port) }

// between checks the ends of a packet.
func (s packetSeen) between(t failer, src string, srcPort uint16, dst string, dstPort uint16) {
	t.Helper()
	require.Equal(t, [2]netip.AddrPort{at(src, srcPort), at(dst, dstPort)}, [2]netip.AddrPort{s.src, s.dst})
}

func TestStatelessPart(t *testing.T) {
	r := newSharingRig(t, nil).acquaint(t)
	for _, c := range []struct {
		client string
		port   uint16
	}{{amy6, amyFirst}, {amy6, amySession - 1}, {bob6, bobFirst}, {bob6, bobSession - 1}} {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			for range 2 { // the second is answered by the cache
				r.passes(t, whole(c.client, c.port, server6, 80, proto, flagACK, []byte("to")), translate.OK).between(t, shared4, c.port, server4, 80)
				r.passes(t, whole(server4, 80, shared4, c.port, proto, flagACK, []byte("fro")), translate.OK).between(t, server6, 80, c.client, c.port)
			}
		}
	}
	assert.Zero(t, r.sessions.Len())
}

func TestSessionOut(t *testing.T) {
	for name, c := range map[string]struct {
		proto, flags uint8
		port         uint16
	}{
		"TCP below the range":      {protoTCP, flagSYN, 80},
		"TCP of another client":    {protoTCP, flagSYN, bobFirst},
		"TCP in the session part":  {protoTCP, flagSYN, amySession},
		"TCP behind the range":     {protoTCP, flagSYN, 60000},
		"UDP below the range":      {protoUDP, 0, 53},
		"UDP in the session part":  {protoUDP, 0, amySession + 127},
		"echo":                     {protoICMP, echoRequest, amyFirst},
		"UDP-Lite":                 {protoUDPLite, 0, amyFirst},
		"DCCP":                     {protoDCCP, 0, amyFirst},
		"SCTP":                     {protoSCTP, 0, amyFirst},
		"SCTP below the range":     {protoSCTP, 0, 1},
		"UDP-Lite below the range": {protoUDPLite, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSharingRig(t, nil).acquaint(t)
			echo := c.proto == protoICMP
			packet := whole(amy6, c.port, server6, 7, c.proto, c.flags, []byte("natless"))
			s := r.passes(t, packet, translate.OK)
			external := s.src.Port()
			answer := func(server string, to uint16) []byte {
				if echo {
					return whole(server, to, shared4, to, c.proto, echoReply, []byte("so"))
				}
				return whole(server, 7, shared4, to, c.proto, c.flags|flagACK, []byte("so"))
			}
			s.between(t, shared4, external, server4, map[bool]uint16{false: 7, true: external}[echo])
			assert.GreaterOrEqual(t, external, uint16(amySession))
			assert.Less(t, external, uint16(bobFirst))
			assert.True(t, bytes.HasSuffix(s.l4, []byte("natless")))
			assert.Equal(t, 1, r.sessions.Len())

			// The other worker finds it, and so does another server.
			for _, server := range []string{server4, remote4} {
				r.workers[0], r.workers[1] = r.workers[1], r.workers[0]
				s = r.passes(t, answer(server, external), translate.OK)
				s.between(t, "64:ff9b::"+server, map[bool]uint16{false: 7, true: c.port}[echo], amy6, c.port)
			}
			if !echo {
				assert.Equal(t, external, r.passes(t, whole(amy6, c.port, remote6, 443, c.proto, c.flags, nil), translate.OK).src.Port(), "whatever it talks to")
			}
			// Wrong checksums are not repaired.
			packet[len(packet)-1] ^= 0x55
			r.send(0, packet)
			require.Len(t, r.out, 1)
			assert.False(t, rightChecksums(r.out[0]))
			r.stops(t, answer(server4, other(external)), translate.NoSession)
		})
	}
}

// other is another port of the first client's session part.
func other(port uint16) uint16 { return amySession + (port+1-amySession)%128 }

func TestStops(t *testing.T) {
	r := newSharingRig(t, nil).acquaint(t)
	for name, c := range map[string]struct {
		packet []byte
		want   translate.Verdict
	}{
		"nobody's port":               {whole(server4, 80, shared4, 3072, protoTCP, flagSYN, nil), translate.DestinationUnmapped},
		"a port below all":            {whole(server4, 80, shared4, 1023, protoUDP, 0, nil), translate.DestinationUnmapped},
		"nobody's port of SCTP":       {whole(server4, 80, shared4, 3072, protoSCTP, 0, nil), translate.DestinationUnmapped},
		"session part":                {whole(server4, 80, shared4, amySession, protoTCP, flagSYN, nil), translate.NoSession},
		"UDP-Lite to stateless part":  {whole(server4, 80, shared4, amyFirst, protoUDPLite, 0, nil), translate.NoSession},
		"DCCP to stateless part":      {whole(server4, 80, shared4, amyFirst, protoDCCP, 0, nil), translate.NoSession},
		"SCTP to stateless part":      {whole(server4, 80, shared4, amyFirst, protoSCTP, 0, nil), translate.NoSession},
		"echo reply to nobody":        {whole(server4, 3072, shared4, 0, protoICMP, echoReply, nil), translate.OwnAddress},
		"echo reply to stateless":     {whole(server4, amyFirst, shared4, 0, protoICMP, echoReply, nil), translate.NoSession},
		"echo reply to session part":  {whole(server4, amySession, shared4, 0, protoICMP, echoReply, nil), translate.NoSession},
		"GRE in":                      {whole(server4, 0, shared4, 0, protoGRE, 0, []byte{0, 0, 8, 0}), translate.NoPorts},
		"GRE out":                     {whole(amy6, 0, server6, 0, protoGRE, 0, []byte{0, 0, 8, 0}), translate.NoPorts},
		"GRE hairpin":                 {whole(amy6, 0, shared6, 0, protoGRE, 0, []byte{0, 0, 8, 0}), translate.NoPorts},
		"GRE from who has an address": {whole(one6, 0, shared6, 0, protoGRE, 0, []byte{0, 0, 8, 0}), translate.NoPorts},
		"midst of a connection":       {whole(amy6, 80, server6, 80, protoTCP, flagACK, nil), translate.NotSYN},
		"echo reply of a client":      {whole(amy6, amyFirst, server6, 0, protoICMP, echoReply, nil), translate.NoSession},
		"hairpin to nobody":           {whole(amy6, amyFirst, shared6, 3072, protoTCP, flagSYN, nil), translate.DestinationUnmapped},
		"hairpin to session part":     {whole(amy6, amyFirst, shared6, bobSession, protoTCP, flagSYN, nil), translate.NoSession},
		"SCTP fragment out":           {cut(whole(amy6, amyFirst, server6, 80, protoSCTP, 0, make([]byte, 100)), 1, 64)[0], translate.SCTPFragment},
		"SCTP fragment in":            {cut(whole(server4, 80, shared4, amyFirst, protoSCTP, 0, make([]byte, 100)), 1, 64)[0], translate.SCTPFragment},
		"GRE fragment out":            {cut(whole(amy6, 0, server6, 0, protoGRE, 0, make([]byte, 100)), 1, 64)[0], translate.NoPorts},
	} {
		t.Run(name, func(t *testing.T) {
			r.stops(t, c.packet, c.want)
			assert.Zero(t, r.sessions.Len())
		})
	}
	for _, p := range [][]byte{whole(amy6, 0, server6, 0, protoGRE, 0, make([]byte, 100)), whole(server4, 0, shared4, 0, protoGRE, 0, make([]byte, 100))} {
		require.Equal(t, []Outcome{{Verdict: translate.NoPorts}}, r.send(0, cut(p, 1, 64)[1]), "no error is about a later fragment")
	}
}

func TestRefusedOut(t *testing.T) {
	syn := func(port uint16) []byte { return whole(amy6, port, server6, 80, protoTCP, flagSYN, nil) }
	t.Run("session part full", func(t *testing.T) {
		r := newSharingRig(t, nil)
		for i := range uint16(128) {
			r.passes(t, syn(1+i), translate.OK)
		}
		r.stops(t, syn(500), translate.SessionPortsFull)
		r.passes(t, whole(amy6, 500, server6, 80, protoUDP, 0, nil), translate.OK) // whose ports are others
		r.passes(t, syn(1), translate.OK)
	})
	t.Run("client full", func(t *testing.T) {
		r := newSharingRig(t, func(_ *mapping.Config, c *conntrack.Config, _ *conntrack.FragmentConfig) { c.ClientSessions = 3 })
		for i := range uint16(3) {
			r.passes(t, syn(1+i), translate.OK)
		}
		r.stops(t, syn(500), translate.ClientSessionsFull)
		r.passes(t, whole(bob6, 500, server6, 80, protoUDP, 0, nil), translate.OK)
	})
	t.Run("table full", func(t *testing.T) {
		r := newSharingRig(t, func(_ *mapping.Config, c *conntrack.Config, _ *conntrack.FragmentConfig) { c.Sessions = 3 })
		for i := range uint16(3) {
			r.passes(t, syn(1+i), translate.OK)
		}
		r.stops(t, whole(bob6, 500, server6, 80, protoUDP, 0, nil), translate.SessionsFull)
		r.passes(t, whole(bob6, bobFirst, server6, 80, protoUDP, 0, nil), translate.OK) // which takes none
		r.pass(241)
		r.passes(t, whole(bob6, 500, server6, 80, protoUDP, 0, nil), translate.OK)
	})
}

// natless answers echo to a shared address, whoever has the identifier, and
// whether or not it is its own.
func TestEchoToSharedAddress(t *testing.T) {
	for _, own := range []string{own4, shared4} {
		r := newSharingRig(t, func(c *mapping.Config, _ *conntrack.Config, _ *conntrack.FragmentConfig) { c.OwnIPv4 = addr(own) }).acquaint(t)
		session := r.passes(t, whole(amy6, 7, server6, 0, protoICMP, echoRequest, nil), translate.OK).src.Port()
		for _, id := range []uint16{7, amyFirst, amySession, session, bobFirst, 60000} {
			r.passes(t, whole(server4, id, shared4, 0, protoICMP, echoRequest, []byte("x")), translate.Answered).between(t, shared4, id, server4, id)
			r.passes(t, whole(amy6, id, shared6, 0, protoICMP, echoRequest, []byte("x")), translate.Answered).between(t, shared6, id, amy6, id)
			r.passes(t, whole(one6, id, shared6, 0, protoICMP, echoRequest, []byte("x")), translate.Answered).between(t, shared6, id, one6, id)
		}
		r.passes(t, whole(server4, session, shared4, 0, protoICMP, echoReply, nil), translate.OK).between(t, server6, 7, amy6, 7)
		r.stops(t, whole(amy6, session, shared6, 0, protoICMP, echoReply, nil), translate.OwnAddress)
		assert.Equal(t, 1, r.sessions.Len())

		// The rest is the same for natless's own address.
		r.stops(t, whole(server4, 80, shared4, 22, protoTCP, flagSYN, nil), translate.DestinationUnmapped)
		r.stops(t, whole(amy6, amyFirst, shared6, 22, protoTCP, flagSYN, nil), translate.DestinationUnmapped)
		r.passes(t, whole(server4, 80, shared4, bobFirst, protoTCP, flagSYN, nil), translate.OK).between(t, server6, 80, bob6, bobFirst)
		r.passes(t, whole(amy6, amyFirst, shared6, bobFirst, protoTCP, flagSYN, nil), translate.Hairpin).between(t, shared6, amyFirst, bob6, bobFirst)
	}
}

// TestErrorsAboutShared: errors go to whom the quoted port says, with the
// quoted packet as its sender knows it.
func TestErrorsAboutShared(t *testing.T) {
	for name, c := range map[string]struct {
		proto, flags uint8
		port         uint16
		session      bool
	}{
		"stateless TCP": {protoTCP, flagSYN, amyFirst, false}, "stateless UDP": {protoUDP, 0, amySession - 1, false},
		"session TCP": {protoTCP, flagSYN, 80, true}, "session UDP": {protoUDP, 0, bobFirst, true}, "echo": {protoICMP, echoRequest, 9, true},
		"UDP-Lite": {protoUDPLite, 0, 1, true}, "DCCP": {protoDCCP, 0, 1, true}, "SCTP": {protoSCTP, 0, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSharingRig(t, nil).acquaint(t)
			sent := whole(amy6, c.port, server6, 443, c.proto, c.flags, []byte("natless"))
			r.passes(t, sent, translate.OK)
			left := r.out[0]
			external := look(left).src.Port()
			for _, from := range []string{server4, remote4} { // the server, or a router on the way
				s := r.passes(t, fails(from, shared4, left), translate.OK)
				s.between(t, "64:ff9b::"+from, 0, amy6, 0)
				quoted := look(s.quote)
				quoted.between(t, amy6, c.port, server6, look(sent).dst.Port())
				if c.proto != protoSCTP { // whose CRC covers more than may be quoted
					assert.True(t, rightChecksums(s.quote))
				}
			}
			// About what came back.
			back := whole(server4, external, shared4, external, c.proto, echoReply, []byte("so"))
			if c.proto != protoICMP {
				back = whole(server4, 443, shared4, external, c.proto, flagSYN|flagACK, []byte("so"))
			}
			r.passes(t, back, translate.OK)
			came := r.out[0]
			r.stops(t, fails(bob6, server6, came), translate.ErrorForAnother)
			s := r.passes(t, fails(amy6, server6, came), translate.OK)
			s.between(t, shared4, 0, server4, 0)
			look(s.quote).between(t, server4, look(back).src.Port(), shared4, external)
			if c.proto != protoSCTP {
				assert.True(t, rightChecksums(s.quote))
			}
			r.passes(t, back, translate.OK)
			if !c.session {
				assert.Zero(t, r.sessions.Len())
				return
			}
			assert.Equal(t, 1, r.sessions.Len())
			delivered := r.out[0]
			r.restart(t)
			r.stops(t, fails(server4, shared4, left), translate.QuoteUnmapped)
			r.stops(t, fails(amy6, server6, delivered), translate.QuoteUnmapped)
			assert.Zero(t, r.sessions.Len(), "an error opens nothing")
		})
	}
}

func TestErrorsAboutNobody(t *testing.T) {
	r := newSharingRig(t, nil).acquaint(t)
	all := r.send(0, fails(server4, shared4, whole(shared4, 3072, server4, 80, protoTCP, flagSYN, nil)))
	require.Equal(t, []Outcome{{Verdict: translate.DestinationUnmapped}}, all, "no error is about an error")
	r.stops(t, fails(server4, shared4, whole(shared4, amySession, server4, 80, protoTCP, flagSYN, nil)), translate.QuoteUnmapped)
	r.stops(t, fails(server4, shared4, whole(shared4, amyFirst, server4, 80, protoICMP, echoRequest, nil)), translate.QuoteUnmapped)
	all = r.send(0, fails(server4, shared4, whole(shared4, 0, server4, 0, protoGRE, 0, []byte("1234"))))
	require.Equal(t, []Outcome{{Verdict: translate.DestinationUnmapped}}, all)
	assert.Zero(t, r.sessions.Len())
}

// TestSharedHairpins is clients that reach each other through the shared
// address, and the answers.
func TestSharedHairpins(t *testing.T) {
	for name, c := range map[string]struct {
		proto, flags uint8
		from         string
		port         uint16
		to           string
		toPort       uint16
		session      string // whose session the destination is, "": none
	}{
		"stateless to stateless":       {protoTCP, flagSYN, amy6, amyFirst, bob6, bobFirst, ""},
		"to itself":                    {protoUDP, 0, amy6, amyFirst, amy6, amyFirst + 1, ""},
		"session to stateless":         {protoTCP, flagSYN, amy6, 80, bob6, bobFirst, ""},
		"stateless to session":         {protoTCP, flagSYN, amy6, amyFirst, bob6, 22, bob6},
		"session to session":           {protoUDP, 0, amy6, 53, bob6, 53, bob6},
		"session to its own session":   {protoUDP, 0, amy6, 53, amy6, 54, amy6},
		"UDP-Lite":                     {protoUDPLite, 0, amy6, 53, bob6, 53, bob6},
		"SCTP":                         {protoSCTP, 0, amy6, 53, bob6, 53, bob6},
		"own address to stateless":     {protoTCP, flagSYN, one6, 4000, bob6, bobFirst, ""},
		"own address to session":       {protoUDP, 0, one6, 4000, bob6, 53, bob6},
		"stateless to who has his own": {protoTCP, flagSYN, amy6, amyFirst, one6, 80, ""},
		"session to who has his own":   {protoTCP, flagSYN, amy6, 80, one6, 80, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSharingRig(t, nil).acquaint(t)
			seen := map[string]string{amy6: shared6, bob6: shared6, one6: oneSeen}
			toPort := c.toPort
			if c.session != "" {
				toPort = r.passes(t, whole(c.session, c.toPort, server6, 80, c.proto, c.flags, nil), translate.OK).src.Port()
			}
			sent := whole(c.from, c.port, seen[c.to], toPort, c.proto, c.flags, []byte("natless"))
			s := r.passes(t, sent, translate.Hairpin)
			fromPort := s.src.Port()
			s.between(t, seen[c.from], fromPort, c.to, c.toPort)
			assert.Equal(t, byte(63), r.out[0][7], "twice translated, by one router")
			delivered := r.out[0]

			answer := whole(c.to, c.toPort, seen[c.from], fromPort, c.proto, flagSYN|flagACK, []byte("so"))
			r.passes(t, answer, translate.Hairpin).between(t, seen[c.to], toPort, c.from, c.port)
			answered := r.out[0]

			// Each finds the other's packet undeliverable.
			s = r.passes(t, fails(c.to, seen[c.from], delivered), translate.Hairpin)
			s.between(t, seen[c.to], 0, c.from, 0)
			look(s.quote).between(t, c.from, c.port, seen[c.to], toPort)
			s = r.passes(t, fails(c.from, seen[c.to], answered), translate.Hairpin)
			s.between(t, seen[c.from], 0, c.to, 0)
			look(s.quote).between(t, c.to, c.toPort, seen[c.from], fromPort)
		})
	}
}

func TestHairpinOffForShared(t *testing.T) {
	r := newSharingRig(t, func(c *mapping.Config, _ *conntrack.Config, _ *conntrack.FragmentConfig) { c.Hairpin = false }).acquaint(t)
	r.stops(t, whole(amy6, amyFirst, shared6, bobFirst, protoTCP, flagSYN, nil), translate.HairpinOff)
	r.stops(t, whole(amy6, 80, shared6, bobFirst, protoTCP, flagSYN, nil), translate.HairpinOff)
	r.passes(t, whole(amy6, 80, shared6, bobFirst, protoICMP, echoRequest, nil), translate.Answered)
	assert.Zero(t, r.sessions.Len())
}

// text is n bytes of which no eight are like others.
func text(n int) (b []byte) {
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, "%07d ", i)
	}
	return b[:n]
}

// TestFragmentsFollow: fragments to a shared address arrive in any order, on
// any worker, and make the same datagram.
func TestFragmentsFollow(t *testing.T) {
	data := text(1000)
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	for name, c := range map[string]struct {
		proto, flags uint8
		src          string
		srcPort      uint16
		client       string
		port         uint16
		session      bool
	}{
		"TCP to stateless":         {protoTCP, flagACK, server4, 80, bob6, bobFirst, false},
		"UDP to stateless":         {protoUDP, 0, server4, 53, bob6, bobFirst, false},
		"UDP to session":           {protoUDP, 0, server4, 53, bob6, 53, true},
		"TCP to session":           {protoTCP, flagSYN, server4, 80, bob6, 80, true},
		"UDP-Lite to session":      {protoUDPLite, 0, server4, 53, bob6, 53, true},
		"DCCP to session":          {protoDCCP, 0, server4, 53, bob6, 53, true},
		"hairpin to stateless":     {protoUDP, 0, amy6, amyFirst, bob6, bobFirst, false},
		"hairpin to session":       {protoUDP, 0, amy6, 53, bob6, 53, true},
		"hairpin from own address": {protoUDP, 0, one6, 4000, bob6, 53, true},
	} {
		for _, order := range orders {
			for turns := range 4 { // which workers take the second and the third
				t.Run(fmt.Sprint(name, order, turns), func(t *testing.T) {
					r := newSharingRig(t, nil).acquaint(t)
					port, dst := c.port, shared4
					if c.session {
						port = r.passes(t, whole(c.client, c.port, server6, 80, c.proto, c.flags, nil), translate.OK).src.Port()
					}
					if addr(c.src).Is6() {
						dst = shared6
					}
					pieces := cut(whole(c.src, c.srcPort, dst, port, c.proto, c.flags, data), 0xabcd, 400)
					require.Len(t, pieces, 3)
					var out [][]byte
					first := false
					for i, n := range order {
						all := r.send([]int{0, turns & 1, turns >> 1}[i], pieces[n])
						first = first || n == 0
						if !first {
							require.Equal(t, []Outcome{{Verdict: translate.FragmentPending, Held: true}}, all)
							require.Empty(t, r.out)
						}
						out = append(out, r.out...)
					}
					require.Len(t, out, len(pieces))
					s := joined(t, out)
					assert.Equal(t, []any{addr(c.client), c.port}, []any{s.dst.Addr(), s.dst.Port()})
					assert.True(t, bytes.HasSuffix(s.l4, data))
					assert.Zero(t, r.sharing.Lost())
				})
			}
		}
	}
}

func TestFragmentsInVain(t *testing.T) {
	pending := []Outcome{{Verdict: translate.FragmentPending, Held: true}}
	pieces := func(id uint32) [][]byte {
		return cut(whole(server4, 53, shared4, bobFirst, protoUDP, 0, text(1000)), id, 512)
	}
	t.Run("first lost", func(t *testing.T) {
		r := newSharingRig(t, nil).acquaint(t)
		require.Equal(t, pending, r.send(0, pieces(1)[1]))
		r.pass(2)
		assert.Zero(t, r.sharing.Lost())
		r.pass(1)
		assert.EqualValues(t, 1, r.sharing.Lost())
		require.Equal(t, []Outcome{{Verdict: translate.OK}}, r.send(0, pieces(1)[0]), "too late for those")
		require.Equal(t, []Outcome{{Verdict: translate.OK}}, r.send(1, pieces(1)[1]), "but not for this")
	})
	t.Run("too many", func(t *testing.T) {
		r := newSharingRig(t, func(_ *mapping.Config, _ *conntrack.Config, f *conntrack.FragmentConfig) {
			f.Bytes, f.SourceBytes = 8*512, 4*512
		}).acquaint(t)
		require.Equal(t, pending, r.send(0, pieces(1)[1])) // 2 blocks each
		require.Equal(t, pending, r.send(0, pieces(2)[1]))
		require.Equal(t, []Outcome{{Verdict: translate.FragmentPending}}, r.send(0, pieces(3)[1]), "of this source, and it is counted at once")
		another := cut(whole(remote4, 53, shared4, bobFirst, protoUDP, 0, text(1000)), 1, 512)
		require.Equal(t, pending, r.send(0, another[1]))
		require.Len(t, r.send(0, another[0]), 2, "another's go on")
		require.Len(t, r.send(0, pieces(1)[0]), 2)
	})
	t.Run("first refused", func(t *testing.T) {
		r := newSharingRig(t, nil).acquaint(t)
		nobodys := cut(whole(server4, 53, shared4, 60000, protoUDP, 0, text(1000)), 1, 512)
		require.Equal(t, pending, r.send(0, nobodys[1]))
		require.Equal(t, []Outcome{{Verdict: translate.DestinationUnmapped, Error: true}, {Verdict: translate.DestinationUnmapped}}, r.send(0, nobodys[0]))
		session := cut(whole(server4, 53, shared4, bobSession, protoUDP, 0, text(1000)), 2, 512)
		require.Equal(t, []Outcome{{Verdict: translate.NoSession}}, r.send(0, session[0]))
		require.Equal(t, []Outcome{{Verdict: translate.NoSession}}, r.send(1, session[1]))
	})
	t.Run("others without ports", func(t *testing.T) {
		r := newSharingRig(t, func(_ *mapping.Config, _ *conntrack.Config, f *conntrack.FragmentConfig) { f.SourceDatagrams = 1 }).acquaint(t)
		require.Equal(t, pending, r.send(0, pieces(1)[1]))
		r.stops(t, cut(whole(server4, 0, shared4, 0, protoGRE, 0, text(1000)), 2, 512)[0], translate.NoPorts)
		require.Len(t, r.send(0, pieces(1)[0]), 2, "they take no room")
	})
	t.Run("a later one to whom an address is", func(t *testing.T) {
		r := newSharingRig(t, nil).acquaint(t)
		all := cut(whole(server4, 53, one4, bobFirst, protoUDP, 0, text(1000)), 1, 512)
		require.Equal(t, []Outcome{{Verdict: translate.OK}}, r.send(0, all[1]), "waits for nobody")
	})
}

// Fragments that leave with a shared address have identifications of their
// client's, so that no two clients' are put together (RFC 7597 8.3.3).
func TestFragmentIdentifications(t *testing.T) {
	r := newSharingRig(t, nil).acquaint(t)
	for _, c := range []struct {
		client      string
		port, first uint16
	}{{amy6, amyFirst, amyFirst}, {amy6, 53, amyFirst}, {bob6, bobFirst, bobFirst}} {
		seen := map[uint32]bool{}
		for _, id := range []uint32{0, 1, 1023, 1024, 0xabcd1234} {
			var out [][]byte
			for i, p := range cut(whole(c.client, c.port, server6, 53, protoUDP, 0, text(1000)), id, 512) {
				require.Equal(t, []Outcome{{Verdict: translate.OK}}, r.send(i%2, p))
				out = append(out, r.out...)
			}
			s := joined(t, out)
			assert.GreaterOrEqual(t, s.id, uint32(c.first))
			assert.Less(t, s.id, uint32(c.first)+1024)
			seen[s.id] = true
		}
		assert.Len(t, seen, 4, "1024 is 0 again")
	}
	// Of others they stay as they are.
	for _, p := range cut(whole(one6, 4000, server6, 53, protoUDP, 0, text(1000)), 0xabcd1234, 512) {
		r.send(0, p)
		assert.EqualValues(t, 0x1234, look(r.out[0]).id)
	}
}

// TestCacheBySharedPort: packets of one pair of addresses are of many clients,
// and what one of them got is no answer for the next.
func TestCacheBySharedPort(t *testing.T) {
	r := newSharingRig(t, func(c *mapping.Config, _ *conntrack.Config, _ *conntrack.FragmentConfig) {
		c.Pools[0].Ports = mapping.Ports{PerClient: 16, Session: 4, First: 1024, Last: 65535} // many of a place in the cache
	})
	clients := []string{amy6, bob6, cat6}
	for i, c := range clients {
		r.passes(t, whole(c, 1024+16*uint16(i), server6, 80, protoUDP, 0, nil), translate.OK)
	}
	for range 3 {
		for i, c := range clients {
			port := 1024 + 16*uint16(i)
			r.passes(t, whole(server4, 80, shared4, port, protoTCP, flagSYN, nil), translate.OK).between(t, server6, 80, c, port)
			r.passes(t, whole(server4, 80, shared4, port+11, protoUDP, 0, nil), translate.OK).between(t, server6, 80, c, port+11)
			r.stops(t, whole(server4, 80, shared4, port+12, protoUDP, 0, nil), translate.NoSession)
			r.passes(t, whole(server4, port, shared4, 0, protoICMP, echoRequest, nil), translate.Answered)
			r.stops(t, whole(server4, 0, shared4, 0, protoGRE, 0, []byte("1234")), translate.NoPorts)
			r.stops(t, whole(server4, port, shared4, 0, protoICMP, echoReply, nil), translate.NoSession)
			// The same pair from the other side.
			r.passes(t, whole(c, port, server6, 80, protoTCP, flagSYN, nil), translate.OK).between(t, shared4, port, server4, 80)
			id := r.passes(t, whole(c, port, server6, 80, protoICMP, echoRequest, nil), translate.OK).src.Port()
			assert.GreaterOrEqual(t, id, port+12)
			assert.Less(t, id, port+16)
			r.stops(t, whole(c, 0, server6, 0, protoGRE, 0, []byte("1234")), translate.NoPorts)
			r.passes(t, whole(c, port, shared6, 1024, protoTCP, flagSYN, nil), translate.Hairpin).between(t, shared6, port, amy6, 1024)
			r.passes(t, whole(c, port, shared6, 1040, protoTCP, flagSYN, nil), translate.Hairpin).between(t, shared6, port, bob6, 1040)
			r.passes(t, whole(c, port, shared6, 1056, protoUDP, 0, nil), translate.Hairpin).between(t, shared6, port, cat6, 1056)
		}
		r.stops(t, whole(server4, 80, shared4, 1024+48, protoUDP, 0, nil), translate.DestinationUnmapped)
	}
}

// A lease that ends is over with the next packet, and its sessions are of no
// use to the range's next client.
func TestLeaseEnds(t *testing.T) {
	r := newSharingRig(t, nil).acquaint(t)
	in := whole(server4, 80, shared4, bobFirst, protoUDP, 0, nil)
	external := r.passes(t, whole(bob6, 53, server6, 80, protoUDP, 0, nil), translate.OK).src.Port()
	toSession := whole(server4, 80, shared4, external, protoUDP, 0, nil)
	r.passes(t, in, translate.OK)
	r.passes(t, toSession, translate.OK)
	_, err := r.table.Release(addr(bob6), "test")
	require.NoError(t, err)
	r.stops(t, in, translate.DestinationUnmapped)
	r.stops(t, toSession, translate.DestinationUnmapped)
	r.pass(uint32(mapping.RestRange.Seconds()) + 1)
	for i := range 62 { // whoever comes gets the ranges in their order, and bob's at last
		r.passes(t, whole(fmt.Sprintf("2001:db8:1::1:%x", i), 1, server6, 80, protoUDP, 0, nil), translate.OK)
		if r.send(0, in); len(r.out) == 1 && look(r.out[0]).dst.Port() == bobFirst {
			next := look(r.out[0]).dst.Addr()
			require.NotEqual(t, addr(bob6), next)
			if r.send(0, toSession); len(r.out) > 0 {
				require.Equal(t, at(next.String(), 1), look(r.out[0]).dst, "the port by chance")
			}
			return
		}
	}
	t.Fatal("nobody got the range")
}

// TestSharedWithoutSessions: a table whose clients share serves the stateless
// part where there is nothing else.
func TestSharedWithoutSessions(t *testing.T) {
	r := newSharingRig(t, nil)
	r.sharing = Sharing{}
	r.workers[0] = NewTranslator(r.table, r.sharing, translate.Options{IPv4MTU: 1500, IPv6MTU: 1500}, addr(own4), addr(own6))
	r.acquaint(t)
	r.passes(t, whole(server4, 80, shared4, bobFirst, protoTCP, flagSYN, nil), translate.OK)
	r.passes(t, whole(amy6, amyFirst, shared6, bobFirst, protoTCP, flagSYN, nil), translate.Hairpin)
	for _, packet := range [][]byte{
		whole(amy6, 80, server6, 80, protoTCP, flagSYN, nil),
		whole(amy6, 7, server6, 0, protoICMP, echoRequest, nil),
		whole(server4, 80, shared4, amySession, protoTCP, flagSYN, nil),
		whole(amy6, amyFirst, shared6, bobSession, protoTCP, flagSYN, nil),
	} {
		r.stops(t, packet, translate.NoSession)
	}
	r.stops(t, fails(server4, shared4, whole(shared4, amySession, server4, 80, protoTCP, flagSYN, nil)), translate.QuoteUnmapped)
	r.stops(t, fails(amy6, server6, whole(server6, 80, amy6, 80, protoTCP, flagSYN, nil)), translate.QuoteUnmapped)
	require.Equal(t, []Outcome{{Verdict: translate.FragmentPending}}, r.send(0, cut(whole(server4, 53, shared4, bobFirst, protoUDP, 0, text(1000)), 1, 512)[1]))
	assert.Zero(t, r.sharing.Lost())
	r.pass(1)
}

// sharedPlane is a dataplane of one worker without a queue worth the name.
func sharedPlane(t testing.TB, table *mapping.Table, q tun.Queue) (*Plane, *worker) {
	sharing, err := NewSharing(conntrack.Default())
	require.NoError(t, err)
	p := New(Config{
		Queues: []tun.Queue{q}, Resolver: table, Sharing: sharing, IPv4: addr(own4), IPv6: addr(own6),
		Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
	})
	return p, p.workers[0]
}

// TestSharingAllocatesNothing: neither packets of sessions that are there nor
// fragments of a source that is known cost memory.
func TestSharingAllocatesNothing(t *testing.T) {
	table, err := mapping.New(sharingConfig())
	require.NoError(t, err)
	p, w := sharedPlane(t, table, nowhere{})
	handle := func(packet []byte) { w.handle(copy(w.translator.packet.Buf[headroom:], packet), &tun.Header{}) }
	handle(whole(amy6, amyFirst, server6, 80, protoUDP, 0, nil))
	handle(whole(bob6, 53, server6, 80, protoUDP, 0, nil))
	handle(whole(amy6, 80, server6, 80, protoTCP, flagSYN, nil))
	handle(whole(amy6, 7, server6, 0, protoICMP, echoRequest, nil))
	port := map[uint8]uint16{}
	for s := range p.sharing.Sessions.(*conntrack.Table).Sessions(netip.Addr{}, 0) {
		port[s.Protocol] = s.Port
	}
	in := cut(whole(server4, 53, shared4, port[protoUDP], protoUDP, 0, text(1000)), 1, 512)
	hairpin := cut(whole(amy6, 99, shared6, port[protoUDP], protoUDP, 0, text(1000)), 1, 512)
	for i := uint32(2); i < 4; i++ { // others of the same sources, that stay
		handle(cut(whole(server4, 53, shared4, amyFirst, protoUDP, 0, text(1000)), i, 512)[1])
		handle(cut(whole(amy6, 99, shared6, port[protoUDP], protoUDP, 0, text(1000)), i, 512)[1])
	}
	handle(hairpin[0])
	for _, c := range []struct {
		want    translate.Verdict
		packets [][]byte
	}{
		{translate.OK, [][]byte{whole(amy6, amyFirst, server6, 80, protoTCP, flagACK, nil)}},
		{translate.OK, [][]byte{whole(server4, 80, shared4, amyFirst, protoTCP, flagACK, nil)}},
		{translate.OK, [][]byte{whole(amy6, 80, server6, 80, protoTCP, flagACK, nil)}},
		{translate.OK, [][]byte{whole(server4, 80, shared4, port[protoTCP], protoTCP, flagACK, nil)}},
		{translate.OK, [][]byte{whole(amy6, 7, server6, 0, protoICMP, echoRequest, nil)}},
		{translate.OK, [][]byte{whole(server4, port[protoICMP], shared4, 0, protoICMP, echoReply, nil)}},
		{translate.OK, [][]byte{fails(server4, shared4, whole(shared4, port[protoTCP], server4, 80, protoTCP, flagACK, nil))}},
		{translate.OK, [][]byte{fails(amy6, server6, whole(server6, 80, amy6, 80, protoTCP, flagACK, nil))}},
		{translate.Hairpin, [][]byte{whole(amy6, amyFirst, shared6, port[protoUDP], protoUDP, 0, nil)}},
		{translate.OK, in},
		{translate.OK, [][]byte{in[1], in[0]}},
		{translate.Hairpin, hairpin},
		{translate.Hairpin, [][]byte{hairpin[1], hairpin[0]}},
		{translate.NoSession, [][]byte{whole(server4, 80, shared4, amySession, protoUDPLite, 0, nil)}},
		{translate.NotSYN, [][]byte{whole(amy6, 81, server6, 80, protoTCP, flagACK, nil)}},
		{translate.NoPorts, [][]byte{whole(amy6, 0, server6, 0, protoGRE, 0, []byte("1234"))}},
	} {
		before := p.Counters().Verdicts[c.want]
		allocs := testing.AllocsPerRun(500, func() {
			for _, packet := range c.packets {
				handle(packet)
			}
		})
		assert.Zero(t, allocs, c.want)
		assert.EqualValues(t, 501*len(c.packets), p.Counters().Verdicts[c.want]-before, "%v %x", c.want, c.packets[0])
	}
}

// TestSharedClientHeld: the first packets of a client that shares wait for its
// lease, and take their sessions when it is there.
func TestSharedClientHeld(t *testing.T) {
	table, err := mapping.New(sharingConfig())
	require.NoError(t, err)
	q := newQueue()
	p, w := sharedPlane(t, table, q)
	_, err = table.Keep(mapping.Keeper{Wake: p.Wake})
	require.NoError(t, err)
	pieces := cut(whole(amy6, 54, shared6, amyFirst, protoUDP, 0, text(1000)), 1, 512)
	for _, packet := range [][]byte{
		whole(amy6, amyFirst, server6, 80, protoTCP, flagSYN, nil),
		whole(amy6, 53, server6, 80, protoUDP, 0, nil),
		whole(amy6, 7, server6, 0, protoICMP, echoRequest, nil),
		pieces[1], pieces[0], // of a hairpin: to whom it is, is known with the lease too
	} {
		w.handle(copy(w.translator.packet.Buf[headroom:], packet), &tun.Header{})
	}
	assert.Empty(t, q.written())
	assert.EqualValues(t, 5, p.Counters().Held)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go table.RunKeeper(ctx)
	select {
	case <-q.woken:
		w.retry()
	case <-time.After(10 * time.Second):
		t.Fatal("nobody woke the queue")
	}
	out := q.written()
	require.Len(t, out, 5)
	look(out[0]).between(t, shared4, amyFirst, server4, 80)
	for _, packet := range out[1:3] {
		assert.GreaterOrEqual(t, look(packet).src.Port(), uint16(amySession))
	}
	s := joined(t, out[3:])
	assert.Equal(t, at(amy6, amyFirst), s.dst)
	c := p.Counters()
	assert.Zero(t, c.Held)
	assert.EqualValues(t, []uint64{3, 2, 0}, []uint64{c.Verdicts[translate.OK], c.Verdicts[translate.Hairpin], c.Verdicts[translate.FragmentPending]})
}

// TestSteady: of a flow under way the table of sessions hears once a second,
// and of whatever changes one at once, though both workers remember.
func TestSteady(t *testing.T) {
	r := newSharingRig(t, nil).acquaint(t)
	passed := func(packet []byte) (s packetSeen) {
		t.Helper()
		for range 2 {
			r.workers[0], r.workers[1] = r.workers[1], r.workers[0]
			for range 2 {
				s = r.passes(t, packet, translate.OK)
			}
		}
		return s
	}
	state := func() (s conntrack.Session) {
		for s = range r.sessions.Sessions(addr(amy6), r.tick) {
			if s.Protocol == protoTCP {
				return s
			}
		}
		return s
	}
	out := whole(amy6, 80, server6, 80, protoTCP, flagACK, nil)
	external := passed(whole(amy6, 80, server6, 80, protoTCP, flagSYN, nil)).src.Port()
	passed(whole(server4, 80, shared4, external, protoTCP, flagSYN|flagACK, nil))
	passed(out)
	assert.Equal(t, "established", state().State.String())
	r.pass(100)
	assert.EqualValues(t, 100, state().Idle)
	passed(out)
	assert.Zero(t, state().Idle, "every second it is heard of")
	r.passes(t, whole(server4, 80, shared4, external, protoTCP, flagRST, nil), translate.OK)
	assert.Equal(t, "trans", state().State.String())
	passed(out)
	assert.Equal(t, "established", state().State.String(), "it was no end")
	r.passes(t, whole(amy6, 80, server6, 80, protoTCP, flagFIN|flagACK, nil), translate.OK)
	assert.Equal(t, "v6_fin", state().State.String())

	// To another server, and what it answers, is another connection.
	passed(whole(amy6, 80, remote6, 80, protoTCP, flagSYN, nil))
	passed(whole(amy6, 80, remote6, 80, protoTCP, flagACK, nil))
	assert.Equal(t, 2, r.sessions.Len())

	id := passed(whole(amy6, 7, server6, 0, protoICMP, echoRequest, nil)).src.Port()
	udp := passed(whole(amy6, 7, server6, 53, protoUDP, 0, nil)).src.Port()
	passed(whole(server4, 53, shared4, udp, protoUDP, 0, nil)).between(t, server6, 53, amy6, 7)
	passed(whole(server4, id, shared4, 0, protoICMP, echoReply, nil)).between(t, server6, 7, amy6, 7)
	r.sessions.End(addr(amy6))
	for range 2 {
		r.workers[0], r.workers[1] = r.workers[1], r.workers[0]
		r.stops(t, out, translate.NotSYN)
		r.stops(t, whole(server4, 53, shared4, udp, protoUDP, 0, nil), translate.NoSession)
		r.stops(t, whole(server4, id, shared4, 0, protoICMP, echoReply, nil), translate.NoSession)
	}
}
