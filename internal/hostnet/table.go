package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ownTable is the nftables table of natless's own, of family inet.
const ownTable = "natless"

// tableSpec is all that the table's text depends on.
type tableSpec struct {
	Device              string
	Masquerade, Inbound []netip.Prefix
	Stateful            bool     // some IPv4 prefix is open to answers only
	Uplinks             []string // links with a default route
	Opened4, Opened6    []string // links that forward only because natless made them
}

// ruleSpec is one rule, in words as nft has them and as the kernel takes it.
type ruleSpec struct {
	text  string
	exprs []expr.Any
}

// setSpec is a set that rules refer to by name. What is in it changes only with
// the whole table.
type setSpec struct {
	name     string
	typ      nftables.SetDatatype
	interval bool
	items    string
	elements []nftables.SetElement
}

const (
	setUplinks = "uplinks"
	setOpened4 = "opened4"
	setOpened6 = "opened6"
	setWithin  = "within"
	setInbound = "inbound"
	setPools   = "masqueraded"
)

func (h *Host) tableSpec(v *view, f forwardingPlan) tableSpec {
	s := tableSpec{
		Device:     h.plan.Device,
		Masquerade: covering(h.plan.Masquerade),
		Inbound:    covering(h.plan.Inbound),
		Uplinks:    without(v.names(v.uplinks), h.plan.Device),
		Opened4:    v.names(f.opened4),
		Opened6:    v.names(f.opened6),
	}
	for _, p := range h.plan.IPv4 {
		s.Stateful = s.Stateful || p.IsValid() && !slices.ContainsFunc(s.Inbound, func(in netip.Prefix) bool { return covers(in, p) })
	}
	return s
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return n == name })
}

// opened are the links that forward only because natless made them.
func (s tableSpec) opened() []string {
	list := slices.Concat(s.Opened4, s.Opened6)
	slices.Sort(list)
	return slices.Compact(list)
}

// sets are those that are not empty.
func (s tableSpec) sets() []setSpec {
	var list []setSpec
	links := func(name string, names []string) {
		if len(names) == 0 {
			return
		}
		set := setSpec{name: name, typ: nftables.TypeIFName, items: quoted(names)}
		for _, n := range names {
			set.elements = append(set.elements, nftables.SetElement{Key: ifname(n)})
		}
		list = append(list, set)
	}
	addrs := func(name string, prefixes []netip.Prefix) {
		if len(prefixes) == 0 {
			return
		}
		list = append(list, setSpec{
			name: name, typ: nftables.TypeIPAddr, interval: true,
			items: joined(prefixes), elements: intervals(prefixes),
		})
	}
	links(setUplinks, s.Uplinks)
	links(setOpened4, s.Opened4)
	links(setOpened6, s.Opened6)
	if opened := s.opened(); len(opened) > 0 {
		set := setSpec{name: setWithin, typ: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)}
		var pairs []string
		for _, n := range opened {
			set.elements = append(set.elements, nftables.SetElement{Key: append(ifname(n), ifname(n)...)})
			pairs = append(pairs, fmt.Sprintf("%q . %q", n, n))
		}
		set.items = strings.Join(pairs, ", ")
		list = append(list, set)
	}
	addrs(setInbound, s.Inbound)
	addrs(setPools, s.Masquerade)
	return list
}

