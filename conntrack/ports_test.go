package conntrack

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/mapping"
)

// chi2 is the sum of squares that an even distribution over n places makes
// about n - 1, with a standard deviation of √(2n): how far counts are from it.
func chi2(places []int, n int) float64 {
	counts := make([]int, n)
	for _, p := range places {
		counts[p]++
	}
	expected, sum := float64(len(places))/float64(n), 0.0
	for _, c := range counts {
		d := float64(c) - expected
		sum += d * d / expected
	}
	return sum
}

// differences are the steps from one place to the next, modulo n.
func differences(places []int, n int) []int {
	steps := make([]int, 0, len(places))
	for i := range places[1:] {
		steps = append(steps, (places[i+1]-places[i]+n)%n)
	}
	return steps
}

// TestPortsAreEven: every free port of a part is as likely as any other, and
// tells nothing of the next; with the part empty, and with all but 16 taken.
// An honest draw fails once in some ten million runs.
func TestPortsAreEven(t *testing.T) {
	const n, draws = 128, 128 * 200
	const limit = 127 + 7*16.0 // seven standard deviations
	counter := make([]int, draws)
	for i := range counter {
		counter[i] = i % n
	}
	require.Less(t, chi2(counter, n), limit)
	require.Greater(t, chi2(differences(counter, n), n), limit, "a counter is found out")

	table := newTable(t, nil)
	var places []int
	for i := range draws {
		external := mustOut(t, table, rangeA, numUDP, uint16(i), 0, 0)
		places = append(places, int(external-rangeA.Session))
		table.End(clientA)
	}
	assert.Less(t, chi2(places, n), limit)
	assert.Less(t, chi2(differences(places, n), n), limit)

	var p portSet
	for range n {
		p.take(n)
	}
	for i := 3; i < n; i += 8 {
		p.release(i)
	}
	places = places[:0]
	for range draws {
		i := p.take(n)
		require.Equal(t, 3, i%8)
		places = append(places, i/8)
		p.release(i)
	}
	assert.Less(t, chi2(places, 16), 15+9*5.5)
	assert.Less(t, chi2(differences(places, 16), 16), 15+9*5.5)
}

// TestPortsDiffer: what one client gets tells nothing of another, nor one run
// of the next.
func TestPortsDiffer(t *testing.T) {
	sequence := func(table *Table, r mapping.Range) (places []int) {
		for i := range uint16(32) {
			places = append(places, int(mustOut(t, table, r, numTCP, i, flagSYN, 0)-r.Session))
		}
		return places
	}
	one, two := newTable(t, nil), newTable(t, nil)
	a := sequence(one, rangeA)
	assert.NotEqual(t, a, sequence(one, rangeB))
	assert.NotEqual(t, a, sequence(two, rangeA))
}

// TestPortSet compares a portSet with a set.
func TestPortSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{1, 2, 63, 64, 65, 128, 1000, 65536}).Draw(t, "n")
		var p portSet
		assert.Equal(t, -1, p.next(0))
		taken := map[int]bool{}
		var order []int
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			if len(order) > 0 && rapid.Bool().Draw(t, "release") {
				i := order[0]
				order = order[1:]
				p.release(i)
				delete(taken, i)
			} else if len(order) < n {
				i := p.take(n)
				require.False(t, taken[i], i)
				require.True(t, i >= 0 && i < n, i)
				taken[i] = true
				order = append(order, i)
			}
			require.Equal(t, len(taken), p.used)
		}
		seen := 0
		for i := p.next(0); i >= 0; i = p.next(i + 1) {
			require.True(t, taken[i], i)
			seen++
		}
		assert.Equal(t, len(taken), seen)
	})
}

// TestWholePart: all 65,536 ports of the widest part are found, each once.
func TestWholePart(t *testing.T) {
	var p portSet
	for range 65536 {
		p.take(65536)
	}
	assert.Equal(t, 65536, p.used)
	for _, w := range p.taken {
		require.Equal(t, ^uint64(0), w)
	}
}
