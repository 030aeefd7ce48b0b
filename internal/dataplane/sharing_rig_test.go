package dataplane

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// Who is who where clients share an address: the first two that send have the
// ports 1024-2047 and 2048-3071 of it, of which the last 128 are for sessions.
// Beside them are those of dataplane_test.go that have an address each.
const (
	amy6, bob6, cat6     = "2001:db8:1::a", "2001:db8:1::b", "2001:db8:1::c"
	shared4, shared6     = "192.0.2.7", "64:ff9b::192.0.2.7"
	remote4, remote6     = "203.0.113.80", "64:ff9b::203.0.113.80"
	amyFirst, amySession = 1024, 1920
	bobFirst, bobSession = 2048, 2944
	protoTCP, protoUDP   = 6, 17
	protoDCCP, protoGRE  = 33, 47
	protoUDPLite         = 136
	flagFIN, flagSYN     = 0x01, 0x02
	flagRST, flagACK     = 0x04, 0x10
	echoRequest          = 1 // "flags" of ICMP echo
	echoReply            = 2
)

func sharingConfig() mapping.Config {
	return mapping.Config{
		Pref64: netip.MustParsePrefix("64:ff9b::/96"),
		Maps:   []mapping.Map{{IPv4: netip.MustParsePrefix(one4 + "/32"), IPv6: netip.MustParsePrefix(one6 + "/128")}},
		Pools: []mapping.Pool{{
			IPv4: netip.MustParsePrefix(shared4 + "/32"), Clients: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")},
			Quarantine: mapping.RestRange, Ports: mapping.Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535},
		}},
		OwnIPv4: addr(own4), OwnIPv6: addr(own6), Hairpin: true,
	}
}

// sharingRig is two workers without queues, and time that passes when a test
// says so.
type sharingRig struct {
	table    *mapping.Table
	sessions *conntrack.Table
	sharing  Sharing
	workers  [2]*Translator
	tick     uint32
	out      [][]byte
	size     conntrack.Config
	parts    conntrack.FragmentConfig
}

type failer interface {
	require.TestingT
	Helper()
}

var _ = []failer{(*testing.T)(nil), (*rapid.T)(nil)}

func newSharingRig(t require.TestingT, edit func(*mapping.Config, *conntrack.Config, *conntrack.FragmentConfig)) *sharingRig {
	c := sharingConfig()
	r := &sharingRig{size: conntrack.Default(), parts: conntrack.DefaultFragments()}
	r.size.Sessions = 1000
	r.parts.Datagrams, r.parts.Bytes = 64, 64<<10
	if edit != nil {
		edit(&c, &r.size, &r.parts)
	}
	r.tick = 1000
	c.Now = func() time.Time { return time.Unix(1_800_000_000+int64(r.tick), 0) }
	var err error
	r.table, err = mapping.New(c)
	require.NoError(t, err)
	r.table.Expire(r.tick)
	r.restart(t)
	return r
}

// restart forgets everything but the leases.
func (r *sharingRig) restart(t require.TestingT) {
	var err error
	r.sessions, err = conntrack.New(r.size, r.tick)
	require.NoError(t, err)
	r.sharing = Sharing{Sessions: r.sessions}
	for _, f := range []**conntrack.Fragments{&r.sharing.From4, &r.sharing.From6} {
		*f, err = conntrack.NewFragments(r.parts)
		require.NoError(t, err)
	}
	for i := range r.workers {
		r.workers[i] = NewTranslator(r.table, r.sharing, translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280}, addr(own4), addr(own6))
	}
}

// Put implements Sink.
func (r *sharingRig) Put(buf []byte, off, n int, _ tun.Header) {
	r.out = append(r.out, slices.Clone(buf[off:off+n]))
}

// send has a worker take a packet, and what waited for it, and returns what
// became of them. What left is in out.
func (r *sharingRig) send(worker int, packet []byte) (all []Outcome) {
	r.out = nil
	w := r.workers[worker]
	o := w.Translate(packet, r.tick, r)
	for ok := true; ok; o, ok = w.Next(r.tick, r) {
		all = append(all, o)
	}
	return all
}

func (r *sharingRig) pass(seconds uint32) {
	r.tick += seconds
	r.table.Expire(r.tick)
	r.sharing.Expire(r.tick)
}

// passes sends a packet that has to leave as one of right checksums.
func (r *sharingRig) passes(t failer, packet []byte, v translate.Verdict) packetSeen {
	t.Helper()
	all := r.send(0, packet)
	require.Equal(t, []Outcome{{Verdict: v}}, all, all[0].Verdict)
	require.Len(t, r.out, 1)
	require.True(t, rightChecksums(r.out[0]), "%x", r.out[0])
	return look(r.out[0])
}

