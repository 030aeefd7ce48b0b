package hostnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
)

// Packets are put on the far end of a link, and into the device, and looked for
// on the other side: the device's own file, and the far end.

// wire is the far end of a link of the test's namespace.
type wire struct {
	t    *testing.T
	fd   int
	near net.HardwareAddr
	far  net.HardwareAddr
}

func openWire(t *testing.T, link string) *wire {
	t.Helper()
	near, err := netlink.LinkByName(link)
	require.NoError(t, err)
	far, err := netlink.LinkByName(link + "p")
	require.NoError(t, err)
	all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: far.Attrs().Index}))
	return &wire{t, fd, near.Attrs().HardwareAddr, far.Attrs().HardwareAddr}
}

func (w *wire) send(packet []byte) {
	w.t.Helper()
	kind := layers.EthernetTypeIPv4
	if packet[0]>>4 == 6 {
		kind = layers.EthernetTypeIPv6
	}
	frame := binary.BigEndian.AppendUint16(append(append([]byte(nil), w.near...), w.far...), uint16(kind))
	_, err := unix.Write(w.fd, append(frame, packet...))
	require.NoError(w.t, err)
}

// receive returns the next packet of ours that arrives, or nil.
func (w *wire) receive() gopacket.Packet {
	return receive(w.t, w.fd, layers.LayerTypeEthernet)
}

// patienceForNothing is how long a packet that must not come is waited for.
const patienceForNothing = 60 * time.Millisecond

func receive(t *testing.T, fd int, first gopacket.LayerType) gopacket.Packet {
	t.Helper()
	return receiveSuch(t, fd, first, func(p gopacket.Packet) bool {
		u := p.TransportLayer()
		return u != nil && string(u.LayerPayload()) == "natless"
	})
}

func receiveSuch(t *testing.T, fd int, first gopacket.LayerType, such func(gopacket.Packet) bool) gopacket.Packet {
	t.Helper()
	buf := make([]byte, 2048)
	for end := time.Now().Add(patienceForNothing); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n, err := unix.Read(fd, buf)
		if err != nil {
			require.ErrorIs(t, err, unix.EAGAIN)
			continue
		}
		f := first
		if f == 0 {
			f = layers.LayerTypeIPv4
			if buf[0]>>4 == 6 {
				f = layers.LayerTypeIPv6
			}
		}
		p := gopacket.NewPacket(append([]byte(nil), buf[:n]...), f, gopacket.Default)
		if such(p) {
			return p
		}
	}
	return nil
}

func udp(t *testing.T, src, dst string) []byte {
	t.Helper()
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	u := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	var ip gopacket.SerializableLayer
	if from.Addr().Is4() {
		l := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		require.NoError(t, u.SetNetworkLayerForChecksum(l))
		ip = l
	} else {
		l := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		require.NoError(t, u.SetNetworkLayerForChecksum(l))
		ip = l
	}
	b := gopacket.NewSerializeBuffer()
	require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, u, gopacket.Payload("natless")))
	return b.Bytes()
}

// neighbour tells the host a router's or neighbour's link address, which no one
// on the far end would.
func neighbour(t *testing.T, link, addr string, w *wire) {
	t.Helper()
	require.NoError(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: linkIndex(t, link), IP: net.ParseIP(addr), HardwareAddr: w.far, State: netlink.NUD_PERMANENT,
	}))
}

// packetHost is testHost with wires and neighbours, and natless at work.
type packetHost struct {
	t               *testing.T
	h               *Host
	tun             int
	shut            func()
	uplink, clients *wire
}

func newPacketHost(t *testing.T) *packetHost {
	t.Helper()
	testHost(t)
	p := &packetHost{t: t, uplink: openWire(t, "uplink"), clients: openWire(t, "clients")}
	neighbour(t, "uplink", "192.0.2.1", p.uplink)
	neighbour(t, "uplink", "2001:db8:ff::1", p.uplink)
	neighbour(t, "clients", "2001:db8:1::5", p.clients)
	p.start()
	return p
}

func (p *packetHost) start() {
	p.t.Helper()
	plan := testPlan()
	plan.Keep = true
	h, err := Prepare(plan)
	require.NoError(p.t, err)
	index, shut := openTUN(p.t, "natless0", false)
	p.tun = lastTUN
	require.NoError(p.t, unix.SetNonblock(p.tun, true))
	require.NoError(p.t, h.Attach(index))
	p.h, p.shut = h, shut
}

