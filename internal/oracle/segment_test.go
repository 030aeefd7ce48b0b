package oracle

import (
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Three segments of two bytes, the figures worked out on paper.
func TestSegmentTCP(t *testing.T) {
	// Addresses sum to ec37; TCP of 25 bytes: partial ec37 + 6 + 19 = ec56.
	in := unhex(t, "4500002d ffff4000 40064e94"+v4src+v4dst+
		"0fa0 0050 fffffffe 00000000 50 99 1000 ec56 0000"+"0102030405")
	got := Segment(in, GSO{ChecksumStart: 20, ChecksumAt: 16, Size: 2})
	require.Len(t, got, 3)
	for i, want := range []string{
		"4500002a ffff4000 40064e97" + v4src + v4dst + "0fa0 0050 fffffffe 00000000 5090 1000 a22a 0000 0102",
		"4500002a 00004000 40064e97" + v4src + v4dst + "0fa0 0050 00000000 00000000 5010 1000 a0a7 0000 0304",
		"45000029 00014000 40064e97" + v4src + v4dst + "0fa0 0050 00000002 00000000 5019 1000 9ea1 0000 05",
	} {
		assert.Equal(t, hex.EncodeToString(unhex(t, want)), hex.EncodeToString(got[i]), "segment %d", i)
	}
}

func TestSegmentUDP(t *testing.T) {
	// Partial: addresses of sides in IPv6 sum to 1dde, 11 for UDP, 000b for the length.
	in := unhex(t, "60000000 000b1140"+v6src+v6dst+"0fa0 0050 000b 1dfa"+"686968")
	got := Segment(in, GSO{ChecksumStart: 40, ChecksumAt: 6, Size: 2, UDP: true})
	require.Len(t, got, 2)
	assert.Equal(t, hex.EncodeToString(unhex(t, "60000000 000a1140"+v6src+v6dst+"0fa0 0050 000a 69a3 6869")), hex.EncodeToString(got[0]))
	// 1dde + 11 + 9 + 0fa0 + 0050 + 0009 + 6800 = 95f1
	assert.Equal(t, hex.EncodeToString(unhex(t, "60000000 00091140"+v6src+v6dst+"0fa0 0050 0009 6a0e 68")), hex.EncodeToString(got[1]))
}

func TestCompleteChecksum(t *testing.T) {
	in := unhex(t, "60000000 000a1140"+v6src+v6dst+"0fa0 0050 000a 1df9 6869")
	got := Segment(in, GSO{ChecksumStart: 40, ChecksumAt: 6})
	assert.EqualValues(t, 0x69a3, binary.BigEndian.Uint16(got[0][46:]))
}
