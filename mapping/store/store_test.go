package store

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/natless/natless/mapping"
)

var _ mapping.Store = (*Store)(nil)

const month = 30 * 24 * time.Hour

var quiet = slog.New(slog.DiscardHandler)

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, month, quiet)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func load(t require.TestingT, s *Store) mapping.Saved {
	saved, err := s.Load()
	require.NoError(t, err)
	return saved
}

func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// v4 and v6 are the n-th addresses of a pool and of a network of clients.
func v4(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}) }
func v6(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(n >> 16), byte(n >> 8), byte(n), 15: 1})
}

// start is a time that the history still knows, past one so many seconds later.
var start = time.Now().Add(-time.Hour).UTC().Truncate(0)

func past(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

func lent(n int, since time.Time) mapping.SavedLease {
	return mapping.SavedLease{IPv4: v4(n), IPv6: v6(n), Since: since, Proven: n%2 == 0}
}

// sharing is lent for addresses each of which is lent as a whole and in three
// ranges of ports.
func sharing(n int, since time.Time) mapping.SavedLease {
	l := lent(n, since)
	if k := n % 4; k > 0 {
		l.IPv4 = v4(n - k)
		l.First = uint16(k) << 14
		l.Last = l.First | 0x3fff
	}
	return l
}

func ended(l mapping.SavedLease, until time.Time) mapping.SavedLease {
	l.Until = until
	return l
}

// attached is an attachment of the n-th client.
func attached(n int) mapping.Attachment {
	return mapping.Attachment{
		ID: fmt.Sprintf("4:%x", n), Target: "web", Label: "web", Namespace: "/proc/4711/ns/net", PID: 4711, Started: 12345,
		IPv6: v6(n), IPv4: v4(n), Ports: "1024-2047", StatelessLast: 1919, Count: 2,
		Undo: []byte(`{"a":[1,"b"]}`), Host: &mapping.HostSide{Link: "veth1", Index: 7, Made: true, Routes: []netip.Prefix{pfx("2001:db8::/64")}},
		Since: past(n), Boot: "boot", Seen: "1 2 3",
	}
}

func leases(l ...mapping.SavedLease) mapping.Batch { return mapping.Batch{Leases: l} }

func history(t require.TestingT, s *Store, at time.Time) (got []mapping.SavedLease) {
	require.NoError(t, s.History(at, func(l mapping.SavedLease) bool {
		got = append(got, l)
		return true
	}))
	return got
}

func TestSavedIsLoaded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "natless")
	s := open(t, dir)
	assert.Empty(t, s.Problems())
	assert.Empty(t, load(t, s).Maps)
	assert.Empty(t, load(t, s).Leases)

	m1 := mapping.Map{IPv4: pfx("192.0.2.1/32"), IPv6: pfx("2001:db8::1/128"), Label: "a label", Origin: "added by uid 0"}
	m2 := mapping.Map{IPv4: pfx("192.0.2.0/24"), IPv6: pfx("2001:db8:1::/120")}
	a, b := lent(7, past(1)), ended(lent(300, past(2)), past(9))
	require.NoError(t, s.Save(mapping.Batch{PutMaps: []mapping.Map{m1, m2}, Leases: []mapping.SavedLease{b, a}}))
	want := mapping.Saved{Maps: []mapping.Map{m2, m1}, Leases: []mapping.SavedLease{a, b}}
	assert.Equal(t, want, load(t, s), "maps and leases by IPv4")

	m1.Label = ""
	require.NoError(t, s.Save(mapping.Batch{RemoveMaps: []netip.Prefix{m2.IPv4, pfx("198.51.100.0/24")}, PutMaps: []mapping.Map{m1}}))
	want.Maps = []mapping.Map{m1}
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	assert.Equal(t, want, load(t, open(t, dir)))

	info, err := os.Stat(dir)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 2, "nothing is left over")
	for i, name := range []string{"natless.db", "natless.db.lock"} {
		info, err = files[i].Info()
		require.NoError(t, err)
		assert.Equal(t, name, info.Name())
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
}

// TestLocksOfOthers has another user, who may open the directory and the file,
// lock what can be locked of them: no reason to wait.
func TestLocksOfOthers(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	d, err := os.Open(dir)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, syscall.Flock(int(d.Fd()), syscall.LOCK_EX))
	began := time.Now()
	s := open(t, dir)
	assert.Less(t, time.Since(began), lockWait)
	require.NoError(t, s.Save(leases(lent(1, past(1)))))
	require.NoError(t, s.Close())

	require.NoError(t, os.Chmod(filepath.Join(dir, fileName), 0o644))
	open(t, dir)
	info, err := os.Stat(filepath.Join(dir, fileName))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "nobody else opens it from now on")
}

