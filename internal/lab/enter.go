package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideEnv tells a process that it is the one that Enter has started. It does
// not pass it on: what it starts finds everything done.
const insideEnv = "NATLESS_LAB_INSIDE"

// inside: this process is the one that Enter has started.
var inside bool

// Enter sees to it that this process can build labs. As root there is nothing
// to do. Otherwise it runs this program again with the same arguments, as root
// of a user namespace with a /run of its own, and exits as that did. The error
// says what is missing for either.
func Enter() error {
	if os.Getenv(insideEnv) != "" {
		return settle()
	}
	if os.Geteuid() == 0 {
		return possible()
	}
	if err := obstacle(); err != nil {
		return err
	}
	code, err := again()
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// possible reports what keeps this process from making a lab.
func possible() error {
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		made <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-made; err != nil {
		return fmt.Errorf("make a network namespace: %w (CAP_SYS_ADMIN is missing)", err)
	}
	return tun()
}

// tun reports what keeps this process from making TUN devices.
func tun() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		return f.Close()
	}
	info, statErr := os.Stat("/dev/net/tun")
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w (is the module tun loaded?)", err)
	case errors.Is(err, os.ErrPermission) && statErr == nil:
		return fmt.Errorf("%w (its mode is %04o; without root it takes 0666)", err, info.Mode().Perm())
	default:
		return err
	}
}

// obstacle reports what keeps a process without root from its own user
// namespace, or a TUN device in it.
func obstacle() error {
	for _, s := range []struct{ path, bad string }{
		{"/proc/sys/user/max_user_namespaces", "0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"},
	} {
		if b, err := os.ReadFile(s.path); err == nil && strings.TrimSpace(string(b)) == s.bad {
			return fmt.Errorf("user namespaces are not for everybody here: %s is %s", s.path, s.bad)
		}
	}
	return tun()
}

// again runs this program as root of a new user namespace.
func again() (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find the program: %w", err)
	}
	c := exec.Command(self, os.Args[1:]...)
	c.Env = append(os.Environ(), insideEnv+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig means the thread that starts the child
	defer runtime.UnlockOSThread()
	if err := c.Start(); err != nil {
		return 0, fmt.Errorf("make a user namespace: %w", err)
	}
	defer relay(c.Process)()
	err = c.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("run in a user namespace: %w", err)
	}
	if c.ProcessState.ExitCode() < 0 {
		return 1, nil // killed by a signal
	}
	return c.ProcessState.ExitCode(), nil
}

// settle finishes the namespaces that again has made: natless and the lab
// write below /run, which belongs to the real root.
func settle() error {
	inside = true
	if err := os.Unsetenv(insideEnv); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a private /run: %w", err)
	}
	return possible()
}

// relay passes on SIGINT and SIGTERM to a child that is to end in its own way,
// until the function it returns is called. A terminal sends SIGINT to both;
// the child bears two.
func relay(child *os.Process) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range c {
			_ = child.Signal(s) // it may have ended
		}
	}()
	return func() {
		signal.Stop(c)
		close(c)
	}
}

// Inside reports whether this process is root of a user namespace that Enter
// has made, and not of the machine.
func Inside() bool { return inside }
