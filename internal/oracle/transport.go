package oracle

import (
	"encoding/binary"
	"net/netip"
)

// sum is the Internet checksum's sum of b as a number modulo 65535, an odd
// last byte padded with zero (RFC 1071). A correct IPv4 header has sum 0.
func sum(b []byte) int {
	total := 0
	for i, v := range b {
		if i%2 == 0 {
			total += int(v) << 8
		} else {
			total += int(v)
		}
	}
	return total % 65535
}

// pseudo is the sum of a pseudo-header (RFC 768, RFC 8200 8.1).
func pseudo(src, dst netip.Addr, proto uint8, length int) int {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	b = append(b, 0, 0, 0, proto)
	return sum(b)
}

// adjust is a checksum after what it covers has changed from a sum of before
// to a sum of after: right if it was right, wrong if it was wrong.
func adjust(checksum uint16, before, after int) uint16 {
	return uint16((int(checksum) + before - after + 2*65535) % 65535)
}

// transportHeader is how much of a transport header has to be there.
func (d packet) transportHeader() int {
	switch d.proto {
	case protoTCP:
		return 20
	case protoUDP, protoUDPLite:
		return 8
	case protoDCCP, protoSCTP:
		return 12
	}
	if d.isICMP() {
		return 8
	}
	return 0
}

// checksumAt is where the checksum that covers a pseudo-header is, or -1.
func (d packet) checksumAt() int {
	switch d.proto {
	case protoTCP:
		return 16
	case protoUDP, protoUDPLite, protoDCCP:
		return 6
	}
	return -1
}

func (d packet) hasPorts() bool {
	switch d.proto {
	case protoTCP, protoUDP, protoUDPLite, protoDCCP, protoSCTP:
		return len(d.body) >= 4
	}
	return false
}

func (d packet) flow() Flow {
	f := Flow{Src: d.src, Dst: d.dst, Proto: d.proto, Frag: d.part()}
	switch {
	case f.Frag == Later:
	case d.hasPorts():
		f.SrcPort = binary.BigEndian.Uint16(d.body)
		f.DstPort = binary.BigEndian.Uint16(d.body[2:])
	case d.isICMP() && !d.isICMPError():
		f.SrcPort = binary.BigEndian.Uint16(d.body[4:])
		f.DstPort = f.SrcPort
	}
	return f
}

// checkUDP looks at the length (RFC 768) and for a missing checksum
// (RFC 7915 4.5).
func (d packet) checkUDP(s Settings) string {
	length := int(binary.BigEndian.Uint16(d.body[4:]))
	if length < 8 {
		return BadHeader
	}
	if d.part() == Whole && length > len(d.body) {
		return Truncated
	}
	if d.version == 6 || binary.BigEndian.Uint16(d.body[6:]) != 0 {
		return ""
	}
	if s.KeepUDPZero { // RFC 6936
		return ""
	}
	if d.part() == First {
		return UDPZeroFragment
	}
	if s.DropUDPZero {
		return UDPZeroChecksum
	}
	return ""
}

// translateTransport turns the transport header for the flow to, in a packet
// or in a quote that may end early.
func (d packet) translateTransport(s Settings, to Flow, quoted bool) []byte {
	body := clone(d.body)
	if d.isICMP() {
		return d.translateEcho(body, to)
	}
	if d.hasPorts() {
		binary.BigEndian.PutUint16(body, to.SrcPort)
		binary.BigEndian.PutUint16(body[2:], to.DstPort)
		if d.proto == protoSCTP && !quoted {
			d.adjustCRC(body)
		}
	}
	at := d.checksumAt()
	if at < 0 || len(body) < at+2 {
		return body
	}
	old := binary.BigEndian.Uint16(body[at:])
	if d.proto == protoUDP && old == 0 {
		if d.version == 4 && !quoted && !s.KeepUDPZero {
			length := int(binary.BigEndian.Uint16(body[4:]))
			putUDPChecksum(body[at:], adjust(0, 0, pseudo(to.Src, to.Dst, protoUDP, length)+sum(body[:length])))
		}
		return body
	}
	if d.proto == protoUDPLite && old == 0 {
		return body // never right (RFC 3828 3.1), and it stays so
	}
	// Length and protocol of the pseudo-header are the same in both families.
	before := pseudo(d.src, d.dst, 0, 0) + sum(d.body[:4])
	after := pseudo(to.Src, to.Dst, 0, 0) + sum(body[:4])
	checksum := adjust(old, before, after)
	if d.proto == protoUDP || d.proto == protoUDPLite {
		putUDPChecksum(body[at:], checksum)
	} else {
		binary.BigEndian.PutUint16(body[at:], checksum)
	}
	return body
}

// adjustCRC makes the CRC of SCTP (RFC 9260 6.8, appendix A) as wrong as it was:
// by the bits that differ from the right one.
func (d packet) adjustCRC(body []byte) {
	wrong := binary.LittleEndian.Uint32(d.body[8:]) ^ crc(d.body)
	binary.LittleEndian.PutUint32(body[8:], crc(body)^wrong)
}

// crc is the CRC32c of a packet of SCTP, whose own field counts as zero, bit by
// bit.
func crc(b []byte) uint32 {
	register := ^uint32(0)
	for i, v := range b {
		if i >= 8 && i < 12 {
			v = 0
		}
		register ^= uint32(v)
		for range 8 {
			low := register & 1
			register >>= 1
			if low == 1 {
				register ^= 0x82f63b78
			}
		}
	}
	return ^register
}

// putUDPChecksum writes zero as all ones (RFC 768, RFC 3828 3.1).
func putUDPChecksum(b []byte, checksum uint16) {
	if checksum == 0 {
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(b, checksum)
}
