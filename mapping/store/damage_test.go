package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/natless/natless/mapping"
)

// sample is a file with some of everything, as it was before and after its
// last Save, and what is in it then.
type sample struct {
	before, after           []byte
	loadedBefore, loaded    mapping.Saved
	historyBefore, remember []mapping.SavedLease
}

func newSample(t *testing.T) (x sample) {
	dir := t.TempDir()
	s := open(t, dir)
	rng := rand.New(rand.NewPCG(1, 2))
	taken := map[int]mapping.SavedLease{}
	for round := range 20 {
		var b mapping.Batch
		for range 30 {
			n := rng.IntN(1500)
			l, there := taken[n]
			if there && l.Until.IsZero() {
				l.Until, l.Proven = past(2*round+1), true
			} else {
				l = sharing(n, past(2*round))
				l.Label = strings.Repeat("y", n%3)
			}
			taken[n] = l
			b.Leases = append(b.Leases, l)
		}
		b.PutMaps = []mapping.Map{{IPv4: pfx(fmt.Sprintf("192.0.2.%d/32", round)), IPv6: pfx("2001:db8::/128"), Label: strings.Repeat("x", round%10*1000)}}
		a := attached(round)
		a.Undo = []byte(`"` + strings.Repeat("x", round%4*3000) + `"`)
		b.PutAttachments = []mapping.Attachment{a}
		if round%5 == 4 {
			b.RemoveAttachments = []string{attached(round - 3).ID}
		}
		x.before, x.loadedBefore, x.historyBefore = contentsOf(t, s), load(t, s), history(t, s, past(20))
		require.NoError(t, s.Save(b))
	}
	x.after, x.loaded, x.remember = contentsOf(t, s), load(t, s), history(t, s, past(20))
	require.NotEmpty(t, x.remember)
	require.NotEqual(t, x.loadedBefore, x.loaded)
	return x
}

func contentsOf(t *testing.T, s *Store) []byte {
	t.Helper()
	b, err := os.ReadFile(s.path)
	require.NoError(t, err)
	return b
}

// put makes a directory with such a file in it.
func put(t require.TestingT, top string, content []byte) (dir string) {
	dir, err := os.MkdirTemp(top, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, fileName), content, 0o600))
	return dir
}

// holds opens a file that may be damaged. It has to be as it was saved, or set
// aside as it is; and to work.
func (x *sample) holds(t require.TestingT, dir string, content []byte) (aside bool) {
	s, err := Open(dir, month, quiet)
	require.NoError(t, err)
	defer s.Close()
	got := load(t, s)
	if aside = len(s.Problems()) > 0; aside {
		require.Empty(t, got.Maps)
		require.Empty(t, got.Leases)
		requireAside(t, s, content)
	} else {
		require.Equal(t, x.loaded, got)
		require.Equal(t, x.remember, history(t, s, past(20)))
	}
	l := lent(2000, past(1))
	require.NoError(t, s.Save(leases(ended(l, past(2)))))
	require.Contains(t, history(t, s, past(1)), ended(l, past(2)))
	require.Len(t, load(t, s).Leases, len(got.Leases)+1)
	return aside
}

func requireAside(t require.TestingT, s *Store, content []byte) {
	require.Len(t, s.Problems(), 1)
	names, err := filepath.Glob(s.path + ".set-aside-*")
	require.NoError(t, err)
	require.Len(t, names, 1)
	require.Contains(t, s.Problems()[0], s.path+" was damaged or not natless's (")
	require.Contains(t, s.Problems()[0], names[0])
	kept, err := os.ReadFile(names[0])
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, kept), "unchanged")
}

const page = 4096