// TestDirectoryOfOthers begins no state where another user could put a link in
// the place of a file.
func TestDirectoryOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives directories away")
	}
	dir := filepath.Join(t.TempDir(), "theirs")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.Chown(dir, 65533, 65533))
	_, err := Open(dir, month, quiet)
	require.ErrorContains(t, err, dir+" belongs to user 65533")
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestLeasesOfABatchAreInOrder(t *testing.T) {
	s := open(t, t.TempDir())
	former, now := lent(2, past(1)), lent(2, past(20))
	now.IPv6 = v6(99)
	require.NoError(t, s.Save(leases(ended(former, past(10)), now)))
	assert.Equal(t, []mapping.SavedLease{now}, load(t, s).Leases)
	assert.Equal(t, []mapping.SavedLease{ended(former, past(10))}, history(t, s, past(5)))
}

func TestAClientHasOneLease(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	first := mapping.SavedLease{IPv4: v4(1), IPv6: v6(9), Since: past(1), Proven: true}
	second, third := first, first
	second.IPv4, second.Since = v4(2), past(5)
	third.IPv4, third.Since = v4(3), past(7)
	require.NoError(t, s.Save(leases(first)))
	require.NoError(t, s.Save(leases(second, third)))
	want := []mapping.SavedLease{ended(first, past(5)), ended(second, past(7)), third}
	assert.Equal(t, want, load(t, s).Leases)
	assert.Equal(t, want[:1], history(t, s, past(3)))
	assert.Equal(t, want[2:], history(t, s, past(8)))

	other := third
	other.IPv6 = v6(10)
	require.NoError(t, s.Save(leases(ended(third, past(9)), other, first)), "its address is another's now")
	assert.Equal(t, []mapping.SavedLease{first, ended(second, past(7)), other}, load(t, s).Leases)
	clients := s.clients
	require.NoError(t, s.Close())
	assert.Equal(t, clients, open(t, dir).clients)
}

// TestNoBatchMakesAContradiction saves leases in any order: what is saved is a
// file that can be opened.
func TestNoBatchMakesAContradiction(t *testing.T) {
	top := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(top, "")
		require.NoError(t, err)
		s, err := Open(dir, month, quiet)
		require.NoError(t, err)
		for range rapid.IntRange(1, 4).Draw(t, "batches") {
			var b mapping.Batch
			for range rapid.IntRange(1, 10).Draw(t, "leases") {
				second := func(name string) time.Time { return past(rapid.IntRange(0, 9).Draw(t, name)) }
				l := mapping.SavedLease{
					IPv4: v4(rapid.IntRange(1, 5).Draw(t, "IPv4")), IPv6: v6(rapid.IntRange(1, 5).Draw(t, "IPv6")),
					Since: second("since"), Proven: rapid.Bool().Draw(t, "proven"),
				}
				if rapid.Bool().Draw(t, "ended") {
					l.Until = second("until")
				}
				b.Leases = append(b.Leases, l)
			}
			require.NoError(t, s.Save(b))
			require.Contains(t, load(t, s).Leases, b.Leases[len(b.Leases)-1])
		}
		want, clients, n := load(t, s), s.clients, s.past
		require.NoError(t, s.Close())
		s, err = Open(dir, month, quiet)
		require.NoError(t, err)
		defer s.Close()
		require.Empty(t, s.Problems())
		require.Equal(t, want, load(t, s))
		require.Equal(t, clients, s.clients)
		require.Equal(t, n, s.past)
	})
}

