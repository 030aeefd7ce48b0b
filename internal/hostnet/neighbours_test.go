package hostnet

import (
	"net"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/mapping"
)

// guardedHost is testHost with two more links of clients, a bridge and a veth
// pair, no rules of others, and natless at work.
func guardedHost(t *testing.T) *Host {
	t.Helper()
	testHost(t)
	nft(t, "delete table inet foreign")
	addLink(t, "other", "2001:db8:2::1/64")
	addBridge(t)
	p := testPlan()
	p.Guarded, p.Clients = true, nil // which are behind the uplink
	h, _ := start(t, p)
	return h
}

// look is what the host tells of its links now.
func aroundNow(t *testing.T, h *Host) (mapping.Around, *view) {
	t.Helper()
	v, err := h.look()
	require.NoError(t, err)
	_, err = h.yield(v)
	require.NoError(t, err)
	return h.around(v), v
}

// meeting is Around.Meet by the links' names.
func meetingNow(t *testing.T, h *Host) (names []string, all bool) {
	t.Helper()
	a, v := aroundNow(t, h)
	for _, pair := range a.Meet {
		names = append(names, v.links[pair[0]].name+" "+v.links[pair[1]].name)
	}
	return names, a.All
}

func TestWhoMeetsOnTheHost(t *testing.T) {
	h := guardedHost(t)
	apart := []string{"clients clients", "other other", "bridge bridge"}
	meet := func(why string, all bool, want ...string) {
		t.Helper()
		names, everybody := meetingNow(t, h)
		require.ElementsMatch(t, want, names, why)
		require.Equal(t, all, everybody, why)
	}
	with := func(rules string) {
		t.Helper()
		nft(t, "add table inet theirs { "+rules+"; }")
	}
	gone := func() { t.Helper(); nft(t, "delete table inet theirs") }
	filtered := func(value string) (has bool) {
		_, has = readSysctl(procNet + "/bridge/bridge-nf-call-ip6tables")
		if has {
			require.NoError(t, writeSysctl(procNet+"/bridge/bridge-nf-call-ip6tables", value))
			require.NoError(t, writeSysctl(procNet+"/bridge/bridge-nf-call-iptables", value))
		}
		return has
	}
	filtered(no)
	meet("nobody forwards but natless", false, apart...)

	one, err := netlink.LinkByName("one")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetIsolated(one, true))
	meet("a port is isolated", false, "clients clients", "other other")
	require.NoError(t, netlink.LinkSetIsolated(one, false))
	nft(t, "add table bridge theirs { chain c { type filter hook forward priority 0; ether type ip6 drop; }; }")
	meet("a bridge filters", false)
	nft(t, "delete table bridge theirs")
	nft(t, `add table netdev theirs { chain c { type filter hook ingress device "clients" priority 0; ip6 daddr 2001:db8:2::5 drop; }; }`)
	meet("a link filters", false)
	nft(t, "delete table netdev theirs")

	require.NoError(t, writeSysctl(sysctlPath("ipv6", allLinks, keyForwarding), yes))
	meet("somebody else forwards", true)
	with("chain c { type filter hook forward priority 0; ct state established accept; meta mark set 1; }")
	meet("rules that drop nothing", true)
	gone()
	with(`chain c { type filter hook forward priority 0; iifname "clients" oifname "other" drop; }`)
	meet("one way is dropped", false, append(apart, "clients bridge", "other bridge")...)
	gone()
	with(`chain c { type filter hook forward priority 0; policy drop; iifname "clients" oifname "other" accept; ct state established accept; }`)
	meet("one way is accepted", false, apart...)
	if filtered(yes) {
		meet("so are bridged packets", false, "clients clients", "other other")
		filtered(no)
	}
	gone()
	with(`chain d { oifname "other" accept; }; chain c { type filter hook forward priority 0; policy drop; iifname "clients" jump d; iifname "other" oifname "clients" accept; }`)
	meet("both ways are", false, append(apart, "clients other")...)
	gone()
	for why, rules := range map[string]string{
		"what depends on the packet":  "chain c { type filter hook forward priority 0; tcp dport 22 drop; }",
		"what cannot be evaluated":    `chain c { type filter hook forward priority 0; iifname vmap { "clients" : drop }; }`,
		"a chain it may lead to":      "chain d { drop; }; chain c { type filter hook forward priority 0; tcp dport 22 goto d; }",
		"one before the routing":      "chain c { type filter hook prerouting priority -300; ip6 saddr 2001:db8:1::5 drop; }",
		"a policy, left by some":      "chain d { tcp dport 22 return; accept; }; chain c { type filter hook forward priority 0; policy drop; jump d; }",
		"a policy, left by a goto":    "chain d { tcp dport 22 accept; }; chain c { type filter hook forward priority 0; policy drop; tcp dport 22 goto d; accept; }",
		"a mark that another asks of": `chain a { type filter hook prerouting priority -150; iifname "clients" meta mark set 1; }; chain c { type filter hook forward priority 0; meta mark 1 drop; }`,
	} {
		with(rules)
		meet(why, false, apart...)
		gone()
	}

	rule := netlink.NewRule()
	rule.IifName, rule.Table, rule.Priority, rule.Family = "clients", 100, 100, unix.AF_INET6
	require.NoError(t, netlink.RuleAdd(rule))
	meet("a routing rule asks for the link", false, apart...)
	require.NoError(t, netlink.RuleDel(rule))
	meet("it is gone", true)
}

