package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// agentVariable makes this test binary an agent: a process on the host, not
// root there, that does what it is told.
const agentVariable = "NATLESS_ATTACK_AGENT"

const nobody = 65534

// agent is such a process, seen from the test.
type agent struct {
	pid int // as the host sees it
	ns  *netlink.Handle
	cmd *lab.Cmd
	end sync.Once

	mu  sync.Mutex
	in  *json.Encoder
	out *json.Decoder
}

// agent starts one, by a program in front of it if one is named.
func (a *attack) agent(by ...string) *agent {
	a.t.Helper()
	self, err := os.Open("/proc/self/exe") // others may not enter the folder that it is in
	require.NoError(a.t, err)
	defer self.Close()
	words := append(by, "/proc/self/fd/3")
	c := a.Host.Command(context.Background(), words[0], words[1:]...)
	c.Env, c.ExtraFiles = append(os.Environ(), agentVariable+"=1"), []*os.File{self}
	c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	in, err := c.StdinPipe()
	require.NoError(a.t, err)
	out, err := c.StdoutPipe()
	require.NoError(a.t, err)
	c.Stderr = os.Stderr
	require.NoError(a.t, c.Start())
	g := &agent{cmd: c, in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out))}
	a.t.Cleanup(g.kill)
	require.NoError(a.t, g.out.Decode(&g.pid), "start an agent")
	return g
}

// newHostile is a process that is root in namespaces of its own and nobody on
// the host, as in a rootless container.
func (a *attack) newHostile() *agent {
	g := a.agent("unshare", "--user", "--map-root-user", "--mount", "--net")
	ns, err := netns.GetFromPath(fmt.Sprintf("/proc/%d/ns/net", g.cmd.Process.Pid))
	require.NoError(a.t, err)
	defer ns.Close()
	g.ns, err = netlink.NewHandleAt(ns)
	require.NoError(a.t, err)
	require.NoError(a.t, g.do("hide"))
	return g
}

// kill ends the agent, once.
func (g *agent) kill() {
	g.end.Do(func() {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
	})
}

// do has the agent do something. It has 5 seconds, or is killed.
func (g *agent) do(words ...string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer time.AfterFunc(5*time.Second, func() { _ = g.cmd.Process.Kill() }).Stop()
	answer := ""
	if err := errors.Join(g.in.Encode(words), g.out.Decode(&answer)); err != nil {
		return fmt.Errorf("agent: %v: %w", words, err)
	}
	if answer != "" {
		return fmt.Errorf("agent: %v: %s", words, answer)
	}
	return nil
}

// inside calls f on a thread in the agent's network namespace.
func (g *agent) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		ns, err := netns.GetFromPath(fmt.Sprintf("/proc/%d/ns/net", g.cmd.Process.Pid))
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// agentMain is the agent's life.
func agentMain(in io.Reader, out io.Writer) {
	answers, orders := json.NewEncoder(out), json.NewDecoder(in)
	_ = answers.Encode(os.Getpid())
	for words := []string(nil); orders.Decode(&words) == nil; {
		answer := ""
		if err := obey(words[0], append(words[1:], "", "")); err != nil {
			answer = err.Error()
		}
		_ = answers.Encode(answer)
	}
}

var held []io.Closer // locks and connections

func obey(order string, arg []string) error {
	switch order {
	case "hide": // an /etc of its own
		return errors.Join(
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", "/etc", "tmpfs", 0, "mode=0755"),
			os.WriteFile("/etc/resolv.conf", []byte("nameserver 192.0.2.53\n"), 0o644))
	case "put": // something in place of a file, in one step
		return put(arg[0], arg[1], arg[2])
	case "lock":
		return lockFile(arg[0])
	case "lock-all": // that it can open
		return filepath.WalkDir(arg[0], func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				_ = lockFile(path)
			}
			return nil
		})
	case "connect": // and say half of something
		c, err := net.DialTimeout("unix", arg[0], time.Second)
		if err != nil {
			return err
		}
		held = append(held, c)
		_, err = c.Write([]byte(arg[1]))
		return err
	case "let-go":
		for _, c := range held {
			_ = c.Close()
		}
		held = nil
		return nil
	case "call-yourself":
		return os.WriteFile("/proc/self/comm", []byte(arg[0]), 0)
	}
	return fmt.Errorf("no order %q", order)
}

func put(kind, path, what string) (err error) {
	next := path + ".next"
	switch kind {
	case "fifo":
		err = unix.Mkfifo(next, 0o644)
	case "dir":
		err = os.Mkdir(next, 0o755)
	case "link":
		err = os.Symlink(what, next)
	case "file":
		err = os.WriteFile(next, []byte(what), 0o644)
	case "nothing":
		return os.RemoveAll(path)
	}
	if err == nil && os.Rename(next, path) != nil { // a directory is there, or is to come
		err = errors.Join(os.RemoveAll(path), os.Rename(next, path))
	}
	return err
}

func lockFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	held = append(held, f)
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}
