package hostnet

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
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
// rule before was to replace them. The kernel translates no packet that
// connection tracking calls INVALID, nor one of a connection that began while the
// rule was not there. A link-local source must not be forwarded (RFC 3927 7).
func (t *familyTable) addUnmasqueraded(s tableSpec) {
	t.leaving = []ruleSpec{t.counted(fmt.Sprintf("ip saddr @masqueraded oifname != %q", s.Device), countBare,
		address4(source, setPools), notOut(s.Device))}
}

// addHostShut keeps what leaves the device from the host's own addresses, but for
// answers to the host. natless cannot show the host's rules the link that a
// client's packet came in by, so that a rule about that link would be passed by.
func (t *familyTable) addHostShut(s tableSpec) {
	t.input = append(t.input, t.counted(fmt.Sprintf("iif %q ct state != established,related", s.Device), countHost,
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
