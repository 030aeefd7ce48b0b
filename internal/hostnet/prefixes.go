package hostnet

import (
	"cmp"
	"net/netip"
	"slices"
)

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// covers tells whether all of b lies in a.
func covers(a, b netip.Prefix) bool { return a.Bits() <= b.Bits() && a.Overlaps(b) }

// covering drops the prefixes that lie inside others of the lists, and zero
// ones. The rest is sorted.
func covering(lists ...[]netip.Prefix) []netip.Prefix {
	var sorted []netip.Prefix
	for _, p := range slices.Concat(lists...) {
		if p.IsValid() {
			sorted = append(sorted, p.Masked())
		}
	}
	slices.SortFunc(sorted, comparePrefix)
	var kept []netip.Prefix
	for _, p := range sorted {
		if n := len(kept); n > 0 && kept[n-1].Overlaps(p) {
			continue // a covering prefix sorts before those it covers
		}
		kept = append(kept, p)
	}
	return kept
}

// shortestMerged bounds what merge makes: nothing that would pass for a default
// route.
const shortestMerged = 8

// merge joins neighbours of a list from covering to shorter prefixes for as
// long as they fill one exactly, and it is not among those to keep out of. A
// million maps in a row are then a few routes.
func merge(list []netip.Prefix, except map[netip.Prefix]bool) []netip.Prefix {
	var merged []netip.Prefix
	for _, p := range list {
		for n := len(merged); n > 0 && p.Bits() > shortestMerged; n-- {
			left, both := merged[n-1], netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
			if left.Bits() != p.Bits() || !both.Contains(left.Addr()) || except[both] {
				break
			}
			p, merged = both, merged[:n-1]
		}
		merged = append(merged, p)
	}
	return merged
}

// overlapping is the part of a list from covering that overlaps a prefix: the
// one around it, or those inside.
func overlapping(list []netip.Prefix, p netip.Prefix) (from, to int) {
	from, _ = slices.BinarySearchFunc(list, p, comparePrefix)
	if from > 0 && list[from-1].Overlaps(p) {
		return from - 1, from
	}
	for to = from; to < len(list) && list[to].Overlaps(p); to++ {
	}
	return from, to
}

// contained tells whether all of p lies in one prefix of a list from covering.
func contained(list []netip.Prefix, p netip.Prefix) bool {
	from, to := overlapping(list, p)
	return from < to && covers(list[from], p)
}

// targets are the prefixes that lead to the device.
type targets struct {
	named  []netip.Prefix // as the plan has them, but for those inside others
	merged []netip.Prefix // the same addresses in as few prefixes as can be

	foreign []netip.Prefix // routes of others inside merged, when routed was last asked
	apart   []netip.Prefix // named, merged around those
}

func newTargets(p Plan) *targets {
	t := &targets{named: covering(p.IPv4, p.IPv6, p.Added)}
	t.merged = merge(t.named, nil)
	return t
}

// routed are the prefixes to make routes for. They are merged, except to one
// that somebody else has a route for: a blackhole around single addresses, as
// those have who announce the whole, is no conflict, and must not become one.
func (t *targets) routed(v *view) []netip.Prefix {
	var foreign []netip.Prefix
	for _, r := range v.routes {
		if !isOurs(r) && contained(t.merged, r.dst) {
			foreign = append(foreign, r.dst)
		}
	}
	if len(foreign) == 0 {
		return t.merged
	}
	slices.SortFunc(foreign, comparePrefix)
	if !slices.Equal(foreign, t.foreign) {
		except := map[netip.Prefix]bool{}
		for _, p := range foreign {
			except[p] = true
		}
		t.foreign, t.apart = foreign, merge(t.named, except)
	}
	return t.apart
}
