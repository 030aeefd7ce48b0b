package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
)

// The attack harness. Everybody that natless has to assume hostile does at
// random what the catalogue (attack_moves_lab_test.go) has, while root uses
// natless; every few rounds the invariants (attack_judge_lab_test.go) have to
// hold.
//
//	c1 ──lan1┐                                   ┌── s  IPv4-only server
//	c2 ──lan2┤ host: natless, root, a local user │
//	c3 ┐     ├──────────────────────────── wan ──┤   (s and u hear only the host)
//	c4 ┴─br0─┤                                   └── u  stranger
//	hostile ─┘ attached process in namespaces of its own
//
// Hostile are c1, c3, the process, u and the local user. c2 is who must not
// notice. Which moves are made follows from the seed; how they interleave is
// the kernel's.
const (
	attackSeed  = "NATLESS_ATTACK_SEED"  // a number; random if there is none
	attackTime  = "NATLESS_ATTACK_TIME"  // such as 8h; attackDefault if there is none
	attackMoves = "NATLESS_ATTACK_MOVES" // names of moves with commas; "known" and "all" are names too

	attackDefault = 20 * time.Second
)

const (
	victim6   = "2001:db8:2::2"
	bridged3  = "2001:db8:3::3"
	bridged4  = "2001:db8:3::4"
	uplink6   = "2001:db8:ffff::"
	stranger4 = "198.51.100.66"
	stranger6 = uplink6 + "66"
	mapped4   = "203.0.113.82"  // of c2's second address, which everybody may reach
	names6    = "2001:db8:1::1" // where DNS64 answers

	hostSocket = "/run/natless/natless.sock" // the defaults
	hostState  = "/var/lib/natless"
)

// station is somebody who sends packets of his own making.
type station struct {
	*lab.Node
	own  netip.Addr
	gate net.HardwareAddr // of the host on his link
}

type attack struct {
	*world
	t              *testing.T
	c1, c3, u      station
	c2, limbo, web *lab.Node
	root           string     // the host's file system, as the test reaches it
	local          *agent     // the local user
	lease          netip.Addr // of c2
	port           uint16     // of c2's connection to s
	atS, atC2      *lab.Capture
	before         lab.Snapshot // of the host without natless
	running        lab.Snapshot // with it, when all is calm
	files          map[string]string
	base           resources
	rights         sync.Mutex // root's, to attach and detach
	pace           pace

	mu      sync.Mutex
	hostile *agent   // the attached process; another after its death
	dead    []*agent // others may still speak of them until the next judgement
	faults  []string
	recent  []string       // moves since the last judgement
	made    map[string]int // moves that did what they set out to
	missed  map[string]error
}

func TestLabAttack(t *testing.T) {
	lab.Require(t)
	if lab.Inside() {
		testenv.SkipAnyway(t, "there is one user in this user namespace")
	}
	seed, limit, moves := attackWanted(t)
	t.Logf("%s=%d %s=%v", attackSeed, seed, attackTime, limit)
	a := stageAttack(t)
	a.pace.off = slices.ContainsFunc(moves, func(m move) bool { return m.name == "attach-churn" })
	for end, round := time.Now().Add(limit), uint64(0); time.Now().Before(end); round++ {
		a.round(rand.New(rand.NewPCG(seed, round)), moves)
		if round%4 == 3 {
			a.judge()
		}
	}
	a.judge()
	a.judgeEnd()
	for _, name := range slices.Sorted(maps.Keys(a.missed)) {
		t.Logf("move %s did not always go as meant: %v", name, a.missed[name])
	}
	t.Logf("moves made: %v", a.made)
}

// attackWanted reads what the environment asks for.
func attackWanted(t *testing.T) (seed uint64, limit time.Duration, moves []move) {
	t.Helper()
	var err error
	seed, limit = rand.Uint64(), attackDefault
	if s := os.Getenv(attackSeed); s != "" {
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, attackSeed)
	}
	if s := os.Getenv(attackTime); s != "" {
		limit, err = time.ParseDuration(s)
		require.NoError(t, err, attackTime)
	}
	moves, err = chosen(catalogue, os.Getenv(attackMoves))
	require.NoError(t, err, attackMoves)
	return seed, limit, moves
}

