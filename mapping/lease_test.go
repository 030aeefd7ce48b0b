package mapping

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/translate"
)

// pooled makes a table of pools alone.
func pooled(t require.TestingT, pools ...Pool) *Table {
	x, err := New(Config{Pref64: pfx("64:ff9b::/96"), Pools: pools, OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"), Hairpin: true})
	require.NoError(t, err)
	return x
}

func poolOf(prefix string) Pool {
	return Pool{IPv4: pfx(prefix), Clients: []netip.Prefix{pfx("2001:db8::/32")}, Idle: 100 * time.Second, Quarantine: 50 * time.Second}
}

// lessee is the n-th client.
func lessee(n int) netip.Addr { return addr6(0x2001_0db8_0000_0000, uint64(n)) }

// send sends a packet out from a client and returns the address it wears.
func send(x *Table, client netip.Addr, tick uint32) (netip.Addr, translate.Verdict) {
	f, v := x.Resolve(translate.Flow{Src: client, Dst: addr("64:ff9b::203.0.113.80"), Proto: 17}, tick)
	if v != translate.OK {
		return netip.Addr{}, v
	}
	return f.Src, v
}

func wears(t *testing.T, x *Table, client, tick int, want string) {
	t.Helper()
	a, v := send(x, lessee(client), uint32(tick))
	require.Equal(t, translate.OK, v)
	require.Equal(t, addr(want), a)
}

func stopped(t *testing.T, x *Table, client, tick int, want translate.Verdict) {
	t.Helper()
	_, v := send(x, lessee(client), uint32(tick))
	require.Equal(t, want.String(), v.String())
}

func TestLease(t *testing.T) {
	x := pooled(t, poolOf("192.0.2.0/29")) // .0 looks like the network, .1 is natless's own
	wears(t, x, 1, 1000, "192.0.2.2")
	wears(t, x, 2, 1000, "192.0.2.3")
	wears(t, x, 1, 1000, "192.0.2.2")
	assert.EqualValues(t, 3, x.Revision(), "a revision for each lease")
	f, v := x.Resolve(flow("203.0.113.80", "192.0.2.3"), 1000)
	assert.Equal(t, translate.OK, v)
	assert.Equal(t, lessee(2), f.Dst)

	wears(t, x, 1, 1099, "192.0.2.2")
	x.Expire(1100)
	assert.Len(t, x.Leases(), 1, "client 2 was idle")
	assert.EqualValues(t, 4, x.Revision())
	_, v = x.Resolve(flow("203.0.113.80", "192.0.2.3"), 1100)
	assert.Equal(t, translate.DestinationUnmapped, v)

	wears(t, x, 3, 1101, "192.0.2.4") // an address never lent comes first
	wears(t, x, 2, 1101, "192.0.2.3") // its own again, in quarantine
}

// TestForesee asks before each packet what Resolve will say to it, from new
// clients, old ones, those who come back and those that nobody permits, until
// both pools are full and after.
func TestForesee(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := pooled(t, poolOf("192.0.2.0/29"), poolOf("198.51.100.0/30"))
		tick := uint32(1000)
		for range rapid.IntRange(1, 60).Draw(t, "packets") {
			tick += rapid.Uint32Range(0, 40).Draw(t, "pause")
			x.Expire(tick)
			client := lessee(rapid.IntRange(1, 12).Draw(t, "client"))
			if client == lessee(12) {
				client = addr("2001:db9::1")
			}
			f := flow(client.String(), "64:ff9b::203.0.113.80")
			before, leases := x.Revision(), x.Leases()
			foreseen, v := x.Foresee(f)
			require.Equal(t, before, x.Revision())
			require.Equal(t, leases, x.Leases())
			got, w := x.Resolve(f, tick)
			require.Equal(t, w.String(), v.String())
			if w == translate.OK {
				require.Equal(t, got, foreseen)
			}
		}
	})
}

