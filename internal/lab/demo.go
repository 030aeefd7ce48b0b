package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
)

// DemoOptions are what `natless lab demo` can be told.
type DemoOptions struct {
	Keep     bool      // leave the lab standing
	Out      io.Writer // the lines
	Terminal bool      // Out is one: show progress
}

const (
	demoSize = 256 << 20
	httpPort = "8080"
	echoPort = "7"
	// serveEnv makes Demo be the lab's server, for HTTP and UDP echo.
	serveEnv = "NATLESS_LAB_SERVE"
	plain6   = "2001:db8:ffff::" // the uplink's IPv6, there only while plain forwarding is measured
)

// Demo shows natless at work: three namespaces, this very program as the
// daemon in the middle one, a line with a tick or a cross for each thing tried.
// The error says how many failed, or why there is no lab. ctx ends it early.
// Without root it runs in a user namespace of its own and never returns.
func Demo(ctx context.Context, o DemoOptions) error {
	if os.Getenv(serveEnv) != "" {
		return serveAll(ctx)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	if err := Enter(); err != nil {
		if os.Geteuid() == 0 {
			return fmt.Errorf("build a lab: %w", err)
		}
		return fmt.Errorf("build a lab without root: %w; this works: sudo %s", err, strings.Join(append([]string{self}, os.Args[1:]...), " "))
	}
	if names := Standing(); o.Keep && len(names) > 0 {
		return fmt.Errorf("build a lab to keep: one stands already (%s): `natless lab down` removes it", strings.Join(names, ", "))
	}
	n, err := Build(1)
	if err != nil {
		return fmt.Errorf("build a lab: %w", err)
	}
	defer n.Close()
	d := &demo{DemoOptions: o, Network: n, client: n.Clients[0], self: self}
	return d.run(ctx)
}

// demo is one run of Demo.
type demo struct {
	DemoOptions
	*Network
	client *Node
	self   string
	daemon *Daemon

	buf    []byte  // for downloads
	plain  float64 // the rate of plain IPv6 forwarding in bits per second; 0 when it failed
	failed int
	tried  int
}

func (d *demo) run(ctx context.Context) (err error) {
	fmt.Fprintf(d.Out, "client, IPv6 only  ──  host, natless run  ──  server, IPv4 only\n2001:db8:1::2          %s      %s\n\n", Pref64, ServerIPv4)
	d.buf = make([]byte, demoSize)
	if err := d.startServer(ctx); err != nil {
		return fmt.Errorf("build a lab: %w", err)
	}
	if d.daemon, err = d.Host.Natless(d.self, fmt.Sprintf("[translation]\nipv6 = %q\n", OwnIPv6),
		"--pref64", Pref64, "--map", MappedIPv4+"="+MappedIPv6); err != nil {
		return fmt.Errorf("build a lab: %w", err)
	}
	if d.Keep {
		d.daemon.Detach()
	}
	d.check(ctx, "plain IPv6", time.Minute, d.plainIPv6)
	if !d.check(ctx, "natless run", 20*time.Second, d.ready) {
		return d.result(ctx)
	}
	d.check(ctx, "ping", 2*Stall, d.ping)
	d.check(ctx, "traceroute", 3*Stall, d.traceroute)
	d.check(ctx, "download", time.Minute, d.download)
	d.check(ctx, "UDP", 4*Stall, d.udp)
	d.check(ctx, "inbound", 2*Stall, d.inbound)
	d.check(ctx, "mapping table", 2*Stall, d.table)
	if d.Keep && ctx.Err() == nil {
		return errors.Join(d.keep(), d.result(ctx))
	}
	d.check(context.WithoutCancel(ctx), "clean exit", 3*Stall, d.exit)
	return d.result(ctx)
}

func (d *demo) result(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("lab demo: %w", context.Cause(ctx))
	}
	if d.failed == 0 {
		return nil
	}
	if d.daemon.Process != nil {
		fmt.Fprintf(d.Out, "\nnatless run wrote:\n%s", d.daemon.Output())
	}
	return fmt.Errorf("lab demo: %d of %d checks failed", d.failed, d.tried)
}

