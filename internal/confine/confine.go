// Package confine takes from this process what it does not need any more, for
// good and in all of its threads: capabilities, system calls, files. It is
// called once, when `natless run` has made what takes more rights than natless
// needs to go on. No packet comes by here.
//
// What the kernel cannot do is left out and told of in the [State]: a natless
// that is less confined than it could be is still one that its host needs.
package confine

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Needs is what stays.
type Needs struct {
	Capabilities []cap.Value // of those that the process has
	Programs     bool        // programs of the host are run, and get no more than natless has
	Files        Files
}

// State is how a process is confined, as far as the kernel tells.
type State struct {
	Capabilities []string `json:"capabilities"` // that are left
	NoNewPrivs   bool     `json:"no_new_privs"` // nothing that is run gives more of them
	Seccomp      string   `json:"seccomp"`      // natless | programs | off: whose system calls are let through
	Landlock     int      `json:"landlock"`     // version of the kernel's rules for files; 0: not in force
	Problems     []string `json:"problems"`     // what of it cannot be done here, and why
}

// whose system calls a filter lets through, as a State has it.
const (
	seccompNatless  = "natless"
	seccompPrograms = "programs"
	seccompOff      = "off"
)

func (s State) String() string {
	files := "any files"
	if s.Landlock > 0 {
		files = fmt.Sprintf("files by Landlock %d", s.Landlock)
	}
	calls := map[string]string{seccompNatless: "natless's own", seccompPrograms: "those of programs", seccompOff: "any"}[s.Seccomp]
	privileges := "new privileges possible"
	if s.NoNewPrivs {
		privileges = "no new privileges"
	}
	return fmt.Sprintf("%s; %s; system calls: %s; %s", cmp.Or(strings.Join(s.Capabilities, ", "), "no capabilities"), privileges, calls, files)
}

// Apply confines the process. Capabilities go first: the other two take none,
// and with them none can be had back.
func Apply(n Needs) State {
	s := State{Seccomp: seccompOff, Problems: []string{}}
	failed := func(what string, err error) {
		if err != nil {
			s.Problems = append(s.Problems, fmt.Sprintf("%s: %v", what, err))
		}
	}
	failed("giving up capabilities", limitCapabilities(n.Capabilities))
	failed("setting no_new_privs", allThreads(unix.PR_SET_NO_NEW_PRIVS, 1))
	version, err := limitFiles(n.Files, n.Programs)
	failed("limiting files by Landlock", err)
	s.Landlock = version
	err = limitCalls(n.Programs)
	failed("limiting system calls by seccomp", err)
	if err == nil {
		s.Seccomp = seccompNatless
		if n.Programs {
			s.Seccomp = seccompPrograms
		}
	}
	s.Capabilities, err = held()
	failed("reading the capabilities that are left", err)
	privs, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	failed("reading no_new_privs", err)
	s.NoNewPrivs = privs == 1
	return s
}

func allThreads(option, value uintptr) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, option, value, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// limitCapabilities leaves those of keep that the process has: in force and
// permitted, none to be inherited, and in the bounding set no others either
// where the process may change that.
func limitCapabilities(keep []cap.Value) error {
	has := cap.GetProc()
	next := cap.NewSet()
	for _, v := range keep {
		if on, err := has.GetFlag(cap.Permitted, v); err == nil && on {
			if err := errors.Join(next.SetFlag(cap.Permitted, true, v), next.SetFlag(cap.Effective, true, v)); err != nil {
				return err
			}
		}
	}
	bounding := dropBounding(has, next)
	ambient := cap.ResetAmbient()
	if errors.Is(ambient, unix.EINVAL) { // before Linux 4.3 there are none
		ambient = nil
	}
	return errors.Join(bounding, ambient, next.SetProc())
}

// dropBounding takes out of the bounding set what is not in next. Without
// CAP_SETPCAP it stays as it is: no_new_privs keeps it from giving anybody
// anything (capabilities(7), "no_new_privs").
func dropBounding(has, next *cap.Set) error {
	if may, err := has.GetFlag(cap.Effective, cap.SETPCAP); err != nil || !may {
		return err
	}
	var drop []cap.Value
	for v := cap.Value(0); v < cap.MaxBits(); v++ {
		keeps, err := next.GetFlag(cap.Permitted, v)
		if err != nil {
			return err
		}
		if !keeps {
			drop = append(drop, v)
		}
	}
	return cap.DropBound(drop...)
}

// held are the names of the capabilities that are permitted.
func held() (names []string, err error) {
	has := cap.GetProc()
	names = []string{} // a list in JSON even when empty
	for v := cap.Value(0); v < cap.MaxBits(); v++ {
		on, err := has.GetFlag(cap.Permitted, v)
		if err != nil {
			return names, err
		}
		if on {
			names = append(names, strings.ToUpper(v.String()))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Overriding are the capabilities among DAC_READ_SEARCH and DAC_OVERRIDE that
// root needs to get at what belongs to others: a configuration in a user's home,
// a state directory given to somebody else.
func Overriding(read, write []string) (list []cap.Value, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		list, err = overriding(read, write)
	}()
	<-done
	return list, err
}

// overriding tries it with a thread that has neither. The thread ends with its
// goroutine, which is never unlocked from it.
func overriding(read, write []string) (list []cap.Value, err error) {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, err
	}
	data[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&header, &data[0]); err != nil {
		return nil, err
	}
	denied := func(paths []string, mode uint32) bool {
		return slices.ContainsFunc(paths, func(path string) bool {
			return errors.Is(unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS), unix.EACCES)
		})
	}
	if denied(read, unix.R_OK) {
		list = append(list, cap.DAC_READ_SEARCH)
	}
	if denied(write, unix.R_OK|unix.W_OK|unix.X_OK) {
		list = append(list, cap.DAC_OVERRIDE)
	}
	return list, nil
}
