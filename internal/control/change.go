package control

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/natless/natless/mapping"
)

const (
	opAdd    = "add"
	opRemove = "remove"
)

func (x exchange) addMap() {
	body, err := io.ReadAll(x.r.Body)
	if err != nil {
		x.unread("the mapping", err)
		return
	}
	m, err := parseMap(body)
	if err != nil {
		x.refused("adding a mapping", err, http.StatusBadRequest)
		return
	}
	x.change([]mapping.Change{{Add: m}})
}

func (x exchange) removeMap() {
	p, err := parsePrefix(x.r.PathValue("addr"))
	if err != nil {
		x.refused("removing a mapping", err, http.StatusBadRequest)
		return
	}
	x.change([]mapping.Change{{Remove: p}})
}

// batch does the changes in the body, one a line. Few are read at once, and
// those that wait hold nothing of theirs in memory.
func (x exchange) batch() {
	batches := x.room().batches
	select {
	case batches <- struct{}{}:
		defer func() { <-batches }()
	case <-x.ending:
		x.readNoMore()
		x.fail(http.StatusServiceUnavailable, "%v", errEnding)
		return
	case <-time.After(x.limits.batch):
		x.readNoMore()
		x.fail(http.StatusServiceUnavailable, "%d batches are under way: try again", x.limits.batches)
		return
	}
	x.control().SetReadDeadline(time.Now().Add(x.limits.batch))
	changes, err := parseBatch(x.r.Body)
	var malformed lineError
	switch {
	case err == nil:
		x.change(changes)
	case errors.As(err, &malformed):
		io.Copy(io.Discard, x.r.Body) // so that who still writes gets to the answer
		x.refused("a batch", err, http.StatusBadRequest)
	default:
		x.unread("the batch", err)
	}
}

func (x exchange) change(changes []mapping.Change) {
	what := words(changes)
	revision, err := x.source.Change(changes, x.peer().by())
	if err != nil {
		x.refused(what, err, http.StatusBadRequest)
		return
	}
	x.done(what, slog.Uint64("revision", revision))
	x.one(http.StatusOK, changed{revision})
}

// lend makes sure that the client in the body has a lease.
func (x exchange) lend() {
	body, err := io.ReadAll(x.r.Body)
	if err != nil {
		x.unread("the client", err)
		return
	}
	a, label, err := parseClient(body)
	if err != nil {
		x.refused("leasing", err, http.StatusBadRequest)
		return
	}
	what := fmt.Sprintf("leasing for %v", a)
	lease, err := x.source.Lend(a, label, x.peer().by())
	if err != nil {
		x.refused(what, err, http.StatusBadRequest)
		return
	}
	x.done(what, slog.Any("ipv4", lease.IPv4), slog.String("ports", lease.Ports))
	x.one(http.StatusOK, lease)
}

// errUntrusted is for those of control.group: an attachment has what root undoes
// later, and so must be root's.
var errUntrusted = fmt.Errorf("%w: only root may", fs.ErrPermission)

// attach records the attachment in the body.
func (x exchange) attach() {
	body, err := io.ReadAll(x.r.Body)
	if err != nil {
		x.unread("the attachment", err)
		return
	}
	a, err := parseAttachment(body)
	if err != nil {
		x.refused("attaching", err, http.StatusBadRequest)
		return
	}
	what := "attaching " + a.Target
	if !x.peer().trusted() {
		x.refused(what, errUntrusted, http.StatusForbidden)
		return
	}
	recorded, err := x.source.Attach(a, x.peer().by())
	if err != nil {
		x.refused(what, err, http.StatusBadRequest)
		return
	}
	x.done(what, slog.Any("ipv4", recorded.IPv4), slog.String("ports", recorded.Ports), slog.Any("ipv6", recorded.IPv6))
	x.one(http.StatusOK, recorded)
}

func (x exchange) detach() {
	id := x.r.PathValue("id")
	if !x.peer().trusted() {
		x.refused("detaching "+quoted(id), errUntrusted, http.StatusForbidden)
		return
	}
	a, err := x.source.Detach(id, x.peer().by())
	if err != nil {
		x.refused("detaching "+quoted(id), err, http.StatusBadRequest)
		return
	}
	x.done("detaching "+a.Target, slog.Any("ipv4", a.IPv4), slog.String("ports", a.Ports), slog.Any("ipv6", a.IPv6))
	x.one(http.StatusOK, a)
}

func (x exchange) release() {
	a, err := parseAddr(x.r.PathValue("addr"))
	if err != nil {
		x.refused("releasing a lease", err, http.StatusBadRequest)
		return
	}
	what := fmt.Sprintf("releasing the lease of %v", a)
	lease, err := x.source.Release(a, x.peer().by())
	if err != nil {
		x.refused(what, err, http.StatusBadRequest)
		return
	}
	x.done(what, slog.Any("ipv4", lease.IPv4), slog.Any("ipv6", lease.IPv6))
	x.one(http.StatusOK, lease)
}

func (x exchange) reload() {
	const what = "reloading the configuration"
	changes, err := x.source.Reload(x.peer().by()) // which logs what changes
	if err != nil {
		x.refused(what, err, http.StatusUnprocessableEntity)
		return
	}
	x.one(http.StatusOK, reloaded{append([]string{}, changes...)}) // in JSON a list also when empty
}

// done logs a change that is in force.
func (x exchange) done(what string, more ...any) {
	x.log.Info("control change", x.attributes(what, more...)...)
}

// refused logs a change that is not made, and answers so.
func (x exchange) refused(what string, err error, otherwise int) {
	x.log.Warn("control change refused", x.attributes(what, slog.Any("error", err))...)
	x.refuse(err, otherwise)
}

// attributes are what the log says of a change: what, by whom, and more.
func (x exchange) attributes(what string, more ...any) []any {
	all := append([]any{slog.String("change", what)}, more...)
	p := x.peer()
	if !p.known {
		return append(all, slog.String("peer", p.String()))
	}
	return append(all, slog.Uint64("uid", uint64(p.Uid)), slog.String("user", p.user()),
		slog.Uint64("gid", uint64(p.Gid)), slog.Int("pid", int(p.Pid)))
}

// words say what changes are asked for, the first of many.
func words(changes []mapping.Change) string {
	const most = 8
	var all []string
	for _, c := range changes[:min(len(changes), most)] {
		switch {
		case c.Add == nil:
			all = append(all, fmt.Sprintf("removing the mapping of %v", c.Remove))
		case c.Add.Label == "":
			all = append(all, fmt.Sprintf("adding the mapping %v = %v", c.Add.IPv4, c.Add.IPv6))
		default:
			all = append(all, fmt.Sprintf("adding the mapping %v = %v (%s)", c.Add.IPv4, c.Add.IPv6, c.Add.Label))
		}
	}
	if more := len(changes) - most; more > 0 {
		all = append(all, fmt.Sprintf("and %d changes more", more))
	}
	return strings.Join(all, ", ")
}
