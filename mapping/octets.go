package mapping

import "net/netip"

// octets is a set of first octets of IPv4 addresses.
type octets [4]uint64

func (o *octets) has(v4 uint32) bool { return o[v4>>30]>>(v4>>24&63)&1 != 0 }

// octetCounts is how many prefixes reach into each first octet.
type octetCounts [256]uint32

func (c *octetCounts) change(p netip.Prefix, by int) {
	first := number4(p.Addr()) >> 24
	for i := range uint32(1) << max(0, 8-p.Bits()) {
		c[first+i] += uint32(by)
	}
}

func (c *octetCounts) set() (o octets) {
	for i, n := range c {
		if n > 0 {
			o[i>>6] |= 1 << (i & 63)
		}
	}
	return o
}
