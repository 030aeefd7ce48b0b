package mapping

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEvents(t *testing.T) {
	c := example()
	c.Revision = 5000
	x := table(t, c)
	require.EqualValues(t, 5000, x.Revision())
	for _, gone := range []uint64{0, 4999, 5001} {
		_, err := x.Events(gone, 10)
		assert.ErrorIs(t, err, ErrGone)
	}
	events, err := x.Events(5000, 10)
	require.NoError(t, err)
	assert.Empty(t, events)

	changed := x.Changed()
	assert.Equal(t, changed, x.Changed())
	select {
	case <-changed:
		require.Fail(t, "nothing changed")
	default:
	}
	x.SetLocal([]netip.Prefix{pfx("2001:db8:c::/64")})
	<-changed
	_, err = x.Apply([]Change{add("203.0.113.0/25", "2001:db8:9::/121"), add("203.0.113.128/25", "2001:db8:9::80/121"), remove("203.0.113.0/25")}, "me")
	require.NoError(t, err)
	ops := func(after uint64, max int) (list []Op) {
		events, err := x.Events(after, max)
		require.NoError(t, err)
		for _, e := range events {
			list = append(list, e.Op)
		}
		return list
	}
	assert.Equal(t, []Op{OpChanged, OpMapAdded, OpMapAdded, OpMapRemoved}, ops(5000, 4))
	assert.Equal(t, []Op{OpChanged}, ops(5000, 3), "whole revisions")
	assert.Equal(t, []Op{OpMapAdded, OpMapAdded, OpMapRemoved}, ops(5001, 1), "one at least")
	assert.Empty(t, ops(5002, 10))
}

// The journal has a bound, but the newest revision is whole.
func TestJournalForgets(t *testing.T) {
	x := table(t, example())
	first := x.Revision()
	var many []Change
	for i := range journaled + 10 {
		many = append(many, Change{Add: &Map{IPv4: netip.PrefixFrom(addr4(0x0b00_0000+uint32(i)), 32), IPv6: netip.PrefixFrom(addr6(0x2001_0db8_0009_0000, uint64(i)), 128)}})
	}
	x.SetLocal([]netip.Prefix{pfx("fd00::/64")})
	revision, err := x.Apply(many, "me")
	require.NoError(t, err)
	_, err = x.Events(first, 10)
	assert.ErrorIs(t, err, ErrGone)
	events, err := x.Events(revision-1, 10)
	require.NoError(t, err)
	assert.Len(t, events, journaled+10)
	again, err := x.Events(revision-1, 10)
	require.NoError(t, err)
	assert.Same(t, &events[0], &again[0], "one piece of memory for all who watch")

	x.SetLocal(nil)
	_, err = x.Events(revision-1, 10)
	assert.ErrorIs(t, err, ErrGone)
	events, err = x.Events(revision, 10)
	require.NoError(t, err)
	assert.Len(t, events, 1)
	for i := range journaled + 100 {
		x.SetLocal([]netip.Prefix{netip.PrefixFrom(lessee(i), 128)})
	}
	assert.Equal(t, journaled, x.journal.events)
	assert.Len(t, x.journal.changes, journaled)
	assert.Less(t, cap(x.journal.changes), 4*journaled)
}
