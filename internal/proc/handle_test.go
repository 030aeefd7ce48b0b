package proc

import (
	"io/fs"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A handle never means a later process.
func TestHandle(t *testing.T) {
	c := exec.Command("sleep", "60")
	require.NoError(t, c.Start())
	started, err := Started(c.Process.Pid)
	require.NoError(t, err)
	_, err = Open(c.Process.Pid, started+1)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	h, err := Open(c.Process.Pid, started)
	require.NoError(t, err)
	defer h.Close()
	root, err := h.Root()
	require.NoError(t, err)
	assert.NoError(t, root.Close())
	uid, gid, err := h.Owner()
	require.NoError(t, err)
	assert.Equal(t, []int{os.Geteuid(), os.Getegid()}, []int{uid, gid})
	shares, err := h.SharesNamespace("mnt")
	require.NoError(t, err)
	assert.True(t, shares)

	require.NoError(t, c.Process.Kill())
	require.Error(t, c.Wait())
	_, err = h.Root()
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, _, err = h.Owner()
	assert.Error(t, err)
	_, err = Open(c.Process.Pid, started)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestRootOf(t *testing.T) {
	for table, want := range map[string]int{
		"         0     100000      65536\n":                              100000,
		"         0       1000          1\n         1     100000   65536": 1000,
		"         1     100000      65536\n         0       1000       1": 1000,
		"      1000       1000          1\n":                              -1,
		"         0 4294967295          1\n":                              -1,
		"":                                                                -1,
	} {
		id, ok := rootOf([]byte(table))
		assert.Equal(t, want >= 0, ok, table)
		if ok {
			assert.Equal(t, want, id)
		}
	}
	id, err := effective([]byte("Name:\tUid: 0 0 0 0\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\t8\n"), "Uid:")
	require.NoError(t, err)
	assert.Equal(t, 1001, id)
	_, err = effective(nil, "Uid:")
	assert.Error(t, err)
}

// What the host's service manager names is told from what anybody may.
func TestUnit(t *testing.T) {
	for cgroups, want := range map[string]string{
		"0::/system.slice/web.service\n":                                              "web",
		"0::/system.slice/system-db.slice/db@1.service/payload\n":                     "db@1",
		"0::/machine.slice/systemd-nspawn@box.service/payload/system.slice/x.service": "box",
		`0::/machine.slice/machine-my\x2dbox.scope`:                                   "my-box",
		"0::/machine.slice/machine-box.scope\n":                                       "box",
		"2:cpu:/x.service\n1:name=systemd:/system.slice/web.service\n":                "web",
		"4:memory:/system.slice/web.service\n":                                        "",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n":    "",
		"0::/system.slice/web\n":                                                      "",
		"0::/system.slice/user/web.service\n":                                         "",
		"0::/../system.slice/web.service\n":                                           "",
		"0::/docker/f00/system.slice/web.service\n":                                   "",
		"0::/\n": "", "": "", "nonsense\n": "",
	} {
		assert.Equal(t, want, unit([]byte(cgroups)), cgroups)
	}
}
