// Package attach makes a network namespace, somebody's container, use a running
// natless, and undoes it: it stands where the way of a packet begins. Inside the
// namespace it sees to a source address, a route to pref64, the range of ports
// and, where asked, the resolver; with a link of its own where there is none.
//
// The short-lived commands do all of it, for entering another's namespace takes
// more rights than the daemon has. The daemon lends the address and keeps the
// record: what is to be undone is written there before anything is changed, so
// that a second command can undo what a killed one did.
//
// target.go finds the namespace that a user means, engine.go asks Podman and
// Docker, namespace.go looks into it, link.go, portrange.go and resolver.go plan
// what to change there, and undo.go carries the plan out and takes it back. This
// file has the order of things.
package attach

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/lockfile"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// Daemon is the running natless, as control.Client asks it.
type Daemon interface {
	Status(context.Context) (control.Status, error)
	Explain(context.Context, netip.Addr) (json.RawMessage, error)
	Lend(ctx context.Context, client netip.Addr, label string) (mapping.Lease, error)
	Attachments(context.Context) iter.Seq2[mapping.Attachment, error]
	Attach(context.Context, mapping.Attachment) (mapping.Attachment, error)
	Records
}

// Records are where attachments are written down.
type Records interface {
	Detach(ctx context.Context, id string) (mapping.Attachment, error)
}

// Options are what a user may ask for.
type Options struct {
	Link  bool       // make a link where the namespace has no IPv6 that leads to natless
	Force bool       // also where it has IPv4 of its own
	Label string     // "": that of the target
	DNS   netip.Addr // point its resolver there, if valid
	DNS64 bool       // or to natless's own

	Wait lockfile.Wait // for another command that works on the same namespace
}

// Result is what was done.
type Result struct {
	mapping.Attachment
	Already  bool     `json:"already,omitempty"`  // it was so before
	Done     []string `json:"done,omitempty"`     // what was changed, in words
	Warnings []string `json:"warnings,omitempty"` // what the user should know
}

// state is what an attachment's Undo holds.
type state struct {
	Changes
	Home    string   `json:"home"` // the ID of the network namespace from which they are made, natless's
	Holders []holder `json:"holders"`
	Whole   bool     `json:"whole"` // all of the changes are made
}

// holder is a target that holds an attachment: containers may share a namespace.
type holder struct {
	Target   string `json:"target"`
	Label    string `json:"label"`
	Path     string `json:"path"`
	PID      int    `json:"pid,omitempty"`
	Started  uint64 `json:"started,omitempty"`
	Resolver *File  `json:"resolver,omitempty"`
}

// holder is the target as one, with what is planned for its resolver.
func (t *Target) holder(o Options) (h holder, err error) {
	h = holder{Target: t.Given, Label: cmp.Or(o.Label, t.Label), Path: t.Path, PID: t.PID, Started: t.Started}
	if o.DNS.IsValid() {
		h.Resolver, err = t.resolver(o.DNS)
	}
	return h, err
}

// point points the holder's resolver, if it is to be.
func (h holder) point() error {
	if h.Resolver == nil {
		return nil
	}
	beforeStep("pointing " + h.Resolver.Path)
	if err := h.Resolver.point(); err != nil {
		return fmt.Errorf("pointing its resolver: %w", err)
	}
	return nil
}

// restore undoes point.
func (h holder) restore() (stays []string, err error) {
	if h.Resolver == nil || h.Resolver.PID != 0 && h.gone() {
		return nil, nil
	}
	beforeStep("restoring " + h.Resolver.Path)
	line, err := h.Resolver.restore()
	if line != "" {
		stays = []string{line}
	}
	return stays, err
}

// words says what is changed.
func (s *state) words() (words []string) {
	if s.Link != nil {
		words = append(words, "link "+s.Link.Host)
	}
	for _, r := range s.routes() {
		words = append(words, fmt.Sprintf("route to %v from %v", config.Short(r.To), r.From))
	}
	for _, x := range s.Sysctls {
		words = append(words, x.text(x.Set))
	}
	for _, h := range s.Holders {
		if h.Resolver != nil {
			words = append(words, h.Resolver.Path)
		}
	}
	return words
}

// is reports whether the holder is that target, whatever name it goes by.
func (h holder) is(t *Target) bool {
	return h.Target == t.Given || h.PID != 0 && h.PID == t.PID && h.Started == t.Started
}

func (h holder) gone() bool { return h.PID != 0 && !alive(h.PID, h.Started) }

