package attach

import (
	"fmt"
	"strconv"
	"strings"
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

// PortRange is what is in force for connections from inside a namespace.
type PortRange struct {
	Ports    string `json:"ports"`
	Reserved string `json:"reserved,omitempty"` // those of them, or others, that no connection gets
	TwReuse  string `json:"tcp_tw_reuse"`
}

// PortRange reads it.
func (n *Namespace) PortRange() (r PortRange, err error) {
	for name, to := range map[string]*string{keyPortRange: &r.Ports, keyReserved: &r.Reserved, keyTwReuse: &r.TwReuse} {
		if *to, err = n.sysctl(name); err != nil {
			return r, fmt.Errorf("looking at the range of ports: %w", err)
		}
	}
	r.Ports = strings.Join(strings.Fields(r.Ports), "-")
	return r, nil
}
