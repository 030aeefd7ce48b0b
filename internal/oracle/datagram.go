package oracle

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const (
	protoHopByHop = 0
	protoICMP4    = 1
	protoIGMP     = 2
	protoTCP      = 6
	protoUDP      = 17
	protoDCCP     = 33
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMP6    = 58
	protoDestOpts = 60
	protoSCTP     = 132
	protoMobility = 135
	protoUDPLite  = 136
	protoHIP      = 139
	protoShim6    = 140
)

// packet is an IPv4 or IPv6 packet taken apart.
type packet struct {
	version      int
	src, dst     netip.Addr
	tos, ttl     uint8
	proto        uint8 // of what body holds
	id           uint32
	dontFragment bool // IPv4
	more         bool
	offset       int // of body in the datagram, in bytes

	routed bool // a source route or routing header that has not run out

	fragmentHeader bool // IPv6: there is one, or one is wanted
	extensions     int  // IPv6: bytes of all extension headers

	behind      []byte // a quoted packet: what is there beyond its end
	totalLength int    // a quoted packet: the IPv4 header's word
	declared    int    // how long the length field says that body is
	body        []byte // what there is of it
}

func clone(b []byte) []byte { return append([]byte{}, b...) }

func (d packet) isFragment() bool { return d.more || d.offset > 0 }

func (d packet) part() string {
	switch {
	case d.offset > 0:
		return Later
	case d.more:
		return First
	}
	return Whole
}

// decode reads the IP headers of b. A quoted packet may have less than it
// declares; an ordinary one may not.
func decode(b []byte, quoted bool) (packet, string) {
	if len(b) == 0 {
		return packet{}, NotIP
	}
	switch b[0] >> 4 {
	case 4:
		return decode4(b, quoted)
	case 6:
		return decode6(b, quoted)
	}
	return packet{}, NotIP
}

// decode4 is RFC 791 3.1.
func decode4(b []byte, quoted bool) (packet, string) {
	if len(b) < 20 {
		return packet{}, Truncated
	}
	headerLen := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case headerLen < 20:
		return packet{}, BadHeader
	case len(b) < headerLen:
		return packet{}, Truncated
	case total < headerLen:
		return packet{}, BadHeader
	case len(b) < total && !quoted:
		return packet{}, Truncated
	}
	sourceRoute := false
	if !quoted { // routers garble what they quote, and nobody will follow its route
		if sum(b[:headerLen]) != 0 {
			return packet{}, BadIPv4Checksum
		}
		var ok bool
		if sourceRoute, ok = walkOptions(b[20:headerLen]); !ok {
			return packet{}, BadHeader
		}
	}
	var ip layers.IPv4
	header := clone(b[:headerLen])
	header[0] = 0x45 // the options have had their say
	binary.BigEndian.PutUint16(header[2:], 20)
	if err := ip.DecodeFromBytes(header[:20], gopacket.NilDecodeFeedback); err != nil {
		panic(fmt.Sprintf("decoding a checked IPv4 header %x: %v", header, err))
	}
	return packet{
		version:      4,
		routed:       sourceRoute,
		src:          netip.AddrFrom4([4]byte(ip.SrcIP.To4())),
		dst:          netip.AddrFrom4([4]byte(ip.DstIP.To4())),
		tos:          ip.TOS,
		ttl:          ip.TTL,
		proto:        uint8(ip.Protocol),
		id:           uint32(ip.Id),
		dontFragment: ip.Flags&layers.IPv4DontFragment != 0,
		more:         ip.Flags&layers.IPv4MoreFragments != 0,
		offset:       int(ip.FragOffset) * 8,
		declared:     total - headerLen,
		body:         b[headerLen:min(len(b), total)],
	}, ""
}

// walkOptions looks for a source route that has not run out (RFC 7915 4.1);
// ok is false when the list of options does not hold together.
func walkOptions(o []byte) (sourceRoute, ok bool) {
	const endOfList, noOperation, looseRoute, strictRoute = 0, 1, 131, 137
	for len(o) > 0 && o[0] != endOfList {
		if o[0] == noOperation {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return false, false
		}
		if o[0] == looseRoute || o[0] == strictRoute {
			if o[1] < 3 {
				return false, false
			}
			length, pointer := o[1], o[2]
			sourceRoute = sourceRoute || pointer <= length
		}
		o = o[o[1]:]
	}
	return sourceRoute, true
}

