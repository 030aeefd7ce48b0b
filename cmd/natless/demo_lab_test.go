package main_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// What the demo shows, in its order.
var demoChecks = []string{"plain IPv6", "natless run", "ping", "traceroute", "download", "UDP", "inbound", "mapping table", "clean exit"}

// demo prepares `natless lab demo`. Its labs are in a directory of the test's
// own, so that `lab down` meets no other.
func demo(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	lab.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	c := exec.CommandContext(ctx, lab.Binary(t), append([]string{"lab"}, args...)...)
	c.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	return c
}

// verdicts reads the marks of the demo's lines.
func verdicts(out string) map[string]string {
	marks := map[string]string{}
	for line := range strings.Lines(out) {
		for _, mark := range []string{"✓", "✗"} {
			if rest, ok := strings.CutPrefix(line, mark+" "); ok {
				for _, name := range demoChecks {
					if strings.HasPrefix(rest, name+" ") {
						marks[name] = mark
					}
				}
			}
		}
	}
	return marks
}

func TestLabDemo(t *testing.T) {
	out, err := demo(t, "demo").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, name := range demoChecks {
		assert.Equal(t, "✓", verdicts(string(out))[name], "%s\n%s", name, out)
	}
	assert.NotContains(t, string(out), "\x1b", "not a terminal")
	for _, want := range []string{"SHA-256", "Gbit/s", "of plain IPv6 forwarding", lab.OwnIPv6 + " (natless)", lab.MappedIPv4} {
		assert.Contains(t, string(out), want)
	}
}

// With the daemon killed in the middle, everything after that is a cross.
func TestLabDemoCannotLie(t *testing.T) {
	c := demo(t, "demo")
	stdout, err := c.StdoutPipe()
	require.NoError(t, err)
	var stderr strings.Builder
	c.Stderr = &stderr
	require.NoError(t, c.Start())
	var all strings.Builder
	lines := bufio.NewScanner(io.TeeReader(stdout, &all))
	for lines.Scan() {
		if strings.Contains(lines.Text(), " traceroute ") {
			require.NoError(t, syscall.Kill(daemonOf(t, c.Process.Pid), syscall.SIGKILL))
		}
	}
	var exit *exec.ExitError
	require.ErrorAs(t, c.Wait(), &exit, "%s", &all)
	assert.Equal(t, 1, exit.ExitCode())
	marks := verdicts(all.String())
	for i, name := range demoChecks {
		want := "✓"
		if i > 3 {
			want = "✗"
		}
		assert.Equal(t, want, marks[name], "%s\n%s", name, &all)
	}
	assert.Contains(t, stderr.String(), "natless: lab demo: 5 of 9 checks failed")
}

// daemonOf finds `natless run` among the children of the demo.
func daemonOf(t *testing.T, parent int) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, p := range all {
		stat, err := os.ReadFile(p + "/stat")
		if err != nil {
			continue // ended
		}
		cmdline, _ := os.ReadFile(p + "/cmdline")
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) && strings.Contains(string(cmdline), "\x00run\x00") {
			pid, err := strconv.Atoi(filepath.Base(p))
			require.NoError(t, err)
			return pid
		}
	}
	require.Fail(t, "no daemon")
	return 0
}

