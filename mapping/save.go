package mapping

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

const (
	// Ends of leases and proofs wait so long to be saved with others. After a
	// crash a lease whose end was not saved goes on, and one whose proof was not
	// is proven by what next comes for it.
	saveEnds   = time.Second
	saveProofs = 5 * time.Second

	saveAgain = time.Second // after what could not be saved
	logAgain  = time.Minute // that it still cannot
)

// unsaved is what was not saved yet. The table's mu guards it; leases are
// added and taken only while writing is held too.
type unsaved struct {
	leases []SavedLease // in order
	by     time.Time    // when they must be

	problem string    // why nothing can be saved; "": it can
	retry   time.Time // not to be tried before
	logged  time.Time
	told    bool // of this problem
}

// note has leases saved by and by. k may be nil.
func (k *keeper) note(in time.Duration, leases ...SavedLease) {
	if k == nil || k.Store == nil || len(leases) == 0 {
		return
	}
	u := &k.unsaved
	if by := k.clock().Add(in); len(u.leases) == 0 || by.Before(u.by) {
		u.by = by
	}
	u.leases = append(u.leases, leases...)
}

// noteProof has it saved that a lease is proven, if it is. k may be nil.
func (k *keeper) noteProof(l *lease) {
	if k != nil && !l.noted && l.proven.Load() {
		l.noted = true
		k.note(saveProofs, l.saved(time.Time{}))
	}
}

// failing reports whether saving failed a moment ago.
func (k *keeper) failing() bool {
	t := k.table
	t.mu.Lock()
	defer t.mu.Unlock()
	return k.unsaved.problem != "" && k.clock().Before(k.unsaved.retry)
}

// StoreProblem says why nothing can be saved now; "" if it can, as far as is
// known.
func (t *Table) StoreProblem() string {
	if t.keeper == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.keeper.unsaved.problem
}

// save makes durable what was noted, in its order, and then the batch. writing
// must be held, mu must not. An error is ErrUnavailable, and nothing is saved.
func (t *Table) save(b Batch) error {
	k := t.keeper
	if k == nil || k.Store == nil {
		return nil
	}
	t.mu.Lock()
	b.Leases = append(k.unsaved.leases[:len(k.unsaved.leases):len(k.unsaved.leases)], b.Leases...)
	t.mu.Unlock()
	if len(b.Leases)+len(b.PutMaps)+len(b.RemoveMaps)+len(b.PutAttachments)+len(b.RemoveAttachments) == 0 {
		return nil
	}
	err := k.write(b)
	if errors.Is(err, ErrDamaged) {
		if err = k.renew(t.inMemory()); err == nil {
			err = k.write(b)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k.result(err)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	k.unsaved.leases = nil
	return nil
}

// write is Save, and read is Load, but a panic is an error: the dataplane goes
// on.
func (k *keeper) write(b Batch) (err error) {
	defer caught(&err)
	k.Log.Debug("saving", "leases", len(b.Leases), "maps", len(b.PutMaps)+len(b.RemoveMaps))
	if err = k.Store.Save(b); err == nil {
		k.Log.Debug("saved")
	}
	return err
}

// renew is Renew, as write is Save.
func (k *keeper) renew(s Saved) (err error) {
	defer caught(&err)
	return k.Store.Renew(s)
}

// nobody is the client of what no client is known to have had.
var nobody = netip.IPv6Unspecified()

// inMemory is what the store must have held before a batch: all of it is in
// memory, but for when ended leases began, those of addresses that no pool could
// lend since the start, and the history.
func (t *Table) inMemory() (saved Saved) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, tick, now := t.current.Load(), t.tick.Load(), t.now()
	for _, p := range s.pools {
		for _, r := range p.wide.All4() {
			for n := p.number(r.addr()); n < p.size && r.prefix.Contains(p.addr(n)); n += p.per {
				one := *r
				one.prefix = netip.PrefixFrom(p.addr(n), 32)
				saved.Leases = append(saved.Leases, one.saved(p, tick, now))
			}
		}
		for _, r := range p.returned {
			saved.Leases = append(saved.Leases, r.saved(p, tick, now))
		}
	}
	for l := range s.leases() { // after what had their addresses before
		saved.Leases = append(saved.Leases, l.saved(time.Time{}))
	}
	saved.Maps = slices.Concat(t.RuntimeMaps(), t.shelved)
	saved.Attachments = slices.Collect(maps.Values(t.attachments))
	return saved
}

// saved is a lease that has ended, as a Store keeps it. It lasted no time, or
// as long as it might where it is not kept for its client because of that.
func (r *returned) saved(p *pool, tick uint32, now time.Time) SavedLease {
	until := now.Add(-time.Duration(int32(tick-r.at)) * time.Second)
	since := until
	if !r.kept && !r.spare {
		since = until.Add(-p.MaxLife)
	}
	client := r.client
	if !client.IsValid() {
		client = nobody
	}
	return SavedLease{
		IPv4: r.addr(), First: r.ports[0], Last: r.ports[1], IPv6: client, Since: since, Until: until, Proven: !r.spare, Label: r.label,
	}
}

func (k *keeper) read() (s Saved, err error) {
	defer caught(&err)
	return k.Store.Load()
}

func caught(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v", r)
	}
}

