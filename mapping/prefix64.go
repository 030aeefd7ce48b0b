package mapping

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
)

// Prefix64 is an RFC 6052 prefix: IPv4 addresses stand inside the IPv6
// addresses under it. The zero value is no prefix: it embeds and extracts
// nothing.
//
// By RFC 6052 2.2 the 32 bits follow the prefix, but leave out octet 8 (the u
// octet), which is zero; what follows them is the suffix, zero as well:
//
//	length  IPv4 bits in the upper half   in the lower half
//	32      32                            0
//	40      24                            8, after the u octet
//	48      16                            16
//	56      8                             24
//	64      0                             32
//	96      0                             32, at the very end
type Prefix64 struct {
	prefix         netip.Prefix
	hi, lo         uint64 // the prefix itself
	hiMask, loMask uint64 // bits that an address under it has as hi and lo have: the prefix, and the u octet
	low            uint8  // how many of the 32 bits are in the lower half
	shift          uint8  // and how far from its right end
}

// ParsePrefix64 makes a Prefix64 of a prefix of one of the six lengths of
// RFC 6052 2.2. Bits 64 to 71 must be zero, and so must all bits behind the
// prefix.
func ParsePrefix64(p netip.Prefix) (Prefix64, error) {
	fail := func(why string) (Prefix64, error) {
		return Prefix64{}, fmt.Errorf("pref64 %v: %s", p, why)
	}
	if !p.IsValid() || !p.Addr().Is6() {
		return fail("not an IPv6 prefix")
	}
	if p != p.Masked() {
		return fail(fmt.Sprintf("bits behind the prefix are set, expected %v", p.Masked()))
	}
	for _, b := range refused6 {
		if b.Prefix.Overlaps(p) {
			return fail("overlaps " + b.Name + " " + b.Prefix.String())
		}
	}

	x := Prefix64{prefix: p, loMask: 0xff << 56}
	x.hi, x.lo = halves(p.Addr())
	switch n := p.Bits(); n {
	case 32, 40, 48, 56, 64:
		x.low = uint8(n - 32)
		x.shift = 56 - x.low
		x.hiMask = math.MaxUint64 << (64 - n)
	case 96:
		if x.lo>>56 != 0 {
			return fail("bits 64 to 71 are not zero (RFC 6052 2.2)")
		}
		x.low = 32
		x.hiMask = math.MaxUint64
		x.loMask = math.MaxUint32 << 32
	default:
		return fail("its length is none of 32, 40, 48, 56, 64 and 96 (RFC 6052 2.2)")
	}
	return x, nil
}

// IsValid reports whether p is a prefix at all.
func (p Prefix64) IsValid() bool { return p.hiMask != 0 }

// Prefix is p as a prefix, invalid if p is none.
func (p Prefix64) Prefix() netip.Prefix { return p.prefix }

// Embed is the IPv6 address that stands for a plain IPv4 address, with u
// octet and suffix zero (RFC 6052 2.3). p must be valid.
func (p Prefix64) Embed(v4 netip.Addr) netip.Addr { return p.embed(number4(v4)) }

func (p *Prefix64) embed(v4 uint32) netip.Addr {
	v := uint64(v4)
	return addr6(p.hi|v>>p.low, p.lo|(v&(1<<p.low-1))<<p.shift)
}

// Extract is the IPv4 address inside an IPv6 address, and false if the address
// is not under the prefix or its u octet is not zero. The suffix is reserved
// and ignored (RFC 6052 2.2).
func (p Prefix64) Extract(v6 netip.Addr) (netip.Addr, bool) {
	if !v6.Is6() {
		return netip.Addr{}, false
	}
	v4, ok := p.extract(halves(v6))
	if !ok {
		return netip.Addr{}, false
	}
	return addr4(v4), true
}

func (p *Prefix64) extract(hi, lo uint64) (uint32, bool) {
	if hi&p.hiMask != p.hi || lo&p.loMask != p.lo || p.hiMask == 0 {
		return 0, false
	}
	return uint32((hi&^p.hiMask)<<p.low | lo>>p.shift), true
}

// Seen is the prefix of the IPv4 addresses that an IPv6 prefix inside p stands
// for; false if it is not inside, or stands for none.
func (p *Prefix64) Seen(v6 netip.Prefix) (netip.Prefix, bool) {
	bits, n := p.prefix.Bits(), v6.Bits()
	v4, ok := p.extract(halves(v6.Addr()))
	switch {
	case !ok || n <= bits:
		return netip.Prefix{}, false
	case bits == 96 || n <= 64:
		n -= bits
	case n < 72: // in the u octet
		n = 64 - bits
	default:
		n = min(32, n-bits-8)
	}
	return netip.PrefixFrom(addr4(v4), n), true
}

// halves are the 128 bits of an IPv6 address, most significant first. AsSlice
// is inlined and stays on the stack; As16 would be copied as a whole at once
// after it is written in halves, which stalls the processor.
func halves(a netip.Addr) (hi, lo uint64) {
	b := a.AsSlice()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func addr6(hi, lo uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}

// number4 is a plain IPv4 address as a number.
func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addr4(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}
