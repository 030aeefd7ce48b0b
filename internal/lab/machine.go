package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// private are the directories that a machine has for itself, empty at first.
var private = []string{"/run", "/var/lib"}

// Machine gives the node what else a machine has of its own, for programs such
// as Podman that leave traces in all of it: processes started from now on see
// no others, mount what they like, have an empty /run and /var/lib, and make
// control groups below one of the lab's. All of it ends with the lab, and with
// this process: a container's processes too, however they detach themselves.
func (n *Node) Machine() error {
	mounts, err := cgroupMounts()
	if err != nil {
		return fmt.Errorf("find the control groups: %w", err)
	}
	// Package os clones a process to try out what the kernel can, once. That
	// must not be the one that becomes the first of the machine's.
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		p.Release()
	}
	name := filepath.Base(n.lab.Dir)
	for _, dir := range mounts {
		if err := n.makeCgroup(dir, name); err != nil {
			return fmt.Errorf("make control groups for %s: %w", n.Name, err)
		}
	}
	made := make(chan error)
	n.calls <- func() { made <- isolate(name, mounts) }
	if err := <-made; err != nil {
		return fmt.Errorf("give %s mounts of its own: %w", n.Name, err)
	}
	// The first process is the one that all others end with. Orphans become its
	// children, and a shell that waits buries those too. To it its own control
	// groups are the whole.
	first := n.Command(context.Background(), "unshare", "--cgroup", "sh", "-c", `mount -t proc proc /proc && echo ready && { sleep infinity & wait; }`)
	out, err := first.StdoutPipe()
	if err != nil {
		return err
	}
	var wrong strings.Builder
	first.Stderr = &wrong
	if err := first.Start(); err != nil {
		return fmt.Errorf("start the first process of %s: %w", n.Name, err)
	}
	n.lab.Cleanup(func() error { return endAll(first) })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("start the first process of %s: %q: %w: %s", n.Name, line, err, wrong.String())
	}
	if err := n.enter(fmt.Sprintf("/proc/%d/ns/cgroup", first.Process.Pid)); err != nil {
		return fmt.Errorf("give %s control groups of its own: %w", n.Name, err)
	}
	n.alone.Store(true)
	return nil
}

// enter has the node's thread enter a namespace besides its own.
func (n *Node) enter(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	entered := make(chan error)
	n.calls <- func() { entered <- unix.Setns(int(f.Fd()), 0) }
	return <-entered
}

// endAll kills the first process of a machine, and with it all others, and
// waits until they are gone.
func endAll(first *Cmd) error {
	ended := make(chan error, 1)
	err := first.Process.Kill()
	go func() { ended <- first.Wait() }()
	select {
	case <-ended: // with an error, for it was killed
		return err
	case <-time.After(patience):
		return errors.Join(err, fmt.Errorf("the processes of %s have not ended after %v", first.node.Name, patience))
	}
}

// makeCgroup makes a control group. Threads cannot join one of the new kind: it
// is kept open, for processes to start in.
func (n *Node) makeCgroup(hierarchy, name string) error {
	dir := filepath.Join(hierarchy, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "tasks")); errors.Is(err, fs.ErrNotExist) {
		if n.cgroup, err = os.Open(dir); err == nil {
			n.lab.Cleanup(n.cgroup.Close)
		}
		return err
	}
	// A cpuset takes nobody until it is told where.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		all, err := os.ReadFile(filepath.Join(hierarchy, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, os.WriteFile(filepath.Join(dir, file), all, 0)); err != nil {
			return err
		}
	}
	return nil
}

// isolate puts the calling thread and the processes that it will start apart,
// in control groups of the given name.
func isolate(name string, hierarchies []string) error {
	for _, dir := range hierarchies {
		if err := joinCgroup(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("join the control group: %w", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWPID); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, dir := range hierarchies {
		if err := unix.Mount(filepath.Join(dir, name), dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for _, dir := range private {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

// joinCgroup moves the calling thread to a control group, where threads have
// groups of their own: in hierarchies of the old kind.
func joinCgroup(dir string) error {
	tasks, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer tasks.Close()
	_, err = tasks.WriteString("0")
	return err
}

// cgroupMounts lists where the hierarchies of control groups are mounted.
func cgroupMounts() (dirs []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		if strings.HasPrefix(after, "cgroup ") || strings.HasPrefix(after, "cgroup2 ") {
			dirs = append(dirs, strings.Fields(before)[4])
		}
	}
	return dirs, lines.Err()
}

// removeCgroups removes the control groups of the lab of that name. The kernel
// needs a moment to notice that the processes in them have ended.
func removeCgroups(name string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return fmt.Errorf("find the control groups: %w", err)
	}
	for _, dir := range mounts {
		own := filepath.Join(dir, name)
		for range 1000 {
			if err = removeCgroup(own); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("remove the control group %s: %w", own, err)
		}
	}
	return nil
}

// removeCgroup removes a control group and those in it, if it is there.
func removeCgroup(dir string) error {
	groups, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, g := range groups {
		if !g.IsDir() {
			continue
		}
		if err := removeCgroup(filepath.Join(dir, g.Name())); err != nil {
			return err
		}
	}
	return unix.Rmdir(dir)
}
