package attach

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/dns64"
	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/lockfile"
	"github.com/natless/natless/mapping"
)

var pref64 = netip.MustParsePrefix(lab.Pref64)

// fake is a daemon that keeps records in memory.
type fake struct {
	status  control.Status
	permits func(netip.Addr) error // nil: all
	lease   func(netip.Addr) mapping.Lease
	records map[string]mapping.Attachment
	lent    map[netip.Addr]string // labels
	sees    bool                  // files of namespaces
	killAt  int                   // panics after so many answers about attachments; 0: never
	fail    error
}

func newFake() *fake {
	return &fake{
		status:  control.Status{Device: "natless0", Pref64: pref64},
		records: map[string]mapping.Attachment{}, lent: map[netip.Addr]string{},
		lease: func(a netip.Addr) mapping.Lease {
			return mapping.Lease{IPv4: netip.MustParseAddr("192.0.2.7"), IPv6: a}
		},
	}
}

// killed is what stops attach dead.
type killed struct{}

func (f *fake) Status(context.Context) (control.Status, error) { return f.status, f.fail }

func (f *fake) Lend(_ context.Context, a netip.Addr, label string) (mapping.Lease, error) {
	if f.permits != nil {
		if err := f.permits(a); err != nil {
			return mapping.Lease{}, err
		}
	}
	f.lent[a] = label
	return f.lease(a), nil
}

func (f *fake) Explain(_ context.Context, a netip.Addr) (json.RawMessage, error) {
	var e mapping.Explanation
	if f.permits != nil && errors.Is(f.permits(a), mapping.ErrNotPermitted) {
		e.Verdict = "client_not_permitted"
	}
	return json.Marshal(e)
}

func (f *fake) Attachments(context.Context) iter.Seq2[mapping.Attachment, error] {
	return func(yield func(mapping.Attachment, error) bool) {
		for _, a := range f.records {
			if !yield(a, nil) {
				return
			}
		}
	}
}

func (f *fake) Attach(_ context.Context, a mapping.Attachment) (mapping.Attachment, error) {
	if err := a.Check(); err != nil {
		return a, err
	}
	if _, ok := f.lent[a.IPv6]; ok {
		l := f.lease(a.IPv6)
		a.IPv4, a.Ports, a.StatelessLast = l.IPv4, l.Ports, 0
		if p, err := ParsePorts(l.Ports); err == nil {
			a.StatelessLast = p.Last - uint16(l.SessionPorts)
		}
	}
	if f.sees || a.PID != 0 {
		a.Seen = "something"
	}
	f.records[a.ID] = a
	if f.killAt--; f.killAt == 0 {
		panic(killed{})
	}
	return a, nil
}

func (f *fake) Detach(_ context.Context, id string) (mapping.Attachment, error) {
	a, ok := f.records[id]
	if !ok {
		return a, mapping.ErrUnknown
	}
	delete(f.records, id)
	return a, nil
}

// rig is a host, where everything happens, and a namespace.
type rig struct {
	*fake
	lab          *lab.Lab
	host, client *lab.Node
}

func newRig(t *testing.T) *rig {
	t.Helper()
	noEngines(t)
	etc(t)
	l, ns := nodes(t, "host", "client")
	name(t, ns[1], "client")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "natless0"
	require.NoError(t, ns[0].Netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}))
	return &rig{newFake(), l, ns[0], ns[1]}
}

// wire joins the two, with the host's address on its end.
func (r *rig) wire(t *testing.T, addresses ...string) {
	t.Helper()
	require.NoError(t, lab.Wire(r.host, "lan", r.client, "eth0", 0))
	require.NoError(t, r.host.Address("lan", "2001:db8:1::1/64"))
	for _, a := range addresses {
		require.NoError(t, r.client.Address("eth0", a))
	}
}

func (r *rig) attach(t *testing.T, given string, o Options) (result Result, err error) {
	t.Helper()
	err = r.host.Do(func() error {
		target, err := Find(t.Context(), given)
		if err == nil {
			result, err = Attach(t.Context(), r.fake, target, o)
		}
		return err
	})
	return result, err
}

func (r *rig) detach(t *testing.T, given string) (result Result, err error) {
	t.Helper()
	err = r.host.Do(func() error {
		result, err = Detach(t.Context(), r.fake, given, lockfile.Wait{})
		return err
	})
	return result, err
}

func (r *rig) snapshots(t *testing.T) [2]lab.Snapshot {
	t.Helper()
	host, err := r.host.Snapshot()
	require.NoError(t, err)
	client, err := r.client.Snapshot()
	require.NoError(t, err)
	return [2]lab.Snapshot{host, client}
}

func (r *rig) unchanged(t *testing.T, before [2]lab.Snapshot, when string) {
	t.Helper()
	now := r.snapshots(t)
	assert.Empty(t, before[0].Diff(now[0]), "the host "+when)
	assert.Empty(t, before[1].Diff(now[1]), "the namespace "+when)
}

