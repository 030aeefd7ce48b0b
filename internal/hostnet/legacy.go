package hostnet

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reading the forward policy of the older iptables: the options, structures and
// sizes of linux/netfilter_ipv4/ip_tables.h and its IPv6 sister, on 64-bit
// machines. All numbers are in the host's byte order.
const (
	legacyGetInfo    = 64 // IPT_SO_GET_INFO
	legacyGetEntries = 65 // IPT_SO_GET_ENTRIES

	legacyNameLen     = 32                   // XT_TABLE_MAXNAMELEN
	legacyInfoLen     = legacyNameLen + 13*4 // struct ipt_getinfo
	legacyEntriesHead = legacyNameLen + 8    // struct ipt_get_entries before its table
	legacyUnderflow   = legacyNameLen + 6*4  // where each hook's policy is
	legacySize        = legacyInfoLen - 1*4  // bytes of all entries
	legacyForward     = unix.NF_INET_FORWARD // which hook
	legacyIPv4Target  = 84 + 4               // offset of target_offset: struct ipt_ip, nfcache
	legacyIPv6Target  = 136 + 4              // struct ip6t_ip6, nfcache
	legacyVerdict     = 32                   // in the target: after struct xt_entry_target
	legacyDrop        = -1                   // a verdict v is written -v-1, and NF_DROP is 0
)

// legacyForwardDrops tells whether the policy of the FORWARD chain is DROP. The
// table must exist: asking would make it.
func legacyForwardDrops(ipv6 bool, level int) (bool, error) {
	family, target := unix.AF_INET, legacyIPv4Target
	if ipv6 {
		family, target = unix.AF_INET6, legacyIPv6Target
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false, fmt.Errorf("reading iptables: %w", err)
	}
	defer unix.Close(fd)
	info := make([]byte, legacyInfoLen)
	copy(info, "filter")
	if err := getsockopt(fd, level, legacyGetInfo, info); err != nil {
		return false, fmt.Errorf("reading iptables: %w", err)
	}
	number := func(b []byte, at int) int { return int(binary.NativeEndian.Uint32(b[at:])) }
	size, policy := number(info, legacySize), number(info, legacyUnderflow+4*legacyForward)

	table := make([]byte, legacyEntriesHead+size)
	copy(table, "filter")
	binary.NativeEndian.PutUint32(table[legacyNameLen:], uint32(size))
	if err := getsockopt(fd, level, legacyGetEntries, table); err != nil {
		return false, fmt.Errorf("reading iptables: %w", err)
	}
	entry := table[legacyEntriesHead:]
	if policy+target+2 > len(entry) {
		return false, fmt.Errorf("reading iptables: no policy at %d", policy)
	}
	entry = entry[policy:]
	at := int(binary.NativeEndian.Uint16(entry[target:])) + legacyVerdict
	if at+4 > len(entry) {
		return false, fmt.Errorf("reading iptables: no verdict at %d", at)
	}
	return int32(binary.NativeEndian.Uint32(entry[at:])) == legacyDrop, nil
}

func getsockopt(fd, level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
