package main_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/mdlayher/ndp"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/natless/natless/internal/lab"
)

// move is something that somebody hostile does, within a second or two. It
// undoes what it did to its own side. An error says that it could not be made;
// natless is judged by the invariants.
type move struct {
	name  string
	known string // why it comes through as yet: it is made only when asked for
	do    func(a *attack, r *rand.Rand) error
}

// volley is how many packets a move sends at most.
const volley = 200

var catalogue = []move{
	// Packets of containers.
	{"forged-source", "", forgedSource},
	{"forged-to-host", "the host answers whoever a packet to itself says it is from", forgedToHost},
	{"forged-hop-limit", "what routers say of a forged packet leaves with natless's own address, unmasqueraded", forgedHopLimit},
	{"refused-destination", "", refusedDestination},
	{"native", "", native},
	{"mad-packets", "segments that connection tracking calls INVALID leave unmasqueraded", madPackets},
	{"invalid-segments", "segments that connection tracking calls INVALID leave unmasqueraded", invalidSegments},
	{"hairpin", "clients reach each other past the host's rules for them", hairpin},
	{"host-service", "clients reach the host's IPv4 past its rules for their links", hostService},
	{"forged-error", "an ICMP error about another's flow is RELATED", forgedError},
	{"tiny-mtu", "a packet too big below 1280 passes to the IPv4 side", tinyMTU},
	{"forged-query", "DNS64 answers whoever a query says it is from", forgedQuery},
	{"many-clients", "natless's own errors, INVALID by then, leave unmasqueraded", manyClients},
	{"many-neighbours", "", manyNeighbours},
	{"redirect", "", redirect},
	{"advertise-link", "a link to a client accepts router advertisements", advertiseLink},
	{"advertise-bridge", "a link to a client accepts router advertisements", advertiseBridge},
	{"advertise-attached", "the host's end of attach --link accepts router advertisements", advertiseAttached},

	// Packets of the stranger.
	{"stranger-ipv4", "", strangerIPv4},
	{"stranger-ipv6", "", strangerIPv6},
	{"stranger-mad", "", strangerMad},
	{"stranger-error", "", strangerError},
	{"stranger-own", "natless's own IPv4 address answers off the link, unmasqueraded", strangerOwn},
	{"stranger-through", "what leaves by the link that it came in by is forwarded natively", strangerThrough},
	{"stranger-as-client", "no reverse-path rule for IPv4", strangerAsClient},

	// Links.
	{"link-flaps", "", linkFlaps},
	{"link-mac", "", linkMAC},
	{"link-away", "", linkAway},
	{"attached-link", "", attachedLink},
	{"many-routes", "", manyRoutes},
	{"attach-churn", "after six changes of its table within a minute natless waits a minute", attachChurn},
	{"escape-sequence", "names of links reach root's terminal as they are", escapeSequence},

	// Files, locks, processes.
	{"resolver-before", "attach --dns follows what is at resolv.conf", resolverBefore},
	{"resolver-after", "detach waits at, or refuses, what is at resolv.conf", resolverAfter},
	{"lock-namespace", "the namespace's file is locked, which everybody inside can", lockNamespace},
	{"lock-run", "the directory of the control socket is locked, which everybody can", lockRun},
	{"local-socket", "", localSocket},
	{"half-requests", "requests begun and never read slow root's own calls", halfRequests},
	{"impersonate", "a process is labelled by the name it gives itself", impersonate},
	{"die", "", die},

	// Another program of root's: not hostile, and still the guard is never open.
	{"admin-flushes", "what passes before the table is back passes unguarded", adminFlushes},
	{"admin-renames", "the guard names the device, and not its index: what is under way stalls", adminRenames},
	{"admin-renews", "an uplink without a default route is a link to clients", adminRenews},
}