// source is where connections of the client's to pref64 come from, by the kernel.
func (r *rig) source(t *testing.T) string {
	t.Helper()
	routes, err := r.client.Netlink.RouteGet(lab.Embed(lab.Pref64, "192.0.2.1").AsSlice())
	require.NoError(t, err)
	require.Len(t, routes, 1)
	return routes[0].Src.String()
}

func (r *rig) address(t *testing.T, cidr string, flags int) {
	t.Helper()
	link, err := r.client.Netlink.LinkByName("eth0")
	require.NoError(t, err)
	a, err := netlink.ParseAddr(cidr)
	require.NoError(t, err)
	a.Flags = flags
	if flags&unix.IFA_F_DEPRECATED != 0 {
		forever := uint32(math.MaxUint32)
		a.ValidLft, a.PreferedLft = int(forever), 0 // and not to be used
	}
	require.NoError(t, r.client.Netlink.AddrAdd(link, a))
}

func TestAttachByDefaultRoute(t *testing.T) {
	r := newRig(t)
	r.wire(t, "2001:db8:1::2/64")
	require.NoError(t, r.client.Route("::/0", "2001:db8:1::1", ""))
	before := r.snapshots(t)
	got, err := r.attach(t, "client", Options{})
	require.NoError(t, err)
	assert.Equal(t, "2001:db8:1::2", got.IPv6.String())
	assert.Equal(t, "192.0.2.7", got.IPv4.String())
	assert.Equal(t, "client", got.Label)
	assert.Equal(t, "client", r.lent[got.IPv6])
	assert.Equal(t, 1, got.Count)
	assert.Empty(t, got.Warnings)
	r.unchanged(t, before, "needs nothing")
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	assert.Empty(t, r.records)
}

// Without a default route the host is the way, where both are on one link.
func TestAttachByNeighbour(t *testing.T) {
	r := newRig(t)
	r.wire(t, "2001:db8:1::2/64")
	before := r.snapshots(t)
	_, err := r.attach(t, "client", Options{Label: "web"})
	require.NoError(t, err)
	assert.Equal(t, "2001:db8:1::2", r.source(t))
	_, err = r.detach(t, "web")
	require.NoError(t, err)
	r.unchanged(t, before, "after detach")
}

func TestAttachPins(t *testing.T) {
	r := newRig(t)
	r.wire(t, "fd00::2/64", "2001:db8:1::2/64")
	r.address(t, "2001:db8:1::3/64", unix.IFA_F_NODAD|unix.IFA_F_DEPRECATED)
	require.NoError(t, r.client.Route("::/0", "2001:db8:1::1", ""))
	before := r.snapshots(t)
	for source, permits := range map[string]string{"fd00::2": "fd00::/8", "2001:db8:1::2": "::/0"} {
		r.permits = func(a netip.Addr) error {
			if !netip.MustParsePrefix(permits).Contains(a) {
				return fmt.Errorf("%v: %w", a, mapping.ErrNotPermitted)
			}
			return nil
		}
		got, err := r.attach(t, "client", Options{})
		require.NoError(t, err)
		assert.Equal(t, source, got.IPv6.String())
		assert.Empty(t, got.Warnings)
		assert.Equal(t, source, r.source(t))
		_, err = r.detach(t, "client")
		require.NoError(t, err)
		r.unchanged(t, before, "after detach")
	}
	r.permits = func(a netip.Addr) error { return fmt.Errorf("%v: %w", a, mapping.ErrNotPermitted) }
	_, err := r.attach(t, "client", Options{Link: true})
	require.ErrorIs(t, errors.Unwrap(err), err.(interface{ Unwrap() error }).Unwrap())
	assert.ErrorContains(t, err, "2001:db8:1::2: ")
	assert.ErrorContains(t, err, "; fd00::2: ")
	assert.NotContains(t, err.Error(), "2001:db8:1::3")
	r.unchanged(t, before, "after a refusal")
}

// The daemon sees the network of a container that has just been started a
// moment later.
func TestAttachWaitsForTheDaemonToSeeTheNetwork(t *testing.T) {
	r := newRig(t)
	r.wire(t, "2001:db8:1::2/64")
	require.NoError(t, r.client.Route("::/0", "2001:db8:1::1", ""))
	asked := 0
	r.permits = func(a netip.Addr) error {
		if asked++; asked <= 3 {
			return fmt.Errorf("%v: %w", a, mapping.ErrNotPermitted)
		}
		return nil
	}
	got, err := r.attach(t, "client", Options{})
	require.NoError(t, err)
	assert.Equal(t, "2001:db8:1::2", got.IPv6.String())
}

