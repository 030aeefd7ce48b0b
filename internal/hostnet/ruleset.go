package hostnet

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// foreign is a chain of another program that all forwarded packets pass, with
// what it takes to follow them through its table.
type foreign struct {
	family       string // ip, ip6 or inet
	table, chain string
	hook         nftables.ChainHook
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
	byLink  bool // some of these are about the link that packets come in by
	byHost  bool // some are about the IPv6 address, other than link-local, that they come from
	unknown bool // it may end packets, or lead them anywhere, by a map or a queue
	unread  bool // it stands for a chain that cannot be read
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
	return slices.DeleteFunc(readForeign().at("", nftables.ChainHookForward), func(f *foreign) bool {
		return f.legacy && f.table != "filter" // where iptables has no place for an accept
	})
}

// foreigns are the chains of others that filter packets.
type foreigns struct {
	chains []*foreign // of IP
	links  []*foreign // of links and bridges, which see packets before and after
	err    error      // why they may be incomplete
}

// readForeign finds them. Their rules are read when they are first asked for.
func readForeign() *foreigns {
	all := &foreigns{}
	all.chains, all.err = legacyChains()
	conn, err := nftables.New()
	if err != nil {
		all.err = errors.Join(all.err, err)
		return all
	}
	chains, err := conn.ListChains()
	if err != nil {
		all.err = errors.Join(all.err, err)
		return all
	}
	for _, c := range chains {
		if isOwn(c.Table) || c.Hooknum == nil || c.Type == nftables.ChainTypeNAT {
			continue
		}
		f := &foreign{family: familyNames[c.Table.Family], table: c.Table.Name, chain: c.Name, hook: *c.Hooknum, rules: rulesOf(conn, c.Table)}
		f.drop = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		for _, other := range chains {
			if other.Table.Name == c.Table.Name && other.Table.Family == c.Table.Family {
				f.chains = append(f.chains, other.Name)
			}
		}
		if f.family == "" || f.family == "inet" && f.hook == inetIngress {
			all.links = append(all.links, f)
		} else {
			all.chains = append(all.chains, f)
		}
	}
	return all
}

// inetIngress is NF_INET_INGRESS of linux/netfilter.h.
const inetIngress = 5

// at are those at one of the hooks that packets of IP pass, but for those of the
// family.
func (all *foreigns) at(but string, hooks ...*nftables.ChainHook) (list []*foreign) {
	for _, f := range all.chains {
		if f.family != but && slices.ContainsFunc(hooks, func(h *nftables.ChainHook) bool { return *h == f.hook }) {
			list = append(list, f)
		}
	}
	return list
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip",
	nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyINet: "inet",
}

func isOwn(t *nftables.Table) bool {
	return t.Name == ownTable && slices.Contains(onceFamilies, t.Family)
}

