package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// invariants hold whatever anybody does. They are judged when the moves of a
// round are over; each gives what the kernel and natless need time for that.
var invariants = []struct {
	name  string
	judge func(a *attack) []string
}{
	{"detach", (*attack).judgeDetach}, // the rest is judged with nothing attached
	{"daemon", (*attack).judgeDaemon},
	{"host", (*attack).judgeHost},
	{"files", (*attack).judgeFiles},
	{"lease", (*attack).judgeLeases},
	{"service", (*attack).judgeService},
	{"packets at s", func(a *attack) []string { return judgePackets(a.atS, atServer) }},
	{"packets at c2", func(a *attack) []string { return judgePackets(a.atC2, atVictim) }},
}

// judge ends the test where an invariant does not hold.
func (a *attack) judge() {
	a.t.Helper()
	for _, i := range invariants {
		for _, wrong := range i.judge(a) {
			a.fault(i.name, "%s", wrong)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.faults) > 0 {
		a.t.Fatalf("after %v:\n%s", a.recent, strings.Join(a.faults, "\n"))
	}
	for _, g := range a.dead {
		g.ns.Close()
	}
	a.recent, a.dead = nil, nil
}

// judgeEnd stops natless, takes back what is left, and wants the host as it was
// before.
func (a *attack) judgeEnd() {
	a.t.Helper()
	begun := time.Now()
	assert.NoError(a.t, a.daemon.Stop())
	assert.Less(a.t, time.Since(begun), hang, "natless takes its time to end")
	a.natless([]int{0}, "down", "--state-dir", hostState)
	left(a.t, a.Host, a.before, "after down")
	assert.Empty(a.t, changed(a.files, tree(a.root, decoys)), "files after down")
	a.mu.Lock()
	defer a.mu.Unlock()
	assert.Empty(a.t, a.faults)
}

// judgeDetach detaches what is attached, whatever has become of it.
func (a *attack) judgeDetach() []string {
	a.rights.Lock()
	defer a.rights.Unlock()
	return eventually(a.detached)
}

// detached says what cannot be detached.
func (a *attack) detached() (left []string) {
	for _, t := range a.attached() {
		out, _ := a.natless([]int{0, 1}, "detach", t.ID)
		left = append(left, fmt.Sprintf("%s stays attached: %s", t.Target, out))
	}
	return left
}

// eventually is what is still wrong after as long as a command may take.
func eventually(wrong func() []string) (list []string) {
	for end := time.Now().Add(hang); ; time.Sleep(100 * time.Millisecond) {
		if list = wrong(); len(list) == 0 || time.Now().After(end) {
			return list
		}
	}
}

// judgeHost: routes, addresses, rules, tables of all, sysctls are those of a
// natless at rest.
func (a *attack) judgeHost() []string {
	return eventually(func() []string {
		now, err := a.Host.Snapshot()
		if err != nil {
			return []string{err.Error()} // a link has just gone
		}
		return a.running.Diff(now)
	})
}

// decoys are the directories that nobody has any business in, below the root.
var decoys = []string{"etc", "run/decoy", "var/lib/decoy"}

func (a *attack) judgeFiles() []string { return changed(a.files, tree(a.root, decoys)) }

// tree is what is in directories: modes, owners, contents.
func tree(root string, dirs []string) map[string]string {
	files := map[string]string{}
	for _, dir := range dirs {
		_ = filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // it goes missing from the list
			}
			name := strings.TrimPrefix(path, root)
			info, err := d.Info()
			if err != nil {
				return nil
			}
			what := info.Mode().String()
			if info.Mode().IsRegular() {
				b, err := os.ReadFile(path)
				what = fmt.Sprintf("%s %x %v", what, sha256.Sum256(b), err)
			}
			if info.Mode().Type() == fs.ModeSymlink {
				to, _ := os.Readlink(path)
				what += " " + to
			}
			files[name] = what
			return nil
		})
	}
	return files
}