// stops sends a packet that must not leave.
func (r *sharingRig) stops(t failer, packet []byte, v translate.Verdict) {
	t.Helper()
	all := r.send(0, packet)
	require.Len(t, all, 1)
	require.Equal(t, v.String(), all[0].Verdict.String())
	silent := v == translate.OwnAddress && look(packet).proto == protoICMP // nobody is told that echo replies and errors came
	require.Equal(t, v.Info().Reply != "" && !silent, all[0].Error)
	require.Len(t, r.out, map[bool]int{true: 1}[all[0].Error])
}

// acquaint has the first two clients lease their ranges.
func (r *sharingRig) acquaint(t failer) *sharingRig {
	t.Helper()
	r.passes(t, whole(amy6, amyFirst, server6, 80, protoUDP, 0, nil), translate.OK)
	r.passes(t, whole(bob6, bobFirst, server6, 80, protoUDP, 0, nil), translate.OK)
	return r
}

// whole is a packet with right checksums. Of ICMP echo the source port is the
// identifier, and flags says which it is.
func whole(src string, srcPort uint16, dst string, dstPort uint16, proto, flags uint8, data []byte) []byte {
	a, b := addr(src), addr(dst)
	var l4 []byte
	at := 0 // of the checksum
	switch proto {
	case protoTCP:
		l4, at = make([]byte, 20), 16
		l4[12], l4[13] = 5<<4, flags
	case protoUDP, protoUDPLite:
		l4, at = make([]byte, 8), 6
		if proto == protoUDP {
			binary.BigEndian.PutUint16(l4[4:], uint16(8+len(data)))
		}
	case protoDCCP:
		l4, at = make([]byte, 12), 6
		l4[4] = 3
	case protoSCTP:
		l4 = make([]byte, 12)
	case protoICMP:
		l4, at = make([]byte, 8), 2
		l4[0] = map[uint8]uint8{echoRequest: 8, echoReply: 0}[flags]
		if a.Is6() {
			l4[0] = map[uint8]uint8{echoRequest: 128, echoReply: 129}[flags]
		}
		binary.BigEndian.PutUint16(l4[4:], srcPort)
	}
	if proto != protoICMP && len(l4) > 0 {
		binary.BigEndian.PutUint16(l4, srcPort)
		binary.BigEndian.PutUint16(l4[2:], dstPort)
	}
	l4 = append(l4, data...)
	if proto == protoSCTP {
		binary.LittleEndian.PutUint32(l4[8:], crc32.Checksum(l4, crc32.MakeTable(crc32.Castagnoli)))
	}
	packet := header(a, b, proto, l4)
	if at > 0 {
		binary.BigEndian.PutUint16(packet[len(packet)-len(l4)+at:], ^wholeSum(packet))
	}
	return packet
}

// header puts an IP header in front of l4.
func header(a, b netip.Addr, proto uint8, l4 []byte) []byte {
	if a.Is4() {
		h := make([]byte, 20, 20+len(l4))
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
		copy(h[12:], a.AsSlice())
		copy(h[16:], b.AsSlice())
		binary.BigEndian.PutUint16(h[10:], ^onesSum(0, h))
		return append(h, l4...)
	}
	h := make([]byte, 40, 40+len(l4))
	h[0], h[6], h[7] = 0x60, proto, 64
	if proto == protoICMP {
		h[6] = protoICMPv6
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
	copy(h[8:], a.AsSlice())
	copy(h[24:], b.AsSlice())
	return append(h, l4...)
}

// fails is an ICMP error (port unreachable) about a packet.
func fails(src, dst string, quote []byte) []byte {
	quote = quote[:min(len(quote), 500)]
	l4 := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quote...)
	if addr(src).Is6() {
		l4[0], l4[1] = 1, 4
	}
	packet := header(addr(src), addr(dst), protoICMP, l4)
	binary.BigEndian.PutUint16(packet[len(packet)-len(l4)+2:], ^wholeSum(packet))
	return packet
}

func onesSum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// wholeSum is the sum over pseudo header and transport of a packet that is no
// fragment: 0xffff if its checksum is right.
func wholeSum(packet []byte) uint16 {
	s := look(packet)
	n := len(s.l4)
	switch {
	case s.src.Addr().Is4() && s.proto == protoICMP:
		return onesSum(0, s.l4)
	case s.src.Addr().Is4():
		return onesSum(uint32(onesSum(uint32(s.proto)+uint32(n), packet[12:20])), s.l4)
	}
	proto := uint32(s.proto)
	if proto == protoICMP {
		proto = protoICMPv6
	}
	return onesSum(uint32(onesSum(proto+uint32(n), packet[8:40])), s.l4)
}

