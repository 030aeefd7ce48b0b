package oracle_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/natless/natless/internal/oracle"
	"github.com/natless/natless/internal/oracle/packetgen"
	"github.com/natless/natless/translate"
)

// offloadScene is a scene whose packet is a packetgen.Partial.
func offloadScene(data []byte, build func(*packetgen.Source) packetgen.Partial) (scene, packetgen.Partial) {
	var p packetgen.Partial
	sc := newScene(data, func(s *packetgen.Source) []byte {
		p = build(s)
		return p.Packet
	})
	return sc, p
}

// compareOffload holds the law of offloads: to translate a super-packet and
// then to cut it is the same as to cut it and then to translate the segments,
// but for DF of a short last segment. Without a size to cut to, the same of
// completing the checksum.
func (sc scene) compareOffload(t testing.TB, g packetgen.Partial) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%s\npacket   %x\noffload  start %d at %d size %d UDP %v ECN %v\nsettings %+v ports %v salt %d", fmt.Sprintf(format, args...),
			g.Packet, g.ChecksumStart, g.ChecksumAt, g.Size, g.UDP, g.ECN, sc.settings, sc.ports, sc.salt)
	}
	six := g.Packet[0]>>4 == 6
	p, o := &reused, sc.options()
	buf := sc.load(p)
	p.Offload = translate.Offload{
		Flags:      translate.NeedsCsum,
		GSOType:    gsoType(g, six),
		HdrLen:     12345, // not to be trusted
		GSOSize:    uint16(g.Size),
		CsumStart:  uint16(g.ChecksumStart),
		CsumOffset: uint16(g.ChecksumAt),
	}
	if g.Size == 0 {
		p.Offload.HdrLen = 0
	}
	segments := oracle.Segment(g.Packet, oracle.GSO{ChecksumStart: g.ChecksumStart, ChecksumAt: g.ChecksumAt, Size: g.Size, UDP: g.UDP})

	verdict := p.Parse(&o)
	first := oracle.Read(segments[0], sc.settings)
	if verdict.String() != first.Verdict {
		fail("parse: translate says %s, oracle %s of the first segment", verdict, first.Verdict)
	}
	if verdict != translate.OK {
		reached[first.Verdict]++
		return
	}
	if p.Flow != toTranslate(first.Flow) {
		fail("flow: translate says %+v, oracle %+v", p.Flow, first.Flow)
	}
	sc.compareReply(p, segments[0], sc.refusal, fail)
	p.ID = 0xdead0000 | uint32(sc.settings.ID)
	quoted := translate.Flow{}
	if first.Quoted != nil {
		quoted = toTranslate(sc.mapping(*first.Quoted, true))
	}
	verdict = p.Rewrite(&o, toTranslate(sc.mapping(first.Flow, false)), quoted)

	var want [][]byte
	var wantVerdict string
	for i, segment := range segments {
		settings := sc.settings
		settings.ID += uint16(i)
		r := oracle.Translate(segment, settings, sc.mapping)
		if i == 0 {
			wantVerdict = r.Verdict
		}
		want = append(want, r.Packets...)
	}
	if verdict.String() != wantVerdict {
		fail("rewrite: translate says %s, oracle %s of the first segment", verdict, wantVerdict)
	}
	reached[wantVerdict]++
	if !verdict.Leaves() {
		if !bytes.Equal(buf, g.Packet) {
			fail("%s, but the packet has been changed", verdict)
		}
		sc.compareReply(p, segments[0], verdict, fail)
		return
	}
	var got [][]byte
	if verdict == translate.Fragmented {
		got = sc.fragments(p)
	} else {
		got = sc.cutOutput(p, g, !six, fail)
	}
	if len(got) != len(want) {
		fail("%s: translate makes %d packets, oracle %d", verdict, len(got), len(want))
	}
	for i := range got {
		a, b := got[i], want[i]
		if six && g.Size > 0 && i == len(got)-1 && len(got) > 1 {
			a, b = withoutDF(a), withoutDF(b)
		}
		if !bytes.Equal(a, b) {
			fail("%s, packet %d of %d, first difference at byte %d\ntranslate %x\noracle    %x", verdict, i, len(got), firstDifference(a, b), a, b)
		}
	}
	if six && verdict == translate.OK && uint16(p.ID) != sc.settings.ID+uint16(len(segments)) {
		fail("identification went from %x to %x over %d segments", sc.settings.ID, p.ID, len(segments))
	}
}

// cutOutput checks the offload of the translated packet and does what it says.
func (sc scene) cutOutput(p *translate.Packet, g packetgen.Partial, six bool, fail func(string, ...any)) [][]byte {
	out := p.Buf[p.Off : p.Off+p.Len]
	if g.Size == 0 && p.Offload == (translate.Offload{}) {
		return [][]byte{out} // completed
	}
	start := 20
	if six {
		start = 40
	}
	want := translate.Offload{
		Flags:      translate.NeedsCsum,
		GSOType:    gsoType(g, six),
		GSOSize:    uint16(g.Size),
		CsumStart:  uint16(start),
		CsumOffset: uint16(g.ChecksumAt),
	}
	if g.Size > 0 {
		headers := 8
		if !g.UDP {
			headers = int(out[start+12]>>4) * 4
		}
		want.HdrLen = uint16(start + headers)
	}
	if p.Offload != want {
		fail("offload afterwards: %+v, expected %+v", p.Offload, want)
	}
	return oracle.Segment(out, oracle.GSO{ChecksumStart: start, ChecksumAt: g.ChecksumAt, Size: g.Size, UDP: g.UDP})
}

func gsoType(g packetgen.Partial, six bool) uint8 {
	var kind uint8
	switch {
	case g.Size == 0:
		return translate.GSONone
	case g.UDP:
		return translate.GSOUDPL4
	case six:
		kind = translate.GSOTCPv6
	default:
		kind = translate.GSOTCPv4
	}
	if g.ECN {
		kind |= translate.GSOECN
	}
	return kind
}

// withoutDF is an IPv4 packet with DF clear.
func withoutDF(b []byte) []byte {
	b = bytes.Clone(b)
	if b[6]&0x40 != 0 {
		b[6] &^= 0x40
		sum := uint32(binary.BigEndian.Uint16(b[10:])) + 0x4000
		binary.BigEndian.PutUint16(b[10:], uint16(sum+sum>>16))
	}
	return b
}

func fuzzOffload(f *testing.F, build func(*packetgen.Source) packetgen.Partial) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) { compareOffload(t, data, build) })
}

func compareOffload(t testing.TB, data []byte, build func(*packetgen.Source) packetgen.Partial) {
	t.Helper()
	sc, g := offloadScene(data, build)
	if g.Packet != nil { // raw bytes have no offload to speak of
		sc.compareOffload(t, g)
	}
}

func FuzzOffload4to6(f *testing.F) { fuzzOffload(f, packetgen.Partial4) }

func FuzzOffload6to4(f *testing.F) { fuzzOffload(f, packetgen.Partial6) }
