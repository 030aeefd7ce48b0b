package mapping

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

// A first packet waits until its lease is saved, and not longer.
func TestLeaseIsDurableBeforeItIsInForce(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/29"))
	store.before = func(b Batch) error {
		_, v := send(r.x, lessee(1), r.tick)
		assert.Equal(t, translate.LeasePending, v)
		assert.Empty(t, r.x.Leases(), "a listing waits for no disk")
		r.x.Pools()
		r.x.Foresee(flow(lessee(2).String(), "64:ff9b::203.0.113.80"))
		assert.Equal(t, []SavedLease{{IPv4: addr("192.0.2.2"), IPv6: lessee(1), Since: r.now}}, b.Leases)
		return nil
	}
	before := r.x.Revision()
	_, v := send(r.x, lessee(1), r.tick)
	require.Equal(t, translate.LeasePending, v)
	assert.Zero(t, store.saves)
	r.x.keeper.step()
	assert.Equal(t, 1, store.saves)
	assert.Equal(t, 1, r.woken)
	r.wears(1, "192.0.2.2")
	events, err := r.x.Events(before, 10)
	require.NoError(t, err)
	require.Len(t, events, 1)
	assert.Equal(t, OpLeaseMade, events[0].Op)
	assert.Equal(t, addr("192.0.2.2"), events[0].Lease.IPv4)
	assert.Equal(t, before+1, events[0].Revision)
	assert.Empty(t, r.forgot, "nobody had it before")
}

// However many packets of one client come, they leave one request, and
// however many clients come, one write.
func TestRequestsAreGathered(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/24"))
	for range 10 {
		for i := range 100 {
			_, v := send(r.x, lessee(i), r.tick)
			require.Equal(t, translate.LeasePending, v)
		}
	}
	assert.Less(t, len(r.x.keeper.requests), 500, "but for marks in one place")
	r.x.keeper.step()
	assert.Equal(t, 1, store.saves)
	assert.Len(t, r.x.Leases(), 100)
	assert.EqualValues(t, 100, r.x.Pools()[0].Lent)
}

func TestFullQueue(t *testing.T) {
	r := rigOf(t, newMemory(), poolOf("192.0.0.0/16"))
	verdicts := map[translate.Verdict]int{}
	for i := range 2 * asking {
		_, v := send(r.x, lessee(i), r.tick)
		verdicts[v]++
	}
	assert.Equal(t, map[translate.Verdict]int{translate.LeasePending: asking, translate.LeaseLimited: asking}, verdicts)
	r.x.keeper.step()
	assert.Len(t, r.x.Leases(), int(rateNetwork.burst))
}

// Asking costs a worker no allocation either.
func TestAskAllocatesNothing(t *testing.T) {
	r := rigOf(t, newMemory(), poolOf("192.0.2.0/24"))
	for i := range 1000 {
		f := translate.Flow{Src: lessee(i), Dst: addr("64:ff9b::203.0.113.80"), Proto: 17}
		r.x.Resolve(f, r.tick) // the first grows nothing either, but tests may
	}
	i := 1000
	assert.Zero(t, testing.AllocsPerRun(1000, func() {
		i++
		r.x.Resolve(translate.Flow{Src: lessee(i), Dst: addr("64:ff9b::203.0.113.80"), Proto: 17}, r.tick)
	}))
	f := flow("203.0.113.80", "192.0.2.2")
	assert.Zero(t, testing.AllocsPerRun(100, func() { r.x.Resolve(f, r.tick) }))
}

