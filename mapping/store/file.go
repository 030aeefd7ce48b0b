package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	boltErrors "go.etcd.io/bbolt/errors"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/mapping/trust"
)

const (
	fileName = "natless.db"
	lockWait = time.Second // for another natless that is about to end
)

// open finds, checks and, where there is none, makes the file.
func (s *Store) open(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	s.dir, s.path = dir, filepath.Join(dir, fileName)
	if err := s.enter(); err != nil {
		return err
	}
	err = s.attach()
	if isDamage(err) {
		if err := s.setAside(err, "a new one begun without its leases and mappings"); err != nil {
			return err
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.create(); err == nil {
			err = s.attach()
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return s.connect()
}

// enter makes the directory, and keeps others off it by a file beside the
// database. bbolt locks the database, but only once it has it: this lock also
// covers checking, setting aside and making one. Where nothing can be written
// there is no such file, and nothing is changed either.
func (s *Store) enter() error {
	_, there := os.Stat(s.dir)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if errors.Is(there, fs.ErrNotExist) { // its name is to be as durable as what is in it
		if err := syncDir(filepath.Dir(s.dir)); err != nil {
			return err
		}
	}
	if err := trust.Dir(s.dir); err != nil {
		return err
	}
	l, err := trust.Lock(s.path+".lock", lockWait)
	var held *trust.HeldError
	switch {
	case errors.As(err, &held):
		return s.inUse(held.PID)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		l = nil
	case err != nil:
		return err
	}
	s.unlock()
	s.lock = l
	return nil
}

// inUse says who has it, if that is known.
func (s *Store) inUse(pid int) error {
	if pid == 0 {
		return fmt.Errorf("%w %s", ErrInUse, s.dir)
	}
	return fmt.Errorf("%w %s (process %d)", ErrInUse, s.dir, pid)
}

// free waits a moment for another to let go of the database: before anything of
// it is read, for a natless of before this lock file may be writing it. The mode
// keeps other users from opening it, and so from locking it.
func (s *Store) free(f *os.File) error {
	if info, err := f.Stat(); err == nil && info.Mode().Perm()&0o077 != 0 {
		_ = f.Chmod(0o600) // another's, or on a read-only file system
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(lockWait / 50) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		case errors.Is(err, syscall.EINTR):
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return fmt.Errorf("lock %s: %w", s.path, err)
		case time.Now().After(end):
			return s.inUse(trust.Holder(f))
		}
	}
}

func (s *Store) unlock() {
	if s.lock != nil {
		s.lock.Release()
		s.lock = nil
	}
}

// attach opens and checks the file that is there: fs.ErrNotExist if there is
// none.
func (s *Store) attach() error {
	info, err := os.Stat(s.path) // through a symbolic link, which may be wanted
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(s.path); err == nil {
			return damaged("a symbolic link to nothing")
		}
		return fs.ErrNotExist
	case errors.Is(err, syscall.ELOOP):
		return damaged("a symbolic link that leads nowhere")
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return damaged("not a regular file")
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	var readOnly error
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		readOnly = err
		f, err = os.Open(s.path)
	}
	if err != nil {
		return err
	}
	var c contents
	if err = s.free(f); err == nil {
		c, err = read(f, nil)
	}
	if err != nil {
		f.Close()
		return err
	}
	s.file, s.contents = f, c
	if readOnly != nil {
		s.readOnly.Store(&readOnly)
		s.log.Warn("the state can be read but not written: no lease can be made", "file", s.path, "error", readOnly)
	}
	return nil
}

// setAside gives what is in the place of the file another name, and says what
// comes instead.
func (s *Store) setAside(why error, instead string) error {
	name := s.path + ".set-aside-" + time.Now().UTC().Format("20060102T150405Z")
	to := name
	for i := 2; ; i++ {
		if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
		to = fmt.Sprintf("%s-%d", name, i)
	}
	if err := os.Rename(s.path, to); err != nil {
		return fmt.Errorf("%s is damaged or not natless's (%w) and cannot be set aside: %w", s.path, why, err)
	}
	said := fmt.Sprintf("%s was damaged or not natless's (%v): it is set aside as %s, and %s", s.path, why, to, instead)
	s.aside.Store(&said)
	s.log.Error("the state was damaged or not natless's: it is set aside, and "+instead, "file", s.path, "reason", why, "aside", to)
	return syncDir(s.dir)
}

// create makes a new file without records.
func (s *Store) create() error {
	name, err := s.prepare(nil)
	if err != nil {
		return err
	}
	return s.place(name)
}

// prepare makes a new file with records. It gets its name when it is complete, so
// that one that is not whole is always one that was damaged.
func (s *Store) prepare(records []write) (name string, err error) {
	name = s.path + ".new"
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := initialize(name, records); err != nil {
		_ = os.Remove(name)
		return "", err
	}
	return name, nil
}

// renew begins anew with records in place of a file that was damaged while it
// was in use. What another put in its place is left alone, as it always is.
func (s *Store) renew(why error, records []write) error {
	if err := s.present(); err != nil {
		return err
	}
	if err := s.disconnect(); err != nil {
		s.log.Debug("closing a damaged state", "error", err)
	}
	name, err := s.prepare(records)
	if err != nil {
		return err
	}
	if err := s.setAside(why, "written anew from memory, without the history of leases that had ended"); err != nil {
		return err
	}
	if err := s.place(name); err != nil {
		return err
	}
	former := s.file
	if err := s.attach(); err != nil {
		return err
	}
	s.undo, s.doubtful = nil, false
	return errors.Join(former.Close(), s.connect())
}

// initialize makes a database with records, as many in a transaction as take no
// more memory than any Save.
func initialize(name string, records []write) error {
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{Timeout: lockWait, NoSync: true})
	if err != nil {
		return err
	}
	err = empty(db)
	t := transaction{schema: schemaWhole, clients: map[[16]byte]place{}, most: math.MaxUint64}
	for part := range slices.Chunk(records, atOnce) {
		if err == nil {
			t.total, t.moved = total{}, map[[16]byte]place{}
			err = db.Update(func(tx *bbolt.Tx) error { return t.run(tx, part) })
			t.settleClients()
		}
	}
	return errors.Join(err, db.Sync(), db.Close())
}

