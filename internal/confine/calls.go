package confine

import (
	"os"
	"runtime"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// own are the system calls of natless at work and of Go's runtime, on any
// architecture: each has some of them. What is missing here is refused with
// EPERM and not with a signal, so that it shows as an error of what was tried.
var own = []string{
	// For each packet or few of them: kernels before 5.11 look them up in this order.
	"read", "write", "epoll_pwait", "futex", "sched_yield", "nanosleep",
	// files
	"openat", "openat2", "open", "close", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev",
	"lseek", "_llseek", "fstat", "fstat64", "newfstatat", "fstatat64", "stat", "stat64", "lstat", "lstat64", "statx",
	"statfs", "statfs64", "fstatfs", "fstatfs64", "faccessat", "faccessat2", "access", "readlink", "readlinkat", "getcwd",
	"getdents", "getdents64", "fcntl", "fcntl64", "flock", "fsync", "fdatasync", "ftruncate", "ftruncate64", "fallocate",
	"fadvise64", "fadvise64_64", "copy_file_range", "sendfile", "sendfile64", "splice", "dup", "dup2", "dup3", "pipe", "pipe2",
	"mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "fchmod", "umask",
	// memory
	"brk", "mmap", "mmap2", "mprotect", "mremap", "munmap", "madvise", "mincore", "msync", "membarrier",
	// threads, signals, time
	"futex_time64", "set_robust_list", "set_tid_address", "rseq", "arch_prctl", "set_thread_area", "get_thread_area", "set_tls",
	"gettid", "getpid", "getppid", "exit", "exit_group", "restart_syscall", "sched_getaffinity", "sched_setaffinity", "getcpu",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigreturn", "sigaltstack", "rt_sigpending", "rt_sigtimedwait",
	"clock_nanosleep", "clock_nanosleep_time64", "clock_gettime", "clock_gettime64", "clock_getres", "clock_getres_time64",
	"gettimeofday", "time", "setitimer", "getitimer", "timer_create", "timer_settime", "timer_settime64", "timer_delete",
	"timerfd_create", "timerfd_settime", "timerfd_settime64",
	"prctl", "capget", "getrandom", "getrlimit", "ugetrlimit", "getrusage", "sysinfo", "uname",
	"getuid", "geteuid", "getgid", "getegid", "getuid32", "geteuid32", "getgid32", "getegid32", "getgroups", "getgroups32",
	// waiting
	"epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait2", "eventfd", "eventfd2",
	"poll", "ppoll", "ppoll_time64", "select", "_newselect", "pselect6", "pselect6_time64",
	// sockets; socket itself is below
	"socketpair", "bind", "connect", "listen", "accept", "accept4", "getsockname", "getpeername", "getsockopt", "setsockopt",
	"sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "recvmmsg_time64", "shutdown", "send", "recv",
	// writes of others to sysctls that natless has set
	"inotify_init1", "inotify_add_watch", "inotify_rm_watch",
	"socketcall", // of 386, where the kernel hides from a filter which it is
}

// dangerous are those that programs of the host may not make either: ways to
// other processes, namespaces, mounts, and into the kernel.
var dangerous = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd",
	"mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"setns", "unshare",
	"kexec_load", "kexec_file_load", "reboot", "init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms",
	"keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "memfd_secret",
	"open_by_handle_at", "name_to_handle_at", "fanotify_init", "lookup_dcookie",
	"io_uring_setup", "io_uring_enter", "io_uring_register",
	"swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "nfsservctl", "syslog", "vhangup", "uselib", "_sysctl", "sysfs",
	"settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex", "stime", "sethostname", "setdomainname",
	"iopl", "ioperm", "modify_ldt", "vm86", "vm86old", "personality", "mbind", "set_mempolicy", "migrate_pages", "move_pages",
	"pciconfig_read", "pciconfig_write", "pciconfig_iobase", "s390_pci_mmio_read", "s390_pci_mmio_write",
}

