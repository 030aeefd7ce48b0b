package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ClearLink removes what was made for an attached namespace on a link, which
// must still have its name and its index: the link itself, if it was made too
// and is one end of a veth pair, or else routes over it. What is gone already is
// no error.
func ClearLink(name string, index int, made bool, routes []netip.Prefix) error {
	link, err := netlink.LinkByIndex(index)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none) || err == nil && link.Attrs().Name != name:
		return nil
	case err != nil:
		return fmt.Errorf("looking for link %s: %w", name, err)
	}
	if made {
		if link.Type() != "veth" {
			return nil
		}
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("removing link %s: %w", name, err)
		}
		return nil
	}
	for _, p := range routes {
		err := netlink.RouteDel(&netlink.Route{LinkIndex: index, Dst: IPNet(p)})
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing the route to %v over %s: %w", p, name, err)
		}
	}
	return nil
}

// HasLink reports whether a link still has its name and its index, or that cannot
// be told.
func HasLink(name string, index int) bool {
	link, err := netlink.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false
	}
	return err != nil || link.Attrs().Name == name
}
