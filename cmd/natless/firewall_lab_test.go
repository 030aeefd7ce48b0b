package main_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// dockerStarts is what dockerd 28 does to the filter table when it starts, with
// its default bridge and one container that has a port published.
const dockerStarts = `
for I in iptables ip6tables; do
	$I -N DOCKER; $I -N DOCKER-BRIDGE; $I -N DOCKER-CT; $I -N DOCKER-FORWARD
	$I -N DOCKER-ISOLATION-STAGE-1; $I -N DOCKER-ISOLATION-STAGE-2
	$I -nL DOCKER-USER >/dev/null 2>&1 || $I -N DOCKER-USER
	$I -P FORWARD DROP
	$I -I FORWARD -j DOCKER-FORWARD
	$I -I FORWARD -j DOCKER-USER
	$I -A DOCKER ! -i docker0 -o docker0 -j DROP
	$I -A DOCKER-BRIDGE -o docker0 -j DOCKER
	$I -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
	$I -A DOCKER-FORWARD -j DOCKER-CT
	$I -A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
	$I -A DOCKER-FORWARD -j DOCKER-BRIDGE
	$I -A DOCKER-FORWARD -i docker0 -j ACCEPT
	$I -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
	$I -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
done
iptables -I DOCKER -d 192.0.2.130/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
`

// dockerWorks lists Docker's chains as it does, and publishes another port and
// takes it back.
const dockerWorks = `
for I in iptables ip6tables; do
	for c in DOCKER DOCKER-BRIDGE DOCKER-CT DOCKER-FORWARD DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do
		$I -nvL $c
	done
	$I -C FORWARD -j DOCKER-USER
	$I -C DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
done
iptables -A DOCKER -d 192.0.2.131/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 443 -j ACCEPT
iptables -D DOCKER -d 192.0.2.131/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 443 -j ACCEPT
`

