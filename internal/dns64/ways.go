package dns64

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	loopback  = 1           // the index of lo in every network namespace
	waysLife  = time.Second // for which the kernel's word is kept
	mostWays  = 4096        // addresses it is kept of
	queryRoom = 128         // bytes of control messages with a query
)

// way is how the kernel sends packets to an address.
type way struct {
	links []int // that may carry them; none: it is not reached
	own   bool  // it is an address of this host
	until time.Time
}

// ways asks the kernel's routing, rules and all, and keeps for a moment what it
// said: links and routes change, and nobody tells of it here.
type ways struct {
	look func(netip.Addr) way
	end  func()

	mu    sync.Mutex
	known map[netip.Addr]way
}

// newWays asks the kernel of the network namespace that it is called in.
func newWays() (*ways, error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	var asking sync.Mutex
	ended := false
	return &ways{
		look: func(a netip.Addr) way {
			asking.Lock()
			defer asking.Unlock()
			if ended {
				return way{}
			}
			return look(kernel, a)
		},
		end: func() {
			asking.Lock()
			defer asking.Unlock()
			kernel.Close()
			ended = true
		},
		known: map[netip.Addr]way{},
	}, nil
}

// look asks for the route that matches, which has all links that packets may
// take, and else for the one that a packet takes. An error is an address that
// is not reached.
func look(kernel *netlink.Handle, a netip.Addr) (w way) {
	for _, whole := range []bool{true, false} {
		routes, err := kernel.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{FIBMatch: whole})
		if err != nil {
			return way{}
		}
		for _, r := range routes {
			switch r.Type {
			case unix.RTN_LOCAL:
				return way{links: []int{loopback}, own: true}
			case unix.RTN_UNICAST:
				w.links = append(w.links, r.LinkIndex)
				for _, hop := range r.MultiPath {
					w.links = append(w.links, hop.LinkIndex)
				}
			}
		}
		if w.links = slices.DeleteFunc(w.links, func(i int) bool { return i == 0 }); len(w.links) > 0 {
			return w
		}
	}
	return w
}

// to is the way to an address.
func (w *ways) to(a netip.Addr, now time.Time) way {
	a = a.Unmap().WithZone("")
	w.mu.Lock()
	found, ok := w.known[a]
	w.mu.Unlock()
	if ok && now.Before(found.until) {
		return found
	}
	found = w.look(a)
	found.until = now.Add(waysLife)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.known) >= mostWays { // whoever makes up sources fills it in vain
		clear(w.known)
	}
	w.known[a] = found
	return found
}

// over reports whether packets to an address may leave over a link, so that
// one from it is not expected from any other (RFC 3704 2.3).
func (w *ways) over(link int, a netip.Addr, now time.Time) bool {
	return slices.Contains(w.to(a, now).links, link)
}

// far are addresses of the Internet on three continents: root name servers,
// which are never moved. Nothing is sent to them.
var far = []netip.Addr{
	netip.MustParseAddr("2001:503:ba3e::2:30"), // a.root-servers.net
	netip.MustParseAddr("2001:7fd::1"),         // k.root-servers.net
	netip.MustParseAddr("2001:dc3::35"),        // m.root-servers.net
}

// ipv6 reports whether the host has a way to the IPv6 Internet: a default
// route, or the routes that stand for one.
func (w *ways) ipv6(now time.Time) bool {
	return slices.ContainsFunc(far, func(a netip.Addr) bool {
		to := w.to(a, now)
		return len(to.links) > 0 && !to.own
	})
}

// absent are those of addresses that no link of the host has. The kernel is asked
// each time: a link may have come up a moment ago.
func (w *ways) absent(list []netip.AddrPort) (gone []netip.AddrPort) {
	for _, a := range list {
		if !w.look(a.Addr()).own {
			gone = append(gone, a)
		}
	}
	return gone
}

// Absent are those of addresses to listen at that no link of this host has now.
func Absent(list []netip.AddrPort) ([]netip.AddrPort, error) {
	w, err := newWays()
	if err != nil {
		return nil, fmt.Errorf("looking for the addresses of DNS64: %w", err)
	}
	defer w.end()
	return w.absent(list), nil
}

// ingress is the index of the link that a packet came in by, from its control
// messages; 0 where they do not say.
func ingress(control []byte) int {
	for len(control) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		control = rest
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return int(binary.NativeEndian.Uint32(data)) // in front of two addresses
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return int(binary.NativeEndian.Uint32(data[16:])) // behind an address
		}
	}
	return 0
}
