// Package hostnet is everything natless does to its host, and undoes: the
// device's state, the routes that lead packets into it, forwarding, one
// nftables table. It stands at both ends of the way of a packet: what the
// kernel routes to the device, and what it may do with what comes out.
//
// All of it works in the network namespace of the calling thread, and every
// change is written to a record in /run/natless before it is made, so that
// [Down], or the next [Prepare], can undo or take over whatever a killed
// natless left behind.
//
// The host is compared with what the plan wants, and the differences are a
// list of changes in words. [Check] prints that list, [Host.Attach] carries it
// out, [Host.Watch] does so again whenever the host changes.
package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Plan is what natless wants of its host.
type Plan struct {
	Device string // name of the TUN device
	MTU    int    // bytes; 0: the largest among the host's links, see [ChooseMTU]
	Manage bool   // false: only the device's own state is touched
	Open   bool   // firewalls of others that drop natless's packets are opened for them
	// Guarded has clients reach each other, and the host's own IPv4 addresses, only
	// where the host would let them without natless. Apart: each other never.
	Guarded, Apart bool
	Keep           bool // Close leaves the table and the blackholes to the next run

	IPv6 []netip.Prefix // routed to the device: pref64, natless's own address
	IPv4 []netip.Prefix // routed to the device: pools, maps, own address, stand-ins for routers

	Masquerade []netip.Prefix // IPv4 sources to masquerade when they leave the host
	Inbound    []netip.Prefix // IPv4 destinations open to new connections from uplinks

	Clients []netip.Prefix // IPv6 sources that are permitted
	Local   bool           // as are the host and what it reaches over links to clients

	Uplinks     []string // links that lead to others, besides those that carry or carried a default route
	ClientLinks []string // links that lead to clients, whatever routes they carry

	// Added are both sides of the maps that were added while natless ran: as if
	// in IPv4 and Inbound, and in Clients. What stands in the way of one keeps
	// Update from adding it, and does not keep Prepare from starting; Watch
	// tells of it. Where the other lists stay the same slices, Update looks at
	// these alone.
	Added []netip.Prefix
}

// Host is a network namespace that natless is at work in. Its methods may be
// called from several goroutines.
type Host struct {
	mu      sync.Mutex
	basis   *basis
	plan    Plan // merged, with what was added
	targets *targets
	mtu     int
	device  int // interface index, or missing
	lock    *lock
	rec     *record
	aside   []string // of a damaged record, in words
	closed  bool

	settled    bool           // all that the plan wants was in place once
	untold     bool           // connection tracking has not been told yet to forget what began without the tables
	wanted     []netip.Prefix // what routes were made for at the last look
	table      tableSpec      // as last installed
	tablePrint string         // its handles, to see that others changed it
	roles      []LinkRole     // at the last look
	doubtful   []string       // what of them is not known, in words
	guard      guard
	resting    bool    // others undo the tables again and again: nothing forwards because of natless
	claims     *claims // nil where writes of others cannot be seen
}

// Prepare refuses what cannot work on this host, naming what stands in the
// way, and makes sure that no other natless runs in this network namespace. It
// takes over what a killed natless left. On error the host is as it was.
func Prepare(p Plan) (*Host, error) {
	l, err := acquire()
	if err != nil {
		return nil, err
	}
	h, err := prepare(p, l)
	if err != nil {
		l.release()
		return nil, err
	}
	return h, nil
}