func TestAttachRefuses(t *testing.T) {
	r := newRig(t)
	before := r.snapshots(t)
	check := func(given string, o Options, want string) {
		t.Helper()
		_, err := r.attach(t, given, o)
		assert.ErrorContains(t, err, want)
		assert.Empty(t, r.records)
	}
	check("client", Options{}, "it has no IPv6 address that connections can come from: --link makes it a link of its own")
	check(r.host.Path(), Options{Link: true}, "host networking")
	check(r.client.Path(), Options{Link: true, DNS: nameserver}, "a namespace that is known by its path alone has none")
	r.status.Device = "natless9"
	check("client", Options{Link: true}, "natless9 is not in this network namespace")
	r.status = control.Status{Device: "natless0"}
	check("client", Options{Link: true}, "no pref64")
	r.fail = errors.New("is natless running?")
	check("client", Options{Link: true}, "is natless running?")
	r.unchanged(t, before, "after refusals")

	r.fail, r.status = nil, newFake().status
	r.wire(t, "192.0.2.2/24", "2001:db8:1::2/64")
	before = r.snapshots(t)
	check("client", Options{}, "it has IPv4 of its own (192.0.2.2 on eth0), which programs may take rather than natless: --force")
	r.unchanged(t, before, "after a refusal")
	_, err := r.attach(t, "client", Options{Force: true})
	require.NoError(t, err)
}

func TestAttachTwice(t *testing.T) {
	r := newRig(t)
	before := r.snapshots(t)
	_, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	attached := r.settled(t)
	for _, o := range []Options{{Link: true}, {}, {Label: "client"}} {
		again, err := r.attach(t, "client", o)
		require.NoError(t, err)
		assert.True(t, again.Already)
		assert.Equal(t, "192.0.2.7", again.IPv4.String())
		assert.Empty(t, again.Done)
	}
	_, err = r.attach(t, "client", Options{Label: "other"})
	assert.ErrorContains(t, err, `it is attached already, with 192.0.2.7 and the label "client": natless detach client first`)
	_, err = r.attach(t, "client", Options{DNS: nameserver})
	assert.ErrorContains(t, err, "it is attached already, with 192.0.2.7 and the resolver it had: natless detach client first")
	r.unchanged(t, attached, "after the second attach")

	// Another target in the same namespace counts.
	name(t, r.client, "alias")
	second, err := r.attach(t, "alias", Options{})
	require.NoError(t, err)
	assert.Equal(t, 2, second.Count)
	assert.Equal(t, "alias", second.Label)
	assert.Equal(t, []string{"it shares its namespace with client, and what that has"}, second.Warnings)
	r.unchanged(t, attached, "after another target")
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	r.unchanged(t, attached, "while the other holds it")
	for _, a := range r.records {
		assert.Equal(t, "alias", a.Target)
		assert.Equal(t, 1, a.Count)
	}
	_, err = r.detach(t, "client")
	assert.NoError(t, err, "by the namespace's identity")
	r.unchanged(t, before, "after all have let go")
	_, err = r.detach(t, "client")
	assert.ErrorContains(t, err, "it is not attached: natless ps lists what is")
	_, err = r.detach(t, "nobody")
	assert.ErrorContains(t, err, "it is not attached (natless ps lists what is): finding nobody")
}

// What was taken away from an attachment is there again after the next attach.
func TestAttachAgain(t *testing.T) {
	r := newRig(t)
	before := r.snapshots(t)
	first, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	require.NoError(t, r.host.Do(func() error { _, err := RemoveLinks(); return err }))
	again, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	assert.Equal(t, first.IPv6, again.IPv6)
	assert.Equal(t, again.IPv6.String(), r.source(t))
	other := newFake().lease(first.IPv6)
	other.IPv4 = netip.MustParseAddr("192.0.2.8")
	r.lease = func(netip.Addr) mapping.Lease { return other }
	again, err = r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	assert.Equal(t, other.IPv4, again.IPv4)
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	r.unchanged(t, before, "after detach")
}

// The daemon looks at the file of a container's namespace, which others may
// share, or where it does not see that at the process.
func TestWhatTheDaemonLooksAt(t *testing.T) {
	r := newRig(t)
	c := r.client.Command(t.Context(), "/bin/sleep", "60")
	require.NoError(t, c.Start())
	defer func() { _, _ = c.Process.Kill(), c.Wait() }()
	web := running("f00", "web", c.Process.Pid)
	file := filepath.Join(netnsDir, "client")
	web["NetworkSettings"] = object{"SandboxKey": file}
	serveEngine(t, "CONTAINER_HOST", map[string]object{"web": web})
	for sees, pid := range map[bool]int{true: 0, false: c.Process.Pid} {
		r.sees = sees
		got, err := r.attach(t, "web", Options{Link: true})
		require.NoError(t, err)
		assert.Equal(t, file, got.Namespace)
		assert.Equal(t, pid, got.PID)
		_, err = r.detach(t, "web")
		require.NoError(t, err)
	}
}

