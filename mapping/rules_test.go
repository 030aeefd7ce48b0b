package mapping

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/translate"
)

// rules are "Which address means what" of the contract, one after the other,
// by linear search: what the tries with their longest match must come to.
type rules struct {
	Config
	pref64 Prefix64
	leases []Lease
}

func (r *rules) refused4(a netip.Addr) bool {
	return slices.ContainsFunc(refused4, func(b block) bool {
		return b.prefix.Contains(a) &&
			!slices.ContainsFunc(r.Maps, func(m Map) bool { return m.IPv4.Contains(a) && m.IPv4.Bits() >= b.prefix.Bits() }) &&
			!slices.ContainsFunc(r.Pools, func(p Pool) bool { return p.IPv4.Contains(a) && p.IPv4.Bits() >= b.prefix.Bits() })
	})
}

func (r *rules) refused6(a netip.Addr) bool {
	return slices.ContainsFunc(refused6, func(b block) bool {
		return b.prefix.Contains(a) &&
			!slices.ContainsFunc(r.Maps, func(m Map) bool { return m.IPv6.Contains(a) && m.IPv6.Bits() >= b.prefix.Bits() })
	})
}

// private reports whether pref64 must not stand before a.
func (r *rules) private(a netip.Addr) bool {
	return !r.AllowPrivate && slices.ContainsFunc(private4, func(b block) bool { return b.prefix.Contains(a) })
}

func (r *rules) pool(a netip.Addr) bool {
	return slices.ContainsFunc(r.Pools, func(p Pool) bool { return p.IPv4.Contains(a) })
}

// map4 is the map with the longest IPv4 prefix over a. A map that is wider
// than a refused block does not reach into it.
func (r *rules) map4(a netip.Addr) (best *Map) {
	for i, m := range r.Maps {
		if reaches(m.IPv4, a, refused4) && (best == nil || m.IPv4.Bits() > best.IPv4.Bits()) {
			best = &r.Maps[i]
		}
	}
	return best
}

func (r *rules) map6(a netip.Addr) (best *Map) {
	for i, m := range r.Maps {
		if reaches(m.IPv6, a, refused6) && (best == nil || m.IPv6.Bits() > best.IPv6.Bits()) {
			best = &r.Maps[i]
		}
	}
	return best
}

func reaches(p netip.Prefix, a netip.Addr, refused []block) bool {
	return p.Contains(a) && !slices.ContainsFunc(refused, func(b block) bool { return b.prefix.Contains(a) && b.prefix.Bits() > p.Bits() })
}

func (r *rules) lease(a netip.Addr) *Lease {
	for i, l := range r.leases {
		if l.IPv4 == a || l.IPv6 == a {
			return &r.leases[i]
		}
	}
	return nil
}

func (r *rules) to4(src, dst netip.Addr) (netip.Addr, netip.Addr, translate.Verdict) {
	if src == r.OwnIPv6 || r.refused6(src) || r.pref64.IsValid() && r.pref64.Prefix().Contains(src) {
		return src, dst, translate.SourceRefused
	}
	verdict := translate.OK
	if v4, ok := r.pref64.Extract(dst); ok {
		dst = v4
		mapped := r.map4(v4) != nil || r.lease(v4) != nil
		switch {
		case v4 == r.OwnIPv4:
			return src, dst, translate.OwnAddress
		case r.refused4(v4):
			return src, dst, translate.DestinationRefused
		case (mapped || r.pool(v4)) && !r.Hairpin:
			return src, dst, translate.HairpinOff
		case mapped:
			verdict = translate.Hairpin
		case r.pool(v4):
			return src, dst, translate.DestinationUnmapped
		case r.private(v4):
			return src, dst, translate.PrivateIPv4
		}
	} else {
		m := r.map6(dst)
		switch {
		case dst == r.OwnIPv6:
			return src, dst, translate.OwnAddress
		case r.refused6(dst):
			return src, dst, translate.DestinationRefused
		case m == nil:
			return src, dst, translate.DestinationUnmapped
		}
		dst = slowTo4(dst, m.IPv4, m.IPv6)
	}
	if m := r.map6(src); m != nil {
		return slowTo4(src, m.IPv4, m.IPv6), dst, verdict
	}
	if l := r.lease(src); l != nil {
		return l.IPv4, dst, verdict
	}
	for _, p := range r.Pools {
		if slices.ContainsFunc(p.Clients, func(c netip.Prefix) bool { return c.Contains(src) }) {
			return src, dst, translate.SourceUnmapped
		}
	}
	return src, dst, translate.ClientNotPermitted
}

func (r *rules) to6(src, dst netip.Addr) (netip.Addr, netip.Addr, translate.Verdict) {
	m := r.map4(src)
	switch {
	case src == r.OwnIPv4 || r.refused4(src):
		return src, dst, translate.SourceRefused
	case m != nil:
		src = slowTo6(src, m.IPv4, m.IPv6)
	case dst == r.OwnIPv4:
		return src, dst, translate.OwnAddress
	case !r.pref64.IsValid():
		return src, dst, translate.SourceUnmapped
	case !r.pool(src) && r.private(src):
		return src, dst, translate.PrivateIPv4
	default:
		src = r.pref64.Embed(src)
	}
	m = r.map4(dst)
	switch {
	case dst == r.OwnIPv4:
		return src, dst, translate.OwnAddress
	case r.refused4(dst):
		return src, dst, translate.DestinationRefused
	case m != nil:
		return src, slowTo6(dst, m.IPv4, m.IPv6), translate.OK
	}
	if l := r.lease(dst); l != nil {
		return src, l.IPv6, translate.OK
	}
	return src, dst, translate.DestinationUnmapped
}

