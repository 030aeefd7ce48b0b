package hostnet

import (
	"bytes"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// foreign is a chain of another program that all forwarded packets pass, with
// what it takes to follow them through its table.
type foreign struct {
	family       string // ip, ip6 or inet
	table, chain string
	legacy       bool // of the older iptables
	drop         bool // its policy
	chains       []string
	rules        func(chain string) []rule
}

func (f *foreign) String() string {
	if f.legacy {
		return f.iptables() + " " + f.table + " " + f.chain
	}
	return f.family + " " + f.table + " " + f.chain
}

// rule is one rule of a chain.
type rule struct {
	in, out linkMatch
	more    bool // it has conditions that are not looked at
	comment string
	verdict expr.VerdictKind // VerdictContinue where it decides nothing
	to      string           // the chain of VerdictJump and VerdictGoto
}

// linkMatch is a condition on the name of a link; the zero value is none.
type linkMatch struct {
	name        string
	prefix, not bool
}

// fits tells whether the condition holds for a link. Of a link without a name
// nothing is known.
func (m linkMatch) fits(link string) bool {
	if m == (linkMatch{}) {
		return true
	}
	same := link == m.name || m.prefix && strings.HasPrefix(link, m.name)
	return link != "" && same != m.not
}

// way is a packet of natless's, of which no more is known than the links it
// comes and goes by; "" where not even that is.
type way struct {
	in, out string
	// lenient takes it that some packet meets the conditions of a rule that
	// sends it to a chain which accepts it.
	lenient bool
}

// blocks tells whether a packet ends here.
func (f *foreign) blocks(w way) bool {
	switch f.follow(f.chain, w) {
	case expr.VerdictAccept:
		return false
	case expr.VerdictDrop:
		return true
	}
	return f.drop
}

// follow is what becomes of a packet in a chain: VerdictAccept, VerdictDrop, or
// VerdictReturn. Rules with conditions that are not looked at are passed over.
func (f *foreign) follow(chain string, w way) expr.VerdictKind {
	for _, r := range f.rules(chain) {
		if !r.in.fits(w.in) || !r.out.fits(w.out) {
			continue
		}
		leads := r.verdict == expr.VerdictJump || r.verdict == expr.VerdictGoto
		if r.more {
			if w.lenient && leads && f.follow(r.to, w) == expr.VerdictAccept {
				return expr.VerdictAccept
			}
			continue
		}
		if !leads && r.verdict != expr.VerdictContinue {
			return r.verdict
		}
		if !leads {
			continue
		}
		if end := f.follow(r.to, w); end != expr.VerdictReturn || r.verdict == expr.VerdictGoto {
			return end
		}
	}
	return expr.VerdictReturn
}

// hasChain tells whether the table has a chain whose name begins so.
func (f *foreign) hasChain(prefix string) bool {
	return slices.ContainsFunc(f.chains, func(name string) bool { return strings.HasPrefix(name, prefix) })
}

// foreignChains finds the chains of others that forwarded packets pass. Where
// nftables cannot be read there are none; Check warns of that.
func foreignChains() []*foreign {
	found := legacyChains()
	conn, err := nftables.New()
	if err != nil {
		return found
	}
	chains, err := conn.ListChains()
	if err != nil {
		return found
	}
	for _, c := range chains {
		family, ip := familyNames[c.Table.Family]
		if !ip || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || isOwn(c.Table) {
			continue
		}
		f := &foreign{family: family, table: c.Table.Name, chain: c.Name, rules: rulesOf(conn, c.Table)}
		f.drop = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		for _, other := range chains {
			if other.Table.Name == c.Table.Name && other.Table.Family == c.Table.Family {
				f.chains = append(f.chains, other.Name)
			}
		}
		found = append(found, f)
	}
	return found
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip",
	nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyINet: "inet",
}

func isOwn(t *nftables.Table) bool {
	return t.Name == ownTable && slices.Contains(onceFamilies, t.Family)
}

// rulesOf reads the chains of a table, each when it is first asked for. One
// that cannot be read, as when it has just gone, has no rules.
func rulesOf(conn *nftables.Conn, table *nftables.Table) func(string) []rule {
	read := map[string][]rule{}
	return func(chain string) []rule {
		list, ok := read[chain]
		if !ok {
			rules, _ := conn.GetRules(table, &nftables.Chain{Table: table, Name: chain})
			for _, r := range rules {
				list = append(list, newRule(r.Exprs))
			}
			read[chain] = list
		}
		return list
	}
}

func newRule(exprs []expr.Any) rule {
	r := rule{verdict: expr.VerdictContinue}
	var loaded *linkMatch // what the next comparison is about
	for _, e := range exprs {
		about := loaded
		loaded = nil
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Meta:
			switch {
			case e.Key == expr.MetaKeyIIFNAME && !e.SourceRegister:
				loaded = &r.in
			case e.Key == expr.MetaKeyOIFNAME && !e.SourceRegister:
				loaded = &r.out
			default:
				r.more = true
			}
		case *expr.Cmp:
			if about == nil || e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq {
				r.more = true
				continue
			}
			name, _, whole := bytes.Cut(e.Data, []byte{0})
			*about = linkMatch{name: string(name), prefix: !whole, not: e.Op == expr.CmpOpNeq}
		case *expr.Match:
			comment, ok := e.Info.(*xt.Comment)
			if !ok {
				r.more = true
				continue
			}
			r.comment = string(*comment)
		case *expr.Reject:
			r.verdict = expr.VerdictDrop
		case *expr.Verdict:
			r.verdict, r.to = e.Kind, e.Chain
		case *expr.Target:
			r.verdict = targetVerdict(e.Name)
		default:
			r.more = true
		}
		if about != nil {
			if _, compared := e.(*expr.Cmp); !compared {
				r.more = true // as with a set of names
			}
		}
	}
	return r
}

// targetVerdict is what a target of iptables other than the built-in ones does.
func targetVerdict(name string) expr.VerdictKind {
	if name == "REJECT" {
		return expr.VerdictDrop
	}
	return expr.VerdictContinue
}
