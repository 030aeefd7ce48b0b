package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/oracle"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// model is what clients that share an address have to get, slow and obvious:
// lists of leases, of sessions (RFC 6146 3) and of fragmented datagrams, on a
// clock that does not wrap. What chance decides, which range and which port,
// it learns, and checks that nobody else has it. The bytes of packets are the
// oracle's.
type model struct {
	rig  *sharingRig // of which it learns
	fail failer
	own  string
	now  int

	ports    mapping.Ports
	lent     map[netip.Addr]uint16 // the first port of a client's range
	returned map[uint16]modelReturn

	sessions []*modelSession
	from4    modelFragments
	from6    modelFragments
	lost     int
}

type modelReturn struct {
	client netip.Addr
	at     int
}

type modelSession struct {
	client             netip.Addr
	first              uint16 // of the client's range
	proto              uint8
	internal, external uint16
	flows              []*modelFlow
}

type modelFlow struct {
	remote netip.AddrPort
	state  string
	until  int // the last second
}

// modelFragments are the oldest first.
type modelFragments []*modelDatagram

type modelDatagram struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
	known    bool
	srcPort  uint16
	dstPort  uint16
	born     int
	waiting  [][]byte
}

// fate is what has to become of a packet.
type fate struct {
	verdict translate.Verdict
	held    bool
	out     [][]byte
}

var modelSettings = oracle.Settings{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280}

func (m *model) pass(seconds int) {
	m.now += seconds
	m.sessions = slices.DeleteFunc(m.sessions, func(s *modelSession) bool {
		s.flows = slices.DeleteFunc(s.flows, func(f *modelFlow) bool { return f.until < m.now })
		return len(s.flows) == 0
	})
	for _, f := range []*modelFragments{&m.from4, &m.from6} {
		for len(*f) > 0 && m.now-(*f)[0].born > 2 {
			m.forget(f, 0)
		}
	}
}

func (m *model) restart() {
	m.sessions, m.from4, m.from6, m.lost = nil, nil, nil, 0
}

// Leases.

// owner is who has a port, and the range it is in.
func (m *model) owner(port uint16) (client netip.Addr, first uint16) {
	for c, first := range m.lent {
		if int(port) >= int(first) && int(port) < int(first)+m.ports.PerClient {
			return c, first
		}
	}
	return netip.Addr{}, 0
}

func (m *model) stateless(first uint16, proto uint8, port uint16) bool {
	return (proto == protoTCP || proto == protoUDP) && port >= first && int(port) < int(first)+m.ports.PerClient-m.ports.Session
}

// lease is the range of a client that sends, and reports whether there is one.
func (m *model) lease(client netip.Addr) (first uint16, ok bool) {
	if first, ok = m.lent[client]; ok {
		return first, true
	}
	var free []uint16
	for k := range m.ports.Clients() {
		first := uint16(m.ports.First + k*m.ports.PerClient)
		r, was := m.returned[first]
		if was && r.client == client { // its own again
			free = []uint16{first}
			break
		}
		if c, _ := m.owner(first); !c.IsValid() && (!was || m.now-r.at >= int(mapping.RestRange.Seconds())) {
			free = append(free, first)
		}
	}
	if len(free) == 0 {
		return 0, false
	}
	for _, l := range m.rig.table.Leases() {
		if l.IPv6 == client {
			fmt.Sscanf(l.Ports, "%d-", &first)
		}
	}
	require.Contains(m.fail, free, first, "the range of %v", client)
	m.lent[client] = first
	delete(m.returned, first)
	return first, true
}

func (m *model) release(client netip.Addr) {
	m.returned[m.lent[client]] = modelReturn{client, m.now}
	delete(m.lent, client)
}

// Sessions.

func (m *model) session(is func(*modelSession) bool) *modelSession {
	if i := slices.IndexFunc(m.sessions, is); i >= 0 {
		return m.sessions[i]
	}
	return nil
}

func (m *model) end(client netip.Addr) {
	m.sessions = slices.DeleteFunc(m.sessions, func(s *modelSession) bool { return s.client == client })
}

// count is the flows of a client, or of all, in a state, or in any.
func (m *model) count(client netip.Addr, state string) (n int) {
	for _, s := range m.sessions {
		for _, f := range s.flows {
			if (!client.IsValid() || s.client == client) && (state == "" || f.state == state) {
				n++
			}
		}
	}
	return n
}

