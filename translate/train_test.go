package translate

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// datagram is the next of a flow's datagrams of either family.
type datagram struct {
	four    ip4
	six     ip6
	v6      bool
	src     uint16 // port; 0: 4000
	size    int
	partial bool
	spoil   func(b []byte) // after checksums are in
}

func (d datagram) packet() (b []byte, o Offload) {
	payload := udp(or(d.src, 4000), 443, pattern(d.size))
	if d.v6 {
		d.six.next = 17
		b = sealed(d.six.around(payload))
	} else {
		d.four.proto = 17
		b = sealed(d.four.around(payload))
	}
	if d.partial {
		l4, _, _ := slowL4(b)
		b, o = partial(b), Offload{Flags: NeedsCsum, CsumStart: uint16(l4), CsumOffset: udpChecksum}
	}
	if d.spoil != nil {
		d.spoil(b)
	}
	return b, o
}

func newTrain() *Train { return &Train{Buf: make([]byte, Headroom+maxPacket), Off: Headroom} }

// depart does with packets what their owner does with a train, and returns
// what comes of it on the wire, and of how many datagrams each packet was.
func depart(t require.TestingT, packets []datagram) (wire [][]byte, lengths []int) {
	train := newTrain()
	out := func(b []byte, o Offload, datagrams int) {
		lengths = append(lengths, datagrams)
		wire = append(wire, slowSegments(slices.Clone(b), o)...)
		if datagrams == 1 {
			return
		}
		l4, _, _ := slowL4(b)
		require.Equal(t, gso(GSOUDPL4, int(o.GSOSize), uint16(l4+8), uint16(l4), 6), o)
		require.Equal(t, partial(b), b, "the sum of the pseudo header")
		require.Equal(t, len(b)-l4, int(binary.BigEndian.Uint16(b[l4+4:])))
		wellFormed(t, b)
	}
	finish := func() {
		if datagrams := train.Datagrams; datagrams > 0 {
			n, o := train.Finish()
			out(train.Buf[train.Off:train.Off+n], o, datagrams)
		}
	}
	for _, d := range packets {
		b, o := d.packet()
		if train.Join(b, &o) {
			continue
		}
		finish()
		if !train.Join(b, &o) {
			out(b, o, 1)
		}
	}
	finish()
	return wire, lengths
}

// onTheWire is what each packet is by itself when its checksum is complete.
func onTheWire(packets []datagram) (wire [][]byte) {
	for _, d := range packets {
		b, o := d.packet()
		if o.Flags&NeedsCsum != 0 {
			b = slowSegments(b, o)[0]
		}
		wire = append(wire, b)
	}
	return wire
}

func flip(at int) func([]byte) { return func(b []byte) { b[at] ^= 1 } }

