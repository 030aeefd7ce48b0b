// Package dns64 is a name server for IPv6-only clients (RFC 6147): it asks the
// host's own resolvers, or others, and where a name has IPv4 addresses only it
// answers with the IPv6 addresses by which natless reaches them. It stands
// beside the way of a packet: clients come here first, then send to natless.
//
// A question comes in by UDP or TCP (server.go). answer.go decides what becomes
// of it, arpa.go answers what is answered here. Everything else is looked for
// in the cache (cache.go), where those who ask the same wait for one another,
// and then asked of an upstream (upstream.go). What a client was answered is kept
// for those who ask the same (wire.go), which is the way of nearly all queries.
// explain.go tells how an answer came about.
//
// It does not validate: who wants to sets DO and CD and is answered as by any
// resolver (RFC 6147 5.5). AD is never set.
package dns64

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

const (
	headerSize = 12
	flagQR     = 1 << 7 // of the third byte
	flagTC     = 1 << 1
	flagRD     = 1
	flagDO     = 1 << 7 // of the seventh byte of OPT
	optSize    = 11     // without options
	minUDP     = 512
	maxUDP     = 1232 // what crosses every link of IPv6 in one piece
	maxQuery   = 4096 // bytes; the longest that means anything is a tenth of it
)

// limits bound what clients can hold of the daemon.
type limits struct {
	queries     int           // under way; more are dropped, or wait (TCP)
	asking      int           // questions that upstreams are asked at once
	connections int           // of TCP
	pipeline    int           // queries at once of one of them
	refusals    int           // told in a second; more are dropped
	entries     int           // of the cache
	bytes       int           // the same
	ask         time.Duration // for the upstreams together
	query       time.Duration // for an answer
	idle        time.Duration // of a connection between two queries
}

var defaultLimits = limits{
	queries: 4096, asking: 512, connections: 64, pipeline: 8, refusals: 100,
	entries: 32768, bytes: 16 << 20,
	ask: 3 * time.Second, query: 7 * time.Second, idle: 10 * time.Second,
}

// Table is what natless knows of addresses. It is asked from many goroutines.
type Table interface {
	// Reach is the IPv6 address by which clients reach an IPv4 address, and
	// false where packets to it would be refused.
	Reach(v4 netip.Addr) (v6 netip.Addr, ok bool)
	// Embed is the address under pref64, and false where there is none.
	Embed(v4 netip.Addr) (v6 netip.Addr, ok bool)
	// Behind is the IPv4 address that an IPv6 one stands for; mapped: by a
	// mapping of its own rather than by pref64.
	Behind(v6 netip.Addr) (v4 netip.Addr, mapped, ok bool)
	// Why is the rule that decides about an IPv4 address, its name and in words.
	Why(v4 netip.Addr) (rule, detail string)
	// Permits reports whether a source may ask.
	Permits(source netip.Addr) bool
}

// Settings may change while the server is at work.
type Settings struct {
	Upstreams []netip.AddrPort // asked in this order; none: those of /etc/resolv.conf
	Exclude   []netip.Prefix   // AAAA records that do not count (RFC 6147 5.1.4)
}

// Status is what the server does.
type Status struct {
	Listen      []netip.AddrPort `json:"listen"`
	Upstreams   []Upstream       `json:"upstreams"`
	Queries     uint64           `json:"queries"`     // of those who may ask
	Synthesised uint64           `json:"synthesised"` // answers
	Refused     uint64           `json:"refused"`     // queries of others
	Dropped     uint64           `json:"dropped"`     // for want of room
	Entries     int              `json:"cache_entries"`
	Bytes       int              `json:"cache_bytes"`
	Problem     string           `json:"problem,omitempty"`
}

// Upstream is one that is asked.
type Upstream struct {
	Address netip.AddrPort `json:"address"`
	Failing bool           `json:"failing,omitempty"` // it did not answer last
}

