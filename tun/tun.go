// Package tun is both ends of the way of a packet: the kernel routes packets
// to a TUN device, Queue.Read takes one into a worker's buffer, and when it is
// translated Queue.Write gives the same buffer back to the kernel.
//
// With offloads a "packet" is whatever the kernel had in hand: up to 64 KiB of
// TCP or UDP payload under one set of headers (a super-packet) whose checksum
// is not finished yet. Header says so. Without offloads (Config.Offload false)
// the device is an ordinary one, every Header is zero, and the kernel cuts and
// sums before it hands out.
//
// A device that is not there is made and lasts until Close. An existing
// persistent TUN device belongs to the operator: it is used and left, with its
// offloads off. Addresses, routes and the link's state are not this package's
// business.
package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MaxPacket is more than any packet that a device hands out. A buffer for
// Queue.Read needs this much from its offset on.
const MaxPacket = 1<<16 + 64

const devicePath = "/dev/net/tun"

// Config says what device is wanted.
type Config struct {
	Name    string // 1 to 15 bytes
	Queues  int    // 0 is 1
	Rings   int    // of each queue; 0 is 1. Without offload, or without Features.Steering, it is 1
	Offload bool   // with virtio headers, checksum and segmentation offload
}

// Device is an open TUN device.
type Device struct {
	name     string
	index    int
	queues   []Queue
	features Features
	dropped  uint64 // by the device before Open
}

// Queue is what one worker reads of a device: one file descriptor, or one for
// each of its rings. With Features.Steering all packets of a connection come
// from one queue; without it, packets of one flow do as long as their answers
// are written to it. All methods may be called at the same time, Read by one
// caller; buffers are borrowed for the time of a call.
//
// A ring is where the kernel keeps the packets until they are read, 500 at most.
// A queue of several takes from them by turns, and a client's packets of one
// family are all in one, so that a flood costs those of other rings no more than
// their turns.
type Queue interface {
	// Read waits for a packet and puts it at buf[off:off+n]; off is at least
	// HeaderLen, and buf[off:] has room for MaxPacket bytes. The HeaderLen
	// bytes before off are overwritten. Errors: os.ErrClosed after Close,
	// ErrWoken after Wake, and the kernel's (EBADFD when the device was deleted).
	Read(buf []byte, off int) (n int, h Header, err error)

	// ReadMore is Read as long as the packets that come without a wait and from
	// the same ring are of one turn. Not ok is that the turn is over, or an
	// error, which Read then has too.
	ReadMore(buf []byte, off int) (n int, h Header, ok bool)

	// Gather is called by the reader where more packets at once would serve it
	// better than the next one soon: the next Read that would wait lets some
	// microseconds pass first.
	Gather()

	// Write hands the packet at buf[off:off+n] to the kernel, which takes it as
	// received on the device. The HeaderLen bytes before off are overwritten.
	// It does not wait. The kernel's errors can be told with errors.Is: EINVAL
	// for a header that does not fit the packet, EIO when the device is down,
	// EAGAIN and ENOBUFS when it has no memory for it just now.
	Write(buf []byte, off, n int, h Header) error

	// Wake has one Read return ErrWoken: one that waits, or else one to come, at
	// the latest the first that would wait. While there are packets to read it
	// may go unnoticed, so that it costs them nothing. Several calls may have
	// one effect. After Close it does nothing.
	Wake()

	// Close wakes whoever is in Read and returns when nobody is any more and
	// the descriptor is closed. A second Close does nothing.
	Close() error
}

// ErrWoken is what Read returns because of Wake.
var ErrWoken = errors.New("read from the TUN device: woken")

// Features is what is in force on an open device, read back from the kernel.
type Features struct {
	VNetHdr    bool // packets carry a virtio header
	Checksum   bool // packets may come with an unfinished checksum
	TSO        bool // packets may be TCP super-packets, of both families
	USO        bool // packets may be UDP super-packets (Linux 6.2)
	Rings      int  // of each queue; they are the kernel's queues
	MultiQueue bool // the device can have several queues
	Steering   bool // a connection's packets all come from one queue, whatever is written where
	Adopted    bool // it is the operator's persistent device
}

// String lists the offloads in force, for logs and status.
func (f Features) String() string {
	var on []string
	for _, o := range []struct {
		set  bool
		name string
	}{{f.Checksum, "checksum"}, {f.TSO, "tso"}, {f.USO, "uso"}} {
		if o.set {
			on = append(on, o.name)
		}
	}
	if len(on) == 0 {
		return "off"
	}
	return strings.Join(on, ",")
}

// Name is the name the device had when it was opened.
func (d *Device) Name() string { return d.name }

// Index is the device's interface index.
func (d *Device) Index() int { return d.index }

// Queues are the device's queues, at least one and at most as many as asked for.
func (d *Device) Queues() []Queue { return d.queues }

// Features says what is in force since Open.
func (d *Device) Features() Features { return d.features }

// Drops counts the packets since Open that the kernel dropped before they could
// be read, mostly because a queue was full: a TUN device never holds its sender
// back. It is 0 when the device is gone, and asks the network namespace of the
// calling thread.
func (d *Device) Drops() uint64 {
	link, err := netlink.LinkByIndex(d.index)
	if err != nil || link.Attrs().Statistics == nil {
		return 0
	}
	return link.Attrs().Statistics.TxDropped - d.dropped
}