// at runs a shell script in a node.
func at(t *testing.T, n *lab.Node, script string) string {
	t.Helper()
	out, err := n.Command(t.Context(), "sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

var counters = regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]`)

// saved are the host's rules as iptables has them.
func saved(t *testing.T, w *world) string {
	t.Helper()
	return counters.ReplaceAllString(at(t, w.Host, "iptables-save; ip6tables-save"), "")
}

// reaches asks for what the client gets from the server in this time.
func reaches(t *testing.T, w *world, patience time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := w.client.Dial(ctx, "tcp", server6+":8080")
	if err != nil {
		return err
	}
	return conn.Close()
}

// shut is longer than an open way takes, and short: it is waited for in vain.
const shut = 2 * time.Second

func needsTables(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"iptables", "ip6tables", "iptables-save"} {
		if _, err := exec.LookPath(tool); err != nil {
			testenv.Skip(t, tool+" is not installed")
		}
	}
}

// Docker drops what is forwarded: nothing passes, check and status name it,
// --firewall opens it, and the end closes it, whatever the end is.
func TestLabFirewall(t *testing.T) {
	t.Parallel()
	needsTables(t)
	s := setup{flags: []string{"--pref64", lab.Pref64}}
	open := setup{flags: append([]string{"--firewall"}, s.flags...)}
	w := build(t, s)
	at(t, w.Host, dockerStarts)
	docker, host := saved(t, w), snapshot(t, w.Host)
	const opens = "iptables -I DOCKER-USER -i natless0 -j ACCEPT && iptables -I DOCKER-USER -o natless0 -j ACCEPT"

	w.daemon = launch(t, w.Host, s)
	until(t, "ready", func() bool { return strings.Contains(w.daemon.Output(), "ready: ") })
	assert.Error(t, reaches(t, w, shut))
	check, err := w.daemon.Query(t.Context(), "check", "--pref64", lab.Pref64)
	assert.ErrorContains(t, err, "exit status 1", "as status does")
	assert.Contains(t, check, "Docker drops forwarded packets (ip filter FORWARD); this lets natless's through: "+opens)
	assert.Contains(t, check, "Docker drops forwarded packets (ip6 filter FORWARD); this lets natless's through: ip6tables -I DOCKER-USER")
	assert.Contains(t, w.daemon.Output(), opens)
	status, err := w.daemon.Query(t.Context(), "status")
	assert.ErrorContains(t, err, "exit status 1")
	assert.Regexp(t, "^degraded: Docker drops forwarded packets", status)
	assert.Contains(t, status, opens)
	require.NoError(t, w.daemon.Stop())
	assert.Equal(t, docker, saved(t, w))

	assert.Contains(t, natless(t, w, "check", "--firewall", "--pref64", lab.Pref64), "open iptables DOCKER-USER: "+opens)
	assert.Equal(t, docker, saved(t, w))
	w.run(t, open)
	assert.NoError(t, reaches(t, w, 20*time.Second))
	w.query(t, "status") // not degraded
	assert.Contains(t, w.daemon.Output(), "opened iptables DOCKER-USER, ip6tables DOCKER-USER")
	assert.Contains(t, saved(t, w), `-A DOCKER-USER -i natless0 -m comment --comment "natless natless0" -j ACCEPT`)
	at(t, w.Host, dockerWorks)
	require.NoError(t, w.daemon.Stop())
	assert.Equal(t, docker, saved(t, w))
	unchanged(t, w.Host, host, "after --firewall")

	w.run(t, open)
	require.NoError(t, reaches(t, w, 20*time.Second))
	require.NoError(t, w.daemon.Kill())
	assert.NotEqual(t, docker, saved(t, w))
	down := natless(t, w, "down")
	assert.Contains(t, down, "closed iptables DOCKER-USER for natless0 again")
	assert.Equal(t, docker, saved(t, w))
	unchanged(t, w.Host, host, "after kill -9 and down")
	at(t, w.Host, dockerWorks)
}

// natless runs another command in the world's host.
func natless(t *testing.T, w *world, args ...string) string {
	t.Helper()
	out, err := w.Host.Command(t.Context(), lab.Binary(t), args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// Docker starts after natless, and starts again.
func TestLabDockerStartsLater(t *testing.T) {
	t.Parallel()
	needsTables(t)
	w := start(t, setup{flags: []string{"--firewall", "--pref64", lab.Pref64}})
	require.NoError(t, reaches(t, w, 20*time.Second))
	at(t, w.Host, dockerStarts)
	until(t, "open again", func() bool { return reaches(t, w, shut) == nil })
	w.query(t, "status")
	at(t, w.Host, "for I in iptables ip6tables; do $I -F; $I -X; $I -P FORWARD ACCEPT; done\n"+dockerStarts)
	until(t, "open again", func() bool {
		return reaches(t, w, shut) == nil && strings.Count(saved(t, w), `"natless natless0"`) == 4
	})
	require.NoError(t, w.daemon.Stop())
	assert.NotContains(t, saved(t, w), "natless")
}

// Without the command that opens it nothing is done.
func TestLabFirewallWithoutTools(t *testing.T) {
	t.Parallel()
	needsTables(t)
	w := build(t, setup{})
	at(t, w.Host, dockerStarts)
	before := snapshot(t, w.Host)
	bin := t.TempDir()
	for _, tool := range []string{"iptables", "iptables-nft", "ip6tables", "ip6tables-nft"} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, tool), []byte("#!/bin/sh\necho the table is locked >&2\nexit 4\n"), 0o755))
	}
	socket := filepath.Join(bin, "natless.sock")
	out, err := w.Host.Command(t.Context(), "sh", "-c", fmt.Sprintf("PATH=%s:$PATH exec %s run --firewall --socket %s --state-dir ''",
		bin, lab.Binary(t), socket)).CombinedOutput()
	assert.Error(t, err)
	assert.Contains(t, string(out), "open iptables DOCKER-USER")
	assert.Contains(t, string(out), "the table is locked")
	unchanged(t, w.Host, before, "after a start that failed")
}

// ufw and firewalld drop what is forwarded, each with files of its own and the
// programs that Debian has of them.
func TestLabFirewallsWithTheirTools(t *testing.T) {
	for name, c := range map[string]struct {
		tools                 []string
		files, begin, enables string // in shell
		list                  string
		named, opened         string
	}{
		"ufw": {
			[]string{"ufw"}, "/etc/ufw /etc/default", "", "ufw --force enable; ufw reload",
			"ufw show added; iptables-save; ip6tables-save",
			"ufw drops forwarded packets (ip6 filter FORWARD); this lets natless's through: ufw route allow in on natless0 && ufw route allow out on natless0",
			"ufw route allow out on natless0 comment 'natless natless0'",
		},
		"firewalld": {
			[]string{"firewalld", "firewall-cmd", "dbus-daemon"}, "/etc/firewalld",
			"mkdir /run/dbus; dbus-daemon --system --nofork --nopidfile & until [ -S /run/dbus/system_bus_socket ]; do sleep 0.1; done; exec firewalld --nofork --nopid",
			// As Podman has it for its networks.
			"firewall-cmd --zone=trusted --add-source=2001:db8:1::/64",
			"firewall-cmd --list-all-zones; nft list table inet firewalld | sort",
			"firewalld drops forwarded packets (inet firewalld filter_FORWARD, coming in over natless0); this lets natless's through: " +
				"firewall-cmd --zone=trusted --add-interface=natless0",
			"interfaces: natless0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if lab.Inside() {
				testenv.Skip(t, name+" has to be root's")
			}
			for _, tool := range c.tools {
				if _, err := exec.LookPath(tool); err != nil {
					testenv.Skip(t, tool+" is not installed")
				}
			}
			w := build(t, setup{})
			in := withFiles(t, w.Host, c.files, c.begin)
			until(t, c.enables, func() bool {
				return w.Host.Command(t.Context(), in, "sh", "-ec", c.enables).Run() == nil
			})
			list := func() string {
				out, err := w.Host.Command(t.Context(), in, "sh", "-ec", c.list).CombinedOutput()
				require.NoError(t, err, "%s", out)
				return counters.ReplaceAllString(string(out), "")
			}
			command := func(args ...string) string {
				if args[0] != "sh" {
					args = append([]string{lab.Binary(t)}, args...)
				}
				out, err := w.Host.Command(t.Context(), in, args...).CombinedOutput()
				require.NoError(t, err, "%s", out)
				return string(out)
			}
			run := func(flags ...string) *lab.Daemon {
				wrapper := filepath.Join(t.TempDir(), "natless")
				require.NoError(t, os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+in+" "+lab.Binary(t)+" \"$@\"\n"), 0o755))
				d, err := w.Host.Natless(wrapper, own, append(flags, "--pref64", lab.Pref64)...)
				require.NoError(t, err)
				require.NoError(t, d.Start())
				until(t, "ready", func() bool { return strings.Contains(d.Output(), "ready: ") })
				return d
			}
			before := list()
			assert.Contains(t, command("sh", "-c", `! "$0" check --pref64 `+lab.Pref64, lab.Binary(t)), c.named)
			d := run()
			assert.Contains(t, d.Output(), c.named)
			assert.Error(t, reaches(t, w, shut))
			require.NoError(t, d.Stop())

			d = run("--firewall")
			assert.NoError(t, reaches(t, w, 20*time.Second), d.Output())
			assert.Contains(t, list(), c.opened)
			require.NoError(t, d.Stop())
			assert.Equal(t, before, list())

			d = run("--firewall")
			require.NoError(t, d.Kill())
			command("down")
			assert.Equal(t, before, list())
		})
	}
}

// withFiles is a command that runs others in a node where these files are
// copies, with a /run of their own, and where a program runs beside.
func withFiles(t *testing.T, n *lab.Node, files, begin string) string {
	t.Helper()
	dir := t.TempDir()
	script := "mount -t tmpfs tmpfs /run\n"
	for f := range strings.FieldsSeq(files) {
		copied := filepath.Join(dir, filepath.Base(f))
		script += fmt.Sprintf("cp -a %s %s; mount --bind %s %s\n", f, copied, copied, f)
	}
	if begin == "" {
		begin = "exec sleep 600"
	}
	ready := filepath.Join(dir, "ready")
	c := n.Command(context.Background(), "unshare", "-m", "sh", "-ec", script+"touch "+ready+"\n"+begin)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = unix.Kill(-c.Process.Pid, unix.SIGKILL) // the group, with what begin has started
		_ = c.Wait()
	})
	until(t, "files of its own", func() bool { _, err := os.Stat(ready); return err == nil })
	in := filepath.Join(dir, "in")
	require.NoError(t, os.WriteFile(in, fmt.Appendf(nil, "#!/bin/sh\nexec nsenter -t %d -m -- \"$@\"\n", c.Process.Pid), 0o755))
	return in
}