func (p *packetHost) device() gopacket.Packet { return receive(p.t, p.tun, 0) }

func (p *packetHost) emit(packet []byte) {
	p.t.Helper()
	_, err := unix.Write(p.tun, packet)
	require.NoError(p.t, err)
}

func TestPacketsReachTheDevice(t *testing.T) {
	p := newPacketHost(t)
	client := udp(t, "[2001:db8:1::5]:4000", "[64:ff9b::c633:6401]:53")
	p.clients.send(client)
	require.NotNil(t, p.device(), "a client's")
	p.clients.send(udp(t, "[2001:db8:9::5]:4000", "[64:ff9b::c633:6401]:53"))
	require.Nil(t, p.device(), "a client's with a source that is elsewhere")
	p.clients.send(udp(t, "[2001:db8:ff::5]:4000", "[64:ff9b::c633:6401]:53"))
	require.Nil(t, p.device(), "a client's with a source of the uplink")
	p.uplink.send(udp(t, "[2001:db8:ff::5]:4000", "[64:ff9b::c633:6401]:53"))
	require.Nil(t, p.device(), "IPv6 of a neighbour on the uplink")
	p.uplink.send(udp(t, "198.51.100.1:53", "169.254.64.5:4000"))
	require.Nil(t, p.device(), "IPv4 from the uplink to a pool address")
	p.uplink.send(udp(t, "198.51.100.1:53", "198.51.100.7:4000"))
	require.NotNil(t, p.device(), "IPv4 from the uplink to a mapped address")

	nft(t, "delete table ip natless; delete table ip6 natless")
	p.uplink.send(udp(t, "[2001:db8:ff::5]:4000", "[64:ff9b::c633:6401]:53"))
	require.NotNil(t, p.device(), "where clients may be behind the uplink, it was the table too")
	p.uplink.send(udp(t, "198.51.100.1:53", "169.254.64.5:4000"))
	require.NotNil(t, p.device(), "it was the table that kept it out")
}

func TestSourcesAreRemembered(t *testing.T) {
	p := newPacketHost(t)
	addLink(t, "other", "2001:db8:2::1/64")
	other := openWire(t, "other")
	require.NoError(t, p.h.settle())
	client := udp(t, "[2001:db8:1::5]:4000", "[64:ff9b::c633:6401]:53")
	p.clients.send(client)
	require.NotNil(t, p.device(), "a client's")
	require.Contains(t, nft(t, "list set ip6 natless reachable"), `2001:db8:1::5 . "clients"`)
	other.send(client)
	require.Nil(t, p.device(), "the same from another link")
	other.send(udp(t, "[2001:db8:2::5]:4000", "[64:ff9b::c633:6401]:53"))
	require.NotNil(t, p.device(), "that link's own")

	addRoute(t, "2001:db8:1::5/128", "other", "2001:db8:2::5")
	other.send(client)
	require.NotNil(t, p.device(), "the same, where the client is now")
	require.Eventually(t, func() bool {
		p.clients.send(client)
		return p.device() == nil
	}, 5*time.Second, 10*time.Millisecond, "the same from where it was")
	other.send(client)
	print, _, err := tablePrint()
	require.NoError(t, err)
	require.Equal(t, p.h.tablePrint, print, "what is remembered is no change of the tables")
}

func TestTheHostBecomesNoRouter(t *testing.T) {
	p := newPacketHost(t)
	p.clients.send(udp(t, "[2001:db8:1::5]:4000", "[2001:db8:dead::1]:53"))
	require.Nil(t, p.uplink.receive(), "IPv6 from clients to the uplink")
	other := openWire(t, "clients")
	addAddr(t, "clients", "10.20.0.1/16")
	neighbour(t, "clients", "10.20.0.5", other)
	p.uplink.send(udp(t, "192.0.2.77:4000", "10.20.0.5:53"))
	require.Nil(t, other.receive(), "IPv4 from the uplink to elsewhere")

	require.NoError(t, writeSysctl(sysctlPath("ipv6", "all", keyForwarding), yes))
	require.NoError(t, p.h.settle())
	p.clients.send(udp(t, "[2001:db8:1::5]:4000", "[2001:db8:dead::1]:53"))
	require.NotNil(t, p.uplink.receive(), "unless its operator makes it one")
}