// Close closes all queues. A device made by Open is gone afterwards; an adopted
// one is left as it was found, with its offloads off.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// Open makes the device, or adopts the persistent one of that name, in the
// network namespace of the calling thread. What the kernel or an adopted
// device cannot do is left out, see Features.
func Open(c Config) (*Device, error) {
	// The namespace is the thread's: netlink and ioctl must ask the same one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	kernel, err := kernelFlags()
	if err != nil {
		return nil, err
	}
	existing, err := find(c.Name)
	if err != nil {
		return nil, err
	}
	p := makePlan(c, kernel, existing)
	d := &Device{name: c.Name}
	var offloads uint
	if p.flags&unix.IFF_VNET_HDR != 0 {
		offloads, err = d.openOffload(p)
	} else {
		err = d.openPlain(p)
	}
	if err == nil {
		err = d.inspect(p, offloads)
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("open TUN device %s: %w", c.Name, err)
	}
	return d, nil
}

// plan is a Config brought down to what kernel and device can do.
type plan struct {
	name    string
	queues  int
	rings   int    // of each queue, at most
	flags   uint16 // for TUNSETIFF
	adopted bool
}

// maxRings is how many queues the kernel lets a device have (MAX_TAP_QUEUES).
const maxRings = 256

// makePlan lays out how to attach. kernel are the flags that the kernel knows;
// existing is the operator's device or nil.
func makePlan(c Config, kernel uint16, existing *netlink.Tuntap) plan {
	p := plan{name: c.Name, queues: max(c.Queues, 1), rings: 1, flags: unix.IFF_TUN | unix.IFF_NO_PI, adopted: existing != nil}
	if c.Offload && kernel&unix.IFF_VNET_HDR != 0 {
		p.flags |= unix.IFF_VNET_HDR
		p.rings = min(max(c.Rings, 1), max(maxRings/p.queues, 1))
	}
	multi := p.queues*p.rings > 1 // a device of one queue cannot be joined by another opener
	if p.adopted {
		multi = existing.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 // must match, or EINVAL
	}
	if multi && kernel&unix.IFF_MULTI_QUEUE != 0 {
		p.flags |= unix.IFF_MULTI_QUEUE
	} else {
		p.queues, p.rings = 1, 1
	}
	return p
}

// inspect reads back what came of a plan, and finds out whether somebody else
// opened the device at the same moment: on a multi-queue device the kernel
// would let both in and divide the flows between them.
func (d *Device) inspect(p plan, offloads uint) error {
	t, err := lookUp(p.name)
	if err != nil {
		return err
	}
	if t == nil {
		return errors.New("it vanished while being opened")
	}
	if t.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 && t.Queues+t.DisabledQueues != len(d.queues)*d.features.Rings {
		return errHeld
	}
	d.index = t.Index
	d.features.VNetHdr = t.Flags&netlink.TUNTAP_VNET_HDR != 0
	d.features.MultiQueue = t.Flags&netlink.TUNTAP_MULTI_QUEUE != 0
	d.features.Adopted = p.adopted
	d.features.addOffloads(p.name, offloads)
	if t.Statistics != nil {
		d.dropped = t.Statistics.TxDropped
	}
	return nil
}

var errHeld = errors.New("another process holds it open")

// find is the operator's device of that name, nil when there is no such link,
// or an error that says why the name cannot be had.
func find(name string) (*netlink.Tuntap, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	t, err := lookUp(name)
	if err != nil {
		return nil, fmt.Errorf("use %s as TUN device: %w", name, err)
	}
	if t != nil && (t.Queues+t.DisabledQueues > 0 || t.NonPersist) { // one that is not persistent lives by its holder
		return nil, fmt.Errorf("use %s as TUN device: %w; stop it or choose another name", name, errHeld)
	}
	return t, nil
}

// lookUp is the TUN device of that name, or nil.
func lookUp(name string) (*netlink.Tuntap, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, ok := link.(*netlink.Tuntap)
	switch {
	case !ok:
		return nil, fmt.Errorf("there is a link of that name and of type %s; choose another name", link.Type())
	case t.Mode != unix.IFF_TUN:
		return nil, errors.New("there is a TAP device of that name; choose another name")
	}
	return t, nil
}

// checkName applies the kernel's dev_valid_name, and refuses a percent sign,
// which would make TUNSETIFF choose a name of its own.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("device name is empty, expected 1 to 15 bytes")
	case len(name) >= unix.IFNAMSIZ:
		return fmt.Errorf("device name %q is %d bytes long, expected 1 to 15", name, len(name))
	case name == "." || name == ".." || strings.ContainsAny(name, "/:% \t\n\v\f\r\x00"):
		return fmt.Errorf("device name %q is not legal, expected neither . nor .. nor any space, slash, colon or percent sign", name)
	}
	return nil
}

// openControl opens the device node, not attached to any device yet.
func openControl() (fd int, err error) {
	fd, err = unix.Open(devicePath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("open %s: %w: load the tun module (modprobe tun), or give the container the device", devicePath, err)
	case errors.Is(err, fs.ErrPermission):
		return -1, fmt.Errorf("open %s: %w: run as root, or allow the container the device", devicePath, err)
	}
	return -1, os.NewSyscallError("open "+devicePath, err)
}

// explain adds to an error of TUNSETIFF what the kernel means by it.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: CAP_NET_ADMIN is needed, run as root", err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return errHeld
	}
	return err
}