// A target that ended without a word does not keep the attachment.
func TestHolderEnded(t *testing.T) {
	r := newRig(t)
	before := r.snapshots(t)
	_, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	c := r.client.Command(t.Context(), "/bin/sleep", "60")
	require.NoError(t, c.Start())
	_, err = r.attach(t, fmt.Sprint(c.Process.Pid), Options{})
	require.NoError(t, err)
	require.NoError(t, c.Process.Kill())
	require.Error(t, c.Wait())
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	assert.Empty(t, r.records)
	r.unchanged(t, before, "after detach")
}

// The same label gets the same addresses.
func TestLinkIsStable(t *testing.T) {
	r := newRig(t)
	first, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	assert.Equal(t, first.IPv6.String(), r.source(t))
	_, err = lab.Ping(t.Context(), r.client, "", netip.MustParseAddr(r.link(t).HostIPv6.Addr().String()), 8)
	require.NoError(t, err, "usable at once")
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	again, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	assert.Equal(t, first.IPv6, again.IPv6)

	other, err := r.lab.Node("other")
	require.NoError(t, err)
	name(t, other, "other")
	third, err := r.attach(t, "other", Options{Link: true, Label: "client"})
	require.NoError(t, err)
	assert.NotEqual(t, first.IPv6, third.IPv6, "the first is in use")
}

// settled reads the state once the kernel has seen to the link: it says so a
// moment later.
func (r *rig) settled(t *testing.T) [2]lab.Snapshot {
	t.Helper()
	up := func(n *lab.Node, name string) bool {
		link, err := n.Netlink.LinkByName(name)
		require.NoError(t, err)
		addrs, err := n.Netlink.AddrList(link, netlink.FAMILY_V6)
		require.NoError(t, err)
		tentative := func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }
		return link.Attrs().OperState == netlink.OperUp && len(addrs) == 2 && !slices.ContainsFunc(addrs, tentative)
	}
	last := r.snapshots(t)
	for range 400 {
		time.Sleep(10 * time.Millisecond)
		now := r.snapshots(t)
		if up(r.host, r.link(t).Host) && up(r.client, linkInside) && len(last[0].Diff(now[0])) == 0 && len(last[1].Diff(now[1])) == 0 {
			return now
		}
		last = now
	}
	t.Fatal("the link does not come up")
	return last
}

// link is what the only record says.
func (r *rig) link(t *testing.T) *Link {
	t.Helper()
	for _, a := range r.records {
		var s state
		require.NoError(t, json.Unmarshal(a.Undo, &s))
		return s.Link
	}
	return nil
}

func TestRemoveLinks(t *testing.T) {
	r := newRig(t)
	before := r.snapshots(t)
	_, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	want := "removed link " + r.link(t).Host
	require.NoError(t, r.host.Do(func() error {
		done, err := RemoveLinks()
		assert.Equal(t, []string{want}, done)
		return err
	}))
	r.unchanged(t, before, "after all links went")
}

// withRange has leases be of a range.
func (r *rig) withRange() {
	r.lease = func(a netip.Addr) mapping.Lease {
		return mapping.Lease{IPv4: netip.MustParseAddr("192.0.2.7"), IPv6: a, Ports: "2048-3071", SessionPorts: 128}
	}
}

func (r *rig) sysctl(t *testing.T, name string) (value string) {
	t.Helper()
	require.NoError(t, r.client.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		value = strings.TrimSpace(string(b))
		return err
	}))
	return value
}

func TestPortRange(t *testing.T) {
	r := newRig(t)
	r.withRange()
	r.wire(t, "2001:db8:1::2/64")
	require.NoError(t, r.client.SetSysctl(keyReserved, "80,2048-2049,2900,5000"))
	before := r.snapshots(t)
	got, err := r.attach(t, "client", Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{"3 of the 896 ports 2048-2943 are reserved in the namespace (net.ipv4.ip_local_reserved_ports = 80,2048-2049,2900,5000)"},
		slices.DeleteFunc(got.Warnings, func(s string) bool { return !strings.Contains(s, "reserved") }))
	assert.Equal(t, "2048\t2943", r.sysctl(t, keyPortRange))
	assert.Equal(t, "1", r.sysctl(t, keyTwReuse))

	// What others have set since stays.
	require.NoError(t, r.client.SetSysctl(keyPortRange, "4000\t4999"))
	got, err = r.detach(t, "client")
	require.NoError(t, err)
	assert.Equal(t, []string{"net.ipv4.ip_local_port_range = 4000 4999 was set by others"}, got.Warnings)
	assert.Equal(t, "4000\t4999", r.sysctl(t, keyPortRange))
	require.NoError(t, r.client.SetSysctl(keyPortRange, "32768\t60999"))
	r.unchanged(t, before, "after detach")

	require.NoError(t, r.client.SetSysctl(keyLowest, "2500"))
	_, err = r.attach(t, "client", Options{})
	assert.ErrorContains(t, err, "its ports below 2500 are kept for programs with rights (net.ipv4.ip_unprivileged_port_start), among them some of 2048-2943")
	assert.Empty(t, r.records)
}

