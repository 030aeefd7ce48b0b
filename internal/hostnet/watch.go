package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/mapping"
)

// Kind says what an Event is about.
type Kind string

// The kinds of events. Their text is for people and may change.
const (
	Restored Kind = "restored" // others changed or removed what is natless's; it is as it was
	Followed Kind = "followed" // the host changed, and natless's part with it
	Clash    Kind = "clash"    // the host now uses what is natless's for something else
	Resolved Kind = "resolved" // a clash is over
	Blocked  Kind = "blocked"  // a firewall of another program now drops natless's packets
	Paused   Kind = "paused"   // others change something again and again; natless waits a minute
	Failed   Kind = "failed"   // something could not be done
)

// Event is something that happened to natless's part of the host.
type Event struct {
	Kind Kind   `json:"kind"`
	Text string `json:"text"`
}

const (
	gather   = 50 * time.Millisecond // changes of the host come in swarms
	idleLook = 10 * time.Second      // some sysctls change without a word
	restFor  = 4                     // looks take at most a fifth of the time, however large the routing tables

	putBacks = 5           // of one thing
	pause    = time.Minute // within this, and the rest after it
)

// Watch, once attached, keeps the host as the plan wants it until ctx is done or
// the Host closed: puts back what others remove, follows links and default routes,
// reports new clashes. It calls local at once and whenever the "local" IPv6
// prefixes change, with a slice that is the callee's, and around at each look with
// what the host knows of the links of clients. All are called from one goroutine
// and must not call back into the Host.
func (h *Host) Watch(ctx context.Context, report func(Event), local func([]netip.Prefix), around func(mapping.Around)) error {
	wake, urgent := make(chan struct{}, 1), make(chan struct{}, 1)
	links, err := listen(unix.NETLINK_ROUTE, linkGroups)
	if err != nil {
		return fmt.Errorf("watching the host's links, addresses and routes: %w", err)
	}
	defer links.Close()
	go relay(links, wake)
	tables, err := listen(unix.NETLINK_NETFILTER, mask(unix.NFNLGRP_NFTABLES))
	if err != nil {
		return fmt.Errorf("watching the host's nftables: %w", err)
	}
	defer tables.Close()
	go h.guard.relayTables(tables, urgent, wake)
	go h.claims.relay(wake)
	w := &watcher{host: h, report: report, local: local, around: around, clashes: map[string]bool{}, tries: map[string]*patience{}}
	tick := time.NewTicker(idleLook)
	defer tick.Stop()
	for {
		began := time.Now()
		if closed := w.look(); closed {
			return nil
		}
		took := time.Since(began)
		select {
		case <-ctx.Done():
			return nil
		case <-urgent:
			continue // nothing passes until the tables are back
		case <-wake:
		case <-tick.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-urgent:
		case <-time.After(max(gather, restFor*took)):
		}
	}
}

// linkGroups tell of changes of links, addresses and routes that matter here.
var linkGroups = mask(
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
	unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)

// Notices wakes at every change of a link or an IPv6 address of this network
// namespace, until it is closed. Nothing is waited for: wake has room for one.
func Notices(wake chan<- struct{}) (io.Closer, error) {
	f, err := listen(unix.NETLINK_ROUTE, mask(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV6_IFADDR))
	if err != nil {
		return nil, err
	}
	go relay(f, wake)
	return f, nil
}

func mask(groups ...int) (m uint32) {
	for _, g := range groups {
		m |= 1 << (g - 1)
	}
	return m
}

