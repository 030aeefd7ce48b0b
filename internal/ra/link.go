package ra

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// remembered is how many routers that say something else are told of: anybody
// on the link can make up more.
const remembered = 8

// task is what is to be sent from where.
type task struct {
	place
	prefix   netip.Prefix
	lifetime time.Duration
}

// link is one interface of the configuration. It outlives what is sent on it:
// an interface that goes and comes back is still the same link to its hosts.
type link struct {
	log  *slog.Logger
	task task          // that is done
	end  chan bool     // ends it; true: the prefix is taken back. nil: nothing is done
	done chan struct{} // closed when it has ended, also by itself

	mu     sync.Mutex
	status Status
	others map[netip.Addr]other // what other routers say against it
	told   time.Time            // when the log was last told of them
}

// repeated is within what time a router that is there says everything again (RFC
// 4861 6.2.1: MaxRtrAdvInterval). What was said once is forgotten.
const repeated = mostMaximum

// other is what another router says.
type other struct {
	text  string
	until time.Time
}

// now is the status.
func (l *link) now() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(time.Now())
	s := l.status
	for _, from := range slices.SortedFunc(maps.Keys(l.others), netip.Addr.Compare) {
		s.Others = append(s.Others, l.others[from].text)
	}
	return s
}

// forget drops what others said long ago. It needs l.mu.
func (l *link) forget(now time.Time) {
	maps.DeleteFunc(l.others, func(_ netip.Addr, o other) bool { return now.After(o.until) })
}

// problem sets why nothing is sent, or with nil that something is; what is new
// is logged.
func (l *link) problem(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	l.mu.Lock()
	was := l.status.Problem
	l.status.Problem = text
	if err != nil {
		l.status.Address = netip.Addr{}
	}
	l.mu.Unlock()
	switch {
	case text == was:
	case text == "":
		l.log.Info("router advertisements are sent")
	default:
		l.log.Warn("no router advertisements are sent: " + text)
	}
}

// follow has the task done, or where there can be none nothing.
func (l *link) follow(t task, cannot error) {
	if l.end != nil {
		select {
		case <-l.done:
			l.end = nil
		default:
			if cannot == nil && t == l.task {
				return
			}
			l.stop(false) // with the address or the interface gone, nobody would hear it
		}
	}
	if cannot != nil {
		l.problem(cannot)
		return
	}
	l.task, l.end, l.done = t, make(chan bool, 1), make(chan struct{})
	go func() {
		defer close(l.done)
		if err := l.advertise(t); err != nil {
			l.problem(err)
		}
	}()
}

// stop ends what is going on.
func (l *link) stop(withdraw bool) {
	if l.end == nil {
		return
	}
	l.end <- withdraw
	<-l.done
	l.end = nil
}

// advertise does a task until l.end says otherwise, or something fails.
func (l *link) advertise(t task) error {
	conn, err := open(t.place)
	if err != nil {
		return err
	}
	defer conn.Close()
	messages, failed := make(chan heard), make(chan error, 1)
	closed := make(chan struct{})
	defer close(closed)
	go func() { failed <- listen(conn, messages, closed) }()

	// Another program may make this host a default router, from the same address.
	// Hosts would take the route away at natless's first advertisement: so it is
	// asked first.
	if err := send(conn, &ndp.RouterSolicitation{}, allRouters); err != nil {
		return err
	}
	s := begin(t.lifetime, l.now().Last, time.Now())
	quiet := silence{until: time.Now().Add(answered)}
	timer := time.NewTimer(time.Until(latest(s.next, quiet.until)))
	defer timer.Stop()
	for {
		select {
		case withdraw := <-l.end:
			if !withdraw || quiet.reigns(time.Now()) || l.now().Last.IsZero() {
				return nil
			}
			time.Sleep(time.Until(s.free()))
			return send(conn, advertisement(t.prefix, 0), allNodes)
		case err := <-failed:
			return fmt.Errorf("reading from the interface: %w", err)
		case <-timer.C:
			if quiet.ask {
				quiet = silence{until: time.Now().Add(answered)}
				if err := send(conn, &ndp.RouterSolicitation{}, allRouters); err != nil {
					return err
				}
				break
			}
			if err := send(conn, advertisement(t.prefix, t.lifetime), allNodes); err != nil {
				return err
			}
			s.sent(time.Now())
			l.sent(t.addr, s.last)
		case m := <-messages:
			switch now := time.Now(); {
			case !m.router && m.from != t.addr:
				s.solicited(now)
			case m.router && m.from != t.addr:
				l.compare(m, t, now)
			case m.router: // this host, also what natless sent itself
				quiet = hush(m.lifetime, now)
				if m.lifetime > 0 {
					l.problem(fmt.Errorf("another program makes this host a default router from the same address, %v, and hosts would "+
						"take natless's word that it is none for that program's: have it send PREF64 instead (natless check --snippets). "+
						"It is asked again every %v: if there is no such program, somebody on the link forges its advertisements", t.addr, maxSilence))
				}
			}
		}
		timer.Reset(time.Until(latest(s.next, quiet.until)))
	}
}