// changed lists the names that differ.
func changed(before, now map[string]string) (list []string) {
	for name, was := range before {
		if is, ok := now[name]; !ok || is != was {
			list = append(list, fmt.Sprintf("%s: was %q, is %q", name, was, is))
		}
	}
	for name, is := range now {
		if _, ok := before[name]; !ok {
			list = append(list, fmt.Sprintf("%s: is new, %q", name, is))
		}
	}
	slices.Sort(list)
	return list
}

// judgeLeases: c2 has the address it had, and nobody leases but clients.
func (a *attack) judgeLeases() (wrong []string) {
	leases := a.leases()
	if got := leases[netip.MustParseAddr(victim6)]; got != a.lease {
		wrong = append(wrong, fmt.Sprintf("c2 has %v, had %v", got, a.lease))
	}
	for client, has := range leases {
		if !mayLease(client) {
			wrong = append(wrong, fmt.Sprintf("%v leases %v", client, has))
		}
	}
	return wrong
}

// clientNets are where clients are: c1's link, c2's, the bridge, links of attach.
var clientNets = []netip.Prefix{
	netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("2001:db8:2::/64"),
	netip.MustParsePrefix("2001:db8:3::/64"), netip.MustParsePrefix("fd00::/8"),
}

func mayLease(client netip.Addr) bool {
	host := netip.MustParseAddr(uplink6 + "1")
	return client == host || slices.ContainsFunc(clientNets, func(p netip.Prefix) bool { return p.Contains(client) })
}

// judgeService: c2 reaches s.
func (a *attack) judgeService() (wrong []string) {
	ctx, cancel := context.WithTimeout(a.t.Context(), 2*hang)
	defer cancel()
	if _, err := lab.Ping(ctx, a.c2, "", netip.MustParseAddr(lab.Server6), 56); err != nil {
		wrong = append(wrong, err.Error())
	}
	if _, err := lab.Download(ctx, a.c2.HTTP(""), server6+":8080", make([]byte, 256<<10), nil); err != nil {
		wrong = append(wrong, err.Error())
	}
	return wrong
}

// resources is what a process has of the host's.
type resources struct{ files, threads, memory int } // memory in KiB

func (a *attack) resources() (r resources) {
	dir := fmt.Sprintf("/proc/%d", a.daemon.Process.Pid)
	fds, _ := os.ReadDir(dir + "/fd")
	status, _ := os.ReadFile(dir + "/status")
	r.files = len(fds)
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Threads:" {
			r.threads, _ = strconv.Atoi(f[1])
		} else if len(f) > 1 && f[0] == "VmRSS:" {
			r.memory, _ = strconv.Atoi(f[1])
		}
	}
	return r
}

// judgeDaemon: it lives, and does not grow without end.
func (a *attack) judgeDaemon() (wrong []string) {
	select {
	case <-a.daemon.Exited:
		return []string{"natless has ended"}
	default:
	}
	return eventually(func() []string { return a.base.grown(a.resources()) })
}

// grown says what is more than an attack may cost.
func (r resources) grown(now resources) (wrong []string) {
	for _, g := range []struct {
		what           string
		was, now, more int
	}{
		{"descriptors", r.files, now.files, 64},
		{"threads", r.threads, now.threads, 32},
		{"KiB of memory", r.memory, now.memory, 192 << 10},
	} {
		if g.now > g.was+g.more {
			wrong = append(wrong, fmt.Sprintf("natless has %d %s, had %d", g.now, g.what, g.was))
		}
	}
	return wrong
}

// judgePackets says of each kind of fault one packet.
func judgePackets(c *lab.Capture, judge func([]byte) string) (wrong []string) {
	time.Sleep(100 * time.Millisecond) // what is under way arrives
	kinds := map[string]string{}
	for _, b := range c.Take() {
		if why := judge(b); why != "" {
			p, _ := see(b)
			kinds[why] = p.String()
		}
	}
	for why, b := range kinds {
		wrong = append(wrong, why+": "+b)
	}
	return wrong
}