// atOnce is how many records a transaction of a new file has.
const atOnce = 20_000

// empty makes everything but records.
func empty(db *bbolt.DB) error {
	return db.Update(func(tx *bbolt.Tx) error {
		for _, b := range dataBuckets(schemaWhole) {
			if _, err := tx.CreateBucket([]byte(b)); err != nil {
				return err
			}
		}
		meta, err := tx.CreateBucket([]byte(bucketMeta))
		if err != nil {
			return err
		}
		return errors.Join(
			putMeta(meta, keySchema, binary.BigEndian.AppendUint32(nil, schemaWhole)),
			putMeta(meta, keyTotal, total{}.encode()),
		)
	})
}

func putMeta(meta *bbolt.Bucket, key string, payload []byte) error {
	return meta.Put([]byte(key), seal(bucketMeta, []byte(key), payload))
}

// place gives a complete new file its name, in whose place there must be
// nothing.
func (s *Store) place(name string) error {
	_, err := os.Lstat(s.path)
	switch {
	case err == nil:
		err = fmt.Errorf("%s is in the way of a new file", s.path)
	case errors.Is(err, fs.ErrNotExist):
		err = os.Rename(name, s.path)
	}
	if err != nil {
		_ = os.Remove(name)
		return err
	}
	return syncDir(s.dir)
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ready makes the file and bbolt usable again after whatever went wrong the
// last time.
func (s *Store) ready(toWrite bool) error {
	if s.file == nil {
		return errClosed
	}
	if toWrite {
		if err := s.present(); err != nil {
			return err
		}
		if err := s.writable(); err != nil {
			return err
		}
	}
	if err := s.settle(); err != nil {
		return err
	}
	if s.doubtful {
		if _, err := read(s.file, nil); err != nil {
			return fmt.Errorf("%w: %w", mapping.ErrDamaged, err)
		}
		s.doubtful = false
	}
	if s.db != nil {
		return nil
	}
	return s.connect()
}

// present makes sure that what is saved will be found at the next start. What
// another put in the place of the file is left alone, and a file that was
// moved, or is on a file system that was taken away, may come back: to go on
// in another would make two states of one. Only a file that was deleted for
// good is written anew, of the one that is still open.
func (s *Store) present() error {
	ours, err := s.file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(s.path)
	switch {
	case err == nil && os.SameFile(there, ours):
		return nil
	case err == nil:
		return errors.New("it was replaced while in use: put the former file back, or restart natless to use the one that is there")
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case ours.Sys().(*syscall.Stat_t).Nlink > 0:
		return errors.New("it was moved away or its file system taken away: expected it back")
	}
	return s.rewrite(ours.Size())
}

// rewrite makes a file again that was deleted while in use.
func (s *Store) rewrite(size int64) error {
	if err := s.settle(); err != nil {
		return err
	}
	if s.lock == nil || !s.lock.Current() { // the directory was deleted, too
		if err := s.enter(); err != nil {
			return err
		}
	}
	name := s.path + ".new"
	if err := s.copyTo(name, size); err != nil {
		return err
	}
	if err := s.place(name); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(s.disconnect(), s.file.Close())
	s.file = f
	s.log.Warn("the state was deleted while in use: it is written anew, with all that was in it", "file", s.path)
	return err
}

// copyTo copies the open file, which has to be whole.
func (s *Store) copyTo(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.NewSectionReader(s.file, 0, size))
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		_, err = read(f, nil)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(name)
	}
	return err
}