// Attach sets the target's namespace up for natless. On error all is as it was,
// but where the error says otherwise.
func Attach(ctx context.Context, d Daemon, t *Target, o Options) (Result, error) {
	r, err := attach(ctx, d, t, o)
	if err != nil {
		return r, fmt.Errorf("attaching %s: %w", t.Given, err)
	}
	return r, nil
}

func attach(ctx context.Context, d Daemon, t *Target, o Options) (r Result, err error) {
	s, n, outside, err := prepare(ctx, d, t)
	if err != nil {
		return r, err
	}
	defer n.Close()
	defer outside.Close()
	stays, err := takeUp(ctx, d, o.Wait)
	if err != nil {
		return r, err
	}
	r.Warnings = stays
	lock, err := o.Wait.Take(ctx, lockOf(t.ID))
	if err != nil {
		return r, err
	}
	defer lock.Release()
	if o.DNS64 {
		if o.DNS, err = nameserver64(s, n); err != nil {
			return r, err
		}
	}
	former, err := recorded(ctx, d, func(a mapping.Attachment, _ state) bool { return a.ID == t.ID })
	if err != nil {
		return r, err
	}
	probe, err := behind(s.Pref64, s.OwnIPv4)
	if err != nil {
		return r, err
	}
	if len(former) > 0 {
		if former[0].works(ctx, d, n, probe) {
			return share(ctx, d, former[0], n, t, o)
		}
		// Another attach was killed over it, or what it did has been taken away.
		stays, err := undo(ctx, d, former[0], n)
		r.Warnings = append(r.Warnings, stays...)
		if err != nil {
			return r, err
		}
	}
	if has, err := n.ownIPv4(); err != nil {
		return r, err
	} else if has != "" && !o.Force {
		return r, fmt.Errorf("it has IPv4 of its own (%s), which programs may take rather than natless: --force attaches it all the same", has)
	}
	w := &work{daemon: d, target: t, options: o, n: n, outside: outside, pref64: s.Pref64, probe: probe, names: resolvers(s)}
	if err := w.do(ctx); err != nil {
		return r, errors.Join(err, w.takeBack(context.WithoutCancel(ctx)))
	}
	r.Attachment, r.Done = w.record, w.state.words()
	r.Warnings = append(append(r.Warnings, w.warnings...), w.verify(ctx, s.OwnIPv4.IsValid())...)
	firewalls, err := hostnet.Firewalls(s.Device)
	if err != nil {
		r.Warnings = append(r.Warnings, err.Error())
	}
	for _, f := range firewalls {
		r.Warnings = append(r.Warnings, f.String())
	}
	return r, nil
}

// prepare opens what attach works on, and refuses what cannot be attached.
func prepare(ctx context.Context, d Daemon, t *Target) (s control.Status, n, outside *Namespace, err error) {
	here, err := own()
	if err != nil {
		return s, nil, nil, withRights(err)
	}
	if t.HostNetwork || t.ID == here {
		return s, nil, nil, errors.New("it has no network namespace of its own but shares the host's (host networking), whose IPv4 it uses")
	}
	if s, err = d.Status(ctx); err != nil {
		return s, nil, nil, err
	}
	if !s.Pref64.IsValid() {
		return s, nil, nil, errors.New("natless has no pref64 (translation.pref64): there is nothing to route to it")
	}
	if outside, err = host(); err != nil {
		return s, nil, nil, withRights(err)
	}
	if _, err = outside.LinkByName(s.Device); err != nil {
		outside.Close()
		return s, nil, nil, fmt.Errorf("natless's device %s is not in this network namespace: attach where natless runs: %w", s.Device, err)
	}
	if n, err = t.Open(); err != nil {
		outside.Close()
		return s, nil, nil, err
	}
	return s, n, outside, nil
}

// lockOf is the name of the lock that keeps two commands from working on the same
// namespace at once.
func lockOf(id string) string { return "namespace-" + strings.ReplaceAll(id, ":", "-") }

// entry is an attachment that the daemon has recorded.
type entry struct {
	mapping.Attachment
	state state
}

// works reports whether connections from inside come from the address that has
// the lease, and it has what it had.
func (e entry) works(ctx context.Context, d Daemon, n *Namespace, probe netip.Addr) bool {
	way, ok := n.wayTo(probe)
	if !e.state.Whole || !ok || way.src != e.IPv6 {
		return false
	}
	l, err := d.Lend(ctx, e.IPv6, "")
	return errors.Is(err, mapping.ErrMapped) || err == nil && l.IPv4 == e.IPv4 && l.Ports == e.Ports
}