func TestDamage(t *testing.T) {
	if os.Getpagesize() != page {
		t.Skip("the damage is made for pages of 4096 bytes")
	}
	x := newSample(t)
	pages := len(x.after) / page
	top := t.TempDir()
	kinds := map[string]func(t *rapid.T, b []byte) []byte{
		"bits": func(t *rapid.T, b []byte) []byte {
			for range rapid.IntRange(1, 8).Draw(t, "flips") {
				b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			}
			return b
		},
		"bits of a page's head": func(t *rapid.T, b []byte) []byte {
			at := rapid.IntRange(0, pages-1).Draw(t, "page")*page + rapid.IntRange(0, 79).Draw(t, "at")
			b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			return b
		},
		"cut off": func(t *rapid.T, b []byte) []byte { return b[:rapid.IntRange(0, len(b)-1).Draw(t, "size")] },
		"longer":  func(t *rapid.T, b []byte) []byte { return append(b, "more"...) },
		"zeros": func(t *rapid.T, b []byte) []byte {
			clear(b[rapid.IntRange(0, pages-1).Draw(t, "page")*page:][:page])
			return b
		},
		"garbage": func(t *rapid.T, b []byte) []byte {
			rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
			p := b[rapid.IntRange(0, pages-1).Draw(t, "page")*page:][:page]
			for i := rapid.SampledFrom([]int{0, 16}).Draw(t, "from"); i < page; i++ {
				p[i] = byte(rng.Uint32())
			}
			return b
		},
		"a page for another": func(t *rapid.T, b []byte) []byte {
			p := b[rapid.IntRange(0, pages-1).Draw(t, "page")*page:][:page]
			q := b[rapid.IntRange(0, pages-1).Draw(t, "other")*page:][:page]
			if rapid.Bool().Draw(t, "renumbered") {
				copy(p[8:], q[8:])
			} else {
				copy(p, q)
			}
			return b
		},
		"a page of before": func(t *rapid.T, b []byte) []byte {
			at := rapid.IntRange(2, min(pages, len(x.before)/page)-1).Draw(t, "page") * page
			copy(b[at:at+page], x.before[at:])
			return b
		},
		"a number": func(t *rapid.T, b []byte) []byte {
			at := rapid.IntRange(0, pages-1).Draw(t, "page")*page + 4*rapid.IntRange(0, page/4-1).Draw(t, "at")
			order.PutUint32(b[at:], rapid.SampledFrom([]uint32{0, 1, 2, 3, uint32(pages), 0xffff, 1<<31 - 1, 1<<32 - 1}).Draw(t, "number"))
			return b
		},
	}
	for name, spoil := range kinds {
		t.Run(name, func(t *testing.T) {
			opened, aside := 0, 0
			rapid.Check(t, func(t *rapid.T) {
				content := spoil(t, bytes.Clone(x.after))
				dir := put(t, top, content)
				opened++
				if x.holds(t, dir, content) {
					aside++
				}
				require.NoError(t, os.RemoveAll(dir))
			})
			t.Logf("%d of %d set aside", aside, opened)
			assert.Equal(t, name == "longer", aside == 0)
		})
	}
}

// TestFreePageInUse has the list of free pages name one that is in use, which
// the next Save would write over.
func TestFreePageInUse(t *testing.T) {
	x := newSample(t)
	content := bytes.Clone(x.after)
	m, err := readMeta(bytes.NewReader(content), int64(len(content)))
	require.NoError(t, err)
	list := content[m.freelist*m.pageSize:]
	require.NotZero(t, order.Uint16(list[10:]))
	order.PutUint64(list[headerSize:], m.root)
	assert.True(t, x.holds(t, put(t, t.TempDir(), content), content))
}

// TestStrangeRecords decodes what has the right checksum and is not ours.
func TestStrangeRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key, payload := rapid.SliceOfN(rapid.Byte(), 0, 14).Draw(t, "key"), rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload")
		bucket := rapid.SampledFrom(dataBuckets(schema)).Draw(t, "bucket")
		var saved mapping.Saved
		if _, err := check(bucket, key, payload, &saved); err != nil {
			require.True(t, isDamage(err))
			require.Empty(t, saved)
			return
		}
		for _, m := range saved.Maps {
			k, p, err := encodeMap(m)
			require.NoError(t, err)
			require.Equal(t, key, k)
			require.LessOrEqual(t, len(p), len(payload), "a length may be written longer than it has to be")
		}
		for _, l := range saved.Leases {
			k, _, err := encodeLease(l)
			require.NoError(t, err)
			require.Equal(t, key, k)
		}
		for _, a := range saved.Attachments {
			k, _, err := encodeAttachment(a)
			require.NoError(t, err)
			require.Equal(t, key, k)
		}
	})
}

