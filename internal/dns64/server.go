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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
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
	Listen     []netip.AddrPort // need not be addresses of the host yet; none: nobody is answered
	Upstreams  []netip.AddrPort // asked in this order; none: those of /etc/resolv.conf
	Exclude    []netip.Prefix   // AAAA records that do not count (RFC 6147 5.1.4)
	Synthesise string           // Auto, Missing or All
}

// What is synthesised where a name has A records.
const (
	Auto    = "auto"    // All where the host has no way to the IPv6 Internet, else Missing
	Missing = "missing" // where it has no AAAA records (RFC 6147 5.1.4)
	All     = "all"     // also where it has some: these lead nowhere
)

// Status is what the server does.
type Status struct {
	Listen      []netip.AddrPort `json:"listen"`
	Absent      []netip.AddrPort `json:"absent,omitempty"` // those of listen whose address no link has
	Upstreams   []Upstream       `json:"upstreams"`
	Synthesise  string           `json:"synthesise"`  // missing or all: what is in force now
	Queries     uint64           `json:"queries"`     // of those who may ask
	Synthesised uint64           `json:"synthesised"` // answers
	Refused     uint64           `json:"refused"`     // queries of others
	WrongLink   uint64           `json:"wrong_link"`  // that came by another link than their source is reached by
	Dropped     uint64           `json:"dropped"`     // for want of room
	Entries     int              `json:"cache_entries"`
	Bytes       int              `json:"cache_bytes"`
	Problem     string           `json:"problem,omitempty"`
}

// Upstream is one that is asked.
type Upstream struct {
	Address netip.AddrPort `json:"address"`
	Failing bool           `json:"failing,omitempty"` // it did not answer last
	Plain   bool           `json:"plain,omitempty"`   // it loses the case of letters, which else tells forged answers
}

// Server answers queries.
type Server struct {
	table     Table
	log       *slog.Logger
	limits    limits
	now       func() time.Time
	settings  atomic.Pointer[Settings]
	upstreams upstreams
	ways      *ways
	cache     *cache
	queries   chan struct{} // has one for each under way
	asking    chan struct{}
	ctx       context.Context
	end       context.CancelFunc

	mu      sync.Mutex
	points  map[netip.AddrPort]*point
	serving bool
	work    sync.WaitGroup
	failed  chan error

	counters struct{ queries, synthesised, refused, wrongLink, dropped, told atomic.Uint64 }
}

// Listen opens the addresses. Who asks waits until Serve is called.
func Listen(table Table, c Settings, log *slog.Logger) (*Server, error) {
	return open(table, c, log, defaultLimits)
}

