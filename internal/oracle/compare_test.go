package oracle_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/natless/natless/internal/oracle"
	"github.com/natless/natless/internal/oracle/packetgen"
	"github.com/natless/natless/translate"
)

// A scene is everything that decides what becomes of a packet.
type scene struct {
	settings    oracle.Settings
	room        int  // headroom beyond what translate asks for
	ports       bool // the mapping changes ports
	salt        byte // of the mapping
	strange     bool // the device says something of offloads that may not fit
	strangeness translate.Offload
	wrong       int  // 1 to 3: a flow of the mapping is of the wrong family
	fold        bool // the checksum is to come out as zero
	answer      bool // an echo request is for natless itself
	refusal     translate.Verdict
	packet      []byte
}

func choose[T any](s *packetgen.Source, choices ...T) T { return choices[s.Below(len(choices))] }

// newScene turns a fuzzer's bytes into a scene; one in sixteen is raw bytes.
func newScene(data []byte, build func(*packetgen.Source) []byte) scene {
	s := packetgen.New(data)
	sc := scene{
		settings: oracle.Settings{
			IPv4MTU:       choose(s, 1500, 1480, 65535, 1280, 1260, 1259, 576, 68, 9000),
			IPv6MTU:       choose(s, 1500, 1500, 65535, 1280, 1400, 9000, 1281, 1000),
			LowestIPv6MTU: choose(s, 1280, 1280, 1500, 1400, 1283, 9000, 0),
			DropUDPZero:   s.OneIn(4),
			KeepUDPZero:   s.OneIn(4),
			ZeroTOS:       s.OneIn(4),
			ID:            s.Uint16(),
		},
		room:    choose(s, 0, 0, 1, 64),
		ports:   s.OneIn(4),
		salt:    s.Byte(),
		answer:  s.OneIn(4),
		refusal: translate.SourceRefused + translate.Verdict(s.Below(translate.Verdicts-int(translate.SourceRefused))),
	}
	if s.OneIn(32) {
		sc.wrong = 1 + s.Below(3)
	}
	if sc.strange = s.OneIn(32); sc.strange {
		sc.strangeness = translate.Offload{
			Flags:      choose[uint8](s, 1, 0, 2, s.Byte()),
			GSOType:    choose[uint8](s, 0, 1, 4, 5, 0x81, 0x84, 0x80, 3, s.Byte()),
			GSOSize:    choose[uint16](s, 0, 1, 1448, s.Uint16()),
			HdrLen:     s.Uint16(),
			CsumStart:  s.Uint16(),
			CsumOffset: s.Uint16(),
		}
	}
	if s.OneIn(16) {
		sc.packet = bytes.Clone(s.Rest())
		sc.packet = sc.packet[:min(len(sc.packet), 65575)]
	} else {
		sc.fold = s.OneIn(8)
		sc.packet = build(s)
	}
	return sc
}

// foldToZero gives a whole packet the one checksum that comes out as zero.
func (sc scene) foldToZero() {
	r := oracle.Read(sc.packet, sc.settings)
	at, ok := map[uint8]int{1: 2, 58: 2, 6: 16, 17: 6, 33: 6, 136: 6}[r.Flow.Proto]
	if r.Verdict != oracle.Translated || r.Flow.Frag != oracle.Whole || r.Quoted != nil || !ok {
		return // of an ICMP error, the length changes
	}
	to := oracle.Translate(sc.packet, sc.settings, sc.mapping)
	if to.Verdict != oracle.Translated {
		return
	}
	out, headers := to.Packets[0], 40
	length := int(binary.BigEndian.Uint16(sc.packet[4:])) + 40
	if sc.packet[0]>>4 == 4 {
		length = int(binary.BigEndian.Uint16(sc.packet[2:]))
	} else {
		headers = 20
	}
	in := sc.packet[:length][length-(len(out)-headers):]
	before := binary.BigEndian.Uint16(in[at:])
	after := binary.BigEndian.Uint16(out[headers+at:])
	binary.BigEndian.PutUint16(in[at:], uint16((int(before)+65535-int(after))%65535))
}

