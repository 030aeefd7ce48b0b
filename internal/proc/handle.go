package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Handle is a process by its directory in /proc, which, as a pidfd, never comes
// to mean another process: when that has ended all that is asked of it fails.
type Handle struct {
	pid int
	dir *os.File
}

// Open opens the process that started then. The caller closes it.
func Open(pid int, started uint64) (*Handle, error) {
	dir, err := os.OpenFile(fmt.Sprintf("/proc/%d", pid), unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, goneError(fmt.Sprintf("there is no process %d", pid))
	}
	if err != nil {
		return nil, err
	}
	h := &Handle{pid, dir}
	stat, err := h.read("stat")
	var now uint64
	if err == nil {
		_, now, err = parse(string(stat))
	}
	if err == nil && now != started {
		err = goneError(fmt.Sprintf("process %d has ended", pid))
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return h, nil
}

// Close lets go of it.
func (h *Handle) Close() { h.dir.Close() }

func (h *Handle) open(name string, flags int) (*os.File, error) {
	path := filepath.Join(h.dir.Name(), name)
	fd, err := unix.Openat(int(h.dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, goneError(fmt.Sprintf("process %d has ended", h.pid))
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// read reads a file that the kernel writes.
func (h *Handle) read(name string) ([]byte, error) {
	f, err := h.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// Root opens the root directory of the process, from which paths of its own may
// be walked and which cannot be read.
func (h *Handle) Root() (*os.File, error) { return h.open("root", unix.O_PATH|unix.O_DIRECTORY) }

// Owner is the user and the group that root of the process's user namespace is,
// as the caller counts them: whom the files of a container are trusted to. Where
// that has no root it is who the process runs as.
//
// It must be asked after Root. A process can leave a user namespace for one below
// it alone, and never comes back: if root is the host's now it was so then.
func (h *Handle) Owner() (uid, gid int, err error) {
	shares, err := h.SharesNamespace("user")
	if err != nil {
		return 0, 0, err
	}
	if shares {
		return os.Geteuid(), os.Getegid(), nil
	}
	status, err := h.read("status")
	if err != nil {
		return 0, 0, err
	}
	for _, id := range []struct {
		to          *int
		file, field string
	}{{&uid, "uid_map", "Uid:"}, {&gid, "gid_map", "Gid:"}} {
		table, err := h.read(id.file)
		if err != nil {
			return 0, 0, err
		}
		var ok bool
		if *id.to, ok = rootOf(table); ok {
			continue
		}
		if *id.to, err = effective(status, id.field); err != nil {
			return 0, 0, fmt.Errorf("process %d: %w", h.pid, err)
		}
	}
	return uid, gid, nil
}

// rootOf is what 0 is by a table as in user_namespaces(7).
func rootOf(table []byte) (id int, ok bool) {
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		if len(fields) != 3 || fields[0] != "0" {
			continue
		}
		id, err := strconv.ParseUint(fields[1], 10, 32)
		return int(id), err == nil && id != 1<<32-1 // which the kernel writes of what the reader does not have
	}
	return 0, false
}

// effective is the second number of a line of /proc/PID/status, which has real,
// effective, saved and file system ids.
func effective(status []byte, field string) (int, error) {
	for line := range bytes.Lines(status) {
		fields := strings.Fields(string(line))
		if len(fields) == 5 && fields[0] == field {
			id, err := strconv.ParseUint(fields[2], 10, 32)
			return int(id), err
		}
	}
	return 0, fmt.Errorf("its status has no line %s", field)
}

// SharesNamespace reports whether the process is in the caller's namespace of a
// kind, as /proc/PID/ns names it.
func (h *Handle) SharesNamespace(kind string) (bool, error) {
	var own, its unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/"+kind, &own); err != nil {
		return false, err
	}
	if err := unix.Fstatat(int(h.dir.Fd()), "ns/"+kind, &its, 0); err != nil {
		return false, &fs.PathError{Op: "stat", Path: filepath.Join(h.dir.Name(), "ns", kind), Err: err}
	}
	return own.Dev == its.Dev && own.Ino == its.Ino, nil
}

// Unit is the name of the systemd unit, or of the machine that systemd-machined
// knows, that the process is part of; "" where it is of none that the host alone
// decides about. Control groups below a unit, and those of users, are not: whoever
// they are delegated to names them as they like.
func (h *Handle) Unit() (string, error) {
	text, err := h.read("cgroup")
	return unit(text), err
}

func unit(cgroups []byte) string {
	for line := range strings.Lines(string(cgroups)) {
		// ID:CONTROLLERS:PATH, of version 2, or of systemd's own hierarchy of version 1.
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 || fields[1] != "" && fields[1] != "name=systemd" {
			continue
		}
		if name := unitOf(fields[2]); name != "" {
			return name
		}
	}
	return ""
}

func unitOf(path string) string {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if parts[0] != "system.slice" && parts[0] != "machine.slice" {
		return ""
	}
	for _, p := range parts {
		if strings.HasSuffix(p, ".slice") {
			continue
		}
		name, service := strings.CutSuffix(p, ".service")
		name, scope := strings.CutSuffix(name, ".scope")
		if !service && !scope {
			return ""
		}
		if parts[0] == "machine.slice" {
			name = strings.TrimPrefix(strings.TrimPrefix(name, "systemd-nspawn@"), "machine-")
		}
		return strings.ReplaceAll(name, `\x2d`, "-") // systemd.unit(5), "string escaping"
	}
	return ""
}