// writable tries again to open the file for writing if it could not be.
func (s *Store) writable() error {
	if s.readOnly.Load() == nil {
		return nil
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(s.disconnect(), s.file.Close())
	s.file = f
	s.readOnly.Store(nil)
	s.log.Info("the state can be written again", "file", s.path)
	return err
}

// connect has bbolt open the file, which was checked.
func (s *Store) connect() error {
	err := s.guard(func() (err error) {
		s.db, err = bbolt.Open(s.path, 0o600, &bbolt.Options{
			Timeout:      lockWait,
			ReadOnly:     s.readOnly.Load() != nil,
			FreelistType: bbolt.FreelistMapType, // the other is slow in a large file
			NoStatistics: true,
			OpenFile:     s.openAgain,
		})
		return err
	})
	if err == nil {
		return nil
	}
	s.db, s.handle = nil, nil
	if errors.Is(err, boltErrors.ErrTimeout) {
		return fmt.Errorf("another process uses %s", s.path)
	}
	return err
}

// openAgain opens the file for bbolt, which never is to make one nor to open
// another than was checked.
func (s *Store) openAgain(name string, flag int, mode os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
	if err != nil {
		return nil, err
	}
	ours, err := s.file.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = f.Stat(); err == nil && !os.SameFile(ours, there) {
			err = fmt.Errorf("%s was replaced while in use", name)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.handle = f
	return f, nil
}

// disconnect ends bbolt's use of the file. It is opened again when needed.
func (s *Store) disconnect() error {
	if s.db == nil {
		return nil
	}
	err := s.guard(s.db.Close)
	s.db, s.handle = nil, nil
	return err
}

// abandon leaves bbolt as it is after a panic, which may have left its locks
// held, so that it cannot be closed. Its map stays in memory, and with it its
// lock of the file unless that is given up here.
func (s *Store) abandon() {
	s.doubtful = true
	if s.handle != nil {
		_ = syscall.Flock(int(s.handle.Fd()), syscall.LOCK_UN)
		_ = s.handle.Close()
	}
	s.db, s.handle = nil, nil
}

// heads are the parts of the two head pages that say what is saved.
type heads [2][headerSize + metaSize]byte

func (s *Store) heads() (h heads, err error) {
	for i := range h {
		if err := readAt(s.file, h[i][:], int64(i)*s.pageSize); err != nil {
			return h, err
		}
	}
	return h, nil
}

// settle makes a Save that failed halfway one that did nothing. Until it
// succeeds the file is not used.
func (s *Store) settle() error {
	if s.undo == nil {
		return nil
	}
	for i := range s.undo {
		if _, err := s.file.WriteAt(s.undo[i][:], int64(i)*s.pageSize); err != nil {
			return err
		}
	}
	if err := syscall.Fdatasync(int(s.file.Fd())); err != nil {
		return err
	}
	s.undo = nil
	return nil
}
