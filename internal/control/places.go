package control

import (
	"net"
	"strconv"
	"sync"
	"time"
)

// places are what those who are not trusted can hold of a socket, each user
// and all of them together. Root always has a place: nobody else's connections,
// watches or batches are counted with its own.
type places struct {
	limits limits

	mu    sync.Mutex
	all   int
	users map[uint32]*guest
}

// guest is what one of them holds.
type guest struct {
	connections, watches int
	turns                chan struct{} // one for each request under way
}

func newPlaces(l limits) *places { return &places{limits: l, users: map[uint32]*guest{}} }

// enter takes a place for a connection, if there is one.
func (p *places) enter(who peer) (leave func(), ok bool) {
	if who.trusted() {
		return func() {}, true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.users[who.Uid]
	if u == nil {
		u = &guest{turns: make(chan struct{}, p.limits.userTurns)}
	}
	if p.all >= p.limits.connections || u.connections >= p.limits.userConnections {
		return nil, false
	}
	p.users[who.Uid] = u
	p.all++
	u.connections++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all--
		if u.connections--; u.connections == 0 {
			delete(p.users, who.Uid)
		}
	}), true
}

// watch takes one of a user's places for watches, if there is one.
func (p *places) watch(who peer) (leave func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.users[who.Uid]
	if who.trusted() || u == nil {
		return func() {}, true
	}
	if u.watches >= p.limits.userWatches {
		return nil, false
	}
	u.watches++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		u.watches--
	}, true
}

// turn waits until few requests of a user are under way.
func (p *places) turn(who peer) (end func(), ok bool) {
	p.mu.Lock()
	u := p.users[who.Uid]
	p.mu.Unlock()
	if who.trusted() || u == nil {
		return func() {}, true
	}
	select {
	case u.turns <- struct{}{}:
		return func() { <-u.turns }, true
	case <-time.After(p.limits.read):
		return nil, false
	}
}

// full is the whole answer to a connection that finds no place.
var full = func() []byte {
	body := `{"error":"too many connections of this user or of all that are not root: try again"}` + "\n"
	return []byte("HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}()

// Accept says of every connection who is at its other end, and turns away whom
// there is no place for: who waits for a place would keep those behind from
// theirs.
func (s *socket) Accept() (net.Conn, error) {
	for {
		c, err := s.AcceptUnix()
		if err != nil {
			return nil, err
		}
		who := peerOf(c)
		who.reader = s.reader
		leave, ok := s.places.enter(who)
		if ok {
			return conn{c, who, leave}, nil
		}
		_ = c.SetWriteDeadline(time.Now()) // it has room for this, or is not waited for
		_, _ = c.Write(full)
		c.Close()
	}
}

// conn has its peer as the remote address, where package http looks for it.
type conn struct {
	*net.UnixConn
	peer
	leave func()
}

func (c conn) RemoteAddr() net.Addr { return c.peer }

func (c conn) Close() error {
	defer c.leave()
	return c.UnixConn.Close()
}