// ranged calls one of the functions about port ranges on the host.
func (r *rig) ranged(t *testing.T, do func(context.Context, Daemon, string, lockfile.Wait) (Result, error)) (result Result, err error) {
	t.Helper()
	err = r.host.Do(func() error {
		result, err = do(t.Context(), r.fake, "client", lockfile.Wait{})
		return err
	})
	return result, err
}

func TestSetAndUnsetRange(t *testing.T) {
	r := newRig(t)
	r.withRange()
	before := r.snapshots(t)
	_, err := r.ranged(t, SetRange)
	assert.ErrorContains(t, err, "setting the port range of client: attaching client: it has no IPv6 address that connections can come from")
	_, err = r.ranged(t, UnsetRange)
	assert.ErrorContains(t, err, "it is not attached: natless ps lists what is")
	_, err = r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	for range 2 { // what was there first is remembered however often it is set
		require.NoError(t, r.client.SetSysctl(keyPortRange, "10000\t20000"))
		got, err := r.ranged(t, SetRange)
		require.NoError(t, err)
		assert.Equal(t, []string{"net.ipv4.ip_local_port_range = 2048 2943"}, got.Done)
		shown, err := ShowRange(t.Context(), "client")
		require.NoError(t, err)
		assert.Equal(t, PortRange{Ports: "2048-2943", TwReuse: "1"}, shown)
	}
	_, err = r.ranged(t, UnsetRange)
	require.NoError(t, err)
	shown, err := ShowRange(t.Context(), "client")
	require.NoError(t, err)
	assert.Equal(t, PortRange{Ports: "32768-60999", TwReuse: "2"}, shown)
	_, err = r.ranged(t, UnsetRange)
	assert.ErrorContains(t, err, "natless has set none")
	_, err = r.ranged(t, SetRange)
	require.NoError(t, err)
	assert.Equal(t, "2048\t2943", r.sysctl(t, keyPortRange))
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	r.unchanged(t, before, "after detach")

	r.lease = newFake().lease
	_, err = r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	_, err = r.ranged(t, SetRange)
	assert.ErrorContains(t, err, "it has no range of ports but all of 192.0.2.7")
}

// What is not attached is, if that gives it a range.
func TestSetRangeAttaches(t *testing.T) {
	r := newRig(t)
	r.wire(t, "2001:db8:1::2/64")
	before := r.snapshots(t)
	_, err := r.ranged(t, SetRange)
	assert.ErrorContains(t, err, "setting the port range of client: it has no range of ports but all of 192.0.2.7")
	assert.Empty(t, r.records)
	r.unchanged(t, before, "after a refusal")
	r.withRange()
	got, err := r.ranged(t, SetRange)
	require.NoError(t, err)
	assert.Contains(t, got.Done, "net.ipv4.ip_local_port_range = 2048 2943")
	assert.Len(t, r.records, 1)
	_, err = r.detach(t, "client")
	require.NoError(t, err)
	r.unchanged(t, before, "after detach")
}

// The sysctl binds what natless has nothing to do with, too.
func TestRangeAndNativeIPv6(t *testing.T) {
	r := newRig(t)
	r.withRange()
	r.wire(t, "2001:db8:1::2/64")
	require.NoError(t, r.client.Route("::/0", "2001:db8:1::1", ""))
	got, err := r.attach(t, "client", Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{"its connections over native IPv6 take ports 2048-2943 too"}, got.Warnings)
	assert.Contains(t, got.Done, "route to 2001:db8:64::/96 from 2001:db8:1::2", "a range has its source pinned")
}

func TestReservedWithin(t *testing.T) {
	for list, want := range map[string]int{
		"": 0, "999": 0, "1000": 1, "1999": 1, "2000": 0, "1-65535": 1000, "900-1000,1999-2000": 2, "1100,1200-1202": 4, "x,1-y": 0,
	} {
		assert.Equal(t, want, reservedWithin(list, Ports{1000, 1999}), list)
	}
}

func TestParsePorts(t *testing.T) {
	p, err := ParsePorts("1024-2047")
	require.NoError(t, err)
	assert.Equal(t, Ports{1024, 2047}, p)
	assert.Equal(t, "1024-2047", p.String())
	for _, s := range []string{"", "1024", "2047-1024", "1-65536", "a-b", "-1-5"} {
		_, err := ParsePorts(s)
		assert.Error(t, err, s)
	}
}

// etc is a place for what /etc/netns holds.
func etc(t *testing.T) {
	t.Helper()
	was := netnsEtc
	netnsEtc = filepath.Join(t.TempDir(), "netns")
	t.Cleanup(func() { netnsEtc = was })
}

var nameserver = netip.MustParseAddr("fd00::53")