func TestMalformedBatch(t *testing.T) {
	s := open(t, t.TempDir())
	good := lent(1, past(1))
	for name, spoil := range map[string]func(*mapping.Batch){
		"IPv4 of a lease":      func(b *mapping.Batch) { b.Leases[1].IPv4 = v6(1) },
		"no IPv4 of a lease":   func(b *mapping.Batch) { b.Leases[1].IPv4 = netip.Addr{} },
		"IPv6 of a lease":      func(b *mapping.Batch) { b.Leases[1].IPv6 = v4(1) },
		"a zone":               func(b *mapping.Batch) { b.Leases[1].IPv6 = addr("fe80::1%eth0") },
		"no time":              func(b *mapping.Batch) { b.Leases[1].Since = time.Time{} },
		"a time far away":      func(b *mapping.Batch) { b.Leases[1].Until = time.Unix(1<<40, 0) },
		"IPv4 of a map":        func(b *mapping.Batch) { b.PutMaps[0].IPv4 = pfx("::/0") },
		"IPv6 of a map":        func(b *mapping.Batch) { b.PutMaps[0].IPv6 = pfx("0.0.0.0/0") },
		"a map to be removed":  func(b *mapping.Batch) { b.RemoveMaps[0] = netip.Prefix{} },
		"a long label":         func(b *mapping.Batch) { b.Leases[1].Label = strings.Repeat("x", mapping.MaxLabel+1) },
		"an attachment's ID":   func(b *mapping.Batch) { b.PutAttachments[0].ID = "4" },
		"an attachment's undo": func(b *mapping.Batch) { b.PutAttachments[0].Undo = []byte("{") },
	} {
		b := mapping.Batch{
			Leases:     []mapping.SavedLease{good, lent(3, past(1))},
			PutMaps:    []mapping.Map{{IPv4: pfx("192.0.2.0/24"), IPv6: pfx("2001:db8::/96")}},
			RemoveMaps: []netip.Prefix{pfx("192.0.2.1/32")},

			PutAttachments: []mapping.Attachment{attached(1)},
		}
		spoil(&b)
		require.Error(t, s.Save(b), name)
		require.Empty(t, load(t, s).Maps, name)
		require.Empty(t, load(t, s).Leases, name)
		require.Empty(t, load(t, s).Attachments, name)
	}
}

func TestHistory(t *testing.T) {
	s := open(t, t.TempDir())
	a1 := ended(lent(2, past(0)), past(10))
	a2 := ended(mapping.SavedLease{IPv4: v4(2), IPv6: v6(50), Since: past(10), Proven: true}, past(20))
	a3 := mapping.SavedLease{IPv4: v4(2), IPv6: v6(51), Since: past(30)}
	unproven := ended(lent(3, past(0)), past(10))
	b := lent(1, past(5))
	c := ended(lent(4, past(0)), past(40))
	require.NoError(t, s.Save(leases(a1, a2)))
	require.NoError(t, s.Save(leases(unproven, c, b, a3)))
	require.NoError(t, s.Save(leases(c)), "once more")

	for at, want := range map[int][]mapping.SavedLease{
		-1: nil,
		0:  {a1, c},
		9:  {b, a1, c},
		10: {b, a2, c},
		20: {b, c},
		30: {b, a3, c},
		40: {b, a3},
	} {
		assert.Equal(t, want, history(t, s, past(at)), "at %d", at)
	}
	assert.Empty(t, history(t, s, time.Unix(1<<40, 0)))
	for _, at := range []time.Time{{}, time.Now().Add(-month - time.Second)} {
		assert.ErrorIs(t, s.History(at, nil), mapping.ErrGone, "some of %v may be forgotten", at)
	}
	assert.NoError(t, s.History(time.Now().Add(-month+time.Minute), func(mapping.SavedLease) bool { return true }))

	n := 0
	require.NoError(t, s.History(past(9), func(mapping.SavedLease) bool { n++; return n < 2 }))
	assert.Equal(t, 2, n, "until yield returns false")

	require.NoError(t, s.History(past(9), func(mapping.SavedLease) bool {
		require.NoError(t, s.Save(leases(lent(9, past(1)))), "the file is free meanwhile")
		return true
	}))
	s.SetHistory(0)
	assert.ErrorIs(t, s.History(past(9), nil), mapping.ErrGone, "forgotten at once")
}

func TestHistoryInParts(t *testing.T) {
	s := open(t, t.TempDir())
	var all, during []mapping.SavedLease
	for n := range 2*looked + 10 {
		l := lent(2*n, past(0))
		if n%3 == 0 {
			l = ended(l, past(5))
		}
		all = append(all, l)
		if n%3 != 0 {
			during = append(during, l)
		}
	}
	require.NoError(t, s.Save(leases(all...)))
	assert.Equal(t, all, history(t, s, past(1)))
	assert.Equal(t, during, history(t, s, past(5)))
}

