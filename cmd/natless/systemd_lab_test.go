package main_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// startSystemd boots this machine's systemd as that of the lab's host, over this
// machine's files, with natless's units and little else. $1 is natless, $2 the
// repository.
const startSystemd = `
mkdir -p /run/over/up /run/over/work /run/root
mount -t overlay overlay -o lowerdir=/,upperdir=/run/over/up,workdir=/run/over/work /run/root
install -D -m 755 "$1" /run/root/usr/local/bin/natless
install -D -m 644 -t /run/root/usr/local/lib/systemd/system "$2"/contrib/systemd/*
rm -rf /run/root/etc/systemd/system/*.wants /run/root/var/lib/natless /run/root/etc/natless
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
systemd-nspawn --directory=/run/root --register=no --keep-unit --capability=all --system-call-filter=bpf \
	--bind=/dev/net/tun --boot systemd.unit=basic.target >/run/console 2>&1 &
for i in $(seq 100); do
	sleep 0.1
	for leader in $(cat /proc/$!/task/$!/children); do echo $leader >/run/leader; done
	case $(nsenter -t "$(cat /run/leader)" -a systemctl is-system-running 2>/dev/null) in
	running | degraded) exit ;;
	esac
done
cat /run/console
exit 1
`

// systemd boots it, or skips the test where it does not start. in runs a script
// beside its services.
func (w *world) systemd(t *testing.T) (in func(script string) string) {
	t.Helper()
	repository, err := filepath.Abs("../..")
	require.NoError(t, err)
	if out, err := w.try(t, startSystemd, lab.Binary(t), repository); err != nil {
		testenv.Skip(t, "no systemd: it does not start here: "+out)
	}
	return func(script string) string {
		t.Helper()
		return w.sh(t, `nsenter -t "$(cat /run/leader)" -a sh -ec "$1"`, script)
	}
}

// everything is a configuration that takes all that the unit's confinement
// allows.
const everything = `
[translation]
pref64 = "` + lab.Pref64 + `"
[network]
firewall = "open"
[control]
group = "daemon"
[dns64]
listen = ["2001:db8:77::1"]
[ra]
interfaces = ["clients"]
`

