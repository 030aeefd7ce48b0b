package daemon

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/mapping"
)

// numbered is a map that has an address of its own on either side.
func numbered(n int) sides {
	return sides{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), 32),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(n >> 8), 15: byte(n)}), 128),
	}
}

func adding(m sides) mapping.Change {
	return mapping.Change{Add: &mapping.Map{IPv4: m.v4, IPv6: m.v6}}
}

func TestAddedBy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var before []sides
		var all []sides // that were ever there
		for n := range rapid.IntRange(0, 8).Draw(t, "before") {
			before = append(before, numbered(n))
		}
		all = slices.Clone(before)
		want := slices.Clone(before)
		var changes []mapping.Change
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			n := rapid.IntRange(0, 10).Draw(t, "map")
			i := slices.Index(want, numbered(n))
			switch {
			case i < 0:
				changes = append(changes, adding(numbered(n)))
				want, all = append(want, numbered(n)), append(all, numbered(n))
			case rapid.Bool().Draw(t, "by IPv4"):
				changes = append(changes, mapping.Change{Remove: numbered(n).v4})
				want = slices.Delete(want, i, i+1)
			default:
				changes = append(changes, mapping.Change{Remove: numbered(n).v6})
				want = slices.Delete(want, i, i+1)
			}
		}
		during, after := addedBy(before, changes)
		require.Equal(t, all, during)
		require.ElementsMatch(t, want, after)
	})
}

// Very many are removed in a moment.
func TestAddedByOfMany(t *testing.T) {
	var before []sides
	var changes []mapping.Change
	for n := range 1 << 16 {
		before = append(before, numbered(n))
		changes = append(changes, mapping.Change{Remove: numbered(n).v4})
	}
	start := time.Now()
	_, after := addedBy(before, changes)
	assert.Empty(t, after)
	assert.Less(t, time.Since(start), 5*time.Second)
}