// TestManyFreePages reads lists of free pages that take more than a page, and
// more than their page's count can say.
func TestManyFreePages(t *testing.T) {
	const size, id = 1024, 100
	for _, n := range []uint64{0, 100, 1000, 0xfffe, 0xffff, 100_000} {
		list := make([]byte, headerSize, 8*n+3*size)
		order.PutUint64(list, id)
		order.PutUint16(list[8:], kindFreelist)
		order.PutUint16(list[10:], uint16(min(n, 0xffff)))
		if n >= 0xffff {
			list = order.AppendUint64(list, n)
		}
		spans := (uint64(len(list)) + 8*n + size - 1) / size
		order.PutUint32(list[12:], uint32(spans-1))
		for i := range n {
			list = order.AppendUint64(list, id+spans+i)
		}
		file := append(make([]byte, id*size), list...)
		file = append(file, make([]byte, size)...)
		l := &layout{r: bytes.NewReader(file), pageSize: size, pages: id + spans + n, seen: make([]bool, id+spans+n)}
		require.NoError(t, l.readFree(id), "%d", n)
		require.Equal(t, append(make([]bool, id), slices.Repeat([]bool{true}, int(spans+n))...), l.seen)

		l.pages, l.seen = l.pages-1, make([]bool, id+spans+n)
		require.True(t, isDamage(l.readFree(id)), "one page less")
	}
}

// TestTornSave cuts a Save between its writes, in any order that a disk may
// have done them in.
func TestTornSave(t *testing.T) {
	x := newSample(t)
	top := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		content := append(bytes.Clone(x.before), x.after[len(x.before):]...)
		for at := 2 * page; at < len(content); at += page {
			if rapid.Bool().Draw(t, "written") {
				copy(content[at:at+page], x.after[at:])
			}
		}
		dir := put(t, top, content)
		defer os.RemoveAll(dir)
		s, err := Open(dir, month, quiet)
		require.NoError(t, err)
		defer s.Close()
		require.Empty(t, s.Problems())
		require.Equal(t, x.loadedBefore, load(t, s))
		require.Equal(t, x.historyBefore, history(t, s, past(20)))
	})
}

func TestForeignFiles(t *testing.T) {
	x := newSample(t)
	for name, make := range map[string]func(t *testing.T, path string) error{
		"empty": func(t *testing.T, path string) error { return os.WriteFile(path, nil, 0o600) },
		"text": func(t *testing.T, path string) error {
			return os.WriteFile(path, []byte("[device]\nname = \"a\"\n"), 0o600)
		},
		"long text": func(t *testing.T, path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte("abc\n"), 9999), 0o600)
		},
		"a pipe":     func(t *testing.T, path string) error { return syscall.Mkfifo(path, 0o600) },
		"directory":  func(t *testing.T, path string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) },
		"link":       func(t *testing.T, path string) error { return os.Symlink("nowhere", path) },
		"link loop":  func(t *testing.T, path string) error { return os.Symlink(fileName, path) },
		"link to it": func(t *testing.T, path string) error { return os.Symlink("/dev/null", path) },
		"bbolt file": func(t *testing.T, path string) error {
			return foreign(path, "meta", "consistent_index")
		},
		"alike": func(t *testing.T, path string) error { return foreign(path, bucketMeta, keySchema) },
		"bbolt file without content": func(t *testing.T, path string) error {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			return db.Close()
		},
		"one bucket more": func(t *testing.T, path string) error {
			return x.changed(path, func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("more"))
				return err
			})
		},
		"a record without count": func(t *testing.T, path string) error {
			return x.changed(path, func(tx *bbolt.Tx) error {
				key := v4(5000).AsSlice()
				return tx.Bucket([]byte(bucketLeases)).Put(key, seal(bucketLeases, key, make([]byte, leaseSize)))
			})
		},
		"a record lost": func(t *testing.T, path string) error {
			return x.changed(path, func(tx *bbolt.Tx) error {
				key, _ := tx.Bucket([]byte(bucketLeases)).Cursor().First()
				return tx.Bucket([]byte(bucketLeases)).Delete(key)
			})
		},
		"a record under another key": func(t *testing.T, path string) error {
			return x.changed(path, func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte(bucketLeases))
				key, record := b.Cursor().First()
				record = bytes.Clone(record)
				if err := b.Delete(key); err != nil {
					return err
				}
				return b.Put(v4(5000).AsSlice(), record)
			})
		},
		"a client with two leases": func(t *testing.T, path string) error {
			return x.changed(path, func(tx *bbolt.Tx) error {
				tr := transaction{tx: tx}
				for n := range 2 {
					key, payload, err := encodeLease(mapping.SavedLease{IPv4: v4(5000 + n), IPv6: v6(5000), Since: past(1)})
					require.NoError(t, err)
					require.NoError(t, tr.write(write{bucketLeases, key, payload}))
				}
				meta := tx.Bucket([]byte(bucketMeta))
				payload, err := unseal(bucketMeta, []byte(keyTotal), meta.Get([]byte(keyTotal)))
				require.NoError(t, err)
				all, err := decodeTotal(payload)
				require.NoError(t, err)
				all.count, all.sum = all.count+tr.total.count, all.sum+tr.total.sum
				return meta.Put([]byte(keyTotal), seal(bucketMeta, []byte(keyTotal), all.encode()))
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, fileName)
			require.NoError(t, make(t, path))
			before, err := os.Lstat(path)
			require.NoError(t, err)

			s := open(t, dir)
			require.Len(t, s.Problems(), 1)
			require.NoError(t, s.Save(leases(lent(1, past(1)))))
			require.Len(t, load(t, s).Leases, 1)
			names, err := filepath.Glob(path + ".set-aside-*")
			require.NoError(t, err)
			require.Len(t, names, 1)
			require.Regexp(t, `\.set-aside-\d{8}T\d{6}Z$`, names[0])
			after, err := os.Lstat(names[0])
			require.NoError(t, err)
			assert.True(t, os.SameFile(before, after))
			assert.Equal(t, before.Size(), after.Size())
		})
	}
}