func (sc scene) options() translate.Options {
	return translate.Options{
		IPv4MTU:       sc.settings.IPv4MTU,
		IPv6MTU:       sc.settings.IPv6MTU,
		LowestIPv6MTU: sc.settings.LowestIPv6MTU,
		KeepUDPZero:   sc.settings.KeepUDPZero,
		DropUDPZero:   sc.settings.DropUDPZero,
		ZeroTOS:       sc.settings.ZeroTOS,
	}
}

// mapping gives every address another side, a different one in each role, so
// that a mix-up shows.
func (sc scene) mapping(f oracle.Flow, quoted bool) oracle.Flow {
	role := byte(1)
	if quoted {
		role = 3
	}
	f.Src, f.Dst = sc.other(f.Src, role), sc.other(f.Dst, role+1)
	switch {
	case f.Proto == 1:
		f.Proto = 58
	case f.Proto == 58:
		f.Proto = 1
	}
	if sc.ports && f.Frag != oracle.Later {
		f.SrcPort += uint16(role) * 257
		f.DstPort += uint16(role) * 259
		if f.Proto == 1 || f.Proto == 58 {
			f.DstPort = f.SrcPort
		}
	}
	return f
}

func (sc scene) other(a netip.Addr, role byte) netip.Addr {
	if a.Is4() {
		b := a.As4()
		return netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, role, sc.salt, 12: b[0], 13: b[1], 14: b[2], 15: b[3]})
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte{198, 16 + role, b[14] ^ sc.salt, b[15]})
}

func toTranslate(f oracle.Flow) translate.Flow {
	frags := map[string]translate.Frag{oracle.Whole: translate.Whole, oracle.First: translate.First, oracle.Later: translate.Later}
	return translate.Flow{Src: f.Src, Dst: f.Dst, SrcPort: f.SrcPort, DstPort: f.DstPort, Proto: f.Proto, Frag: frags[f.Frag]}
}

// reused is one worker's packet: what it remembers of the packet before must
// not matter.
var reused translate.Packet

// reached counts the verdicts that both translators came to.
var reached = map[string]int{}

// compare has both translators turn the packet and fails where they differ.
func (sc scene) compare(t testing.TB) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%s\npacket   %x\nsettings %+v ports %v salt %d", fmt.Sprintf(format, args...), sc.packet, sc.settings, sc.ports, sc.salt)
	}
	if sc.fold {
		sc.foldToZero()
	}
	p, o := &reused, sc.options()
	buf := sc.load(p)
	verdict := p.Parse(&o)
	untouched := func() {
		t.Helper()
		if !bytes.Equal(buf, sc.packet) {
			fail("%s, but the packet has been changed to %x", verdict, buf)
		}
	}
	read := oracle.Read(sc.packet, sc.settings)
	untouched()
	if sc.strange && read.Verdict == oracle.Translated {
		sc.compareStrange(p, read, fail)
		return
	}
	if verdict.String() != read.Verdict {
		fail("parse: translate says %s, oracle %s", verdict, read.Verdict)
	}
	if verdict != translate.OK {
		reached[read.Verdict]++
		sc.compareReply(p, sc.packet, verdict, fail)
		return
	}
	if p.Flow != toTranslate(read.Flow) {
		fail("flow: translate says %+v, oracle %+v", p.Flow, read.Flow)
	}
	if p.HasQuote() != (read.Quoted != nil) {
		fail("translate sees a quote: %v", p.HasQuote())
	}
	to, quoted := toTranslate(sc.mapping(read.Flow, false)), translate.Flow{}
	if read.Quoted != nil {
		if p.Quoted != toTranslate(*read.Quoted) {
			fail("quoted flow: translate says %+v, oracle %+v", p.Quoted, *read.Quoted)
		}
		quoted = toTranslate(sc.mapping(*read.Quoted, true))
	}
	sc.compareReply(p, sc.packet, sc.refusal, fail)

	if sc.wrong > 0 {
		sc.compareWrong(p, to, quoted, fail)
		untouched()
		return
	}
	if sc.answer && p.IsEchoRequest() {
		sc.compareAnswer(p, fail)
		return
	}
	p.ID = 0xdead0000 | uint32(sc.settings.ID)
	verdict = p.Rewrite(&o, &to, &quoted)
	want := oracle.Translate(sc.packet, sc.settings, sc.mapping)
	if verdict.String() != want.Verdict {
		fail("rewrite: translate says %s, oracle %s", verdict, want.Verdict)
	}
	reached[want.Verdict]++
	if !verdict.Leaves() {
		untouched()
		sc.compareReply(p, sc.packet, verdict, fail)
		return
	}
	got := [][]byte{p.Buf[p.Off : p.Off+p.Len]}
	if verdict == translate.Fragmented {
		got = sc.fragments(p)
	}
	if len(got) != len(want.Packets) {
		fail("%s: translate makes %d packets, oracle %d", verdict, len(got), len(want.Packets))
	}
	for i := range got {
		if !bytes.Equal(got[i], want.Packets[i]) {
			fail("%s, packet %d, first difference at byte %d\ntranslate %x\noracle    %x", verdict, i, firstDifference(got[i], want.Packets[i]), got[i], want.Packets[i])
		}
	}
	if p.Offload != (translate.Offload{}) {
		fail("offload %+v out of nothing", p.Offload)
	}
	id := 0xdead0000 | uint32(sc.settings.ID)
	if read.Flow.Src.Is6() && !read.FragmentHeader {
		id++
	}
	if p.ID != id {
		fail("the generator of identifications stands at %x, expected %x", p.ID, id)
	}
	if verdict == translate.OK { // what has been translated can be read again
		verdict, read = p.Parse(&o), oracle.Read(got[0], sc.settings)
		if verdict.String() != read.Verdict {
			fail("read again: translate says %s, oracle %s\nof %x", verdict, read.Verdict, got[0])
		}
	}
}

