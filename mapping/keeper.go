package mapping

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/natless/natless/translate"
)

// Keeper is what makes a table durable.
type Keeper struct {
	Store Store // nil: nothing outlives the process
	// Forget deletes the connection-tracking entries of what is about to be lent
	// to another client than before, so that no flow of the former client reaches
	// the new one. An error is logged; the quarantine has kept the two apart as
	// well.
	Forget func([]Portion) error
	// Wake is called when clients that were told LeasePending would be told
	// something else now.
	Wake func()
	Log  *slog.Logger // nil: nobody is told
}

// Portion is an IPv4 address, or the ports First to Last of one that clients
// share. Both are 0 where it is all of the address.
type Portion struct {
	IPv4        netip.Addr
	First, Last uint16
}

// keeper makes leases and ends them. Its work is done by one goroutine, that
// of RunKeeper: it gathers requests, chooses addresses, has all of it saved at
// once, and only then are the leases in force.
type keeper struct {
	Keeper
	counter
	table *Table
	clock func() time.Time // for the pace of things

	// Of the goroutine alone.
	admission admission
	commits   bucket
	waiting   []netip.Addr // admitted, and in the next commit
	admitted  map[netip.Addr]bool
	refuse    map[netip.Addr]translate.Verdict // to be told
	granted   bool                             // somebody is to be woken
	ticked    uint32

	told map[string]time.Time // when a line was logged; writing guards it

	unsaved unsaved
}

// grant is a lease that is to be.
type grant struct {
	offer
	lease *lease
}

// RunKeeper does the work of Keep until ctx ends, and then saves what is left.
func (t *Table) RunKeeper(ctx context.Context) error {
	k := t.keeper
	if k == nil {
		return errors.New("no Keep before RunKeeper")
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(k.step())
		select {
		case <-ctx.Done():
			return k.flush()
		case client := <-k.requests:
			k.receive(client)
		case e := <-k.proofs:
			k.proven(e)
		case <-k.nudge:
		case <-timer.C:
		}
	}
}

// step does what is to be done now, and says how long until it should be
// called again even if nobody calls.
func (k *keeper) step() time.Duration {
	k.collect()
	if tick := k.table.tick.Load(); tick != k.ticked {
		k.ticked = tick
		k.table.expire()
		k.table.relieve(tick)
	}
	wait := min(k.commit(), k.save())
	k.tell()
	return wait
}

// collect takes what workers have left.
func (k *keeper) collect() {
	for range asking {
		select {
		case client := <-k.requests:
			k.receive(client)
			continue
		case e := <-k.proofs:
			k.proven(e)
			continue
		default:
		}
		return
	}
}

// receive hears a request.
func (k *keeper) receive(client netip.Addr) {
	now := k.clock()
	switch {
	case k.admitted[client]:
	case k.failing():
		k.deny(client, translate.StateUnavailable)
	case !k.admission.admit(client, now):
		k.deny(client, translate.LeaseLimited)
	default:
		k.waiting = append(k.waiting, client)
		k.admitted[client] = true
	}
}

func (k *keeper) deny(client netip.Addr, v translate.Verdict) { k.refuse[client] = v }

// tell lets workers know what became of requests.
func (k *keeper) tell() {
	if len(k.refuse) > 0 {
		k.publishDenials(k.refuse, k.table.tick.Load())
		for client := range k.refuse {
			k.answered(client)
		}
		clear(k.refuse)
		k.granted = true
	}
	if k.granted && k.Wake != nil {
		k.Wake()
	}
	k.granted = false
}

