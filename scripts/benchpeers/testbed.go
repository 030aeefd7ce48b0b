package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// The server's ports.
const (
	httpPort = "80"
	tcpPort  = "5201"
	udpPort  = "5202" // bound, never read: the kernel counts what arrives
	// floodPort hears who wants to be flooded.
	floodPort = "5203"
)

// testbed is four namespaces, the load in three of them and the contender in
// the fourth.
type testbed struct {
	lab                         *lab.Lab
	client, other, host, server *lab.Node
	contender

	hostNS     uint64 // the inode of the host's namespace
	translator *lab.Cmd
	exited     chan struct{} // closed when the contender's command has ended
	log        string        // the file that it writes to

	received atomic.Int64 // TCP payload, either direction, in bytes
	sent     atomic.Int64 // UDP datagrams of the client
	flooded  atomic.Int64 // UDP datagrams of the other client
	trickled atomic.Int64 // writes of the flows that come and go
}

// build makes the namespaces, starts the contender and waits until the server
// answers through it. The caller closes what it returns.
func build(ctx context.Context, c contender) (*testbed, error) {
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	t := &testbed{lab: l, contender: c, exited: make(chan struct{}), log: filepath.Join(l.Dir, "log")}
	if err := t.build(ctx); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *testbed) build(ctx context.Context) error {
	for name, node := range map[string]**lab.Node{"client": &t.client, "other": &t.other, "host": &t.host, "server": &t.server} {
		var err error
		if *node, err = t.lab.Node(name); err != nil {
			return err
		}
	}
	if err := t.wire(); err != nil {
		return err
	}
	if err := t.serve(); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	if err := t.start(); err != nil {
		return fmt.Errorf("start %s: %w", t.name, err)
	}
	return t.ready(ctx)
}

// wire joins the namespaces, and has the host forward both families.
func (t *testbed) wire() error {
	for _, w := range []struct {
		node               *lab.Node
		link               string // the host's
		host6, node6       string
		host4, node4, bits string
	}{
		{t.client, "client", "2001:db8:1:1::1", "2001:db8:1:1::2", "192.0.2.1", "192.0.2.2", "/25"},
		{t.other, "other", "2001:db8:1:2::1", "2001:db8:1:2::2", "192.0.2.129", "192.0.2.130", "/25"},
		{t.server, "server", "2001:db8:2::1", direct6, "203.0.113.1", direct4, "/24"},
	} {
		if err := lab.Wire(t.host, w.link, w.node, "up", 0); err != nil {
			return err
		}
		for _, err := range []error{
			t.host.Address(w.link, w.host6+"/64"), t.host.Address(w.link, w.host4+w.bits),
			w.node.Address("up", w.node6+"/64"), w.node.Address("up", w.node4+w.bits),
			w.node.Route("::/0", w.host6, ""), w.node.Route("0.0.0.0/0", w.host4, ""),
			w.node.SetSysctl("net/ipv4/ping_group_range", "0 0"),
		} {
			if err != nil {
				return err
			}
		}
	}
	return errors.Join(t.host.SetSysctl("net/ipv6/conf/all/forwarding", "1"), t.host.SetSysctl("net/ipv4/ip_forward", "1"))
}

// serve opens the server's ports.
func (t *testbed) serve() error {
	web, err := t.server.Listen("tcp", ":"+httpPort)
	if err != nil {
		return err
	}
	t.lab.Cleanup(web.Close)
	go lab.Serve(web)
	bulk, err := t.server.Listen("tcp", ":"+tcpPort)
	if err != nil {
		return err
	}
	t.lab.Cleanup(bulk.Close)
	go t.serveTCP(bulk)
	sink, err := t.server.ListenPacket("udp", ":"+udpPort)
	if err != nil {
		return err
	}
	t.lab.Cleanup(sink.Close)
	// Enough for a few datagrams: what is not read need not be kept.
	return sink.(*net.UDPConn).SetReadBuffer(4096)
}

