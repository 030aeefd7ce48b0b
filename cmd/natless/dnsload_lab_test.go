package main_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// TestLabDNSLoad puts natless and Debian's unbound with its module dns64, both
// in front of the same server, under the same load. scripts/bench-dns has it
// take its time and print ratios; otherwise it only sees that all is answered.
func TestLabDNSLoad(t *testing.T) {
	lab.Require(t)
	needs(t, "unbound", "nsd", "ldns-keygen", "ldns-signzone")
	rounds, length := 1, 100*time.Millisecond
	if os.Getenv("NATLESS_BENCH") != "" {
		rounds, length = 5, 4*time.Second
	}
	n, err := lab.Build(1)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	authority(t, n)
	other := unbound(t, n, 5364, " module-config: \"dns64 iterator\"\n dns64-prefix: "+lab.Pref64)
	w := &world{Network: n, client: n.Clients[0]}
	w.run(t, setup{flags: []string{"--pref64", lab.Pref64, "--dns64", dnsAddress}, config: own + "[dns64]\nupstreams = [\"" + lab.ServerIPv4 + "\"]\n"})

	for _, kind := range []struct {
		name  string
		names uint64 // that are asked for, in turn
	}{{"cached", 100}, {"uncached", 1 << 62}} {
		var rate, tail [2][]float64
		for range rounds {
			for i, address := range []string{dnsAddress, other} {
				qps, p99 := dnsLoad(t, w.client, address, kind.names, length)
				rate[i], tail[i] = append(rate[i], qps), append(tail[i], p99.Seconds())
			}
		}
		for i := range rate {
			slices.Sort(rate[i])
			slices.Sort(tail[i])
		}
		m := rounds / 2
		t.Logf("%s: queries a second natless/unbound %.2f (%.0f, %.0f); p99 natless/unbound %.2f (%.2f ms, %.2f ms)", kind.name,
			rate[0][m]/rate[1][m], rate[0][m], rate[1][m], tail[0][m]/tail[1][m], 1000*tail[0][m], 1000*tail[1][m])
	}
	assert.Zero(t, w.status(t).DNS64.Dropped)
}

// names never end: each is asked for once where that is the point.
var names atomic.Uint64

// dnsLoad asks for AAAA of names that have A only, from 32 sockets that have one
// query under way each, for a time. Every answer has to be right.
func dnsLoad(t *testing.T, n *lab.Node, address string, different uint64, length time.Duration) (qps float64, p99 time.Duration) {
	t.Helper()
	var asking sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	begin := time.Now()
	for range 32 {
		conn, err := n.Dial(t.Context(), "udp", address)
		require.NoError(t, err)
		asking.Go(func() {
			defer conn.Close()
			mine, err := askFor(conn, different, length)
			assert.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	asking.Wait()
	require.NotEmpty(t, took)
	slices.Sort(took)
	return float64(len(took)) / time.Since(begin).Seconds(), took[len(took)*99/100]
}

func askFor(conn net.Conn, different uint64, length time.Duration) (took []time.Duration, err error) {
	buffer := make([]byte, 4096)
	for begin := time.Now(); time.Since(begin) < length; {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("n%d.wild.example.com.", names.Add(1)%different), dns.TypeAAAA)
		m.SetEdns0(1232, false)
		query, err := m.Pack()
		if err != nil {
			return nil, err
		}
		sent := time.Now()
		conn.SetDeadline(sent.Add(5 * time.Second))
		if _, err := conn.Write(query); err != nil {
			return nil, err
		}
		size, err := conn.Read(buffer)
		if err != nil {
			return nil, fmt.Errorf("asking for %s: %w", m.Question[0].Name, err)
		}
		took = append(took, time.Since(sent))
		// No more of it is read than its header: that would take time from the server.
		if answers := int(buffer[6])<<8 | int(buffer[7]); buffer[3]&15 != 0 || answers != 1 {
			return nil, fmt.Errorf("asking for %s: %x", m.Question[0].Name, buffer[:size])
		}
	}
	return took, nil
}
