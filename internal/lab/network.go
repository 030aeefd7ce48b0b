package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The addresses of a Network. Client k, from 1, is 2001:db8:k::2 and, where
// something is mapped to it, 2001:db8:k::80; its router is 2001:db8:k::1.
const (
	Pref64     = "2001:db8:64::/96"
	HostIPv4   = "198.51.100.1"
	ServerIPv4 = "198.51.100.2"
	Server6    = "2001:db8:64::c633:6402" // the server by Pref64
	OwnIPv6    = "2001:db8:46::1"         // natless itself
	MappedIPv4 = "203.0.113.80"           // stands for MappedIPv6
	MappedIPv6 = "2001:db8:1::80"
)

// Network is the lab that the package comment draws.
type Network struct {
	*Lab
	Clients      []*Node
	Host, Server *Node
}

// Build makes a Network. The clients and the host's links towards them have
// only IPv6, the server only IPv4, and the host's default route is the server.
// The host forwards nothing yet.
func Build(clients int) (*Network, error) {
	l, err := New()
	if err != nil {
		return nil, err
	}
	n := &Network{Lab: l}
	if err := n.build(clients); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return n, nil
}

func (n *Network) build(clients int) (err error) {
	if n.Host, err = n.Node("host"); err != nil {
		return err
	}
	if n.Server, err = n.Node("server"); err != nil {
		return err
	}
	for k := 1; k <= clients; k++ {
		if err := n.client(k); err != nil {
			return err
		}
	}
	return first(
		func() error { return Wire(n.Host, "wan", n.Server, "eth0", 0) },
		func() error { return n.Server.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1") },
		func() error { return n.Host.Address("wan", HostIPv4+"/24") },
		func() error { return n.Server.Address("eth0", ServerIPv4+"/24") },
		func() error { return n.Host.Route("0.0.0.0/0", ServerIPv4, "") },
		func() error { return n.Server.Route("0.0.0.0/0", HostIPv4, "") },
	)
}

func (n *Network) client(k int) error {
	name := "client"
	if k > 1 {
		name = fmt.Sprintf("client%d", k)
	}
	c, err := n.Node(name)
	if err != nil {
		return err
	}
	n.Clients = append(n.Clients, c)
	link, net := fmt.Sprintf("lan%d", k), fmt.Sprintf("2001:db8:%d::", k)
	return first(
		func() error { return Wire(n.Host, link, c, "eth0", 0) },
		func() error { return n.Host.Address(link, net+"1/64") },
		func() error { return c.Address("eth0", net+"2/64") },
		func() error { return c.Address("eth0", net+"80/64") },
		func() error { return c.Route("::/0", net+"1", net+"2") },
	)
}

// first does one thing after the other until one fails.
func first(todo ...func() error) error {
	for _, f := range todo {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// Daemon is a running `natless run`.
type Daemon struct {
	*Cmd
	Socket string        // its control socket
	Config string        // its configuration file
	Exited chan struct{} // closed when it has ended

	binary, log string
	err         error // what Wait said
}

// Natless starts `natless run` in a node, with a configuration file of the
// given text and flags after it. What it writes is in Output. Unless one of
// them says otherwise its state is the node's: the next one there finds it.
func (n *Node) Natless(binary, config string, flags ...string) (*Daemon, error) {
	dir, err := os.MkdirTemp(n.lab.Dir, "natless")
	if err != nil {
		return nil, fmt.Errorf("make the daemon's directory: %w", err)
	}
	d := &Daemon{
		Socket: filepath.Join(dir, "natless.sock"),
		Exited: make(chan struct{}),
		binary: binary,
		log:    filepath.Join(dir, "log"),
	}
	d.Config = filepath.Join(dir, "natless.toml")
	if err := os.WriteFile(d.Config, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("write the daemon's configuration: %w", err)
	}
	args := []string{"run", "-c", d.Config, "--socket", d.Socket}
	if !strings.Contains(config, "[state]") {
		args = append(args, "--state-dir", n.StateDir())
	}
	// The lab's servers have documentation addresses, which the well-known prefix
	// must not stand for (RFC 6052 3.1): whoever names no prefix means them all the same.
	if given := config + strings.Join(flags, " "); !strings.Contains(given, "pref64") && !strings.Contains(given, "private") {
		args = append(args, "--private-ipv4", "allow")
	}
	args = append(args, flags...)
	d.Cmd = n.Command(context.Background(), binary, args...)
	return d, nil
}

// StateDir is where the state of a node's daemons is.
func (n *Node) StateDir() string { return filepath.Join(n.lab.Dir, "state-"+n.Name) }

// Start starts the daemon. Nobody else waits for it.
func (d *Daemon) Start() error {
	log, err := os.Create(d.log)
	if err != nil {
		return fmt.Errorf("make the daemon's log: %w", err)
	}
	defer log.Close()
	d.Stdout, d.Stderr = log, log
	if err := d.Cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.binary, err)
	}
	go func() {
		d.err = d.Cmd.Wait()
		close(d.Exited)
	}()
	return nil
}

// Ready waits until the daemon says that it is, has ended, or ctx has.
func (d *Daemon) Ready(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.Exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	out, err := d.Query(ctx, "status", "--wait")
	if err == nil {
		return nil
	}
	select {
	case <-d.Exited:
		return fmt.Errorf("wait for natless run to be ready: it ended: %v: %s", d.err, d.Output())
	default:
		return fmt.Errorf("wait for natless run to be ready: %w: %s", err, out)
	}
}

// Query runs another command of natless against the daemon, and returns what
// it wrote.
func (d *Daemon) Query(ctx context.Context, args ...string) (string, error) {
	c := d.node.Command(ctx, d.binary, args...)
	c.Env = append(os.Environ(), "NATLESS_SOCKET="+d.Socket)
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("natless %s: %w", strings.Join(args, " "), err)
	}
	return string(out), err
}

// Output is what the daemon has written so far.
func (d *Daemon) Output() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// patience is how long a daemon may take to end: on a busy machine the kernel
// takes its time to remove a device.
const patience = 30 * time.Second

// Stop asks the daemon to end and returns an error unless it ended well. When
// it has not after some time, it is made to write where it hangs, and killed.
func (d *Daemon) Stop() error {
	if err := d.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.Exited:
		return d.err
	case <-time.After(patience):
	}
	err := d.Signal(syscall.SIGQUIT)
	select {
	case <-d.Exited:
	case <-time.After(patience):
	}
	return errors.Join(fmt.Errorf("natless did not end within %v of SIGTERM", patience), err, d.Kill())
}

// Signal sends a signal to the daemon, unless it has ended.
func (d *Daemon) Signal(s os.Signal) error {
	if err := d.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Kill ends the daemon as `kill -9` does, and waits until it is gone.
func (d *Daemon) Kill() error {
	err := d.Signal(syscall.SIGKILL)
	<-d.Exited
	return err
}

// Embed is the IPv6 address that stands for an IPv4 address behind a prefix of
// length 96.
func Embed(prefix, ipv4 string) netip.Addr {
	a := netip.MustParsePrefix(prefix).Addr().As16()
	v4 := netip.MustParseAddr(ipv4).As4()
	copy(a[12:], v4[:])
	return netip.AddrFrom16(a)
}