func TestMasqueradedFlowOutlivesARestart(t *testing.T) {
	p := newPacketHost(t)
	request := udp(t, "169.254.64.5:4000", "198.51.100.1:53")
	p.emit(request)
	out := p.uplink.receive()
	require.NotNil(t, out)
	ip := out.NetworkLayer().(*layers.IPv4)
	require.Equal(t, "192.0.2.2", ip.SrcIP.String())
	port := uint16(out.TransportLayer().(*layers.UDP).SrcPort)
	answer := udp(t, "198.51.100.1:53", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port).String())

	answered := func() {
		t.Helper()
		p.uplink.send(answer)
		in := p.device()
		require.NotNil(t, in)
		require.Equal(t, "169.254.64.5", in.NetworkLayer().(*layers.IPv4).DstIP.String())
	}
	answered()
	err := p.h.Close()
	require.NoError(t, err)
	p.shut()
	p.uplink.send(answer)
	require.Nil(t, p.uplink.receive(), "nothing goes back while natless is away")
	p.start()
	answered()
	kill(p.h, p.shut)
	p.uplink.send(answer)
	p.start()
	answered()

	p.emit(udp(t, "198.51.100.7:4000", "198.51.100.1:53"))
	out = p.uplink.receive()
	require.NotNil(t, out)
	require.Equal(t, "198.51.100.7", out.NetworkLayer().(*layers.IPv4).SrcIP.String(), "a mapped address is not masqueraded")
}

func TestForgetFlows(t *testing.T) {
	p := newPacketHost(t)
	masqueraded := func(client string) (answer []byte) {
		t.Helper()
		p.emit(udp(t, client+":4000", "198.51.100.1:53"))
		out := p.uplink.receive()
		require.NotNil(t, out)
		port := uint16(out.TransportLayer().(*layers.UDP).SrcPort)
		return udp(t, "198.51.100.1:53", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port).String())
	}
	arrives := func(answer []byte, client string) bool {
		t.Helper()
		p.uplink.send(answer)
		in := p.device()
		return in != nil && in.NetworkLayer().(*layers.IPv4).DstIP.String() == client
	}
	five, six, seven := masqueraded("169.254.64.5"), masqueraded("169.254.64.6"), masqueraded("169.254.64.7")
	require.True(t, arrives(five, "169.254.64.5"))
	require.NoError(t, ForgetFlows([]mapping.Portion{{IPv4: netip.MustParseAddr("169.254.64.5")}, {IPv4: netip.MustParseAddr("169.254.64.6")}, {IPv4: netip.MustParseAddr("169.254.64.99")}}))
	require.False(t, arrives(five, "169.254.64.5"), "its flow is forgotten")
	require.False(t, arrives(six, "169.254.64.6"))
	require.True(t, arrives(seven, "169.254.64.7"), "others are not")

	require.NoError(t, ForgetFlows([]mapping.Portion{{IPv4: netip.MustParseAddr("169.254.64.7"), First: 4001, Last: 4999}, {IPv4: netip.MustParseAddr("169.254.64.7"), First: 2000, Last: 3999}}))
	require.True(t, arrives(seven, "169.254.64.7"), "nor is another port")
	require.NoError(t, ForgetFlows([]mapping.Portion{{IPv4: netip.MustParseAddr("169.254.64.7"), First: 4000, Last: 4000}}))
	require.False(t, arrives(seven, "169.254.64.7"))

	// The other side of a translation counts too.
	seven = masqueraded("169.254.64.7")
	require.True(t, arrives(seven, "169.254.64.7"))
	require.NoError(t, ForgetFlows([]mapping.Portion{{IPv4: netip.MustParseAddr("192.0.2.2")}}))
	require.False(t, arrives(seven, "169.254.64.7"))
	require.NoError(t, ForgetFlows([]mapping.Portion{{IPv4: netip.MustParseAddr("192.0.2.2")}}), "by its reply")
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	require.NoError(t, err)
	require.Empty(t, flows)
	require.NoError(t, ForgetFlows([]mapping.Portion{{IPv4: netip.MustParseAddr("169.254.64.5")}}), "where nothing is tracked")
}

func TestBlackholesKeepPacketsFromTheDefaultRoute(t *testing.T) {
	p := newPacketHost(t)
	kill(p.h, p.shut)
	p.clients.send(udp(t, "[2001:db8:1::5]:4000", "[64:ff9b::c633:6401]:53"))
	require.Nil(t, p.uplink.receive())
}

