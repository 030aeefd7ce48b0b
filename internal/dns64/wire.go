package dns64

import (
	"encoding/binary"
	"log/slog"
	"time"

	"github.com/miekg/dns"
)

// What clients are answered is kept as it is sent, and the next who asks the
// same gets a copy with what differs put in: ID and question, TTLs, OPT. This is
// the way of nearly all queries, so it makes no garbage.

// wire is an answer without OPT, to a query with RD.
type wire struct {
	packed  []byte
	ttls    []ttl
	since   time.Time // what these count from
	until   time.Time
	reached []reach // what it holds for only while the table says so
	made    bool    // of these
	all     bool    // names were synthesised whatever else they have
}

// ttl is a TTL in an answer.
type ttl struct {
	at         uint16 // its offset
	left, most uint32 // seconds: left when it began to count, told at most
}

// size is what it takes of the cache, in bytes.
func (w *wire) size() int {
	if w == nil {
		return 0
	}
	return overhead/2 + len(w.packed) + 12*len(w.ttls) + 56*len(w.reached)
}

// wireOf packs an answer.
func wireOf(q question, m *message, now time.Time) *wire {
	w := &wire{since: m.since, until: m.until, reached: m.reached, made: m.made}
	if m.since.IsZero() {
		w.since = now
	}
	m.MsgHdr = dns.MsgHdr{Rcode: m.Rcode, Response: true, RecursionDesired: true, RecursionAvailable: true, CheckingDisabled: q.cd}
	m.Question = []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: dns.ClassINET}}
	m.Compress = true
	w.packed = packed(&m.Msg)
	if w.packed == nil {
		return nil
	}
	answers := count(w.packed, 6)
	records := answers + count(w.packed, 8) + count(w.packed, 10)
	w.ttls = make([]ttl, records)
	at := skipName(w.packed, headerSize) + 4
	for i := range w.ttls {
		at = skipName(w.packed, at)
		t := ttl{at: uint16(at + 4), left: binary.BigEndian.Uint32(w.packed[at+4:]), most: maxTTL}
		if i < answers {
			t.most = m.bound(binary.BigEndian.Uint16(w.packed[at:]))
		}
		w.ttls[i] = t
		at += 10 + count(w.packed, at+8)
	}
	return w
}

func count(b []byte, at int) int { return int(binary.BigEndian.Uint16(b[at:])) }

// skipName is where a name ends in a message that was packed here.
func skipName(b []byte, at int) int {
	for ; b[at] != 0; at += 1 + int(b[at]) {
		if b[at] >= 0xc0 {
			return at + 2
		}
	}
	return at + 1
}

// holds reports whether what it is made of still is as it was.
func (w *wire) holds(s *Server, now time.Time) bool {
	for _, r := range w.reached {
		if v6, ok := s.reach(r.v4, now); v6 != r.v6 || ok != r.ok {
			return false
		}
	}
	return w.all == s.allNames(now)
}

// asking is how a query is to be answered.
type asking struct {
	id       uint16
	question []byte // as it came, packed
	edns, do bool
	limit    int // bytes of the answer
}

// udp sets the limit for an answer by UDP; told is what the OPT record says.
func (a *asking) udp(told uint16) {
	a.limit = minUDP
	if a.edns {
		a.limit = min(max(minUDP, int(told)), maxUDP)
	}
}

// write makes the answer to a query, in b if there is room. One that is too
// long has nothing in it: a part is of use to nobody, and so a forged source is
// sent no more than was asked.
func (w *wire) write(b []byte, a *asking, now time.Time) []byte {
	size := len(w.packed)
	if a.edns {
		size += optSize
	}
	if size > a.limit {
		b = append(b[:0], w.packed[:headerSize+len(a.question)]...)
		b[2] |= flagTC
		clear(b[6:headerSize])
	} else {
		b = append(b[:0], w.packed...)
		age := uint32(now.Sub(w.since) / time.Second)
		for _, t := range w.ttls {
			binary.BigEndian.PutUint32(b[t.at:], min(t.left-min(t.left, age), t.most))
		}
	}
	binary.BigEndian.PutUint16(b, a.id)
	copy(b[headerSize:], a.question)
	if a.edns {
		b = append(b, 0, 0, byte(dns.TypeOPT), maxUDP>>8, maxUDP&0xff, 0, 0, 0, 0, 0, 0)
		if a.do {
			b[len(b)-4] = flagDO
		}
		binary.BigEndian.PutUint16(b[10:], uint16(count(b, 10)+1))
	}
	return b
}

// glance is a query as one can see it without taking it to pieces.
type glance struct {
	asking
	name  []byte // in lower case, with the dot at its end
	qtype uint16
	cd    bool
	room  [256]byte // for the name
}

// read reads a query by UDP of the plain kind: one question with RD about a name
// of letters, digits, - and _, and no more than an OPT record without options.
// False leaves the others to parse.
func (g *glance) read(p []byte) bool {
	const ad, cd = 1 << 5, 1 << 4
	if len(p) < headerSize || p[2] != flagRD || p[3]&^(ad|cd) != 0 || count(p, 4) != 1 || count(p, 6) != 0 || count(p, 8) != 0 {
		return false
	}
	at := headerSize
	g.name = g.room[:0]
	for {
		if at >= len(p) {
			return false
		}
		label := int(p[at])
		at++
		if label == 0 {
			break
		}
		if label > 63 || at+label > len(p) || len(g.name)+label+1 > 254 {
			return false
		}
		for _, c := range p[at : at+label] {
			switch {
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
			g.name = append(g.name, c)
		}
		g.name = append(g.name, '.')
		at += label
	}
	if len(p) < at+4 || count(p, at+2) != dns.ClassINET {
		return false
	}
	g.qtype = binary.BigEndian.Uint16(p[at:])
	at += 4
	g.id, g.cd = binary.BigEndian.Uint16(p), p[3]&cd != 0
	g.question = p[headerSize:at]
	opt := p[at:]
	g.edns, g.do = len(opt) > 0, false
	if count(p, 10) == 0 {
		g.udp(0)
		return !g.edns
	}
	// The name of the root, the type, the size, more of the code, the version,
	// flags of which the first is DO, no options.
	if count(p, 10) != 1 || len(opt) != optSize || opt[0] != 0 || count(opt, 1) != int(dns.TypeOPT) || opt[5] != 0 || opt[6] != 0 || count(opt, 9) != 0 {
		return false
	}
	g.do = opt[7]&flagDO != 0
	g.udp(binary.BigEndian.Uint16(opt[3:]))
	return true
}

// again answers a client's query by UDP, in b, that was answered before; with nil it is
// for handle.
func (s *Server) again(b []byte, g *glance, packet []byte) []byte {
	if !g.read(packet) || s.log.Enabled(s.ctx, slog.LevelDebug) {
		return nil
	}
	now := s.now()
	w := s.cache.wire(g.name, g.qtype, g.do, g.cd, now)
	if w == nil || !w.holds(s, now) {
		return nil
	}
	s.counters.queries.Add(1)
	if w.made {
		s.counters.synthesised.Add(1)
	}
	return w.write(b, &g.asking, now)
}
