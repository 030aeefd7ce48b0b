package hostnet

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// strangers is a packet of who is on the uplink's network, to an IPv4 address by
// pref64.
func strangers(t *testing.T) []byte {
	return udp(t, "[2001:db8:ff::5]:4000", "[64:ff9b::c633:6401]:53")
}

func clients(t *testing.T) []byte { return udp(t, "[2001:db8:1::5]:4000", "[64:ff9b::c633:6401]:53") }

func roleOf(t *testing.T, h *Host, link string) Role {
	t.Helper()
	_, err := h.Local() // looks
	require.NoError(t, err)
	for _, r := range h.Links() {
		if r.Link == link {
			return r.Role
		}
	}
	return ""
}

func dropDefaults(t *testing.T) {
	t.Helper()
	for _, r := range []*netlink.Route{testRoute(t, "0.0.0.0/0", "uplink", "192.0.2.1"), testRoute(t, "::/0", "uplink", "2001:db8:ff::1")} {
		require.NoError(t, netlink.RouteDel(r))
	}
}

// An uplink that loses its default route stays one: who is on its network does
// not become a client, not even for a natless that is started then.
func TestUplinksAreRemembered(t *testing.T) {
	p := newPacketHost(t)
	dropDefaults(t)
	closed := func() {
		t.Helper()
		require.NoError(t, p.h.settle())
		require.Equal(t, RoleUplink, roleOf(t, p.h, "uplink"))
		local, err := p.h.Local()
		require.NoError(t, err)
		require.NotContains(t, local, netip.MustParsePrefix("2001:db8:ff::/64"))
		require.Contains(t, local, netip.MustParsePrefix("2001:db8:1::/64"))
		require.NoError(t, writeSysctl(sysctlPath("ipv6", "all", keyForwarding), yes)) // the guard alone is in the way
		require.NoError(t, p.h.settle())
		p.uplink.send(strangers(t))
		require.Nil(t, p.device())
		p.uplink.send(udp(t, "198.51.100.1:53", "169.254.64.5:4000"))
		require.Nil(t, p.device())
		p.clients.send(clients(t))
		require.NotNil(t, p.device())
	}
	closed()
	kill(p.h, p.shut)
	p.start()
	closed()
	require.NoError(t, p.h.Close()) // which keeps
	p.shut()
	p.start()
	closed()

	named := testPlan()
	named.ClientLinks = []string{"uplink"}
	require.NoError(t, p.h.Update(named))
	require.Equal(t, RoleClient, roleOf(t, p.h, "uplink"))
	p.uplink.send(strangers(t))
	require.NotNil(t, p.device(), "named as a link to clients")
}

// addCard makes a link as of a network card, on another that carries it.
func addCard(t *testing.T, name, on string, addrs ...string) {
	t.Helper()
	require.NoError(t, netlink.LinkAdd(&netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: linkIndex(t, on)}, Mode: netlink.MACVLAN_MODE_PRIVATE,
	}))
	quiet(t, name)
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(l))
	for _, a := range addrs {
		addAddr(t, name, a)
	}
}

