package dataplane

import (
	"sync/atomic"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// Clients may share an IPv4 address. Then ports lead: the mapping says whose
// range a port is in, and what arithmetic does not settle takes a session.
// Packets without ports follow those that have them: an ICMP error the packet
// that it quotes, a later fragment its first.

// Sessions changes the ports of flows that take a session. conntrack.Table is
// one, whose methods tell the rest.
type Sessions interface {
	Out(r *mapping.Range, f *translate.Flow, flags uint8, now uint32) conntrack.Reason
	In(r *mapping.Range, f *translate.Flow, flags uint8, now uint32) conntrack.Reason
	Changes(r *mapping.Range) *atomic.Uint32
	PeekOut(r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason
	PeekIn(r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason
	Expire(now uint32) (more bool)
}

// Sharing is what clients that share IPv4 addresses need besides the Resolver.
// The zero value serves where there are none: whatever takes a session then
// finds none.
type Sharing struct {
	Sessions Sessions
	// Fragments of packets from IPv4 and from IPv6, which must not take each
	// other's memory.
	From4, From6 *conntrack.Fragments
}

const (
	protoICMP   = 1
	protoICMPv6 = 58
	protoSCTP   = 132
)

// NewSharing makes what is needed where there are clients that share, with
// room for the sessions of the configuration. The memory becomes resident as it
// is used.
func NewSharing(c conntrack.Config) (s Sharing, err error) {
	sessions, err := conntrack.New(c, 0)
	if err != nil {
		return Sharing{}, err
	}
	s.Sessions = sessions
	for _, f := range []**conntrack.Fragments{&s.From4, &s.From6} {
		if *f, err = conntrack.NewFragments(conntrack.DefaultFragments()); err != nil {
			return Sharing{}, err
		}
	}
	return s, nil
}

// Expire forgets what is over. It is to be called about once a second, off the
// way of packets.
func (s *Sharing) Expire(tick uint32) {
	if s.Sessions == nil {
		return
	}
	for s.Sessions.Expire(tick) {
	}
	for s.From4.Expire(tick) {
	}
	for s.From6.Expire(tick) {
	}
}

// Lost is how many fragments waited in vain.
func (s *Sharing) Lost() (n uint64) {
	for _, f := range []*conntrack.Fragments{s.From4, s.From6} {
		if f != nil {
			n += f.Lost()
		}
	}
	return n
}

// verdicts of the reasons that package conntrack gives.
var verdicts = [...]translate.Verdict{
	conntrack.OK:         translate.OK,
	conntrack.NoPorts:    translate.NoPorts,
	conntrack.NoSession:  translate.NoSession,
	conntrack.NotSYN:     translate.NotSYN,
	conntrack.PartFull:   translate.SessionPortsFull,
	conntrack.ClientFull: translate.ClientSessionsFull,
	conntrack.TableFull:  translate.SessionsFull,
}

// settle puts ports into the flow on the other side where a session has them,
// v being the mapping's verdict. To a shared address natless answers echo
// requests itself; an echo reply is for the client whose session it is.
func (t *Translator) settle(v translate.Verdict, x mapping.Ranges, tick uint32) translate.Verdict {
	p := &t.packet
	switch {
	case v == translate.OwnAddress && x.Dst != nil && p.Flow.Src.Is4() && p.IsEchoReply():
		v = translate.OK
	case !v.Leaves():
		return v
	}
	if r := x.Src; r != nil {
		p.FragmentIDs = translate.IDs{First: r.First, Size: r.Last - r.First + 1}
	}
	if p.Flow.Frag == translate.Later {
		return t.settleLater(v, x, tick)
	}
	if x.Src != nil && !x.Src.Stateless(p.Flow.Proto, p.Flow.SrcPort) {
		if found := t.out(x.Src, tick); found != translate.OK {
			return found
		}
	}
	if x.Dst != nil && !x.Dst.Stateless(p.Flow.Proto, p.Flow.DstPort) {
		if found := t.in(x.Dst, tick); found != translate.OK {
			return found
		}
	}
	return v
}

// out has a client's packet, whose flow is IPv4 in t.to but for its source
// port, take its session.
func (t *Translator) out(r *mapping.Range, tick uint32) translate.Verdict {
	p := &t.packet
	switch {
	case t.sharing.Sessions == nil || p.IsEchoReply(): // which natless has answered, or nobody asked
		return translate.NoSession
	case p.Flow.Frag != translate.Whole && p.Flow.Proto == protoSCTP:
		return translate.SCTPFragment
	}
	flags := p.TCPFlags()
	q := ask(r, t.to.Dst, t.to.DstPort, t.to.SrcPort, p.Flow.Proto, true, tick)
	if port, ok := t.steady.find(&q, flags); ok {
		t.to.SrcPort = port
		if p.Flow.Proto == protoICMPv6 { // whose identifier is both
			t.to.DstPort = port
		}
		return translate.OK
	}
	changes := t.sharing.Sessions.Changes(r)
	count := changes.Load()
	v := verdicts[t.sharing.Sessions.Out(r, &t.to, flags, tick)]
	if v == translate.OK {
		t.steady.keep(&q, flags, changes, count, t.to.SrcPort)
	}
	return v
}

// in does the same for a packet from IPv4, whose flow is IPv6 in t.to.
func (t *Translator) in(r *mapping.Range, tick uint32) translate.Verdict {
	p := &t.packet
	switch {
	case t.sharing.Sessions == nil:
		return translate.NoSession
	case p.Flow.Frag != translate.Whole && p.Flow.Proto == protoSCTP:
		return translate.SCTPFragment
	}
	f, flags := &p.Flow, p.TCPFlags()
	q := ask(r, f.Src, f.SrcPort, f.DstPort, f.Proto, false, tick)
	if port, ok := t.steady.find(&q, flags); ok {
		t.to.DstPort = port
		if f.Proto == protoICMP {
			t.to.SrcPort = port
		}
		return translate.OK
	}
	changes := t.sharing.Sessions.Changes(r)
	count := changes.Load()
	t.scratch = *f
	v := verdicts[t.sharing.Sessions.In(r, &t.scratch, flags, tick)]
	t.to.SrcPort, t.to.DstPort = t.scratch.SrcPort, t.scratch.DstPort
	if v == translate.OK {
		t.steady.keep(&q, flags, changes, count, t.to.DstPort)
	}
	return v
}

// settleLater is settle for a later fragment. No port is in it, so that only
// what a packet to a session would reach has to be known. One from a client
// leaves whatever became of its first: without that it completes nothing.
func (t *Translator) settleLater(v translate.Verdict, x mapping.Ranges, tick uint32) translate.Verdict {
	f := &t.packet.Flow
	if x.Src != nil && !translate.HasPorts(f.Proto) {
		return translate.NoPorts
	}
	if x.Dst == nil || x.Dst.Stateless(f.Proto, f.DstPort) {
		return v
	}
	if _, found := t.peekIn(x.Dst, *f, tick); found != translate.OK {
		return found
	}
	return v
}

// peekIn is the port of the client's that an IPv4 flow reaches by a session
// there is.
func (t *Translator) peekIn(r *mapping.Range, f translate.Flow, tick uint32) (uint16, translate.Verdict) {
	if t.sharing.Sessions == nil {
		return 0, translate.NoSession
	}
	t.scratch = f
	v := verdicts[t.sharing.Sessions.PeekIn(r, &t.scratch, tick)]
	return t.scratch.DstPort, v
}

// resolveQuote finds the flow on the other side of the packet that an ICMP
// error quotes. That went the other way, so it is its answer's flow that the
// mapping can find.
func (t *Translator) resolveQuote(tick uint32) translate.Verdict {
	answer := t.packet.Quoted.Reversed()
	back, x, v := t.resolver.LookupRanges(answer)
	switch {
	case v == translate.OwnAddress && x.Dst != nil && answer.Src.Is4(): // an echo reply
	case !v.Leaves():
		return translate.QuoteUnmapped
	}
	return t.quote(answer, back, x, tick)
}

// quote makes back, the flow of the answer to a quoted packet on the other
// side, that of the packet, with the ports of its session where it took one.
func (t *Translator) quote(answer, back translate.Flow, x mapping.Ranges, tick uint32) translate.Verdict {
	if x.Src != nil && !x.Src.Stateless(answer.Proto, answer.SrcPort) {
		t.scratch = back
		if t.sharing.Sessions == nil || t.sharing.Sessions.PeekOut(x.Src, &t.scratch, tick) != conntrack.OK {
			return translate.QuoteUnmapped
		}
		back = t.scratch
	}
	if x.Dst != nil && !x.Dst.Stateless(answer.Proto, answer.DstPort) {
		port, found := t.peekIn(x.Dst, answer, tick)
		if found != translate.OK {
			return translate.QuoteUnmapped
		}
		back.DstPort = port
		if !translate.HasPorts(answer.Proto) { // ICMP, whose identifier is both
			back.SrcPort = port
		}
	}
	t.quoted = back.Reversed()
	return translate.OK
}

// fragments are those of the packet's family.
func (t *Translator) fragments(from4 bool) *conntrack.Fragments {
	if from4 {
		return t.sharing.From4
	}
	return t.sharing.From6
}

func (t *Translator) datagram() conntrack.Datagram {
	f := &t.packet.Flow
	return conntrack.Datagram{Src: f.Src, Dst: f.Dst, ID: t.packet.FragmentID(), Proto: f.Proto}
}

// follow gives a later fragment to a shared address the ports of its first.
// Where they are not known yet it has been copied: Next has it when they are.
func (t *Translator) follow(tick uint32) translate.Verdict {
	p := &t.packet
	if !translate.HasPorts(p.Flow.Proto) || !t.resolver.Shared(p.Flow.Dst) {
		return translate.OK
	}
	fragments := t.fragments(p.Flow.Src.Is4())
	t.held = false
	if fragments == nil {
		return translate.FragmentPending
	}
	d := t.datagram()
	ports, reason := fragments.Later(&d, p.Buf[p.Off:p.Off+p.Len], tick)
	t.held = reason == conntrack.Held
	if reason != conntrack.OK {
		return translate.FragmentPending
	}
	p.Flow.SrcPort, p.Flow.DstPort = ports.Src, ports.Dst
	return translate.OK
}

// lead tells the ports of a first fragment to a shared address to the others
// of its datagram, some of which may wait for it.
func (t *Translator) lead(tick uint32) {
	p := &t.packet
	fragments := t.fragments(p.Flow.Src.Is4())
	if fragments == nil || !translate.HasPorts(p.Flow.Proto) || !t.resolver.Shared(p.Flow.Dst) {
		return
	}
	d := t.datagram()
	waiting, _ := fragments.First(&d, conntrack.Ports{Src: p.Flow.SrcPort, Dst: p.Flow.DstPort}, tick)
	if waiting > 0 {
		t.leading, t.waiting = d, true
	}
}

// Next takes a fragment that waited for the packet before through all its
// steps, and reports false when there is none. It is to be called after each
// packet, until it does.
func (t *Translator) Next(tick uint32, out Sink) (Outcome, bool) {
	if !t.waiting {
		return Outcome{}, false
	}
	n, ok := t.fragments(t.leading.Src.Is4()).Next(&t.leading, t.packet.Buf[headroom:])
	if t.waiting = ok; !ok {
		return Outcome{}, false
	}
	return t.handle(n, &tun.Header{}, tick, out), true
}
