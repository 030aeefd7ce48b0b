package main_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// longPath is a network with routers on either side of the host, so that a
// narrow link is nobody's own:
//
//	client ─near6─ r6 ─mid6─ s6 ─far6─ host, natless ─far4─ s4 ─mid4─ r4 ─near4─ server
//
// The named link has an MTU of 1400 bytes, the others have 1500.
func longPath(t *testing.T, narrow string) *world {
	t.Helper()
	lab.Require(t)
	l, err := lab.New()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.Close()) })
	node := map[string]*lab.Node{}
	for _, name := range []string{"client", "r6", "s6", "host", "s4", "r4", "server"} {
		node[name], err = l.Node(name)
		require.NoError(t, err)
	}
	for _, link := range []struct{ name, a, b, aAddr, bAddr string }{
		{"near6", "client", "r6", client1 + "/64", "2001:db8:1::1/64"},
		{"mid6", "r6", "s6", "2001:db8:a::2/64", "2001:db8:a::1/64"},
		{"far6", "s6", "host", "2001:db8:b::2/64", "2001:db8:b::1/64"},
		{"far4", "host", "s4", "192.0.2.1/25", "192.0.2.2/25"},
		{"mid4", "s4", "r4", "192.0.2.129/25", "192.0.2.130/25"},
		{"near4", "r4", "server", lab.HostIPv4 + "/24", lab.ServerIPv4 + "/24"},
	} {
		mtu := 1500
		if link.name == narrow {
			mtu = 1400
		}
		a, b := node[link.a], node[link.b]
		require.NoError(t, lab.Wire(a, link.name, b, link.name, mtu))
		require.NoError(t, a.Address(link.name, link.aAddr))
		require.NoError(t, b.Address(link.name, link.bAddr))
	}
	for _, route := range []struct{ node, prefix, via string }{
		{"client", "::/0", "2001:db8:1::1"},
		{"r6", "::/0", "2001:db8:a::1"},
		{"s6", "::/0", "2001:db8:b::1"},
		{"s6", "2001:db8:1::/64", "2001:db8:a::2"},
		{"host", "2001:db8:1::/64", "2001:db8:b::2"},
		{"host", "2001:db8:a::/64", "2001:db8:b::2"},
		{"host", "0.0.0.0/0", "192.0.2.2"},
		{"s4", lab.HostIPv4 + "/32", "192.0.2.130"},
		{"s4", lab.ServerIPv4 + "/32", "192.0.2.130"},
		{"s4", "203.0.113.0/24", "192.0.2.1"}, // what is mapped
		{"r4", "0.0.0.0/0", "192.0.2.129"},
		{"server", "0.0.0.0/0", lab.HostIPv4},
	} {
		require.NoError(t, node[route.node].Route(route.prefix, route.via, ""))
	}
	for _, name := range []string{"r6", "s6", "s4", "r4"} {
		require.NoError(t, node[name].SetSysctl("net/ipv6/conf/all/forwarding", "1"))
		require.NoError(t, node[name].SetSysctl("net/ipv4/ip_forward", "1"))
	}
	serve(t, node["server"], lab.ServerIPv4)
	return &world{
		Network: &lab.Network{Lab: l, Clients: []*lab.Node{node["client"]}, Host: node["host"], Server: node["server"]},
		client:  node["client"],
	}
}

// A link of 1400 bytes on either side, next to the host or beyond a router,
// in either direction: the transfer completes, and where the error has to
// cross natless it arrives in the words of the other family, with the MTU as
// RFC 7915 4.2 and 5.2 calculate it and the packet that its reader had sent.
func TestLabPathMTU(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		for _, c := range []struct {
			narrow, direction string
			at                string // where the translated error arrives; "": it need not cross
			mtu               int
		}{
			{"mid6", "download", "server", 1380}, // from a router that no IPv4 address stands for
			{"far6", "download", "server", 1380}, // from the host
			{"far4", "download", "", 0},
			{"mid4", "download", "", 0},
			{"mid6", "upload", "", 0},
			{"far6", "upload", "", 0},
			{"far4", "upload", "client", 1420},
			{"mid4", "upload", "client", 1420},
		} {
			t.Run(c.narrow+"/"+c.direction, func(t *testing.T) {
				w := longPath(t, c.narrow)
				w.run(t, setup{offload: offload})
				atClient, err := w.client.Capture("near6")
				require.NoError(t, err)
				atServer, err := w.Server.Capture("near4")
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
				defer cancel()
				if c.direction == "download" {
					_, err = lab.Download(ctx, w.client.HTTP(""), server6+":8080", make([]byte, 2<<20), nil)
				} else {
					_, err = lab.Upload(ctx, w.client.HTTP(""), server6+":8080", 2<<20)
				}
				require.NoError(t, err)
				switch c.at {
				case "server":
					isFragNeeded(t, atServer, c.mtu)
				case "client":
					isTooBig(t, atClient, c.mtu)
				}
				assert.Equal(t, "1440", mss(t, atClient, true))
				assert.Equal(t, "1440", mss(t, atServer, true), "the client's MSS is left alone")
				assert.Equal(t, "1460", mss(t, atServer, false))
				assert.Equal(t, "1460", mss(t, atClient, false), "the server's MSS is left alone")
			})
		}
	})
}

