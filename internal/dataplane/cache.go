package dataplane

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// cache remembers what the Resolver last said of a pair of addresses, so that
// packets of a flow under way cost no search of the table, whose size then
// hardly matters. It belongs to one Translator. What it holds is good for the
// revision of the table and the tick it was learnt in: a change of the table is
// in force with the next packet, and every second the Resolver hears of a flow
// that is used.
type cache [1 << cacheBits]answer

// cacheBits makes room for some thousand active pairs in less memory than a
// processor's second-level cache has. Pairs that collide take turns.
const cacheBits = 12

type answer struct {
	key      pair
	src, dst netip.Addr
	revision uint64
	tick     uint32
	verdict  translate.Verdict
	ranges   mapping.Ranges
}

// pair is the two addresses of a packet as its header has them, and from IPv4
// the upper half of the port it goes to: clients that share an address should
// not have to take turns. No two are the same, for an IPv6 packet to ::1 is
// never answered well enough to be kept.
type pair struct{ a, b, c, d uint64 }

func (t *Translator) pairOf(p *translate.Packet) pair {
	b := p.Buf[p.Off:]
	if p.Flow.Src.Is4() {
		return pair{binary.BigEndian.Uint64(b[12:]), uint64(p.Flow.DstPort >> t.portShift), 0, 1}
	}
	return pair{
		binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:]),
		binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:]),
	}
}

// at is the only place in the cache for the pair.
func (c *cache) at(k pair) *answer {
	h := k.a ^ bits.RotateLeft64(k.b, 17) ^ bits.RotateLeft64(k.c, 34) ^ bits.RotateLeft64(k.d, 51)
	return &c[h*0x9e3779b97f4a7c15>>(64-cacheBits)]
}

// holds reports whether the answer is to this question, and still good.
func (a *answer) holds(k pair, revision uint64, tick uint32) bool {
	return a.key == k && a.revision == revision && a.tick == tick && a.verdict.Leaves()
}

// inRange reports whether a packet, not of ICMP, goes to a port of the range.
func inRange(r *mapping.Range, f *translate.Flow) bool {
	return f.DstPort >= r.First && f.DstPort <= r.Last && f.Proto != protoICMP && f.Proto != protoICMPv6
}
