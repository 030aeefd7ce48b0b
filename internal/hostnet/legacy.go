package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Reading the older iptables: the options, structures and sizes of
// linux/netfilter_ipv4/ip_tables.h, its IPv6 sister and
// linux/netfilter/x_tables.h, on 64-bit machines. All numbers are in the host's
// byte order.
const (
	legacyGetInfo    = 64 // IPT_SO_GET_INFO
	legacyGetEntries = 65 // IPT_SO_GET_ENTRIES

	legacyNameLen     = 32                   // XT_TABLE_MAXNAMELEN
	legacyInfoLen     = legacyNameLen + 13*4 // struct ipt_getinfo
	legacyEntriesHead = legacyNameLen + 8    // struct ipt_get_entries before its table
	legacyHookEntry   = legacyNameLen + 1*4  // where each hook begins
	legacyUnderflow   = legacyNameLen + 6*4  // where each hook's policy is
	legacySize        = legacyInfoLen - 1*4  // bytes of all entries

	legacyLinkLen = unix.IFNAMSIZ
	legacyName    = 2                             // in a match or target: after its size
	legacyInside  = 32                            // in a match or target: after struct xt_entry_match
	legacyExtName = legacyInside - legacyName - 1 // XT_EXTENSION_MAXNAMELEN; the revision is behind it
	legacyReturn  = -4 - 1                        // XT_RETURN: NF_REPEAT, written as a verdict
	legacyInverse = 0x01 | 0x02                   // IPT_INV_VIA_IN, IPT_INV_VIA_OUT
	legacyMask6   = 2 * 16                        // in an entry of IPv6: the mask of its source
)

// legacyFamily is where the two families differ.
type legacyFamily struct {
	path    string // lists the tables there are
	ipv6    bool
	domain  int
	level   int
	links   int  // offset of the links' names and masks; before them are addresses and their masks
	flags   int  // offset of flags, the inverting ones behind them
	jumps   byte // the flag that makes a jump a goto: IPT_F_GOTO, IP6T_F_GOTO
	target  int  // offset of target_offset
	entries int  // bytes of an entry before its matches
}

var legacyFamilies = []legacyFamily{
	{"/proc/thread-self/net/ip_tables_names", false, unix.AF_INET, unix.SOL_IP, 16, 82, 0x02, 84 + 4, 84 + 28},
	{"/proc/thread-self/net/ip6_tables_names", true, unix.AF_INET6, unix.SOL_IPV6, 64, 131, 0x04, 136 + 4, 136 + 32},
}

// legacyChains finds the chains of the older iptables, which nftables does not
// show.
func legacyChains() (found []*foreign, failed error) {
	for _, l := range legacyFamilies {
		text, err := os.ReadFile(l.path)
		if err != nil {
			continue // there are none
		}
		for _, table := range strings.Fields(string(text)) { // asking for another would make it
			for _, hook := range legacyTables[table] {
				f, err := l.read(table, hook)
				if err != nil {
					failed = errors.Join(failed, err)
					continue
				}
				found = append(found, f)
			}
		}
	}
	return found, failed
}

// legacyTables are the tables that filter, with their chains by hook, as far as
// packets to and through this host pass them.
var legacyTables = map[string][]*nftables.ChainHook{
	"raw":      {nftables.ChainHookPrerouting},
	"mangle":   {nftables.ChainHookPrerouting, nftables.ChainHookInput, nftables.ChainHookForward},
	"filter":   {nftables.ChainHookInput, nftables.ChainHookForward},
	"security": {nftables.ChainHookInput, nftables.ChainHookForward},
}

var legacyHooks = map[nftables.ChainHook]string{
	*nftables.ChainHookPrerouting: "PREROUTING", *nftables.ChainHookInput: "INPUT", *nftables.ChainHookForward: forwardChain,
}

func (l legacyFamily) family() string {
	if l.ipv6 {
		return "ip6"
	}
	return "ip"
}

// read reads a table, which must exist, for its chain at a hook.
func (l legacyFamily) read(name string, hook *nftables.ChainHook) (*foreign, error) {
	info, table, err := l.fetch(name)
	if err != nil {
		return nil, fmt.Errorf("reading iptables: %w", err)
	}
	chain, at := legacyHooks[*hook], 4*int(*hook)
	t := legacyTable{legacyFamily: l, entries: table[legacyEntriesHead:], names: map[int]string{}, rules: map[string][]rule{}}
	t.names[int(number(info, legacyHookEntry+at))] = chain
	if err := t.parse(int(number(info, legacyUnderflow+at))); err != nil {
		return nil, fmt.Errorf("reading iptables: %w", err)
	}
	f := &foreign{
		family: l.family(), table: name, chain: chain, hook: *hook, legacy: true, drop: t.drop,
		rules: func(chain string) []rule { return t.rules[chain] },
	}
	for name := range t.rules {
		f.chains = append(f.chains, name)
	}
	return f, nil
}

const forwardChain = "FORWARD"

