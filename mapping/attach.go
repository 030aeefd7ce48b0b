package mapping

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// A network namespace may be attached: a command has set it up for natless,
// and what it needs to undo that is kept here, durably. The attachment pins the
// lease of the namespace's client: it ends neither by being idle nor by
// max_life, for want of an answer or because others lack addresses, but only
// with the attachment, or because the configuration or a map leaves it no room.

// Attachment is a network namespace that was set up for natless. The JSON
// names are stable.
type Attachment struct {
	ID            string          `json:"id"`     // "DEV:INODE" of the namespace's file in hex: one namespace has one attachment
	Target        string          `json:"target"` // as the user named it
	Label         string          `json:"label,omitempty"`
	Namespace     string          `json:"namespace"`         // the path by which it was opened: /proc/PID/ns/net, or a file such as /run/netns/NAME
	PID           int             `json:"pid,omitempty"`     // of the process by which it was found; 0: by a file
	Started       uint64          `json:"started,omitempty"` // field 22 of /proc/PID/stat, so that a reused PID is not it
	IPv6          netip.Addr      `json:"ipv6"`              // of the client
	IPv4          netip.Addr      `json:"ipv4,omitzero"`     // lent or mapped to it
	Ports         string          `json:"ports,omitempty"`   // "FIRST-LAST", of a range
	StatelessLast uint16          `json:"stateless_last,omitempty"`
	Count         int             `json:"count"`          // attach calls that hold it
	Undo          json.RawMessage `json:"undo,omitempty"` // what must be restored inside; the command's own
	Host          *HostSide       `json:"host,omitempty"`
	Since         time.Time       `json:"since"`             // when it was first recorded
	Boot          string          `json:"boot,omitempty"`    // of the host, since when it is known: none outlives that
	Seen          string          `json:"seen,omitempty"`    // by what the daemon knows the target again; "": it cannot see it, and will not notice that it is gone
	Gone          bool            `json:"gone,omitempty"`    // the target is, and something of Undo is left to do: it pins nothing
	Problem       string          `json:"problem,omitempty"` // of a listing: why it does not work; it is not recorded
}

// HostSide is what was made on the host for an attachment, on one link.
type HostSide struct {
	Link   string         `json:"link"`
	Index  int            `json:"index"`            // of the link
	Made   bool           `json:"made,omitempty"`   // the link was made too: it is the host end of a veth pair
	Routes []netip.Prefix `json:"routes,omitempty"` // over it
}

// String names an attachment as errors and logs do.
func (a Attachment) String() string {
	if a.Label == "" || a.Label == a.Target {
		return fmt.Sprintf("the attachment of %s", a.Target)
	}
	return fmt.Sprintf("the attachment of %s (%s)", a.Target, a.Label)
}

var attachmentID = regexp.MustCompile(`^[0-9a-f]{1,16}:[0-9a-f]{1,16}$`)

// Check says what is malformed about an attachment.
func (a Attachment) Check() error {
	odd := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case !attachmentID.MatchString(a.ID):
		return errors.New("id: expected DEV:INODE in hex")
	case a.Target == "" || len(a.Target) > 4096 || strings.ContainsFunc(a.Target, odd):
		return errors.New("target: expected 1 to 4096 bytes of printable characters")
	case !filepath.IsAbs(a.Namespace) || len(a.Namespace) > 4096 || strings.ContainsFunc(a.Namespace, odd):
		return errors.New("namespace: expected an absolute path")
	case a.PID < 0 || (a.PID == 0) != (a.Started == 0):
		return errors.New("pid and started: expected both or none")
	case !a.IPv6.Is6() || a.IPv6.Is4In6() || a.IPv6.Zone() != "":
		return fmt.Errorf("ipv6 %v: expected an IPv6 address", a.IPv6)
	case a.IPv4.IsValid() && !a.IPv4.Is4():
		return fmt.Errorf("ipv4 %v: expected an IPv4 address", a.IPv4)
	case a.Count < 1:
		return fmt.Errorf("count %d: expected at least 1", a.Count)
	case len(a.Undo) > 0 && !json.Valid(a.Undo):
		return errors.New("undo: expected JSON")
	case a.Host != nil && (a.Host.Link == "" || a.Host.Index < 1):
		return errors.New("host: expected a link and its index")
	}
	if err := CheckLabel(a.Label); err != nil {
		return fmt.Errorf("label: %w", err)
	}
	return nil
}

