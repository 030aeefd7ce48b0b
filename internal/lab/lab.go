// Package lab builds throwaway network namespaces, for `natless lab demo` and
// for the tests: it stands around the way of a packet, as the networks on both
// sides of natless and the kernel that routes between them.
//
//	 client 1            host                           server
//	┌────────┐ eth0  ┌──────────────────────────┐     ┌────────┐
//	│  IPv6  ├──────►│ lan1  natless0       wan ├─────┤  IPv4  │
//	└────────┘  lan1 │        ▲  │              │ eth0└────────┘
//	 client 2        │        │  ▼              │
//	┌────────┐ eth0  │      natless run         │
//	│  IPv6  ├──────►│ lan2                     │
//	└────────┘  lan2 └──────────────────────────┘
//
// Everything goes by netlink; no other program is needed. Nothing of a lab
// outlives its process, unless [Lab.Persist] has been called: the namespaces
// are held by file descriptors, and child processes die with their parent.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Prefix begins the name of everything of a lab that can outlive its process:
// namespaces below /run/netns and directories in the directory for temporary
// files.
const Prefix = "natless-lab-"

// Lab is a set of network namespaces and what runs in them. Its methods may be
// called from several goroutines.
type Lab struct {
	// Dir is a directory for what the lab's processes need, removed by Close.
	Dir string

	lock     *os.File // says to Down that the lab is in use
	mu       sync.Mutex
	nodes    []*Node
	detached []*os.Process
	close    []func() error // what Close does, last first
	kept     bool           // Persist was called: processes live on
}

// New makes a lab without any node. The caller closes it.
func New() (*Lab, error) {
	dir, err := os.MkdirTemp("", Prefix)
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), os.RemoveAll(dir))
	}
	return &Lab{Dir: dir, lock: lock, close: []func() error{lock.Close}}, nil
}

// Close kills the lab's processes, gives up its namespaces, with which their
// links vanish, and removes Dir. A second call does nothing, nor does one
// after Persist.
func (l *Lab) Close() error {
	l.mu.Lock()
	todo, kept := l.close, l.kept
	l.close = nil
	l.mu.Unlock()
	if kept {
		return nil
	}
	var errs []error
	for i := len(todo) - 1; i >= 0; i-- {
		errs = append(errs, todo[i]())
	}
	return errors.Join(append(errs, removeCgroups(filepath.Base(l.Dir)), os.RemoveAll(l.Dir))...)
}

// Cleanup has f called by Close, before whatever was registered earlier.
func (l *Lab) Cleanup(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.close = append(l.close, f)
}

// Node is one network namespace of a lab.
type Node struct {
	// Name tells the nodes of a lab apart.
	Name string
	// Netlink acts inside the namespace.
	Netlink *netlink.Handle

	lab   *Lab
	alone atomic.Bool // Machine was called
	// The control group that a machine's processes start in, or nil.
	cgroup *os.File
	mu     sync.Mutex     // held while ns is used: a dialer may outlive the lab
	ns     netns.NsHandle // -1 once the lab is closed
	path   string         // the namespace of the node's thread in /proc
	calls  chan func()    // run on the node's own thread
}

// Node makes a namespace with its loopback up and duplicate address detection
// off, so that addresses serve at once.
func (l *Lab) Node(name string) (*Node, error) {
	n := &Node{Name: name, lab: l, calls: make(chan func())}
	made := make(chan error)
	go n.thread(made)
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make the network namespace of %s: %w", name, err)
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	l.Cleanup(func() error {
		if n.Netlink != nil {
			n.Netlink.Close()
		}
		close(n.calls)
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.ns.Close()
	})
	var err error
	if n.Netlink, err = netlink.NewHandleAt(n.ns); err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", name, err)
	}
	for _, conf := range []string{"all", "default"} {
		if err := n.SetSysctl("net/ipv6/conf/"+conf+"/accept_dad", "0"); err != nil {
			return nil, err
		}
	}
	return n, n.Up("lo")
}