// What may follow a datagram of 100 bytes in one train, and what may not.
func TestTrain(t *testing.T) {
	for name, c := range map[string]struct {
		first, second, third datagram
		lengths              []int
	}{
		"a flow":            {datagram{size: 100}, datagram{size: 100}, datagram{size: 100}, []int{3}},
		"of one byte":       {datagram{size: 1}, datagram{size: 1}, datagram{size: 1}, []int{3}},
		"odd sizes":         {datagram{size: 99}, datagram{size: 99}, datagram{size: 99}, []int{3}},
		"a shorter last":    {datagram{size: 100}, datagram{size: 100}, datagram{size: 99}, []int{3}},
		"after a shorter":   {datagram{size: 100}, datagram{size: 99}, datagram{size: 99}, []int{2, 1}},
		"longer":            {datagram{size: 100}, datagram{size: 101}, datagram{size: 101}, []int{1, 2}},
		"empty":             {datagram{size: 100}, datagram{size: 100}, datagram{}, []int{2, 1}},
		"empty first":       {datagram{}, datagram{}, datagram{}, []int{1, 1, 1}},
		"unfinished":        {datagram{size: 100, partial: true}, datagram{size: 100}, datagram{size: 100, partial: true}, []int{3}},
		"another port":      {datagram{size: 100}, datagram{size: 100, src: 4001}, datagram{size: 100, src: 4001}, []int{1, 2}},
		"wrong checksum":    {datagram{size: 100}, datagram{size: 100, spoil: flip(60)}, datagram{size: 100}, []int{1, 1, 1}},
		"wrong at first":    {datagram{size: 100, spoil: flip(60)}, datagram{size: 100}, datagram{size: 100}, []int{1, 2}},
		"wrong UDP length":  {datagram{size: 100}, datagram{size: 100, spoil: func(b []byte) { l4, _, _ := slowL4(b); b[l4+5]-- }}, datagram{size: 100}, []int{1, 1, 1}},
		"no checksum":       {datagram{size: 100}, datagram{size: 100, spoil: func(b []byte) { l4, _, _ := slowL4(b); clear(b[l4+6 : l4+8]) }}, datagram{size: 100}, []int{1, 1, 1}},
		"another protocol":  {datagram{size: 100}, datagram{size: 100, spoil: func(b []byte) { b[6], b[9] = 136, 136 }}, datagram{size: 100}, []int{1, 1, 1}},
		"probes of a route": {datagram{size: 100, four: ip4{ttl: 31}, six: ip6{hops: 31}}, datagram{size: 100, four: ip4{ttl: 31}, six: ip6{hops: 31}}, datagram{size: 100}, []int{1, 1, 1}},
		"another TTL":       {datagram{size: 100}, datagram{size: 100, four: ip4{ttl: 63}, six: ip6{hops: 63}}, datagram{size: 100}, []int{1, 1, 1}},
		"another class":     {datagram{size: 100}, datagram{size: 100, four: ip4{tos: 1}, six: ip6{tc: 1}}, datagram{size: 100}, []int{1, 1, 1}},
		"another source":    {datagram{size: 100}, datagram{size: 100, four: ip4{src: router4}, six: ip6{src: router6}}, datagram{size: 100}, []int{1, 1, 1}},
		"another address":   {datagram{size: 100}, datagram{size: 100, four: ip4{dst: router4}, six: ip6{dst: router6}}, datagram{size: 100}, []int{1, 1, 1}},
		"another family":    {datagram{size: 100}, datagram{size: 100, v6: true}, datagram{size: 100}, []int{1, 1, 1}},
	} {
		for _, v6 := range []bool{false, true} {
			packets := []datagram{c.first, c.second, c.third}
			for i := range packets {
				packets[i].v6 = packets[i].v6 != v6
				packets[i].four.id = uint16(0xfffe + i)
			}
			wire, lengths := depart(t, packets)
			assert.Equal(t, c.lengths, lengths, "%s, IPv6: %v", name, v6)
			if name != "another protocol" { // which has no checksum there
				assert.Equal(t, onTheWire(packets), wire, "%s, IPv6: %v", name, v6)
			}
		}
	}
}

// What only one family has.
func TestTrainOfOneFamily(t *testing.T) {
	for name, c := range map[string]struct {
		first, second datagram
		joined        bool
	}{
		"IPv4":                   {datagram{four: ip4{id: 7}}, datagram{four: ip4{id: 8}}, true},
		"DF":                     {datagram{four: ip4{id: 7, flags: df}}, datagram{four: ip4{id: 8, flags: df}}, true},
		"DF on one":              {datagram{four: ip4{id: 7}}, datagram{four: ip4{id: 8, flags: df}}, false},
		"one identification":     {datagram{four: ip4{id: 7}}, datagram{four: ip4{id: 7}}, false},
		"identifications, a gap": {datagram{four: ip4{id: 7}}, datagram{four: ip4{id: 9}}, false},
		"first fragments":        {datagram{four: ip4{id: 7, flags: mf}}, datagram{four: ip4{id: 8, flags: mf}}, false},
		"later fragments":        {datagram{four: ip4{id: 7, flags: 9}}, datagram{four: ip4{id: 8, flags: 9}}, false},
		"reserved flag":          {datagram{four: ip4{id: 7, flags: 0x8000}}, datagram{four: ip4{id: 8, flags: 0x8000}}, false},
		"options":                {datagram{four: ip4{id: 7, opts: []byte{1, 1, 1, 0}}}, datagram{four: ip4{id: 8, opts: []byte{1, 1, 1, 0}}}, false},
		"IPv6":                   {datagram{v6: true}, datagram{v6: true}, true},
		"flow labels":            {datagram{v6: true, six: ip6{label: 5}}, datagram{v6: true, six: ip6{label: 5}}, true},
		"another flow label":     {datagram{v6: true, six: ip6{label: 5}}, datagram{v6: true, six: ip6{label: 6}}, false},
	} {
		c.first.size, c.second.size = 50, 50
		packets := []datagram{c.first, c.second}
		wire, lengths := depart(t, packets)
		assert.Equal(t, c.joined, len(lengths) == 1, name)
		if c.first.four.flags&^df == 0 && c.first.four.opts == nil {
			assert.Equal(t, onTheWire(packets), wire, name)
		}
	}
}