func TestLeaseTrafficFromOutsideCounts(t *testing.T) {
	x := pooled(t, poolOf("192.0.2.0/29"))
	wears(t, x, 1, 1000, "192.0.2.2")
	_, v := x.Resolve(flow("203.0.113.80", "192.0.2.2"), 1090)
	require.Equal(t, translate.OK, v)
	x.Lookup(flow("203.0.113.80", "192.0.2.2"))
	x.Expire(1189)
	assert.Len(t, x.Leases(), 1)
	x.Lookup(flow("203.0.113.80", "192.0.2.2"))
	x.ResolveError(flow("203.0.113.80", "192.0.2.2"))
	x.Expire(1190)
	assert.Empty(t, x.Leases(), "looking is no traffic, nor is an ICMP error")
}

func TestPoolFullAndQuarantine(t *testing.T) {
	x := pooled(t, poolOf("192.0.2.0/30")) // two to lend
	wears(t, x, 1, 10, "192.0.2.2")
	wears(t, x, 2, 11, "192.0.2.3")
	stopped(t, x, 3, 12, translate.PoolFull)
	wears(t, x, 2, 12, "192.0.2.3")

	x.Expire(110)
	stopped(t, x, 3, 159, translate.PoolFull)
	wears(t, x, 3, 160, "192.0.2.2") // quarantine is over
	stopped(t, x, 1, 161, translate.PoolFull)
	wears(t, x, 2, 161, "192.0.2.3")
	p := x.Pools()[0]
	assert.Equal(t, []uint32{4, 2, 2, 0, 0}, []uint32{p.Size, p.Usable, p.Lent, p.Quarantined, p.Free})
}

func TestMaxLife(t *testing.T) {
	p := poolOf("192.0.2.0/29")
	p.MaxLife = 500 * time.Second
	x := pooled(t, p)
	for tick := 10; tick < 510; tick += 50 {
		wears(t, x, 1, tick, "192.0.2.2")
		x.Expire(uint32(tick))
	}
	x.Expire(509)
	require.Len(t, x.Leases(), 1)
	x.Expire(510)
	require.Empty(t, x.Leases())
	wears(t, x, 1, 510, "192.0.2.3")
}

func TestEndless(t *testing.T) {
	p := poolOf("192.0.2.0/29")
	p.Idle = 0
	x := pooled(t, p)
	wears(t, x, 1, 10, "192.0.2.2")
	x.Expire(1 << 30)
	assert.Len(t, x.Leases(), 1)
	assert.Empty(t, x.current.Load().pools[0].due)
}

func TestTicksWrapAround(t *testing.T) {
	x := pooled(t, poolOf("192.0.2.0/29"))
	start := uint32(1<<32 - 50)
	_, v := send(x, lessee(1), start)
	require.Equal(t, translate.OK, v)
	x.Expire(start + 99)
	assert.Len(t, x.Leases(), 1)
	x.Expire(start + 100)
	assert.Empty(t, x.Leases())
}

// A map inside a pool is stepped over, whatever its length, and counted out.
func TestPoolWithMapsInside(t *testing.T) {
	x, err := New(Config{
		Pref64: pfx("64:ff9b::/96"), OwnIPv4: addr("10.0.0.7"),
		Pools: []Pool{poolOf("10.0.0.0/8")},
		Maps: []Map{
			{IPv4: pfx("10.0.0.1/32"), IPv6: pfx("2001:db8:f::1/128")},
			{IPv4: pfx("10.0.0.2/31"), IPv6: pfx("2001:db8:f::2/127")},
			{IPv4: pfx("10.0.0.8/29"), IPv6: pfx("2001:db8:f::8/125")},
			{IPv4: pfx("10.0.0.9/32"), IPv6: pfx("2001:db8:f::99/128")},
			{IPv4: pfx("10.0.0.16/28"), IPv6: pfx("2001:db8:f::10/124")},
			{IPv4: pfx("10.0.0.128/25"), IPv6: pfx("2001:db8:f::80/121")},
			{IPv4: pfx("10.0.1.0/24"), IPv6: pfx("2001:db8:f::100/120")},
			{IPv4: pfx("10.64.0.0/10"), IPv6: pfx("2001:db8:f:1::/64")},
		},
	})
	require.NoError(t, err)
	var lent []string
	for i := range 101 {
		a, v := send(x, lessee(i), 1)
		require.Equal(t, translate.OK, v)
		lent = append(lent, a.String())
	}
	assert.Equal(t, []string{"10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.32", "10.0.0.33"}, lent[:5])
	assert.Equal(t, []string{"10.0.0.127", "10.0.2.0", "10.0.2.1"}, lent[98:])
	usable := 1<<24 - 1 - 1 /*own*/ - 1 - 2 - 8 - 16 - 128 - 256 - 1<<22
	assert.EqualValues(t, usable, x.Pools()[0].Usable)
	assert.EqualValues(t, usable-101, x.Pools()[0].Free)
}

