package oracle

import "encoding/binary"

// The sizes of a whole packet that carries an ICMP error
// (RFC 1812 4.3.2.3, RFC 4443 2.4).
const (
	limit4 = 576
	limit6 = 1280
)

// The least that RFC 4884 3 quotes in front of an extension.
const leastQuote = 128

// splitError divides what an ICMP error carries: the extension of RFC 4884
// (nil if there is none) and the packet it is about.
func (d packet) splitError() (extension []byte, quoted packet, why string) {
	carried := d.body[8:]
	length := 0
	switch {
	case d.version == 4: // all three kinds have the attribute, in 32-bit words
		length = int(d.body[5]) * 4
	case d.body[0] == 1 || d.body[0] == 3: // in 64-bit words
		length = int(d.body[4]) * 8
	}
	if length > 0 && length+4 <= len(carried) && (length >= leastQuote || isExtensionStructure(carried[length:])) {
		carried, extension = carried[:length], carried[length:]
	}
	quoted, why = decode(carried, true)
	if why != "" || quoted.version != d.version {
		return nil, packet{}, ICMPQuote
	}
	quoted.totalLength = int(binary.BigEndian.Uint16(carried[2:]))
	quoted.behind = carried[len(carried)-max(0, len(carried)-ownLength(carried)):]
	return extension, quoted, ""
}

// isExtensionStructure looks at version and checksum, which may be left out (RFC
// 4884 7).
func isExtensionStructure(b []byte) bool {
	return b[0]/16 == 2 && (binary.BigEndian.Uint16(b[2:]) == 0 || sum(b) == 0)
}

// ownLength is what the header of a packet says of its size.
func ownLength(b []byte) int {
	if b[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(b[2:]))
	}
	return 40 + int(binary.BigEndian.Uint16(b[4:]))
}

// checkQuoted is check for a packet inside an ICMP error, which need not be
// all there, but has to be one that could have been translated.
func (d packet) checkQuoted() string {
	if d.version == 6 && d.declared+20 > 65535 {
		return ICMPQuote
	}
	if d.checkProtocol() != "" || d.routed {
		return ICMPQuote
	}
	if d.isICMP() && d.isFragment() {
		return ICMPQuote
	}
	if d.part() == Later {
		return ""
	}
	if d.isICMP() {
		if len(d.body) < 8 {
			return ICMPQuote
		}
		if _, ok := d.echo(); !ok { // RFC 7915 4.3, 5.3: stop at the first embedded header
			return ICMPQuote
		}
	}
	return ""
}

// translateError turns a whole ICMP error with all that it carries.
func (d packet) translateError(s Settings, to Flow, m Mapping) []byte {
	extension, quoted, _ := d.splitError()
	h, _ := d.errorHeader(s, quoted)
	room, unit := limit6-40-8, 8
	if d.version == 6 {
		room, unit = limit4-20-8, 4
	}
	quote := quoted.translateQuoted(s, m)
	if len(extension) == 0 {
		quote = append(quote, quoted.behind...) // not padding, as far as one can tell
	}
	length := 0
	if h.attribute > 0 && len(extension) > 0 && leastQuote+len(extension) <= room { // one that cannot be there whole is left out
		for len(quote) < leastQuote || len(quote)%unit != 0 {
			quote = append(quote, 0)
		}
		for len(quote)+len(extension) > room && len(quote)-unit >= leastQuote {
			quote = quote[:len(quote)-unit]
		}
		length = len(quote) / unit
		quote = append(quote, extension...)
	}
	quote = quote[:min(len(quote), room)]

	body := append([]byte{h.kind, h.code, 0, 0}, h.rest[:]...)
	if length > 0 {
		body[h.attribute] = byte(length)
	}
	body = append(body, quote...)

	old := clone(d.body)
	checksum := binary.BigEndian.Uint16(old[2:])
	old[2], old[3] = 0, 0
	before, after := sum(old), sum(body)
	if d.version == 4 {
		after += pseudo(to.Src, to.Dst, protoICMP6, len(body))
	} else {
		before += pseudo(d.src, d.dst, protoICMP6, len(d.body))
	}
	binary.BigEndian.PutUint16(body[2:], adjust(checksum, before, after%65535))
	return body
}

// translateQuoted turns a quoted packet, which nobody forwards: its hop limit
// stays, it is not too big, and its length is the one it had.
func (d packet) translateQuoted(s Settings, m Mapping) []byte {
	to := m(d.flow(), true)
	out := packet{
		src:      to.Src,
		dst:      to.Dst,
		tos:      d.tos,
		ttl:      d.ttl,
		proto:    d.proto,
		offset:   d.offset,
		more:     d.more,
		declared: d.declared,
		body:     clone(d.body),
	}
	if d.part() != Later {
		out.body = d.translateTransport(s, to, true)
	}
	if s.ZeroTOS {
		out.tos = 0
	}
	if d.version == 4 {
		out.fragmentHeader = d.isFragment()
		out.id = d.id & 0xffff
		if d.proto == protoICMP4 {
			out.proto = protoICMP6
		}
		return out.build6()
	}
	if d.proto == protoICMP6 {
		out.proto = protoICMP4
	}
	if d.fragmentHeader {
		out.id = d.id & 0xffff
	} else {
		out.dontFragment = d.declared+20 > 1260
	}
	return out.build4()
}
