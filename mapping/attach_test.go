package mapping

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

func (r *rig) lend(client int, label string) (Lease, error) {
	return r.x.Lend(context.Background(), lessee(client), label, "me")
}

// attachment is the n-th client's.
func attachment(n int) Attachment {
	return Attachment{
		ID: fmt.Sprintf("4:%x", n), Target: fmt.Sprintf("box%d", n), Label: "web", Namespace: "/run/netns/box",
		IPv6: lessee(n), Count: 1, Undo: json.RawMessage(`{"a":1}`),
	}
}

func (r *rig) attach(n int) Attachment {
	_, err := r.lend(n, "")
	require.NoError(r.t, err)
	a, err := r.x.Attach(attachment(n), "me")
	require.NoError(r.t, err)
	return a
}

// ops are the events since a revision.
func (r *rig) ops(since uint64) (ops []Op) {
	events, err := r.x.Events(since, 1000)
	require.NoError(r.t, err)
	for _, e := range events {
		ops = append(ops, e.Op)
	}
	return ops
}

func TestLend(t *testing.T) {
	store := newMemory()
	pools := []Pool{poolOf("192.0.2.0/29"), rangesOf("198.51.100.7/32")}
	pools[0].Clients = []netip.Prefix{pfx("2001:db8::/120")}
	pools[1].Clients = []netip.Prefix{pfx("2001:db8::100/120")}
	r := newRig(t, store, Config{
		Pref64: pfx("64:ff9b::/96"), Pools: pools, OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"),
		Maps: []Map{{IPv4: pfx("198.18.0.0/24"), IPv6: pfx("2001:db8:1::/120"), Origin: "f:1"}},
	})
	before, woken := r.x.Revision(), r.woken
	l, err := r.lend(1, "web")
	require.NoError(t, err)
	assert.Equal(t, Lease{IPv4: addr("192.0.2.2"), IPv6: lessee(1), Pool: pools[0].IPv4, Since: r.now, Label: "web"}, l)
	assert.Equal(t, SavedLease{IPv4: addr("192.0.2.2"), IPv6: lessee(1), Since: r.now, Label: "web"}, store.leases[savedKey{ipv4: addr("192.0.2.2")}])
	assert.Equal(t, woken+1, r.woken, "its packets may be held")
	assert.Equal(t, []Portion(nil), r.forgot)
	r.wears(1, "192.0.2.2")

	again, err := r.lend(1, "")
	require.NoError(t, err)
	assert.Equal(t, l, again)
	assert.Equal(t, []Op{OpLeaseMade}, r.ops(before))
	again, err = r.lend(1, "db")
	require.NoError(t, err)
	assert.Equal(t, "db", again.Label)
	assert.Equal(t, "db", store.leases[savedKey{ipv4: addr("192.0.2.2")}].Label)
	assert.Equal(t, []Op{OpLeaseMade, OpLeaseNoted}, r.ops(before))
	assert.Contains(t, r.x.Explain(lessee(1)).Detail, `, labelled "db", nothing has come back`)

	r.pass(50)
	_, err = r.lend(1, "")
	require.NoError(t, err)
	r.pass(50)
	assert.Equal(t, []string{"192.0.2.2 2001:db8::1"}, r.lent(), "asking again is a use of it")

	shared, err := r.lend(0x101, "")
	require.NoError(t, err)
	assert.Equal(t, []any{addr("198.51.100.7"), "1-100", 10}, []any{shared.IPv4, shared.Ports, shared.SessionPorts})

	for want, c := range map[string]struct {
		client string
		kind   error
	}{
		"lease for 2001:db8:1::7: mapped explicitly: it is 198.18.0.7, by map 198.18.0.0/24 = 2001:db8:1::/120 (f:1)": {"2001:db8:1::7", ErrMapped},
		"lease for 2001:db8:9::1: not permitted: it is among no pool's clients":                                       {"2001:db8:9::1", ErrNotPermitted},
		"lease for 64:ff9b::1: not permitted: it is an address of pref64":                                             {"64:ff9b::1", ErrNotPermitted},
		"lease for fd00::1: not permitted: it is an address of natless itself":                                        {"fd00::1", ErrNotPermitted},
		"lease for 192.0.2.2: expected an IPv6 address":                                                               {"192.0.2.2", nil},
		"lease for 2001:db8::1%eth0: expected an IPv6 address":                                                        {"2001:db8::1%eth0", nil},
	} {
		_, err := r.x.Lend(t.Context(), addr(c.client), "", "me")
		assert.EqualError(t, err, want)
		if c.kind != nil {
			assert.ErrorIs(t, err, c.kind)
		}
	}
	_, err = r.lend(2, "a\nb")
	assert.ErrorContains(t, err, "label: expected printable characters only")

	for n := 2; n < 7; n++ {
		_, err := r.lend(n, "")
		require.NoError(t, err)
	}
	_, err = r.lend(7, "")
	assert.ErrorIs(t, err, ErrPoolFull)
	r.pass(61) // those that nobody answers lapse
	store.before = disk
	next, _ := r.x.Foresee(flow(lessee(7).String(), server6))
	_, err = r.lend(7, "")
	assert.ErrorIs(t, err, ErrUnavailable)
	assert.NotContains(t, r.lent(), next.Src.String()+" "+lessee(7).String())
	store.before = nil
	r.pass(2)
	l, err = r.lend(7, "")
	require.NoError(t, err)
	assert.Equal(t, next.Src, l.IPv4, "what was not saved went back")

	r.start()
	assert.Equal(t, "", r.x.Leases()[0].Label)
	_, err = r.lend(7, "again")
	require.NoError(t, err)
	r.start()
	assert.Equal(t, "again", r.x.Leases()[0].Label)
}

