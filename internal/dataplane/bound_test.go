package dataplane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
)

// What package conntrack states, in bytes.
const (
	bytesPerSession  = 200
	bytesPerClient   = 1 << 10
	bytesPerDatagram = 512
	bytesOfTable     = 4 << 20
)

// TestMemoryIsBounded: nobody, on either side, can have natless take more
// memory than what was configured is stated to cost, and something for the
// rest of the program. What is sent is what an adversary would: random sources
// and ports, SYNs, and fragments that are never completed.
func TestMemoryIsBounded(t *testing.T) {
	const sessions, leases, rest = 20_000, 15 * 63, 8 << 20
	inUse := func() int {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapInuse)
	}
	before := inUse()
	r := newSharingRig(t, func(c *mapping.Config, s *conntrack.Config, f *conntrack.FragmentConfig) {
		c.Pools[0].IPv4 = netip.MustParsePrefix("192.0.2.16/28")
		s.Sessions = sessions
		*f = conntrack.FragmentConfig{Datagrams: 4096, SourceDatagrams: 1024, Bytes: 1 << 20, SourceBytes: 256 << 10, Timeout: 2}
	})
	limit := sessions*bytesPerSession + leases*bytesPerClient + 2*(r.parts.Datagrams*bytesPerDatagram+r.parts.Bytes*9/8) + bytesOfTable + rest

	random := rand.New(rand.NewPCG(1, 2))
	protos := []uint8{protoTCP, protoTCP, protoUDP, protoUDPLite, protoDCCP, protoSCTP, protoICMP}
	six := func() string {
		return fmt.Sprintf("2001:db8:1::%x:%x", random.IntN(65536), random.IntN(65536)) // permitted, and made up
	}
	four := func() string { return netip.AddrFrom4([4]byte{203, 0, 113, byte(random.IntN(256))}).String() }
	sharedOnes := func() string { return fmt.Sprint("192.0.2.", 16+random.IntN(16)) }
	known := six()
	r.send(0, whole(known, 1, server6, 80, protoUDP, 0, nil))
	packet := func() []byte {
		proto, port := protos[random.IntN(len(protos))], uint16(random.Uint32())
		switch random.IntN(4) {
		case 0: // who has a lease opens all it can
			return whole(known, port, "64:ff9b::"+four(), uint16(random.Uint32()), proto, flagSYN&3, nil)
		case 1:
			return whole(six(), port, "64:ff9b::"+four(), 80, proto, flagSYN&3, nil)
		case 2:
			return whole(six(), port, "64:ff9b::"+sharedOnes(), uint16(random.Uint32()), protoUDP, 0, make([]byte, 600))
		}
		return whole(four(), port, sharedOnes(), uint16(random.Uint32()), protos[random.IntN(3)], flagSYN, make([]byte, 600))
	}
	for n := range 300_000 {
		p := packet()
		if look(p).proto != protoICMP && len(p) > 600 && random.IntN(4) > 0 {
			pieces := cut(p, random.Uint32(), 400)
			p = pieces[random.IntN(2)]
			if p[0]>>4 == 4 && random.IntN(2) == 0 { // as if from anywhere
				binary.BigEndian.PutUint16(p[12:], 0xcb00)
				binary.BigEndian.PutUint16(p[14:], uint16(random.Uint32()))
				clear(p[10:12])
				binary.BigEndian.PutUint16(p[10:], ^onesSum(0, p[:20]))
			}
		}
		r.send(n&1, p)
		if n%500 == 0 {
			all := r.table.Leases()
			known = all[random.IntN(len(all))].IPv6.String()
		}
		if n%20_000 == 0 {
			r.pass(1)
		}
	}
	used := inUse() - before
	assert.LessOrEqual(t, used, limit)
	assert.Greater(t, r.sessions.Len(), sessions/2, "the flood got somewhere")
	assert.Len(t, r.table.Leases(), leases)
	t.Logf("%d of %d bytes, %d sessions, %d leases", used, limit, r.sessions.Len(), len(r.table.Leases()))
	runtime.KeepAlive(r)
}