// decode6 is RFC 8200 3 and 4.
func decode6(b []byte, quoted bool) (packet, string) {
	if len(b) < 40 {
		return packet{}, Truncated
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < 40+length && !quoted {
		return packet{}, Truncated
	}
	var ip layers.IPv6
	header := append(clone(b[:40]), 0)
	header[4], header[5], header[6] = 0, 1, 59 // gopacket would follow them
	if err := ip.DecodeFromBytes(header, gopacket.NilDecodeFeedback); err != nil {
		panic(fmt.Sprintf("decoding a checked IPv6 header %x: %v", header, err))
	}
	d := packet{
		version:  6,
		src:      netip.AddrFrom16([16]byte(ip.SrcIP.To16())),
		dst:      netip.AddrFrom16([16]byte(ip.DstIP.To16())),
		tos:      ip.TrafficClass,
		ttl:      ip.HopLimit,
		proto:    b[6],
		declared: length,
		body:     b[40:min(len(b), 40+length)],
	}
	for {
		next := 0 // length of this extension header
		switch d.proto {
		case protoHopByHop, protoDestOpts, protoRouting:
			if d.proto == protoHopByHop && d.extensions > 0 { // RFC 8200 4.1
				return packet{}, BadHeader
			}
			if len(d.body) < 8 {
				return packet{}, Truncated
			}
			next = int(d.body[1])*8 + 8
			if len(d.body) < next {
				return packet{}, Truncated
			}
			if d.proto == protoRouting && d.body[3] != 0 {
				d.routed = true
			}
			d.proto = d.body[0]
		case protoFragment:
			if len(d.body) < 8 {
				return packet{}, Truncated
			}
			next = 8
			d.fragmentHeader = true
			d.proto = d.body[0]
			field := binary.BigEndian.Uint16(d.body[2:])
			d.offset = int(field &^ 7)
			d.more = field&1 != 0
			d.id = binary.BigEndian.Uint32(d.body[4:])
		default:
			return d, ""
		}
		d.body = d.body[next:]
		d.declared -= next
		d.extensions += next
		if d.fragmentHeader {
			if isExtension(d.proto) { // RFC 7915 5.1.1
				return packet{}, FragmentExtension
			}
			return d, ""
		}
	}
}

// isExtension is the list of the IANA registry, but for ESP, which
// RFC 7915 5.1.1 excepts, and the two numbers for experiments.
func isExtension(proto uint8) bool {
	switch proto {
	case protoHopByHop, protoRouting, protoFragment, protoAH, protoDestOpts, protoMobility, protoHIP, protoShim6:
		return true
	}
	return false
}

// check is everything about a decoded packet that can stop it without asking
// where it goes.
func (d packet) check(s Settings) string {
	if why := d.checkShape(); why != "" {
		return why
	}
	if why := d.checkProtocol(); why != "" {
		return why
	}
	if why := d.checkTransport(s); why != "" {
		return why
	}
	switch {
	case d.routed && d.version == 4:
		return SourceRoute // RFC 7915 4.1
	case d.routed:
		return RoutingHeader // RFC 7915 5.1
	}
	return ""
}

// checkShape holds a fragment against RFC 791 3.2 and RFC 8200 4.5; the whole
// datagram has to fit into IPv4 also.
func (d packet) checkShape() string {
	if !d.isFragment() {
		return ""
	}
	if d.declared == 0 || d.more && d.declared%8 != 0 || d.offset+d.declared > 65535-20 {
		return BadFragment
	}
	return ""
}

// checkProtocol refuses what would become something else on the other side:
// the other family's ICMP, IGMP (RFC 7915 4.2), and IPv4 protocol numbers that
// IPv6 takes for extension headers.
func (d packet) checkProtocol() string {
	switch d.proto {
	case protoIGMP:
		return ICMPType
	case protoICMP4, protoICMP6:
		if !d.isICMP() {
			return ICMPType
		}
	case protoHopByHop, protoRouting, protoFragment, protoDestOpts:
		if d.version == 4 {
			return BadHeader
		}
	}
	return ""
}

func (d packet) checkTransport(s Settings) string {
	if d.isICMP() && d.isFragment() {
		return ICMPFragment // RFC 7915 1.2
	}
	short := Truncated
	switch d.part() {
	case Later:
		if d.offset < d.transportHeader() { // RFC 1858
			return BadFragment
		}
		return ""
	case First:
		short = BadFragment
	}
	if len(d.body) < d.transportHeader() {
		return short
	}
	switch {
	case d.isICMP():
		return d.checkICMP()
	case d.proto == protoTCP:
		offset := int(d.body[12]>>4) * 4
		if offset < 20 {
			return BadHeader
		}
		if len(d.body) < offset {
			return short
		}
	case d.proto == protoUDP:
		return d.checkUDP(s)
	}
	return ""
}

// cut divides d into pieces with at most room bytes; all but the last are
// multiples of eight.
func (d packet) cut(room int) []packet {
	var pieces []packet
	for at := 0; at < len(d.body); {
		size := len(d.body) - at
		if size > room {
			size = room / 8 * 8
		}
		piece := d
		piece.body = d.body[at : at+size]
		piece.declared = size
		piece.offset = d.offset + at
		piece.more = d.more || at+size < len(d.body)
		pieces = append(pieces, piece)
		at += size
	}
	return pieces
}

func serialize(body []byte, parts ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{ComputeChecksums: true} // of IPv4 headers
	if err := gopacket.SerializeLayers(buf, options, append(parts, gopacket.Payload(body))...); err != nil {
		panic(fmt.Sprintf("serializing %v: %v", parts, err))
	}
	return clone(buf.Bytes())
}

func (d packet) build4() []byte {
	ip := &layers.IPv4{
		Version:    4,
		IHL:        5,
		TOS:        d.tos,
		Length:     uint16(20 + d.declared),
		Id:         uint16(d.id),
		FragOffset: uint16(d.offset / 8),
		TTL:        d.ttl,
		Protocol:   layers.IPProtocol(d.proto),
		SrcIP:      d.src.AsSlice(),
		DstIP:      d.dst.AsSlice(),
	}
	if d.dontFragment {
		ip.Flags |= layers.IPv4DontFragment
	}
	if d.more {
		ip.Flags |= layers.IPv4MoreFragments
	}
	return serialize(d.body, ip)
}

func (d packet) build6() []byte {
	ip := &layers.IPv6{
		Version:      6,
		TrafficClass: d.tos,
		Length:       uint16(d.declared),
		NextHeader:   layers.IPProtocol(d.proto),
		HopLimit:     d.ttl,
		SrcIP:        d.src.AsSlice(),
		DstIP:        d.dst.AsSlice(),
	}
	if !d.fragmentHeader {
		return serialize(d.body, ip)
	}
	ip.NextHeader = protoFragment
	ip.Length += 8
	header := []byte{d.proto, 0}
	field := uint16(d.offset)
	if d.more {
		field |= 1
	}
	header = binary.BigEndian.AppendUint16(header, field)
	header = binary.BigEndian.AppendUint32(header, d.id)
	return serialize(append(header, d.body...), ip)
}