// chosen picks moves by their names; none: all that are not known to come
// through.
func chosen(all []move, names string) (list []move, err error) {
	for name := range strings.SplitSeq(names, ",") {
		n := len(list)
		for _, m := range all {
			if name == m.name || name == "all" || name == "known" && m.known != "" || name == "" && m.known == "" {
				list = append(list, m)
			}
		}
		if len(list) == n {
			return nil, fmt.Errorf("there is no move %q", name)
		}
	}
	return list, nil
}

// round makes some moves at once, and has root use natless meanwhile.
func (a *attack) round(r *rand.Rand, moves []move) {
	var each sync.WaitGroup
	for _, k := range r.Perm(len(moves))[:min(len(moves), 1+r.IntN(3))] {
		m, its := moves[k], rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		each.Go(func() { a.tell(m.name, m.do(a, its)) })
	}
	root := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
	each.Go(func() {
		for range 1 + root.IntN(3) {
			a.rights.Lock()
			commands[root.IntN(len(commands))](a)
			a.rights.Unlock()
		}
	})
	each.Wait()
}

// tell notes how a move went.
func (a *attack) tell(name string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.recent = append(a.recent, name)
	if err != nil {
		a.missed[name] = err
		return
	}
	a.made[name]++
}

// fault notes what must not be; judge tells of it.
func (a *attack) fault(invariant, format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = append(a.faults, invariant+": "+fmt.Sprintf(format, args...))
}

// target is the attached process of now.
func (a *attack) target() *agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hostile
}

// stageAttack builds the lab and starts natless in it.
func stageAttack(t *testing.T) *attack {
	t.Helper()
	lab.Binary(t)
	a := &attack{t: t, made: map[string]int{}, missed: map[string]error{}}
	a.world = build(t, setup{clients: 2, before: a.arrange})
	a.local = a.agent()
	a.hostile = a.newHostile()
	a.serveMore()
	a.before = calm(t, a.Host)

	flags := []string{"--pref64", lab.Pref64, "--map", lab.MappedIPv4 + "=" + lab.MappedIPv6, "--map", mapped4 + "=2001:db8:2::80", "--socket", hostSocket, "--state-dir", hostState}
	a.daemon = launch(t, a.Host, setup{
		config: own + "[dns64]\nlisten = [\"" + names6 + "\"]\nupstreams = [\"" + lab.ServerIPv4 + "\"]\n", flags: flags,
	})
	a.daemon.Socket = hostSocket
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, a.daemon.Ready(ctx))
	_, err := lab.Ping(ctx, a.c2, "", netip.MustParseAddr(lab.Server6), 56)
	require.NoError(t, err)
	a.lease = a.leases()[netip.MustParseAddr(victim6)]
	require.True(t, a.lease.IsValid(), "c2 has no lease")
	a.converse()

	a.atS, err = a.Server.CaptureAll("eth0")
	require.NoError(t, err)
	a.atC2, err = a.c2.CaptureAll("eth0")
	require.NoError(t, err)
	a.running, a.files, a.base = calm(t, a.Host), tree(a.root, decoys), a.resources()
	return a
}