// What ends packets counts as that whether or not this kernel has it.
func TestRulesThatEndPackets(t *testing.T) {
	for _, e := range []expr.Any{
		&expr.Queue{}, &expr.SynProxy{}, &expr.TProxy{}, &expr.Reject{}, &expr.Verdict{Kind: expr.VerdictDrop},
		&expr.Verdict{Kind: expr.VerdictQueue}, &expr.Verdict{Kind: expr.VerdictStolen},
		&expr.Target{Name: "NFQUEUE"}, &expr.Target{Name: "REJECT"}, &expr.Target{Name: "TARPIT"},
	} {
		require.True(t, newRule([]expr.Any{e}).ends(), "%#v", e)
	}
	for _, e := range []expr.Any{&expr.Counter{}, &expr.Target{Name: "MARK"}, &expr.Verdict{Kind: expr.VerdictJump, Chain: "c"}, &expr.Limit{}} {
		require.False(t, newRule([]expr.Any{e}).ends(), "%#v", e)
	}
	unread := &foreign{family: "inet", chain: "c", rules: func(string) []rule { return []rule{{verdict: expr.VerdictContinue, unknown: true, unread: true}} }}
	require.True(t, unread.mayDrop() && unread.chooses() && !unread.passes(way{in: "clients"}), "of a chain that cannot be read nothing is known")
}

func TestWaysOfTheHost(t *testing.T) {
	h := guardedHost(t)
	addRoute(t, "2001:db8:1:1::/64", "clients", "2001:db8:1::5")
	addRoute(t, "2001:db8:2::99/128", "uplink", "2001:db8:ff::1")
	a, _ := aroundNow(t, h)
	clients, other, bridge := linkIndex(t, "clients"), linkIndex(t, "other"), linkIndex(t, "bridge")
	require.Equal(t, []mapping.Way{
		{Prefix: prefixes("2001:db8:1::/64")[0], Link: clients},
		{Prefix: prefixes("2001:db8:1::1/128")[0]},
		{Prefix: prefixes("2001:db8:1:1::/64")[0], Link: clients, Router: true},
		{Prefix: prefixes("2001:db8:2::/64")[0], Link: other},
		{Prefix: prefixes("2001:db8:2::1/128")[0]},
		{Prefix: prefixes("2001:db8:2::99/128")[0], Link: nowhere, Router: true},
		{Prefix: prefixes("2001:db8:3::/64")[0], Link: bridge},
		{Prefix: prefixes("2001:db8:3::1/128")[0]},
		{Prefix: prefixes("2001:db8:ff::2/128")[0]},
	}, a.Ways)
}

