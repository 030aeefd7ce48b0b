package main_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/natless/natless/internal/lab"
)

// Over a long way every router is seen, from either side. Those on the IPv6
// side have IPv4 addresses of their own here, by explicit maps.
func TestLabLongTraceroute(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := longPath(t, "")
		require.NoError(t, w.client.Address("near6", lab.MappedIPv6+"/64"))
		w.run(t, setup{offload: offload, flags: []string{
			"--pref64", lab.Pref64, "--map", lab.MappedIPv4 + "=" + lab.MappedIPv6,
			"--map", "203.0.113.2=2001:db8:b::2", "--map", "203.0.113.3=2001:db8:a::2",
		}})
		hops, err := lab.Traceroute(t.Context(), w.client, client1, netip.MustParseAddr(lab.Server6))
		require.NoError(t, err)
		assert.Equal(t, []string{
			"2001:db8:1::1", // r6
			"2001:db8:a::1", // s6
			"2001:db8:b::1", // the host
			lab.OwnIPv6,     // natless
			lab.Embed(lab.Pref64, "192.0.2.1").String(), // the host again, with IPv4
			lab.Embed(lab.Pref64, "192.0.2.2").String(), // s4
			lab.Embed(lab.Pref64, "192.0.2.130").String(),
			lab.Server6,
		}, path(hops))

		hops, err = lab.Traceroute(t.Context(), w.Server, "", netip.MustParseAddr(lab.MappedIPv4))
		require.NoError(t, err)
		assert.Equal(t, []string{
			lab.HostIPv4,  // r4
			"192.0.2.129", // s4
			"192.0.2.1",   // the host
			"192.0.2.1",   // natless, whose own address must not leave (RFC 3927 7)
			"192.0.2.1",   // the host with IPv6: nothing is mapped to it
			"203.0.113.2", // s6
			"203.0.113.3", // r6
			lab.MappedIPv4,
		}, path(hops))
	})
}

// longPathMapped is a long path whose client has the mapped address, too, and
// an echo server on it.
func longPathMapped(t *testing.T, narrow, offload string) *world {
	t.Helper()
	w := longPath(t, narrow)
	require.NoError(t, w.client.Address("near6", lab.MappedIPv6+"/64"))
	serve(t, w.client, lab.MappedIPv6)
	w.run(t, setup{offload: offload})
	return w
}

// A sender of datagrams that must not be cut learns the path's MTU in the
// words of its own family, wherever the narrow link is, and to the byte: one
// that just fits comes through.
func TestLabUDPPathMTU(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		for _, c := range []struct {
			narrow string
			v6, v4 int // what the client and the server learn
		}{
			{"mid6", 1400, 1380},
			{"far6", 1400, 1380},
			{"far4", 1420, 1400},
			{"mid4", 1420, 1400},
		} {
			t.Run(c.narrow, func(t *testing.T) {
				t.Parallel()
				w := longPathMapped(t, c.narrow, offload)
				learnsMTU(t, w.client, client1, server6+":7", c.v6)
				learnsMTU(t, w.Server, "", lab.MappedIPv4+":7", c.v4)
			})
		}
	})
}

// learnsMTU sends datagrams as large as the sender's kernel believes they may
// be until it knows the path's MTU, and then one that just fits. It may learn
// in steps: natless and the narrow link each tell of their own limit.
func learnsMTU(t *testing.T, n *lab.Node, source, server string, mtu int) {
	t.Helper()
	conn, err := n.DialFrom(t.Context(), "udp", source, server)
	require.NoError(t, err)
	defer conn.Close()
	level, headers, discover, known := unix.IPPROTO_IP, 20+8, unix.IP_MTU_DISCOVER, unix.IP_MTU
	if strings.HasPrefix(server, "[") {
		level, headers, discover, known = unix.IPPROTO_IPV6, 40+8, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
	}
	control(t, conn, func(fd int) error {
		return unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_DO) // the number is that of IPV6_PMTUDISC_DO, too
	})
	learned := 1500
	for range 200 {
		_, _ = conn.Write(make([]byte, learned-headers)) // an error tells of the ICMP error before
		time.Sleep(20 * time.Millisecond)
		control(t, conn, func(fd int) (err error) {
			learned, err = unix.GetsockoptInt(fd, level, known)
			return err
		})
		if learned <= mtu {
			break
		}
	}
	require.Equal(t, mtu, learned)
	_, err = conn.Write(make([]byte, mtu-headers+1))
	require.ErrorIs(t, err, unix.EMSGSIZE)

	sent, buf := make([]byte, mtu-headers), make([]byte, 2000)
	for i := range sent {
		sent[i] = byte(i * i)
	}
	got := 0
	for try := 0; try < 5 && got == 0; try++ {
		if _, err = conn.Write(sent); err != nil {
			continue // the last of the ICMP errors
		}
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		got, err = conn.Read(buf)
	}
	require.NoError(t, err)
	assert.True(t, bytes.Equal(sent, buf[:got]), "what came back is something else")
}

