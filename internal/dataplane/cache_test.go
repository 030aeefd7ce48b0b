package dataplane

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

func TestCacheAnswersUntilSomethingChanges(t *testing.T) {
	b := newBench()
	w := b.workers[0]
	for _, c := range []struct {
		packet []byte
		src    string
		dst    string
	}{
		{tcp(one6, server6, 100), one4, server4},
		{tcp(server4, one4, 100), server6, one6},
		{tcp(one6, twoSeen, 100), oneSeen, two6},
	} {
		asked := func(want bool, why string) {
			t.Helper()
			out := b.handle(c.packet)
			require.Len(t, out, 1)
			between(t, out[0], c.src, c.dst)
			assert.Equal(t, want, len(b.ticks) > 0, why)
		}
		asked(true, "the first packet")
		asked(false, "the second")
		b.revision.Add(1)
		asked(true, "after a change of the table")
		asked(false, "and the next")
		w.tick.Add(1)
		asked(true, "in the next tick")
		asked(false, "and the next")
	}
}

func TestCacheKeepsNoRefusals(t *testing.T) {
	b := newBench()
	for range 2 {
		b.handle(tcp(one6, nobody6, 100))
		assert.NotEmpty(t, b.ticks)
		assert.Len(t, b.handle(echo6(one6, own6)), 1)
		assert.Empty(t, b.ticks, "natless itself is nobody's to resolve")
	}
	assert.Equal(t, 2, b.counted(translate.DestinationUnmapped))
	assert.Equal(t, 2, b.counted(translate.Answered))
}

// Pairs that share a place take turns, and each gets its own answer.
func TestCacheCollisions(t *testing.T) {
	b := newBench()
	c := b.workers[0].translator.cache
	first, second := tcp(one6, server6, 100), tcp(two6, server6, 100)
	key := func(packet []byte) pair {
		b.handle(packet)
		return b.workers[0].key(packet)
	}
	*c.at(key(first)) = *c.at(key(second))
	out := b.handle(first)
	require.Len(t, out, 1)
	between(t, out[0], one4, server4)
}

// key is what the cache has the packet under.
func (w *worker) key(packet []byte) pair {
	p := &w.translator.packet
	p.Off, p.Len = headroom, copy(p.Buf[headroom:], packet)
	p.Offload = translate.Offload{}
	p.Parse(&w.translator.options)
	return w.translator.pairOf(p)
}
