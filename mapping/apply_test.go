package mapping

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/translate"
)

func add(v4, v6 string) Change { return Change{Add: &Map{IPv4: pfx(v4), IPv6: pfx(v6)}} }
func remove(p string) Change   { return Change{Remove: pfx(p)} }

func TestApply(t *testing.T) {
	store := newMemory()
	r := newRig(t, store, example())
	before := r.x.Revision()
	c := add("203.0.113.0/24", "2001:db8:9::/64")
	c.Add.Label = "mail"
	revision, err := r.x.Apply([]Change{c, add("192.0.2.1/32", "2001:db8:a::1/128")}, "uid 0")
	require.NoError(t, err)
	assert.Equal(t, before+1, revision)
	assert.Equal(t, revision, r.x.Revision())
	assert.Len(t, store.maps, 2)

	m := MapInfo{IPv4: pfx("203.0.113.0/24"), IPv6: pfx("2001:db8:9::/64"), Label: "mail", Origin: "added 2030-01-02T12:00:00Z by uid 0", Runtime: true}
	assert.Contains(t, r.x.Maps(), m)
	assert.Len(t, r.x.RuntimeMaps(), 2)
	assert.Equal(t, m, *r.x.Explain(addr("203.0.113.5")).Map)
	assert.Equal(t, "map 203.0.113.0/24 = 2001:db8:9::/64 (added 2030-01-02T12:00:00Z by uid 0), labelled \"mail\"", r.x.Explain(addr("203.0.113.5")).Detail)
	out, v := r.x.Resolve(flow("192.0.2.1", "203.0.113.5"), 1) // neither first octet is in the configuration
	require.Equal(t, translate.OK, v)
	assert.Equal(t, flow("2001:db8:a::1", "2001:db8:9:0:500::"), out)
	events, err := r.x.Events(before, 100)
	require.NoError(t, err)
	require.Len(t, events, 2)
	assert.Equal(t, Event{Revision: revision, Time: r.now, Op: OpMapAdded, By: "uid 0", Map: &m}, events[0])

	problems := r.start()
	assert.Empty(t, problems)
	assert.Len(t, r.x.RuntimeMaps(), 2)
	assert.Contains(t, r.x.Maps(), m)
	_, err = r.x.Apply([]Change{remove("2001:db8:a::1/128"), remove("203.0.113.0/24")}, "uid 0")
	require.NoError(t, err)
	assert.Empty(t, store.maps)
	assert.Empty(t, r.x.RuntimeMaps())
	_, v = r.x.Resolve(flow("192.0.2.2", "203.0.113.5"), 1)
	assert.Equal(t, translate.DestinationUnmapped, v)
	assert.False(t, r.x.current.Load().octets.has(203<<24))
}

// Of two maps of one batch that clash neither is from anywhere.
func TestApplyNamesNoOrigin(t *testing.T) {
	r := newRig(t, newMemory(), example())
	clash := []Change{add("203.0.113.0/24", "2001:db8:9::/120"), add("203.0.113.0/24", "2001:db8:a::/120")}
	const want = "change 2 of 2: map 203.0.113.0/24 = 2001:db8:a::/120: 203.0.113.0/24 is mapped already, by map 203.0.113.0/24 = 2001:db8:9::/120"
	assert.EqualError(t, r.x.Check(clash), want)
	_, err := r.x.Apply(clash, "uid 0")
	assert.EqualError(t, err, want)
}

