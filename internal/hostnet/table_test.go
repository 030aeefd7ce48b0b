package hostnet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/natless/natless/internal/testenv"
)

func anyPrefixes(t *rapid.T) []netip.Prefix {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
		var a [4]byte
		// few bits make neighbours and overlaps likely
		binary.BigEndian.PutUint32(a[:], rapid.Uint32Range(0, 15).Draw(t, "high")<<28|rapid.Uint32Range(0, 15).Draw(t, "low"))
		return netip.PrefixFrom(netip.AddrFrom4(a), rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
	}), 0, 12).Draw(t, "prefixes")
}

func TestCoveringKeepsEveryAddressOnce(t *testing.T) {
	require.Empty(t, covering([]netip.Prefix{{}}))
	rapid.Check(t, func(t *rapid.T) {
		list := anyPrefixes(t)
		kept := covering(list)
		for _, p := range list {
			require.True(t, slices.ContainsFunc(kept, func(k netip.Prefix) bool { return covers(k, p) }))
		}
		for i, k := range kept {
			require.Contains(t, list, k)
			require.False(t, slices.ContainsFunc(kept[i+1:], k.Overlaps))
		}
	})
}

// The elements are strictly ascending, begin and end in turns, and hold an
// address just when a prefix does.
func TestIntervals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := covering(anyPrefixes(t))
		elements := intervals(list)
		for i, e := range elements {
			require.Equal(t, i%2 == 1, e.IntervalEnd)
			require.True(t, i == 0 || bytes.Compare(elements[i-1].Key, e.Key) < 0)
		}
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], rapid.Uint32Range(0, 15).Draw(t, "high")<<28|rapid.Uint32Range(0, 17).Draw(t, "low"))
		before := 0
		for _, e := range elements {
			if bytes.Compare(e.Key, a[:]) <= 0 {
				before++
			}
		}
		in := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(netip.AddrFrom4(a)) })
		require.Equal(t, in, before%2 == 1)
	})
}

func TestTableHoldsManyMaps(t *testing.T) {
	testHost(t)
	p := testPlan()
	for i := range 5000 {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0xcb007200+0x10000+uint32(i)*2) // 203.1.114.0 and on
		p.Inbound = append(p.Inbound, netip.PrefixFrom(netip.AddrFrom4(a), 32))
	}
	h, _ := start(t, p)
	_, elements, _ := strings.Cut(nft(t, "list set ip natless inbound"), "elements")
	require.Equal(t, len(p.Inbound), strings.Count(elements, ",")+1)
	err := h.Close()
	require.NoError(t, err)
}

func TestStatelessPlanTracksNoConnections(t *testing.T) {
	testHost(t)
	p := testPlan()
	p.IPv4, p.Masquerade = p.IPv4[:1], nil
	h, _ := start(t, p)
	table := nft(t, "list table ip natless")
	require.NotContains(t, table, "ct state")
	require.NotContains(t, table, "masquerade")
	err := h.Close()
	require.NoError(t, err)
}

func TestLegacyIptablesAreRead(t *testing.T) {
	testHost(t)
	for _, family := range []struct {
		ipv6 bool
		name string
	}{{false, "iptables-legacy"}, {true, "ip6tables-legacy"}} {
		dropLegacyForward(t, family.ipv6)
		found, err := managed(testPlan()).Firewalls()
		require.NoError(t, err)
		require.NotEmpty(t, found)
		f := found[len(found)-1]
		require.Equal(t, family.name+" filter FORWARD", f.Chain)
		require.Contains(t, f.Opens, family.name+" -I FORWARD -i natless0 -j ACCEPT && "+family.name+" -I FORWARD -o natless0")
	}
}

func TestLegacyNATIsSeen(t *testing.T) {
	testHost(t)
	dropLegacyForward(t, true)
	require.False(t, foreignNAT6(), "a filter is none")
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	require.NoError(t, err)
	defer unix.Close(fd)
	info := make([]byte, legacyInfoLen)
	copy(info, "nat")
	require.NoError(t, getsockopt(fd, unix.SOL_IPV6, legacyGetInfo, info)) // makes the table
	require.True(t, foreignNAT6())
}

// dropLegacyForward does `iptables-legacy -P FORWARD DROP`.
func dropLegacyForward(t *testing.T, ipv6 bool) {
	t.Helper()
	l := legacyFamilies[0]
	if ipv6 {
		l = legacyFamilies[1]
	}
	fd, err := unix.Socket(l.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	require.NoError(t, err)
	defer unix.Close(fd)
	info, entries, err := l.fetch("filter")
	if err != nil {
		testenv.Skip(t, "this kernel has no legacy iptables: "+err.Error())
	}
	table, err := l.read("filter", nftables.ChainHookForward)
	require.NoError(t, err)
	require.False(t, table.drop)

	size := uint32(number(info, legacySize))
	entries = entries[legacyEntriesHead:]
	policy := entries[number(info, legacyUnderflow+4*unix.NF_INET_FORWARD):]
	at := binary.NativeEndian.Uint16(policy[l.target:]) + legacyInside
	binary.NativeEndian.PutUint32(policy[at:], ^uint32(0)) // DROP

	// struct ipt_replace: name, hooks, number, size, entry points and policies
	// as in struct ipt_getinfo, then room for the old counters
	count := binary.NativeEndian.Uint32(info[legacySize-4:])
	counters := make([]byte, 16*count)
	r := append([]byte(nil), info[:legacyNameLen+4]...)
	r = binary.NativeEndian.AppendUint32(r, count)
	r = binary.NativeEndian.AppendUint32(r, size)
	r = append(r, info[legacyNameLen+4:legacySize-4]...)
	r = binary.NativeEndian.AppendUint32(r, count)
	for len(r)%8 != 0 {
		r = append(r, 0)
	}
	r = binary.NativeEndian.AppendUint64(r, uint64(uintptr(unsafe.Pointer(&counters[0]))))
	r = append(r, entries...)
	const replace = 64 // IPT_SO_SET_REPLACE
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(l.level), replace,
		uintptr(unsafe.Pointer(&r[0])), uintptr(len(r)), 0)
	runtime.KeepAlive(counters)
	require.Zero(t, errno, errno.Error())
}

// An older natless had one table for both families. Its successor and `natless
// down` clear it.
func TestTableOfBothFamiliesGoes(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	const old = "table inet natless { chain postrouting { type nat hook postrouting priority srcnat; masquerade; }; }"
	nft(t, old)
	h, shut := start(t, testPlan())
	require.NotContains(t, nft(t, "list tables"), "inet natless")
	err := h.Close()
	require.NoError(t, err)
	shut()

	nft(t, old)
	lines, err := Down()
	require.NoError(t, err)
	require.Contains(t, lines, "removed nftables table inet natless")
	require.Empty(t, difference(before, snapshot(t)))
}