func open(table Table, c Settings, log *slog.Logger, l limits) (*Server, error) {
	ways, err := newWays()
	if err != nil {
		return nil, fmt.Errorf("opening DNS64: asking the kernel for routes: %w", err)
	}
	s := &Server{
		table: table, log: log, limits: l, now: time.Now, ways: ways,
		upstreams: upstreams{file: resolvConf},
		cache:     newCache(l), queries: make(chan struct{}, l.queries), asking: make(chan struct{}, l.asking),
		points: map[netip.AddrPort]*point{}, failed: make(chan error, 1),
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	change, err := s.Prepare(c)
	if err != nil {
		s.Close()
		return nil, err
	}
	change.Commit()
	return s, nil
}

// set changes the settings. What the cache has by other upstreams or exclusions
// it forgets.
func (s *Server) set(c Settings) {
	before := s.settings.Swap(&c)
	s.upstreams.set(c.Upstreams, c.Listen)
	if before == nil || !slices.Equal(before.Upstreams, c.Upstreams) || !slices.Equal(before.Exclude, c.Exclude) {
		s.cache.clear()
	}
}

// allNames reports whether addresses are synthesised also of names that have
// AAAA records.
func (s *Server) allNames(now time.Time) bool {
	mode := s.settings.Load().Synthesise
	return mode == All || mode == Auto && !s.ways.ipv6(now)
}

// reach is what clients are told of an IPv4 address: nothing of one of the
// host's own, behind which its services are that face other networks.
func (s *Server) reach(v4 netip.Addr, now time.Time) (v6 netip.Addr, ok bool) {
	if v6, ok = s.table.Reach(v4); ok && s.ways.to(v4, now).own {
		return netip.Addr{}, false
	}
	return v6, ok
}

// Status is what the server does, now.
func (s *Server) Status() Status {
	now := s.now()
	st := Status{
		Listen: s.settings.Load().Listen, Upstreams: []Upstream{}, Synthesise: Missing,
		Queries: s.counters.queries.Load(), Synthesised: s.counters.synthesised.Load(),
		Refused: s.counters.refused.Load(), WrongLink: s.counters.wrongLink.Load(), Dropped: s.counters.dropped.Load(),
	}
	if s.allNames(now) {
		st.Synthesise = All
	}
	st.Absent = s.ways.absent(st.Listen)
	st.Entries, st.Bytes = s.cache.usage()
	u := &s.upstreams
	u.mu.Lock()
	defer u.mu.Unlock()
	u.follow(now)
	for _, o := range u.list {
		st.Upstreams = append(st.Upstreams, Upstream{o.addr, o.failures > 0, o.plain.Load()})
	}
	switch {
	case u.problem != "":
		st.Problem = u.problem
	case len(u.list) == 0:
		st.Problem = errNoUpstream.Error() + ": " + u.file + " names none but this server itself: set dns64.upstreams"
	}
	return st
}

// serveUDP answers packets. Beyond the limit they are dropped: who sent them
// asks again. So are those of a client that came by a link it is not reached
// by: somebody else sent them, and the answers would go to the client.
func (s *Server) serveUDP(conn *net.UDPConn) error {
	buffer, control, answer := make([]byte, maxQuery), make([]byte, queryRoom), make([]byte, maxUDP)
	g := new(glance)
	for {
		n, told, _, from, err := conn.ReadMsgUDPAddrPort(buffer, control)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("reading DNS queries: %w", err)
		}
		link := ingress(control[:told])
		expected := func() bool { return s.ways.over(link, from.Addr(), s.now()) }
		if !s.permits(from.Addr()) {
			if answer := s.refuse(parse(buffer[:n])); answer != nil && expected() {
				conn.WriteToUDPAddrPort(answer, from) // nobody is left to tell of an error
			}
			continue
		}
		if !expected() {
			s.counters.wrongLink.Add(1)
			continue
		}
		if answer := s.again(answer, g, buffer[:n]); answer != nil {
			conn.WriteToUDPAddrPort(answer, from)
			continue
		}
		select {
		case s.queries <- struct{}{}:
		default:
			s.counters.dropped.Add(1)
			continue
		}
		query := parse(buffer[:n])
		s.work.Go(func() {
			defer func() { <-s.queries }()
			if answer := s.handle(query, from.Addr(), true); answer != nil {
				conn.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// serveTCP answers connections. Their handshake shows that the source is where
// it is reached.
func (s *Server) serveTCP(p *point) error {
	for {
		conn, err := p.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // of one connection, or for want of descriptors
			s.log.Warn("accepting a DNS connection", "error", err)
			select {
			case <-p.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		default:
			s.work.Go(func() { s.converse(p.ctx, conn) })
		}
	}
}

// converse answers the queries of a connection, several at once and as they are
// done (RFC 7766 6.2.1.1). Who sends more than that, or does not read, waits.
func (s *Server) converse(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
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
		return s.refuse(m)
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

// refuse tells who may not ask, now and then.
func (s *Server) refuse(m *query) []byte {
	s.counters.refused.Add(1)
	if m.size < headerSize || m.Response || m.bad || !s.mayTell() {
		return nil
	}
	if answer := packed(reply(&m.Msg, dns.RcodeRefused)); len(answer) <= m.size {
		return answer
	}
	return nil // the question was not whole
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
	all := s.allNames(s.now())
	m := s.answer(ctx, q, nil)
	if s.log.Enabled(ctx, slog.LevelDebug) {
		s.log.Debug("dns query", "name", q.name, "type", dns.Type(q.qtype).String(), "code", dns.RcodeToString[m.Rcode], "answers", len(m.Answer))
	}
	now := s.now()
	w := wireOf(q, m, now)
	if w != nil {
		w.all = all
	}
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
