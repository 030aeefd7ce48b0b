// Package daemon is `natless run`: it makes the host ready, opens the device,
// starts the workers, and takes all of it down again when it is told to stop.
// It joins the rooms that packets pass; no packet passes here.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/dataplane"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/tun"
)

// Run translates as the configuration says until the context ends. On return,
// also with an error, everything it made on the host is undone, or kept where
// the configuration says so.
func Run(ctx context.Context, version string, c *config.Config, log *slog.Logger) (err error) {
	if err := needNetAdmin(); err != nil {
		return err
	}
	table, err := mapping.New(Mapping(c))
	if err != nil {
		return err
	}
	plan := Plan(c)
	host, err := hostnet.Prepare(plan)
	if err != nil {
		return fmt.Errorf("preparing the host: %w", err)
	}
	defer func() { err = errors.Join(err, leave(host, log)) }()

	device, err := tun.Open(tun.Config{Name: c.Device.Name, Queues: queues(c), Offload: c.Device.Offload == "auto"})
	if err != nil {
		return err
	}
	defer device.Close()

	plane := dataplane.New(dataplane.Config{
		Queues: device.Queues(), Resolver: table, Options: c.Options(host.MTU()),
		IPv4: c.OwnIPv4(), IPv6: c.OwnIPv6(),
	})
	server, err := control.Listen(c.Control.Socket, c.Control.Group, log)
	if err != nil {
		return err
	}
	defer server.Close()

	local, err := hostnet.Local(c.Device.Name)
	if err != nil {
		return err
	}
	table.SetLocal(local)
	if ctx.Err() != nil {
		return nil
	}
	if err := host.Attach(device.Index()); err != nil {
		return fmt.Errorf("setting up the host: %w", err)
	}
	d := &daemon{
		version: version, started: time.Now(), config: c, table: table, plan: plan,
		host: host, device: device, plane: plane, server: server, log: log,
		clashes: map[string]bool{},
	}
	return d.serve(ctx)
}

// leave takes down what was made on the host and says what stays.
func leave(host *hostnet.Host, log *slog.Logger) error {
	stays, err := host.Close()
	for _, line := range stays {
		log.Warn(line)
	}
	if err != nil {
		return fmt.Errorf("cleaning up the host (natless down tries again): %w", err)
	}
	return nil
}

// needNetAdmin tells early and plainly what every later step would fail for.
func needNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading this process's capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("natless run makes a network device and routes: it needs root (CAP_NET_ADMIN); try sudo")
	}
	return nil
}

// queues is how many workers there are: as many as asked for, or one per CPU
// and at most 8, beyond which the kernel's side of the device gains nothing.
func queues(c *config.Config) int {
	if c.Device.Queues > 0 {
		return c.Device.Queues
	}
	return min(runtime.NumCPU(), 8)
}

// daemon is a natless at work.
type daemon struct {
	version string
	started time.Time
	config  *config.Config
	plan    hostnet.Plan
	table   *mapping.Table
	host    *hostnet.Host
	device  *tun.Device
	plane   *dataplane.Plane
	server  *control.Server
	log     *slog.Logger

	mu      sync.Mutex
	clashes map[string]bool // what on the host stands in natless's way now
}

// serve runs the workers and what goes on beside them until the context ends
// or one of them fails. The workers end last: with them the device goes, which
// the watcher would take for somebody's mischief.
func (d *daemon) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	planeCtx, stopPlane := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPlane()
	var workers, beside sync.WaitGroup
	var plane, watch, server error
	workers.Go(func() { defer cancel(); plane = d.plane.Run(planeCtx) })
	beside.Go(func() { defer cancel(); watch = d.host.Watch(ctx, d.onEvent, d.table.SetLocal) })
	beside.Go(func() { defer cancel(); server = d.server.Serve(d) })
	beside.Go(func() { d.reportRefusals(ctx) })
	beside.Go(func() { feedWatchdog(ctx) })
	d.becomeReady()
	<-ctx.Done()
	notify(systemd.SdNotifyStopping)
	d.server.Close()
	beside.Wait()
	stopPlane()
	workers.Wait()
	return errors.Join(plane, watch, server)
}

// becomeReady says in one line what natless does from now on.
func (d *daemon) becomeReady() {
	_, warnings := d.problems()
	for _, w := range warnings {
		d.log.Warn(w)
	}
	d.log.Info("ready: "+d.summary(), "version", d.version)
	notify(systemd.SdNotifyReady)
}

// problems are what the operator should know now, and whether natless cannot
// do what it was asked for because of it.
func (d *daemon) problems() (degraded bool, warnings []string) {
	warnings = []string{} // a list in JSON even when empty
	d.mu.Lock()
	for c := range d.clashes {
		warnings = append(warnings, c)
	}
	d.mu.Unlock()
	slices.Sort(warnings)
	firewalls, err := hostnet.Firewalls(d.plan)
	if err != nil {
		warnings = append(warnings, err.Error())
	}
	for _, f := range firewalls {
		warnings = append(warnings, f.String())
	}
	degraded = len(warnings) > 0
	return degraded, append(warnings, d.config.Warnings()...)
}

func (d *daemon) onEvent(e hostnet.Event) {
	d.log.Warn(e.Text, "event", e.Kind)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e.Kind {
	case hostnet.Clash:
		d.clashes[e.Text] = true
	case hostnet.Resolved:
		delete(d.clashes, e.Text)
	}
}

func (d *daemon) summary() string {
	pref64 := "no pref64"
	if p := d.config.Translation.Pref64; p.IsValid() {
		pref64 = "pref64 " + p.String()
	}
	said := []string{pref64}
	for _, p := range d.config.Pools {
		said = append(said, fmt.Sprintf("pool %v %s", p.IPv4, p.Mode))
	}
	said = append(said, fmt.Sprintf("%d maps", len(d.config.Maps)),
		fmt.Sprintf("device %s mtu %d, %d queues, %v", d.device.Name(), d.host.MTU(), len(d.device.Queues()), d.device.Features()))
	if m := d.plan.Masquerade; len(m) > 0 {
		said = append(said, "masquerading pool addresses")
	}
	return strings.Join(append(said, "refused: "+strings.Join(d.refused(), ", ")), "; ")
}

// refused says what natless does not translate, with the key that changes it.
func (d *daemon) refused() []string {
	said := []string{"loopback, multicast, link-local and class E addresses"}
	if !d.config.AllowPrivate() {
		said = append(said, fmt.Sprintf("private IPv4 addresses behind %v (translation.private_ipv4; or use 64:ff9b:1::/96)", d.config.Translation.Pref64))
	}
	if d.config.Translation.Hairpin == "off" {
		said = append(said, "packets between clients (translation.hairpin)")
	}
	return said
}

// notify tells the service manager, if there is one.
func notify(state string) { _, _ = systemd.SdNotify(false, state) }

// feedWatchdog tells the service manager that natless is alive, twice in each
// interval that the unit's WatchdogSec sets.
func feedWatchdog(ctx context.Context) {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	every(ctx, interval/2, func() { notify(systemd.SdNotifyWatchdog) })
}

// every calls do in an interval until the context ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}