// commands are root's own meanwhile.
var commands = []func(a *attack){
	func(a *attack) { a.natless([]int{0}, "ps") },
	func(a *attack) { a.natless([]int{0, 1}, "status") },
	func(a *attack) { a.natless([]int{0}, "stats") },
	func(a *attack) { a.natless([]int{0}, "lease", "ls") },
	func(a *attack) { a.natless([]int{0}, "session", "ls") },
	func(a *attack) { a.natless([]int{0, 1}, "check") },
	func(a *attack) { a.natless([]int{1}, "down", "--state-dir", hostState) },              // it runs
	func(a *attack) { a.natless([]int{1}, "run", "--socket", hostSocket) },                 // so it does
	func(a *attack) { a.natless([]int{0, 1}, "port-range", "show", "pid:"+a.targetPID()) }, // it may be gone
	func(a *attack) { a.attach("netns:c1") },
	func(a *attack) { a.natless([]int{0, 1}, "detach", "netns:c1") },
	func(a *attack) { a.attachTarget() },
	func(a *attack) { a.attachTarget("--dns=" + names6) },
	func(a *attack) { a.natless([]int{0, 1}, "detach", "pid:"+a.targetPID()) },
}

func (a *attack) targetPID() string { return strconv.Itoa(a.target().pid) }

// attach attaches a target, which may be attached already, or in no state to be.
func (a *attack) attach(target string, flags ...string) bool {
	if slices.Contains(flags, "--link") && !a.pace.allows(time.Now()) {
		return false
	}
	_, ok := a.natless([]int{0, 1}, append([]string{"attach", target}, flags...)...)
	return ok
}

// attachTarget is root's attaching the hostile process, which leaves links to the
// moves where there may be few.
func (a *attack) attachTarget(flags ...string) {
	if a.pace.off {
		a.attach("pid:"+a.targetPID(), append([]string{"--link"}, flags...)...)
	}
}

// withAttached attaches the hostile process, which then does something, and is
// detached after it.
func (a *attack) withAttached(do func(h *agent) error, flags ...string) error {
	a.rights.Lock()
	defer a.rights.Unlock()
	h := a.target()
	pid := "pid:" + strconv.Itoa(h.pid)
	a.natless([]int{0, 1}, "detach", pid)
	if !a.attach(pid, append([]string{"--link", "--label", "hostile"}, flags...)...) {
		return errors.New("it was not attached")
	}
	err := do(h)
	a.natless([]int{0, 1}, "detach", pid)
	return err
}

// pace keeps links from coming more often than natless bears, as long as the move
// attach-churn is known to come through.
type pace struct {
	off  bool
	last []time.Time
}

func (p *pace) allows(now time.Time) bool {
	p.last = slices.DeleteFunc(p.last, func(t time.Time) bool { return now.Sub(t) > time.Minute })
	if !p.off && len(p.last) >= 2 { // each comes and goes
		return false
	}
	p.last = append(p.last, now)
	return true
}

// attachChurn has a link come and go, as containers that are started and end: each
// of them reaches s.
func attachChurn(a *attack, _ *rand.Rand) (err error) {
	for range 4 {
		err = errors.Join(err, a.withAttached(func(h *agent) error {
			if eventually(h.reaches) != nil {
				a.fault("service", "an attached process does not reach s")
			}
			return nil
		}))
	}
	return err
}

// reaches says why the agent does not reach s.
func (g *agent) reaches() []string {
	err := g.inside(func() error { return exec.Command("ping", "-6", "-c1", "-W1", lab.Server6).Run() })
	if err != nil {
		return []string{err.Error()}
	}
	return nil
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func many(n int, make func() []byte) (list [][]byte) {
	for range n {
		list = append(list, make())
	}
	return list
}

// other6 is an IPv6 address that is no container's to send from.
func (a *attack) other6(r *rand.Rand) netip.Addr {
	random := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0x77}
	random[15] = byte(r.Uint32())
	return pick(r, netip.MustParseAddr(victim6), netip.MustParseAddr(lab.OwnIPv6), netip.MustParseAddr("2001:db8:2::1"),
		netip.MustParseAddr(stranger6), behind(lab.ServerIPv4), behind(a.lease.String()), netip.MustParseAddr("::1"),
		netip.MustParseAddr("ff02::1"), netip.IPv6Unspecified(), netip.MustParseAddr("::ffff:192.0.2.1"), netip.AddrFrom16(random))
}

// container is one of those that send packets.
func (a *attack) container(r *rand.Rand) station { return pick(r, a.c1, a.c3) }

func forgedSource(a *attack, r *rand.Rand) error {
	return a.container(r).send(many(volley, func() []byte {
		dst := pick(r, behind(lab.ServerIPv4), behind("192.0.2.1"), netip.MustParseAddr(lab.OwnIPv6), netip.MustParseAddr(victim6))
		return plain(r, a.other6(r), dst, markForged)
	})...)
}