// A container that was started again may have another IPv6 address. By its label
// it gets what it had: at once, durably, and never what is in force.
func TestLendByLabel(t *testing.T) {
	for name, pool := range map[string]Pool{"addresses": poolOf("192.0.2.0/28"), "ranges": rangesOf("192.0.2.2/31")} {
		t.Run(name, func(t *testing.T) {
			store := newMemory()
			r := rigOf(t, store, pool)
			has := func(client int, label string) string {
				t.Helper()
				l, err := r.lend(client, label)
				require.NoError(t, err)
				assert.Equal(t, label, l.Label)
				return place(l)
			}
			attach := func(client int, label string) string {
				t.Helper()
				was := has(client, label)
				a := attachment(client)
				a.Label = label
				_, err := r.x.Attach(a, "me")
				require.NoError(t, err)
				return was
			}
			detach := func(client int) {
				t.Helper()
				r.pass(1)
				_, err := r.x.Detach(attachment(client).ID, "me")
				require.NoError(t, err)
			}
			begun := r.now
			web, db := attach(1, "web"), attach(2, "db")
			detach(1)
			detach(2)
			ended := r.now
			assert.NotContains(t, []string{web, db}, has(3, "other"))
			r.pass(2)

			r.forgot = nil
			before := r.x.Revision()
			assert.Equal(t, web, attach(4, "web"), "another client by the label")
			assert.Equal(t, []Op{OpLeaseMade, OpLeaseNoted}, r.ops(before))
			flows := Portion{IPv4: addr("192.0.2.2")}
			if pool.Ports != (Ports{}) { // the flows of neighbours go on
				flows.First, flows.Last = 1, 100
			}
			assert.Equal(t, []Portion{flows}, r.forgot)
			for when, want := range map[time.Time][]string{begun: {lessee(1).String()}, ended: nil, r.now: {lessee(4).String()}} {
				var had []string
				require.NoError(t, r.x.History(when, func(l SavedLease) bool {
					if l.Label == "web" {
						had = append(had, l.IPv6.String())
					}
					return true
				}))
				assert.Equal(t, want, had, when)
			}
			assert.NotEqual(t, web, has(5, "web"), "never what is in force")
			assert.NotEqual(t, web, has(1, "web"), "also not for who had it once")

			r.start()
			store.before = disk
			_, err := r.lend(6, "db")
			require.ErrorIs(t, err, ErrUnavailable)
			store.before = nil
			r.pass(2)
			assert.Equal(t, db, has(6, "db"), "natless was started again, and what was not saved went back")
			r.pass(61) // nobody answers it
			assert.Equal(t, db, has(7, "db"), "it rests all the same, for it was in use before")
			r.pass(61)
			next := r.config
			next.Pools = []Pool{pool}
			next.Pools[0].Idle *= 2
			_, err = r.x.Reload(next, "me")
			require.NoError(t, err)
			assert.Equal(t, db, has(8, "db"))
			r.start()
			assert.Equal(t, db, has(8, "db"))
		})
	}
}