// full is why there may be no other flow.
func (m *model) full(client netip.Addr) translate.Verdict {
	switch {
	case m.count(client, "") >= m.rig.size.ClientSessions:
		return translate.ClientSessionsFull
	case m.count(netip.Addr{}, "") >= m.rig.size.Sessions:
		return translate.SessionsFull
	}
	return translate.OK
}

const (
	modelTrans = 240  // TCP_TRANS
	modelEst   = 7440 // TCP_EST
)

// lives are the lifetimes of what is not TCP.
var lives = map[uint8]int{protoUDP: 300, protoUDPLite: 300, protoICMP: 60, protoDCCP: 7440, protoSCTP: 7440}

func (s *modelSession) flow(remote netip.AddrPort) *modelFlow {
	for _, f := range s.flows {
		if f.remote == remote {
			return f
		}
	}
	return nil
}

// step is RFC 6146 3.5.2.2 with the departures that package conntrack states.
func (m *model) step(f *modelFlow, client bool, flags uint8) {
	rst := flags&flagRST != 0
	syn := flags&flagSYN != 0 && !rst
	fin := flags&flagFIN != 0 && !rst && !syn
	side := map[bool]string{true: "v6", false: "v4"}[client]
	otherSide := map[bool]string{true: "v4", false: "v6"}[client]
	become := func(state string, lives int) { f.state, f.until = state, m.now+lives }
	switch f.state {
	case "v6 init", "v4 init":
		if syn && f.state != side+" init" {
			become("established", modelEst)
		} else if syn && client {
			become("v6 init", modelTrans)
		}
	case "established", "v6 fin", "v4 fin":
		switch {
		case rst:
			become("trans", modelTrans)
		case fin && f.state == otherSide+" fin":
			become("both fin", modelTrans)
		case fin:
			become(side+" fin", modelEst)
		default:
			become(f.state, modelEst)
		}
	case "both fin":
		if syn && client {
			become("v6 init", modelTrans)
		} else if syn {
			become("trans", modelTrans)
		}
	case "trans":
		if !rst {
			become("established", modelEst)
		}
	}
}

// out is the external port of a client's packet.
func (m *model) out(client netip.Addr, first uint16, f oracle.Flow, remote netip.AddrPort, flags uint8) (uint16, translate.Verdict) {
	lives, known := lives[f.Proto]
	if f.Proto == protoTCP {
		lives, known = modelTrans, true
	}
	if !known {
		return 0, translate.NoPorts
	}
	begins, state := true, "open"
	if f.Proto == protoTCP {
		state = "v6 init"
		if flags&flagACK != 0 {
			state = "trans"
		}
		begins = flags&flagSYN != 0 && flags&flagRST == 0
	}
	if f.Proto == protoICMP {
		remote = netip.AddrPortFrom(remote.Addr(), 0)
	}
	s := m.session(func(s *modelSession) bool {
		return s.client == client && s.first == first && s.proto == f.Proto && s.internal == f.SrcPort
	})
	switch {
	case s == nil && !begins:
		return 0, translate.NotSYN
	case s == nil:
		return m.open(client, first, f, &modelFlow{remote, state, m.now + lives})
	case f.Proto != protoTCP:
		s.flows[0].remote, s.flows[0].until = remote, m.now+lives
		return s.external, translate.OK
	}
	if flow := s.flow(remote); flow != nil {
		m.step(flow, true, flags)
	} else if begins {
		if v := m.full(client); v != translate.OK {
			return 0, v
		}
		s.flows = append(s.flows, &modelFlow{remote, state, m.now + lives})
	}
	return s.external, translate.OK
}

// open begins a session with a port that nobody has.
func (m *model) open(client netip.Addr, first uint16, f oracle.Flow, flow *modelFlow) (uint16, translate.Verdict) {
	if old := m.session(func(s *modelSession) bool { return s.client == client }); old != nil && old.first != first {
		m.end(client)
	}
	taken := 0
	for _, s := range m.sessions {
		if s.client == client && s.proto == f.Proto {
			taken++
		}
	}
	v := m.full(client)
	if v != translate.ClientSessionsFull && taken == m.ports.Session {
		v = translate.SessionPortsFull
	}
	if v != translate.OK {
		return 0, v
	}
	s := &modelSession{client, first, f.Proto, f.SrcPort, 0, []*modelFlow{flow}}
	for row := range m.rig.sessions.Sessions(client, m.rig.tick) {
		if row.Protocol == f.Proto && row.ClientPort == f.SrcPort {
			s.external = row.Port
		}
	}
	last := int(first) + m.ports.PerClient - 1
	require.LessOrEqual(m.fail, int(s.external), last)
	require.Greater(m.fail, int(s.external), last-m.ports.Session)
	require.Nil(m.fail, m.reached(client, f.Proto, s.external), "port %d is another's", s.external)
	m.sessions = append(m.sessions, s)
	return s.external, translate.OK
}

