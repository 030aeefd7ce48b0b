package main_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

func TestLabPing(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		for _, size := range []int{0, 56, 57, 1400} {
			a, err := lab.Ping(t.Context(), w.client, "", netip.MustParseAddr(lab.Server6), size)
			require.NoError(t, err, size)
			assert.Equal(t, lab.Server6, a.From.String())
		}
		// natless itself answers
		_, err := lab.Ping(t.Context(), w.client, "", netip.MustParseAddr(lab.OwnIPv6), 56)
		require.NoError(t, err)
		_, err = lab.Ping(t.Context(), w.Server, "", netip.MustParseAddr(ownIPv4), 56)
		require.NoError(t, err)
		// and from the other side
		_, err = lab.Ping(t.Context(), w.Server, "", netip.MustParseAddr(lab.MappedIPv4), 1400)
		require.NoError(t, err)
	})
}

func TestLabTraceroute(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		hops, err := lab.Traceroute(t.Context(), w.client, "", netip.MustParseAddr(lab.Server6))
		require.NoError(t, err)
		assert.Equal(t, []string{
			"2001:db8:1::1", // the host
			lab.OwnIPv6,     // natless
			lab.Embed(lab.Pref64, lab.HostIPv4).String(), // the host again, with IPv4
			lab.Server6,
		}, path(hops))

		hops, err = lab.Traceroute(t.Context(), w.Server, "", netip.MustParseAddr(lab.MappedIPv4))
		require.NoError(t, err)
		assert.Equal(t, []string{
			lab.HostIPv4,
			lab.HostIPv4, // natless, whose own address must not leave (RFC 3927 7)
			lab.HostIPv4, // the host with IPv6: no IPv4 address stands for it
			lab.MappedIPv4,
		}, path(hops))
	})
}

func path(hops []lab.Answer) (words []string) {
	for _, h := range hops {
		words = append(words, h.From.String())
	}
	return words
}

func TestLabDownloadAndUpload(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		down, err := lab.Download(t.Context(), w.client.HTTP(""), server6+":8080", make([]byte, 32<<20), nil)
		require.NoError(t, err)
		assert.Equal(t, lab.HostIPv4, down.Client, "masqueraded")
		_, err = lab.Upload(t.Context(), w.client.HTTP(""), server6+":8080", 32<<20)
		require.NoError(t, err)
	})
}

func TestLabUDP(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		for _, size := range []int{0, 1, 2, 511, 512, 1232, 1432} {
			require.NoError(t, lab.Exchange(t.Context(), w.client, "", server6+":7", size))
		}
	})
}

// Datagrams that the sender hands to its kernel as one super-packet arrive one
// by one and whole, in both directions.
func TestLabUDPSegmentation(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		serve(t, w.client, lab.MappedIPv6)
		burst(t, w.client, server6+":7")
		burst(t, w.Server, lab.MappedIPv4+":7")
	})
}

// burst sends numbered datagrams of 1200 bytes as super-packets to an echo
// server and wants each back once. UDP may lose some when buffers are full, so
// it goes on with what is missing.
func burst(t *testing.T, n *lab.Node, server string) {
	t.Helper()
	const size, count = 1200, 16
	conn, err := n.Dial(t.Context(), "udp", server)
	require.NoError(t, err)
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	}))
	require.NoError(t, err)
	missing := map[uint32]bool{}
	for i := range uint32(count) {
		missing[i] = true
	}
	for try := 0; try < 3 && len(missing) > 0; try++ {
		var out []byte
		for i := range missing {
			d := make([]byte, size)
			for j := 0; j+4 <= size; j += 4 {
				binary.BigEndian.PutUint32(d[j:], i)
			}
			out = append(out, d...)
		}
		_, err = conn.Write(out)
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		buf := make([]byte, 64<<10)
		for len(missing) > 0 {
			got, err := conn.Read(buf)
			if err != nil {
				break
			}
			require.Equal(t, size, got)
			i := binary.BigEndian.Uint32(buf)
			for j := 4; j+4 <= size; j += 4 {
				require.Equal(t, i, binary.BigEndian.Uint32(buf[j:]))
			}
			delete(missing, i)
		}
	}
	assert.Empty(t, missing)
}