// control calls f with the descriptor of a connection.
func control(t *testing.T, conn net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	var failed error
	require.NoError(t, raw.Control(func(fd uintptr) { failed = f(int(fd)) }))
	require.NoError(t, failed)
}

// routed is a host without an uplink, whose pool is a routed prefix: its table
// then needs no connection tracking, which would reassemble fragments.
func routed(offload string) setup {
	return setup{
		offload: offload,
		flags: []string{
			"--pref64", lab.Pref64, "--pool", "203.0.113.0/28", "--masquerade", "off",
			"--map", lab.MappedIPv4 + "=" + lab.MappedIPv6,
		},
		before: func(t *testing.T, n *lab.Network) {
			routes, err := n.Host.Netlink.RouteList(nil, netlink.FAMILY_V4)
			require.NoError(t, err)
			for _, r := range routes {
				if r.Gw != nil {
					require.NoError(t, n.Host.Netlink.RouteDel(&r))
				}
			}
		},
	}
}

// hosts are the two kinds of host that fragments come through. One hands them
// on as they are. The other tracks connections, and the kernel keeps fragments
// until all are there and cuts the whole again, as it was, for the device:
// natless has fragments to translate either way.
func hosts(offload string) map[string]setup {
	return map[string]setup{"routed": routed(offload), "tracking": {offload: offload}}
}

// Datagrams larger than any link come through in pieces, whoever begins, and
// through natless in pieces, too.
func TestLabFragments(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		for name, s := range hosts(offload) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := start(t, s)
				serve(t, w.client, lab.MappedIPv6)
				c, err := w.Host.CaptureAll("natless0")
				require.NoError(t, err)
				largeDatagrams(t, w)
				inPieces(t, c)
			})
		}
		// The narrow link is a router's: it cuts IPv4 fragments once more, and
		// has the sender cut IPv6 ones smaller.
		for _, narrow := range []string{"mid6", "mid4"} {
			t.Run(narrow, func(t *testing.T) {
				t.Parallel()
				largeDatagrams(t, longPathMapped(t, narrow, offload))
			})
		}
	})
}

// largeDatagrams has datagrams of 8 and 60 KiB come back, compared byte by
// byte, from the server and from a mapped client.
func largeDatagrams(t *testing.T, w *world) {
	t.Helper()
	for _, size := range []int{8 << 10, 60 << 10} {
		require.NoError(t, lab.Exchange(t.Context(), w.client, client1, server6+":7", size))
		require.NoError(t, lab.Exchange(t.Context(), w.client, lab.MappedIPv6, server6+":7", size))
		require.NoError(t, lab.Exchange(t.Context(), w.Server, "", lab.MappedIPv4+":7", size))
	}
}

// inPieces asserts that fragments have passed natless's device, of both
// families and in both directions, and nothing larger than its MTU.
func inPieces(t *testing.T, c *lab.Capture) {
	t.Helper()
	v4, v6 := netip.MustParseAddr(lab.ServerIPv4).AsSlice(), netip.MustParseAddr(lab.Server6).AsSlice()
	for what, wanted := range map[string]func([]byte) bool{
		"IPv4 from the server": func(b []byte) bool { return piece4(b) && bytes.Equal(b[12:16], v4) },
		"IPv4 to the server":   func(b []byte) bool { return piece4(b) && bytes.Equal(b[16:20], v4) },
		"IPv6 from the server": func(b []byte) bool { return piece6(b) && bytes.Equal(b[8:24], v6) },
		"IPv6 to the server":   func(b []byte) bool { return piece6(b) && bytes.Equal(b[24:40], v6) },
	} {
		assert.NotNil(t, c.Wait(lab.Stall, wanted), what)
	}
	for _, b := range c.Packets() {
		require.LessOrEqual(t, len(b), 1500)
	}
}

