package mapping

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

func TestReload(t *testing.T) {
	store := newMemory()
	r := newRig(t, store, example())
	lease := func(client string) {
		r.x.Resolve(flow(client, "2001:db8:64::192.0.2.1"), r.tick)
		r.x.keeper.step()
	}
	lease(client)
	lease("2001:db8:c::6")
	r.answer("169.254.64.2")
	r.pass(5)
	_, err := r.x.Apply([]Change{add("203.0.113.0/24", "2001:db8:9::/120"), add("192.0.2.0/25", "2001:db8:a::/121")}, "me")
	require.NoError(t, err)
	before := r.x.Revision()

	c := example()
	c.Now = r.config.Now
	c.Maps = append(c.Maps[1:], Map{IPv4: pfx("198.51.100.128/25"), IPv6: pfx("2001:db8:1::/121"), Origin: "natless.toml:12"},
		Map{IPv4: pfx("169.254.64.3/32"), IPv6: pfx("2001:db8:2::3/128"), Origin: "natless.toml:40"},
		Map{IPv4: pfx("192.0.2.0/25"), IPv6: pfx("2001:db8:a::/121"), Origin: "natless.toml:50"}) // as was added at runtime
	c.Maps[0].Origin = "natless.toml:99"
	c.Pools[0].Idle = 10 * time.Second
	c.Hairpin = false
	require.NoError(t, r.x.CheckReload(c))
	assert.Equal(t, before, r.x.Revision())
	diff, err := r.x.Reload(c, "reload")
	require.NoError(t, err)
	assert.Equal(t, before+1, diff.Revision)
	assert.Equal(t, before+1, r.x.Revision())
	assert.True(t, diff.PoolsChanged)
	assert.True(t, diff.RulesChanged)
	var added, removed []string
	for _, m := range diff.MapsAdded {
		added = append(added, m.IPv4.String())
	}
	for _, m := range diff.MapsRemoved {
		removed = append(removed, m.IPv4.String())
	}
	assert.Equal(t, []string{"169.254.64.3/32", "192.0.2.0/25", "198.51.100.128/25"}, added)
	assert.Equal(t, []string{"192.0.2.0/25", "198.51.100.0/24"}, removed)
	require.Len(t, diff.LeasesEnded, 1)
	assert.Equal(t, addr("169.254.64.3"), diff.LeasesEnded[0].IPv4)
	events, err := r.x.Events(before, 100)
	require.NoError(t, err)
	assert.Len(t, events, 7)
	assert.Len(t, store.maps, 1, "the configuration has the other now")

	assert.Equal(t, "natless.toml:99", r.x.Explain(addr("198.51.100.7")).Origin)
	_, v := r.x.Lookup(flow(client, "2001:db8:64::198.51.100.7"))
	assert.Equal(t, translate.HairpinOff, v)
	leases := r.x.Leases()
	require.Len(t, leases, 1)
	assert.True(t, leases[0].Proven)
	assert.EqualValues(t, 5, leases[0].Idle, "carried over as it was")
	assert.Len(t, r.x.RuntimeMaps(), 1)
	r.pass(5)
	assert.Empty(t, r.x.Leases(), "the new pool's rules are in force")

	diff, err = r.x.Reload(c, "reload")
	require.NoError(t, err)
	assert.Empty(t, diff.MapsAdded)
	assert.Empty(t, diff.MapsRemoved)
	assert.False(t, diff.PoolsChanged || diff.RulesChanged)
	events, _ = r.x.Events(diff.Revision-1, 100)
	require.Len(t, events, 1)
	assert.Equal(t, OpChanged, events[0].Op)
}

