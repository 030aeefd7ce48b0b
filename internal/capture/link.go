package capture

import (
	"encoding/binary"
	"math"
	"strconv"

	"github.com/google/gopacket/layers"
)

// linkType is what frames begin with, by the list of tcpdump.org/linktypes.html.
// The type of gopacket has half the bits.
type linkType uint16

const (
	linkEthernet linkType = 1
	linkRaw12    linkType = 12 // RAW, as written on some systems
	linkRaw      linkType = 101
	linkSLL      linkType = 113 // Linux cooked
	linkIPv4     linkType = 228
	linkIPv6     linkType = 229
	linkSLL2     linkType = 276
)

func (l linkType) String() string {
	if l > math.MaxUint8 {
		return strconv.Itoa(int(l))
	}
	return layers.LinkType(l).String()
}

// etherTypeAt is where in a frame of a link type the Ethernet type is, and
// where what it tells begins.
var etherTypeAt = map[linkType][2]int{
	linkEthernet: {12, 14},
	linkSLL:      {14, 16},
	linkSLL2:     {0, 20},
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
func network(frame []byte, link linkType) (packet []byte, known, ip bool) {
	switch link {
	case linkRaw, linkRaw12, linkIPv4, linkIPv6:
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
