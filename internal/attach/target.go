package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/proc"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/mapping/trust"
)

// Kind is what a [Target] was found as.
type Kind string

// The kinds of targets, which are also the words before the colon that say what
// a name is. A path needs none: it has a slash.
const (
	KindNetNS  Kind = "netns"
	KindPath   Kind = "path"
	KindPID    Kind = "pid"
	KindPodman Kind = "podman"
	KindDocker Kind = "docker"
)

// netnsDir is where `ip netns` names namespaces.
var netnsDir = "/run/netns"

// Target is a network namespace that a user named.
type Target struct {
	Given   string // as the user wrote it
	Kind    Kind
	Label   string // the container's name or the namespace's; of a process what the host alone decides
	Path    string // of the namespace; where there is one a file that outlives the process
	ID      string // of the namespace: DEV:INODE in hex
	PID     int    // a process inside, or 0
	Started uint64 // its start time, in the unit of proc_pid_stat(5), field 22

	// HostNetwork: a container's engine says that it has no namespace of its own.
	HostNetwork bool

	resolvConf string // the file on the host that is the container's resolv.conf, if the engine has one
}

// notFound is the error that there is no such thing; others are that it could
// not be looked for, or is not as it must be.
type notFound string

func (n notFound) Error() string { return string(n) }

func isNotFound(err error) bool { return errors.As(err, new(notFound)) }

// Find finds the namespace that a name means. What has a slash is a path, and a
// number that can be one is a PID. Any other name is looked for among the named
// namespaces and the containers of Podman and Docker; where it means more than
// one namespace, "netns:", "podman:" or "docker:" before it says which ("pid:"
// is for symmetry).
func Find(ctx context.Context, given string) (*Target, error) {
	t, err := find(ctx, given)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", given, withRights(err))
	}
	t.Given = given
	return t, nil
}

func find(ctx context.Context, given string) (*Target, error) {
	if kind, name, explicit := strings.Cut(given, ":"); explicit {
		switch Kind(kind) {
		case KindPID:
			pid, err := strconv.Atoi(name)
			if err != nil || pid <= 0 {
				return nil, fmt.Errorf("%q is no PID", name)
			}
			return byPID(pid)
		case KindNetNS:
			return byName(name)
		case KindPodman, KindDocker:
			return engines[Kind(kind)].find(ctx, name)
		}
	}
	if strings.Contains(given, "/") {
		return byPath(given)
	}
	if pid, err := strconv.Atoi(given); err == nil && pid > 0 && pid <= maxPID {
		return byPID(pid)
	}
	return anywhere(ctx, given)
}

// maxPID is the kernel's PID_MAX_LIMIT. The short id of a container, which may
// be all digits, is longer.
const maxPID = 1 << 22

// anywhere looks for a name in all places, and wants one answer.
func anywhere(ctx context.Context, name string) (*Target, error) {
	var found []*Target
	none := fmt.Sprintf("no namespace in %s and no container of Podman or Docker has this name", netnsDir)
	for _, look := range []func() (*Target, error){
		func() (*Target, error) { return byName(name) },
		func() (*Target, error) { return engines[KindPodman].find(ctx, name) },
		func() (*Target, error) { return engines[KindDocker].find(ctx, name) },
	} {
		t, err := look()
		switch {
		case err == nil:
			found = append(found, t)
		case errors.As(err, new(unasked)):
			none += "; " + err.Error()
		case !isNotFound(err):
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, errors.New(none)
	}
	for _, t := range found[1:] {
		if t.ID != found[0].ID {
			return nil, fmt.Errorf("it may be %s:%s or %s:%s: say which", found[0].Kind, name, t.Kind, name)
		}
	}
	return found[0], nil
}

func byName(name string) (*Target, error) {
	if name == "" || name != filepath.Base(name) || name == ".." || name == "." {
		return nil, fmt.Errorf("%q is no name of a namespace", name)
	}
	path := filepath.Join(netnsDir, name)
	id, err := identify(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound("there is no namespace " + path)
	}
	if err != nil {
		return nil, err
	}
	return &Target{Kind: KindNetNS, Label: name, Path: path, ID: id}, nil
}

var (
	procPath   = regexp.MustCompile(`^/proc/([0-9]+)/ns/net$`)
	threadPath = regexp.MustCompile(`^/proc/[0-9]+/task/([0-9]+)/ns/net$`)
)

func byPath(path string) (*Target, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if filepath.Dir(path) == netnsDir {
		return byName(filepath.Base(path))
	}
	if m := procPath.FindStringSubmatch(path); m != nil {
		if pid, err := strconv.Atoi(m[1]); err == nil {
			return byPID(pid)
		}
	}
	id, err := identify(path)
	if err != nil {
		return nil, err
	}
	label, err := pathLabel(path)
	if err != nil {
		return nil, err
	}
	return &Target{Kind: KindPath, Label: label, Path: path, ID: id}, nil
}

// pathLabel is a label for a namespace that is known by its path alone: its name,
// as far as nobody but root gives such names in its folder.
func pathLabel(path string) (string, error) {
	if m := threadPath.FindStringSubmatch(path); m != nil {
		tid, err := strconv.Atoi(m[1])
		if err != nil {
			return "", err
		}
		started, err := proc.Started(tid)
		return processLabel(tid, started), err
	}
	folder := filepath.Dir(path)
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: folder, Err: err}
	}
	if st.Mode&0o022 != 0 || strings.HasPrefix(path, "/proc/") {
		// Anybody may give it any name, or whoever made the process: of no use
		// to know it by again.
		var its unix.Stat_t
		err := unix.Stat(path, &its)
		return fmt.Sprintf("netns-%x-%x-%d", its.Dev, its.Ino, its.Ctim.Nano()), err
	}
	return ownedLabel(filepath.Base(path), st.Uid), nil
}

