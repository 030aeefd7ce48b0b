package dns64

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/natless/natless/internal/inet"
)

// ipv4only.arpa, by which clients find pref64 (RFC 7050), is answered here and
// never asked of anybody (RFC 8880 7.1).
const (
	ipv4only    = "ipv4only.arpa."
	ipv4onlyTTL = 86400 // seconds
)

// local answers what is answered here, and is nil for the rest. That there is
// no DS only the zone above can say, so that question goes on. For all types
// but A and AAAA there is no data, NS and SOA among them.
func (s *Server) local(q question, x *Explanation) *message {
	if !strings.HasSuffix(q.name, ipv4only) || !dns.IsSubDomain(ipv4only, q.name) {
		return nil // as nearly always, and at once
	}
	if q.name == ipv4only && q.qtype == dns.TypeDS {
		return nil
	}
	x.from("local")
	x.step("%s is answered here (RFC 8880)", ipv4only)
	m := code(dns.RcodeSuccess)
	switch {
	case q.name != ipv4only:
		m.Rcode = dns.RcodeNameError
	case q.qtype == dns.TypeA:
		for _, a := range inet.Discovery {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(ipv4only, dns.TypeA, ipv4onlyTTL), A: a.AsSlice()})
		}
	case q.qtype == dns.TypeAAAA:
		for _, v4 := range inet.Discovery {
			if v6, ok := s.table.Embed(v4); ok { // by pref64, whatever is mapped
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: header(ipv4only, dns.TypeAAAA, ipv4onlyTTL), AAAA: v6.AsSlice()})
				x.note(v6, v4, "pref64", "for clients that look for pref64 (RFC 7050)")
			}
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{&dns.SOA{
			Hdr: header(ipv4only, dns.TypeSOA, ipv4onlyTTL), Ns: ipv4only, Mbox: "nobody.invalid.",
			Serial: 1, Refresh: ipv4onlyTTL, Retry: ipv4onlyTTL, Expire: ipv4onlyTTL, Minttl: ipv4onlyTTL,
		}}
	}
	return m
}

// reversed is the IPv6 address that a name below ip6.arpa is about.
func reversed(name string) (netip.Addr, bool) {
	const nibbles = "0123456789abcdef"
	digits, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(digits) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		n := strings.IndexByte(nibbles, digits[62-2*i])
		if n < 0 || i > 0 && digits[63-2*i] != '.' {
			return netip.Addr{}, false
		}
		b[i/2] = b[i/2]<<4 | byte(n)
	}
	return netip.AddrFrom16(b), true
}
