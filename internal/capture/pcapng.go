package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"time"

	"github.com/google/gopacket"
)

// ng is draft-ietf-opsawg-pcapng: blocks of a type, a length, a body, and the
// length again. A section header says in which byte order what follows is, and
// begins the interfaces anew.
type ng struct {
	in         *bufio.Reader
	order      binary.ByteOrder
	interfaces []ngInterface
	block      []byte
	last       time.Time // of the frame before
}

// ngInterface is one that frames were captured on.
type ngInterface struct {
	link   linkType
	snap   uint32 // bytes of a frame that were kept; 0: all
	second uint64 // what timestamps count; 0: more in a second than fit
	offset int64  // seconds
}

// The types of blocks, and of options of an interface.
const (
	ngSection    = 0x0a0d0d0a
	ngDescribes  = 1 // an interface
	ngOldPacket  = 2
	ngSimple     = 3
	ngEnhanced   = 6
	ngByteOrder  = 0x1a2b3c4d
	ngEnd        = 0
	ngResolution = 9
	ngOffset     = 14

	ngBlockSize   = 12      // besides the body
	maxBlock      = 1 << 20 // of a type that is read: a frame, and options
	maxInterfaces = 4096
)

var ngMagic = []byte{0x0a, 0x0d, 0x0d, 0x0a}

func openNg(b *bufio.Reader) (*ng, error) {
	n := &ng{in: b, order: binary.LittleEndian, last: time.Unix(0, 0).UTC()}
	kind, err := n.read()
	if err != nil {
		return nil, err
	}
	return n, n.describe(kind)
}

func (n *ng) next() ([]byte, linkType, gopacket.CaptureInfo, error) {
	for {
		kind, err := n.read()
		if err != nil {
			return nil, 0, gopacket.CaptureInfo{}, err
		}
		switch kind {
		case ngOldPacket, ngSimple, ngEnhanced:
			return n.packet(kind)
		}
		if err := n.describe(kind); err != nil {
			return nil, 0, gopacket.CaptureInfo{}, err
		}
	}
}

