package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/printable"
)

// logger writes what the daemon says to stderr.
func logger(c config.Log, level slog.Leveler) *slog.Logger {
	journal := toJournal(os.Stderr)
	options := &slog.HandlerOptions{Level: level}
	switch {
	case journal && c.Format == "json":
		return slog.New(newJournal(os.Stderr, func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, options) }, false))
	case journal:
		options.ReplaceAttr = without(slog.LevelKey, slog.MessageKey)
		return slog.New(newJournal(os.Stderr, func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, options) }, true))
	case c.Format == "text" || c.Format == "auto" && term.IsTerminal(int(os.Stderr.Fd())):
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options))
}

// without leaves some of slog's own attributes out.
func without(keys ...string) func([]string, slog.Attr) slog.Attr {
	return func(groups []string, a slog.Attr) slog.Attr {
		for _, key := range keys {
			if len(groups) == 0 && a.Key == key {
				return slog.Attr{}
			}
		}
		return a
	}
}

// toJournal reports whether a file is systemd's journal, which JOURNAL_STREAM names
// by device and inode (systemd.exec(5)): a process may have inherited the variable
// and write elsewhere.
func toJournal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

// journal is a handler that begins each line with its priority, as sd-daemon(3) has
// it. The journal knows the time itself.
type journal struct {
	shared *journalShared
	inner  slog.Handler // writes into the shared buffer
	words  bool         // the message comes first, as it is, and inner writes the attributes alone
}

type journalShared struct {
	mu     sync.Mutex
	out    io.Writer
	buffer bytes.Buffer
}

func newJournal(out io.Writer, inner func(io.Writer) slog.Handler, words bool) *journal {
	shared := &journalShared{out: out}
	return &journal{shared, inner(&shared.buffer), words}
}

// priority is that of syslog(3).
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

func (j *journal) Enabled(ctx context.Context, l slog.Level) bool { return j.inner.Enabled(ctx, l) }

func (j *journal) Handle(ctx context.Context, r slog.Record) error {
	s := j.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buffer.Reset()
	r.Time = time.Time{} // which slog leaves out
	if err := j.inner.Handle(ctx, r); err != nil {
		return err
	}
	text := strings.TrimSpace(s.buffer.String())
	if j.words {
		text = strings.TrimSpace(printable.Text(r.Message) + " " + text)
	}
	_, err := fmt.Fprintf(s.out, "<%d>%s\n", priority(r.Level), text)
	return err
}

func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journal{j.shared, j.inner.WithAttrs(attrs), j.words}
}

func (j *journal) WithGroup(name string) slog.Handler {
	return &journal{j.shared, j.inner.WithGroup(name), j.words}
}

// told is an error that the reader of stderr has seen already.
type told struct{ error }

func (t told) Unwrap() error { return t.error }

// complain writes the error that a command ends with, one that may have several
// lines.
func complain(f *os.File, err error) {
	if errors.As(err, new(told)) {
		return
	}
	before := ""
	if toJournal(f) {
		before = fmt.Sprintf("<%d>", priority(slog.LevelError))
	}
	text := "natless: " + printable.Lines(err.Error())
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintf(f, "%s%s\n", before, line)
	}
}
