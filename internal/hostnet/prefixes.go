package hostnet

import (
	"cmp"
	"fmt"
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
	sorted := slices.Concat(lists...)
	for i, p := range sorted {
		sorted[i] = p.Masked() // of a zero prefix a zero prefix
	}
	slices.SortFunc(sorted, comparePrefix)
	kept := sorted[:0]
	for _, p := range sorted {
		if n := len(kept); !p.IsValid() || n > 0 && kept[n-1].Overlaps(p) {
			continue // a covering prefix sorts before those it covers
		}
		kept = append(kept, p)
	}
	return kept
}

// Merge is the same addresses in as few prefixes as can be, sorted.
func Merge(list []netip.Prefix) []netip.Prefix { return merge(covering(list), nil) }

// shortestMerged bounds what merge makes: nothing that would pass for a default
// route.
const shortestMerged = 8

// merge joins neighbours of a list from covering to shorter prefixes for as
// long as they fill one exactly, and it is not among those to keep out of. A
// million maps in a row are then a few routes.
func merge(list []netip.Prefix, except map[netip.Prefix]bool) []netip.Prefix {
	merged := make([]netip.Prefix, 0, len(list))
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
	if len(merged) < len(list)/2 {
		return slices.Clone(merged) // what it comes to stays, the room for all of it need not
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

// basis is what of a plan stays while maps are added and removed. Of a million
// prefixes it is sorted and merged once.
type basis struct {
	given  Plan
	named  []netip.Prefix // all that leads to the device, as given, but for those inside others
	merged Plan           // each list in as few prefixes as can be
}

func newBasis(p Plan) *basis {
	b := &basis{given: p, named: covering(p.IPv4, p.IPv6), merged: p}
	for _, list := range b.merged.lists() {
		*list = Merge(*list)
	}
	return b
}

// lists are those of the plan but for Added.
func (p *Plan) lists() []*[]netip.Prefix {
	return []*[]netip.Prefix{&p.IPv4, &p.IPv6, &p.Masquerade, &p.Inbound, &p.Clients}
}

// equal compares two plans list by list, which is quick for lists that are the
// same piece of memory.
func (p Plan) equal(other Plan) bool {
	for i, list := range p.lists() {
		a, b := *list, *other.lists()[i]
		if len(a) != len(b) || len(a) > 0 && &a[0] != &b[0] && !slices.Equal(a, b) {
			return false
		}
	}
	return p.Local == other.Local && p.Open == other.Open && p.Guarded == other.Guarded && p.Apart == other.Apart &&
		slices.Equal(p.Uplinks, other.Uplinks) && slices.Equal(p.ClientLinks, other.ClientLinks)
}

// with is the merged plan, with what was added, merged too.
func (b *basis) with(p Plan, v4, v6 []netip.Prefix) Plan {
	if len(p.Added) > 0 {
		p.IPv4 = merge(covering(b.merged.IPv4, v4), nil)
		p.Inbound = merge(covering(b.merged.Inbound, v4), nil)
		p.Clients = merge(covering(b.merged.Clients, v6), nil)
	} else {
		p.IPv4, p.Inbound, p.Clients = b.merged.IPv4, b.merged.Inbound, b.merged.Clients
	}
	p.IPv6, p.Masquerade, p.Added = b.merged.IPv6, b.merged.Masquerade, nil
	return p
}

func byFamily(list []netip.Prefix) (v4, v6 []netip.Prefix) {
	v4, v6 = make([]netip.Prefix, 0, len(list)), make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return v4, v6
}

// targets are the prefixes that lead to the device.
type targets struct {
	named  [2][]netip.Prefix // as given: those that stay, and those that were added
	merged []netip.Prefix    // the same addresses in as few prefixes as can be

	foreign []netip.Prefix // routes of others inside merged, when routed was last asked
	apart   []netip.Prefix // named, merged around those
}

// newTargets are those of a basis and of what was added, as given but for what
// lies inside others, and merged.
func newTargets(b *basis, added, merged []netip.Prefix) *targets {
	return &targets{
		named:  [2][]netip.Prefix{b.named, added},
		merged: merge(covering(b.merged.IPv4, b.merged.IPv6, merged), nil),
	}
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
		t.foreign, t.apart = foreign, merge(covering(t.named[0], t.named[1]), except)
	}
	return t.apart
}

// mostRoutes bounds the prefixes that routes are made for. Each is two routes,
// which the kernel takes one by one, and which are read back at every look.
const mostRoutes = 1 << 14

// excess says of so many that they are too many, and what to do.
func excess(prefixes int) []string {
	if prefixes <= mostRoutes {
		return nil
	}
	return []string{fmt.Sprintf("%d prefixes would need routes to the device, more than %d: neighbouring maps share a route where "+
		"they fill a prefix, and those inside a larger map need none: add a map around them, or set network.manage = false and route them yourself",
		prefixes, mostRoutes)}
}

// excess is that of a plan without what was added.
func (b *basis) excess() []string { return excess(len(b.merged.IPv4) + len(b.merged.IPv6)) }

// conflicts names what on the host stands in the way of any of it.
func (t *targets) conflicts(v *view, device int) []string {
	return append(conflicts(t.named[0], t.merged, v, device), conflicts(t.named[1], t.merged, v, device)...)
}

// beyond is what is wanted that was not before.
func (t *targets) beyond(before *targets) (list []netip.Prefix) {
	for i, named := range t.named {
		if i == 0 && len(named) > 0 && len(before.named[0]) == len(named) && &before.named[0][0] == &named[0] {
			continue // the same
		}
		for _, p := range named {
			if !contained(before.merged, p) {
				list = append(list, p)
			}
		}
	}
	return covering(list)
}
