package control

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
)

// watcher is a raw watch, whose answer has begun.
type watcher struct {
	net.Conn
	code  int
	lines *bufio.Scanner
}

func watching(t *testing.T, path, query string) *watcher {
	t.Helper()
	w := &watcher{Conn: say(t, path, "GET /v1/watch"+query+" HTTP/1.1\r\nHost: natless\r\n\r\n")}
	resp, err := http.ReadResponse(bufio.NewReader(w.Conn), nil)
	require.NoError(t, err)
	w.code, w.lines = resp.StatusCode, bufio.NewScanner(resp.Body)
	return w
}

// next is the next line, "" at the end.
func (w *watcher) next() string {
	w.lines.Scan()
	return w.lines.Text()
}

// TestWatch holds the lines of a watch and their order.
func TestWatch(t *testing.T) {
	c, j, s := startJournal(t, 100, func(l *limits) { l.keepAlive = 50 * time.Millisecond })
	w := watching(t, c.path, "")
	assert.Equal(t, `{"revision":1000}`, w.next(), "from now on")
	began := time.Now()
	assert.Equal(t, `{"revision":1000}`, w.next(), "and it lives")
	assert.Less(t, time.Since(began), 5*time.Second)
	_, err := j.Change([]mapping.Change{add("192.0.2.1/32", "2001:db8::1/128", "web"), add("192.0.2.2/32", "2001:db8::2/128", "")}, "test")
	require.NoError(t, err)
	const first = `{"revision":1001,"time":"2026-03-14T15:09:26Z","op":"map_added","by":"test","map":{"ipv4":"192.0.2.1/32","ipv6":"2001:db8::1/128","label":"web",`
	line := w.next()
	for line == `{"revision":1000}` {
		line = w.next()
	}
	assert.True(t, strings.HasPrefix(line, first), line)
	assert.Contains(t, w.next(), `"ipv4":"192.0.2.2/32"`)
	assert.Equal(t, `{"revision":1001}`, w.next())

	late := watching(t, c.path, "?after=1000")
	assert.True(t, strings.HasPrefix(late.next(), first))
	assert.Contains(t, late.next(), `"ipv4":"192.0.2.2/32"`)
	assert.Equal(t, `{"revision":1001}`, late.next())

	// Close ends them at once, and they say so.
	began = time.Now()
	require.NoError(t, s.Close())
	assert.Less(t, time.Since(began), s.limits.shutdown)
	for _, w := range []*watcher{w, late} {
		line := w.next()
		for line == `{"revision":1001}` {
			line = w.next()
		}
		assert.Equal(t, `{"error":"the daemon is ending"}`, line)
		assert.Empty(t, w.next())
		assert.NoError(t, w.lines.Err(), "the end is whole")
	}
	for _, err := range c.Watch(t.Context(), nil) {
		assert.ErrorContains(t, err, "is natless running?")
	}
}

// TestWatchOutlivesLimits holds that the limits of requests do not end a watch
// that is silent for longer.
func TestWatchOutlivesLimits(t *testing.T) {
	c, j, _ := startJournal(t, 100, func(l *limits) {
		l.read, l.stall, l.idle = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	})
	w := watching(t, c.path, "")
	assert.Equal(t, `{"revision":1000}`, w.next())
	time.Sleep(300 * time.Millisecond)
	j.produce(1)
	assert.Contains(t, w.next(), `"op":"changed"`)
	assert.Equal(t, `{"revision":1001}`, w.next())
}

// TestWatchWithoutGaps holds that a reader sees every change once and in order
// while they come as fast as they can, also those of many at once.
func TestWatchWithoutGaps(t *testing.T) {
	const n = 20_000
	c, j, _ := startJournal(t, 4*n, nil)
	after := j.Revision()
	last := after + n + 1
	var wg sync.WaitGroup
	wg.Go(func() {
		j.produce(n / 2)
		j.mu.Lock()
		j.publish(make([]mapping.Event, 5*watchEvents)...)
		j.mu.Unlock()
		j.produce(n / 2)
	})
	for range 3 {
		wg.Go(func() {
			seen, many := after, 0
			w := watching(t, c.path, fmt.Sprintf("?after=%d", after))
			for seen < last {
				var e mapping.Event
				if !assert.NoError(t, json.Unmarshal([]byte(w.next()), &e)) {
					return
				}
				switch {
				case e.Revision == after+n/2+1 && !e.Time.IsZero():
					many, seen = many+1, e.Revision
				case e.Time.IsZero():
					assert.Equal(t, seen, e.Revision, "what has been told of")
				default:
					seen++
					if !assert.Equal(t, seen, e.Revision) {
						return
					}
				}
			}
			assert.Equal(t, 5*watchEvents, many)
		})
	}
	wg.Wait()
}