func TestResolverOfName(t *testing.T) {
	r := newRig(t)
	dir := netnsEtc
	file := filepath.Join(dir, "client/resolv.conf")
	detached := func() {
		t.Helper()
		_, err := r.detach(t, "client")
		require.NoError(t, err)
	}
	attached := func() string {
		t.Helper()
		_, err := r.attach(t, "client", Options{Link: true, DNS: nameserver})
		require.NoError(t, err)
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(text)
	}
	assert.Equal(t, "# by natless attach\nnameserver fd00::53\n", attached())
	detached()
	assert.NoDirExists(t, dir, "all of it was made")

	const theirs = "search example.org\nnameserver 2001:db8::53\noptions edns0\n"
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(theirs), 0o644))
	assert.Equal(t, "# by natless attach\nnameserver fd00::53\nsearch example.org\noptions edns0\n", attached())
	detached()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, theirs, string(text))

	attached()
	require.NoError(t, os.WriteFile(file, []byte("# mine\n"), 0o644))
	got, err := r.detach(t, "client")
	require.NoError(t, err)
	assert.Equal(t, []string{file + " was changed by others"}, got.Warnings)
	text, err = os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "# mine\n", string(text))
}

// What is outside of a namespace does not go with it.
func TestVanished(t *testing.T) {
	r := newRig(t)
	got, err := r.attach(t, "client", Options{Link: true, DNS: nameserver})
	require.NoError(t, err)
	assert.FileExists(t, filepath.Join(netnsEtc, "client/resolv.conf"))
	require.NoError(t, Vanished(got.Undo))
	assert.NoDirExists(t, netnsEtc)
	assert.NoError(t, Vanished(nil))
	assert.NoError(t, Vanished(json.RawMessage(`"another's"`)))
}

// What the daemon could not take back of a target that is gone the next attach does,
// before it plans its own, and so does a detach.
func TestLeftByTheDaemon(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(netnsEtc, "client/resolv.conf")
	for _, again := range []bool{true, false} {
		got, err := r.attach(t, "client", Options{Link: true, DNS: nameserver})
		require.NoError(t, err)
		require.NoError(t, r.host.Do(func() error { _, err := RemoveLinks(); return err }))
		left := got.Attachment
		delete(r.records, left.ID)
		left.ID, left.Gone, left.Host = "4:1", true, nil
		r.records[left.ID] = left
		if again {
			got, err = r.attach(t, "client", Options{Link: true, DNS: nameserver})
			require.NoError(t, err)
			assert.Len(t, r.records, 1)
			assert.Contains(t, r.records, got.ID)
		}
		_, err = r.detach(t, "client")
		require.NoError(t, err)
		assert.Empty(t, r.records)
		assert.NoFileExists(t, file, "there was none before")
	}
}

// A writer that was killed leaves the beginning of one text or the other.
func TestResolverTorn(t *testing.T) {
	etc(t)
	require.NoError(t, os.Mkdir(netnsEtc, 0o755))
	path := filepath.Join(netnsEtc, "resolv.conf")
	f := &File{Path: path, Was: "nameserver 2001:db8::53\n", Set: "# by natless attach\nnameserver fd00::53\n"}
	for _, text := range []string{f.Was, f.Set} {
		for n := range len(text) + 1 {
			require.NoError(t, os.WriteFile(path, []byte(text[:n]), 0o644))
			stays, err := f.restore()
			require.NoError(t, err)
			assert.Empty(t, stays)
			now, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Equal(t, f.Was, string(now), "after %q", text[:n])
		}
	}
}

// A container's resolv.conf is that in its own mount namespace, and no link in
// there leads out of it.
func TestResolverOfProcess(t *testing.T) {
	r := newRig(t)
	given, etc := r.rooted(t)
	file := filepath.Join(etc, "resolv.conf")
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("nameserver 192.0.2.1\n"), 0o600))

	_, err := r.attach(t, given, Options{Link: true, DNS: nameserver})
	require.NoError(t, err)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "# by natless attach\nnameserver fd00::53\n", string(text))
	_, err = r.detach(t, given)
	require.NoError(t, err)
	text, err = os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "nameserver 2001:db8::1\n", string(text))

	require.NoError(t, os.Remove(file))
	_, err = r.attach(t, given, Options{Link: true, DNS: nameserver})
	require.NoError(t, err)
	assert.FileExists(t, file)
	_, err = r.detach(t, given)
	require.NoError(t, err)
	assert.NoFileExists(t, file, "there was none")

	require.NoError(t, os.Symlink(secret, file))
	_, err = r.attach(t, given, Options{Link: true, DNS: nameserver})
	assert.ErrorContains(t, err, "it is a symbolic link, which natless does not follow")
	text, err = os.ReadFile(secret)
	require.NoError(t, err)
	assert.Equal(t, "nameserver 192.0.2.1\n", string(text))
	assert.Empty(t, r.records)

	plain := r.client.Command(t.Context(), "/bin/sleep", "60")
	require.NoError(t, plain.Start())
	defer func() { plain.Process.Kill(); plain.Wait() }()
	_, err = r.attach(t, fmt.Sprint(plain.Process.Pid), Options{Link: true, DNS: nameserver})
	assert.ErrorContains(t, err, "is the host's own")
}