// Small pools: one address, two, and the first that looks like the network.
func TestFirstAddress(t *testing.T) {
	for prefix, want := range map[string][]string{
		"198.51.100.0/32": {"198.51.100.0"},
		"198.51.100.0/31": {"198.51.100.0", "198.51.100.1"},
		"198.51.100.0/30": {"198.51.100.1", "198.51.100.2", "198.51.100.3"},
	} {
		x := pooled(t, poolOf(prefix))
		assert.EqualValues(t, len(want), x.Pools()[0].Usable)
		for i, a := range want {
			wears(t, x, i, 1, a)
		}
		stopped(t, x, 9, 1, translate.PoolFull)
	}
}

// The lease of a pool of one address has the pool's own prefix.
func TestPoolOfOneAddress(t *testing.T) {
	r := newRig(t, newMemory(), Config{Pref64: pfx("64:ff9b::/96"), Pools: []Pool{poolOf("198.51.100.7/32")}, OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1")})
	counts := *r.x.current.Load().counts
	over := []Change{add("198.51.100.0/24", "2001:db8:9::/120")}
	for range 3 {
		r.wears(1, "198.51.100.7")
		r.answer("198.51.100.7")
		assert.ErrorIs(t, r.x.Check(over), ErrConflict)
		r.pass(120)
		require.Empty(t, r.x.Leases(), "idle")
		assert.EqualValues(t, 1, r.x.Pools()[0].Quarantined)
		assert.Equal(t, RulePool, r.x.Explain(addr("198.51.100.7")).Rule)
		assert.ErrorIs(t, r.x.Check(over), ErrConflict)
		r.stopped(2, translate.PoolFull)
		r.wears(1, "198.51.100.7")
		_, err := r.x.Release(lessee(1), "me")
		require.NoError(t, err)
		r.pass(60)
		r.wears(2, "198.51.100.7")
		_, err = r.x.Reload(r.config, "me")
		require.NoError(t, err)
		_, err = r.x.Release(lessee(2), "me")
		require.NoError(t, err)
		r.start()
		assert.Equal(t, counts, *r.x.current.Load().counts)
	}
}

func TestPoolsInOrder(t *testing.T) {
	few, many, other := poolOf("192.0.2.0/30"), poolOf("198.51.100.0/25"), poolOf("198.51.100.128/25")
	other.Clients = []netip.Prefix{pfx("2001:db8:0:1::/64")}
	many.Clients = append(many.Clients, pfx("fd00:1::/64"))
	x := pooled(t, few, many, other)
	wears(t, x, 1, 10, "192.0.2.2")
	wears(t, x, 2, 10, "192.0.2.3")
	wears(t, x, 3, 10, "198.51.100.1")
	a, _ := send(x, addr("fd00:1::5"), 10)
	assert.Equal(t, addr("198.51.100.2"), a, "not permitted by the first")
	_, v := send(x, addr("fd00:2::5"), 10)
	assert.Equal(t, translate.ClientNotPermitted, v)

	x.Expire(200)
	x.Expire(300)
	wears(t, x, 3, 300, "198.51.100.1") // what it had, though the first pool is free again
}

func TestLocal(t *testing.T) {
	p := poolOf("192.0.2.0/29")
	p.Clients, p.Local = []netip.Prefix{pfx("fd00:1::/64")}, true
	x := pooled(t, p)
	stopped(t, x, 1, 10, translate.ClientNotPermitted)
	assert.Equal(t, RuleUnmapped, x.Explain(lessee(1)).Rule)

	x.SetLocal([]netip.Prefix{pfx("2001:db8::/64")})
	assert.EqualValues(t, 2, x.Revision())
	x.SetLocal([]netip.Prefix{pfx("2001:db8::/64")})
	assert.EqualValues(t, 2, x.Revision(), "nothing new")
	assert.Equal(t, RulePool, x.Explain(lessee(1)).Rule)
	wears(t, x, 1, 10, "192.0.2.2")
	a, _ := send(x, addr("fd00:1::5"), 10)
	assert.Equal(t, addr("192.0.2.3"), a)

	x.SetLocal(nil)
	wears(t, x, 1, 11, "192.0.2.2") // a lease made stays
	stopped(t, x, 2, 11, translate.ClientNotPermitted)
}

// A pool costs what is lent from it, not what it holds.
func TestLargePoolIsLazy(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	x := pooled(t, poolOf("10.0.0.0/8"))
	for i := range 1000 {
		send(x, lessee(i), 1)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(4<<20))
	assert.EqualValues(t, 1<<24-1, x.Pools()[0].Usable)
	assert.Len(t, x.Leases(), 1000)
}

// Clients that never come back do not make a pool remember all it ever lent.
func TestFormerClientsAreForgotten(t *testing.T) {
	p := poolOf("10.0.0.0/8")
	p.Quarantine = time.Second
	x := pooled(t, p)
	pool := x.current.Load().pools[0]
	for i := range remembered + 10 { // as if they had come back long ago
		pool.next++
		pool.keep(givenBack(x.newLease(pool, uint32(i), lessee(i), time.Time{}, 1), 1, true))
	}
	next := pool.next
	for i := range 20 {
		_, v := send(x, lessee(1<<30+i), 10)
		require.Equal(t, translate.OK, v)
	}
	assert.Less(t, pool.rested.len, remembered)
	assert.Len(t, pool.former, pool.rested.len)
	assert.Less(t, pool.next-next, uint32(20))
}

// model is what leasing is, told with plain lists.
type model struct {
	never    []netip.Addr         // in order
	lent     map[netip.Addr]*loan // by client
	returned []loan
}

type loan struct {
	addr, client       netip.Addr
	born, stamp, until uint32
	idle, life         uint32
}

func (m *model) over(g *loan, now uint32) (over, aged bool) {
	aged = g.life > 0 && now-g.born >= g.life
	return aged || g.idle > 0 && now-g.stamp >= g.idle, aged
}

// candidates are the addresses that a client may get.
func (m *model) candidates(client netip.Addr, now uint32) []netip.Addr {
	if g := m.lent[client]; g != nil {
		return []netip.Addr{g.addr}
	}
	for _, g := range m.returned {
		if g.client == client {
			return []netip.Addr{g.addr}
		}
	}
	if len(m.never) > 0 {
		return m.never[:1]
	}
	var list []netip.Addr
	oldest := uint32(0)
	for _, g := range m.returned {
		if g.until <= now && (list == nil || g.until <= oldest) {
			if g.until < oldest {
				list = nil
			}
			list, oldest = append(list, g.addr), g.until
		}
	}
	return list
}

func TestLeaseModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seconds := func(label string, max int) time.Duration {
			return time.Duration(rapid.IntRange(0, max).Draw(t, label)) * time.Second
		}
		p := Pool{
			IPv4: pfx("192.0.2.0/29"), Clients: []netip.Prefix{pfx("2001:db8::/32")},
			Idle: seconds("idle", 20), MaxLife: seconds("max_life", 40), Quarantine: seconds("quarantine", 20),
		}
		x := pooled(t, p)
		m := model{lent: map[netip.Addr]*loan{}}
		for i := 2; i < 8; i++ {
			m.never = append(m.never, addr4(0xc000_0200+uint32(i)))
		}
		now := uint32(1000)
		revision := x.Revision()

		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) { now += rapid.Uint32Range(0, 30).Draw(t, "seconds") },
			"out": func(t *rapid.T) {
				client := lessee(rapid.IntRange(0, 9).Draw(t, "client"))
				may := m.candidates(client, now)
				a, v := send(x, client, now)
				if len(may) == 0 {
					require.Equal(t, translate.PoolFull, v)
					return
				}
				require.Equal(t, translate.OK, v)
				require.Contains(t, may, a)
				if g := m.lent[client]; g != nil {
					g.stamp = now
					return
				}
				m.never = slices.DeleteFunc(m.never, func(b netip.Addr) bool { return a == b })
				m.returned = slices.DeleteFunc(m.returned, func(g loan) bool { return g.addr == a })
				m.lent[client] = &loan{addr: a, client: client, born: now, stamp: now, idle: ticks(p.Idle), life: ticks(p.MaxLife)}
				revision++
			},
			"in": func(t *rapid.T) {
				a := addr4(0xc000_0200 + rapid.Uint32Range(2, 7).Draw(t, "address"))
				f, v := x.Resolve(translate.Flow{Src: addr("203.0.113.80"), Dst: a, Proto: 17}, now)
				for client, g := range m.lent {
					if g.addr == a {
						require.Equal(t, translate.OK, v)
						require.Equal(t, client, f.Dst)
						g.stamp = now
						return
					}
				}
				require.Equal(t, translate.DestinationUnmapped, v)
			},
			"expire": func(t *rapid.T) {
				x.Expire(now)
				changed := false
				for client, g := range m.lent {
					over, aged := m.over(g, now)
					if !over {
						continue
					}
					back := loan{addr: g.addr, client: client, until: now + ticks(p.Quarantine)}
					if aged {
						back.client = netip.Addr{}
					}
					m.returned = append(m.returned, back)
					delete(m.lent, client)
					changed = true
				}
				if changed {
					revision++
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, revision, x.Revision())
				var got, want []string
				for _, l := range x.Leases() {
					got = append(got, fmt.Sprint(l.IPv4, l.IPv6))
				}
				for client, g := range m.lent {
					want = append(want, fmt.Sprint(g.addr, client))
				}
				require.ElementsMatch(t, want, got)
				info := x.Pools()[0]
				require.EqualValues(t, len(m.lent), info.Lent)
				require.Equal(t, info.Usable, info.Lent+info.Quarantined+info.Free)
			},
		})
	})
}