// With br_netfilter the kernel shows the forward chain what a bridge passes
// between its ports.
func TestBridgedPacketsPassTheGuard(t *testing.T) {
	newerKernel(t)
	testHost(t)
	if _, ok := readSysctl(procNet + "/bridge/bridge-nf-call-ip6tables"); !ok {
		testenv.Skip(t, "this kernel has no br_netfilter")
	}
	addBridge(t)
	one, two := openWire(t, "one"), openWire(t, "two")
	one.near = two.far
	packet := udp(t, "[2001:db8:3::5]:4000", "[2001:db8:3::6]:53")
	passes := func() bool { one.send(packet); return two.receive() != nil }
	require.True(t, within(longEnough, passes))

	h, _ := start(t, testPlan())
	require.Contains(t, h.table.Opened6, linkRef{linkIndex(t, "bridge"), "bridge"})
	require.True(t, passes())
	require.NoError(t, writeSysctl(procNet+"/bridge/bridge-nf-call-ip6tables", yes))
	require.NoError(t, h.settle())
	require.True(t, passes())
	err := h.Close()
	require.NoError(t, err)
}

// addBridge makes a bridge of the links "one" and "two", with the MAC address of
// "one", since that is the lower.
func addBridge(t *testing.T) {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}}
	require.NoError(t, netlink.LinkAdd(bridge))
	quiet(t, "bridge")
	for i, port := range []string{"one", "two"} {
		addLink(t, port)
		l, err := netlink.LinkByName(port)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}))
		require.NoError(t, netlink.LinkSetMaster(l, bridge))
	}
	require.NoError(t, netlink.LinkSetUp(bridge))
	addAddr(t, "bridge", "2001:db8:3::1/64")
}

// A bridge that loses the port whose MAC address it had tells its other clients
// of its new one, and no longer once natless has ended.
func TestBridgesAnnounceTheirAddress(t *testing.T) {
	testHost(t)
	addBridge(t)
	calm(t)
	before := snapshot(t)
	two := openWire(t, "two")
	h, shut := start(t, testPlan())
	announced := func() gopacket.Packet {
		return receiveSuch(t, two.fd, layers.LayerTypeEthernet, func(p gopacket.Packet) bool {
			a, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
			return ok && a.TargetAddress.String() == "2001:db8:3::1" && a.Override()
		})
	}
	one, err := netlink.LinkByName("one")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetNoMaster(one))
	said := announced()
	require.NotNil(t, said)
	require.Equal(t, two.near.String(), said.LinkLayer().(*layers.Ethernet).SrcMAC.String())

	bridge, err := netlink.LinkByName("bridge")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetMaster(one, bridge))
	require.NotNil(t, announced())
	err = h.Close()
	require.NoError(t, err)
	shut()
	returns(t, before)
	require.NoError(t, netlink.LinkSetNoMaster(one))
	require.Nil(t, announced())
}

// What masquerading and the telling of answers need does not make the kernel
// track what is IPv6.
func TestIPv6IsNotTracked(t *testing.T) {
	p := newPacketHost(t)
	tracked := func() string {
		b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		require.NoError(t, err)
		return string(b)
	}
	p.clients.send(udp(t, "[2001:db8:1::5]:4000", "[64:ff9b::c633:6401]:53"))
	require.NotNil(t, p.device())
	p.uplink.send(udp(t, "198.51.100.1:53", "198.51.100.7:4000"))
	require.NotNil(t, p.device())
	require.Contains(t, tracked(), "198.51.100.7")
	require.NotContains(t, tracked(), "ipv6")
}

// Where others masquerade IPv6, as Podman and Docker do for their containers,
// clients are still known by their own addresses.
func TestClientsKeepTheirSourceWhereOthersMasquerade(t *testing.T) {
	p := newPacketHost(t)
	client := func(port string) string {
		t.Helper()
		p.clients.send(udp(t, "[2001:db8:1::5]:"+port, "[64:ff9b::c633:6401]:53"))
		in := p.device()
		require.NotNil(t, in)
		return in.NetworkLayer().(*layers.IPv6).SrcIP.String()
	}
	for _, family := range []string{"ip6", "inet"} {
		nft(t, "add table "+family+" theirs { chain c { type nat hook postrouting priority srcnat; masquerade; }; }")
		require.NotEqual(t, "2001:db8:1::5", client("4000"), "%s: they do", family)
		require.NoError(t, p.h.settle())
		require.Equal(t, "2001:db8:1::5", client("4001"), family)

		nft(t, "delete table "+family+" theirs")
		require.NoError(t, p.h.settle())
		require.NotContains(t, nft(t, "list table ip6 natless"), "snat", "only while they do")
	}
}