func TestHistoryIsPruned(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	long := time.Now().Add(-month - time.Hour)
	var old []mapping.SavedLease
	for n := range 3 * pruned {
		old = append(old, ended(lent(2*n, long.Add(-time.Hour)), long.Add(time.Duration(n))))
	}
	s.SetHistory(2 * month)
	require.NoError(t, s.Save(leases(old...)))
	assert.Len(t, history(t, s, long.Add(-time.Second)), 3*pruned)
	s.SetHistory(month)
	assert.ErrorIs(t, s.History(long.Add(-time.Second), nil), mapping.ErrGone)
	for i := range uint64(3) {
		assert.Equal(t, (3-i)*pruned, s.past)
		require.NoError(t, s.Save(mapping.Batch{}))
	}
	assert.Zero(t, s.past)
	assert.Len(t, load(t, s).Leases, 3*pruned, "the last holders stay")

	s.maxHistory = 10
	for n := range 25 {
		require.NoError(t, s.Save(leases(ended(lent(2*n, past(0)), past(n+1)))))
		require.Equal(t, uint64(min(n+1, 10)), s.past)
	}
	got := history(t, s, past(0))
	require.Len(t, got, 10)
	assert.Equal(t, v4(2*15), got[0].IPv4, "the oldest went first")

	s.SetHistory(0)
	require.NoError(t, s.Save(leases(ended(lent(200, past(0)), past(30)))))
	assert.Zero(t, s.past)
	require.NoError(t, s.Close())
	assert.Zero(t, open(t, dir).past)
}

// TestModel holds the store against maps in memory over random batches and
// restarts.
func TestModel(t *testing.T) {
	top := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(top, "")
		require.NoError(t, err)
		s, err := Open(dir, month, quiet)
		require.NoError(t, err)
		defer func() { s.Close() }()
		lent := rapid.SampledFrom([]func(int, time.Time) mapping.SavedLease{lent, sharing}).Draw(t, "kind")
		saved, gone, all := map[int]mapping.SavedLease{}, map[string]mapping.SavedLease{}, map[netip.Prefix]mapping.Map{}
		held := map[string]mapping.Attachment{}
		labels := rapid.SampledFrom([]string{"", "web", strings.Repeat("é", mapping.MaxLabel/2)})
		clock := 0
		for range rapid.IntRange(1, 12).Draw(t, "batches") {
			var b mapping.Batch
			for range rapid.IntRange(0, 60).Draw(t, "leases") {
				clock++
				n := rapid.IntRange(0, 400).Draw(t, "n")
				l, there := saved[n]
				if there && l.Until.IsZero() {
					l.Proven = rapid.Bool().Draw(t, "proven")
					l.Until = past(clock)
					if l.Proven {
						gone[fmt.Sprint(n, l.Until)] = l
					}
				} else {
					l = lent(n, past(clock))
					l.Proven = false
					l.Label = labels.Draw(t, "label")
				}
				saved[n] = l
				b.Leases = append(b.Leases, l)
			}
			for range rapid.IntRange(0, 5).Draw(t, "maps") {
				p := netip.PrefixFrom(v4(rapid.IntRange(0, 20).Draw(t, "map")), 32)
				m := mapping.Map{IPv4: p, IPv6: pfx("2001:db8::/128"), Label: rapid.String().Draw(t, "label")}
				if slices.ContainsFunc(b.PutMaps, func(m mapping.Map) bool { return m.IPv4 == p }) || slices.Contains(b.RemoveMaps, p) {
					continue
				}
				if rapid.Bool().Draw(t, "remove") {
					delete(all, p)
					b.RemoveMaps = append(b.RemoveMaps, p)
				} else {
					all[p] = m
					b.PutMaps = append(b.PutMaps, m)
				}
			}
			for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 20), 0, 3, rapid.ID).Draw(t, "attachments") {
				a := attached(n)
				a.Undo = []byte(`"` + strings.Repeat("x", rapid.IntRange(0, 20000).Draw(t, "undo")) + `"`)
				if _, there := held[a.ID]; there && rapid.Bool().Draw(t, "detach") {
					delete(held, a.ID)
					b.RemoveAttachments = append(b.RemoveAttachments, a.ID)
				} else {
					held[a.ID] = a
					b.PutAttachments = append(b.PutAttachments, a)
				}
			}
			require.NoError(t, s.Save(b))
			if rapid.Bool().Draw(t, "restart") {
				require.NoError(t, s.Close())
				s, err = Open(dir, month, quiet)
				require.NoError(t, err)
				require.Empty(t, s.Problems())
			}
			got := load(t, s)
			require.Len(t, got.Leases, len(saved))
			for i, l := range slices.SortedFunc(maps.Values(saved), byIPv4) {
				require.Equal(t, l, got.Leases[i])
			}
			require.Len(t, got.Maps, len(all))
			for _, m := range got.Maps {
				require.Equal(t, all[m.IPv4], m)
			}
			require.Len(t, got.Attachments, len(held))
			for _, a := range got.Attachments {
				require.Equal(t, held[a.ID], a)
			}
			at := rapid.IntRange(0, clock+1).Draw(t, "at")
			var want []mapping.SavedLease
			for _, l := range gone {
				if !l.Since.After(past(at)) && l.Until.After(past(at)) {
					want = append(want, l)
				}
			}
			for _, l := range saved {
				if l.Until.IsZero() && !l.Since.After(past(at)) {
					want = append(want, l)
				}
			}
			slices.SortFunc(want, byIPv4)
			remembered := history(t, s, past(at))
			require.True(t, slices.IsSortedFunc(remembered, func(a, b mapping.SavedLease) int { return a.IPv4.Compare(b.IPv4) }))
			slices.SortFunc(remembered, byIPv4)
			require.Equal(t, want, remembered)
		}
	})
}