// start runs the contender's command in a process group of its own.
func (t *testbed) start() (err error) {
	var st unix.Stat_t
	if err := t.host.Do(func() error { return unix.Stat("/proc/thread-self/ns/net", &st) }); err != nil {
		return err
	}
	t.hostNS = st.Ino
	if t.prepare != nil {
		if err := t.prepare(t.host); err != nil {
			return err
		}
	}
	if t.command == "" {
		return nil
	}
	log, err := os.Create(t.log)
	if err != nil {
		return err
	}
	defer log.Close()
	dir := filepath.Join(t.lab.Dir, "translator")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	cmd := t.host.Command(context.Background(), "sh", "-c", t.command)
	cmd.Env = append(os.Environ(), "PREF64="+pref64, "POOL="+pool, "CLIENTS="+clients, "OWN4="+own4, "OWN6="+own6, "DIR="+dir)
	cmd.Env = append(cmd.Env, t.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	t.translator = cmd
	go func() {
		_ = cmd.Wait() // ProcessState tells
		close(t.exited)
	}()
	return nil
}

// ready waits until the server answers through the contender.
func (t *testbed) ready(ctx context.Context) error {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
		conn, err := t.client.Dial(attempt, "tcp", net.JoinHostPort(t.target, httpPort))
		cancel()
		if err == nil {
			return conn.Close()
		}
		if err := t.died(); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("reach the server through %s: no answer: %s", t.name, t.lastWords())
}

// died is an error when the translator has ended by itself. A command that has
// done its work in the kernel may end well.
func (t *testbed) died() error {
	if t.translator == nil {
		return nil
	}
	select {
	case <-t.exited:
		if !t.translator.ProcessState.Success() {
			return fmt.Errorf("%s ended: %s: %s", t.name, t.translator.ProcessState, t.lastWords())
		}
	default:
	}
	return nil
}

// lastWords are the end of what the contender's command wrote.
func (t *testbed) lastWords() string {
	b, err := os.ReadFile(t.log)
	if err != nil {
		return "it wrote nothing"
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " / ")
}

// close ends the contender, with all that it has started, and the namespaces.
func (t *testbed) close() error {
	if t.translator != nil {
		_ = syscall.Kill(-t.translator.Process.Pid, syscall.SIGTERM) // it may have ended
		for range 100 {
			if len(t.processes()) == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		for _, pid := range t.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return t.lab.Close()
}

// processes are those in the host's namespace: the translator's. This one has
// threads there, but does not count.
func (t *testbed) processes() (pids []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range paths {
		var st unix.Stat_t
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err == nil && pid != os.Getpid() && unix.Stat(path, &st) == nil && st.Ino == t.hostNS {
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpu is the CPU time that the translator's processes have used. The kernel's
// part of their system calls is in it, and so is the forwarding of what they
// write.
func (t *testbed) cpu() (total time.Duration) {
	for _, pid := range t.processes() {
		var ts unix.Timespec
		// The clock of a process, see clock_getcpuclockid(3).
		if unix.ClockGettime(int32(^pid<<3|2), &ts) == nil {
			total += time.Duration(ts.Nano())
		}
	}
	return total
}

// resident is the memory of the translator's processes in bytes; 0 without any.
func (t *testbed) resident() (total int64) {
	for _, pid := range t.processes() {
		// Not VmRSS, which the kernel keeps only roughly.
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range bytes.Lines(b) {
			if f := strings.Fields(string(line)); f[0] == "Rss:" {
				kib, _ := strconv.ParseInt(f[1], 10, 64)
				total += kib << 10
			}
		}
	}
	return total
}

// arrived counts the UDP datagrams that have reached the server's socket,
// whether or not it had room for them.
func (t *testbed) arrived() (n int64, err error) {
	err = t.server.Do(func() error {
		four, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		six, err := os.ReadFile("/proc/thread-self/net/snmp6")
		n = datagrams4(string(four)) + datagrams6(string(six))
		return err
	})
	return n, err
}

// udpCounters together are what arrived at sockets: delivered, and dropped for
// want of room or of memory.
var udpCounters = []string{"InDatagrams", "RcvbufErrors", "MemErrors"}

// datagrams4 reads /proc/net/snmp, where a line of names precedes one of
// values.
func datagrams4(snmp string) (n int64) {
	var names []string
	for line := range strings.Lines(snmp) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names[:min(len(names), len(f))] {
			n += counted(name, f[i])
		}
	}
	return n
}

// datagrams6 reads /proc/net/snmp6, a name and a value per line.
func datagrams6(snmp6 string) (n int64) {
	for line := range strings.Lines(snmp6) {
		name, value, _ := strings.Cut(line, " ")
		if name, ok := strings.CutPrefix(strings.TrimSpace(name), "Udp6"); ok {
			n += counted(name, strings.TrimSpace(value))
		}
	}
	return n
}

func counted(name, value string) int64 {
	for _, c := range udpCounters {
		if c == name {
			v, _ := strconv.ParseInt(value, 10, 64)
			return v
		}
	}
	return 0
}
