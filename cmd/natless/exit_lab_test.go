package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/natless/natless/internal/lab"
)

// lived makes a host look lived in: no forwarding, an accept_ra of 1, somebody
// else's nftables table, routes and rule.
func lived(t *testing.T, n *lab.Network) {
	t.Helper()
	for path, value := range map[string]string{
		"net/ipv4/ip_forward":              "0",
		"net/ipv6/conf/all/forwarding":     "0",
		"net/ipv6/conf/all/accept_ra":      "1",
		"net/ipv6/conf/default/accept_ra":  "1",
		"net/ipv6/conf/wan/accept_ra":      "1",
		"net/ipv6/conf/lan1/accept_ra":     "1",
		"net/ipv4/conf/wan/rp_filter":      "2",
		"net/ipv4/conf/lan1/accept_local":  "1",
		"net/ipv6/conf/lan1/addr_gen_mode": "1",
	} {
		require.NoError(t, n.Host.SetSysctl(path, value), path)
	}
	require.NoError(t, n.Host.Route("192.0.2.0/24", lab.ServerIPv4, ""))
	require.NoError(t, n.Host.Route("2001:db8:beef::/48", client1, ""))
	_, elsewhere, err := net.ParseCIDR("203.0.113.128/25")
	require.NoError(t, err)
	require.NoError(t, n.Host.Netlink.RouteAdd(&netlink.Route{Dst: elsewhere, Gw: net.ParseIP(lab.ServerIPv4), Table: 4242}))
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Src = 4242, 4242, elsewhere
	require.NoError(t, n.Host.Netlink.RuleAdd(rule))
	ruleset(t, n.Host, func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "somebody", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Table: table, Name: "post", Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}}})
	})
}

// left asserts that a host is as it was before natless. Where the kernel can
// forward IPv6 only globally, that may have stayed on, and accept_ra with it.
func left(t *testing.T, n *lab.Node, before lab.Snapshot, when string) bool {
	t.Helper()
	diff := before.Diff(snapshot(t, n))
	if _, err := os.Stat("/proc/sys/net/ipv6/conf/all/force_forwarding"); err != nil {
		kept := diff[:0]
		for _, line := range diff {
			if !strings.Contains(line, "/net/ipv6/") || !strings.Contains(line, "/forwarding ") && !strings.Contains(line, "/accept_ra ") {
				kept = append(kept, line)
			}
		}
		diff = kept
	}
	return assert.Empty(t, diff, when)
}

// steps are the moments of start-up to interrupt: after each line of the most
// talkative log, and after growing delays until natless is ready, which it
// first measures.
func steps(t *testing.T, w *world, s setup) (delays []time.Duration, lines int) {
	t.Helper()
	begun := time.Now()
	d := launch(t, w.Host, s)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, d.Ready(ctx))
	took := time.Since(begun)
	lines = strings.Count(d.Output(), "\n")
	require.NoError(t, d.Stop())
	const count = 24
	for i := range count + 1 {
		delays = append(delays, took*time.Duration(i)/count)
	}
	return delays, lines
}

// interrupt starts natless, waits for a moment of its start-up, and ends it
// there.
func interrupt(t *testing.T, w *world, s setup, delay time.Duration, lines int, end func(*lab.Daemon)) {
	t.Helper()
	d := launch(t, w.Host, s)
	time.Sleep(delay)
	for range 2000 {
		if strings.Count(d.Output(), "\n") >= lines {
			break
		}
		time.Sleep(time.Millisecond)
	}
	end(d)
}

const talkative = own + "[log]\nlevel = \"debug\"\n"