// isFragNeeded waits for a Fragmentation Needed that quotes what the server
// sent to the host's masquerading address.
func isFragNeeded(t *testing.T, c *lab.Capture, mtu int) {
	t.Helper()
	b := c.Wait(time.Second, func(b []byte) bool { return b[0]>>4 == 4 && b[9] == 1 && b[20] == 3 && b[21] == 4 })
	require.NotNil(t, b, "no Fragmentation Needed at the server")
	assert.Equal(t, mtu, int(binary.BigEndian.Uint16(b[26:])))
	quoted := gopacket.NewPacket(b[28:], layers.LayerTypeIPv4, gopacket.Lazy)
	ip, ok := quoted.NetworkLayer().(*layers.IPv4)
	require.True(t, ok)
	assert.Equal(t, lab.ServerIPv4, ip.SrcIP.String())
	assert.Equal(t, "192.0.2.1", ip.DstIP.String())
	assert.Equal(t, layers.IPProtocolTCP, ip.Protocol)
	assert.Equal(t, uint16(8080), binary.BigEndian.Uint16(ip.Payload), "the quoted source port")
	assert.Greater(t, int(ip.Length), mtu, "the quoted packet was too big")
}

// isTooBig waits for a Packet Too Big that quotes what the client sent.
func isTooBig(t *testing.T, c *lab.Capture, mtu int) {
	t.Helper()
	b := c.Wait(time.Second, func(b []byte) bool { return b[0]>>4 == 6 && b[6] == 58 && b[40] == 2 })
	require.NotNil(t, b, "no Packet Too Big at the client")
	assert.Equal(t, mtu, int(binary.BigEndian.Uint32(b[44:])))
	from := netip.AddrFrom16([16]byte(b[8:24]))
	assert.True(t, netip.MustParsePrefix(lab.Pref64).Contains(from), "from the router that was too narrow: %s", from)
	quoted := gopacket.NewPacket(b[48:], layers.LayerTypeIPv6, gopacket.Lazy)
	ip, ok := quoted.NetworkLayer().(*layers.IPv6)
	require.True(t, ok)
	assert.Equal(t, client1, ip.SrcIP.String())
	assert.Equal(t, lab.Server6, ip.DstIP.String())
	assert.Equal(t, layers.IPProtocolTCP, ip.NextHeader)
	assert.Equal(t, uint16(8080), binary.BigEndian.Uint16(ip.Payload[2:]), "the quoted destination port")
	assert.Greater(t, int(ip.Length)+40, mtu, "the quoted packet was too big")
}

// mss is the maximum segment size in the SYN, or the answer to it, that passed
// a capture.
func mss(t *testing.T, c *lab.Capture, syn bool) string {
	t.Helper()
	for _, b := range c.Packets() {
		first := gopacket.Decoder(layers.LayerTypeIPv6)
		if b[0]>>4 == 4 {
			first = layers.LayerTypeIPv4
		}
		tcp, ok := gopacket.NewPacket(b, first, gopacket.Default).TransportLayer().(*layers.TCP)
		if !ok || tcp.ACK == syn {
			continue
		}
		for _, o := range tcp.Options {
			if o.OptionType == layers.TCPOptionKindMSS {
				return fmt.Sprint(binary.BigEndian.Uint16(o.OptionData))
			}
		}
	}
	require.Fail(t, "no SYN seen")
	return ""
}