func TestWhatTheHostTakes(t *testing.T) {
	h := guardedHost(t)
	const input = "chain c { type filter hook input priority 0; "
	for rules, open := range map[string]bool{
		"": true,
		// The same for whoever it comes from.
		"table inet theirs { " + input + `policy drop; ct state vmap { established : accept, invalid : drop }; iif lo accept; meta l4proto ipv6-icmp accept; tcp dport { 22, 80 } accept; }; }`: true,
		"table inet theirs { " + input + `policy drop; iifname lo accept; ip6 saddr fe80::/10 udp dport 546 accept; tcp dport 22 accept; }; }`:                                                  true,
		"table ip theirs { " + input + `policy drop; tcp dport 22 accept; }; }`:                                                                                                                 true,
		"table ip theirs { " + input + `ip saddr 192.0.2.0/24 drop; }; }`:                                                                                                                       true,
		"table inet theirs { " + input + `iifname "uplink" tcp dport 22 drop; };}`:                                                                                                              true, // not those of clients
		"table inet theirs { " + input + `policy drop; iifname != "uplink" accept; };}`:                                                                                                         true,
		// By the link.
		"table inet theirs { " + input + `iifname "clients" drop; }; }`:                                                                                        false,
		"table ip6 theirs { " + input + `iifname "clients" tcp dport 22 drop; }; }`:                                                                            false,
		"table ip theirs { " + input + `iifname "clients" drop; }; }`:                                                                                          false,
		"table inet theirs { " + input + `iif "clients" drop; }; }`:                                                                                            false,
		"table inet theirs { " + input + `iifname { "clients", "other" } drop; }; }`:                                                                           false,
		"table inet theirs { " + input + `iifgroup 7 drop; }; }`:                                                                                               false,
		"table inet theirs { " + input + `ether saddr 02:00:00:00:00:01 drop; }; }`:                                                                            false,
		"table inet theirs { " + input + `policy drop; iifname "other" accept; }; }`:                                                                           false,
		"table inet theirs { chain d { iifname \"clients\" drop; }; " + input + `tcp dport vmap { 22 : jump d }; }; }`:                                         false,
		"table inet theirs { chain p { type filter hook prerouting priority -150; iifname \"clients\" meta mark set 1; }; " + input + `meta mark 1 drop; }; }`: false,
		"table netdev theirs { chain c { type filter hook ingress device \"clients\" priority 0; drop; }; }":                                                   false,
		"table bridge theirs { chain c { type filter hook input priority 0; ether type ip6 drop; }; }":                                                         false,
		// By the client's address, or by its family.
		"table inet theirs { " + input + `ip6 saddr 2001:db8:1::/64 tcp dport 22 drop; }; }`:     false,
		"table inet theirs { " + input + `ip6 saddr { 2001:db8:1::5, 2001:db8:1::6 } drop; }; }`: false,
		"table ip6 theirs { " + input + `policy drop; meta l4proto ipv6-icmp accept; }; }`:       false,
		"table ip6 theirs { " + input + `tcp dport 22 reject; }; }`:                              false,
	} {
		if rules != "" {
			nft(t, "add "+rules)
		}
		a, _ := aroundNow(t, h)
		assert.Equal(t, open, a.Host, rules)
		for _, family := range []string{"inet", "ip", "ip6", "netdev", "bridge"} {
			nft(t, "add table "+family+" theirs; delete table "+family+" theirs")
		}
	}
}

// hears is a UDP socket of the test's namespace, which tells what it was sent.
func hears(t *testing.T, addr string) (conn net.PacketConn, heard func() bool) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn, func() bool {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, _, err := conn.ReadFrom(make([]byte, 100))
		return err == nil
	}
}

