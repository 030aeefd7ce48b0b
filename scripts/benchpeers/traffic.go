package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// writeSize is what a TCP sender hands to the kernel at once.
const writeSize = 128 << 10

// What the first byte of a TCP connection to the server asks for.
const (
	upload   = 'u' // to take what comes, as fast as it can
	download = 'd' // to send without end
	trickle  = 't' // to take what comes, which is little
)

// serveTCP does what connections ask for until the listener is closed.
func (t *testbed) serveTCP(ln net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	t.lab.Cleanup(func() error { cancel(); return nil })
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			defer conn.Close()
			var what [1]byte
			if _, err := io.ReadFull(conn, what[:]); err != nil {
				return
			}
			switch what[0] {
			case upload:
				t.receive(ctx, conn)
			case download:
				t.send(ctx, conn)
			case trickle:
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				_, _ = io.Copy(io.Discard, conn) // until it ends, in whatever way
			}
		}()
	}
}

// nothing is what TCP senders send.
var nothing = make([]byte, writeSize)

// send writes until ctx ends or the connection does.
func (t *testbed) send(ctx context.Context, conn net.Conn) {
	onThread(ctx, conn, func(fd int) (int, error) { return unix.Write(fd, nothing) })
}

// receive reads until ctx ends or the connection does.
func (t *testbed) receive(ctx context.Context, conn net.Conn) {
	buf := make([]byte, writeSize)
	onThread(ctx, conn, func(fd int) (int, error) {
		n, err := unix.Read(fd, buf)
		t.received.Add(int64(max(0, n)))
		return n, err
	})
}

// onThread repeats a system call that blocks, on a thread of its own, until it
// fails or finds the end. Go's poller would run sender and receiver in turns on
// one thread, which is faster than two programs can be.
func onThread(ctx context.Context, conn net.Conn, call func(fd int) (int, error)) {
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		return // closed
	}
	defer file.Close()
	fd := int(file.Fd()) // which makes it block
	defer context.AfterFunc(ctx, func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) })()
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	for {
		if n, err := call(fd); n <= 0 && err != unix.EINTR {
			return
		}
	}
}

// stream opens a TCP connection that carries what it can, up or down, until ctx
// ends.
func (t *testbed) stream(ctx context.Context, what byte) error {
	conn, err := t.ask(ctx, what)
	if err != nil {
		return err
	}
	go func() {
		defer conn.Close()
		if what == download {
			t.receive(ctx, conn)
		} else {
			t.send(ctx, conn)
		}
	}()
	return nil
}

// ask opens a TCP connection to the server and says what it is for.
func (t *testbed) ask(ctx context.Context, what byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := t.client.Dial(ctx, "tcp", net.JoinHostPort(t.target, tcpPort))
	if err != nil {
		return nil, err
	}
	// What is under way in the end need not arrive.
	err = conn.(*net.TCPConn).SetLinger(0)
	if err == nil {
		_, err = conn.Write([]byte{what})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// churn keeps so many TCP connections going, each for 5 to 15 seconds, when
// another takes its place. It returns when ctx ends and none is left.
func (t *testbed) churn(ctx context.Context, flows int) {
	var all sync.WaitGroup
	for i := range flows {
		all.Go(func() {
			// They begin over a second: no listener takes a thousand at once.
			next := time.Duration(i) * time.Second / time.Duration(flows)
			for pause(ctx, next) == nil {
				next = 0
				if t.flow(ctx, 5*time.Second+rand.N(10*time.Second)) != nil {
					next = time.Second // and try again
				}
			}
		})
	}
	all.Wait()
}

// flow is a TCP connection that carries a KiB five times a second.
func (t *testbed) flow(ctx context.Context, life time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, life)
	defer cancel()
	conn, err := t.ask(ctx, trickle)
	if err != nil {
		return err
	}
	defer conn.Close()
	for pause(ctx, 200*time.Millisecond) == nil {
		if _, err := conn.Write(nothing[:1<<10]); err != nil {
			return err
		}
		t.trickled.Add(1)
	}
	return nil
}

// datagrams sends UDP datagrams of size bytes from node to the server without
// waiting for anything, until ctx ends: perSecond of them, or as many as one
// thread can where that is 0. They are of so many flows, by turns.
func (t *testbed) datagrams(ctx context.Context, node *lab.Node, flows, size, perSecond int, count *atomic.Int64) error {
	return t.datagramsTo(ctx, node, t.target, udpPort, flows, size, perSecond, count)
}

func (t *testbed) datagramsTo(ctx context.Context, node *lab.Node, address, port string, flows, size, perSecond int, count *atomic.Int64) error {
	var fds []int
	closeAll := func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	for range flows {
		fd, err := dialRaw(node, address, port)
		if err != nil {
			closeAll()
			return err
		}
		fds = append(fds, fd)
	}
	var stop atomic.Bool
	context.AfterFunc(ctx, func() { stop.Store(true) })
	go func() {
		defer closeAll()
		buf := make([]byte, size)
		start, sent := time.Now(), 0
		for i := 0; !stop.Load(); i++ {
			if perSecond > 0 && sent >= int(time.Since(start).Seconds()*float64(perSecond)) {
				time.Sleep(100 * time.Microsecond)
				continue
			}
			// The kernel may have no room; the next one is tried at once.
			if _, err := unix.Write(fds[i%flows], buf); err == nil {
				sent++
				count.Add(1)
			}
		}
	}()
	return nil
}

// flood has the other client send small datagrams, of as many flows as the
// settings say.
func (t *testbed) flood(ctx context.Context, s *settings) error {
	return t.datagrams(ctx, t.other, s.FloodFlows, floodSize, s.FloodRate, &t.flooded)
}

// floodBack has the server send them to the other client, which has to ask for
// them first: only then has it an address there.
func (t *testbed) floodBack(ctx context.Context, s *settings) error {
	open, err := t.server.ListenPacket("udp", net.JoinHostPort("", floodPort))
	if err != nil {
		return err
	}
	defer open.Close()
	asking, err := dialRaw(t.other, t.target, floodPort)
	if err != nil {
		return err
	}
	defer unix.Close(asking)
	if _, err := unix.Write(asking, []byte("flood")); err != nil {
		return err
	}
	if err := open.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	_, from, err := open.ReadFrom(make([]byte, 100))
	if err != nil {
		return fmt.Errorf("the other client's address: %w", err)
	}
	to := from.(*net.UDPAddr)
	return t.datagramsTo(ctx, t.server, to.IP.String(), udpPort, s.FloodFlows, floodSize, s.FloodRate, &t.flooded)
}

// dialRaw is a connected UDP socket without Go's poller, which would cost a
// third of the rate.
func dialRaw(node *lab.Node, address, port string) (fd int, err error) {
	addr, err := netip.ParseAddrPort(net.JoinHostPort(address, port))
	if err != nil {
		return 0, err
	}
	return connected(node, addr, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
}

// connected is a blocking socket in node, connected to addr.
func connected(node *lab.Node, addr netip.AddrPort, kind, proto int) (fd int, err error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())})
	if addr.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
	}
	err = node.Do(func() error {
		if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto); err != nil {
			return err
		}
		if err := unix.Connect(fd, sa); err != nil {
			unix.Close(fd)
			return err
		}
		return nil
	})
	return fd, err
}

