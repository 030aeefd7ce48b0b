// Package daemon is `natless run`: it makes the host ready, opens the device,
// starts the workers, and takes all of it down again when it is told to stop.
// It joins the rooms that packets pass; no packet passes here.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/confine"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/dataplane"
	"github.com/natless/natless/internal/dns64"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/ra"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/tun"
)

// Run translates as the configuration says until the context ends. On return,
// also with an error, everything it made on the host is undone, or kept where
// the configuration says so. load reads the configuration, from file if there is
// one, also again at SIGHUP; newLog makes the logger, whose level may then change.
func Run(ctx context.Context, version, file string, load func() (*config.Config, error), newLog func(config.Log, slog.Leveler) *slog.Logger) (err error) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	c, err := load()
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	setLevel(level, c.Log)
	log := newLog(c.Log, level)
	if err := needNetAdmin(); err != nil {
		return err
	}
	if running := hostnet.Running(); running != nil {
		return running // which says more than that its state is in use
	}
	table, err := mapping.New(firstRevision(Mapping(c)))
	if err != nil {
		return err
	}
	saved, err := openStore(c.State, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, saved.close()) }()
	var plane *dataplane.Plane
	lost, err := table.Keep(mapping.Keeper{
		Store: saved.asStore(), Forget: hostnet.ForgetFlows, Wake: func() { plane.Wake() }, Log: log,
	})
	if err != nil {
		return err
	}

	names, err := dns64.Listen(names{table}, nameSettings(c), log)
	if err != nil {
		return err
	}
	defer names.Close()
	sharing, err := Sharing(c)
	if err != nil {
		return err
	}
	sessions, _ := sharing.Sessions.(*conntrack.Table)

	added := runtimeSides(table)
	plan := Plan(c)
	host, err := hostnet.Prepare(withAdded(plan, added))
	if err != nil {
		return fmt.Errorf("preparing the host: %w", err)
	}
	defer func() { err = errors.Join(err, leave(host)) }()

	device, err := tun.Open(tun.Config{Name: c.Device.Name, Queues: queues(c), Rings: rings, Offload: c.Device.Offload == "auto"})
	if err != nil {
		return err
	}
	defer device.Close()

	plane = dataplane.New(dataplane.Config{
		Queues: device.Queues(), Resolver: table, Sharing: sharing, Options: c.Options(host.MTU()), Join: device.Features().USO,
		IPv4: c.OwnIPv4(), IPv6: c.OwnIPv6(), Open: host.Guarded(),
	})
	server, err := control.Listen(c.Control.Socket, c.Control.Group, c.Control.ReadGroup, log)
	if err != nil {
		return err
	}
	defer server.Close()

	local, err := host.Local()
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
	programs := plan.Open || len(host.Opened()) > 0
	d := &daemon{
		confined: confineSelf(c, file, programs), programs: programs,
		version: version, started: time.Now(), load: load, table: table, saved: saved, lost: lost,
		host: host, device: device, plane: plane, sessions: sessions, server: server, names: names, ra: ra.New(Advertisements(c), log), log: log, level: level,
		added: added, clashes: map[string]bool{}, stuck: map[string]bool{},
	}
	d.inForce.Store(&inForce{c, plan})
	return d.serve(ctx, hangups)
}

// firstRevision begins the revisions where those of no earlier run can be, so
// that who watches over a restart is told to list again.
func firstRevision(c mapping.Config) mapping.Config {
	c.Revision = uint64(time.Now().Unix()) * 1000
	return c
}

func setLevel(level *slog.LevelVar, c config.Log) {
	_ = level.UnmarshalText([]byte(c.Level)) // the configuration admits slog's own names only
}