// reached is the session that has an external port.
func (m *model) reached(client netip.Addr, proto uint8, external uint16) *modelSession {
	return m.session(func(s *modelSession) bool {
		return s.client == client && s.proto == proto && s.external == external
	})
}

// in is the client's port that a packet reaches.
func (m *model) in(client netip.Addr, proto uint8, external uint16, remote netip.AddrPort, flags uint8) (uint16, translate.Verdict) {
	s := m.reached(client, proto, external)
	if s == nil {
		return 0, translate.NoSession
	}
	if proto != protoTCP {
		if s.flows[0].remote.Addr() == remote.Addr() {
			s.flows[0].until = m.now + lives[proto]
		}
		return s.internal, translate.OK
	}
	if f := s.flow(remote); f != nil {
		m.step(f, false, flags)
	} else if flags&(flagSYN|flagACK|flagRST) == flagSYN && m.full(client) == translate.OK && m.count(client, "v4 init") < m.rig.size.ClientSessions/4 {
		s.flows = append(s.flows, &modelFlow{remote, "v4 init", m.now + 6})
	}
	return s.internal, translate.OK
}

// Fragments.

func (m *model) fragments(a netip.Addr) *modelFragments {
	if a.Is4() {
		return &m.from4
	}
	return &m.from6
}

func (m *model) forget(f *modelFragments, i int) {
	m.lost += len((*f)[i].waiting)
	*f = slices.Delete(*f, i, i+1)
}

func (f modelFragments) find(s packetSeen) *modelDatagram {
	for _, d := range f {
		if d.src == s.src.Addr() && d.dst == s.dst.Addr() && d.id == s.id && d.proto == s.proto {
			return d
		}
	}
	return nil
}

// add makes room for another datagram; nil if there is none.
func (m *model) add(f *modelFragments, s packetSeen) *modelDatagram {
	of := func(d *modelDatagram) bool { return d.src == s.src.Addr() }
	n := 0
	for _, d := range *f {
		if of(d) {
			n++
		}
	}
	if n >= m.rig.parts.SourceDatagrams {
		m.forget(f, slices.IndexFunc(*f, of))
	}
	if len(*f) >= m.rig.parts.Datagrams {
		return nil
	}
	d := &modelDatagram{src: s.src.Addr(), dst: s.dst.Addr(), id: s.id, proto: s.proto, born: m.now}
	*f = append(*f, d)
	return d
}

// bytes are what waits of a source, or of all, in multiples of 512.
func (f modelFragments) bytes(src netip.Addr) (n int) {
	for _, d := range f {
		if !src.IsValid() || d.src == src {
			for _, p := range d.waiting {
				n += (len(p) + 511) / 512 * 512
			}
		}
	}
	return n
}

// follow gives a later fragment the ports of its first, or has it wait.
func (m *model) follow(flow *oracle.Flow, packet []byte) (f fate, ok bool) {
	all, s := m.fragments(flow.Src), look(packet)
	d := all.find(s)
	if d != nil && d.known {
		flow.SrcPort, flow.DstPort = d.srcPort, d.dstPort
		return fate{}, true
	}
	n := (len(packet) + 511) / 512 * 512
	if all.bytes(netip.Addr{})+n > m.rig.parts.Bytes || all.bytes(flow.Src)+n > m.rig.parts.SourceBytes {
		return fate{verdict: translate.FragmentPending}, false
	}
	if d == nil {
		if d = m.add(all, s); d == nil {
			return fate{verdict: translate.FragmentPending}, false
		}
	}
	d.waiting = append(d.waiting, packet)
	return fate{verdict: translate.FragmentPending, held: true}, false
}

// lead tells the ports of a first fragment, and returns what waited for it.
func (m *model) lead(flow oracle.Flow, packet []byte) (waiting [][]byte) {
	all, s := m.fragments(flow.Src), look(packet)
	d := all.find(s)
	if d == nil {
		if d = m.add(all, s); d == nil {
			return nil
		}
	}
	d.known, d.srcPort, d.dstPort, d.born = true, flow.SrcPort, flow.DstPort, m.now
	i := slices.Index(*all, d)
	*all = append(slices.Delete(*all, i, i+1), d)
	waiting, d.waiting = d.waiting, nil
	return waiting
}

