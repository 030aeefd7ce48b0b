package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/printable"
)

// Namespace is a network namespace that is open, so that it stays when whoever
// made it ends. Its Handle acts inside.
type Namespace struct {
	*netlink.Handle
	file netns.NsHandle
}

// Open opens the target's namespace. It fails when the path leads to another
// one by now. The caller closes it.
func (t *Target) Open() (*Namespace, error) {
	n, err := open(t.Path, t.ID)
	if err != nil {
		return nil, fmt.Errorf("opening the namespace of %s: %w", t.Given, withRights(err))
	}
	return n, nil
}

// errGone says that a namespace is not there any more.
var errGone = errors.New("the namespace is gone")

func open(path, id string) (*Namespace, error) {
	fd, now, err := openNamespace(path)
	if errors.As(err, new(noNamespace)) || err == nil && now != id {
		_ = unix.Close(fd)
		return nil, errGone
	}
	if err != nil {
		return nil, err
	}
	file := netns.NsHandle(fd)
	handle, err := netlink.NewHandleAt(file, unix.NETLINK_ROUTE)
	if err == nil {
		err = handle.SetSocketTimeout(answerLimit)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Namespace{handle, file}, nil
}

// answerLimit is how long the kernel may take to answer a question about a
// namespace, and a whole list of what is in it: others keep it busy, and change the
// list under who reads it.
const answerLimit = 3 * time.Second

// host is the namespace of the caller.
func host() (*Namespace, error) {
	id, err := own()
	if err != nil {
		return nil, err
	}
	return open("/proc/thread-self/ns/net", id)
}

// Close lets go of the namespace.
func (n *Namespace) Close() {
	n.Handle.Close()
	n.file.Close()
}

// do calls f on a thread inside the namespace. Goroutines that it starts do not
// run there.
func (n *Namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(n.file); err != nil {
			done <- fmt.Errorf("entering the namespace: %w", withRights(err))
			return
		}
		done <- f()
	}()
	return <-done
}

// procSys is where the kernel shows the sysctls of the calling thread's
// network namespace, below net.
const procSys = "/proc/sys"