// leave takes down what was made on the host.
func leave(host *hostnet.Host) error {
	if err := host.Close(); err != nil {
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

// rings is how many each queue has. Two clients share one by chance, one time in
// as many; and a worker that has nothing to do looks at all of them.
const rings = 16

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
	version  string
	started  time.Time
	load     func() (*config.Config, error)
	table    *mapping.Table
	saved    *saved
	lost     []string // maps that were saved and are not in force
	host     *hostnet.Host
	device   *tun.Device
	plane    *dataplane.Plane
	sessions *conntrack.Table // nil: no clients share an address
	server   *control.Server
	names    *dns64.Server
	ra       *ra.Advertiser
	log      *slog.Logger
	level    *slog.LevelVar
	confined confine.State
	programs bool // those of firewalls may be run

	inForce atomic.Pointer[inForce]

	changing sync.Mutex // held by whoever changes mappings or the configuration
	added    []sides    // of the maps added at runtime

	attaching sync.Mutex      // held by whoever changes attachments
	stuck     map[string]bool // those that are gone and could not be detached

	mu      sync.Mutex
	clashes map[string]bool // what on the host stands in natless's way now
}

// inForce is the configuration, and what it asks of the host.
type inForce struct {
	config *config.Config
	plan   hostnet.Plan
}

func (d *daemon) config() *config.Config { return d.inForce.Load().config }

// serve runs the workers and what goes on beside them until the context ends
// or one of them fails. The workers end last: with them the device goes, which
// the watcher would take for somebody's mischief; but for the keeper, which
// saves what they have left.
func (d *daemon) serve(ctx context.Context, hangups <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	planeCtx, stopPlane := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPlane()
	keeperCtx, stopKeeper := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeper()
	var workers, beside, keeping sync.WaitGroup
	var plane, watch, server, names, keeper, advertiser error
	keeping.Go(func() { defer cancel(); keeper = d.table.RunKeeper(keeperCtx) })
	workers.Go(func() { defer cancel(); plane = d.plane.Run(planeCtx) })
	beside.Go(func() { defer cancel(); watch = d.host.Watch(ctx, d.onEvent, d.table.SetLocal, d.table.SetAround) })
	beside.Go(func() { defer cancel(); server = d.server.Serve(d) })
	beside.Go(func() { defer cancel(); names = d.names.Serve(ctx) })
	beside.Go(func() { defer cancel(); advertiser = d.ra.Run(ctx) })
	beside.Go(func() { d.reportRefusals(ctx) })
	beside.Go(func() { d.watchAttachments(ctx) })
	beside.Go(func() { d.endSessions(ctx) })
	beside.Go(func() { feedWatchdog(ctx) })
	d.becomeReady()
	beside.Go(func() { d.reloadAt(ctx, hangups) })
	<-ctx.Done()
	notify(systemd.SdNotifyStopping)
	d.server.Close()
	beside.Wait()
	stopPlane()
	workers.Wait()
	stopKeeper()
	keeping.Wait()
	return errors.Join(plane, watch, server, names, keeper, advertiser)
}

// becomeReady says in one line what natless does from now on.
func (d *daemon) becomeReady() {
	_, warnings := d.problems()
	for _, w := range warnings {
		d.log.Warn(w)
	}
	d.log.Info("ready: "+d.summary(), "version", d.version)
	notify(systemd.SdNotifyReady)
	debug.FreeOSMemory() // reading a million maps takes several times what they do
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
}

// collectAt is by how many percent the heap grows before it is collected. What
// looks after the host leaves some 20 KiB of garbage a second, and no packet
// leaves any: at Go's own 100 percent the resident size creeps up for minutes.
const collectAt = 25

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
	if problem := d.host.Unguarded(); problem != "" {
		warnings = append(warnings, problem)
	}
	firewalls, err := d.host.Firewalls()
	if err != nil {
		warnings = append(warnings, err.Error())
	}
	for _, f := range firewalls {
		warnings = append(warnings, f.String())
	}
	if problem := d.table.StoreProblem(); problem != "" {
		warnings = append(warnings, "no lease can be made and no mapping changed: "+problem)
	}
	for _, m := range d.lost {
		warnings = append(warnings, "a saved map is not in force: "+m)
	}
	s := d.nameStatus()
	if s != nil && s.Problem != "" {
		warnings = append(warnings, "DNS64 cannot answer: "+s.Problem)
	}
	warnings = append(warnings, d.unheld()...)
	silent, others := raProblems(d.ra.Status())
	warnings = append(warnings, silent...)
	degraded = len(warnings) > 0 || d.stateProblem() != ""
	if s != nil {
		others = append(others, AbsentNames(s.Absent)...)
	}
	var loose []string
	for _, problem := range d.confined.Problems {
		loose = append(loose, "natless runs with more rights than it needs: "+problem)
	}
	return degraded, slices.Concat(warnings, others, d.host.Doubtful(), d.host.Aside(), d.saved.problems(), d.config().Warnings(), loose)
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
	c := d.config()
	pref64 := "no pref64"
	if p := c.Translation.Pref64; p.IsValid() {
		pref64 = "pref64 " + p.String()
	}
	said := []string{pref64}
	for _, p := range c.Pools {
		pool := fmt.Sprintf("pool %v %s", p.IPv4, p.Mode)
		if ports := p.Ports(); ports.PerClient > 0 {
			pool += fmt.Sprintf(" (%d clients an address, of %d ports)", ports.Clients(), ports.PerClient)
		}
		said = append(said, pool)
	}
	d.changing.Lock()
	maps := len(c.Maps) + len(d.added)
	d.changing.Unlock()
	said = append(said, fmt.Sprintf("%d maps", maps),
		fmt.Sprintf("device %s mtu %d, queues %d, of %d rings each, %v", d.device.Name(), d.host.MTU(), len(d.device.Queues()),
			d.device.Features().Rings, d.device.Features()))
	if m := d.inForce.Load().plan.Masquerade; len(m) > 0 {
		said = append(said, "masquerading pool addresses")
	}
	if s := c.DNS64.String(); s != "" {
		said = append(said, s)
	}
	if opened := d.host.Opened(); len(opened) > 0 {
		said = append(said, "opened "+strings.Join(opened, ", "))
	}
	return strings.Join(append(said, "refused: "+strings.Join(d.refused(), ", ")), "; ")
}

// refused says what natless does not translate, with the key that changes it.
func (d *daemon) refused() []string {
	c := d.config()
	said := []string{"loopback, multicast, link-local and class E addresses"}
	if !c.AllowPrivate() {
		said = append(said, fmt.Sprintf("private IPv4 addresses behind %v (translation.private_ipv4; or use 64:ff9b:1::/96)", c.Translation.Pref64))
	}
	switch c.Translation.Hairpin {
	case "off":
		said = append(said, "packets between clients (translation.hairpin)")
	case "guarded":
		said = append(said, "packets between clients that this host would not pass itself (translation.hairpin)")
	}
	if d.host.HostShut() {
		said = append(said, "this host's own IPv4 addresses, for its rules ask where packets come from (translation.hairpin)")
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
