package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/natless/natless/mapping"
)

const (
	maxPacket = 40 + 65535 // the largest of either family
	keepAlive = 15 * time.Second
)

// limits bound what one client, or many, can hold of the daemon.
type limits struct {
	// Of those who are not root, and of each socket.
	connections     int // at once
	userConnections int // of one user
	userWatches     int // of these
	userTurns       int // requests of one user under way at once

	watches   int           // at once, of root and of all others each
	batches   int           // the same: they are held in memory
	header    int           // bytes
	read      time.Duration // for a whole request
	batch     time.Duration // for that of a batch, and for its turn
	keepAlive time.Duration // of a watch, between two lines
	stall     time.Duration // without the reader of an answer taking anything
	idle      time.Duration // between two requests
	shutdown  time.Duration // for answers under way at Close
}

var defaultLimits = limits{
	connections:     32,
	userConnections: 8,
	userWatches:     4,
	userTurns:       2,

	watches:   16,
	batches:   2,
	header:    8 << 10,
	read:      5 * time.Second,
	batch:     30 * time.Second,
	keepAlive: keepAlive,
	stall:     30 * time.Second,
	idle:      30 * time.Second,
	shutdown:  time.Second,
}

// Server answers on a control socket, and on one for those who only read.
type Server struct {
	sockets []*socket
	log     *slog.Logger
	limits  limits
	ending  chan struct{} // closed by Close
	root    room
	others  room

	mu     sync.Mutex
	http   *http.Server // nil until Serve
	closed bool
}

// room is for what is held in memory, or for long; it has one for each.
type room struct{ watches, batches chan struct{} }

func newRoom(l limits) room {
	return room{make(chan struct{}, l.watches), make(chan struct{}, l.batches)}
}

// Listen makes the socket at path (and its directory), with mode 0600 or, when
// a group is named, 0660 and that group's; and one at [ReaderPath] when a group
// of readers is named. A stale socket is replaced. Those who connect wait until
// Serve is called.
func Listen(path, group, readers string, log *slog.Logger) (*Server, error) {
	s, err := listen(path, group)
	if err != nil {
		return nil, err
	}
	sockets := []*socket{s}
	if readers != "" {
		r, err := listen(ReaderPath(path), readers)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		r.reader = true
		sockets = append(sockets, r)
	} else if err := clearStale(ReaderPath(path)); err != nil {
		log.Warn("what is at the path of the socket for readers stays", "path", ReaderPath(path), "error", err)
	}
	return newServer(sockets, log, defaultLimits), nil
}

func newServer(sockets []*socket, log *slog.Logger, l limits) *Server {
	for _, s := range sockets {
		s.places = newPlaces(l)
	}
	return &Server{
		sockets: sockets, log: log, limits: l,
		ending: make(chan struct{}),
		root:   newRoom(l), others: newRoom(l),
	}
}

// Serve answers for the source until Close, and then returns nil.
func (s *Server) Serve(source Source) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.http = &http.Server{
		Handler:           s.handler(source),
		ReadHeaderTimeout: s.limits.read,
		ReadTimeout:       s.limits.read,
		WriteTimeout:      s.limits.stall,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    s.limits.header,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ConnContext:       withPeer,
	}
	s.mu.Unlock()
	errs := make(chan error)
	for _, socket := range s.sockets {
		go func() {
			err := s.http.Serve(socket)
			if errors.Is(err, http.ErrServerClosed) {
				err = nil
			} else {
				err = errors.Join(fmt.Errorf("serving the control socket %s: %w", socket.path, err), s.Close())
			}
			errs <- err
		}()
	}
	var err error
	for range s.sockets {
		err = errors.Join(err, <-errs)
	}
	return err
}

// Close stops listening, ends watches, gives other answers under way a moment
// to end, and removes the socket.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.ending)
	if s.http == nil {
		var err error
		for _, socket := range s.sockets {
			err = errors.Join(err, socket.Close())
		}
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.limits.shutdown)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// exchange is one request under way.
type exchange struct {
	*Server
	source Source
	w      http.ResponseWriter
	r      *http.Request
	query  url.Values // has what the route expects
}

// route is what a method does at a path. A query and a body come only where
// they are expected.
type route struct {
	pattern, method string
	query           string // the parameters that it may have
	body            int64  // the most bytes; 0: none
	answer          func(exchange)
}