func TestLabMappedClient(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		serve(t, w.client, lab.MappedIPv6)
		down, err := lab.Download(t.Context(), w.Server.HTTP(""), lab.MappedIPv4+":8080", make([]byte, 8<<20), nil)
		require.NoError(t, err)
		assert.Equal(t, lab.Server6, down.Client)
		_, err = lab.Upload(t.Context(), w.Server.HTTP(""), lab.MappedIPv4+":8080", 8<<20)
		require.NoError(t, err)
		require.NoError(t, lab.Exchange(t.Context(), w.Server, "", lab.MappedIPv4+":7", 1400))

		down, err = lab.Download(t.Context(), w.client.HTTP(lab.MappedIPv6), server6+":8080", make([]byte, 1<<20), nil)
		require.NoError(t, err)
		assert.Equal(t, lab.MappedIPv4, down.Client, "the same address outwards")
	})
}

func TestLabParallelConnections(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		errs := make(chan error, 100)
		for i := range 100 {
			wg.Go(func() {
				var err error
				if i%2 == 0 {
					_, err = lab.Download(ctx, w.client.HTTP(""), server6+":8080", make([]byte, 256<<10+i), nil)
				} else {
					_, err = lab.Upload(ctx, w.client.HTTP(""), server6+":8080", int64(256<<10+i))
				}
				errs <- err
			})
		}
		wg.Wait()
		for range 100 {
			assert.NoError(t, <-errs)
		}
	})
}

func TestLabLeases(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		const pool = "203.0.113.0/28"
		w := start(t, setup{clients: 3, offload: offload, flags: []string{"--pref64", lab.Pref64, "--pool", pool, "--masquerade", "off"}})
		seen := map[string]string{} // IPv6 by IPv4
		for k, c := range w.Clients {
			for range 2 {
				down, err := lab.Download(t.Context(), c.HTTP(""), server6+":8080", make([]byte, 64<<10), nil)
				require.NoError(t, err)
				assert.True(t, netip.MustParsePrefix(pool).Contains(netip.MustParseAddr(down.Client)), down.Client)
				seen[down.Client] = fmt.Sprintf("2001:db8:%d::2", k+1)
			}
		}
		assert.Len(t, seen, 3, "one lease for each client")

		listed := map[string]string{}
		for line := range strings.Lines(w.query(t, "lease", "ls", "-o", "json")) {
			var l struct{ IPv4, IPv6 string }
			require.NoError(t, json.Unmarshal([]byte(line), &l), line)
			listed[l.IPv4] = l.IPv6
		}
		assert.Equal(t, seen, listed)
		for v4, v6 := range seen {
			assert.Contains(t, w.query(t, "map", "get", v6), v4)
			assert.Contains(t, w.query(t, "map", "get", v4), v6)
		}
	})
}

// RFC 6052 2.2, with the server 198.51.100.2 = c633:6402 written into each
// prefix by hand.
func TestLabPrefixLengths(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, setup{})
		for _, c := range []struct{ pref64, server string }{
			{"3fff:64::/32", "3fff:64:c633:6402::"},
			{"3fff:64:ab00::/40", "3fff:64:abc6:3364:2::"},
			{"3fff:64:abcd::/48", "3fff:64:abcd:c633:64:200::"},
			{"3fff:64:abcd:ef00::/56", "3fff:64:abcd:efc6:33:6402::"},
			{"3fff:64:abcd:ef01::/64", "3fff:64:abcd:ef01:c6:3364:200:0"},
			{"3fff:64:abcd:ef01::/96", "3fff:64:abcd:ef01::c633:6402"},
		} {
			t.Run(c.pref64[strings.Index(c.pref64, "/")+1:], func(t *testing.T) {
				w.run(t, setup{offload: offload, flags: []string{"--pref64", c.pref64}})
				_, err := lab.Ping(t.Context(), w.client, "", netip.MustParseAddr(c.server), 56)
				require.NoError(t, err)
				_, err = lab.Download(t.Context(), w.client.HTTP(""), "["+c.server+"]:8080", make([]byte, 1<<20), nil)
				require.NoError(t, err)
			})
		}
	})
}

func TestLabHostItself(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		_, err := lab.Ping(t.Context(), w.Host, "", netip.MustParseAddr(lab.Server6), 56)
		require.NoError(t, err)
		_, err = lab.Download(t.Context(), w.Host.HTTP(""), server6+":8080", make([]byte, 8<<20), nil)
		require.NoError(t, err)
		_, err = lab.Upload(t.Context(), w.Host.HTTP(""), server6+":8080", 8<<20)
		require.NoError(t, err)
		require.NoError(t, lab.Exchange(t.Context(), w.Host, "", server6+":7", 512))
		// What the host reaches by plain IPv4 it still does.
		_, err = lab.Download(t.Context(), w.Host.HTTP(""), lab.ServerIPv4+":8080", make([]byte, 1<<20), nil)
		require.NoError(t, err)
	})
}
