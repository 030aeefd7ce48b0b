// Package store keeps what the mapping table must not forget in a file, so
// that leases and the mappings added at runtime survive restarts and crashes.
// No packet comes by here: the table's keeper saves a lease, and only then
// may a packet use it.
//
// The file is a bbolt database, natless.db. Before bbolt maps it into memory,
// and before anything in it is used, all of it is read and checked with plain
// reads (layout.go, read.go); a file that does not pass is set aside, never
// changed and never half used.
package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/mapping/trust"
)

const (
	// maxHistory bounds the leases in the history; the oldest go first.
	maxHistory = 1_000_000
	// pruned is how many leases a Save may take out of the history besides as
	// many as it adds, so that none takes long.
	pruned = 256
	// looked is how many records History reads before it lets others at the
	// file.
	looked = 4096
)

var errClosed = errors.New("the store is closed")

// Store is a mapping.Store in a file. Its methods may be called from any
// goroutine. Load, Save and History take turns, so that each may have to wait
// for the disk; Problems and SetHistory never do.
type Store struct {
	log        *slog.Logger
	dir, path  string
	aside      atomic.Pointer[string] // what was set aside last, in words; nil: nothing
	maxHistory uint64
	history    atomic.Int64          // a time.Duration
	readOnly   atomic.Pointer[error] // why the file cannot be written; nil: it can

	mu       sync.Mutex
	lock     *trust.File
	file     *os.File // the database; nil: closed
	db       *bbolt.DB
	handle   *os.File // db's own
	doubtful bool     // bbolt panicked over it: to be checked before bbolt sees it again
	undo     *heads   // what is to be restored of a Save that failed halfway
	contents
}

// Open opens the database in a directory, which is made if there is none. A
// file there that is not a whole one of ours is set aside, and Problems tells
// of it; one that cannot be read, is in use or is from the future is an error,
// and nothing is changed. The history keeps what ended at most so long ago; 0:
// none is kept.
func Open(dir string, history time.Duration, log *slog.Logger) (*Store, error) {
	s := &Store{log: log, maxHistory: maxHistory}
	s.SetHistory(history)
	if err := s.open(dir); err != nil {
		s.Close()
		return nil, fmt.Errorf("open state: %w", err)
	}
	return s, nil
}

// ErrInUse is for a directory that somebody has open.
var ErrInUse = errors.New("another natless uses")

// Exists reports whether there is a database in a directory, or what may be one.
func Exists(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, fileName))
	return !errors.Is(err, fs.ErrNotExist)
}

// Problems is what an operator has to know: that a file was set aside, that
// nothing can be saved.
func (s *Store) Problems() (problems []string) {
	if aside := s.aside.Load(); aside != nil {
		problems = append(problems, *aside)
	}
	if why := s.readOnly.Load(); why != nil {
		problems = append(problems, fmt.Sprintf("%s can be read but not written, so that no lease can be made and no mapping changed: %v", s.path, *why))
	}
	return problems
}

// ReadOnly is why nothing can be saved, as far as is known; nil: it can.
func (s *Store) ReadOnly() error {
	if why := s.readOnly.Load(); why != nil {
		return *why
	}
	return nil
}

// SetHistory changes how long the history goes back. What is older goes with
// the next Saves, and is not told of from now on.
func (s *Store) SetHistory(d time.Duration) { s.history.Store(int64(d)) }

// reaches is how far back the history goes now.
func (s *Store) reaches() time.Time { return time.Now().Add(-time.Duration(s.history.Load())) }

// Close ends the use of the file.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		s.unlock()
		return nil
	}
	err := errors.Join(s.settle(), s.disconnect(), s.file.Close())
	s.file = nil
	s.unlock()
	return err
}

// Load reads all of the file again and checks it as Open does.
func (s *Store) Load() (mapping.Saved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var saved mapping.Saved
	if s.file == nil {
		return saved, errClosed
	}
	saved.Leases = make([]mapping.SavedLease, 0, s.leases) // there may be a million
	err := s.settle()
	if err == nil {
		_, err = read(s.file, &saved)
	}
	if err != nil {
		return mapping.Saved{}, fmt.Errorf("load state from %s: %w", s.path, err)
	}
	return saved, nil
}

// Save makes a batch durable in one transaction: removals of maps first, then
// new maps, then the leases in their order, then attachments that go and those
// that come. A client has one lease at a time: a
// new one ends what it has at another address. With an error nothing of the
// batch is durable, and the next Save works as soon as the cause is gone. A
// malformed batch is an error too.
func (s *Store) Save(b mapping.Batch) error {
	w, err := encode(b)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.save(w); err != nil {
		return fmt.Errorf("save state in %s: %w", s.path, s.orDamage(err))
	}
	return nil
}

