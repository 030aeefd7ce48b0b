package hostnet

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// claims tells when another program writes a setting that natless has made. A
// program that wants its link to forward writes 1, whether or not 1 is there:
// where natless came first, that changes nothing that could be seen later. It is
// seen here (inotify(7)), and so both orders come to the same: the link is that
// program's too, and natless's table does not keep it from forwarding.
type claims struct {
	file *os.File // nil: nothing is seen
	fd   int      // its own

	mu      sync.Mutex
	watched map[int32]claim // by watch descriptor
	written []setting       // since they were last asked for
}

// claim is a setting and its file, held open so that the kernel keeps the inode
// that is watched.
type claim struct {
	setting setting
	file    *os.File
}

func newClaims() *claims {
	c := &claims{watched: map[int32]claim{}}
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
		c.file, c.fd = os.NewFile(uintptr(fd), "inotify"), fd
	}
	return c
}

func (c *claims) close() {
	if c == nil || c.file == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.file.Close()
	for _, w := range c.watched {
		w.file.Close()
	}
	c.watched = nil
}

// forwards tells the settings that make links forward.
func (s setting) forwards() bool { return s.Key == keyForwarding || s.Key == keyForceForwarding }

// watch has writes from now on count as those of others.
func (c *claims) watch(s setting, path string) {
	if c == nil || c.file == nil || !s.forwards() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f, err := os.Open(path)
	if err != nil || c.watched == nil {
		return // the link went
	}
	wd, err := unix.InotifyAddWatch(c.fd, path, unix.IN_MODIFY)
	if err != nil {
		f.Close()
		return
	}
	if w, ok := c.watched[int32(wd)]; ok {
		w.file.Close()
	}
	c.watched[int32(wd)] = claim{s, f}
}

// ignore has writes not count until watch is called: natless is about to write.
func (c *claims) ignore(s setting) {
	if c == nil || c.file == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for wd, w := range c.watched {
		if w.setting.same(s) {
			c.drop(wd)
		}
	}
	c.written = slices.DeleteFunc(c.written, s.same)
}

func (c *claims) drop(wd int32) {
	_, _ = unix.InotifyRmWatch(c.fd, uint32(wd)) // gone with its link
	c.watched[wd].file.Close()
	delete(c.watched, wd)
}

// forget drops the watches of settings whose link is gone.
func (c *claims) forget(v *view) {
	if c == nil || c.file == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for wd, w := range c.watched {
		if _, there := w.setting.name(v); !there {
			c.drop(wd)
		}
	}
}

// relay notes what is written, and wakes, until the claims are closed.
func (c *claims) relay(wake chan<- struct{}) {
	if c == nil || c.file == nil {
		return
	}
	buf := make([]byte, eventBytes)
	for {
		n, err := c.file.Read(buf)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		c.mu.Lock()
		c.note(buf[:max(n, 0)])
		c.mu.Unlock()
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// eventBytes holds many events at once.
const eventBytes = 4096

// note reads struct inotify_event: descriptor, mask, cookie and the length of
// the name that follows, which files have none of. mu is held.
func (c *claims) note(events []byte) {
	for ; len(events) >= unix.SizeofInotifyEvent; events = events[unix.SizeofInotifyEvent:] {
		wd, mask := int32(binary.NativeEndian.Uint32(events)), binary.NativeEndian.Uint32(events[4:])
		if w, ok := c.watched[wd]; ok && mask&unix.IN_MODIFY != 0 {
			c.written = append(c.written, w.setting)
		}
	}
}

// take returns what was written since it was last called.
func (c *claims) take() (list []setting) {
	if c == nil || c.file == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := make([]byte, eventBytes)
	for c.watched != nil { // or the descriptor is closed
		n, err := unix.Read(c.fd, buf)
		if err != nil {
			break // there are no more: it does not wait
		}
		c.note(buf[:n])
	}
	list, c.written = c.written, nil
	return list
}

// watchRecorded watches what an earlier run has set.
func (h *Host) watchRecorded(v *view) {
	for _, s := range h.rec.Settings {
		if name, ok := s.name(v); ok && s.Index != h.device {
			h.claims.watch(s, sysctlPath(s.Family, name, s.Key))
		}
	}
}

// yield leaves to others what they have written to the value that natless had
// set, and tells in words what that is.
func (h *Host) yield(v *view) (lines []string, err error) {
	for _, s := range h.claims.take() {
		i := h.rec.find(s)
		name, ok := s.name(v)
		if now, _ := readSysctl(sysctlPath(s.Family, name, s.Key)); i < 0 || !ok || now != s.Set {
			continue // taken back, or undone: then it is put back
		}
		h.claims.ignore(s)
		h.rec.Settings = slices.Delete(h.rec.Settings, i, i+1)
		if err := h.rec.save(); err != nil {
			return lines, err
		}
		lines = append(lines, "another program has set "+s.text(name, s.Set)+" too: natless neither bounds that nor takes it back")
	}
	h.claims.forget(v)
	return lines, nil
}
