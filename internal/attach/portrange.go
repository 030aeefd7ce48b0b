package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/natless/natless/internal/lockfile"
	"github.com/natless/natless/mapping"
)

const (
	keyPortRange = "net/ipv4/ip_local_port_range"
	keyReserved  = "net/ipv4/ip_local_reserved_ports"
	keyTwReuse   = "net/ipv4/tcp_tw_reuse"
	keyLowest    = "net/ipv4/ip_unprivileged_port_start"
)

// Sysctl is a setting of a namespace, by its name below /proc/sys.
type Sysctl struct {
	Name string `json:"name"`
	Was  string `json:"was"`
	Set  string `json:"set"`
}

// Ports are first to last, both included.
type Ports struct{ First, Last uint16 }

func (p Ports) String() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

// ParsePorts reads what String writes.
func ParsePorts(s string) (p Ports, err error) {
	first, last, ok := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	b, errB := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	if !ok || errA != nil || errB != nil || a > b {
		return p, fmt.Errorf("%q: expected ports FIRST-LAST", s)
	}
	return Ports{uint16(a), uint16(b)}, nil
}

// SetPortRange plans that connections from inside the namespace take these
// ports, and that a port may serve the next connection to the same destination
// a second after the last has ended (tcp_tw_reuse). Nothing is changed yet. The
// warnings say what the user should know of this namespace.
func (n *Namespace) SetPortRange(p Ports) (plan []Sysctl, warnings []string, err error) {
	read := func(name string) (value string) {
		if err == nil {
			value, err = n.sysctl(name)
		}
		return value
	}
	ports, reuse, reserved, lowest := read(keyPortRange), read(keyTwReuse), read(keyReserved), read(keyLowest)
	if err != nil {
		return nil, nil, fmt.Errorf("looking at its range of ports: %w", err)
	}
	if low, err := strconv.Atoi(lowest); err == nil && int(p.First) < low {
		return nil, nil, fmt.Errorf("its ports below %d are kept for programs with rights (%s), among them some of %v",
			low, strings.ReplaceAll(keyLowest, "/", "."), p)
	}
	want := fmt.Sprintf("%d\t%d", p.First, p.Last)
	if ports != want {
		plan = append(plan, Sysctl{keyPortRange, ports, want})
	}
	if reuse != "1" {
		plan = append(plan, Sysctl{keyTwReuse, reuse, "1"})
	}
	if cut := reservedWithin(reserved, p); cut > 0 {
		warnings = append(warnings, fmt.Sprintf("%d of the %d ports %v are reserved in the namespace (%s = %s)",
			cut, int(p.Last)-int(p.First)+1, p, strings.ReplaceAll(keyReserved, "/", "."), reserved))
	}
	return plan, warnings, nil
}

// reservedWithin counts the ports that a list such as "80,8000-8080" takes from
// a range.
func reservedWithin(list string, p Ports) (cut int) {
	for _, item := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.Atoi(first)
		b, errB := strconv.Atoi(last)
		if errA == nil && errB == nil {
			cut += max(0, min(b, int(p.Last))-max(a, int(p.First))+1)
		}
	}
	return cut
}

// native tells of connections that are not natless's and take the ports too.
func (n *Namespace) native(p Ports) []string {
	if _, ok := n.wayTo(netip.MustParseAddr("2000::1")); !ok {
		return nil
	}
	return []string{fmt.Sprintf("its connections over native IPv6 take ports %v too", p)}
}

