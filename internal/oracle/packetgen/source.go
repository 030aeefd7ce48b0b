// Package packetgen makes packets of every kind out of a stream of decisions,
// for fuzzing and for laws under random input. The stream is a fuzzer's bytes:
// each byte decides something, so a mutated byte changes one property of the
// packet and the fuzzer finds its way by coverage. A stream that has run out
// decides zero, and zero is always the plain choice.
//
// It knows nothing of translation: package oracle and the comparison with
// package translate judge what becomes of the packets.
package packetgen

import "encoding/binary"

// Source is a stream of decisions. It is consumed from the front.
type Source struct{ rest []byte }

// New is a source that decides by data.
func New(data []byte) *Source { return &Source{rest: data} }

// Byte is the next decision; zero when the stream has run out.
func (s *Source) Byte() byte {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return b
}

// Uint16 is a decision of two bytes.
func (s *Source) Uint16() uint16 { return uint16(s.Byte())<<8 | uint16(s.Byte()) }

// Uint32 is a decision of four bytes.
func (s *Source) Uint32() uint32 { return uint32(s.Uint16())<<16 | uint32(s.Uint16()) }

// OneIn is true in one of n cases, and never when the stream has run out.
func (s *Source) OneIn(n int) bool { return int(s.Byte())%n == n-1 }

// Below is a number from 0 to n-1, n at most 65536.
func (s *Source) Below(n int) int {
	if n <= 256 {
		return int(s.Byte()) % n
	}
	return int(s.Uint16()) % n
}

// Rest is everything that is left of the stream.
func (s *Source) Rest() []byte {
	b := s.rest
	s.rest = nil
	return b
}

// pick chooses one of the choices.
func pick[T any](s *Source, choices ...T) T { return choices[s.Below(len(choices))] }

// filler is n bytes without a visible pattern, all decided by one byte of the
// stream: contents matter for checksums only.
func filler(s *Source, n int) []byte {
	state := uint32(s.Byte()) * 2654435761
	b := make([]byte, n)
	if state == 0 {
		return b
	}
	for i := range b {
		state = state*1664525 + 1013904223
		b[i] = byte(state >> 24)
	}
	return b
}

// size is a length of contents: mostly small, often beside a limit that
// translation has, sometimes anything up to most.
func size(s *Source, most int) int {
	n := 0
	switch s.Below(8) {
	case 0, 1, 2:
		n = s.Below(64)
	case 3:
		n = s.Below(256)
	case 4, 5: // 1260, 1280, 1500 and what remains of them behind headers
		n = pick(s, 1280, 1260, 1240, 1232, 1500, 1480, 1460, 1452, 576, 548, 528, 128) - 48 + s.Below(96)
	case 6:
		n = s.Below(2048)
	case 7:
		n = pick(s, s.Below(16384), int(s.Uint16()), most-s.Below(64))
	}
	return max(0, min(n, most))
}

// checksum is the Internet checksum of the parts, each of even length but the last.
func checksum(parts ...[]byte) uint16 {
	var total uint32
	for _, b := range parts {
		for ; len(b) >= 2; b = b[2:] {
			total += uint32(binary.BigEndian.Uint16(b))
			total = total&0xffff + total>>16
		}
		if len(b) == 1 {
			total += uint32(b[0]) << 8
			total = total&0xffff + total>>16
		}
	}
	return ^uint16(total)
}
