package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/config"
)

// stream names a file as systemd names the journal's to its services.
func stream(t *testing.T, f *os.File) string {
	t.Helper()
	info, err := f.Stat()
	require.NoError(t, err)
	s := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

// written is what a function writes to stderr, which is the journal or not.
func written(t *testing.T, journal bool, do func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	t.Setenv("JOURNAL_STREAM", "1:2")
	if journal {
		t.Setenv("JOURNAL_STREAM", stream(t, w))
	}
	before := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = before }()
	do()
	w.Close()
	text, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(text)
}

func TestJournalHasPriorities(t *testing.T) {
	say := func(c config.Log) func() {
		return func() {
			log := logger(c, slog.LevelDebug)
			log.Debug("four")
			log.Info("ready: pool 192.0.2.0/24", "version", "1", "by", "uid 0 (root)")
			log.With("interface", "lan").Warn("gone\n<3>forged", "time", "now")
			log.WithGroup("g").Error("wrong", "error", errors.New("a\nb"))
		}
	}
	assert.Equal(t, `<7>four
<6>ready: pool 192.0.2.0/24 version=1 by="uid 0 (root)"
<4>gone\n<3>forged interface=lan time=now
<3>wrong g.error="a\nb"
`, written(t, true, say(config.Log{Format: "auto"})))
	assert.Equal(t, `<6>{"level":"INFO","msg":"ready: pool 192.0.2.0/24","version":"1","by":"uid 0 (root)"}`,
		strings.Split(written(t, true, say(config.Log{Format: "json"})), "\n")[1])
	assert.Contains(t, written(t, false, say(config.Log{Format: "auto"})), `{"time":"`)
	assert.Contains(t, written(t, false, say(config.Log{Format: "text"})), `time=`)
	assert.Empty(t, written(t, true, func() { logger(config.Log{}, slog.LevelError).Warn("no") }))
}

// Each line of the error that natless ends with is an error in the journal.
func TestJournalHasTheError(t *testing.T) {
	err := errors.New("f:1: a\nf:2: b")
	assert.Equal(t, "<3>natless: f:1: a\n<3>f:2: b\n", written(t, true, func() { complain(os.Stderr, err) }))
	assert.Equal(t, "natless: f:1: a\nf:2: b\n", written(t, false, func() { complain(os.Stderr, err) }))
}

// The unit's ExecReload= is silent about what the daemon has told.
func TestReloadIsToldOnce(t *testing.T) {
	f := newFake()
	f.serve(t)
	f.reload = func() ([]string, error) { return []string{"map added"}, nil }
	reload := func() (out string, err error) {
		out, _, err = says(t, "", "reload")
		if err != nil {
			complain(os.Stderr, err)
		}
		return out, err
	}
	for _, unit := range []bool{true, false} {
		t.Setenv("MAINPID", map[bool]string{true: "1"}[unit])
		f.reload = func() ([]string, error) { return []string{"map added"}, nil }
		assert.Empty(t, written(t, true, func() {
			out, err := reload()
			assert.NoError(t, err)
			assert.Equal(t, unit, out == "", out)
		}))
		f.reload = func() ([]string, error) { return nil, config.Wrong(errors.New("f:1: x")) }
		said := written(t, true, func() {
			_, err := reload()
			assert.Equal(t, exitUsage, exitCode(err))
		})
		assert.Equal(t, unit, said == "", said)
	}
	t.Setenv("MAINPID", "1")
	t.Setenv("NATLESS_SOCKET", "/nowhere")
	assert.Contains(t, written(t, true, func() { reload() }), "is natless running?")
}
