package mapping

import (
	"fmt"
	"slices"
	"sync"
)

// journaled is how many events the journal keeps, about 13 MB of them. The
// newest revision is kept whole, however large.
const journaled = 1 << 16

// journal remembers the latest events, so that whoever watches learns of every
// change, or learns that it must list again.
type journal struct {
	mu        sync.Mutex
	changes   []change // oldest first
	events    int      // in changes
	forgotten uint64   // the last revision before changes
	changed   chan struct{}
}

// change is one revision.
type change struct {
	revision uint64
	events   []Event
}

// enter does what publishes a revision, and tells of it. It is one step for
// those who ask for events, so that nobody sees a revision that the journal
// does not know.
func (j *journal) enter(c change, publish func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	publish()
	j.changes = append(j.changes, c)
	j.events += len(c.events)
	for j.events > journaled && len(j.changes) > 1 {
		j.events -= len(j.changes[0].events)
		j.forgotten = j.changes[0].revision
		j.changes[0] = change{}
		j.changes = j.changes[1:]
	}
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// Events lists what changed after a revision, oldest first: whole revisions,
// as many as have at most max events together, but one at least. The list is
// to be read only: one revision, of a hundred thousand maps perhaps, is the
// same piece of memory for all who ask. The error is ErrGone if some of it is
// forgotten, or if there was no such revision yet. No events and no error means
// that nothing changed since.
func (t *Table) Events(after uint64, max int) ([]Event, error) {
	j := &t.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	switch current := t.Revision(); {
	case after > current:
		return nil, fmt.Errorf("revision %d: %w: the table is at %d", after, ErrGone, current)
	case after < j.forgotten:
		return nil, fmt.Errorf("revision %d: %w: what came before %d is forgotten", after, ErrGone, j.forgotten+1)
	}
	i, _ := slices.BinarySearchFunc(j.changes, after+1, func(c change, r uint64) int {
		return int(int64(c.revision - r))
	})
	var events []Event
	for _, c := range j.changes[i:] {
		switch {
		case len(events) == 0:
			events = slices.Clip(c.events)
		case len(events)+len(c.events) > max:
			return events, nil
		default:
			events = append(events, c.events...)
		}
	}
	return events, nil
}

// Changed is closed at the next change. Ask for it before Events, so that no
// change falls between.
func (t *Table) Changed() <-chan struct{} {
	j := &t.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	return j.changed
}
