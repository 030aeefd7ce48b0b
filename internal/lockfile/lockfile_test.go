package lockfile

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// place is a folder for the locks of this test.
func place(t *testing.T) {
	t.Helper()
	was := Dir
	Dir = filepath.Join(t.TempDir(), "natless", "locks")
	t.Cleanup(func() { Dir = was })
}

func TestTake(t *testing.T) {
	place(t)
	l, err := Wait{}.Take(t.Context(), "a")
	require.NoError(t, err)
	other, err := Wait{}.Take(t.Context(), "b")
	require.NoError(t, err, "another thing")
	info, err := os.Stat(filepath.Join(Dir, "a"))
	require.NoError(t, err)
	assert.EqualValues(t, 0o600, info.Mode())
	info, err = os.Stat(Dir)
	require.NoError(t, err)
	assert.EqualValues(t, 0o700, info.Mode().Perm())

	var said []string
	w := Wait{Limit: 200 * time.Millisecond, Say: func(s string) { said = append(said, s) }}
	begun := time.Now()
	_, err = w.Take(t.Context(), "a")
	assert.Less(t, time.Since(begun), 5*time.Second)
	var busy *BusyError
	require.ErrorAs(t, err, &busy)
	holder := fmt.Sprintf("(process %d)", os.Getpid())
	assert.Contains(t, err.Error(), holder)
	require.Len(t, said, 1, "once")
	assert.Contains(t, said[0], holder)

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = Wait{}.Take(ctx, "a")
	assert.ErrorIs(t, err, context.Canceled, "not deaf while it waits")

	l.Release()
	l, err = w.Take(t.Context(), "a")
	require.NoError(t, err)
	l.Release()
	other.Release()
	assert.NoDirExists(t, filepath.Dir(Dir), "nothing is left")
}

// One at a time has it, however often files and folder come and go.
func TestTakenByMany(t *testing.T) {
	place(t)
	var all sync.WaitGroup
	var holders, times atomic.Int32
	for range 8 {
		all.Go(func() {
			for range 20 {
				l, err := Wait{}.Take(t.Context(), "a")
				if !assert.NoError(t, err) {
					return
				}
				assert.EqualValues(t, 1, holders.Add(1))
				times.Add(1)
				holders.Add(-1)
				l.Release()
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, 160, times.Load())
}

// A folder where others may put something is none for locks.
func TestForeignFolder(t *testing.T) {
	place(t)
	require.NoError(t, os.MkdirAll(Dir, 0o700))
	require.NoError(t, os.Chmod(Dir, 0o777))
	_, err := Wait{}.Take(t.Context(), "a")
	assert.ErrorContains(t, err, "may be written by other users")
	require.NoError(t, os.Chmod(Dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(Dir, "a"), nil, 0o644))
	_, err = Wait{}.Take(t.Context(), "a")
	assert.ErrorContains(t, err, "it is not natless's own")
}