// What a label leads to, of several.
func TestLendByLabelOfSeveral(t *testing.T) {
	pools := []Pool{poolOf("192.0.2.0/29"), poolOf("198.51.100.0/30")}
	pools[0].Clients = []netip.Prefix{pfx("2001:db8::/120")}
	r := rigOf(t, newMemory(), pools...)
	attach := func(client int, label string) string {
		t.Helper()
		l, err := r.lend(client, label)
		require.NoError(t, err)
		a := attachment(client)
		a.Label = label
		_, err = r.x.Attach(a, "me")
		require.NoError(t, err)
		return l.IPv4.String()
	}
	detach := func(clients ...int) {
		t.Helper()
		for _, n := range clients {
			r.pass(1)
			_, err := r.x.Detach(attachment(n).ID, "me")
			require.NoError(t, err)
		}
	}
	one, two, three, far := attach(1, "web"), attach(2, "web"), attach(3, "db"), attach(0x101, "web")
	assert.Equal(t, "198.51.100.1", far)
	detach(3, 2, 1, 0x101)

	assert.Equal(t, two, attach(2, "web"), "its own, although another is more recent")
	detach(2)
	assert.Equal(t, two, attach(4, "web"), "the most recent")
	assert.Equal(t, far, attach(5, "web"), "of all pools that permit it")
	assert.Equal(t, one, attach(3, "web"), "rather than its own, which is called db")
	assert.Equal(t, three, attach(2, "db"), "who may come for that")
	assert.NotContains(t, []string{one, two, three, far}, attach(6, "web"), "there is none any more")
	detach(5)
	r.pass(60)
	assert.Equal(t, far, attach(7, "web"), "its quarantine is over, and nobody else had it")
	detach(7)
	r.wears(7, far) // by a packet
	assert.Equal(t, far, attach(7, "else"))
	detach(7)
	assert.NotEqual(t, far, attach(8, "web"), "it was called otherwise last")

	full := rigOf(t, newMemory(), poolOf("192.0.2.2/32"))
	full.attach(1)
	_, err := full.x.Detach(attachment(1).ID, "me")
	require.NoError(t, err)
	_, err = full.lend(2, "db")
	assert.ErrorIs(t, err, ErrPoolFull, "another's rests")
	l, err := full.lend(1, "db")
	require.NoError(t, err, "there is nothing else for it")
	assert.Equal(t, "db", l.Label)
}

// Who asks for leases is not held to the rates of those who send packets.
func TestLendHasNoRate(t *testing.T) {
	r := rigOf(t, newMemory(), poolOf("192.0.0.0/16"))
	for n := range 3 * int(rateNetwork.burst) {
		_, err := r.lend(n, "")
		require.NoError(t, err)
	}
	assert.Len(t, r.x.Leases(), 3*int(rateNetwork.burst))
}

// While the disk hangs, those who ask get their answer in time, and there is
// one of them at work.
func TestLendInTime(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/29"))
	hangs := make(chan struct{})
	store.before = func(Batch) error { <-hangs; return nil }
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err := r.x.Lend(ctx, lessee(1), "", "me")
		cancel()
		require.ErrorIs(t, err, ErrUnavailable)
		require.Empty(t, r.x.Leases())
	}
	close(hangs)
	l, err := r.lend(1, "") // waits for the former
	require.NoError(t, err)
	assert.Equal(t, addr("192.0.2.2"), l.IPv4)
	assert.Equal(t, 1, store.saves, "it is the former's lease")
}