// forgedHopLimit has the host's kernel, and natless, send errors to others.
func forgedHopLimit(a *attack, r *rand.Rand) error {
	return a.container(r).send(many(volley/4, func() []byte {
		dst := pick(r, netip.MustParseAddr(victim6), behind(lab.ServerIPv4), netip.MustParseAddr(lab.OwnIPv6))
		return echoPacket(pick(r, a.other6(r), behind(lab.ServerIPv4)), dst, uint8(1+r.IntN(2)), markForged)
	})...)
}

// forgedToHost has the host's own answers go where they do no good.
func forgedToHost(a *attack, r *rand.Rand) error {
	return a.container(r).send(many(volley, func() []byte {
		return plain(r, pick(r, a.other6(r), behind(lab.ServerIPv4), behind(a.lease.String())), netip.MustParseAddr(names6), markForged)
	})...)
}

// refusedDestination sends from an honest source for what must not be left for.
func refusedDestination(a *attack, r *rand.Rand) error {
	s := a.container(r)
	return s.send(many(volley, func() []byte {
		return plain(r, s.own, behind(pick(r, "169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255")), "")
	})...)
}

// native sends to c2 and to s past natless.
func native(a *attack, r *rand.Rand) error {
	s := a.container(r)
	return s.send(many(volley, func() []byte {
		return plain(r, s.own, netip.MustParseAddr(pick(r, victim6, "2001:db8:2::80", stranger6)), markForged)
	})...)
}

func madPackets(a *attack, r *rand.Rand) error {
	s := a.container(r)
	return s.send(many(volley, func() []byte {
		src := s.own
		if r.IntN(3) == 0 {
			src = a.other6(r)
		}
		return mad(r, src, pick(r, behind(lab.ServerIPv4), behind("192.0.2.1"), netip.MustParseAddr(lab.OwnIPv6)))
	})...)
}

func invalidSegments(a *attack, r *rand.Rand) error {
	s := a.container(r)
	return s.send(many(50, func() []byte {
		return tcpPacket(s.own, behind(lab.ServerIPv4), uint16(r.IntN(1<<16)), 443, pick(r, "R", "RA", "F", "FA", "A", "SA", "SF", ""), "")
	})...)
}

func hairpin(a *attack, r *rand.Rand) error {
	s := a.container(r)
	return s.send(many(50, func() []byte { return plain(r, s.own, behind(a.lease.String()), markForged) })...)
}

func hostService(a *attack, r *rand.Rand) error {
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Second)
	defer cancel()
	s := a.container(r)
	conn, err := s.DialFrom(ctx, "tcp", s.own.String(), net.JoinHostPort(behind(lab.HostIPv4).String(), hostPort))
	if err == nil {
		a.fault("host", "%v reaches port %s of the host, which is closed to its link", s.own, hostPort)
		return conn.Close()
	}
	return nil
}

// forgedError tells s, about c2's flow, that nobody is there.
func forgedError(a *attack, r *rand.Rand) error {
	s := a.container(r)
	quote := tcpPacket(behind(lab.ServerIPv4), netip.MustParseAddr(victim6), 9, a.port, "A", markQuoted)
	return s.send(trouble(s.own, behind(lab.ServerIPv4), pick[uint16](r, 0, 1280), quote))
}

// tinyMTU tells s, about a flow of one's own, of a very narrow path.
func tinyMTU(a *attack, r *rand.Rand) error {
	s, from := a.container(r), uint16(20000+r.IntN(10000))
	if err := s.send(udpPacket(s.own, behind(lab.ServerIPv4), from, 7, make([]byte, 100))); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond) // it is known then
	quote := udpPacket(behind(lab.ServerIPv4), s.own, 7, from, make([]byte, 100))
	return s.send(trouble(s.own, behind(lab.ServerIPv4), pick[uint16](r, 1, 68, 576, 1279), quote))
}

func forgedQuery(a *attack, r *rand.Rand) error {
	q, err := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeAAAA).Pack()
	if err != nil {
		return err
	}
	return a.container(r).send(many(20, func() []byte {
		return udpPacket(netip.MustParseAddr(victim6), netip.MustParseAddr(names6), 5353, 53, q)
	})...)
}

