package main_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// What natless run cannot or must not do is one clear error, exit 1, and a
// host that nothing has touched.
func TestLabBadConfiguration(t *testing.T) {
	t.Parallel()
	w := build(t, setup{before: lived})
	for _, c := range []struct {
		name, config string
		flags        []string
		wants        []string // in the error
	}{
		{"unknown key", "[device]\nnmae = \"natless0\"\n", nil, []string{"natless.toml:2", "nmae"}},
		{"unknown table", "[devise]\nname = \"natless0\"\n", nil, []string{"natless.toml:1", "devise"}},
		{"not TOML", "[device\n", nil, []string{"natless.toml:1"}},
		{"prefix of length 95", "[translation]\npref64 = \"2001:db8:64::/95\"\n", nil, []string{"natless.toml:2", "pref64", "95", "96"}},
		{"prefix of length 95 by flag", "", []string{"--pref64", "2001:db8:64::/95"}, []string{"pref64", "95", "96"}},
		{"IPv6 where IPv4 belongs", "[[map]]\nipv4 = \"2001:db8::1\"\nipv6 = \"2001:db8::1\"\n", nil, []string{"natless.toml:2", "ipv4", "2001:db8::1"}},
		{"IPv4 where IPv6 belongs", "[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"203.0.113.1\"\n", nil, []string{"natless.toml:3", "ipv6", "203.0.113.1"}},
		{"IPv6 pool", "[[pool]]\nipv4 = \"2001:db8::/64\"\n", nil, []string{"natless.toml:2", "ipv4"}},
		{"a prefix mapped twice", "[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"2001:db8:1::1\"\n\n[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"2001:db8:1::2\"\n", nil, []string{"natless.toml:", "203.0.113.1"}},
		{"a prefix mapped twice by flag", "", []string{"--map", "203.0.113.1=2001:db8:1::1", "--map", "203.0.113.2=2001:db8:1::1"}, []string{"2001:db8:1::1"}},
		{"pool over an address of the host", "[[pool]]\nipv4 = \"198.51.100.0/24\"\n", nil, []string{lab.HostIPv4, "wan"}},
		{"the host's own address for clients to share", "[[pool]]\nipv4 = \"198.51.100.1\"\nmode = \"port-range\"\n", nil, []string{"address 198.51.100.1 of wan, whose packets go to the host itself"}},
		{"sessions of nobody", "[sessions]\nmax = 5\n", nil, []string{"natless.toml:2", "sessions.max", "port-range"}},
		{"map over an address of the host", "[[map]]\nipv4 = \"198.51.100.1\"\nipv6 = \"2001:db8:1::1\"\n", nil, []string{lab.HostIPv4, "wan"}},
		{"pool over a foreign route", "[[pool]]\nipv4 = \"192.0.2.128/25\"\n", nil, []string{"192.0.2.0/24"}},
		{"pref64 over a link's prefix", "[translation]\npref64 = \"2001:db8:1::/64\"\n", nil, []string{"2001:db8:1::"}},
		{"negative duration", "[[pool]]\nipv4 = \"203.0.113.0/28\"\nidle = \"-1h\"\n", nil, []string{"natless.toml:3", "idle", "-1h"}},
		{"not a duration", "[[pool]]\nidle = \"soon\"\n", nil, []string{"natless.toml:2", "idle", "soon"}},
		{"unknown mode", "[[pool]]\nmode = \"stateful\"\n", nil, []string{"natless.toml:2", "mode", "stateful"}},
		{"device name too long", "[device]\nname = \"natless-too-long\"\n", nil, []string{"natless.toml:2", "name", "natless-too-long", "15"}},
		{"device name too long by flag", "", []string{"--device", "natless-too-long"}, []string{"device", "natless-too-long", "15"}},
		{"device name taken", "[device]\nname = \"lan1\"\n", nil, []string{"lan1"}},
		{"offload", "[device]\noffload = \"on\"\n", nil, []string{"natless.toml:2", "offload", "auto", "off"}},
		{"MTU below IPv6's", "[device]\nmtu = 1279\n", nil, []string{"natless.toml:2", "mtu", "1280"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := snapshot(t, w.Host)
			out := refuses(t, w.Host, c.config, nil, c.flags...)
			for _, want := range c.wants {
				assert.Contains(t, out, want)
			}
			unchanged(t, w.Host, before, "after the refusal")
			refusedByCheck(t, w.Host, c.config, c.flags, c.wants)
		})
	}

	t.Run("no such file", func(t *testing.T) {
		before := snapshot(t, w.Host)
		out, err := w.Host.Command(t.Context(), lab.Binary(t), "run", "-c", "/nonexistent/natless.toml").CombinedOutput()
		exitIs(t, 1, err, string(out))
		assert.Contains(t, string(out), "/nonexistent/natless.toml")
		unchanged(t, w.Host, before, "after the refusal")
	})
	t.Run("wrong usage", func(t *testing.T) {
		out, err := w.Host.Command(t.Context(), lab.Binary(t), "run", "--no-such-flag").CombinedOutput()
		exitIs(t, 2, err, string(out))
		assert.Contains(t, string(out), "no-such-flag")
	})
	t.Run("not root", func(t *testing.T) {
		if lab.Inside() {
			testenv.Skip(t, "only the real root can become somebody else")
		}
		before := snapshot(t, w.Host)
		out := refuses(t, w.Host, "", func(c *exec.Cmd) error {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			return w.Host.RunWithTUN(c, 0o666)
		})
		assert.Contains(t, out, "root")
		unchanged(t, w.Host, before, "after the refusal")
	})
	t.Run("no TUN device", func(t *testing.T) {
		before := snapshot(t, w.Host)
		out := refuses(t, w.Host, "", func(c *exec.Cmd) error { return w.Host.RunWithTUN(c, 0) })
		assert.Contains(t, out, "/dev/net/tun")
		unchanged(t, w.Host, before, "after the refusal")
	})
}