// TestWatchFallsBehind holds that a reader that is too slow for what is
// remembered sees no gap: it is told to list again, and can.
func TestWatchFallsBehind(t *testing.T) {
	const remembered = 64
	c, j, _ := startJournal(t, remembered, nil)
	after := j.Revision()
	gone := 0
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for gone < 3 {
		j.produce(1) // the watch has something to begin with
		for e, err := range c.Watch(ctx, &after) {
			if err != nil {
				require.ErrorIs(t, err, mapping.ErrGone)
				assert.ErrorContains(t, err, "list again")
				gone++
				list, err := c.ListMaps(ctx)
				require.NoError(t, err)
				for range list.Rows {
				}
				require.Greater(t, list.Revision, after)
				after = list.Revision
				break
			}
			after++
			require.Equal(t, after, e.Revision)
			j.produce(2 * remembered)
		}
	}
}

// TestWatcherThatNeverReads holds that it costs neither the producer nor
// memory anything, and is let go.
func TestWatcherThatNeverReads(t *testing.T) {
	c, j, s := startJournal(t, 1000, func(l *limits) { l.stall = 300 * time.Millisecond })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range s.limits.watches {
		say(t, c.path, "GET /v1/watch HTTP/1.1\r\nHost: natless\r\n\r\n")
	}
	soon(t, "all watch", func() bool { return len(s.root.watches) == s.limits.watches })
	for i := 0; len(s.root.watches) > 0; i++ {
		require.Less(t, i, 10_000, "still watched")
		j.produce(100)
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(4<<20))
	assert.LessOrEqual(t, j.asked, watchEvents)
	_, err := c.Status(t.Context())
	assert.NoError(t, err)
}

// TestManyWatchers holds that beyond a number they are refused, that others
// are served all the same, and that nothing is left of them.
func TestManyWatchers(t *testing.T) {
	c, _, s := startJournal(t, 100, func(l *limits) { l.connections = 1 })
	before := runtime.NumGoroutine()
	var watch []*watcher
	refused := 0
	for range 100 {
		w := watching(t, c.path, "")
		if w.code == http.StatusOK {
			watch = append(watch, w)
			continue
		}
		refused++
		require.Equal(t, http.StatusServiceUnavailable, w.code)
		require.Equal(t, `{"error":"16 watch already: expected no more at once"}`, w.next())
		w.Close()
	}
	assert.Len(t, watch, 16)
	assert.Equal(t, 84, refused)
	_, err := c.Status(t.Context())
	require.NoError(t, err, "there is a connection beside them")

	// One that goes makes place at once, long before the next line.
	for _, w := range watch {
		w.Close()
	}
	began := time.Now()
	soon(t, "gone", func() bool { return len(s.root.watches) == 0 })
	assert.Less(t, time.Since(began), s.limits.keepAlive/2)
	soon(t, "so few goroutines", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// TestCloseBesideStuckWatcher holds that one that does not read does not keep
// the daemon from ending.
func TestCloseBesideStuckWatcher(t *testing.T) {
	c, j, s := startJournal(t, 100_000, func(l *limits) { l.shutdown = 50 * time.Millisecond })
	say(t, c.path, "GET /v1/watch HTTP/1.1\r\nHost: natless\r\n\r\n")
	soon(t, "watched", func() bool { return len(s.root.watches) == 1 })
	j.produce(50_000)
	began := time.Now()
	require.NoError(t, s.Close())
	assert.Less(t, time.Since(began), 10*time.Second)
	soon(t, "ended", func() bool { return len(s.root.watches) == 0 })
}

// TestWatchEnds holds what the client makes of the ends of a watch.
func TestWatchEnds(t *testing.T) {
	c, j, s := startJournal(t, 100, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	j.produce(1)
	after := uint64(1000)
	n := 0
	for e, err := range c.Watch(ctx, &after) {
		switch n++; n {
		case 1:
			require.NoError(t, err)
			assert.Equal(t, mapping.OpChanged, e.Op)
			cancel()
		default:
			assert.EqualError(t, err, "asking the daemon at "+c.path+": context canceled")
		}
	}
	assert.Equal(t, 2, n)

	after = 999
	for _, err := range c.Watch(t.Context(), &after) {
		require.ErrorIs(t, err, mapping.ErrGone)
	}
	after = 1000
	for _, err := range c.Watch(t.Context(), &after) {
		if err != nil {
			assert.EqualError(t, err, "the daemon is ending")
			break
		}
		go s.Close()
	}

	// Somebody else answers, and just ends, or hangs.
	other := NewClient(c.path + ".other")
	other.silence = 100 * time.Millisecond
	l, err := net.Listen("unix", other.path)
	require.NoError(t, err)
	hang := false
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"revision":1}`)
		if hang {
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	})}
	go srv.Serve(l)
	defer srv.Close()
	for _, want := range []string{"unexpected EOF", "no word of it for 100ms"} {
		n = 0
		for _, err := range other.Watch(t.Context(), nil) {
			assert.EqualError(t, err, "asking the daemon at "+other.path+": "+want)
			n++
		}
		assert.Equal(t, 1, n)
		hang = true
	}
}
