package oracle

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/internal/oracle/packetgen"
)

// The figures in this file were worked out on paper from the RFCs, not taken
// from what the package prints.

var defaults = Settings{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280, ID: 0xabcd}

// unhex reads hex with spaces and, behind two slashes, words.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "//")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	require.NoError(t, err)
	return b
}

// sides is 192.0.2.1 = 2001:db8:64::c000:201 and 198.51.100.2 = 2001:db8:1::5.
func sides(f Flow, _ bool) Flow {
	pairs := [][2]netip.Addr{
		{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:64::c000:201")},
		{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::5")},
	}
	other := func(a netip.Addr) netip.Addr {
		for _, p := range pairs {
			switch a {
			case p[0]:
				return p[1]
			case p[1]:
				return p[0]
			}
		}
		panic("no other side of " + a.String())
	}
	f.Src, f.Dst = other(f.Src), other(f.Dst)
	return f
}

const (
	v4src, v4dst = "c0000201", "c6336402"
	v6src        = "20010db8006400000000 0000c0000201"
	v6dst        = "20010db8000100000000 000000000005"
)

func TestWholePackets(t *testing.T) {
	for _, c := range []struct {
		name, in, out string
		set           func(*Settings)
	}{
		{
			name: "UDP from IPv4",
			in:   "45a2001e 12344000 40113bc2" + v4src + v4dst + "0fa0 0050 000a 9b49 6869",
			out:  "6a200000 000a113f" + v6src + v6dst + "0fa0 0050 000a 69a3 6869",
		},
		{
			name: "UDP from IPv6, flow label lost, own identification, DF clear",
			in:   "6a212345 000a1140" + v6dst + v6src + "0fa0 0050 000a 69a3 6869",
			out:  "45a2001e abcd0000 3f11e328" + v4dst + v4src + "0fa0 0050 000a 9b49 6869",
		},
		{
			name: "traffic class zeroed",
			in:   "6a212345 000a1140" + v6dst + v6src + "0fa0 0050 000a 69a3 6869",
			out:  "4500001e abcd0000 3f11e3ca" + v4dst + v4src + "0fa0 0050 000a 9b49 6869",
			set:  func(s *Settings) { s.ZeroTOS = true },
		},
		{
			name: "a wrong checksum stays wrong by as much",
			in:   "4500001e 12344000 40113c64" + v4src + v4dst + "0fa0 0050 000a 9b4a 6869",
			out:  "60000000 000a113f" + v6src + v6dst + "0fa0 0050 000a 69a4 6869",
		},
		{
			name: "UDP without checksum: computed",
			in:   "4500001e 12344000 40113c64" + v4src + v4dst + "0fa0 0050 000a 0000 6869",
			out:  "60000000 000a113f" + v6src + v6dst + "0fa0 0050 000a 69a3 6869",
		},
		{
			name: "UDP checksum that comes out zero",
			in:   "4500001e 12344000 40113c64" + v4src + v4dst + "0fa0 0050 000a 31a6 d20c",
			out:  "60000000 000a113f" + v6src + v6dst + "0fa0 0050 000a ffff d20c",
		},
		{
			name: "UDP without checksum: computed, and zero",
			in:   "4500001e 12344000 40113c64" + v4src + v4dst + "0fa0 0050 000a 0000 d20c",
			out:  "60000000 000a113f" + v6src + v6dst + "0fa0 0050 000a ffff d20c",
		},
		{
			name: "echo request from IPv4: pseudo-header comes in",
			in:   "4500001c 12344000 40013c76" + v4src + v4dst + "0800e5ca 12340001",
			out:  "60000000 00083a3f" + v6src + v6dst + "80004faa 12340001",
		},
		{
			name: "echo request from IPv6: pseudo-header goes",
			in:   "60000000 00083a40" + v6dst + v6src + "80004faa 12340001",
			out:  "4500001c abcd0000 3f01e3dc" + v4dst + v4src + "0800e5ca 12340001",
		},
		{
			name: "first fragment from IPv4",
			in:   "45000024 12342000 40115c5e" + v4src + v4dst + "0fa0 0050 0100 1234 0000000000000000",
			//      checksum 1234 + (ec37 - 1dde) one's complement
			out: "60000000 00182c3f" + v6src + v6dst + "11 00 0001 00001234" + "0fa0 0050 0100 e08d 0000000000000000",
		},
		{
			name: "last fragment from IPv4: nothing of it is a header",
			in:   "45000017 123400b9 40117bb2" + v4src + v4dst + "010203",
			out:  "60000000 000b2c3f" + v6src + v6dst + "11 00 05c8 00001234" + "010203",
		},
		{
			name: "middle fragment from IPv6: low half of the identification",
			in:   "60000000 00102c40" + v6dst + v6src + "11 00 05c9 dead1234" + "0102030405060708",
			out:  "4500001c 123420b9 3f115cad" + v4dst + v4src + "0102030405060708",
		},
		{
			name: "atomic fragment: whole, with its identification and DF clear",
			in:   "60000000 00122c40" + v6dst + v6src + "11 00 0000 deadabcd" + "0fa0 0050 000a 69a3 6869",
			out:  "4500001e abcd0000 3f11e3ca" + v4dst + v4src + "0fa0 0050 000a 9b49 6869",
		},
		{
			name: "IPv4 options are forgotten, a source route that ran out among them",
			in:   "4700 0026 1234 4000 4011 ad92" + v4src + v4dst + "83 07 08 c0000201 00" + "0fa0 0050 000a 9b49 6869",
			out:  "60000000 000a113f" + v6src + v6dst + "0fa0 0050 000a 69a3 6869",
		},
		{
			name: "IPv6 extension headers are forgotten",
			in: "60000000 00220040" + v6dst + v6src + "2b00010400000000" + "3c00000000000000" + "1100010400000000" +
				"0fa0 0050 000a 69a3 6869",
			out: "4500001e abcd0000 3f11e3ca" + v4dst + v4src + "0fa0 0050 000a 9b49 6869",
		},
		{
			name: "GRE is copied",
			in:   "45000018 12344000 402f3c4c" + v4src + v4dst + "01020304",
			out:  "60000000 00042f3f" + v6src + v6dst + "01020304",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := defaults
			if c.set != nil {
				c.set(&s)
			}
			r := Translate(unhex(t, c.in), s, sides)
			require.Equal(t, Translated, r.Verdict)
			require.Len(t, r.Packets, 1)
			assert.Equal(t, hex.EncodeToString(unhex(t, c.out)), hex.EncodeToString(r.Packets[0]))
		})
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct{ verdict, in string }{
		{NotIP, ""},
		{NotIP, "50000000"},
		{Truncated, "45000014"},
		{Truncated, "6000000000001140"},
		{BadHeader, "44000014 00004000 40110000" + v4src + v4dst},
		{BadHeader, "45000013 00004000 40110000" + v4src + v4dst},
		{Truncated, "45000015 00004000 40110000" + v4src + v4dst},
		{BadIPv4Checksum, "4500001e 12344000 40113c65" + v4src + v4dst + "0fa0 0050 000a 9b49 6869"},
		{SourceRoute, "4700 0026 1234 4000 4011 b192" + v4src + v4dst + "83 07 04 c0000201 00" + "0fa0 0050 000a 9b49 6869"},
		{HopLimit, "4500001e 12344000 01117b64" + v4src + v4dst + "0fa0 0050 000a 9b49 6869"},
		{HopLimit, "60000000 000a1100" + v6dst + v6src + "0fa0 0050 000a 69a3 6869"},
		{Truncated, "60000000 00071140" + v6dst + v6src + "0fa0 0050 000a 69"},
		{Truncated, "60000000 000b1140" + v6dst + v6src + "0fa0 0050 000a 69a3 6869"},
		{Truncated, "60000000 00083c40" + v6dst + v6src + "1101000000000000"},
		{RoutingHeader, "60000000 00122b40" + v6dst + v6src + "1100000100000000" + "0fa0 0050 000a 69a3 6869"},
		{BadFragment, "60000000 00082c40" + v6dst + v6src + "11 00 05c8 dead1234"},
		{BadFragment, "60000000 000b2c40" + v6dst + v6src + "11 00 05c9 dead1234" + "010203"},
		{BadFragment, "60000000 00102c40" + v6dst + v6src + "06 00 0009 dead1234" + "0102030405060708"},
		{BadFragment, "60000000 00102c40" + v6dst + v6src + "06 00 0001 dead1234" + "0102030405060708"},
		{FragmentExtension, "60000000 00102c40" + v6dst + v6src + "3c 00 05c9 dead1234" + "0102030405060708"},
		{BadFragment, "60000000 00102c40" + v6dst + v6src + "11 00 fff8 dead1234" + "0102030405060708"},
		{ICMPFragment, "60000000 00102c40" + v6dst + v6src + "3a 00 0001 dead1234" + "0102030405060708"},
		{UDPZeroFragment, "45000024 12342000 40115c5e" + v4src + v4dst + "0fa0 0050 0100 0000 0000000000000000"},
		{ICMPType, "4500001c 12344000 40023c75" + v4src + v4dst + "11000000 00000000"},
		{ICMPType, "4500001c 12344000 40013c76" + v4src + v4dst + "0d000000 00000000"},
		{ICMPQuote, "4500001c 12344000 40013c76" + v4src + v4dst + "0b000000 00000000"},
	} {
		r := Translate(unhex(t, c.in), defaults, sides)
		assert.Equal(t, c.verdict, r.Verdict, c.in)
		assert.Empty(t, r.Packets)
	}
	s := defaults
	s.DropUDPZero = true
	r := Translate(unhex(t, "4500001e 12344000 40113c64"+v4src+v4dst+"0fa0 0050 000a 0000 6869"), s, sides)
	assert.Equal(t, UDPZeroChecksum, r.Verdict)
}

// udp6 is an IPv6 packet of size bytes.
func udp6(size int) []byte {
	b := make([]byte, size)
	b[0], b[6], b[7] = 0x60, protoUDP, 64
	binary.BigEndian.PutUint16(b[4:], uint16(size-40))
	copy(b[8:], netip.MustParseAddr("2001:db8:1::5").AsSlice())
	copy(b[24:], netip.MustParseAddr("2001:db8:64::c000:201").AsSlice())
	binary.BigEndian.PutUint16(b[44:], uint16(size-40))
	b[46] = 1
	return b
}

// udp4 is an IPv4 packet of size bytes.
func udp4(size int, flags uint16) []byte {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, protoUDP
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	binary.BigEndian.PutUint16(b[4:], 0x1234)
	binary.BigEndian.PutUint16(b[6:], flags)
	copy(b[12:], netip.MustParseAddr("192.0.2.1").AsSlice())
	copy(b[16:], netip.MustParseAddr("198.51.100.2").AsSlice())
	binary.BigEndian.PutUint16(b[24:], uint16(size-20))
	b[26] = 1
	for i := 28; i < size; i++ {
		b[i] = byte(i)
	}
	binary.BigEndian.PutUint16(b[10:], adjust(0, 0, sum(b[:20])))
	return b
}

// RFC 7915 5.1: DF is clear up to 1260 bytes and set beyond.
func TestDontFragment(t *testing.T) {
	small := Translate(udp6(1280), defaults, sides)
	large := Translate(udp6(1281), defaults, sides)
	assert.EqualValues(t, 0, small.Packets[0][6])
	assert.EqualValues(t, 0x40, large.Packets[0][6])
}

func TestTooBig(t *testing.T) {
	assert.Equal(t, Translated, Translate(udp6(1520), defaults, sides).Verdict)
	assert.Equal(t, TooBig, Translate(udp6(1521), defaults, sides).Verdict)
	assert.Equal(t, Translated, Translate(udp4(1480, 0x4000), defaults, sides).Verdict)
	assert.Equal(t, TooBig, Translate(udp4(1481, 0x4000), defaults, sides).Verdict)
	// The Fragment header takes eight bytes of it.
	assert.Equal(t, Translated, Translate(udp4(20+1448, 0x6000), defaults, sides).Verdict)
	assert.Equal(t, TooBig, Translate(udp4(20+1456, 0x6000), defaults, sides).Verdict)
}

// RFC 7915 4.1: 1232 bytes behind the IPv6 header and the Fragment header.
func TestCutToLowestMTU(t *testing.T) {
	assert.Equal(t, Translated, Translate(udp4(1260, 0), defaults, sides).Verdict)
	in := udp4(1500, 0)
	r := Translate(in, defaults, sides)
	require.Equal(t, Fragmented, r.Verdict)
	require.Len(t, r.Packets, 2)
	assert.Len(t, r.Packets[0], 1280)
	assert.Len(t, r.Packets[1], 40+8+1480-1232)
	assert.Equal(t, "1100000100001234", hex.EncodeToString(r.Packets[0][40:48]))
	assert.Equal(t, "110004d000001234", hex.EncodeToString(r.Packets[1][40:48]))
	joined := append(clone(r.Packets[0][48:]), r.Packets[1][48:]...)
	assert.Equal(t, in[28:], joined[8:])

	// The last piece needs no multiple of eight: 1240 + 1243 where 1243 are allowed.
	s := defaults
	s.LowestIPv6MTU = 1291
	r = Translate(udp4(20+1240+1243, 0), s, sides)
	require.Len(t, r.Packets, 2)
	assert.Len(t, r.Packets[0], 48+1240)
	assert.Len(t, r.Packets[1], 1291)

	// A middle fragment keeps its place and its M on every piece.
	r = Translate(udp4(20+1480, 0x2000|185), defaults, sides)
	require.Equal(t, Fragmented, r.Verdict)
	assert.Equal(t, "110005c900001234", hex.EncodeToString(r.Packets[0][40:48]))
	assert.Equal(t, "11000a9900001234", hex.EncodeToString(r.Packets[1][40:48]))
}

// RFC 7915 5.1: what leaves without DF is left to IPv4 routers to cut.
func TestIPv4MTU(t *testing.T) {
	s := defaults
	s.IPv4MTU = 576
	assert.Equal(t, Translated, Translate(udp6(1280), s, sides).Verdict)
	assert.Equal(t, TooBig, Translate(udp6(1281), s, sides).Verdict)
	fragment := udp6(1400)
	fragment[6] = protoFragment
	copy(fragment[40:], []byte{protoUDP, 0, 0x05, 0xc9, 0, 0, 0, 1})
	assert.Equal(t, Translated, Translate(fragment, s, sides).Verdict)
}

// message is an ICMP error with a valid checksum that quotes quote.
func message(version int, kind, code uint8, rest uint32, quote []byte) []byte {
	body := []byte{kind, code, 0, 0}
	body = binary.BigEndian.AppendUint32(body, rest)
	body = append(body, quote...)
	d := packet{version: version, ttl: 64, proto: protoICMP4, declared: len(body), body: body,
		src: netip.MustParseAddr("192.0.2.1"), dst: netip.MustParseAddr("198.51.100.2")}
	if version == 4 {
		binary.BigEndian.PutUint16(body[2:], adjust(0, 0, sum(body)))
		return d.build4()
	}
	d.proto = protoICMP6
	d.src, d.dst = netip.MustParseAddr("2001:db8:1::5"), netip.MustParseAddr("2001:db8:64::c000:201")
	binary.BigEndian.PutUint16(body[2:], adjust(0, 0, sum(body)+pseudo(d.src, d.dst, protoICMP6, len(body))))
	return d.build6()
}

// requireValid checks the checksums of a whole packet with an ICMP message.
func requireValid(t testing.TB, pkt []byte) {
	t.Helper()
	d, why := decode(pkt, false)
	require.Empty(t, why)
	if d.version == 4 {
		require.Zero(t, sum(d.body))
	} else {
		require.Zero(t, (sum(d.body)+pseudo(d.src, d.dst, protoICMP6, len(d.body)))%65535)
	}
}

type row struct {
	kind, code uint8
	rest       uint32
	toKind     int // -1: dropped
	toCode     uint8
	toRest     uint32
}

func checkRows(t *testing.T, version int, quote []byte, rows []row) {
	for _, r := range rows {
		t.Run(fmt.Sprintf("IPv%d/%d.%d.%x", version, r.kind, r.code, r.rest), func(t *testing.T) {
			got := Translate(message(version, r.kind, r.code, r.rest, quote), defaults, sides)
			if r.toKind < 0 {
				assert.Equal(t, ICMPType, got.Verdict)
				return
			}
			require.Equal(t, Translated, got.Verdict)
			requireValid(t, got.Packets[0])
			body := got.Packets[0][20:]
			if version == 4 {
				body = got.Packets[0][40:]
			}
			assert.EqualValues(t, r.toKind, body[0], "type")
			assert.EqualValues(t, r.toCode, body[1], "code")
			assert.Equal(t, r.toRest, binary.BigEndian.Uint32(body[4:]), "rest")
		})
	}
}

// The quotes of the tables below: UDP between the two hosts of sides.
const (
	quote4 = "4500001e 12344000 40113c64" + v4dst + v4src + "0fa0 0050 000a 9b49 6869"
	back6  = "60000000 000a1140" + v6dst + v6src + "0fa0 0050 000a 69a3 6869" // quote4, translated
	quote6 = "60000000 000a1140" + v6src + v6dst + "0fa0 0050 000a 69a3 6869"
)

func TestICMPv4Table(t *testing.T) {
	rows := []row{
		{3, 0, 0, 1, 0, 0}, {3, 1, 0, 1, 0, 0},
		{3, 2, 0, 4, 1, 6},
		{3, 3, 0, 1, 4, 0},
		{3, 5, 0, 1, 0, 0}, {3, 6, 0, 1, 0, 0}, {3, 7, 0, 1, 0, 0}, {3, 8, 0, 1, 0, 0},
		{3, 9, 0, 1, 1, 0}, {3, 10, 0, 1, 1, 0},
		{3, 11, 0, 1, 0, 0}, {3, 12, 0, 1, 0, 0},
		{3, 13, 0, 1, 1, 0},
		{3, 14, 0, -1, 0, 0},
		{3, 15, 0, 1, 1, 0},
		{3, 16, 0, -1, 0, 0},
		// minimum(mtu + 20, 1500, 1520), at least 1280
		{3, 4, 1400, 2, 0, 1420}, {3, 4, 1480, 2, 0, 1500}, {3, 4, 1481, 2, 0, 1500},
		{3, 4, 1260, 2, 0, 1280}, {3, 4, 68, 2, 0, 1280},
		{3, 4, 0, 2, 0, 1280}, // the quoted packet is small
		{11, 0, 0, 3, 0, 0}, {11, 1, 0, 3, 1, 0},
		{12, 1, 0, -1, 0, 0}, {12, 3, 0, -1, 0, 0},
		{4, 0, 0, -1, 0, 0}, {5, 0, 0, -1, 0, 0}, {6, 0, 0, -1, 0, 0}, {9, 0, 0, -1, 0, 0}, {10, 0, 0, -1, 0, 0},
		{13, 0, 0, -1, 0, 0}, {14, 0, 0, -1, 0, 0}, {15, 0, 0, -1, 0, 0}, {16, 0, 0, -1, 0, 0},
		{17, 0, 0, -1, 0, 0}, {18, 0, 0, -1, 0, 0}, {1, 0, 0, -1, 0, 0}, {128, 0, 0, -1, 0, 0},
	}
	// RFC 7915 figure 3, byte for byte of the IPv4 header.
	pointers := []int{0, 1, 4, 4, -1, -1, -1, -1, 7, 6, -1, -1, 8, 8, 8, 8, 24, 24, 24, 24, -1}
	for from, to := range pointers {
		for _, code := range []uint8{0, 2} {
			r := row{12, code, uint32(from) << 24, 4, 0, uint32(to)}
			if to < 0 {
				r.toKind = -1
			}
			rows = append(rows, r)
		}
	}
	checkRows(t, 4, unhex(t, quote4), rows)
}

func TestICMPv6Table(t *testing.T) {
	rows := []row{
		{1, 0, 0, 3, 1, 0}, {1, 1, 0, 3, 10, 0}, {1, 2, 0, 3, 1, 0}, {1, 3, 0, 3, 1, 0}, {1, 4, 0, 3, 3, 0},
		{1, 5, 0, -1, 0, 0}, {1, 6, 0, -1, 0, 0}, {1, 7, 0, -1, 0, 0},
		// minimum(mtu - 20, 1500, 1480)
		{2, 0, 1500, 3, 4, 1480}, {2, 0, 1501, 3, 4, 1480}, {2, 0, 1280, 3, 4, 1260}, {2, 0, 0xffffffff, 3, 4, 1480},
		{2, 7, 1400, 3, 4, 1380},
		{3, 0, 0, 11, 0, 0}, {3, 1, 0, 11, 1, 0},
		{4, 1, 40, 3, 2, 0}, {4, 2, 40, -1, 0, 0}, {4, 3, 0, -1, 0, 0},
		{5, 0, 0, -1, 0, 0}, {0, 0, 0, -1, 0, 0}, {127, 0, 0, -1, 0, 0},
		{130, 0, 0, -1, 0, 0}, {131, 0, 0, -1, 0, 0}, {132, 0, 0, -1, 0, 0}, {133, 0, 0, -1, 0, 0},
		{134, 0, 0, -1, 0, 0}, {135, 0, 0, -1, 0, 0}, {136, 0, 0, -1, 0, 0}, {137, 0, 0, -1, 0, 0}, {143, 0, 0, -1, 0, 0},
	}
	// RFC 7915 figure 6, byte for byte of the IPv6 header.
	pointers := map[uint32]int{0: 0, 1: 1, 2: -1, 3: -1, 4: 2, 5: 2, 6: 9, 7: 8, 40: -1, 256: -1, 1 << 24: -1}
	for p := uint32(8); p < 24; p++ {
		pointers[p] = 12
	}
	for p := uint32(24); p < 40; p++ {
		pointers[p] = 16
	}
	for from, to := range pointers {
		r := row{4, 0, from, 12, 0, uint32(to) << 24}
		if to < 0 {
			r.toKind, r.toRest = -1, 0
		}
		rows = append(rows, r)
	}
	checkRows(t, 6, unhex(t, quote6), rows)
}

// A Fragment header in the quote counts, RFC 7915 5.2.
func TestPacketTooBigAboutFragment(t *testing.T) {
	quote := "60000000 00122c40" + v6src + v6dst + "11 00 05c8 00001234" + "01020304050607080910"
	checkRows(t, 6, unhex(t, quote), []row{{2, 0, 1500, 3, 4, 1472}, {2, 0, 1280, 3, 4, 1252}})
}

// RFC 1191 7, RFC 7915 4.2: the greatest plateau below the total length.
func TestPlateaus(t *testing.T) {
	s := defaults
	s.IPv4MTU, s.IPv6MTU = 65535, 65535
	for total, want := range map[uint16]uint32{
		65535: 32020, 32001: 32020, 32000: 17934, 17914: 8186, 8167: 8186, 8166: 4372, 4352: 2022, 2003: 2022,
		2002: 1512, 1493: 1512, 1492: 1280, 1300: 1280,
	} {
		quote := unhex(t, quote4)
		binary.BigEndian.PutUint16(quote[2:], total)
		got := Translate(message(4, 3, 4, 0, quote), s, sides)
		require.Equal(t, Translated, got.Verdict)
		assert.Equal(t, want, binary.BigEndian.Uint32(got.Packets[0][44:]), "total length %d", total)
	}
}

func TestQuotes(t *testing.T) {
	// The quote is translated like the packet it was: hop limit untouched.
	got := Translate(message(4, 11, 0, 0, unhex(t, quote4)), defaults, sides)
	assert.Equal(t, hex.EncodeToString(unhex(t, back6)), hex.EncodeToString(got.Packets[0][48:]))
	got = Translate(message(6, 3, 0, 0, unhex(t, quote6)), defaults, sides)
	assert.Equal(t, hex.EncodeToString(unhex(t, "4500001e 00000000 40118e98"+v4src+v4dst+"0fa0 0050 000a 9b49 6869")),
		hex.EncodeToString(got.Packets[0][28:]))

	// Eight bytes of transport are enough, and the length it had stays.
	got = Translate(message(4, 3, 3, 0, unhex(t, quote4)[:28]), defaults, sides)
	assert.Equal(t, hex.EncodeToString(unhex(t, back6)[:48]), hex.EncodeToString(got.Packets[0][48:]))
	// Less is translated as far as it goes; half a checksum goes nowhere.
	got = Translate(message(4, 3, 3, 0, unhex(t, quote4)[:27]), defaults, sides)
	assert.Equal(t, hex.EncodeToString(unhex(t, back6)[:46])+"9b", hex.EncodeToString(got.Packets[0][48:]))
	got = Translate(message(4, 3, 3, 0, unhex(t, quote4)[:20]), defaults, sides)
	assert.Equal(t, hex.EncodeToString(unhex(t, back6)[:40]), hex.EncodeToString(got.Packets[0][48:]))
	got = Translate(message(4, 3, 3, 0, unhex(t, quote4)[:19]), defaults, sides)
	assert.Equal(t, ICMPQuote, got.Verdict)

	// A quoted echo request becomes one.
	echo4 := "4500001c 00000000 40018e99" // its checksum is not looked at
	got = Translate(message(4, 11, 0, 0, unhex(t, echo4+v4src+v4dst+"0800e5ca 12340001")), defaults, sides)
	assert.Equal(t, hex.EncodeToString(unhex(t, "60000000 00083a40"+v6src+v6dst+"80004faa 12340001")),
		hex.EncodeToString(got.Packets[0][48:]))
	// A quoted error stops it, and a quote within the quote is never looked at.
	got = Translate(message(4, 11, 0, 0, unhex(t, echo4+v4src+v4dst+"0b00e5ca 12340001")), defaults, sides)
	assert.Equal(t, ICMPQuote, got.Verdict)

	// A quoted fragment gets its Fragment header.
	got = Translate(message(4, 11, 0, 0, unhex(t, "45000017 123400b9 40117bb2"+v4src+v4dst+"010203")), defaults, sides)
	assert.Equal(t, hex.EncodeToString(unhex(t, "60000000 000b2c40"+v6src+v6dst+"11 00 05c8 00001234 010203")),
		hex.EncodeToString(got.Packets[0][48:]))
}

// RFC 4884 4, 5 and RFC 7915 4.2, 5.2: the length attribute moves, counts in
// other units and grows or shrinks with the header.
func TestExtensions(t *testing.T) {
	extension := unhex(t, "2000 dbfb 0004 0101 0000")[:8]
	padded := append(unhex(t, quote4), make([]byte, 132-30)...) // 33 words
	got := Translate(message(4, 11, 0, 33<<16, append(clone(padded), extension...)), defaults, sides)
	require.Equal(t, Translated, got.Verdict)
	body := got.Packets[0][40:]
	requireValid(t, got.Packets[0])
	assert.Equal(t, "10000000", hex.EncodeToString(body[4:8])) // 16 x 8 = 128
	assert.Len(t, body, 8+128+8)
	assert.Equal(t, extension, body[8+128:])
	assert.Equal(t, hex.EncodeToString(unhex(t, back6)), hex.EncodeToString(body[8:58]))
	assert.Equal(t, make([]byte, 128-50), body[58:8+128])

	// A full quote of 136 bytes grows by 20 to 156, padded to 160.
	full := append(unhex(t, quote4), make([]byte, 106)...)
	binary.BigEndian.PutUint16(full[2:], 500)
	got = Translate(message(4, 11, 0, 34<<16, append(clone(full), extension...)), defaults, sides)
	assert.EqualValues(t, 20, got.Packets[0][44])
	assert.Len(t, got.Packets[0], 48+160+8)

	// No room for it in Packet Too Big and Parameter Problem.
	got = Translate(message(4, 3, 4, 33<<16|1400, append(clone(padded), extension...)), defaults, sides)
	assert.Len(t, got.Packets[0], 48+50)
	got = Translate(message(4, 3, 2, 33<<16, append(clone(padded), extension...)), defaults, sides)
	assert.Len(t, got.Packets[0], 48+50)
	assert.EqualValues(t, 6, binary.BigEndian.Uint32(got.Packets[0][44:]))

	// From IPv6: 17 x 8 = 136 bytes shrink to 116, padded to 128 = 32 words.
	full = append(unhex(t, quote6), make([]byte, 136-50)...)
	binary.BigEndian.PutUint16(full[4:], 500)
	got = Translate(message(6, 1, 4, 17<<24, append(clone(full), extension...)), defaults, sides)
	assert.Equal(t, "00200000", hex.EncodeToString(got.Packets[0][24:28]))
	assert.Len(t, got.Packets[0], 28+128+8)
}

func TestErrorLimits(t *testing.T) {
	long := udp4(1500, 0)
	got := Translate(message(4, 3, 3, 0, long), defaults, sides)
	require.Equal(t, Translated, got.Verdict)
	assert.Len(t, got.Packets[0], 1280)
	requireValid(t, got.Packets[0])

	got = Translate(message(6, 1, 4, 0, udp6(1200)), defaults, sides)
	require.Equal(t, Translated, got.Verdict)
	assert.Len(t, got.Packets[0], 576)
	requireValid(t, got.Packets[0])

	// The extension survives, the quote makes room: 576 - 28 - 8 = 540 = 135 words.
	extension := unhex(t, "2000 dffb 0004 0101")
	got = Translate(message(6, 1, 4, 150<<24, append(udp6(1200), extension...)), defaults, sides)
	require.Equal(t, Translated, got.Verdict)
	assert.Len(t, got.Packets[0], 576)
	assert.EqualValues(t, 135, got.Packets[0][25])
	assert.Equal(t, extension, got.Packets[0][568:])
	requireValid(t, got.Packets[0])
}

func TestOriginate(t *testing.T) {
	from4, from6 := netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("fd00::8")
	in := unhex(t, "4500001e 12344000 01117b64"+v4src+v4dst+"0fa0 0050 000a 9b49 6869")
	got := Originate(in, HopLimit, defaults, from4)
	// The quoted IPv4 header sums to zero, its UDP to 13ad, 0b00 makes 1ead.
	assert.Equal(t, hex.EncodeToString(unhex(t, "45c0003a abcd0000 40014c2c c0000008"+v4src+"0b00e152 00000000"))+hex.EncodeToString(in),
		hex.EncodeToString(got))

	assert.Equal(t, "030405b4", func() string { // fragmentation needed, 1480 - 20 = 1460
		s := defaults
		s.IPv6MTU = 1480
		b := Originate(udp4(1500, 0x4000), TooBig, s, from4)
		assert.Len(t, b, 576)
		return hex.EncodeToString(append(b[20:22:22], b[26:28]...))
	}())
	got = Originate(udp6(1600), TooBig, defaults, from6)
	assert.Len(t, got, 1280)
	requireValid(t, got)
	assert.Equal(t, "000005f0", hex.EncodeToString(got[44:48])) // 1520
	s := defaults
	s.IPv4MTU = 576
	assert.Equal(t, "00000500", hex.EncodeToString(Originate(udp6(1600), TooBig, s, from6)[44:48]))

	routed := unhex(t, "60000000 001a3c40"+v6dst+v6src+"2b00010400000000"+"1100000100000000"+"0fa0 0050 000a 69a3 6869")
	got = Originate(routed, RoutingHeader, defaults, from6)
	assert.Equal(t, "0400", hex.EncodeToString(got[40:42]))
	assert.EqualValues(t, 40+8+3, binary.BigEndian.Uint32(got[44:]))
	requireValid(t, got)

	// RFC 7915 5.4: a source that has no IPv4 address, and all the rest.
	for verdict, want := range map[string]string{"source_unmapped": "0105", "client_not_permitted": "0105", "private_ipv4": "0101", "pool_full": "0103", "state_unavailable": "0103"} {
		assert.Equal(t, want, hex.EncodeToString(Originate(udp6(100), verdict, defaults, from6)[40:42]), verdict)
	}

	// Never about these.
	assert.Nil(t, Originate(message(4, 3, 3, 0, unhex(t, quote4)), HopLimit, defaults, from4))
	assert.Nil(t, Originate(message(6, 1, 4, 0, unhex(t, quote6)), HopLimit, defaults, from6))
	assert.Nil(t, Originate(udp4(100, 3), HopLimit, defaults, from4))
	multicast := udp6(100)
	multicast[24] = 0xff
	assert.Nil(t, Originate(multicast, HopLimit, defaults, from6))
	assert.NotNil(t, Originate(multicast, TooBig, defaults, from6))
	multicast[8] = 0xff
	assert.Nil(t, Originate(multicast, TooBig, defaults, from6))
	assert.Nil(t, Originate(in, BadFragment, defaults, from4))
}

// TestIndependent holds that the oracle is a second opinion.
func TestIndependent(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	assert.NotContains(t, strings.Fields(string(out)), "github.com/natless/natless/translate")
	assert.Contains(t, strings.Fields(string(out)), "github.com/google/gopacket/layers")
}

// embed gives any address another side.
func embed(f Flow, _ bool) Flow {
	other := func(a netip.Addr) netip.Addr {
		if a.Is4() {
			b := a.As4()
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 9, 12: b[0], 13: b[1], 14: b[2], 15: b[3]})
		}
		b := a.As16()
		return netip.AddrFrom4([4]byte{198, 18, b[14], b[15]})
	}
	f.Src, f.Dst = other(f.Src), other(f.Dst)
	return f
}