func TestApplyRefuses(t *testing.T) {
	c := example()
	c.RFC6791 = []netip.Prefix{pfx("203.0.113.8/30")}
	c.Pools = append(c.Pools, Pool{IPv4: pfx("192.0.2.0/30"), Local: true, Origin: "natless.toml:30"})
	r := newRig(t, newMemory(), c)
	_, v := r.x.Resolve(flow(client, "2001:db8:64::203.0.113.80"), r.tick)
	require.Equal(t, translate.LeasePending, v)
	r.x.keeper.step()
	for _, c := range []struct {
		name   string
		change Change
		kind   error
		words  []string
	}{
		{"same IPv4", add("198.51.100.0/24", "2001:db8:9::/120"), ErrConflict, []string{"198.51.100.0/24 is mapped already, by map", "natless.toml:12"}},
		{"same IPv6", add("203.0.113.0/24", "2001:db8:1::/120"), ErrConflict, []string{"2001:db8:1::/120 is mapped already"}},
		{"own IPv4", add("169.254.64.1/32", "2001:db8:9::1/128"), ErrConflict, []string{"natless itself"}},
		{"own IPv6", add("203.0.113.1/32", "fd00::1/128"), ErrConflict, []string{"natless itself"}},
		{"pref64", add("203.0.113.0/24", "2001:db8:64::/96"), ErrConflict, []string{"overlaps pref64"}},
		{"around pref64", add("203.0.113.0/24", "2001:db8::/32"), ErrConflict, []string{"overlaps pref64"}},
		{"own IPv4 by pref64", add("203.0.113.1/32", "2001:db8:64::169.254.64.1/128"), ErrConflict, []string{"stands for 169.254.64.1/32, which is taken by natless itself"}},
		{"a pool's address by pref64", add("203.0.113.1/32", "2001:db8:64::169.254.64.5/128"), ErrConflict, []string{"overlaps pool 169.254.64.0/28"}},
		{"a map's by pref64", add("203.0.113.1/32", "2001:db8:64::198.51.100.7/128"), ErrConflict, []string{"taken by map 198.51.100.7/32"}},
		{"link-local", add("169.254.7.0/24", "2001:db8:9::/120"), nil, []string{"169.254.7.0/24 is refused: it lies in 169.254.0.0/16, link-local (RFC 3927)"}},
		{"metadata", add("169.254.169.254/32", "2001:db8:9::1/128"), nil, []string{"169.254.169.254/32, cloud metadata"}},
		{"class E", add("240.0.0.0/4", "2001:db8:9::/100"), nil, []string{"class E"}},
		{"link-local IPv6", add("203.0.113.1/32", "fe80::1/128"), nil, []string{"fe80::/10, link-local (RFC 4291)"}},
		{"the pool", add("169.254.64.0/28", "2001:db8:9::/124"), ErrConflict, []string{"takes all of pool 169.254.64.0/28 (natless.toml:20)"}},
		{"over a pool", add("192.0.2.0/24", "2001:db8:9::/120"), ErrConflict, []string{"takes all of pool 192.0.2.0/30"}},
		{"in rfc6791", add("203.0.113.9/32", "2001:db8:9::1/128"), ErrConflict, []string{"rfc6791 203.0.113.8/30"}},
		{"is rfc6791", add("203.0.113.8/30", "2001:db8:9::/126"), ErrConflict, []string{"rfc6791 203.0.113.8/30"}},
		{"over rfc6791", add("203.0.113.0/24", "2001:db8:9::/120"), ErrConflict, []string{"rfc6791 203.0.113.8/30"}},
		{"a lent address", add("169.254.64.2/32", "2001:db8:9::1/128"), ErrConflict, []string{"169.254.64.2 is lent to 2001:db8:c::5: release it first"}},
		{"lent addresses", add("169.254.64.0/29", "2001:db8:c::/125"), ErrConflict, []string{"release it first"}},
		{"last of a pool", add("192.0.2.0/31", "2001:db8:9::/127"), nil, nil},
		{"suffix", add("203.0.113.0/25", "2001:db8:9::/122"), nil, []string{"expected an IPv6 prefix of at most"}},
		{"host bits", add("203.0.113.1/25", "2001:db8:9::/120"), nil, []string{"expected 203.0.113.0/25"}},
		{"of the file", remove("198.51.100.0/24"), ErrConflict, []string{"natless.toml:12 has it: remove it there and natless reload"}},
		{"unknown", remove("198.51.100.0/25"), ErrUnknown, []string{"198.51.100.0/25"}},
		{"not a map", remove("169.254.64.0/28"), ErrUnknown, nil},
		{"a lease", remove("169.254.64.2/32"), ErrUnknown, nil},
		{"no prefix", Change{}, nil, []string{"not a prefix"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			revision, maps, leases, pools := r.x.Revision(), r.x.Maps(), r.x.Leases(), r.x.Pools()
			err := r.x.Check([]Change{c.change})
			if c.words == nil && c.kind == nil {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			_, same := r.x.Apply([]Change{add("203.0.113.128/25", "2001:db8:7::/121"), c.change}, "me")
			assert.ErrorContains(t, same, "change 2 of 2: "+err.Error())
			assert.Equal(t, c.kind == ErrConflict, isKind(err, ErrConflict))
			assert.Equal(t, c.kind == ErrUnknown, isKind(err, ErrUnknown))
			for _, w := range c.words {
				assert.ErrorContains(t, err, w)
			}
			assert.Equal(t, revision, r.x.Revision())
			assert.Equal(t, maps, r.x.Maps())
			assert.Equal(t, leases, r.x.Leases())
			assert.Equal(t, pools, r.x.Pools())
		})
	}
	err := r.x.Check([]Change{add("192.0.2.0/31", "2001:db8:9::/127"), add("192.0.2.2/31", "2001:db8:9::2/127")})
	assert.ErrorIs(t, err, ErrConflict)
	assert.ErrorContains(t, err, "no address of pool 192.0.2.0/30 (natless.toml:30) would be left")
}

func isKind(err, kind error) bool { return assert.ErrorIs(new(testing.T), err, kind) }

// A map comes before a lease: those of its clients end, wherever they are.
func TestMapEndsLeases(t *testing.T) {
	for name, change := range map[string]Change{
		"the very pair":          add("169.254.64.2/32", "2001:db8:c::5/128"),
		"the client elsewhere":   add("203.0.113.5/32", "2001:db8:c::5/128"),
		"its network":            add("203.0.113.0/24", "2001:db8:c::/64"),
		"another of the address": add("169.254.64.3/32", "2001:db8:c::5/128"),
	} {
		t.Run(name, func(t *testing.T) {
			store := newMemory()
			r := newRig(t, store, example())
			r.x.Resolve(flow(client, "2001:db8:64::192.0.2.1"), r.tick)
			r.x.keeper.step()
			require.Len(t, r.x.Leases(), 1)
			usable := r.x.Pools()[0].Usable
			revision, err := r.x.Apply([]Change{change}, "me")
			require.NoError(t, err)
			assert.Empty(t, r.x.Leases())
			assert.Zero(t, r.x.Pools()[0].Lent)
			events, err := r.x.Events(revision-1, 10)
			require.NoError(t, err)
			require.Len(t, events, 2)
			assert.Equal(t, OpLeaseEnded, events[0].Op)
			assert.Equal(t, "me", events[0].By)
			assert.False(t, store.leases[savedKey{ipv4: addr("169.254.64.2")}].Until.IsZero())
			out, v := r.x.Resolve(flow(client, "2001:db8:64::192.0.2.1"), r.tick)
			require.Equal(t, translate.OK, v)
			assert.True(t, change.Add.IPv4.Contains(out.Src))
			taken := uint32(0)
			if pfx("169.254.64.0/28").Contains(out.Src) {
				taken = 1
			}
			assert.Equal(t, usable-taken, r.x.Pools()[0].Usable)
		})
	}
}

// An address that a map took from a pool and gives back rests before it is
// lent.
func TestPoolRegains(t *testing.T) {
	for _, size := range []string{"192.0.2.4/32", "192.0.2.4/31"} {
		r := rigOf(t, newMemory(), poolOf("192.0.2.0/29"))
		c := Change{Add: &Map{IPv4: pfx(size), IPv6: netip.PrefixFrom(addr("2001:db9::"), 96+pfx(size).Bits())}}
		n := int(size4(pfx(size)))
		_, err := r.x.Apply([]Change{c}, "me")
		require.NoError(t, err)
		for i := range 6 - n {
			_, v := r.send(i)
			require.Equal(t, translate.OK, v)
		}
		r.stopped(10, translate.PoolFull)
		_, err = r.x.Apply([]Change{{Remove: c.Add.IPv6}}, "me")
		require.NoError(t, err)
		assert.EqualValues(t, n, r.x.Pools()[0].Quarantined)
		r.pass(2)
		r.stopped(10, translate.PoolFull)
		r.pass(48)
		r.wears(10, "192.0.2.4")
		assert.Equal(t, []Portion{{IPv4: addr("192.0.2.4")}}, r.forgot, "the map's flows")
		assert.EqualValues(t, n-1, r.x.Pools()[0].Free)
	}
}

func TestRelease(t *testing.T) {
	r := newRig(t, newMemory(), example())
	r.x.Resolve(flow(client, "2001:db8:64::192.0.2.1"), r.tick)
	r.x.keeper.step()
	for _, a := range []string{"169.254.64.3", "2001:db8:c::6", "198.51.100.7", "2001:db8:2::7"} {
		_, err := r.x.Release(addr(a), "me")
		assert.ErrorIs(t, err, ErrUnknown, a)
	}
	_, err := r.x.Release(netip.Addr{}, "me")
	assert.Error(t, err)
	l, err := r.x.Release(addr(client), "me")
	require.NoError(t, err)
	assert.Equal(t, addr("169.254.64.2"), l.IPv4)
	assert.Empty(t, r.x.Leases())
	_, err = r.x.Release(addr("169.254.64.2"), "me")
	assert.ErrorIs(t, err, ErrUnknown)
	events, _ := r.x.Events(r.x.Revision()-1, 1)
	assert.Equal(t, "me", events[0].By)
}

// A table that came to its maps one by one is the table that was made with
// them, and refuses what New refuses.
func TestApplyLaw(t *testing.T) {
	refusals := 0
	rapid.Check(t, func(t *rapid.T) {
		c := Config{
			Pref64: rapid.SampledFrom([]netip.Prefix{{}, pfx("2001:db8:64::/96")}).Draw(t, "pref64"), OwnIPv4: addr("169.254.64.1"), OwnIPv6: addr("fd00::1"),
			Hairpin: true, GlobalOnly: rapid.Bool().Draw(t, "private"),
			Pools: []Pool{poolOf("169.254.64.0/24"), poolOf("10.0.0.0/8"), poolOf("192.0.2.128/30")},
		}
		if rapid.Bool().Draw(t, "stand-ins") {
			c.RFC6791 = []netip.Prefix{pfx("203.0.113.0/24"), pfx("198.18.0.0/18")}
		}
		x, err := New(c)
		require.NoError(t, err)
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			next, m := c, Map{}
			if len(c.Maps) > 0 && rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				i := rapid.IntRange(0, len(c.Maps)-1).Draw(t, "which")
				next.Maps = append(append([]Map{}, c.Maps[:i]...), c.Maps[i+1:]...)
				_, err = x.Apply([]Change{{Remove: c.Maps[i].IPv4}}, "me")
				require.NoError(t, err)
			} else {
				n4 := rapid.SampledFrom([]int{0, 4, 8, 12, 16, 24, 30, 31, 32}).Draw(t, "length")
				n6 := min(96+n4, rapid.SampledFrom([]int{10, 48, 64, 96 + n4}).Draw(t, "length"))
				m.IPv4 = netip.PrefixFrom(near(t, "IPv4", interesting4), n4).Masked()
				m.IPv6 = netip.PrefixFrom(near(t, "IPv6", interesting6), n6).Masked()
				next.Maps = append(append([]Map{}, c.Maps...), m)
				_, refused := New(next)
				_, err := x.Apply([]Change{{Add: &m}}, "me")
				require.Equal(t, refused == nil, err == nil, "%v: %v, but %v", &m, refused, err)
				if err != nil {
					refusals++
					continue
				}
			}
			c = next
		}
		y, err := New(c)
		require.NoError(t, err)
		require.Equal(t, y.current.Load().octets, x.current.Load().octets)
		require.Equal(t, y.current.Load().counts, x.current.Load().counts)
		for i, p := range x.Pools() {
			require.Equal(t, y.Pools()[i].Usable, p.Usable)
		}
		for range 20 {
			f := translate.Flow{Src: near(t, "source", interesting4), Dst: near(t, "destination", interesting4)}
			if rapid.Bool().Draw(t, "6to4") {
				f = translate.Flow{Src: near(t, "source", interesting6), Dst: near(t, "destination", interesting6)}
			}
			a, v := x.Lookup(f)
			b, w := y.Lookup(f)
			require.Equal(t, w.String(), v.String(), "%v", f)
			require.Equal(t, b, a)
		}
	})
	require.Greater(t, refusals, 20)
}