// read reads a block into n.block, without its frame of type and lengths. What
// is in blocks of a type that nobody asks for is passed over.
func (n *ng) read() (kind uint32, err error) {
	var head [8]byte
	if _, err := io.ReadFull(n.in, head[:]); err != nil {
		return 0, err
	}
	kind = n.order.Uint32(head[:])
	if kind == ngSection { // the same in either order
		magic, err := n.in.Peek(4)
		switch {
		case err != nil:
			return 0, io.ErrUnexpectedEOF
		case binary.LittleEndian.Uint32(magic) == ngByteOrder:
			n.order = binary.LittleEndian
		case binary.BigEndian.Uint32(magic) == ngByteOrder:
			n.order = binary.BigEndian
		default:
			return 0, fmt.Errorf("byte order %x of a section", magic)
		}
	}
	size := n.order.Uint32(head[4:])
	if size < ngBlockSize || size%4 != 0 {
		return 0, fmt.Errorf("a block of %d bytes", size)
	}
	n.block = n.block[:0]
	body := int64(size) - ngBlockSize
	switch kind {
	case ngSection, ngDescribes, ngOldPacket, ngSimple, ngEnhanced:
		if size > maxBlock {
			return 0, fmt.Errorf("a block of %d bytes: expected at most %d", size, maxBlock)
		}
		if n.block, err = readN(n.in, n.block, int(body)); err != nil {
			return 0, err
		}
	default:
		if passed, err := io.CopyN(io.Discard, n.in, body); passed < body {
			return 0, errors.Join(io.ErrUnexpectedEOF, ignoreEOF(err))
		}
	}
	var again [4]byte
	if _, err := io.ReadFull(n.in, again[:]); err != nil {
		return 0, io.ErrUnexpectedEOF
	}
	if n.order.Uint32(again[:]) != size {
		return 0, fmt.Errorf("a block of %d bytes whose end says %d", size, n.order.Uint32(again[:]))
	}
	return kind, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// describe takes up what a block says of those to come.
func (n *ng) describe(kind uint32) error {
	b := n.block
	switch kind {
	case ngSection:
		if len(b) < 16 {
			return errors.New("a section header that is too short")
		}
		if major := n.order.Uint16(b[4:]); major != 1 {
			return fmt.Errorf("version %d.%d: expected 1", major, n.order.Uint16(b[6:]))
		}
		n.interfaces = n.interfaces[:0]
	case ngDescribes:
		if len(b) < 8 {
			return errors.New("an interface that is described too shortly")
		}
		if len(n.interfaces) == maxInterfaces {
			return fmt.Errorf("more than %d interfaces", maxInterfaces)
		}
		i, err := n.describes(b)
		if err != nil {
			return err
		}
		n.interfaces = append(n.interfaces, i)
	}
	return nil
}

func (n *ng) describes(b []byte) (i ngInterface, err error) {
	i = ngInterface{link: linkType(n.order.Uint16(b)), snap: n.order.Uint32(b[4:]), second: 1e6}
	for options := b[8:]; len(options) >= 4; {
		code, size := n.order.Uint16(options), int(n.order.Uint16(options[2:]))
		if code == ngEnd {
			break
		}
		padded := (size + 3) &^ 3
		if len(options) < 4+padded {
			return i, errors.New("an option of an interface that is longer than its block")
		}
		value := options[4 : 4+size]
		options = options[4+padded:]
		switch {
		case code == ngResolution && size == 1:
			i.second = resolution(value[0])
		case code == ngOffset && size == 8:
			i.offset = int64(n.order.Uint64(value))
		}
	}
	return i, nil
}

// resolution is what timestamps count in a second: by its highest bit a power of
// two, or else of ten; 0 where that does not fit.
func resolution(b byte) uint64 {
	if b&0x80 != 0 {
		return 1 << (b & 0x7f)
	}
	second := uint64(1)
	for range b {
		over, low := bits.Mul64(second, 10)
		if over != 0 {
			return 0
		}
		second = low
	}
	return second
}

// time is a timestamp as time. One that means nothing is the last there is, as
// good as any.
func (i ngInterface) time(stamp uint64) time.Time {
	if i.second == 0 { // the age of the universe would not make a second
		return time.Unix(i.offset, 0).UTC()
	}
	seconds, rest := stamp/i.second, stamp%i.second
	high, low := bits.Mul64(rest, 1e9)
	nanos, _ := bits.Div64(high, low, i.second)
	return time.Unix(int64(min(seconds, math.MaxInt64))+i.offset, int64(nanos)).UTC()
}

// packet takes a frame out of its block.
func (n *ng) packet(kind uint32) (frame []byte, link linkType, info gopacket.CaptureInfo, err error) {
	b, head := n.block, 20
	if kind == ngSimple {
		head = 4
	}
	if len(b) < head {
		return nil, 0, info, errors.New("a packet block that is too short")
	}
	var id, captured, length uint32
	var stamp uint64
	switch kind {
	case ngSimple:
		length = n.order.Uint32(b)
	case ngOldPacket:
		id = uint32(n.order.Uint16(b))
	default:
		id = n.order.Uint32(b)
	}
	if uint64(id) >= uint64(len(n.interfaces)) {
		return nil, 0, info, fmt.Errorf("interface %d: the section has %d", id, len(n.interfaces))
	}
	i := n.interfaces[id]
	if kind == ngSimple {
		captured = length
		if i.snap != 0 {
			captured = min(length, i.snap)
		}
	} else {
		stamp = uint64(n.order.Uint32(b[4:]))<<32 | uint64(n.order.Uint32(b[8:]))
		captured, length = n.order.Uint32(b[12:]), n.order.Uint32(b[16:])
	}
	if kind != ngSimple { // which has no time of its own
		n.last = i.time(stamp)
	}
	if info, err = frameInfo(n.last, captured, length); err != nil {
		return nil, 0, info, err
	}
	if len(b)-head < info.CaptureLength {
		return nil, 0, info, fmt.Errorf("%d bytes captured in a block with room for %d", captured, len(b)-head)
	}
	return b[head : head+info.CaptureLength], i.link, info, nil
}