// check tries one thing, prints its line and reports whether it held. What does not keep to its time
// has failed, whether it notices or not.
func (d *demo) check(ctx context.Context, name string, timeout time.Duration, f func(context.Context) (string, error)) (held bool) {
	if ctx.Err() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type outcome struct {
		detail string
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		detail, err := f(ctx)
		done <- outcome{detail, err}
	}()
	var o outcome
	select {
	case o = <-done:
	case <-ctx.Done():
		select {
		case o = <-done:
		case <-time.After(time.Second):
			o.err = ctx.Err()
		}
	}
	d.tried++
	mark := "✓"
	if o.err != nil {
		mark, o.detail = "✗", o.err.Error()
		d.failed++
	}
	fmt.Fprintf(d.Out, "%s%s %-13s %s\n", d.wipe(), mark, name, o.detail)
	return o.err == nil
}

// wipe takes the line of progress away.
func (d *demo) wipe() string {
	if d.Terminal {
		return "\r\x1b[K"
	}
	return ""
}

// startServer runs this program as the lab's server, a process of its own, so
// that it can be left standing.
func (d *demo) startServer(ctx context.Context) error {
	c := d.Server.Command(context.Background(), d.self, os.Args[1:]...)
	c.Env = append(os.Environ(), serveEnv+"=1")
	if d.Keep {
		c.Detach()
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	go c.Wait() // killed by Close, or left standing
	ctx, cancel := context.WithTimeout(ctx, Stall)
	defer cancel()
	for {
		conn, err := d.Host.Dial(ctx, "tcp", ServerIPv4+":"+httpPort)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serveAll is the lab's server, until ctx ends. It listens on every address, so
// that the comparison with plain IPv6 finds the same process.
func serveAll(ctx context.Context) error {
	ln, err := net.Listen("tcp", ":"+httpPort)
	if err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	conn, err := net.ListenPacket("udp", ":"+echoPort)
	if err != nil {
		return fmt.Errorf("serve UDP: %w", err)
	}
	go Serve(ln)
	go Echo(conn)
	<-ctx.Done()
	return nil
}

// plainIPv6 measures the same download without natless: the server has an IPv6
// address for as long as that takes, and the host forwards.
func (d *demo) plainIPv6(ctx context.Context) (detail string, err error) {
	const forwarding, off = "net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/disable_ipv6"
	defer func() { // the server and the host are to be as they were, or nothing below counts
		err = errors.Join(err,
			d.Server.SetSysctl(off, "1"),
			d.Host.RemoveAddress("wan", plain6+"1/64"),
			d.Host.SetSysctl(forwarding, "0"))
	}()
	if err := first(
		func() error { return d.Server.SetSysctl(off, "0") },
		func() error { return d.Server.Address("eth0", plain6+"2/64") },
		func() error { return d.Host.Address("wan", plain6+"1/64") },
		func() error { return d.Server.Route("::/0", plain6+"1", "") },
		func() error { return d.Host.SetSysctl(forwarding, "1") },
	); err != nil {
		return "", err
	}
	t, err := d.fetch(ctx, "plain IPv6", "["+plain6+"2]:"+httpPort)
	if err != nil {
		return "", err
	}
	d.plain = t.Rate()
	return fmt.Sprintf("for comparison, %d MiB forwarded without natless: %s", demoSize>>20, rate(d.plain)), nil
}

// fetch downloads, with progress on a terminal.
func (d *demo) fetch(ctx context.Context, name, server string) (Transfer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !d.Terminal {
		return Download(ctx, d.client.HTTP(""), server, d.buf, nil)
	}
	var got atomic.Int64
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				fmt.Fprintf(d.Out, "%s  %-13s %d of %d MiB", d.wipe(), name, got.Load()>>20, demoSize>>20)
			}
		}
	}()
	t, err := Download(ctx, d.client.HTTP(""), server, d.buf, func(n int) { got.Store(int64(n)) })
	cancel()
	<-stopped
	return t, err
}

func rate(bits float64) string { return fmt.Sprintf("%.2f Gbit/s", bits/1e9) }