// sysctl reads a setting by its name with slashes.
func (n *Namespace) sysctl(name string) (value string, err error) {
	err = n.do(func() error {
		b, err := os.ReadFile(filepath.Join(procSys, name))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

func (n *Namespace) setSysctl(name, value string) error {
	return n.do(func() error {
		f, err := os.OpenFile(filepath.Join(procSys, name), os.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
}

// address is one of a namespace's that are of use beyond a link.
type address struct {
	netip.Prefix // with the length of its network
	link         int
	flags        int
}

// usable reports whether connections may come from the address as long as it is
// there, and it will stay.
func (a address) usable() bool {
	const unfit = unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY | unix.IFA_F_DADFAILED
	return a.flags&unfit == 0 && !a.tentative()
}

func (a address) tentative() bool {
	return a.flags&unix.IFA_F_TENTATIVE != 0 && a.flags&(unix.IFA_F_OPTIMISTIC|unix.IFA_F_DADFAILED) == 0
}

// addresses lists those of global scope, which ULAs have too, of one family, by
// link.
func (n *Namespace) addresses(family int) ([]address, error) {
	var all []netlink.Addr
	err := whole(func() (err error) { all, err = n.AddrList(nil, family); return err })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	var list []address
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ip = ip.Unmap(); !ok || !ip.IsGlobalUnicast() || a.Scope != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		list = append(list, address{netip.PrefixFrom(ip, ones), a.LinkIndex, a.Flags})
	}
	return list, nil
}

// whole dumps again when the kernel's tables changed under it, a few times. Then
// what was read has to do, where something is missing or there twice: a container
// that changes its own all the time does not keep others waiting.
func whole(dump func() error) (err error) {
	until := time.Now().Add(answerLimit)
	for range 10 {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		if time.Now().After(until) {
			break
		}
	}
	return nil
}

func (n *Namespace) linkName(index int) (string, error) {
	l, err := n.LinkByIndex(index)
	if err != nil {
		return "", fmt.Errorf("looking at link %d: %w", index, err)
	}
	return l.Attrs().Name, nil
}

// ownIPv4 tells in words which IPv4 addresses the namespace has; "" if none.
func (n *Namespace) ownIPv4() (string, error) {
	list, err := n.addresses(netlink.FAMILY_V4)
	if err != nil {
		return "", err
	}
	words := make([]string, 0, len(list))
	for _, a := range list[:min(len(list), manyAddresses)] {
		name, err := n.linkName(a.link)
		if err != nil {
			return "", err
		}
		words = append(words, fmt.Sprintf("%v on %s", a.Addr(), printable.Text(name)))
	}
	return strings.Join(few(words), ", "), nil
}

// few is the beginning of a list that a container may make as long as it likes, and
// how much more there is.
func few(list []string) []string {
	const some = 4
	if len(list) <= some {
		return list
	}
	return append(list[:some:some], fmt.Sprintf("and %d more", len(list)-some))
}

// manyAddresses are how many are looked at: a container may give itself any number.
const manyAddresses = 64

// way is how the kernel would send a packet.
type way struct {
	link int
	via  netip.Addr // the router; not valid: the destination is a neighbour
	src  netip.Addr // the source it would choose
}

// wayTo asks the kernel; ok is false where there is none that leaves the
// namespace.
func (n *Namespace) wayTo(to netip.Addr) (w way, ok bool) {
	routes, err := n.RouteGet(to.AsSlice())
	if err != nil || len(routes) != 1 || routes[0].LinkIndex == 0 {
		return w, false
	}
	r := routes[0]
	link, err := n.LinkByIndex(r.LinkIndex)
	if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
		return w, false
	}
	w.link = r.LinkIndex
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		w.via = via
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		w.src = src
	}
	return w, true
}

// settle is how long an address may take to show that it is no duplicate.
const settle = 4 * time.Second

// settled lists the IPv6 addresses once none of them is tentative, or after a
// while.
func (n *Namespace) settled() ([]address, error) {
	for until := time.Now().Add(settle); ; time.Sleep(50 * time.Millisecond) {
		list, err := n.addresses(netlink.FAMILY_V6)
		if err != nil || !slices.ContainsFunc(list, address.tentative) || time.Now().After(until) {
			return list, err
		}
	}
}

// source is an address that may hold the lease, and the way from there.
type source struct {
	addr  netip.Addr
	pin   *Route // to pref64, which makes connections come from it
	loose bool   // without it they may not
}

// errNoSource says that a namespace lacks what a link of its own would give it.
type errNoSource string

func (e errNoSource) Error() string { return string(e) }

// sources lists the addresses that may hold the lease, the likeliest first: the
// kernel's own choice, those of the link towards pref64, the others. to is an
// address behind pref64.
func (n *Namespace) sources(outside *Namespace, pref64 netip.Prefix, to netip.Addr) ([]source, error) {
	all, err := n.settled()
	if err != nil {
		return nil, err
	}
	fit := slices.DeleteFunc(slices.Clone(all), func(a address) bool { return !a.usable() || pref64.Contains(a.Addr()) })
	if len(fit) == 0 {
		return nil, errNoSource("it has no IPv6 address that connections can come from")
	}
	w, routed := n.wayTo(to)
	slices.SortStableFunc(fit, func(a, b address) int { return before(a.Addr() != w.src, b.Addr() != w.src) })
	fit = fit[:min(len(fit), manyAddresses)]
	if !routed {
		if w, err = n.neighbour(outside, fit); err != nil {
			return nil, err
		}
	}
	rank := func(a address) int {
		switch {
		case a.Addr() == w.src:
			return 0
		case a.link == w.link:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(fit, func(a, b address) int { return rank(a) - rank(b) })
	name, err := n.linkName(w.link)
	if err != nil {
		return nil, err
	}
	list := make([]source, len(fit))
	for i, a := range fit {
		list[i] = source{
			addr:  a.Addr(),
			pin:   &Route{To: pref64, Via: w.via, Link: name, From: a.Addr()},
			loose: !routed || len(all) > 1,
		}
	}
	return list, nil
}

// before orders what is false before what is true.
func before(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// neighbour is the way to the host over a link that both are on, for a namespace
// without a route that leads there.
func (n *Namespace) neighbour(outside *Namespace, from []address) (w way, err error) {
	near, err := outside.addresses(netlink.FAMILY_V6)
	if err != nil {
		return w, err
	}
	for _, a := range from {
		back, ok := outside.wayTo(a.Addr())
		if !ok || back.via.IsValid() {
			continue
		}
		for _, h := range near {
			if h.link == back.link && a.Masked().Contains(h.Addr()) {
				return way{link: a.link, via: h.Addr(), src: a.Addr()}, nil
			}
		}
	}
	return w, errNoSource("it has no route to pref64, and no link that this host is on")
}