// orDamage looks whether a Save failed because the file is not what it was.
// What the system refuses, a full disk or one that is gone, says so itself.
func (s *Store) orDamage(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) || errors.Is(err, mapping.ErrDamaged) || s.file == nil {
		return err
	}
	if _, why := read(s.file, nil); isDamage(why) {
		return fmt.Errorf("%w: %w", mapping.ErrDamaged, why)
	}
	return err
}

// Renew sets a file aside that was damaged while in use, and writes what it is
// given in its place. With an error the next Renew goes on.
func (s *Store) Renew(saved mapping.Saved) error {
	w, err := encode(mapping.Batch{PutMaps: saved.Maps, Leases: saved.Leases, PutAttachments: saved.Attachments})
	if err != nil {
		return fmt.Errorf("write state anew: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return errClosed
	}
	if err := s.renew(mapping.ErrDamaged, w); err != nil {
		return fmt.Errorf("write state anew in %s: %w", s.path, err)
	}
	return nil
}

func (s *Store) save(w []write) error {
	if err := s.ready(true); err != nil {
		return err
	}
	before, err := s.heads()
	if err != nil {
		return err
	}
	t := transaction{
		schema: s.schema, past: s.past, clients: s.clients, moved: map[[16]byte]place{},
		history: time.Duration(s.history.Load()), most: s.maxHistory,
	}
	err = s.guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error { return t.run(tx, w) })
	})
	if err == nil {
		s.schema, s.past = t.schema, t.past
		t.settleClients()
		return nil
	}
	// bbolt may have failed after its last write and before that was on disk.
	// Then both are true of the file, saved and not saved: make it the latter.
	if after, err := s.heads(); err != nil || after != before {
		s.undo = &before
	}
	return errors.Join(err, s.disconnect(), s.settle())
}

// write is a record to put, or a key to delete where the payload is nil.
type write struct {
	bucket       string
	key, payload []byte
}

// encode checks a batch before anything is done with it.
func encode(b mapping.Batch) (w []write, err error) {
	for _, p := range b.RemoveMaps {
		if err := checkIPv4(p); err != nil {
			return nil, err
		}
		w = append(w, write{bucketMaps, mapKey(p), nil})
	}
	for _, m := range b.PutMaps {
		key, payload, err := encodeMap(m)
		if err != nil {
			return nil, err
		}
		w = append(w, write{bucketMaps, key, payload})
	}
	for _, l := range b.Leases {
		key, payload, err := encodeLease(l)
		if err != nil {
			return nil, fmt.Errorf("lease of %v: %w", l.IPv4, err)
		}
		w = append(w, write{bucketLeases, key, payload})
	}
	for _, id := range b.RemoveAttachments {
		w = append(w, write{bucketAttached, []byte(id), nil})
	}
	for _, a := range b.PutAttachments {
		key, payload, err := encodeAttachment(a)
		if err != nil {
			return nil, err
		}
		w = append(w, write{bucketAttached, key, payload})
	}
	return w, nil
}

// transaction is a Save at work.
type transaction struct {
	tx      *bbolt.Tx
	total   total
	schema  uint32
	past    uint64             // leases in the history
	clients map[[16]byte]place // as they were before
	moved   map[[16]byte]place // and what changed; the zero value: no lease any more

	history time.Duration
	most    uint64
}

func (t *transaction) run(tx *bbolt.Tx, writes []write) error {
	t.tx = tx
	meta := tx.Bucket([]byte(bucketMeta))
	payload, err := unseal(bucketMeta, []byte(keyTotal), meta.Get([]byte(keyTotal)))
	if err != nil {
		return err
	}
	if t.total, err = decodeTotal(payload); err != nil {
		return err
	}
	for _, w := range writes {
		put := t.write
		if w.bucket == bucketLeases {
			put = t.lease
		}
		if err := errors.Join(t.upgrade(w), put(w)); err != nil {
			return err
		}
	}
	if err := t.prune(pruned + len(writes)); err != nil {
		return err
	}
	return putMeta(meta, keyTotal, t.total.encode())
}

// upgrade makes the file one of the schema that a record needs.
func (t *transaction) upgrade(w write) error {
	needs := w.needs()
	if t.schema >= needs {
		return nil
	}
	there := dataBuckets(t.schema)
	t.schema = needs
	for _, b := range dataBuckets(needs)[len(there):] {
		if _, err := t.tx.CreateBucket([]byte(b)); err != nil {
			return err
		}
	}
	return putMeta(t.tx.Bucket([]byte(bucketMeta)), keySchema, binary.BigEndian.AppendUint32(nil, needs))
}