func (d *demo) ready(ctx context.Context) (string, error) {
	if err := d.daemon.Start(); err != nil {
		return "", err
	}
	start := time.Now()
	if err := d.daemon.Ready(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("ready after %d ms; the server has no IPv6 any more", time.Since(start).Milliseconds()), nil
}

func (d *demo) ping(ctx context.Context) (string, error) {
	a, err := Ping(ctx, d.client, "", netip.MustParseAddr(Server6), 56)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s answers after %.2f ms", a.From, float64(a.Took.Microseconds())/1000), nil
}

func (d *demo) traceroute(ctx context.Context) (string, error) {
	hops, err := Traceroute(ctx, d.client, "", netip.MustParseAddr(Server6))
	if err != nil {
		return "", err
	}
	own, seen := netip.MustParseAddr(OwnIPv6), false
	var words []string
	for _, h := range hops {
		switch {
		case h.Type == nil:
			words = append(words, "*")
		case h.From == own:
			seen = true
			words = append(words, h.From.String()+" (natless)")
		default:
			words = append(words, h.From.String())
		}
	}
	path := strings.Join(words, ", ")
	if !seen {
		return "", fmt.Errorf("natless (%s) is not on the way: %s", own, path)
	}
	return path, nil
}

func (d *demo) download(ctx context.Context) (string, error) {
	t, err := d.fetch(ctx, "download", "["+Server6+"]:"+httpPort)
	if err != nil {
		return "", err
	}
	detail := fmt.Sprintf("%d MiB by HTTP, SHA-256 matches, %s", t.Bytes>>20, rate(t.Rate()))
	if d.plain > 0 {
		detail += fmt.Sprintf(", %.0f%% of plain IPv6 forwarding", 100*t.Rate()/d.plain)
	}
	return detail + ", seen as " + t.Client, nil
}

func (d *demo) udp(ctx context.Context) (string, error) {
	for _, size := range []int{1, 512, 1232} {
		if err := Exchange(ctx, d.client, "", "["+Server6+"]:"+echoPort, size); err != nil {
			return "", err
		}
	}
	return "1, 512 and 1232 bytes came back", nil
}

func (d *demo) inbound(ctx context.Context) (string, error) {
	ln, err := d.client.Listen("tcp", "["+MappedIPv6+"]:"+httpPort)
	if err != nil {
		return "", err
	}
	defer ln.Close()
	go Serve(ln)
	t, err := Download(ctx, d.Server.HTTP(""), MappedIPv4+":"+httpPort, make([]byte, 1<<20), nil)
	if err != nil {
		return "", err
	}
	if t.Client != Server6 {
		return "", fmt.Errorf("%s sees %s, not %s", MappedIPv6, t.Client, Server6)
	}
	return fmt.Sprintf("the server connected to %s, which is %s, and was seen as %s", MappedIPv4, MappedIPv6, t.Client), nil
}

func (d *demo) table(ctx context.Context) (string, error) {
	maps, err := d.daemon.Query(ctx, "map", "ls")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, maps)
	}
	leases, err := d.daemon.Query(ctx, "lease", "ls")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, leases)
	}
	shown := fmt.Sprintf("natless map ls, natless lease ls\n%s\n%s", indent(maps), indent(leases))
	for _, w := range []struct{ in, want string }{{maps, Pref64}, {maps, MappedIPv4}, {maps, MappedIPv6}, {leases, "2001:db8:1::2"}} {
		if !strings.Contains(w.in, w.want) {
			return "", fmt.Errorf("%s is missing: %s", w.want, shown)
		}
	}
	return shown, nil
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") + "\n"
}

func (d *demo) exit(context.Context) (string, error) {
	select {
	case <-d.daemon.Exited:
		return "", fmt.Errorf("natless run has ended already: %v", d.daemon.ProcessState)
	default:
	}
	if err := d.daemon.Stop(); err != nil {
		return "", fmt.Errorf("natless run: %w", err)
	}
	links, err := d.Host.Netlink.LinkList()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if _, ok := l.(*netlink.Tuntap); ok {
			return "", fmt.Errorf("the device %s is still there", l.Attrs().Name)
		}
	}
	return "SIGTERM, exit 0, the device is gone", nil
}

// keep leaves the lab standing and says how to get in and out.
func (d *demo) keep() error {
	if err := d.Persist(); err != nil {
		return fmt.Errorf("keep the lab: %w", err)
	}
	enter, down := "", d.self+" lab down"
	if Inside() {
		enter = fmt.Sprintf("nsenter --preserve-credentials -U -m -t %d ", d.daemon.Process.Pid)
	}
	fmt.Fprintf(d.Out, "\nThe lab stands. Enter it:\n")
	for _, n := range []*Node{d.client, d.Host, d.Server} {
		fmt.Fprintf(d.Out, "  %sip netns exec %s bash\n", enter, n.NetNS())
	}
	fmt.Fprintf(d.Out, "Try in the client:\n  ping %s\n  curl 'http://[%s]:%s/'\nAsk the daemon:\n  %sNATLESS_SOCKET=%s %s status\nIts log:\n  %s\nRemove the lab:\n  %s\n",
		Server6, Server6, httpPort, envPrefix(enter), d.daemon.Socket, d.self, filepath.Clean(d.daemon.log), down)
	return nil
}

func envPrefix(enter string) string {
	if enter == "" {
		return ""
	}
	return enter + "env "
}
