package mapping

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/translate"
)

// listing is what somebody sees who lists once and then follows the events.
type listing map[string]string

func (l listing) apply(e Event) {
	switch e.Op {
	case OpMapAdded, OpMapRemoved:
		l.enter(e.Op == OpMapAdded, e.Map.IPv4.String(), fmt.Sprint(e.Map.IPv6, e.Map.Label, e.Map.Runtime))
	case OpLeaseMade, OpLeaseEnded:
		l.enter(e.Op == OpLeaseMade, place(*e.Lease), worn(*e.Lease))
	case OpLeaseNoted:
		l.enter(true, place(*e.Lease), worn(*e.Lease))
	}
}

// worn is what a lease says of its client.
func worn(l Lease) string { return fmt.Sprint(l.IPv6, l.Since.Unix(), l.Label, l.Pinned) }

func (l listing) enter(there bool, key, value string) {
	if there {
		l[key] = value
	} else {
		delete(l, key)
	}
}

func list(x *Table) (uint64, listing) {
	l := listing{}
	revision, all := x.MapsAt()
	same, leases := x.LeasesAt()
	if revision != same { // something changed in between
		return list(x)
	}
	for m := range all {
		l.apply(Event{Op: OpMapAdded, Map: &m})
	}
	for m := range leases {
		l.apply(Event{Op: OpLeaseMade, Lease: &m})
	}
	return revision, l
}

// durable is a table in use, and what is known of it from outside.
type durable struct {
	*rig
	store    *memory
	configs  []Config
	seen     uint64             // the revision up to which events were looked at
	listings map[uint64]listing // at revisions of before
	last     map[string]end     // of leases that ended, by place
	held     map[string]Attachment
}

// place is what a lease is of: an address, or ports of one.
func place(l Lease) string { return l.IPv4.String() + " " + l.Ports }

// firstPort is 0 for a whole address.
func firstPort(l Lease) (first uint16) {
	fmt.Sscanf(l.Ports, "%d-", &first)
	return first
}

// end is how a lease ended.
type end struct {
	client netip.Addr
	label  string
	at     time.Time
	proven bool
}

// check holds the table against all that must be so at any time.
func (d *durable) check(t *rapid.T) {
	revision, now := list(d.x)
	events, err := d.x.Events(d.seen, 1<<20)
	require.NoError(t, err)
	next := d.seen
	for _, e := range events {
		if e.Op == OpLeaseEnded && e.Lease.Pinned {
			require.Contains(t, []string{"me", "detached"}, e.By, "not by itself")
		}
		require.True(t, e.Revision == next || e.Revision == next+1, "no gap")
		next = e.Revision
		switch e.Op {
		case OpLeaseEnded:
			d.last[place(*e.Lease)] = end{e.Lease.IPv6, e.Lease.Label, e.Time, e.Lease.Proven}
		case OpLeaseMade:
			if was, ok := d.last[place(*e.Lease)]; ok && (was.proven || e.Lease.Ports != "") && was.client != e.Lease.IPv6 && (was.label == "" || was.label != e.Lease.Label) {
				require.GreaterOrEqual(t, e.Time.Sub(was.at), d.config.Pools[0].Quarantine, "%v in quarantine", e.Lease.IPv4)
			}
		}
	}
	require.Equal(t, revision, next)
	d.seen = revision
	for before, l := range d.listings {
		l = maps.Clone(l)
		events, err := d.x.Events(before, 1<<20)
		require.NoError(t, err)
		for _, e := range events {
			l.apply(e)
		}
		require.Equal(t, now, l, "from revision %d", before)
	}
	d.listings[revision] = now

	clients := map[netip.Addr]bool{}
	lent := map[netip.Prefix]uint32{}
	for _, l := range d.x.Leases() {
		require.False(t, clients[l.IPv6], "two addresses")
		clients[l.IPv6] = true
		lent[l.Pool]++
		require.True(t, l.Pool.Contains(l.IPv4))
		saved := d.store.leases[savedKey{l.IPv4, firstPort(l)}]
		require.Equal(t, l.IPv6, saved.IPv6, "in force and not saved")
		require.True(t, saved.Until.IsZero() && saved.Since.Equal(l.Since))
		require.Equal(t, l.Label, saved.Label)
		require.Equal(t, l.Pinned, d.x.holder(l.IPv6).ID != "")
		require.Equal(t, l.IPv4, d.x.Explain(l.IPv6).Other)
		if l.Ports == "" {
			require.Equal(t, l.IPv6, d.x.Explain(l.IPv4).Other)
		}
		for port := range uint16(400) {
			f, x, v := d.x.LookupRanges(translate.Flow{Src: addr("203.0.113.80"), Dst: l.IPv4, DstPort: port, Proto: 17})
			require.Equal(t, v == translate.OK && f.Dst == l.IPv6, within(l, port), "%v port %d", l, port)
			require.Equal(t, v == translate.OK && l.Ports != "", x.Dst != nil)
		}
	}
	for _, p := range d.x.Pools() {
		require.Equal(t, lent[p.IPv4], p.Lent)
		require.Equal(t, p.Usable, p.Lent+p.Quarantined+p.Free)
		require.LessOrEqual(t, p.Free, p.Usable)
	}
	attached := map[string]Attachment{}
	for _, a := range d.x.Attachments() {
		attached[a.ID] = a
	}
	require.Equal(t, d.held, attached)
	require.Equal(t, d.held, d.store.held)
	sum := 0
	for _, n := range d.x.Networks() {
		sum += n.Leases
	}
	require.Equal(t, len(clients), sum)
}

