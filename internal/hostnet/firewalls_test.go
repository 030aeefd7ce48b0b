package hostnet

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
)

// openPlan opens the firewalls of others.
func openPlan() Plan {
	p := testPlan()
	p.Open = true
	return p
}

// shell runs a script of the host's administrator, or of another program.
func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)
	return string(out)
}

// needs skips a test, with the reason, where a program is not installed.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := findTool(p); err != nil {
			testenv.Skip(t, err.Error())
		}
	}
}

// needsLegacy skips a test where the kernel lacks the older iptables.
func needsLegacy(t *testing.T) {
	t.Helper()
	needs(t, "iptables-legacy", "ip6tables-legacy")
	for _, command := range []string{"iptables-legacy", "ip6tables-legacy"} {
		if out, err := exec.Command(command, "-nL").CombinedOutput(); err != nil {
			testenv.Skip(t, "the kernel has no older iptables: "+string(out))
		}
	}
}

// dockerRules are the filter rules that dockerd 28 makes, but for those of
// containers. I is iptables or one of its kin.
const dockerRules = `
$I -N DOCKER; $I -N DOCKER-BRIDGE; $I -N DOCKER-CT; $I -N DOCKER-FORWARD
$I -N DOCKER-ISOLATION-STAGE-1; $I -N DOCKER-ISOLATION-STAGE-2; $I -N DOCKER-USER
$I -P FORWARD DROP
$I -A FORWARD -j DOCKER-USER
$I -A FORWARD -j DOCKER-FORWARD
$I -A DOCKER ! -i docker0 -o docker0 -j DROP
$I -A DOCKER-BRIDGE -o docker0 -j DOCKER
$I -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
$I -A DOCKER-FORWARD -j DOCKER-CT
$I -A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
$I -A DOCKER-FORWARD -j DOCKER-BRIDGE
$I -A DOCKER-FORWARD -i docker0 -j ACCEPT
$I -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
$I -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
`

// saved is what iptables-save shows of both families, without its own remarks
// and counters.
func saved(t *testing.T, suffix string) []string {
	t.Helper()
	text := shell(t, "iptables"+suffix+"-save; ip6tables"+suffix+"-save")
	return slices.DeleteFunc(strings.Split(counters.ReplaceAllString(text, ""), "\n"), func(l string) bool { return strings.HasPrefix(l, "#") })
}

var counters = regexp.MustCompile(` \[\d+:\d+\]`)

// Each firewall that has tools of its own is opened with them and closed
// again, and its rules are then as they were.
func TestIptablesAreOpenedAndClosed(t *testing.T) {
	for name, c := range map[string]struct{ suffix, rules, chain string }{
		"docker nft":    {"-nft", dockerRules, "DOCKER-USER"},
		"docker legacy": {"-legacy", dockerRules, "DOCKER-USER"},
		"plain nft":     {"-nft", "$I -P FORWARD DROP", "FORWARD"},
		"plain legacy":  {"-legacy", "$I -A FORWARD -i eth7 -j ACCEPT; $I -A FORWARD -j REJECT", "FORWARD"},
	} {
		t.Run(name, func(t *testing.T) {
			testHost(t)
			needs(t, "iptables"+c.suffix, "ip6tables"+c.suffix)
			if c.suffix == "-legacy" {
				needsLegacy(t)
			}
			for _, command := range []string{"iptables", "ip6tables"} {
				shell(t, "I="+command+c.suffix+"\n"+c.rules)
			}
			before := saved(t, c.suffix)

			found, err := managed(testPlan()).Firewalls()
			require.NoError(t, err)
			require.Len(t, found, 2, found)

			h, shut := start(t, openPlan())
			found, err = h.Firewalls()
			require.NoError(t, err)
			require.Empty(t, found)
			opened := saved(t, c.suffix)
			for _, way := range []string{"-i", "-o"} {
				rule := "-A " + c.chain + " " + way + ` natless0 -m comment --comment "natless natless0" -j ACCEPT`
				require.Len(t, slices.DeleteFunc(slices.Clone(opened), func(l string) bool { return l != rule }), 2, opened)
			}
			again, err := Check(openPlan())
			require.NoError(t, err)
			require.Empty(t, again.Firewalls)

			err = h.Close()
			require.NoError(t, err)
			shut()
			require.Equal(t, before, saved(t, c.suffix))

			h, shut = start(t, openPlan())
			kill(h, shut)
			require.NotEqual(t, before, saved(t, c.suffix))
			require.NoError(t, os.RemoveAll(runDir)) // the comment alone must do
			lines, err := Down()
			require.NoError(t, err)
			require.Contains(t, strings.Join(lines, "\n"), "closed iptables")
			require.Equal(t, before, saved(t, c.suffix))
		})
	}
}

// What somebody else opened stays his, and nothing is named.
func TestOpenFirewallsAreLeftAlone(t *testing.T) {
	testHost(t)
	needs(t, "iptables-nft")
	shell(t, "I=iptables-nft\n"+dockerRules)
	for _, f := range mustFirewalls(t) {
		shell(t, strings.ReplaceAll(f.Opens, "iptables ", "iptables-nft "))
	}
	before := saved(t, "-nft")
	require.Empty(t, mustFirewalls(t))
	h, shut := start(t, openPlan())
	require.Equal(t, before, saved(t, "-nft"))
	err := h.Close()
	require.NoError(t, err)
	shut()
	require.Equal(t, before, saved(t, "-nft"))
}

