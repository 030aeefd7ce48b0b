package main

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/mapping"
)

// fake is a daemon that does as it is told, for the commands that ask one.
type fake struct {
	control.Source // of the rest, nothing is asked

	mu       sync.Mutex
	revision uint64
	maps     []mapping.MapInfo
	leases   []mapping.Lease
	sessions []control.Session
	events   []mapping.Event
	changed  chan struct{}

	asked  time.Time  // by LeasesAt
	client netip.Addr // by Sessions
	config any
	status control.Status
	reload func() ([]string, error)
}

var began = time.Date(2026, 1, 31, 14, 5, 0, 0, time.UTC)

func newFake() *fake {
	return &fake{
		revision: 7,
		changed:  make(chan struct{}),
		maps: []mapping.MapInfo{
			{IPv4: netip.MustParsePrefix("192.0.2.1/32"), IPv6: netip.MustParsePrefix("2001:db8::1/128"), Label: "web 1", Origin: "natless.toml:3"},
			{IPv4: netip.MustParsePrefix("198.51.100.0/24"), IPv6: netip.MustParsePrefix("2001:db8:1::/120"), Label: "db", Runtime: true, Origin: "added then by somebody"},
		},
		leases: []mapping.Lease{
			{IPv4: netip.MustParseAddr("169.254.64.2"), IPv6: netip.MustParseAddr("2001:db8:c::5"), Pool: netip.MustParsePrefix("169.254.64.0/20"), Since: began, Idle: 3, Label: "web", Pinned: true},
			{IPv4: netip.MustParseAddr("169.254.65.9"), IPv6: netip.MustParseAddr("2001:db8:d::5"), Pool: netip.MustParsePrefix("169.254.64.0/20"), Since: began, Idle: 70, Ports: "1024-2047"},
		},
	}
}

// serve starts the daemon at the socket that the commands of this test find.
func (f *fake) serve(t *testing.T) (stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "natless.sock")
	t.Setenv("NATLESS_SOCKET", path)
	return serveAt(t, path, f)
}

func serveAt(t *testing.T, path string, source control.Source) (stop func()) {
	t.Helper()
	s, err := control.Listen(path, "", "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- s.Serve(source) }()
	stop = sync.OnceFunc(func() {
		assert.NoError(t, s.Close())
		assert.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return stop
}

func (f *fake) Maps() (uint64, iter.Seq[any]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var rows []control.Row
	for _, m := range f.maps {
		rows = append(rows, control.Row{Rule: mapping.RuleMap, MapInfo: m})
	}
	rows = append(rows, control.Row{Rule: mapping.RulePref64, MapInfo: mapping.MapInfo{
		IPv4: netip.MustParsePrefix("0.0.0.0/0"), IPv6: netip.MustParsePrefix("64:ff9b::/96"),
	}})
	return f.revision, control.Each(slices.Values(rows))
}

func (f *fake) Leases() (uint64, iter.Seq[any]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revision, control.Each(slices.Values(slices.Clone(f.leases)))
}

func (f *fake) Sessions(client netip.Addr) iter.Seq[control.Session] {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.client = client
	return slices.Values(f.sessions)
}

func (f *fake) Status() control.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Version, s.Device, s.Revision = "test", "natless0", f.revision
	return s
}

func (f *fake) Stats() control.Stats {
	return control.Stats{Verdicts: map[string]uint64{"translated": 5}}
}

// Explain finds the map that begins with an address.
func (f *fake) Explain(a netip.Addr) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.maps {
		if m.IPv4.Addr() == a {
			return mapping.Explanation{Address: a, Rule: mapping.RuleMap, Map: &m, Origin: m.Origin}
		}
	}
	return mapping.Explanation{Address: a, Rule: mapping.RulePref64}
}

func (f *fake) Config() any { return f.config }

func (f *fake) Reload(string) ([]string, error) { return f.reload() }

func (f *fake) LeasesAt(at time.Time, yield func(any) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = at
	yield(map[string]any{"ipv4": "169.254.64.2", "ipv6": "2001:db8:c::5", "since": began})
	yield(map[string]any{"ipv4": "169.254.64.3", "ipv6": "2001:db8:c::6", "since": began, "until": began.Add(time.Hour), "ports": "1-100", "label": "db"})
	return nil
}

func (f *fake) Change(changes []mapping.Change, by string) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps := slices.Clone(f.maps)
	events := slices.Clone(f.events)
	revision := f.revision + 1
	for _, c := range changes {
		e := mapping.Event{Revision: revision, Time: began, Op: mapping.OpMapAdded, By: "somebody"}
		at := slices.IndexFunc(maps, func(m mapping.MapInfo) bool {
			return c.Add != nil && (m.IPv4 == c.Add.IPv4 || m.IPv6 == c.Add.IPv6) || m.IPv4 == c.Remove || m.IPv6 == c.Remove
		})
		switch {
		case c.Add != nil && at >= 0:
			return 0, fmt.Errorf("%w: %v is mapped", mapping.ErrConflict, maps[at].IPv4)
		case c.Add != nil:
			m := mapping.MapInfo{IPv4: c.Add.IPv4, IPv6: c.Add.IPv6, Label: c.Add.Label, Runtime: true, Origin: "added now by somebody"}
			maps, e.Map = append(maps, m), &m
		case at < 0:
			return 0, fmt.Errorf("%v: %w", c.Remove, mapping.ErrUnknown)
		default:
			e.Op, e.Map = mapping.OpMapRemoved, &maps[at]
			maps = slices.Concat(maps[:at], maps[at+1:])
		}
		events = append(events, e)
	}
	f.revision, f.maps, f.events = revision, maps, events
	close(f.changed)
	f.changed = make(chan struct{})
	return f.revision, nil
}

