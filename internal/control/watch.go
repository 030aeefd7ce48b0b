package control

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/natless/natless/mapping"
)

// watchEvents is how many events are asked of the source at once: what a watch
// holds in memory, and the most that is written without a look at whether it
// should end. One revision may have more.
const watchEvents = 256

var errEnding = errors.New("the daemon is ending")

// watch tells of every change after a revision, for as long as there is a
// reader. Events are read from the source as fast as the reader takes them, so
// that a slow one costs nothing; one that falls behind what the source
// remembers is told so, and is let go.
func (x exchange) watch() {
	after := x.source.Revision()
	if x.query.Has("after") {
		var err error
		text := x.query.Get("after")
		if after, err = strconv.ParseUint(text, 10, 64); err != nil {
			x.fail(http.StatusBadRequest, "after=%s: expected a revision", quoted(text))
			return
		}
	}
	x.w.Header().Set("Connection", "close") // a place for others
	leave, ok := x.places().watch(x.peer())
	if !ok {
		x.fail(http.StatusServiceUnavailable, "this user has %d watches already: expected no more at once", x.limits.userWatches)
		return
	}
	defer leave()
	watches := x.room().watches
	select {
	case watches <- struct{}{}:
		defer func() { <-watches }()
	default:
		x.fail(http.StatusServiceUnavailable, "%d watch already: expected no more at once", x.limits.watches)
		return
	}
	x.follow(after)
}

// follow writes the changes after a revision. The line with a revision alone
// comes first, after the events of each step, and after each time of silence:
// everything up to it has been told.
func (x exchange) follow(after uint64) {
	lines := x.lines()
	silent := time.NewTimer(0)
	defer silent.Stop()
	for {
		select {
		case <-x.r.Context().Done():
			return
		case <-x.ending:
			lines.last(errEnding)
			return
		default:
		}
		changes := x.source.Changed()
		events, err := x.source.Events(after, watchEvents)
		if errors.Is(err, mapping.ErrGone) {
			err = fmt.Errorf("%w: list again, and watch from the revision of the list", err)
		}
		switch {
		case err != nil && !lines.begun:
			x.refuse(err, http.StatusInternalServerError)
			return
		case err != nil:
			lines.last(err)
			return
		case len(events) == 0:
			select {
			case <-x.r.Context().Done():
				continue
			case <-x.ending:
				continue
			case <-changes:
				continue
			case <-silent.C:
			}
		}
		for _, e := range events {
			lines.write(e)
			after = e.Revision
		}
		lines.write(changed{after})
		lines.flush()
		silent.Reset(x.limits.keepAlive)
	}
}

// last is the line of a watch that says why it ends.
func (l *lines) last(err error) {
	f, _ := failureOf(err, 0)
	l.write(f)
	l.flush()
}
