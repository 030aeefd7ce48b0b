package hostnet

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What natless translates for a client comes out of the device, so that a rule of
// the host about the link of that client does not see it. Where the host would
// not let clients reach each other, or itself, they are not to do it through
// natless. Here the host is asked whether it would. What cannot be evaluated
// counts as no.

// neighbours reports whether this host would pass IPv6 between the links of its
// clients without natless: it forwards between them by somebody else's will, and
// no rule of another program may drop what is forwarded.
func (h *Host) neighbours(v *view) bool {
	if !h.forwardsAnyway(v) {
		return false
	}
	chains, err := chainsAt(unix.AF_INET6, nftables.ChainHookPrerouting, nftables.ChainHookForward)
	return err == nil && !slices.ContainsFunc(chains, (*foreign).mayDrop)
}

// forwardsAnyway reports whether IPv6 is forwarded between links of clients, and
// not because natless wants it.
func (h *Host) forwardsAnyway(v *view) bool {
	if all, _ := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding)); all == yes {
		return h.rec.find(setting{Family: "ipv6", Key: keyForwarding}) < 0
	}
	for _, l := range v.these(v.clientLinks(h.plan, h.device)) {
		s := setting{Family: "ipv6", Index: l.index, Key: keyForceForwarding, Set: yes}
		if h.opens(v, s) {
			return false
		}
	}
	return true
}

// hostChoosesByLink reports whether what the host takes for itself may depend on
// the link that it comes in by.
func hostChoosesByLink() bool {
	chains, err := chainsAt(unix.AF_INET, nftables.ChainHookPrerouting, nftables.ChainHookInput)
	return err != nil || slices.ContainsFunc(chains, (*foreign).choosesByLink)
}

// mayDrop reports whether some packet may end in the chain.
func (f *foreign) mayDrop() bool {
	ends := []expr.VerdictKind{expr.VerdictAccept, expr.VerdictContinue, expr.VerdictReturn, expr.VerdictJump, expr.VerdictGoto, expr.VerdictBreak}
	return f.drop || f.some(func(r rule) bool { return r.unknown || !slices.Contains(ends, r.verdict) })
}

// choosesByLink reports whether a rule of the chain asks for the link that a
// packet comes in by, but for loopback, which no client's does.
func (f *foreign) choosesByLink() bool {
	return f.some(func(r rule) bool {
		loopback := r.in == linkMatch{name: "lo"}
		return r.byLink || r.in != (linkMatch{}) && !loopback
	})
}

// some reports whether there is such a rule in the chain or in those that it
// leads to. Where a map may lead anywhere, those are all of the table.
func (f *foreign) some(such func(rule) bool) bool {
	seen := map[string]bool{}
	var in func(chain string) bool
	in = func(chain string) bool {
		if seen[chain] {
			return false
		}
		seen[chain] = true
		return slices.ContainsFunc(f.rules(chain), func(r rule) bool {
			return such(r) || r.to != "" && in(r.to) || r.unknown && slices.ContainsFunc(f.chains, in)
		})
	}
	return in(f.chain)
}