// A pinned lease ends neither by age nor idle, nor unanswered, nor under
// pressure.
func TestPinned(t *testing.T) {
	p := poolOf("192.0.2.0/30")
	p.Idle, p.MaxLife = 100*time.Second, 1000*time.Second
	store := newMemory()
	r := rigOf(t, store, p)
	before := r.x.Revision()
	a := r.attach(1)
	want := attachment(1)
	want.IPv4, want.Since = addr("192.0.2.2"), r.now
	assert.Equal(t, want, a)
	assert.Equal(t, []Attachment{want}, r.x.Attachments())
	assert.Equal(t, map[string]Attachment{"4:1": want}, store.held)
	assert.Equal(t, []Op{OpLeaseMade, OpLeaseNoted}, r.ops(before))
	assert.True(t, store.leases[savedKey{ipv4: a.IPv4}].Proven)
	assert.Equal(t, "web", store.leases[savedKey{ipv4: a.IPv4}].Label)
	assert.Contains(t, r.x.Explain(lessee(1)).Detail, `labelled "web", pinned by an attachment`)

	_, err := r.x.Release(lessee(1), "me")
	assert.ErrorIs(t, err, ErrConflict)
	assert.EqualError(t, err, "release 2001:db8::1: it is pinned by the attachment of box1 (web): natless detach ends it")

	r.wears(2, "192.0.2.3")
	for i := range 400 {
		r.pass(1)
		for n := range 3 { // there is room for one of them
			r.send(3 + n)
		}
		if i == 200 {
			r.start()
		}
	}
	r.pass(1500)
	l := r.x.Leases()
	require.Len(t, l, 1)
	assert.Equal(t, lessee(1), l[0].IPv6)
	assert.True(t, l[0].Pinned)
	assert.Equal(t, "web", l[0].Label)
}

// What is attached late, long after it leased, is pinned as well.
func TestPinnedLate(t *testing.T) {
	p := poolOf("192.0.2.0/30")
	p.Idle = time.Hour
	r := rigOf(t, newMemory(), p)
	for range 100 {
		r.wears(1, "192.0.2.2")
		r.wears(2, "192.0.2.3")
		r.answer("192.0.2.2")
		r.answer("192.0.2.3")
		r.pass(1)
	}
	r.attach(1)
	for range 200 {
		r.pass(1)
		r.wears(2, "192.0.2.3")
		r.stopped(3, translate.PoolFull)
	}
	assert.Contains(t, r.lent(), "192.0.2.2 2001:db8::1")
}

// A client that was detached finds its own again, also after a restart, and
// nobody else gets it before its quarantine is over.
func TestDetach(t *testing.T) {
	for name, p := range map[string]Pool{"address": poolOf("192.0.2.0/30"), "range": rangesOf("192.0.2.2/32")} {
		t.Run(name, func(t *testing.T) {
			p.Quarantine = 300 * time.Second
			store := newMemory()
			r := rigOf(t, store, p)
			r.attach(2)
			a := r.attach(1)
			before := r.x.Leases()
			revision := r.x.Revision()
			store.before = disk
			_, err := r.x.Detach(a.ID, "me")
			require.ErrorIs(t, err, ErrUnavailable)
			require.Len(t, r.x.Attachments(), 2)
			require.Equal(t, before, r.x.Leases())
			store.before = nil

			gone, err := r.x.Detach(a.ID, "its target is gone")
			require.NoError(t, err)
			assert.Equal(t, a, gone)
			assert.Equal(t, []Op{OpLeaseEnded}, r.ops(revision))
			assert.Len(t, r.x.Leases(), 1)
			assert.Len(t, r.x.Attachments(), 1)
			assert.EqualValues(t, 1, r.x.Pools()[0].Quarantined)
			_, err = r.x.Detach(a.ID, "me")
			assert.ErrorIs(t, err, ErrUnknown)
			for range 2 {
				for n := range 5 {
					other, v := r.send(10 + n)
					require.False(t, v == translate.OK && r.x.Explain(lessee(10+n)).Lease.Ports == a.Ports && other == a.IPv4)
				}
				r.start() // the second time after a crash
			}
			l, err := r.lend(1, "")
			require.NoError(t, err)
			assert.Equal(t, []any{a.IPv4, a.Ports}, []any{l.IPv4, l.Ports}, "its own")
			assert.False(t, l.Pinned)
			_, err = r.x.Detach("4:2", "me")
			require.NoError(t, err)
			r.start()
			assert.Empty(t, r.x.Attachments())
		})
	}
}

