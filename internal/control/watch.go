package control

import (
	"errors"
	"net/http"
	"strconv"
	"time"
)

// watchEvents is how many events are asked of the source at once: what a watch
// holds in memory, and the most that is written without a look at whether it
// should end. One revision may have more.
const watchEvents = 256

var errEnding = errors.New("the daemon is ending")

// watch tells of every change after a revision, as long as there are readers.
// Events are read from the source as fast as the reader takes them, so that a
// slow one costs nothing; one that falls behind what the source remembers is
// told so, and is let go.
func (x exchange) watch() {
	after := x.source.Revision()
	if x.r.URL.Query().Has("after") {
		var err error
		text := x.r.URL.Query().Get("after")
		if after, err = strconv.ParseUint(text, 10, 64); err != nil {
			x.fail(http.StatusBadRequest, "after=%s: expected a revision", quoted(text))
			return
		}
	}
	select {
	case x.watches <- struct{}{}:
		defer func() { <-x.watches }()
	default:
		x.w.Header().Set("Connection", "close")
		x.fail(http.StatusServiceUnavailable, "%d watch already: expected no more", x.limits.watches)
		return
	}
	x.w.Header().Set("Connection", "close")
	if err := x.control().SetReadDeadline(time.Time{}); err != nil { // one for the request would end the watch
		x.broken(err)
	}
	x.follow(after)
}

func (x exchange) follow(after uint64) {
	lines := x.lines()
	silent := time.NewTimer(0) // the first line comes at once
	defer silent.Stop()
	for x.r.Context().Err() == nil {
		changes := x.source.Changed()
		events, err := x.source.Events(after, watchEvents)
		if err != nil && !lines.begun {
			x.refuse(err, http.StatusInternalServerError)
			return
		}
		if err != nil {
			lines.last(err)
			return
		}
		if len(events) == 0 {
			select {
			case <-changes:
				continue
			case <-silent.C:
			case <-x.r.Context().Done():
				return
			case <-x.ending:
				lines.last(errEnding)
				return
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
