package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ownTable is the name of the nftables tables of natless's own, one for each
// family rather than one for both: what asks for connection tracking in a table
// of family inet switches it on for IPv6 too, where no rule here needs it,
// unless others have it on anyway, and every packet would pay for it.
const ownTable = "natless"

// tableSpec is all that the tables' text depends on.
type tableSpec struct {
	Device              string
	Index               int // of the device
	Masquerade, Inbound []netip.Prefix
	Own                 []netip.Prefix // IPv4 addresses that are routed to the device
	Faces               []face         // what ICMP errors of pool addresses leave as
	HostShut            bool           // clients do not reach the host's own IPv4 addresses
	Stateful            bool           // some IPv4 prefix is open to answers only
	Links               []linkRef      // those to clients, and the device
	Named               []netip.Prefix // IPv6 clients, wherever they are
	Opened4, Opened6    []linkRef      // links that forward only because natless made them
	Raised6             bool           // all links forward IPv6 only because natless made them
	Bridges             []linkRef      // that the forward chain sees inside of
	Foreign6            bool           // another program may masquerade IPv6
	Kept                bool           // there is no device: only flows are to outlive a restart
}

// ruleSpec is one rule, in words as nft has them and as the kernel takes it.
type ruleSpec struct {
	text  string
	exprs []expr.Any
}

// familyTable is the table of one family. Chains without rules are not made.
type familyTable struct {
	family               nftables.TableFamily
	sets                 []setSpec
	forward, postrouting []ruleSpec
	input                []ruleSpec
	leaving              []ruleSpec // after postrouting
	counters             []string   // that rules refer to
	before               int        // how far before the NAT of others postrouting comes
}

// setSpec is a set that rules refer to by name. What is in it changes only with
// the whole table.
type setSpec struct {
	name     string
	typ      nftables.SetDatatype
	interval bool
	items    string
	elements []nftables.SetElement
	memory   bool                 // the rules add to it, and the kernel forgets
	to       nftables.SetDatatype // it is a map to these
}

// A set of memory holds this much for this long. What is beyond that is looked
// up packet by packet.
const (
	remembered  = 1 << 16
	rememberFor = time.Second
)

const (
	setLinks     = "links"
	setNamed     = "named"
	setOpened    = "opened"
	setWithin    = "within"
	setReachable = "reachable"
	setInbound   = "inbound"
	setOwn       = "own"
	setFaces     = "faces"
	setPools     = "masqueraded"
)

func (h *Host) tableSpec(v *view, f forwardingPlan) tableSpec {
	s := tableSpec{
		Device:     h.plan.Device,
		Masquerade: covering(h.plan.Masquerade),
		Inbound:    covering(h.plan.Inbound),
		Own:        covering(h.plan.IPv4),
		HostShut:   h.plan.Guarded && v.shutsHost(v.these(v.clientLinks(h.plan, h.device))),
		Faces:      v.faces(h.device),
		Index:      h.device,
		Links:      append(v.refs(v.clients), linkRef{h.device, h.plan.Device}),
		Named:      covering(h.plan.Clients),
		Opened4:    v.refs(f.opened4),
		Opened6:    v.refs(f.opened6),
		Raised6:    f.raised6,
		Bridges:    v.bridgesSeen(),
		Foreign6:   foreignNAT6(),
	}
	for _, p := range h.plan.IPv4 {
		if !v.keepsOut() {
			break
		}
		s.Stateful = s.Stateful || p.IsValid() && !contained(s.Inbound, p)
	}
	return s
}

func (s tableSpec) tables() []familyTable {
	list := []familyTable{s.ipv4(), s.ipv6()}
	if !s.Kept {
		return list
	}
	for i := range list {
		list[i].forward, list[i].input, list[i].counters = nil, nil, slices.DeleteFunc(list[i].counters, func(c string) bool { return c != countBare })
		list[i].sets = slices.DeleteFunc(list[i].sets, func(set setSpec) bool { return set.name != setPools })
	}
	return slices.DeleteFunc(list, func(t familyTable) bool { return len(t.postrouting) == 0 })
}

