package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/proc"
)

const (
	namedNamespaces = "/run/netns" // where `ip netns` looks
	lockFile        = "lock"       // held by the process whose lab it is
	processFile     = "processes"  // PID and start time of those that were left running
)

// Persist makes the lab outlive its process: its namespaces get names that
// `ip netns` knows, and its detached processes are written down for Down.
// Close does nothing any more.
func (l *Lab) Persist() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list strings.Builder
	for _, p := range l.detached {
		start, err := proc.Started(p.Pid)
		if err != nil {
			return fmt.Errorf("write down process %d: %w", p.Pid, err)
		}
		fmt.Fprintln(&list, p.Pid, start)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, processFile), []byte(list.String()), 0o600); err != nil {
		return fmt.Errorf("write down the lab's processes: %w", err)
	}
	l.kept = true
	for _, n := range l.nodes {
		if err := n.persist(); err != nil {
			return err
		}
	}
	return nil
}

// Name is the namespace's name once it persists.
func (n *Node) NetNS() string { return Prefix + n.Name }

func (n *Node) persist() error {
	path := filepath.Join(namedNamespaces, n.NetNS())
	if err := os.MkdirAll(namedNamespaces, 0o755); err != nil {
		return fmt.Errorf("name the namespace of %s: %w", n.Name, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("name the namespace of %s: %w", n.Name, err)
	}
	f.Close()
	if err := unix.Mount(n.path, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("name the namespace of %s: %w", n.Name, err)
	}
	return nil
}

// Standing lists the names of namespaces that earlier labs left.
func Standing() []string {
	paths, _ := filepath.Glob(filepath.Join(namedNamespaces, Prefix+"*")) // the pattern is sound
	for i, p := range paths {
		paths[i] = filepath.Base(p)
	}
	return paths
}

// Down removes what earlier labs of this user left: processes, named
// namespaces with whatever runs in them, and directories. Labs that are in use
// stay. It returns a line for each thing done, and may be called at any time.
func Down() (done []string, err error) {
	var errs []error
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), Prefix+"*")) // the pattern is sound
	for _, dir := range dirs {
		lines, err := removeDir(dir)
		done, errs = append(done, lines...), append(errs, err)
	}
	for _, name := range Standing() {
		lines, err := removeNamespace(filepath.Join(namedNamespaces, name))
		done, errs = append(done, lines...), append(errs, err)
	}
	return done, errors.Join(errs...)
}

// removeDir ends the processes of the lab that left dir, and removes it.
func removeDir(dir string) (done []string, err error) {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return nil, nil // gone, or not a lab's
	}
	// What another user wrote there must not make root kill anything.
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return []string{fmt.Sprintf("%s belongs to user %d and stays", dir, owner)}, nil
	}
	lock, err := lockDir(dir)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return []string{dir + " is in use and stays"}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	defer lock.Close()
	list, err := os.Open(filepath.Join(dir, processFile))
	if err == nil {
		defer list.Close()
		for s := bufio.NewScanner(list); s.Scan(); {
			pid, start, _ := strings.Cut(s.Text(), " ")
			n, err := strconv.Atoi(pid)
			if now, e := proc.Started(n); err != nil || e != nil || strconv.FormatUint(now, 10) != start {
				continue // ended long ago
			}
			end(n)
			done = append(done, "ended process "+pid)
		}
	}
	if err := errors.Join(removeCgroups(filepath.Base(dir)), os.RemoveAll(dir)); err != nil {
		return done, fmt.Errorf("remove %s: %w", dir, err)
	}
	return append(done, "removed "+dir), nil
}

// removeNamespace ends what runs in a named namespace and takes its name.
func removeNamespace(path string) (done []string, err error) {
	var ns unix.Stat_t
	if err := unix.Stat(path, &ns); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the pattern is sound
	for _, p := range all {
		var its unix.Stat_t
		if unix.Stat(p, &its) != nil || its.Dev != ns.Dev || its.Ino != ns.Ino {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
		end(pid)
		done = append(done, fmt.Sprintf("ended process %d in %s", pid, filepath.Base(path)))
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return done, fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return done, fmt.Errorf("remove %s: %w", path, err)
	}
	return append(done, "removed the namespace "+filepath.Base(path)), nil
}

// end asks a process to end, and kills it when it has not after five seconds.
func end(pid int) {
	start, err := proc.Started(pid)
	if err != nil || syscall.Kill(pid, syscall.SIGTERM) != nil {
		return
	}
	for i := 0; i < 100; i++ {
		time.Sleep(50 * time.Millisecond)
		if now, err := proc.Started(pid); err != nil || now != start {
			return
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
}

// lockDir holds dir against Down until the file is closed, or this process
// dies.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
