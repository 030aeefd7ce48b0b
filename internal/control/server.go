package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	tracePath = "/v1/trace"
	maxPacket = 40 + 65535 // the largest of either family
)

// limits bound what one client, or many, can hold of the daemon.
type limits struct {
	connections int
	header      int           // bytes
	read        time.Duration // for a whole request
	stall       time.Duration // without the reader of an answer taking anything
	idle        time.Duration // between two requests
	shutdown    time.Duration // for answers under way at Close
}

var defaultLimits = limits{
	connections: 64,
	header:      8 << 10,
	read:        5 * time.Second,
	stall:       30 * time.Second,
	idle:        30 * time.Second,
	shutdown:    time.Second,
}

// Server answers on a control socket.
type Server struct {
	socket *socket
	log    *slog.Logger
	limits limits

	mu     sync.Mutex
	http   *http.Server // nil until Serve
	closed bool
}

// Listen makes the socket at path (and its directory), with mode 0600 or, when
// a group is named, 0660 and that group's. A stale socket is replaced. Those
// who connect wait until Serve is called.
func Listen(path, group string, log *slog.Logger) (*Server, error) {
	s, err := listen(path, group)
	if err != nil {
		return nil, err
	}
	return &Server{socket: s, log: log, limits: defaultLimits}, nil
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
	}
	s.mu.Unlock()
	err := s.http.Serve(netutil.LimitListener(s.socket, s.limits.connections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the control socket %s: %w", s.socket.path, err)
}

// Close stops listening, gives answers under way a moment to end, and removes
// the socket.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.http == nil {
		return s.socket.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.limits.shutdown)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

func (s *Server) handler(source Source) http.Handler {
	mux := http.NewServeMux()
	one := func(pattern string, value func() any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { s.one(w, http.StatusOK, value()) })
	}
	one("/v1/status", func() any {
		status := source.Status()
		status.Warnings = append([]string{}, status.Warnings...) // in JSON a list also when empty
		return status
	})
	one("/v1/stats", func() any { return source.Stats() })
	one("/v1/config", source.Config)
	mux.HandleFunc("/v1/map", func(w http.ResponseWriter, _ *http.Request) { s.list(w, source.Maps()) })
	mux.HandleFunc("/v1/lease", func(w http.ResponseWriter, _ *http.Request) { s.list(w, source.Leases()) })
	mux.HandleFunc("/v1/map/{addr}", func(w http.ResponseWriter, r *http.Request) {
		a, err := netip.ParseAddr(r.PathValue("addr"))
		if err != nil || a.Zone() != "" || a.Is4In6() {
			s.fail(w, http.StatusBadRequest, "%q: expected an IPv4 or IPv6 address", r.PathValue("addr"))
			return
		}
		s.one(w, http.StatusOK, source.Explain(a))
	})
	mux.HandleFunc(tracePath, func(w http.ResponseWriter, r *http.Request) { s.trace(w, r, source) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, http.StatusNotFound, "%q: no such path in this version", r.URL.Path)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.log.Debug("control request", "method", r.Method, "path", r.URL.Path, "peer", r.RemoteAddr)
		method := http.MethodGet
		if r.URL.Path == tracePath {
			method = http.MethodPost
		}
		switch {
		case r.Method != method:
			readNoMore(w)
			w.Header().Set("Allow", method)
			s.fail(w, http.StatusMethodNotAllowed, "%s: expected %s", r.Method, method)
		case method == http.MethodGet && r.ContentLength != 0:
			readNoMore(w)
			s.fail(w, http.StatusRequestEntityTooLarge, "expected a request without a body")
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

// trace answers about the packet in the body, which no header counts as text.
func (s *Server) trace(w http.ResponseWriter, r *http.Request, source Source) {
	packet, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPacket))
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		readNoMore(w)
		s.fail(w, http.StatusRequestEntityTooLarge, "expected a packet of at most %d bytes", maxPacket)
	case err != nil:
		readNoMore(w)
		s.fail(w, http.StatusBadRequest, "reading the packet: %v", err)
	case len(packet) == 0:
		s.fail(w, http.StatusBadRequest, "expected a packet")
	default:
		s.one(w, http.StatusOK, source.Trace(packet))
	}
}

// readNoMore keeps package http from waiting for a body that nobody wants.
func readNoMore(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	http.NewResponseController(w).SetReadDeadline(time.Now())
}

func (s *Server) fail(w http.ResponseWriter, code int, format string, args ...any) {
	s.one(w, code, failure{fmt.Sprintf(format, args...)})
}

// failure is the answer when there is no other.
type failure struct {
	Error string `json:"error"`
}

func (s *Server) one(w http.ResponseWriter, code int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		s.log.Error("encoding an answer", "error", err)
		code, data = http.StatusInternalServerError, []byte(`{"error": "the daemon could not encode its answer: see its log"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(data, '\n')) // nobody is left to tell of an error
}

// list writes one object a line as they come. Where it cannot go on, it breaks
// the connection, so that the reader does not take a part for the whole.
func (s *Server) list(w http.ResponseWriter, values iter.Seq[any]) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	control, enc := http.NewResponseController(w), json.NewEncoder(w)
	for v := range values {
		err := control.SetWriteDeadline(time.Now().Add(s.limits.stall))
		if err == nil {
			err = enc.Encode(v)
		}
		if err != nil {
			s.log.Debug("control answer broken off", "error", err)
			panic(http.ErrAbortHandler)
		}
	}
}