// forward are the rules of the forward chain. An accept here ends only this
// chain: other tables still have their say.
func (s tableSpec) forward() []ruleSpec {
	var rules []ruleSpec
	add := func(text string, parts ...[]expr.Any) {
		rules = append(rules, ruleSpec{text, slices.Concat(parts...)})
	}
	ipv4, ipv6 := family(unix.NFPROTO_IPV4), family(unix.NFPROTO_IPV6)
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	elsewhere := notOut(s.Device)

	if len(s.Opened6) > 0 {
		add(fmt.Sprintf("meta nfproto ipv6 iifname @opened6 oifname != %q iifname . oifname != @within drop", s.Device),
			ipv6, in(setOpened6), elsewhere, notWithin(), drop)
	}
	if len(s.Opened4) > 0 {
		add(fmt.Sprintf("meta nfproto ipv4 iifname @opened4 oifname != %q iifname . oifname != @within drop", s.Device),
			ipv4, in(setOpened4), elsewhere, notWithin(), drop)
	}
	add(fmt.Sprintf("oifname != %q accept", s.Device), elsewhere, accept)
	add("meta nfproto ipv6 fib saddr . iif oif missing drop", ipv6, noWayBack(), drop)
	if len(s.Uplinks) == 0 {
		return rules
	}
	add("meta nfproto ipv6 iifname @uplinks drop", ipv6, in(setUplinks), drop)
	if s.Stateful {
		add("meta nfproto ipv4 ct state established,related accept", ipv4, established(), accept)
	}
	if len(s.Inbound) > 0 {
		add("ip daddr @inbound accept", ipv4, address4(destination, setInbound), accept)
	}
	add("meta nfproto ipv4 iifname @uplinks drop", ipv4, in(setUplinks), drop)
	return rules
}

// postrouting masquerades pool addresses on their way out of the host.
func (s tableSpec) postrouting() []ruleSpec {
	if len(s.Masquerade) == 0 {
		return nil
	}
	return []ruleSpec{{
		fmt.Sprintf("ip saddr @masqueraded oifname != %q masquerade", s.Device),
		slices.Concat(family(unix.NFPROTO_IPV4), address4(source, setPools), notOut(s.Device), []expr.Any{&expr.Masq{}}),
	}}
}

// String is the table as nft would read it.
func (s tableSpec) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", ownTable)
	for _, set := range s.sets() {
		flags := ""
		if set.interval {
			flags = "flags constant, interval; "
		}
		fmt.Fprintf(&b, "\tset %s { type %s; %selements = { %s }; }\n", set.name, strings.ReplaceAll(set.typ.Name, "_ifname", " . ifname"), flags, set.items)
	}
	chain := func(head string, rules []ruleSpec) {
		if len(rules) == 0 {
			return
		}
		fmt.Fprintf(&b, "\tchain %s\n", head)
		for _, r := range rules {
			fmt.Fprintf(&b, "\t\t%s\n", r.text)
		}
		b.WriteString("\t}\n")
	}
	chain("forward {\n\t\ttype filter hook forward priority filter; policy accept;", s.forward())
	chain("postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;", s.postrouting())
	b.WriteString("}")
	return b.String()
}

// tableChanges replaces the table when it should differ from the one that was
// installed, or does because others changed it.
func (h *Host) tableChanges(v *view, f forwardingPlan) []change {
	spec := h.tableSpec(v, f)
	same := h.tablePrint != "" && reflect.DeepEqual(spec, h.table)
	if same {
		if now, err := tablePrint(); err == nil && now == h.tablePrint {
			return nil
		}
	}
	text := spec.String()
	return []change{{key: text, text: "replace " + text, again: same, do: func() error {
		if err := installTable(spec); err != nil {
			return err
		}
		print, err := tablePrint()
		h.table, h.tablePrint = spec, print
		return err
	}}}
}

// tablePrint tells one state of the table from another, by the handles of its
// rules, since a rule that others change gets a new one, and by link names.
func tablePrint() (string, error) {
	conn, err := nftables.New()
	if err != nil {
		return "", err
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, c := range chains {
		if c.Table.Name != ownTable {
			continue
		}
		policy := nftables.ChainPolicyAccept
		if c.Policy != nil {
			policy = *c.Policy
		}
		fmt.Fprintf(&b, "%s %d:", c.Name, policy)
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return "", err
		}
		for _, r := range rules {
			fmt.Fprintf(&b, " %d", r.Handle)
		}
		b.WriteString("\n")
	}
	sets, err := conn.GetSets(&nftables.Table{Name: ownTable, Family: nftables.TableFamilyINet})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return "", err
	}
	for _, s := range sets {
		if s.Constant {
			continue // nobody can change it
		}
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s %d: %q\n", s.Name, len(elements), names(elements))
	}
	return b.String(), nil
}

func names(elements []nftables.SetElement) []string {
	list := make([]string, len(elements))
	for i, e := range elements {
		list[i] = string(e.Key)
	}
	slices.Sort(list)
	return list
}

