package dataplane

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// While the guard of the host is closed nothing passes, nothing is resolved, and
// what was held back does not leave either.
func TestNothingPassesWhileClosed(t *testing.T) {
	var open atomic.Bool
	b := newBench(func(c *Config) { c.Open = &open })
	assert.Empty(t, b.handle(echo6(one6, server6)))
	assert.Empty(t, b.handle(echo6(one6, own6)), "not even natless's own answers")
	assert.Empty(t, b.handle(echo4(server4, one4)))
	assert.Empty(t, b.asked)
	assert.Equal(t, 3, b.counted(translate.Unguarded))
	open.Store(true)
	assert.Len(t, b.handle(echo6(one6, server6)), 1)
	assert.Equal(t, 3, b.counted(translate.Unguarded))

	open.Store(false)
	w := b.workers[0]
	packet := echo6(one6, server6)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		w.handle(copy(w.translator.packet.Buf[headroom:], packet), &tun.Header{})
	}))
}

func TestHeldAndClosed(t *testing.T) {
	b := newHoldBench(translate.LeasePending)
	var open atomic.Bool
	open.Store(true)
	b.worker.open = &open
	b.feed(from(1, 1, 100), tun.Header{})
	require.EqualValues(t, 1, b.Counters().Held)
	open.Store(false)
	b.says(translate.OK)
	b.retry()
	assert.Empty(t, b.q.written())
	assert.EqualValues(t, 1, b.Counters().Verdicts[translate.Unguarded])
	assert.Zero(t, b.Counters().Held)
}
