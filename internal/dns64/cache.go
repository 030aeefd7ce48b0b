package dns64

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxTTL      = 86400           // seconds that anything is kept (RFC 8767 4 has a week)
	maxNegative = 10800           // the same of negative answers (RFC 2308 5)
	failureLife = 2 * time.Second // of a failure (RFC 9520 3.2 asks for a second and more)
	overhead    = 256             // bytes of an entry besides the message and the name, about
)

// cache has what upstreams answered, as it came, and what clients are answered
// because of it. It forgets what was asked for longest ago when it is full.
type cache struct {
	entries, bytes int // at most

	mu      sync.Mutex
	byName  map[question]*list.Element
	recent  list.List // of *entry, the latest asked for in front
	size    int       // bytes
	flights map[question]*flight
}

// entry is an answer, or a failure.
type entry struct {
	q       question
	packed  []byte
	err     error
	since   time.Time
	expires time.Time
	wire    *wire // what clients are answered, once it was made
}

func (e *entry) size() int { return len(e.packed) + len(e.q.name) + e.wire.size() + overhead }

// flight is a question that an upstream is being asked.
type flight struct {
	done   chan struct{} // closed when what follows is there
	packed []byte
	where  string
	err    error
}

func newCache(l limits) *cache {
	return &cache{entries: l.entries, bytes: l.bytes, byName: map[question]*list.Element{}, flights: map[question]*flight{}}
}

// get finds a live entry, or the flight to wait for, or makes one that the
// caller has to land.
func (c *cache) get(q question, now time.Time) (e *entry, f *flight, pilot bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.byName[q]; ok {
		if e := at.Value.(*entry); now.Before(e.expires) {
			c.recent.MoveToFront(at)
			return e, nil, false
		}
		c.remove(at)
	}
	if f, ok := c.flights[q]; ok {
		return nil, f, false
	}
	f = &flight{done: make(chan struct{})}
	c.flights[q] = f
	return nil, f, true
}

// land ends a flight; its answer is kept for a time.
func (c *cache) land(q question, f *flight, life time.Duration, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flights, q)
	close(f.done)
	e := &entry{q: q, packed: f.packed, err: f.err, since: now, expires: now.Add(life)}
	if life <= 0 || e.size() > c.bytes {
		return
	}
	c.byName[q] = c.recent.PushFront(e)
	c.size += e.size()
	c.shrink()
}

// keep puts what clients are answered beside what it is made of, if that is
// still there.
func (c *cache) keep(e *entry, w *wire) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.byName[e.q]; ok && at.Value == e {
		c.size -= e.size()
		e.wire = w
		c.size += e.size()
		c.shrink()
	}
}

// wire is what clients are answered, or nil. The name is only looked at.
func (c *cache) wire(name []byte, qtype uint16, do, cd bool, now time.Time) *wire {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.byName[question{string(name), qtype, do, cd}]
	if !ok {
		return nil
	}
	w := at.Value.(*entry).wire
	if w == nil || !now.Before(w.until) {
		return nil
	}
	c.recent.MoveToFront(at)
	return w
}

func (c *cache) shrink() {
	for c.size > c.bytes || c.recent.Len() > c.entries {
		c.remove(c.recent.Back())
	}
}

func (c *cache) remove(at *list.Element) {
	e := c.recent.Remove(at).(*entry)
	delete(c.byName, e.q)
	c.size -= e.size()
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.byName)
	c.recent.Init()
	c.size = 0
}

func (c *cache) usage() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recent.Len(), c.size
}

// resolve answers from the cache, or by an upstream, which is asked once for
// all who ask the same at the same time. The message is the caller's.
func (s *Server) resolve(ctx context.Context, q question, x *Explanation) (*message, error) {
	now := s.now()
	e, f, pilot := s.cache.get(q, now)
	if e != nil {
		x.from("cache")
		x.step("%v: from the cache, where it is since %v", q, now.Sub(e.since).Round(time.Second))
		if e.err != nil {
			return nil, e.err
		}
		age := now.Sub(e.since)
		m, err := unpacked(e.packed, age)
		if err != nil {
			return nil, err
		}
		m.entry, m.since, m.until = e, now.Add(-(age % time.Second)), e.expires
		return m, nil
	}
	if pilot {
		s.fly(q, f)
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("asking about %v: %w", q, ctx.Err())
	}
	x.from(f.where)
	if f.err != nil {
		return nil, f.err
	}
	x.step("%v: asked %s", q, f.where)
	return unpacked(f.packed, 0)
}

var errBusy = errors.New("too many questions are under way")

// fly asks the upstreams and lands the flight, whatever happens.
func (s *Server) fly(q question, f *flight) {
	var life time.Duration
	defer func() { s.cache.land(q, f, life, s.now()) }()
	f.where = "nobody"
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		f.err = errBusy
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.limits.ask)
	defer cancel()
	m, where, err := s.exchange(ctx, q)
	f.where = where
	if err == nil {
		f.packed, err = m.Pack()
	}
	if err != nil {
		f.err, life = fmt.Errorf("asking about %v: %w", q, err), failureLife
		return
	}
	life = lifetime(m)
}

// lifetime is how long an answer may be kept: as long as the shortest of its
// records, and a negative one as its SOA says; without one not at all (RFC 2308
// 5).
func lifetime(m *dns.Msg) time.Duration {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return failureLife
	}
	ttl := uint32(maxTTL)
	asked := m.Question[0].Qtype
	if m.Rcode == dns.RcodeNameError || !has(m, asked) && asked != dns.TypeANY {
		ttl, _ = negativeTTL(m)
		ttl = min(ttl, maxNegative)
	}
	for _, rr := range m.Answer {
		ttl = min(ttl, rr.Header().Ttl)
	}
	return time.Duration(ttl) * time.Second
}

// unpacked is a message whose TTLs have counted down for a time.
func unpacked(packed []byte, age time.Duration) (*message, error) {
	m := new(message)
	if err := m.Unpack(packed); err != nil {
		return nil, fmt.Errorf("reading a message that was packed here: %w", err)
	}
	seconds := uint32(age / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl = min(h.Ttl, maxTTL)
			h.Ttl -= min(h.Ttl, seconds)
		}
	}
	return m, nil
}
