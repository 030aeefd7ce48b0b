package main_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

func TestAttackChosen(t *testing.T) {
	all := []move{{name: "a"}, {name: "b", known: "as yet"}, {name: "c"}}
	for names, want := range map[string]string{"": "ac", "all": "abc", "known": "b", "b": "b", "c,a": "ca"} {
		list, err := chosen(all, names)
		require.NoError(t, err)
		got := ""
		for _, m := range list {
			got += m.name
		}
		assert.Equal(t, want, got, names)
	}
	_, err := chosen(all, "a,d")
	assert.ErrorContains(t, err, `"d"`)
}

func TestAttackNames(t *testing.T) {
	names := map[string]bool{"": true, "all": true, "known": true}
	for _, m := range catalogue {
		assert.False(t, names[m.name], m.name)
		names[m.name] = true
	}
}

func TestAttackAtServer(t *testing.T) {
	host, s := netip.MustParseAddr(lab.HostIPv4), netip.MustParseAddr(lab.ServerIPv4)
	lease := netip.MustParseAddr("169.254.64.2")
	quote := tcpPacket(s, lease, 9, 40000, "A", markQuoted)
	for _, c := range []struct {
		b    []byte
		want string
	}{
		{udpPacket(host, s, 1, 7, []byte("data")), ""},
		{udpPacket(s, lease, 7, 1, []byte(markForged)), ""},
		{tcpPacket(lease, s, 1, 443, "R", ""), "a source that is not the host's"},
		{udpPacket(host, netip.MustParseAddr("169.254.169.254"), 1, 80, nil), "a destination that is refused"},
		{udpPacket(host, netip.MustParseAddr("127.0.0.1"), 1, 80, nil), "a destination that is refused"},
		{trouble(host, s, 1260, quote[:28]), ""},
		{trouble(host, s, 68, quote[:28]), "an MTU below that of IPv6"},
		{trouble(host, s, 0, quote), "a forged ICMP error"},
		{echoPacket(host, s, 64, markForged), "a forged packet"},
		{trouble(host, s, 0, udpPacket(s, host, 1, 2, []byte(markForged))), ""},
		{udpPacket(netip.MustParseAddr(client1), netip.MustParseAddr(victim6), 1, 2, nil), "IPv6 where there is only IPv4"},
		{echoPacket(netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1"), 1, ""), ""},
		{append([]byte{0, 1, 8, 0, 6, 4}, make([]byte, 22)...), ""},
		{[]byte{0x45, 0}, "neither IP nor ARP"},
		{nil, "neither IP nor ARP"},
	} {
		assert.Equal(t, c.want, atServer(c.b), "%x", c.b)
	}
}

func TestAttackAtVictim(t *testing.T) {
	c2, s := netip.MustParseAddr(victim6), behind(lab.ServerIPv4)
	router, natless := netip.MustParseAddr("2001:db8:2::1"), netip.MustParseAddr(lab.OwnIPv6)
	quote := udpPacket(c2, s, 1, 2, []byte("data"))
	for _, c := range []struct {
		b    []byte
		want string
	}{
		{tcpPacket(s, c2, 9, 40000, "A", "data"), ""},
		{tcpPacket(c2, s, 40000, 9, "A", "data"), ""},
		{trouble(router, c2, 0, quote), ""},
		{trouble(natless, c2, 1280, quote), ""},
		{trouble(behind(lab.HostIPv4), c2, 0, quote), ""},
		{trouble(behind(stranger4), c2, 1280, quote), ""},
		{trouble(behind(stranger4), c2, 1279, quote), "an MTU below that of IPv6"},
		{trouble(natless, c2, 1279, quote), "an MTU below that of IPv6"},
		{trouble(router, c2, 0, udpPacket(c2, s, 1, 2, []byte(markForged))), ""},
		{trouble(s, c2, 0, udpPacket(c2, s, 1, 2, []byte(markQuoted))), "a forged ICMP error"},
		{tcpPacket(s, c2, 9, 40000, "S", markForged), "a forged packet"},
		{udpPacket(netip.MustParseAddr(client1), c2, 1, 2, nil), "a source that c2 has nothing to do with"},
		{udpPacket(behind(stranger4), c2, 1, 2, nil), "a source that c2 has nothing to do with"},
		{udpPacket(netip.MustParseAddr(names6), c2, 53, 5353, nil), "data from the host"},
		{udpPacket(router, c2, 53, 5353, nil), "data from the host"},
		{udpPacket(c2, c2, 1, 2, nil), "a source that c2 has nothing to do with"},
		{udpPacket(netip.MustParseAddr(lab.ServerIPv4), netip.MustParseAddr(lab.HostIPv4), 1, 2, nil), "not IPv6"},
	} {
		assert.Equal(t, c.want, atVictim(c.b), "%x", c.b)
	}
}

func TestAttackWrongOutput(t *testing.T) {
	assert.Empty(t, wrongOutput("a\tb\nné\n", 1, []int{0, 1}))
	assert.Len(t, wrongOutput("", 2, []int{0, 1}), 1)
	assert.Len(t, wrongOutput("on \x1b[2J", 0, []int{0}), 1)
	assert.Len(t, wrongOutput("on \u009b2J", 0, []int{0}), 1)
	assert.Len(t, wrongOutput("panic: oh\n", 2, []int{0}), 2)
}

func TestAttackTree(t *testing.T) {
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	require.NoError(t, os.MkdirAll(at("run/natless"), 0o755))
	require.NoError(t, os.MkdirAll(at("etc"), 0o755))
	require.NoError(t, os.WriteFile(at("etc/file"), []byte("one"), 0o600))
	require.NoError(t, os.WriteFile(at("etc/gone"), nil, 0o600))
	require.NoError(t, os.Symlink("file", at("etc/link")))
	require.NoError(t, os.Mkdir(at("run/decoy"), 0o755))
	before := tree(root, decoys)
	require.NoError(t, os.WriteFile(at("run/natless/its"), nil, 0o600))
	assert.Empty(t, changed(before, tree(root, decoys)), "natless's own")

	require.NoError(t, os.WriteFile(at("etc/file"), []byte("two"), 0o600))
	require.NoError(t, os.Remove(at("etc/gone")))
	require.NoError(t, os.Remove(at("etc/link")))
	require.NoError(t, os.Symlink("other", at("etc/link")))
	require.NoError(t, os.WriteFile(at("run/decoy/new"), nil, 0o600))
	list := changed(before, tree(root, decoys))
	assert.Len(t, list, 4, "%v", list)
}

func TestAttackGrown(t *testing.T) {
	was := resources{files: 20, threads: 10, memory: 30 << 10}
	assert.Empty(t, was.grown(resources{84, 42, 222 << 10}))
	assert.Len(t, was.grown(resources{85, 43, 222<<10 + 1}), 3)
}

func TestAttackMayLease(t *testing.T) {
	for _, a := range []string{client1, victim6, bridged3, "fd12::2", uplink6 + "1"} {
		assert.True(t, mayLease(netip.MustParseAddr(a)), a)
	}
	for _, a := range []string{stranger6, lab.Server6, "2001:db8:77::1", "fe80::1"} {
		assert.False(t, mayLease(netip.MustParseAddr(a)), a)
	}
}