// restart kills the process, and holds what comes back against what was.
func (d *durable) restart(t *rapid.T) {
	d.store.before, d.store.after = nil, nil
	was := d.lent()
	revision := d.x.Revision()
	d.now = d.now.Add(time.Second)
	problems := d.start()
	require.Empty(t, problems)
	require.Greater(t, d.x.Revision(), revision)
	require.Subset(t, d.lent(), was, "a lease in force is lost")
	for _, l := range d.x.Leases() {
		delete(d.last, place(l))
	}
	d.seen = d.x.Revision()
	d.listings = map[uint64]listing{}
}

// within reports whether a lease has a port.
func within(l Lease, port uint16) bool {
	first, last := uint16(0), uint16(65535)
	fmt.Sscanf(l.Ports, "%d-%d", &first, &last)
	return port >= first && port <= last
}

func TestDurableLaw(t *testing.T) {
	durableLaw(t, func() []Config {
		c := Config{Pref64: pfx("64:ff9b::/96"), OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"), Hairpin: true}
		c.Pools = []Pool{poolOf("192.0.2.0/29")}
		a, b, e, f := c, c, c, c
		b.Pools = []Pool{poolOf("192.0.2.0/28"), poolOf("198.51.100.0/31")}
		b.Pools[1].Quarantine = b.Pools[0].Quarantine
		e.Pools = []Pool{poolOf("192.0.2.0/30")}
		e.Pools[0].Idle, e.Pools[0].MaxLife, e.Pools[0].Quarantine = 40*time.Second, 120*time.Second, 20*time.Second
		f.Maps = []Map{{IPv4: pfx("192.0.2.3/32"), IPv6: netip.PrefixFrom(lessee(3), 128)}, {IPv4: pfx("198.18.0.0/24"), IPv6: pfx("2001:db9::/120")}}
		return []Config{a, b, e, f}
	})
}

// TestDurableLawOfRanges has clients share addresses, divided in several ways,
// and now and then not at all.
func TestDurableLawOfRanges(t *testing.T) {
	durableLaw(t, func() []Config {
		c := Config{Pref64: pfx("64:ff9b::/96"), OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"), Hairpin: true}
		c.Pools = []Pool{rangesOf("192.0.2.0/30")}
		a, b, e, f, g := c, c, c, c, c
		b.Pools = []Pool{rangesOf("192.0.2.1/32"), rangesOf("192.0.2.2/31")}
		e.Pools = []Pool{rangesOf("192.0.2.0/29")}
		e.Pools[0].Ports = Ports{PerClient: 60, Session: 59, First: 100, Last: 300}
		f.Pools = []Pool{rangesOf("192.0.2.0/30"), poolOf("198.51.100.0/31")}
		f.Pools[0].Ports.Session = 1
		f.Pools[1].Quarantine = f.Pools[0].Quarantine
		g.Pools = []Pool{poolOf("192.0.2.0/30")}
		g.Pools[0].Quarantine = f.Pools[0].Quarantine
		return []Config{a, b, e, f, g}
	})
}

// rangesOf is a pool of three clients for each address.
func rangesOf(prefix string) Pool {
	p := poolOf(prefix)
	p.Quarantine = 240 * time.Second
	p.Ports = Ports{PerClient: 100, Session: 10, First: 1, Last: 320}
	return p
}

func durableLaw(t *testing.T, configs func() []Config) {
	rapid.Check(t, func(t *rapid.T) {
		store := newMemory()
		d := &durable{store: store, configs: configs(), listings: map[uint64]listing{}, last: map[string]end{}, held: map[string]Attachment{}}
		d.rig = newRig(t, store, d.configs[0])
		d.seen = d.x.Revision()
		address := func() netip.Addr { return addr4(0xc000_0200 + rapid.Uint32Range(0, 15).Draw(t, "address")) }
		client := func() int { return rapid.IntRange(1, 12).Draw(t, "client") }
		t.Repeat(map[string]func(*rapid.T){
			"packet out": func(t *rapid.T) { d.send(client()) },
			"packets out": func(t *rapid.T) {
				for i := range 6 {
					send(d.x, lessee(i*2+1), d.tick)
				}
				d.x.keeper.step()
			},
			"packet in": func(t *rapid.T) { d.answerPort(address(), rapid.Uint16Range(0, 400).Draw(t, "port")) },
			"packets in": func(t *rapid.T) {
				for _, l := range d.x.Leases() {
					d.answerPort(l.IPv4, firstPort(l))
				}
			},
			"time": func(t *rapid.T) { d.pass(rapid.SampledFrom([]int{1, 3, 30, 61}).Draw(t, "seconds")) },
			"add": func(t *rapid.T) {
				bits := rapid.SampledFrom([]int{30, 31, 32}).Draw(t, "bits")
				d.x.Apply([]Change{{Add: &Map{
					IPv4: netip.PrefixFrom(address(), bits).Masked(),
					IPv6: netip.PrefixFrom(lessee(client()), 96+bits).Masked(),
				}}}, "me")
			},
			"remove": func(t *rapid.T) {
				for _, m := range d.x.RuntimeMaps() {
					if rapid.Bool().Draw(t, "this") {
						_, err := d.x.Apply([]Change{{Remove: m.IPv4}}, "me")
						require.Equal(t, d.store.before == nil, err == nil)
					}
				}
			},
			"release": func(t *rapid.T) {
				d.x.Release(rapid.SampledFrom([]netip.Addr{address(), lessee(client())}).Draw(t, "of"), "me")
			},
			"lend": func(t *rapid.T) {
				d.lend(client(), rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "label"))
			},
			"attach": func(t *rapid.T) {
				a := attachment(client())
				a.ID, a.Label = rapid.SampledFrom([]string{"4:1", "4:2", "4:3"}).Draw(t, "id"), rapid.SampledFrom([]string{"", "c"}).Draw(t, "label")
				a, err := d.x.Attach(a, "me")
				if err == nil {
					d.held[a.ID] = a
				}
			},
			"detach": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"4:1", "4:2", "4:3"}).Draw(t, "id")
				_, there := d.held[id]
				_, err := d.x.Detach(id, "detached")
				require.Equal(t, there && d.store.before == nil, err == nil)
				if err == nil {
					delete(d.held, id)
				}
			},
			"reload": func(t *rapid.T) {
				c := rapid.SampledFrom(d.configs).Draw(t, "config")
				revision := d.x.Revision()
				c.Now = d.config.Now
				diff, err := d.x.Reload(c, "me")
				if err != nil {
					require.Equal(t, revision, d.x.Revision())
					return
				}
				require.Equal(t, revision+1, diff.Revision)
				d.config = c
				d.check(t)
			},
			"disk full": func(t *rapid.T) { d.store.before = disk },
			"disk free": func(t *rapid.T) { d.store.before = nil },
			"damaged": func(t *rapid.T) {
				if d.store.before != nil {
					return
				}
				maps := len(d.store.maps)
				d.store.lose()
				d.store.damaged = true
				d.x.writing.Lock()
				err := d.x.save(Batch{RemoveMaps: []netip.Prefix{noMap}})
				d.x.writing.Unlock()
				require.NoError(t, err)
				require.Len(t, d.store.maps, maps, "also those that are not in force")
				// Nothing is known of what no pool could lend: where a pool is no more, or
				// a map stood at the last start.
				for place := range d.last {
					v4, ports, _ := strings.Cut(place, " ")
					_, all := d.store.leases[savedKey{addr(v4), 0}]
					_, part := d.store.leases[savedKey{addr(v4), firstPort(Lease{Ports: ports})}]
					if !all && !part {
						delete(d.last, place)
					}
				}
			},
			"crash": func(t *rapid.T) { d.restart(t) },
			"crash before Save": func(t *rapid.T) {
				d.store.before = func(Batch) error { panic("killed") }
				d.send(client())
				d.restart(t)
			},
			"crash after Save": func(t *rapid.T) {
				d.store.before, d.store.after = nil, func() { panic("killed") }
				d.send(client())
				was := d.lent()
				d.restart(t)
				require.Subset(t, d.lent(), was)
			},
			"stop": func(t *rapid.T) {
				d.store.before = nil
				require.NoError(t, d.x.keeper.flush())
				d.restart(t)
			},
			"": d.check,
		})

		// No address is lost to a pool for good.
		d.store.before = nil
		for id := range d.held {
			_, err := d.x.Detach(id, "detached")
			require.NoError(t, err)
		}
		clear(d.held)
		for range 2 { // leases end, and so does quarantine
			d.now = d.now.Add(10000 * time.Second)
			d.tick += 10000
			d.pass(3)
		}
		d.check(t)
		require.Empty(t, d.x.Leases())
		usable := 0
		for _, p := range d.x.Pools() {
			usable += int(p.Usable)
		}
		for i := range usable {
			require.True(t, d.leases(1000+i), "%d of %d", i, usable)
		}
		got := map[string]bool{}
		for _, l := range d.x.Leases() {
			got[place(l)] = true
		}
		require.Len(t, got, usable)
		d.stopped(2000, translate.PoolFull)
	})
}