// installTable puts the table in place of what is there in one transaction, so
// that masqueraded flows never find themselves without it.
func installTable(s tableSpec) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reaching nftables: %w", err)
	}
	table := &nftables.Table{Name: ownTable, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // deleting it needs it to be there
	conn.DelTable(table)
	conn.AddTable(table)
	for _, set := range s.sets() {
		if err := addSet(conn, table, set); err != nil {
			return err
		}
	}
	accept := nftables.ChainPolicyAccept
	addChain(conn, table, &nftables.Chain{
		Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &accept,
	}, s.forward())
	addChain(conn, table, &nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource, Policy: &accept,
	}, s.postrouting())
	return conn.Flush()
}

// removeTable removes natless's table if it is there.
func removeTable() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reaching nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil // a kernel without nftables has no table either
	}
	if err != nil {
		return nil, fmt.Errorf("listing nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name != ownTable {
			continue
		}
		beforeChange("remove table " + ownTable)
		conn.DelTable(t)
		if err := conn.Flush(); err != nil {
			return nil, fmt.Errorf("removing nftables table inet %s: %w", ownTable, err)
		}
		return []string{"removed nftables table inet " + ownTable}, nil
	}
	return nil, nil
}

func addChain(conn *nftables.Conn, table *nftables.Table, c *nftables.Chain, rules []ruleSpec) {
	if len(rules) == 0 {
		return
	}
	c.Table = table
	conn.AddChain(c)
	for _, r := range rules {
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: r.exprs})
	}
}

// elementsPerMessage keeps a message's list of elements below the 64 KiB that a
// netlink attribute can hold.
const elementsPerMessage = 1000

func addSet(conn *nftables.Conn, table *nftables.Table, spec setSpec) error {
	s := &nftables.Set{
		Table: table, Name: spec.name, KeyType: spec.typ, Interval: spec.interval, Constant: spec.interval,
		Concatenation: spec.name == setWithin,
	}
	if !spec.interval {
		s.KeyByteOrder = binaryutil.NativeEndian // for nft, to print names as such; makes Constant impossible
	}
	if err := conn.AddSet(s, nil); err != nil {
		return fmt.Errorf("set %s: %w", spec.name, err)
	}
	for part := range slices.Chunk(spec.elements, elementsPerMessage) {
		if err := conn.SetAddElements(s, part); err != nil {
			return fmt.Errorf("set %s: %w", spec.name, err)
		}
	}
	return nil
}

func family(f byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
	}
}

func notOut(device string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(device)},
	}
}

func in(set string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

// notWithin matches packets that do not leave by the link they came in by. Those
// that do may be a bridge's: with br_netfilter the kernel shows them here too.
func notWithin() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG32_00},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: unix.NFT_REG32_04},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: setWithin, Invert: true},
	}
}

// noWayBack matches packets whose source the host would not reach over the
// link they came in by.
func noWayBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
}

func established() []expr.Any {
	bits := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// Offsets of the addresses in an IPv4 header (RFC 791 section 3.1).
const (
	source      = 12
	destination = 16
)

func address4(offset uint32, set string) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

// intervals turns prefixes, sorted and none inside another, into set elements:
// where a range begins and where the next address is outside. Ranges that touch
// become one.
func intervals(prefixes []netip.Prefix) []nftables.SetElement {
	var list []nftables.SetElement
	for _, p := range prefixes {
		start, end := p.Addr().AsSlice(), lastAddr(p).Next()
		if n := len(list); n > 0 && list[n-1].IntervalEnd && bytes.Equal(list[n-1].Key, start) {
			list = list[:n-1]
		} else {
			list = append(list, nftables.SetElement{Key: start})
		}
		if end.IsValid() {
			list = append(list, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return list
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

// ifname is an interface name as the kernel compares it: padded with zeros.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func quoted(names []string) string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = strconv.Quote(n)
	}
	return strings.Join(list, ", ")
}

func joined(prefixes []netip.Prefix) string {
	list := make([]string, len(prefixes))
	for i, p := range prefixes {
		list[i] = p.String()
	}
	return strings.Join(list, ", ")
}
