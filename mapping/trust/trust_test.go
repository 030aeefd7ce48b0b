package trust

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const stranger = 65533

func TestDir(t *testing.T) {
	top := t.TempDir()
	mkdir := func(name string, mode fs.FileMode, uid, gid int) string {
		path := filepath.Join(top, name)
		require.NoError(t, os.MkdirAll(path, 0o755))
		require.NoError(t, os.Lchown(path, uid, gid))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	link := func(name, target string, uid int) string {
		path := filepath.Join(top, name)
		require.NoError(t, os.Symlink(target, path))
		require.NoError(t, os.Lchown(path, uid, -1))
		return path
	}
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	mkdir("open", 0o777, 0, 0)
	for dir, want := range map[string]string{
		"/":                         "",
		"/tmp":                      "", // sticky
		mkdir("root", 0o755, 0, 0):  "",
		mkdir("group", 0o775, 0, 0): "",
		mkdir("sticky", 0o777|fs.ModeSticky, 0, 0):              "",
		mkdir("theirs", 0o755, stranger, 0):                     "belongs to user 65533",
		mkdir("theirs/root", 0o755, 0, 0):                       "belongs to user 65533",
		mkdir("writable", 0o757, 0, 0):                          "may be written by other users",
		mkdir("writable by a group", 0o775, 0, stranger):        "may be written by other users",
		mkdir("open/root", 0o755, 0, 0):                         "may be written by other users",
		link("link", "root", 0):                                 "",
		link("relative", "../"+filepath.Base(top)+"/./root", 0): "",
		link("absolute", filepath.Join(top, "root"), 0):         "",
		link("their link", "root", stranger):                    "belongs to user 65533",
		link("link to theirs", "theirs/root", 0):                "belongs to user 65533",
		link("loop", "loop", 0):                                 unix.ELOOP.Error(),
		filepath.Join(top, "absent"):                            fs.ErrNotExist.Error(),
	} {
		err := Dir(dir)
		if want == "" {
			assert.NoError(t, err, dir)
		} else if want == fs.ErrNotExist.Error() {
			assert.ErrorIs(t, err, fs.ErrNotExist, dir)
		} else {
			assert.ErrorContains(t, err, want, dir)
		}
	}
	file := filepath.Join(top, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	assert.ErrorIs(t, Dir(file), unix.ENOTDIR)
	assert.ErrorIs(t, Dir(file+"/x"), unix.ENOTDIR)
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	assert.Nil(t, Held(path))
	assert.NoFileExists(t, path)
	l, err := Lock(path, 0)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())
	assert.Equal(t, &HeldError{path, os.Getpid()}, Held(path))

	began := time.Now()
	_, err = Lock(path, 50*time.Millisecond)
	require.EqualError(t, err, fmt.Sprintf("%s is locked by process %d", path, os.Getpid()))
	assert.Less(t, time.Since(began), 5*time.Second)

	go func() { time.Sleep(50 * time.Millisecond); l.Release() }()
	l, err = Lock(path, 5*time.Second)
	require.NoError(t, err)
	assert.True(t, l.Current())

	require.NoError(t, os.Remove(path))
	assert.False(t, l.Current())
	next, err := Lock(path, 0)
	require.NoError(t, err)
	l.Release()
	assert.FileExists(t, path, "another's by now")
	next.Release()
	assert.NoFileExists(t, path)
}

// TestLockWhatIsThere takes nothing that another user may hold, or that is no
// file, and waits for none of it.
func TestLockWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lock")
	for name, put := range map[string]func() error{
		"readable": func() error { return os.WriteFile(path, nil, 0o644) },
		"linked": func() error {
			return os.Link(filepath.Join(dir, "target"), path)
		},
		"symlink":   func() error { return os.Symlink("target", path) },
		"dangling":  func() error { return os.Symlink("nothing", path) },
		"pipe":      func() error { return unix.Mkfifo(path, 0o600) },
		"directory": func() error { return os.Mkdir(path, 0o700) },
		"socket": func() error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		},
		"another's": func() error {
			if os.Geteuid() != 0 {
				return os.WriteFile(path, nil, 0o644)
			}
			return os.WriteFile(path, nil, 0o600)
		},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "target"), []byte("x"), 0o600))
		require.NoError(t, put(), name)
		if name == "another's" && os.Geteuid() == 0 {
			require.NoError(t, os.Chown(path, stranger, -1))
		}
		began := time.Now()
		_, err := Lock(path, time.Minute)
		assert.EqualError(t, err, "lock "+path+": it is not natless's own, a file of mode 0600: remove it", name)
		assert.Nil(t, Held(path), name)
		assert.Less(t, time.Since(began), 5*time.Second, name)
		text, err := os.ReadFile(filepath.Join(dir, "target"))
		require.NoError(t, err)
		assert.Equal(t, "x", string(text), name)
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.Remove(filepath.Join(dir, "target")))
	}
	assert.NoFileExists(t, filepath.Join(dir, "nothing"))
}

func TestHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	assert.Zero(t, Holder(f))
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	assert.Equal(t, os.Getpid(), Holder(f))
}

func TestUID(t *testing.T) {
	assert.True(t, UID(0))
	assert.True(t, UID(uint32(os.Geteuid())))
	assert.False(t, UID(stranger))
}