// namespaces are the flags of clone(2) that make one.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// specAllow keeps kernels before 5.16 from slowing all of the process down for
// a filter: SECCOMP_FILTER_FLAG_SPEC_ALLOW, seccomp(2).
const specAllow = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

// limitCalls has the kernel refuse system calls, in all threads and those that
// are still to come.
func limitCalls(programs bool) error {
	policy, err := policy(programs)
	if err != nil {
		return err
	}
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync | specAllow, Policy: policy})
}

// policy lets natless's own calls through, or all but the dangerous ones that
// this package knows. Of both the rest is refused, and so is what comes by the
// numbers of another architecture, which would go round it.
func policy(programs bool) (p seccomp.Policy, err error) {
	here, err := arch.GetInfo("")
	if err != nil {
		return p, err
	}
	calls := calls{numbers: here.SyscallNames, listed: map[string]bool{}}
	for _, name := range dangerous {
		calls.listed[name] = true
	}
	calls.conditions(programs)
	if programs {
		for name := range here.SyscallNames {
			calls.add(name)
		}
	} else {
		for _, name := range own {
			calls.add(name)
		}
	}
	p.DefaultAction = seccomp.ActionErrno
	// The flags of clone3 are where no filter can read them. C libraries and Go
	// fall back to clone where there is none.
	if _, there := here.SyscallNames["clone3"]; there {
		p.Syscalls = append(p.Syscalls, seccomp.SyscallGroup{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)})
	}
	p.Syscalls = append(p.Syscalls, seccomp.SyscallGroup{Names: calls.plain, NamesWithCondtions: calls.with, Action: seccomp.ActionAllow})
	return p, nil
}

// calls are those that are let through.
type calls struct {
	numbers map[string]int  // of this architecture
	listed  map[string]bool // those that were seen to, and so are not added
	plain   []string
	with    []seccomp.NameWithConditions
}

// add lets a call through, whatever its arguments, unless it is dangerous or has
// conditions.
func (c *calls) add(name string) {
	if _, there := c.numbers[name]; there && !c.listed[name] {
		c.listed[name] = true
		c.plain = append(c.plain, name)
	}
}

// when lets a call through that fulfils all of the conditions, or those of
// another when.
func (c *calls) when(name string, conditions ...seccomp.Condition) {
	if _, there := c.numbers[name]; there {
		c.listed[name] = true
		c.with = append(c.with, seccomp.NameWithConditions{Name: name, Conditions: conditions})
	}
}

func is(argument uint32, value uint64) seccomp.Condition {
	return seccomp.Condition{Argument: argument, Operation: seccomp.Equal, Value: value}
}

func (c *calls) conditions(programs bool) {
	// The terminal that natless was started at is root's: nothing is typed into it
	// (ioctl_tty(2)). The kernel takes no more than 32 bits of the request.
	c.when("ioctl",
		seccomp.Condition{Argument: 1, Operation: seccomp.NotEqual, Value: unix.TIOCSTI},
		seccomp.Condition{Argument: 1, Operation: seccomp.NotEqual, Value: unix.TIOCLINUX},
		seccomp.Condition{Argument: 1, Operation: seccomp.LessOrEqual, Value: 1<<32 - 1})
	flags := uint32(0)
	if runtime.GOARCH == "s390x" {
		flags = 1 // clone(2), "C library/kernel differences"
	}
	if programs {
		c.when("clone", seccomp.Condition{Argument: flags, Operation: seccomp.BitsNotSet, Value: namespaces})
		return
	}
	c.when("clone",
		seccomp.Condition{Argument: flags, Operation: seccomp.BitsSet, Value: unix.CLONE_THREAD},
		seccomp.Condition{Argument: flags, Operation: seccomp.BitsNotSet, Value: namespaces})
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
		c.when("socket", is(0, family))
	}
	// To itself; to others no signal but the one that asks whether they are there.
	pid := uint64(os.Getpid())
	c.when("tgkill", is(0, pid))
	c.when("kill", is(0, pid))
	c.when("kill", is(1, 0))
	c.when("prlimit64", is(0, 0))
}
