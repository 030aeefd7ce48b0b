package lab

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Snapshot is the state of a network namespace in words: links, addresses,
// routes of all tables, rules, the nftables ruleset and every sysctl below
// net. What changes by itself (counters, the number of tracked connections) is
// not in it.
type Snapshot map[string]string

// Diff lists what differs in a later snapshot, one line each.
func (s Snapshot) Diff(later Snapshot) []string {
	var lines []string
	for k, v := range s {
		if l, ok := later[k]; !ok {
			lines = append(lines, fmt.Sprintf("gone: %s %s", k, v))
		} else if l != v {
			lines = append(lines, fmt.Sprintf("changed: %s %s, was %s", k, l, v))
		}
	}
	for k, v := range later {
		if _, ok := s[k]; !ok {
			lines = append(lines, fmt.Sprintf("new: %s %s", k, v))
		}
	}
	sort.Strings(lines)
	return lines
}

// add counts equal entries, which routes may have.
func (s Snapshot) add(key string) {
	s[key] += "|"
}

// Snapshot reads the state of the node. It reads anew, a few times, what goes
// while it is read: natless replaces whole tables.
func (n *Node) Snapshot() (s Snapshot, err error) {
	for range 10 {
		s = Snapshot{}
		err = first(
			func() error { return n.snapshotLinks(s) },
			func() error { return n.snapshotRoutes(s) },
			func() error { return n.snapshotRuleset(s) },
			func() error { return n.Do(func() error { return snapshotSysctls(s) }) },
		)
		if err == nil || !strings.Contains(err.Error(), unix.ENOENT.Error()) { // nftables wraps no error of the kernel's
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of %s: %w", n.Name, err)
	}
	return s, nil
}

func (n *Node) snapshotLinks(s Snapshot) error {
	links, err := n.Netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		a := link.Attrs()
		s["link "+a.Name] = fmt.Sprintf("%d %s mtu %d flags %x mac %s master %d qlen %d alias %q group %d gso %d/%d tso %d gro %d/%d xdp %v",
			a.Index, link.Type(), a.MTU, a.RawFlags, a.HardwareAddr, a.MasterIndex, a.TxQLen, a.Alias, a.Group,
			a.GSOMaxSize, a.GSOMaxSegs, a.TSOMaxSize, a.GROMaxSize, a.GROIPv4MaxSize, a.Xdp != nil && a.Xdp.Attached)
		addrs, err := n.Netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			s[fmt.Sprintf("address %s %s", a.Name, addr.IPNet)] = fmt.Sprintf("scope %d flags %x peer %v label %q lifetimes %s %s",
				addr.Scope, addr.Flags, addr.Peer, addr.Label, lifetime(addr.ValidLft), lifetime(addr.PreferedLft))
		}
	}
	return nil
}

// lifetime is that of an address: what passes of it is no change.
func lifetime(seconds int) string {
	switch uint32(seconds) {
	case 0:
		return "over"
	case math.MaxUint32: // the kernel's INFINITY_LIFE_TIME
		return "endless"
	}
	return "limited"
}

func (n *Node) snapshotRoutes(s Snapshot) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := n.Netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			s.add(fmt.Sprintf("route %d %s family %d protocol %d priority %d flags %x tos %d mtu %d type %d", r.Table, r, family, r.Protocol, r.Priority, r.Flags, r.Tos, r.MTU, r.Type))
		}
		rules, err := n.Netlink.RuleList(family)
		if err != nil {
			return err
		}
		for _, r := range rules {
			s.add(fmt.Sprintf("rule %d %s family %d mark %x tos %d ipproto %d uid %v suppress %d", r.Priority, r, family, r.Mark, r.Tos, r.IPProto, r.UIDRange, r.SuppressPrefixlen))
		}
	}
	return nil
}

func (n *Node) snapshotRuleset(s Snapshot) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(n.ns)))
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		at := fmt.Sprintf("nftables %d %s", t.Family, t.Name)
		s[at] = fmt.Sprintf("flags %x", t.Flags)
		if err := snapshotTable(s, c, t, at); err != nil {
			return err
		}
	}
	return nil
}

func snapshotTable(s Snapshot, c *nftables.Conn, t *nftables.Table, at string) error {
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if chain.Table.Name != t.Name {
			continue
		}
		s[at+" chain "+chain.Name] = fmt.Sprintf("%s hook %s priority %s policy %s", chain.Type, deref(chain.Hooknum), deref(chain.Priority), deref(chain.Policy))
		rules, err := c.GetRules(t, chain)
		if err != nil {
			return err
		}
		for i, r := range rules {
			var words []string
			for _, e := range r.Exprs {
				if _, ok := e.(*expr.Counter); ok {
					words = append(words, "counter")
					continue
				}
				b, err := expr.Marshal(byte(t.Family), e)
				if err != nil {
					return err
				}
				words = append(words, fmt.Sprintf("%T %x", e, b))
			}
			s[fmt.Sprintf("%s chain %s rule %d", at, chain.Name, i)] = strings.Join(words, " ") + fmt.Sprintf(" %x", r.UserData)
		}
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return err
	}
	for _, set := range sets {
		s[at+" set "+set.Name] = fmt.Sprintf("%s flags %v %v %v %v", set.KeyType.Name, set.Interval, set.IsMap, set.Dynamic, set.HasTimeout)
		if set.Dynamic && set.HasTimeout {
			continue // packets put into it what time takes out, as they count
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return err
		}
		for _, e := range elements {
			s.add(fmt.Sprintf("%s set %s element %x %x %x", at, set.Name, e.Key, e.KeyEnd, e.Val))
		}
	}
	return nil
}

func deref[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

// Sysctls that change without anybody's doing.
var restless = map[string]bool{
	"/proc/sys/net/netfilter/nf_conntrack_count": true,
}

func snapshotSysctls(s Snapshot) error {
	return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) || restless[path] {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode()&0o444 == 0 {
			return nil // write-only, or gone with its link
		}
		b, err := os.ReadFile(path)
		if err != nil { // stable_secret, as long as it is not set
			b = []byte(err.Error())
		}
		s["sysctl "+path] = strings.TrimSpace(string(b))
		return nil
	})
}