func TestStoreUnavailable(t *testing.T) {
	for name, fault := range map[string]func(Batch) error{
		"error": disk,
		"panic": func(Batch) error { panic("page fault") },
	} {
		t.Run(name, func(t *testing.T) {
			store := newMemory()
			p := poolOf("192.0.2.0/29")
			p.Idle = time.Hour
			r := rigOf(t, store, p)
			r.wears(1, "192.0.2.2")
			require.Equal(t, translate.OK, r.answer("192.0.2.2"))
			store.before = fault
			r.stopped(2, translate.StateUnavailable)
			r.stopped(3, translate.StateUnavailable)
			r.wears(1, "192.0.2.2")
			assert.NotEmpty(t, r.x.StoreProblem())
			tries := store.tries
			for range 100 {
				r.pass(1)
				for i := range 50 {
					r.stopped(2+i, translate.StateUnavailable)
				}
			}
			assert.LessOrEqual(t, store.tries-tries, 101, "one try a second")
			assert.Equal(t, 2, r.logged("cannot save state"), "once a minute")
			assert.Equal(t, []string{"192.0.2.2 2001:db8::1"}, r.lent()[:1])

			_, err := r.x.Apply([]Change{{Add: &Map{IPv4: pfx("198.51.100.0/24"), IPv6: pfx("2001:db8:1::/120")}}}, "me")
			assert.ErrorIs(t, err, ErrUnavailable)
			_, err = r.x.Release(lessee(1), "me")
			assert.ErrorIs(t, err, ErrUnavailable)
			assert.Len(t, r.x.Leases(), 1)
			assert.Empty(t, r.x.Maps())

			store.before = nil
			r.pass(2)
			assert.Empty(t, r.x.StoreProblem(), "found out though nobody asked")
			assert.Equal(t, 1, r.logged("state is saved again"))
			r.wears(9, "192.0.2.3") // what the others did not get
			assert.EqualValues(t, 2, r.x.Pools()[0].Lent)
		})
	}
}

// What was chosen and not saved goes back to where it was, whichever way it
// was found.
func TestAddressesGoBack(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/29"))
	for i := 1; i <= 6; i++ {
		r.wears(i, fmt.Sprintf("192.0.2.%d", i+1))
	}
	for _, a := range []string{"192.0.2.2", "192.0.2.3", "192.0.2.4"} {
		require.Equal(t, translate.OK, r.answer(a))
	}
	r.pass(61) // 5, 6, 7 are spare
	_, err := r.x.Release(lessee(1), "me")
	require.NoError(t, err)
	_, err = r.x.Release(lessee(2), "me")
	require.NoError(t, err)
	require.Len(t, r.x.Leases(), 1)
	before := r.x.Pools()
	next, _ := r.x.Foresee(flow(lessee(20).String(), "64:ff9b::203.0.113.80"))
	store.before = disk
	for range 3 {
		for _, client := range []int{20, 2, 21, 22, 23} {
			send(r.x, lessee(client), r.tick)
		}
		r.x.keeper.step()
		r.pass(2)
	}
	require.Len(t, r.x.Leases(), 1)
	assert.Equal(t, before, r.x.Pools())
	store.before = nil
	r.pass(2)
	r.wears(20, next.Src.String())
	for _, client := range []int{21, 22} {
		_, v := r.send(client)
		require.Equal(t, translate.OK, v)
	}
	r.stopped(23, translate.PoolFull)
	r.wears(2, "192.0.2.3")
	r.wears(1, "192.0.2.2")
}

func TestRestart(t *testing.T) {
	store := newMemory()
	p := poolOf("192.0.2.0/29")
	p.Idle, p.MaxLife = 500*time.Second, 1000*time.Second
	r := rigOf(t, store, p)
	for i := 1; i <= 4; i++ {
		r.wears(i, fmt.Sprintf("192.0.2.%d", i+1))
		if i < 4 {
			require.Equal(t, translate.OK, r.answer(fmt.Sprintf("192.0.2.%d", i+1)))
		}
	}
	r.pass(10)
	_, err := r.x.Release(lessee(2), "me")
	require.NoError(t, err)
	r.pass(10)
	leases := r.x.Leases()
	revision := r.x.Revision()

	r.start() // nothing was flushed: this is a crash
	assert.Greater(t, r.x.Revision(), revision)
	after := r.x.Leases()
	require.Len(t, after, 3)
	for i := range after {
		assert.Zero(t, after[i].Idle)
		after[i].Idle = leases[i].Idle
	}
	assert.Equal(t, leases, after)
	assert.EqualValues(t, 1, r.x.Pools()[0].Quarantined)
	r.wears(2, "192.0.2.3") // its own again
	assert.Empty(t, r.forgot)
	r.wears(5, "192.0.2.6") // never lent
	r.wears(6, "192.0.2.7")
	r.stopped(7, translate.PoolFull)

	for range 7 { // 1000 seconds since 1 leased, though the process is younger
		r.pass(100)
		r.wears(1, "192.0.2.2")
	}
	r.start()
	for range 2 {
		r.pass(100)
		r.wears(1, "192.0.2.2")
	}
	r.pass(81)
	assert.NotContains(t, r.lent(), "192.0.2.2 2001:db8::1")
	a, v := r.send(1)
	require.Equal(t, translate.OK, v)
	assert.NotEqual(t, addr("192.0.2.2"), a, "its age was over")
}