// SIGTERM at any moment of start-up leaves the host as it was.
func TestLabCleanExitDuringStart(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, setup{before: lived})
		s := setup{offload: offload, config: talkative}
		before := snapshot(t, w.Host)
		delays, lines := steps(t, w, s)
		left(t, w.Host, before, "after a whole run")
		term := func(d *lab.Daemon) {
			require.NoError(t, d.Signal(syscall.SIGTERM))
			select {
			case <-d.Exited:
			case <-time.After(20 * time.Second):
				_ = d.Signal(syscall.SIGQUIT) // it writes where it hangs
				<-d.Exited
				require.Fail(t, "natless does not end")
			}
		}
		for _, delay := range delays {
			interrupt(t, w, s, delay, 0, term)
			require.True(t, left(t, w.Host, before, fmt.Sprintf("SIGTERM after %s", delay)))
		}
		for line := 1; line <= lines; line++ {
			interrupt(t, w, s, 0, line, term)
			require.True(t, left(t, w.Host, before, fmt.Sprintf("SIGTERM after line %d", line)))
		}
	})
}

// kill -9 at any moment of start-up leaves what `natless down` removes.
func TestLabKillDuringStart(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, setup{before: lived})
		s := setup{offload: offload, config: talkative}
		before := snapshot(t, w.Host)
		delays, lines := steps(t, w, s)
		kill := func(d *lab.Daemon) {
			require.NoError(t, d.Kill())
			down(t, d)
		}
		for _, delay := range delays {
			interrupt(t, w, s, delay, 0, kill)
			require.True(t, left(t, w.Host, before, fmt.Sprintf("kill -9 after %s, down", delay)))
		}
		for line := 1; line <= lines; line++ {
			interrupt(t, w, s, 0, line, kill)
			require.True(t, left(t, w.Host, before, fmt.Sprintf("kill -9 after line %d, down", line)))
		}
	})
}

// down runs `natless down` in a daemon's node.
func down(t *testing.T, d *lab.Daemon) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := d.Query(ctx, "down")
	require.NoError(t, err, "%s", out)
}

// load downloads in both directions until the returned function is called.
func load(t *testing.T, w *world) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := lab.Download(ctx, w.client.HTTP(""), server6+":8080", make([]byte, 1<<20), nil)
				_, _ = lab.Upload(ctx, w.client.HTTP(""), server6+":8080", 1<<20)
				if err != nil {
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

func TestLabCleanExitUnderLoad(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, setup{before: lived})
		before := snapshot(t, w.Host)
		w.run(t, setup{offload: offload})
		works(t, w)
		defer load(t, w)()
		time.Sleep(300 * time.Millisecond)
		require.NoError(t, w.daemon.Stop())
		left(t, w.Host, before, "SIGTERM under load")
	})
}

// After kill -9 under load, down clears the host; so does the next run, which
// takes over what it finds.
func TestLabKillUnderLoad(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, setup{before: lived})
		before := snapshot(t, w.Host)
		s := setup{offload: offload}
		w.run(t, s)
		works(t, w)
		stop := load(t, w)
		defer stop()
		time.Sleep(300 * time.Millisecond)
		require.NoError(t, w.daemon.Kill())
		assert.NotEmpty(t, before.Diff(snapshot(t, w.Host)), "blackholes outlive a crash")
		down(t, w.daemon)
		left(t, w.Host, before, "kill -9, down")
		down(t, w.daemon)
		left(t, w.Host, before, "down again")

		w.run(t, s)
		works(t, w)
		require.NoError(t, w.daemon.Kill())
		w.run(t, s)
		works(t, w)
		require.NoError(t, w.daemon.Stop())
		left(t, w.Host, before, "kill -9, run, SIGTERM")
	})
}

// on_exit keep leaves what keeps flows alive; down removes it.
func TestLabKeepThenDown(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, setup{before: lived})
		before := snapshot(t, w.Host)
		w.run(t, setup{offload: offload, config: own + "[network]\non_exit = \"keep\"\n"})
		works(t, w)
		require.NoError(t, w.daemon.Stop())
		assert.NotEmpty(t, before.Diff(snapshot(t, w.Host)))
		down(t, w.daemon)
		left(t, w.Host, before, "keep, down")
	})
}