// byPID finds the namespace of a process. The start time is read on both sides
// of it: so it is not another's who got the PID in between.
func byPID(pid int) (*Target, error) {
	started, err := proc.Started(pid)
	if err != nil {
		return nil, err
	}
	t := &Target{Kind: KindPID, Path: fmt.Sprintf("/proc/%d/ns/net", pid), PID: pid, Started: started}
	t.Label = processLabel(pid, started)
	id, failed := identify(t.Path)
	again, err := proc.Started(pid)
	if err == nil && again != started {
		err = fmt.Errorf("process %d has ended", pid)
	}
	if err == nil {
		t.ID, err = id, failed
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// processLabel is a label for what is found by a process: the name of its unit or
// machine, or a name that no other process ever has. Whoever has the label of
// another that is gone gets its addresses, so it is not what the process calls
// itself.
func processLabel(pid int, started uint64) string {
	if h, err := proc.Open(pid, started); err == nil {
		defer h.Close()
		if unit, err := h.Unit(); err == nil && unit != "" && mapping.CheckLabel(unit) == nil {
			return unit
		}
	}
	return fmt.Sprintf("pid-%d-%d", pid, started)
}

// ownedLabel is a label for what somebody other than root names: it gets nothing of
// what root calls so.
func ownedLabel(name string, owner uint32) string {
	if trust.UID(owner) {
		return name
	}
	return fmt.Sprintf("uid-%d-%s", owner, name)
}

// alive reports whether a process is still the one that started then.
func alive(pid int, started uint64) bool {
	now, err := proc.Started(pid)
	return err == nil && now == started
}

// noNamespace is the error that a path leads nowhere, or to something else.
type noNamespace struct{ error }

func (e noNamespace) Unwrap() error { return e.error }

// identify is the identity of the network namespace that a path leads to.
func identify(path string) (string, error) {
	fd, id, err := openNamespace(path)
	_ = unix.Close(fd)
	return id, err
}

// openNamespace opens the network namespace that a path leads to, and tells its
// identity. What is there is known before it is opened: others may have put there
// what does something when it is, a FIFO or a device.
func openNamespace(path string) (fd int, id string, err error) {
	failed := func(err error) (int, string, error) {
		return -1, "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	there, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return -1, "", noNamespace{&fs.PathError{Op: "open", Path: path, Err: err}}
	}
	if err != nil {
		return failed(err)
	}
	defer unix.Close(there)
	none := noNamespace{fmt.Errorf("%s is not a network namespace", path)}
	var on unix.Statfs_t
	if err := unix.Fstatfs(there, &on); err != nil {
		return failed(err)
	}
	if on.Type != unix.NSFS_MAGIC {
		return -1, "", none
	}
	if fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", there), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
		return failed(err)
	}
	var st unix.Stat_t
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err == nil && kind == unix.CLONE_NEWNET {
		err = unix.Fstat(fd, &st)
	} else {
		err = none
	}
	if err != nil {
		unix.Close(fd)
		return -1, "", err
	}
	return fd, fmt.Sprintf("%x:%x", st.Dev, st.Ino), nil
}

// own is the identity of the caller's namespace, which is taken for the host's.
func own() (string, error) { return identify("/proc/thread-self/ns/net") }

// withRights says what is missing where the kernel refused.
func withRights(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w: it takes root", err)
	}
	return err
}