func prepare(p Plan, l *lock) (*Host, error) {
	rec, err := readRecord(l.key)
	if err != nil {
		return nil, err
	}
	v, err := look()
	if err != nil {
		return nil, err
	}
	aside, err := rec.setAside(v)
	if err != nil {
		return nil, err
	}
	h := &Host{mtu: resolveMTU(p, v), device: missing, lock: l, rec: rec, aside: aside}
	h.guard.set(!p.Manage, "natless has not set up its nftables tables yet")
	h.aim(p)
	v.assign(h.plan, v.device(p.Device), rec.Uplinks)
	rec.remember(v, h.plan, v.device(p.Device))
	found := deviceConflicts(p, v)
	if p.Manage {
		found = append(found, h.basis.excess()...)
		found = append(found, conflicts(h.targets.named[0], h.targets.merged, v, v.device(p.Device))...)
	}
	rec.adopt()
	found = append(found, unopenable(opens(p, firewalls(v, p)))...)
	if len(found) > 0 {
		return nil, conflictError(found)
	}
	if !p.Manage { // nothing will be taken over
		if _, err := undo(rec, false, tableSpec{}); err != nil {
			return nil, err
		}
		rec.Was, rec.Settings, rec.Opened = nil, nil, nil
	}
	rec.Device = p.Device
	if err := rec.save(); err != nil {
		return nil, err
	}
	h.roles, h.doubtful, h.claims = v.roles, v.doubts(h.plan), newClaims()
	h.watchRecorded(v)
	return h, nil
}

// aim takes a plan up, and changes nothing yet.
func (h *Host) aim(p Plan) {
	if h.basis == nil || !h.basis.given.equal(p) {
		h.basis = newBasis(p)
	}
	v4, v6 := byFamily(p.Added)
	added := covering(v4)
	merged := merge(added, nil) // once: there can be very many
	h.plan, h.targets = h.basis.with(p, merged, merge(covering(v6), nil)), newTargets(h.basis, added, merged)
}

// Local lists the IPv6 prefixes that count as "local" at this moment.
func (h *Host) Local() ([]netip.Prefix, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, err := h.look()
	if err != nil {
		return nil, err
	}
	return v.local(), nil
}

// MTU tells the device's MTU in bytes, as planned or chosen.
func (h *Host) MTU() int { return h.mtu }

// Aside says what became of a record of an earlier run that was damaged, and
// what is therefore not known; nothing where it was not.
func (h *Host) Aside() []string { return h.aside }

// Attach brings the device with this interface index up and makes the host
// send packets to it. After an error the caller closes the Host, which undoes
// what was done.
func (h *Host) Attach(device int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, err := netlink.LinkByIndex(device)
	if err != nil {
		return fmt.Errorf("attaching device %s: %w", h.plan.Device, err)
	}
	if name := l.Attrs().Name; name != h.plan.Device {
		return fmt.Errorf("attaching device %s: link %d is %s", h.plan.Device, device, name)
	}
	h.device = device
	return h.settle()
}

// missing is the interface index of a device that is not there yet. Zero stands
// for all links.
const missing = -1

// Update makes the host fit another plan, as after maps were added, and does so
// before it returns. The device, its MTU and what happens on exit stay as they
// were. An error changes nothing; it is an ErrConflict where the host uses for
// something else what the plan wants more than before.
func (h *Host) Update(p Plan) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errors.New("natless is about to end")
	}
	p.Device, p.MTU, p.Keep, p.Manage = h.plan.Device, h.plan.MTU, h.plan.Keep, h.plan.Manage
	basis, plan, targets := h.basis, h.plan, h.targets
	h.aim(p)
	if !p.Manage || h.plan.equal(plan) {
		return nil
	}
	err := h.update(targets)
	if err != nil {
		h.basis, h.plan, h.targets = basis, plan, targets
		if !h.settled {
			err = errors.Join(err, h.settle())
		}
	}
	return err
}

// update settles, unless what the plan wants beyond the targets of before is in
// use.
func (h *Host) update(before *targets) error {
	if n := len(h.targets.merged); n > len(before.merged) {
		if found := excess(n); len(found) > 0 {
			return conflictError(found)
		}
	}
	v, err := h.look()
	if err != nil {
		return err
	}
	if found := conflicts(h.targets.beyond(before), h.targets.merged, v, h.device); len(found) > 0 {
		return conflictError(found)
	}
	h.settled = false
	return h.settle()
}

// settle makes every change the plan asks for and stops at the first error.
func (h *Host) settle() error {
	v, err := h.look()
	if err != nil {
		return err
	}
	if _, err := h.yield(v); err != nil {
		return err
	}
	for _, c := range h.changes(v) {
		if err := h.make(c); err != nil {
			return err
		}
	}
	h.settled = true
	return nil
}

