package oracle

import (
	"encoding/binary"
	"fmt"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// GSO says of a packet what a virtio_net_hdr says: how the kernel is to cut
// it, and which checksum it is to complete. Numbers as <linux/virtio_net.h>
// has them.
type GSO struct {
	NeedsChecksum             bool
	ChecksumAt, ChecksumStart int // where the field is, where its coverage starts; both from the start of the packet
	Size                      int // payload of a segment; 0: not a super-packet
	UDP                       bool
}

// Segment cuts a super-packet as the kernel does, or completes the checksum of
// an ordinary one: identifications of IPv4 count up by one, TCP sequence
// numbers by what went before, FIN and PSH stand on the last segment only and
// CWR on the first only (RFC 3168 6.1.2), checksums are complete.
func Segment(pkt []byte, g GSO) [][]byte {
	if g.Size == 0 {
		out := clone(pkt)
		if g.NeedsChecksum {
			complete(out, g.ChecksumStart, g.ChecksumAt)
		}
		return [][]byte{out}
	}
	if g.UDP {
		return segment(pkt, g.Size, layers.LayerTypeUDP)
	}
	return segment(pkt, g.Size, layers.LayerTypeTCP)
}

// complete does what the hardware would: the field holds the sum of the
// pseudo-header, and gets the checksum of everything from start on.
func complete(pkt []byte, start, at int) {
	checksum := adjust(0, 0, sum(pkt[start:]))
	if checksum == 0 && at-start == 6 { // UDP; TCP may have either zero
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(pkt[at:], checksum)
}

func segment(pkt []byte, size int, transport gopacket.LayerType) [][]byte {
	first := layers.LayerTypeIPv4
	if pkt[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	parsed := gopacket.NewPacket(pkt, first, gopacket.Default)
	if parsed.Layer(transport) == nil {
		panic(fmt.Sprintf("segmenting %x: no %v in it", pkt[:min(len(pkt), 80)], transport))
	}
	payload := parsed.Layer(transport).LayerPayload()
	headers := pkt[:len(pkt)-len(payload)]
	at := len(headers) - len(parsed.Layer(transport).LayerContents())
	var out [][]byte
	for from := 0; from < len(payload); from += size {
		to := min(from+size, len(payload))
		one := append(clone(headers), payload[from:to]...)
		setIP(one, len(out))
		setTransport(one, at, transport, from, to == len(payload))
		out = append(out, one)
	}
	return out
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

func setTransport(one []byte, at int, transport gopacket.LayerType, from int, last bool) {
	d, why := decode(one, false)
	if why != "" {
		panic(fmt.Sprintf("segment %x does not hold together: %s", one[:min(len(one), 80)], why))
	}
	header := one[at:]
	field := 6
	if transport == layers.LayerTypeUDP {
		binary.BigEndian.PutUint16(header[4:], uint16(len(header)))
	} else {
		field = 16
		const fin, psh, cwr = 0x01, 0x08, 0x80
		binary.BigEndian.PutUint32(header[4:], binary.BigEndian.Uint32(header[4:])+uint32(from))
		if !last {
			header[13] &^= fin | psh
		}
		if from > 0 {
			header[13] &^= cwr
		}
	}
	header[field], header[field+1] = 0, 0
	checksum := adjust(0, 0, pseudo(d.src, d.dst, d.proto, len(header))+sum(header))
	if transport == layers.LayerTypeUDP {
		putUDPChecksum(header[field:], checksum)
	} else {
		binary.BigEndian.PutUint16(header[field:], checksum)
	}
}
