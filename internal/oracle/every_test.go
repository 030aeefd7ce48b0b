package oracle_test

import (
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/oracle"
)

// Packets between 192.0.2.1 and 198.51.100.2, and between 2001:db8:64::c000:201
// and 2001:db8:1::5, whose checksums the tests overwrite.
const (
	every4 = "c0000201c6336402"
	every6 = "20010db80064000000000000c0000201" + "20010db8000100000000000000000005"

	udp4   = "4500001e1234400040113c64" + every4 + "0fa00050000a9b496869"
	udp6   = "60000000000a1140" + every6 + "0fa00050000a69a36869"
	error4 = "4500003a1234400040013c58" + every4 + "0b00000000000000" + udp4
	error6 = "60000000003a3a40" + every6 + "0300000000000000" + udp6
)

// everyValue compares both translators over packet with each of the 65536
// values at offset at.
func everyValue(t *testing.T, packet string, at int) {
	b, err := hex.DecodeString(packet)
	require.NoError(t, err)
	step := 1
	if testing.Short() {
		step = 251
	}
	sc := scene{settings: oracle.Settings{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280, ID: 7}, packet: b}
	for v := 0; v < 65536; v += step {
		binary.BigEndian.PutUint16(b[at:], uint16(v))
		sc.compare(t)
	}
}

// One in 65536 UDP packets gets a checksum of zero by translation.
func TestEveryUDPChecksum(t *testing.T) {
	everyValue(t, udp4, 26)
	everyValue(t, udp6, 46)
	everyValue(t, error4, 20+8+26)
	everyValue(t, error6, 40+8+46)
}

func TestEveryICMPTypeAndCode(t *testing.T) {
	everyValue(t, error4, 20)
	everyValue(t, error6, 40)
}

// The word behind the checksum is the length attribute of ICMPv4 and half the
// pointer, or half the MTU of ICMPv6; the next is MTU, pointer or nothing.
func TestEveryMTU(t *testing.T) {
	everyValue(t, error4[:40]+"0304"+error4[44:], 26)
	everyValue(t, error6[:80]+"0200"+error6[84:], 46)
	everyValue(t, error4[:40]+"0c00"+error4[44:], 24)
	everyValue(t, error6[:80]+"0400"+error6[84:], 46)
}
