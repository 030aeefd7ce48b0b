package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// machine is a lab's only node, on which a process lives on by itself. Its
// command line is unlike any other's.
func machine(t *testing.T) (l *Lab, n *Node, unlike string) {
	t.Helper()
	Require(t)
	l, err := New()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.Close()) })
	n, err = l.Node("host")
	require.NoError(t, err)
	require.NoError(t, n.Machine())
	unlike = "60." + strings.TrimPrefix(filepath.Base(l.Dir), Prefix)
	out, err := n.Command(t.Context(), "sh", "-c", "setsid sleep "+unlike+" >/dev/null 2>&1 &").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.True(t, soon(func() bool { return runs(unlike) }))
	return l, n, unlike
}

// runs tells whether there is a process of this machine with that argument.
func runs(argument string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is sound
	for _, p := range all {
		if b, err := os.ReadFile(p); err == nil && strings.HasSuffix(string(b), "\x00"+argument+"\x00") {
			return true
		}
	}
	return false
}

func soon(ok func() bool) bool {
	for range 500 {
		if ok() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func TestMachineHasItsOwn(t *testing.T) {
	l, n, unlike := machine(t)
	see := func(script string) string {
		t.Helper()
		out, err := n.Command(t.Context(), "sh", "-c", script).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	assert.Less(t, len(strings.Fields(see("echo /proc/[0-9]*"))), 10, "no processes but its own")
	orphan := see("(sleep 0 & echo $!)")
	assert.True(t, soon(func() bool { return see("ls /proc | grep -cx "+orphan+" || true") == "0" }), "orphans are buried")
	see("mkdir /run/here && touch /run/here/it")
	assert.NoFileExists(t, "/run/here/it")
	groups, err := cgroupMounts()
	require.NoError(t, err)
	for _, dir := range groups {
		see("mkdir -p " + dir + "/one/two")
		assert.DirExists(t, filepath.Join(dir, filepath.Base(l.Dir), "one/two"))
	}
	assert.NotRegexp(t, `:/.`, see("cat /proc/self/cgroup"), "not in the groups that it sees")

	require.NoError(t, l.Close())
	assert.True(t, soon(func() bool { return !runs(unlike) }), "a process lives")
	for _, dir := range groups {
		assert.NoDirExists(t, filepath.Join(dir, filepath.Base(l.Dir)))
	}
}

// childEnv makes a test binary one that is to be killed.
const childEnv = "NATLESS_LAB_CHILD"

func TestMachineEndsWithItsProcess(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		l, _, unlike := machine(t)
		fmt.Println(l.Dir, unlike)
		time.Sleep(time.Minute)
		return
	}
	Require(t)
	t.Setenv("TMPDIR", t.TempDir()) // Down is not to meet other labs of this machine
	self, err := os.Executable()
	require.NoError(t, err)
	c := exec.Command(self, "-test.run=^TestMachineEndsWithItsProcess$")
	c.Env = append(os.Environ(), childEnv+"=1")
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	var dir, unlike string
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	_, err = fmt.Sscan(line, &dir, &unlike)
	require.NoError(t, err, line)
	require.True(t, runs(unlike))

	require.NoError(t, c.Process.Kill())
	require.Error(t, c.Wait())
	assert.True(t, soon(func() bool { return !runs(unlike) }), "a process lives")
	done, err := Down()
	require.NoError(t, err)
	assert.Equal(t, []string{"removed " + dir}, done)
	groups, err := cgroupMounts()
	require.NoError(t, err)
	for _, g := range groups {
		assert.NoDirExists(t, filepath.Join(g, filepath.Base(dir)))
	}
}
