// Package trust tells what of a file system is safe from other users, and keeps
// two processes of natless apart by files that nobody else can open. natless
// works with root's rights where others can make files, links and locks, too.
// No packet comes by here.
package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// overflow is the user that files of all users have who are not in a user
// namespace, root among them (user_namespaces(7), "Unmapped user and group IDs").
const overflow = 65534

// UID reports whether a user is root or the one that this process runs as.
func UID(uid uint32) bool {
	return uid == 0 || int(uid) == os.Geteuid() || uid == overflow && inUserNamespace()
}

func gid(gid uint32) bool {
	return gid == 0 || int(gid) == os.Getegid() || gid == overflow && inUserNamespace()
}

// inUserNamespace reports whether this is one that not all users are in.
var inUserNamespace = sync.OnceValue(func() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(text))
	return err == nil && (len(fields) != 3 || fields[2] != "4294967295")
})

// maxLinks is how many symbolic links a path may lead through, as path_resolution(7) has it.
const maxLinks = 40

// Dir is an error where anybody else could put something in the place of the
// directory, or of what is in it under a name: it, each directory above it, and
// each symbolic link on the way has to be root's or this user's own, and is
// written by nobody else, or is sticky as /tmp is.
func Dir(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	at, rest := "/", strings.Split(strings.Trim(dir, "/"), "/")
	if err := safe(at); err != nil {
		return err
	}
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		if err := safe(next); err != nil {
			return err
		}
		target, err := os.Readlink(next)
		if err != nil { // it is no link
			at = next
			continue
		}
		if links++; links > maxLinks {
			return &fs.PathError{Op: "follow", Path: dir, Err: unix.ELOOP}
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return nil
}

// safe is about one directory or link.
func safe(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, mode := info.Sys().(*syscall.Stat_t), info.Mode()
	switch {
	case !UID(st.Uid):
		return fmt.Errorf("%s belongs to user %d, who could put other files in its place: choose a directory in which all is root's", path, st.Uid)
	case mode.Type() == fs.ModeSymlink:
		return nil // its mode says nothing
	case !mode.IsDir():
		return &fs.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	case mode&fs.ModeSticky != 0:
		return nil
	case mode&0o002 != 0, mode&0o020 != 0 && !gid(st.Gid):
		return fmt.Errorf("%s may be written by other users (mode %v), who could put other files in its place: choose a directory that is root's alone", path, mode)
	}
	return nil
}

// errOthers is for a file that is not as Lock makes them.
var errOthers = errors.New("it is not natless's own, a file of mode 0600: remove it")

// own is an error unless f is a file that only root, or this user, can open.
func own(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || !UID(st.Uid) || st.Nlink > 1 {
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: errOthers}
	}
	return nil
}