// The process's first thread is the main goroutine's alone. It is the one thread
// that does not end with a goroutine that stays locked to it: as a node's it
// would keep its control groups busy after the lab, and show its mounts as those
// of the process (/proc/self).
func init() { runtime.LockOSThread() }

// thread is the life of the node's own thread: it creates the namespace, and
// starts the child processes. Those die with the thread that started them
// (PR_SET_PDEATHSIG means the thread, not the process), so it lives as long as
// the node. It ends locked: the runtime discards it.
func (n *Node) thread(made chan<- error) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		made <- err
		return
	}
	n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	var err error
	n.ns, err = netns.GetFromPath(n.path)
	made <- err
	if err != nil {
		return
	}
	for f := range n.calls {
		f()
	}
}

// Path leads to the namespace as long as the lab is open.
func (n *Node) Path() string { return n.path }

// Do calls f on a thread inside the namespace. Sockets that f opens, with
// literal addresses, stay in the namespace; goroutines that it starts do not
// run there.
func (n *Node) Do(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("find the thread's network namespace: %w", err)
	}
	defer home.Close()
	n.mu.Lock()
	err = netns.Set(n.ns)
	n.mu.Unlock()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace of %s: %w", n.Name, err)
	}
	defer func() {
		if back := netns.Set(home); back != nil {
			// Still locked, the thread ends with its goroutine, and nobody
			// else finds himself in the wrong namespace.
			err = errors.Join(err, fmt.Errorf("leave the network namespace of %s: %w", n.Name, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// Dial connects from inside the namespace, as net.Dialer does.
func (n *Node) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	return n.DialFrom(ctx, network, "", address)
}

// DialFrom is Dial from a source address; "" leaves the choice to the kernel.
func (n *Node) DialFrom(ctx context.Context, network, source, address string) (conn net.Conn, err error) {
	var d net.Dialer
	if source != "" {
		from := net.IP(netip.MustParseAddr(source).AsSlice())
		if strings.HasPrefix(network, "udp") {
			d.LocalAddr = &net.UDPAddr{IP: from}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: from}
		}
	}
	err = n.Do(func() error {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen is net.Listen inside the namespace.
func (n *Node) Listen(network, address string) (ln net.Listener, err error) {
	err = n.Do(func() error {
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, err
}

// ListenPacket is net.ListenPacket inside the namespace.
func (n *Node) ListenPacket(network, address string) (conn net.PacketConn, err error) {
	err = n.Do(func() error {
		conn, err = net.ListenPacket(network, address)
		return err
	})
	return conn, err
}

// Wire joins two nodes by a veth pair and sets both ends up. mtu is that of
// both ends in bytes; 0 leaves the kernel's 1500.
func Wire(a *Node, aName string, b *Node, bName string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = aName, mtu
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.Netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("join %s and %s: %w", a.Name, b.Name, err)
	}
	return first(
		func() error { return a.Up(aName) },
		func() error { return b.Up(bName) },
		func() error { return a.withLink(aName, "wait for the link-local address of", a.settled) },
		func() error { return b.withLink(bName, "wait for the link-local address of", b.settled) },
	)
}

// Up sets a link up.
func (n *Node) Up(name string) error {
	return n.withLink(name, "set up", n.Netlink.LinkSetUp)
}

// SetMTU changes the MTU of a link, in bytes.
func (n *Node) SetMTU(name string, mtu int) error {
	return n.withLink(name, "set the MTU of", func(link netlink.Link) error {
		return n.Netlink.LinkSetMTU(link, mtu)
	})
}

// Address gives a link an address in CIDR notation, usable at once.
func (n *Node) Address(name, cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return fmt.Errorf("read the address %q: %w", cidr, err)
	}
	return n.withLink(name, "give "+cidr+" to", func(link netlink.Link) error {
		if err := n.Netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		return n.settled(link)
	})
}

// settled waits until a link has an address, and none that is tentative: where
// no duplicates are detected the kernel sees to that, but a moment later.
func (n *Node) settled(link netlink.Link) error {
	for range 200 {
		all, err := n.Netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		tentative := func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }
		if len(all) > 0 && !slices.ContainsFunc(all, tentative) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("it stays tentative")
}

// RemoveAddress takes an address in CIDR notation from a link.
func (n *Node) RemoveAddress(name, cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return fmt.Errorf("read the address %q: %w", cidr, err)
	}
	return n.withLink(name, "take "+cidr+" from", func(link netlink.Link) error {
		return n.Netlink.AddrDel(link, addr)
	})
}

func (n *Node) withLink(name, what string, f func(netlink.Link) error) error {
	link, err := n.Netlink.LinkByName(name)
	if err == nil {
		err = f(link)
	}
	if err != nil {
		return fmt.Errorf("%s %s in %s: %w", what, name, n.Name, err)
	}
	return nil
}

// Route sends what is for prefix to the neighbour via. source is the address
// that connections from the node itself take; "" leaves the choice to the
// kernel.
func (n *Node) Route(prefix, via, source string) error {
	dst, err := netip.ParsePrefix(prefix)
	if err != nil {
		return fmt.Errorf("read the route's prefix: %w", err)
	}
	route := &netlink.Route{
		Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		Gw:  net.ParseIP(via),
		Src: net.ParseIP(source),
	}
	if err := n.Netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("route %s by %s in %s: %w", prefix, via, n.Name, err)
	}
	return nil
}

// SetSysctl writes a value by its path below /proc/sys.
func (n *Node) SetSysctl(path, value string) error {
	return n.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0)
	})
}