func (s tableSpec) ipv4() familyTable {
	t := familyTable{family: nftables.TableFamilyIPv4}
	t.guard(s, s.Opened4, false)
	t.addLinks(setLinks, s.Links)
	if s.Stateful {
		t.addForward("ct state established accept", ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED), verdict(expr.VerdictAccept))
	}
	t.addOwnSources(s)
	if s.Stateful {
		t.addForward("ct state related accept", ctBits(expr.CtKeySTATE, expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
		t.addPublished()
	}
	t.addWayBack4()
	if len(s.Inbound) > 0 {
		t.addPrefixes(setInbound, s.Inbound)
		t.addForward("ip daddr @inbound accept", address4(destination, setInbound), verdict(expr.VerdictAccept))
	}
	t.addForward("iif != @links drop", notIn(setLinks), verdict(expr.VerdictDrop))
	if len(s.Masquerade) > 0 {
		// Pool addresses on their way out of the host.
		t.addPrefixes(setPools, s.Masquerade)
		t.postrouting = []ruleSpec{{
			fmt.Sprintf("ip saddr @masqueraded oifname != %q masquerade", s.Device),
			slices.Concat(address4(source, setPools), notOut(s.Device), []expr.Any{&expr.Masq{}}),
		}}
		t.addUnmasqueraded(s)
	}
	if s.HostShut {
		t.addHostShut(s)
	}
	return t
}

func (s tableSpec) ipv6() familyTable {
	t := familyTable{family: nftables.TableFamilyIPv6}
	t.guard(s, s.Opened6, s.Raised6)
	t.addLinks(setLinks, s.Links)
	if len(s.Named) > 0 {
		t.addPrefixes(setNamed, s.Named)
		t.addForward("iif != @links ip6 saddr != @named drop", notIn(setLinks), notFrom6(setNamed), verdict(expr.VerdictDrop))
	} else {
		t.addForward("iif != @links drop", notIn(setLinks), verdict(expr.VerdictDrop))
	}
	t.addReversePath()
	if s.Foreign6 {
		// A client is known by its address. Podman and Docker would have all
		// their containers share one of the host's; what has been translated,
		// be it to itself, is not translated again.
		t.before = 1
		t.postrouting = []ruleSpec{{
			fmt.Sprintf("oifname %q snat to ip6 saddr", s.Device),
			slices.Concat(out(s.Device), toOwnSource()),
		}}
	}
	return t
}

// foreignNAT6 tells whether a program other than natless has a place where it
// may change the source of IPv6 packets that leave the host.
func foreignNAT6() bool {
	if names, err := os.ReadFile("/proc/thread-self/net/ip6_tables_names"); err == nil && slices.Contains(strings.Fields(string(names)), "nat") {
		return true
	}
	conn, err := nftables.New()
	if err != nil {
		return false
	}
	chains, err := conn.ListChains()
	return err == nil && slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Family != nftables.TableFamilyIPv4 && !isOwn(c.Table) && c.Type == nftables.ChainTypeNAT &&
			c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookPostrouting
	})
}

func (t *familyTable) addForward(text string, parts ...[]expr.Any) {
	t.forward = append(t.forward, ruleSpec{text, slices.Concat(parts...)})
}

// addReversePath drops what pretends to be from elsewhere. To look up the route
// back costs more than all of natless's own work on a small packet, so who was
// looked up is remembered: a change of the host's routes tells that much later.
func (t *familyTable) addReversePath() {
	t.sets = append(t.sets, setSpec{
		name: setReachable, typ: nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIFIndex), memory: true,
	})
	known := &expr.Lookup{SourceRegister: 1, SetName: setReachable}
	remember := &expr.Dynset{SrcRegKey: 1, SetName: setReachable, Operation: unix.NFT_DYNSET_OP_ADD}
	t.addForward("ip6 saddr . iif @reachable accept", sourceAndLink(known), verdict(expr.VerdictAccept))
	t.addForward("fib saddr . iif oif missing drop", noWayBack(), verdict(expr.VerdictDrop))
	t.addForward("add @reachable { ip6 saddr . iif }", sourceAndLink(remember))
}

func (t *familyTable) addPrefixes(name string, prefixes []netip.Prefix) {
	typ := nftables.TypeIPAddr
	if prefixes[0].Addr().Is6() {
		typ = nftables.TypeIP6Addr
	}
	t.sets = append(t.sets, setSpec{
		name: name, typ: typ, interval: true,
		items: joined(prefixes), elements: intervals(prefixes),
	})
}

// String is the tables as nft would read them.
func (s tableSpec) String() string {
	var list []string
	for _, t := range s.tables() {
		list = append(list, t.String())
	}
	return strings.Join(list, "\n")
}