// maxSilence bounds for how long one advertisement silences natless, whatever
// lifetime it claims: anybody on the link can forge one.
var maxSilence = 2 * time.Minute

// silence is until when nothing is sent.
type silence struct {
	until time.Time
	ask   bool // then first whether the program that it is for is there still
}

// hush is the silence for a program that makes this host a default router for a
// lifetime; for 0 there is none.
func hush(lifetime time.Duration, now time.Time) silence {
	return silence{until: now.Add(min(lifetime, maxSilence)), ask: lifetime > 0}
}

// reigns reports whether nothing may be sent: that somebody has to be asked
// first is silence, too.
func (s silence) reigns(now time.Time) bool { return s.ask || now.Before(s.until) }

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// sent notes that one was sent.
func (l *link) sent(from netip.Addr, at time.Time) {
	l.problem(nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Address, l.status.Last = from, at
	l.status.Sent++
}

// compare looks at what another router says of prefixes (RFC 8781 5.2).
func (l *link) compare(m heard, t task, now time.Time) {
	o := other{}
	for _, p := range m.pref64 {
		switch {
		case p.Lifetime > 0 && p.Prefix != t.prefix:
			o = other{fmt.Sprintf("router %v advertises another prefix, %v", m.from, p.Prefix), now.Add(min(p.Lifetime, repeated))}
		case p.Lifetime == 0 && p.Prefix == t.prefix:
			o = other{fmt.Sprintf("router %v takes %v back", m.from, p.Prefix), now.Add(min(t.lifetime, repeated))}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	was, known := l.others[m.from]
	switch {
	case o.text == "":
		delete(l.others, m.from)
		return
	case !known && len(l.others) == remembered:
		return
	}
	l.others[m.from] = o
	if o.text != was.text && now.Sub(l.told) > again { // anybody on the link can fill a log
		l.told = now
		l.log.Warn(o.text)
	}
}

// open opens a socket that hears solicitations and other routers.
func open(at place) (*ndp.Conn, error) {
	// Zones go by number: for names the net package remembers what their numbers
	// were up to a minute ago.
	ifi := net.Interface{Index: at.index, Name: strconv.Itoa(at.index)}
	conn, _, err := ndp.Listen(&ifi, ndp.Addr(at.addr.String()))
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (CAP_NET_RAW is missing)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening an ICMPv6 socket: %w", err)
	}
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterSolicitation)
	only.Accept(ipv6.ICMPTypeRouterAdvertisement)
	for _, f := range []func() error{
		func() error { return conn.SetICMPFilter(&only) },
		func() error { return conn.SetControlMessage(ipv6.FlagHopLimit, true) },
		func() error { return conn.JoinGroup(allRouters) },
	} {
		if err := f(); err != nil {
			conn.Close()
			return nil, fmt.Errorf("setting the ICMPv6 socket up: %w", err)
		}
	}
	return conn, nil
}

// listen hands on what is valid until the socket or closed is closed.
func listen(conn *ndp.Conn, messages chan<- heard, closed <-chan struct{}) error {
	b := make([]byte, 64<<10)
	for {
		n, control, from, err := conn.ReadRaw(b)
		if err != nil {
			return err
		}
		if control == nil {
			continue
		}
		m, ok := read(b[:n], from, control.HopLimit)
		if !ok {
			continue
		}
		select {
		case messages <- m:
		case <-closed:
			return nil
		}
	}
}

// send sends a message, or fails within a second.
func send(conn *ndp.Conn, m ndp.Message, to netip.Addr) error {
	err := conn.SetWriteDeadline(time.Now().Add(time.Second))
	if err == nil {
		err = conn.WriteTo(m, nil, to)
	}
	if err != nil {
		return fmt.Errorf("sending to %v: %w", to, err)
	}
	return nil
}
