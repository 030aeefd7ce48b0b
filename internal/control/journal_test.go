package control

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
)

// journal is a daemon with mappings that can be changed and a short memory.
type journal struct {
	source
	remembers int // events

	mu       sync.Mutex
	now      time.Time // of every event
	maps     map[netip.Prefix]mapping.MapInfo
	leases   []mapping.Lease
	attached []mapping.Attachment
	events   []mapping.Event
	first    uint64 // the revision before the first of events
	revision uint64
	changed  chan struct{}
	lacks    error // what keeps every change from being made
	asked    int   // the most events that one question gave
}

func newJournal(remembers int) *journal {
	return &journal{
		remembers: remembers, maps: map[netip.Prefix]mapping.MapInfo{}, first: 1000, revision: 1000, changed: make(chan struct{}),
		now: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC),
	}
}

func (j *journal) Change(changes []mapping.Change, by string) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lacks != nil {
		return 0, j.lacks
	}
	maps := map[netip.Prefix]mapping.MapInfo{}
	for k, v := range j.maps {
		maps[k] = v
	}
	var events []mapping.Event
	for _, c := range changes {
		op, key := mapping.OpMapRemoved, c.Remove
		if c.Add != nil {
			op, key = mapping.OpMapAdded, c.Add.IPv4
		}
		m, there := maps[key]
		switch {
		case c.Add == nil && !there:
			return 0, fmt.Errorf("removing the map of %v: %w", key, mapping.ErrUnknown)
		case c.Add == nil:
			delete(maps, key)
		case there:
			return 0, fmt.Errorf("%v: %w: %v is mapped already, by map %v = %v", c.Add, mapping.ErrConflict, key, m.IPv4, m.IPv6)
		default:
			origin := fmt.Sprintf("added %s by %s", j.now.Format(time.RFC3339), by)
			m = mapping.MapInfo{IPv4: key, IPv6: c.Add.IPv6, Label: c.Add.Label, Origin: origin}
			maps[key] = m
		}
		events = append(events, mapping.Event{Op: op, By: by, Map: &m})
	}
	j.maps = maps
	return j.publish(events...), nil
}

// publish makes events those of the next revision; the lock is held.
func (j *journal) publish(events ...mapping.Event) uint64 {
	j.revision++
	for _, e := range events {
		e.Revision, e.Time = j.revision, j.now
		j.events = append(j.events, e)
	}
	for len(j.events) > j.remembers {
		j.first = j.events[0].Revision
		for len(j.events) > 0 && j.events[0].Revision == j.first {
			j.events = j.events[1:]
		}
	}
	close(j.changed)
	j.changed = make(chan struct{})
	return j.revision
}

// produce makes n revisions of one event.
func (j *journal) produce(n int) {
	for range n {
		j.mu.Lock()
		j.publish(mapping.Event{Op: mapping.OpChanged, By: "test"})
		j.mu.Unlock()
	}
}

func (j *journal) Events(after uint64, most int) (events []mapping.Event, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if after < j.first || after > j.revision {
		return nil, fmt.Errorf("changes after revision %d: %w", after, mapping.ErrGone)
	}
	for _, e := range j.events {
		if e.Revision <= after {
			continue
		}
		if len(events) >= most && e.Revision != events[len(events)-1].Revision {
			break
		}
		events = append(events, e)
	}
	j.asked = max(j.asked, len(events))
	return events, nil
}

func (j *journal) Changed() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.changed
}

func (j *journal) Revision() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.revision
}

func (j *journal) Maps() (uint64, iter.Seq[any]) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var list []Row
	for _, m := range j.maps {
		list = append(list, Row{mapping.RuleMap, m})
	}
	return j.revision, Each(slices.Values(list))
}

func (j *journal) Leases() (uint64, iter.Seq[any]) {
	return j.Revision(), Each(slices.Values(j.leases))
}

func (j *journal) LeasesAt(at time.Time, yield func(any) bool) error {
	if at.Before(j.now.AddDate(0, 0, -30)) {
		return fmt.Errorf("leases at %s: %w: the history begins later", at.Format(time.RFC3339), mapping.ErrGone)
	}
	for _, l := range j.leases {
		if !l.Since.After(at) && !yield(l) {
			break
		}
	}
	return nil
}

func (j *journal) Release(a netip.Addr, by string) (mapping.Lease, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, l := range j.leases {
		if l.IPv4 == a || l.IPv6 == a {
			j.leases = append(j.leases[:i:i], j.leases[i+1:]...)
			j.publish(mapping.Event{Op: mapping.OpLeaseEnded, By: by, Lease: &l})
			return l, nil
		}
	}
	return mapping.Lease{}, fmt.Errorf("releasing %v: %w", a, mapping.ErrUnknown)
}

// Lend knows one client, and that what j lacks keeps it from anything.
func (j *journal) Lend(a netip.Addr, label, by string) (mapping.Lease, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return mapping.Lease{IPv4: netip.MustParseAddr("192.0.2.7"), IPv6: a, Label: label, Since: j.now}, j.lacks
}

func (j *journal) Attachments() iter.Seq[any] { return Each(slices.Values(j.attached)) }

func (j *journal) Attach(a mapping.Attachment, by string) (mapping.Attachment, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	a.Seen = "seen"
	j.attached = append(j.attached, a)
	return a, j.lacks
}

func (j *journal) Detach(id, by string) (a mapping.Attachment, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.attached) == 0 || j.attached[0].ID != id {
		return a, fmt.Errorf("detach %s: %w", id, mapping.ErrUnknown)
	}
	a, j.attached = j.attached[0], nil
	return a, nil
}

func (j *journal) Reload(by string) ([]string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lacks != nil {
		return nil, j.lacks
	}
	return nil, nil
}

// startJournal serves one, with the limits changed as the test likes.
func startJournal(t *testing.T, remembers int, change func(*limits)) (*Client, *journal, *Server) {
	t.Helper()
	j := newJournal(remembers)
	path, s := start(t, j, change)
	return NewClient(path), j, s
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// soon waits for something that takes a moment.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	require.Fail(t, "still not: "+what)
}