// rightChecksums reports whether the checksums of a packet are right; of a
// fragment there is no more than the header's.
func rightChecksums(packet []byte) bool {
	if packet[0]>>4 == 4 && onesSum(0, packet[:20]) != 0xffff {
		return false
	}
	s := look(packet)
	if s.offset > 0 || s.more {
		return true
	}
	switch s.proto {
	case protoTCP, protoUDP, protoUDPLite, protoDCCP, protoICMP:
		return wholeSum(packet) == 0xffff
	case protoSCTP:
		l4 := slices.Clone(s.l4)
		clear(l4[8:12])
		return binary.LittleEndian.Uint32(s.l4[8:]) == crc32.Checksum(l4, crc32.MakeTable(crc32.Castagnoli))
	}
	return true
}

// packetSeen is a packet as a receiver sees it.
type packetSeen struct {
	src, dst netip.AddrPort // of ICMP echo the ports are the identifier
	proto    uint8          // of ICMPv6 that of ICMP
	id       uint32
	offset   int
	more     bool
	l4       []byte
	quote    []byte // of an ICMP error
}

func look(b []byte) (s packetSeen) {
	var src, dst netip.Addr
	if b[0]>>4 == 4 {
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		field := binary.BigEndian.Uint16(b[6:])
		s.proto, s.id, s.offset, s.more = b[9], uint32(binary.BigEndian.Uint16(b[4:])), int(field&0x1fff)*8, field&0x2000 != 0
		s.l4 = b[20:]
	} else {
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		s.proto, s.l4 = b[6], b[40:]
		if s.proto == 44 {
			field := binary.BigEndian.Uint16(s.l4[2:])
			s.proto, s.id, s.offset, s.more = s.l4[0], binary.BigEndian.Uint32(s.l4[4:]), int(field&^7), field&1 != 0
			s.l4 = s.l4[8:]
		}
		if s.proto == protoICMPv6 {
			s.proto = protoICMP
		}
	}
	var srcPort, dstPort uint16
	switch {
	case s.offset > 0 || len(s.l4) < 8:
	case s.proto != protoICMP && translate.HasPorts(s.proto):
		srcPort, dstPort = binary.BigEndian.Uint16(s.l4), binary.BigEndian.Uint16(s.l4[2:])
	case s.proto == protoICMP && slices.Contains([]byte{8, 0, 128, 129}, s.l4[0]):
		srcPort = binary.BigEndian.Uint16(s.l4[4:])
		dstPort = srcPort
	case s.proto == protoICMP:
		s.quote = s.l4[8:]
	}
	s.src, s.dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return s
}

// cut makes fragments of a packet, of so many bytes of payload at most.
func cut(packet []byte, id uint32, size int) (pieces [][]byte) {
	s := look(packet)
	for at := 0; at < len(s.l4); at += size {
		n := min(size, len(s.l4)-at)
		more := at+n < len(s.l4)
		if packet[0]>>4 == 4 {
			p := header(s.src.Addr(), s.dst.Addr(), s.proto, s.l4[at:at+n])
			binary.BigEndian.PutUint16(p[4:], uint16(id))
			field := uint16(at / 8)
			if more {
				field |= 0x2000
			}
			binary.BigEndian.PutUint16(p[6:], field)
			clear(p[10:12])
			binary.BigEndian.PutUint16(p[10:], ^onesSum(0, p[:20]))
			pieces = append(pieces, p)
			continue
		}
		h := make([]byte, 8, 8+n)
		h[0] = packet[6]
		field := uint16(at)
		if more {
			field |= 1
		}
		binary.BigEndian.PutUint16(h[2:], field)
		binary.BigEndian.PutUint32(h[4:], id)
		p := header(s.src.Addr(), s.dst.Addr(), 44, append(h, s.l4[at:at+n]...))
		pieces = append(pieces, p)
	}
	return pieces
}

// joined is the packet that the fragments were, as their receiver sees it.
// They must be of one datagram and without gaps.
func joined(t failer, pieces [][]byte) packetSeen {
	t.Helper()
	pieces = slices.Clone(pieces)
	slices.SortFunc(pieces, func(a, b []byte) int { return look(a).offset - look(b).offset })
	first := look(pieces[0])
	var l4 []byte
	for i, p := range pieces {
		s := look(p)
		require.Equal(t, []any{first.src.Addr(), first.dst.Addr(), first.id, first.proto}, []any{s.src.Addr(), s.dst.Addr(), s.id, s.proto})
		require.Equal(t, len(l4), s.offset)
		require.Equal(t, i < len(pieces)-1, s.more)
		require.True(t, rightChecksums(p))
		l4 = append(l4, s.l4...)
	}
	packet := header(first.src.Addr(), first.dst.Addr(), first.proto, l4)
	require.True(t, rightChecksums(packet), "%x", packet)
	first.l4 = l4
	return first
}