var routes = []route{
	{"/v1/status", "GET", "", 0, exchange.status},
	{"/v1/stats", "GET", "", 0, func(x exchange) { x.one(http.StatusOK, x.source.Stats()) }},
	{"/v1/config", "GET", "", 0, func(x exchange) { x.one(http.StatusOK, x.source.Config()) }},
	{"/v1/map", "GET", "", 0, func(x exchange) { x.list(x.source.Maps()) }},
	{"/v1/map", "POST", "", maxBody, exchange.addMap},
	{"/v1/map/{addr...}", "GET", "", 0, exchange.explain},
	{"/v1/map/{addr...}", "DELETE", "", 0, exchange.removeMap},
	{"/v1/batch", "POST", "", maxBatch, exchange.batch},
	{"/v1/lease", "GET", "at", 0, exchange.leases},
	{"/v1/lease", "POST", "", maxBody, exchange.lend},
	{"/v1/lease/{addr}", "DELETE", "", 0, exchange.release},
	{"/v1/session", "GET", "client", 0, exchange.sessions},
	{"/v1/attachment", "GET", "", 0, exchange.attachments},
	{"/v1/attachment", "POST", "", maxBody, exchange.attach},
	{"/v1/attachment/{id}", "DELETE", "", 0, exchange.detach},
	{"/v1/watch", "GET", "after", 0, exchange.watch},
	{"/v1/reload", "POST", "", 0, exchange.reload},
	{"/v1/dns", "GET", "name type", 0, exchange.dns},
	{"/v1/trace", "POST", "", maxPacket, exchange.trace},
}

