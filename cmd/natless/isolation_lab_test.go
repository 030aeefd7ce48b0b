package main_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// What clients, and strangers on the uplink, must not be able to do to clients
// and to the host.

// sendLayers sends a packet made of layers, as it is, to an address.
func sendLayers(t *testing.T, n *lab.Node, to string, parts ...gopacket.SerializableLayer) {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...))
	a := netip.MustParseAddr(to)
	if a.Is4() {
		sendRaw(t, n, unix.AF_INET, b.Bytes(), &unix.SockaddrInet4{Addr: a.As4()})
		return
	}
	sendRaw(t, n, unix.AF_INET6, b.Bytes(), &unix.SockaddrInet6{Addr: a.As16()})
}

func ip6(src, dst string, next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
}

func ip4(src, dst string, next layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: next, SrcIP: net.ParseIP(src).To4(), DstIP: net.ParseIP(dst).To4()}
}

func pingOnce(t *testing.T, n *lab.Node, to string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	_, err := lab.Ping(ctx, n, "", netip.MustParseAddr(to), 56)
	return err
}

// Segments that connection tracking has no connection for are not masqueraded.
// None of them may leave with the pool's own source (RFC 3927 7).
func TestLabNothingLeavesUnmasqueraded(t *testing.T) {
	w := start(t, setup{})
	works(t, w)
	atServer, err := w.Server.CaptureAll("eth0")
	require.NoError(t, err)
	for port, set := range []func(*layers.TCP){
		func(s *layers.TCP) { s.RST = true },
		func(s *layers.TCP) { s.RST, s.ACK = true, true },
		func(s *layers.TCP) { s.FIN = true },
		func(s *layers.TCP) { s.FIN, s.ACK = true, true },
		func(s *layers.TCP) { s.SYN, s.ACK = true, true },
		func(*layers.TCP) {},
	} {
		ip := ip6(client1, lab.Server6, layers.IPProtocolTCP)
		s := &layers.TCP{SrcPort: layers.TCPPort(40000 + port), DstPort: 8080, Seq: 1000, Ack: 2000, Window: 1000}
		set(s)
		require.NoError(t, s.SetNetworkLayerForChecksum(ip))
		sendLayers(t, w.client, lab.Server6, ip, s)
	}
	works(t, w) // and so the capture has seen what came before
	for _, b := range atServer.Packets() {
		if b[0]>>4 == 4 {
			assert.False(t, netip.MustParsePrefix("169.254.0.0/16").Contains(netip.AddrFrom4([4]byte(b[12:16]))), "%x", b)
		}
	}
}

// A stranger on the uplink pretends to be one client towards another.
func TestLabStrangerIsNoClient(t *testing.T) {
	w := start(t, setup{clients: 2, flags: []string{
		"--pref64", lab.Pref64, "--map", lab.MappedIPv4 + "=" + lab.MappedIPv6, "--map", "203.0.113.81=2001:db8:2::80",
	}})
	works(t, w)
	atClient, err := w.client.CaptureAll("eth0")
	require.NoError(t, err)
	for _, src := range []string{"203.0.113.81", lab.MappedIPv4, w.leaseOf(t, client1).String()} {
		ip := ip4(src, lab.MappedIPv4, layers.IPProtocolUDP)
		u := &layers.UDP{SrcPort: 53, DstPort: 7}
		require.NoError(t, u.SetNetworkLayerForChecksum(ip))
		sendLayers(t, w.Server, lab.MappedIPv4, ip, u, gopacket.Payload("forged"))
	}
	require.NoError(t, lab.Exchange(t.Context(), w.client, "", server6+":7", 10))
	for _, b := range atClient.Packets() {
		assert.NotContains(t, string(b), "forged")
	}
}

// A client says of another client's connection that it failed. The server must
// not hear it, while it hears what the other says of itself.
func TestLabErrorAboutAnother(t *testing.T) {
	w := start(t, setup{clients: 2})
	conn, err := w.Clients[1].ListenPacket("udp", "[2001:db8:2::2]:4000")
	require.NoError(t, err)
	defer conn.Close()
	serving, err := w.Server.ListenPacket("udp", lab.ServerIPv4+":4001")
	require.NoError(t, err)
	defer serving.Close()
	_, err = conn.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server6+":4001")))
	require.NoError(t, err)
	buf := make([]byte, 100)
	_, from, err := serving.ReadFrom(buf)
	require.NoError(t, err)
	peer := from.(*net.UDPAddr).AddrPort()
	raw, err := serving.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { // a connected socket hears of errors
		err = unix.Connect(int(fd), &unix.SockaddrInet4{Addr: peer.Addr().Unmap().As4(), Port: int(peer.Port())})
		if err == nil {
			_, err = unix.Write(int(fd), []byte("answer"))
		}
	}))
	require.NoError(t, err)

	tell := func(n *lab.Node, src string) {
		ip := ip6(src, lab.Server6, layers.IPProtocolICMPv6)
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodePortUnreachable)}
		require.NoError(t, icmp.SetNetworkLayerForChecksum(ip))
		inner := ip6(lab.Server6, "2001:db8:2::2", layers.IPProtocolUDP)
		u := &layers.UDP{SrcPort: 4001, DstPort: 4000}
		require.NoError(t, u.SetNetworkLayerForChecksum(inner))
		b := gopacket.NewSerializeBuffer()
		require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, inner, u, gopacket.Payload("answer")))
		sendLayers(t, n, lab.Server6, ip, icmp, gopacket.Payload(append(make([]byte, 4), b.Bytes()...)))
	}
	hears := func() error {
		require.NoError(t, serving.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		_, _, err := serving.ReadFrom(buf)
		return err
	}
	works(t, w)
	before := w.verdict(t, "error_for_another")
	tell(w.client, client1)
	tell(w.client, "2001:db8:1::99") // who has no lease
	assert.ErrorIs(t, hears(), os.ErrDeadlineExceeded)
	w.counted(t, "error_for_another", before+2)
	tell(w.Clients[1], "2001:db8:2::2")
	assert.ErrorIs(t, hears(), syscall.ECONNREFUSED)
}

