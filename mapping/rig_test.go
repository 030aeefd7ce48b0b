package mapping

import (
	"bytes"
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/translate"
)

// memory is a Store that outlives the tables that use it.
type memory struct {
	mu     sync.Mutex
	maps   map[netip.Prefix]Map
	leases map[savedKey]SavedLease
	past   []SavedLease // what was replaced
	held   map[string]Attachment
	saves  int // that wrote something
	tries  int
	before func(Batch) error // an error, or a panic, and nothing is saved
	after  func()            // as before, but it is saved

	damaged bool // nothing is saved before Renew
}

// savedKey is what a store knows a lease by.
type savedKey struct {
	ipv4  netip.Addr
	first uint16
}

func newMemory() *memory {
	return &memory{maps: map[netip.Prefix]Map{}, leases: map[savedKey]SavedLease{}, held: map[string]Attachment{}}
}

func (m *memory) Load() (s Saved, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Maps = slices.Collect(maps.Values(m.maps))
	s.Leases = slices.Collect(maps.Values(m.leases))
	s.Attachments = slices.Collect(maps.Values(m.held))
	slices.SortFunc(s.Maps, func(a, b Map) int { return a.IPv4.Compare(b.IPv4) })
	slices.SortFunc(s.Leases, func(a, b SavedLease) int {
		return cmp.Or(a.IPv4.Compare(b.IPv4), cmp.Compare(a.First, b.First))
	})
	return s, nil
}

func (m *memory) Renew(s Saved) error {
	m.lose()
	m.damaged = false
	return m.Save(Batch{PutMaps: s.Maps, Leases: s.Leases, PutAttachments: s.Attachments})
}

// lose forgets everything.
func (m *memory) lose() {
	m.maps, m.leases, m.held = map[netip.Prefix]Map{}, map[savedKey]SavedLease{}, map[string]Attachment{}
}

func (m *memory) Save(b Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tries++
	if m.damaged {
		return ErrDamaged
	}
	if m.before != nil {
		if err := m.before(b); err != nil {
			return err
		}
	}
	m.saves++
	for _, p := range b.RemoveMaps {
		delete(m.maps, p)
	}
	for _, x := range b.PutMaps {
		m.maps[x.IPv4] = x
	}
	for _, l := range b.Leases {
		key := savedKey{l.IPv4, l.First}
		if old, ok := m.leases[key]; ok && !old.Since.Equal(l.Since) {
			m.past = append(m.past, old)
		}
		m.leases[key] = l
	}
	for _, id := range b.RemoveAttachments {
		delete(m.held, id)
	}
	for _, a := range b.PutAttachments {
		m.held[a.ID] = a
	}
	if m.after != nil {
		m.after()
	}
	return nil
}

func (m *memory) History(at time.Time, yield func(SavedLease) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range slices.Concat(m.past, slices.Collect(maps.Values(m.leases))) {
		if !l.Since.After(at) && (l.Until.IsZero() || l.Until.After(at)) && !yield(l) {
			return nil
		}
	}
	return nil
}

// rig is a table with a keeper whose time passes when a test says so.
type rig struct {
	t      require.TestingT
	x      *Table
	config Config
	store  Store
	now    time.Time
	tick   uint32
	forgot []Portion
	woken  int
	log    bytes.Buffer
}

func newRig(t require.TestingT, store Store, c Config) *rig {
	r := &rig{t: t, store: store, now: time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC), tick: 1000, config: c}
	r.start()
	return r
}

// rigOf is a rig with one pool of 192.0.2.0, of which .1 is natless's own.
func rigOf(t require.TestingT, store Store, pools ...Pool) *rig {
	return newRig(t, store, Config{Pref64: pfx("64:ff9b::/96"), Pools: pools, OwnIPv4: addr("192.0.2.1"), OwnIPv6: addr("fd00::1"), Hairpin: true})
}

// start makes a table anew, as a process that starts does: its ticks begin
// at zero.
func (r *rig) start() (problems []string) {
	r.config.Now = func() time.Time { return r.now }
	r.config.Revision = uint64(r.now.Unix() * 1000)
	x, err := New(r.config)
	require.NoError(r.t, err)
	problems, err = x.Keep(Keeper{
		Store:  r.store,
		Forget: func(list []Portion) error { r.forgot = append(r.forgot, list...); return nil },
		Wake:   func() { r.woken++ },
		Log:    slog.New(slog.NewTextHandler(&r.log, nil)),
	})
	require.NoError(r.t, err)
	x.keeper.clock = func() time.Time { return r.now }
	r.x, r.tick = x, 0
	x.Expire(r.tick)
	x.keeper.step()
	return problems
}

// pass lets so many seconds pass.
func (r *rig) pass(seconds int) {
	for range seconds {
		r.now = r.now.Add(time.Second)
		r.tick++
		r.x.Expire(r.tick)
		r.x.keeper.step()
	}
}

// send sends a packet out from a client, and again when the keeper was at
// work.
func (r *rig) send(client int) (netip.Addr, translate.Verdict) {
	a, v := send(r.x, lessee(client), r.tick)
	if v == translate.LeasePending {
		r.x.keeper.step()
		a, v = send(r.x, lessee(client), r.tick)
	}
	return a, v
}

// leases reports whether a client has a lease after it sent a packet.
func (r *rig) leases(client int) bool {
	r.send(client)
	return slices.ContainsFunc(r.x.Leases(), func(l Lease) bool { return l.IPv6 == lessee(client) })
}

func (r *rig) wears(client int, want string) {
	if t, ok := r.t.(*testing.T); ok {
		t.Helper()
	}
	a, v := r.send(client)
	require.Equal(r.t, translate.OK.String(), v.String())
	require.Equal(r.t, addr(want), a)
}

func (r *rig) stopped(client int, want translate.Verdict) {
	if t, ok := r.t.(*testing.T); ok {
		t.Helper()
	}
	_, v := r.send(client)
	require.Equal(r.t, want.String(), v.String())
}

// answer sends a packet to an IPv4 address.
func (r *rig) answer(a string) translate.Verdict { return r.answerPort(addr(a), 0) }

func (r *rig) answerPort(a netip.Addr, port uint16) translate.Verdict {
	f := flow("203.0.113.80", a.String())
	f.DstPort = port
	_, v := r.x.Resolve(f, r.tick)
	r.x.keeper.step()
	return v
}

// lent lists what is lent, for comparison.
func (r *rig) lent() (list []string) {
	for _, l := range r.x.Leases() {
		list = append(list, strings.TrimSpace(l.IPv4.String()+" "+l.IPv6.String()+" "+l.Ports))
	}
	return list
}

func (r *rig) logged(line string) int { return strings.Count(r.log.String(), line) }

var errDisk = errors.New("no space left on device")

func disk(Batch) error { return errDisk }
