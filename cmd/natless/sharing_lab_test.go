package main_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

const (
	shared4 = "203.0.113.7" // the one address of all clients, and natless's own
	shared6 = "[2001:db8:64::cb00:7107]"
)

// sharing is a host whose clients have one routed address between them.
func sharing(offload string, clients int) setup {
	return setup{
		offload: offload, clients: clients,
		config: own + "hairpin = \"intrinsic\"\n",
		flags:  []string{"--pref64", lab.Pref64, "--pool", shared4 + "/32", "--pool-mode", "port-range"},
	}
}

// portsOf is the range of a client, which is lent one if it has none: the
// first port and the last that takes no session.
func (w *world) portsOf(t *testing.T, k int) (first, stateless uint16) {
	t.Helper()
	l, err := w.asks().Lend(t.Context(), netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::2", k)), "")
	require.NoError(t, err)
	require.Equal(t, shared4, l.IPv4.String())
	from, to, _ := strings.Cut(l.Ports, "-")
	low, err := strconv.Atoi(from)
	require.NoError(t, err)
	high, err := strconv.Atoi(to)
	require.NoError(t, err)
	return uint16(low), uint16(high - l.SessionPorts)
}

// confine has the sockets of a node take their ports from its range.
func confine(t *testing.T, n *lab.Node, first, last uint16) {
	t.Helper()
	require.NoError(t, n.SetSysctl("net/ipv4/ip_local_port_range", fmt.Sprintf("%d %d", first, last)))
}

// echoFrom has a datagram from a bound address come back, whole.
func echoFrom(t *testing.T, n *lab.Node, source, server string, size int) {
	t.Helper()
	conn, err := n.ListenPacket("udp", source)
	require.NoError(t, err)
	defer conn.Close()
	to, err := net.ResolveUDPAddr("udp", server)
	require.NoError(t, err)
	sent, got := bytes.Repeat([]byte{7}, size), make([]byte, 64<<10)
	for range 3 {
		_, err = conn.WriteTo(sent, to)
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
		var length int
		if length, _, err = conn.ReadFrom(got); err == nil {
			require.True(t, bytes.Equal(sent, got[:length]))
			return
		}
	}
	require.NoError(t, err, "from %s to %s, %d bytes", source, server, size)
}

// Eight containers behind one routed IPv4 address do what containers do.
func TestLabSharedAddress(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		const clients = 8
		w := start(t, sharing(offload, clients))
		firsts := map[uint16]bool{}
		for k := 1; k <= clients; k++ {
			first, last := w.portsOf(t, k)
			assert.EqualValues(t, first+1024-128-1, last)
			assert.False(t, firsts[first], "%d is lent twice", first)
			firsts[first] = true
			confine(t, w.Clients[k-1], first, last)
		}

		t.Run("TCP", func(t *testing.T) {
			var each sync.WaitGroup
			for _, c := range w.Clients {
				each.Go(func() {
					client := c.HTTP("") // which keeps its connection
					for range 3 {
						down, err := lab.Download(t.Context(), client, server6+":8080", make([]byte, 2<<20), nil)
						assert.NoError(t, err)
						assert.Equal(t, shared4, down.Client)
					}
				})
			}
			each.Wait()
			_, err := lab.Upload(t.Context(), w.client.HTTP(""), server6+":8080", 4<<20)
			require.NoError(t, err)
		})
		t.Run("UDP", func(t *testing.T) {
			for k, c := range w.Clients {
				for _, size := range []int{0, 512, 1432} {
					require.NoError(t, lab.Exchange(t.Context(), c, "", server6+":7", size), k+1)
				}
			}
		})
		t.Run("DNS", func(t *testing.T) {
			conn := hearing(t, w.Server, lab.ServerIPv4+":53")
			server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
				a, _ := dns.NewRR(q.Question[0].Name + " 60 A 192.0.2.80")
				r := new(dns.Msg).SetReply(q)
				r.Answer = append(r.Answer, a)
				_ = w.WriteMsg(r) // whoever waits for it will tell
			})}
			go func() { _ = server.ActivateAndServe() }() // until the test closes conn
			for k, c := range w.Clients {
				conn, err := c.Dial(t.Context(), "udp", server6+":53")
				require.NoError(t, err)
				name := fmt.Sprintf("client%d.example.com.", k+1)
				r, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
				require.NoError(t, err, name)
				require.Len(t, r.Answer, 1)
				assert.Equal(t, name, r.Answer[0].Header().Name)
				conn.Close()
			}
		})
		t.Run("ping", func(t *testing.T) {
			for k, c := range w.Clients {
				for _, size := range []int{0, 1400} {
					_, err := lab.Ping(t.Context(), c, "", netip.MustParseAddr(lab.Server6), size)
					require.NoError(t, err, k+1)
				}
			}
			_, err := lab.Ping(t.Context(), w.Server, "", netip.MustParseAddr(shared4), 56)
			require.NoError(t, err, "natless answers for all")
			_, err = lab.Ping(t.Context(), w.client, "", netip.MustParseAddr(strings.Trim(shared6, "[]")), 56)
			require.NoError(t, err, "within, too")
		})
		t.Run("traceroute", func(t *testing.T) {
			for _, c := range w.Clients[:2] {
				hops, err := lab.Traceroute(t.Context(), c, "", netip.MustParseAddr(lab.Server6))
				require.NoError(t, err)
				require.Len(t, hops, 4)
				assert.Equal(t, []string{lab.OwnIPv6, lab.Embed(lab.Pref64, lab.HostIPv4).String(), lab.Server6}, path(hops)[1:])
			}
		})
		first, last := w.portsOf(t, 1)
		t.Run("inbound", func(t *testing.T) {
			serving := hearing(t, w.client, fmt.Sprintf("[%s]:%d", client1, first+5))
			go lab.Echo(serving)
			require.NoError(t, lab.Exchange(t.Context(), w.Server, "", fmt.Sprintf("%s:%d", shared4, first+5), 100))
			require.NoError(t, lab.Exchange(t.Context(), w.Server, "", fmt.Sprintf("%s:%d", shared4, first+5), 8<<10), "in fragments")
			for _, c := range w.Clients[1:3] {
				require.NoError(t, lab.Exchange(t.Context(), c, "", fmt.Sprintf("%s:%d", shared6, first+5), 100), "hairpin")
				require.NoError(t, lab.Exchange(t.Context(), c, "", fmt.Sprintf("%s:%d", shared6, first+5), 8<<10), "hairpin in fragments")
			}
			serve(t, w.client, client1) // on 8080 and 7, which are nobody's
			conn, err := w.Server.Dial(t.Context(), "udp", shared4+":7")
			require.NoError(t, err)
			defer conn.Close()
			before := w.verdict(t, "destination_unmapped")
			_, err = conn.Write([]byte("knock"))
			require.NoError(t, err)
			w.counted(t, "destination_unmapped", before+1)
		})
		t.Run("bound outside", func(t *testing.T) {
			for _, port := range []int{500, int(last) + 1, 65535} {
				echoFrom(t, w.client, fmt.Sprintf("[%s]:%d", client1, port), server6+":7", 100)
				echoFrom(t, w.client, fmt.Sprintf("[%s]:%d", client1, port), server6+":7", 8<<10)
				echoFrom(t, w.client, fmt.Sprintf("[2001:db8:1::80]:%d", port), server6+":7", 100) // a client of its own
			}
		})
		t.Run("nested", func(t *testing.T) { nested(t, w) })
	})
}