func TestReloadRefuses(t *testing.T) {
	r := newRig(t, newMemory(), example())
	_, err := r.x.Apply([]Change{add("203.0.113.0/24", "2001:db8:9::/120")}, "me")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		change func(*Config)
		words  []string
	}{
		"pref64":      {func(c *Config) { c.Pref64 = pfx("64:ff9b::/96") }, []string{"pref64 cannot change"}},
		"own address": {func(c *Config) { c.OwnIPv4 = addr("169.254.64.2") }, []string{"own addresses cannot change"}},
		"bad pool":    {func(c *Config) { c.Pools[0].Clients = nil }, []string{"no client may lease"}},
		"runtime map": {func(c *Config) {
			c.Maps = append(c.Maps, Map{IPv4: pfx("203.0.113.0/24"), IPv6: pfx("2001:db8:8::/120"), Origin: "natless.toml:70"})
		}, []string{"(added 2030-01-02T12:00:00Z by me)", "(natless.toml:70)"}},
	} {
		config := example()
		c.change(&config)
		before := r.x.Revision()
		_, err := r.x.Reload(config, "reload")
		for _, w := range c.words {
			assert.ErrorContains(t, err, w, name)
		}
		assert.Equal(t, name == "runtime map", isKind(err, ErrConflict))
		assert.Equal(t, err.Error(), r.x.CheckReload(config).Error())
		assert.Equal(t, before, r.x.Revision())
	}

	// A start after such a change reports it, and keeps the map.
	r.config.Maps = append(r.config.Maps, Map{IPv4: pfx("203.0.113.0/24"), IPv6: pfx("2001:db8:8::/120"), Origin: "natless.toml:70"})
	problems := r.start()
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0], "(natless.toml:70)")
	assert.Empty(t, r.x.RuntimeMaps())
	r.config.Maps = r.config.Maps[:len(r.config.Maps)-1]
	assert.Empty(t, r.start())
	assert.Len(t, r.x.RuntimeMaps(), 1)
}

// Leases of local clients outlive a start at which the links of local clients
// are not there yet; those of others that nobody permits any more do not.
func TestStartWithOtherClients(t *testing.T) {
	p := poolOf("192.0.2.0/29")
	r := rigOf(t, newMemory(), p)
	r.wears(1, "192.0.2.2")
	r.config.Pools[0].Clients, r.config.Pools[0].Local = nil, true
	r.start()
	assert.Len(t, r.x.Leases(), 1)
	r.config.Pools[0].Clients, r.config.Pools[0].Local = []netip.Prefix{pfx("fd00:1::/64")}, false
	r.start()
	assert.Empty(t, r.x.Leases())
	assert.Equal(t, 1, r.logged("a lease of before is dropped"))
	assert.EqualValues(t, 1, r.store.(*memory).saves-1)
}

// Workers resolve, listers list and watchers watch while everything changes.
func TestEverythingAtOnce(t *testing.T) {
	store := newMemory()
	c := example()
	c.Pools = append(c.Pools, poolOf("192.0.2.0/26"))
	x := table(t, c)
	_, err := x.Keep(Keeper{Store: store, Forget: func([]Portion) error { return nil }})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var now atomic.Uint32
	wg.Go(func() { x.RunKeeper(ctx) })
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				f, v := x.Resolve(translate.Flow{Src: lessee(rand.IntN(100)), Dst: addr("2001:db8:64::192.0.0.9"), Proto: 17}, now.Load())
				if v == translate.OK {
					x.Resolve(f.Reversed(), now.Load())
				}
				g, v := x.Resolve(flow("2001:db8:1::5", "2001:db8:64::192.0.0.9"), now.Load())
				if v != translate.OK || g.Src != addr("198.51.100.5") {
					t.Error("an unchanged map is disturbed:", v)
					return
				}
			}
		})
	}
	wg.Go(func() { // a watcher has what a listing has
		revision, l := list(x)
		for ctx.Err() == nil {
			changed := x.Changed()
			events, err := x.Events(revision, 10)
			if err != nil {
				t.Error(err)
				return
			}
			for _, e := range events {
				l.apply(e)
				revision = e.Revision
			}
			if at, now := list(x); at == revision {
				assert.Equal(t, now, l)
			}
			if len(events) == 0 {
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
		}
	})
	for i := range 200 {
		now.Store(uint32(i))
		x.Expire(uint32(i))
		m := add("203.0.113.0/24", "2001:db8:9::/120")
		_, err := x.Apply([]Change{m}, "me")
		require.NoError(t, err)
		if i%10 == 0 {
			next := c
			next.Hairpin = i%20 == 0
			_, err := x.Reload(next, "reload")
			require.NoError(t, err)
		}
		x.Check([]Change{m})
		leases := x.Leases()
		for _, l := range leases[:min(2, len(leases))] {
			x.Release(l.IPv4, "me")
		}
		x.SetLocal([]netip.Prefix{netip.PrefixFrom(lessee(i), 128)})
		x.Pools()
		x.Networks()
		x.StoreProblem()
		x.Explain(lessee(i))
		x.Foresee(translate.Flow{Src: lessee(i), Dst: addr("2001:db8:64::192.0.2.1"), Proto: 17})
		require.NoError(t, x.History(time.Now(), func(SavedLease) bool { return true }))
		_, err = x.Apply([]Change{{Remove: m.Add.IPv4}}, "me")
		require.NoError(t, err)
	}
	cancel()
	wg.Wait()
}
