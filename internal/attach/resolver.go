package attach

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/control"
)

// File is a resolv.conf that is pointed elsewhere.
type File struct {
	Path string `json:"path"`

	// The path is inside the root of this process; 0: of the host.
	PID     int    `json:"pid,omitempty"`
	Started uint64 `json:"started,omitempty"`

	Absent bool     `json:"absent,omitempty"` // there was none
	Dirs   []string `json:"dirs,omitempty"`   // nor these, outermost first
	Was    string   `json:"was,omitempty"`
	Set    string   `json:"set"`
}

const (
	resolvConf  = "/etc/resolv.conf"
	maxResolver = 64 << 10 // bytes of a resolv.conf
)

// netnsEtc is where `ip netns exec` takes files from in place of those in /etc.
var netnsEtc = "/etc/netns"

// resolvers are the addresses where natless's DNS64 answers those who are not the
// host itself, on the only port that a resolv.conf knows, and that the host has.
func resolvers(s control.Status) (list []netip.Addr) {
	if s.DNS64 == nil {
		return nil
	}
	for _, a := range s.DNS64.Listen {
		if a.Port() == 53 && a.Addr().Is6() && a.Addr().IsGlobalUnicast() && !slices.Contains(s.DNS64.Absent, a) {
			list = append(list, a.Addr())
		}
	}
	return list
}

// nameserver64 is the one of them that a namespace has a route to, or else the first,
// for which it gets one.
func nameserver64(s control.Status, n *Namespace) (netip.Addr, error) {
	list := resolvers(s)
	for _, a := range list {
		if _, ok := n.wayTo(a); ok {
			return a, nil
		}
	}
	switch {
	case len(list) > 0:
		return list[0], nil
	case s.DNS64 == nil:
		return netip.Addr{}, errors.New("--dns without an address: natless's DNS64 is off; natless run --dns64 ADDRESS has it on")
	}
	where := make([]string, len(s.DNS64.Listen))
	for i, a := range s.DNS64.Listen {
		where[i] = a.String()
	}
	if len(s.DNS64.Absent) > 0 {
		return netip.Addr{}, fmt.Errorf("--dns without an address: natless's DNS64 listens at %s, but no link of this host that is up has %v: give it to one (ip address add %v dev LINK)",
			strings.Join(where, ", "), s.DNS64.Absent[0].Addr(), netip.PrefixFrom(s.DNS64.Absent[0].Addr(), s.DNS64.Absent[0].Addr().BitLen()))
	}
	return netip.Addr{}, fmt.Errorf("--dns without an address: natless's DNS64 listens at %s, and not at port 53 of a global or unique local IPv6 address; natless run --dns64 ADDRESS has it there",
		strings.Join(where, ", "))
}

// leadToNames plans a route to natless's DNS64 where the resolver is to be that,
// and the target has none: the way that packets to pref64 take.
func (w *work) leadToNames(from netip.Addr) error {
	a := w.options.DNS
	if !slices.Contains(w.names, a) {
		return nil
	}
	if _, ok := w.n.wayTo(a); ok {
		return nil
	}
	r := Route{From: from}
	if w.state.Route != nil {
		r = *w.state.Route
	} else {
		way, ok := w.n.wayTo(w.probe)
		if !ok {
			return fmt.Errorf("it has no route to %v", a)
		}
		name, err := w.n.linkName(way.link)
		if err != nil {
			return err
		}
		r.Via, r.Link = way.via, name
	}
	r.To = netip.PrefixFrom(a, a.BitLen())
	w.state.Names = &r
	return nil
}