// manyClients wants leases for addresses that it makes up on its own link.
func manyClients(a *attack, r *rand.Rand) error {
	s := a.container(r)
	return s.send(many(volley, func() []byte {
		src := s.own.As16()
		src[8], src[14], src[15] = 0xa, byte(r.Uint32()), byte(r.Uint32())
		return plain(r, netip.AddrFrom16(src), behind(lab.ServerIPv4), "")
	})...)
}

// neighbour is a message of neighbour discovery.
func neighbour(src, dst netip.Addr, m ndp.Message) []byte {
	b, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		panic(err) // the harness is wrong
	}
	p := packet(src, dst, ndp.HopLimit, gopacket.Payload(b))
	p[6] = byte(layers.IPProtocolICMPv6)
	return p
}

func manyNeighbours(a *attack, r *rand.Rand) error {
	s := a.container(r)
	router := netip.PrefixFrom(s.own, 64).Masked().Addr().Next()
	return s.send(many(volley, func() []byte {
		src := s.own.As16()
		src[8], src[15] = 0xb, byte(r.Uint32())
		who, mac := netip.AddrFrom16(src), net.HardwareAddr{2, 0, 0, 0, 0, byte(r.Uint32())}
		if r.IntN(2) == 0 {
			return neighbour(who, router, &ndp.NeighborSolicitation{TargetAddress: router, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}}})
		}
		who = pick(r, who, netip.MustParseAddr(victim6), router)
		return neighbour(s.own, router, &ndp.NeighborAdvertisement{Override: true, Router: true, TargetAddress: who, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: mac}}})
	})...)
}

// redirect says that c2 and pref64 are behind the sender (RFC 4861 4.5).
func redirect(a *attack, r *rand.Rand) error {
	s := a.container(r)
	self := linkLocal(s.Node, "eth0")
	for _, to := range []netip.Addr{netip.MustParseAddr(victim6), behind(lab.ServerIPv4), netip.MustParseAddr("2001:db8:beef::1")} {
		body := append(make([]byte, 4), append(self.AsSlice(), to.AsSlice()...)...)
		for _, from := range []netip.Addr{self, netip.MustParseAddr("fe80::1")} {
			router := netip.PrefixFrom(s.own, 64).Masked().Addr().Next()
			code := layers.CreateICMPv6TypeCode(layers.ICMPv6TypeRedirect, 0)
			if err := s.send(packet(from, router, ndp.HopLimit, &layers.ICMPv6{TypeCode: code}, gopacket.Payload(body))); err != nil {
				return err
			}
		}
	}
	return nil
}

// linkLocal is the link-local address of a node.
func linkLocal(n *lab.Node, link string) netip.Addr {
	l, err := n.Netlink.LinkByName(link)
	if err != nil {
		return netip.MustParseAddr("fe80::2")
	}
	all, _ := n.Netlink.AddrList(l, netlink.FAMILY_V6)
	for _, x := range all {
		if x.IP.IsLinkLocalUnicast() {
			return netip.AddrFrom16([16]byte(x.IP.To16()))
		}
	}
	return netip.MustParseAddr("fe80::2")
}

// advertisement makes its sender the default router, gives addresses and routes
// (RFC 4861 4.2, RFC 4191).
func advertisement(src netip.Addr) []byte {
	m := &ndp.RouterAdvertisement{
		CurrentHopLimit: 3, RouterLifetime: 9000 * time.Second, ReachableTime: time.Hour, RetransmitTimer: time.Hour,
		Options: []ndp.Option{
			&ndp.PrefixInformation{PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: true, ValidLifetime: time.Hour, PreferredLifetime: time.Hour, Prefix: netip.MustParseAddr("2001:db8:bad::")},
			&ndp.RouteInformation{PrefixLength: 48, Preference: ndp.High, RouteLifetime: time.Hour, Prefix: netip.MustParseAddr("2001:db8:beef::")},
			&ndp.MTU{MTU: 1280},
		},
	}
	return neighbour(src, allNodes, m)
}

// toAll is the Ethernet address of all nodes (RFC 2464 7).
var toAll = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}

// advertise has a container send one.
func (a *attack) advertise(s station) error {
	s.gate = toAll
	return s.send(advertisement(linkLocal(s.Node, "eth0")))
}