// Two who add conflicting maps at once, again and again: one wins each time,
// and the events are the winners in their order.
func TestConflictingWriters(t *testing.T) {
	x := table(t, example())
	begin := x.Revision()
	for i := range 1000 {
		var wg sync.WaitGroup
		var errs [2]error
		for who := range 2 {
			wg.Go(func() {
				_, errs[who] = x.Apply([]Change{{Add: &Map{
					IPv4: netip.PrefixFrom(addr4(0x0b00_0000+uint32(i)), 32), IPv6: netip.PrefixFrom(addr6(0x2001_0db8_0009_0000+uint64(who), uint64(i)), 128),
				}}}, fmt.Sprint(who))
			})
		}
		wg.Wait()
		require.True(t, (errs[0] == nil) != (errs[1] == nil))
		require.ErrorIs(t, fmt.Errorf("%w%w", orNothing(errs[0]), orNothing(errs[1])), ErrConflict)
	}
	events, err := x.Events(begin, 2000)
	require.NoError(t, err)
	require.Len(t, events, 1000)
	for i, e := range events {
		assert.Equal(t, begin+1+uint64(i), e.Revision)
		assert.Equal(t, addr4(0x0b00_0000+uint32(i)), e.Map.IPv4.Addr())
		assert.Equal(t, e.By, fmt.Sprint(uint16(e.Map.IPv6.Addr().As16()[7])))
	}
}

func orNothing(err error) error {
	if err == nil {
		return fmt.Errorf("none")
	}
	return err
}
