package translate

import "encoding/binary"

// parseFragment says which part of a datagram the packet is and refuses
// fragments that no datagram can be made of. What lies in an IPv4 datagram is
// the limit for both families: a longer IPv6 datagram has no translation.
func (p *Packet) parseFragment() Verdict {
	h := &p.outer
	if h.offset == 0 && !h.more {
		return OK // atomic (RFC 6946)
	}
	n := h.end - h.l4
	if n == 0 || h.more && n%8 != 0 || h.offset+n > maxPacket-ipv4HeaderLen {
		return BadFragment
	}
	p.Flow.Frag = First
	if h.offset > 0 {
		p.Flow.Frag = Later
	}
	return OK
}

// cutter is what NextFragment goes by: an IPv4 packet, or the segments of a
// super-packet, on the way to being IPv6 fragments. Offsets count from the
// start of Buf.
type cutter struct {
	src, dst  ipv6Addr
	tos, next uint8
	hops      uint8
	mtu       int

	offset    int    // of what comes next in its datagram, in bytes
	id        uint32 // of the datagram
	more      bool   // the packet was not the last of its datagram
	fragment  bool   // a fragment header is needed
	head      int    // length of the segment's transport header in assembled
	pos, end  int    // what is left of the datagram
	remaining int    // what is left of the super-packet behind end
	segment   int
}

// startCut prepares NextFragment. The transport checksum is complete, except
// in a super-packet, whose segments get theirs one by one.
func (p *Packet) startCut(o *Options, next uint8, src, dst ipv6Addr) {
	h := &p.outer
	p.cut = cutter{
		src: src, dst: dst,
		tos: o.trafficClass(h.tos), next: next, hops: h.ttl - 1,
		mtu:    o.lowestIPv6MTU(),
		offset: h.offset, id: h.id, more: h.more, fragment: true,
		pos: p.Off + h.l4, end: p.Off + h.end,
	}
	if p.super() {
		p.cut.pos += int(p.l4Header)
		p.cut.remaining = p.cut.end - p.cut.pos
		p.cut.end = p.cut.pos
		p.cut.segment = -1
	}
}

// NextFragment writes the next IPv6 packet that the packet was cut into to
// dst, which holds at least the larger of 1280 and Options.LowestIPv6MTU
// bytes, and returns its length. It has no offloads. ok is false when there is
// no more. Buf must be left alone in between.
func (p *Packet) NextFragment(dst []byte) (n int, ok bool) {
	c := &p.cut
	if c.pos == c.end {
		if c.remaining == 0 {
			return 0, false
		}
		p.nextSegment()
	}
	head := p.assembled[:c.head]
	if c.offset > 0 {
		head = nil
	}
	size := len(head) + c.end - c.pos
	at := ipv6HeaderLen
	if c.fragment {
		at += fragmentHeaderLen
	}
	if at+size > c.mtu {
		size = (c.mtu - at) &^ 7
	}
	data := c.end - c.pos
	if len(head)+data > size {
		data = size - len(head)
	}
	putIPv6(dst, c.tos, at-ipv6HeaderLen+size, c.next, c.hops, c.src, c.dst)
	if c.fragment {
		dst[ipv6Next] = nextFragment
		more := c.more || c.pos+data < c.end
		putFragment(dst[ipv6HeaderLen:], c.next, c.offset, more, c.id)
	}
	copy(dst[at:], head)
	copy(dst[at+len(head):], p.Buf[c.pos:c.pos+data])
	c.pos += data
	c.offset += size
	return at + size, true
}

// nextSegment makes the next segment of a super-packet the datagram that is
// cut, as the kernel would have made it.
func (p *Packet) nextSegment() {
	c := &p.cut
	c.segment++
	n := min(c.remaining, int(p.Offload.GSOSize))
	c.pos = c.end
	c.end += n
	c.remaining -= n
	c.offset = 0
	c.head = int(p.l4Header)
	c.id = uint32(uint16(p.outer.id + uint32(c.segment)))
	c.fragment = ipv6HeaderLen+c.head+n > c.mtu
	head := p.assembled[:c.head]
	copy(head, p.Buf[p.Off+p.outer.l4:])
	p.segmentHeader(head, c.segment, n, c.remaining == 0)
	sum := add(sumAddrs(0, c.src, c.dst), uint64(c.head+n)+uint64(c.next))
	sum = sumBytes(sum, head)
	sum = sumBytes(sum, p.Buf[c.pos:c.end])
	p.putChecksumAt(head[p.checksum:], sum)
}

// segmentHeader makes the transport header of a super-packet that of its k-th
// segment, with n bytes behind it and the checksum field 0.
func (p *Packet) segmentHeader(head []byte, k, n int, last bool) {
	at := head[p.checksum : p.checksum+2]
	at[0], at[1] = 0, 0
	if p.outer.proto == protoUDP {
		binary.BigEndian.PutUint16(head[udpLength:], uint16(len(head)+n))
		return
	}
	seq := binary.BigEndian.Uint32(head[tcpSeq:])
	binary.BigEndian.PutUint32(head[tcpSeq:], seq+uint32(k)*uint32(p.Offload.GSOSize))
	if !last {
		head[tcpFlags] &^= tcpFIN | tcpPSH
	}
	if k > 0 {
		head[tcpFlags] &^= tcpCWR
	}
}