// By default clients reach each other through natless only where the host would
// forward between their links without it.
func TestLabHairpinIsGuarded(t *testing.T) {
	const other4, other6 = "203.0.113.81", "2001:db8:2::80"
	w := start(t, setup{clients: 2, flags: []string{"--pref64", lab.Pref64, "--map", other4 + "=" + other6}})
	other := lab.Embed(lab.Pref64, other4).String()
	before := w.verdict(t, "hairpin_off")
	assert.Error(t, pingOnce(t, w.client, other))
	assert.Greater(t, w.verdict(t, "hairpin_off"), before)
	assert.Contains(t, w.query(t, "status"), "packets between clients")

	// An administrator who forwards between them natively.
	require.NoError(t, w.Host.SetSysctl("net/ipv6/conf/all/forwarding", "1"))
	require.Eventually(t, func() bool { return pingOnce(t, w.client, other) == nil }, 15*time.Second, 100*time.Millisecond)

	// And one who has rules about it.
	ruleset(t, w.Host, func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "admin", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(cameIn("lan1"),
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname("lan2")},
			&expr.Verdict{Kind: expr.VerdictDrop})})
	})
	require.Eventually(t, func() bool { return pingOnce(t, w.client, other) != nil }, 5*time.Second, 100*time.Millisecond)
	works(t, w)
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func cameIn(link string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(link)}}
}

// The host's own IPv4 addresses are as open as the host's input is, unless that
// goes by the link of the client, which natless cannot show it.
func TestLabHostIsGuarded(t *testing.T) {
	w := start(t, setup{})
	host := lab.Embed(lab.Pref64, lab.HostIPv4).String()
	require.NoError(t, pingOnce(t, w.client, host), "nothing is filtered")
	input := func(exprs ...expr.Any) {
		ruleset(t, w.Host, func(c *nftables.Conn) {
			table := c.AddTable(&nftables.Table{Name: "admin", Family: nftables.TableFamilyINet})
			chain := c.AddChain(&nftables.Chain{
				Name: "input", Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
			})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		})
	}
	input(append(cameIn("lo"), &expr.Verdict{Kind: expr.VerdictAccept})...)
	input(&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(1)}, &expr.Verdict{Kind: expr.VerdictAccept})
	time.Sleep(300 * time.Millisecond)
	require.NoError(t, pingOnce(t, w.client, host), "rules about loopback make no difference")
	input(append(cameIn("lan1"), &expr.Verdict{Kind: expr.VerdictDrop})...)
	require.Eventually(t, func() bool { return pingOnce(t, w.client, host) != nil }, 5*time.Second, 100*time.Millisecond)
	works(t, w)
}

// What the administrator's own DNAT leads to a leased address comes through, and
// nothing else does.
func TestLabPublishedLease(t *testing.T) {
	w := start(t, setup{})
	works(t, w)
	serve(t, w.client, client1)
	lease := w.leaseOf(t, client1).String()
	refused(t, w.Server, lease)
	ruleset(t, w.Host, func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "published", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{
			Name: "pre", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(cameIn("wan"),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Immediate{Register: 1, Data: netip.MustParseAddr(lease).AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})})
	})
	_, err := lab.Download(t.Context(), w.Server.HTTP(""), lab.HostIPv4+":8080", make([]byte, 1<<20), nil)
	require.NoError(t, err)
	refused(t, w.Server, lease)
}

// Flows that begin after another program emptied the ruleset, and before natless
// put its tables back, must not stay without masquerading for ever.
func TestLabFlushUnderLoad(t *testing.T) {
	w := start(t, setup{})
	works(t, w)
	flush := time.AfterFunc(100*time.Millisecond, func() { removeTables(t, w.Host) })
	defer flush.Stop()
	var flows []net.Conn
	for until := time.Now().Add(time.Second); time.Now().Before(until) && len(flows) < 2000; {
		conn, err := w.client.Dial(t.Context(), "udp", server6+":7")
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte("hello"))
		require.NoError(t, err)
		flows = append(flows, conn)
		time.Sleep(500 * time.Microsecond)
	}
	time.Sleep(300 * time.Millisecond)
	lost := 0
	buf := make([]byte, 10)
	for _, conn := range flows {
		for try := 0; ; try++ {
			_, err := conn.Write([]byte("again"))
			require.NoError(t, err)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
			_, err = conn.Read(buf)
			if err == nil {
				break
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || try == 2 {
				lost++
				break
			}
		}
	}
	assert.Zero(t, lost, "of %d flows", len(flows))
}
