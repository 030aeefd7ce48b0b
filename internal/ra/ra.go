// Package ra tells the hosts on a link by which prefix natless reaches IPv4: it
// sends router advertisements with the PREF64 option (RFC 8781), and nothing in
// them that would make this host anybody's router (RFC 4861 6.2). It stands
// beside the way of a packet: clients that hear of the prefix so send by it
// without DNS64.
package ra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/hostnet"
)

// Config is what to tell, and where.
type Config struct {
	Interfaces []string      // by name; they need not be there yet
	Prefix     netip.Prefix  // one of RFC 6052
	Lifetime   time.Duration // how long hosts may use it unless told again: MinLifetime to MaxLifetime
	Withdraw   bool          // at the end of Run, tell hosts that the prefix is gone
}

// Check tells what Run would send on this host, and what is worth knowing
// before. It changes nothing.
func (c Config) Check() (actions, warnings []string) {
	least, most := Interval(c.Lifetime)
	for _, name := range c.Interfaces {
		actions = append(actions, fmt.Sprintf("send router advertisements on %s: PREF64 %v for %v, every %v to %v, and no default router",
			name, c.Prefix, Rounded(c.Lifetime), least.Round(time.Second), most.Round(time.Second)))
		if _, err := find(name, netip.Addr{}); err != nil {
			warnings = append(warnings, fmt.Sprintf("no router advertisements on %s yet: %v", name, err))
		}
	}
	return actions, warnings
}

// Status is how it goes on one interface.
type Status struct {
	Interface string
	Address   netip.Addr // the source; zero: nothing can be sent now
	Sent      uint64     // advertisements
	Last      time.Time  // when the last one was; zero: none
	Problem   string     // why nothing is sent; "": all is well
	Others    []string   // what other routers say against it
}

// again is how often interfaces are looked at when nothing is heard of them:
// what failed is tried again then.
const again = 10 * time.Second

// Advertiser sends advertisements. Its methods may be called from several
// goroutines, Run once.
type Advertiser struct {
	log  *slog.Logger
	wake chan struct{} // at changes of links, addresses and of config

	mu     sync.Mutex
	config Config
	links  map[string]*link // of the interfaces of config, as look saw it last
}

// New makes an Advertiser, which sends nothing before Run.
func New(c Config, log *slog.Logger) *Advertiser {
	return &Advertiser{log: log, wake: make(chan struct{}, 1), config: c, links: map[string]*link{}}
}

// Update has Run go on with another configuration. On an interface that is no
// more in it, hosts are told that the prefix is gone.
func (a *Advertiser) Update(c Config) {
	a.mu.Lock()
	a.config = c
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Status is that of each interface, in the order of the configuration.
func (a *Advertiser) Status() []Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]Status, 0, len(a.config.Interfaces))
	for _, name := range a.config.Interfaces {
		if l := a.links[name]; l != nil {
			list = append(list, l.now())
		} else { // Run has not come to it yet
			list = append(list, Status{Interface: name})
		}
	}
	return list
}

// Run advertises until ctx is done. What goes wrong on an interface is in its
// Status, and tried again; the error is one of watching for interfaces.
func (a *Advertiser) Run(ctx context.Context) error {
	notices, err := hostnet.Notices(a.wake)
	if err != nil {
		return fmt.Errorf("watching for interfaces to advertise on: %w", err)
	}
	defer notices.Close()
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		a.look()
		select {
		case <-ctx.Done():
			a.mu.Lock()
			withdraw := a.config.Withdraw
			a.mu.Unlock()
			stop(a.links, withdraw)
			return nil
		case <-a.wake:
		case <-tick.C:
		}
	}
}

// stop ends the advertising on links. Where it withdraws the prefix this takes
// up to betweenTwo.
func stop(links map[string]*link, withdraw bool) {
	var all sync.WaitGroup
	for _, l := range links {
		all.Go(func() { l.stop(withdraw) })
	}
	all.Wait()
}

// look starts and ends what differs between the configuration and the host on
// one side, and what is going on on the other. Only Run's goroutine changes
// the links.
func (a *Advertiser) look() {
	a.mu.Lock()
	config := a.config
	gone := map[string]*link{}
	for name, l := range a.links {
		if !slices.Contains(config.Interfaces, name) {
			gone[name] = l
			delete(a.links, name)
		}
	}
	for _, name := range config.Interfaces {
		if a.links[name] == nil {
			a.links[name] = &link{log: a.log.With("interface", name), status: Status{Interface: name}, others: map[netip.Addr]other{}}
		}
	}
	a.mu.Unlock()
	stop(gone, true)
	for _, name := range config.Interfaces {
		l := a.links[name]
		at, err := find(name, l.task.addr)
		l.follow(task{at, config.Prefix, config.Lifetime}, err)
	}
}

// place is where advertisements are sent from.
type place struct {
	index int
	addr  netip.Addr // link-local, as RFC 4861 6.1.2 wants it
}

// find tells where on an interface they are sent from, which stays the address
// it was while there is one; the error says why nothing can be sent there now.
func find(name string, was netip.Addr) (at place, err error) {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return place{}, errors.New("there is no such interface")
	}
	if err != nil {
		return place{}, fmt.Errorf("looking for the interface: %w", err)
	}
	if flags := l.Attrs().RawFlags; flags&unix.IFF_UP == 0 {
		return place{}, errors.New("the interface is down")
	} else if flags&unix.IFF_RUNNING == 0 {
		return place{}, errors.New("the interface has no carrier")
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
	if err != nil {
		return place{}, fmt.Errorf("reading the interface's addresses: %w", err)
	}
	for _, a := range addrs {
		addr, _ := netip.AddrFromSlice(a.IP)
		usable := addr.IsLinkLocalUnicast() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0
		if usable && (addr == was || !at.addr.IsValid()) {
			at = place{l.Attrs().Index, addr}
		}
	}
	if !at.addr.IsValid() {
		return at, errors.New("the interface has no link-local address")
	}
	return at, nil
}
