package main_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// TestLabStreamThroughReloads has one TCP stream go on, whole and at its pace,
// while a hundred times a mapping beside it comes or goes by reload.
func TestLabStreamThroughReloads(t *testing.T) {
	w := build(t, setup{})
	file := filepath.Join(t.TempDir(), "reloaded.toml")
	plain := own + "pref64 = \"" + lab.Pref64 + "\"\n"
	with := plain + "[[map]]\nipv4 = \"203.0.113.7\"\nipv6 = \"2001:db8:2::7\"\n"
	require.NoError(t, os.WriteFile(file, []byte(plain), 0o600))
	w.run(t, setup{config: plain, flags: []string{"-c", file}})

	got, stop := w.stream(t)
	rate := func() float64 {
		begun, before := time.Now(), got.Load()
		time.Sleep(50 * time.Millisecond)
		return float64(got.Load()-before) / time.Since(begun).Seconds()
	}
	var calm, reloading []float64
	const reloads = 100
	for i := range 2 * reloads {
		if i%4 < 2 {
			calm = append(calm, rate())
			continue
		}
		text := plain
		if i%4 == 2 {
			text = with
		}
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.NoError(t, w.daemon.Signal(syscall.SIGHUP))
		reloading = append(reloading, rate())
		w.reloaded(t, len(reloading)) // two signals that wait together are one
	}
	require.NoError(t, stop())
	assert.Equal(t, reloads, strings.Count(w.daemon.Output(), `"reloaded`))
	kept := median(reloading) / median(calm)
	t.Logf("%d reloads under %d MiB of one stream: %.2f of the median rate without", reloads, got.Load()>>20, kept)
	assert.Greater(t, kept, 0.5, "the benchmark's figure is 0.9; machines that run tests are busy")
}

// reloaded waits until the daemon has reloaded so many times.
func (w *world) reloaded(t *testing.T, times int) {
	t.Helper()
	for range 500 {
		if strings.Count(w.daemon.Output(), `"reloaded`) >= times {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	require.Fail(t, "not reloaded", "%d times", times)
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// stream has the server send to the client until stop is called, which fails
// unless every byte was as it was sent. got counts what came.
func (w *world) stream(t testing.TB) (got *atomic.Int64, stop func() error) {
	t.Helper()
	ln, err := w.Server.Listen("tcp", net.JoinHostPort(lab.ServerIPv4, "9000"))
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	ctx, end := context.WithCancel(t.Context())
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 1<<20)
		for content := lab.Content(1 << 62); ctx.Err() == nil; {
			_, _ = io.ReadFull(content, buf)
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	}()
	conn, err := w.client.Dial(t.Context(), "tcp", server6+":9000")
	require.NoError(t, err)
	got = new(atomic.Int64)
	done := make(chan error, 1)
	go func() {
		defer conn.Close()
		buf, want := make([]byte, 1<<20), make([]byte, 1<<20)
		for content := lab.Content(1 << 62); ; {
			_, _ = io.ReadFull(content, want)
			_, err := io.ReadFull(conn, buf)
			switch {
			case err == io.EOF:
				done <- nil
				return
			case err != nil:
				done <- err
				return
			case !bytes.Equal(buf, want):
				done <- errDamaged
				return
			}
			got.Add(int64(len(buf)))
		}
	}()
	return got, func() error {
		end()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return errStalled
		}
	}
}

var (
	errDamaged = errors.New("what came is not what was sent")
	errStalled = errors.New("the stream did not end")
)