func advertiseLink(a *attack, _ *rand.Rand) error   { return a.advertise(a.c1) }
func advertiseBridge(a *attack, _ *rand.Rand) error { return a.advertise(a.c3) }

// advertiseAttached looks itself: what it did goes with the link.
func advertiseAttached(a *attack, _ *rand.Rand) error {
	return a.withAttached(func(h *agent) error {
		err := h.inside(func() error { return emit("natless", toAll, advertisement(netip.MustParseAddr("fe80::bad"))) })
		if err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond)
		routes, err := a.Host.Netlink.RouteList(nil, netlink.FAMILY_V6)
		for _, route := range routes {
			if l, err := a.Host.Netlink.LinkByIndex(route.LinkIndex); err == nil && strings.HasPrefix(l.Attrs().Name, "nl-") && route.Gw != nil {
				a.fault("host", "an attached process has made itself a router: %v", route)
			}
		}
		return err
	})
}

// probe has the stranger try clients and natless over both families.
func (a *attack) probe(r *rand.Rand, src4 func() netip.Addr) error {
	return a.u.send(many(volley/4, func() []byte {
		if r.IntN(2) == 0 {
			dst := pick(r, behind(lab.ServerIPv4), behind(a.lease.String()), netip.MustParseAddr(victim6), netip.MustParseAddr(bridged4))
			return plain(r, netip.MustParseAddr(stranger6), dst, markForged)
		}
		return plain(r, src4(), a.lease, markForged)
	})...)
}

func self4() netip.Addr { return netip.MustParseAddr(stranger4) }

// strangerIPv4 sends into the pool, and through the host, from sources of many
// kinds.
func strangerIPv4(a *attack, r *rand.Rand) error {
	return a.u.send(many(volley, func() []byte {
		src := netip.MustParseAddr(pick(r, stranger4, "192.0.2.7", "8.8.8.8", "127.0.0.1", "0.0.0.0", lab.HostIPv4, "255.255.255.255", "224.0.0.1"))
		dst := pick(r, a.lease, netip.AddrFrom4([4]byte{169, 254, 64, byte(2 + r.IntN(254))}))
		return plain(r, src, dst, markForged)
	})...)
}

func strangerIPv6(a *attack, r *rand.Rand) error {
	return a.u.send(many(volley, func() []byte {
		dst := pick(r, behind(lab.ServerIPv4), behind(a.lease.String()), behind("192.0.2.1"), netip.MustParseAddr(victim6), netip.MustParseAddr(bridged4), netip.MustParseAddr(lab.OwnIPv6))
		return plain(r, pick(r, netip.MustParseAddr(stranger6), a.other6(r)), dst, markForged)
	})...)
}

func strangerMad(a *attack, r *rand.Rand) error {
	return a.u.send(many(volley, func() []byte {
		if r.IntN(2) == 0 {
			return mad(r, netip.MustParseAddr(stranger6), pick(r, behind(lab.ServerIPv4), netip.MustParseAddr(victim6)))
		}
		return mad(r, self4(), a.lease)
	})...)
}

// strangerError tells c2, about its own flow, what is not so. Any router on the
// way may tell it of errors: none may be as absurd as these MTUs.
func strangerError(a *attack, r *rand.Rand) error {
	quote := tcpPacket(netip.MustParseAddr(lab.HostIPv4), netip.MustParseAddr(lab.ServerIPv4), a.port, 9, "A", "")
	return a.u.send(many(10, func() []byte {
		return trouble(self4(), netip.MustParseAddr(lab.HostIPv4), pick[uint16](r, 1, 68, 296, 576), quote)
	})...)
}

// strangerOwn speaks to natless itself.
func strangerOwn(a *attack, r *rand.Rand) error {
	return a.u.send(many(50, func() []byte {
		src, dst := netip.MustParseAddr(pick(r, stranger4, "192.0.2.7", lab.ServerIPv4)), netip.MustParseAddr(ownIPv4)
		return pick(r, plain(r, src, dst, markForged), mad(r, src, dst))
	})...)
}

// strangerThrough has the host forward to its neighbour s, who hears nobody else.
func strangerThrough(a *attack, r *rand.Rand) error {
	return a.u.send(many(50, func() []byte {
		return plain(r, netip.MustParseAddr(pick(r, stranger4, "8.8.8.8")), netip.MustParseAddr(pick(r, lab.ServerIPv4, "169.254.169.254")), markForged)
	})...)
}