// recorded lists the attachments that fit.
func recorded(ctx context.Context, d Daemon, fits func(mapping.Attachment, state) bool) (list []entry, err error) {
	for a, err := range d.Attachments(ctx) {
		if err != nil {
			return nil, err
		}
		if e := entryOf(a); fits(a, e.state) {
			list = append(list, e)
		}
	}
	return list, nil
}

func entryOf(a mapping.Attachment) entry {
	e := entry{Attachment: a}
	if json.Unmarshal(a.Undo, &e.state) != nil || len(e.state.Holders) == 0 {
		// Another program's: there is nothing to undo.
		e.state = state{Whole: true, Holders: []holder{{Target: a.Target, Label: a.Label, Path: a.Namespace, PID: a.PID, Started: a.Started}}}
	}
	return e
}

// record has an attachment recorded with its state.
func record(ctx context.Context, d Daemon, a mapping.Attachment, s state) (mapping.Attachment, error) {
	undo, err := json.Marshal(s)
	if err != nil {
		return a, err
	}
	a.Undo, a.Count = undo, len(s.Holders)
	// The daemon fills these in.
	a.IPv4, a.Ports, a.StatelessLast, a.Since, a.Boot, a.Seen = netip.Addr{}, "", 0, time.Time{}, "", ""
	h := s.Holders[0]
	a.Target, a.Label, a.Namespace, a.PID, a.Started = h.Target, h.Label, h.Path, 0, 0
	if strings.HasPrefix(h.Path, "/proc/") {
		a.PID, a.Started = h.PID, h.Started
	}
	a, err = d.Attach(ctx, a)
	// The daemon looks whether the file is there, which outlives a process that
	// shares the namespace; where it cannot see the file, the process has to do.
	if err == nil && a.Seen == "" && a.PID != h.PID {
		a.PID, a.Started = h.PID, h.Started
		a, err = d.Attach(ctx, a)
	}
	return a, err
}

// share has one more target hold an attachment.
func share(ctx context.Context, d Daemon, e entry, n *Namespace, t *Target, o Options) (r Result, err error) {
	if i := slices.IndexFunc(e.state.Holders, func(h holder) bool { return h.is(t) }); i >= 0 {
		return e.already(e.state.Holders[i], o)
	}
	if _, ok := n.wayTo(o.DNS); o.DNS64 && !ok {
		return r, fmt.Errorf("it has no route to natless's DNS64 at %v, which --dns makes for the first that is attached of those that share a namespace", o.DNS)
	}
	h, err := t.holder(o)
	if err != nil {
		return r, err
	}
	e.state.Holders = append(slices.DeleteFunc(e.state.Holders, holder.gone), h)
	if r.Attachment, err = record(ctx, d, e.Attachment, e.state); err != nil {
		return r, err
	}
	if err := h.point(); err != nil {
		e.Attachment = r.Attachment
		_, back := release(context.WithoutCancel(ctx), d, e, n, func(x holder) bool { return x.is(t) })
		return r, errors.Join(err, back)
	}
	r.Warnings = []string{"it shares its namespace with " + r.Target + ", and what that has"}
	r.Target, r.Label = h.Target, h.Label
	return r, nil
}

// already is the result of attaching a holder again, if it has all that is asked
// for.
func (e entry) already(h holder, o Options) (r Result, err error) {
	differs := func(what string) error {
		return fmt.Errorf("it is attached already, with %s %s: natless detach %s first", e.Side4(), what, h.Target)
	}
	if o.Label != "" && o.Label != h.Label {
		return r, differs(fmt.Sprintf("and the label %q", h.Label))
	}
	if o.DNS.IsValid() && h.Resolver == nil {
		return r, differs("and the resolver it had")
	}
	if o.DNS.IsValid() && h.Resolver.Set != pointed(h.Resolver.Was, o.DNS) {
		return r, differs("and another resolver")
	}
	r.Attachment, r.Already = e.Attachment, true
	r.Target, r.Label = h.Target, h.Label
	return r, nil
}

// work is an attach under way.
type work struct {
	daemon     Daemon
	target     *Target
	options    Options
	n, outside *Namespace
	pref64     netip.Prefix
	probe      netip.Addr   // an address behind it, natless's own if there is one
	names      []netip.Addr // where natless's DNS64 answers

	record   mapping.Attachment // as the daemon has it; the zero value while it has none
	state    state
	warnings []string
}