func TestAttach(t *testing.T) {
	store := newMemory()
	r := newRig(t, store, Config{
		Pref64: pfx("64:ff9b::/96"), Pools: []Pool{rangesOf("192.0.2.2/32")}, OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"),
		Maps: []Map{{IPv4: pfx("203.0.113.0/24"), IPv6: pfx("2001:db8:1::/120"), Origin: "f:1"}},
	})
	claims := attachment(1)
	claims.IPv4 = addr("192.0.2.2")
	_, err := r.x.Attach(claims, "me")
	require.ErrorIs(t, err, ErrUnknown)
	assert.EqualError(t, err, "attach box1: no such entry: 2001:db8::1 has neither a lease nor a map")

	// The lease may come later, from a link that is made then.
	early, err := r.x.Attach(attachment(1), "me")
	require.NoError(t, err)
	assert.False(t, early.IPv4.IsValid())
	lent, err := r.x.Lend(t.Context(), early.IPv6, "", "me")
	require.NoError(t, err)
	assert.True(t, lent.Pinned)

	a := r.attach(1)
	assert.Equal(t, []any{addr("192.0.2.2"), "1-100", uint16(90)}, []any{a.IPv4, a.Ports, a.StatelessLast})
	wrong := a
	wrong.Ports = "101-200"
	_, err = r.x.Attach(wrong, "me")
	require.ErrorIs(t, err, ErrConflict)
	assert.EqualError(t, err, "attach box1: 2001:db8::1 has ports 1-100 of 192.0.2.2, and not ports 101-200 of 192.0.2.2")

	r.pass(5)
	more := a
	more.Count, more.Label, more.Seen = 2, "db", "now"
	more, err = r.x.Attach(more, "me")
	require.NoError(t, err)
	assert.Equal(t, a.Since, more.Since)
	assert.Equal(t, []Attachment{more}, r.x.Attachments())
	assert.Equal(t, "db", r.x.Leases()[0].Label)

	// A second namespace with the same client: the lease ends with the last.
	second := attachment(1)
	second.ID = "4:99"
	_, err = r.x.Attach(second, "me")
	require.NoError(t, err)
	_, err = r.x.Detach(a.ID, "me")
	require.NoError(t, err)
	assert.True(t, r.x.Leases()[0].Pinned)

	// The namespace has another client now.
	_, err = r.lend(5, "")
	require.NoError(t, err)
	second.IPv6 = lessee(5)
	_, err = r.x.Attach(second, "me")
	require.NoError(t, err)
	assert.Equal(t, []string{"192.0.2.2 2001:db8::5 101-200"}, r.lent())

	mapped := attachment(9)
	mapped.IPv6 = addr("2001:db8:1::9")
	mapped, err = r.x.Attach(mapped, "me")
	require.NoError(t, err)
	assert.Equal(t, addr("203.0.113.9"), mapped.IPv4)
	_, err = r.x.Detach(mapped.ID, "me")
	require.NoError(t, err)

	for want, spoil := range map[string]func(*Attachment){
		"id: expected DEV:INODE in hex":                            func(a *Attachment) { a.ID = "web" },
		"target: expected 1 to 4096 bytes of printable characters": func(a *Attachment) { a.Target = "" },
		"namespace: expected an absolute path":                     func(a *Attachment) { a.Namespace = "web" },
		"pid and started: expected both or none":                   func(a *Attachment) { a.PID = 7 },
		"ipv6 192.0.2.1: expected an IPv6 address":                 func(a *Attachment) { a.IPv6 = addr("192.0.2.1") },
		"ipv4 fd00::1: expected an IPv4 address":                   func(a *Attachment) { a.IPv4 = addr("fd00::1") },
		"undo: expected JSON":                                      func(a *Attachment) { a.Undo = []byte("{") },
		"count 0: expected at least 1":                             func(a *Attachment) { a.Count = 0 },
		"host: expected a link and its index":                      func(a *Attachment) { a.Host = &HostSide{Link: "veth1"} },
		"label: expected printable characters only":                func(a *Attachment) { a.Label = "\x01" },
	} {
		a := attachment(5)
		spoil(&a)
		_, err := r.x.Attach(a, "me")
		assert.ErrorContains(t, err, want)
	}
}

