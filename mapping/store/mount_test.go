package store

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
)

// disk mounts a small file system on a new directory, for the rest of the test
// and its thread alone.
func disk(t *testing.T) (dir string) {
	t.Helper()
	if testing.Short() {
		t.Skip("namespaces are not for -short")
	}
	if os.Geteuid() != 0 {
		testenv.Skip(t, "no mount namespace without root")
	}
	runtime.LockOSThread() // never unlocked: the thread must not serve others
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		testenv.Skip(t, "no mount namespace: "+err.Error())
	}
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir = filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// fill leaves no space on a disk.
func fill(t *testing.T, dir string) (ballast string) {
	t.Helper()
	ballast = filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	require.NoError(t, err)
	defer f.Close()
	for _, size := range []int{1 << 16, 1} {
		err = nil
		for n := 0; err == nil; n++ {
			require.Less(t, n, 1<<17)
			_, err = f.Write(make([]byte, size))
		}
		require.ErrorIs(t, err, unix.ENOSPC)
	}
	return ballast
}

func TestDiskFull(t *testing.T) {
	dir := filepath.Join(disk(t), "state")
	s := open(t, dir)
	rng := rand.New(rand.NewPCG(1, 2))
	const most = 2000
	refused, n := 0, 0
	for round := range 20 {
		ballast := fill(t, filepath.Dir(dir))
		info, err := os.Stat(ballast)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(ballast, max(0, info.Size()-int64(rng.IntN(25)*os.Getpagesize()))))
		for range 5 {
			want, wantHistory := load(t, s), history(t, s, past(round))
			var b mapping.Batch
			for range 1 + rng.IntN(100) {
				b.Leases = append(b.Leases, ended(lent(2*rng.IntN(most), past(n)), past(n+1)))
				n++
			}
			err := s.Save(b)
			if err == nil {
				continue
			}
			refused++
			require.ErrorIs(t, err, unix.ENOSPC)
			require.ErrorContains(t, err, s.path)
			require.Equal(t, want, load(t, s))
			require.Equal(t, wantHistory, history(t, s, past(round)))
		}
		if round%5 == 0 { // also a start on a full disk
			require.NoError(t, s.Close())
			s = open(t, dir)
			require.Empty(t, s.Problems())
		}
		require.NoError(t, os.Remove(ballast))
		require.NoError(t, s.Save(leases(lent(2*most+2*round, past(n)))), "space is back")
		require.Contains(t, load(t, s).Leases, lent(2*most+2*round, past(n)))
	}
	t.Logf("%d of 100 Saves refused", refused)
	require.Greater(t, refused, 10)
	want := load(t, s)
	require.NoError(t, s.Close())
	s = open(t, dir)
	require.Empty(t, s.Problems())
	require.Equal(t, want, load(t, s))
}

func TestNoSpaceForANewFile(t *testing.T) {
	dir := disk(t)
	ballast := fill(t, dir)
	_, err := Open(dir, month, quiet)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, dir)
	require.NoError(t, os.Remove(ballast))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
	open(t, dir)
}

func TestReadOnlyFileSystem(t *testing.T) {
	dir := disk(t)
	remount := func(flags uintptr) {
		t.Helper()
		require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""))
	}
	l := lent(1, past(1))
	s := open(t, dir)
	require.NoError(t, s.Save(leases(l)))
	require.NoError(t, s.Close())

	remount(unix.MS_RDONLY)
	s = open(t, dir)
	require.Len(t, s.Problems(), 1)
	require.Contains(t, s.Problems()[0], s.path+" can be read but not written")
	require.Contains(t, s.Problems()[0], unix.EROFS.Error())
	for range 2 {
		require.Equal(t, []mapping.SavedLease{l}, load(t, s).Leases)
		require.Equal(t, []mapping.SavedLease{l}, history(t, s, past(1)))
		err := s.Save(leases(lent(3, past(1))))
		require.ErrorIs(t, err, unix.EROFS)
		require.ErrorContains(t, err, s.path)
	}
	_, err := Open(dir, month, quiet)
	require.ErrorContains(t, err, "another natless uses")

	remount(0)
	require.NoError(t, s.Save(leases(lent(3, past(1)))))
	require.Empty(t, s.Problems())
	require.Len(t, load(t, s).Leases, 2)
	require.Len(t, history(t, s, past(1)), 2)
	require.NoError(t, s.Close())

	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName), []byte("damaged"), 0o600))
	remount(unix.MS_RDONLY)
	_, err = Open(dir, month, quiet)
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorContains(t, err, "cannot be set aside")
	b, err := os.ReadFile(filepath.Join(dir, fileName))
	require.NoError(t, err)
	require.Equal(t, "damaged", string(b))

	_, err = Open(filepath.Join(dir, "new"), month, quiet)
	require.ErrorIs(t, err, unix.EROFS)
}

// TestFileSystemTakenAway unmounts the disk below the store. What is saved
// then must not go to the directory underneath, where it would be forgotten
// when the disk is back.
func TestFileSystemTakenAway(t *testing.T) {
	dir := disk(t)
	at := t.TempDir()
	require.NoError(t, unix.Mount(dir, at, "", unix.MS_BIND, ""))
	s := open(t, at)
	require.NoError(t, s.Save(leases(lent(1, past(1)))))
	require.NoError(t, unix.Unmount(at, unix.MNT_DETACH))
	for range 2 {
		require.ErrorContains(t, s.Save(leases(lent(3, past(1)))), "its file system taken away")
	}
	files, err := os.ReadDir(at)
	require.NoError(t, err)
	require.Empty(t, files)

	require.NoError(t, unix.Mount(dir, at, "", unix.MS_BIND, ""))
	defer unix.Unmount(at, unix.MNT_DETACH)
	require.NoError(t, s.Save(leases(lent(3, past(1)))))
	require.NoError(t, s.Close())
	require.Len(t, load(t, open(t, at)).Leases, 2)
}