// fetch gets the table's struct ipt_getinfo and ipt_get_entries.
func (l legacyFamily) fetch(name string) (info, table []byte, err error) {
	fd, err := unix.Socket(l.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	info = make([]byte, legacyInfoLen)
	copy(info, name)
	if err := getsockopt(fd, l.level, legacyGetInfo, info); err != nil {
		return nil, nil, err
	}
	size := number(info, legacySize)
	table = make([]byte, legacyEntriesHead+int(size))
	copy(table, name)
	binary.NativeEndian.PutUint32(table[legacyNameLen:], uint32(size))
	return info, table, getsockopt(fd, l.level, legacyGetEntries, table)
}

func number(b []byte, at int) int32 { return int32(binary.NativeEndian.Uint32(b[at:])) }

// legacyTable is a table while it is parsed.
type legacyTable struct {
	legacyFamily
	entries []byte
	names   map[int]string // of chains, by the offset of their first entry
	rules   map[string][]rule
	drop    bool // the policy of the chain
}

// parse reads one entry after the other. A jump is written as the offset it
// leads to, and a chain of the user's begins with an entry that bears its name.
func (t *legacyTable) parse(policy int) error {
	type jump struct {
		chain     string
		rule, off int
	}
	var jumps []jump
	chain := ""
	for at := 0; at < len(t.entries); {
		e := t.entries[at:]
		if len(e) < t.legacyFamily.entries {
			return fmt.Errorf("a short entry at %d", at)
		}
		target, next := int(binary.NativeEndian.Uint16(e[t.target:])), int(binary.NativeEndian.Uint16(e[t.target+2:]))
		if target < t.legacyFamily.entries || next < target+legacyInside || next > len(e) {
			return fmt.Errorf("an entry at %d that ends nowhere", at)
		}
		if name, ok := t.names[at]; ok {
			chain = name
			t.rules[chain] = nil
		}
		r := t.condition(e[:target])
		data := e[target+legacyInside : next]
		switch name := text(e[target+legacyName:][:legacyExtName]); {
		case name == "ERROR":
			if n := len(t.rules[chain]); n > 0 {
				t.rules[chain] = t.rules[chain][:n-1] // its end, a RETURN for all
			}
			chain = ""
			t.names[at+next] = text(data)
		case name != "":
			r.target(name)
		case len(data) < 4:
			return fmt.Errorf("no verdict at %d", at)
		default:
			v := int(number(data, 0))
			switch {
			case v == legacyReturn:
				r.verdict = expr.VerdictReturn
			case v < 0:
				r.verdict = expr.VerdictKind(-v - 1)
			case v != at+next: // else a rule without a target
				r.verdict = expr.VerdictJump
				if e[t.flags]&t.jumps != 0 {
					r.verdict = expr.VerdictGoto
				}
				jumps = append(jumps, jump{chain, len(t.rules[chain]), v})
			}
		}
		if at == policy {
			t.drop, chain = r.verdict == expr.VerdictDrop, ""
		} else if chain != "" {
			t.rules[chain] = append(t.rules[chain], r)
		}
		at += next
	}
	for _, j := range jumps {
		if j.chain != "" {
			t.rules[j.chain][j.rule].to = t.names[j.off]
		}
	}
	return nil
}

// condition reads what an entry asks of packets: its head, and its matches.
func (t *legacyTable) condition(e []byte) rule {
	r := rule{verdict: expr.VerdictContinue}
	names, masks := e[t.links:], e[t.links+2*legacyLinkLen:]
	flags, inverse := e[t.flags], e[t.flags+1]
	r.in = legacyLink(names[:legacyLinkLen], masks[:legacyLinkLen], inverse&1 != 0)
	r.out = legacyLink(names[legacyLinkLen:][:legacyLinkLen], masks[legacyLinkLen:][:legacyLinkLen], inverse&2 != 0)
	proto := binary.NativeEndian.Uint16(e[t.links+4*legacyLinkLen:])
	some := func(b byte) bool { return b != 0 }
	r.more = slices.ContainsFunc(e[:t.links], some) || proto != 0 || flags&^t.jumps != 0 || inverse&^legacyInverse != 0
	r.byHost = t.ipv6 && slices.ContainsFunc(e[legacyMask6:][:16], some) && !(e[legacyMask6] == 0xff && linkLocal(e))
	for m := e[t.legacyFamily.entries:]; len(m) >= legacyInside; {
		size := int(binary.NativeEndian.Uint16(m))
		if size < legacyInside || size > len(m) {
			r.more = true
			break
		}
		r.matches(text(m[legacyName:][:legacyExtName]), func() string { return text(m[legacyInside:size]) })
		m = m[size:]
	}
	return r
}

// legacyLink is the condition on a link; a mask that ends before the name's
// last byte makes it one on a prefix.
func legacyLink(name, mask []byte, not bool) linkMatch {
	n := bytes.IndexByte(mask, 0)
	if n < 0 {
		n = len(mask)
	}
	if n == 0 {
		return linkMatch{}
	}
	m := linkMatch{name: text(name[:n]), not: not}
	m.prefix = len(m.name) == n
	return m
}

// text is a string that ends with a zero byte.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
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