// Server answers queries.
type Server struct {
	listen    []netip.AddrPort
	packets   []*net.UDPConn
	listeners []net.Listener

	table     Table
	log       *slog.Logger
	limits    limits
	now       func() time.Time
	settings  atomic.Pointer[Settings]
	upstreams upstreams
	cache     *cache
	queries   chan struct{} // has one for each under way
	asking    chan struct{}
	ctx       context.Context
	end       context.CancelFunc

	counters struct{ queries, synthesised, refused, dropped, told atomic.Uint64 }
}

// Listen opens the addresses, which need not be there yet. Who asks waits until
// Serve is called.
func Listen(listen []netip.AddrPort, table Table, c Settings, log *slog.Logger) (*Server, error) {
	return open(listen, table, c, log, defaultLimits)
}

func open(listen []netip.AddrPort, table Table, c Settings, log *slog.Logger, l limits) (*Server, error) {
	s := &Server{
		listen: listen, table: table, log: log, limits: l, now: time.Now,
		upstreams: upstreams{file: resolvConf, self: listen},
		cache:     newCache(l), queries: make(chan struct{}, l.queries), asking: make(chan struct{}, l.asking),
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.Set(c)
	for _, a := range listen {
		if err := s.open(a); err != nil {
			s.Close()
			return nil, fmt.Errorf("listening for DNS at %v: %w", a, err)
		}
	}
	return s, nil
}

func (s *Server) open(a netip.AddrPort) error {
	c := net.ListenConfig{Control: early}
	ln, err := c.Listen(s.ctx, "tcp", a.String())
	if err != nil {
		return errors.Unwrap(err)
	}
	s.listeners = append(s.listeners, netutil.LimitListener(ln, s.limits.connections))
	conn, err := c.ListenPacket(s.ctx, "udp", a.String())
	if err != nil {
		return errors.Unwrap(err)
	}
	udp := conn.(*net.UDPConn)
	s.packets = append(s.packets, udp)
	return udp.SetReadBuffer(1 << 20)
}

// early lets a socket be bound to an address that the host does not have yet.
func early(network, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		if network == "tcp4" || network == "udp4" {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		}
	})
	return errors.Join(err, failed)
}

// Set changes the settings. What the cache had of other upstreams it forgets.
func (s *Server) Set(c Settings) {
	s.settings.Store(&c)
	s.upstreams.set(c.Upstreams)
	s.cache.clear()
}

// Status is what the server does, now.
func (s *Server) Status() Status {
	st := Status{
		Listen: s.listen, Upstreams: []Upstream{},
		Queries: s.counters.queries.Load(), Synthesised: s.counters.synthesised.Load(),
		Refused: s.counters.refused.Load(), Dropped: s.counters.dropped.Load(),
	}
	st.Entries, st.Bytes = s.cache.usage()
	u := &s.upstreams
	u.mu.Lock()
	defer u.mu.Unlock()
	u.follow(s.now())
	for _, o := range u.list {
		st.Upstreams = append(st.Upstreams, Upstream{o.addr, o.failures > 0})
	}
	switch {
	case u.problem != "":
		st.Problem = u.problem
	case len(u.list) == 0:
		st.Problem = errNoUpstream.Error() + ": " + u.file + " names none but this server itself: set dns64.upstreams"
	}
	return st
}

// Close gives the addresses up.
func (s *Server) Close() error {
	s.end()
	var errs []error
	for _, c := range s.packets {
		errs = append(errs, ignoreClosed(c.Close()))
	}
	for _, c := range s.listeners {
		errs = append(errs, ignoreClosed(c.Close()))
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Serve answers until the context ends, and then closes the server.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.end)
	defer stop()
	var serving sync.WaitGroup
	failures := make(chan error, len(s.packets)+len(s.listeners))
	for _, conn := range s.packets {
		serving.Go(func() { failures <- s.serveUDP(conn, &serving) })
	}
	for _, ln := range s.listeners {
		serving.Go(func() { failures <- s.serveTCP(ln, &serving) })
	}
	var err error
	select {
	case err = <-failures:
	case <-s.ctx.Done():
	}
	err = errors.Join(ignoreClosed(err), s.Close())
	serving.Wait()
	return err
}

