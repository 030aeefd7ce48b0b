package dataplane

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/tun"
)

// askingQueue notes on which CPUs its reader may run, and by how many
// nanoseconds its sleeps may be longer than it asks.
type askingQueue struct {
	*queue
	cpus  unix.CPUSet
	slack int
}

func (q *askingQueue) Read([]byte, int) (int, tun.Header, error) {
	var err error
	if q.slack, err = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil {
		return 0, tun.Header{}, err
	}
	if err := unix.SchedGetaffinity(0, &q.cpus); err != nil {
		return 0, tun.Header{}, err
	}
	return 0, tun.Header{}, os.ErrClosed
}

// Every worker has one CPU, dealt out in turns, and sleeps exactly, and the rest of
// the process keeps all of its own.
func TestWorkersHaveTheirThreads(t *testing.T) {
	var before, after unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &before))
	queues := make([]tun.Queue, 2*before.Count())
	for i := range queues {
		queues[i] = &askingQueue{queue: newQueue()}
	}
	require.NoError(t, New(Config{Queues: queues, Resolver: &resolver{}}).Run(t.Context()))

	workers := map[unix.CPUSet]int{}
	for _, q := range queues {
		cpus := q.(*askingQueue).cpus
		require.Equal(t, 1, q.(*askingQueue).slack)
		require.Equal(t, 1, cpus.Count())
		workers[cpus]++
	}
	for _, n := range workers {
		assert.Equal(t, 2, n)
	}
	assert.Len(t, workers, before.Count())
	require.NoError(t, unix.SchedGetaffinity(0, &after))
	assert.Equal(t, before, after)
}

func TestNthCPU(t *testing.T) {
	var set unix.CPUSet
	for _, cpu := range []int{1, 64, 130} {
		set.Set(cpu)
	}
	assert.Equal(t, []int{1, 64, 130}, []int{nth(&set, 0), nth(&set, 1), nth(&set, 2)})
}
