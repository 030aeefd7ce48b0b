package translate

import (
	"encoding/binary"
	"testing"
)

// What a fuzz input is made of beside the packet: repairs that let a mutated
// packet past the parser, and settings.
const (
	repairVersion = 1 << iota
	repairLengths
	repairHeaderChecksum
	repairTransportLength
	repairTransportChecksum
	dropUDPZero
	zeroTOS
	movePorts
)

const repairAll = repairVersion | repairLengths | repairHeaderChecksum | repairTransportLength | repairTransportChecksum

// fuzzTrial builds a trial of the family v6 says from a fuzz input.
func fuzzTrial(v6 bool, b []byte, bits, flags, gsoType byte, gsoSize, mtu4, mtu6, lowest uint16) trial {
	c := trial{of: Offload{Flags: flags, GSOType: gsoType, GSOSize: gsoSize, CsumStart: gsoSize, HdrLen: mtu4}}
	c.o = Options{IPv4MTU: max(minIPv4MTU, int(mtu4)), IPv6MTU: int(mtu6), LowestIPv6MTU: int(lowest),
		DropUDPZero: bits&dropUDPZero != 0, ZeroTOS: bits&zeroTOS != 0}
	if bits&movePorts != 0 {
		c.shift = lowest
	}
	c.b = repaired(append([]byte{}, b[:min(len(b), 70000)]...), v6, bits)
	return c
}

// repaired sets right in b what bits say, as far as it is there.
func repaired(b []byte, v6 bool, bits byte) []byte {
	if len(b) == 0 {
		return b
	}
	if bits&repairVersion != 0 {
		b[0] = b[0]&15 | 4<<4
		if v6 {
			b[0] = b[0]&15 | 6<<4
		}
	}
	switch {
	case b[0]>>4 == 4 && len(b) >= 20:
		ihl := int(b[0]&15) * 4
		if bits&repairLengths != 0 && len(b) <= 65535 {
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		}
		if ihl < 20 || ihl > len(b) {
			return b
		}
		if bits&repairHeaderChecksum != 0 {
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:ihl]))
		}
		return repairTransport(b, ihl, b[9], binary.BigEndian.Uint16(b[6:])&0x3fff != 0, bits)
	case b[0]>>4 == 6 && len(b) >= 40:
		if bits&repairLengths != 0 && len(b) <= 40+65535 {
			binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		}
		return repairTransport(b, 40, b[6], false, bits)
	}
	return b
}

func repairTransport(b []byte, at int, proto byte, fragment bool, bits byte) []byte {
	n := len(b) - at
	if fragment || n < 8 {
		return b
	}
	if proto == 17 && bits&repairTransportLength != 0 {
		binary.BigEndian.PutUint16(b[at+4:], uint16(n))
	}
	if off := slowChecksumAt(proto); off >= 0 && n >= off+2 && bits&repairTransportChecksum != 0 {
		return sealed(b)
	}
	return b
}

// addSeeds gives f the vectors of the family v6 says as seeds.
func addSeeds(f *testing.F, v6 bool) {
	for _, v := range readVectors(f) {
		if v.in[0]>>4 == 6 != v6 {
			continue
		}
		bits := byte(0)
		if v.options.DropUDPZero {
			bits |= dropUDPZero
		}
		if v.options.ZeroTOS {
			bits |= zeroTOS
		}
		o := v.options
		f.Add(v.in, bits, v.offload.Flags, v.offload.GSOType, v.offload.GSOSize, uint16(o.IPv4MTU), uint16(o.IPv6MTU), uint16(o.LowestIPv6MTU))
		f.Add(v.in, bits|repairAll|movePorts, v.offload.Flags, v.offload.GSOType, v.offload.GSOSize, uint16(o.IPv4MTU), uint16(o.IPv6MTU), uint16(o.LowestIPv6MTU))
	}
}

// FuzzTranslate6to4 holds any bytes that may come from the IPv6 side against
// the laws of trial: no panic, no read past the packet, no size beyond what is
// allowed, no checksum repaired or broken, a result that can be parsed.
func FuzzTranslate6to4(f *testing.F) {
	addSeeds(f, true)
	f.Fuzz(func(t *testing.T, b []byte, bits, flags, gsoType byte, gsoSize, mtu4, mtu6, lowest uint16) {
		fuzzTrial(true, b, bits, flags, gsoType, gsoSize, mtu4, mtu6, lowest).check(t)
	})
}

// FuzzTranslate4to6 is the same for the IPv4 side.
func FuzzTranslate4to6(f *testing.F) {
	addSeeds(f, false)
	f.Fuzz(func(t *testing.T, b []byte, bits, flags, gsoType byte, gsoSize, mtu4, mtu6, lowest uint16) {
		fuzzTrial(false, b, bits, flags, gsoType, gsoSize, mtu4, mtu6, lowest).check(t)
	})
}
