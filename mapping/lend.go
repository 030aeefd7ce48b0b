package mapping

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Lend makes sure that a client has a lease, as its first packet would, but for
// the rates that hold for packets. It returns when the lease is durable, or with
// ErrUnavailable when the context has ended before; then it may come to be, and
// who asks again gets it. A client that has a lease keeps it. A label that is
// not "" becomes the lease's; and a client for which nothing is kept is who had
// that label before, under another IPv6 address: it gets at once what was called
// so and is not lent, the most recent if there are several. by says who asked.
//
// Errors wrap ErrMapped, ErrNotPermitted, ErrPoolFull or ErrUnavailable, or tell
// what is malformed.
func (t *Table) Lend(ctx context.Context, client netip.Addr, label, by string) (Lease, error) {
	late := func() (Lease, error) {
		return Lease{}, fmt.Errorf("lease for %v: %w: not saved in time", client, ErrUnavailable)
	}
	select {
	case t.lending <- struct{}{}: // one, however often somebody tries while the disk hangs
	case <-ctx.Done():
		return late()
	}
	type answer struct {
		lease Lease
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		l, err := t.lend(client, label, by)
		<-t.lending
		done <- answer{l, err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return Lease{}, fmt.Errorf("lease for %v: %w", client, a.err)
		}
		if k := t.keeper; k != nil && k.Wake != nil {
			k.Wake() // its packets may wait
		}
		return a.lease, nil
	case <-ctx.Done():
		return late()
	}
}

func (t *Table) lend(client netip.Addr, label, by string) (Lease, error) {
	if !client.Is6() || client.Is4In6() || client.Zone() != "" {
		return Lease{}, errors.New("expected an IPv6 address")
	}
	if err := CheckLabel(label); err != nil {
		return Lease{}, fmt.Errorf("label: %w", err)
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	g := t.stage(1)
	l := g.leaseOf(client)
	if l == nil {
		return t.lendNew(g, client, label, by)
	}
	l.used(t.tick.Load()) // so that it does not end before somebody comes to use it
	if label == "" || label == l.labelled() {
		return t.leaseInfo(&l.entry), nil
	}
	saved := l.saved(time.Time{})
	saved.Label = label
	if err := t.save(Batch{Leases: []SavedLease{saved}}); err != nil {
		return Lease{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l.relabel(label)
	g.tell(OpLeaseNoted, l, by)
	t.publish(g)
	return t.leaseInfo(&l.entry), nil
}

// lendNew makes the lease of a client that has none. writing must be held.
func (t *Table) lendNew(g *stage, client netip.Addr, label, by string) (Lease, error) {
	switch e, _ := g.v6.Lookup(client); {
	case e != nil && e.kind == kindMap:
		return Lease{}, fmt.Errorf("%w: it is %v, by %v", ErrMapped, e.to4(client), e.of)
	case e != nil:
		return Lease{}, fmt.Errorf("%w: it is an address of %v", ErrNotPermitted, e.of)
	case !g.permits(client):
		return Lease{}, fmt.Errorf("%w: it is among no pool's clients", ErrNotPermitted)
	}
	t.mu.Lock()
	s, tick := t.current.Load(), t.tick.Load()
	s.wake(tick)
	x, ok := t.take(s, client, label, tick, t.now())
	t.mu.Unlock()
	if !ok {
		return Lease{}, fmt.Errorf("%w: all that its pools have is lent or in quarantine", ErrPoolFull)
	}
	if err := t.grant([]grant{x}, by); err != nil {
		return Lease{}, err
	}
	return t.leaseInfo(&x.lease.entry), nil
}
