package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
)

// childEnv names the directory in which this test binary saves batches until
// it is killed.
const childEnv = "NATLESS_STORE_CHILD"

func TestMain(m *testing.M) {
	flag.Parse()
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, saveForever(dir, os.Stdout))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Batch number n ends the leases of one group of addresses and lends them
// anew, at second n, and so it does with an attachment.
const (
	groups    = 40
	groupSize = 8
	beginMark = 'b'
	savedMark = 's'
)

func numbered(n int) (b mapping.Batch) {
	for i := range groupSize {
		former, now := second(n-groups, i), second(n, i)
		if n >= groups {
			b.Leases = append(b.Leases, ended(former, now.Since))
		}
		b.Leases = append(b.Leases, now)
	}
	b.PutAttachments = []mapping.Attachment{held(n)}
	if n >= groups {
		b.RemoveAttachments = []string{held(n - groups).ID}
	}
	return b
}

// held is the attachment of batch n.
func held(n int) mapping.Attachment {
	a := attached(n)
	a.Since = time.Unix(int64(n), 0).UTC()
	return a
}

// second is the i-th lease of batch n.
func second(n, i int) mapping.SavedLease {
	return mapping.SavedLease{IPv4: v4(n%groups*groupSize + i), IPv6: v6(n%groups*groupSize + i), Since: time.Unix(int64(n), 0).UTC(), Proven: true}
}

// last is the number of the newest batch that is there: -1 if none is.
func last(saved mapping.Saved) (n int) {
	n = -1
	for _, l := range saved.Leases {
		n = max(n, int(l.Since.Unix()))
	}
	return n
}

func saveForever(dir string, to io.Writer) error {
	s, err := Open(dir, 100*365*24*time.Hour, quiet)
	if err != nil {
		return err
	}
	saved, err := s.Load()
	if err != nil {
		return err
	}
	say := func(mark byte, n int) error {
		_, err := to.Write(binary.BigEndian.AppendUint32([]byte{mark}, uint32(n)))
		return err
	}
	for n := last(saved) + 1; ; n++ {
		if err := errors.Join(say(beginMark, n), s.Save(numbered(n)), say(savedMark, n)); err != nil {
			return err
		}
	}
}

// TestKill kills the process that saves at random moments. Every batch that
// was acknowledged is there afterwards, and at most the one that was not, and
// that wholly.
func TestKill(t *testing.T) {
	const kills = 120
	dir := t.TempDir()
	inside, kept, acknowledged := 0, 0, -1
	for range kills {
		begun, saved := killOne(t, dir, acknowledged)
		if begun > saved {
			inside++
		}
		acknowledged = saved

		s, err := Open(dir, 100*365*24*time.Hour, quiet)
		require.NoError(t, err)
		require.Empty(t, s.Problems())
		there := load(t, s)
		n := last(there)
		require.Contains(t, []int{acknowledged, begun}, n)
		if n > acknowledged {
			kept++
		}
		require.Len(t, there.Leases, groupSize*min(n+1, groups))
		for _, l := range there.Leases {
			group := int(l.IPv4.As4()[2])<<8 + int(l.IPv4.As4()[3])
			group /= groupSize
			want := n - (n%groups-group+groups)%groups
			require.Equal(t, int64(want), l.Since.Unix(), "%v is of the newest batch of its group, of %d", l.IPv4, n)
		}
		require.Len(t, there.Attachments, min(n+1, groups))
		for _, a := range there.Attachments {
			of := int(a.Since.Unix())
			require.True(t, of <= n && of > n-groups, "of batch %d at %d", of, n)
			require.Equal(t, held(of), a)
		}
		if at := n - rand.IntN(min(n+1, 500)+1); at >= 0 {
			former := history(t, s, time.Unix(int64(at), 0))
			require.Len(t, former, groupSize*min(at+1, groups))
		}
		acknowledged = n
		require.NoError(t, s.Close())
	}
	t.Logf("%d kills after %d batches: %d inside a Save, of which %d were kept whole and the others not at all",
		kills, acknowledged+1, inside, kept)
	require.Greater(t, inside, kills/10)
}

// killOne starts a process that saves, kills it after a while, and returns
// what it last began to save, and said was saved.
func killOne(t *testing.T, dir string, from int) (begun, saved int) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childEnv+"="+dir)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	begun, saved = from, from
	r := bufio.NewReader(out)
	var message [5]byte
	for {
		if _, err := io.ReadFull(r, message[:]); err != nil {
			break // it is dead
		}
		n := int(binary.BigEndian.Uint32(message[1:]))
		if message[0] == savedMark {
			saved = n
			continue
		}
		if begun == from {
			time.AfterFunc(time.Duration(rand.IntN(20_000))*time.Microsecond, func() { _ = c.Process.Kill() })
		}
		begun = n
	}
	require.ErrorContains(t, c.Wait(), "signal: killed")
	require.Greater(t, begun, from)
	return begun, saved
}