func mustFirewalls(t *testing.T) []Firewall {
	t.Helper()
	found, err := Firewalls("natless0")
	require.NoError(t, err)
	return found
}

// A Docker that starts, or empties its chains, while natless runs.
func TestWatchOpensWhatComesLater(t *testing.T) {
	testHost(t)
	needs(t, "iptables-nft", "ip6tables-nft")
	open, shut := start(t, openPlan())
	defer shut()
	watch(t, open)
	for _, command := range []string{"iptables-nft", "ip6tables-nft"} {
		shell(t, "I="+command+"\n"+dockerRules)
	}
	isOpen := func() bool { return len(mustFirewalls(t)) == 0 }
	require.True(t, within(longEnough, isOpen))
	shell(t, "iptables-nft -F DOCKER-USER")
	require.True(t, within(longEnough, isOpen))

	// Its plan changes: it closes what it opened.
	require.NoError(t, open.Update(testPlan()))
	require.NotEmpty(t, mustFirewalls(t))
	require.NotContains(t, strings.Join(saved(t, "-nft"), "\n"), "natless")
	require.NoError(t, open.Update(openPlan()))
	require.Empty(t, mustFirewalls(t))
	err := open.Close()
	require.NoError(t, err)
}

func TestWatchTellsOfFirewalls(t *testing.T) {
	testHost(t)
	h, shut := start(t, testPlan())
	defer shut()
	w := watch(t, h)
	nft(t, `table inet mine { chain fw { type filter hook forward priority 0; policy drop; }; }`)
	w.says(t, Blocked, "a firewall drops forwarded packets (inet mine fw)")
	err := h.Close()
	require.NoError(t, err)
}

// Somebody has emptied the ruleset: nothing is left to close, and looking for
// it makes nothing.
func TestFirewallsThatAreGone(t *testing.T) {
	testHost(t)
	needs(t, "iptables-nft")
	before := snapshot(t)
	shell(t, "I=iptables-nft\n"+dockerRules)
	h, shut := start(t, openPlan())
	nft(t, "delete table ip filter")
	err := h.Close()
	require.NoError(t, err)
	shut()
	require.Empty(t, difference(before, snapshot(t)))
}

// The next run takes a rule back that it does not want any more.
func TestNextRunClosesWhatAKilledRunOpened(t *testing.T) {
	testHost(t)
	needs(t, "iptables-nft")
	shell(t, "I=iptables-nft\n"+dockerRules)
	before := saved(t, "-nft")
	h, shut := start(t, openPlan())
	kill(h, shut)
	h, shut = start(t, testPlan())
	defer shut()
	require.Equal(t, before, saved(t, "-nft"))
	err := h.Close()
	require.NoError(t, err)
}

// A ruleset of the operator's own in nftables is named and not touched.
func TestOwnRulesetsAreOnlyNamed(t *testing.T) {
	testHost(t)
	nft(t, `table inet mine { chain fw { type filter hook forward priority 0; policy drop; }; }`)
	before := nft(t, "list table inet mine")
	h, shut := start(t, openPlan())
	defer shut()
	require.Equal(t, before, nft(t, "list table inet mine"))
	require.Len(t, mustFirewalls(t), 1)
	nft(t, strings.TrimSuffix(strings.TrimPrefix(mustFirewalls(t)[0].Opens, "nft '"), "'"))
	require.Empty(t, mustFirewalls(t))
	err := h.Close()
	require.NoError(t, err)
}

// Where a rule cannot be added natless does not start, and leaves nothing.
func TestFirewallsThatCannotBeOpened(t *testing.T) {
	testHost(t)
	needs(t, "iptables-nft")
	shell(t, "I=iptables-nft\n"+dockerRules)
	before := snapshot(t)

	// What comes first drops all: ours would be in vain.
	shell(t, "iptables-nft -I FORWARD -j DROP")
	h, err := Prepare(openPlan())
	require.NoError(t, err)
	index, shut := openTUN(t, "natless0", false)
	require.ErrorContains(t, h.Attach(index), "open iptables DOCKER-USER: iptables -I DOCKER-USER -i natless0 -j ACCEPT && "+
		"iptables -I DOCKER-USER -o natless0 -j ACCEPT: the rules are in place, and packets are still dropped before them")
	err = h.Close()
	require.NoError(t, err)
	shut()
	shell(t, "iptables-nft -D FORWARD -j DROP")
	require.Empty(t, difference(before, snapshot(t)))

	// The command fails, or is not there at all.
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "iptables-nft"), []byte("#!/bin/sh\necho not today >&2; exit 4\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	h, err = Prepare(openPlan())
	require.NoError(t, err)
	index, shut = openTUN(t, "natless0", false)
	require.ErrorContains(t, h.Attach(index), "exit status 4: not today")
	err = h.Close()
	require.NoError(t, err)
	shut()
	t.Setenv("PATH", strings.TrimPrefix(os.Getenv("PATH"), bin+":"))
	require.Empty(t, difference(before, snapshot(t)))

	old := toolDirs
	toolDirs = nil
	t.Cleanup(func() { toolDirs = old })
	t.Setenv("PATH", t.TempDir())
	_, err = Prepare(openPlan())
	require.ErrorContains(t, err, "opening iptables DOCKER-USER, which drops forwarded packets: the command iptables is not there")
	r, err := Check(openPlan())
	require.NoError(t, err)
	require.Contains(t, strings.Join(r.Conflicts, "\n"), "the command iptables is not there")
}

