package attach

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/proc"
)

// The files that attach changes lie where a container decides what a name leads
// to, and how long it takes to find out: behind a symbolic link, a FIFO or a file
// system of its own (FUSE) that never answers. So a process of their own works on
// each, this program called by another name. It begins at the target's root
// directory, from which no link leads out. It has no capability, and acts as the
// user that root of the target's user namespace is on the host: it can do what the
// container could do itself. And it is left behind where it hangs, for the kernel
// may not let go of it even when it is killed.

// insideName is by what the program knows that it is that process.
const insideName = "natless: on a file of a target"

func init() {
	if len(os.Args) == 1 && os.Args[0] == insideName {
		// Package initialisation stays on one thread, whose rights it gives up.
		serveInside()
		unix.Exit(0)
	}
}

// fileTime is how long the work on a file may take.
var fileTime = 3 * time.Second

// maxAnswer is longer than any answer is, in bytes.
const maxAnswer = 1 << 20

// The jobs that there are.
const (
	jobLook    = "look"
	jobPoint   = "point"
	jobRestore = "restore"
)

// job is what the process is asked to do, beginning at the directory that it gets
// as descriptor 3.
type job struct {
	Do   string `json:"do"`
	File File   `json:"file"`
	Path string `json:"path"`           // of the file from that directory
	Base string `json:"base,omitempty"` // the directory, where it is the host's
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

// answer is what it found or did.
type answer struct {
	File   File   `json:"file"`
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Stays  string `json:"stays"`
	Failed string `json:"failed"`
}

// ask has a job done on the file.
func (f *File) ask(do string) (a answer, err error) {
	if a, err = f.asked(do); err != nil {
		err = fmt.Errorf("%v: %w", f, err)
	}
	return a, err
}

// String names the file as errors do.
func (f *File) String() string {
	if f.PID == 0 {
		return f.Path
	}
	return fmt.Sprintf("%s of process %d", f.Path, f.PID)
}

func (f *File) asked(do string) (answer, error) {
	j := job{Do: do, File: *f, UID: os.Geteuid(), GID: os.Getegid()}
	root, err := f.begin(&j)
	if err != nil {
		return answer{}, err
	}
	defer root.Close()
	request, err := json.Marshal(j)
	if err != nil {
		return answer{}, err
	}
	out, err := runInside(request, root)
	if err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		return answer{}, fmt.Errorf("the process that was to see to it has ended without an answer: %w", err)
	}
	if a.Failed != "" {
		err = errors.New(a.Failed)
	}
	return a, err
}

// begin opens the directory where a job begins.
func (f *File) begin(j *job) (*os.File, error) {
	if f.PID == 0 {
		j.Base = f.base()
		j.Path = f.Path[len(j.Base):]
		return os.OpenFile(j.Base, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	j.Path = f.Path
	h, err := proc.Open(f.PID, f.Started)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	root, err := h.Root()
	if err != nil {
		return nil, err
	}
	if j.UID, j.GID, err = h.Owner(); err == nil {
		err = notHosts(h, root)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// errHosts says that a process has no resolv.conf but that of all others.
var errHosts = errors.New("it is the host's own")

// notHosts refuses a process that has no file system of its own.
func notHosts(h *proc.Handle, root *os.File) error {
	shares, err := h.SharesNamespace("mnt")
	if err != nil || !shares {
		return err
	}
	same, err := sameFile(root, "/")
	if err == nil && same {
		err = errHosts
	}
	return err
}

func sameFile(f *os.File, path string) (bool, error) {
	its, err := f.Stat()
	if err != nil {
		return false, err
	}
	other, err := os.Stat(path)
	return err == nil && os.SameFile(its, other), err
}

// runInside runs the process. One that does not end in time is killed, and not
// waited for.
func runInside(request []byte, root *os.File) ([]byte, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c := exec.Cmd{Path: "/proc/self/exe", Args: []string{insideName}, Stdin: bytes.NewReader(request), Stdout: in, ExtraFiles: []*os.File{root}}
	err = c.Start()
	in.Close()
	if err != nil {
		return nil, fmt.Errorf("starting a process for it: %w", err)
	}
	go func() { _ = c.Wait() }() // what went wrong is in its answer
	if err := out.SetReadDeadline(time.Now().Add(fileTime)); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(out, maxAnswer))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.Process.Kill()
		return nil, fmt.Errorf("its file system did not answer within %v", fileTime)
	}
	return text, err
}

// serveInside is the process: it does the job that it reads, and writes what came
// of it.
func serveInside() {
	time.AfterFunc(2*fileTime, func() { unix.Exit(1) }) // if nobody is there any more to kill it
	var j job
	var a answer
	err := json.NewDecoder(os.Stdin).Decode(&j)
	if err == nil {
		err = giveUpRights(j.UID, j.GID)
	}
	if err == nil {
		a, err = j.do()
	}
	if err != nil {
		a.Failed = err.Error()
	}
	text, _ := json.Marshal(a) // of texts and numbers only
	_, _ = os.Stdout.Write(text)
}

// giveUpRights has the calling thread act on files as a user and nothing more. The
// ids are those for files alone: whoever runs as that user may neither trace nor
// kill who has them (ptrace(2), kill(2)).
func giveUpRights(uid, gid int) error {
	failed := func(err error) error { return fmt.Errorf("giving up rights: %w", err) }
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return failed(err)
	}
	other := uid != os.Geteuid() || gid != os.Getegid()
	// Not by package syscall, which does so for all threads.
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
	if errno != 0 && other { // a user namespace may forbid it to its own root
		return failed(errno)
	}
	if err := onFilesAs(uid, gid); other && err != nil {
		return failed(err)
	}
	// While it has capabilities that a container lacks nobody there can trace it,
	// and after this nobody can: its root directory is the host's.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return failed(err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return failed(err)
	}
	return nil
}