// Workers resolve while leases come, go and are listed. No two clients may
// ever wear one address at a time.
func TestWorkersAtOnce(t *testing.T) {
	p := poolOf("192.0.2.0/26")
	p.Idle, p.Quarantine = 2*time.Second, 0
	x := pooled(t, p)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var now atomic.Uint32
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				client := lessee(rand.IntN(200))
				a, v := send(x, client, now.Load())
				if v == translate.OK {
					x.Lookup(translate.Flow{Src: addr("203.0.113.80"), Dst: a, Proto: 17})
				} else if v != translate.PoolFull {
					t.Error(v)
				}
			}
		})
	}
	for i := range 300 {
		now.Store(uint32(i))
		x.Expire(uint32(i))
		x.SetLocal([]netip.Prefix{netip.PrefixFrom(lessee(i), 128)})
		seen := map[netip.Addr]netip.Addr{}
		for _, l := range x.Leases() {
			assert.False(t, seen[l.IPv4].IsValid())
			seen[l.IPv4] = l.IPv6
		}
		clients := slices.Collect(maps.Values(seen))
		slices.SortFunc(clients, netip.Addr.Compare)
		assert.Len(t, slices.Compact(clients), len(seen))
		x.Explain(lessee(i))
		x.Pools()
		runtime.Gosched()
	}
	close(stop)
	wg.Wait()
}