// arrange makes of a lab what the picture has. The host gets mounts of its
// own: what an attack writes with root's rights it writes in the lab.
func (a *attack) arrange(t *testing.T, n *lab.Network) {
	must := func(err error) { t.Helper(); require.NoError(t, err) }
	node := func(name string) *lab.Node {
		made, err := n.Node(name)
		must(err)
		return made
	}
	host, nobodys := n.Host, node("net")
	c3, c4, u := node("c3"), node("c4"), node("u")
	a.limbo, a.web = node("limbo"), node("web")
	a.c2 = n.Clients[1]
	must(host.Machine())

	link, err := host.Netlink.LinkByName("wan")
	must(err)
	must(host.Netlink.LinkDel(link))
	for port, end := range map[string]*lab.Node{"wan": host, "server": n.Server, "u": u} {
		name := "eth0"
		if end == host {
			name = "wan"
		}
		if end == n.Server {
			must(end.SetSysctl("net/ipv6/conf/default/disable_ipv6", "0"))
		}
		must(lab.Wire(nobodys, port, end, name, 0))
	}
	must(n.Server.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1"))
	must(bridge(nobodys, "sw", "wan", "server", "u"))
	for _, port := range []string{"server", "u"} { // they hear the host, and not each other
		link, err := nobodys.Netlink.LinkByName(port)
		must(err)
		must(nobodys.Netlink.LinkSetIsolated(link, true))
	}
	must(lab.Wire(host, "port3", c3, "eth0", 0))
	must(lab.Wire(host, "port4", c4, "eth0", 0))
	must(bridge(host, "br0", "port3", "port4"))
	must(host.Address("br0", "2001:db8:3::1/64"))
	for to, address := range map[*lab.Node]string{c3: bridged3, c4: bridged4} {
		must(to.Address("eth0", address+"/64"))
		must(to.Route("::/0", "2001:db8:3::1", ""))
	}
	must(host.Address("wan", lab.HostIPv4+"/24"))
	must(host.Address("wan", uplink6+"1/64"))
	must(host.Route("0.0.0.0/0", lab.ServerIPv4, ""))
	must(n.Server.Address("eth0", lab.ServerIPv4+"/24"))
	must(n.Server.Route("0.0.0.0/0", lab.HostIPv4, ""))
	must(u.Address("eth0", stranger4+"/24"))
	must(u.Address("eth0", stranger6+"/64"))
	must(u.Route("::/0", uplink6+"1", ""))

	gate := func(n *lab.Node, own, link string) station {
		l, err := host.Netlink.LinkByName(link)
		must(err)
		return station{n, netip.MustParseAddr(own), l.Attrs().HardwareAddr}
	}
	a.c1, a.c3, a.u = gate(n.Clients[0], client1, "lan1"), gate(c3, bridged3, "br0"), gate(u, stranger6, "wan")
	lived(t, n)
	a.furnish(host, map[string]*lab.Node{"c1": a.c1.Node, "web": a.web})
}

// furnish gives the host an /etc of its own, files that are nobody's business,
// names for some namespaces, and an operator's rules.
func (a *attack) furnish(host *lab.Node, named map[string]*lab.Node) {
	sh := func(script string, files ...*os.File) {
		a.t.Helper()
		c := host.Command(a.t.Context(), "sh", "-ec", script)
		c.ExtraFiles = files
		out, err := c.CombinedOutput()
		require.NoError(a.t, err, "%s", out)
	}
	sh(`mkdir /run/etc /run/decoy /var/lib/decoy /run/netns
cp -a /etc/. /run/etc; mount --bind /run/etc /etc
for d in /run/decoy /var/lib/decoy; do echo precious > $d/file; chmod 600 $d/file; done`)
	for name, n := range named {
		f, err := os.Open(n.Path())
		require.NoError(a.t, err)
		sh("touch /run/netns/"+name+"; mount -c --bind /proc/self/fd/3 /run/netns/"+name, f)
		f.Close()
	}
	sh(`nft -f - <<'END'
table inet operator {
	chain forward {
		type filter hook forward priority 0
		iifname { "lan1", "br0" } oifname "lan2" drop
	}
	chain input {
		type filter hook input priority 0
		iifname { "lan1", "lan2", "br0" } tcp dport ` + hostPort + ` drop
	}
}
END`)
	keeper := host.Command(context.Background(), "sleep", "infinity")
	require.NoError(a.t, keeper.Start())
	a.t.Cleanup(func() { _, _ = keeper.Process.Kill(), keeper.Wait() })
	a.root = fmt.Sprintf("/proc/%d/root", keeper.Process.Pid)
}

// hostPort is a service of the host that the operator closed to clients.
const hostPort = "2222"

// serveMore starts what else answers: TCP that comes back at s, a service of the
// host, names at s.
func (a *attack) serveMore() {
	echo, err := a.Server.Listen("tcp", net.JoinHostPort(lab.ServerIPv4, "9"))
	require.NoError(a.t, err)
	service, err := a.Host.Listen("tcp", net.JoinHostPort(lab.HostIPv4, hostPort))
	require.NoError(a.t, err)
	names, err := a.Server.ListenPacket("udp", net.JoinHostPort(lab.ServerIPv4, "53"))
	require.NoError(a.t, err)
	a.t.Cleanup(func() { _, _, _ = echo.Close(), service.Close(), names.Close() })
	go each(echo, func(c net.Conn) {
		b := make([]byte, 64)
		for n, err := c.Read(b); err == nil; n, err = c.Read(b) {
			_, _ = c.Write(b[:n])
		}
	})
	go each(service, func(net.Conn) {})
	server := dns.Server{PacketConn: names, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(lab.ServerIPv4)}}
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = server.ActivateAndServe() }()
}

