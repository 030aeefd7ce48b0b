package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/mapping"
)

// TestWatchLines holds that a watch in a pipe has the list, each change after
// it, and the list again when the daemon was started anew.
func TestWatchLines(t *testing.T) {
	f := newFake()
	stop := f.serve(t)
	g := goOn(t, "map ls --watch --pool 192.0.2.0/24")
	assert.Equal(t, "RULE  IPV4          IPV6             LABEL  ORIGIN\nmap   192.0.2.1/32  2001:db8::1/128  web 1  natless.toml:3\n", g.wrote(t, "toml:3\n"))
	mustSay(t, "map add 203.0.113.9 2001:db8::9") // outside the filter
	mustSay(t, "lease release 169.254.64.2")
	mustSay(t, "map add 192.0.2.7 2001:db8::7")
	at := began.Local().Format(time.DateTime)
	assert.Equal(t, at+"  map_added  map  192.0.2.7/32  2001:db8::7/128  -  added now by somebody\n", g.wrote(t, "\n"))
	mustSay(t, "map rm 192.0.2.1")
	assert.Equal(t, at+"  map_removed  map  192.0.2.1/32  2001:db8::1/128  web 1  natless.toml:3  by somebody\n", g.wrote(t, "\n"))

	stop()
	f.mu.Lock()
	f.revision, f.events = 3, nil // as after a restart
	f.mu.Unlock()
	serveAt(t, os.Getenv("NATLESS_SOCKET"), f)
	assert.Equal(t, "RULE  IPV4          IPV6             LABEL  ORIGIN\nmap   192.0.2.7/32  2001:db8::7/128  -      added now by somebody\n", g.wrote(t, "somebody\n"))
	mustSay(t, "map rm 192.0.2.7")
	g.wrote(t, "map_removed")
	g.ends(t)
	assert.Regexp(t, `^natless: .*: listing again\n$`, g.errs.String())
}

func TestWatchJSON(t *testing.T) {
	f := newFake()
	f.serve(t)
	g := goOn(t, "lease ls --watch -o json")
	out := g.wrote(t, "169.254.65.9")
	assert.Equal(t, 2, strings.Count(out, "\n"))
	assert.Contains(t, out, `"idle_seconds":3`)
	mustSay(t, "lease release 169.254.65.9")
	out = g.wrote(t, "\n")
	assert.Contains(t, out, `"op":"lease_ended"`)
	assert.Contains(t, out, `"revision":8`)
	assert.Contains(t, out, `"lease":{"ipv4":"169.254.65.9"`)
	g.ends(t)
	assert.Empty(t, g.errs.String())
}

func TestPollLines(t *testing.T) {
	f := newFake()
	f.serve(t)
	g := goOn(t, "status --watch -o json")
	g.wrote(t, `"revision":7`)
	f.mu.Lock()
	f.revision = 8
	f.mu.Unlock()
	g.wrote(t, `"revision":8`)
	g.ends(t)
	g = goOn(t, "stats --watch")
	g.wrote(t, " -\n\nCOUNTER")
	g.ends(t)
}

// TestRetry holds when a watch gives up. The clock is not the real one.
func TestRetry(t *testing.T) {
	lost := errors.New("lost")
	notices := 0
	notice := func(error) { notices++ }
	try := func(t *testing.T, do func(began time.Time, begun func()) error) (after time.Duration, err error) {
		notices = 0
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			ctx, stop := context.WithTimeout(t.Context(), time.Hour)
			defer stop()
			err = retry(ctx, notice, func(begun func()) error { return do(began, begun) })
			after = time.Since(began)
		})
		return after, err
	}

	after, err := try(t, func(time.Time, func()) error { return lost })
	assert.Equal(t, lost, err, "nobody was there")
	assert.Zero(t, after)

	after, err = try(t, func(began time.Time, begun func()) error {
		if time.Since(began) > time.Minute {
			return lost
		}
		begun()
		time.Sleep(20 * time.Second)
		return lost
	})
	assert.Equal(t, lost, err, "gone for good")
	assert.InDelta(t, (time.Minute + patience).Seconds(), after.Seconds(), 2)
	assert.Equal(t, 3, notices, "once each time it went away")

	after, err = try(t, func(_ time.Time, begun func()) error { begun(); return lost })
	assert.Equal(t, lost, err, "it lists and cannot be watched")
	assert.InDelta(t, patience.Seconds(), after.Seconds(), 1)

	full := unwritable{io.ErrShortWrite}
	after, err = try(t, func(_ time.Time, begun func()) error { begun(); return full })
	assert.ErrorIs(t, err, io.ErrShortWrite)
	assert.Zero(t, after)

	after, err = try(t, func(_ time.Time, begun func()) error { begun(); time.Sleep(2 * time.Second); return lost })
	assert.NoError(t, err, "interrupted")
	assert.InDelta(t, time.Hour.Seconds(), after.Seconds(), 3)
}

// terminal is both ends of a terminal of so many lines.
func terminal(t *testing.T, height uint16) (shown, at *os.File) {
	t.Helper()
	shown, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("this host has no terminals to give: ", err)
	}
	t.Cleanup(func() { shown.Close() })
	n, err := unix.IoctlGetInt(int(shown.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(shown.Fd()), unix.TIOCSPTLCK, 0))
	at, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("this host has no terminals to give: ", err)
	}
	t.Cleanup(func() { at.Close() })
	require.NoError(t, unix.IoctlSetWinsize(int(at.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: 80}))
	return shown, at
}