// nested has a namespace behind a client's own NAT, with ports of its own.
func nested(t *testing.T, w *world) {
	t.Helper()
	inner, err := w.Node("nested")
	require.NoError(t, err)
	require.NoError(t, lab.Wire(w.client, "inner", inner, "eth0", 0))
	require.NoError(t, w.client.Address("inner", "2001:db8:99::1/64"))
	require.NoError(t, inner.Address("eth0", "2001:db8:99::2/64"))
	require.NoError(t, inner.Route("::/0", "2001:db8:99::1", ""))
	require.NoError(t, w.client.SetSysctl("net/ipv6/conf/all/forwarding", "1"))
	ruleset(t, w.client, func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "inner", Family: nftables.TableFamilyIPv6})
		chain := c.AddChain(&nftables.Chain{
			Name: "post", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("eth0"), make([]byte, 12)...)},
			&expr.Masq{},
		}})
	})
	down, err := lab.Download(t.Context(), inner.HTTP(""), server6+":8080", make([]byte, 2<<20), nil)
	require.NoError(t, err)
	assert.Equal(t, shared4, down.Client)
	require.NoError(t, lab.Exchange(t.Context(), inner, "", server6+":7", 1000))
	_, err = lab.Ping(t.Context(), inner, "", netip.MustParseAddr(lab.Server6), 56)
	require.NoError(t, err)
}