// What a reload or a map takes from an attachment is told, and what its client
// leases then is pinned again.
func TestAttachmentsLoseTheirLeases(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/29"))
	a := r.attach(1)
	assert.NoError(t, r.x.Held(a))
	next := r.config
	next.Pools = []Pool{poolOf("198.51.100.0/29")}
	diff, err := r.x.Reload(next, "me")
	require.NoError(t, err)
	require.Len(t, diff.LeasesEnded, 1)
	assert.True(t, diff.LeasesEnded[0].Pinned)
	assert.EqualError(t, r.x.Held(a), "no such entry: 2001:db8::1 has neither a lease nor a map")
	r.wears(1, "198.51.100.1")
	const other = "2001:db8::1 has 198.51.100.1, and not 192.0.2.2"
	assert.EqualError(t, r.x.Held(a), other)
	assert.EqualError(t, r.x.Regain(t.Context(), a, "me"), other)
	l := r.x.Leases()[0]
	assert.Equal(t, []any{true, "web", true}, []any{l.Pinned, l.Label, l.Proven})
	r.pass(5000)
	assert.Len(t, r.x.Leases(), 1)
	r.config = next
	r.start()
	assert.Len(t, r.x.Leases(), 1)
	a.IPv4 = netip.Addr{}
	a, err = r.x.Attach(a, "me")
	require.NoError(t, err)
	assert.NoError(t, r.x.Held(a))

	_, err = r.x.Apply([]Change{{Add: &Map{IPv4: pfx("203.0.113.1/32"), IPv6: netip.PrefixFrom(lessee(1), 128)}}}, "me")
	require.NoError(t, err)
	assert.Empty(t, r.x.Leases())
	assert.Error(t, r.x.Held(a))
	_, err = r.x.Detach(a.ID, "me")
	require.NoError(t, err)
}

// What is left to undo of a target that is gone is recorded, and pins nothing.
func TestAttachmentOfGoneTarget(t *testing.T) {
	store := newMemory()
	r := rigOf(t, store, poolOf("192.0.2.0/29"))
	a := r.attach(1)
	a.Gone = true
	_, err := r.x.Attach(a, "me")
	require.NoError(t, err)
	assert.Empty(t, r.x.Leases())
	assert.NoError(t, r.x.Held(a))
	require.Len(t, r.x.Attachments(), 1)
	assert.True(t, r.x.Attachments()[0].Gone)
	r.start()
	assert.True(t, r.x.Attachments()[0].Gone, "saved")
	r.wears(1, "192.0.2.2") // kept for it
	assert.False(t, r.x.Leases()[0].Pinned)
	_, err = r.x.Detach(a.ID, "me")
	require.NoError(t, err)
	assert.Len(t, r.x.Leases(), 1, "not the attachment's")
	assert.Empty(t, r.x.Attachments())

	// Another namespace may have got its number.
	a = r.attach(1)
	a.Gone = true
	_, err = r.x.Attach(a, "me")
	require.NoError(t, err)
	r.attach(1)
	assert.True(t, r.x.Leases()[0].Pinned)
	_, err = r.x.Detach(a.ID, "me")
	require.NoError(t, err)
	assert.Empty(t, r.x.Leases())
}

