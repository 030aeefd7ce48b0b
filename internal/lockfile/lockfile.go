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
	"time"

	"github.com/natless/natless/mapping/trust"
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
type Lock struct{ file *trust.File }

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

// unknown is a holder who has not signed yet.
const unknown = "another natless"

// try takes the lock, or says who holds it.
func try(name string) (l *Lock, holder string, err error) {
	if err := folder(); err != nil {
		return nil, "", err
	}
	file, err := trust.Lock(filepath.Join(Dir, name), 0)
	held := new(trust.HeldError)
	switch {
	case err == nil:
		return &Lock{file}, "", nil
	case errors.As(err, &held) && held.PID != 0:
		return nil, fmt.Sprintf("%s (process %d)", unknown, held.PID), nil
	case errors.As(err, &held), errors.Is(err, fs.ErrNotExist): // whoever let go took the folder along
		return nil, unknown, nil
	}
	return nil, "", err
}

// Release lets go of the lock and leaves nothing behind.
func (l *Lock) Release() {
	l.file.Release()
	os.Remove(Dir) // if others have no locks
	os.Remove(filepath.Dir(Dir))
}

// folder makes the folder of the locks, where nobody else may put anything.
func folder() error {
	parent := filepath.Dir(Dir)
	if err := os.Mkdir(parent, 0o755); err == nil {
		os.Chmod(parent, 0o755) // whatever the umask: the control socket is there, and says itself who may connect
	}
	err := os.Mkdir(Dir, 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = trust.Dir(Dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed again: the next try makes it
	}
	return err
}