// Packets.

func (m *model) isShared(a netip.Addr) bool { return a == addr(shared4) || a == addr(shared6) }

func (m *model) isOwn(a netip.Addr) bool {
	return a == addr(own6) || m.own != shared4 && (a == addr(m.own) || a == addr("64:ff9b::"+m.own))
}

// take is what has to become of a packet and of those that waited for it.
func (m *model) take(packet []byte) (all []fate) {
	r := oracle.Read(packet, modelSettings)
	if r.Verdict != oracle.Translated {
		m.fail.Errorf("the oracle says %s of %x", r.Verdict, packet)
		m.fail.FailNow()
	}
	f := r.Flow
	if f.Proto == protoICMPv6 {
		f.Proto = protoICMP
	}
	if f.Frag == oracle.Later && translate.HasPorts(f.Proto) && m.isShared(f.Dst) {
		if x, ok := m.follow(&f, packet); !ok {
			return []fate{x}
		}
	}
	switch {
	case r.Quoted != nil:
		return []fate{m.quoting(f, *r.Quoted, packet)}
	case f.Src.Is4():
		all = []fate{m.take4(f, packet)}
	default:
		all = []fate{m.take6(f, packet)}
	}
	if f.Frag == oracle.First && translate.HasPorts(f.Proto) && m.isShared(f.Dst) {
		for _, p := range m.lead(f, packet) {
			all = append(all, m.take(p)...)
		}
	}
	return all
}

func (m *model) drop(v translate.Verdict, packet []byte) fate {
	from := addr(m.own)
	if packet[0]>>4 == 6 {
		from = addr(own6)
	}
	x := fate{verdict: v}
	if e := oracle.Originate(packet, v.String(), modelSettings, from); e != nil {
		x.out = [][]byte{e}
	}
	return x
}

func (m *model) toOwn(packet []byte) fate {
	if t := look(packet).l4[0]; look(packet).proto == protoICMP && (t == 8 || t == 128) {
		return fate{verdict: translate.Answered, out: [][]byte{oracle.Answer(packet, modelSettings)}}
	}
	x := fate{verdict: translate.OwnAddress}
	if e := oracle.Originate(packet, x.verdict.String(), modelSettings, oracle.Read(packet, modelSettings).Flow.Dst); e != nil {
		x.out = [][]byte{e}
	}
	return x
}

func tcpFlagsOf(f oracle.Flow, packet []byte) uint8 {
	if f.Proto == protoTCP && f.Frag != oracle.Later {
		return look(packet).l4[13]
	}
	return 0
}

// arrive gives an IPv4 flow to a shared address the client it is for.
func (m *model) arrive(f *oracle.Flow, packet []byte) translate.Verdict {
	client, first := m.owner(f.DstPort)
	if m.stateless(first, f.Proto, f.DstPort) {
		f.Dst = client
		return translate.OK
	}
	port, v := uint16(0), translate.OK
	switch f.Frag {
	case oracle.Later:
		if s := m.reached(client, f.Proto, f.DstPort); s == nil {
			v = translate.NoSession
		}
	case oracle.First:
		if f.Proto == protoSCTP {
			return translate.SCTPFragment
		}
		fallthrough
	default:
		port, v = m.in(client, f.Proto, f.DstPort, netip.AddrPortFrom(f.Src, f.SrcPort), tcpFlagsOf(*f, packet))
	}
	f.Dst, f.DstPort = client, port
	if f.Proto == protoICMP {
		f.SrcPort = port
	}
	return v
}

// take4 is a packet from IPv4.
func (m *model) take4(f oracle.Flow, packet []byte) fate {
	to := f
	to.Src = addr("64:ff9b::" + f.Src.String())
	switch {
	case m.isOwn(f.Dst):
		return m.toOwn(packet)
	case f.Dst == addr(one4):
		to.Dst = addr(one6)
	case !m.isShared(f.Dst):
		return m.drop(translate.DestinationUnmapped, packet)
	default:
		client, _ := m.owner(f.DstPort)
		reply := f.Proto == protoICMP && look(packet).l4[0] == 0
		switch {
		case f.Proto == protoICMP && !(reply && client.IsValid()):
			return m.toOwn(packet)
		case f.Proto != protoICMP && !translate.HasPorts(f.Proto):
			return m.drop(translate.NoPorts, packet)
		case !client.IsValid():
			return m.drop(translate.DestinationUnmapped, packet)
		}
		arrived := f
		if v := m.arrive(&arrived, packet); v != translate.OK {
			return m.drop(v, packet)
		}
		to.Dst, to.SrcPort, to.DstPort = arrived.Dst, arrived.SrcPort, arrived.DstPort
	}
	return m.translated(packet, to, oracle.Flow{})
}