// resolver plans that programs in the target ask a resolver, and no other.
// Nothing is changed yet.
func (t *Target) resolver(address netip.Addr) (*File, error) {
	f, err := t.resolverFile()
	if err != nil {
		return nil, fmt.Errorf("its resolver: %w", withRights(err))
	}
	f.Was, err = f.read()
	if errors.Is(err, fs.ErrNotExist) {
		f.Absent, err = true, nil
		for dir := filepath.Dir(f.Path); f.PID == 0 && !exists(dir); dir = filepath.Dir(dir) {
			f.Dirs = append([]string{dir}, f.Dirs...)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("its resolver: %w", withRights(err))
	}
	f.Set = pointed(f.Was, address)
	return f, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// resolverFile is the file that the target's programs read.
func (t *Target) resolverFile() (*File, error) {
	if t.Kind == KindNetNS {
		return &File{Path: filepath.Join(netnsEtc, t.Label, "resolv.conf")}, nil
	}
	if t.PID == 0 {
		return nil, errors.New("a namespace that is known by its path alone has none: name it in " + netnsDir + ", or give a PID")
	}
	inside := &File{Path: resolvConf, PID: t.PID, Started: t.Started}
	its, err := inside.stat()
	if errors.Is(err, fs.ErrNotExist) {
		return inside, nil
	}
	if err != nil {
		return nil, err
	}
	same := func(path string) bool {
		var st unix.Stat_t
		return unix.Stat(path, &st) == nil && st.Dev == its.Dev && st.Ino == its.Ino
	}
	if same(resolvConf) {
		return nil, fmt.Errorf("the %s of process %d is the host's own", resolvConf, t.PID)
	}
	if t.resolvConf != "" && same(t.resolvConf) {
		return &File{Path: t.resolvConf}, nil // the same file, and there when the container has stopped
	}
	return inside, nil
}

// pointed is a resolv.conf with another resolver, and the rest as it was.
func pointed(text string, address netip.Addr) string {
	lines := []string{"# by natless attach", "nameserver " + address.String()}
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 && words[0] != "nameserver" {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// open opens the file where it is. Inside another's root, no link leads out of
// it: what is there is not trusted.
func (f *File) open(flags int) (*os.File, error) {
	if f.PID == 0 {
		return os.OpenFile(f.Path, flags|unix.O_CLOEXEC, 0o644)
	}
	fd, err := f.openInside(f.Path, flags|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Path), nil
}

// openInside opens a path in the root of the file's process.
func (f *File) openInside(path string, flags int) (fd int, err error) {
	failed := func(err error) (int, error) {
		return -1, &fs.PathError{Op: "open", Path: fmt.Sprintf("%s of process %d", path, f.PID), Err: err}
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", f.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(root)
	if !alive(f.PID, f.Started) {
		return failed(unix.ESRCH)
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o644
	}
	if fd, err = unix.Openat2(root, path, &how); err != nil {
		return failed(err)
	}
	return fd, nil
}

// remove removes the file itself.
func (f *File) remove() error {
	if f.PID == 0 {
		return os.Remove(f.Path)
	}
	dir, err := f.openInside(filepath.Dir(f.Path), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Unlinkat(dir, filepath.Base(f.Path), 0)
}

func (f *File) stat() (st unix.Stat_t, err error) {
	file, err := f.open(unix.O_RDONLY)
	if err != nil {
		return st, err
	}
	defer file.Close()
	err = unix.Fstat(int(file.Fd()), &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s of process %d is not a file", f.Path, f.PID)
	}
	return st, err
}

func (f *File) read() (string, error) {
	file, err := f.open(unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxResolver+1))
	if err == nil && len(b) > maxResolver {
		err = fmt.Errorf("%s is longer than %d bytes", f.Path, maxResolver)
	}
	return string(b), err
}

// write writes into the file that is there: a container has that one mounted,
// whatever else gets its name.
func (f *File) write(text string, flags int) error {
	file, err := f.open(unix.O_WRONLY | unix.O_TRUNC | flags)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Close())
}

func (f *File) point() error {
	for _, dir := range f.Dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	flags := 0
	if f.Absent {
		flags = unix.O_CREAT | unix.O_EXCL
	}
	return f.write(f.Set, flags)
}

// restore gives the file its text back, if it still has what was set, or a part
// of either as when the writer was killed.
func (f *File) restore() (stays string, err error) {
	now, err := f.read()
	if errors.Is(err, fs.ErrNotExist) {
		return "", f.removeDirs()
	}
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(f.Set, now) && !strings.HasPrefix(f.Was, now) {
		return f.Path + " was changed by others", nil
	}
	if f.Absent {
		if err := f.remove(); err != nil {
			return "", err
		}
		return "", f.removeDirs()
	}
	return "", f.write(f.Was, 0)
}

// removeDirs removes the folders that were made, unless others use them.
func (f *File) removeDirs() error {
	for i := len(f.Dirs) - 1; i >= 0; i-- {
		err := os.Remove(f.Dirs[i])
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}