// strangerAsClient claims to be who has a map, towards another who has one and
// whom everybody may therefore reach.
func strangerAsClient(a *attack, r *rand.Rand) error {
	return a.u.send(many(volley, func() []byte {
		return plain(r, netip.MustParseAddr(pick(r, lab.MappedIPv4, mapped4)), netip.MustParseAddr(mapped4), markForged)
	})...)
}

// linkFlaps takes the carrier from the host's end.
func linkFlaps(a *attack, r *rand.Rand) error {
	n := pick(r, a.c1.Node, a.c3.Node)
	link, err := n.Netlink.LinkByName("eth0")
	if err != nil {
		return err // it is away
	}
	for range 1 + r.IntN(5) {
		err = errors.Join(err, n.Netlink.LinkSetDown(link), n.Netlink.LinkSetUp(link))
	}
	return errors.Join(err, a.restore(n))
}

func linkMAC(a *attack, r *rand.Rand) error {
	n := pick(r, a.c1.Node, a.c3.Node)
	link, err := n.Netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	host, err := a.Host.Netlink.LinkByName("lan2")
	if err != nil {
		return err
	}
	other := pick(r, host.Attrs().HardwareAddr, net.HardwareAddr{2, 0, 0, 0, 0, byte(r.Uint32())}, a.c3.gate)
	err = errors.Join(n.Netlink.LinkSetHardwareAddr(link, other), forgedSource(a, r))
	return errors.Join(err, n.Netlink.LinkSetHardwareAddr(link, link.Attrs().HardwareAddr))
}

// linkAway has c1's end of its link go to another namespace and come back.
func linkAway(a *attack, _ *rand.Rand) error {
	err := into(a.limbo, a.c1.Node)
	time.Sleep(50 * time.Millisecond)
	return errors.Join(err, into(a.c1.Node, a.limbo), a.restore(a.c1.Node))
}

func into(to, from *lab.Node) error {
	ns, err := netns.GetFromPath(to.Path())
	if err != nil {
		return err
	}
	defer ns.Close()
	link, err := from.Netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return from.Netlink.LinkSetNsFd(link, int(ns))
}

// restore gives a container back what it lost with its link.
func (a *attack) restore(n *lab.Node) error {
	address, router := bridged3, "2001:db8:3::1"
	if n == a.c1.Node {
		address, router = client1, "2001:db8:1::1"
	}
	return n.Do(func() error {
		return errors.Join(
			exec.Command("ip", "link", "set", "eth0", "up").Run(),
			exec.Command("ip", "addr", "replace", address+"/64", "dev", "eth0", "nodad").Run(),
			exec.Command("ip", "-6", "route", "replace", "default", "via", router).Run())
	})
}

// attachedLink breaks what attach made inside.
func attachedLink(a *attack, r *rand.Rand) error {
	return a.withAttached(func(h *agent) error {
		link, err := h.ns.LinkByName("natless")
		if err != nil {
			return err
		}
		switch r.IntN(5) {
		case 0:
			return h.ns.LinkDel(link)
		case 1:
			return errors.Join(h.ns.LinkSetDown(link), h.ns.LinkSetName(link, "eth7"))
		case 2:
			return h.ns.LinkSetMTU(link, 1280)
		case 3:
			return h.ns.LinkSetHardwareAddr(link, a.c3.gate)
		}
		all, err := h.ns.AddrList(link, netlink.FAMILY_V6)
		for _, x := range all {
			err = errors.Join(err, h.ns.AddrDel(link, &x))
		}
		return err
	})
}

// manyRoutes fills the attached process's namespace, and has it attached so.
func manyRoutes(a *attack, r *rand.Rand) error {
	h := a.target()
	lo, err := h.ns.LinkByName("lo")
	if err != nil {
		return err
	}
	err = h.ns.LinkSetUp(lo)
	for k := range 1000 {
		dst := &net.IPNet{IP: net.IP{0x20, 1, 0xd, 0xb8, 9, byte(k >> 8), byte(k), 0, 0, 0, 0, 0, 0, 0, 0, 0}, Mask: net.CIDRMask(56, 128)}
		err = errors.Join(err, h.ns.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst}))
	}
	for k := range 100 {
		at := &net.IPNet{IP: net.IP{0xfd, byte(r.Uint32()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(k)}, Mask: net.CIDRMask(128, 128)}
		_ = h.ns.AddrReplace(lo, &netlink.Addr{IPNet: at}) // it may be there
	}
	return errors.Join(err, a.withAttached(func(*agent) error { return nil }))
}

