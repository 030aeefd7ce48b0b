package hostnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Counters, by name, of what these rules drop (nft list counters).
const (
	countForged = "forged_source"
	countBare   = "not_masqueraded"
	countHost   = "host_shut"
)

// addOwnSources drops what claims, on any link but the device, to be from an
// address that natless routes to the device: a client, or the host, would take it
// for a client (BCP 38). Only what is of a connection that has had answers comes
// before it: whoever forged its first packet did not get past here. An ICMP error
// about one may come from anybody, and comes after it.
func (t *familyTable) addOwnSources(s tableSpec) {
	if len(s.Own) == 0 {
		return
	}
	t.addPrefixes(setOwn, s.Own)
	forged := t.counted(fmt.Sprintf("iif != %q ip saddr @own", s.Device), countForged,
		otherLink(expr.MetaKeyIIF, s.Index), address4(source, setOwn))
	t.forward, t.input = append(t.forward, forged), append(t.input, forged)
}

// counted is a rule that counts what it drops.
func (t *familyTable) counted(text, counter string, parts ...[]expr.Any) ruleSpec {
	if !slices.Contains(t.counters, counter) {
		t.counters = append(t.counters, counter)
	}
	return ruleSpec{
		text:  fmt.Sprintf("%s counter name %q drop", text, counter),
		exprs: append(slices.Concat(parts...), &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counter}, &expr.Verdict{Kind: expr.VerdictDrop}),
	}
}

// addWayBack4 drops what a neighbour on a link of clients sends with a source that
// is not reached over that link. It is not asked of uplinks: with several of them
// the way back may well be another.
func (t *familyTable) addWayBack4() {
	t.addForward("iif @links fib saddr . iif oif missing drop", in(setLinks), noWayBack(), verdict(expr.VerdictDrop))
}

// addPublished lets in what the administrator's own rules lead to a client by
// DNAT: that is as good as an address meant to be reached.
func (t *familyTable) addPublished() {
	t.addForward("ct status dnat accept", ctBits(expr.CtKeySTATUS, ipsDstNAT), verdict(expr.VerdictAccept))
}

// ipsDstNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ipsDstNAT = 1 << 5

// ctBits matches packets whose connection has one of the bits.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// addUnmasqueraded drops pool addresses that are on their way out although the
// rule before was to replace them. The kernel translates no packet that connection
// tracking calls INVALID, nor one of a connection that began while the rule was not
// there. A link-local source must not be forwarded (RFC 3927 7).
//
// Nor does it translate two things that belong to connections to clients, which
// are not masqueraded. ICMP errors, as natless's own about a packet that is too
// big, have an address of this host instead: nobody looks for them by their source.
// And who was let in to a pool's address, as to ping natless's own or from a link to
// clients, is answered by it.
func (t *familyTable) addUnmasqueraded(s tableSpec) {
	bare := fmt.Sprintf("ip saddr @masqueraded oifname != %q", s.Device)
	if len(s.Faces) > 0 && !s.Kept {
		t.addFaces(s.Faces)
		t.leaving = append(t.leaving, ruleSpec{
			bare + " ip protocol icmp ct state related ip saddr set oif map @faces",
			slices.Concat(address4(source, setPools), notOut(s.Device), isICMP(), ctBits(expr.CtKeySTATE, expr.CtStateBitRELATED), toFace()),
		})
	}
	if !s.Kept {
		t.leaving = append(t.leaving, ruleSpec{
			"ct direction reply accept",
			slices.Concat(answering(), verdict(expr.VerdictAccept)),
		})
	}
	t.leaving = append(t.leaving, t.counted(bare, countBare, address4(source, setPools), notOut(s.Device)))
}

// face is an IPv4 address of the host on a link.
type face struct {
	link linkRef
	addr netip.Addr
}

// faces are what the host is known by on its links, but for the device.
func (v *view) faces(device int) (list []face) {
	for _, l := range v.sorted() {
		i := slices.IndexFunc(v.addrs, func(a address) bool {
			return a.index == l.index && a.addr.Is4() && !a.addr.IsLinkLocalUnicast() && !a.addr.IsLoopback()
		})
		if i >= 0 && l.index != device {
			list = append(list, face{linkRef{l.index, l.name}, v.addrs[i].addr})
		}
	}
	return list
}

// addFaces is a map from links to addresses.
func (t *familyTable) addFaces(list []face) {
	set := setSpec{name: setFaces, typ: nftables.TypeIFIndex, to: nftables.TypeIPAddr}
	var items []string
	for _, f := range list {
		set.elements = append(set.elements, nftables.SetElement{Key: f.link.key(), Val: f.addr.AsSlice()})
		items = append(items, fmt.Sprintf("%q : %v", f.link.name, f.addr))
	}
	set.items = strings.Join(items, ", ")
	t.sets = append(t.sets, set)
}

// isICMP matches packets of ICMP, which are errors where they are related to a
// connection.
func isICMP() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: protocol4, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMP}},
	}
}

// toFace writes the host's address on the link that a packet leaves by over its
// source, and matches none where there is none.
func toFace() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIF, Register: 1},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: setFaces},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: 4,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum4,
		},
	}
}

// answering matches packets in the direction of a connection's answers.
func answering() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}}, // IP_CT_DIR_REPLY
	}
}

// addHostShut keeps what leaves the device from the host's own addresses, but for
// answers to the host. natless cannot show the host's rules the link that a
// client's packet came in by, so that a rule about that link would be passed by.
func (t *familyTable) addHostShut(s tableSpec) {
	t.input = append(t.input, t.counted(fmt.Sprintf("iif %q ct state ! established,related", s.Device), countHost,
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: linkRef{index: s.Index}.key()},
		}, noneOf(ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED))))
}

// noneOf turns what ctBits matches round.
func noneOf(bits []expr.Any) []expr.Any {
	bits[len(bits)-1].(*expr.Cmp).Op = expr.CmpOpEq
	return bits
}