// Where the host's rules ask for the link of a client, what comes of it out of the
// device does not get in; but what the host has asked for does.
func TestHostIsShutToWhatItDidNotAskFor(t *testing.T) {
	p := newPacketHost(t)
	p.h.plan.Guarded = true
	conn, heard := hears(t, "192.0.2.2:5353")
	fromClient := udp(t, "169.254.64.5:4000", "192.0.2.2:5353")
	p.emit(fromClient)
	require.True(t, heard(), "the host takes all")
	nft(t, `add table inet theirs { chain c { type filter hook input priority 0; iifname "clients" udp dport 5353 drop; }; }`)
	require.NoError(t, p.h.settle())
	require.True(t, p.h.HostShut())
	p.emit(udp(t, "169.254.64.5:4001", "192.0.2.2:5353"))
	require.False(t, heard())
	require.Contains(t, nft(t, "list counter ip natless host_shut"), "packets 1 ")

	_, err := conn.WriteTo([]byte("natless"), &net.UDPAddr{IP: net.IP{198, 51, 100, 7}, Port: 53})
	require.NoError(t, err)
	require.NotNil(t, p.device())
	p.emit(udp(t, "198.51.100.7:53", "192.0.2.2:5353"))
	require.True(t, heard(), "an answer")

	nft(t, "delete table inet theirs")
	require.NoError(t, p.h.settle())
	require.False(t, p.h.HostShut())
}

// Nobody on a link has an address that natless routes to the device.
func TestForgedClientsAreDropped(t *testing.T) {
	p := newPacketHost(t)
	_, heard := hears(t, "192.0.2.2:5353")
	addAddr(t, "clients", "192.0.2.129/28")
	require.NoError(t, p.h.settle())
	forger := openWire(t, "clients")
	for _, forged := range []string{"198.51.100.7:53", "169.254.64.9:53"} {
		for name, from := range map[string]*wire{"uplink": p.uplink, "clients": forger} {
			from.send(udp(t, forged, "198.51.100.7:4000"))
			require.Nil(t, p.device(), "%s from %s to a client", forged, name)
			from.send(udp(t, forged, "192.0.2.2:5353"))
			require.False(t, heard(), "%s from %s to the host", forged, name)
		}
	}
	require.Contains(t, nft(t, "list counter ip natless forged_source"), "packets 8 ")
	p.uplink.send(udp(t, "192.0.2.7:53", "192.0.2.2:5353"))
	require.True(t, heard(), "others are heard")

	p.emit(udp(t, "169.254.64.5:4000", "198.51.100.1:53"))
	out := p.uplink.receive()
	require.NotNil(t, out)
	failed := func(from string) bool {
		t.Helper()
		p.uplink.send(unreachable(t, from, out))
		return receiveSuch(t, p.tun, 0, func(p gopacket.Packet) bool { return p.Layer(layers.LayerTypeICMPv4) != nil }) != nil
	}
	require.False(t, failed("198.51.100.7"), "an error as of another client")
	require.True(t, failed("192.0.2.1"), "a router's")
}

// unreachable is an ICMP error about a packet, to its sender.
func unreachable(t *testing.T, from string, about gopacket.Packet) []byte {
	t.Helper()
	sent := about.NetworkLayer().(*layers.IPv4)
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: net.ParseIP(from).To4(), DstIP: sent.SrcIP}
	icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort)}
	b := gopacket.NewSerializeBuffer()
	require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		ip, icmp, gopacket.Payload(append(sent.LayerContents(), sent.LayerPayload()...))))
	return b.Bytes()
}

// The kernel masquerades nothing that connection tracking calls invalid.
func TestNothingLeavesUnmasqueraded(t *testing.T) {
	p := newPacketHost(t)
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{169, 254, 64, 5}, DstIP: net.IP{198, 51, 100, 1}}
	fin := &layers.TCP{SrcPort: 4000, DstPort: 80, FIN: true, ACK: true, Seq: 1, Ack: 1}
	require.NoError(t, fin.SetNetworkLayerForChecksum(ip))
	b := gopacket.NewSerializeBuffer()
	require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, fin))
	p.emit(b.Bytes())
	require.Nil(t, p.uplink.receive())
	require.Contains(t, nft(t, "list counter ip natless not_masqueraded"), "packets 1 ")

	err := p.h.Close()
	require.NoError(t, err)
	require.Contains(t, nft(t, "list table ip natless"), "not_masqueraded", "kept with the masquerading")
}

