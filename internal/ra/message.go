package ra

import (
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

// read reads an ICMPv6 message that came with a hop limit. The kernel has
// checked its checksum. It is not ok unless it is a valid router solicitation
// or advertisement (RFC 4861 6.1): anything else is to be discarded silently.
func read(b []byte, from netip.Addr, hopLimit int) (h heard, ok bool) {
	if hopLimit != ndp.HopLimit || len(b) < 4 || b[1] != 0 {
		return h, false // a router forwarded it, or its code is not 0
	}
	m, err := ndp.ParseMessage(b)
	if err != nil {
		return h, false
	}
	h.from = from.WithZone("")
	switch m := m.(type) {
	case *ndp.RouterSolicitation:
		return h, !from.IsUnspecified() || !hasSource(m.Options)
	case *ndp.RouterAdvertisement:
		h.router, h.lifetime = true, m.RouterLifetime
		for _, o := range m.Options {
			if p, ok := o.(*ndp.PREF64); ok {
				h.pref64 = append(h.pref64, p)
			}
		}
		return h, from.IsLinkLocalUnicast()
	}
	return h, false
}

// hasSource reports whether the sender told its link-layer address.
func hasSource(options []ndp.Option) bool {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Source {
			return true
		}
	}
	return false
}