// The quarantine of an address that came back goes on after a restart.
func TestQuarantineOutlivesTheProcess(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/30"))
	r.wears(1, "192.0.2.2")
	r.wears(2, "192.0.2.3")
	r.answer("192.0.2.2")
	r.answer("192.0.2.3")
	_, err := r.x.Release(addr("192.0.2.2"), "me")
	require.NoError(t, err)
	r.pass(20)
	r.start()
	r.stopped(3, translate.PoolFull)
	r.pass(29)
	r.stopped(3, translate.PoolFull)
	r.pass(3)
	r.wears(3, "192.0.2.2")
	assert.Equal(t, []Portion{{IPv4: addr("192.0.2.2")}}, r.forgot, "what the former client spoke of")
	assert.Equal(t, []SavedLease{{IPv4: addr("192.0.2.2"), IPv6: lessee(1), Since: store.past[0].Since, Until: store.past[0].Until, Proven: true}}, store.past)
	assert.False(t, store.past[0].Until.IsZero())
}

// Without a store nobody knows who had an address before.
func TestForgetWithoutStore(t *testing.T) {
	r := rigOf(t, nil, poolOf("192.0.2.0/29"))
	r.wears(1, "192.0.2.2")
	assert.Equal(t, []Portion{{IPv4: addr("192.0.2.2")}}, r.forgot)
	r.answer("192.0.2.2")
	_, err := r.x.Release(lessee(1), "me")
	require.NoError(t, err)
	r.wears(1, "192.0.2.2")
	assert.Len(t, r.forgot, 1, "its own again")
	assert.Error(t, r.x.History(r.now, nil))
}

// A lease that nobody answers lapses after a minute without packets, and
// another client gets its address next, before one never lent.
func TestUnansweredLeaseLapses(t *testing.T) {
	p := poolOf("192.0.2.0/29")
	p.Idle = time.Hour
	for _, endless := range []bool{false, true} {
		if endless {
			p.Idle = 0
		}
		r := rigOf(t, newMemory(), p)
		for i := 1; i <= 3; i++ {
			r.wears(i, fmt.Sprintf("192.0.2.%d", i+1))
		}
		require.Equal(t, translate.OK, r.answer("192.0.2.2"))
		assert.True(t, r.x.Leases()[0].Proven)
		assert.False(t, r.x.Leases()[1].Proven)
		r.pass(50)
		r.wears(2, "192.0.2.3")
		r.pass(9)
		require.Len(t, r.x.Leases(), 3)
		r.pass(1)
		assert.Equal(t, []string{"192.0.2.2 2001:db8::1", "192.0.2.3 2001:db8::2"}, r.lent(), "3 was silent")
		r.wears(4, "192.0.2.4")
		assert.Equal(t, []Portion{{IPv4: addr("192.0.2.4")}}, r.forgot)
		r.pass(50)
		assert.Len(t, r.x.Leases(), 2, "2 is silent too")
		r.pass(3000)
		assert.Equal(t, []string{"192.0.2.2 2001:db8::1"}, r.lent())
		assert.Zero(t, r.x.Pools()[0].Quarantined)
	}
}

// Another client of natless that answers is proof as well.
func TestHairpinProves(t *testing.T) {
	r := rigOf(t, newMemory(), poolOf("192.0.2.0/29"))
	r.wears(1, "192.0.2.2")
	r.wears(2, "192.0.2.3")
	_, v := r.x.Resolve(flow(lessee(1).String(), "64:ff9b::192.0.2.3"), r.tick)
	require.Equal(t, translate.Hairpin, v)
	assert.False(t, r.x.Leases()[0].Proven)
	assert.True(t, r.x.Leases()[1].Proven)
}