func piece4(b []byte) bool { return b[0]>>4 == 4 && binary.BigEndian.Uint16(b[6:])&0x3fff != 0 }
func piece6(b []byte) bool { return b[0]>>4 == 6 && b[6] == unix.IPPROTO_FRAGMENT }

// A ping as large as the path carries is answered.
func TestLabPingAtPathMTU(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		for narrow, most := range map[string]struct{ v6, v4 int }{
			"":     {1500, 1480},
			"mid6": {1400, 1380},
			"mid4": {1420, 1400},
		} {
			t.Run("narrow="+narrow, func(t *testing.T) {
				t.Parallel()
				w := longPathMapped(t, narrow, offload)
				_, err := lab.Ping(t.Context(), w.client, client1, netip.MustParseAddr(lab.Server6), most.v6-40-8)
				require.NoError(t, err)
				_, err = lab.Ping(t.Context(), w.Server, "", netip.MustParseAddr(lab.MappedIPv4), most.v4-20-8)
				require.NoError(t, err)
				assert.Zero(t, w.verdict(t, "icmp_fragment"))
			})
		}
	})
}

// verdict is how many packets had a verdict so far.
func (w *world) verdict(t *testing.T, name string) int {
	t.Helper()
	var stats struct{ Verdicts map[string]int }
	require.NoError(t, json.Unmarshal([]byte(w.query(t, "stats", "-o", "json")), &stats))
	return stats.Verdicts[name]
}

// counted waits until a verdict has been counted so many times.
func (w *world) counted(t *testing.T, name string, times int) {
	t.Helper()
	got := 0
	for range 50 {
		if got = w.verdict(t, name); got >= times {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	assert.Equal(t, times, got, name)
}

// A ping of 8 KiB ends in icmp_fragment, once for each of its six fragments. A
// fragment without its fellows does, too, where nobody reassembles: where
// connections are tracked, which those of IPv6 never are, the kernel waits for
// the rest.
func TestLabLargePing(t *testing.T) {
	const size, pieces = 8 << 10, 6
	eachOffload(t, func(t *testing.T, offload string) {
		for name, s := range hosts(offload) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := start(t, s)
				wanted := 0
				for _, way := range []struct {
					from   *lab.Node
					target string
					lone   func(t *testing.T, n *lab.Node)
				}{
					{w.client, lab.Server6, loneFragment6},
					{w.Server, lab.MappedIPv4, loneFragment4},
				} {
					way.lone(t, way.from)
					if name == "routed" || way.from == w.client {
						wanted++
					}
					w.counted(t, "icmp_fragment", wanted)

					onePing(t, way.from, netip.MustParseAddr(way.target), size)
					wanted += pieces
					w.counted(t, "icmp_fragment", wanted)
					_, err := lab.Ping(t.Context(), way.from, "", netip.MustParseAddr(way.target), 1400)
					require.NoError(t, err)
				}
			})
		}
	})
}

// onePing asks once, by a deadline before lab.Ping would ask again, and wants
// no answer.
func onePing(t *testing.T, n *lab.Node, target netip.Addr, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
	defer cancel()
	_, err := lab.Ping(ctx, n, "", target, size)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

// loneFragment6 sends the first fragment of an echo request from the client to
// the server, and nothing else of it.
func loneFragment6(t *testing.T, n *lab.Node) {
	t.Helper()
	b := make([]byte, 40+8+16)
	b[0], b[5], b[6], b[7] = 0x60, 8+16, unix.IPPROTO_FRAGMENT, 64
	copy(b[8:], netip.MustParseAddr(client1).AsSlice())
	copy(b[24:], netip.MustParseAddr(lab.Server6).AsSlice())
	b[40], b[43], b[47] = unix.IPPROTO_ICMPV6, 1, 77 // more follow
	b[48] = 128
	sendRaw(t, n, unix.AF_INET6, b, &unix.SockaddrInet6{Addr: [16]byte(b[24:])})
}

// loneFragment4 is the same from the server to the mapped client.
func loneFragment4(t *testing.T, n *lab.Node) {
	t.Helper()
	b := make([]byte, 20+16)
	b[0], b[5], b[6], b[8], b[9] = 0x45, 77, 0x20, 64, unix.IPPROTO_ICMP // more follow
	copy(b[12:], netip.MustParseAddr(lab.ServerIPv4).AsSlice())
	copy(b[16:], netip.MustParseAddr(lab.MappedIPv4).AsSlice())
	b[20] = 8
	sendRaw(t, n, unix.AF_INET, b, &unix.SockaddrInet4{Addr: [4]byte(b[16:])}) // the kernel fills in length and checksum
}

func sendRaw(t *testing.T, n *lab.Node, family int, packet []byte, to unix.Sockaddr) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, to)
	}))
}