// TestLabSystemd has a real systemd run natless, as the unit confines it.
func TestLabSystemd(t *testing.T) {
	requireMachine(t)
	if what := lacking("systemd-nspawn", "systemctl", "nsenter", "ip", "iptables", "ip6tables"); what != "" {
		testenv.Skip(t, "no systemd: "+what)
	}
	t.Parallel()
	w := machine(t)
	in := w.systemd(t)
	in(dockerStarts)
	in(`
ip netns add box
ip link add clients type veth peer name eth0 netns box
ip addr add 2001:db8:77::1/64 dev clients nodad
ip link set clients up
ip -n box link set lo up
ip -n box addr add 2001:db8:77::2/64 dev eth0 nodad
ip -n box link set eth0 up
ip -n box route add default via 2001:db8:77::1
mkdir /etc/natless
cat >/etc/natless/natless.toml <<END` + everything + "END")
	before := calm(t, w.Host)

	in("systemctl start natless && natless status --wait")
	assert.Equal(t, "daemon\n", in("stat -c %G /run/natless/natless.sock"))
	assert.Contains(t, in("natless status -o json"), `"confinement":{"capabilities":["CAP_NET_ADMIN","CAP_NET_BIND_SERVICE","CAP_NET_RAW"],"no_new_privs":true,"seccomp":"programs",`)
	in("natless attach box")
	download := func() {
		t.Helper()
		assert.Equal(t, downloaded, in("ip netns exec box sh -c '"+download+"'"))
	}
	download()
	assert.Contains(t, in("natless dns ipv4only.arpa"), lab.Pref64[:len(lab.Pref64)-4])

	// The unit leaves it to see processes, and so when one is gone.
	in("unshare -n sleep 600 >/dev/null 2>&1 & echo $! >/run/sleeper; sleep 0.5; natless attach --link $(cat /run/sleeper)")
	assert.Contains(t, in("natless ps -o json"), `"seen":"process `)
	in("kill $(cat /run/sleeper)")
	until(t, "detached", func() bool { return !strings.Contains(in("natless ps -o json"), `"seen":"process `) })

	in(`printf '[[map]]\nipv4 = "` + lab.MappedIPv4 + `"\nipv6 = "` + lab.MappedIPv6 + `"\n' >>/etc/natless/natless.toml; systemctl reload natless`)
	assert.Contains(t, in("natless map ls"), lab.MappedIPv4)
	in("echo nonsense >>/etc/natless/natless.toml; ! systemctl reload natless")
	until(t, "saying why", func() bool { return strings.Contains(in("journalctl -u natless"), "/etc/natless/natless.toml:14: ") })
	// One line for one event, at its priority, with no time beside the journal's own.
	entries := in("journalctl -u natless -o json --output-fields=MESSAGE,PRIORITY,_PID")
	assert.Regexp(t, `(?m)"PRIORITY":"6"[^\n]*"MESSAGE":"ready: pref64|"MESSAGE":"ready: pref64[^\n]*"PRIORITY":"6"`, entries)
	assert.NotContains(t, entries, "level=")
	assert.NotContains(t, entries, "time=")
	assert.Equal(t, 1, strings.Count(entries, "natless.toml:14: "), entries)
	assert.Equal(t, 1, strings.Count(entries, "map added: "), entries)
	in("sed -i /nonsense/d /etc/natless/natless.toml; natless status")
	assert.Equal(t, "ok\n", in("systemctl show -P StatusText natless"))
	until(t, "degraded", func() bool {
		in("ip link set clients down")
		return strings.HasPrefix(in("sleep 0.5; systemctl show -P StatusText natless"), "degraded: no router advertisements on clients")
	})
	in("ip link set clients up; ip -6 addr replace 2001:db8:77::1/64 dev clients nodad")

	// A wrong configuration ends it, for good and at once: nothing is tried again, the
	// last line says why, and nobody waits in vain.
	in("systemctl stop natless; echo nonsense >>/etc/natless/natless.toml; ! systemctl start natless")
	assert.Equal(t, "exit-code\n0\nfailed\n", in("systemctl show -P Result -P NRestarts -P ActiveState natless"))
	assert.Equal(t, "2\n", in("systemctl show -P ExecMainStatus natless"))
	assert.Contains(t, in("! natless status --wait=1h 2>&1"), "natless.service has failed: journalctl -u natless.service says why")
	in("sed -i /nonsense/d /etc/natless/natless.toml; systemctl reset-failed natless; systemctl start natless && natless status --wait")

	in("systemctl kill -s KILL natless")
	restarts := func(n int) {
		t.Helper()
		until(t, "restarted", func() bool {
			return in("systemctl show -P NRestarts -P ActiveState natless") == fmt.Sprintf("%d\nactive\n", n)
		})
		assert.Contains(t, in("natless ps"), "box")
		download()
	}
	restarts(1)

	// The watchdog hears of it in time, and makes an end of one that hangs.
	in(`mkdir -p /etc/systemd/system/natless.service.d
printf '[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s\n' >/etc/systemd/system/natless.service.d/watchdog.conf
systemctl daemon-reload; systemctl restart natless; sleep 3`)
	restarts(0)
	in("systemctl kill -s STOP natless")
	restarts(1)

	// An instance in another namespace, beside it.
	in(`ip netns add other
mkdir -p /etc/systemd/system/natless@other.service.d
printf '[Service]\nNetworkNamespacePath=/run/netns/other\nEnvironment=NATLESS_SOCKET=/run/natless/other.sock\n' >/etc/systemd/system/natless@other.service.d/own.conf
echo >/etc/natless/other.toml
systemctl daemon-reload; systemctl start natless@other; systemctl reload natless@other`)
	assert.Contains(t, in("NATLESS_SOCKET=/run/natless/other.sock natless status"), "/var/lib/natless/other")
	in("systemctl stop natless@other; ip netns exec other natless down; ip netns delete other")
	download()

	in("systemctl stop natless && natless down")
	becomes(t, w.Host, before, "after down")
	assert.Empty(t, in("find /run/natless 2>/dev/null || true"))
}