// Path MTU discovery works both ways: the errors find their client by the port
// of what they quote.
func TestLabSharedPathMTU(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		for narrow, mtu := range map[string]struct{ v6, v4 int }{"mid6": {1400, 1380}, "mid4": {1420, 1400}} {
			t.Run(narrow, func(t *testing.T) {
				t.Parallel()
				w := longPath(t, narrow)
				s := sharing(offload, 1)
				w.run(t, s)
				pings(t, w.client, client1)
				learnsMTU(t, w.client, client1, server6+":7", mtu.v6) // a session: its port is outside
				down, err := lab.Download(t.Context(), w.client.HTTP(client1), server6+":8080", make([]byte, 1<<20), nil)
				require.NoError(t, err)
				assert.Equal(t, shared4, down.Client)
				serving := hearing(t, w.client, fmt.Sprintf("[%s]:%d", client1, 1500))
				go lab.Echo(serving)
				learnsMTU(t, w.Server, "", shared4+":1500", mtu.v4)
			})
		}
	})
}

// A thousand connections of a container whose ports are in its range take no
// memory of natless's, and outlive it.
func TestLabSharedConnections(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, sharing(offload, 1))
		s := sharing(offload, 1)
		w.run(t, s)
		first, last := w.portsOf(t, 1)
		confine(t, w.client, first, last)
		// 896 ports serve more connections than that where there is more than
		// one destination.
		second := serverAgain(t, w)
		conns := make([]net.Conn, 0, 1000)
		for i := range cap(conns) {
			to := server6 + ":9"
			if i%2 == 1 {
				to = second
			}
			conn, err := w.client.Dial(t.Context(), "tcp", to)
			require.NoError(t, err, i)
			defer conn.Close()
			port := conn.LocalAddr().(*net.TCPAddr).Port
			require.True(t, port >= int(first) && port <= int(last), port)
			conns = append(conns, conn)
		}
		speak := func(when string) {
			t.Helper()
			for i, conn := range conns {
				require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
				_, err := fmt.Fprintf(conn, "%s %d\n", when, i)
				require.NoError(t, err, i)
			}
			for i, conn := range conns {
				want := fmt.Sprintf("%s %d\n", when, i)
				got := make([]byte, len(want))
				_, err := io.ReadFull(conn, got)
				require.NoError(t, err, i)
				require.Equal(t, want, string(got))
			}
		}
		speak("before")
		require.Empty(t, w.query(t, "session", "ls", "-o", "json"))

		for i, conn := range conns { // in the midst: said before, to be heard after
			_, err := fmt.Fprintf(conn, "midst %d\n", i)
			require.NoError(t, err)
			if i == len(conns)/2 {
				require.NoError(t, w.daemon.Kill())
			}
		}
		w.run(t, s)
		for i, conn := range conns {
			want := fmt.Sprintf("midst %d\n", i)
			require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
			got := make([]byte, len(want))
			_, err := io.ReadFull(conn, got)
			require.NoError(t, err, i)
			require.Equal(t, want, string(got))
		}
		speak("after")
		require.Empty(t, w.query(t, "session", "ls", "-o", "json"))
		again, _ := w.portsOf(t, 1)
		require.Equal(t, first, again)
	})
}

// serverAgain starts a server that says what it hears, on port 9 of two
// addresses of the server, and returns the second.
func serverAgain(t *testing.T, w *world) string {
	t.Helper()
	const other = "198.51.100.3"
	require.NoError(t, w.Server.Address("eth0", other+"/24"))
	for _, a := range []string{lab.ServerIPv4, other} {
		ln, err := w.Server.Listen("tcp", a+":9")
		require.NoError(t, err)
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn)
				}()
			}
		}()
	}
	return "[" + lab.Embed(lab.Pref64, other).String() + "]:9"
}
