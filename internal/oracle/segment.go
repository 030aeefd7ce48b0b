package oracle

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// GSO says of a packet what a virtio_net_hdr says: which checksum the kernel
// is to complete, and how it is to cut.
type GSO struct {
	ChecksumStart int // where the checksum's coverage starts, from the start of the packet
	ChecksumAt    int // where its field is, from ChecksumStart; it holds the uninverted sum of the pseudo-header
	Size          int // payload of a segment; 0: not a super-packet
	UDP           bool
}

// Segment completes the checksum of a packet as the kernel or the hardware
// does, and cuts a super-packet before: identifications of IPv4 count up by
// one, TCP sequence numbers by what went before, FIN and PSH stand on the last
// segment only and CWR on the first only (RFC 3168 6.1.2). The sum of the
// pseudo-header is taken from the packet, so that a wrong one shows.
func Segment(pkt []byte, g GSO) [][]byte {
	d, why := decode(pkt, false)
	if why != "" {
		panic(fmt.Sprintf("segmenting %x: %s", pkt[:min(len(pkt), 80)], why))
	}
	start := pkt[g.ChecksumStart:]
	partial := int(binary.BigEndian.Uint16(start[g.ChecksumAt:]))
	if g.Size == 0 {
		out := clone(pkt)
		complete(out[g.ChecksumStart:], d.proto, g.ChecksumAt, partial)
		return [][]byte{out}
	}
	layer, first := layers.LayerTypeTCP, layers.LayerTypeIPv4
	if g.UDP {
		layer = layers.LayerTypeUDP
	}
	if pkt[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	parsed := gopacket.NewPacket(pkt, first, gopacket.Default).Layer(layer)
	if parsed == nil {
		panic(fmt.Sprintf("segmenting %x: no %v in it", pkt[:min(len(pkt), 80)], layer))
	}
	payload := parsed.LayerPayload()
	headers := pkt[:len(pkt)-len(payload)]
	at := len(headers) - len(parsed.LayerContents())
	var out [][]byte
	for from := 0; from < len(payload); from += g.Size {
		to := min(from+g.Size, len(payload))
		one := append(clone(headers), payload[from:to]...)
		setIP(one, len(out))
		if g.UDP {
			binary.BigEndian.PutUint16(one[at+4:], uint16(len(one)-at))
		} else {
			setTCP(one[at:], from, to == len(payload))
		}
		// The pseudo-header has the length in it.
		complete(one[at:], d.proto, g.ChecksumAt, (partial+65535-len(start)+len(one)-at)%65535)
		out = append(out, one)
	}
	return out
}

// complete writes the checksum of b at offset at; pseudo is the sum of its
// pseudo-header.
func complete(b []byte, proto uint8, at, pseudo int) {
	b[at], b[at+1] = 0, 0
	checksum := adjust(0, 0, sum(b)+pseudo%65535)
	if pseudo == 0 && len(bytes.Trim(b, "\x00")) == 0 {
		checksum = 0xffff // the one sum that is zero and not 65535: of nothing but zeros
	}
	if proto == protoUDP || proto == protoUDPLite {
		putUDPChecksum(b[at:], checksum)
	} else {
		binary.BigEndian.PutUint16(b[at:], checksum)
	}
}

func setIP(one []byte, index int) {
	if one[0]>>4 == 6 {
		binary.BigEndian.PutUint16(one[4:], uint16(len(one)-40))
		return
	}
	binary.BigEndian.PutUint16(one[2:], uint16(len(one)))
	binary.BigEndian.PutUint16(one[4:], binary.BigEndian.Uint16(one[4:])+uint16(index))
	headerLen := int(one[0]&15) * 4
	one[10], one[11] = 0, 0
	binary.BigEndian.PutUint16(one[10:], adjust(0, 0, sum(one[:headerLen])))
}

func setTCP(header []byte, from int, last bool) {
	const fin, psh, cwr = 0x01, 0x08, 0x80
	binary.BigEndian.PutUint32(header[4:], binary.BigEndian.Uint32(header[4:])+uint32(from))
	if !last {
		header[13] &^= fin | psh
	}
	if from > 0 {
		header[13] &^= cwr
	}
}