// TestSane holds of all that the generator makes: no panic, nothing leaves
// that does not hold together, valid ICMP checksums stay valid.
func TestSane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := packetgen.New(rapid.SliceOfN(rapid.Byte(), 40, 240).Draw(t, "decisions"))
		var in []byte
		if rapid.Bool().Draw(t, "six") {
			in = packetgen.IPv6(src)
		} else {
			in = packetgen.IPv4(src)
		}
		before := clone(in)
		r := Translate(in, defaults, embed)
		if string(before) != string(in) {
			t.Fatalf("the packet has been changed")
		}
		if (r.Verdict == Translated || r.Verdict == Fragmented) != (len(r.Packets) > 0) {
			t.Fatalf("%s, but %d packets", r.Verdict, len(r.Packets))
		}
		for _, out := range r.Packets {
			d, why := decode(out, false)
			if why == BadFragment && isExtension(in[9]) {
				continue // an IPv4 protocol number that IPv6 reads otherwise
			}
			if why != "" {
				t.Fatalf("%s: %x", why, out)
			}
			if d.version == int(in[0]>>4) {
				t.Fatalf("same family")
			}
		}
	})
}

// TestReach holds that random decisions make packets of which at least half
// can be read, and that every verdict comes up.
func TestReach(t *testing.T) {
	settings := defaults
	for version, build := range map[int]func(*packetgen.Source) []byte{4: packetgen.IPv4, 6: packetgen.IPv6} {
		const rounds = 20000
		rng := rand.New(rand.NewPCG(uint64(version), 1))
		verdicts, read := map[string]int{}, 0
		for range rounds {
			settings.DropUDPZero = rng.IntN(2) == 0
			decisions := make([]byte, 240)
			for i := range decisions {
				decisions[i] = byte(rng.Uint32())
			}
			in := build(packetgen.New(decisions))
			if Read(in, settings).Verdict == Translated {
				read++
			}
			verdicts[Translate(in, settings, embed).Verdict]++
		}
		t.Logf("IPv%d: %d%% read, %v", version, read*100/rounds, verdicts)
		assert.Greater(t, read*2, rounds)
		want := []string{Translated, NotIP, Truncated, BadHeader, BadFragment, HopLimit, TooBig, ICMPFragment, ICMPType, ICMPQuote}
		if version == 4 {
			want = append(want, Fragmented, BadIPv4Checksum, SourceRoute, UDPZeroChecksum, UDPZeroFragment)
		} else {
			want = append(want, RoutingHeader)
		}
		for _, v := range want {
			assert.NotZero(t, verdicts[v], v)
		}
	}
}