// do records each change before it makes it.
func (w *work) do(ctx context.Context) error {
	h, err := w.target.holder(w.options)
	if err != nil {
		return err
	}
	w.state.Holders = []holder{h}
	if w.state.Home, err = own(); err != nil {
		return err
	}
	from, lease, err := w.source(ctx, h.Label)
	if err != nil {
		return err
	}
	if lease.Ports != "" {
		if err := w.useRange(lease); err != nil {
			return err
		}
	}
	if err := w.leadToNames(from); err != nil {
		return err
	}
	if err := w.save(ctx, from); err != nil {
		return err
	}
	if err := w.state.make(w.n); err != nil {
		return err
	}
	if err := h.point(); err != nil {
		return err
	}
	w.state.Whole = true
	return w.save(ctx, from)
}

// save has the record as it is now.
func (w *work) save(ctx context.Context, from netip.Addr) error {
	a := w.record
	a.ID, a.IPv6 = w.target.ID, from
	a, err := record(ctx, w.daemon, a, w.state)
	if err == nil {
		w.record = a
	}
	return err
}

// source is the address that holds the lease: the first of the namespace's that
// gets one, or that of a link made for it.
func (w *work) source(ctx context.Context, label string) (from netip.Addr, lease mapping.Lease, err error) {
	list, err := w.n.sources(w.outside, w.pref64, w.probe)
	if errors.As(err, new(errNoSource)) {
		if !w.options.Link {
			return from, lease, fmt.Errorf("%w: --link makes it a link of its own", err)
		}
		return w.overLink(ctx, label)
	}
	if err != nil {
		return from, lease, err
	}
	from, lease, refused, err := w.lend(ctx, list, label)
	if len(refused) == len(list) {
		// The network of a container that was started a moment ago may be new.
		if err := w.permitted(ctx, list[0].addr, notice); err != nil {
			return from, lease, err
		}
		from, lease, refused, err = w.lend(ctx, list, label)
	}
	if len(refused) == len(list) {
		err = errors.New(strings.Join(few(refused), "; "))
	}
	return from, lease, err
}

// lend has the first source lease that is permitted to; refused is why those
// before it are not.
func (w *work) lend(ctx context.Context, list []source, label string) (from netip.Addr, lease mapping.Lease, refused []string, err error) {
	for _, s := range list {
		lease, err := w.daemon.Lend(ctx, s.addr, label)
		switch {
		case err == nil || errors.Is(err, mapping.ErrMapped):
			if s.loose || lease.Ports != "" {
				w.state.Route = s.pin
			}
			return s.addr, lease, refused, nil
		case !errors.Is(err, mapping.ErrNotPermitted):
			return from, lease, refused, err
		}
		refused = append(refused, err.Error())
	}
	return from, lease, refused, nil
}

// How long the daemon may take to see what is new on the host, where it may be
// and where it is.
const (
	notice = 2 * time.Second
	follow = 10 * time.Second
)

// overLink makes the link. Its address is among the "local" clients when the
// daemon has seen it.
func (w *work) overLink(ctx context.Context, label string) (from netip.Addr, lease mapping.Lease, err error) {
	l, err := linkFor(label, w.outside, w.n)
	if err != nil {
		return from, lease, err
	}
	from = l.IPv6.Addr()
	w.state.Link = l
	w.state.Route = &Route{To: w.pref64, Via: l.HostIPv6.Addr(), Link: l.Inside, From: from}
	if err := w.save(ctx, from); err != nil {
		return from, lease, err
	}
	index, err := l.make(w.outside, w.n)
	if err != nil {
		return from, lease, fmt.Errorf("making link %s: %w", l.Host, err)
	}
	w.record.Host = &mapping.HostSide{Link: l.Host, Index: index, Made: true}
	if err := w.permitted(ctx, from, follow); err != nil {
		return from, lease, err
	}
	lease, err = w.daemon.Lend(ctx, from, label)
	if errors.Is(err, mapping.ErrMapped) {
		err = nil
	}
	return from, lease, err
}

// permitted waits until the daemon knows the client, or for a while.
func (w *work) permitted(ctx context.Context, client netip.Addr, patience time.Duration) error {
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		answer, err := w.daemon.Explain(ctx, client)
		if err != nil {
			return err
		}
		var is mapping.Explanation
		if err := json.Unmarshal(answer, &is); err != nil || is.Verdict != translate.ClientNotPermitted.String() {
			return err
		}
	}
	return nil
}