// result notes how saving went.
func (k *keeper) result(err error) {
	u, now := &k.unsaved, k.clock()
	if err == nil {
		if u.told {
			k.Log.Info("state is saved again")
		}
		u.problem, u.told = "", false
		return
	}
	u.problem, u.retry = err.Error(), now.Add(saveAgain)
	if u.logged.IsZero() || now.Sub(u.logged) >= logAgain {
		u.logged, u.told = now, true
		k.Log.Error("cannot save state: leases go on, new ones are refused until it can be saved", "error", err)
	}
}

// save saves what was noted when it is time, or tries whether saving works
// again, and says how long until then.
func (k *keeper) save() time.Duration {
	t := k.table
	now := k.clock()
	t.mu.Lock()
	u := k.unsaved
	t.mu.Unlock()
	var wait time.Duration
	switch {
	case u.problem != "":
		wait = u.retry.Sub(now)
	case len(u.leases) > 0:
		wait = u.by.Sub(now)
	default:
		return time.Hour
	}
	if wait = max(wait, k.pause()); wait > 0 {
		return wait
	}
	k.commits.take()
	t.writing.Lock()
	defer t.writing.Unlock()
	var b Batch
	if u.problem != "" {
		b.RemoveMaps = []netip.Prefix{noMap}
	}
	if err := t.save(b); err != nil {
		return saveAgain
	}
	return time.Hour
}

// noMap is the IPv4 side of no map. Removing it shows whether the store can
// be written.
var noMap = netip.MustParsePrefix("0.0.0.0/32")

// flush saves all that was noted.
func (k *keeper) flush() error {
	t := k.table
	t.writing.Lock()
	defer t.writing.Unlock()
	return t.save(Batch{})
}

// History calls yield with every lease that was in force at a time, by IPv4
// address, until yield returns false. It is ErrGone for a time of which some may
// be forgotten.
func (t *Table) History(at time.Time, yield func(SavedLease) bool) error {
	if t.keeper == nil || t.keeper.Store == nil {
		return errors.New("no history: state is kept in memory only")
	}
	k := t.keeper
	ended := map[SavedLease]bool{} // before that time, and the store does not know yet
	t.mu.Lock()
	for _, l := range k.unsaved.leases {
		if until := l.Until; !until.IsZero() && !until.After(at) {
			ended[span(l)] = true
		}
	}
	t.mu.Unlock()
	return k.Store.History(at, func(l SavedLease) bool {
		return ended[span(l)] || yield(l)
	})
}

// span is what tells a lease from all others.
func span(l SavedLease) SavedLease {
	return SavedLease{IPv4: l.IPv4, First: l.First, IPv6: l.IPv6, Since: time.Unix(0, l.Since.UnixNano())}
}