// needs is the schema that a record needs at least.
func (w write) needs() uint32 {
	size := leaseSize
	if len(w.key) == placeSize {
		size += 2
	}
	switch {
	case w.bucket == bucketAttached, w.bucket == bucketLeases && len(w.payload) > size:
		return schemaAttached
	case w.bucket == bucketLeases && len(w.key) == placeSize:
		return schemaRanges
	}
	return schemaWhole
}

// write puts or deletes a record and keeps the total.
func (t *transaction) write(w write) error {
	b := t.tx.Bucket([]byte(w.bucket))
	if w.bucket == bucketLeases || w.bucket == bucketEnded {
		b.FillPercent = 0.9 // they come mostly in ascending order and stay
	}
	if former := b.Get(w.key); former != nil {
		if _, err := unseal(w.bucket, w.key, former); err != nil {
			return err
		}
		t.total.drop(former)
	}
	if w.payload == nil {
		return b.Delete(w.key)
	}
	record := seal(w.bucket, w.key, w.payload)
	t.total.add(record)
	return b.Put(w.key, record)
}

// lease puts a lease, which is the only one of its client then.
func (t *transaction) lease(w write) error {
	here, client := placeOf(w.key), [16]byte(w.payload)
	if former := t.tx.Bucket([]byte(bucketLeases)).Get(w.key); former != nil {
		payload, err := unseal(bucketLeases, w.key, former)
		if err != nil {
			return err
		}
		if c := [16]byte(payload); t.placeOf(c) == here {
			t.moved[c] = place{}
		}
	}
	if err := t.write(w); err != nil {
		return err
	}
	switch flags := w.payload[leaseSize-1]; {
	case flags == flagEnded|flagProven && t.history > 0:
		return t.remember(w)
	case flags&flagEnded != 0:
		return nil
	}
	if other := t.placeOf(client); other != (place{}) {
		if err := t.end(other.key(), w.payload[16:24]); err != nil {
			return err
		}
	}
	t.moved[client] = here
	return nil
}

// end ends the lease of a place.
func (t *transaction) end(place, until []byte) error {
	payload, err := unseal(bucketLeases, place, t.tx.Bucket([]byte(bucketLeases)).Get(place))
	if err != nil {
		return err
	}
	payload = bytes.Clone(payload)
	copy(payload[24:], until)
	payload[leaseSize-1] |= flagEnded
	return t.lease(write{bucketLeases, place, payload})
}

// placeOf is what a client has a lease of; the zero value: nothing.
func (t *transaction) placeOf(client [16]byte) place {
	if a, ok := t.moved[client]; ok {
		return a
	}
	return t.clients[client]
}

// settleClients is for when the transaction is durable.
func (t *transaction) settleClients() {
	for c, a := range t.moved {
		if a == (place{}) {
			delete(t.clients, c)
			continue
		}
		t.clients[c] = a
	}
}

// remember enters an ended lease in the history.
func (t *transaction) remember(w write) error {
	history, ended, past := pastKeys(w.key, w.payload)
	if t.tx.Bucket([]byte(bucketEnded)).Get(ended) == nil {
		t.past++
	}
	return errors.Join(t.write(write{historyOf(w.key), history, past}), t.write(write{bucketEnded, ended, []byte{}}))
}

// prune takes what is too old or too much out of the history, n leases at
// most.
func (t *transaction) prune(n int) error {
	var surplus uint64
	if t.past > t.most {
		surplus = t.past - t.most
	}
	since := sortable(time.Now().Add(-t.history).UnixNano())
	var old [][]byte // deleting moves a cursor
	c := t.tx.Bucket([]byte(bucketEnded)).Cursor()
	for key, _ := c.First(); key != nil && len(old) < n; key, _ = c.Next() {
		if uint64(len(old)) >= surplus && binary.BigEndian.Uint64(key) >= since {
			break
		}
		old = append(old, bytes.Clone(key))
	}
	for _, ended := range old {
		history := append(bytes.Clone(ended[8:]), ended[:8]...)
		if err := errors.Join(t.write(write{historyOf(ended[8:]), history, nil}), t.write(write{bucketEnded, ended, nil})); err != nil {
			return err
		}
		t.past--
	}
	return nil
}

// forgotten is why the history has no answer: some of those who had a lease at
// the time may have been forgotten since.
type forgotten struct{ since time.Time }

func (f forgotten) Error() string {
	return fmt.Sprintf("the history (state.history) goes back to %s only", f.since.UTC().Format(time.RFC3339))
}

func (forgotten) Is(target error) bool { return target == mapping.ErrGone }