// take6 is a packet from IPv6.
func (m *model) take6(f oracle.Flow, packet []byte) fate {
	if m.isOwn(f.Dst) {
		return m.toOwn(packet)
	}
	to := f
	dst := f.Dst.As16()
	to.Dst = netip.AddrFrom4([4]byte(dst[12:]))
	hairpin := m.isShared(f.Dst) || f.Dst == addr(oneSeen)
	if m.isShared(f.Dst) {
		owner, _ := m.owner(f.DstPort)
		switch {
		case f.Proto == protoICMP:
			return m.toOwn(packet)
		case !translate.HasPorts(f.Proto):
			return m.drop(translate.NoPorts, packet)
		case !owner.IsValid():
			return m.drop(translate.DestinationUnmapped, packet)
		}
	}
	came := packet // as errors quote it
	switch permitted := netip.MustParsePrefix("2001:db8:1::/64"); {
	case f.Src == addr(one6):
		to.Src = addr(one4)
	case !permitted.Contains(f.Src):
		return m.drop(translate.ClientNotPermitted, packet)
	default:
		first, ok := m.lease(f.Src)
		if !ok {
			return m.drop(translate.PoolFull, packet)
		}
		to.Src = addr(shared4)
		if f.Frag != oracle.Whole { // RFC 7597 8.3.3
			packet = slices.Clone(packet)
			id := binary.BigEndian.Uint32(packet[44:])
			binary.BigEndian.PutUint32(packet[44:], uint32(first)+id%uint32(m.ports.PerClient))
		}
		if v := m.depart(f, &to, first, packet); v != translate.OK {
			return m.drop(v, came)
		}
	}
	if !hairpin {
		return m.translated(packet, to, oracle.Flow{})
	}
	back := to
	back.Src, back.Dst = addr("64:ff9b::"+to.Src.String()), addr(one6)
	if m.isShared(to.Dst) {
		arrived := to
		if v := m.arrive(&arrived, packet); v != translate.OK {
			return fate{verdict: v}
		}
		back.Dst, back.SrcPort, back.DstPort = arrived.Dst, arrived.SrcPort, arrived.DstPort
	}
	return m.hairpinned(packet, to, oracle.Flow{}, back, oracle.Flow{})
}

// depart gives a client's flow the external port.
func (m *model) depart(f oracle.Flow, to *oracle.Flow, first uint16, packet []byte) (v translate.Verdict) {
	switch {
	case f.Frag == oracle.Later && !translate.HasPorts(f.Proto):
		return translate.NoPorts
	case f.Frag == oracle.Later, m.stateless(first, f.Proto, f.SrcPort):
		return translate.OK
	case f.Proto == protoICMP && look(packet).l4[0] == 129:
		return translate.NoSession
	case f.Proto == protoSCTP && f.Frag == oracle.First:
		return translate.SCTPFragment
	}
	to.SrcPort, v = m.out(f.Src, first, f, netip.AddrPortFrom(to.Dst, f.DstPort), tcpFlagsOf(f, packet))
	if f.Proto == protoICMP {
		to.DstPort = to.SrcPort
	}
	return v
}