// Attachments lists them, the oldest first.
func (t *Table) Attachments() []Attachment {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]Attachment, 0, len(t.attachments))
	for _, a := range t.attachments {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b Attachment) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// holder is an attachment of a client that has one. writing must be held, or mu.
func (t *Table) holder(client netip.Addr) (holder Attachment) {
	for _, a := range t.attachments {
		if a.IPv6 == client && !a.Gone && (holder.ID == "" || a.ID < holder.ID) {
			holder = a
		}
	}
	return holder
}

// pin has a new lease be what the attachments of its client make it. mu must
// be held.
func (t *Table) pin(l *lease) {
	if t.pins[l.v6] == 0 {
		return
	}
	l.pinned.Store(true)
	l.proven.Store(true)
	l.noted = true
	l.relabel(t.holder(l.v6).Label)
}

// leaseOf is the lease of a client; nil if it has none. g may be any stage.
func (g *stage) leaseOf(client netip.Addr) *lease {
	if e, _ := g.v6.Get(netip.PrefixFrom(client, 128)); e != nil && e.leased() {
		return e.of.(*lease)
	}
	return nil
}

// Attach records an attachment, in the place of one with its ID. When it
// returns without an error that is durable, and the client's lease is pinned
// and has the label. What the attachment says of the client's IPv4 side must be
// so (ErrUnknown, ErrConflict), or be left out: then the client need have none
// yet. It returns what is recorded. by says who asked.
func (t *Table) Attach(a Attachment, by string) (Attachment, error) {
	fail := func(err error) (Attachment, error) { return Attachment{}, fmt.Errorf("attach %s: %w", a.Target, err) }
	if err := a.Check(); err != nil {
		return fail(err)
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	g := t.stage(1)
	var err error
	if !a.Gone {
		a, err = g.settled(a)
	}
	if err != nil {
		return fail(err)
	}
	former, there := t.attachments[a.ID]
	a.Since, a.Problem = t.now(), ""
	if there {
		a.Since = former.Since
	}
	if there && (a.Gone || former.IPv6 != a.IPv6) {
		g.unpin(former, by)
	}
	b := g.batch(t.current.Load())
	b.PutAttachments = []Attachment{a}
	var l *lease
	if !a.Gone {
		l = g.leaseOf(a.IPv6)
	}
	label := a.Label
	if l != nil {
		saved := l.saved(time.Time{})
		label = cmp.Or(label, saved.Label)
		saved.Proven, saved.Label = true, label
		b.Leases = append(b.Leases, saved)
	}
	if err := t.save(b); err != nil {
		return fail(err)
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if there {
		t.drop(former)
	}
	t.record(a)
	if l != nil && (!l.pinned.Load() || l.labelled() != label) {
		l.pinned.Store(true)
		l.proven.Store(true)
		l.noted = true
		l.relabel(label)
		if l.place >= 0 {
			heap.Remove(&l.pool.Load().due, int(l.place))
		}
		g.tell(OpLeaseNoted, l, by)
	}
	if len(g.events) > 0 {
		t.publish(g)
	}
	return a, nil
}

// settled is an attachment with what its client has on the IPv4 side.
func (g *stage) settled(a Attachment) (Attachment, error) {
	e, _ := g.v6.Lookup(a.IPv6)
	if e == nil && !a.IPv4.IsValid() {
		a.Ports, a.StatelessLast = "", 0 // the link from which it may lease is to be made yet
		return a, nil
	}
	if e == nil || e.kind > kindRange {
		return a, fmt.Errorf("%w: %v has neither a lease nor a map", ErrUnknown, a.IPv6)
	}
	said := a
	v4, r, _ := e.source(a.IPv6)
	a.IPv4, a.Ports, a.StatelessLast = v4, "", 0
	if r != nil {
		a.Ports, a.StatelessLast = e.of.(*lease).saved(time.Time{}).Ports(), r.Session-1
	}
	if said.IPv4.IsValid() && (said.IPv4 != a.IPv4 || said.Ports != a.Ports || said.StatelessLast != a.StatelessLast) {
		return a, conflict("%v has %s, and not %s", a.IPv6, a.Side4(), said.Side4())
	}
	return a, nil
}

// Side4 is what an attachment has on the IPv4 side, in words.
func (a Attachment) Side4() string {
	switch {
	case !a.IPv4.IsValid():
		return "no IPv4 address"
	case a.Ports != "":
		return fmt.Sprintf("ports %s of %v", a.Ports, a.IPv4)
	}
	return a.IPv4.String()
}

// Detach forgets an attachment and ends the lease that it pinned, unless
// another pins that too. When it returns without an error that is durable.
// Until its quarantine is over the address or range is kept for its client. It
// returns what was recorded. by says who asked, or why it is done.
func (t *Table) Detach(id, by string) (Attachment, error) {
	if !attachmentID.MatchString(id) {
		return Attachment{}, errors.New("detach: expected the id of an attachment, DEV:INODE in hex")
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	a, there := t.attachments[id]
	if !there {
		return a, fmt.Errorf("detach %s: %w: there is no such attachment", id, ErrUnknown)
	}
	g := t.stage(1)
	g.unpin(a, by)
	b := g.batch(t.current.Load())
	b.RemoveAttachments = []string{id}
	if err := t.save(b); err != nil {
		return a, fmt.Errorf("detach %s: %w", a.Target, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(a)
	if len(g.events) > 0 {
		t.publish(g)
	}
	return a, nil
}

// unpin ends the lease that an attachment pins, if it is the last to do so.
func (g *stage) unpin(a Attachment, by string) {
	if l := g.leaseOf(a.IPv6); l != nil && !a.Gone && g.t.pins[a.IPv6] == 1 {
		g.end(l, by)
	}
}

// record keeps an attachment. writing and mu must be held.
func (t *Table) record(a Attachment) {
	t.attachments[a.ID] = a
	if !a.Gone {
		t.pins[a.IPv6]++
	}
}

// drop forgets an attachment. writing and mu must be held.
func (t *Table) drop(a Attachment) {
	delete(t.attachments, a.ID)
	if a.Gone {
		return
	}
	if t.pins[a.IPv6]--; t.pins[a.IPv6] == 0 {
		delete(t.pins, a.IPv6)
	}
}

// Held says why an attachment does not work: its client has another IPv4 side than
// when it was attached, or none any more. It is nil of one that works.
func (t *Table) Held(a Attachment) error {
	if a.Gone {
		return nil
	}
	g := &stage{t: t, v6: t.current.Load().v6}
	_, err := g.settled(a)
	return err
}

// Regain lends to the client of an attachment again what that has lost, where a pool
// has it and lends to the client again. It returns nil when the attachment works.
// by says who asked.
func (t *Table) Regain(ctx context.Context, a Attachment, by string) error {
	err := t.Held(a)
	if err == nil {
		return nil
	}
	back := slices.ContainsFunc(t.current.Load().pools, func(p *pool) bool {
		return p.IPv4.Contains(a.IPv4) && p.permits(a.IPv6)
	})
	if !back {
		return err
	}
	if _, err := t.Lend(ctx, a.IPv6, a.Label, by); err != nil {
		return err
	}
	return t.Held(a)
}

// keptForAttached are the units that attachments are recorded to have and that
// nobody has had since, as far as the list of what came back knows: their clients get
// them back. writing must be held.
func (t *Table) keptForAttached(list []*returned, tick uint32) (kept []*returned) {
	type unit struct {
		netip.Addr
		ports [2]uint16
	}
	back := make(map[unit]bool, len(list))
	var wide []*returned // taken by maps
	for _, r := range list {
		if back[unit{r.addr(), r.ports}] = true; r.prefix.Bits() < 32 {
			wide = append(wide, r)
		}
	}
	for _, a := range t.attachments {
		if a.Gone || !a.IPv4.IsValid() {
			continue
		}
		r := &returned{prefix: netip.PrefixFrom(a.IPv4, 32), client: a.IPv6, label: a.Label, kept: true, at: tick}
		if _, err := fmt.Sscanf(a.Ports, "%d-%d", &r.ports[0], &r.ports[1]); err != nil && a.Ports != "" {
			continue
		}
		within := func(x *returned) bool { return x.prefix.Contains(a.IPv4) }
		if !back[unit{a.IPv4, r.ports}] && !slices.ContainsFunc(wide, within) {
			kept = append(kept, r)
		}
	}
	return kept
}
