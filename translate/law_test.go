package translate

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// toIPv4 and toIPv6 map every address there is, as the laws need it: IPv4 goes
// behind a /96, of IPv6 the last 32 bits stay.
func toIPv4(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

func toIPv6(a netip.Addr) netip.Addr {
	b := netip.MustParseAddr("2001:db8:64::").As16()
	four := a.As4()
	copy(b[12:], four[:])
	return netip.AddrFrom16(b)
}

// across is the flow on the other side, with its ports moved by shift.
func across(f Flow, shift uint16) Flow {
	if !f.Src.IsValid() {
		return f
	}
	if f.Src.Is4() {
		f.Src, f.Dst = toIPv6(f.Src), toIPv6(f.Dst)
	} else {
		f.Src, f.Dst = toIPv4(f.Src), toIPv4(f.Dst)
	}
	f.SrcPort += shift
	f.DstPort += shift
	return f
}

// trial is one packet to be translated under every law there is.
type trial struct {
	b     []byte
	of    Offload
	o     Options
	shift uint16 // what the mapping adds to ports
}

type result struct {
	v   Verdict
	p   *Packet
	out [][]byte
}

// run translates b, whose buffer has nothing behind the packet, so that a read
// past it panics.
func (c trial) run(t require.TestingT, poison byte) result {
	p := &Packet{ID: 0x1234, Buf: make([]byte, Headroom+len(c.b)), Off: Headroom, Len: len(c.b), Offload: c.of}
	for i := range Headroom {
		p.Buf[i] = poison
	}
	copy(p.Buf[Headroom:], c.b)
	same := func(what string) {
		if !slices.Equal(p.Buf[Headroom:], c.b) {
			require.Fail(t, what+" changed the packet")
		}
	}
	r := result{p: p, v: p.Parse(&c.o)}
	same("Parse")
	c.checkErrors(t, p, r.v)
	same("WriteError")
	if r.v != OK {
		return r
	}
	if p.IsEchoRequest() {
		c.checkAnswer(t, *p)
		copy(p.Buf[Headroom:], c.b)
	}
	p.ID = 0x1234
	r.v = p.Rewrite(&c.o, new(across(p.Flow, c.shift)), new(across(p.Quoted, c.shift)))
	switch r.v {
	case OK:
		r.out = append(r.out, p.Buf[p.Off:p.Off+p.Len])
	case Fragmented:
		dst := make([]byte, c.o.lowestIPv6MTU())
		for {
			n, ok := p.NextFragment(dst)
			if !ok {
				break
			}
			r.out = append(r.out, slices.Clone(dst[:n]))
			require.LessOrEqual(t, len(r.out), 1+len(c.b))
		}
	default:
		same("a refusing Rewrite")
		c.checkErrors(t, p, r.v)
		same("WriteError")
	}
	return r
}

// checkErrors: whatever is answered is a whole, right packet of allowed size.
func (c trial) checkErrors(t require.TestingT, p *Packet, said Verdict) {
	dst := make([]byte, minIPv6MTU)
	for v := OK; v < verdictCount; v++ {
		if said != OK && v != said {
			continue
		}
		if n := WriteError(dst, p, v, netip.MustParseAddr(router4)); n > 0 {
			require.LessOrEqual(t, n, 576)
			require.Equal(t, n, int(binary.BigEndian.Uint16(dst[2:])))
			require.True(t, checksumsValid(dst[:n]))
		}
		if n := WriteError(dst, p, v, netip.MustParseAddr(router6)); n > 0 {
			require.LessOrEqual(t, n, 1280)
			require.Equal(t, n-40, int(binary.BigEndian.Uint16(dst[4:])))
			require.True(t, checksumsValid(dst[:n]))
		}
	}
}

func (c trial) checkAnswer(t require.TestingT, p Packet) {
	in := c.b[:p.Len] // without padding
	p.AnswerEcho()
	require.Zero(t, p.Offload)
	wellFormed(t, p.Buf[p.Off:p.Off+p.Len])
	if c.of.Flags&NeedsCsum == 0 {
		require.Equal(t, residual(in), residual(p.Buf[p.Off:p.Off+p.Len]))
	}
	q := p
	require.Equal(t, OK, q.Parse(&c.o))
	require.False(t, q.IsEchoRequest())
	require.Equal(t, p.Flow.Src, q.Flow.Dst)
}

// wellFormed: lengths and the IPv4 header checksum are right.
func wellFormed(t require.TestingT, b []byte) {
	if b[0]>>4 == 4 {
		require.Equal(t, byte(0x45), b[0])
		require.Equal(t, len(b), int(binary.BigEndian.Uint16(b[2:])))
		require.Equal(t, uint16(0xffff), slowSum(b[:20]))
		return
	}
	require.Equal(t, byte(6), b[0]>>4)
	require.Equal(t, len(b)-40, int(binary.BigEndian.Uint16(b[4:])))
}

// residual is by how much the transport checksum of the whole packet b is
// wrong: 0 for a right one.
func residual(b []byte) uint16 {
	at, proto, _ := slowL4(b)
	return slowSum(slowPseudo(b, proto, len(b)-at), b[at:]) % 0xffff
}

// check holds c against the laws that every packet obeys.
func (c trial) check(t require.TestingT) result {
	r := c.run(t, 0xaa)
	again := c.run(t, 0x55)
	require.Equal(t, r.v, again.v)
	require.Equal(t, r.out, again.out, "depends on what is in front of the packet")
	for _, b := range r.out {
		wellFormed(t, b)
	}
	in := c.b[:r.size(c)]
	switch r.v {
	case OK:
		c.checkWhole(t, r, in, r.out[0])
	case Fragmented:
		c.checkCut(t, r)
	}
	return r
}

// size is how long the packet is without padding.
func (r result) size(c trial) int {
	switch {
	case r.v > Answered:
		return len(c.b)
	case c.b[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(c.b[2:]))
	}
	return 40 + int(binary.BigEndian.Uint16(c.b[4:]))
}

func (c trial) checkWhole(t require.TestingT, r result, in, out []byte) {
	fromIPv4 := in[0]>>4 == 4
	_, proto, fragment := slowL4(in)
	isError := r.p.HasQuote()
	wire := len(out)
	if gso := int(r.p.Offload.GSOSize); gso > 0 {
		wire = min(wire, int(r.p.Offload.HdrLen)+gso)
	}
	if fromIPv4 {
		require.Equal(t, in[8]-1, out[7])
		require.LessOrEqual(t, wire, c.o.ipv6MTU())
		require.LessOrEqual(t, len(out), len(in)+52)
	} else {
		require.Equal(t, in[7]-1, out[8])
		dont := out[6]&0x40 != 0
		require.False(t, dont && wire > c.o.IPv4MTU)
		require.LessOrEqual(t, len(out), len(in)-20)
	}
	if isError {
		require.LessOrEqual(t, len(out), map[bool]int{true: 1280, false: 576}[fromIPv4])
	}
	if at := slowChecksumAt(proto); at >= 0 && !fragment && c.of.Flags&NeedsCsum == 0 {
		l4, _, _ := slowL4(in)
		if noChecksum := at == 6 && proto != 33 && in[l4+6] == 0 && in[l4+7] == 0; !noChecksum {
			require.Equal(t, residual(in), residual(out), "a checksum was repaired or broken")
		}
	}
	next := *r.p
	next.Buf = slices.Clone(next.Buf)
	v := next.Parse(&c.o)
	// What IPv6 calls an extension header may not follow its fragment header.
	extended := func(proto uint8) bool {
		return proto == nextAuth || proto == nextMobility || proto == nextHIP || proto == nextShim6
	}
	q := r.p.quote
	switch {
	case v == UDPZeroChecksum, v == UDPZeroFragment:
	case v == FragmentExtension && fragment && extended(proto):
	case v == ICMPQuote && isError && q.fragmented && extended(q.proto):
		return
	default:
		require.Equal(t, OK, v, "the result is refused: %s", v)
	}
	require.Equal(t, isError, next.HasQuote())
}

func (c trial) checkCut(t require.TestingT, r result) {
	require.NotEmpty(t, r.out)
	for _, b := range r.out {
		require.LessOrEqual(t, len(b), c.o.lowestIPv6MTU())
		require.Equal(t, c.b[8]-1, b[7])
		p := Packet{Buf: b, Len: len(b)}
		v := p.Parse(&c.o)
		// A packet that was cut further may leave a fragment of an ICMP message.
		if v != ICMPFragment {
			require.Equal(t, OK, v, v.String())
		}
	}
}

// drawn is a packet as senders make them, of the family v6 says.
func drawn(t *rapid.T, v6 bool) (b []byte, of Offload) {
	data := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "data")
	if n := rapid.SampledFrom([]int{0, 0, 1180, 1220, 1400, 3000}).Draw(t, "more"); n > 0 {
		data = append(data, pattern(n)...)
	}
	sport, dport := rapid.Uint16().Draw(t, "sport"), rapid.Uint16().Draw(t, "dport")
	kind := rapid.SampledFrom([]string{"tcp", "tcp", "udp", "udp", "udplite", "dccp", "sctp", "esp", "echo", "error", "extended", "fragment", "super", "super"}).Draw(t, "kind")
	var proto byte
	var l4 []byte
	switch kind {
	case "tcp", "super":
		proto, l4 = 6, tcpOptions(sport, dport, rapid.Byte().Draw(t, "flags"), data)
		if kind == "super" && rapid.Bool().Draw(t, "udp") {
			proto, l4 = 17, udp(sport, dport, data)
		}
	case "udp", "udplite", "fragment":
		proto, l4 = 17, udp(sport, dport, data)
		if kind == "udplite" {
			proto = 136
		}
	case "dccp":
		proto, l4 = 33, append(udp(sport, dport, nil), append(pattern(4), data...)...)
	case "sctp":
		proto, l4 = 132, append(pattern(12), data...)
	case "esp":
		proto, l4 = 50, data
	case "echo":
		proto, l4 = 1, icmpMessage(rapid.SampledFrom([]byte{8, 0}).Draw(t, "type"), 0, rapid.Uint32().Draw(t, "rest"), data)
		if v6 {
			proto = 58
			l4[0] = rapid.SampledFrom([]byte{128, 129}).Draw(t, "type6")
		}
	case "error", "extended":
		proto, l4 = drawnError(t, v6, data, kind == "extended")
	}
	tos := rapid.Byte().Draw(t, "tos")
	ttl := rapid.SampledFrom([]byte{1, 2, 64, 255}).Draw(t, "ttl")
	seal := func(b []byte) []byte {
		b = sealed(b)
		if at := slowChecksumAt(proto); at >= 0 && rapid.IntRange(0, 9).Draw(t, "wrong") == 0 {
			l4, _, _ := slowL4(b)
			b[l4+at] ^= 0x20
		}
		return b
	}
	if kind == "super" {
		seal = partial
		of = Offload{Flags: NeedsCsum, GSOType: GSOUDPL4, GSOSize: uint16(rapid.SampledFrom([]int{100, 1192, 1232, 1448, 1500}).Draw(t, "gso"))}
		if proto == 6 {
			of.GSOType = GSOTCPv4
			if v6 {
				of.GSOType = GSOTCPv6
			}
			if rapid.Bool().Draw(t, "ecn") {
				of.GSOType |= GSOECN
			}
		}
	}
	if v6 {
		b = seal(ip6{next: proto, tc: tos, hops: ttl}.around(l4))
		if kind == "fragment" && len(l4) > 24 {
			from := rapid.IntRange(0, len(l4)/8-1).Draw(t, "from") * 8
			to := rapid.IntRange(from/8+1, len(l4)/8).Draw(t, "to") * 8
			b = ip6{next: 44, tc: tos, hops: ttl}.around(fragHeader(17, from, to < len(l4), rapid.Uint32().Draw(t, "id"), b[40:][from:to]))
		}
		return b, of
	}
	flags := rapid.SampledFrom([]uint16{0, df}).Draw(t, "df")
	opts := rapid.SampledFrom([][]byte{nil, nil, {1, 1, 1, 0}, {7, 7, 4, 0, 0, 0, 0, 0}}).Draw(t, "opts")
	h := ip4{proto: proto, tos: tos, ttl: ttl, flags: flags, id: rapid.Uint16().Draw(t, "id"), opts: opts}
	b = seal(h.around(l4))
	if kind == "fragment" && len(l4) > 24 {
		from := rapid.IntRange(0, len(l4)/8-1).Draw(t, "from") * 8
		to := rapid.IntRange(from/8+1, len(l4)/8).Draw(t, "to") * 8
		h.flags |= uint16(from / 8)
		if to < len(l4) {
			h.flags |= mf
		}
		b = h.around(b[20+len(opts):][from:to])
	}
	return b, of
}