// Flows that began without natless's tables are not as they would be with them,
// and stay so for as long as they are tracked.
func TestFlowsBegunWithoutTheTablesAreForgotten(t *testing.T) {
	p := newPacketHost(t)
	leaves := func(src string) string {
		t.Helper()
		p.emit(udp(t, src, "198.51.100.1:53"))
		out := p.uplink.receive()
		require.NotNil(t, out, src)
		return out.NetworkLayer().(*layers.IPv4).SrcIP.String()
	}
	_, heard := hears(t, "192.0.2.2:5353")
	p.emit(udp(t, "169.254.64.5:4000", "192.0.2.2:5353"))
	require.True(t, heard())
	nft(t, "delete table ip natless")
	require.Equal(t, "169.254.64.5", leaves("169.254.64.5:4000"))
	require.NoError(t, p.h.settle())
	require.Equal(t, "192.0.2.2", leaves("169.254.64.5:4000"))
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	require.NoError(t, err)
	require.Len(t, flows, 2, "that to the host itself stays")

	// Masquerading that is asked for later.
	pool := p.h.plan.Masquerade
	plan := testPlan()
	plan.Masquerade = nil
	require.NoError(t, p.h.Update(plan))
	require.Equal(t, "169.254.64.5", leaves("169.254.64.5:4001"))
	plan.Masquerade = pool
	require.NoError(t, p.h.Update(plan))
	require.Equal(t, "192.0.2.2", leaves("169.254.64.5:4001"))

	// What others have masqueraded before natless knew of it.
	client := func() string {
		t.Helper()
		p.clients.send(udp(t, "[2001:db8:1::5]:4000", "[64:ff9b::c633:6401]:53"))
		in := p.device()
		require.NotNil(t, in)
		return in.NetworkLayer().(*layers.IPv6).SrcIP.String()
	}
	nft(t, "add table ip6 theirs { chain c { type nat hook postrouting priority srcnat; masquerade; }; }")
	require.NotEqual(t, "2001:db8:1::5", client())
	require.NoError(t, p.h.settle())
	require.Equal(t, "2001:db8:1::5", client())
	nft(t, "delete table ip6 natless")
	require.NoError(t, p.h.settle())
	require.Equal(t, "2001:db8:1::5", client())
}

// What belongs to a connection to a client is not masqueraded, for that is not:
// ICMP errors leave with an address of the host, and answers to those on a link of
// clients with the client's.
func TestErrorsAndAnswersOfPoolAddresses(t *testing.T) {
	p := newPacketHost(t)
	addAddr(t, "clients", "203.0.113.129/25")
	inside := openWire(t, "clients")
	neighbour(t, "clients", "203.0.113.130", inside)
	require.NoError(t, p.h.settle())

	p.uplink.send(udp(t, "198.51.100.1:53", "198.51.100.7:4000"))
	in := p.device()
	require.NotNil(t, in)
	p.emit(unreachable(t, "169.254.64.1", in))
	out := receiveSuch(t, p.uplink.fd, layers.LayerTypeEthernet, func(p gopacket.Packet) bool { return p.Layer(layers.LayerTypeICMPv4) != nil })
	require.NotNil(t, out)
	ip := out.NetworkLayer().(*layers.IPv4)
	require.Equal(t, "192.0.2.2", ip.SrcIP.String())
	require.Equal(t, "198.51.100.1", ip.DstIP.String())
	require.Zero(t, checksum(ip.LayerContents()))

	inside.send(udp(t, "203.0.113.130:4000", "169.254.64.5:53"))
	require.NotNil(t, p.device(), "IPv4 of a link of clients to a lease")
	p.emit(udp(t, "169.254.64.5:53", "203.0.113.130:4000"))
	out = inside.receive()
	require.NotNil(t, out)
	require.Equal(t, "169.254.64.5", out.NetworkLayer().(*layers.IPv4).SrcIP.String())
}

// checksum is that of RFC 1071: zero over a header that has it right.
func checksum(b []byte) uint16 {
	sum := 0
	for i := 0; i < len(b); i += 2 {
		sum += int(b[i])<<8 | int(b[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
