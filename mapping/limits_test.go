package mapping

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

// The numbers that bound what pressure on a pool may do. Each step here is at
// the bound, and one beside it.

// fullOf is a pool of 192.0.2.0/28 whose 14 addresses are lent to clients 2 to 15
// and were answered, 13 of them idle for so many seconds: client 2 is not.
func fullOf(t *testing.T, idle int) *rig {
	p := poolOf("192.0.2.0/28")
	p.Idle = time.Hour
	r := rigOf(t, newMemory(), p)
	for i := 2; i <= 15; i++ {
		a, v := r.send(i)
		require.Equal(t, translate.OK, v)
		r.answer(a.String())
	}
	r.pass(idle)
	_, v := r.send(2)
	require.Equal(t, translate.OK, v)
	return r
}

func TestFourLeasesASecondEndForOthers(t *testing.T) {
	r := fullOf(t, 60)
	before := len(r.x.Leases())
	for i := range 20 {
		r.stopped(100+i, translate.PoolFull)
	}
	for second := 1; second < 3; second++ {
		r.pass(1)
		assert.Len(t, r.x.Leases(), before-4*second)
	}
	r.pass(10)
	assert.Len(t, r.x.Leases(), before-4*2, "nobody asks any more")
}

func TestLeaseUsedWithinTheMinuteStays(t *testing.T) {
	for idle, ends := range map[int]bool{58: false, 59: true} {
		r := fullOf(t, idle)
		before := len(r.x.Leases())
		r.stopped(100, translate.PoolFull)
		r.pass(1) // the pool is looked at when it has passed
		assert.Equal(t, ends, len(r.x.Leases()) < before, "idle for %d seconds", idle+1)
	}
}

func TestRefusedClientsCountForThreeSeconds(t *testing.T) {
	r := fullOf(t, 1) // all are active: none can be taken yet
	s := r.x.current.Load()
	p := s.pools[0]
	for i := range 256 + 50 {
		s.lack(lessee(1000+i), 100)
	}
	assert.Equal(t, 256, p.demand(100), "more are not counted, for each costs memory")
	assert.Equal(t, 256, p.demand(102))
	assert.Zero(t, p.demand(103))
	s.lack(lessee(1), 200)
	assert.Equal(t, 1, p.demand(200), "there is room again")
}

// TestUnknownPastOutlivesReload: what nobody knows of an address, a reload does
// not teach. Whoever may have had it is forgotten before it is lent.
func TestUnknownPastOutlivesReload(t *testing.T) {
	r := rigOf(t, nil, poolOf("192.0.2.0/28"))
	for _, narrower := range []string{"192.0.2.0/28", "192.0.2.0/29"} {
		r.config.Pools = []Pool{poolOf(narrower)}
		r.config.Pools[0].Idle = 17 * time.Minute // so that something differs
		_, err := r.x.Reload(r.config, "me")
		require.NoError(t, err)
	}
	r.wears(1, "192.0.2.2")
	assert.Equal(t, []Portion{{IPv4: addr("192.0.2.2")}}, r.forgot)
}

func TestKnownPastOutlivesReload(t *testing.T) {
	r := rigOf(t, newMemory(), poolOf("192.0.2.0/28"))
	r.config.Pools = []Pool{poolOf("192.0.2.0/29")}
	_, err := r.x.Reload(r.config, "me")
	require.NoError(t, err)
	r.wears(1, "192.0.2.2")
	assert.Empty(t, r.forgot, "the store says that nobody had it")
}

// TestLogLimit: what may come again and again is logged once a minute.
func TestLogLimit(t *testing.T) {
	r := fullOf(t, 1)
	const line = "no address is left to lend"
	for range 59 {
		r.stopped(100, translate.PoolFull)
		r.pass(1)
	}
	assert.Equal(t, 1, r.logged(line))
	for range 3 { // a client that was refused asks every two seconds
		r.stopped(100, translate.PoolFull)
		r.pass(1)
	}
	assert.Equal(t, 2, r.logged(line))
}
