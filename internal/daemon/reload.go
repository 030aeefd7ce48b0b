package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/mapping"
)

// reloadAt reads the configuration again at every SIGHUP.
func (d *daemon) reloadAt(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		if _, err := d.Reload("SIGHUP"); err != nil {
			d.log.Error("the configuration stays as it was", "error", err)
		}
	}
}

// Reload reads the configuration again and puts it in force, all or nothing.
// It returns what changed, in words.
func (d *daemon) Reload(by string) ([]string, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	notify(systemd.SdNotifyReloading + "\n" + systemd.SdNotifyMonotonicUsec())
	defer notify(systemd.SdNotifyReady)
	next, err := d.load()
	if err != nil {
		return nil, fmt.Errorf("reloading: %w", beyondConfinement(err))
	}
	running := d.config()
	keeps := next.KeepOwn(running)
	if next.Network.Firewall == "open" && !d.programs {
		keeps = errors.Join(keeps, errPrograms)
	}
	changes, err := running.CheckReload(next)
	if err := errors.Join(keeps, err); err != nil {
		return nil, fmt.Errorf("reloading: %w", err)
	}
	diff, err := d.putInForce(next, by)
	if err != nil {
		return nil, fmt.Errorf("reloading: %w", err)
	}
	if n := len(diff.LeasesEnded); n > 0 {
		changes = append(changes, fmt.Sprintf("leases ended: %d, of addresses or clients that no pool has any more", n))
	}
	d.logReload(changes, by)
	d.stir()
	d.attaching.Lock()
	d.heal()
	d.attaching.Unlock()
	for _, line := range lostByReload(diff.LeasesEnded, d.table.Attachments()) {
		d.log.Warn("reload: " + line)
		changes = append(changes, line)
	}
	return changes, nil
}

// lostByReload says which attachments have lost their leases.
func lostByReload(ended []mapping.Lease, attached []mapping.Attachment) (lines []string) {
	for _, l := range ended {
		for _, a := range attached {
			if l.Pinned && a.IPv6 == l.IPv6 {
				lines = append(lines, fmt.Sprintf("%s has lost %v: no pool has that for %v any more: attach it again", a, l.IPv4, l.IPv6))
			}
		}
	}
	return lines
}

// putInForce has the host, then the table, then the rest be as the
// configuration says. What cannot fail comes last.
func (d *daemon) putInForce(c *config.Config, by string) (diff mapping.Diff, err error) {
	rules := Mapping(c)
	if err := d.table.CheckReload(rules); err != nil {
		return diff, err
	}
	before, next := d.inForce.Load(), &inForce{c, Plan(c)}
	if err := d.host.Update(withAdded(next.plan, d.added)); err != nil {
		return diff, refusedByHost(err)
	}
	if diff, err = d.table.Reload(rules, by); err != nil {
		return diff, errors.Join(err, d.host.Update(withAdded(before.plan, d.added)))
	}
	d.added = runtimeSides(d.table) // what the configuration has now is no more of them
	if err := d.host.Update(withAdded(next.plan, d.added)); err != nil {
		d.log.Warn("the host's routes are behind the configuration", "error", err)
	}
	setLevel(d.level, c.Log)
	d.setNames(before.config, c)
	d.ra.Update(Advertisements(c))
	if s := d.saved.store; s != nil {
		s.SetHistory(c.State.History)
	}
	d.inForce.Store(next)
	debug.FreeOSMemory() // reading a million maps takes several times what they do
	return diff, nil
}

// logged is how many changes of a reload get a line of their own.
const logged = 20

func (d *daemon) logReload(changes []string, by string) {
	for _, line := range changes[:min(logged, len(changes))] {
		d.log.Info("reload: " + line)
	}
	if more := len(changes) - logged; more > 0 {
		d.log.Info(fmt.Sprintf("reload: and %d changes more", more))
	}
	d.log.Info(fmt.Sprintf("reloaded: %d changes", len(changes)), "by", by, "revision", d.table.Revision())
}
