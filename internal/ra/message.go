package ra

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"
)

// What a PREF64 option can say of a lifetime: 13 bits of units of 8 seconds
// (RFC 8781 4).
const (
	unit        = 8 * time.Second
	MaxLifetime = (1<<13 - 1) * unit
)

// advertisement tells of a prefix, which must be one of RFC 6052, and of nothing
// else: no default router (lifetime 0, and so preference medium, RFC 4191 2.2),
// no hop limit, no addresses. A lifetime of 0 takes the prefix back.
func advertisement(prefix netip.Prefix, lifetime time.Duration) ndp.Message {
	return &ndp.RouterAdvertisement{Options: []ndp.Option{&ndp.PREF64{Prefix: prefix, Lifetime: Rounded(lifetime)}}}
}

// Rounded is a lifetime as the option can say it: rounded up, so that only 0
// becomes 0 (RFC 8781 4.1).
func Rounded(d time.Duration) time.Duration {
	return min((d+unit-1)/unit*unit, MaxLifetime)
}

// heard is a message of others: of a router, or else a solicitation.
type heard struct {
	from   netip.Addr // without zone
	router bool
	// Of a router:
	lifetime time.Duration // as default router; 0: it is none
	pref64   []*ndp.PREF64
}

// What RFC 4861 4.1, 4.2 and 4.6 lay down, and RFC 8781 4: types of messages,
// the lengths of what is before their options, and types of options.
const (
	solicitation, solicitationLen   = 133, 8
	advertised, advertisedLen       = 134, 16
	optionSource                    = 1
	optionPREF64, optionPREF64Units = 38, 2 // of 8 bytes
)

// read reads an ICMPv6 message that came with a hop limit. The kernel has
// checked its checksum. It is not ok unless it is a valid router solicitation
// or advertisement (RFC 4861 6.1): anything else is to be discarded silently.
// An option that is unknown, or not as it should be, is ignored alone (RFC 4861
// 9, RFC 8781 4), which is why the options are not read by package ndp: for it
// one such makes the message bad.
func read(b []byte, from netip.Addr, hopLimit int) (h heard, ok bool) {
	if hopLimit != ndp.HopLimit || len(b) < solicitationLen || b[1] != 0 {
		return h, false // a router forwarded it, or its code is not 0
	}
	h.from = from.WithZone("")
	options := b[solicitationLen:]
	switch {
	case b[0] == solicitation:
	case b[0] == advertised && len(b) >= advertisedLen && from.IsLinkLocalUnicast():
		h.router, options = true, b[advertisedLen:]
		h.lifetime = time.Duration(binary.BigEndian.Uint16(b[6:])) * time.Second
	default:
		return h, false
	}
	for len(options) > 0 {
		if len(options) < 2 || options[1] == 0 || len(options) < 8*int(options[1]) {
			return h, false
		}
		o := options[:8*int(options[1])]
		options = options[len(o):]
		switch o[0] {
		case optionSource:
			if !h.router && from.IsUnspecified() {
				return h, false
			}
		case optionPREF64:
			if p, ok := readPREF64(o); ok {
				h.pref64 = append(h.pref64, p)
			}
		}
	}
	return h, true
}

// readPREF64 reads a PREF64 option of RFC 8781 4, which is ignored unless ok.
func readPREF64(o []byte) (p *ndp.PREF64, ok bool) {
	bits := []int{96, 64, 56, 48, 40, 32}
	said := binary.BigEndian.Uint16(o[2:])
	code := int(said & 7)
	if o[1] != optionPREF64Units || code >= len(bits) {
		return nil, false
	}
	var a [16]byte
	copy(a[:], o[4:])
	return &ndp.PREF64{
		Prefix:   netip.PrefixFrom(netip.AddrFrom16(a), bits[code]).Masked(),
		Lifetime: time.Duration(said>>3) * unit,
	}, true
}
