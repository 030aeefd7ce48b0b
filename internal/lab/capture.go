package lab

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Capture collects packets that pass one link, from their IP header on.
type Capture struct {
	fd   int
	done chan struct{}

	mu      sync.Mutex
	packets [][]byte
	changed chan struct{} // closed when a packet has come
}

// Capture starts to collect the ICMP messages and TCP SYNs of either family
// that come in or go out by a link of the node. Only these, so that none is
// lost under load. The lab's Close ends it.
func (n *Node) Capture(link string) (*Capture, error) { return n.capture(link, filter) }

// CaptureAll is Capture of every packet. The kernel keeps 32 MiB of them, with
// what it needs itself to do so, until they are collected; beyond that some may
// be missing.
func (n *Node) CaptureAll(link string) (*Capture, error) {
	return n.capture(link, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	})
}

func (n *Node) capture(link string, prepare func(fd int) error) (*Capture, error) {
	c := &Capture{done: make(chan struct{}), changed: make(chan struct{})}
	err := n.Do(func() (err error) {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(prepare(c.fd),
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Index}))
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s of %s: %w", link, n.Name, err)
	}
	stop := make(chan struct{})
	go c.collect(stop)
	n.lab.Cleanup(func() error {
		close(stop)
		<-c.done
		return nil
	})
	return c, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// filter keeps what Capture is for; the program sees packets from their IP
// header on.
func filter(fd int) error {
	prog, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: 7},
		// IPv4
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMP, SkipTrue: 10},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 10},
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 13, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 2, SkipTrue: 6},
		bpf.RetConstant{Val: 0},
		// IPv6
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 40 + 13, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 2, SkipTrue: 1},
		bpf.RetConstant{Val: 64 << 10},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(prog))
	for i, p := range prog {
		raw[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]})
}

func (c *Capture) collect(stop <-chan struct{}) {
	defer close(c.done)
	defer unix.Close(c.fd)
	buf := make([]byte, 64<<10)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err != nil {
			continue // a time-out, so that stop is seen
		}
		c.mu.Lock()
		c.packets = append(c.packets, append([]byte(nil), buf[:n]...))
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
	}
}

// Packets returns what has been collected so far.
func (c *Capture) Packets() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]byte(nil), c.packets...)
}

// Take returns what has been collected since the last Take, and forgets it: for
// a capture that goes on for hours.
func (c *Capture) Take() (packets [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	packets, c.packets = c.packets, nil
	return packets
}

// Wait returns the first packet that wanted accepts, or nil when none has come
// in time.
func (c *Capture) Wait(timeout time.Duration, wanted func([]byte) bool) []byte {
	end := time.After(timeout)
	for seen := 0; ; {
		c.mu.Lock()
		packets, changed := c.packets, c.changed
		c.mu.Unlock()
		for ; seen < len(packets); seen++ {
			if wanted(packets[seen]) {
				return packets[seen]
			}
		}
		select {
		case <-changed:
		case <-end:
			return nil
		}
	}
}