// foreign makes another program's database.
func foreign(path, bucket, key string) error {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte(bucket))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), []byte{1, 0, 0, 0, 9, 1, 2, 3, 4})
	})
}

// changed makes a file of ours and changes it with bbolt.
func (x *sample) changed(path string, change func(*bbolt.Tx) error) error {
	if err := os.WriteFile(path, x.after, 0o600); err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Update(change)
}

func TestNothingSetAsideIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	for i := range 5 {
		require.NoError(t, os.WriteFile(path, []byte{byte(i)}, 0o600))
		require.NoError(t, open(t, dir).Close())
	}
	names, err := filepath.Glob(path + ".set-aside-*")
	require.NoError(t, err)
	require.Len(t, names, 5)
	seen := map[byte]bool{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		seen[b[0]] = true
	}
	assert.Len(t, seen, 5)
}

func TestLinkedFile(t *testing.T) {
	x := newSample(t)
	other, dir := put(t, t.TempDir(), x.after), t.TempDir()
	require.NoError(t, os.Symlink(filepath.Join(other, fileName), filepath.Join(dir, fileName)))
	s := open(t, dir)
	assert.Empty(t, s.Problems())
	assert.Equal(t, x.loaded, load(t, s))
	require.NoError(t, s.Save(leases(lent(1, past(1)))))
}

func TestUnreadableIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	// A file that looks regular and whose first page is an I/O error.
	require.NoError(t, os.Symlink("/proc/self/mem", filepath.Join(dir, fileName)))
	_, err := Open(dir, month, quiet)
	require.ErrorIs(t, err, syscall.EIO)
	require.ErrorContains(t, err, filepath.Join(dir, fileName))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, files, 1, "nothing was renamed or made")

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Open(file, month, quiet)
	require.ErrorIs(t, err, syscall.ENOTDIR)
}

// TestDamageInUse damages the file while it is mapped into memory.
func TestDamageInUse(t *testing.T) {
	x := newSample(t)
	for name, spoil := range map[string]func(path string) error{
		"cut off":  func(path string) error { return os.Truncate(path, 2*page) },
		"all gone": func(path string) error { return os.Truncate(path, 0) },
		"zeros": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(make([]byte, len(x.after)-2*page), 2*page)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, put(t, t.TempDir(), x.after))
			require.NoError(t, spoil(s.path))
			for range 3 {
				require.Error(t, s.Save(leases(lent(1, past(1)))))
				require.Error(t, s.History(past(20), func(mapping.SavedLease) bool { return true }))
				_, err := s.Load()
				require.Error(t, err)
			}
			require.NoError(t, os.WriteFile(s.path, x.after, 0), "the same file, mended")
			require.Equal(t, x.loaded, load(t, s))
			require.Equal(t, x.remember, history(t, s, past(20)))
			require.NoError(t, s.Save(leases(lent(2000, past(1)))))
			require.Len(t, load(t, s).Leases, len(x.loaded.Leases)+1)
		})
	}
}

// TestFailedAtTheLastWrite has a Save fail when all of it is written and
// nothing is known to be on the disk.
func TestFailedAtTheLastWrite(t *testing.T) {
	x := newSample(t)
	dir := put(t, t.TempDir(), x.after)
	s := open(t, dir)
	for range 5 {
		before, err := s.heads()
		require.NoError(t, err)
		require.NoError(t, s.Save(leases(lent(2000, past(1)))))
		require.NotEqual(t, x.loaded, load(t, s))
		s.undo = &before
		require.NoError(t, s.disconnect())
		require.Equal(t, x.loaded, load(t, s))
		require.Equal(t, x.remember, history(t, s, past(20)))
	}
	require.NoError(t, s.Save(leases(lent(2001, past(1)))))
	want := load(t, s)
	require.Len(t, want.Leases, len(x.loaded.Leases)+1)
	require.NoError(t, s.Close())
	s = open(t, dir)
	assert.Empty(t, s.Problems())
	assert.Equal(t, want, load(t, s))
}