func drawnError(t *rapid.T, v6 bool, data []byte, extended bool) (proto byte, l4 []byte) {
	var quote []byte
	if v6 {
		quote = sealed(ip6{next: 17, src: server6, dst: client6}.around(udp(1, 2, data)))
		proto = 58
		l4 = []byte{rapid.SampledFrom([]byte{1, 2, 3, 4}).Draw(t, "type"), rapid.SampledFrom([]byte{0, 1, 4}).Draw(t, "code")}
	} else {
		quote = sealed(ip4{proto: 17, src: server4, dst: client4}.around(udp(1, 2, data)))
		proto = 1
		l4 = []byte{rapid.SampledFrom([]byte{3, 11, 12}).Draw(t, "type"), rapid.SampledFrom([]byte{0, 2, 3, 4}).Draw(t, "code")}
	}
	rest := rapid.SampledFrom([]uint32{0, 1, 8, 1400, 8 << 24}).Draw(t, "rest")
	if extended {
		n := rapid.IntRange(32, 100).Draw(t, "units")
		unit := 4
		rest = uint32(n) << 16
		if v6 {
			n /= 2
			unit, rest = 8, uint32(n)<<24
		}
		quote = append(quote, make([]byte, n*unit)...)[:n*unit]
		quote = append(quote, rapid.SliceOfN(rapid.Byte(), 4, 600).Draw(t, "extension")...)
	}
	return proto, append(binary.BigEndian.AppendUint32(append(l4, 0, 0), rest), quote...)
}