// compareStrange holds that what a device says of offloads has to fit the
// packet, as Parse documents.
func (sc scene) compareStrange(p *translate.Packet, read oracle.Reading, fail func(string, ...any)) {
	o := sc.options()
	p.Offload = sc.strangeness
	kind, flags := p.Offload.GSOType&^translate.GSOECN, p.Offload.Flags
	checksum := slices.Contains([]uint8{1, 58, 6, 17, 33, 136}, read.Flow.Proto)
	fits := map[uint8]bool{
		translate.GSOTCPv4: read.Flow.Proto == 6 && read.Flow.Src.Is4(),
		translate.GSOTCPv6: read.Flow.Proto == 6 && read.Flow.Src.Is6(),
		translate.GSOUDPL4: read.Flow.Proto == 17,
	}
	ok := p.Offload.GSOType != translate.GSOECN
	if flags&translate.NeedsCsum != 0 && (!checksum || read.Flow.Frag != oracle.Whole) {
		ok = false
	}
	if kind != translate.GSONone && (!fits[kind] || read.Flow.Frag != oracle.Whole || read.FragmentHeader || flags&translate.NeedsCsum == 0 || p.Offload.GSOSize == 0) {
		ok = false
	}
	verdict := p.Parse(&o)
	if ok != (verdict == translate.OK) || !ok && verdict != translate.BadHeader {
		fail("%s with offload %+v", verdict, sc.strangeness)
	}
	reached[verdict.String()]++
}

// compareWrong holds that an address of the wrong family goes nowhere.
func (sc scene) compareWrong(p *translate.Packet, to, quoted translate.Flow, fail func(string, ...any)) {
	o := sc.options()
	want := map[int]translate.Verdict{1: translate.SourceUnmapped, 2: translate.DestinationUnmapped, 3: translate.QuoteUnmapped}[sc.wrong]
	switch sc.wrong {
	case 1:
		to.Src = p.Flow.Src
	case 2:
		to.Dst = p.Flow.Dst
	case 3:
		if !p.HasQuote() {
			return
		}
		quoted.Src = p.Flow.Src
	}
	if got := p.Rewrite(&o, &to, &quoted); got != want {
		fail("%s where a mapped flow is of the wrong family, expected %s", got, want)
	}
	reached[want.String()]++
}

// compareAnswer compares the replies to an echo request.
func (sc scene) compareAnswer(p *translate.Packet, fail func(string, ...any)) {
	p.ID = uint32(sc.settings.ID)
	p.AnswerEcho()
	reached["answered"]++
	got, want := p.Buf[p.Off:p.Off+p.Len], oracle.Answer(sc.packet, sc.settings)
	if !bytes.Equal(got, want) {
		fail("answer, first difference at byte %d\ntranslate %x\noracle    %x", firstDifference(got, want), got, want)
	}
}

