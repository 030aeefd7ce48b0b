package dataplane

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/natless/natless/translate"
)

// FuzzSharing puts any packets, in a row, through two workers whose clients
// share an address. Nothing panics; what leaves has right checksums if what
// came had; and no client is heard from a port that is not its own, or reached
// by one. The input is packets behind a byte of settings and two of their
// length each.
func FuzzSharing(f *testing.F) {
	seed := func(packets ...[]byte) {
		var all []byte
		for _, p := range packets {
			all = binary.BigEndian.AppendUint16(append(all, 0), uint16(len(p)))
			all = append(all, p...)
		}
		f.Add(all)
	}
	r := newSharingRig(f, nil)
	first := whole(amy6, amyFirst, server6, 80, protoUDP, 0, nil)
	second := whole(bob6, bobFirst, server6, 80, protoUDP, 0, nil)
	seed(first, whole(server4, 80, shared4, amyFirst, protoTCP, flagSYN, text(20)), whole(amy6, amyFirst, shared6, amyFirst+1, protoUDP, 0, text(9)))
	for _, proto := range []uint8{protoTCP, protoUDP, protoUDPLite, protoDCCP, protoSCTP, protoICMP, protoGRE} {
		out := whole(amy6, 53, server6, 80, proto, flagSYN&3, text(30))
		if proto == protoICMP {
			out = whole(amy6, 53, server6, 80, proto, echoRequest, text(30))
		}
		in := whole(server4, 80, shared4, amySession+5, proto, flagSYN, text(30))
		hairpin := whole(bob6, 54, shared6, amySession+5, proto, flagSYN, text(40))
		r.send(0, out)
		seed(first, second, out, in, hairpin)
		for _, left := range r.out {
			seed(first, out, fails(server4, shared4, left), fails(amy6, server6, whole(server6, 80, amy6, 53, proto, echoReply, text(9))))
		}
		for _, p := range [][]byte{out, in, hairpin, whole(server4, 80, shared4, amyFirst, proto, flagACK, text(200)), whole(bob6, 54, shared6, amyFirst, proto, flagSYN, text(200))} {
			pieces := cut(p, 7, 24)
			seed(append([][]byte{first, out}, pieces...)...)
			seed(first, out, pieces[len(pieces)-1], pieces[0])
		}
	}
	seed(first, second, whole(server4, 9, shared4, 9, protoICMP, echoRequest, text(8)), whole(amy6, 9, shared6, 9, protoICMP, echoRequest, text(8)),
		whole(amy6, amyFirst, shared6, bobFirst, protoTCP, flagSYN, nil), fails(bob6, shared6, whole(shared6, amyFirst, bob6, bobFirst, protoTCP, flagSYN, nil)))

	f.Fuzz(func(t *testing.T, b []byte) {
		r := newSharingRig(t, nil)
		for n := 0; len(b) >= 3 && n < 32; n++ {
			settings, size := b[0], int(binary.BigEndian.Uint16(b[1:]))
			b = b[3:]
			packet := b[:min(size, len(b))]
			b = b[len(packet):]
			if settings&0x0e == 0x0e {
				r.pass(1 + uint32(settings>>4)*30)
			}
			right := soundPacket(packet)
			all := r.send(int(settings&1), packet)
			for _, p := range r.out {
				checkLeaving(t, r, p, right && len(all) == 1 && all[0].Verdict != translate.Fragmented)
			}
		}
	})
}

// soundPacket reports whether a packet is one that the helpers of these tests
// can read, with right checksums.
func soundPacket(b []byte) bool {
	switch {
	case len(b) < 28:
		return false
	case b[0] == 0x45:
		return int(binary.BigEndian.Uint16(b[2:])) == len(b) && plain(b[9]) && soundLength(b[9], b[20:]) && rightChecksums(b)
	case b[0]>>4 == 6 && len(b) >= 48:
		return int(binary.BigEndian.Uint16(b[4:]))+40 == len(b) && plain(b[6]) && soundLength(b[6], b[40:]) && rightChecksums(b)
	}
	return false
}

func plain(proto uint8) bool {
	return translate.HasPorts(proto) || proto == protoICMP || proto == protoICMPv6
}

// soundLength reports whether a checksum of the transport header covers all
// that is behind it.
func soundLength(proto uint8, l4 []byte) bool {
	switch proto {
	case protoUDP:
		return int(binary.BigEndian.Uint16(l4[4:])) == len(l4) && binary.BigEndian.Uint16(l4[6:]) != 0
	case protoUDPLite:
		return binary.BigEndian.Uint16(l4[4:]) == 0 && binary.BigEndian.Uint16(l4[6:]) != 0
	case protoDCCP:
		return len(l4) >= 12 && l4[5]&0x0f == 0
	case protoSCTP:
		return len(l4) >= 12
	case protoTCP:
		return len(l4) >= 20
	}
	return true
}

// checkLeaving holds the invariants of a packet that leaves.
func checkLeaving(t *testing.T, r *sharingRig, p []byte, right bool) {
	s := look(p)
	if right && !rightChecksums(p) {
		t.Fatalf("wrong checksum: %x", p)
	}
	owner := func(port uint16) netip.Addr {
		_, x, _ := r.table.LookupRanges(translate.Flow{Src: addr(server4), Dst: addr(shared4), DstPort: port, Proto: protoUDP})
		if x.Dst == nil {
			return netip.Addr{}
		}
		return x.Dst.Client
	}
	// What an address shares is heard from somebody's port.
	heard := s.src.Addr() == addr(shared4) || s.src.Addr() == addr(shared6)
	answered := s.proto == protoICMP // natless's own answers, and errors
	if heard && !answered && s.offset == 0 && !owner(s.src.Port()).IsValid() {
		t.Fatalf("from port %d, which nobody has: %x", s.src.Port(), p)
	}
	// What reaches a client by a stateless port reaches its own.
	if client := owner(s.dst.Port()); s.dst.Addr().Is6() && (s.proto == protoTCP || s.proto == protoUDP) && s.offset == 0 && client.IsValid() && client != s.dst.Addr() {
		for row := range r.sessions.Sessions(s.dst.Addr(), r.tick) {
			if row.ClientPort == s.dst.Port() && row.Protocol == s.proto {
				return
			}
		}
		if netip.MustParsePrefix("2001:db8:1::/64").Contains(s.dst.Addr()) {
			t.Fatalf("%v is reached by a port of %v: %x", s.dst.Addr(), client, p)
		}
	}
}