// slowTo4 is RFC 7757 3.3.2, bit by bit.
func slowTo4(a netip.Addr, p4, p6 netip.Prefix) netip.Addr {
	from, to := a.As16(), p4.Addr().As4()
	for i := p4.Bits(); i < 32; i++ {
		j := p6.Bits() + i - p4.Bits()
		if from[j/8]&(0x80>>(j%8)) != 0 {
			to[i/8] |= 0x80 >> (i % 8)
		}
	}
	return netip.AddrFrom4(to)
}

// interesting are addresses whose neighbourhoods nest and overlap.
var (
	interesting4 = []netip.Addr{
		addr("192.0.2.1"), addr("192.0.2.130"), addr("10.1.2.3"), addr("100.64.0.9"), addr("169.254.169.254"), addr("169.254.64.77"),
		addr("127.0.0.1"), addr("0.0.0.0"), addr("224.0.0.5"), addr("240.1.2.3"), addr("255.255.255.255"), addr("203.0.113.80"),
	}
	interesting6 = []netip.Addr{
		addr("2001:db8:1::1"), addr("2001:db8:1::ff"), addr("2001:db8:1:2::3"), addr("2001:db8:c::1"), addr("fe80::1"), addr("::1"), addr("::"),
		addr("ff02::1"), addr("::ffff:192.0.2.1"), addr("fd00::1"), addr("2001:db8:64::1"),
	}
)

// near is an interesting address with some of its last bits changed.
func near(t *rapid.T, label string, interesting []netip.Addr) netip.Addr {
	b := rapid.SampledFrom(interesting).Draw(t, label).AsSlice()
	b[len(b)-1] ^= rapid.SampledFrom([]byte{0, 1, 2, 0x80}).Draw(t, label)
	a, _ := netip.AddrFromSlice(b)
	return a
}

func TestRulesLaw(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		c := Config{
			Pref64:  rapid.SampledFrom([]netip.Prefix{{}, pfx("2001:db8:64::/96"), pfx("2001:db8:64::/48")}).Draw(t, "pref64"),
			OwnIPv4: addr("169.254.64.1"), OwnIPv6: addr("fd00::1"),
			Hairpin:      rapid.Bool().Draw(t, "hairpin"),
			AllowPrivate: rapid.Bool().Draw(t, "private"),
		}
		for _, p := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"169.254.64.0/20", "10.0.0.0/8", "192.0.2.128/25", "240.1.0.0/16"}), 1, 4, rapid.ID).Draw(t, "pools") {
			c.Pools = append(c.Pools, Pool{IPv4: pfx(p), Clients: []netip.Prefix{pfx("2001:db8:c::/48")}, Idle: time.Hour})
		}
		for range rapid.IntRange(0, 5).Draw(t, "maps") {
			n4 := rapid.SampledFrom([]int{0, 4, 8, 15, 16, 24, 25, 31, 32}).Draw(t, "length")
			n6 := rapid.SampledFrom([]int{10, 48, 62, 64, 96 + n4}).Draw(t, "length")
			if n6 > 96+n4 {
				n6 = 96 + n4
			}
			c.Maps = append(c.Maps, Map{
				IPv4: netip.PrefixFrom(near(t, "IPv4", interesting4), n4).Masked(),
				IPv6: netip.PrefixFrom(near(t, "IPv6", interesting6), n6).Masked(),
			})
		}
		x, err := New(c)
		if err != nil {
			t.Skip(err)
		}
		accepted++
		for range rapid.IntRange(0, 4).Draw(t, "leases") {
			x.Resolve(translate.Flow{Src: near(t, "client", interesting6), Dst: near(t, "server", interesting6), Proto: 6}, 1)
		}

		r := rules{Config: c, pref64: x.pref64, leases: x.Leases()}
		for range 20 {
			f := translate.Flow{Src: near(t, "IPv4 source", interesting4), Dst: near(t, "IPv4 destination", interesting4)}
			src, dst, v := r.to6(f.Src, f.Dst)
			got, verdict := x.Lookup(f)
			require.Equal(t, v.String(), verdict.String(), "%v", f)
			if v.Leaves() {
				require.Equal(t, translate.Flow{Src: src, Dst: dst}, got)
				require.False(t, x.pref64.Prefix().Contains(got.Dst), "never pref64 as a destination")
			}

			f = translate.Flow{Src: near(t, "IPv6 source", interesting6), Dst: near(t, "IPv6 destination", interesting6)}
			if x.pref64.IsValid() && rapid.Bool().Draw(t, "to pref64") {
				f.Dst = x.pref64.Embed(near(t, "server", interesting4))
			}
			src, dst, v = r.to4(f.Src, f.Dst)
			got, verdict = x.Lookup(f)
			require.Equal(t, v.String(), verdict.String(), "%v", f)
			if v.Leaves() {
				require.Equal(t, translate.Flow{Src: src, Dst: dst}, got)
			}
		}
	})
	require.GreaterOrEqual(t, accepted, 20)
}
