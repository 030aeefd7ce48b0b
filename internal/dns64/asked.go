package dns64

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// asked is a query to an upstream. Each letter of its name is in upper or lower
// case by chance, and servers give a name back as they got it: who makes up an
// answer has to guess that besides port and ID (RFC 5452 9.2 counts these alone).
type asked struct {
	query *dns.Msg
	sent  []byte
	name  []byte // packed, in lower case
	mixed bool   // it was sent in another case
}

func newAsked(m *dns.Msg, mixed bool) (*asked, error) {
	sent, err := m.Pack()
	if err != nil {
		return nil, err
	}
	a := &asked{query: m, sent: sent, mixed: mixed}
	at := sent[headerSize:skipName(sent, headerSize)]
	a.name = bytes.Clone(at)
	if mixed {
		mix(at)
	}
	return a, nil
}

// mix changes the case of letters by chance. What says how long a label is, 63
// at most, is none.
func mix(name []byte) {
	chance := make([]byte, len(name))
	rand.Read(chance)
	for i, c := range name {
		if 'a' <= c && c <= 'z' && chance[i]&1 != 0 {
			name[i] = c - 'a' + 'A'
		}
	}
}

// judgement is what a message is to a query.
type judgement int

const (
	guess     judgement = iota // somebody's guess: the answer is still to come
	truncated                  // the answer, without its end
	folded                     // the answer, or a good guess: its name is in another case
	whole
)

// judge reads a message that came for the query. The name in it is put into
// lower case, and so is what refers to it.
func (a *asked) judge(b []byte) (*dns.Msg, judgement) {
	if len(b) < headerSize || b[0] != a.sent[0] || b[1] != a.sent[1] || b[2]&flagQR == 0 {
		return nil, guess
	}
	is := whole
	if count(b, 4) == 1 && len(b) >= headerSize+len(a.name) {
		name := b[headerSize : headerSize+len(a.name)]
		switch {
		case !a.mixed && bytes.EqualFold(name, a.name), bytes.Equal(name, a.sent[headerSize:headerSize+len(a.name)]):
		case bytes.EqualFold(name, a.name):
			is = folded
		default:
			return nil, guess
		}
		copy(name, a.name)
	}
	if b[2]&flagTC != 0 && is == whole { // its end may be missing
		return nil, truncated
	}
	m := new(dns.Msg)
	if b[2]&flagTC == 0 && (m.Unpack(b) != nil || !answers(a.query, m)) {
		return nil, guess
	}
	a.restore(m)
	return m, is
}

// restore puts names into lower case that are the one asked for, or made of it
// by a DNAME, and were not only referred to.
func (a *asked) restore(m *dns.Msg) {
	name := a.query.Question[0].Name
	made := has(m, dns.TypeDNAME)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); made || strings.EqualFold(h.Name, name) {
				h.Name = strings.ToLower(h.Name)
			}
			if r, ok := rr.(*dns.CNAME); ok && made {
				r.Target = strings.ToLower(r.Target)
			}
		}
	}
}

func (a *asked) sendUDP(ctx context.Context, to netip.AddrPort) (*dns.Msg, judgement, error) {
	conn, err := dial(ctx, "udp", to)
	if err != nil {
		return nil, guess, err
	}
	defer conn.Close()
	if _, err := conn.Write(a.sent); err != nil {
		return nil, guess, err
	}
	buffer := make([]byte, 4*maxUDP)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, guess, err
		}
		if m, is := a.judge(buffer[:n]); is != guess {
			return m, is, nil
		}
	}
}

func (a *asked) sendTCP(ctx context.Context, to netip.AddrPort) (*dns.Msg, judgement, error) {
	c, err := dial(ctx, "tcp", to)
	if err != nil {
		return nil, guess, err
	}
	defer c.Close()
	conn := &dns.Conn{Conn: c}
	if _, err := conn.Write(a.sent); err != nil {
		return nil, guess, err
	}
	b, err := conn.ReadMsgHeader(nil)
	if err != nil {
		return nil, guess, err
	}
	m, is := a.judge(b)
	switch is {
	case guess:
		return nil, is, errors.New("it answers another question")
	case truncated:
		return nil, is, errors.New("its answer is truncated also by TCP")
	}
	return m, is, nil
}

// answers reports whether a message answers a query.
func answers(query, m *dns.Msg) bool {
	if !m.Response || m.Id != query.Id || m.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(m.Question) == 0 { // as some do where they refuse
		return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	asked, is := query.Question[0], m.Question[0]
	return len(m.Question) == 1 && is.Qtype == asked.Qtype && is.Qclass == asked.Qclass && strings.EqualFold(is.Name, asked.Name)
}