// onFilesAs sets the calling thread's ids for files.
func onFilesAs(uid, gid int) error {
	for _, set := range []struct {
		call func(int) (int, error)
		id   int
	}{{unix.SetfsgidRetGid, gid}, {unix.SetfsuidRetUid, uid}} {
		_, _ = set.call(set.id) // which never fails
		if now, _ := set.call(-1); now != set.id {
			return fmt.Errorf("acting as user %d, group %d: %w", uid, gid, unix.EPERM)
		}
	}
	return nil
}

// do does the job.
func (j *job) do() (a answer, err error) {
	a.File = j.File
	switch j.Do {
	case jobLook:
		err = j.look(&a)
	case jobPoint:
		err = j.point()
	case jobRestore:
		a.Stays, err = j.restore()
	default:
		err = fmt.Errorf("no job is called %q", j.Do)
	}
	return a, err
}

// opened is a file that is open for reading and writing: one object, whatever
// becomes of its name.
type opened struct {
	fd   int
	stat unix.Stat_t
}

func (o *opened) close() { unix.Close(o.fd) }

// text reads the file whole.
func (o *opened) text() (string, error) {
	buf := make([]byte, maxResolver+1)
	n := 0
	for n < len(buf) {
		k, err := unix.Pread(o.fd, buf[n:], int64(n))
		if err != nil {
			return "", err
		}
		if k == 0 {
			break
		}
		n += k
	}
	if n > maxResolver {
		return "", fmt.Errorf("it is longer than %d bytes", maxResolver)
	}
	return string(buf[:n]), nil
}

// write replaces what is in the file. One that is killed over it leaves the
// beginning of the text.
func (o *opened) write(text string) error {
	if err := unix.Ftruncate(o.fd, 0); err != nil {
		return err
	}
	for n := 0; n < len(text); {
		k, err := unix.Pwrite(o.fd, []byte(text[n:]), int64(n))
		if err != nil {
			return err
		}
		n += k
	}
	return nil
}

// root is the descriptor of the directory where a job begins.
const root = 3

// folder opens the folder of the file.
func (j *job) folder() (int, error) {
	dir, _ := split(j.Path)
	if j.Base != "" {
		return hostFolder(dir, j.UID, j.GID)
	}
	return unix.Openat2(root, dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// hostFolder opens a folder of the host, if nobody but its owner decides what is
// in any of those that lead there.
func hostFolder(dir string, owner, group int) (int, error) {
	at := root
	for name := range parts(dir) {
		fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if at != root {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		if err == nil && !keptBy(&st, owner, group) {
			err = fmt.Errorf("others may change what is in the folder %s on the way there: give it to root alone", name)
		}
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		at = fd
	}
	return unix.FcntlInt(uintptr(at), unix.F_DUPFD_CLOEXEC, root+1)
}

// keptBy reports whether nobody but its owner and the owner's group may change what
// is in a folder. In one as /tmp others may, but not what is the owner's.
func keptBy(st *unix.Stat_t, owner, group int) bool {
	if int(st.Uid) != owner {
		return false
	}
	theirs := uint32(0o002)
	if int(st.Gid) != group {
		theirs = 0o022
	}
	return uint32(st.Mode)&theirs == 0 || uint32(st.Mode)&unix.S_ISVTX != 0
}

// open opens the file, which has to be a regular one of its owner's; fs.ErrNotExist
// where there is none. What it is is known before it is opened: to open a device
// or a FIFO does something.
func (j *job) open() (*opened, error) {
	dir, err := j.folder()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	_, name := split(j.Path)
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	o := &opened{}
	if err := unix.Fstat(fd, &o.stat); err != nil {
		return nil, err
	}
	var on unix.Statfs_t
	if err := unix.Fstatfs(fd, &on); err != nil {
		return nil, err
	}
	switch {
	case o.stat.Mode&unix.S_IFMT == unix.S_IFLNK:
		return nil, errors.New("it is a symbolic link, which natless does not follow")
	case o.stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("it is not a regular file")
	case kernels(uint32(on.Type)):
		return nil, errors.New("it is a setting of the kernel's")
	case int(o.stat.Uid) != j.UID:
		return nil, fmt.Errorf("it belongs to user %d, and not to root of the target's user namespace, which is user %d", o.stat.Uid, j.UID)
	}
	o.fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	return o, err
}

// kernels reports whether a file system's regular files are the kernel's own,
// which its root may change without a capability, or which block who reads them.
func kernels(kind uint32) bool {
	switch kind {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.EFIVARFS_MAGIC:
		return true
	}
	return false
}

// absent reports whether an error is that there is no such file, or no folder for
// it.
func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
