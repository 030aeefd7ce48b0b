package tun

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// plainQueue is a queue without virtio header: whole, finished packets.
type plainQueue struct {
	file  *os.File
	woken atomic.Bool // and the deadline for reading has passed or is about to
}

// openPlain attaches queues without offloads, of one ring each.
func (d *Device) openPlain(p plan) error {
	d.features.Rings = 1
	for i := range p.queues {
		q, err := newPlainQueue(p)
		if err != nil {
			return err
		}
		d.queues = append(d.queues, q)
		if i > 0 {
			continue
		}
		// A persistent device still has the offloads of its last reader, and
		// would hand out super-packets with no word of it.
		if err := q.control(func(fd int) error { return setOffload(fd)(0) }); err != nil {
			return err
		}
		if p.adopted {
			_ = q.control(unsteer) // and its program, which refers to nothing of ours
			continue
		}
		d.features.Steering = p.queues > 1 && q.control(func(fd int) error { return steer(fd, p.queues, 1) }) == nil
	}
	return nil
}

func newPlainQueue(p plan) (*plainQueue, error) {
	ifce, err := water.New(water.Config{
		DeviceType: water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{
			Name:       p.name,
			Persist:    p.adopted, // it sets the flag either way
			MultiQueue: p.flags&unix.IFF_MULTI_QUEUE != 0,
		},
	})
	if err != nil {
		return nil, explain(err)
	}
	file, ok := ifce.ReadWriteCloser.(*os.File)
	if !ok {
		ifce.Close()
		return nil, errors.New("its queue is not a file")
	}
	q := &plainQueue{file: file}
	err = q.control(func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
		return os.NewSyscallError("fcntl", err)
	})
	if err != nil {
		file.Close()
		return nil, err
	}
	return q, nil
}

func (q *plainQueue) control(f func(fd int) error) error {
	conn, err := q.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// Read implements Queue. The header is zero.
func (q *plainQueue) Read(buf []byte, off int) (int, Header, error) {
	n, err := q.file.Read(buf[off:])
	for errors.Is(err, os.ErrDeadlineExceeded) {
		// First the deadline: a Wake in between is then either seen here or has
		// a deadline of its own.
		_ = q.file.SetReadDeadline(time.Time{}) // fails only once closed
		if q.woken.Swap(false) {
			return 0, Header{}, ErrWoken
		}
		n, err = q.file.Read(buf[off:])
	}
	switch {
	case errors.Is(err, os.ErrClosed):
		return 0, Header{}, os.ErrClosed
	case err != nil:
		return 0, Header{}, fmt.Errorf("read from the TUN device: %w", err)
	case n >= len(buf)-off:
		return 0, Header{}, errTooBig
	}
	return n, Header{}, nil
}

// ReadMore implements Queue. There may be more, but no super-packet to make of it.
func (q *plainQueue) ReadMore([]byte, int) (n int, h Header, ok bool) { return 0, Header{}, false }

// Gather implements Queue: it does nothing.
func (q *plainQueue) Gather() {}

// Write implements Queue. The header is not looked at: the packet must be
// finished and no larger than the links can take.
func (q *plainQueue) Write(buf []byte, off, n int, _ Header) error {
	_, err := q.file.Write(buf[off : off+n])
	switch {
	case errors.Is(err, os.ErrClosed):
		return os.ErrClosed
	case err != nil:
		return fmt.Errorf("write to the TUN device: %w", err)
	}
	return nil
}

// Wake implements Queue.
func (q *plainQueue) Wake() {
	q.woken.Store(true)
	_ = q.file.SetReadDeadline(time.Unix(1, 0)) // fails only once closed
}

// Close implements Queue.
func (q *plainQueue) Close() error {
	if err := q.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