// A proof is saved within seconds, in one write for many, and with the next
// write in any case.
func TestProofIsSaved(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/24"))
	for i := range 20 {
		send(r.x, lessee(i), r.tick)
	}
	r.x.keeper.step()
	for i := range 20 {
		require.Equal(t, translate.OK, r.answer(fmt.Sprintf("192.0.2.%d", i+2)))
	}
	saves := store.saves
	r.pass(6)
	assert.Equal(t, saves+1, store.saves)
	for i := range 20 {
		assert.True(t, store.leases[savedKey{ipv4: addr(fmt.Sprintf("192.0.2.%d", i+2))}].Proven)
	}
	r.start()
	assert.True(t, r.x.Leases()[0].Proven)
}

// Under pressure the longest idle goes first, an active one never, and no
// more than others ask for.
func TestPressure(t *testing.T) {
	p := poolOf("192.0.2.0/28") // .2 to .15
	p.Idle, p.Quarantine = time.Hour, 5*time.Minute
	store := newMemory()
	r := rigOf(t, store, p)
	for i := 2; i <= 15; i++ {
		r.wears(i, fmt.Sprintf("192.0.2.%d", i))
		r.answer(fmt.Sprintf("192.0.2.%d", i))
	}
	r.pass(10)
	for i := 10; i <= 15; i++ {
		r.wears(i, fmt.Sprintf("192.0.2.%d", i))
	}
	r.stopped(50, translate.PoolFull)
	r.pass(1)
	assert.Len(t, r.x.Leases(), 14, "all are active")
	r.pass(60)
	for i := 14; i <= 15; i++ {
		r.wears(i, fmt.Sprintf("192.0.2.%d", i))
	}
	for range 30 {
		r.stopped(50, translate.PoolFull)
		r.pass(1)
	}
	assert.Len(t, r.x.Leases(), 13, "one asks, one goes")
	for range 20 {
		for i := range 20 {
			r.stopped(50+i, translate.PoolFull)
		}
		r.pass(1)
	}
	assert.Equal(t, []string{"192.0.2.14 2001:db8::e", "192.0.2.15 2001:db8::f"}, r.lent(), "used within the minute")
	events, err := r.x.Events(r.x.journal.forgotten, 1000)
	require.NoError(t, err)
	var ended []int
	for _, e := range events {
		if e.Op == OpLeaseEnded {
			assert.Equal(t, endPressure, e.By)
			ended = append(ended, int(e.Lease.IPv4.As4()[3]))
		}
	}
	assert.ElementsMatch(t, []int{2, 3, 4, 5, 6, 7, 8, 9}, ended[:8], "idle for longer")
	assert.ElementsMatch(t, []int{10, 11, 12, 13}, ended[8:])
	assert.Equal(t, 2, r.logged("no address is left to lend"), "once a minute")

	r.pass(100)
	r.wears(3, "192.0.2.3") // still nobody else's
	r.answer("192.0.2.3")
	r.pass(170)
	a, v := r.send(50)
	assert.Equal(t, translate.OK, v)
	ended = slices.DeleteFunc(ended, func(n int) bool { return n == 3 })
	assert.EqualValues(t, ended[0], a.As4()[3], "the one that came back first")
}

// In a full pool unanswered leases have a minute, though they go on sending.
func TestPressureOnUnanswered(t *testing.T) {
	r := rigOf(t, newMemory(), poolOf("192.0.2.0/30"))
	r.wears(1, "192.0.2.2")
	r.wears(2, "192.0.2.3")
	r.answer("192.0.2.2")
	for i := range 59 {
		r.pass(1)
		r.wears(1, "192.0.2.2")
		r.wears(2, "192.0.2.3")
		if i%3 == 0 {
			r.stopped(3, translate.PoolFull)
		}
	}
	r.stopped(3, translate.PoolFull)
	r.pass(1)
	assert.Equal(t, []string{"192.0.2.2 2001:db8::1"}, r.lent())
	r.pass(1)
	r.wears(3, "192.0.2.3")
}

