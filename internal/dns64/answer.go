package dns64

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/natless/natless/internal/inet"
)

// question is what an answer depends on.
type question struct {
	name   string // with the dot at its end, in lower case
	qtype  uint16
	do, cd bool
}

func (q question) String() string { return q.name + " " + dns.Type(q.qtype).String() }

func (q question) of(qtype uint16) question {
	q.qtype = qtype
	return q
}

// noSOA is the longest TTL, in seconds, of what is synthesised where no SOA tells a
// shorter one (RFC 6147 5.1.7).
const noSOA = 600

// message is an answer on its way to a client. Of the dns.Msg only the code and
// the three sections mean anything.
type message struct {
	dns.Msg
	entry   *entry    // of the question, where it was in the cache
	since   time.Time // what its TTLs count from: at most a second ago; zero: now
	until   time.Time // when the first thing that it is made of has to be asked for again
	reached []reach   // what it is made of besides
	made    bool      // there are synthesised AAAA records
	most    uint32    // seconds that these may tell, at whatever age
}

// reach is what the table says of an IPv4 address.
type reach struct {
	v4, v6 netip.Addr
	ok     bool
}

// tie has two answers hold as long as both, the second as made of the first.
func tie(aaaa, a *message) {
	a.entry, a.reached = aaaa.entry, aaaa.reached
	if aaaa.since.Before(a.since) {
		a.since = aaaa.since
	}
	if aaaa.until.Before(a.until) {
		a.until = aaaa.until
	}
	aaaa.since, aaaa.until = a.since, a.until
}

// ttl is that of a record of the answer section, in seconds.
func (m *message) ttl(h *dns.RR_Header) uint32 { return min(h.Ttl, m.bound(h.Rrtype)) }

// bound is what a record of the answer section may tell at most.
func (m *message) bound(rrtype uint16) uint32 {
	if m.made && rrtype == dns.TypeAAAA {
		return m.most
	}
	return maxTTL
}

// answer answers a question. x takes notes, unless it is nil.
func (s *Server) answer(ctx context.Context, q question, x *Explanation) *message {
	if m := s.local(q, x); m != nil {
		return m
	}
	// Who validates for himself does the synthesis himself too (RFC 6147 5.5).
	if !q.do || !q.cd {
		switch q.qtype {
		case dns.TypeAAAA:
			return s.answerAAAA(ctx, q, x)
		case dns.TypePTR:
			return s.answerPTR(ctx, q, x)
		}
	} else if q.qtype == dns.TypeAAAA || q.qtype == dns.TypePTR {
		x.step("DO and CD are set: nothing is synthesised (RFC 6147 5.5)")
	}
	return s.ask(ctx, q, x)
}

// ask is resolve for an answer that is passed on whatever it is.
func (s *Server) ask(ctx context.Context, q question, x *Explanation) *message {
	m, err := s.resolve(ctx, q, x)
	if err != nil {
		return failed(x, err)
	}
	return m
}

// failed is the answer where there is none.
func failed(x *Explanation, err error) *message {
	x.step("no answer: %v", err)
	return code(dns.RcodeServerFailure)
}

func code(rcode int) *message { return &message{Msg: dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}} }

// answerAAAA answers by RFC 6147 5.1.
func (s *Server) answerAAAA(ctx context.Context, q question, x *Explanation) *message {
	aaaa, err := s.resolve(ctx, q, x)
	switch {
	case err != nil: // 5.1.3: as a server failure
		x.step("no answer about AAAA: %v: taken for an empty one (RFC 6147 5.1.3)", err)
		aaaa = code(dns.RcodeSuccess)
	case aaaa.Rcode == dns.RcodeNameError: // 5.1.2: the name is not there, nor is an A record
		return aaaa
	case aaaa.Rcode != dns.RcodeSuccess:
		x.step("the answer about AAAA is %s: taken for an empty one (RFC 6147 5.1.2)", dns.RcodeToString[aaaa.Rcode])
		aaaa = code(dns.RcodeSuccess)
	default:
		s.exclude(aaaa, x)
	}
	native := has(&aaaa.Msg, dns.TypeAAAA)
	if native && !s.allNames(s.now()) {
		return aaaa
	}
	a, err := s.resolve(ctx, q.of(dns.TypeA), x)
	switch {
	case err != nil && native:
		return aaaa
	case err != nil:
		return failed(x, err)
	}
	tie(aaaa, a)
	if a.Rcode != dns.RcodeSuccess || !has(&a.Msg, dns.TypeA) {
		if native {
			return aaaa
		}
		return a // 5.1.6: what is wrong with A is the answer
	}
	m := s.synthesise(a, aaaa, x)
	if m.made && native {
		s.ignore(aaaa, x)
	}
	return m
}

