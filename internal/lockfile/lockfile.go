// Package lockfile keeps two commands of natless from working on the same thing
// at once. It is beside the way of a packet.
//
// The locks are files of natless's own, in a folder that only its user may enter.
// A lock on anything that others can open, such as the file of a network
// namespace, would be theirs to hold for ever: flock(2) asks for no rights but an
// open descriptor.
package lockfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/printable"
)

// Dir is where the locks are.
var Dir = "/run/natless/locks"

// DefaultLimit is how long a lock is waited for where nobody says.
const DefaultLimit = 30 * time.Second

// pause is between two looks at a lock that somebody has. A call that waits in
// the kernel would be deaf to a context.
const pause = 50 * time.Millisecond

// Wait is how somebody waits for a lock.
type Wait struct {
	Limit time.Duration // 0: DefaultLimit
	Say   func(string)  // is told once whom it waits for; nil: nobody is
}

// Lock is a lock that is held. The kernel lets go of it with the process.
type Lock struct{ file *os.File }

// BusyError is the error that somebody else had the lock for as long as there
// was patience.
type BusyError struct {
	Holder string
	Limit  time.Duration
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s works on it too and has not ended within %v: wait for it (--timeout is how long), or end it", e.Holder, e.Limit)
}

// Take takes the lock of a name, which is one of a file. It fails when the
// context ends, and with a BusyError when the limit is over.
func (w Wait) Take(ctx context.Context, name string) (*Lock, error) {
	if w.Limit == 0 {
		w.Limit = DefaultLimit
	}
	for until, said := time.Now().Add(w.Limit), false; ; {
		l, holder, err := try(name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("locking %s: %w", filepath.Join(Dir, name), err)
		case l != nil:
			return l, nil
		case time.Now().After(until):
			return nil, &BusyError{holder, w.Limit}
		case !said && w.Say != nil:
			w.Say("waiting for " + holder + ", which works on it too")
		}
		said = true
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s: %w", holder, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// try takes the lock, or says who holds it.
func try(name string) (l *Lock, holder string, err error) {
	dir, err := folder()
	if err != nil {
		return nil, "", err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ENOENT) {
		return nil, unknown, nil // whoever let go took the folder along
	}
	if err != nil {
		return nil, "", err
	}
	file := os.NewFile(uintptr(fd), filepath.Join(Dir, name))
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer file.Close()
		return nil, signed(file), nil
	}
	if err != nil {
		file.Close()
		return nil, "", err
	}
	if !current(file) {
		file.Close()
		return nil, unknown, nil // its last holder has just removed it
	}
	return &Lock{file}, "", sign(file)
}

// Release lets go of the lock and leaves nothing behind.
func (l *Lock) Release() {
	os.Remove(l.file.Name())
	l.file.Close()
	os.Remove(Dir) // if others have no locks
	os.Remove(filepath.Dir(Dir))
}

// folder opens the folder of the locks, which nobody else may enter.
func folder() (*os.File, error) {
	parent := filepath.Dir(Dir)
	if err := os.Mkdir(parent, 0o755); err == nil {
		os.Chmod(parent, 0o755) // whatever the umask: the control socket is there, and says itself who may connect
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.Mkdir(Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	dir, err := os.OpenFile(Dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return folder() // whoever let go has removed it
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(dir.Fd()), &st)
	if err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = fmt.Errorf("%s is open to others (user %d, mode %04o): expected a folder of user %d with mode 0700; remove it", Dir, st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// current tells whether the locked file is still the one of that name.
func current(file *os.File) bool {
	held, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(file.Name())
	return err == nil && os.SameFile(held, named)
}

// unknown is a holder who has not signed yet.
const unknown = "another natless"

// sign writes down whose lock it is, for those who wait.
func sign(file *os.File) error {
	err := file.Truncate(0)
	if err == nil {
		text := fmt.Sprintf("%s (process %d)", strings.Join(append([]string{"natless"}, os.Args[1:min(2, len(os.Args))]...), " "), os.Getpid())
		_, err = file.WriteAt([]byte(text), 0)
	}
	return err
}

func signed(file *os.File) string {
	var text [200]byte
	if n, _ := file.ReadAt(text[:], 0); n > 0 {
		return printable.Text(string(text[:n]))
	}
	return unknown
}