// SetRange makes connections of a target take the ports of its lease that need no
// state. Attach does so already, and what is not attached is attached here.
func SetRange(ctx context.Context, d Daemon, name string, wait lockfile.Wait) (r Result, err error) {
	err = holding(ctx, d, name, wait, func(e entry, n *Namespace, _ func(holder) bool) error {
		if n == nil {
			return errGone
		}
		if e.Ports == "" {
			return noRange(e.Attachment)
		}
		p, err := Stateless(e.Attachment)
		if err != nil {
			return err
		}
		plan, warnings, err := n.SetPortRange(p)
		if err != nil {
			return err
		}
		e.state.Sysctls = merged(e.state.Sysctls, plan)
		if r.Attachment, err = record(ctx, d, e.Attachment, e.state); err != nil {
			return err
		}
		r.Warnings = append(warnings, n.native(p)...)
		changes := Changes{Sysctls: plan}
		for _, s := range plan {
			r.Done = append(r.Done, s.text(s.Set))
		}
		return changes.make(n)
	})
	if errors.As(err, new(notAttached)) {
		r, err = attachRange(ctx, d, name, wait)
	}
	if err != nil {
		return r, fmt.Errorf("setting the port range of %s: %w", name, err)
	}
	return r, nil
}

// attachRange attaches a target, unless what it gets is no range.
func attachRange(ctx context.Context, d Daemon, name string, wait lockfile.Wait) (r Result, err error) {
	t, err := Find(ctx, name)
	if err != nil {
		return r, err
	}
	if r, err = Attach(ctx, d, t, Options{Wait: wait}); err == nil && r.Ports == "" && !r.Already {
		_, back := Detach(context.WithoutCancel(ctx), d, name, wait)
		return r, errors.Join(noRange(r.Attachment), back)
	}
	return r, err
}

func noRange(a mapping.Attachment) error {
	return fmt.Errorf("it has no range of ports but all of %v: no pool of mode port-range lends to it", a.IPv4)
}

// Stateless is the part of an attachment's range that connections take.
func Stateless(a mapping.Attachment) (Ports, error) {
	p, err := ParsePorts(a.Ports)
	p.Last = a.StatelessLast
	return p, err
}

// merged has new settings beside the old ones: what was there first is what is
// restored.
func merged(old, plan []Sysctl) []Sysctl {
	list := slices.Clone(old)
	for _, s := range plan {
		i := slices.IndexFunc(list, func(o Sysctl) bool { return o.Name == s.Name })
		if i < 0 {
			list = append(list, s)
			continue
		}
		list[i].Set = s.Set
	}
	return list
}

// UnsetRange takes back what SetRange or Attach set. The attachment stays.
func UnsetRange(ctx context.Context, d Daemon, name string, wait lockfile.Wait) (r Result, err error) {
	err = holding(ctx, d, name, wait, func(e entry, n *Namespace, _ func(holder) bool) error {
		if n == nil {
			return errGone
		}
		if len(e.state.Sysctls) == 0 {
			return errors.New("natless has set none")
		}
		changes := Changes{Sysctls: e.state.Sysctls}
		if r.Warnings, err = changes.undo(n); err != nil {
			return err
		}
		e.state.Sysctls = nil
		r.Attachment, err = record(ctx, d, e.Attachment, e.state)
		return err
	})
	if err != nil {
		return r, fmt.Errorf("unsetting the port range of %s: %w", name, err)
	}
	return r, nil
}

// PortRange is what holds for connections from inside a namespace.
type PortRange struct {
	Ports    string `json:"ports"`              // that they take, "FIRST-LAST"
	Reserved string `json:"reserved,omitempty"` // ports, of these or others, that none gets
	TwReuse  string `json:"tcp_tw_reuse"`       // 1: a port serves again a second after its connection ended
}

// ShowRange reads what holds in a target's namespace, attached or not.
func ShowRange(ctx context.Context, name string) (r PortRange, err error) {
	t, err := Find(ctx, name)
	if err != nil {
		return r, err
	}
	n, err := t.Open()
	if err != nil {
		return r, err
	}
	defer n.Close()
	for name, to := range map[string]*string{keyPortRange: &r.Ports, keyReserved: &r.Reserved, keyTwReuse: &r.TwReuse} {
		if *to, err = n.sysctl(name); err != nil {
			return r, fmt.Errorf("looking at the port range of %s: %w", t.Given, err)
		}
	}
	r.Ports = strings.Join(strings.Fields(r.Ports), "-")
	return r, nil
}