// rulesOf reads the chains of a table, each when it is first asked for. One that
// has just gone has no rules; of one that cannot be read nothing is known.
func rulesOf(conn *nftables.Conn, table *nftables.Table) func(string) []rule {
	read := map[string][]rule{}
	return func(chain string) []rule {
		list, ok := read[chain]
		if !ok {
			rules, err := conn.GetRules(table, &nftables.Chain{Table: table, Name: chain})
			if err != nil && !errors.Is(err, unix.ENOENT) {
				list = append(list, rule{verdict: expr.VerdictContinue, unknown: true, unread: true})
			}
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
	var loaded comparison // that comes next
	for _, e := range exprs {
		about := loaded
		loaded = comparison{}
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Meta:
			loaded = r.load(e)
		case *expr.Bitwise:
			r.more = true
			loaded = comparison{source: about.source}
		case *expr.Cmp:
			if about.note(e) {
				continue
			}
			r.more = true
			r.byHost = r.byHost || about.source && !linkLocal(e.Data)
		case *expr.Match:
			r.match(e)
		case *expr.Payload:
			r.more = true
			r.byLink = r.byLink || e.Base == expr.PayloadBaseLLHeader // who sent it on the link
			loaded = comparison{source: e.Base == expr.PayloadBaseNetworkHeader && e.Offset == sourceAt6 && e.Len > 1}
		case *expr.Lookup:
			r.more = true
			r.byHost = r.byHost || about.source
			r.unknown = r.unknown || e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT
		case *expr.Queue, *expr.TProxy, *expr.SynProxy:
			r.unknown = true
		case *expr.Reject:
			r.verdict = expr.VerdictDrop
		case *expr.Verdict:
			r.verdict, r.to = e.Kind, e.Chain
		case *expr.Target:
			r.target(e.Name)
		default:
			r.more = true
			r.byHost = r.byHost || about.source
		}
		if about.with != nil {
			r.more = true // as with a set of names
			r.byLink = r.byLink || about.with == &r.in
		}
	}
	return r
}

// sourceAt6 is where the source is in the header of an IPv6 packet (RFC 8200
// section 3), in bytes.
const sourceAt6 = 8

// linkLocal tells whether what a source is compared with is in fe80::/10, as in
// the rules of DHCPv6. By such an address nobody is a client.
func linkLocal(source []byte) bool { return source[0] == 0xfe && source[1]&0xc0 == 0x80 }

// linkKeys are what a rule can know of the link that a packet comes in by.
var linkKeys = []expr.MetaKey{
	expr.MetaKeyIIFTYPE, expr.MetaKeyIIFGROUP, expr.MetaKeyBRIIIFNAME,
}

// load is the comparison that follows; none where that is not looked at.
func (r *rule) load(e *expr.Meta) comparison {
	switch {
	case e.SourceRegister:
	case e.Key == expr.MetaKeyIIFNAME:
		return comparison{with: &r.in}
	case e.Key == expr.MetaKeyOIFNAME:
		return comparison{with: &r.out}
	case e.Key == expr.MetaKeyIIF:
		return comparison{with: &r.in, index: true}
	default:
		r.byLink = r.byLink || slices.Contains(linkKeys, e.Key)
	}
	r.more = true
	return comparison{}
}

// comparison is of the name of a link, or of its index, or of the source of an
// IPv6 packet.
type comparison struct {
	with   *linkMatch // nil: of something else
	index  bool
	source bool
}

// loopback is how the kernel compares the index of lo, which is 1 in every
// network namespace.
var loopback = linkRef{index: 1}.key()

// note notes what a link is compared with, and reports whether it is known: of
// indexes only that of lo is.
func (c comparison) note(e *expr.Cmp) bool {
	if c.with == nil || e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq || c.index && !bytes.Equal(e.Data, loopback) {
		return false
	}
	name, _, whole := bytes.Cut(e.Data, []byte{0})
	if c.index {
		name, whole = []byte("lo"), true
	}
	*c.with = linkMatch{name: string(name), prefix: !whole, not: e.Op == expr.CmpOpNeq}
	return true
}

// match notes a match of iptables.
func (r *rule) match(e *expr.Match) {
	r.matches(e.Name, func() string {
		comment, _ := e.Info.(*xt.Comment)
		if comment == nil {
			return ""
		}
		return string(*comment)
	})
}

func (r *rule) matches(name string, comment func() string) {
	if name == "comment" {
		r.comment = comment()
		return
	}
	r.more = true
	r.byLink = r.byLink || name == "mac" || name == "physdev"
	r.byHost = r.byHost || name == "set" || name == "iprange"
}

// passing are the targets of iptables that end no packet.
var passing = []string{
	"AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "HL", "LED", "LOG", "MARK", "NFLOG",
	"NOTRACK", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL",
}

// target notes what a target of iptables other than the built-in ones does.
func (r *rule) target(name string) {
	if name == "REJECT" {
		r.verdict = expr.VerdictDrop
		return
	}
	r.unknown = r.unknown || !slices.Contains(passing, name)
}