// ignore notes the AAAA records that A records take the place of.
func (s *Server) ignore(aaaa *message, x *Explanation) {
	why := "its A records are used in place of it (dns64.synthesise = \"all\")"
	if s.settings.Load().Synthesise == Auto {
		why = "the host has no way to the IPv6 Internet: its A records are used in place of it (dns64.synthesise = \"auto\")"
	}
	for _, rr := range aaaa.Answer {
		if r, ok := rr.(*dns.AAAA); ok {
			a, _ := netip.AddrFromSlice(r.AAAA.To16())
			x.left(a, why)
		}
	}
}

// synthesise makes the AAAA answer of an answer about A (RFC 6147 5.1.6, 5.1.7,
// 5.4). The authority and additional sections stay as they are (5.3.2). empty
// is what there was about AAAA: the answer where nothing can be made.
func (s *Server) synthesise(a, empty *message, x *Explanation) *message {
	left, most := uint32(maxTTL), uint32(noSOA)
	if soa := soaOf(&empty.Msg); soa != nil {
		left, most = soa.Hdr.Ttl, soa.Minttl
	}
	now := s.now()
	reached := empty.reached
	answer := make([]dns.RR, 0, len(a.Answer))
	made := false
	for _, rr := range a.Answer {
		if signs(dns.TypeA)(rr) {
			continue // of what is not there any more
		}
		r, ok := rr.(*dns.A)
		if !ok {
			answer = append(answer, rr)
			continue
		}
		v4, ok := netip.AddrFromSlice(r.A.To4())
		if !ok {
			continue
		}
		v6, ok := s.reach(v4, now)
		reached = append(reached, reach{v4, v6, ok})
		if !ok {
			s.leave(v4, now, x)
			continue
		}
		made = true
		h := r.Hdr
		h.Rrtype, h.Ttl = dns.TypeAAAA, min(h.Ttl, left)
		answer = append(answer, &dns.AAAA{Hdr: h, AAAA: v6.AsSlice()})
		x.reach(v6, v4, s.table)
	}
	a.reached, empty.reached = reached, reached
	if made {
		s.counters.synthesised.Add(1)
		a.Answer, a.made, a.most = answer, true, most
		return a
	}
	return empty
}

// leave notes an IPv4 address that clients are not told of.
func (s *Server) leave(v4 netip.Addr, now time.Time, x *Explanation) {
	if x == nil {
		return
	}
	_, why := s.table.Why(v4)
	if s.ways.to(v4, now).own {
		why = "an address of this host, whose services a name must not lead clients to"
	}
	x.left(v4, why)
}

// exclude takes out the AAAA records that do not count (RFC 6147 5.1.4), and
// signatures that do not fit what is left.
func (s *Server) exclude(m *message, x *Explanation) {
	n := len(m.Answer)
	m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool {
		r, ok := rr.(*dns.AAAA)
		return ok && s.excluded(m, r, x)
	})
	if len(m.Answer) < n {
		m.Answer = slices.DeleteFunc(m.Answer, signs(dns.TypeAAAA))
	}
}

// excluded reports whether an AAAA record does not count: by configuration, or
// since it has behind pref64 what natless would not put there itself. Whoever
// has a zone can write both.
func (s *Server) excluded(m *message, r *dns.AAAA, x *Explanation) bool {
	a, _ := netip.AddrFromSlice(r.AAAA.To16())
	prefixes := s.settings.Load().Exclude
	if i := slices.IndexFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
		x.left(a, fmt.Sprintf("excluded by %v (dns64.exclude; RFC 6147 5.1.4)", prefixes[i]))
		return true
	}
	v4, mapped, ok := s.table.Behind(a)
	if !ok || mapped {
		return false
	}
	now := s.now()
	v6, ok := s.reach(v4, now)
	m.reached = append(m.reached, reach{v4, v6, ok})
	if !ok {
		s.leave(v4, now, x)
	}
	return !ok
}