func listening(addresses ...string) *dns64.Status {
	s := new(dns64.Status)
	for _, a := range addresses {
		s.Listen = append(s.Listen, netip.MustParseAddrPort(a))
	}
	return s
}

// natless's own DNS64 is found, and led to where the namespace has no route.
func TestResolverOfNatless(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(netnsEtc, "client/resolv.conf")
	points := func(options Options, to string, done ...string) {
		t.Helper()
		before := r.snapshots(t)
		got, err := r.attach(t, "client", options)
		require.NoError(t, err)
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, "# by natless attach\nnameserver "+to+"\n", string(text))
		assert.Equal(t, append(done, file), got.Done)
		routes, err := r.client.Netlink.RouteGet(net.ParseIP(to))
		require.NoError(t, err)
		assert.Equal(t, got.IPv6.String(), routes[0].Src.String())
		_, err = r.detach(t, "client")
		require.NoError(t, err)
		r.unchanged(t, before, "after detach")
	}
	own := Options{Link: true, DNS64: true}

	before := r.snapshots(t)
	absent := listening("[fd00::53]:53", "[::1]:53")
	absent.Absent = absent.Listen[:1]
	for want, s := range map[string]*dns64.Status{
		"no link of this host that is up has fd00::53: give it to one (ip address add fd00::53/128 dev LINK)": absent,
		"natless's DNS64 is off; natless run --dns64 ADDRESS has it on":                                       nil,
		"natless's DNS64 listens at [fd00::53]:5353, [::1]:53, [fe80::1]:53, 192.0.2.53:53, and not at port 53 of": listening(
			"[fd00::53]:5353", "[::1]:53", "[fe80::1]:53", "192.0.2.53:53"),
	} {
		r.status.DNS64 = s
		_, err := r.attach(t, "client", own)
		assert.ErrorContains(t, err, want)
	}
	assert.Empty(t, r.records)
	r.unchanged(t, before, "after refusals")

	r.status.DNS64 = listening("[::1]:53", "[fd00::53]:53", "[2001:db8:1::1]:53")
	l := config.LinkULA("client\x000").Addr().As16()
	link := "nl-" + hex.EncodeToString(l[1:6])
	l[15] = 2
	from := netip.AddrFrom16(l).String()
	pin := "route to " + lab.Pref64 + " from " + from
	points(own, "fd00::53", "link "+link, pin, "route to fd00::53 from "+from)
	points(Options{Link: true, DNS: netip.MustParseAddr("2001:db8:1::1")}, "2001:db8:1::1", "link "+link, pin, "route to 2001:db8:1::1 from "+from)

	_, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	_, err = r.attach(t, r.client.Path(), Options{DNS64: true})
	assert.ErrorContains(t, err, "it has no route to natless's DNS64 at fd00::53, which --dns makes for the first")
	_, err = r.detach(t, "client")
	require.NoError(t, err)

	r.wire(t, "2001:db8:1::2/64")
	points(Options{DNS64: true}, "2001:db8:1::1", "route to "+lab.Pref64+" from 2001:db8:1::2") // the one that it has a route to
	r.status.DNS64 = listening("[fd00::53]:53")
	points(Options{DNS64: true}, "fd00::53", "route to "+lab.Pref64+" from 2001:db8:1::2", "route to fd00::53 from 2001:db8:1::2")
	require.NoError(t, r.client.Route(lab.Pref64, "2001:db8:1::1", ""))
	points(Options{DNS64: true}, "fd00::53", "route to fd00::53 from 2001:db8:1::2")
}

// An attach that is killed at any moment leaves nothing that detach does not
// undo, and neither does a detach.
func TestKilledAnywhere(t *testing.T) {
	r := newRig(t)
	r.withRange()
	dir := netnsEtc
	before := r.snapshots(t)
	step, stopAt := 0, 0
	beforeStep = func(string) {
		if step++; step == stopAt {
			panic(killed{})
		}
	}
	defer func() { beforeStep = func(string) {} }()
	try := func(do func() error) (dead bool, err error) {
		defer func() {
			if p := recover(); p != nil {
				require.Equal(t, killed{}, p)
				dead = true
			}
		}()
		return false, do()
	}
	r.status.DNS64 = listening("[fd00::53]:53")
	options := Options{Link: true, DNS64: true}
	attach := func() error { _, err := r.attach(t, "client", options); return err }
	detach := func() error { _, err := r.detach(t, "client"); return err }
	check := func(when string) {
		t.Helper()
		r.unchanged(t, before, when)
		assert.NoDirExists(t, dir, when)
		assert.Empty(t, r.records, when)
	}
	for k := 1; ; k++ {
		step, stopAt, r.killAt = 0, k, 0
		dead, err := try(attach)
		require.NoError(t, err)
		if !dead {
			stopAt = 0
			require.Greater(t, k, 6, "there are that many steps")
			break
		}
		stopAt = 0
		require.NoError(t, detach())
		check(fmt.Sprintf("killed at step %d of attach", k))
		// and the next attach does as well as a detach
		step, stopAt = 0, k
		dead, _ = try(attach)
		require.True(t, dead)
		stopAt = 0
		require.NoError(t, attach())
		require.NoError(t, detach())
		check(fmt.Sprintf("attached again after step %d", k))
	}
	require.NoError(t, detach())
	for k := 1; k <= 3; k++ {
		r.killAt, stopAt = k, 0
		dead, _ := try(attach)
		require.True(t, dead, "record %d", k)
		require.NoError(t, detach())
		check(fmt.Sprintf("killed after record %d", k))
	}
	r.killAt = 0
	for k := 1; ; k++ {
		require.NoError(t, attach())
		step, stopAt = 0, k
		dead, err := try(detach)
		stopAt = 0
		require.NoError(t, err)
		if !dead {
			require.Greater(t, k, 4, "there are that many steps")
			break
		}
		require.NoError(t, detach())
		check(fmt.Sprintf("killed at step %d of detach", k))
	}
	check("in the end")
}