func listen(protocol int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// relay wakes the watcher whatever the message says: it looks at everything
// anyway, so that lost messages are no loss.
func relay(f *os.File, wake chan<- struct{}) {
	var buf [4096]byte
	for {
		_, err := f.Read(buf[:])
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

type watcher struct {
	host    *Host
	report  func(Event)
	local   func([]netip.Prefix)
	around  func(mapping.Around)
	last    []netip.Prefix
	told    bool
	gone    bool
	clashes map[string]bool
	blocked map[string]bool      // by firewalls, in words, as at the last look; nil before the first
	tries   map[string]*patience // by the changes' keys
}

func (w *watcher) tell(k Kind, format string, args ...any) {
	w.report(Event{k, fmt.Sprintf(format, args...)})
}

// look compares the host with the plan and makes the changes.
func (w *watcher) look() (closed bool) {
	h := w.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return true
	}
	v, err := h.look()
	if err != nil {
		w.tell(Failed, "%v", err)
		return false
	}
	w.tellClaims(v)
	if w.blocked == nil {
		w.blocked = h.blocked(v)
	}
	w.tellLocal(v)
	w.tellClashes(v)
	if _, ok := v.links[h.device]; !ok {
		if !w.gone && h.device != missing {
			w.tell(Failed, "device %s is gone", h.plan.Device)
			h.guard.set(false, "device "+h.plan.Device+" is gone")
		}
		w.gone = true
		return false
	}
	w.gone = false
	w.makeAll(v, time.Now())
	w.around(h.around(v))
	w.tellFirewalls(v)
	return false
}

// makeAll makes the changes. While natless waits because others keep undoing the
// tables, nothing forwards any more because of it: no table would bound that.
func (w *watcher) makeAll(v *view, now time.Time) {
	h := w.host
	maps.DeleteFunc(w.tries, func(_ string, p *patience) bool { return p.over(now) })
	for range 2 {
		h.resting = w.rests(tablesKey, now)
		for _, c := range h.changes(v) {
			w.make(c, now)
		}
		if h.resting == w.rests(tablesKey, now) {
			break
		}
	}
	if h.resting && !h.guard.passing.Load() {
		h.guard.set(false, "another program keeps undoing its nftables tables; it puts them back after "+
			w.tries[tablesKey].until.Format(time.TimeOnly))
	}
}

func (w *watcher) rests(key string, now time.Time) bool {
	p := w.tries[key]
	return p != nil && now.Before(p.until)
}

// tellClaims tells of settings that other programs have made too.
func (w *watcher) tellClaims(v *view) {
	lines, err := w.host.yield(v)
	for _, line := range lines {
		w.tell(Followed, "%s", line)
	}
	if err != nil {
		w.tell(Failed, "%v", err)
	}
}

// tellFirewalls tells of firewalls that came into the way since the look before
// and that natless did not open.
func (w *watcher) tellFirewalls(v *view) {
	now := w.host.blocked(v)
	for text := range now {
		if !w.blocked[text] {
			w.tell(Blocked, "%s", text)
		}
	}
	w.blocked = now
}

// blocked are the firewalls that drop natless's packets, in words.
func (h *Host) blocked(v *view) map[string]bool {
	now := map[string]bool{}
	for _, f := range firewalls(v, h.plan) {
		now[f.String()] = true
	}
	return now
}

func (w *watcher) tellLocal(v *view) {
	now := v.local()
	if w.told && slices.Equal(now, w.last) {
		return
	}
	w.last, w.told = now, true
	w.local(slices.Clone(now))
}

func (w *watcher) tellClashes(v *view) {
	if !w.host.plan.Manage {
		return
	}
	now := map[string]bool{}
	for _, c := range w.host.targets.conflicts(v, w.host.device) {
		now[c] = true
		if !w.clashes[c] {
			w.tell(Clash, "%s", c)
		}
	}
	for c := range w.clashes {
		if !now[c] {
			w.tell(Resolved, "%s", c)
		}
	}
	w.clashes = now
}

// patience bounds how often one thing is put back.
type patience struct {
	made  []time.Time // when others had undone it, or it failed
	until time.Time   // when a rest is over
}

// make makes a change, but not more often than is sensible when another
// program keeps undoing it, or when it cannot be done. What follows the host's
// own changes, as links that come and go, is nobody's fight.
func (w *watcher) make(c change, now time.Time) {
	p := w.tries[c.key]
	if p == nil {
		p = &patience{}
		w.tries[c.key] = p
	}
	if now.Before(p.until) {
		return
	}
	if len(p.made) == putBacks && c.again {
		p.until = now.Add(pause)
		w.tell(Paused, "another program keeps undoing this, natless waits a minute: %s", c.headline())
		return
	}
	err := w.host.make(c)
	if c.again || err != nil {
		p.made = append(p.made, now)
	}
	switch {
	case err != nil && len(p.made) > putBacks:
		p.made, p.until = p.made[:putBacks], now.Add(pause)
		w.tell(Paused, "this fails again and again, natless waits a minute: %v", err)
	case err != nil:
		w.tell(Failed, "%v", err)
	case c.again:
		w.tell(Restored, "%s", c.headline())
	default:
		w.tell(Followed, "%s", c.headline())
	}
}

// over drops what is long ago and tells whether nothing is left.
func (p *patience) over(now time.Time) bool {
	p.made = slices.DeleteFunc(p.made, func(t time.Time) bool { return now.Sub(t) > pause })
	return len(p.made) == 0 && !now.Before(p.until)
}
