package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/attach"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/proc"
	"github.com/natless/natless/mapping"
)

const (
	lendTime = 10 * time.Second // until a lease that is asked for must be durable
	lookTime = 2 * time.Second  // between two looks at what is attached
)

// Lend makes a lease on demand. One that an attachment pins which is gone, but
// was not yet looked at, must not be taken for it: it is about to end.
func (d *daemon) Lend(client netip.Addr, label, by string) (mapping.Lease, error) {
	if d.attaching.TryLock() { // or somebody else sees to it
		d.detachGone()
		d.attaching.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), lendTime)
	defer cancel()
	return d.table.Lend(ctx, client, label, by)
}

// Attachments are those that are not known to be gone, the number of whose
// namespace may be another's by now, but for what a command has left to undo.
func (d *daemon) Attachments() iter.Seq[any] {
	list := slices.DeleteFunc(d.table.Attachments(), func(a mapping.Attachment) bool { return !a.Gone && gone(a) })
	for i, a := range list {
		list[i].Problem = d.broken(a)
	}
	return control.Each(slices.Values(list))
}

// attached counts the attachments of targets that are there.
func (d *daemon) attached() int {
	return len(slices.DeleteFunc(d.table.Attachments(), func(a mapping.Attachment) bool { return a.Gone }))
}

// broken says why an attachment does not work, as far as that can be seen from the
// host; "" if nothing is wrong.
func (d *daemon) broken(a mapping.Attachment) string {
	if a.Gone {
		return "its target is gone; natless detach takes back what is left of it"
	}
	if err := d.table.Held(a); err != nil {
		return err.Error()
	}
	if h := a.Host; h != nil && h.Made && !hostnet.HasLink(h.Link, h.Index) {
		return "its link " + h.Link + " is gone"
	}
	return ""
}

// unheld says of each attachment that does not work that it has to be attached
// again.
func (d *daemon) unheld() (list []string) {
	for _, a := range d.table.Attachments() {
		if problem := d.broken(a); problem != "" && !a.Gone {
			list = append(list, fmt.Sprintf("%s does not work: attach it again: %s", a, problem))
		}
	}
	return list
}

// healTime is how long an attachment that is about to work again may keep others
// waiting. Another attempt follows.
const healTime = time.Second

// heal gives attachments back what they have lost, as far as their pools have it
// again. attaching must be held.
func (d *daemon) heal() {
	ctx, cancel := context.WithTimeout(context.Background(), healTime)
	defer cancel()
	for _, a := range d.table.Attachments() {
		if d.table.Held(a) == nil || d.table.Regain(ctx, a, "its attachment") != nil {
			continue
		}
		d.log.Info("attached again: its pool is back", "target", a.Target, "label", a.Label, "ipv6", a.IPv6, "ipv4", a.IPv4, "ports", a.Ports)
	}
}

// Attach records an attachment, with what the daemon sees of its target.
func (d *daemon) Attach(a mapping.Attachment, by string) (mapping.Attachment, error) {
	d.attaching.Lock()
	defer d.attaching.Unlock()
	a.Boot = boot()
	a.Seen, _ = sight(a) // if it cannot be seen, the answer says so
	return d.table.Attach(a, by)
}

func (d *daemon) Detach(id, by string) (mapping.Attachment, error) {
	d.attaching.Lock()
	defer d.attaching.Unlock()
	return d.table.Detach(id, by)
}

// watchAttachments detaches what has gone away, also while natless did not run.
func (d *daemon) watchAttachments(ctx context.Context) {
	look := func() {
		d.attaching.Lock()
		defer d.attaching.Unlock()
		d.detachGone()
		d.heal()
	}
	look()
	every(ctx, lookTime, look)
}

// detachGone detaches what is gone. With it its namespace has gone, and all that
// was set up inside; what was made on the host for it is removed here. attaching
// must be held.
func (d *daemon) detachGone() {
	for _, a := range d.table.Attachments() {
		if a.Gone || !gone(a) {
			continue
		}
		err := clearHost(a.Host)
		if err == nil {
			err = d.detach(a)
		}
		if err == nil {
			d.log.Info("detached: the target is gone", "target", a.Target, "label", a.Label, "ipv6", a.IPv6, "ipv4", a.IPv4, "ports", a.Ports)
			delete(d.stuck, a.ID)
		} else if !d.stuck[a.ID] {
			d.log.Warn("a target is gone and cannot be detached yet", "target", a.Target, "label", a.Label, "error", err)
			d.stuck[a.ID] = true
		}
	}
}

// detach ends an attachment whose target is gone. What was changed for it outside of
// its namespace may take rights that natless does not have: then a command of root's
// has that to do, and it stays recorded without a lease.
func (d *daemon) detach(a mapping.Attachment) error {
	const by = "its target is gone"
	left := attach.Vanished(a.Undo)
	if left == nil {
		_, err := d.table.Detach(a.ID, by)
		return err
	}
	a.Gone, a.Host = true, nil
	_, err := d.table.Attach(a, by)
	if err == nil {
		d.log.Warn("what was changed for a target that is gone is left: natless detach takes it back", "target", a.Target, "reason", left)
	}
	return err
}

// gone reports whether a target is not there any more. Of one that was not seen
// when it was attached that can be told only after the host was started anew.
func gone(a mapping.Attachment) bool {
	if now := boot(); now != "" && a.Boot != "" && now != a.Boot {
		return true
	}
	if a.Seen == "" {
		return false
	}
	seen, err := sight(a)
	return errors.Is(err, errGone) || err == nil && seen != a.Seen
}

// boot tells one start of the host from the others; "" if that is not known.
func boot() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(id))
}

func clearHost(h *mapping.HostSide) error {
	if h == nil {
		return nil
	}
	return hostnet.ClearLink(h.Link, h.Index, h.Made, h.Routes)
}

// errGone is for a target that is not there.
var errGone = errors.New("it is gone")

// sight is by what the target of an attachment is known again, as long as the
// host runs: numbers of processes and of namespaces are used again soon. It
// needs no privileges, and does not look into /proc/PID/ns, which does. The
// error is errGone, or why nothing can be told.
func sight(a mapping.Attachment) (string, error) {
	if a.PID != 0 {
		return processSight(a)
	}
	return fileSight(a)
}

// fileSight is the namespace's file and when it came to be.
func fileSight(a mapping.Attachment) (string, error) {
	var s unix.Stat_t
	switch err := unix.Stat(a.Namespace, &s); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return "", errGone
	case err != nil:
		return "", fmt.Errorf("stat %s: %w", a.Namespace, err)
	case fmt.Sprintf("%x:%x", s.Dev, s.Ino) != a.ID:
		return "", errGone // what is there is not it
	}
	return fmt.Sprintf("file %d.%09d", s.Ctim.Sec, s.Ctim.Nsec), nil
}

// processSight is the process and when it started.
func processSight(a mapping.Attachment) (string, error) {
	started, err := proc.Started(a.PID)
	if hidden(a.PID) {
		return "", fmt.Errorf("process %d is hidden (hidepid of /proc, see proc(5))", a.PID)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && started != a.Started:
		return "", errGone
	case err != nil:
		return "", err
	}
	return fmt.Sprintf("process %d %d", a.PID, started), nil
}

// hidden is a process that is there and not in /proc. Without CAP_SYS_PTRACE,
// which natless at work has not, hidepid does that to those of other users.
func hidden(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return errors.Is(err, fs.ErrNotExist) && !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}
