package tun

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawQueue reads and writes with one system call per packet, past the runtime's
// poller: a worker has a thread of its own, and while packets are there it has
// nothing to wait for. When the kernel has none it lingers a little if many come,
// then it waits, for its rings and for an eventfd by which Close and Wake wake it.
type rawQueue struct {
	rings  []int // descriptors; packets are written to the first
	wake   int
	epoll  int // of all these
	shared *shared
	state  atomic.Int64  // calls in progress, plus closing and dead
	closed chan struct{} // closed with the descriptors

	// The reader's own.
	events []unix.EpollEvent // room for one of each ring and of wake
	ready  []unix.EpollEvent // those whose turn is to come
	fd     int               // the ring whose turn it is
	left   int               // of its turn
	more   bool              // a ring may have more than its last turn
	bulk   int               // reads until a bulk transfer counts as over
	gather bool              // as Gather asks

	_ [64]byte // another queue's state lies on another cache line
}

// shared is what the queues of one device have in common.
type shared struct {
	adopted bool
	open    atomic.Int32
}

// Bits of rawQueue.state above any count of calls.
const (
	closing = 1 << 32 // no call may begin
	dead    = 1 << 33 // the descriptors are closed
)

func newRawQueue(name string, flags uint16, s *shared) (_ *rawQueue, err error) {
	q := &rawQueue{wake: -1, epoll: -1, shared: s, closed: make(chan struct{})}
	defer func() {
		if err != nil {
			q.closeFiles()
		}
	}()
	if q.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if q.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := q.watch(q.wake); err != nil {
		return nil, err
	}
	if err := q.addRing(name, flags); err != nil {
		return nil, err
	}
	s.open.Add(1)
	return q, nil
}

// addRing attaches one more ring. Nobody may read yet.
func (q *rawQueue) addRing(name string, flags uint16) error {
	fd, err := attach(name, flags)
	if err != nil {
		return err
	}
	q.rings = append(q.rings, fd)
	return q.watch(fd)
}

// watch has look tell when there is something to read from the descriptor.
func (q *rawQueue) watch(fd int) error {
	err := unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	q.events = append(q.events, unix.EpollEvent{})
	return os.NewSyscallError("epoll_ctl", err)
}

func attach(name string, flags uint16) (fd int, err error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	if fd, err = openControl(); err != nil {
		return -1, err
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("TUNSETIFF: %w", explain(err))
	}
	return fd, nil
}

// enter begins a call that uses the descriptors; leave ends it. The last to
// leave a closing queue closes them, so that no call ever uses a number that
// meanwhile is another file's.
func (q *rawQueue) enter() bool {
	if q.state.Add(1) < closing {
		return true
	}
	q.leave()
	return false
}

func (q *rawQueue) leave() {
	if q.state.Add(-1) == closing && q.state.CompareAndSwap(closing, closing|dead) {
		q.destroy()
	}
}

func (q *rawQueue) destroy() {
	if q.shared.open.Add(-1) == 0 && q.shared.adopted {
		// Offloads and steering outlive a reader on a persistent device, and
		// the next one may not know what a super-packet is. A device that is
		// gone refuses.
		_ = setOffload(q.rings[0])(0)
		_ = unsteer(q.rings[0])
	}
	q.closeFiles()
	close(q.closed)
}

func (q *rawQueue) closeFiles() {
	for _, fd := range append(q.rings, q.wake, q.epoll) {
		unix.Close(fd)
	}
}

// Close implements Queue.
func (q *rawQueue) Close() error {
	if q.enter() {
		q.state.Or(closing)
		q.signal()
		q.leave()
	}
	<-q.closed
	return nil
}

// Wake implements Queue.
func (q *rawQueue) Wake() {
	if q.enter() {
		q.signal()
		q.leave()
	}
}

// signal sets the eventfd, unsignal takes it back and reports whether it was set.
func (q *rawQueue) signal() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(q.wake, one[:]) // fails only where it is set already
}

func (q *rawQueue) unsignal() bool {
	var count [8]byte
	_, err := unix.Read(q.wake, count[:])
	return err == nil
}

// Read implements Queue.
func (q *rawQueue) Read(buf []byte, off int) (int, Header, error) {
	return q.read(buf, off, true)
}

// ReadMore implements Queue.
func (q *rawQueue) ReadMore(buf []byte, off int) (n int, h Header, ok bool) {
	n, h, err := q.read(buf, off, false)
	return n, h, err == nil
}

// read reads a packet of this turn, or if there is none and it may, of the next.
func (q *rawQueue) read(buf []byte, off int, next bool) (int, Header, error) {
	if !q.enter() {
		return 0, Header{}, os.ErrClosed
	}
	defer q.leave()
	b := buf[off-HeaderLen:]
	for {
		if q.left == 0 && !next {
			return 0, Header{}, readError(unix.EAGAIN)
		}
		fd, err := q.next()
		if err != nil {
			return 0, Header{}, err
		}
		n, errno := transfer(unix.SYS_READ, fd, b)
		switch {
		case errno == 0 && n >= len(b):
			return 0, Header{}, errTooBig // cut off by the kernel without a word
		case errno == 0 && n <= HeaderLen:
			return 0, Header{}, readError(unix.EBADMSG)
		case errno == 0:
			h := decode((*[HeaderLen]byte)(b))
			if q.left--; q.left == 0 {
				q.more = true
			}
			q.observe(h.GSOType)
			return n - HeaderLen, h, nil
		case errno == unix.EAGAIN:
			q.left = 0
		case errno != unix.EINTR:
			return 0, Header{}, readError(errno)
		}
	}
}