// change is one step towards what the plan wants.
type change struct {
	key   string // what it is about, the same whenever it has to be done again
	text  string // what it does, for people
	again bool   // it was in place before
	do    func() error
}

// headline is the text without what takes more than a line.
func (c change) headline() string {
	head, _, _ := strings.Cut(c.text, " {\n")
	return head
}

// beforeChange lets tests stop natless dead at any step.
var beforeChange = func(string) {}

func (h *Host) make(c change) error {
	beforeChange(c.text)
	if err := c.do(); err != nil {
		return fmt.Errorf("%s: %w", c.headline(), err)
	}
	return nil
}

// changes lists what separates the host from the plan, in the order in which
// it is safe: packets find no way into the device before the table guards it,
// and none through the host before all of it stands. Where prefixes are joined
// or parted, no blackhole stands without a route to the device that is as long.
func (h *Host) changes(v *view) []change {
	list := h.deviceChanges(v)
	if !h.plan.Manage {
		return list
	}
	old, drop, add := h.routeChanges(v)
	f := h.forwarding(v)
	return slices.Concat(f.device, list, h.tableChanges(v, f), old, add.device, add.blackholes,
		f.links, drop.blackholes, drop.device, h.firewallChanges(v))
}

// Close undoes all that was done and is still as natless left it. With
// Plan.Keep, once all was in place, the table and the blackholes stay, so that
// masqueraded flows outlive a restart and nothing goes astray until then; the
// next run takes them over.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	h.guard.set(false, "natless ends")
	h.claims.close()
	defer h.lock.release()
	keep := h.plan.Keep && h.plan.Manage
	if keep && h.device == missing {
		return h.rec.removeEmpty() // what an earlier run kept is kept on
	}
	_, err := undo(h.rec, keep && h.settled, h.table)
	return err
}

// Down removes everything natless ever made in this network namespace, also
// after it was killed, and tells in lines what that was. Where there is
// nothing it does nothing. It refuses while a natless runs.
func Down() ([]string, error) {
	l, err := acquire()
	if err != nil {
		var running *RunningError
		if errors.As(err, &running) {
			return nil, fmt.Errorf("%w; stop it first", err)
		}
		return nil, err
	}
	defer l.release()
	rec, err := readRecord(l.key)
	if err != nil {
		return nil, err
	}
	v, err := look()
	if err != nil {
		return nil, err
	}
	aside, err := rec.setAside(v)
	if err != nil {
		return nil, err
	}
	done, err := undo(rec, false, tableSpec{})
	return slices.Concat(aside, done), err
}

// undo takes back, in the reverse order of changes, what the record and the
// marks of natless's own (route protocol, table name) show. Whatever fails, it
// goes on with the rest, and keeps the record if anything did. With keep the
// blackholes stay, and the tables but for their guard over a device that goes.
func undo(rec *record, keep bool, table tableSpec) (done []string, err error) {
	v, err := look()
	if err != nil {
		return nil, err
	}
	var errs []error
	step := func(lines []string, err error) {
		done = append(done, lines...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	step(undoFirewalls(rec))
	step(undoSettings(rec, v))
	step(removeRoutes(v, isDeviceRoute))
	if keep {
		table.Kept = true
		step(nil, installTable(table))
	} else {
		step(removeTable())
		step(removeRoutes(v, isBlackhole))
	}
	step(undoDevice(rec, v))
	if len(errs) > 0 {
		return done, errors.Join(errs...)
	}
	return done, rec.leave(keep)
}

// dumped tells whether the kernel's tables changed under a netlink dump.
func dumped(err error) bool { return errors.Is(err, netlink.ErrDumpInterrupted) }

// retry runs a netlink dump again when the kernel's tables changed under it.
func retry(dump func() error, again func(error) bool) error {
	var err error
	for range 10 {
		if err = dump(); err == nil || !again(err) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}
