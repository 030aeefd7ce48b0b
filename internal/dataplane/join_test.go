package dataplane

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"

	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// udp is the n-th datagram of a flow, of size bytes with its headers.
func udp(src, dst string, size int, n byte) []byte {
	h := ip(src, dst, 64)
	headers := 48
	if _, v4 := h.(*layers.IPv4); v4 {
		headers = 28
	}
	data := payload(size - headers)
	data[0] = n
	return build(h, &layers.UDP{SrcPort: 4000, DstPort: 53}, data)
}

// departed has a worker read the packets at one go and returns what it writes.
func departed(t *testing.T, refuse error, packets ...[]byte) (out [][]byte, headers []tun.Header, b *bench) {
	synctest.Test(t, func(t *testing.T) {
		b = newBench(func(c *Config) { c.Join = true })
		b.q.refuse = refuse
		b.workers[0].translator.packet.ID = 0xfffe
		for _, packet := range packets {
			b.q.in <- packet
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.Run(ctx) }()
		synctest.Wait() // until it waits for more
		headers = b.q.headers
		out = b.q.written()
		cancel()
		require.NoError(t, <-ended)
	})
	return out, headers, b
}

// data is the first byte of every datagram in a packet.
func data(t *testing.T, packet []byte, size int) (first []byte) {
	all := decode(t, packet).TransportLayer().LayerPayload()
	for ; len(all) > 0; all = all[min(size, len(all)):] {
		first = append(first, all[0])
	}
	return first
}

func TestDatagramsOfAFlowAreJoined(t *testing.T) {
	for _, c := range []struct {
		src, dst, from, to string
		headers            int
	}{
		{one6, server6, one4, server4, 48},
		{server4, one4, server6, one6, 28},
	} {
		var packets [][]byte
		for n := range byte(5) {
			packets = append(packets, udp(c.src, c.dst, c.headers+100, n))
		}
		packets[4] = packets[4][:0:0] // and no IP at the end
		packets = append(packets, udp(c.src, c.dst, c.headers+60, 5))
		out, headers, b := departed(t, nil, packets...)
		require.Len(t, out, 1)
		between(t, out[0], c.from, c.to)
		assert.Equal(t, []byte{0, 1, 2, 3, 5}, data(t, out[0], 100))
		assert.EqualValues(t, translate.GSOUDPL4, headers[0].GSOType)
		assert.EqualValues(t, 100, headers[0].GSOSize)
		assert.EqualValues(t, 1, b.q.gathers.Load(), "so many ask for more")

		in, out4, out6 := Traffic{5, uint64(5*c.headers + 460)}, Traffic{}, Traffic{5, 5*48 + 460}
		got := b.Counters()
		if c.headers == 48 {
			out4, out6 = Traffic{5, 5*28 + 460}, Traffic{}
			assert.Equal(t, in, got.IPv6In)
			assert.Equal(t, uint16(0xfffe), binary.BigEndian.Uint16(out[0][4:]))
		} else {
			assert.Equal(t, in, got.IPv4In)
		}
		assert.Equal(t, out4, got.IPv4Out, "as many as came")
		assert.Equal(t, out6, got.IPv6Out)
		assert.Equal(t, 5, b.counted(translate.OK))
	}
}

// Whatever leaves has those before it leave first, and is itself as it would be
// without them.
func TestJoinedDatagramsAreNotOvertaken(t *testing.T) {
	first := func(n byte) []byte { return udp(one6, server6, 148, n) }
	other := udp(two6, server6, 148, 100)
	for name, c := range map[string]struct {
		between []byte
		written int
	}{
		"another flow":          {other, 3},
		"another protocol":      {tcp(one6, server6, 148), 3},
		"the other way":         {udp(server4, one4, 128, 100), 3},
		"an answer of its own":  {echo6(one6, own6), 3},
		"an error of its own":   {udp(one6, nobody6, 148, 100), 3},
		"what leaves as nobody": {udp(nobody6, server6, 148, 100)[:60], 1},
	} {
		alone, _, _ := departed(t, nil, c.between)
		out, _, b := departed(t, nil, first(0), first(1), c.between, first(2), first(3))
		require.Len(t, out, c.written, name)
		if c.written == 1 {
			assert.Equal(t, []byte{0, 1, 2, 3}, data(t, out[0], 100), name)
			continue
		}
		assert.Equal(t, []byte{0, 1}, data(t, out[0], 100), name)
		assert.Equal(t, []byte{2, 3}, data(t, out[2], 100), name)
		if out[1][0]>>4 == 4 { // the third identification, where the first was 0xfffe
			assert.Equal(t, []byte{0, 0}, out[1][4:6], name)
			copy(out[1][4:6], alone[0][4:6])
			copy(out[1][10:12], alone[0][10:12])
		}
		assert.Equal(t, alone[0], out[1], name)
		assert.Zero(t, b.q.gathers.Load(), name)
	}
}

