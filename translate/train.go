package translate

import "encoding/binary"

// Train is UDP datagrams of one flow on their way out, one after another, joined
// to the super-packet that USO cuts into the very same packets again. It is made
// once per worker and reused, and is empty at first.
//
// Not of a train are packets that the cut would make different, those whose
// checksum is wrong or missing (that of a train is made anew, as if all were
// right), and those of less than 32 hops: so are traceroute's, which a router is
// to answer one by one.
type Train struct {
	// Buf is the owner's. Buf[:Off] is the room that the device wants in front
	// of a packet; from Off on there is room for the largest packet.
	Buf []byte
	Off int
	// Datagrams is how many are joined.
	Datagrams int

	n       int
	offload Offload // of the first
	l4      int     // where the UDP header is
	payload int     // bytes of it in each but the last
}

const (
	// maxTrain is how many segments every kernel with USO takes at once.
	maxTrain = 64
	// minTrainTTL is more than the hops that traceroute tries.
	minTrainTTL = 32
)

// Join adds a copy of a packet that is to leave, with its offload, or reports
// that it is not one of the train. An empty train takes what another could follow.
func (t *Train) Join(b []byte, o *Offload) bool {
	l4 := datagramOfTrain(b, o)
	if l4 == 0 {
		return false
	}
	payload := len(b) - l4 - udpHeaderLen
	if t.Datagrams == 0 {
		t.n = copy(t.Buf[t.Off:], b)
		t.Datagrams, t.offload, t.l4, t.payload = 1, *o, l4, payload
		return true
	}
	if t.Datagrams == maxTrain || t.n+payload > maxPacket || payload > t.payload || t.ended() || !t.precedes(b, l4) {
		return false
	}
	if t.Datagrams == 1 && !sound(t.first(), l4, &t.offload) || !sound(b, l4, o) {
		return false
	}
	t.n += copy(t.Buf[t.Off+t.n:], b[l4+udpHeaderLen:])
	t.Datagrams++
	return true
}

// first is the first packet, and behind it the payload of the others.
func (t *Train) first() []byte { return t.Buf[t.Off : t.Off+t.n] }

// ended reports whether the last datagram was shorter than the others, which no
// other may follow.
func (t *Train) ended() bool { return t.n != t.l4+udpHeaderLen+t.Datagrams*t.payload }

// datagramOfTrain is where the UDP header is in a packet that could be one of a
// train, and otherwise 0.
func datagramOfTrain(b []byte, o *Offload) (l4 int) {
	if len(b) < ipv4HeaderLen || o.GSOType != GSONone {
		return 0
	}
	switch {
	case b[0] == 0x45 && b[ipv4Proto] == protoUDP && b[ipv4TTL] >= minTrainTTL && binary.BigEndian.Uint16(b[ipv4Flags:])&^ipv4DF == 0:
		l4 = ipv4HeaderLen
	case b[0]>>4 == 6 && b[ipv6Next] == protoUDP && b[ipv6HopLimit] >= minTrainTTL:
		l4 = ipv6HeaderLen
	default:
		return 0
	}
	if len(b) <= l4+udpHeaderLen || int(binary.BigEndian.Uint16(b[l4+udpLength:])) != len(b)-l4 {
		return 0
	}
	if o.Flags&NeedsCsum == 0 && binary.BigEndian.Uint16(b[l4+udpChecksum:]) == 0 {
		return 0
	}
	return l4
}

// precedes reports whether the cut gives the next datagram the headers of b.
func (t *Train) precedes(b []byte, l4 int) bool {
	a := t.first()
	if l4 != t.l4 || string(a[l4:l4+udpLength]) != string(b[l4:l4+udpLength]) {
		return false
	}
	if l4 == ipv6HeaderLen {
		return string(a[:ipv6Payload]) == string(b[:ipv6Payload]) && string(a[ipv6Next:l4]) == string(b[ipv6Next:l4])
	}
	return a[ipv4TOS] == b[ipv4TOS] &&
		binary.BigEndian.Uint16(a[ipv4ID:])+uint16(t.Datagrams) == binary.BigEndian.Uint16(b[ipv4ID:]) &&
		string(a[ipv4Flags:ipv4Checksum]) == string(b[ipv4Flags:ipv4Checksum]) &&
		string(a[ipv4Src:l4]) == string(b[ipv4Src:l4])
}

// sound reports whether the UDP checksum of a packet is right, or is yet to be
// made.
func sound(b []byte, l4 int, o *Offload) bool {
	return o.Flags&NeedsCsum != 0 || fold(sumBytes(pseudoUDP(b, l4), b[l4:])) == 0xffff
}

// pseudoUDP is the sum of the pseudo header of the UDP packet b.
func pseudoUDP(b []byte, l4 int) uint64 {
	if l4 == ipv6HeaderLen {
		return pseudoIPv6(b[ipv6Src:], len(b)-l4, protoUDP)
	}
	return pseudoIPv4(b[ipv4Src:], len(b)-l4, protoUDP)
}

// Finish empties the train and says what is to leave: the n bytes at Buf[Off:],
// which stay until the next Join. A datagram that is alone is as it came.
func (t *Train) Finish() (n int, o Offload) {
	n, o = t.n, t.offload
	if t.Datagrams > 1 {
		b, l4 := t.first(), t.l4
		if l4 == ipv6HeaderLen {
			binary.BigEndian.PutUint16(b[ipv6Payload:], uint16(n-l4))
		} else {
			binary.BigEndian.PutUint16(b[ipv4Total:], uint16(n))
			binary.BigEndian.PutUint16(b[ipv4Checksum:], 0)
			binary.BigEndian.PutUint16(b[ipv4Checksum:], ^sumHeader(b[:l4]))
		}
		binary.BigEndian.PutUint16(b[l4+udpLength:], uint16(n-l4))
		binary.BigEndian.PutUint16(b[l4+udpChecksum:], fold(pseudoUDP(b, l4)))
		o = Offload{
			Flags: NeedsCsum, GSOType: GSOUDPL4, HdrLen: uint16(l4 + udpHeaderLen), GSOSize: uint16(t.payload),
			CsumStart: uint16(l4), CsumOffset: udpChecksum,
		}
	}
	t.Datagrams, t.n = 0, 0
	return n, o
}
