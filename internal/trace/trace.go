// Package trace tells what would become of a packet, step by step: it hands
// the packet to the same Translator that the workers have, with the mapping
// table behind a witness that writes down what was asked and why it was
// answered so. It stands beside the way of a packet: nothing on that way knows
// of it, and it changes nothing in the table.
//
// What it returns is for people and scripts: the JSON names are stable.
package trace

import (
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/internal/dataplane"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// Report is what would become of a packet.
type Report struct {
	Packet  Packet   `json:"packet"`
	Steps   []Step   `json:"steps"`
	Verdict string   `json:"verdict"` // its stable name
	Leaves  bool     `json:"leaves"`  // the packet goes on its way
	Section string   `json:"section"` // of the RFC that asks for the verdict
	Advice  string   `json:"advice"`  // what the verdict means and what to do
	Out     []Packet `json:"out"`     // what leaves: the packet translated, its fragments, the echo reply
	Error   *Packet  `json:"error,omitempty"`
}

// Packet is a packet in words and in bytes.
type Packet struct {
	Text  string `json:"text"`
	Bytes int    `json:"bytes"`
	Hex   string `json:"hex"`
}

// Step is one thing that was found or decided, in order.
type Step struct {
	Step    string       `json:"step"`
	Text    string       `json:"text"`           // what was found; of a decision the reason
	Section string       `json:"section"`        // of the RFC that asks for it
	From    netip.Addr   `json:"from,omitzero"`  // of a decision: the address
	To      netip.Addr   `json:"to,omitzero"`    // its counterpart, if there is one
	Rule    mapping.Rule `json:"rule,omitempty"` // which rule decided
	Origin  string       `json:"origin,omitempty"`
}

// String is the step in one line, without its name.
func (s Step) String() string {
	text := s.Text
	switch {
	case s.To.IsValid():
		text = fmt.Sprintf("%v becomes %v: %s", s.From, s.To, text)
	case s.From.IsValid():
		text = fmt.Sprintf("%v: %s", s.From, text)
	}
	return fmt.Sprintf("%s (%s)", text, s.Section)
}

// The steps. A quoted packet is the one inside an ICMP error.
const (
	StepParse             = "parse"
	StepOwn               = "own"
	StepSource            = "source"
	StepDestination       = "destination"
	StepQuotedSource      = "quoted_source"
	StepQuotedDestination = "quoted_destination"

	// Ports of clients that share an IPv4 address.
	StepPort       = "port"
	StepQuotedPort = "quoted_port"

	// The way back to IPv6 of a packet from one client to another.
	StepHairpinSource            = "hairpin_source"
	StepHairpinDestination       = "hairpin_destination"
	StepQuotedHairpinSource      = "quoted_hairpin_source"
	StepQuotedHairpinDestination = "quoted_hairpin_destination"
)

// RuleStandIn is the rule for the source of an ICMP error that has no
// counterpart of its own.
const RuleStandIn mapping.Rule = "stand_in"

// Config is what a packet is traced by.
type Config struct {
	Table      *mapping.Table
	Sessions   *conntrack.Table // nil: there are none
	Tick       uint32           // their clock
	Options    translate.Options
	IPv4, IPv6 netip.Addr // natless's own, as the dataplane has them
}

// Trace says what would become of the packet now. It leases nothing: a client
// without a lease is shown with the address it would get.
func Trace(c Config, packet []byte) Report {
	w := &witness{table: c.Table, sessions: c.Sessions}
	w.translator = dataplane.NewTranslator(w, dataplane.Sharing{Sessions: w}, c.Options, c.IPv4, c.IPv6)
	o := w.translator.Translate(packet, c.Tick, w)
	if len(w.steps) == 0 {
		w.add(Step{Step: StepParse, Text: "not a packet that can be translated", Section: o.Verdict.Info().Section})
	}
	info := o.Verdict.Info()
	r := Report{
		Packet: describe(packet), Steps: w.steps,
		Verdict: info.Name, Leaves: o.Verdict.Leaves(), Section: info.Section, Advice: info.Advice,
		Out: []Packet{},
	}
	if o.Error {
		r.Error = &w.out[0]
	} else {
		r.Out = append(r.Out, w.out...)
	}
	return r
}

func describe(packet []byte) Packet {
	return Packet{Text: Words(packet), Bytes: len(packet), Hex: hex.EncodeToString(packet)}
}

// witness is the Resolver and the Sink of one packet. It answers by the table
// and writes down what it is asked.
type witness struct {
	table      *mapping.Table
	sessions   *conntrack.Table
	translator *dataplane.Translator
	steps      []Step
	backs      int // times HairpinBackRanges was asked
	out        []Packet
}

func (w *witness) add(s Step) { w.steps = append(w.steps, s) }

// Put keeps a packet. It implements dataplane.Sink.
func (w *witness) Put(buf []byte, off, n int, _ tun.Header) {
	w.out = append(w.out, describe(buf[off:off+n]))
}

// Own is the first thing asked of a packet that was parsed.
func (w *witness) Own(a netip.Addr) bool {
	w.parsed()
	own := w.table.Own(a)
	if own {
		w.add(Step{
			Step: StepOwn, From: a, Rule: mapping.RuleOwn, Section: "RFC 1122 3.2.2, RFC 4443 4.2",
			Text: "natless itself, which answers ping and nothing else",
		})
	}
	return own
}

// Revision never changes: a witness sees one packet.
func (w *witness) Revision() uint64 { return 1 }

func (w *witness) parsed() {
	f, quoted, isError := w.translator.Flow()
	s := Step{Step: StepParse, Text: flowWords(f), Section: "RFC 7915 5.1"}
	if f.Src.Is4() {
		s.Section = "RFC 7915 4.1"
	}
	if isError {
		s.Text = fmt.Sprintf("an ICMP error from %v to %v about %s", f.Src, f.Dst, flowWords(quoted))
		s.Section = "RFC 7915 5.2, 5.3"
		if f.Src.Is4() {
			s.Section = "RFC 7915 4.2, 4.3"
		}
	}
	w.add(s)
}

// ResolveRanges foresees what the table would say, so that nothing is leased.
func (w *witness) ResolveRanges(f *translate.Flow, _ uint32) (mapping.Ranges, translate.Verdict) {
	from := *f
	to, x, v := w.table.ForeseeRanges(from)
	w.resolved(from, to, v)
	w.stateless(x, &from, v)
	*f = to
	return x, v
}

// ResolveError is asked about the outer flow of an ICMP error.
func (w *witness) ResolveError(f translate.Flow) (translate.Flow, translate.Verdict) {
	to, v := w.table.ResolveError(f)
	w.resolved(f, to, v)
	return to, v
}

func (w *witness) resolved(f, to translate.Flow, v translate.Verdict) {
	w.add(w.source(StepSource, f.Src, to.Src, v))
	w.add(w.destination(StepDestination, f.Dst, to.Dst, v))
}

// LookupRanges is asked about the answer of a quoted packet, which went the other
// way: what is the source to the table is the destination in the quote.
func (w *witness) LookupRanges(f translate.Flow) (translate.Flow, mapping.Ranges, translate.Verdict) {
	to, x, v := w.table.LookupRanges(f)
	w.add(w.destination(StepQuotedSource, f.Dst, to.Dst, v))
	w.add(w.source(StepQuotedDestination, f.Src, to.Src, v))
	return to, x, v
}

// SpeaksFor is asked about an ICMP error of IPv6.
func (w *witness) SpeaksFor(host, dst netip.Addr, hard bool) bool {
	speaks := w.table.SpeaksFor(host, dst, hard)
	if !speaks {
		w.add(Step{Step: StepQuotedDestination, From: dst, Section: "RFC 5508 4.2", Text: fmt.Sprintf("%v is neither where the packet went nor a router on the way there", host)})
	}
	return speaks
}

// HairpinBackRanges is asked about the packet and then about the one it quotes.
func (w *witness) HairpinBackRanges(f translate.Flow) (translate.Flow, mapping.Ranges, translate.Verdict) {
	to, x, v := w.table.HairpinBackRanges(f)
	source, destination := Step{From: f.Src, Text: "the source by pref64, so that answers take the same way"}, Step{From: f.Dst, Text: "a client too, so back to IPv6 at once"}
	source.Step, destination.Step = StepHairpinSource, StepHairpinDestination
	if w.backs++; w.backs > 1 { // in a quote, which went the other way
		source.Step, destination.Step = StepQuotedHairpinDestination, StepQuotedHairpinSource
	}
	if v == translate.OK {
		source.To, destination.To = to.Src, to.Dst
		if x.Dst != nil {
			destination.Text += w.sharer(to.Dst)
		}
	}
	for _, s := range []Step{source, destination} {
		s.Section = "RFC 7757 4.2.2"
		w.add(s)
	}
	w.stateless(x, &f, v)
	return to, x, v
}

// source tells of the address that a packet comes from. to counts if the
// verdict lets the packet leave.
func (w *witness) source(step string, a, to netip.Addr, v translate.Verdict) Step {
	x := w.table.Explain(a)
	s := decision(step, x)
	if !v.Leaves() {
		return s
	}
	back := w.table.Explain(to)
	switch {
	case to == x.Other:
	case x.Rule == mapping.RulePool && a.Is6(): // whose first packet this would be
	case a.Is4() && back.Rule == mapping.RulePref64 && back.Other == a:
		s.Rule, s.Section = mapping.RulePref64, section(mapping.RulePref64)
		s.Text = "as a source it goes by pref64"
	default:
		s.Rule, s.Section = RuleStandIn, "RFC 6791 4"
		s.Text = "a stand-in, with which an ICMP error leaves all the same (" + x.Detail + ")"
	}
	s.To = to
	return s
}

// destination tells of the address that a packet goes to, likewise.
func (w *witness) destination(step string, a, to netip.Addr, v translate.Verdict) Step {
	x := w.table.Explain(a)
	s := decision(step, x)
	if v.Leaves() {
		s.To = to
		if a.Is4() && x.Rule == mapping.RulePool {
			s.Text += w.sharer(to)
		}
		return s
	}
	if a.Is6() && (x.Rule == mapping.RuleLease || x.Rule == mapping.RulePool) {
		s.Text += "; as a destination it is reached by its IPv4 address under pref64 alone"
	}
	return s
}

// sharer says what a client that shares its IPv4 address is called.
func (w *witness) sharer(client netip.Addr) string {
	if l := w.table.Explain(client).Lease; l != nil && l.Label != "" {
		return fmt.Sprintf("; the client with this port is labelled %q", l.Label)
	}
	return ""
}

func decision(step string, x mapping.Explanation) Step {
	return Step{Step: step, Text: x.Detail, From: x.Address, Rule: x.Rule, Origin: x.Origin, Section: section(x.Rule)}
}

// section is where the RFCs have a rule.
func section(r mapping.Rule) string {
	switch r {
	case mapping.RulePref64:
		return "RFC 6052 2.3"
	case mapping.RuleMap:
		return "RFC 7757 3.3"
	case mapping.RuleOwn:
		return "RFC 1122 3.2.2"
	}
	return "RFC 7915 4.1, 5.1"
}
