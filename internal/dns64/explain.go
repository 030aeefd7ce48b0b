package dns64

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Explanation is an answer and how it came about. The JSON names are stable.
// The methods that take notes do nothing on nil.
type Explanation struct {
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	Code        string   `json:"code"`        // NOERROR, NXDOMAIN, SERVFAIL, …
	From        []string `json:"from"`        // "local", "cache" or the upstream, of each question that was asked
	Synthesised bool     `json:"synthesised"` // by natless, at least in part
	Answers     []Record `json:"answers"`
	Left        []Left   `json:"left,omitempty"` // addresses that were not made use of
	Steps       []string `json:"steps"`
}

// Record is a record of the answer.
type Record struct {
	Name string `json:"name"`
	TTL  uint32 `json:"ttl"` // seconds
	Type string `json:"type"`
	Data string `json:"data"`

	// of those that were synthesised of an A record
	IPv4   netip.Addr `json:"ipv4,omitzero"`
	Rule   string     `json:"rule,omitempty"` // pref64 or map
	Detail string     `json:"detail,omitempty"`
}

// Left is an address that is in no answer.
type Left struct {
	Address netip.Addr `json:"address"`
	Why     string     `json:"why"`
}

// Explain answers a question as clients are answered that do not validate.
func (s *Server) Explain(ctx context.Context, name, qtype string) (Explanation, error) {
	t, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok || t == dns.TypeOPT || t == dns.TypeAXFR || t == dns.TypeIXFR || t == dns.TypeNone {
		return Explanation{}, fmt.Errorf("type %.40q: expected a type of records, such as AAAA", qtype)
	}
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return Explanation{}, fmt.Errorf("name %.300q: expected a domain name, such as www.example.com", name)
	}
	q := question{name: dns.CanonicalName(name), qtype: t}
	x := &Explanation{Name: q.name, Type: dns.Type(t).String(), From: []string{}, Steps: []string{}}
	ctx, cancel := context.WithTimeout(ctx, s.limits.query)
	defer cancel()
	m := s.answer(ctx, q, x)
	x.Code = dns.RcodeToString[m.Rcode]
	made := x.Answers
	x.Answers = []Record{}
	for _, rr := range m.Answer {
		h := rr.Header()
		r := Record{Name: h.Name, TTL: m.ttl(h), Type: dns.Type(h.Rrtype).String(), Data: strings.TrimPrefix(rr.String(), h.String())}
		for _, n := range made {
			if n.Data == r.Data {
				r.IPv4, r.Rule, r.Detail = n.IPv4, n.Rule, n.Detail
				x.Synthesised = true
			}
		}
		x.Answers = append(x.Answers, r)
	}
	return *x, nil
}

func (x *Explanation) step(format string, args ...any) {
	if x != nil {
		x.Steps = append(x.Steps, fmt.Sprintf(format, args...))
	}
}

func (x *Explanation) from(where string) {
	if x != nil {
		x.From = append(x.From, where)
	}
}

// reach notes an address that was synthesised.
func (x *Explanation) reach(v6, v4 netip.Addr, t Table) {
	if x != nil {
		rule, detail := t.Why(v4)
		x.note(v6, v4, rule, detail)
	}
}

func (x *Explanation) note(v6, v4 netip.Addr, rule, detail string) {
	if x != nil {
		x.Answers = append(x.Answers, Record{Data: v6.String(), IPv4: v4, Rule: rule, Detail: detail})
	}
}

// made notes an alias that was synthesised.
func (x *Explanation) made(alias string) {
	if x != nil {
		x.Answers = append(x.Answers, Record{Data: alias})
	}
}

func (x *Explanation) left(a netip.Addr, why string) {
	if x != nil {
		x.Left = append(x.Left, Left{a, why})
	}
}