// quoting is an ICMP error, which is led by what it quotes.
func (m *model) quoting(f, quoted oracle.Flow, packet []byte) fate {
	if m.isOwn(f.Dst) {
		return fate{verdict: translate.OwnAddress}
	}
	if quoted.Proto == protoICMPv6 {
		quoted.Proto = protoICMP
	}
	to, toQuoted := f, quoted
	if f.Src.Is4() {
		to.Src = addr("64:ff9b::" + f.Src.String())
		var ok bool
		if to.Dst, ok = m.reach(f.Dst, quoted.SrcPort); !ok {
			return fate{verdict: translate.DestinationUnmapped}
		}
		if toQuoted, ok = m.sentBy4(quoted); !ok {
			return fate{verdict: translate.QuoteUnmapped}
		}
		return m.translated(packet, to, toQuoted)
	}
	dst := f.Dst.As16()
	to.Dst = netip.AddrFrom4([4]byte(dst[12:]))
	back, known := m.reach(to.Dst, quoted.SrcPort)
	hairpin := m.isShared(f.Dst) || f.Dst == addr(oneSeen)
	if hairpin && !known {
		return fate{verdict: translate.DestinationUnmapped}
	}
	to.Src = addr(m.own) // a router's stand-in (RFC 6791)
	if f.Src == addr(one6) {
		to.Src = addr(one4)
	} else if _, leases := m.lent[f.Src]; leases {
		to.Src = addr(shared4)
	}
	// The quoted packet went to the client.
	src := quoted.Src.As16()
	toQuoted.Src = netip.AddrFrom4([4]byte(src[12:]))
	first, leases := m.lent[quoted.Dst]
	switch {
	case quoted.Dst == addr(one6):
		toQuoted.Dst = addr(one4)
	case !leases:
		return fate{verdict: translate.QuoteUnmapped}
	default:
		toQuoted.Dst = addr(shared4)
		if !m.stateless(first, quoted.Proto, quoted.DstPort) {
			s := m.session(func(s *modelSession) bool {
				return s.client == quoted.Dst && s.first == first && s.proto == quoted.Proto && s.internal == quoted.DstPort
			})
			if s == nil {
				return fate{verdict: translate.QuoteUnmapped}
			}
			toQuoted.DstPort = s.external
			if quoted.Proto == protoICMP {
				toQuoted.SrcPort = s.external
			}
		}
	}
	if m.isShared(quoted.Src) { // as the destination of an answer
		if owner, _ := m.owner(quoted.SrcPort); !owner.IsValid() || !translate.HasPorts(quoted.Proto) {
			return fate{verdict: translate.QuoteUnmapped}
		}
	} else if m.isOwn(quoted.Src) {
		return fate{verdict: translate.QuoteUnmapped}
	}
	if !hairpin {
		return m.translated(packet, to, toQuoted)
	}
	sent, ok := m.sentBy4(toQuoted)
	if !ok {
		return fate{verdict: translate.QuoteUnmapped}
	}
	sent.Dst = addr("64:ff9b::" + toQuoted.Dst.String())
	backTo := to
	backTo.Src, backTo.Dst = addr("64:ff9b::"+to.Src.String()), back
	return m.hairpinned(packet, to, toQuoted, backTo, sent)
}

// reach is the client that an IPv4 address is, or a port of the shared one.
func (m *model) reach(a netip.Addr, port uint16) (netip.Addr, bool) {
	if m.isShared(a) {
		client, _ := m.owner(port)
		return client, client.IsValid()
	}
	return addr(one6), a == addr(one4)
}

// sentBy4 is a packet with IPv4 addresses as the client that sent it knows it.
func (m *model) sentBy4(f oracle.Flow) (oracle.Flow, bool) {
	to := f
	to.Dst = addr("64:ff9b::" + f.Dst.String())
	client, ok := m.reach(f.Src, f.SrcPort)
	if !ok {
		return to, false
	}
	to.Src = client
	if !m.isShared(f.Src) {
		return to, true
	}
	if _, first := m.owner(f.SrcPort); m.stateless(first, f.Proto, f.SrcPort) {
		return to, true
	}
	s := m.reached(client, f.Proto, f.SrcPort)
	if s == nil {
		return to, false
	}
	to.SrcPort = s.internal
	if f.Proto == protoICMP {
		to.DstPort = s.internal
	}
	return to, true
}

func byTheOracle(packet []byte, to, quoted oracle.Flow) oracle.Result {
	return oracle.Translate(packet, modelSettings, func(_ oracle.Flow, inQuote bool) oracle.Flow {
		if inQuote {
			return quoted
		}
		return to
	})
}

func (m *model) translated(packet []byte, to, quoted oracle.Flow) fate {
	r := byTheOracle(packet, to, quoted)
	require.Equal(m.fail, oracle.Translated, r.Verdict)
	return fate{verdict: translate.OK, out: r.Packets}
}

// hairpinned is a packet that is translated to IPv4 and back, by one router.
func (m *model) hairpinned(packet []byte, to, quoted, back, backQuoted oracle.Flow) fate {
	packet = slices.Clone(packet)
	packet[7]++
	r := byTheOracle(packet, to, quoted)
	require.Equal(m.fail, oracle.Translated, r.Verdict)
	x := m.translated(r.Packets[0], back, backQuoted)
	x.verdict = translate.Hairpin
	return x
}
