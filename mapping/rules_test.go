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

// is is what is known of an address, and the map if it is that.
type is struct {
	kind kind
	m    *Map
}

// nearest is the longest of what lies around an address. Of what is of one
// length the last counts.
type nearest struct {
	a    netip.Addr
	bits int
	is   is
}

func (l *nearest) add(p netip.Prefix, x is) {
	if p.Contains(l.a) && p.Bits() >= l.bits {
		l.bits, l.is = p.Bits(), x
	}
}

// unknown is the kind of what nothing is known of.
const unknown kind = 100

func (r *rules) what4(a netip.Addr) is {
	l := nearest{a: a, is: is{kind: unknown}}
	for _, b := range refused4 {
		l.add(b.Prefix, is{kind: b.kind})
	}
	for _, p := range r.Pools {
		l.add(p.IPv4, is{kind: kindPool})
	}
	for i, m := range r.Maps {
		if seen, ok := r.pref64.Seen(m.IPv6); ok && seen != m.IPv4 {
			l.add(seen, is{kind: kindTaken})
		}
		l.add(m.IPv4, is{kindMap, &r.Maps[i]})
	}
	for _, x := range r.leases {
		l.add(netip.PrefixFrom(x.IPv4, 32), is{kind: kindLease})
	}
	l.add(netip.PrefixFrom(r.OwnIPv4, 32), is{kind: kindOwn})
	return l.is
}

func (r *rules) what6(a netip.Addr) is {
	l := nearest{a: a, is: is{kind: unknown}}
	for _, b := range refused6 {
		l.add(b.Prefix, is{kind: b.kind})
	}
	if r.pref64.IsValid() {
		l.add(r.pref64.Prefix(), is{kind: kindPref64})
	}
	for i, m := range r.Maps {
		l.add(m.IPv6, is{kindMap, &r.Maps[i]})
	}
	l.add(netip.PrefixFrom(r.OwnIPv6, 128), is{kind: kindOwn})
	return l.is
}

// private reports whether pref64 must not stand before a.
func (r *rules) private(a netip.Addr) bool {
	return r.GlobalOnly && slices.ContainsFunc(private4, func(b block) bool { return b.Prefix.Contains(a) })
}

func refused(k kind) bool { return k == kindIllegal || k == kindBeyond }

func (r *rules) lease(a netip.Addr) *Lease {
	for i, l := range r.leases {
		if l.IPv4 == a || l.IPv6 == a {
			return &r.leases[i]
		}
	}
	return nil
}

func (r *rules) to4(src, dst netip.Addr) (netip.Addr, netip.Addr, translate.Verdict) {
	from := r.what6(src)
	var src4 netip.Addr
	switch {
	case from.kind == kindMap:
		src4 = slowTo4(src, from.m.IPv4, from.m.IPv6)
		if r.what4(src4).kind != kindMap {
			return src, dst, translate.SourceRefused
		}
	case from.kind != unknown:
		return src, dst, translate.SourceRefused
	}
	verdict := translate.OK
	if v4, ok := r.pref64.Extract(dst); ok {
		to := r.what4(v4)
		dst = v4
		switch {
		case to.kind == kindOwn:
			return src, dst, translate.OwnAddress
		case refused(to.kind):
			return src, dst, translate.DestinationRefused
		case to.kind == kindTaken, to.kind == kindMap && r.pref64.Embed(v4) == slowTo6(v4, to.m.IPv4, to.m.IPv6):
			return src, dst, translate.DestinationUnmapped
		case (to.kind == kindMap || to.kind == kindLease || to.kind == kindPool) && !r.Hairpin:
			return src, dst, translate.HairpinOff
		case to.kind == kindMap, to.kind == kindLease:
			verdict = translate.Hairpin
		case to.kind == kindPool:
			return src, dst, translate.DestinationUnmapped
		case r.private(v4):
			return src, dst, translate.PrivateIPv4
		}
	} else {
		to := r.what6(dst)
		switch {
		case to.kind == kindOwn:
			return src, dst, translate.OwnAddress
		case refused(to.kind):
			return src, dst, translate.DestinationRefused
		case to.kind != kindMap:
			return src, dst, translate.DestinationUnmapped
		}
		if dst = slowTo4(dst, to.m.IPv4, to.m.IPv6); r.what4(dst).kind != kindMap {
			return src, dst, translate.DestinationRefused
		}
	}
	if src4.IsValid() {
		return src4, dst, verdict
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
	from, to := r.what4(src), r.what4(dst)
	switch {
	case from.kind == kindOwn, from.kind == kindTaken, refused(from.kind):
		return src, dst, translate.SourceRefused
	case from.kind == kindMap:
		if src = slowTo6(src, from.m.IPv4, from.m.IPv6); r.what6(src).kind != kindMap {
			return src, dst, translate.SourceRefused
		}
	case dst == r.OwnIPv4:
		return src, dst, translate.OwnAddress
	case !r.pref64.IsValid():
		return src, dst, translate.SourceUnmapped
	case from.kind == unknown && r.private(src):
		return src, dst, translate.PrivateIPv4
	default:
		src = r.pref64.Embed(src)
	}
	switch {
	case to.kind == kindOwn:
		return src, dst, translate.OwnAddress
	case refused(to.kind):
		return src, dst, translate.DestinationRefused
	case to.kind == kindMap:
		v6 := slowTo6(dst, to.m.IPv4, to.m.IPv6)
		if r.what6(v6).kind != kindMap {
			return src, dst, translate.DestinationRefused
		}
		return src, v6, translate.OK
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
			Hairpin:    rapid.Bool().Draw(t, "hairpin"),
			GlobalOnly: rapid.Bool().Draw(t, "private"),
		}
		for _, p := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"169.254.64.0/20", "10.0.0.0/8", "192.0.2.128/25", "240.1.0.0/16", "169.254.128.0/17"}), 1, 4, rapid.ID).Draw(t, "pools") {
			c.Pools = append(c.Pools, Pool{IPv4: pfx(p), Clients: []netip.Prefix{pfx("2001:db8:c::/48")}, Idle: time.Hour})
		}
		for range rapid.IntRange(0, 5).Draw(t, "maps") {
			n4 := rapid.SampledFrom([]int{0, 4, 8, 15, 16, 24, 25, 31, 32}).Draw(t, "length")
			n6 := rapid.SampledFrom([]int{8, 9, 10, 48, 62, 64, 96 + n4}).Draw(t, "length")
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
				require.True(t, !x.pref64.Prefix().Contains(got.Dst) || r.what6(got.Dst).kind == kindMap, "under pref64 only a map is a destination")
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