// A train is never longer than a kernel takes.
func TestTrainEnds(t *testing.T) {
	for _, c := range []struct{ size, longest int }{{1, 64}, {1023, 64}, {1024, 63}, {1200, 54}, {1472, 44}, {32000, 2}, {32753, 2}, {32754, 1}} {
		var packets []datagram
		for i := range 130 {
			packets = append(packets, datagram{size: c.size, four: ip4{id: uint16(i)}})
		}
		wire, lengths := depart(t, packets)
		assert.Equal(t, c.longest, slices.Max(lengths), c.size)
		assert.Equal(t, onTheWire(packets), wire, c.size)
	}
}

// Strange bytes are no datagram of a train, and a super-packet is none either.
func TestTrainTakesNoOthers(t *testing.T) {
	b, _ := datagram{size: 100}.packet()
	for n := range ipv4HeaderLen + udpHeaderLen + 1 {
		assert.False(t, newTrain().Join(b[:n], &Offload{}), n)
	}
	b[0] = 0x55
	assert.False(t, newTrain().Join(b, &Offload{}))
	b, _ = datagram{size: 100, v6: true}.packet()
	for n := range ipv6HeaderLen + udpHeaderLen + 1 {
		assert.False(t, newTrain().Join(b[:n], &Offload{}), n)
	}
	assert.False(t, newTrain().Join(b, &Offload{Flags: NeedsCsum, GSOType: GSOUDPL4, GSOSize: 50}))
}

// FuzzTrain holds the law of trains: what they are cut into is what was joined.
func FuzzTrain(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 100, 0, 0, 100, 0, 0, 100, 0, 1, 100, 2, 0})
	f.Add([]byte{2, 200, 0, 0, 200, 1, 9, 200, 3, 200, 0, 20, 0, 0, 20})
	f.Fuzz(func(t *testing.T, data []byte) {
		var packets []datagram
		var d datagram // the next is like the last, but for what its three bytes say
		for ; len(data) >= 3 && len(packets) < 100; data = data[3:] {
			d.size = int(data[0]) * (1 + int(data[2]>>6)*4)
			d.four.id++
			d.spoil = nil
			switch data[1] {
			case 1:
				d.partial = !d.partial
			case 2:
				d.v6 = !d.v6
			case 3:
				d.four.ttl, d.six.hops = data[2]|32, data[2]|32
			case 4:
				d.four.tos, d.six.tc = data[2], data[2]
			case 5:
				d.four.flags ^= df
			case 6:
				d.four.id += uint16(data[2])
			case 7:
				d.src = uint16(data[2])
			case 8:
				d.six.label = uint32(data[2])
			case 9, 10:
				at := int(data[2])
				d.spoil = func(b []byte) { // but not what it takes to read it
					if l4, _, _ := slowL4(b); at > l4 && at < len(b) && at != l4+4 && at != l4+5 {
						b[at] ^= 4
					}
				}
			}
			packets = append(packets, d)
		}
		want := onTheWire(packets)
		wire, _ := depart(t, packets)
		require.Len(t, wire, len(want))
		for i := range want {
			require.Equal(t, want[i], wire[i], "packet %d, %x", i, want[i][:min(len(want[i]), 60)])
		}
	})
}

func BenchmarkTrain(b *testing.B) {
	for _, size := range []int{64, 1400} {
		packet, o := datagram{size: size}.packet()
		train, n := newTrain(), 0
		b.Run(map[int]string{64: "64", 1400: "1400"}[size], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				binary.BigEndian.PutUint16(packet[ipv4ID:], uint16(n%16))
				if !train.Join(packet, &o) {
					b.Fatal("not joined")
				}
				if n++; n%16 == 0 {
					train.Finish()
				}
			}
		})
		train.Finish()
	}
}