// A failure in the midst takes all of it back.
func TestFailureTakesBack(t *testing.T) {
	r := newRig(t)
	before := r.snapshots(t)
	calls := 0
	r.permits = func(a netip.Addr) error {
		if calls++; calls < 3 {
			return mapping.ErrNotPermitted // as before the daemon has seen the link
		}
		return mapping.ErrPoolFull
	}
	_, err := r.attach(t, "client", Options{Link: true})
	assert.ErrorIs(t, err, mapping.ErrPoolFull)
	assert.Equal(t, 4, calls)
	assert.Empty(t, r.records)
	r.unchanged(t, before, "after a failure")
}

// Detaching what is gone leaves alone what has come since: the same label gets the
// same link.
func TestDetachVanishedLate(t *testing.T) {
	r := newRig(t)
	pid, kill := r.sleeper(t)
	old, err := r.attach(t, pid, Options{Link: true, Label: "web"})
	require.NoError(t, err)
	kill()
	for range 400 { // the kernel takes the link down in its own time
		if _, err := r.host.Netlink.LinkByName(old.Host.Link); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	now, err := r.attach(t, "client", Options{Link: true, Label: "web"})
	require.NoError(t, err)
	require.Equal(t, old.Host.Link, now.Host.Link)
	_, err = r.detach(t, old.ID)
	require.NoError(t, err)
	_, err = r.host.Netlink.LinkByName(now.Host.Link)
	assert.NoError(t, err)
	assert.Contains(t, r.records, now.ID)
}

// sleeper is a process in a namespace of its own.
func (r *rig) sleeper(t *testing.T) (pid string, kill func()) {
	t.Helper()
	c := r.host.Command(t.Context(), "/usr/bin/unshare", "-n", "/bin/sleep", "60")
	require.NoError(t, c.Start())
	pid = fmt.Sprint(c.Process.Pid)
	for range 400 {
		if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "sleep\n" {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	kill = func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	t.Cleanup(kill)
	return pid, kill
}

// A namespace that is gone is detached by what it was called.
func TestDetachVanished(t *testing.T) {
	r := newRig(t)
	before, err := r.host.Snapshot()
	require.NoError(t, err)
	for _, by := range []string{"PID", "web", "id"} {
		pid, kill := r.sleeper(t)
		got, err := r.attach(t, pid, Options{Link: true, Label: "web"})
		require.NoError(t, err)
		kill()
		_, err = r.detach(t, map[string]string{"PID": pid, "web": "web", "id": got.ID}[by])
		require.NoError(t, err)
		assert.Empty(t, r.records)
	}
	for range 400 { // the kernel takes the namespace down in its own time
		now, err := r.host.Snapshot()
		require.NoError(t, err)
		if len(before.Diff(now)) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	now, err := r.host.Snapshot()
	require.NoError(t, err)
	assert.Empty(t, before.Diff(now))
}

// Who is attached by a link of its own does not become the host's router by
// saying so, not even before the daemon has seen the link.
func TestLinkOfTheHostHearsNoRouter(t *testing.T) {
	r := newRig(t)
	_, err := r.attach(t, "client", Options{Link: true})
	require.NoError(t, err)
	links, err := r.host.Netlink.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		if !linkName.MatchString(l.Attrs().Name) {
			continue
		}
		require.NoError(t, r.host.Do(func() error {
			for _, key := range []string{"ipv6/conf/%s/accept_ra", "ipv6/conf/%s/autoconf", "ipv6/conf/%s/accept_redirects", "ipv4/conf/%s/accept_redirects"} {
				value, err := os.ReadFile("/proc/sys/net/" + fmt.Sprintf(key, l.Attrs().Name))
				require.NoError(t, err)
				assert.Equal(t, "0\n", string(value), key)
			}
			return nil
		}))
		return
	}
	t.Fatal("there is no link")
}
