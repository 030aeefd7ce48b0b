package tun

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ladder is what TUNSETOFFLOAD is asked for, step by step down: before Linux
// 6.2 there is no USO, and a kernel that refuses the rest gets none. The last
// step also works without a header.
var ladder = [...]uint{
	offloadTSO | unix.TUN_F_USO4 | unix.TUN_F_USO6,
	offloadTSO,
	0,
}

const offloadTSO = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN

// negotiate finds the first step of the ladder that the kernel takes.
func negotiate(set func(uint) error) (uint, error) {
	var err error
	for _, step := range ladder {
		if err = set(step); !errors.Is(err, unix.EINVAL) {
			return step, err
		}
	}
	return 0, err
}

func setOffload(fd int) func(uint) error {
	return func(o uint) error {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(o)); err != nil {
			return fmt.Errorf("TUNSETOFFLOAD %#x: %w", o, err)
		}
		return nil
	}
}

// kernelFlags are the TUNSETIFF flags that the kernel knows.
func kernelFlags() (uint16, error) {
	fd, err := openControl()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetUint32(fd, unix.TUNGETFEATURES)
	if err != nil {
		return 0, fmt.Errorf("TUNGETFEATURES on %s: %w", devicePath, err)
	}
	return uint16(flags), nil
}

// openOffload attaches raw queues with a virtio header and returns the offloads
// that the kernel took.
func (d *Device) openOffload(p plan) (offloads uint, err error) {
	s := &shared{adopted: p.adopted}
	flags := p.flags
	if !p.adopted {
		flags |= unix.IFF_TUN_EXCL // somebody made it since we looked: EBUSY
	}
	first, err := newRawQueue(p.name, flags, s)
	if err != nil {
		return 0, err
	}
	d.queues = append(d.queues, first)
	if offloads, err = setUp(first.rings[0]); err != nil {
		return 0, err
	}
	d.features.Steering = p.queues*p.rings > 1 && steer(first.rings[0], p.queues, p.rings) == nil
	if !d.features.Steering {
		p.rings = 1 // the kernel would move flows from ring to ring
	}
	for range p.queues - 1 {
		q, err := newRawQueue(p.name, p.flags, s)
		if err != nil {
			return 0, err
		}
		d.queues = append(d.queues, q)
	}
	for range p.rings - 1 {
		for _, q := range d.queues {
			if err := q.(*rawQueue).addRing(p.name, p.flags); err != nil {
				return 0, err
			}
		}
	}
	d.features.Rings = p.rings
	return offloads, nil
}

// setUp brings a device into a known state through its first queue: a
// persistent one still has whatever its last reader asked for.
func setUp(fd int) (offloads uint, err error) {
	if err := setOffload(fd)(0); err != nil {
		return 0, err
	}
	for _, set := range []struct {
		name  string
		req   uint
		value int
	}{
		{"TUNSETVNETHDRSZ", unix.TUNSETVNETHDRSZ, HeaderLen},
		{"TUNSETVNETLE", unix.TUNSETVNETLE, 0}, // native byte order
	} {
		if err := unix.IoctlSetPointerInt(fd, set.req, set.value); err != nil {
			return 0, fmt.Errorf("%s: %w", set.name, err)
		}
	}
	// Big-endian headers are a build option of the kernel; without it there is
	// nothing to switch off.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETBE, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return 0, fmt.Errorf("TUNSETVNETBE: %w", err)
	}
	return negotiate(setOffload(fd))
}

// addOffloads reports what the kernel says is on; should it not say, what it
// agreed to in TUNSETOFFLOAD.
func (f *Features) addOffloads(name string, agreed uint) {
	active, err := activeFeatures(name)
	if err != nil {
		f.Checksum = agreed&unix.TUN_F_CSUM != 0
		f.TSO = agreed&unix.TUN_F_TSO4 != 0
		f.USO = agreed&unix.TUN_F_USO4 != 0
		return
	}
	f.Checksum = active["tx-checksum-ip-generic"]
	f.TSO = active["tx-tcp-segmentation"] && active["tx-tcp6-segmentation"]
	f.USO = active["tx-udp-segmentation"]
}

// activeFeatures asks the kernel for a link's features that are on, by the
// names that ethtool -k shows.
func activeFeatures(name string) (map[string]bool, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ethtool on %s: %w", name, err)
	}
	defer unix.Close(s)

	// The structures of <linux/ethtool.h>, with their arrays of no length
	// given room.
	count := struct {
		cmd, _ uint32
		mask   uint64
		n      uint32
	}{cmd: unix.ETHTOOL_GSSET_INFO, mask: 1 << ethSSFeatures}
	if err := ethtool(s, name, unsafe.Pointer(&count)); err != nil {
		return nil, err
	}
	const maxFeatures = 256
	if count.mask == 0 || count.n > maxFeatures {
		return nil, fmt.Errorf("ethtool on %s: %d features", name, count.n)
	}
	names := struct {
		cmd, set, n uint32
		name        [maxFeatures][32]byte
	}{cmd: unix.ETHTOOL_GSTRINGS, set: ethSSFeatures, n: count.n}
	if err := ethtool(s, name, unsafe.Pointer(&names)); err != nil {
		return nil, err
	}
	bits := struct {
		cmd, n uint32
		block  [maxFeatures / 32]struct{ available, requested, active, neverChanged uint32 }
	}{cmd: unix.ETHTOOL_GFEATURES, n: maxFeatures / 32}
	if err := ethtool(s, name, unsafe.Pointer(&bits)); err != nil {
		return nil, err
	}
	active := make(map[string]bool)
	for i := range min(count.n, names.n) {
		if bits.block[i/32].active>>(i%32)&1 != 0 {
			n, _, _ := strings.Cut(string(names.name[i][:]), "\x00")
			active[n] = true
		}
	}
	return active, nil
}

const ethSSFeatures = 4 // ETH_SS_FEATURES

func ethtool(socket int, name string, data unsafe.Pointer) error {
	ifr := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: data}
	copy(ifr.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
	if errno != 0 {
		return fmt.Errorf("ethtool on %s: %w", name, errno)
	}
	return nil
}