func (f *fake) Release(a netip.Addr, _ string) (l mapping.Lease, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := slices.IndexFunc(f.leases, func(l mapping.Lease) bool { return l.IPv4 == a || l.IPv6 == a })
	if at < 0 {
		return l, fmt.Errorf("%v: %w", a, mapping.ErrUnknown)
	}
	l = f.leases[at]
	f.leases = slices.Concat(f.leases[:at], f.leases[at+1:])
	f.revision++
	f.events = append(f.events, mapping.Event{Revision: f.revision, Time: began, Op: mapping.OpLeaseEnded, Lease: &l})
	close(f.changed)
	f.changed = make(chan struct{})
	return l, nil
}

func (f *fake) Revision() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revision
}

func (f *fake) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fake) Events(after uint64, _ int) ([]mapping.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if after > f.revision {
		return nil, mapping.ErrGone
	}
	i, _ := slices.BinarySearchFunc(f.events, after+1, func(e mapping.Event, r uint64) int { return int(e.Revision) - int(r) })
	return slices.Clone(f.events[i:]), nil
}

// says runs a command in this process and returns what it wrote.
func says(t *testing.T, in string, args ...string) (out, errs string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	err = cmd.Execute()
	return o.String(), e.String(), err
}

// mustSay runs a command that must not fail nor complain.
func mustSay(t *testing.T, args string) string {
	t.Helper()
	out, errs, err := says(t, "", strings.Fields(args)...)
	require.NoError(t, err, args)
	assert.Empty(t, errs, args)
	return out
}

// going is a command under way.
type going struct {
	mu   sync.Mutex
	out  bytes.Buffer
	errs bytes.Buffer
	stop context.CancelFunc
	done chan error
}

// guarded is a buffer of it, to write to.
type guarded struct {
	of     *going
	buffer *bytes.Buffer
}

func (g guarded) Write(p []byte) (int, error) {
	g.of.mu.Lock()
	defer g.of.mu.Unlock()
	return g.buffer.Write(p)
}

// goOn starts a command that goes on until it is stopped.
func goOn(t *testing.T, args string) *going {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	g := &going{stop: stop, done: make(chan error, 1)}
	cmd := root()
	cmd.SetArgs(strings.Fields(args))
	cmd.SetOut(guarded{g, &g.out})
	cmd.SetErr(guarded{g, &g.errs})
	go func() { g.done <- cmd.ExecuteContext(ctx) }()
	t.Cleanup(stop)
	return g
}

// wrote waits until the command has written a text since the last time.
func (g *going) wrote(t *testing.T, text string) string {
	t.Helper()
	for range 1000 {
		g.mu.Lock()
		got := g.out.String()
		if strings.Contains(got, text) {
			g.out.Reset()
			g.mu.Unlock()
			return got
		}
		g.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	require.Fail(t, "the command did not write: "+text, "%s\n%s", g.out.String(), g.errs.String())
	return ""
}

// ends stops the command, which is no failure.
func (g *going) ends(t *testing.T) {
	t.Helper()
	g.stop()
	select {
	case err := <-g.done:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.Fail(t, "the command goes on")
	}
}
