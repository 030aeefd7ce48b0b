package tun

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMakePlan(t *testing.T) {
	const (
		base  = unix.IFF_TUN | unix.IFF_NO_PI
		multi = unix.IFF_MULTI_QUEUE
		vnet  = unix.IFF_VNET_HDR
		all   = base | multi | vnet
	)
	single, several := &netlink.Tuntap{}, &netlink.Tuntap{Flags: netlink.TUNTAP_MULTI_QUEUE}
	for _, c := range []struct {
		name     string
		config   Config
		kernel   uint16
		existing *netlink.Tuntap
		queues   int
		flags    uint16
		rings    int // 0 is 1
	}{
		{"everything", Config{Queues: 2, Offload: true}, all, nil, 2, all, 0},
		{"one queue is exclusive", Config{Queues: 1, Offload: true}, all, nil, 1, base | vnet, 0},
		{"no number of queues is one", Config{}, all, nil, 1, base, 0},
		{"without offload", Config{Queues: 4}, all, nil, 4, base | multi, 0},
		{"kernel without headers", Config{Queues: 2, Offload: true}, base | multi, nil, 2, base | multi, 0},
		{"kernel without queues", Config{Queues: 2, Offload: true}, base | vnet, nil, 1, base | vnet, 0},
		{"operator's device of one queue", Config{Queues: 2, Offload: true}, all, single, 1, base | vnet, 0},
		{"operator's device of several", Config{Queues: 2, Offload: true}, all, several, 2, all, 0},
		{"rings", Config{Queues: 2, Rings: 8, Offload: true}, all, nil, 2, all, 8},
		{"rings of one queue", Config{Queues: 1, Rings: 8, Offload: true}, all, nil, 1, all, 8},
		{"as many as the kernel has", Config{Queues: 100, Rings: 8, Offload: true}, all, nil, 100, all, 2},
		{"more queues than the kernel has", Config{Queues: 300, Rings: 8, Offload: true}, all, nil, 300, all, 1},
		{"no rings without offload", Config{Queues: 1, Rings: 8}, all, nil, 1, base, 1},
		{"nor on a device of one queue", Config{Queues: 2, Rings: 8, Offload: true}, all, single, 1, base | vnet, 1},
		{"its flag must match for one queue too", Config{Queues: 1}, all, several, 1, base | multi, 0},
	} {
		if c.rings == 0 {
			c.rings = 1
		}
		p := makePlan(c.config, c.kernel, c.existing)
		assert.Equal(t, c.rings, p.rings, c.name)
		assert.Equal(t, c.queues, p.queues, c.name)
		assert.Equal(t, c.flags, p.flags, c.name)
		assert.Equal(t, c.existing != nil, p.adopted, c.name)
	}
}

func TestNegotiateStepsDown(t *testing.T) {
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	const uso = unix.TUN_F_USO4 | unix.TUN_F_USO6
	for _, c := range []struct{ known, want uint }{
		{tso | uso, tso | uso},
		{tso, tso},
		{unix.TUN_F_CSUM, 0},
		{0, 0},
	} {
		got, err := negotiate(func(o uint) error {
			if o&^c.known != 0 {
				return fmt.Errorf("unknown: %w", unix.EINVAL)
			}
			return nil
		})
		require.NoError(t, err)
		assert.Equal(t, c.want, got)
	}
	calls := 0
	_, err := negotiate(func(uint) error { calls++; return unix.EBADFD })
	assert.ErrorIs(t, err, unix.EBADFD)
	assert.Equal(t, 1, calls, "an error that has nothing to do with features is not stepped down from")
}

func TestFeaturesFallBackOnWhatWasAgreed(t *testing.T) {
	var f Features
	f.addOffloads("no-such-link", offloadTSO)
	assert.Equal(t, Features{Checksum: true, TSO: true}, f)
	assert.Equal(t, "checksum,tso", f.String())
	assert.Equal(t, "off", Features{VNetHdr: true, MultiQueue: true}.String())
}

func TestIllegalNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a:b", "a b", "nat%d", "a\nb", "sixteen-bytes-ab"} {
		_, err := find(name)
		assert.ErrorContains(t, err, "device name", "%q", name)
	}
}