func (c trial) String() string {
	return fmt.Sprintf("%x offload %+v options %+v shift %d", c.b, c.of, c.o, c.shift)
}

func TestLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		b, of := drawn(t, v6)
		c := trial{b: b, of: of, o: testOptions, shift: rapid.SampledFrom([]uint16{0, 0, 1, 0x1111}).Draw(t, "shift")}
		c.o.IPv6MTU = rapid.SampledFrom([]int{1280, 1500, 4000}).Draw(t, "mtu6")
		c.o.IPv4MTU = rapid.SampledFrom([]int{576, 1500, 4000}).Draw(t, "mtu4")
		c.check(t)
	})
}

// Through IPv4 and back a packet is what it was, but for the hop limit, where
// IPv4 can hold all there was (RFC 7915 5.1): no flow label, no extension
// headers, identifications of 16 bits.
func TestThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, of := drawn(t, true)
		o := Options{IPv4MTU: 9000, IPv6MTU: 9000, LowestIPv6MTU: 9000}
		b = hops(b, 64)
		if _, _, fragment := slowL4(b); fragment {
			b[44], b[45] = 0, 0
		}
		p := &Packet{ID: 7}
		load(p, b, of)
		if p.Parse(&o) != OK {
			return
		}
		if p.outer.fragmented && p.Flow.Frag == Whole {
			return // an atomic fragment comes back without its header
		}
		first := p.HasQuote()
		back := func(f Flow) Flow {
			return Flow{Src: counterpart[f.Src], Dst: counterpart[f.Dst], SrcPort: f.SrcPort, DstPort: f.DstPort}
		}
		if first && p.icmp.extension != 0 {
			return // quotes before an extension are padded to other lengths
		}
		require.Equal(t, OK, p.Rewrite(&o, new(back(p.Flow)), new(back(p.Quoted))))
		if first && p.Len == maxICMPv4 {
			return // the quote was cut
		}
		require.Equal(t, OK, p.Parse(&o))
		require.Equal(t, OK, p.Rewrite(&o, new(back(p.Flow)), new(back(p.Quoted))))
		out := p.Buf[p.Off : p.Off+p.Len]
		if first {
			// What the tables bring together stays together; the rest of the
			// message is the same.
			require.Equal(t, b[48:], out[48:])
			return
		}
		require.Equal(t, hops(b, 62), out)
		require.Equal(t, of.GSOType, p.Offload.GSOType)
		require.Equal(t, of.GSOSize, p.Offload.GSOSize)
	})
}