// escapeSequence has links, and a route, whose names clear a terminal.
func escapeSequence(a *attack, r *rand.Rand) error {
	h := a.target()
	name := fmt.Sprintf("\x1b[2J%d", r.IntN(1000))
	err := h.ns.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer"})
	link, e := h.ns.LinkByName(name)
	if err = errors.Join(err, e); err != nil {
		return err
	}
	for _, cidr := range []string{"192.0.2.9/24", "2001:db8:9::9/64"} {
		x, _ := netlink.ParseAddr(cidr)
		err = errors.Join(err, h.ns.AddrAdd(link, x))
	}
	err = errors.Join(err, h.ns.LinkSetUp(link), h.do("call-yourself", "\x1b[31mroot"))
	a.rights.Lock()
	a.attach("pid:"+strconv.Itoa(h.pid), "--link") // it has IPv4
	a.attach("pid:"+strconv.Itoa(h.pid), "--link", "--force")
	a.natless([]int{0}, "ps")
	a.natless([]int{0}, "lease", "ls")
	a.natless([]int{0, 1}, "detach", "pid:"+strconv.Itoa(h.pid))
	a.rights.Unlock()
	return errors.Join(err, h.ns.LinkDel(link), h.do("call-yourself", "agent"))
}

// obstacle puts something at the hostile process's resolv.conf: links lead to
// files of the host.
func obstacle(h *agent, r *rand.Rand) error {
	kind := pick(r, "fifo", "dir", "link", "link", "link", "link", "file", "nothing")
	what := pick(r, "/run/decoy/file", "/var/lib/decoy/file", "/run/decoy/new", "/../../../run/decoy/file", "/proc/1/environ", "/dev/zero")
	return h.do("put", kind, "/etc/resolv.conf", what)
}

// resolverBefore looks at the host's files itself: detach may put them back.
func resolverBefore(a *attack, r *rand.Rand) error {
	h := a.target()
	err := obstacle(h, r)
	_ = a.withAttached(func(*agent) error { // refused is well
		for _, wrong := range a.judgeFiles() {
			a.fault("files", "%s", wrong)
		}
		return nil
	}, "--dns="+names6)
	return errors.Join(err, plainResolver(h))
}

// resolverAfter has it detached all the same.
func resolverAfter(a *attack, r *rand.Rand) error {
	h := a.target()
	err := a.withAttached(func(h *agent) error {
		err := obstacle(h, r)
		for _, wrong := range eventually(a.detached) {
			a.fault("detach", "%s", wrong)
		}
		return err
	}, "--dns="+names6)
	return errors.Join(err, plainResolver(h))
}

func plainResolver(h *agent) error {
	return errors.Join(h.do("put", "nothing", "/etc/resolv.conf"), h.do("put", "file", "/etc/resolv.conf", "nameserver 192.0.2.53\n"))
}

func lockNamespace(a *attack, _ *rand.Rand) error {
	err := a.withAttached(func(h *agent) error { return h.do("lock", "/proc/self/ns/net") })
	a.rights.Lock()
	a.natless([]int{0, 1}, "port-range", "show", "pid:"+a.targetPID())
	a.attach("pid:"+a.targetPID(), "--link")
	a.rights.Unlock()
	return errors.Join(err, a.target().do("let-go"))
}

// lockRun has natless start, elsewhere on the host, and end a second later.
func lockRun(a *attack, _ *rand.Rand) error {
	err := errors.Join(a.local.do("lock-all", "/run"), a.local.do("lock-all", "/var/lib"))
	a.natless([]int{1}, "down", "--state-dir", hostState)
	c := a.Host.Command(a.t.Context(), "unshare", "--net", "timeout", "--preserve-status", "--kill-after", "4", "1",
		lab.Binary(a.t), "run", "--socket", "/run/natless/other.sock", "--state-dir", "/run/natless/other")
	if out, e := c.CombinedOutput(); !c.ProcessState.Exited() || c.ProcessState.ExitCode() == 128+int(syscall.SIGKILL) {
		a.fault("commands", "natless run is deaf to SIGTERM: %v: %s", e, out) // timeout, too, ends by what it sends
	}
	return errors.Join(err, a.local.do("let-go"))
}