func (t familyTable) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", familyNames[t.family], ownTable)
	for _, set := range t.sets {
		kind := "set"
		if set.to.Name != "" {
			kind = "map"
		}
		fmt.Fprintf(&b, "\t%s %s { %s }\n", kind, set.name, set)
	}
	for _, c := range t.counters {
		fmt.Fprintf(&b, "\tcounter %s { }\n", c)
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
	chain("forward {\n\t\ttype filter hook forward priority filter; policy accept;", t.forward)
	priority := "srcnat"
	if t.before > 0 {
		priority = fmt.Sprintf("srcnat - %d", t.before)
	}
	chain("postrouting {\n\t\ttype nat hook postrouting priority "+priority+"; policy accept;", t.postrouting)
	chain("leaving {\n\t\ttype filter hook postrouting priority srcnat + 1; policy accept;", t.leaving)
	chain("input {\n\t\ttype filter hook input priority filter; policy accept;", t.input)
	b.WriteString("}")
	return b.String()
}

// String is what the braces of a set are around, as nft would read it.
func (s setSpec) String() string {
	head := "type " + s.typ.Name + "; "
	if s.to.Name != "" {
		head = fmt.Sprintf("type %s : %s; ", s.typ.Name, s.to.Name)
	}
	switch {
	case s.memory:
		return head + fmt.Sprintf("size %d; flags dynamic, timeout; timeout %s;", remembered, rememberFor)
	case s.interval:
		head += "flags constant, interval; "
	}
	return head + fmt.Sprintf("elements = { %s };", s.items)
}

// tableChanges replaces the tables when they should differ from those that were
// installed, or do because others changed them.
func (h *Host) tableChanges(v *view, f forwardingPlan) []change {
	spec := h.tableSpec(v, f)
	same := h.table.Device != "" && reflect.DeepEqual(spec, h.table)
	whole := h.guard.verify(h.tablePrint)
	if !whole || !slices.Equal(spec.Masquerade, h.table.Masquerade) || spec.Foreign6 && !h.table.Foreign6 {
		h.untold = true // flows that began since were not masqueraded, or were
	}
	forget := func() error {
		err := forgetBegunWithout(spec, h.plan.IPv6, v)
		h.untold = err != nil
		return err
	}
	switch {
	case !whole || !same:
		return []change{{key: tablesKey, text: "replace " + spec.String(), again: same, do: func() (err error) {
			h.table = spec
			h.tablePrint, err = h.guard.install(func() error { return installTable(spec) }, spec.parts())
			if err != nil || !h.untold {
				return err
			}
			return forget()
		}}}
	case h.untold: // it failed the last time
		return []change{{key: "tracked flows", text: "delete tracked flows that began without the tables", do: forget}}
	}
	return nil
}

// tablesKey is that of the change that replaces the tables.
const tablesKey = "nftables tables"

// tablePrint tells one state of the tables from another, by the handles of their
// rules, since a rule that others change gets a new one, and by link names. parts
// is how many of both there are.
func tablePrint() (print string, parts int, err error) {
	conn, err := nftables.New()
	if err != nil {
		return "", 0, err
	}
	var b strings.Builder
	for _, f := range ownFamilies {
		n, err := printFamily(&b, conn, f)
		if err != nil {
			return "", 0, err
		}
		parts += n
	}
	return b.String(), parts, nil
}

// parts is what tablePrint counts, of tables as they should be.
func (s tableSpec) parts() (n int) {
	for _, t := range s.tables() {
		n += len(t.forward) + len(t.postrouting) + len(t.leaving) + len(t.input)
		for _, set := range t.sets {
			if !set.interval {
				n += len(set.elements)
			}
		}
	}
	return n
}

func printFamily(b *strings.Builder, conn *nftables.Conn, f nftables.TableFamily) (parts int, err error) {
	chains, err := conn.ListChainsOfTableFamily(f)
	if err != nil {
		return 0, err
	}
	tables, err := conn.ListTablesOfFamily(f)
	if err != nil {
		return 0, err
	}
	for _, t := range tables {
		if t.Name == ownTable {
			fmt.Fprintf(b, "%s flags %d\n", familyNames[f], t.Flags) // one can be made dormant
		}
	}
	for _, c := range chains {
		if c.Table.Name != ownTable {
			continue
		}
		policy := nftables.ChainPolicyAccept
		if c.Policy != nil {
			policy = *c.Policy
		}
		fmt.Fprintf(b, "%s %d:", c.Name, policy)
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return 0, err
		}
		parts += len(rules)
		for _, r := range rules {
			fmt.Fprintf(b, " %d", r.Handle)
		}
		b.WriteString("\n")
	}
	sets, err := conn.GetSets(&nftables.Table{Name: ownTable, Family: f})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, err
	}
	for _, s := range sets {
		if s.Constant || s.Dynamic {
			continue // nobody can change it, or the kernel does
		}
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return 0, err
		}
		parts += len(elements)
		fmt.Fprintf(b, "%s %d: %q\n", s.Name, len(elements), names(elements))
	}
	return parts, nil
}