// UDP without a checksum, which IPv6 does not have: it gets one.
func TestLabUDPWithoutChecksum(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		c, err := w.client.CaptureAll("eth0")
		require.NoError(t, err)
		in, err := w.client.ListenPacket("udp", "["+lab.MappedIPv6+"]:9")
		require.NoError(t, err)
		defer in.Close()
		out := unchecked(t, w.Server, lab.MappedIPv4+":9")
		buf := make([]byte, 2000)
		for _, size := range []int{0, 1, 2, 511, 512, 1400} {
			sent := bytes.Repeat([]byte{byte(size), 0xa5}, size)[:size]
			_, err := out.Write(sent)
			require.NoError(t, err)
			require.NoError(t, in.SetReadDeadline(time.Now().Add(lab.Stall)))
			n, _, err := in.ReadFrom(buf)
			require.NoError(t, err, "%d bytes", size)
			assert.True(t, bytes.Equal(sent, buf[:n]), "%d bytes", size)

			b := c.Wait(lab.Stall, func(b []byte) bool { return b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP && len(b) == 48+size })
			require.NotNil(t, b)
			assert.NotZero(t, binary.BigEndian.Uint16(b[46:]), "%d bytes", size)
			pseudo := append(b[8:40:40], b[4], b[5], 0, unix.IPPROTO_UDP)
			assert.Equal(t, uint16(0xffff), checksum.Checksum(b[40:], checksum.Checksum(pseudo, 0)), "%d bytes: %x", size, b)
		}
		assert.Zero(t, w.verdict(t, "udp_zero_checksum"))
		// None can be computed from a fragment. Only the first shows that there
		// is none, so it alone is refused, and the rest is of no use.
		_, err = out.Write(make([]byte, 4<<10))
		require.NoError(t, err)
		w.counted(t, "udp_zero_fragment", 1)
	})
}

// And none where the operator would rather not vouch for it.
func TestLabUDPWithoutChecksumDropped(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload, config: own + "udp_zero_checksum = \"drop\"\n"})
		in, err := w.client.ListenPacket("udp", "["+lab.MappedIPv6+"]:9")
		require.NoError(t, err)
		defer in.Close()
		out := unchecked(t, w.Server, lab.MappedIPv4+":9")
		for range 3 {
			_, err := out.Write([]byte("unchecked"))
			require.NoError(t, err)
		}
		w.counted(t, "udp_zero_checksum", 3)
		control(t, out, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 0) })
		_, err = out.Write([]byte("checked"))
		require.NoError(t, err)
		require.NoError(t, in.SetReadDeadline(time.Now().Add(lab.Stall)))
		buf := make([]byte, 100)
		n, _, err := in.ReadFrom(buf)
		require.NoError(t, err)
		assert.Equal(t, "checked", string(buf[:n]), "the first that came")
	})
}