// serveUDP answers packets. Beyond the limit they are dropped: who sent them
// asks again.
func (s *Server) serveUDP(conn *net.UDPConn, serving *sync.WaitGroup) error {
	buffer, answer := make([]byte, maxQuery), make([]byte, maxUDP)
	g := new(glance)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("reading DNS queries: %w", err)
		}
		if answer := s.again(answer, g, buffer[:n], from.Addr()); answer != nil {
			conn.WriteToUDPAddrPort(answer, from) // nobody is left to tell of an error
			continue
		}
		select {
		case s.queries <- struct{}{}:
		default:
			s.counters.dropped.Add(1)
			continue
		}
		query := parse(buffer[:n])
		serving.Go(func() {
			defer func() { <-s.queries }()
			if answer := s.handle(query, from.Addr(), true); answer != nil {
				conn.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// serveTCP answers connections.
func (s *Server) serveTCP(ln net.Listener, serving *sync.WaitGroup) error {
	for {
		conn, err := ln.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // of one connection, or for want of descriptors
			s.log.Warn("accepting a DNS connection", "error", err)
			select {
			case <-s.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		default:
			serving.Go(func() { s.converse(conn) })
		}
	}
}

// converse answers the queries of a connection, several at once and as they are
// done (RFC 7766 6.2.1.1). Who sends more than that, or does not read, waits.
func (s *Server) converse(c net.Conn) {
	stop := context.AfterFunc(s.ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
	if !s.permits(from) {
		s.counters.refused.Add(1)
		return
	}
	conn := &dns.Conn{Conn: c}
	var answering sync.WaitGroup
	defer answering.Wait()
	var writing sync.Mutex
	turns := make(chan struct{}, s.limits.pipeline)
	for {
		c.SetReadDeadline(time.Now().Add(s.limits.idle))
		query, err := readQuery(c)
		if err != nil {
			return
		}
		turns <- struct{}{}
		s.queries <- struct{}{}
		answering.Go(func() {
			defer func() { <-turns; <-s.queries }()
			answer := s.handle(parse(query), from, false)
			if answer == nil {
				return
			}
			writing.Lock()
			defer writing.Unlock()
			c.SetWriteDeadline(time.Now().Add(s.limits.idle))
			if _, err := conn.Write(answer); err != nil {
				c.Close()
			}
		})
	}
}

// readQuery reads a query as TCP has it, behind its length.
func readQuery(in io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n > maxQuery {
		return nil, fmt.Errorf("a query of %d bytes", n)
	}
	query := make([]byte, n)
	_, err := io.ReadFull(in, query)
	return query, err
}

// permits reports whether a source may ask: the clients of natless, and the
// host itself.
func (s *Server) permits(from netip.Addr) bool {
	from = from.Unmap().WithZone("")
	return from.IsLoopback() || s.table.Permits(from)
}

// query is what came in.
type query struct {
	dns.Msg      // as far as it could be read
	bad     bool // not to its end
	size    int  // bytes
}

func parse(packet []byte) *query {
	q := &query{size: len(packet)}
	q.bad = q.Unpack(packet) != nil
	return q
}

// handle answers a query; with nil not at all.
func (s *Server) handle(m *query, from netip.Addr, udp bool) []byte {
	if m.size < headerSize || m.Response {
		return nil
	}
	if !s.permits(from) {
		s.counters.refused.Add(1)
		if m.bad || !s.mayTell() {
			return nil
		}
		if answer := packed(reply(&m.Msg, dns.RcodeRefused)); len(answer) <= m.size {
			return answer
		}
		return nil // the question was not whole
	}
	s.counters.queries.Add(1)
	if m.bad {
		return packed(&dns.Msg{MsgHdr: dns.MsgHdr{Id: m.Id, Response: true, Rcode: dns.RcodeFormatError}})
	}
	opt := m.IsEdns0()
	if rcode := reject(&m.Msg, opt); rcode != dns.RcodeSuccess {
		r := reply(&m.Msg, rcode)
		if opt != nil {
			r.SetEdns0(maxUDP, opt.Do())
		}
		return packed(r)
	}
	question := packed(&dns.Msg{Question: m.Question})
	w := s.respond(questionOf(&m.Msg))
	if question == nil || w == nil {
		return nil
	}
	a := asking{id: m.Id, question: question[headerSize:], limit: dns.MaxMsgSize}
	told := uint16(0)
	if opt != nil {
		a.edns, a.do, told = true, opt.Do(), opt.UDPSize()
	}
	if udp {
		a.udp(told)
	}
	return w.write(nil, &a, s.now())
}

// reject is the code for a well-formed query that is not answered.
func reject(m *dns.Msg, opt *dns.OPT) (rcode int) {
	switch {
	case m.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case len(m.Question) != 1:
		return dns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		return dns.RcodeBadVers
	}
	asked := m.Question[0]
	switch {
	case asked.Qclass != dns.ClassINET, !m.RecursionDesired:
		return dns.RcodeRefused
	case asked.Qtype == dns.TypeAXFR, asked.Qtype == dns.TypeIXFR, asked.Qtype == dns.TypeOPT:
		return dns.RcodeNotImplemented
	}
	return dns.RcodeSuccess
}

// mayTell bounds how many are told that they may not ask. The answer is no
// larger than the question, so that nobody gains by forging a source.
func (s *Server) mayTell() bool {
	// The upper half is the second, the lower half how many in it.
	now := uint64(s.now().Unix()) << 32
	for {
		old := s.counters.told.Load()
		next := old + 1
		if old>>32 != now>>32 {
			next = now | 1
		} else if int(old&0xffffffff) >= s.limits.refusals {
			return false
		}
		if s.counters.told.CompareAndSwap(old, next) {
			return true
		}
	}
}

// reply is an empty answer to a query.
func reply(query *dns.Msg, rcode int) *dns.Msg {
	return &dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: query.Id, Response: true, Opcode: query.Opcode, Rcode: rcode,
			RecursionDesired: query.RecursionDesired, RecursionAvailable: true, CheckingDisabled: query.CheckingDisabled,
		},
		Question: query.Question[:min(1, len(query.Question))],
	}
}

// respond answers a question, and keeps what may be.
func (s *Server) respond(q question) *wire {
	ctx, cancel := context.WithTimeout(s.ctx, s.limits.query)
	defer cancel()
	m := s.answer(ctx, q, nil)
	if s.log.Enabled(ctx, slog.LevelDebug) {
		s.log.Debug("dns query", "name", q.name, "type", dns.Type(q.qtype).String(), "code", dns.RcodeToString[m.Rcode], "answers", len(m.Answer))
	}
	now := s.now()
	w := wireOf(q, m, now)
	// What is said of PTR is a matter of the table, too, and seldom asked.
	if w != nil && m.entry != nil && now.Before(m.until) && q.qtype != dns.TypePTR {
		s.cache.keep(m.entry, w)
	}
	return w
}

// questionOf is the one question of a query.
func questionOf(m *dns.Msg) question {
	opt := m.IsEdns0()
	return question{name: dns.CanonicalName(m.Question[0].Name), qtype: m.Question[0].Qtype, do: opt != nil && opt.Do(), cd: m.CheckingDisabled}
}

// packed is a message as it is sent. One that cannot be, for what an upstream
// put into it, is a server failure.
func packed(m *dns.Msg) []byte {
	data, err := m.Pack()
	if err != nil {
		m.Rcode, m.Answer, m.Ns, m.Extra = dns.RcodeServerFailure, nil, nil, nil
		data, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return data
}
