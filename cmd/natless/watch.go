package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/printable"
	"github.com/natless/natless/mapping"
)

const (
	patience = 10 * time.Second       // with a daemon that went away
	redraw   = 250 * time.Millisecond // between two pictures of a terminal
)

// listing is a list of the daemon's and how it is shown.
type listing[T any] struct {
	name    string // of the command
	ask     func(context.Context, *control.Client) (control.Listing, error)
	head    []any
	cells   func(T) []any
	few     int // columns that are shown unless all are asked for; 0: all
	admit   func(T) bool
	compare func(a, b T) int                                 // the order of rows; 0: the same row
	event   func(mapping.Event) (row T, there bool, is bool) // is: about a row of this listing; there: after it
}

// view is where a listing is shown.
type view[T any] interface {
	begin()
	row(raw json.RawMessage, row T) error
	listed() error // all rows have come
	event(e mapping.Event, row T, there bool) error
	notice(err error) // that the list comes anew
}

// run shows the list, and with watch what changes after it.
func (l *listing[T]) run(cmd *cobra.Command, ask *asking, watch bool) error {
	if watch {
		return l.watchOn(cmd, ask)
	}
	return l.list(ask, cmd.OutOrStdout())
}

// list shows the list as it is.
func (l *listing[T]) list(ask *asking, out io.Writer) error {
	ctx, stop := background()
	defer stop()
	_, err := l.all(ctx, ask.client(), &lines[T]{listing: l.formed(ask), json: ask.json(), out: out})
	return err
}

// formed is the listing with the columns that are asked for.
func (l *listing[T]) formed(ask *asking) *listing[T] {
	if l.few == 0 || ask.wide() {
		return l
	}
	f := *l
	f.head = l.head[:l.few]
	f.cells = func(row T) []any { return l.cells(row)[:l.few] }
	return &f
}

// all shows the list and returns its revision.
func (l *listing[T]) all(ctx context.Context, c *control.Client, v view[T]) (uint64, error) {
	list, err := l.ask(ctx, c)
	if err != nil {
		return 0, err
	}
	v.begin()
	for raw, err := range list.Rows {
		var row T
		if err == nil {
			err = json.Unmarshal(raw, &row)
		}
		if err != nil {
			return 0, err
		}
		if !l.admit(row) {
			continue
		}
		if err := v.row(raw, row); err != nil {
			return 0, unwritable{err}
		}
	}
	if err := v.listed(); err != nil {
		return 0, unwritable{err}
	}
	return list.Revision, nil
}

// unwritable is an error of the reader of this command rather than the daemon.
type unwritable struct{ error }

func (u unwritable) Unwrap() error { return u.error }

// watch shows the list, and then what changes, until the context ends.
func (l *listing[T]) watch(ctx context.Context, c *control.Client, v view[T]) error {
	return retry(ctx, v.notice, func(begun func()) error {
		revision, err := l.all(ctx, c, v)
		if err != nil {
			return err
		}
		begun()
		for e, err := range c.Watch(ctx, &revision) {
			if err != nil {
				return err
			}
			row, there, is := l.event(e)
			if !is || !l.admit(row) {
				continue
			}
			if err := v.event(e, row, there); err != nil {
				return unwritable{err}
			}
		}
		return nil
	})
}

// retry calls do, which calls begun when it has an answer, again and again
// until the context ends, which is no error. It gives up when the first call
// gets no answer, and when nothing went well for as long as there is patience.
// What ends within a second did not go well.
func retry(ctx context.Context, notice func(error), do func(begun func()) error) error {
	var well time.Time
	for said := false; ; {
		var began time.Time
		err := do(func() { began = time.Now() })
		if !began.IsZero() && (well.IsZero() || time.Since(began) > time.Second) {
			well, said = time.Now(), false
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			continue
		case errors.As(err, new(unwritable)), well.IsZero(), time.Since(well) > patience:
			return err
		}
		if !said {
			said = true
			notice(err)
		}
		pause(ctx, redraw)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// watching is the context of a command that goes on until it is interrupted.
func watching(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
}

// watchOn shows the list, and then what changes: in place on a terminal, else
// line by line.
func (l *listing[T]) watchOn(cmd *cobra.Command, ask *asking) error {
	ctx, stop := watching(cmd)
	defer stop()
	out := cmd.OutOrStdout()
	l = l.formed(ask)
	if s := ask.screen(out); s != nil {
		defer s.close()
		return l.watch(ctx, ask.client(), &picture[T]{listing: l, screen: s})
	}
	return l.watch(ctx, ask.client(), &lines[T]{listing: l, json: ask.json(), out: out, log: cmd.ErrOrStderr()})
}

// lines is a view that only ever adds lines.
type lines[T any] struct {
	*listing[T]
	json     bool
	out, log io.Writer
	rows     *rows
}

func (v *lines[T]) begin() {
	v.rows = newRows(v.out)
	if !v.json {
		v.rows.add(v.head...)
	}
}

func (v *lines[T]) row(raw json.RawMessage, row T) error {
	if v.json {
		_, err := fmt.Fprintf(v.out, "%s\n", raw)
		return err
	}
	v.rows.add(v.cells(row)...)
	return nil
}

func (v *lines[T]) listed() error { return v.rows.flush() }

func (v *lines[T]) event(e mapping.Event, row T, _ bool) error {
	if v.json {
		return json.NewEncoder(v.out).Encode(e)
	}
	cells := append([]any{local(e.Time), e.Op}, v.cells(row)...)
	text := strings.Join(texts(cells), "  ")
	if e.By != "" && !strings.HasSuffix(text, " by "+e.By) { // as an origin ends
		text += "  by " + e.By
	}
	_, err := fmt.Fprintln(v.out, printable.Text(text))
	return err
}

func (v *lines[T]) notice(err error) {
	fmt.Fprintf(v.log, "natless: %s: listing again\n", printable.Lines(err.Error()))
}

// picture is a view that keeps the rows, and shows as many as there is room
// for.
type picture[T any] struct {
	*listing[T]
	screen *screen

	mu      sync.Mutex
	rows    []T    // in order
	last    string // what changed last, in words
	problem error
}

func (v *picture[T]) begin() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rows = nil
}

func (v *picture[T]) row(_ json.RawMessage, row T) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rows = append(v.rows, row)
	return nil
}

