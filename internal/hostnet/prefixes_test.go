package hostnet

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Merged prefixes hold the same addresses, and none of them can be merged
// further, nor is one of those to keep out of.
func TestMergeKeepsEveryAddress(t *testing.T) {
	joined := 0
	rapid.Check(t, func(t *rapid.T) {
		list := covering(anyNeighbours(t))
		if rapid.Bool().Draw(t, "others") {
			list = covering(list, anyPrefixes(t))
		}
		except := map[netip.Prefix]bool{}
		for _, p := range merge(list, nil) { // what it would come to, and a part
			except[p] = !slices.Contains(list, p) && rapid.Bool().Draw(t, "except")
			except[netip.PrefixFrom(p.Addr(), min(p.Bits()+2, 32))] = rapid.Bool().Draw(t, "except a part")
		}
		merged := merge(list, except)
		joined += len(list) - len(merged)
		require.Equal(t, covering(merged), merged, "sorted, none inside another")
		for _, p := range list {
			require.True(t, contained(merged, p))
		}
		for i, m := range merged {
			require.False(t, except[m] && !slices.Contains(list, m))
			var addresses uint64
			for from, to := overlapping(list, m); from < to; from++ {
				addresses += 1 << (32 - list[from].Bits())
			}
			require.Equal(t, uint64(1)<<(32-m.Bits()), addresses, "nothing is added")
			if i > 0 && m.Bits() > shortestMerged && merged[i-1].Bits() == m.Bits() {
				both := netip.PrefixFrom(m.Addr(), m.Bits()-1).Masked()
				require.True(t, except[both] || !both.Contains(merged[i-1].Addr()), "%v and %v are one", merged[i-1], m)
			}
		}
	})
	require.NotZero(t, joined)
}

// anyNeighbours draws prefixes that are likely to fill others: most addresses
// of a /27, one by one, and a few prefixes around.
func anyNeighbours(t *rapid.T) (list []netip.Prefix) {
	missing := rapid.SliceOfNDistinct(rapid.IntRange(0, 31), 0, 8, rapid.ID[int]).Draw(t, "missing")
	for i := range 32 {
		if !slices.Contains(missing, i) {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32))
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "more") {
		bits := rapid.IntRange(26, 31).Draw(t, "bits")
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, rapid.Byte().Draw(t, "last") & 63}), bits).Masked())
	}
	return list
}

func TestOverlapping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := covering(anyPrefixes(t), anyNeighbours(t))
		p := rapid.SampledFrom(append(anyPrefixes(t), netip.MustParsePrefix("192.0.2.8/29"), netip.MustParsePrefix("2001:db8::/32"))).Draw(t, "prefix")
		from, to := overlapping(list, p)
		for i, other := range list {
			require.Equal(t, other.Overlaps(p), from <= i && i < to, "%v among %v", p, list)
		}
	})
}

// A million maps in a row are few routes, found quickly.
func TestManyMapsAreFewRoutes(t *testing.T) {
	p := testPlan()
	for i := range uint32(1 << 20) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0b000000+(i*0x9e3779b1)&(1<<20-1)) // 11/12 in a wild order
		p.IPv4 = append(p.IPv4, netip.PrefixFrom(netip.AddrFrom4(a), 32))
	}
	begun := time.Now()
	h := managed(p)
	first := time.Since(begun)
	require.Len(t, h.targets.merged, len(managed(testPlan()).targets.merged)+1)
	require.Contains(t, h.targets.merged, netip.MustParsePrefix("11.0.0.0/12"))

	before := h.targets
	p.Added = prefixes("11.16.0.0/32", "2001:db8:99::7/128")
	begun = time.Now()
	h.aim(p)
	again := time.Since(begun)
	require.Equal(t, prefixes("11.16.0.0/32"), h.targets.beyond(before))
	require.Contains(t, h.plan.IPv4, p.Added[0])
	require.Contains(t, h.plan.Inbound, p.Added[0])
	require.Contains(t, h.plan.Clients, p.Added[1])
	require.Less(t, again, first/10, "the million is not looked at again")
	t.Logf("took %v, with one added %v", first, again)
}

// A route of somebody else that merged prefixes would meet keeps them apart.
// Maps apart from each other are too many routes at some point, but not where a
// larger map is around them.
func TestTooManyRoutes(t *testing.T) {
	var apart []netip.Prefix
	for i := range uint32(mostRoutes) {
		a := binary.BigEndian.AppendUint32(nil, 10<<24|i*2)
		apart = append(apart, netip.PrefixFrom(netip.AddrFrom4([4]byte(a)), 32))
	}
	more := netip.MustParsePrefix("192.0.2.1/32")
	around := netip.MustParsePrefix("10.0.0.0/16")
	require.Empty(t, newBasis(Plan{IPv4: apart}).excess())
	require.Contains(t, newBasis(Plan{IPv4: append(apart, more)}).excess()[0], "16385 prefixes would need routes to the device, more than 16384: ")
	require.Empty(t, newBasis(Plan{IPv4: append(apart, more, around)}).excess())

	h := &Host{plan: Plan{Manage: true}, device: missing, settled: true}
	h.aim(Plan{Manage: true, IPv4: apart})
	err := h.Update(Plan{IPv4: apart, Added: []netip.Prefix{more}})
	require.ErrorIs(t, err, ErrConflict)
	require.ErrorContains(t, err, "16385 prefixes")
}

func TestMergedAroundForeignRoutes(t *testing.T) {
	p := Plan{IPv4: prefixes("192.0.2.0/32", "192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/30")}
	targets := managed(p).targets
	v := &view{}
	require.Equal(t, prefixes("192.0.2.0/29"), targets.routed(v))
	v.routes = []route{{dst: netip.MustParsePrefix("192.0.2.0/30")}, {dst: netip.MustParsePrefix("192.0.0.0/16")}}
	require.Equal(t, prefixes("192.0.2.0/31", "192.0.2.2/31", "192.0.2.4/30"), targets.routed(v))
	v.routes[0].dst = netip.MustParsePrefix("192.0.2.0/29")
	require.Equal(t, prefixes("192.0.2.0/30", "192.0.2.4/30"), targets.routed(v))
	v.routes = nil
	require.Equal(t, prefixes("192.0.2.0/29"), targets.routed(v))
}