// Before an uplink is known anything may be it.
func TestNoUplinkIsKnown(t *testing.T) {
	testHost(t)
	dropDefaults(t)
	addBridge(t)
	addCard(t, "card", "uplink", "2001:db8:fe::2/64", "198.51.100.130/25")
	addCard(t, "lan", "clients", "2001:db8:6::1/64")
	r, err := Check(testPlan())
	require.NoError(t, err)
	require.Contains(t, strings.Join(r.Warnings, "\n"), "no uplink is known, so that no client is let in over card, lan: ")
	require.Contains(t, r.String(), "lan: unknown: no uplink is known yet")
	h, _ := start(t, testPlan())
	require.Equal(t, RoleUnknown, roleOf(t, h, "card"))
	require.Equal(t, RoleUnknown, roleOf(t, h, "lan"))
	require.Equal(t, RoleClient, roleOf(t, h, "bridge"), "of guests alone")
	require.Equal(t, RoleClient, roleOf(t, h, "clients"))
	local, err := h.Local()
	require.NoError(t, err)
	require.NotContains(t, local, netip.MustParsePrefix("2001:db8:fe::/64"))
	require.Contains(t, local, netip.MustParsePrefix("2001:db8:3::/64"))

	card := openWire(t, "uplink")
	l, err := netlink.LinkByName("card")
	require.NoError(t, err)
	card.near = l.Attrs().HardwareAddr
	require.NoError(t, unix.SetNonblock(lastTUN, true))
	require.NoError(t, writeSysctl(sysctlPath("ipv6", "all", keyForwarding), yes))
	require.NoError(t, h.settle())
	stranger := udp(t, "[2001:db8:fe::5]:4000", "[64:ff9b::c633:6401]:53")
	card.send(stranger)
	require.Nil(t, receive(t, lastTUN, 0))

	named := testPlan()
	named.Uplinks = []string{"card", "later"}
	require.NoError(t, h.Update(named))
	require.Equal(t, RoleClient, roleOf(t, h, "lan"), "once one is named")
	card.send(stranger)
	require.Nil(t, receive(t, lastTUN, 0))
	require.Contains(t, h.Doubtful(), "link later, which the configuration names, is not there")
	require.NoError(t, h.Update(testPlan()))
	require.Equal(t, RoleUnknown, roleOf(t, h, "lan"))
	addRoute(t, "0.0.0.0/0", "card", "198.51.100.129")
	require.Equal(t, RoleClient, roleOf(t, h, "lan"), "once one has its route")
	require.Empty(t, h.Doubtful())
}

// A link of another kind than engines make leads to clients only where the host
// has a lasting IPv6 address of its own, and none from others.
func TestLinksThatEnginesDoNotMake(t *testing.T) {
	testHost(t)
	addCard(t, "lan", "clients")
	lan, err := netlink.LinkByName("lan")
	require.NoError(t, err)
	h, _ := start(t, testPlan())
	require.Equal(t, RoleUnknown, roleOf(t, h, "lan"), "no address yet")
	addAddr(t, "lan", "2001:db8:6::1/64")
	require.Equal(t, RoleClient, roleOf(t, h, "lan"))
	lent, err := netlink.ParseAddr("198.51.100.130/25")
	require.NoError(t, err)
	lent.ValidLft, lent.PreferedLft = 600, 600
	require.NoError(t, netlink.AddrAdd(lan, lent))
	require.Equal(t, RoleUnknown, roleOf(t, h, "lan"), "by DHCP")
	require.NoError(t, netlink.AddrDel(lan, lent))
	require.Equal(t, RoleClient, roleOf(t, h, "lan"))
	byAdvertisement(t, "lan")
	require.Equal(t, RoleUplink, roleOf(t, h, "lan"), "a router is there")
	require.NoError(t, netlink.RouteDel(advertised(t, "lan")))
	require.Equal(t, RoleUplink, roleOf(t, h, "lan"), "that was silent for too long")

	require.NoError(t, netlink.LinkDel(lan))
	addCard(t, "lan", "clients", "2001:db8:6::1/64")
	require.Equal(t, RoleUplink, roleOf(t, h, "lan"), "as a modem's link comes again")

	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "office"}}
	require.NoError(t, netlink.LinkAdd(bridge))
	require.Equal(t, RoleClient, roleOf(t, h, "office"))
	lan, err = netlink.LinkByName("lan")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetMaster(lan, bridge))
	require.Equal(t, RoleUnknown, roleOf(t, h, "office"), "it leads to more than guests")
	require.Empty(t, roleOf(t, h, "lan"), "its port")
}

// advertisement is that of a router at the far end of a wire.
func (w *wire) advertisement(prefix string) []byte {
	w.t.Helper()
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: net.ParseIP("fe80::bad"), DstIP: net.ParseIP("ff02::1")}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeRouterAdvertisement, 0)}
	require.NoError(w.t, icmp.SetNetworkLayerForChecksum(ip))
	p := netip.MustParsePrefix(prefix).Addr().As16()
	option := append([]byte{64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0}, p[:]...)
	ra := &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800, Options: layers.ICMPv6Options{
		{Type: layers.ICMPv6OptPrefixInfo, Data: option},
		{Type: layers.ICMPv6OptSourceAddress, Data: w.far},
	}}
	b := gopacket.NewSerializeBuffer()
	require.NoError(w.t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, icmp, ra))
	return b.Bytes()
}