func (v *picture[T]) listed() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	slices.SortFunc(v.rows, v.compare)
	v.problem = nil
	v.screen.show(v.draw)
	return nil
}

func (v *picture[T]) event(e mapping.Event, row T, there bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = fmt.Sprintf(", last %s at %s: %s", e.Op, local(e.Time), strings.Join(texts(v.cells(row)), " "))
	i, found := slices.BinarySearchFunc(v.rows, row, v.compare)
	switch {
	case found && there:
		v.rows[i] = row
	case found:
		v.rows = slices.Delete(v.rows, i, i+1)
	case there:
		v.rows = slices.Insert(v.rows, i, row)
	}
	v.screen.show(v.draw)
	return nil
}

func (v *picture[T]) notice(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.problem = err
	v.screen.show(v.draw)
}

// draw is the picture for a terminal of that height.
func (v *picture[T]) draw(height int) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var b bytes.Buffer
	fmt.Fprintf(&b, "natless %s: %d rows%s\n", v.name, len(v.rows), v.last)
	if v.problem != nil {
		fmt.Fprintf(&b, "%s: trying again\n", printable.Lines(v.problem.Error()))
	}
	room := max(0, height-strings.Count(b.String(), "\n")-1) // below the head
	shown := min(len(v.rows), room)
	if shown < len(v.rows) {
		shown = max(0, shown-1)
	}
	r := newRows(&b)
	r.add(v.head...)
	for _, row := range v.rows[:shown] {
		r.add(v.cells(row)...)
	}
	_ = r.flush() // into memory
	if more := len(v.rows) - shown; more > 0 {
		fmt.Fprintf(&b, "%d more\n", more)
	}
	return b.String()
}

// poll shows an answer anew each second until the command is interrupted: in
// place on a terminal, else one after the other.
func poll(cmd *cobra.Command, o *output, show func(context.Context, io.Writer) error) error {
	ctx, stop := watching(cmd)
	defer stop()
	out, notice := cmd.OutOrStdout(), func(err error) {
		fmt.Fprintf(cmd.ErrOrStderr(), "natless: %s: asking again\n", printable.Lines(err.Error()))
	}
	s := o.screen(out)
	if s != nil {
		defer s.close()
		notice = func(err error) { s.show(func(int) string { return fmt.Sprintf("%v: trying again\n", err) }) }
	}
	between := ""
	return retry(ctx, notice, func(begun func()) error {
		var b bytes.Buffer
		if err := show(ctx, &b); err != nil {
			return err
		}
		begun()
		if s != nil {
			s.show(func(int) string { return fold(b.String(), cmp.Or(widthOf(s.out), 80)) })
		} else if _, err := io.WriteString(out, between+b.String()); err != nil {
			return unwritable{err}
		}
		if !o.json() {
			between = "\n"
		}
		pause(ctx, time.Second)
		return nil
	})
}

// screen draws in place on a terminal, at most four times a second. It takes
// the terminal's other screen, so that the one before comes back.
type screen struct {
	out    *os.File
	ending chan struct{}
	ended  chan struct{}
	height int // of the picture that it shows; 0: none

	mu   sync.Mutex
	draw func(height int) string
	old  bool // draw is what it shows
}

// What terminals understand (ECMA-48 8.3, and xterm's private modes).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l" // the other screen, no cursor, long lines are cut
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// screen is nil for JSON, and where out is no terminal.
func (o *output) screen(out io.Writer) *screen {
	f, ok := out.(*os.File)
	if !ok || o.json() || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	s := &screen{out: f, ending: make(chan struct{}), ended: make(chan struct{})}
	io.WriteString(f, enterScreen)
	go s.run()
	return s
}

// show has what draw returns on the terminal soon. It is given the lines there
// are; more are cut off.
func (s *screen) show(draw func(height int) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draw, s.old = draw, false
}

func (s *screen) run() {
	defer close(s.ended)
	for t := time.NewTicker(redraw); ; {
		select {
		case <-s.ending:
			return
		case <-t.C:
			s.now()
		}
	}
}

func (s *screen) now() {
	_, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || height == 0 {
		height = 24
	}
	s.mu.Lock()
	draw, old := s.draw, s.old && s.height == height
	s.old = true
	s.mu.Unlock()
	if draw == nil || old {
		return
	}
	s.height = height
	lines := strings.Split(strings.TrimSuffix(draw(height), "\n"), "\n")
	lines = lines[:min(len(lines), height)]
	io.WriteString(s.out, home+strings.Join(lines, clearLine+"\r\n")+clearLine+clearBelow)
}

func (s *screen) close() {
	close(s.ending)
	<-s.ended
	io.WriteString(s.out, leaveScreen)
}
