package translate

import "encoding/binary"

// Rewrite translates the packet that Parse accepted, in place: to are its
// addresses and ports in the other family, quoted those of the packet that an
// ICMP error quotes, as it stands there (not read without one). Of both only
// addresses and ports count. The ports of a fragment of SCTP must stay, for its
// CRC covers the whole datagram. Afterwards Off, Len and Offload are those of the
// translated packet, which can be written or parsed again.
//
// The verdict is OK, or Fragmented: then NextFragment gives the packets. With
// any other the bytes are as they were. Of several faults the first counts:
// an address that is not of the other family (SourceUnmapped,
// DestinationUnmapped, QuoteUnmapped), HopLimit, TooBig.
//
// Beyond the letter of RFC 7915:
//   - IPv6 UDP without checksum (RFC 6935) leaves without one, as do quoted
//     UDP packets of either family, and IPv4 UDP if o says so.
//   - A packet without DF may leave as IPv4 whatever its size: IPv4 routers cut
//     it. That is every packet of at most 1260 bytes and every packet that had
//     a fragment header (5.1, 5.1.1), so TooBig concerns none of them.
//   - DF of a super-packet is decided by its largest segment.
//   - ICMP errors are cut to 576 bytes (ICMPv4) or 1280 (ICMPv6), are never
//     TooBig and never Fragmented.
//
// Flows come by pointer since copies of them cost more than the lookup that
// made them; neither is changed or kept.
func (p *Packet) Rewrite(o *Options, to, quoted *Flow) Verdict {
	if p.v6 {
		return p.rewriteToIPv4(o, to, quoted)
	}
	return p.rewriteToIPv6(o, to, quoted)
}

func (p *Packet) rewriteToIPv4(o *Options, to, quoted *Flow) Verdict {
	h := &p.outer
	switch {
	case !to.Src.Is4():
		return SourceUnmapped
	case !to.Dst.Is4():
		return DestinationUnmapped
	case p.HasQuote() && !(quoted.Src.Is4() && quoted.Dst.Is4()):
		return QuoteUnmapped
	case h.ttl <= 1:
		return HopLimit
	}
	if p.HasQuote() {
		p.rewriteError(o, to, quoted)
		return OK
	}
	size := ipv4HeaderLen + h.end - h.l4
	flags := h.ipv4Flags(ipv4HeaderLen + p.wirePayload())
	if flags&ipv4DF != 0 && ipv4HeaderLen+p.wirePayload() > o.IPv4MTU || size > maxPacket {
		p.mtu = max(minIPv6MTU, o.IPv4MTU+ipv6HeaderLen-ipv4HeaderLen)
		return TooBig
	}
	b := p.Buf[p.Off : p.Off+p.Len]
	src, dst := ipv4AddrOf(to.Src), ipv4AddrOf(to.Dst)
	if p.echo {
		p.completeICMP(b)
		translateEcho(b[h.l4:], true, ^pseudoIPv6(b[ipv6Src:], h.end-h.l4, protoICMPv6), &p.Flow, to)
	} else if p.Flow.Frag != Later {
		delta := ^sumIPv6(0, b[ipv6Src:])
		delta = add(delta, uint64(src)+uint64(dst))
		translateTransport(b[h.l4:], h.proto, p.checksum, p.Offload.Flags&NeedsCsum != 0, delta, &p.Flow, to)
	}
	start := h.l4 - ipv4HeaderLen
	putIPv4(b[start:], o.trafficClass(h.tos), size, p.outerID(), flags, h.ttl-1, ipv4Protocol(h.proto), src, dst)
	p.Off += start
	p.Len = size
	if p.Offload != (Offload{}) {
		p.translateOffload(ipv4HeaderLen)
	}
	return OK
}

func (p *Packet) rewriteToIPv6(o *Options, to, quoted *Flow) Verdict {
	h := &p.outer
	switch {
	case !to.Src.Is6():
		return SourceUnmapped
	case !to.Dst.Is6():
		return DestinationUnmapped
	case p.HasQuote() && !(quoted.Src.Is6() && quoted.Dst.Is6()):
		return QuoteUnmapped
	case h.ttl <= 1:
		return HopLimit
	}
	if p.HasQuote() {
		p.rewriteError(o, to, quoted)
		return OK
	}
	headers := h.ipv6Len()
	size := headers + p.wirePayload()
	if h.df && size > o.ipv6MTU() {
		p.mtu = o.ipv6MTU() - headers + ipv4HeaderLen
		return TooBig
	}
	cut := !h.df && size > o.lowestIPv6MTU()
	src, dst := ipv6AddrOf(to.Src), ipv6AddrOf(to.Dst)
	b := p.Buf[p.Off : p.Off+p.Len]
	l4 := b[h.l4:]
	if p.echo {
		p.completeICMP(b)
		pseudo := add(sumAddrs(0, src, dst), uint64(len(l4))+protoICMPv6)
		translateEcho(l4, false, pseudo, &p.Flow, to)
	} else if p.Flow.Frag != Later {
		partial := p.Offload.Flags&NeedsCsum != 0
		pseudo := sumAddrs(0, src, dst)
		delta := add(pseudo, ^sumIPv4(0, b[ipv4Src:]))
		translateTransport(l4, h.proto, p.checksum, partial, delta, &p.Flow, to)
		if h.proto == protoUDP && !partial && !o.KeepUDPZero {
			completeUDP(l4, pseudo)
		}
		if cut && partial && !p.super() {
			p.complete(l4)
		}
	}
	next := ipv6NextHeader(h.proto)
	if cut {
		p.startCut(o, next, src, dst)
		return Fragmented
	}
	// Whatever lies in front of the packet is headroom.
	start := p.Off + h.l4 - headers
	out := p.Buf[start:]
	payload := headers - ipv6HeaderLen + len(l4)
	if h.fragmented {
		putIPv6(out, o.trafficClass(h.tos), payload, nextFragment, h.ttl-1, src, dst)
		putFragment(out[ipv6HeaderLen:], next, h.offset, h.more, h.id)
	} else {
		putIPv6(out, o.trafficClass(h.tos), payload, next, h.ttl-1, src, dst)
	}
	p.Off = start
	p.Len = ipv6HeaderLen + payload
	if p.Offload != (Offload{}) {
		p.translateOffload(headers)
	}
	return OK
}

// ReturnHop gives back the hop that Rewrite took from a packet that it made
// IPv4. It is for hairpins, which are translated twice and yet pass one router
// (RFC 7757 4.2.2).
func (p *Packet) ReturnHop() {
	h := p.Buf[p.Off : p.Off+ipv4HeaderLen]
	h[ipv4TTL]++
	binary.BigEndian.PutUint16(h[ipv4Checksum:], 0)
	binary.BigEndian.PutUint16(h[ipv4Checksum:], ^sumHeader(h))
}

// outerID is the identification of the packet as IPv4: the low bits of the
// fragment header's, also of an atomic fragment's (RFC 7915 5.1.1), or else a
// new one (5.1).
func (p *Packet) outerID() uint16 {
	if p.outer.fragmented {
		return p.FragmentIDs.of(p.outer.id)
	}
	return p.nextID(p.segments())
}

// nextID takes n IPv4 identifications and returns the first.
func (p *Packet) nextID(n int) uint16 {
	id := uint16(p.ID)
	p.ID += uint32(n)
	return id
}
