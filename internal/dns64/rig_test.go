package dns64

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// table is one of a few addresses: pref64 is 2001:db8:64::/96, 198.51.100.7 has
// a map, 10/8 is refused, 2001:db8:c::/64 may ask.
type table struct{}

var (
	pref64  = netip.MustParsePrefix("2001:db8:64::/96")
	mapped4 = netip.MustParseAddr("198.51.100.7")
	mapped6 = netip.MustParseAddr("2001:db8:2::7")
	refused = netip.MustParsePrefix("10.0.0.0/8")
	clients = netip.MustParsePrefix("2001:db8:c::/64")
	client  = netip.MustParseAddr("2001:db8:c::5")
	foreign = netip.MustParseAddr("2001:db8:f::5")
)

func (table) Embed(v4 netip.Addr) (netip.Addr, bool) {
	b, a := pref64.Addr().As16(), v4.As4()
	copy(b[12:], a[:])
	return netip.AddrFrom16(b), true
}

func (x table) Reach(v4 netip.Addr) (netip.Addr, bool) {
	if v4 == mapped4 {
		return mapped6, true
	}
	v6, _ := x.Embed(v4)
	return v6, !refused.Contains(v4)
}

func (table) Behind(v6 netip.Addr) (v4 netip.Addr, mapped, ok bool) {
	if v6 == mapped6 {
		return mapped4, true, true
	}
	b := v6.As16()
	return netip.AddrFrom4([4]byte(b[12:])), false, pref64.Contains(v6)
}

func (table) Why(v4 netip.Addr) (rule, detail string) {
	switch {
	case v4 == mapped4:
		return "map", "a map"
	case refused.Contains(v4):
		return "refused", "a private address"
	}
	return "pref64", "behind pref64"
}

func (table) Permits(a netip.Addr) bool { return clients.Contains(a) }

// upstreamRig is a scripted upstream: what it answers is a matter of do.
type upstreamRig struct {
	addr netip.AddrPort

	mu    sync.Mutex
	do    func(w dns.ResponseWriter, q *dns.Msg) // see script
	asked []string                               // "udp name TYPE"
}

// scripted starts an upstream that answers of records, in the notation of zone
// files, when it has some of the name and the type, NODATA where it has others
// of the name, and else NXDOMAIN. Aliases are followed.
func scripted(t *testing.T, records ...string) *upstreamRig {
	t.Helper()
	u := &upstreamRig{}
	zone := rrs(t, records...)
	u.do = func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(fromZone(zone, q)) }
	u.start(t)
	return u
}

func (u *upstreamRig) start(t *testing.T) {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.mu.Lock()
		u.asked = append(u.asked, w.RemoteAddr().Network()+" "+strings.ToLower(q.Question[0].Name)+" "+dns.Type(q.Question[0].Qtype).String())
		do := u.do
		u.mu.Unlock()
		do(w, q)
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	u.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	conn, err := net.ListenPacket("udp", u.addr.String())
	require.NoError(t, err)
	for _, s := range []*dns.Server{{Listener: ln, Handler: handler}, {PacketConn: conn, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error)
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			s.Shutdown()
			<-ended
		})
	}
}

// script has it do something else; answers does what it did before.
func (u *upstreamRig) script(do func(w dns.ResponseWriter, q *dns.Msg, answers func())) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.do
	u.do = func(w dns.ResponseWriter, q *dns.Msg) { do(w, q, func() { before(w, q) }) }
}

// questions are what was asked since the last call.
func (u *upstreamRig) questions() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := u.asked
	u.asked = nil
	return list
}

func rrs(t testing.TB, lines ...string) (list []dns.RR) {
	t.Helper()
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		require.NoError(t, err, l)
		require.NotNil(t, rr, l)
		list = append(list, rr)
	}
	return list
}

// soa is of the zone that all names here are in.
const soa = "example. 900 IN SOA ns.example. hostmaster.example. 1 3600 600 86400 300"