func each(ln net.Listener, serve func(net.Conn)) {
	for c, err := ln.Accept(); err == nil; c, err = ln.Accept() {
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// bridge joins links of a node.
func bridge(n *lab.Node, name string, ports ...string) error {
	return n.Do(func() error {
		errs := []error{exec.Command("ip", "link", "add", name, "type", "bridge").Run(), exec.Command("ip", "link", "set", name, "up").Run()}
		for _, p := range ports {
			errs = append(errs, exec.Command("ip", "link", "set", p, "master", name).Run())
		}
		return errors.Join(errs...)
	})
}

// converse keeps a connection of c2's to s, a byte back and forth ten times a
// second. That none comes back for 5 s is a fault.
func (a *attack) converse() {
	conn, err := a.c2.DialFrom(a.t.Context(), "tcp", victim6, server6+":9")
	require.NoError(a.t, err)
	a.port = uint16(conn.LocalAddr().(*net.TCPAddr).Port)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer conn.Close()
		for b := []byte("."); ; {
			_ = conn.SetDeadline(time.Now().Add(lab.Stall))
			_, err := conn.Write(b)
			if err == nil {
				_, err = conn.Read(b)
			}
			if err != nil {
				a.fault("service", "c2's connection to s: %v", err)
				return
			}
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	a.t.Cleanup(func() { close(done); <-ended })
}

// hang is how long a command of root's may take. attach itself waits as long
// for an answer, and says so, where the target lets nothing through.
const hang = 5 * time.Second

// natless runs a command of root's and judges how it ended.
func (a *attack) natless(codes []int, args ...string) (out string, ok bool) {
	limit := hang
	if args[0] == "attach" {
		limit += hang
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), limit)
	defer cancel()
	out, err := a.daemon.Query(ctx, args...)
	if ctx.Err() != nil {
		a.fault("commands", "natless %v has not ended after %v: %s", args, limit, out)
		return out, false
	}
	code := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		code = -1
	}
	for _, wrong := range wrongOutput(out, code, codes) {
		a.fault("commands", "natless %v: %s: %q", args, wrong, out)
	}
	return out, err == nil
}

// attached is what natless has attached.
func (a *attack) attached() (list []mapping.Attachment) {
	return rows[mapping.Attachment](a, "ps")
}

// leases is who has which address.
func (a *attack) leases() map[netip.Addr]netip.Addr {
	has := map[netip.Addr]netip.Addr{}
	for _, l := range rows[mapping.Lease](a, "lease", "ls") {
		has[l.IPv6] = l.IPv4
	}
	return has
}

// rows is what a listing of natless has.
func rows[T any](a *attack, args ...string) (list []T) {
	out, _ := a.natless([]int{0}, append(args, "-o", "json")...)
	for line := range strings.Lines(out) {
		var row T
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			a.fault("commands", "natless %v: %v: %q", args, err, line)
			continue
		}
		list = append(list, row)
	}
	return list
}
