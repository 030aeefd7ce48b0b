package dns64

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	resolvConf = "/etc/resolv.conf"
	maxServers = 3           // of resolv.conf, as the C library has it
	lookAgain  = time.Second // before resolv.conf is looked at again
	firstTry   = time.Second // for an upstream, while there is another try
	firstRest  = time.Second // of an upstream that failed; doubled at each failure
	longRest   = time.Minute
)

var errNoUpstream = errors.New("there is no upstream to ask")

// upstream is a resolver that is asked.
type upstream struct {
	addr     netip.AddrPort
	failures int       // in a row
	rests    time.Time // asked after the others until then

	plain atomic.Bool // it does not keep the case of letters
}

// upstreams are those of the configuration, or those of resolv.conf.
type upstreams struct {
	file string // resolv.conf

	mu      sync.Mutex
	self    []netip.AddrPort // never asked
	given   bool             // by the configuration
	list    []*upstream
	looked  time.Time
	was     os.FileInfo
	problem string // with resolv.conf
}

// set takes those of the configuration; none: those of resolv.conf. self are
// the server's own addresses.
func (u *upstreams) set(list, self []netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.self = self
	u.given, u.was, u.looked, u.problem = len(list) > 0, nil, time.Time{}, ""
	u.replace(list)
}

// replace keeps what is known of those that stay.
func (u *upstreams) replace(list []netip.AddrPort) {
	before := u.list
	u.list = nil
	for _, a := range list {
		if slices.Contains(u.self, a) {
			continue
		}
		i := slices.IndexFunc(before, func(o *upstream) bool { return o.addr == a })
		if i >= 0 {
			u.list = append(u.list, before[i])
		} else {
			u.list = append(u.list, &upstream{addr: a})
		}
	}
}

// follow reads resolv.conf again when it has changed.
func (u *upstreams) follow(now time.Time) {
	if u.given || now.Sub(u.looked) < lookAgain && !u.looked.IsZero() {
		return
	}
	u.looked = now
	is, err := os.Stat(u.file)
	if err == nil && u.was != nil && os.SameFile(is, u.was) && is.ModTime().Equal(u.was.ModTime()) && is.Size() == u.was.Size() {
		return
	}
	list, err := readResolvConf(u.file)
	if err != nil {
		u.problem, u.was = err.Error(), nil // those before, meanwhile
		return
	}
	u.problem, u.was = "", is
	u.replace(list)
}

// readResolvConf is the name servers of the host.
func readResolvConf(file string) (list []netip.AddrPort, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrPermission) {
		// It has a new inode, and natless began without DNS64: it kept no right to
		// read others of its directory (Landlock).
		return nil, fmt.Errorf("reading the host's resolvers: %w: natless kept the right to read only the file that was there at its start: restart it, or set dns64.upstreams", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the host's resolvers: %w", err)
	}
	c, err := dns.ClientConfigFromReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("reading the host's resolvers in %s: %w", file, err)
	}
	for _, s := range c.Servers {
		if a, err := netip.ParseAddr(s); err == nil && len(list) < maxServers {
			list = append(list, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	return list, nil
}

// order is whom to ask, one after the other: those that rest come last. One
// whose rest is over is tried by the one question that finds it so; the others
// go elsewhere until it has answered.
func (u *upstreams) order(now time.Time) []*upstream {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.follow(now)
	var fit, resting []*upstream
	for _, o := range u.list {
		if now.Before(o.rests) {
			resting = append(resting, o)
			continue
		}
		if o.failures > 0 {
			o.rests = now.Add(longRest)
		}
		fit = append(fit, o)
	}
	return append(fit, resting...)
}

func (u *upstreams) answered(o *upstream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	o.failures, o.rests = 0, time.Time{}
}

func (u *upstreams) failed(o *upstream, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	o.rests = now.Add(min(longRest, firstRest<<min(o.failures, 10)))
	o.failures++
}

// exchange asks one upstream after the other, each at least once and at least
// twice altogether, until one has an answer. A refusal or a failure of a
// server's is an answer when the others have none.
func (s *Server) exchange(ctx context.Context, q question) (m *dns.Msg, where string, err error) {
	order := s.upstreams.order(s.now())
	if len(order) == 0 {
		return nil, "nobody", errNoUpstream
	}
	var poor *dns.Msg
	var poorFrom *upstream
	var errs []error
	tries := max(2, len(order))
	for i := range tries {
		o := order[i%len(order)]
		if o == poorFrom || ctx.Err() != nil {
			break
		}
		try := ctx
		if i < tries-1 {
			var cancel context.CancelFunc
			try, cancel = context.WithTimeout(ctx, firstTry)
			defer cancel()
		}
		m, err := ask(try, o, q)
		if err != nil {
			s.upstreams.failed(o, s.now())
			errs = append(errs, err)
			continue
		}
		s.upstreams.answered(o)
		if err := vet(q, m); err != nil {
			errs = append(errs, fmt.Errorf("the answer of %v: %w", o.addr, err))
			continue
		}
		if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
			return m, "upstream " + o.addr.String(), nil
		}
		if poor == nil {
			poor, poorFrom = m, o
		}
	}
	if poor != nil {
		return poor, "upstream " + poorFrom.addr.String(), nil
	}
	return nil, "upstream " + order[0].addr.String(), errors.Join(errs...)
}

// ask asks one upstream, from a port and with an ID of its own.
func ask(ctx context.Context, o *upstream, q question) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.qtype)
	m.CheckingDisabled = q.cd
	m.SetEdns0(maxUDP, q.do)
	answer, err := send(ctx, o, m)
	if err == nil && answer.Rcode == dns.RcodeFormatError && answer.IsEdns0() == nil { // it is from before EDNS (RFC 6891 7)
		m.Extra = nil
		answer, err = send(ctx, o, m)
	}
	if err != nil {
		return nil, fmt.Errorf("asking %v: %w", o.addr, err)
	}
	return answer, nil
}

// send asks by UDP and, when the answer is truncated or the name in it has lost
// its case, by TCP, where nobody guesses. An upstream that loses it always, or
// does not do TCP, is asked in lower case from then on.
func send(ctx context.Context, o *upstream, m *dns.Msg) (*dns.Msg, error) {
	a, err := newAsked(m, !o.plain.Load())
	if err != nil {
		return nil, err
	}
	answer, is, err := a.sendUDP(ctx, o.addr)
	switch {
	case err != nil || is == whole:
		return answer, err
	case is == truncated:
		answer, _, err = a.sendTCP(ctx, o.addr)
		return answer, err
	}
	answer, is, err = a.sendTCP(ctx, o.addr)
	if err == nil && is == whole {
		return answer, nil
	}
	o.plain.Store(true)
	if err == nil {
		return answer, nil
	}
	return send(ctx, o, m)
}

func dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	return conn, err
}
