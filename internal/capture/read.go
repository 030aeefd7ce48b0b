package capture

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/google/gopacket"
)

// The files are read here and not by gopacket, whose readers divide by what a
// file says, allocate as much as it says, and read on behind the end of a block.

// frames are the frames of a capture. Whatever is in the file, next takes no
// more memory than maxBlock, and ends with the file.
type frames interface {
	// next is the next frame, valid until the one after; io.EOF at the end.
	next() (frame []byte, link linkType, info gopacket.CaptureInfo, err error)
}

// open tells the formats apart by their first bytes.
func open(in io.Reader) (f frames, err error) {
	b := bufio.NewReader(in)
	if magic, _ := b.Peek(4); bytes.Equal(magic, ngMagic) {
		f, err = openNg(b)
	} else {
		f, err = openPcap(b)
	}
	if err != nil {
		return nil, fmt.Errorf("it is neither pcap nor pcapng: %w", err)
	}
	return f, nil
}

// classic is pcap, draft-ietf-opsawg-pcap: a header of 24 bytes, and one of 16 before
// each frame.
type classic struct {
	in     io.Reader
	order  binary.ByteOrder
	second uint32 // what the fraction of a timestamp counts
	link   linkType
	frame  []byte
}

const (
	pcapMicro, pcapNano = 0xa1b2c3d4, 0xa1b23c4d
	pcapMajor           = 2
	pcapMinor           = 4
)

func openPcap(b *bufio.Reader) (*classic, error) {
	p := &classic{in: b}
	if magic, _ := b.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, err
		}
		p.in = z
	}
	var h [24]byte
	if _, err := io.ReadFull(p.in, h[:]); err != nil {
		return nil, err
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(h[:]) {
		case pcapMicro:
			p.order, p.second = order, 1e6
		case pcapNano:
			p.order, p.second = order, 1e9
		}
	}
	if p.order == nil {
		return nil, fmt.Errorf("unknown magic %x", h[:4])
	}
	if major, minor := p.order.Uint16(h[4:]), p.order.Uint16(h[6:]); major != pcapMajor || minor != pcapMinor {
		return nil, fmt.Errorf("version %d.%d: expected %d.%d", major, minor, pcapMajor, pcapMinor)
	}
	p.link = linkType(p.order.Uint32(h[20:])) // above it are flags
	return p, nil
}

func (p *classic) next() ([]byte, linkType, gopacket.CaptureInfo, error) {
	var h [16]byte
	if _, err := io.ReadFull(p.in, h[:]); err != nil {
		return nil, 0, gopacket.CaptureInfo{}, err
	}
	fraction := uint64(p.order.Uint32(h[4:])) * uint64(1e9/p.second)
	info, err := frameInfo(time.Unix(int64(p.order.Uint32(h[:])), int64(fraction)).UTC(), p.order.Uint32(h[8:]), p.order.Uint32(h[12:]))
	if err != nil {
		return nil, 0, info, err
	}
	if p.frame, err = readN(p.in, p.frame, info.CaptureLength); err != nil {
		return nil, 0, info, err
	}
	return p.frame, p.link, info, nil
}

// frameInfo checks what a file says of a frame.
func frameInfo(at time.Time, captured, length uint32) (info gopacket.CaptureInfo, err error) {
	switch {
	case captured > maxFrame: // some write larger ones than the snap length in the header
		err = fmt.Errorf("%d bytes: expected at most %d", captured, maxFrame)
	case captured > length:
		err = fmt.Errorf("%d bytes captured of a frame of %d", captured, length)
	case length > math.MaxInt32:
		err = fmt.Errorf("a frame of %d bytes", length)
	default:
		info = gopacket.CaptureInfo{Timestamp: at, CaptureLength: int(captured), Length: int(length)}
	}
	return info, err
}

// readN reads n bytes, into b where there is room. That the file ends before
// them is unexpected.
func readN(in io.Reader, b []byte, n int) ([]byte, error) {
	if cap(b) < n {
		b = make([]byte, n)
	}
	_, err := io.ReadFull(in, b[:n])
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b[:n], err
}
