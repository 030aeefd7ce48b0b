package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt reads its file through a memory map and trusts what it finds there: of
// a damaged file it may read beyond the map, run in circles until the stack is
// used up, or panic on goroutines of its own. This file therefore reads a
// database by itself, with plain reads and every bound checked, before bbolt
// sees it. What passes here is a whole tree, which bbolt can walk.
//
// The file is pages of one size. Each starts with its number, its kind, the
// count of its elements and how many further pages it spans. Pages 0 and 1 are
// written in turn, by one transaction each; the newer of them says where
// everything else is. All numbers are in the order of the machine that wrote
// them.

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	headerSize  = 16 // of a page
	elementSize = 16 // of an entry in the table at the head of a page
	rootSize    = 16 // of a bucket's root in the value of its name
	metaSize    = 64

	kindBranch   = 0x01
	kindLeaf     = 0x02
	kindFreelist = 0x10

	leafBucket = 0x01 // an element's value is a bucket

	maxDepth = 32 // of a tree: 2 to the 32nd pages and more
)

var order = binary.NativeEndian

// damage is why a file is not one that this package wrote and completed.
type damage string

func (d damage) Error() string { return string(d) }

func damaged(format string, args ...any) error { return damage(fmt.Sprintf(format, args...)) }

// layout is a database's tree of pages while it is read.
type layout struct {
	r        io.ReaderAt
	pageSize uint64
	pages    uint64            // in use or free; what is behind them is unused
	seen     []bool            // by page: met in the tree or among the free ones
	roots    map[string][]byte // of the buckets, by name
	bufs     [][]byte          // pages being read, by their depth in the tree
}

// meta is one of the two pages that say where everything is.
type meta struct {
	pageSize, root, freelist, pages, tx uint64
}

func parseMeta(b []byte) (meta, error) {
	h := fnv.New64a()
	h.Write(b[:metaSize-8])
	switch {
	case order.Uint32(b) != boltMagic:
		return meta{}, damaged("not a database")
	case order.Uint32(b[4:]) != boltVersion:
		return meta{}, damaged("a database of a format that is not known")
	case order.Uint64(b[metaSize-8:]) != h.Sum64():
		return meta{}, damaged("the checksum of a head page is wrong")
	}
	return meta{
		pageSize: uint64(order.Uint32(b[8:])),
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		pages:    order.Uint64(b[40:]),
		tx:       order.Uint64(b[48:]),
	}, nil
}

// readLayout reads what leads to the buckets. An error that is no damage is
// one of reading.
func readLayout(r io.ReaderAt, size int64) (*layout, error) {
	m, err := readMeta(r, size)
	if err != nil {
		return nil, err
	}
	if m.pages < 4 || m.pages > uint64(size)/m.pageSize {
		return nil, damaged("%d pages of %d bytes in a file of %d bytes", m.pages, m.pageSize, size)
	}
	l := &layout{r: r, pageSize: m.pageSize, pages: m.pages, seen: make([]bool, m.pages), roots: map[string][]byte{}}
	l.seen[0], l.seen[1] = true, true
	if err := l.readFree(m.freelist); err != nil {
		return nil, err
	}
	return l, l.tree(m.root, 0, nil, nil, func(flags uint32, name, root []byte) error {
		if flags != leafBucket || len(root) < rootSize {
			return damaged("%q is not a bucket", name)
		}
		l.roots[string(name)] = bytes.Clone(root)
		return nil
	})
}

// readMeta is the newer of the two head pages. Both have to be whole: if one is
// not, whether the other is the latest cannot be told. A crash leaves them
// whole, since each is a part of one disk sector.
func readMeta(r io.ReaderAt, size int64) (meta, error) {
	head := make([]byte, headerSize+metaSize)
	if err := readAt(r, head, 0); err != nil {
		return meta{}, err
	}
	m, err := parseMeta(head[headerSize:])
	if err != nil {
		return meta{}, err
	}
	if m.pageSize < 1024 || m.pageSize > 1<<16 || m.pageSize&(m.pageSize-1) != 0 {
		return meta{}, damaged("pages of %d bytes", m.pageSize)
	}
	if err := readAt(r, head, int64(m.pageSize)); err != nil {
		return meta{}, err
	}
	other, err := parseMeta(head[headerSize:])
	if err != nil {
		return meta{}, err
	}
	switch {
	case other.pageSize != m.pageSize:
		return meta{}, damaged("the head pages disagree")
	case other.tx == m.tx+1:
		return other, nil
	case m.tx == other.tx+1:
		return m, nil
	}
	return meta{}, damaged("the head pages are of transactions %d and %d", m.tx, other.tx)
}

// readFree notes the pages that are free.
func (l *layout) readFree(id uint64) error {
	kind, count, data, err := l.page(id, 0)
	if err != nil {
		return err
	}
	if kind != kindFreelist {
		return damaged("page %d is not the list of free pages", id)
	}
	data = data[headerSize:]
	n := uint64(count)
	if count == 0xffff { // and more: the first entry is the count
		n, data = order.Uint64(data), data[8:]
	}
	if n > uint64(len(data))/8 {
		return damaged("%d free pages do not fit on page %d", n, id)
	}
	for i := range n {
		if err := l.claim(order.Uint64(data[8*i:]), 1); err != nil {
			return err
		}
	}
	return nil
}