// Ten minutes of a flood of made up sources from all the networks of a /48,
// 1,500 a second, among two clients that are real. Whoever makes
// up sources cannot take a lease from one that uses it, wear out the disk or
// fill memory.
func TestFlood(t *testing.T) {
	const seconds, perSecond = 600, 1500
	store := newMemory()
	p := poolOf("10.64.0.0/20")
	p.Idle = time.Hour
	c := Config{Pref64: pfx("64:ff9b:1::/96"), Pools: []Pool{p}, OwnIPv4: addr("10.64.0.1"), OwnIPv6: addr("fd00::1")}
	r := newRig(t, store, c)
	out := func(client netip.Addr) translate.Verdict {
		_, v := r.x.Resolve(translate.Flow{Src: client, Dst: addr("64:ff9b:1::203.0.113.80"), Proto: 17}, r.tick)
		return v
	}
	real := addr("2001:db8:ffff::1")
	out(real)
	r.x.keeper.step()
	require.Equal(t, translate.OK, out(real))
	a := r.x.Leases()[0].IPv4
	require.Equal(t, translate.OK, r.answer(a.String()))

	var most int
	random := uint64(1)
	for range seconds {
		for range perSecond {
			random = random*6364136223846793005 + 1442695040888963407
			out(addr6(0x2001_0db8_0001_0000|random>>48, random))
		}
		require.Equal(t, translate.OK, out(real))
		r.pass(1)
		require.Equal(t, translate.OK, out(real))
		most = max(most, len(r.x.keeper.admission.networks))
	}
	assert.Equal(t, a, r.x.Leases()[0].IPv4)
	assert.LessOrEqual(t, len(r.x.Leases()), 1+int(rateAll.burst)+61*int(rateAll.perSecond))
	assert.LessOrEqual(t, store.saves, int(rateCommits.burst)+(seconds+5)*int(rateCommits.perSecond))
	assert.LessOrEqual(t, most, limited)
	assert.LessOrEqual(t, len(*r.x.keeper.denied.Load()), denying)
	assert.LessOrEqual(t, len(store.leases), 6000, "the same addresses over and over")
	assert.LessOrEqual(t, r.x.journal.events, journaled)
	assert.Empty(t, r.x.current.Load().pools[0].former, "nobody is remembered whom nobody answered")
	t.Logf("%d sources, %d writes, %d addresses ever lent, %d leases at the end", seconds*perSecond, store.saves, len(store.leases), len(r.x.Leases()))

	assert.Len(t, r.x.Networks(), 16)
	r.pass(70)
	assert.Equal(t, []Network{{pfx("2001:db8:ffff::/64"), 1}}, r.x.Networks())
}

// The keeper at its work, with its own clock.
func TestRunKeeper(t *testing.T) {
	store := newMemory()
	x := pooled(t, poolOf("192.0.2.0/29"))
	woken := make(chan struct{}, 100)
	_, err := x.Keep(Keeper{Store: store, Wake: func() { woken <- struct{}{} }})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- x.RunKeeper(ctx) }()
	_, v := send(x, lessee(1), 1)
	require.Equal(t, translate.LeasePending, v)
	select {
	case <-woken:
	case <-time.After(10 * time.Second):
		require.Fail(t, "not woken")
	}
	wears(t, x, 1, 1, "192.0.2.2")
	_, v = x.Resolve(flow("203.0.113.80", "192.0.2.2"), 1)
	require.Equal(t, translate.OK, v)
	for range 100 {
		x.Expire(2)
		if len(x.keeper.proofs) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	require.NoError(t, <-done)
	assert.True(t, store.leases[savedKey{ipv4: addr("192.0.2.2")}].Proven, "what was left is saved")
}

func TestHistory(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/29"))
	begin := r.now
	r.pass(1)
	r.wears(1, "192.0.2.2")
	r.pass(1)
	during := r.now
	r.pass(59)
	require.Empty(t, r.x.Leases())
	require.NotEmpty(t, r.x.keeper.unsaved.leases, "the store does not know yet")
	at := func(when time.Time) (list []string) {
		require.NoError(t, r.x.History(when, func(l SavedLease) bool {
			list = append(list, l.IPv4.String())
			return true
		}))
		return list
	}
	assert.Empty(t, at(begin))
	assert.Equal(t, []string{"192.0.2.2"}, at(during))
	assert.Empty(t, at(r.now))
	r.pass(3)
	require.Empty(t, r.x.keeper.unsaved.leases)
	assert.Empty(t, at(r.now))
}

// TestMarksSpread: whatever the seed, neighbouring clients have marks in places of
// their own, but for the few that meet by chance: of a hundred about one.
func TestMarksSpread(t *testing.T) {
	for range 1000 {
		var c counter
		c.init()
		places := map[*atomic.Uint64]bool{}
		for i := range 100 {
			place, _ := c.mark(lessee(i))
			places[place] = true
		}
		require.Greater(t, len(places), 85)
	}
}
