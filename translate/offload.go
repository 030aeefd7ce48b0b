package translate

// parseOffload holds what the device said of the packet against the packet.
// Offsets and header lengths are not looked at: Rewrite derives them.
func (p *Packet) parseOffload() Verdict {
	partial := p.Offload.Flags&NeedsCsum != 0
	proto := p.outer.proto
	if partial && p.checksum == 0 && proto != protoICMPv4 && proto != protoICMPv6 || p.Flow.Frag != Whole {
		return BadHeader
	}
	if p.Offload.GSOType == GSONone {
		return OK
	}
	ok := false
	switch p.Offload.GSOType &^ GSOECN {
	case GSOTCPv4:
		ok = !p.v6 && proto == protoTCP
	case GSOTCPv6:
		ok = p.v6 && proto == protoTCP
	case GSOUDPL4:
		ok = proto == protoUDP
	}
	if !ok || !partial || p.Offload.GSOSize == 0 || p.outer.fragmented {
		return BadHeader
	}
	return OK
}

// super reports whether the packet is a super-packet.
func (p *Packet) super() bool { return p.Offload.GSOType != GSONone }

// segments is how many packets the packet is on the wire.
func (p *Packet) segments() int {
	if !p.super() {
		return 1
	}
	n := p.outer.end - p.outer.l4 - int(p.l4Header)
	return max(1, (n+int(p.Offload.GSOSize)-1)/int(p.Offload.GSOSize))
}

// wirePayload is how many bytes behind the IP headers the largest packet has
// that the packet is on the wire.
func (p *Packet) wirePayload() int {
	n := p.outer.end - p.outer.l4
	if !p.super() {
		return n
	}
	return min(n, int(p.l4Header)+int(p.Offload.GSOSize))
}

// translateOffload says of the translated packet, whose transport header is at
// l4, what the packet's offload was.
func (p *Packet) translateOffload(l4 int) {
	f := &p.Offload
	if f.Flags&NeedsCsum == 0 {
		*f = Offload{}
		return
	}
	was := *f
	*f = Offload{Flags: NeedsCsum, CsumStart: uint16(l4), CsumOffset: uint16(p.checksum)}
	if was.GSOType == GSONone {
		return
	}
	f.HdrLen = uint16(l4) + uint16(p.l4Header)
	f.GSOSize = was.GSOSize
	f.GSOType = was.GSOType
	if p.outer.proto == protoTCP {
		f.GSOType = was.GSOType&GSOECN | GSOTCPv4
		if !p.v6 {
			f.GSOType = was.GSOType&GSOECN | GSOTCPv6
		}
	}
}
