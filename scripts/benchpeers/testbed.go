package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const prefix = "natless-bench-" // of namespace names, before the process id and c, h or s

// testbed is three namespaces and what runs in them.
type testbed struct {
	dir        string
	c, h, s    string // names of client, host, server
	translator *exec.Cmd
	log        bytes.Buffer
}

// command runs in a namespace, in a process group of its own that a cancelled
// context ends: Ctrl-C reaches this program only, which then cleans up.
func command(ctx context.Context, namespace string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", namespace}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// build makes the namespaces and starts the contender, and waits until the
// server answers through it. close is due in any case.
func (t *testbed) build(ctx context.Context, c contender) error {
	sweep()
	name := prefix + strconv.Itoa(os.Getpid())
	t.c, t.h, t.s = name+"c", name+"h", name+"s"
	var err error
	if t.dir, err = os.MkdirTemp("", name+"-"); err != nil {
		return err
	}
	setup := exec.CommandContext(ctx, "sh", "-ec", `
		for n in $C $H $S; do ip netns add $n; ip -n $n link set lo up; done
		ip -n $C link add up0 type veth peer name client netns $H
		ip -n $S link add up0 type veth peer name server netns $H
		ip -n $C link set up0 up; ip -n $S link set up0 up; ip -n $H link set client up; ip -n $H link set server up
		ip -n $C addr add 2001:db8:1::2/64 dev up0 nodad; ip -n $H addr add 2001:db8:1::1/64 dev client nodad
		ip -n $S addr add 2001:db8:2::2/64 dev up0 nodad; ip -n $H addr add 2001:db8:2::1/64 dev server nodad
		ip -n $C addr add 192.0.2.2/24 dev up0; ip -n $H addr add 192.0.2.1/24 dev client
		ip -n $S addr add 203.0.113.2/24 dev up0; ip -n $H addr add 203.0.113.1/24 dev server
		ip -n $C route add default via 2001:db8:1::1; ip -n $C route add default via 192.0.2.1
		ip -n $S route add default via 2001:db8:2::1; ip -n $S route add default via 203.0.113.1
		ip netns exec $H sh -ec '
			echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 1 > /proc/sys/net/ipv4/ip_forward'`)
	setup.Env = append(os.Environ(), "C="+t.c, "H="+t.h, "S="+t.s)
	if out, err := setup.CombinedOutput(); err != nil {
		return fmt.Errorf("make namespaces: %w: %s", err, lastLines(string(out), 2))
	}
	exited := make(chan struct{}) // and t.log is complete
	if c.command != "" {
		t.translator = command(context.WithoutCancel(ctx), t.h, "sh", "-c", c.command)
		t.translator.Env = append(append(append(os.Environ(), environment...), c.env...), "DIR="+t.dir)
		t.translator.Stdout, t.translator.Stderr = &t.log, &t.log
		if err := t.translator.Start(); err != nil {
			return err
		}
		go func() { t.translator.Wait(); close(exited) }()
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && ctx.Err() == nil; {
		if t.answers(ctx, c.target) {
			return nil
		}
		select {
		case <-exited: // well, and all is in the kernel, or not
			if !t.translator.ProcessState.Success() {
				return fmt.Errorf("run %s: %s: %s", c.name, t.translator.ProcessState, lastLines(t.log.String(), 3))
			}
		default:
		}
	}
	if t.translator != nil {
		end(t.translator)
		<-exited
	}
	return fmt.Errorf("reach the server through %s: no answer: %s", c.name, lastLines(t.log.String(), 3))
}

// answers says whether the server can be reached: by TCP and not by ping, which
// may not be installed.
func (t *testbed) answers(ctx context.Context, target string) bool {
	server := command(ctx, t.s, "iperf3", "-s", "-1", "-p", "5200")
	if server.Start() != nil {
		return false
	}
	defer kill(server)
	time.Sleep(100 * time.Millisecond) // until it listens
	return command(ctx, t.c, "iperf3", "-c", target, "-p", "5200", "-n", "1", "--connect-timeout", "500").Run() == nil
}

// kill ends a process group that has nothing to put back.
func kill(cmd *exec.Cmd) {
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	cmd.Wait()
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " / ")
}

// end asks a process group to stop, and kills it when it has not in 5 seconds.
func end(cmd *exec.Cmd) {
	group := -cmd.Process.Pid
	err := syscall.Kill(group, syscall.SIGTERM)
	for i := 0; err == nil && i < 100; i++ {
		time.Sleep(50 * time.Millisecond)
		err = syscall.Kill(group, 0)
	}
	if err == nil {
		syscall.Kill(group, syscall.SIGKILL)
	}
}

func (t *testbed) close() {
	if t.translator != nil && t.translator.Process != nil {
		end(t.translator)
	}
	for _, n := range []string{t.c, t.h, t.s} {
		remove(n)
	}
	os.RemoveAll(t.dir)
}

// remove ends what still runs in a namespace and deletes it.
func remove(namespace string) {
	if namespace == "" {
		return
	}
	for _, pid := range processesIn(namespace) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	exec.Command("ip", "netns", "del", namespace).Run() // it may not exist
}

// sweep removes what a killed run left behind.
func sweep() {
	names, _ := filepath.Glob("/run/netns/" + prefix + "*")
	for _, path := range names {
		name := filepath.Base(path)
		pid, err := strconv.Atoi(strings.TrimRight(strings.TrimPrefix(name, prefix), "chs"))
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			remove(name)
			scratch, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+strconv.Itoa(pid)+"-*"))
			for _, dir := range scratch {
				os.RemoveAll(dir)
			}
		}
	}
}

// processesIn lists the processes in a namespace.
func processesIn(namespace string) (pids []int) {
	var ns, own syscall.Stat_t
	if syscall.Stat("/run/netns/"+namespace, &ns) != nil {
		return nil
	}
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range paths {
		if syscall.Stat(path, &own) == nil && own.Ino == ns.Ino && own.Dev == ns.Dev {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpu is the time that the processes in the host's namespace, all of them the
// translator's, have spent on a CPU. The kernel's part of their system calls is
// in it, and so is the forwarding of what they write.
func (t *testbed) cpu() (total time.Duration, any bool) {
	for _, pid := range processesIn(t.h) {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, path := range threads {
			b, _ := os.ReadFile(path)
			ns, _, _ := strings.Cut(string(b), " ")
			n, err := strconv.ParseInt(ns, 10, 64)
			any = any || err == nil
			total += time.Duration(n)
		}
	}
	return total, any
}

// sent counts the packets that the host has sent to the server.
func (t *testbed) sent() int64 {
	out, _ := exec.Command("ip", "-n", t.h, "-j", "-s", "link", "show", "dev", "server").Output()
	var links []struct {
		Stats struct{ TX struct{ Packets int64 } } `json:"stats64"`
	}
	if json.Unmarshal(out, &links) != nil || len(links) == 0 {
		return 0
	}
	return links[0].Stats.TX.Packets
}