// Cmd is a child process inside a node's namespace. Of exec.Cmd's ways to
// start one, only those declared here enter it.
type Cmd struct {
	*exec.Cmd
	node     *Node
	detached bool
}

// Command prepares a child process: in a process group of its own, killed when
// ctx ends, when the lab is closed and when this process dies.
func (n *Node) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !n.alone.Load() {
		// Those of a machine end with its first. They do not see who started
		// them, which package syscall takes for his death.
		c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if n.cgroup != nil {
		c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(n.cgroup.Fd())
	}
	c.WaitDelay = time.Second
	return &Cmd{Cmd: c, node: n}
}

// Detach lets the process live on when its lab persists. Its output must be
// files.
func (c *Cmd) Detach() {
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.detached = true
}

// Start starts the process inside the namespace. The caller waits for it.
func (c *Cmd) Start() error {
	started := make(chan error)
	c.node.calls <- func() { started <- c.Cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	if c.detached {
		c.node.lab.leave(c.Process)
	}
	process := c.Process // not c, whose output would stay in memory as long as the lab
	c.node.lab.Cleanup(func() error {
		if err := process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return nil
	})
	return nil
}

// Run starts the process and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// CombinedOutput runs the process and returns what it wrote.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return []byte(out.String()), err
}

// leave notes a process that lives on when the lab persists.
func (l *Lab) leave(p *os.Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.detached = append(l.detached, p)
}

// RunWithTUN runs a command in the node where /dev/net holds a tun device of
// the given mode and nothing else; 0: not even that.
func (n *Node) RunWithTUN(c *exec.Cmd, mode uint32) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the mount namespace ends with the thread
		done <- first(
			func() error { return netns.Set(n.ns) },
			func() error { return unix.Unshare(unix.CLONE_NEWNS) },
			func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
			func() error { return unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=0755") },
			func() error {
				if mode == 0 {
					return nil
				}
				return errors.Join(unix.Mknod("/dev/net/tun", unix.S_IFCHR, int(unix.Mkdev(10, 200))),
					unix.Chmod("/dev/net/tun", mode))
			},
			c.Run,
		)
	}()
	return <-done
}