// answerPTR answers about the addresses that stand for IPv4 ones with a CNAME
// to the name of the IPv4 address, where that has a name (RFC 6147 5.3.1). The
// IPv6 side of a map is a host of its own: what is known of it comes first.
func (s *Server) answerPTR(ctx context.Context, q question, x *Explanation) *message {
	v6, ok := reversed(q.name)
	if !ok {
		return s.ask(ctx, q, x)
	}
	v4, own, ok := s.table.Behind(v6)
	if !ok {
		return s.ask(ctx, q, x)
	}
	if own {
		if m := s.ask(ctx, q, x); m.Rcode == dns.RcodeSuccess && has(&m.Msg, dns.TypePTR) {
			return m
		}
	}
	target, _ := dns.ReverseAddr(v4.String()) // an address has one
	x.step("%v stands for %v: %s (RFC 6147 5.3.1)", v6, v4, target)
	next := q
	next.name = target
	var m *message
	if slices.Contains(inet.Discovery, v4) { // nobody is asked about these (RFC 8880 7.2.1)
		x.from("local")
		m = code(dns.RcodeSuccess)
		m.Answer = []dns.RR{&dns.PTR{Hdr: header(target, dns.TypePTR, ipv4onlyTTL), Ptr: ipv4only}}
	} else {
		m = s.ask(ctx, next, x)
	}
	switch {
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return m
	case !has(&m.Msg, dns.TypePTR): // an alias to nothing would help nobody
		x.step("%s has no name: no alias to it", target)
		return s.ask(ctx, q, x)
	}
	s.counters.synthesised.Add(1)
	x.made(target)
	ttl := uint32(noSOA)
	for _, rr := range m.Answer {
		ttl = min(ttl, rr.Header().Ttl)
	}
	alias := &dns.CNAME{Hdr: header(q.name, dns.TypeCNAME, ttl), Target: target}
	m.Answer = slices.Insert(m.Answer, 0, dns.RR(alias))
	return m
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// has reports whether the answer has a record of a type.
func has(m *dns.Msg, rrtype uint16) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == rrtype })
}

// signs finds the signatures of a type.
func signs(rrtype uint16) func(dns.RR) bool {
	return func(rr dns.RR) bool {
		r, ok := rr.(*dns.RRSIG)
		return ok && r.TypeCovered == rrtype
	}
}

// negativeTTL is how long a negative answer holds, in seconds, if it has the SOA
// that says so (RFC 2308 5).
func negativeTTL(m *dns.Msg) (ttl uint32, ok bool) {
	if soa := soaOf(m); soa != nil {
		return min(soa.Hdr.Ttl, soa.Minttl), true
	}
	return 0, false
}

func soaOf(m *dns.Msg) *dns.SOA {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return soa
		}
	}
	return nil
}

// maxChain is how many aliases an answer may lead through.
const maxChain = 16

var errLoop = errors.New("its aliases lead in a circle, or too far")

// vet keeps of an answer what answers the question: the records of the names
// that its aliases lead through, and the aliases. It is an error when they lead
// nowhere.
func vet(q question, m *dns.Msg) error {
	// No OPT, which is of one hop, and nothing that signs the message.
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t == dns.TypeOPT || t == dns.TypeTSIG || t == dns.TypeSIG
	})
	if q.qtype == dns.TypeANY || q.qtype == dns.TypeRRSIG {
		return nil
	}
	aliases := map[string]string{}
	for _, rr := range m.Answer {
		if r, ok := rr.(*dns.CNAME); ok {
			aliases[strings.ToLower(r.Hdr.Name)] = strings.ToLower(r.Target)
		}
	}
	names := map[string]bool{q.name: true}
	for name := q.name; q.qtype != dns.TypeCNAME && aliases[name] != ""; {
		name = aliases[name]
		if names[name] || len(names) > maxChain {
			return errLoop
		}
		names[name] = true
	}
	m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool {
		h := rr.Header()
		rrtype := h.Rrtype
		if r, ok := rr.(*dns.RRSIG); ok && q.do {
			rrtype = r.TypeCovered
		}
		owner := strings.ToLower(h.Name)
		switch {
		case h.Class != dns.ClassINET:
			return true
		case rrtype == dns.TypeDNAME:
			return !above(owner, names)
		}
		return !names[owner] || rrtype != q.qtype && rrtype != dns.TypeCNAME
	})
	return nil
}

// above reports whether a name is above, or one, of others.
func above(name string, names map[string]bool) bool {
	for n := range names {
		if dns.IsSubDomain(name, n) {
			return true
		}
	}
	return false
}