// commit grants what was asked for, as soon as the disk may be written again,
// and says how long until then.
func (k *keeper) commit() time.Duration {
	if len(k.waiting) == 0 {
		return time.Hour
	}
	if wait := k.pause(); wait > 0 {
		return wait
	}
	t := k.table
	t.writing.Lock()
	defer t.writing.Unlock()
	grants := k.choose()
	if len(grants) > 0 {
		k.commits.take()
		if err := t.grant(grants, ""); err != nil {
			for _, x := range grants {
				k.deny(x.lease.v6, translate.StateUnavailable)
			}
		}
	}
	for _, client := range k.waiting {
		k.answered(client)
	}
	k.waiting = k.waiting[:0]
	clear(k.admitted)
	k.granted = true
	return time.Hour
}

// pause is how long the disk is spared.
func (k *keeper) pause() time.Duration {
	if k.Store == nil {
		return 0
	}
	return k.commits.wait(rateCommits, k.clock())
}

// choose takes an address for each client that waits.
func (k *keeper) choose() (grants []grant) {
	t := k.table
	t.mu.Lock()
	defer t.mu.Unlock()
	s, tick, since := t.current.Load(), t.tick.Load(), t.now()
	s.wake(tick)
	for _, client := range k.waiting {
		if e, _ := s.v6.Lookup(client); e != nil || !s.permits(client) {
			continue // there is another answer by now
		}
		x, ok := t.take(s, client, "", tick, since)
		if !ok {
			k.deny(client, translate.PoolFull)
			k.sometimes(slog.LevelWarn, "no address is left to lend: add a pool, or shorten idle", "client", client)
			continue
		}
		grants = append(grants, x)
	}
	return grants
}

// take takes an address for a client, if there is one. The lease has the label,
// if that is not "". writing and mu must be held.
func (t *Table) take(s *snapshot, client netip.Addr, label string, tick uint32, since time.Time) (grant, bool) {
	o := t.offer(s, client, label, tick)
	if o.pool == nil {
		s.lack(client, tick)
		return grant{}, false
	}
	o.take()
	l := t.newLease(o.pool, o.unit, client, since, tick)
	if label != "" {
		l.relabel(label)
	}
	if r := o.from; r != nil && r.kept {
		l.known = r.client == client || label != "" && r.label == label
	}
	return grant{o, l}, true
}

// grant has leases saved and puts them in force, or puts their addresses back.
// by says who asked. writing must be held, mu must not.
func (t *Table) grant(grants []grant, by string) error {
	g := t.stage(len(grants))
	var b Batch
	var forget []Portion
	for _, x := range grants {
		g.begin(x.lease, by)
		b.Leases = append(b.Leases, x.lease.saved(time.Time{}))
		if x.changesHands() {
			forget = append(forget, x.lease.portion())
		}
	}
	t.keeper.forget(forget)
	err := t.save(b)

	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		for _, x := range slices.Backward(grants) {
			x.putBack()
		}
		return err
	}
	for _, x := range grants {
		t.enter(x.lease)
	}
	t.publish(g)
	return nil
}

// changesHands reports whether somebody else may have had it before.
func (x grant) changesHands() bool {
	if x.from == nil {
		return x.pool.stranger
	}
	return x.from.client != x.lease.v6
}

// forget is called before what is in the list is lent to others. k may be nil.
func (k *keeper) forget(list []Portion) {
	if k == nil || len(list) == 0 || k.Forget == nil {
		return
	}
	if err := k.Forget(list); err != nil {
		k.sometimes(slog.LevelWarn, "connection-tracking entries of addresses lent anew remain", "error", err)
	}
}

// proven hears that something came back for a lease.
func (k *keeper) proven(e *entry) {
	t := k.table
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now, _ := t.current.Load().v6.Get(netip.PrefixFrom(e.v6, 128)); now == e {
		k.noteProof(e.of.(*lease))
	}
}

// sometimes logs a line at most once a minute.
func (k *keeper) sometimes(level slog.Level, line string, args ...any) {
	if now := k.clock(); k.told[line].IsZero() || now.Sub(k.told[line]) >= time.Minute {
		k.told[line] = now
		k.Log.Log(context.Background(), level, line, args...)
	}
}
