package tun

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

func TestHeaderLayout(t *testing.T) {
	// struct virtio_net_hdr: u8 flags, gso_type; u16 hdr_len, gso_size, csum_start, csum_offset.
	var want []byte
	want = append(want, 1, 0x84)
	for _, v := range []uint16{74, 1440, 40, 16} {
		want = binary.NativeEndian.AppendUint16(want, v)
	}
	h := Header{Flags: 1, GSOType: 0x84, HdrLen: 74, GSOSize: 1440, CsumStart: 40, CsumOffset: 16}
	var got [HeaderLen]byte
	encode(&got, h)
	assert.Equal(t, want, got[:])
	assert.Equal(t, h, decode(&got))
}

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := [HeaderLen]byte(rapid.SliceOfN(rapid.Byte(), HeaderLen, HeaderLen).Draw(t, "raw"))
		var back [HeaderLen]byte
		encode(&back, decode(&raw))
		assert.Equal(t, raw, back)
	})
}
