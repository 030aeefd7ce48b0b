package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

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
	maxResolver = 16 << 10 // bytes of a resolv.conf: what it was and is goes into the record
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
	f.Set = pointed(f.Was, address)
	return f, nil
}

// resolverFile is the file that the target's programs read, as it is.
func (t *Target) resolverFile() (*File, error) {
	if t.Kind == KindNetNS {
		named := &File{Path: filepath.Join(netnsEtc, t.Label, "resolv.conf")}
		_, err := named.look()
		return named, err
	}
	if t.PID == 0 {
		return nil, errors.New("a namespace that is known by its path alone has none: name it in " + netnsDir + ", or give a PID")
	}
	inside := &File{Path: resolvConf, PID: t.PID, Started: t.Started}
	its, err := inside.look()
	if err != nil || inside.Absent {
		return inside, err
	}
	same := func(path string) bool {
		var st unix.Stat_t
		return unix.Stat(path, &st) == nil && uint64(st.Dev) == its.Dev && st.Ino == its.Ino
	}
	if same(resolvConf) {
		return nil, fmt.Errorf("%v: %w", inside, errHosts)
	}
	// The same file, and there when the container has stopped; if nobody but root
	// decides what is there then.
	if path, err := filepath.EvalSymlinks(t.resolvConf); err == nil && filepath.IsAbs(path) {
		kept := &File{Path: path}
		if now, err := kept.look(); err == nil && now.Dev == its.Dev && now.Ino == its.Ino {
			return kept, nil
		}
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

// base is the directory below which a path of the host is walked with care.
func (f *File) base() string {
	if etc := filepath.Dir(netnsEtc) + "/"; strings.HasPrefix(f.Path, netnsEtc+"/") {
		return etc
	}
	return "/"
}

// look notes what is in the file, or that there is none.
func (f *File) look() (answer, error) {
	a, err := f.ask(jobLook)
	if err == nil {
		*f = a.File
	}
	return a, err
}

// point has the file be what was planned, if it is still what it was then.
func (f *File) point() error {
	_, err := f.ask(jobPoint)
	return err
}

// restore gives the file its text back, if it still has what was set, or a part
// of either as when the writer was killed. The line says that it is another's by now.
func (f *File) restore() (stays string, err error) {
	a, err := f.ask(jobRestore)
	if err != nil {
		return "", fmt.Errorf("%w; it stays as it is", err)
	}
	return a.Stays, nil
}

// The jobs, as they are done by the process for it.

func (j *job) look(a *answer) error {
	o, err := j.open()
	if absent(err) {
		a.File.Absent = true
		if j.Base != "" {
			a.File.Dirs = j.missing()
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer o.close()
	a.Dev, a.Ino = uint64(o.stat.Dev), o.stat.Ino
	a.File.Was, err = o.text()
	if err == nil && !utf8.ValidString(a.File.Was) {
		err = errors.New("it is not text")
	}
	return err
}

// missing lists the folders that there are not, outermost first.
func (j *job) missing() (dirs []string) {
	dir, _ := split(j.Path)
	at := j.Base
	for name := range parts(dir) {
		at = filepath.Join(at, name)
		if _, err := os.Lstat(at); absent(err) {
			dirs = append(dirs, at)
		}
	}
	return dirs
}

func (j *job) point() error {
	if j.File.Absent {
		return j.create()
	}
	o, err := j.open()
	if err != nil {
		return err
	}
	defer o.close()
	now, err := o.text()
	if err == nil && now != j.File.Was {
		err = errors.New("somebody else has just changed it")
	}
	if err != nil {
		return err
	}
	return o.write(j.File.Set)
}

// create makes the file, and on the host the folders that are missing.
func (j *job) create() error {
	for _, dir := range j.File.Dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	dir, err := j.folder()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	_, name := split(j.Path)
	o := &opened{}
	o.fd, err = unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer o.close()
	return o.write(j.File.Set)
}

func (j *job) restore() (stays string, err error) {
	f := &j.File
	o, err := j.open()
	if absent(err) {
		return "", f.removeDirs()
	}
	if err != nil {
		return "", err
	}
	defer o.close()
	now, err := o.text()
	switch {
	case err != nil:
		return "", err
	case !strings.HasPrefix(f.Set, now) && !strings.HasPrefix(f.Was, now):
		return f.Path + " was changed by others", nil
	case !f.Absent:
		return "", o.write(f.Was)
	}
	dir, err := j.folder()
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	_, name := split(j.Path)
	if err := unix.Unlinkat(dir, name, 0); err != nil && !absent(err) {
		return "", err
	}
	return "", f.removeDirs()
}

// removeDirs removes the folders that were made, unless others use them.
func (f *File) removeDirs() error {
	for _, dir := range slices.Backward(f.Dirs) {
		err := os.Remove(dir)
		if err != nil && !absent(err) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

// split is a path's folder and the name in it.
func split(path string) (dir, name string) { return filepath.Dir("/" + path), filepath.Base(path) }

// parts are the names in an absolute path.
func parts(path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range strings.SplitSeq(path, "/") {
			if name != "" && !yield(name) {
				return
			}
		}
	}
}