func byIPv4(a, b mapping.SavedLease) int {
	if c := a.IPv4.Compare(b.IPv4); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.First, b.First), a.Since.Compare(b.Since))
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := Open(dir, month, quiet)
	require.EqualError(t, err, fmt.Sprintf("open state: another natless uses %s (process %d)", dir, os.Getpid()))
	require.NoError(t, s.Save(mapping.Batch{}), "the first goes on")
	require.NoError(t, s.Close())
	open(t, dir)
}

func TestAnotherProgramHasTheFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, open(t, dir).Close())
	db, err := bbolt.Open(filepath.Join(dir, fileName), 0o600, nil)
	require.NoError(t, err)
	defer db.Close()
	_, err = Open(dir, month, quiet)
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorContains(t, err, fmt.Sprintf("another natless uses %s (process %d)", dir, os.Getpid()))
}

func TestClosed(t *testing.T) {
	s := open(t, t.TempDir())
	require.NoError(t, s.Close())
	_, err := s.Load()
	assert.ErrorIs(t, err, errClosed)
	assert.ErrorIs(t, s.Save(mapping.Batch{}), errClosed)
	assert.ErrorIs(t, s.History(past(1), nil), errClosed)
}

func TestAtOnce(t *testing.T) {
	s := open(t, t.TempDir())
	done := make(chan error)
	const rounds = 30
	go func() {
		for n := range rounds {
			if err := s.Save(leases(lent(2*n, past(n)), ended(lent(2*n+2, past(n)), past(n+1)))); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	go func() {
		for n := range rounds {
			if err := s.History(past(n), func(mapping.SavedLease) bool { return true }); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	go func() {
		for range rounds {
			if _, err := s.Load(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 3 {
		require.NoError(t, <-done)
	}
	assert.Len(t, load(t, s).Leases, rounds+1)
}

// TestFileOfBefore reads a file that natless wrote before it knew ranges. It
// stays readable for that one until a range is saved, and then for one that
// knows no attachments until one of those is.
func TestFileOfBefore(t *testing.T) {
	packed, err := os.Open("testdata/schema1.db.gz")
	require.NoError(t, err)
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	require.NoError(t, err)
	content, err := io.ReadAll(z)
	require.NoError(t, err)
	dir := put(t, t.TempDir(), content)

	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	s, err := Open(dir, 100*365*24*time.Hour, quiet)
	require.NoError(t, err)
	defer func() { s.Close() }()
	require.Empty(t, s.Problems())
	whole := []mapping.SavedLease{
		{IPv4: v4(1), IPv6: v6(1), Since: day(1), Proven: true},
		{IPv4: v4(2), IPv6: v6(3), Since: day(3)},
	}
	past := mapping.SavedLease{IPv4: v4(2), IPv6: v6(2), Since: day(1), Until: day(2), Proven: true}
	want := mapping.Saved{Maps: []mapping.Map{{IPv4: pfx("192.0.2.0/28"), IPv6: pfx("2001:db8:1::/124"), Label: "web", Origin: "added"}}, Leases: whole}
	require.Equal(t, want, load(t, s))
	require.Equal(t, []mapping.SavedLease{whole[0], past}, history(t, s, day(1)))

	versions := func() (uint32, uint32) {
		inFile, err := read(s.file, nil)
		require.NoError(t, err)
		return inFile.schema, s.schema
	}
	require.NoError(t, s.Save(leases(lent(8, day(5)))))
	inFile, known := versions()
	require.Equal(t, []uint32{schemaWhole, schemaWhole}, []uint32{inFile, known})

	require.Error(t, s.Save(leases(sharing(5, day(4)), mapping.SavedLease{})))
	first := mapping.SavedLease{IPv4: v4(1), First: 1024, Last: 2047, IPv6: v6(4), Since: day(4), Proven: true}
	second := mapping.SavedLease{IPv4: v4(1), First: 2048, Last: 3071, IPv6: v6(5), Since: day(4)}
	require.NoError(t, s.Save(leases(first, second)))
	require.NoError(t, s.Save(leases(ended(first, day(6)))))
	inFile, known = versions()
	require.Equal(t, []uint32{schemaRanges, schemaRanges}, []uint32{inFile, known})
	require.Error(t, s.Save(mapping.Batch{Leases: leases(first).Leases, PutAttachments: []mapping.Attachment{{}}}))
	a := attached(1)
	require.NoError(t, s.Save(mapping.Batch{PutAttachments: []mapping.Attachment{a}}))
	want.Attachments = []mapping.Attachment{a}
	inFile, known = versions()
	require.Equal(t, []uint32{schemaAttached, schemaAttached}, []uint32{inFile, known})
	require.NoError(t, s.Close())

	s, err = Open(dir, 100*365*24*time.Hour, quiet)
	require.NoError(t, err)
	want.Leases = []mapping.SavedLease{whole[0], ended(first, day(6)), second, whole[1], lent(8, day(5))}
	require.Equal(t, want, load(t, s))
	require.Equal(t, []mapping.SavedLease{whole[0], past}, history(t, s, day(1)))
	require.Equal(t, []mapping.SavedLease{ended(first, day(6)), whole[0], second, whole[1], lent(8, day(5))}, history(t, s, day(5)))
}

// TestRangeOfAMovingClient has a client take another range, and then a whole
// address: it has one lease at a time.
func TestRangeOfAMovingClient(t *testing.T) {
	s := open(t, t.TempDir())
	a := mapping.SavedLease{IPv4: v4(1), First: 1024, Last: 2047, IPv6: v6(1), Since: past(1), Proven: true}
	b := mapping.SavedLease{IPv4: v4(1), First: 2048, Last: 3071, IPv6: v6(1), Since: past(2), Proven: true}
	c := mapping.SavedLease{IPv4: v4(1), IPv6: v6(1), Since: past(3)}
	require.NoError(t, s.Save(leases(a, b)))
	require.NoError(t, s.Save(leases(c)))
	require.Equal(t, []mapping.SavedLease{c, ended(a, past(2)), ended(b, past(3))}, load(t, s).Leases)
	require.Equal(t, []mapping.SavedLease{ended(a, past(2))}, history(t, s, past(1)))
	require.Equal(t, []mapping.SavedLease{ended(b, past(3))}, history(t, s, past(2)))
	for _, l := range []mapping.SavedLease{
		{IPv4: v4(1), First: 2, Last: 1, IPv6: v6(1), Since: past(1)},
		{IPv4: v4(1), Last: 1, IPv6: v6(1), Since: past(1)},
	} {
		require.Error(t, s.Save(leases(l)))
	}
}

func TestNewerSchemaIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, open(t, dir).Close())
	path := filepath.Join(dir, fileName)
	db, err := bbolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket([]byte("of later")); err != nil {
			return err
		}
		return tx.Bucket([]byte(bucketMeta)).Put([]byte(keySchema), seal(bucketMeta, []byte(keySchema), []byte{0, 0, 0, schema + 1}))
	}))
	require.NoError(t, db.Close())
	before, err := os.ReadFile(path)
	require.NoError(t, err)

	_, err = Open(dir, month, quiet)
	require.EqualError(t, err, fmt.Sprintf("open state: %s: its schema is version 4, made by a newer natless; this one knows version 3: use the newer one, or another state.dir", path))
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(before, after))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, files, 1)
}
