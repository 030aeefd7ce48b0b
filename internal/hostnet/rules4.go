package hostnet

import (
	"fmt"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// addOwnSources drops what claims, on any link but the device, to be from an
// address that natless routes to the device: a client would take it for another
// client (BCP 38). It comes before what lets answers in, for a forged packet may
// look like one.
func (t *familyTable) addOwnSources(s tableSpec) {
	if len(s.Own) == 0 {
		return
	}
	t.addPrefixes(setOwn, s.Own)
	t.addForward(fmt.Sprintf("iif != %q ip saddr @own drop", s.Device),
		byLink(expr.MetaKeyIIF, expr.CmpOpNeq, s.Index), address4(source, setOwn), verdict(expr.VerdictDrop))
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
// rule before was to replace them: the kernel translates no packet that connection
// tracking calls INVALID, and a link-local source must not be forwarded (RFC 3927
// 7). Answers of natless's own address, and errors about flows that are not
// masqueraded, go out all the same: nothing translates them, and path MTU discovery
// of mapped clients depends on them. Connections that began while the rule was not
// there are forgetUnmasqueraded's.
func (t *familyTable) addUnmasqueraded(s tableSpec) {
	t.leaving = []ruleSpec{{
		fmt.Sprintf("ct state invalid,new,untracked ip saddr @masqueraded oifname != %q drop", s.Device),
		slices.Concat(ctBits(expr.CtKeySTATE, expr.CtStateBitINVALID|expr.CtStateBitNEW|expr.CtStateBitUNTRACKED),
			address4(source, setPools), notOut(s.Device), verdict(expr.VerdictDrop)),
	}}
}

// addHostShut keeps what leaves the device from the host's own addresses. natless
// cannot show the host's rules the link that a client's packet came in by, so that
// a rule about that link would be passed by.
func (t *familyTable) addHostShut(s tableSpec) {
	t.input = []ruleSpec{{
		fmt.Sprintf("iif %q drop", s.Device),
		slices.Concat(byLink(expr.MetaKeyIIF, expr.CmpOpEq, s.Index), verdict(expr.VerdictDrop)),
	}}
}