// useRange plans that connections take the ports of a lease that need no state.
func (w *work) useRange(l mapping.Lease) error {
	p, err := ParsePorts(l.Ports)
	if err != nil {
		return err
	}
	p.Last -= uint16(l.SessionPorts)
	w.state.Sysctls, w.warnings, err = w.n.SetPortRange(p)
	w.warnings = append(w.warnings, w.n.native(p)...)
	return err
}

// takeBack undoes what was done before something failed.
func (w *work) takeBack(ctx context.Context) error {
	if w.record.ID == "" {
		return nil
	}
	_, err := undo(ctx, w.daemon, entry{w.record, w.state}, w.n)
	return err
}

// Detach undoes what Attach did for a target, or, while others hold the
// attachment too, only what was its own. A target that is not there any more is
// known by what it was called, by its label, or by the attachment's id. The
// warnings say what others have changed since, which stays.
func Detach(ctx context.Context, d Daemon, name string, wait lockfile.Wait) (r Result, err error) {
	err = holding(ctx, d, name, wait, func(e entry, n *Namespace, mine func(holder) bool) (err error) {
		r.Attachment = e.Attachment
		r.Warnings, err = release(ctx, d, e, n, mine)
		return err
	})
	if err != nil {
		return r, fmt.Errorf("detaching %s: %w", name, err)
	}
	return r, nil
}

// holding calls do with the attachment that a name means, and keeps others off
// it. n is nil where the namespace is gone.
func holding(ctx context.Context, d Daemon, name string, wait lockfile.Wait, do func(e entry, n *Namespace, mine func(holder) bool) error) error {
	e, mine, err := attached(ctx, d, name)
	if err != nil {
		return err
	}
	lock, err := wait.Take(ctx, lockOf(e.ID))
	if err != nil {
		return err
	}
	defer lock.Release()
	// Another may have attached or detached it while this one waited.
	now, err := recorded(ctx, d, func(a mapping.Attachment, _ state) bool { return a.ID == e.ID })
	if err != nil {
		return err
	}
	if len(now) == 0 {
		return errors.New("somebody else has just detached it")
	}
	if now[0].Gone { // another may have its number by now
		return do(now[0], nil, mine)
	}
	n, err := now[0].open()
	if err != nil && !errors.Is(err, errGone) {
		return err
	}
	if n != nil {
		defer n.Close()
	}
	return do(now[0], n, mine)
}

// attached finds the attachment that a name means, and which of its holders.
func attached(ctx context.Context, d Daemon, name string) (e entry, mine func(holder) bool, err error) {
	t, lost := Find(ctx, name)
	mine = func(h holder) bool { return h.Target == name || t != nil && h.is(t) }
	for _, fits := range []func(mapping.Attachment, state) bool{
		func(a mapping.Attachment, s state) bool {
			return t != nil && a.ID == t.ID && slices.ContainsFunc(s.Holders, mine)
		},
		func(a mapping.Attachment, s state) bool { return slices.ContainsFunc(s.Holders, mine) },
		func(a mapping.Attachment, s state) bool {
			mine = func(h holder) bool { return h.Label == name }
			return slices.ContainsFunc(s.Holders, mine)
		},
		func(a mapping.Attachment, _ state) bool {
			mine = func(holder) bool { return true }
			return a.ID == name || t != nil && a.ID == t.ID
		},
	} {
		list, err := recorded(ctx, d, fits)
		switch {
		case err != nil:
			return e, mine, err
		case len(list) == 1:
			return list[0], mine, nil
		case len(list) > 1:
			return e, mine, fmt.Errorf("%d attachments have this name: give the id that natless ps -o json has", len(list))
		}
	}
	return e, mine, notAttached{lost}
}

// notAttached is the error that a target is not; lost says why it is not found
// either, if so.
type notAttached struct{ lost error }

func (e notAttached) Error() string {
	if e.lost != nil {
		return "it is not attached (natless ps lists what is): " + e.lost.Error()
	}
	return "it is not attached: natless ps lists what is"
}

func (e notAttached) Unwrap() error { return e.lost }

// release takes holders from an attachment, and undoes it with the last. n is nil
// where the namespace is gone.
func release(ctx context.Context, d Daemon, e entry, n *Namespace, mine func(holder) bool) (stays []string, err error) {
	var left []holder
	for _, h := range e.state.Holders {
		if !mine(h) && !h.gone() {
			left = append(left, h)
		}
	}
	if n == nil || len(left) == 0 {
		return undo(ctx, d, e, n)
	}
	for _, h := range e.state.Holders {
		if mine(h) {
			lines, broken := h.restore()
			stays = append(append(stays, lines...), linesOf(broken)...)
		}
	}
	e.state.Holders = left
	_, err = record(ctx, d, e.Attachment, e.state)
	return stays, err
}

