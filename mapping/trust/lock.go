package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// File is a locked file of natless's own. The kernel lets go of the lock when
// the process ends, however it ends.
type File struct{ *os.File }

// HeldError is for a lock that another process has.
type HeldError struct {
	Path string
	PID  int // 0: unknown
}

func (e *HeldError) Error() string {
	if e.PID == 0 {
		return e.Path + " is locked by another process"
	}
	return fmt.Sprintf("%s is locked by process %d", e.Path, e.PID)
}

// poll is how often a lock that is held is tried.
const poll = 20 * time.Millisecond

// Lock makes the file if there is none, and locks it. It waits no longer than
// wait for whoever has it: then the error is a HeldError. What is at the path and
// is not a file that natless makes is an error and left alone: others could hold
// its lock as long as they like.
func Lock(path string, wait time.Duration) (*File, error) {
	for end := time.Now().Add(wait); ; {
		l, err := tryLock(path)
		var held *HeldError
		switch {
		case l != nil || err != nil && !errors.As(err, &held):
			return l, err
		case err == nil: // its last holder had removed it
		case time.Now().After(end):
			return nil, err
		default:
			time.Sleep(poll)
		}
	}
}

// tryLock is nil where the file was not the one of that name any more.
func tryLock(path string) (*File, error) {
	f, err := open(path, unix.O_CREAT)
	if err != nil {
		return nil, err
	}
	l := &File{f}
	if err = take(f); err != nil {
		f.Close()
		return nil, err
	}
	if !l.Current() {
		f.Close()
		return nil, nil
	}
	if err = l.sign(); err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}

// open opens nothing but a file of natless's own, and never waits.
func open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|flags, 0o600)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EISDIR) { // a link, a socket, a directory
		return nil, &fs.PathError{Op: "lock", Path: path, Err: errOthers}
	}
	if err != nil {
		return nil, err
	}
	if err := own(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func take(f *os.File) error {
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return &HeldError{Path: f.Name(), PID: signature(f)}
		default:
			return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}

// signature is the process that wrote its number into the file.
func signature(f *os.File) int {
	var text [20]byte
	n, _ := f.ReadAt(text[:], 0)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	return pid
}

// Holder is the process that has locked a file which nobody signs, by /proc/locks
// (proc_locks(5)); 0 if that is not known.
func Holder(f *os.File) int {
	var st unix.Stat_t
	text, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	for line := range strings.Lines(string(text)) {
		// NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
		if fields := strings.Fields(line); len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == file {
			pid, _ := strconv.Atoi(fields[4])
			return max(pid, 0)
		}
	}
	return 0
}

func (l *File) sign() error {
	err := l.Truncate(0)
	if err == nil {
		_, err = l.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return fmt.Errorf("signing %s: %w", l.Name(), err)
	}
	return nil
}

// Current tells whether the locked file is still the one of that name: its last
// holder may have removed it between our open and our lock, and anybody since.
func (l *File) Current() bool {
	held, err := l.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(l.Name())
	return err == nil && os.SameFile(held, named)
}

// Release removes the file and gives the lock up.
func (l *File) Release() {
	if l.Current() {
		os.Remove(l.Name())
	}
	l.Close()
}

// Held is the HeldError that Lock would wait for, or nil. It leaves no trace.
func Held(path string) *HeldError {
	f, err := open(path, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	var held *HeldError
	errors.As(take(f), &held)
	return held
}
