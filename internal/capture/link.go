package capture

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// frames are the frames of a capture, of either format.
type frames struct {
	pcap *pcapgo.Reader
	ng   *pcapgo.NgReader
}

var ngMagic = []byte{0x0a, 0x0d, 0x0d, 0x0a}

func open(in io.Reader) (f frames, err error) {
	b := bufio.NewReader(in)
	if magic, _ := b.Peek(len(ngMagic)); bytes.Equal(magic, ngMagic) {
		f.ng, err = pcapgo.NewNgReader(b, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	} else if f.pcap, err = pcapgo.NewReader(b); err == nil {
		f.pcap.SetSnaplen(maxFrame) // some write larger frames than they say
	}
	if err != nil {
		return f, fmt.Errorf("it is neither pcap nor pcapng: %w", err)
	}
	return f, nil
}

// next is the next frame, valid until the one after; io.EOF at the end.
func (f *frames) next() (frame []byte, link layers.LinkType, info gopacket.CaptureInfo, err error) {
	if f.pcap != nil {
		frame, info, err = f.pcap.ZeroCopyReadPacketData()
		if err == io.EOF && info.CaptureLength > 0 {
			err = io.ErrUnexpectedEOF // behind the header of a frame
		}
		return frame, f.pcap.LinkType(), info, err
	}
	frame, info, err = f.ng.ZeroCopyReadPacketData()
	if err != nil {
		return nil, 0, info, err
	}
	return frame, info.AncillaryData[0].(layers.LinkType), info, nil
}

// Link types that gopacket has no name for. It keeps a link type in 8 bits, and
// nothing else has the low 8 of LINUX_SLL2, which is 276.
const (
	linkRaw12 layers.LinkType = 12 // RAW, as written on some systems
	linkSLL2  layers.LinkType = 276 & 0xff
)

// etherTypeAt is where in a frame of a link type the Ethernet type is, and
// where what it tells begins.
var etherTypeAt = map[layers.LinkType][2]int{
	layers.LinkTypeEthernet: {12, 14},
	layers.LinkTypeLinuxSLL: {14, 16},
	linkSLL2:                {0, 20},
}

const (
	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
	etherTypeVLAN = 0x8100
	etherTypeQinQ = 0x88a8
	vlanTag       = 4 // bytes
)

// network is the packet in a frame. known is false for a link type that is not
// known here, ip for a frame that carries no IP.
func network(frame []byte, link layers.LinkType) (packet []byte, known, ip bool) {
	switch link {
	case layers.LinkTypeRaw, linkRaw12, layers.LinkTypeIPv4, layers.LinkTypeIPv6:
		return frame, true, true
	}
	at, known := etherTypeAt[link]
	if !known || len(frame) < at[1] {
		return nil, known, false
	}
	etherType := binary.BigEndian.Uint16(frame[at[0]:])
	packet = frame[at[1]:]
	for etherType == etherTypeVLAN || etherType == etherTypeQinQ {
		if len(packet) < vlanTag {
			return nil, true, false
		}
		etherType = binary.BigEndian.Uint16(packet[2:])
		packet = packet[vlanTag:]
	}
	return packet, true, etherType == etherTypeIPv4 || etherType == etherTypeIPv6
}