// localSocket has the local user, and the container, try the control socket.
func localSocket(a *attack, _ *rand.Rand) error {
	for _, g := range []*agent{a.local, a.target()} {
		if g.do("connect", hostSocket, "GET /") == nil {
			a.fault("host", "nobody may use the control socket")
		}
	}
	return nil
}

// halfRequests begins requests, and reads no answers; as who may use the socket.
func halfRequests(a *attack, r *rand.Rand) error {
	var errs []error
	for range 100 {
		c, err := net.DialTimeout("unix", a.root+hostSocket, time.Second)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer c.Close()
		_, err = c.Write([]byte(pick(r, "", "G", "GET /v1/status HTTP/1.1\r\nHost: natless\r\n", strings.Repeat("GET /v1/leases HTTP/1.1\r\nHost: natless\r\n\r\n", 20))))
		errs = append(errs, err)
	}
	a.natless([]int{0, 1}, "status")
	return errors.Join(errs...)
}

// impersonate takes the name of another that was attached and has gone.
func impersonate(a *attack, _ *rand.Rand) error {
	a.rights.Lock()
	defer a.rights.Unlock()
	a.natless([]int{0, 1}, "detach", "pid:"+a.targetPID())
	if !a.attach("netns:web", "--link") {
		return errors.New("web was not attached")
	}
	was := a.attached()
	a.natless([]int{0}, "detach", "netns:web")
	h := a.target()
	err := h.do("call-yourself", "web")
	a.attach("pid:"+strconv.Itoa(h.pid), "--link")
	for _, is := range a.attached() {
		for _, w := range was {
			if w.Label == "web" && is.Target != w.Target && (is.IPv6 == w.IPv6 || is.IPv4 == w.IPv4) {
				a.fault("lease", "a process that calls itself web has web's %v and %v", is.IPv6, is.IPv4)
			}
		}
	}
	a.natless([]int{0, 1}, "detach", "pid:"+strconv.Itoa(h.pid))
	return errors.Join(err, h.do("call-yourself", "agent"))
}

// die ends the attached process at some moment of an attach or a detach.
func die(a *attack, r *rand.Rand) error {
	h := a.target()
	delay := time.Duration(r.IntN(100)) * time.Millisecond
	end := time.AfterFunc(delay, h.kill)
	defer end.Stop()
	_ = a.withAttached(func(*agent) error { return nil }) // it may be gone by then
	h.kill()
	next := a.newHostile()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dead, a.hostile = append(a.dead, h), next
	return nil
}

// adminFlushes takes natless's tables away, while the stranger tries.
func adminFlushes(a *attack, r *rand.Rand) (err error) {
	for range 1 + r.IntN(8) {
		ruleset(a.t, a.Host, func(c *nftables.Conn) {
			tables, e := c.ListTables()
			err = errors.Join(err, e)
			for _, table := range tables {
				if table.Name == "natless" {
					c.DelTable(table)
				}
			}
		})
		err = errors.Join(err, a.probe(r, self4))
	}
	return err
}

// adminRenames gives the device another name for a while.
func adminRenames(a *attack, r *rand.Rand) error {
	link, err := a.Host.Netlink.LinkByName("natless0")
	if err != nil {
		return err
	}
	err = a.Host.Netlink.LinkSetName(link, "other0")
	for range 5 {
		err = errors.Join(err, a.probe(r, self4))
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(err, a.Host.Netlink.LinkSetName(link, "natless0"))
}

// adminRenews has the uplink lose its default route, as when DHCP renews.
func adminRenews(a *attack, r *rand.Rand) error {
	wan, err := a.Host.Netlink.LinkByName("wan")
	if err != nil {
		return err
	}
	route := netlink.Route{LinkIndex: wan.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Gw: net.ParseIP(lab.ServerIPv4)}
	err = a.Host.Netlink.RouteDel(&route)
	for range 5 {
		err = errors.Join(err, a.probe(r, self4))
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(err, a.Host.Netlink.RouteAdd(&route))
}
