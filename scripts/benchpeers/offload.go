package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/lab"
)

// udpGRO has a node join what comes in by a link into super-packets, datagrams
// to be forwarded too:
//
//	ethtool -K LINK gro on rx-udp-gro-forwarding on
//	echo 50000 > /sys/class/net/LINK/gro_flush_timeout
//	echo 2 > /sys/class/net/LINK/napi_defer_hard_irqs
//
// A veth, unlike a network card, is polled as soon as a packet is there, and
// would never see a second one to join with the first; with the latter two it
// looks again 50 µs later.
func udpGRO(n *lab.Node, link string) error {
	done := make(chan error)
	go func() {
		done <- n.Do(func() error {
			runtime.LockOSThread() // and never unlocked: the mount namespace ends with the thread
			if err := setFeatures(link, "rx-gro", "rx-udp-gro-forwarding"); err != nil {
				return err
			}
			if err := ownSysfs(); err != nil {
				return err
			}
			dir := filepath.Join("/sys/class/net", link)
			return errors.Join(
				os.WriteFile(filepath.Join(dir, "gro_flush_timeout"), []byte("50000"), 0),
				os.WriteFile(filepath.Join(dir, "napi_defer_hard_irqs"), []byte("2"), 0))
		})
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("set UDP GRO of %s on: %w", link, err)
	}
	return nil
}

// ownSysfs gives this thread a /sys of its own, which shows the links of the
// network namespace that it is in.
func ownSysfs() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

// setFeatures sets features of a link on, by netlink in the thread's namespace.
func setFeatures(link string, features ...string) error {
	family, err := netlink.GenlFamilyGet(unix.ETHTOOL_GENL_NAME)
	if err != nil {
		return err
	}
	header := nested(unix.ETHTOOL_A_FEATURES_HEADER)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(link))
	wanted := nested(unix.ETHTOOL_A_FEATURES_WANTED)
	bits := nested(unix.ETHTOOL_A_BITSET_BITS)
	for _, name := range features {
		bit := nested(unix.ETHTOOL_A_BITSET_BITS_BIT)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(name))
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil) // there: on
		bits.AddChild(bit)
	}
	wanted.AddChild(bits)
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_FEATURES_SET, Version: unix.ETHTOOL_GENL_VERSION})
	req.AddData(header)
	req.AddData(wanted)
	_, err = req.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

func nested(kind int) *nl.RtAttr { return nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil) }