// The fragments that natless makes are not joined, and neither is a super-packet
// that came as one.
func TestFragmentsAreNotJoined(t *testing.T) {
	uncut := func() []byte {
		h := ip(server4, one4, 64).(*layers.IPv4)
		h.Flags = 0
		return build(h, &layers.UDP{SrcPort: 53, DstPort: 4000}, payload(1400))
	}
	out, headers, _ := departed(t, nil, uncut(), uncut())
	assert.Len(t, out, 4)
	assert.Equal(t, make([]tun.Header, 4), headers)
}

// What is refused was so many packets.
func TestJoinedDatagramsRefused(t *testing.T) {
	out, _, b := departed(t, errors.New("no"), udp(one6, server6, 148, 0), udp(one6, server6, 148, 1), udp(one6, server6, 148, 2), tcp(one6, server6, 148))
	assert.Empty(t, out)
	assert.EqualValues(t, 4, b.Counters().WriteErrors)
	assert.Zero(t, b.Counters().IPv4Out)
}

// Where the device cannot cut, every datagram is written.
func TestNothingIsJoinedWithoutUSO(t *testing.T) {
	b := newBench()
	for n := range byte(3) {
		assert.Len(t, b.handle(udp(one6, server6, 148, n)), 1)
	}
}

// What the kernel makes of joined datagrams for a link that takes none, after it
// forwarded them, is the very packets that were joined, but for the hop.
func TestKernelCutsWhatWasJoined(t *testing.T) {
	inNamespace(t, func() {
		in, err := tun.Open(tun.Config{Name: "nl0", Offload: true})
		if err != nil {
			testenv.Skip(t, err.Error())
		}
		defer in.Close()
		if !in.Features().USO {
			testenv.Skip(t, "this kernel has no USO on TUN devices (Linux 6.2)")
		}
		out, err := tun.Open(tun.Config{Name: "nl1"})
		require.NoError(t, err)
		defer out.Close()
		around(t, "nl0")
		link, err := netlink.LinkByName("nl1")
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(link))
		for _, to := range []string{"198.51.100.2/32", "2001:db8:2::2/128"} {
			_, dst, err := net.ParseCIDR(to)
			require.NoError(t, err)
			require.NoError(t, netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}))
		}
		for name, value := range map[string]string{
			"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/nl0/rp_filter": "0", "ipv6/conf/all/forwarding": "1",
		} {
			require.NoError(t, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
		}
		for _, pair := range [][2]string{{"192.0.2.9", "198.51.100.2"}, {"2001:db8:1::9", "2001:db8:2::2"}} {
			var packets [][]byte
			train := translate.Train{Buf: make([]byte, bufferSize), Off: headroom}
			for n := range byte(17) {
				b := udp(pair[0], pair[1], 1000-int(n/16)*301, n) // the last is shorter
				if b[0]>>4 == 4 {
					binary.BigEndian.PutUint16(b[4:], 0xfff8+uint16(n))
					setHops(b, 64)
				}
				require.True(t, train.Join(b, &translate.Offload{}))
				packets = append(packets, b)
			}
			n, o := train.Finish()
			require.NoError(t, in.Queues()[0].Write(train.Buf, train.Off, n, tun.Header(o)))
			buf := make([]byte, bufferSize)
			for i := 0; i < len(packets); {
				n, _, err := out.Queues()[0].Read(buf, headroom)
				require.NoError(t, err)
				got := buf[headroom : headroom+n]
				if !bytes.Contains(got, packets[i][len(packets[i])-200:]) {
					continue // the kernel looks for neighbours of its own
				}
				require.Equal(t, setHops(packets[i], 63), got, i)
				i++
			}
		}
	})
}

// setHops sets the TTL or hop limit of a packet.
func setHops(b []byte, hops byte) []byte {
	if b[0]>>4 == 6 {
		b[7] = hops
		return b
	}
	b[8], b[10], b[11] = hops, 0, 0
	binary.BigEndian.PutUint16(b[10:], ^checksum.Checksum(b[:20], 0))
	return b
}