// Interrupted, the demo takes everything down; killed, it leaves a directory
// for lab down and nothing else.
func TestLabDemoInterrupted(t *testing.T) {
	for _, s := range []struct {
		signal syscall.Signal
		code   int
		left   int
	}{{syscall.SIGINT, 1, 0}, {syscall.SIGTERM, 1, 0}, {syscall.SIGKILL, -1, 1}} {
		t.Run(s.signal.String(), func(t *testing.T) {
			t.Parallel()
			c := demo(t, "demo")
			stdout, err := c.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, c.Start())
			daemon := 0
			for lines := bufio.NewScanner(stdout); lines.Scan(); {
				if strings.Contains(lines.Text(), " ping ") {
					daemon = daemonOf(t, c.Process.Pid)
					require.NoError(t, c.Process.Signal(s.signal))
				}
			}
			var exit *exec.ExitError
			require.ErrorAs(t, c.Wait(), &exit)
			assert.Equal(t, s.code, exit.ExitCode())
			assert.NoDirExists(t, fmt.Sprintf("/proc/%d/fd/0", daemon), "the daemon has ended")
			tmp := strings.TrimPrefix(c.Env[len(c.Env)-1], "TMPDIR=")
			left, err := filepath.Glob(tmp + "/*")
			require.NoError(t, err)
			assert.Len(t, left, s.left)

			if s.left == 0 {
				return
			}
			t.Cleanup(lab.Alone(t))
			d := demo(t, "down")
			d.Env = c.Env
			out, err := d.CombinedOutput()
			require.NoError(t, err)
			assert.Contains(t, string(out), "removed "+left[0])
		})
	}
}

// A lab that was kept can be entered and used, and lab down removes it.
func TestLabDemoKeep(t *testing.T) {
	c := demo(t, "demo", "--keep")
	t.Cleanup(lab.Alone(t))
	tmp := strings.TrimPrefix(c.Env[len(c.Env)-1], "TMPDIR=")
	out, err := c.CombinedOutput()
	defer func() {
		d := demo(t, "down")
		d.Env = c.Env
		downs, err := d.CombinedOutput()
		assert.NoError(t, err, "%s", downs)
		assert.Empty(t, lab.Standing())
		left, err := filepath.Glob(tmp + "/*")
		assert.NoError(t, err)
		assert.Empty(t, left)
	}()
	require.NoError(t, err, "%s", out)
	assert.Len(t, lab.Standing(), 3)
	for _, want := range []string{"ip netns exec natless-lab-client", "natless-lab-host", "natless-lab-server", "lab down"} {
		assert.Contains(t, string(out), want)
	}
	// The daemon and the server are there, and answer.
	sockets, err := filepath.Glob(tmp + "/*/*/natless.sock")
	require.NoError(t, err)
	require.Len(t, sockets, 1)
	status, err := exec.Command(lab.Binary(t), "status", "--socket", sockets[0]).CombinedOutput()
	require.NoError(t, err, "%s", status)

	again, err := demo(t, "demo", "--keep").CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(again), "one stands already")
}

// Without root the demo runs where it can, and otherwise says what is missing
// and what works.
func TestLabDemoWithoutRoot(t *testing.T) {
	lab.Require(t)
	if lab.Inside() {
		testenv.Skip(t, "only the real root can become somebody else")
	}
	w := build(t, setup{})
	nobody := func(mode uint32) (string, error) {
		c := demo(t, "demo")
		tmp, err := os.MkdirTemp("", "natless-test-")
		require.NoError(t, err)
		t.Cleanup(func() { os.RemoveAll(tmp) })
		require.NoError(t, os.Chmod(tmp, 0o777|os.ModeSticky)) // as /tmp is
		c.Env = append(c.Env, "TMPDIR="+tmp)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out strings.Builder
		c.Stdout, c.Stderr = &out, &out
		err = w.Host.RunWithTUN(c, mode)
		return out.String(), err
	}
	if b, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(b)) != "0" {
		out, err := nobody(0o666)
		require.NoError(t, err, "%s", out)
		for _, name := range demoChecks {
			assert.Equal(t, "✓", verdicts(out)[name], "%s\n%s", name, out)
		}
	}
	for mode, why := range map[uint32]string{0o600: "permission denied", 0: "no such file or directory"} {
		out, err := nobody(mode)
		require.Error(t, err)
		assert.Contains(t, out, "/dev/net/tun: "+why)
		assert.Contains(t, out, fmt.Sprintf("sudo %s lab demo", lab.Binary(t)))
	}
}