// privateFiles gives the test's thread copies of files and folders, and a /run
// of its own.
func privateFiles(t *testing.T, paths ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range paths {
		shell(t, "cp -a "+p+" "+dir)
	}
	require.NoError(t, unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS)) // of this thread, which ends with the test
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, p := range paths {
		require.NoError(t, unix.Mount(filepath.Join(dir, filepath.Base(p)), p, "", unix.MS_BIND, ""))
	}
	require.NoError(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	runDir = "/run/natless"
}

func TestUFWIsOpenedAndClosed(t *testing.T) {
	testHost(t)
	needs(t, "ufw", "iptables", "ip6tables")
	privateFiles(t, "/etc/ufw", "/etc/default")
	shell(t, "ufw --force enable; ufw route allow out on natless0; ufw reload")
	before, rules := saved(t, ""), shell(t, "ufw show added")
	found := mustFirewalls(t)
	require.Len(t, found, 2)
	require.Equal(t, "ufw route allow in on natless0 && ufw route allow out on natless0", found[0].Opens)

	h, shut := start(t, openPlan())
	require.Empty(t, mustFirewalls(t))
	require.Contains(t, shell(t, "ufw show added"), "ufw route allow in on natless0 comment 'natless natless0'\n")
	require.Contains(t, shell(t, "ufw show added"), "ufw route allow out on natless0\n", "the administrator's own rule")
	shell(t, "ufw reload; ufw status")
	require.Empty(t, mustFirewalls(t))
	err := h.Close()
	require.NoError(t, err)
	shut()
	require.Equal(t, before, saved(t, ""))
	require.Equal(t, rules, shell(t, "ufw show added"))

	shell(t, "ufw route allow out on natless0 comment 'my own'")
	rules = shell(t, "ufw show added")
	h, shut = start(t, openPlan())
	kill(h, shut)
	require.NoError(t, os.RemoveAll(runDir)) // as after the next boot, with the rules that ufw keeps
	_, err = Down()
	require.NoError(t, err)
	require.Equal(t, before, saved(t, ""))
	require.Equal(t, rules, shell(t, "ufw show added"))
}

// firewalld is real, on a bus of its own.
func TestFirewalldIsOpenedAndClosed(t *testing.T) {
	testHost(t)
	needs(t, "firewalld", "firewall-cmd", "dbus-daemon")
	privateFiles(t, "/etc/firewalld")
	shell(t, "mkdir -p /run/dbus")
	background(t, "dbus-daemon", "--system", "--nofork", "--nopidfile")
	require.True(t, within(longEnough, func() bool { _, err := os.Stat("/run/dbus/system_bus_socket"); return err == nil }))
	background(t, "firewalld", "--nofork", "--nopid")
	require.True(t, within(longEnough, func() bool { return exec.Command("firewall-cmd", "--state").Run() == nil }))

	found := mustFirewalls(t)
	require.Len(t, found, 2, found)
	require.Equal(t, "firewall-cmd --zone=trusted --add-interface=natless0", found[0].Opens)
	require.Equal(t, "firewall-cmd --zone=trusted --add-interface=clients", found[1].Opens)
	// As the zones of Podman's networks, whose sources are trusted.
	shell(t, "firewall-cmd --zone=trusted --add-source=2001:db8:1::/64")
	require.Len(t, mustFirewalls(t), 1)
	before := nft(t, "list table inet firewalld")

	h, shut := start(t, openPlan())
	require.Empty(t, mustFirewalls(t))
	require.Equal(t, "trusted\n", shell(t, "firewall-cmd --get-zone-of-interface=natless0"))
	err := h.Close()
	require.NoError(t, err)
	shut()
	require.ElementsMatch(t, strings.Split(before, "\n"), strings.Split(nft(t, "list table inet firewalld"), "\n"))

	h, shut = start(t, openPlan())
	kill(h, shut)
	lines, err := Down()
	require.NoError(t, err)
	require.Contains(t, lines, "closed firewall-cmd for natless0 again")
	require.ElementsMatch(t, strings.Split(before, "\n"), strings.Split(nft(t, "list table inet firewalld"), "\n"))
}

// background starts a program in the test's namespaces that ends with it.
func background(t *testing.T, name string, args ...string) {
	t.Helper()
	path, err := findTool(name)
	require.NoError(t, err)
	c := exec.Command(path, args...)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Signal(unix.SIGTERM)
		_ = c.Wait()
		if t.Failed() {
			t.Log(name, out.String())
		}
	})
}
