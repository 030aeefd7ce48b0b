package main_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	api "github.com/natless/natless/internal/control"
	"github.com/natless/natless/mapping"
)

// TestLabConflictingMaps has two clients add mappings that cannot both be, at
// once and again and again: each time one of them wins, and the watch shows
// exactly the winners, in order.
func TestLabConflictingMaps(t *testing.T) {
	const times = 1000
	w := start(t, setup{})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	var watched []mapping.Event
	done := make(chan error, 1)
	status, err := api.NewClient(w.daemon.Socket).Status(ctx)
	require.NoError(t, err)
	go func() {
		for e, err := range api.NewClient(w.daemon.Socket).Watch(ctx, &status.Revision) {
			if err != nil {
				done <- err
				return
			}
			if watched = append(watched, e); e.Op == mapping.OpMapAdded && len(watched) == 2*times-1 {
				break
			}
		}
		done <- nil
	}()

	v4 := netip.MustParsePrefix("203.0.113.7/32")
	bids := [2]netip.Prefix{netip.MustParsePrefix("2001:db8:2::1/128"), netip.MustParsePrefix("2001:db8:2::2/128")}
	var won []netip.Prefix
	var revisions []uint64
	for i := range times {
		var errs [2]error
		var revs [2]uint64
		var wg sync.WaitGroup
		for k, v6 := range bids {
			wg.Go(func() {
				revs[k], errs[k] = api.NewClient(w.daemon.Socket).AddMap(ctx, v4, v6, "")
			})
		}
		wg.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		require.NoError(t, errs[winner])
		require.ErrorIs(t, errs[1-winner], mapping.ErrConflict, "one winner in round %d", i)
		won, revisions = append(won, bids[winner]), append(revisions, revs[winner])
		if i < times-1 {
			rev, err := api.NewClient(w.daemon.Socket).RemoveMap(ctx, v4)
			require.NoError(t, err)
			revisions = append(revisions, rev)
		}
	}
	require.NoError(t, <-done)
	require.Len(t, watched, len(revisions))
	tally := map[netip.Prefix]int{}
	for i, e := range watched {
		require.Equal(t, revisions[i], e.Revision)
		require.Equal(t, won[i/2], e.Map.IPv6)
		if i%2 == 0 {
			require.Equal(t, mapping.OpMapAdded, e.Op)
			tally[e.Map.IPv6]++
		} else {
			require.Equal(t, mapping.OpMapRemoved, e.Op)
		}
	}
	t.Logf("%d rounds, won by each: %v; %d events watched", times, tally, len(watched))
	assert.False(t, errors.Is(ctx.Err(), context.DeadlineExceeded))
}
