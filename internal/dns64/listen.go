package dns64

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// point is an address that is listened at.
type point struct {
	ctx      context.Context // of its connections
	end      context.CancelFunc
	packets  *net.UDPConn
	listener net.Listener
}

// listenAt opens an address, which need not be there yet.
func (s *Server) listenAt(a netip.AddrPort) (p *point, err error) {
	p = new(point)
	p.ctx, p.end = context.WithCancel(s.ctx)
	defer func() {
		if err != nil {
			err = fmt.Errorf("listening for DNS at %v: %w", a, errors.Join(err, p.close()))
		}
	}()
	c := net.ListenConfig{Control: early}
	ln, err := c.Listen(p.ctx, "tcp", a.String())
	if err != nil {
		return p, errors.Unwrap(err)
	}
	p.listener = netutil.LimitListener(ln, s.limits.connections)
	conn, err := c.ListenPacket(p.ctx, "udp", a.String())
	if err != nil {
		return p, errors.Unwrap(err)
	}
	p.packets = conn.(*net.UDPConn)
	return p, p.packets.SetReadBuffer(1 << 20)
}

// close gives the address up, and its connections.
func (p *point) close() error {
	p.end()
	var errs []error
	if p.listener != nil {
		errs = append(errs, ignoreClosed(p.listener.Close()))
	}
	if p.packets != nil {
		errs = append(errs, ignoreClosed(p.packets.Close()))
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// early lets a socket be bound to an address that the host does not have yet,
// and has one for packets tell by which link they come.
func early(network, _ string, c syscall.RawConn) error {
	level, options := unix.IPPROTO_IPV6, []int{unix.IPV6_FREEBIND, unix.IPV6_RECVPKTINFO}
	if network == "tcp4" || network == "udp4" {
		level, options = unix.IPPROTO_IP, []int{unix.IP_FREEBIND, unix.IP_PKTINFO}
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		for _, o := range options {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), level, o, 1))
		}
	})
	return errors.Join(err, failed)
}

// Change is settings that are about to be in force. One of its methods has to
// be called, and no other Change made before.
type Change struct {
	server *Server
	next   Settings
	opened map[netip.AddrPort]*point
}

// Prepare opens the addresses that are new. Whatever it says, nothing has
// changed yet.
func (s *Server) Prepare(c Settings) (*Change, error) {
	change := &Change{server: s, next: c, opened: map[netip.AddrPort]*point{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range c.Listen {
		if s.points[a] != nil {
			continue
		}
		p, err := s.listenAt(a)
		if err != nil {
			change.Abandon()
			return nil, err
		}
		change.opened[a] = p
	}
	return change, nil
}

// Abandon leaves everything as it was.
func (c *Change) Abandon() {
	for _, p := range c.opened {
		p.close()
	}
}

// Commit puts the settings in force: those who ask at a new address are
// answered, and an address that is no more listened at is free.
func (c *Change) Commit() {
	s := c.server
	s.set(c.next)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		c.Abandon()
		return
	}
	for a, p := range s.points {
		if !slices.Contains(c.next.Listen, a) {
			p.close()
			delete(s.points, a)
		}
	}
	maps.Copy(s.points, c.opened)
	if s.serving {
		for _, p := range c.opened {
			s.serve(p)
		}
	}
}

// serve answers at an address until it is closed. It needs s.mu.
func (s *Server) serve(p *point) {
	for _, f := range []func() error{
		func() error { return s.serveUDP(p.packets) },
		func() error { return s.serveTCP(p) },
	} {
		s.work.Go(func() {
			if err := f(); err != nil {
				select {
				case s.failed <- err:
				default: // one says it
				}
			}
		})
	}
}

// Serve answers until the context ends, and then closes the server.
func (s *Server) Serve(ctx context.Context) (err error) {
	s.mu.Lock()
	s.serving = true
	for _, p := range s.points {
		s.serve(p)
	}
	s.mu.Unlock()
	select {
	case err = <-s.failed:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	err = errors.Join(err, s.Close())
	s.work.Wait()
	return err
}

// Close gives the addresses up.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
	s.ways.end()
	var errs []error
	for a, p := range s.points {
		errs = append(errs, p.close())
		delete(s.points, a)
	}
	return errors.Join(errs...)
}
