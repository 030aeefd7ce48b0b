package proc

import (
	"io/fs"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for _, stat := range []string{
		"7 (a) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9 9",
		"7 (a) R) Z (b) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9 9\n",
	} {
		state, started, err := parse(stat)
		require.NoError(t, err)
		assert.Equal(t, "S", state)
		assert.EqualValues(t, 12345, started)
	}
	for _, stat := range []string{"", "7 (a) S 1 7", "7 (a) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 x 9 9"} {
		_, _, err := parse(stat)
		assert.Error(t, err, stat)
	}
}

// A process is there until it has ended, also while nobody has heard of its end.
func TestStarted(t *testing.T) {
	own, err := Started(os.Getpid())
	require.NoError(t, err)
	c := exec.Command("sleep", "60")
	require.NoError(t, c.Start())
	first, err := Started(c.Process.Pid)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, first, own)
	again, err := Started(c.Process.Pid)
	require.NoError(t, err)
	assert.Equal(t, first, again)

	require.NoError(t, c.Process.Kill())
	for begun := time.Now(); err == nil && time.Since(begun) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		_, err = Started(c.Process.Pid)
	}
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.ErrorContains(t, err, "has ended")
	require.Error(t, c.Wait())
	_, err = Started(c.Process.Pid)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.ErrorContains(t, err, "there is no process")
}