// unchecked is a connection whose datagrams have no checksum.
func unchecked(t *testing.T, n *lab.Node, to string) net.Conn {
	t.Helper()
	conn, err := n.Dial(t.Context(), "udp", to)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	control(t, conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
	return conn
}

// TCP's options and its side of ECN are the business of the two ends: what one
// says the other hears, super-packets or not, while packets are lost and
// marked on the way.
func TestLabTCPOptions(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload, before: func(t *testing.T, n *lab.Network) {
			require.NoError(t, n.Clients[0].SetSysctl("net/ipv4/tcp_ecn", "1"))
			require.NoError(t, n.Server.SetSysctl("net/ipv4/tcp_ecn", "1"))
			require.NoError(t, n.Server.SetSysctl("net/ipv4/tcp_congestion_control", "reno"))
			badLink(t, n.Host)
		}})
		atClient, err := w.client.CaptureAll("eth0")
		require.NoError(t, err)
		atServer, err := w.Server.CaptureAll("eth0")
		require.NoError(t, err)
		_, err = lab.Download(t.Context(), w.client.HTTP(""), server6+":8080", make([]byte, 4<<20), nil)
		require.NoError(t, err)

		syn := func(s segment) bool { return s.SYN && !s.ACK }
		answer := func(s segment) bool { return s.SYN && s.ACK }
		for _, c := range []struct {
			which    func(segment) bool
			from, to *lab.Capture
		}{{syn, atClient, atServer}, {answer, atServer, atClient}} {
			came := find(t, c.to, c.which)
			assert.Subset(t, came.kinds, []layers.TCPOptionKind{
				layers.TCPOptionKindSACKPermitted, layers.TCPOptionKindTimestamps, layers.TCPOptionKindWindowScale,
			})
			find(t, c.from, func(s segment) bool { return c.which(s) && s.options == came.options })
		}
		asks := find(t, atServer, syn)
		assert.True(t, asks.ECE && asks.CWR, "the client offers ECN")
		agrees := find(t, atClient, answer)
		assert.True(t, agrees.ECE && !agrees.CWR, "the server agrees")

		const ect, ce = 2, 3
		data := func(s segment) bool { return !s.SYN && len(s.Payload) > 0 && s.SrcPort == 8080 }
		find(t, atClient, func(s segment) bool { return data(s) && s.ecn == ect })
		find(t, atClient, func(s segment) bool { return data(s) && s.ecn == ce })
		find(t, atServer, func(s segment) bool { return !s.SYN && s.DstPort == 8080 && s.ECE })
		find(t, atClient, func(s segment) bool { return data(s) && s.CWR })
		if offload == "auto" {
			find(t, atClient, func(s segment) bool { return data(s) && len(s.Payload) > 1440 }) // a super-packet
		}

		// What the client says it has, beyond what is missing.
		said := find(t, atServer, selective)
		find(t, atClient, func(s segment) bool { return selective(s) && s.Ack == said.Ack && s.options == said.options })
	})
}

// selective is an acknowledgement from the client that names blocks.
func selective(s segment) bool {
	return s.DstPort == 8080 && slices.Contains(s.kinds, layers.TCPOptionKindSACK)
}

// segment is a TCP segment that passed a capture.
type segment struct {
	*layers.TCP
	ecn     byte   // of the IP header
	options string // as they stand in the packet
	kinds   []layers.TCPOptionKind
}

// find waits for a segment.
func find(t *testing.T, c *lab.Capture, wanted func(segment) bool) (found segment) {
	t.Helper()
	b := c.Wait(lab.Stall, func(b []byte) bool {
		s, ok := segmentOf(b)
		if ok && wanted(s) {
			found = s
			return true
		}
		return false
	})
	require.NotNil(t, b, "no such segment")
	return found
}

func segmentOf(b []byte) (s segment, ok bool) {
	first := gopacket.Decoder(layers.LayerTypeIPv6)
	s.ecn = b[1] >> 4 & 3
	if b[0]>>4 == 4 {
		first = layers.LayerTypeIPv4
		s.ecn = b[1] & 3
	}
	if s.TCP, ok = gopacket.NewPacket(b, first, gopacket.NoCopy).TransportLayer().(*layers.TCP); !ok {
		return s, false
	}
	s.options = string(s.Contents[20:])
	for _, o := range s.Options {
		s.kinds = append(s.kinds, o.OptionType)
	}
	return s, true
}

// badLink has the host lose every 20th packet of the server's HTTP, and tell
// of congestion in every 30th of what remains.
func badLink(t *testing.T, n *lab.Node) {
	t.Helper()
	nth := func(n uint32) []expr.Any { // the last of each n, so that the connection begins well
		return []expr.Any{
			&expr.Numgen{Register: 1, Modulus: n, Type: unix.NFT_NG_INCREMENTAL},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, n-1)},
		}
	}
	fromServer := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: netip.MustParseAddr(lab.ServerIPv4).AsSlice()},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, 8080)},
	}
	congested := []expr.Any{
		// Only where the ends have agreed on ECN: ECT(0) ...
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 1, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{3}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
	}
	mark := []expr.Any{
		// ... becomes CE, by whole words because of the checksum.
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xfc}, Xor: []byte{0, 3}},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: 10},
	}
	ruleset(t, n, func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "badlink", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
		})
		drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(fromServer, nth(20), drop)})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(fromServer, congested, nth(30), mark)})
	})
}
