package hostnet

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestCheckSaysWhatIsDoneThen(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	r, err := Check(testPlan())
	require.NoError(t, err)
	require.Empty(t, difference(before, snapshot(t)))
	require.NoDirExists(t, runDir)
	require.Empty(t, r.Conflicts)
	require.Contains(t, r.Warnings, "masquerading 169.254.64.0/20 switches connection tracking on in this network namespace")

	done := []string{"create TUN device natless0"}
	beforeChange = func(text string) { done = append(done, text) }
	t.Cleanup(func() { beforeChange = func(string) {} })
	h, _ := start(t, testPlan())
	require.Equal(t, r.Actions, done)

	again, err := Check(testPlan())
	require.NoError(t, err)
	require.Empty(t, again.Conflicts)
	require.Contains(t, again.Warnings[len(again.Warnings)-1], "a second would be refused")
	err = h.Close()
	require.NoError(t, err)

	text, err := json.Marshal(r)
	require.NoError(t, err)
	require.Contains(t, string(text), `"conflicts":`)
}

// The table that Check prints is one that nft reads, and reads as the kernel
// has it.
func TestCheckPrintsTheTable(t *testing.T) {
	testHost(t)
	nft(t, "add table ip6 theirs { chain c { type nat hook postrouting priority srcnat; }; }")
	h, _ := start(t, testPlan())
	own := func() []string { return rules(nft(t, "list table ip natless") + nft(t, "list table ip6 natless")) }
	installed := own()
	nft(t, "delete table ip natless; delete table ip6 natless")
	nft(t, h.table.String())
	// nft marks the sets it makes as it sees fit
	require.ElementsMatch(t, installed, own())
}

func TestConflicts(t *testing.T) {
	testHost(t)
	addLink(t, "lan", "10.20.0.1/16", "fd00:20::1/64")
	addRoute(t, "10.30.0.0/16", "uplink", "192.0.2.7")
	addRoute(t, "fd00:30::/32", "lan", "fd00:20::7")
	addRoute(t, "169.254.0.0/17", "lan", "")
	addRoute(t, "169.254.0.0/16", "lan", "")
	addRoute(t, "128.0.0.0/1", "uplink", "192.0.2.1")
	require.NoError(t, netlink.RouteAdd(&netlink.Route{
		Dst: testRoute(t, "10.64.0.0/10", "lan", "").Dst, Type: unix.RTN_UNREACHABLE,
	}))
	calm(t)
	for _, c := range []struct {
		v4, v6, says string
	}{
		{v4: "203.0.113.0/24", says: "203.0.113.0/24: overlaps route 203.0.113.0/24 (over uplink, protocol boot)"},
		{v4: "203.0.112.0/23", says: "overlaps route 203.0.113.0/24"},
		{v4: "203.0.113.64/26", says: "overlaps route 203.0.113.0/24"},
		{v4: "192.0.2.2/32", says: "overlaps address 192.0.2.2 of uplink"},
		{v4: "192.0.2.77/32", says: "overlaps route 192.0.2.0/24 (over uplink, protocol kernel)"},
		{v4: "10.20.5.0/24", says: "overlaps route 10.20.0.0/16 (over lan, protocol kernel); 198.18.0.0/24 is free"},
		{v4: "10.30.5.0/24", says: "overlaps route 10.30.0.0/16 (over uplink, protocol boot)"},
		{v4: "169.254.64.0/20", says: "169.254.0.0/17 (over lan, protocol boot); 198.18.0.0/20 is free"},
		{v4: "127.0.1.0/24", says: "overlaps route 127.0.0.0/8 (over lo, of type local, in table local, protocol kernel)"},
		{v4: "169.254.192.0/20"}, // inside what is for hosts without DHCP
		{v4: "169.254.0.0/16", says: "overlaps route 169.254.0.0/1"},
		{v4: "198.51.100.0/24"},
		{v4: "10.64.0.0/16"}, // inside what leads nowhere
		{v4: "198.18.0.0/16"},
		{v6: "2001:db8:1::/96", says: "overlaps address 2001:db8:1::1 of clients"},
		{v6: "2001:db8:1:0:1::/96", says: "overlaps route 2001:db8:1::/64 (over clients, protocol kernel)"},
		{v6: "2001:db8::/32", says: "overlaps address"},
		{v6: "fd00:30::/32", says: "overlaps route fd00:30::/32"},
		{v6: "fd00:30:0:64::/96"}, // cut from a routed prefix
		{v6: "64:ff9b:1::/48"},
	} {
		p := Plan{Device: "natless0", Manage: true}
		if c.v4 != "" {
			p.IPv4 = prefixes(c.v4)
		} else {
			p.IPv6 = prefixes(c.v6)
		}
		r, err := Check(p)
		require.NoError(t, err)
		if c.says == "" {
			require.Empty(t, r.Conflicts)
			continue
		}
		require.NotEmpty(t, r.Conflicts, c)
		require.Contains(t, r.Conflicts[0], c.says)

		before := snapshot(t)
		_, err = Prepare(p)
		require.ErrorContains(t, err, c.says)
		require.Empty(t, difference(before, snapshot(t)))
		require.NoDirExists(t, runDir)
	}
}

func TestDeviceConflicts(t *testing.T) {
	testHost(t)
	_, err := Prepare(Plan{Device: "uplink", Manage: true})
	require.ErrorContains(t, err, "device uplink: a link of that name exists, of type veth")
	openTUN(t, "natless0", false)
	_, err = Prepare(testPlan())
	require.ErrorContains(t, err, "device natless0: another program holds it open")
	require.NoDirExists(t, runDir)
}

func TestFirewallsAreNamed(t *testing.T) {
	for name, c := range map[string]struct{ ruleset, owner, opens string }{
		"docker": {
			`table ip filter { chain DOCKER-USER { }; chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }; }`,
			"Docker", "iptables -I DOCKER-USER -i natless0 -j ACCEPT && iptables -I DOCKER-USER -o natless0 -j ACCEPT",
		},
		"ufw": {
			`table ip6 filter { chain ufw6-before-forward { }; chain FORWARD { type filter hook forward priority 0; policy drop; jump ufw6-before-forward; }; }`,
			"ufw", "ufw route allow in on natless0 && ufw route allow out on natless0",
		},
		"firewalld": {
			`table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; ct state established accept; reject with icmpx admin-prohibited; }; }`,
			"firewalld", "firewall-cmd --zone=trusted --add-interface=natless0",
		},
		"unknown": {
			`table inet mine { chain fw { type filter hook forward priority 0; ip saddr 192.0.2.1 accept; counter drop; }; }`,
			"", `nft 'insert rule inet mine fw iifname "natless0" accept; insert rule inet mine fw oifname "natless0" accept'`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			testHost(t)
			h := managed(testPlan())
			found, err := h.Firewalls()
			require.NoError(t, err)
			require.Empty(t, found)
			nft(t, c.ruleset)
			found, err = h.Firewalls()
			require.NoError(t, err)
			require.NotEmpty(t, found)
			require.Equal(t, c.owner, found[0].Owner)
			require.Contains(t, found[0].Opens, c.opens)
			r, err := Check(testPlan())
			require.NoError(t, err)
			require.Contains(t, r.Obstacles, found[0].String())
			require.True(t, strings.HasSuffix(strings.TrimSpace(r.String()), r.Obstacles[len(r.Obstacles)-1]), "the last line says what")
		})
	}
}
