package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/dns64"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/mapping"
)

const longWarning = "Docker drops forwarded packets (ip filter FORWARD); this lets natless's through: iptables -I DOCKER-USER -i natless0 -j ACCEPT && iptables -I DOCKER-USER -o natless0 -j ACCEPT"

// full is a status with a line of each kind.
func full() control.Status {
	return control.Status{
		Uptime: 4000, File: "/etc/natless/natless.toml", Flags: []string{"--on-exit=keep", "--firewall=open"},
		Offloads: "checksum,tso,uso", Queues: 2, Rings: 16, MTU: 1500,
		Pref64: netip.MustParsePrefix("2001:db8:6464::/96"), OwnIPv4: netip.MustParseAddr("169.254.64.1"), OwnIPv6: netip.MustParseAddr("fd01:2345:6789::1"),
		Pools:    []mapping.PoolInfo{{IPv4: netip.MustParsePrefix("203.0.113.0/24"), Lent: 12345, Usable: 16065, Quarantined: 123, PerAddress: 63}},
		Networks: []mapping.Network{{Prefix: netip.MustParsePrefix("2001:db8:1:2::/64"), Leases: 100}},
		Sessions: &control.Sessions{Open: 5, Max: 1000000}, Attached: 3, State: control.State{Dir: "/var/lib/natless"},
		RA:       []control.Advertising{{Interface: "lan0", Address: netip.MustParseAddr("fe80::1234:5678:9abc:def0"), Sent: 12, Last: began}},
		DNS64:    &dns64.Status{Listen: []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:53")}, Queries: 12345678, Synthesised: 1234567, Refused: 12345},
		Links:    []hostnet.LinkRole{{Link: "wan", Role: hostnet.RoleUplink, Why: "carries a default route"}},
		Refused:  []string{"loopback, multicast, link-local and class E addresses", "private IPv4 addresses behind 64:ff9b::/96 (translation.private_ipv4; or use 64:ff9b:1::/96)"},
		Warnings: []string{longWarning, "on lan0 another router advertises another prefix"}, Problems: []string{longWarning}, Degraded: true,
	}
}

func TestStatusBeginsWithTheVerdict(t *testing.T) {
	f := newFake()
	f.serve(t)
	f.status = full()
	out, _, err := says(t, "", "status")
	assert.EqualError(t, err, "natless is degraded")
	assert.Equal(t, exitFailed, exitCode(err))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	assert.Equal(t, "degraded: "+longWarning, lines[0])
	assert.Regexp(t, "^warning +on lan0 another router", lines[1])
	assert.Regexp(t, "^version +test$", lines[len(lines)-1])
	assert.Regexp(t, `(?m)^configuration +/etc/natless/natless.toml --on-exit=keep --firewall=open$`, out)
	assert.Contains(t, out, "on lan0 from fe80::1234:5678:9abc:def0: 12 sent, the last at "+local(began)+"\n")

	f.status = control.Status{}
	assert.True(t, strings.HasPrefix(mustSay(t, "status"), "ok\n"))
	f.status = control.Status{Degraded: true, Warnings: []string{"of an older daemon"}}
	out, _, _ = says(t, "", "status")
	assert.True(t, strings.HasPrefix(out, "degraded: of an older daemon\n"), out)
}

// On a terminal of 80 columns every line of status fits, in a pipe none is broken;
// and no line of a usual list of leases is longer.
func TestFitsATerminal(t *testing.T) {
	f := newFake()
	f.serve(t)
	f.status = full()
	f.leases = []mapping.Lease{{
		IPv4: netip.MustParseAddr("203.0.113.254"), IPv6: netip.MustParseAddr("2001:db8:1:2:abcd:efff:fe12:3456"),
		Ports: "64512-65535", Idle: 3599, Label: "web-1", Since: began, Pool: netip.MustParsePrefix("203.0.113.0/24"),
	}}
	for _, args := range []string{"status", "lease ls", "status --watch"} {
		g := onTerminal(t, args)
		want := map[string]string{"status": "version", "lease ls": "LABEL", "status --watch": "sessions"}[args]
		out := regexp.MustCompile(`\x1b\[[?0-9]*[a-zA-Z]`).ReplaceAllString(g.wrote(t, want), "")
		for line := range strings.Lines(out) {
			assert.LessOrEqual(t, utf8.RuneCountInString(strings.TrimRight(line, "\r\n")), 80, "%s: %s", args, line)
		}
	}
	for line := range strings.Lines(mustSay(t, "lease ls")) {
		assert.LessOrEqual(t, len(line)-1, 80, line)
	}
	out, _, _ := says(t, "", "status")
	assert.Contains(t, out, longWarning)
}

func TestFold(t *testing.T) {
	assert.Equal(t, "name   one two\n       three\nlong:\n  abcdefghijkl\n  mnop x\nü ü ü ü ü ü ü\n",
		fold("name   one two three\nlong: abcdefghijklmnop x\nü ü ü ü ü ü ü\n", 14))
}

func TestWaitEnds(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "natless.sock")
	t.Setenv("NATLESS_SOCKET", socket)
	began := time.Now()
	_, _, err := says(t, "", "status", "--wait=300ms")
	assert.ErrorContains(t, err, "not ready after 300ms: asking the daemon at "+socket+": no such file or directory: is natless running?")
	assert.Equal(t, exitFailed, exitCode(err))
	assert.Less(t, time.Since(began), 10*time.Second)

	newFake().serve(t)
	assert.True(t, strings.HasPrefix(mustSay(t, "status --wait"), "ok\n"))
}