// load lays the packet into a buffer of p and returns where it lies.
func (sc scene) load(p *translate.Packet) []byte {
	off := translate.Headroom + sc.room
	buf := append(make([]byte, off), sc.packet...)
	p.Buf = buf[: off+len(sc.packet) : off+len(sc.packet)] // a look past the packet panics
	p.Off, p.Len, p.Offload = off, len(sc.packet), translate.Offload{}
	return buf[off:]
}

// fragments asks translate for what it has cut a packet into.
func (sc scene) fragments(p *translate.Packet) [][]byte {
	var got [][]byte
	dst := make([]byte, max(1280, sc.settings.LowestIPv6MTU))
	for len(got) < 10000 {
		n, ok := p.NextFragment(dst)
		if !ok {
			break
		}
		got = append(got, bytes.Clone(dst[:n]))
	}
	return got
}

// compareReply compares the ICMP error that natless itself would send about
// packet, which is what is on the wire of p.
func (sc scene) compareReply(p *translate.Packet, packet []byte, verdict translate.Verdict, fail func(string, ...any)) {
	from := netip.MustParseAddr("192.0.0.8")
	if len(packet) > 0 && packet[0]>>4 == 6 {
		from = netip.MustParseAddr("fd00::8")
	}
	p.ID = uint32(sc.settings.ID)
	dst := make([]byte, 1280)
	got := dst[:translate.WriteError(dst, p, verdict, from)]
	want := oracle.Originate(packet, verdict.String(), sc.settings, from)
	if !bytes.Equal(got, want) {
		fail("reply to %s, first difference at byte %d\ntranslate %x\noracle    %x", verdict, firstDifference(got, want), got, want)
	}
	if sc.wrong > 0 {
		other := sc.other(from, 1)
		if n := translate.WriteError(dst, p, verdict, other); n != 0 {
			fail("reply to %s from %s, of the other family", verdict, other)
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func fuzz(f *testing.F, build func(*packetgen.Source) []byte) {
	f.Add([]byte{})
	for _, seed := range differed {
		packet, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw(packet))
	}
	f.Fuzz(func(t *testing.T, data []byte) { newScene(data, build).compare(t) })
}

// raw is a fuzzer's input that stands for packet, with plain settings.
func raw(packet []byte) []byte {
	decisions := []byte{5: 0xab, 6: 0xcd, 14: 15} // the identification; raw bytes follow
	return append(decisions, packet...)
}

// differed are packets over which the two translators once differed, kept as
// they were and not as decisions, whose meaning may change.
var differed = []string{
	// An ICMPv6 error in an atomic fragment: identification from its header.
	"6000000000382ce120010db80001000000000000000068b120010db80064000000000000000005253a000000000000000400ebfa00000000600000000000844020010db800640000000000000000052520010db80000000000000000000000b1",
	// UDP-Lite without checksum.
	"4500001c28a6400040887c5acb000259c60002000fa0000500080000",
	// A quote with something behind it.
	"45990039c7ae4000020125b7c0000200c60002c50300e919000000004500001c9dda400040111231c60002c5c00002000fa000500008c7ed3c",
	// A quote that is its IP header.
	"6009007c00313a4020010db800000000000000000000000020010db80064000000000000000000620102c5800000000060000000003b110220010db800640000000000000000006220010db80064000000000000000000000f",
	// A length attribute with a torn extension behind it.
	"4500009eec0040000201fd02c0000234cb0002270304f122002005784503005a03fd00004011e6bccb000227c00002af6900e0930046bc66000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002000",
	// A length attribute below 128 bytes.
	"45000058dcf8000040010d89c000025ecb0002c50304003b00070578450000282c09000001060342c0000200c60002850fa0005000001e002000ff25001c0101676d81ab07c8227cd211231ee4326ffbc3135243a14acc5f",
}

func Fuzz4to6(f *testing.F) { fuzz(f, packetgen.IPv4) }

func Fuzz6to4(f *testing.F) { fuzz(f, packetgen.IPv6) }
