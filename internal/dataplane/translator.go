package dataplane

import (
	"net/netip"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// headroom is where a packet is put in a Translator's buffer: room for the
// longer header of the other family twice over (a hairpinned packet is
// translated twice), and for the device's own header in front of that.
const headroom = 2*translate.Headroom + tun.HeaderLen + 6

// bufferSize holds the largest packet of either family behind the headroom.
const bufferSize = headroom + tun.MaxPacket

// Resolver decides which flow a packet's flow becomes on the other side. No
// method blocks on anything but memory. mapping.Table is one.
type Resolver interface {
	// ResolveRanges answers for an ordinary packet, in place, and may lease an
	// address to its source. tick is in seconds since the Resolver was made.
	// While the revision stays, what it says of the addresses remains true to
	// the end of the tick and depends on nothing but them, unless clients share
	// the destination's; but LeasePending may turn into anything else, whereupon
	// Plane.Wake is to be called.
	ResolveRanges(f *translate.Flow, tick uint32) (mapping.Ranges, translate.Verdict)
	// ResolveError answers for the outer flow of an ICMP error: a source
	// without a counterpart gets a stand-in (RFC 6791). It leases nothing. The
	// destination port is the source port of the packet that the error quotes.
	ResolveError(f translate.Flow) (translate.Flow, translate.Verdict)
	// LookupRanges answers like ResolveRanges and creates nothing.
	LookupRanges(f translate.Flow) (translate.Flow, mapping.Ranges, translate.Verdict)
	// SpeaksFor reports whether the host at an IPv6 address may say that a packet
	// to dst failed. hard: in a way that ends connections.
	SpeaksFor(host, dst netip.Addr, hard bool) bool
	// HairpinBackRanges is the way back to IPv6 of an IPv4 flow for which one of
	// the others said Hairpin (RFC 7757 4.2.2).
	HairpinBackRanges(f translate.Flow) (translate.Flow, mapping.Ranges, translate.Verdict)
	// Own reports whether the address is natless's own and of nobody else.
	Own(a netip.Addr) bool
	// Shared reports whether clients share the address, or the IPv4 address that
	// it has inside.
	Shared(a netip.Addr) bool
	// Revision changes with every change of what the others say.
	Revision() uint64
}

// Sink takes the packets that come of one. The packet is at buf[off:off+n],
// with the offloads h; buf is the Translator's again when Put returns, and the
// tun.HeaderLen bytes in front of the packet may be overwritten.
type Sink interface {
	Put(buf []byte, off, n int, h tun.Header)
}

// Translator takes one packet at a time through all the steps between reading
// and writing. Workers, traces and captures offline have one each, so that
// they come to the same result. It is not for concurrent use.
type Translator struct {
	resolver Resolver
	sharing  Sharing
	options  translate.Options
	from4    netip.Addr // sources of the ICMP errors it originates
	from6    netip.Addr

	packet translate.Packet
	// The flows of the packet on the other side. They are here rather than on
	// the stack: an address that goes through an interface escapes.
	to, quoted, scratch translate.Flow

	held    bool // the packet is a fragment that has been copied, to wait for its first
	waiting bool // fragments of leading may
	leading conntrack.Datagram

	spare  []byte // for packets natless makes: fragments and ICMP errors
	limit  limiter
	cache  *cache
	steady *steady // nil where there are no sessions

	portShift uint8 // see pair
}

// NewTranslator makes a Translator and allocates all it will ever need. Errors
// come from the addresses given; without a valid one of a family there are none
// in it.
func NewTranslator(r Resolver, s Sharing, o translate.Options, ipv4, ipv6 netip.Addr) *Translator {
	t := &Translator{resolver: r, sharing: s, options: o, from4: ipv4, from6: ipv6, spare: make([]byte, bufferSize), cache: new(cache)}
	t.packet.Buf = make([]byte, bufferSize)
	t.portShift = 16 // whoever has his address to himself takes one place for each he speaks with
	if s.Sessions != nil {
		t.portShift, t.steady = 8, new(steady)
	}
	return t
}

// Flow is the flow that was found last in the packet, and that of the packet it
// quotes if it is an ICMP error. Of a packet that could not be read it is what
// was found until then.
func (t *Translator) Flow() (f, quoted translate.Flow, isError bool) {
	return t.packet.Flow, t.packet.Quoted, t.packet.HasQuote()
}

// Outcome is what became of a packet.
type Outcome struct {
	Verdict translate.Verdict
	Error   bool // an ICMP error answers it
	Limited bool // an ICMP error would have answered it but for the rate limit
	Held    bool // the packet is a fragment that waits for its first: the verdict is not its last
}

// Translate takes a copy of the packet through all its steps and gives what is
// to leave to the sink: the packet translated, its fragments one by one, the
// reply to an echo request, or the ICMP error that answers a packet that cannot
// go on. Of packet no more than tun.MaxPacket bytes count, which is more than
// any has. tick is in seconds.
func (t *Translator) Translate(packet []byte, tick uint32, out Sink) Outcome {
	n := copy(t.packet.Buf[headroom:], packet)
	return t.handle(n, &tun.Header{}, tick, out)
}

// handle is Translate for the packet of n bytes at packet.Buf[headroom:]. The
// header comes by pointer: as a value it is stored and at once read back in
// other widths, for which the processor waits.
func (t *Translator) handle(n int, h *tun.Header, tick uint32, out Sink) Outcome {
	p := &t.packet
	p.Off, p.Len, p.Offload = headroom, n, translate.Offload(*h)
	v := t.translate(tick)
	switch {
	case v == translate.Fragmented:
		t.putFragments(out)
	case v.Leaves():
		out.Put(p.Buf, p.Off, p.Len, tun.Header(p.Offload))
	case v == translate.FragmentPending:
		return Outcome{Verdict: v, Held: t.held}
	case v.Info().Reply != "":
		return t.refuse(v, tick, out)
	}
	return Outcome{Verdict: v}
}

// translate turns the packet into what is to leave, or says why nothing may.
func (t *Translator) translate(tick uint32) translate.Verdict {
	p := &t.packet
	if v := p.Parse(&t.options); v != translate.OK {
		return v
	}
	v := t.resolve(tick)
	if v == translate.OwnAddress {
		return t.answer()
	}
	if !v.Leaves() {
		return v
	}
	rewritten := p.Rewrite(&t.options, &t.to, &t.quoted)
	if v == translate.Hairpin && rewritten == translate.OK {
		return t.hairpin(tick)
	}
	return rewritten
}

// answer serves a packet to natless's own address, of which only echo requests
// are served.
func (t *Translator) answer() translate.Verdict {
	if !t.packet.IsEchoRequest() {
		return translate.OwnAddress
	}
	t.packet.AnswerEcho()
	return translate.Answered
}

// resolve finds the packet's flow on the other side, which is then in to, and,
// of an ICMP error, that of the packet it quotes, which is then in quoted.
func (t *Translator) resolve(tick uint32) translate.Verdict {
	p := &t.packet
	switch {
	case p.HasQuote():
		return t.resolveError(tick)
	case p.Flow.Frag != translate.Whole:
		return t.resolveFragment(tick)
	}
	v, x := t.resolveCached(tick)
	if x == (mapping.Ranges{}) {
		return v
	}
	return t.settle(v, x, tick)
}

// resolveError resolves an ICMP error. Where clients share the address it goes
// to, the port of the packet that it quotes leads it.
func (t *Translator) resolveError(tick uint32) (v translate.Verdict) {
	p := &t.packet
	if t.resolver.Own(p.Flow.Dst) {
		return translate.OwnAddress
	}
	if p.Flow.Src.Is6() && !t.resolver.SpeaksFor(p.Flow.Src, p.Quoted.Dst, p.HardError()) {
		return translate.ErrorForAnother
	}
	f := p.Flow
	f.DstPort = p.Quoted.SrcPort
	if t.to, v = t.resolver.ResolveError(f); !v.Leaves() {
		return v
	}
	if found := t.resolveQuote(tick); found != translate.OK {
		return found
	}
	return v
}

// resolveFragment resolves a fragment, which may have to follow another.
func (t *Translator) resolveFragment(tick uint32) translate.Verdict {
	p := &t.packet
	if p.Flow.Frag == translate.Later {
		if v := t.follow(tick); v != translate.OK {
			return v
		}
	}
	v, x := t.resolveCached(tick)
	if x != (mapping.Ranges{}) {
		v = t.settle(v, x, tick)
	}
	if p.Flow.Frag == translate.First && v != translate.LeasePending {
		t.lead(tick)
	}
	return v
}

// resolveCached asks the Resolver where the cache has no answer.
func (t *Translator) resolveCached(tick uint32) (translate.Verdict, mapping.Ranges) {
	p := &t.packet
	key, revision := t.pairOf(p), t.resolver.Revision()
	a := t.cache.at(key)
	if a.holds(key, revision, tick) && (a.ranges.Dst == nil || inRange(a.ranges.Dst, &p.Flow)) {
		t.to.Src, t.to.Dst, t.to.SrcPort, t.to.DstPort, t.to.Proto = a.src, a.dst, p.Flow.SrcPort, p.Flow.DstPort, p.Flow.Proto
		return a.verdict, a.ranges
	}
	if t.resolver.Own(p.Flow.Dst) {
		return translate.OwnAddress, mapping.Ranges{}
	}
	t.to = p.Flow
	x, v := t.resolver.ResolveRanges(&t.to, tick)
	if v != translate.Hairpin || t.sharing.Sessions == nil { // the next may be for another who shares the destination
		*a = answer{key, t.to.Src, t.to.Dst, revision, tick, v, x}
	}
	return v, x
}

// hairpin translates the packet a second time. It is IPv4 now and on its way
// to another client: RFC 7757 4.2.2 has it translated back at once instead of
// by way of the kernel.
func (t *Translator) hairpin(tick uint32) translate.Verdict {
	p := &t.packet
	p.ReturnHop()
	v := p.Parse(&t.options)
	if v != translate.OK {
		return v
	}
	switch {
	case p.HasQuote():
		p.Flow.DstPort = p.Quoted.SrcPort
	case p.Flow.Frag == translate.Later: // which goes where its first did
		p.Flow.SrcPort, p.Flow.DstPort = t.to.SrcPort, t.to.DstPort
	}
	var x mapping.Ranges
	if t.to, x, v = t.resolver.HairpinBackRanges(p.Flow); v != translate.OK {
		return v
	}
	if p.HasQuote() {
		answer := p.Quoted.Reversed()
		back, x, found := t.resolver.HairpinBackRanges(answer)
		if found != translate.OK || t.quote(answer, back, x, tick) != translate.OK {
			return translate.QuoteUnmapped
		}
	} else if v = t.settle(v, x, tick); v != translate.OK {
		return v
	}
	if v = p.Rewrite(&t.options, &t.to, &t.quoted); v != translate.OK {
		return v
	}
	return translate.Hairpin
}

// refuse answers a packet that cannot go on with the ICMP error its verdict
// calls for, if one is allowed and the rate allows it.
func (t *Translator) refuse(v translate.Verdict, tick uint32, out Sink) Outcome {
	from := t.from6
	if t.packet.Flow.Src.Is4() {
		from = t.from4
	}
	if !from.IsValid() {
		return Outcome{Verdict: v}
	}
	if !t.limit.allow(v, tick) {
		return Outcome{Verdict: v, Limited: true}
	}
	n := translate.WriteError(t.spare[headroom:], &t.packet, v, from)
	if n == 0 {
		return Outcome{Verdict: v}
	}
	out.Put(t.spare, headroom, n, tun.Header{})
	return Outcome{Verdict: v, Error: true}
}

func (t *Translator) putFragments(out Sink) {
	for {
		n, ok := t.packet.NextFragment(t.spare[headroom:])
		if !ok {
			return
		}
		out.Put(t.spare, headroom, n, tun.Header{})
	}
}