// claim notes that n pages are used for one thing.
func (l *layout) claim(id, n uint64) error {
	if id >= l.pages || n > l.pages-id {
		return damaged("page %d of %d is referred to", id, l.pages)
	}
	for i := id; i < id+n; i++ {
		if l.seen[i] {
			return damaged("page %d is used twice", i)
		}
		l.seen[i] = true
	}
	return nil
}

// page reads a page and those it spans. data is valid until the next page of
// this depth.
func (l *layout) page(id uint64, depth int) (kind, count uint16, data []byte, err error) {
	if id >= l.pages {
		return 0, 0, nil, damaged("page %d of %d is referred to", id, l.pages)
	}
	if depth == maxDepth {
		return 0, 0, nil, damaged("the tree is too deep")
	}
	if depth == len(l.bufs) {
		l.bufs = append(l.bufs, make([]byte, l.pageSize))
	}
	data = l.bufs[depth][:l.pageSize]
	if err := readAt(l.r, data, int64(id*l.pageSize)); err != nil {
		return 0, 0, nil, err
	}
	if order.Uint64(data) != id {
		return 0, 0, nil, damaged("page %d says it is another", id)
	}
	n := uint64(order.Uint32(data[12:])) + 1
	if err := l.claim(id, n); err != nil {
		return 0, 0, nil, err
	}
	if n > 1 {
		data = make([]byte, n*l.pageSize)
		if err := readAt(l.r, data, int64(id*l.pageSize)); err != nil {
			return 0, 0, nil, err
		}
	}
	return order.Uint16(data[8:]), order.Uint16(data[10:]), data, nil
}

// tree visits what a page leads to, by key, all of it from lo on and before hi
// (nil: no bound). key and value are valid during the call.
func (l *layout) tree(id uint64, depth int, lo, hi []byte, visit func(flags uint32, key, value []byte) error) error {
	kind, count, data, err := l.page(id, depth)
	switch {
	case err != nil:
		return err
	case kind == kindLeaf:
		return leaf(data, count, lo, hi, visit)
	case kind != kindBranch || count == 0:
		return damaged("page %d is not one of a tree", id)
	}
	key, err := branchKey(data, count, 0)
	if err != nil {
		return err
	}
	for i := range count {
		next := hi
		if i+1 < count {
			if next, err = branchKey(data, count, i+1); err != nil {
				return err
			}
		}
		if !within(key, lo, next) {
			return damaged("the keys on page %d are out of order", id)
		}
		child := order.Uint64(data[headerSize+elementSize*int(i)+8:])
		if err := l.tree(child, depth+1, key, next, visit); err != nil {
			return err
		}
		key, lo = next, key
	}
	return nil
}

func branchKey(data []byte, count, i uint16) ([]byte, error) {
	at := headerSize + elementSize*uint64(i)
	if headerSize+elementSize*uint64(count) > uint64(len(data)) {
		return nil, damaged("%d elements do not fit on a page", count)
	}
	return cut(data, at+uint64(order.Uint32(data[at:])), order.Uint32(data[at+4:]))
}

// leaf visits the elements of a leaf.
func leaf(data []byte, count uint16, lo, hi []byte, visit func(flags uint32, key, value []byte) error) error {
	if headerSize+elementSize*uint64(count) > uint64(len(data)) {
		return damaged("%d elements do not fit on a page", count)
	}
	for i := range uint64(count) {
		at := headerSize + elementSize*i
		e := data[at:]
		flags, pos, keyLen, valueLen := order.Uint32(e), uint64(order.Uint32(e[4:])), order.Uint32(e[8:]), order.Uint32(e[12:])
		key, err := cut(data, at+pos, keyLen)
		if err != nil {
			return err
		}
		value, err := cut(data, at+pos+uint64(keyLen), valueLen)
		if err != nil {
			return err
		}
		if len(key) == 0 || !within(key, lo, hi) || i > 0 && bytes.Equal(key, lo) {
			return damaged("the keys on a page are out of order")
		}
		if err := visit(flags, key, value); err != nil {
			return err
		}
		lo = key
	}
	return nil
}

func cut(data []byte, at uint64, n uint32) ([]byte, error) {
	if at+uint64(n) > uint64(len(data)) {
		return nil, damaged("an element is not on its page")
	}
	return data[at : at+uint64(n)], nil
}

func within(key, lo, hi []byte) bool {
	return bytes.Compare(key, lo) >= 0 && (hi == nil || bytes.Compare(key, hi) < 0)
}

// bucket visits a bucket's entries by key. Ask once for each.
func (l *layout) bucket(name string, visit func(key, value []byte) error) error {
	root, ok := l.roots[name]
	if !ok {
		return damaged("there is no bucket %q", name)
	}
	entry := func(flags uint32, key, value []byte) error {
		if flags != 0 {
			return damaged("a bucket in bucket %q", name)
		}
		return visit(key, value)
	}
	if id := order.Uint64(root); id != 0 {
		return l.tree(id, 0, nil, nil, entry)
	}
	inline := root[rootSize:] // a small bucket has its only page here
	if len(inline) < headerSize || order.Uint16(inline[8:]) != kindLeaf {
		return damaged("bucket %q has no page", name)
	}
	return leaf(inline, order.Uint16(inline[10:]), nil, nil, entry)
}

// readAt fills b. The end of the file is damage; a disk's error is none.
func readAt(r io.ReaderAt, b []byte, at int64) error {
	_, err := r.ReadAt(b, at)
	if errors.Is(err, io.EOF) {
		return damaged("it ends early")
	}
	return err
}