// Undo takes back an attachment while no daemon runs, if it was made from the
// caller's network namespace. gone tells that its target is. The lines say what
// was done, and what others have changed since, which stays.
func Undo(ctx context.Context, d Records, a mapping.Attachment, gone bool, wait lockfile.Wait) (lines []string, err error) {
	failed := func(err error) ([]string, error) { return lines, fmt.Errorf("detaching %s: %w", a.Target, err) }
	e := entryOf(a)
	here, err := own()
	if err != nil {
		return failed(withRights(err))
	}
	if e.state.Home != here {
		return nil, nil
	}
	lock, err := wait.Take(ctx, lockOf(a.ID))
	if err != nil {
		return failed(err)
	}
	defer lock.Release()
	var n *Namespace
	if !gone {
		n, err = e.open()
	}
	if err != nil && !errors.Is(err, errGone) {
		return failed(err)
	}
	if n != nil {
		defer n.Close()
	}
	lines, err = undo(ctx, d, e, n)
	if err != nil {
		return failed(err)
	}
	done := "detached " + a.Target
	if words := e.state.words(); n == nil {
		done += ", which is gone"
	} else if len(words) > 0 {
		done += ": took back " + strings.Join(words, ", ")
	}
	return append([]string{done}, lines...), nil
}

// Vanished takes back what an attachment's Undo has outside of its namespace and
// beside its link, both of which are gone. The error says what of it is left to do,
// for somebody who has the rights.
func Vanished(undo json.RawMessage) error {
	var s state
	if json.Unmarshal(undo, &s) != nil {
		return nil // another program's
	}
	_, err := s.restore()
	return err
}

// takeUp takes back what is left of attachments whose targets are gone, which the
// daemon has no rights for.
func takeUp(ctx context.Context, d Daemon, wait lockfile.Wait) (stays []string, err error) {
	left, err := recorded(ctx, d, func(a mapping.Attachment, _ state) bool { return a.Gone })
	for _, e := range left {
		lock, err := wait.Take(ctx, lockOf(e.ID))
		if err != nil {
			return stays, err
		}
		lines, err := undo(ctx, d, e, nil)
		lock.Release()
		stays = append(stays, lines...)
		if err != nil && !errors.Is(err, mapping.ErrUnknown) { // somebody else did
			return stays, err
		}
	}
	return stays, err
}

// restore restores the resolvers of all holders.
func (s *state) restore() (stays []string, err error) {
	var errs []error
	for _, h := range s.Holders {
		lines, err := h.restore()
		stays, errs = append(stays, lines...), append(errs, err)
	}
	return stays, errors.Join(errs...)
}

// open opens the namespace by whatever still leads there. That others have put
// something else in the way makes it as good as gone.
func (e entry) open() (n *Namespace, err error) {
	n, err = open(e.Namespace, e.ID)
	for _, h := range e.state.Holders {
		if err != nil {
			n, err = open(h.Path, e.ID)
		}
	}
	for _, own := range []error{fs.ErrPermission, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, own) && (own != fs.ErrPermission || os.Geteuid() != 0) {
			return nil, withRights(err)
		}
	}
	if err != nil {
		return nil, errGone
	}
	return n, nil
}

// undo takes back all of an attachment, and has it forgotten when nothing is left
// of it that is the host's. What the target has broken in itself keeps nobody from
// that: the lines tell of it. n is nil where the namespace is gone: of its link the
// name may be another's by now.
func undo(ctx context.Context, d Records, e entry, n *Namespace) (stays []string, err error) {
	stays, broken := e.state.restore()
	stays = append(stays, linesOf(broken)...)
	if n != nil {
		lines, broken := e.state.undo(n)
		stays = append(stays, lines...)
		if errors.Is(broken, fs.ErrPermission) {
			return stays, broken // who asks is not root, and another can do it
		}
		stays = append(stays, linesOf(broken)...)
		err = e.state.unlink()
	} else if h := e.Host; h != nil {
		err = hostnet.ClearLink(h.Link, h.Index, h.Made, h.Routes)
	}
	if err != nil {
		return stays, err
	}
	_, err = d.Detach(ctx, e.ID)
	return stays, err
}

func linesOf(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}