// A container that says it is a router becomes neither the host's own nor shuts
// out who is beside it.
func TestContainersAreNoRouters(t *testing.T) {
	for name, older := range map[string]bool{"per link": false, "older kernel": true} {
		t.Run(name, func(t *testing.T) {
			if newerKernel(t); older {
				olderKernel(t)
			}
			p := newPacketHost(t)
			hears := func(link string) bool {
				w := openWire(t, link)
				w.send(w.advertisement("2001:db8:bad::/64"))
				return within(300*time.Millisecond, func() bool {
					v, err := look()
					require.NoError(t, err)
					for _, r := range v.routes {
						if r.protocol == unix.RTPROT_RA && r.isDefault() && r.links[0] == linkIndex(t, link) {
							return true
						}
					}
					return false
				})
			}
			require.False(t, hears("clients"))
			for _, a := range mustLook(t).addrs {
				require.False(t, netip.MustParsePrefix("2001:db8:bad::/64").Contains(a.addr), "it gave the host an address")
			}
			byAdvertisement(t, "clients") // as one from before natless ran
			require.NoError(t, p.h.settle())
			require.Equal(t, RoleClient, roleOf(t, p.h, "clients"))
			require.Contains(t, strings.Join(p.h.Doubtful(), "\n"), "(over clients, protocol ra): a link to clients has made itself this host's router")
			p.clients.send(clients(t))
			require.NotNil(t, p.device())
			if !older {
				require.True(t, hears("uplink"), "the uplink's routers are heard")
			}
		})
	}
}

func mustLook(t *testing.T) *view {
	t.Helper()
	v, err := look()
	require.NoError(t, err)
	return v
}

// The one link of a host hears the router there, though clients are there too.
func TestOneLinkHearsItsRouter(t *testing.T) {
	testHost(t)
	dropDefaults(t)
	addCard(t, "lan", "clients", "2001:db8:6::1/64")
	plan := testPlan()
	plan.ClientLinks = []string{"lan"}
	h, _ := start(t, plan)
	hears := func() string {
		now, _ := readSysctl(sysctlPath("ipv6", "lan", keyAcceptRA))
		return now
	}
	require.Equal(t, acceptRA, hears(), "before its route has come")
	byAdvertisement(t, "lan")
	require.NoError(t, h.settle())
	require.Equal(t, acceptRA, hears())
	require.NoError(t, netlink.RouteDel(advertised(t, "lan")))
	addRoute(t, "0.0.0.0/0", "uplink", "192.0.2.1")
	require.NoError(t, h.settle())
	require.Equal(t, no, hears(), "with another uplink it is a link to clients as any")
}

// Clients that are named are let in also over the link of the default route, by
// the way that the host reaches them; nobody else is.
func TestOneArmedHost(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	uplink, clients := openWire(t, "uplink"), openWire(t, "clients")
	plan := testPlan()
	plan.Local, plan.Clients = false, prefixes("2001:db8:ff::4/126", "2001:db8:77::/64")
	h, shut := start(t, plan)
	require.NoError(t, unix.SetNonblock(lastTUN, true))
	arrives := func(w *wire, from string) bool {
		w.send(udp(t, "["+from+"]:4000", "[64:ff9b::c633:6401]:53"))
		return receive(t, lastTUN, 0) != nil
	}
	require.True(t, arrives(uplink, "2001:db8:ff::5"), "a neighbour that is named")
	require.True(t, arrives(uplink, "2001:db8:77::5"), "one behind the router")
	require.False(t, arrives(uplink, "2001:db8:ff::9"), "a neighbour that is not")
	require.False(t, arrives(clients, "2001:db8:ff::5"), "a named source from elsewhere")
	neighbour(t, "uplink", "2001:db8:ff::1", uplink)
	uplink.send(udp(t, "[2001:db8:ff::5]:4000", "[2001:db8:dead::1]:53"))
	require.Nil(t, uplink.receive(), "and the host does not become a router for it")
	require.NoError(t, h.Close())
	shut()
	require.Empty(t, difference(before, snapshot(t)))

	plan.Clients = prefixes("::/0") // who asks for it gets it
	h, _ = start(t, plan)
	require.NoError(t, unix.SetNonblock(lastTUN, true))
	require.True(t, arrives(uplink, "2001:db8:ff::9"))
	require.NoError(t, h.Close())
}