// longSOA is of a zone whose negative answers hold for a day.
const longSOA = "longsoa.example. 86400 IN SOA ns.example. hostmaster.example. 1 3600 600 86400 86400"

func fromZone(zone []dns.RR, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	name, qtype := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	exists := false
	for range 20 {
		next := ""
		for _, rr := range zone {
			h := rr.Header()
			if h.Name != name {
				continue
			}
			exists = true
			if s, ok := rr.(*dns.RRSIG); ok && q.IsEdns0() != nil && q.IsEdns0().Do() && (s.TypeCovered == qtype || s.TypeCovered == dns.TypeCNAME) {
				m.Answer = append(m.Answer, rr)
			}
			if h.Rrtype == qtype {
				m.Answer = append(m.Answer, dns.Copy(rr))
			} else if c, ok := rr.(*dns.CNAME); ok {
				m.Answer = append(m.Answer, dns.Copy(rr))
				next = c.Target
			}
		}
		if next == "" {
			break
		}
		name, exists = next, false
	}
	if !has(m, qtype) {
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		switch {
		case strings.Contains(name, "nosoa"):
		case strings.Contains(name, "longsoa"):
			rr, _ := dns.NewRR(longSOA)
			m.Ns = []dns.RR{rr}
		default:
			rr, _ := dns.NewRR(soa)
			m.Ns = []dns.RR{rr}
		}
	}
	return m
}

// small are limits within the reach of tests.
func small() limits {
	l := defaultLimits
	l.ask, l.query = 600*time.Millisecond, 2*time.Second
	return l
}

// serverOf is a server on no address, with the upstreams.
func serverOf(t testing.TB, l limits, upstreams ...netip.AddrPort) *Server {
	t.Helper()
	s, err := open(table{}, Settings{Synthesise: Missing, Upstreams: upstreams, Exclude: []netip.Prefix{netip.MustParsePrefix("::ffff:0:0/96"), netip.MustParsePrefix("2001:db8:bad::/48")}}, slog.New(slog.DiscardHandler), l)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	s.ways.look = func(netip.Addr) way { return way{links: []int{2}} }
	return s
}

// put has the cache know an answer for two hours: an SOA, unless it is empty,
// and records.
func put(t testing.TB, s *Server, q question, negative string, records ...string) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.qtype)
	m.Answer = rrs(t, records...)
	if negative != "" {
		m.Ns = rrs(t, negative)
	}
	_, f, pilot := s.cache.get(q, s.now())
	require.True(t, pilot)
	var err error
	f.packed, err = m.Pack()
	require.NoError(t, err)
	s.cache.land(q, f, 2*time.Hour, s.now())
}

// packetOf is a query, with EDNS and the bits that words name: do, cd, noedns.
func packetOf(t testing.TB, name string, qtype uint16, words ...string) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.Id = 4711
	edns, do := true, false
	for _, w := range words {
		switch w {
		case "do":
			do = true
		case "cd":
			m.CheckingDisabled = true
		case "noedns":
			edns = false
		default:
			require.Fail(t, "no such word", w)
		}
	}
	if edns {
		m.SetEdns0(4096, do)
	}
	data, err := m.Pack()
	require.NoError(t, err)
	return data
}

// get answers a query from a client, by TCP: nothing is truncated.
func get(t testing.TB, s *Server, name string, qtype uint16, words ...string) *dns.Msg {
	t.Helper()
	return parsed(t, s.handle(parse(packetOf(t, name, qtype, words...)), client, false))
}

func parsed(t testing.TB, data []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	require.NoError(t, m.Unpack(data))
	return m
}

// lines are records in the notation of zone files with single spaces.
func lines(section []dns.RR) []string {
	list := []string{}
	for _, rr := range section {
		if rr.Header().Rrtype != dns.TypeOPT {
			list = append(list, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	return list
}

// conf writes a resolv.conf.
func conf(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

var mustAddr = netip.MustParseAddr
