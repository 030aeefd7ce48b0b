package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/mapping/trust"
)

// lockWait is how long a natless that starts at the same socket is waited for.
const lockWait = 2 * time.Second

// socket is a listening Unix socket and the file it stands at.
type socket struct {
	*net.UnixListener
	path   string
	file   fs.FileInfo // as it was made, to know it again
	reader bool        // who comes by it changes nothing
	places *places
}

// listen makes the socket at path, for root alone or, with a group, for its
// members too. A socket that a crashed daemon left is replaced; one on which
// somebody answers, or any other file, is an error and is left as it is.
func listen(path, group string) (s *socket, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening the control socket %s: %w", path, err)
		}
	}()
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	if err := trust.Dir(dir); err != nil {
		return nil, err
	}
	// Two daemons that start at once would each take the other's new socket for a
	// stale one.
	lock, err := trust.Lock(path+".lock", lockWait)
	if err != nil {
		return nil, err
	}
	defer lock.Release()
	if err := clearStale(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: private}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, bare(err)
	}
	s = &socket{UnixListener: l.(*net.UnixListener), path: path, places: newPlaces(defaultLimits)}
	s.SetUnlinkOnClose(false) // Close sees to it, and looks first whose file it is
	if s.file, err = os.Lstat(path); err == nil && group != "" {
		err = errors.Join(os.Lchown(path, -1, gid), os.Chmod(path, 0o660))
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close stops listening and removes the file, unless another has taken its
// place. It may be called again.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if now, statErr := os.Lstat(s.path); statErr == nil && s.file != nil && os.SameFile(now, s.file) {
		return errors.Join(err, os.Remove(s.path))
	}
	return err
}

// ReaderPath is where the socket is for those who only read, of the socket at a
// path: beside it.
func ReaderPath(path string) string {
	base, isSock := strings.CutSuffix(path, ".sock")
	if isSock {
		return base + "-ro.sock"
	}
	return path + "-ro"
}

// private gives the socket its mode before it has a name: there is no moment
// in which others could connect. The kernel takes the mode of the file from
// that of the socket when it binds.
func private(_, _ string, c syscall.RawConn) error {
	var chmodErr error
	err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, chmodErr)
}

// CheckGroups looks whether there are the groups that a configuration names.
func CheckGroups(groups ...string) error {
	for _, group := range groups {
		if _, err := groupID(group); err != nil {
			return fmt.Errorf("opening the control socket to group %s: %w", group, err)
		}
	}
	return nil
}

// groupID finds a group by its name or number; -1 for none.
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if id, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, config.Wrong(err)
	}
	return strconv.Atoi(g.Gid)
}

// makeDir makes the directory if there is none, open to all whatever the
// umask: the socket itself says who may connect.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// clearStale removes a socket on which nobody answers.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("something is there that is not a socket: move it away, or choose another path (control.socket)")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		conn.Close()
		return errors.New("another natless answers there")
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("somebody may be listening there: %w", bare(err))
	}
	return os.Remove(path)
}

// RemoveStale removes the socket at path if it is one that a killed daemon left,
// and reports whether it did. Whatever else is there stays.
func RemoveStale(path string) bool {
	_ = clearStale(ReaderPath(path))
	_, err := os.Lstat(path)
	return err == nil && clearStale(path) == nil
}

// bare is the reason inside an error of package net, which repeats the path.
func bare(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// peer is the process at the other end, by the credentials it connected with.
type peer struct {
	unix.Ucred
	known  bool
	reader bool // came by the socket for those who only read
}

func (peer) Network() string { return "unix" }

func (p peer) String() string {
	if !p.known {
		return "unknown"
	}
	return fmt.Sprintf("pid %d, uid %d, gid %d", p.Pid, p.Uid, p.Gid)
}

// trusted reports whether the peer is root, or whoever runs the daemon.
func (p peer) trusted() bool { return p.known && (p.Uid == 0 || int(p.Uid) == os.Geteuid()) }

// by is the peer as what it changes is marked with.
func (p peer) by() string {
	if !p.known {
		return "an unknown process"
	}
	if name := p.user(); name != "" {
		return fmt.Sprintf("uid %d (%s), pid %d", p.Uid, name, p.Pid)
	}
	return fmt.Sprintf("uid %d, pid %d", p.Uid, p.Pid)
}

// user is the name of the peer's user, "" if none is known.
func (p peer) user() string {
	u, err := user.LookupId(strconv.FormatUint(uint64(p.Uid), 10))
	if err != nil {
		return ""
	}
	return u.Username
}

func peerOf(c *net.UnixConn) peer {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil {
		return peer{}
	}
	return peer{Ucred: *cred, known: true}
}

type peerKey struct{}

// withPeer lets a request tell who it is from.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, c.RemoteAddr())
}

func (x exchange) peer() peer {
	p, _ := x.r.Context().Value(peerKey{}).(peer)
	return p
}