func (s *Server) handler(source Source) http.Handler {
	paths := map[string][]route{}
	for _, r := range routes {
		paths[r.pattern] = append(paths[r.pattern], r)
	}
	mux := http.NewServeMux()
	for pattern, routes := range paths {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			exchange{s, source, w, r, nil}.dispatch(routes)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		exchange{s, source, w, r, nil}.noSuchPath()
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.log.Debug("control request", "method", r.Method, "path", r.URL.Path, "peer", r.RemoteAddr)
		if clean := path.Clean(r.URL.Path); r.URL.Path != clean && r.URL.Path != clean+"/" {
			exchange{s, source, w, r, nil}.noSuchPath() // mux would send it elsewhere, in HTML
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (x exchange) noSuchPath() {
	x.readNoMore()
	x.fail(http.StatusNotFound, "%s: no such path in this version", quoted(x.r.URL.Path))
}

// dispatch answers by the route of the method, and refuses what no route
// expects before any of it is read.
func (x exchange) dispatch(routes []route) {
	var methods []string
	for _, route := range routes {
		if route.method == x.r.Method {
			x.take(route)
			return
		}
		methods = append(methods, route.method)
	}
	x.readNoMore()
	x.w.Header().Set("Allow", strings.Join(methods, ", "))
	x.fail(http.StatusMethodNotAllowed, "%s: expected %s", x.r.Method, strings.Join(methods, " or "))
}

func (x exchange) take(r route) {
	var err error
	x.query, err = parseQuery(x.r.URL.RawQuery, r.query)
	who := x.peer()
	switch {
	case who.reader && r.method != "GET" && r.pattern != "/v1/trace":
		x.readNoMore()
		x.fail(http.StatusForbidden, "%s %s: %v", r.method, r.pattern, errReader)
	case err != nil:
		x.readNoMore()
		x.fail(http.StatusBadRequest, "%v", err)
	case r.body == 0 && x.r.ContentLength != 0:
		x.readNoMore()
		x.fail(http.StatusRequestEntityTooLarge, "expected a request without a body")
	case x.r.ContentLength > r.body:
		x.readNoMore()
		x.fail(http.StatusRequestEntityTooLarge, "expected at most %d bytes", r.body)
	default:
		x.r.Body = http.MaxBytesReader(x.w, x.r.Body, r.body)
		x.inTurn(r)
	}
}

// errReader is for those of control.read_group.
var errReader = errors.New("the group that control.read_group names may read, and change nothing: ask root, or those of control.group")

// inTurn answers when few others of the same user are answered. A watch waits
// most of its time, and is counted by itself.
func (x exchange) inTurn(r route) {
	if r.pattern != "/v1/watch" {
		end, ok := x.places().turn(x.peer())
		if !ok {
			x.readNoMore()
			x.fail(http.StatusServiceUnavailable, "%d requests of this user are under way: try again", x.limits.userTurns)
			return
		}
		defer end()
	}
	r.answer(x)
}

// places are those of the socket that the request came by.
func (x exchange) places() *places {
	i := slices.IndexFunc(x.sockets, func(s *socket) bool { return s.reader == x.peer().reader })
	return x.sockets[i].places
}

// room is root's, or that of all others.
func (x exchange) room() room {
	if x.peer().trusted() {
		return x.root
	}
	return x.others
}

func (x exchange) status() {
	status := x.source.Status()
	status.Flags = append([]string{}, status.Flags...)
	status.Problems = append([]string{}, status.Problems...)
	status.Warnings = append([]string{}, status.Warnings...) // in JSON a list also when empty
	if status.Networks == nil {
		status.Networks = []mapping.Network{}
	}
	x.one(http.StatusOK, status)
}

func (x exchange) explain() {
	a, err := parseAddr(x.r.PathValue("addr"))
	if err != nil {
		x.fail(http.StatusBadRequest, "%v", err)
		return
	}
	x.one(http.StatusOK, x.source.Explain(a))
}

// leases lists what is lent, or was at a time.
func (x exchange) leases() {
	if !x.query.Has("at") {
		x.list(x.source.Leases())
		return
	}
	text := x.query.Get("at")
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		x.fail(http.StatusBadRequest, "at=%s: expected a time such as 2006-01-02T15:04:05Z, with %%2B for a +", quoted(text))
		return
	}
	lines := x.lines()
	err = x.source.LeasesAt(at, func(v any) bool { lines.write(v); return true })
	switch {
	case err != nil && lines.begun:
		x.broken(err)
	case err != nil:
		x.refuse(err, http.StatusBadRequest)
	default:
		lines.begin()
	}
}

// dns answers a question of the name server's clients.
func (x exchange) dns() {
	// It has a time of its own, longer than that for a request to come in.
	answer, err := x.source.DNS(context.WithoutCancel(x.r.Context()), x.query.Get("name"), cmp.Or(x.query.Get("type"), "AAAA"))
	if err != nil {
		x.fail(http.StatusBadRequest, "%v", err)
		return
	}
	x.one(http.StatusOK, answer)
}

// sessions lists those of a client, or of all.
func (x exchange) sessions() {
	var client netip.Addr
	if x.query.Has("client") {
		text := x.query.Get("client")
		var err error
		if client, err = netip.ParseAddr(text); err != nil || !client.Is6() || client.Is4In6() || client.Zone() != "" {
			x.fail(http.StatusBadRequest, "client=%s: expected an IPv6 address", quoted(text))
			return
		}
	}
	lines := x.lines()
	lines.begin()
	for s := range x.source.Sessions(client) {
		lines.write(s)
	}
}

// attachments lists what is attached. They have no revisions.
func (x exchange) attachments() {
	lines := x.lines()
	lines.begin()
	for a := range x.source.Attachments() {
		lines.write(a)
	}
}

// trace answers about the packet in the body, which no header counts as text.
func (x exchange) trace() {
	packet, err := io.ReadAll(x.r.Body)
	switch {
	case err != nil:
		x.unread("the packet", err)
	case len(packet) == 0:
		x.fail(http.StatusBadRequest, "expected a packet")
	default:
		x.one(http.StatusOK, x.source.Trace(packet))
	}
}

// unread answers a body that could not be read to its end.
func (x exchange) unread(what string, err error) {
	x.readNoMore()
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		x.fail(http.StatusRequestEntityTooLarge, "expected at most %d bytes", large.Limit)
		return
	}
	x.fail(http.StatusBadRequest, "reading %s: %v", what, err)
}

// readNoMore keeps package http from waiting for a body that nobody wants.
func (x exchange) readNoMore() {
	x.w.Header().Set("Connection", "close")
	x.control().SetReadDeadline(time.Now())
}

func (x exchange) control() *http.ResponseController { return http.NewResponseController(x.w) }

func (x exchange) fail(code int, format string, args ...any) {
	x.one(code, failure{Error: fmt.Sprintf(format, args...)})
}

// refuse answers with an error of the source's, and with otherwise as the code
// where it has no reason.
func (x exchange) refuse(err error, otherwise int) {
	f, code := failureOf(err, otherwise)
	x.one(code, f)
}

func (x exchange) one(code int, v any) {
	data, err := json.Marshal(told(v))
	if err != nil {
		x.log.Error("encoding an answer", "error", err)
		code, data = http.StatusInternalServerError, []byte(`{"error": "the daemon could not encode its answer: see its log"}`)
	}
	x.control().SetWriteDeadline(time.Now().Add(x.limits.stall)) // a change may have taken its time
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(code)
	x.w.Write(append(data, '\n')) // nobody is left to tell of an error
}

// list writes a list of one revision.
func (x exchange) list(revision uint64, values iter.Seq[any]) {
	x.w.Header().Set(revisionHeader, strconv.FormatUint(revision, 10))
	lines := x.lines()
	lines.begin()
	for v := range values {
		lines.write(v)
	}
}

// lines is an answer of one object a line, written as they come. Where it
// cannot go on, it breaks the connection, so that the reader does not take a
// part for the whole.
type lines struct {
	exchange
	encoder *json.Encoder
	begun   bool
}

func (x exchange) lines() *lines { return &lines{exchange: x, encoder: json.NewEncoder(x.w)} }

func (l *lines) begin() {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.w.WriteHeader(http.StatusOK)
	}
}

func (l *lines) write(v any) {
	l.begin()
	l.giveTime()
	if err := l.encoder.Encode(told(v)); err != nil {
		l.broken(err)
	}
}

// flush hands over what was written.
func (l *lines) flush() {
	l.giveTime()
	if err := l.control().Flush(); err != nil {
		l.broken(err)
	}
}

// giveTime gives the reader time to take what is written next.
func (l *lines) giveTime() {
	if err := l.control().SetWriteDeadline(time.Now().Add(l.limits.stall)); err != nil {
		l.broken(err)
	}
}

func (x exchange) broken(err error) {
	x.log.Debug("control answer broken off", "path", x.r.URL.Path, "peer", x.r.RemoteAddr, "error", err)
	panic(http.ErrAbortHandler)
}