// A unit that has failed does not become ready, unless natless runs beside it.
func TestWaitEndsWithTheUnit(t *testing.T) {
	dir := t.TempDir()
	const systemctl = `#!/bin/sh
printf 'Id=natless.service\nActiveState=%s\nEnvironment=GOTRACEBACK=crash\n\nId=natless@a.service\nActiveState=failed\nEnvironment=GOTRACEBACK=crash NATLESS_SOCKET=/run/natless/a.sock\n' "$STATE"
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "systemctl"), []byte(systemctl), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("STATE", "activating")
	assert.Empty(t, failedUnit(t.Context(), "/run/natless/natless.sock"))
	assert.Equal(t, "natless@a.service", failedUnit(t.Context(), "/run/natless/a.sock"))
	assert.Empty(t, failedUnit(t.Context(), "/run/natless/b.sock"))
	t.Setenv("STATE", "failed")
	assert.Equal(t, "natless.service", failedUnit(t.Context(), "/run/natless/natless.sock"))
	t.Setenv("PATH", t.TempDir())
	assert.Empty(t, failedUnit(t.Context(), "/run/natless/natless.sock"), "no systemd")

	if hostnet.Running() != nil {
		t.Skip("natless runs here")
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH")+":/bin:/usr/bin")
	t.Setenv("NATLESS_SOCKET", "/run/natless/a.sock")
	_, _, err := says(t, "", "status", "--wait=1h")
	assert.ErrorContains(t, err, "natless@a.service has failed: journalctl -u natless@a.service says why: asking the daemon at /run/natless/a.sock: ")
	assert.Equal(t, exitFailed, exitCode(err))
}

func TestMeter(t *testing.T) {
	var m meter
	at := began
	m.read([]counter{{"a", 100, ""}, {"b", 7, ""}}, at)
	assert.Equal(t, "0/s -", m.rate("a")+" "+m.changed("a"), "nothing is known yet")
	at = at.Add(2 * time.Second)
	m.read([]counter{{"a", 300, ""}, {"b", 7, ""}}, at)
	assert.Equal(t, "100/s 0s ago", m.rate("a")+" "+m.changed("a"))
	assert.Equal(t, "0/s -", m.rate("b")+" "+m.changed("b"))
	at = at.Add(3 * time.Second)
	m.read([]counter{{"a", 300, ""}, {"b", 7, ""}, {"new", 5, ""}}, at)
	assert.Equal(t, "0/s 3s ago", m.rate("a")+" "+m.changed("a"))
	m.read([]counter{{"a", 2, ""}}, at.Add(time.Second))
	assert.Equal(t, "0/s 0s ago", m.rate("a")+" "+m.changed("a"), "the daemon began anew")
}

func TestStatusWatchTellsWhatChanged(t *testing.T) {
	f := newFake()
	f.serve(t)
	g := goOn(t, "status --watch")
	first := g.wrote(t, "version")
	assert.Regexp(t, `(?m)^packets +IPv6 0/s in, 0/s out; IPv4 0/s in, 0/s out$`, first)
	assert.NotContains(t, first, "changed")
	f.mu.Lock()
	f.status.Attached = 9
	f.mu.Unlock()
	assert.Regexp(t, `changed +\ds ago: attached 9\n`, g.wrote(t, "attached 9"))
	f.mu.Lock()
	f.status.Degraded, f.status.Problems = true, []string{"no state"}
	f.mu.Unlock()
	assert.Contains(t, g.wrote(t, "ago: degraded: no state"), "\ndegraded: no state\n")
	g.ends(t)
}

func TestTimesOfTexts(t *testing.T) {
	assert.Equal(t, "added "+local(began)+" by x, until "+local(began.Add(time.Hour))+" or 2026-01-31T14:05",
		localTimes("added 2026-01-31T14:05:00Z by x, until 2026-01-31T16:05:00.25+01:00 or 2026-01-31T14:05"))
	assert.Equal(t, "2026-99-31T14:05:00Z", localTimes("2026-99-31T14:05:00Z"))
}
