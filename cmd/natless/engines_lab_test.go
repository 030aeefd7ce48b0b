package main_test

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// image is the only one that an engine in a lab has. It needs no registry: it
// is made of the machine's own busybox.
const image = "docker.io/library/busybox"

// importImage reads the path of a busybox and the engine's command. Where the
// engine is started, /run is empty.
const importImage = `
mkdir -p /run/image/bin
for name in $("$1" --list); do ln -s busybox /run/image/bin/$name; done
cp --remove-destination "$1" /run/image/bin/busybox
tar -C /run/image -c . | $2 import - ` + image + `
rm -r /run/image
`

// startPodman makes Podman work as anywhere, but without systemd, and within
// limits that it can set without CAP_SYS_RESOURCE.
const startPodman = `
mount -t tmpfs tmpfs /etc/containers
cat >/etc/containers/containers.conf <<-END
	[engine]
	runtime = "runc"
	cgroup_manager = "cgroupfs"
	events_logger = "none"
	[containers]
	default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
	[network]
	network_backend = "netavark"
END
cat >/etc/containers/storage.conf <<-END
	[storage]
	driver = "vfs"
	graphroot = "/var/lib/containers/storage"
	runroot = "/run/containers/storage"
END
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
` + importImage

// startDocker starts an engine and waits for it. It does for IPv6 what newer
// ones do without being asked.
const startDocker = `
dockerd --experimental --ip6tables --storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs \
	--default-ulimit nofile=1024:1024 --default-ulimit nproc=4096:4096 >/run/dockerd.log 2>&1 &
tries=0
until docker info >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 200 ] || { cat /run/dockerd.log; exit 1; }
	sleep 0.1
done
` + importImage

// requireMachine skips the test where no node can be a machine of its own.
func requireMachine(t *testing.T) {
	t.Helper()
	lab.Require(t)
	if lab.Inside() {
		testenv.Skip(t, "no machines of their own: it takes root")
	}
}

// requirePodman skips the test where no Podman can be had.
func requirePodman(t *testing.T) {
	t.Helper()
	requireMachine(t)
	if why := lacking("podman", "runc", "iptables"); why != "" {
		testenv.Skip(t, "no Podman: "+why+" (Debian: apt-get install --no-install-recommends podman runc netavark iptables busybox-static)")
	}
}

// requireDocker skips the test where no engine of Docker's can be had.
func requireDocker(t *testing.T) {
	t.Helper()
	requireMachine(t)
	if why := lacking("dockerd", "docker", "iptables"); why != "" {
		testenv.SkipAnyway(t, "no Docker: "+why+" (Debian: apt-get install --no-install-recommends docker.io iptables busybox-static)")
	}
}

// lacking says what is missing for an engine, or nothing.
func lacking(programs ...string) string {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return err.Error()
		}
	}
	if _, err := busybox(); err != nil {
		return err.Error()
	}
	return ""
}

// busybox is the path of a busybox that needs no library: the image has none.
func busybox() (path string, err error) {
	if path, err = exec.LookPath("busybox"); err != nil {
		return "", err
	}
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if f.Section(".interp") != nil {
		return "", fmt.Errorf("%s is not static", path)
	}
	return path, nil
}

// machine builds a network whose host is a machine of its own, with no clients
// but its containers, and with the servers that build starts.
func machine(t *testing.T) *world {
	t.Helper()
	lab.Binary(t)
	n, err := lab.Build(0)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	require.NoError(t, n.Host.Machine())
	serve(t, n.Server, lab.ServerIPv4)
	return &world{Network: n}
}

// engine starts an engine in the host by its script.
func (w *world) engine(t *testing.T, script, command string) {
	t.Helper()
	program, err := busybox()
	require.NoError(t, err)
	out, err := w.try(t, script, program, command)
	if err != nil && command == "docker" { // not every machine lets its engine run in a lab
		lines := strings.Split(strings.TrimSpace(out), "\n")
		testenv.SkipAnyway(t, "no Docker: its engine does not start here: "+lines[len(lines)-1])
	}
	require.NoError(t, err, "%s\n%s", script, out)
}

// sh runs a script in the host, where natless is the one under test, and finds
// the daemon if there is one. It returns what the script wrote.
func (w *world) sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := w.try(t, script, args...)
	require.NoError(t, err, "%s\n%s", script, out)
	return out
}

// try is sh for a script that may fail.
func (w *world) try(t *testing.T, script string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := w.Host.Command(ctx, "sh", append([]string{"-ec", script, "sh"}, args...)...)
	c.Env = append(os.Environ(), "PATH="+filepath.Dir(lab.Binary(t))+":"+os.Getenv("PATH"))
	if w.daemon != nil {
		c.Env = append(c.Env, "NATLESS_SOCKET="+w.daemon.Socket)
	}
	out, err := c.CombinedOutput()
	return string(out), err
}