// times are how long answers took, shortest first, and how many there should
// have been.
type times struct {
	all   []time.Duration
	asked int
}

// echoEvery is the time between two echo requests.
const echoEvery = time.Millisecond

// echoes sends an ICMP echo request every millisecond for d, without waiting
// for the answers. The kernels answer, and say when the answer came: what this
// program and the server wait for a CPU is not in the times.
func (t *testbed) echoes(ctx context.Context, d time.Duration) (ts times, err error) {
	target := netip.MustParseAddr(t.target)
	proto, kind := unix.IPPROTO_ICMPV6, byte(ipv6.ICMPTypeEchoRequest)
	if target.Is4() {
		proto, kind = unix.IPPROTO_ICMP, byte(ipv4.ICMPTypeEcho)
	}
	fd, err := connected(t.client, netip.AddrPortFrom(target, 0), unix.SOCK_DGRAM, proto)
	if err != nil {
		return ts, err
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})); err != nil {
		return ts, err
	}
	var asked int
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		request := make([]byte, 64)
		request[0] = kind // the kernel fills in the rest of the header
		tick := time.NewTicker(echoEvery)
		defer tick.Stop()
		for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
			binary.NativeEndian.PutUint64(request[8:], uint64(time.Now().UnixNano()))
			if _, err := unix.Write(fd, request); err == nil {
				asked++
			}
		}
	}()
	ts.all, err = answers(fd, sent, min(d, 500*time.Millisecond))
	<-sent
	ts.asked = asked
	slices.Sort(ts.all)
	return ts, errors.Join(err, ctx.Err())
}

// answers reads echo replies until all requests are sent, and for so long after
// that.
func answers(fd int, sent <-chan struct{}, after time.Duration) (all []time.Duration, err error) {
	buf, oob := make([]byte, 256), make([]byte, 256)
	var end time.Time
	for end.IsZero() || time.Now().Before(end) {
		select {
		case <-sent:
			end, sent = time.Now().Add(after), nil
		default:
		}
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		if err != nil || n < 16 {
			continue // a time-out, or an ICMP error: no answer
		}
		came, err := stamp(oob[:oobn])
		if err != nil {
			return all, err
		}
		all = append(all, time.Duration(came-int64(binary.NativeEndian.Uint64(buf[8:]))))
	}
	return all, nil
}

// stamp is when the kernel received a packet, in nanoseconds since 1970.
func stamp(oob []byte) (int64, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Type == unix.SO_TIMESTAMPNS_NEW && len(m.Data) >= 16 {
			return int64(binary.NativeEndian.Uint64(m.Data))*1e9 + int64(binary.NativeEndian.Uint64(m.Data[8:])), nil
		}
	}
	return 0, errors.New("the kernel gives no time with a packet")
}

// webPage is what an HTTP connection fetches, in bytes.
const webPage = 4096

// web opens perSecond HTTP connections per second for d, one after the other at
// fixed times whether or not the earlier ones are done. The times are from
// connect to the last byte of the answer.
func (t *testbed) web(ctx context.Context, d time.Duration, perSecond int) (ts times, failures []error) {
	var (
		mu  sync.Mutex
		all sync.WaitGroup
	)
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
		ts.asked++
		all.Go(func() {
			took, err := t.fetch(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, err)
				return
			}
			ts.all = append(ts.all, took)
		})
	}
	all.Wait()
	slices.Sort(ts.all)
	return ts, failures
}

// fetch is one HTTP connection. It fails after three seconds.
func (t *testbed) fetch(ctx context.Context) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var (
		conn  net.Conn
		start time.Time
		d     net.Dialer
	)
	err = t.client.Do(func() error {
		start = time.Now() // to enter the namespace is no part of it
		conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(t.target, httpPort))
		return err
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintf(conn, "GET /?bytes=%d HTTP/1.0\r\n\r\n", webPage); err != nil {
		return 0, err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return 0, err
	}
	took = time.Since(start)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.0 200 ")) || len(answer) < webPage {
		return 0, fmt.Errorf("%d bytes instead of the page", len(answer))
	}
	return took, nil
}

// pause waits, and returns an error when ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return ctx.Err()
	}
}
