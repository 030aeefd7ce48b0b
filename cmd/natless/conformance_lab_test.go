package main_test

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// An IPv6 packet of at most 1280 bytes gets through an IPv4 link that is
// narrower than that: it is cut there (RFC 7915 5.1.1), and its sender is told
// nothing.
func TestLabNarrowIPv4Link(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		const mtu = 600 // a larger packet does not pass
		w := start(t, setup{offload: offload, before: func(t *testing.T, n *lab.Network) {
			require.NoError(t, n.Host.SetMTU("wan", mtu))
			require.NoError(t, n.Server.SetMTU("eth0", mtu))
		}})
		atClient, err := w.client.Capture("eth0")
		require.NoError(t, err)
		require.NoError(t, lab.Exchange(t.Context(), w.client, "", server6+":7", 1232))
		for _, b := range atClient.Packets() {
			assert.False(t, b[0]>>4 == 6 && b[6] == 58 && b[40] < 128, "an ICMPv6 error: %x", b)
		}
	})
}

// The ICMP errors that natless originates are limited (RFC 4443 2.4 (f)), and
// those that it kept back are counted.
func TestLabErrorsAreLimited(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		atClient, err := w.client.Capture("eth0")
		require.NoError(t, err)
		// An address of the pool that nobody has.
		conn, err := w.client.Dial(t.Context(), "udp", "["+lab.Embed(lab.Pref64, "169.254.79.9").String()+"]:9")
		require.NoError(t, err)
		defer conn.Close()
		began := time.Now()
		const sent = 5000
		for range sent {
			conn.Write([]byte("x")) // an error tells of an ICMP error before
		}
		ticks := int(time.Since(began)/time.Second) + 2

		isError := func(b []byte) bool { return b[0]>>4 == 6 && b[6] == 58 && b[40] == 1 }
		require.NotNil(t, atClient.Wait(time.Second, isError), "no ICMPv6 error at all")
		var stats struct {
			Suppressed int `json:"errors_suppressed"`
		}
		require.Eventually(t, func() bool {
			return json.Unmarshal([]byte(w.query(t, "stats", "-o", "json")), &stats) == nil && stats.Suppressed > 0
		}, 2*time.Second, 50*time.Millisecond)
		errors := 0
		for _, b := range atClient.Packets() {
			if isError(b) {
				errors++
			}
		}
		assert.LessOrEqual(t, errors, 200*ticks)
	})
}

// Two clients that know each other by their IPv4 addresses: each sees the
// other behind pref64, whatever the maps say, so that answers find the way
// back (RFC 7757 4.2.2).
func TestLabHairpin(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		const other4, other6 = "203.0.113.81", "2001:db8:2::80"
		w := start(t, setup{offload: offload, clients: 2, config: own + "hairpin = \"intrinsic\"\n", flags: []string{
			"--pref64", lab.Pref64, "--map", lab.MappedIPv4 + "=" + lab.MappedIPv6, "--map", other4 + "=" + other6,
		}})
		serve(t, w.Clients[1], other6)
		other := lab.Embed(lab.Pref64, other4)

		down, err := lab.Download(t.Context(), w.client.HTTP(lab.MappedIPv6), "["+other.String()+"]:8080", make([]byte, 1<<20), nil)
		require.NoError(t, err)
		assert.Equal(t, lab.Embed(lab.Pref64, lab.MappedIPv4).String(), down.Client, "a mapped client")
		require.NoError(t, lab.Exchange(t.Context(), w.client, lab.MappedIPv6, "["+other.String()+"]:7", 1200))

		down, err = lab.Download(t.Context(), w.client.HTTP(client1), "["+other.String()+"]:8080", make([]byte, 1<<20), nil)
		require.NoError(t, err)
		assert.True(t, netip.MustParsePrefix(lab.Pref64).Contains(netip.MustParseAddr(down.Client)), "a client with a lease")
	})
}