// refuses runs natless with a configuration that it has to refuse, and returns
// the error it printed. run, when not nil, starts it in another way.
func refuses(t *testing.T, n *lab.Node, config string, run func(*exec.Cmd) error, flags ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "natless-test-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o777))
	file := filepath.Join(dir, "natless.toml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o644))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c := n.Command(ctx, lab.Binary(t), append([]string{"run", "-c", file, "--socket", dir + "/sock", "--state-dir", ""}, flags...)...)
	var stdout, stderr strings.Builder
	c.Stdout, c.Stderr = &stdout, &stderr
	if run == nil {
		run = func(*exec.Cmd) error { return c.Run() }
	}
	exitIs(t, 1, run(c.Cmd), stdout.String()+stderr.String())
	assert.Contains(t, stderr.String(), "natless: ")
	assert.Empty(t, stdout.String())
	assert.NotContains(t, stderr.String(), "goroutine")
	return stderr.String()
}

// refusedByCheck asserts that natless check sees the same without root's work.
func refusedByCheck(t *testing.T, n *lab.Node, config string, flags []string, wants []string) {
	t.Helper()
	if len(flags) > 0 {
		return // check takes a file
	}
	file := filepath.Join(t.TempDir(), "natless.toml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o644))
	out, err := n.Command(t.Context(), lab.Binary(t), "check", "-c", file).CombinedOutput()
	exitIs(t, 1, err, string(out))
	for _, want := range wants {
		assert.Contains(t, string(out), want, "check")
	}
}

// exitIs asserts an exit code.
func exitIs(t *testing.T, code int, err error, out string) {
	t.Helper()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	assert.Equal(t, code, exit.ExitCode(), "%s", out)
}

// A second natless is refused, whether it wants the same device, or another
// with the same addresses, and the first goes on.
func TestLabSecondNatless(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		works(t, w)
		before := snapshot(t, w.Host)
		assert.Contains(t, refuses(t, w.Host, "", nil, "--offload", offload, "--pref64", lab.Pref64), "another natless")
		unchanged(t, w.Host, before, "the same device")
		assert.Contains(t, refuses(t, w.Host, "", nil, "--device", "natless1", "--offload", offload, "--pref64", lab.Pref64), "another natless")
		unchanged(t, w.Host, before, "the same prefix and pool")
		works(t, w)
		unchanged(t, w.Host, before, "and still")
	})
}

// operators makes a persistent TUN device as an operator does, and leaves it
// open when held.
func operators(t *testing.T, n *lab.Node, multiQueue, held bool) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "natless0"
	tun := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Queues: 1, Flags: netlink.TUNTAP_NO_PI}
	if multiQueue {
		tun.Flags |= netlink.TUNTAP_MULTI_QUEUE
	} else {
		tun.Flags |= netlink.TUNTAP_ONE_QUEUE
	}
	require.NoError(t, n.Do(func() error { return netlink.LinkAdd(tun) }))
	for _, f := range tun.Fds {
		if held {
			t.Cleanup(func() { f.Close() })
		} else {
			f.Close()
		}
	}
}

// A persistent device that the operator made is used and left as it was, with
// one queue or several: also without offloads, which would stick to it.
func TestLabOperatorsDevice(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		for _, multiQueue := range []bool{true, false} {
			t.Run(fmt.Sprintf("multi_queue=%t", multiQueue), func(t *testing.T) {
				w := build(t, setup{before: func(t *testing.T, n *lab.Network) { operators(t, n.Host, multiQueue, false) }})
				before := snapshot(t, w.Host)
				w.run(t, setup{offload: offload})
				works(t, w)
				assert.False(t, device(t, w.Host).NonPersist)
				require.NoError(t, w.daemon.Stop())
				left(t, w.Host, before, "the device is as it was")
				require.NoError(t, w.Host.Do(func() error {
					tso, err := hasTSO("natless0")
					assert.False(t, tso, "offloads are off again")
					return err
				}))
			})
		}
	})
}

// A device that somebody holds open is refused: a second opener would steal
// its packets.
func TestLabDeviceHeld(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := build(t, setup{before: func(t *testing.T, n *lab.Network) { operators(t, n.Host, true, true) }})
		before := snapshot(t, w.Host)
		assert.Contains(t, refuses(t, w.Host, "", nil, "--offload", offload), "natless0")
		unchanged(t, w.Host, before, "after the refusal")
	})
}