// What an attachment has lost it regains when its pool is back, also where nothing
// is saved, and not what others have by then.
func TestAttachmentsRegain(t *testing.T) {
	ranges := rangesOf("192.0.2.0/29")
	ranges.Ports = Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535}
	for _, p := range []Pool{poolOf("192.0.2.0/29"), ranges} {
		for _, store := range []Store{newMemory(), nil} {
			r := rigOf(t, store, p)
			first, a := r.attach(1), r.attach(2)
			gone, back := r.config, r.config
			gone.Pools = []Pool{poolOf("198.51.100.0/29")}
			gone.Pools[0].Clients = []netip.Prefix{pfx("fd00::/64")}
			_, err := r.x.Reload(gone, "me")
			require.NoError(t, err)
			assert.Error(t, r.x.Held(a))
			assert.ErrorContains(t, r.x.Regain(t.Context(), a, "me"), "has neither a lease nor a map")
			_, err = r.x.Reload(back, "me")
			require.NoError(t, err)
			assert.Error(t, r.x.Held(a), "its client is silent")
			require.NoError(t, r.x.Regain(t.Context(), a, "me"))
			require.NoError(t, r.x.Regain(t.Context(), a, "me"))
			assert.NoError(t, r.x.Held(a))
			assert.True(t, r.x.Leases()[0].Pinned)
			require.NoError(t, r.x.Regain(t.Context(), first, "me"), "whoever came before")
		}
	}
}

// A range rests, also one that nobody ever answered: its neighbours go on with
// the same address. Its client finds it again.
func TestUnansweredRangeRests(t *testing.T) {
	r := rigOf(t, newMemory(), rangesOf("192.0.2.2/32")) // of three
	r.send(1)
	r.pass(61)
	require.Empty(t, r.x.Leases())
	assert.EqualValues(t, 1, r.x.Pools()[0].Quarantined)
	for n := range 2 {
		require.True(t, r.leases(2+n))
	}
	r.stopped(4, translate.PoolFull)
	r.start()
	r.stopped(4, translate.PoolFull)
	require.True(t, r.leases(1))
	assert.Contains(t, r.lent(), "192.0.2.2 2001:db8::1 1-100", "its own")
	r.pass(61)
	for range 78 {
		require.Empty(t, r.x.Leases())
		r.stopped(4, translate.PoolFull)
		r.pass(3)
	}
	r.pass(10)
	require.True(t, r.leases(4))
}

// Without a store all of it is in memory.
func TestAttachmentsInMemory(t *testing.T) {
	r := rigOf(t, nil, poolOf("192.0.2.0/29"))
	a := r.attach(1)
	r.pass(1000)
	assert.Equal(t, []string{"192.0.2.2 2001:db8::1"}, r.lent())
	_, err := r.x.Detach("web", "me")
	assert.ErrorContains(t, err, "expected the id of an attachment")
	_, err = r.x.Detach(a.ID, "me")
	require.NoError(t, err)
	assert.Empty(t, r.lent())
	r.start()
	assert.Empty(t, r.x.Attachments())
}

// In a full pool ranges that nobody answers end after a minute, and rest; what
// their clients go on to send does not get them back before others.
func TestPressureOnRanges(t *testing.T) {
	r := rigOf(t, newMemory(), rangesOf("192.0.2.2/32"))
	for n := range 3 {
		require.True(t, r.leases(1+n))
	}
	r.answerPort(addr("192.0.2.2"), 1)
	full := func(seconds int) {
		for range seconds {
			r.pass(1)
			for n := range 3 { // so that none is idle
				send(r.x, lessee(1+n), r.tick)
			}
			r.stopped(9, translate.PoolFull)
		}
	}
	full(59)
	require.Len(t, r.x.Leases(), 3)
	full(10)
	assert.Equal(t, []string{"192.0.2.2 2001:db8::1 1-100"}, r.lent())
	full(230)
	assert.Equal(t, []string{"192.0.2.2 2001:db8::1 1-100"}, r.lent())
	for range 15 {
		r.pass(1)
		r.send(1)
	}
	assert.True(t, r.leases(9))
	assert.True(t, r.leases(8), "they are not kept for those that had them")
}