// History calls yield with every lease that was in force at a time, by IPv4
// address: those still lent, and those that ended since. What is further back
// than the history reaches is mapping.ErrGone. It reads a part at a time, and
// yield may take as long as it likes.
func (s *Store) History(at time.Time, yield func(mapping.SavedLease) bool) error {
	if since := s.reaches(); at.Before(since) {
		return forgotten{since}
	}
	if n, err := nanos(at); err != nil || n == math.MaxUint64 {
		return nil // nothing that is kept goes so far
	}
	for from := []byte{0, 0, 0, 0}; from != nil; {
		leases, next, err := s.historyFrom(from, at)
		if err != nil {
			return fmt.Errorf("read history from %s: %w", s.path, err)
		}
		for _, l := range leases {
			if !yield(l) {
				return nil
			}
		}
		from = next
	}
	return nil
}

// historyFrom is a part of the History, from an IPv4 address on. The next part
// is from next on; nil: there is none.
func (s *Store) historyFrom(from []byte, at time.Time) (leases []mapping.SavedLease, next []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(false); err != nil {
		return nil, nil, err
	}
	err = s.guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			q := query{
				lent: tx.Bucket([]byte(bucketLeases)).Cursor(),
				past: tx.Bucket([]byte(bucketHistory)).Cursor(),
				at:   at,
				kept: s.reaches(),
			}
			if ranges := tx.Bucket([]byte(bucketRanges)); ranges != nil {
				q.ranges = ranges.Cursor()
			}
			next, err = q.run(from)
			leases = q.leases
			return err
		})
	})
	return leases, next, err
}

// query looks for the leases of a time.
type query struct {
	lent, past *bbolt.Cursor
	ranges     *bbolt.Cursor // nil: there are none
	at, kept   time.Time     // what ended before kept is forgotten, even if it is there
	looked     int
	leases     []mapping.SavedLease
}

// run looks at one address after the other. It ends between two.
func (q *query) run(from []byte) (next []byte, err error) {
	lentKey, lent := q.lent.Seek(from)
	pastKey, _ := q.past.Seek(from)
	var rangeKey []byte
	if q.ranges != nil {
		rangeKey, _ = q.ranges.Seek(from)
	}
	for {
		address := first(lentKey, pastKey, rangeKey)
		if address == nil || q.looked >= looked {
			return address, nil
		}
		if bytes.HasPrefix(pastKey, address) {
			if pastKey, err = q.pastOf(q.past, bucketHistory, address); err != nil {
				return nil, err
			}
		}
		for bytes.HasPrefix(rangeKey, address) {
			if rangeKey, err = q.pastOf(q.ranges, bucketRanges, bytes.Clone(rangeKey[:placeSize])); err != nil {
				return nil, err
			}
		}
		for bytes.HasPrefix(lentKey, address) {
			if err := q.lentNow(lentKey, lent); err != nil {
				return nil, err
			}
			lentKey, lent = q.lent.Next()
			q.looked++
		}
		q.looked++
	}
}

// first is the lowest of the IPv4 addresses that keys begin with; nil: there is
// no key.
func first(keys ...[]byte) (lowest []byte) {
	for _, k := range keys {
		if k != nil && (lowest == nil || bytes.Compare(k[:addressSize], lowest) < 0) {
			lowest = k[:addressSize]
		}
	}
	return bytes.Clone(lowest)
}

// pastOf looks at the leases of a place that ended after the time, in its
// bucket. It returns the key behind those of the place.
func (q *query) pastOf(c *bbolt.Cursor, bucket string, place []byte) (key []byte, err error) {
	seek := binary.BigEndian.AppendUint64(bytes.Clone(place), sortable(q.at.UnixNano())+1)
	key, record := c.Seek(seek)
	for ; bytes.HasPrefix(key, place); key, record = c.Next() {
		payload, err := unseal(bucket, key, record)
		if err != nil {
			return nil, err
		}
		l, err := decodePast(bucket, key, payload)
		if err != nil {
			return nil, err
		}
		if !l.Since.After(q.at) && !l.Until.Before(q.kept) {
			q.leases = append(q.leases, l)
		}
		q.looked++
	}
	return key, nil
}

func (q *query) lentNow(key, record []byte) error {
	payload, err := unseal(bucketLeases, key, record)
	if err != nil {
		return err
	}
	l, err := decodeLease(key, payload)
	if err == nil && l.Until.IsZero() && !l.Since.After(q.at) {
		q.leases = append(q.leases, l)
	}
	return err
}

// guard runs what uses bbolt. Damage that happens while the file is in use can
// make that panic, or fault on the memory map; both become errors.
func (s *Store) guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			s.abandon()
			err = fmt.Errorf("%w: %v", mapping.ErrDamaged, p)
		}
	}()
	return fn()
}
