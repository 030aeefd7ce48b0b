package tun

import "encoding/binary"

// HeaderLen is the size of the legacy virtio_net_hdr that the kernel puts in
// front of every packet. A buffer given to Queue.Read or Queue.Write needs as
// many bytes before the packet.
const HeaderLen = 10

// Header is what the kernel says of a packet beside its bytes, and is told on
// writing: the fields of struct virtio_net_hdr in host byte order, with its
// constants (<linux/virtio_net.h>). Offsets count from the start of the
// packet. The zero Header is a packet of its own with a complete checksum.
type Header struct {
	Flags, GSOType uint8
	HdrLen         uint16 // all headers; a hint of the kernel, wrong for some forwarded packets
	GSOSize        uint16 // payload bytes per segment
	CsumStart      uint16 // where the checksummed part begins
	CsumOffset     uint16 // where the checksum is, from CsumStart
}

// decode reads a header in the byte order of the machine, which is what the
// legacy header has on a device whose TUNSETVNETLE and TUNSETVNETBE are off.
func decode(b *[HeaderLen]byte) Header {
	return Header{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     binary.NativeEndian.Uint16(b[2:4]),
		GSOSize:    binary.NativeEndian.Uint16(b[4:6]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:8]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:10]),
	}
}

// encode is the inverse of decode.
func encode(b *[HeaderLen]byte, h Header) {
	b[0], b[1] = h.Flags, h.GSOType
	binary.NativeEndian.PutUint16(b[2:4], h.HdrLen)
	binary.NativeEndian.PutUint16(b[4:6], h.GSOSize)
	binary.NativeEndian.PutUint16(b[6:8], h.CsumStart)
	binary.NativeEndian.PutUint16(b[8:10], h.CsumOffset)
}