// refused are IPv4 destinations that no packet leaves for.
var refused4 = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"),
}

// atServer says what is wrong with a packet at s, which hears only the host.
func atServer(b []byte) string {
	p, ok := see(b)
	switch {
	case !ok:
		return notIP(b)
	case p.src.Is6():
		if p.src.IsLinkLocalUnicast() || p.src.IsUnspecified() || p.dst.IsMulticast() {
			return "" // neighbours
		}
		return "IPv6 where there is only IPv4"
	case p.src.String() == lab.ServerIPv4:
		return "" // its own
	case p.src.String() != lab.HostIPv4:
		return "a source that is not the host's"
	case slices.ContainsFunc(refused4, func(r netip.Prefix) bool { return r.Contains(p.dst) }):
		return "a destination that is refused"
	case p.mtu >= 0 && p.mtu < 1260:
		return "an MTU below that of IPv6"
	}
	return marked(b, p)
}

// notIP says what is wrong with what is no packet: nothing, if it is ARP.
func notIP(b []byte) string {
	if len(b) >= 28 && b[0] == 0 && b[1] == 1 {
		return ""
	}
	return "neither IP nor ARP"
}

// marked says whether a packet is one of attackers'. That the host's kernel
// tells of a forged packet whom it says it is from is no fault of natless's.
func marked(b []byte, p seen) string {
	switch {
	case bytes.Contains(b, []byte(markQuoted)):
		return "a forged ICMP error"
	case !p.icmpError && bytes.Contains(b, []byte(markForged)):
		return "a forged packet"
	}
	return ""
}

// neighbours reports whether a packet is of neighbour discovery.
func neighbours(p seen) bool {
	return p.protocol == unix.IPPROTO_ICMPV6 && len(p.upper) > 0 && p.upper[0] >= 133 && p.upper[0] <= 137
}

// hostAddresses are the host's, and natless's own, that tell of errors.
var hostAddresses = []string{"2001:db8:1::1", "2001:db8:2::1", "2001:db8:3::1", uplink6 + "1", lab.OwnIPv6}

// atVictim says what is wrong with a packet at c2, which speaks with s alone.
func atVictim(b []byte) string {
	p, ok := see(b)
	fromHost := slices.Contains(hostAddresses, p.src.String())
	router := p.icmpError && netip.MustParsePrefix(lab.Pref64).Contains(p.src) // any on the way may tell of errors
	switch {
	case !ok:
		return notIP(b)
	case p.src.Is4():
		return "not IPv6"
	case p.src.String() == victim6 && p.dst.String() != victim6:
		return "" // its own
	case p.src.IsLinkLocalUnicast() || p.src.IsUnspecified() || p.src.String() == "2001:db8:2::80":
		return marked(b, p) // neighbours
	case p.src != behind(lab.ServerIPv4) && !fromHost && !router:
		return "a source that c2 has nothing to do with"
	case fromHost && !p.icmpError && !p.dst.IsMulticast() && !neighbours(p):
		return "data from the host"
	case p.mtu >= 0 && p.mtu < 1280:
		return "an MTU below that of IPv6"
	}
	return marked(b, p)
}

// wrongOutput says what is wrong with how a command ended: a code that it has not
// among those expected, a crash, or what a terminal would obey.
func wrongOutput(out string, code int, codes []int) (wrong []string) {
	if !slices.Contains(codes, code) {
		wrong = append(wrong, fmt.Sprintf("exit code %d, expected one of %v", code, codes))
	}
	if strings.Contains(out, "panic: ") || strings.Contains(out, "DATA RACE") {
		wrong = append(wrong, "it crashed")
	}
	if strings.ContainsFunc(out, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) {
		wrong = append(wrong, "control characters reach the terminal")
	}
	return wrong
}