// onTerminal starts a command that goes on, on a terminal.
func onTerminal(t *testing.T, args string) *going {
	t.Helper()
	shown, at := terminal(t, 10)
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	g := &going{stop: stop, done: make(chan error, 1)}
	go io.Copy(guarded{g, &g.out}, shown)
	cmd := root()
	cmd.SetArgs(strings.Fields(args))
	cmd.SetOut(at)
	go func() { g.done <- cmd.ExecuteContext(ctx) }()
	return g
}

// TestWatchOnTerminal holds that a watch draws in place, and gives the terminal
// back.
func TestWatchOnTerminal(t *testing.T) {
	newFake().serve(t)
	g := onTerminal(t, "map ls --watch")
	first := g.wrote(t, clearBelow)
	assert.True(t, strings.HasPrefix(first, enterScreen+home+"natless map ls: 3 rows"+clearLine+"\r"), "%q", first)
	assert.Contains(t, first, "map     192.0.2.1/32     2001:db8::1/128   web 1  natless.toml:3"+clearLine)
	began := time.Now()
	for i := range 20 {
		mustSay(t, fmt.Sprintf("map add 203.0.113.%d 2001:db8:f::%d", i, i+1))
	}
	pictures := g.wrote(t, "natless map ls: 23 rows")
	assert.LessOrEqual(t, strings.Count(pictures, home), 1+int(time.Since(began)/redraw), "drawn too often")
	g.ends(t)
	g.wrote(t, leaveScreen)

	g = onTerminal(t, "stats --watch")
	assert.Contains(t, g.wrote(t, "write_errors"), enterScreen+home)
	g.ends(t)
	g.wrote(t, leaveScreen)

	for _, args := range []string{"map ls --watch -o json", "stats --watch -o json"} {
		g = onTerminal(t, args)
		assert.NotContains(t, g.wrote(t, "}"), "\x1b", args)
		g.ends(t)
	}
}

// TestPictureOfSharedAddresses holds that each client of an address has a row,
// by its ports.
func TestPictureOfSharedAddresses(t *testing.T) {
	l := leaseListing(&leaseFilter{}, true)
	v := &picture[mapping.Lease]{listing: l, screen: &screen{}}
	lease := func(n int, label string) mapping.Lease {
		return mapping.Lease{
			IPv4: netip.MustParseAddr("192.0.2.7"), IPv6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n)), Ports: fmt.Sprintf("%d-%d", n*1024, n*1024+1023),
			Pool: netip.MustParsePrefix("192.0.2.7/32"), Since: began, Label: label,
		}
	}
	event := func(op mapping.Op, lease mapping.Lease) {
		row, there, is := l.event(mapping.Event{Op: op, Lease: &lease})
		require.True(t, is)
		require.NoError(t, v.event(mapping.Event{Op: op}, row, there))
	}
	for _, n := range []int{10, 1, 9} {
		event(mapping.OpLeaseMade, lease(n, ""))
	}
	event(mapping.OpLeaseNoted, lease(9, "web"))
	event(mapping.OpLeaseEnded, lease(1, ""))
	var got []string
	for _, r := range v.rows {
		got = append(got, r.Ports+" "+r.Label)
	}
	assert.Equal(t, []string{"9216-10239 web", "10240-11263 "}, got)
}

func TestPicture(t *testing.T) {
	f := newFake()
	f.serve(t)
	l := mapListing(func(control.Row) bool { return true })
	v := &picture[control.Row]{listing: l, screen: &screen{}}
	_, err := l.all(t.Context(), control.NewClient(os.Getenv("NATLESS_SOCKET")), v)
	require.NoError(t, err)

	for height, want := range map[int]int{24: 5, 6: 5, 5: 5, 4: 4, 3: 3} {
		text := v.draw(height)
		assert.Equal(t, want, strings.Count(text, "\n"), "%d lines", height)
		assert.Equal(t, want < 5, strings.Contains(text, " more\n"), "%d lines", height)
	}
	assert.Contains(t, v.draw(4), "natoml:3\n2 more\n"[2:])

	event := func(op mapping.Op, m mapping.MapInfo) {
		row, there, is := l.event(mapping.Event{Op: op, Map: &m})
		require.True(t, is)
		require.NoError(t, v.event(mapping.Event{Op: op}, row, there))
	}
	event(mapping.OpMapRemoved, f.maps[0])
	event(mapping.OpMapRemoved, f.maps[0]) // not there any more
	assert.Regexp(t, `^natless map ls: 2 rows, last map_removed at \S+ \S+: map 192.0.2.1/32 `, v.draw(24))
	_, table, _ := strings.Cut(v.draw(24), "\n")
	assert.NotContains(t, table, "web 1")
	again := f.maps[1]
	again.Label = "other"
	event(mapping.OpMapAdded, again)
	assert.Contains(t, v.draw(24), "other")
	assert.NotContains(t, v.draw(24), " db ")
	event(mapping.OpMapAdded, f.maps[0])
	text := v.draw(24)
	assert.Less(t, strings.Index(text, "web 1"), strings.Index(text, "other"), "in order")
	assert.Less(t, strings.Index(text, "other"), strings.Index(text, "pref64"), "pref64 last")

	v.notice(errors.New("it went away"))
	assert.Contains(t, v.draw(24), "\nit went away: trying again\nRULE")
	require.NoError(t, v.listed())
	assert.NotContains(t, v.draw(24), "away")
}