// turn is how many packets a ring may give before the others have theirs: few
// enough to wait for, and enough to be worth the question which rings have any.
// Packets count alike, so that whoever sends large ones moves more in a turn,
// and they are not what a flood is made of.
const turn = 16

// next is the descriptor to read from. Where none has packets it waits.
func (q *rawQueue) next() (fd int, err error) {
	for q.left == 0 {
		if len(q.ready) == 0 {
			if err := q.look(); err != nil {
				return 0, err
			}
			q.more = false
			continue
		}
		q.fd, q.ready = int(q.ready[0].Fd), q.ready[1:]
		if q.fd != q.wake {
			q.left = turn
		} else if err := q.woken(); err != nil {
			return 0, err
		}
	}
	return q.fd, nil
}

// woken is why the eventfd was set.
func (q *rawQueue) woken() error {
	set := q.unsignal()
	if q.state.Load() >= closing {
		return os.ErrClosed
	}
	if set {
		return ErrWoken
	}
	return nil
}

// transfer is a read or a write on a descriptor that never blocks, of a buffer
// that is not empty. It is raw, for the runtime need not get ready for the call
// to block: that would cost a small packet 4% of its time.
func transfer(call uintptr, fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

// While a bulk transfer runs, the next packet is mostly due within the time that
// it takes to go to sleep and be woken, and waking a sleeper costs the sender
// more than anything else here: so Read tries again for a short time before it
// waits, and lets others have the CPU meanwhile. Small packets alone are not
// worth it, nor are those of UDP: whoever gathers them lets more time pass
// between two than Read would linger, and its sender waits for nobody.
const (
	lingerFor = 50 * time.Microsecond
	// bulkReads is how many small packets may follow a super-packet: a
	// transfer's acknowledgements come between its data.
	bulkReads = 16
)

// observe notes whether a bulk transfer runs.
func (q *rawQueue) observe(gsoType uint8) {
	switch {
	case gsoType != unix.VIRTIO_NET_HDR_GSO_NONE && gsoType != unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		q.bulk = bulkReads
	case q.bulk > 0:
		q.bulk--
	}
}

// look waits until a ring may have packets, or the eventfd is set.
func (q *rawQueue) look() error {
	if q.linger() {
		return nil
	}
	q.rest()
	n, err := unix.EpollWait(q.epoll, q.events, -1)
	if err != nil && err != unix.EINTR {
		return failed[readError](err)
	}
	q.ready = q.events[:max(n, 0)]
	return nil
}

// linger reports whether there is something new, within a short time in which it
// offers the CPU to others.
func (q *rawQueue) linger() bool {
	if q.bulk == 0 {
		return false
	}
	var until time.Time
	for !q.any() {
		now := time.Now()
		if until.IsZero() {
			until = now.Add(lingerFor)
		}
		if now.After(until) {
			return false
		}
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	return true
}

// gatherFor is how long packets gather: as short as is worth the sleep and the
// waking, and long enough for a dozen of a flow that calls for it.
const gatherFor = 30 * time.Microsecond

// Gather implements Queue.
func (q *rawQueue) Gather() { q.gather = true }

// rest lets packets gather, unless some are known to be there or a bulk transfer
// runs. It is a sleep and not a wait for packets, so that those which come wake
// nobody, which is what it saves their sender.
func (q *rawQueue) rest() {
	if !q.gather || q.more || q.bulk > 0 {
		return
	}
	q.gather = false
	t := unix.NsecToTimespec(int64(gatherFor))
	_ = unix.Nanosleep(&t, nil) // a signal may end it early
}

// any reports whether there is something new, without waiting and so, as
// transfer, without telling the runtime.
func (q *rawQueue) any() bool {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(q.epoll), uintptr(unsafe.Pointer(unsafe.SliceData(q.events))),
		uintptr(len(q.events)), 0, 0, 0)
	if errno != 0 || n == 0 {
		return false
	}
	q.ready = q.events[:n]
	return true
}

// Write implements Queue.
func (q *rawQueue) Write(buf []byte, off, n int, h Header) error {
	if !q.enter() {
		return os.ErrClosed
	}
	defer q.leave()
	b := buf[off-HeaderLen : off+n]
	encode((*[HeaderLen]byte)(b), h)
	for {
		w, errno := transfer(unix.SYS_WRITE, q.rings[0], b)
		switch {
		case errno == 0 && w != len(b):
			return io.ErrShortWrite
		case errno == 0:
			return nil
		case errno != unix.EINTR:
			return writeError(errno)
		}
	}
}

var errTooBig = fmt.Errorf("read from the TUN device: %w for the packet", io.ErrShortBuffer)

// readError and writeError are the kernel's errors with what was tried. They
// are numbers below 256, so that making an error of one allocates nothing: a
// flood of refused packets must not cost more than one of good packets.
type (
	readError  unix.Errno
	writeError unix.Errno
)

func (e readError) Error() string  { return "read from the TUN device: " + unix.Errno(e).Error() }
func (e readError) Unwrap() error  { return unix.Errno(e) }
func (e writeError) Error() string { return "write to the TUN device: " + unix.Errno(e).Error() }
func (e writeError) Unwrap() error { return unix.Errno(e) }

// failed makes E of an error of package unix, which is always an Errno.
func failed[E interface {
	~uintptr
	error
}](err error) error {
	errno, ok := err.(unix.Errno)
	if !ok {
		return err
	}
	return E(errno)
}