func names(elements []nftables.SetElement) []string {
	list := make([]string, len(elements))
	for i, e := range elements {
		list[i] = string(e.Key) + string(e.Val)
	}
	slices.Sort(list)
	return list
}

// ownFamilies are those that natless has a table in. Before it had one for both:
// what such a natless left is known too, and goes.
var (
	ownFamilies  = []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
	onceFamilies = append(slices.Clone(ownFamilies), nftables.TableFamilyINet)
)

// transactionBytes is room for a transaction, which goes to the kernel in one
// piece: at most mostRoutes prefixes in a set, of two elements each.
const transactionBytes = 4 << 20

// installTable puts the tables in place of what is there in one transaction, so
// that masqueraded flows never find themselves without them.
func installTable(s tableSpec) error {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetWriteBuffer(transactionBytes)
	}))
	if err != nil {
		return fmt.Errorf("reaching nftables: %w", err)
	}
	for _, f := range onceFamilies {
		old := &nftables.Table{Name: ownTable, Family: f}
		conn.AddTable(old) // deleting it needs it to be there
		conn.DelTable(old)
	}
	for _, t := range s.tables() {
		if err := addTable(conn, t); err != nil {
			return err
		}
	}
	return conn.Flush()
}

func addTable(conn *nftables.Conn, t familyTable) error {
	table := conn.AddTable(&nftables.Table{Name: ownTable, Family: t.family})
	for _, set := range t.sets {
		if err := addSet(conn, table, set); err != nil {
			return err
		}
	}
	for _, c := range t.counters {
		conn.AddObj(&nftables.CounterObj{Table: table, Name: c})
	}
	accept := nftables.ChainPolicyAccept
	addChain(conn, table, &nftables.Chain{
		Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &accept,
	}, t.forward)
	addChain(conn, table, &nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource - nftables.ChainPriority(t.before)), Policy: &accept,
	}, t.postrouting)
	addChain(conn, table, &nftables.Chain{
		Name: "leaving", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 1), Policy: &accept,
	}, t.leaving)
	addChain(conn, table, &nftables.Chain{
		Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityFilter, Policy: &accept,
	}, t.input)
	return nil
}

// removeTable removes natless's tables, those that are there.
func removeTable() (removed []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reaching nftables: %w", err)
	}
	for _, f := range onceFamilies {
		tables, err := conn.ListTablesOfFamily(f)
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
			continue // a kernel without nftables has no table either
		}
		if err != nil {
			return nil, fmt.Errorf("listing nftables tables: %w", err)
		}
		for _, t := range tables {
			if t.Name == ownTable {
				conn.DelTable(t)
				removed = append(removed, fmt.Sprintf("removed nftables table %s %s", familyNames[f], ownTable))
			}
		}
	}
	if len(removed) == 0 {
		return nil, nil
	}
	beforeChange("remove tables " + ownTable)
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("removing nftables tables %s: %w", ownTable, err)
	}
	return removed, nil
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
		Concatenation: len(nftables.ConcatSetTypeElements(spec.typ)) > 1,
	}
	if spec.to.Name != "" {
		s.IsMap, s.DataType = true, spec.to
	}
	if spec.memory {
		s.Dynamic, s.HasTimeout, s.Timeout, s.Size = true, true, rememberFor, remembered
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

func notOut(device string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(device)},
	}
}

func out(device string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(device)},
	}
}

// source6 puts the source of an IPv6 packet into register 1: the four that nft
// counts from NFT_REG32_00.
func source6() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceAt6, Len: 16}
}

// toOwnSource translates the source of an IPv6 packet to itself.
func toOwnSource() []expr.Any {
	return []expr.Any{
		source6(),
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV6, RegAddrMin: 1},
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

// sourceAndLink has then do with an IPv6 packet's source and the link it came in
// by, which begin at register 1.
func sourceAndLink(then expr.Any) []expr.Any {
	return []expr.Any{source6(), &expr.Meta{Key: expr.MetaKeyIIF, Register: unix.NFT_REG32_04}, then}
}

// Offsets in an IPv4 header (RFC 791 section 3.1).
const (
	protocol4   = 9
	checksum4   = 10
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

func joined(prefixes []netip.Prefix) string {
	list := make([]string, len(prefixes))
	for i, p := range prefixes {
		list[i] = p.String()
	}
	return strings.Join(list, ", ")
}