func TestRemovedAndReplaced(t *testing.T) {
	x := newSample(t)
	top := t.TempDir()
	dir := filepath.Join(top, "natless")
	require.NoError(t, os.Rename(put(t, top, x.after), dir))
	s := open(t, dir)
	n := 2000
	works := func() {
		t.Helper()
		n++
		require.NoError(t, s.Save(leases(lent(n, past(1)))))
		require.NoError(t, s.Close())
		s = open(t, dir)
		require.Empty(t, s.Problems())
		require.Len(t, load(t, s).Leases, len(x.loaded.Leases)+n-2000)
	}
	fails := func(want string) {
		t.Helper()
		err := s.Save(leases(lent(1, past(1))))
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, s.path)
	}
	works()

	require.NoError(t, os.Remove(s.path))
	works()
	require.NoError(t, os.RemoveAll(dir))
	works()

	moved := filepath.Join(top, "moved")
	require.NoError(t, os.Rename(s.path, moved))
	fails("moved away")
	require.NoFileExists(t, s.path)
	require.NoError(t, os.WriteFile(s.path, []byte("mine"), 0o600))
	fails("replaced")
	b, err := os.ReadFile(s.path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(b))
	require.NoError(t, os.Rename(moved, s.path))
	works()

	require.NoError(t, os.Rename(dir, moved))
	fails("moved away")
	require.NoError(t, os.Mkdir(dir, 0o700))
	fails("moved away")
	require.NoError(t, os.Remove(dir))
	require.NoError(t, os.Rename(moved, dir))
	works()

	require.NoError(t, os.Remove(s.path))
	require.NoError(t, os.WriteFile(s.path, x.after, 0o600), "a backup")
	fails("replaced")
	require.NoError(t, os.Remove(s.path))
	works()
}

// TestRenew has what was damaged in use written anew, of what its user has in
// memory.
func TestRenew(t *testing.T) {
	x := newSample(t)
	for name, spoil := range map[string]func(path string) error{
		"cut off":  func(path string) error { return os.Truncate(path, 2*page) },
		"all gone": func(path string) error { return os.Truncate(path, 0) },
		"garbage":  func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("abc\n"), len(x.after)/4), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := put(t, t.TempDir(), x.after)
			s := open(t, dir)
			require.NoError(t, spoil(s.path))
			spoilt, err := os.ReadFile(s.path)
			require.NoError(t, err)
			require.ErrorIs(t, s.Save(leases(lent(1, past(1)))), mapping.ErrDamaged)
			require.NoError(t, s.Renew(x.loaded))
			require.Equal(t, x.loaded, load(t, s))
			requireAside(t, s, spoilt)
			require.Contains(t, s.Problems()[0], "written anew from memory")
			require.NoError(t, s.Save(leases(lent(2000, past(1)))))
			require.NoError(t, s.Close())

			s = open(t, dir)
			require.Empty(t, s.Problems())
			require.Len(t, load(t, s).Leases, len(x.loaded.Leases)+1)
			for _, l := range history(t, s, past(0)) {
				require.Zero(t, l.Until, "of what had ended nothing is known")
			}
		})
	}

	// What another put there, or took away, is not touched.
	s := open(t, put(t, t.TempDir(), x.after))
	require.NoError(t, os.Remove(s.path))
	require.NoError(t, os.WriteFile(s.path, []byte("mine"), 0o600))
	require.ErrorContains(t, s.Renew(x.loaded), "replaced")
	text, err := os.ReadFile(s.path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(text))
}

// TestRenewMany writes more than one transaction takes.
func TestRenewMany(t *testing.T) {
	s := open(t, t.TempDir())
	var many mapping.Saved
	for n := range atOnce + 1000 {
		many.Leases = append(many.Leases, lent(n, past(1)))
	}
	require.NoError(t, s.Renew(many))
	require.Equal(t, many.Leases, load(t, s).Leases)
	require.NoError(t, s.Save(leases(ended(lent(3, past(1)), past(2)))))
}
