package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/confine"
	"github.com/natless/natless/internal/hostnet"
)

// confineSelf takes from natless what it needed to set itself up. file is its
// configuration, which a reload reads again. programs: those of firewalls are
// run, now or at the end.
func confineSelf(c *config.Config, file string, programs bool) confine.State {
	_, _ = time.Now().Zone() // Go reads the time zone once
	n := confine.Needs{
		// Links, routes, rules and sysctls are followed as long as natless runs; a
		// reload may bring router advertisements, which take raw sockets, and name
		// servers at port 53.
		Capabilities: []cap.Value{cap.NET_ADMIN, cap.NET_RAW, cap.NET_BIND_SERVICE},
		Programs:     programs,
		Files:        files(c, file),
	}
	overriding, err := confine.Overriding([]string{file}, existing(n.Files.Write))
	n.Capabilities = append(n.Capabilities, overriding...)
	pinned := confine.Pin(procNet)
	s := confine.Apply(n)
	for _, err := range []error{err, pinned} {
		if err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	}
	return s
}

const (
	procNet    = "/proc/sys/net"
	resolvConf = "/etc/resolv.conf"
)

// files are those that natless opens while it runs. Programs write their
// configuration anew under another name and then rename it, so that its
// directory counts.
func files(c *config.Config, file string) confine.Files {
	f := confine.Files{
		Read: append(confine.Around(file),
			"/proc", // what has become of processes; others' secrets take rights that natless gave up
			"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/machine-id", "/var/lib/dbus/machine-id", resolvConf),
		Write:  []string{hostnet.RunDir()},
		Change: []string{procNet, "/dev/null"},
		Remove: []string{filepath.Dir(c.Control.Socket)},
		Empty:  []string{filepath.Dir(hostnet.RunDir())},
	}
	// Where DNS64 follows a resolv.conf that is no symbolic link into /run, all of
	// /etc has to be readable for it: whatever writes it anew gives it another inode.
	around := confine.Around(resolvConf)
	if followed := len(c.DNS64.Listen) > 0 && len(c.DNS64.Upstreams) == 0; followed && len(around) == 1 {
		f.Read = append(f.Read, around...)
	}
	f.Read = append(f.Read, around[1:]...)
	if dir := c.State.Dir; dir != "" {
		f.Write = append(f.Write, confine.Around(filepath.Join(dir, "natless.db"))...)
	}
	f.Write = append(f.Write, "/etc/netns") // what attach put there for a namespace that is gone
	return f
}

// existing are those that are there.
func existing(paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(path string) bool {
		_, err := filepath.EvalSymlinks(path)
		return err != nil
	})
}

// beyondConfinement says of an error what natless's own confinement has to do
// with it.
func beyondConfinement(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w: natless at work reads only what is in the directories that were there when it started: if root may read this, restart natless", err)
}

// errPrograms is for a reload that wants what natless has given up.
var errPrograms = errors.New(`needs a restart: network.firewall: "open" runs programs of the host, and natless gave up the right to at its start`)
