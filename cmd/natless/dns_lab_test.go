package main_test

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	api "github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// exampleZone is signed. The names tell what is special about them. TTLs are
// told apart: 300 is the negative one, by the SOA.
const exampleZone = `$ORIGIN example.com.
$TTL 3600
@    900 IN SOA ns hostmaster 1 3600 600 86400 300
@        IN NS ns
ns       IN A 192.0.2.53
both     IN A 192.0.2.1
both     IN AAAA 2001:db8:a::1
six      IN AAAA 2001:db8:a::6
four     IN A 192.0.2.4
four     IN A 192.0.2.5
short 60 IN A 192.0.2.7
web      IN A 198.51.100.2
mixed    IN A 192.0.2.9
mixed    IN AAAA ::ffff:192.0.2.9
some     IN A 192.0.2.10
some     IN AAAA ::ffff:192.0.2.10
some     IN AAAA 2001:db8:a::10
never    IN AAAA ::ffff:192.0.2.11
private  IN A 10.1.2.3
loopback IN A 127.0.0.1
alias    IN CNAME four
alias2   IN CNAME alias
alias6   IN CNAME six
outside  IN CNAME four.example.net.
dangling IN CNAME missing
textual  IN CNAME text
loop     IN CNAME pool
pool     IN CNAME loop
tree     IN DNAME example.net.
*.wild   IN A 192.0.2.20
*.wild6  IN AAAA 2001:db8:a::20
*.wildc  IN CNAME four
text     IN TXT "hello"
big      IN TXT "BIG0"
big      IN TXT "BIG1"
big      IN TXT "BIG2"
big      IN TXT "BIG3"
big      IN TXT "BIG4"
big      IN TXT "BIG5"
big      IN TXT "BIG6"
mail     IN MX 10 four
below.empty IN A 192.0.2.30
`

const netZone = `$ORIGIN example.net.
$TTL 3600
@  900 IN SOA ns hostmaster 1 3600 600 86400 300
@      IN NS ns
ns     IN A 192.0.2.53
four   IN A 192.0.2.40
six    IN AAAA 2001:db8:a::40
into   IN CNAME four.example.com.
`

const reverse4 = `$ORIGIN 2.0.192.in-addr.arpa.
$TTL 3600
@ IN SOA ns.example.net. hostmaster.example.net. 1 3600 600 86400 300
@ IN NS ns.example.net.
4 IN PTR four.example.com.
5 IN CNAME five.example.net.
`

const reverse6 = `$ORIGIN a.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.
$TTL 3600
@ IN SOA ns.example.net. hostmaster.example.net. 1 3600 600 86400 300
@ IN NS ns.example.net.
6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0 IN PTR six.example.com.
`

// ofPref64 is the zone of lab.Pref64, where nobody is.
const ofPref64 = `$ORIGIN 4.6.0.0.8.b.d.0.1.0.0.2.ip6.arpa.
$TTL 3600
@ IN SOA ns.example.net. hostmaster.example.net. 1 3600 600 86400 300
@ IN NS ns.example.net.
`

// ipv4only is the zone of that name as the Internet has it, for unbound's sake.
const ipv4only = `$ORIGIN ipv4only.arpa.
$TTL 86400
@ IN SOA ns.example.net. hostmaster.example.net. 1 86400 86400 86400 86400
@ IN NS ns.example.net.
@ IN A 192.0.0.170
@ IN A 192.0.0.171
`

var labZones = []string{"ipv4only.arpa", "example.com", "example.net", "2.0.192.in-addr.arpa", "a.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "4.6.0.0.8.b.d.0.1.0.0.2.ip6.arpa"}

// needs skips the test where one of Debian's programs is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			testenv.Skip(t, p+" is missing: apt-get install unbound nsd ldnsutils")
		}
	}
}

// authority runs nsd with the zones on the server, signed where it can be.
func authority(t *testing.T, n *lab.Network) {
	t.Helper()
	needs(t, "nsd", "ldns-keygen", "ldns-signzone")
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	texts := []string{ipv4only, regexp.MustCompile(`BIG\d`).ReplaceAllString(exampleZone, "$0"+strings.Repeat("x", 190)), netZone, reverse4, reverse6, ofPref64}
	conf := "server:\n ip-address: " + lab.ServerIPv4 + "\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n zonesdir: \"" + dir + "\"\n database: \"\"\n xfrdfile: \"" + dir + "/xfrd\"\n zonelistfile: \"" + dir + "/zones\"\n server-count: 1\n rrl-ratelimit: 0\nremote-control:\n control-enable: no\n"
	for i, name := range labZones {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(texts[i]), 0o600))
		file := name
		if name == "example.com" {
			file = sign(t, dir, name)
		}
		conf += "zone:\n name: \"" + name + "\"\n zonefile: \"" + file + "\"\n"
	}
	at := filepath.Join(dir, "nsd.conf")
	require.NoError(t, os.WriteFile(at, []byte(conf), 0o600))
	runServer(t, n.Server, lab.ServerIPv4+":53", "nsd", "-d", "-c", at)
}

func sign(t *testing.T, dir, zone string) (file string) {
	t.Helper()
	run := func(name string, args ...string) string {
		c := exec.Command(name, args...)
		c.Dir = dir
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		return strings.TrimSpace(string(out))
	}
	key := run("ldns-keygen", "-a", "ECDSAP256SHA256", "-k", zone)
	run("ldns-signzone", zone, key)
	return zone + ".signed"
}

// unbound runs Debian's in the host, at a port of the address that natless has
// too, with a configuration besides.
func unbound(t *testing.T, n *lab.Network, port int, more string) (address string) {
	t.Helper()
	needs(t, "unbound")
	address = fmt.Sprintf("[2001:db8:1::1]:%d", port)
	conf := fmt.Sprintf(`server:
 interface: 2001:db8:1::1@%d
 do-daemonize: no
 username: ""
 chroot: ""
 pidfile: ""
 directory: ""
 use-syslog: no
 logfile: ""
 minimal-responses: yes
 qname-minimisation: no
 access-control: 2001:db8:1::/64 allow
 local-zone: "2.0.192.in-addr.arpa." nodefault
 local-zone: "8.b.d.0.1.0.0.2.ip6.arpa." nodefault
%s
remote-control:
 control-enable: no
`, port, more)
	for _, zone := range labZones {
		conf += "stub-zone:\n name: \"" + zone + "\"\n stub-addr: " + lab.ServerIPv4 + "\n"
	}
	at := filepath.Join(t.TempDir(), "unbound.conf")
	require.NoError(t, os.WriteFile(at, []byte(conf), 0o600))
	runServer(t, n.Host, address, "unbound", "-d", "-c", at)
	return address
}

// runServer runs a name server in a node until the test ends, and waits until
// it answers.
func runServer(t *testing.T, n *lab.Node, address, program string, args ...string) {
	t.Helper()
	c := n.Command(context.Background(), program, args...)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	require.NoError(t, c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() {
		c.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s wrote:\n%s", program, out.String())
		}
	})
	for range 100 {
		if _, err := exchange(t, n, address, "example.net.", dns.TypeSOA, 0); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not answer", program)
}

// bits are of a query.
type bits uint8

const (
	do bits = 1 << iota
	cd
	tcp
)

// exchange asks a name server from a node.
func exchange(t *testing.T, n *lab.Node, address, name string, qtype uint16, b bits) (*dns.Msg, error) {
	t.Helper()
	network := "udp"
	if b&tcp != 0 {
		network = "tcp"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	c, err := n.Dial(ctx, network, address)
	require.NoError(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(8 * time.Second))
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.SetEdns0(1232, b&do != 0)
	m.CheckingDisabled = b&cd != 0
	conn := &dns.Conn{Conn: c, UDPSize: 1232}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	return conn.ReadMsg()
}

const dnsAddress = "[2001:db8:1::1]:53" // of the host, towards its client

// difference is a way in which the answers of natless and unbound differ, all
// for one reason; its example is in docs/dns64.md.
type difference struct {
	example string
	// explains reports whether it is the whole difference.
	explains func(x answered) bool
}

// answered is a question of the comparison with both answers.
type answered struct {
	asks
	ours, theirs *dns.Msg
	withoutCD    string // what natless told to the same question without CD
}

// but is what an answer tells with records changed, or left out for nil.
func but(m *dns.Msg, change func(dns.RR) dns.RR) string {
	c := m.Copy()
	c.Answer = nil
	for _, rr := range m.Copy().Answer {
		if rr = change(rr); rr != nil {
			c.Answer = append(c.Answer, rr)
		}
	}
	return told(c)
}

// addresses are the AAAA records of an answer that lie in a prefix.
func addresses(m *dns.Msg, prefix string) (n int) {
	for _, rr := range m.Answer {
		if r, ok := rr.(*dns.AAAA); ok {
			if a, _ := netip.AddrFromSlice(r.AAAA.To16()); netip.MustParsePrefix(prefix).Contains(a) {
				n++
			}
		}
	}
	return n
}

// level takes the TTL from the CNAME that an answer has of a DNAME: it is a
// matter of what the unbound that was asked had in its cache.
func level(m *dns.Msg) *dns.Msg {
	made := slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeDNAME })
	for _, rr := range m.Answer {
		if made && rr.Header().Rrtype == dns.TypeCNAME {
			rr.Header().Ttl = 0
		}
	}
	return m
}

var differences = []difference{
	{"four.example.com. AAAA", func(x answered) bool { // the TTL of the SOA
		return told(x.ours) == but(x.theirs, func(rr dns.RR) dns.RR {
			if rr.Header().Rrtype == dns.TypeAAAA {
				rr.Header().Ttl = min(rr.Header().Ttl, 300)
			}
			return rr
		})
	}},
	{"short.example.com. AAAA CD", func(x answered) bool { // CD without DO
		return x.bits == cd && told(x.ours) == x.withoutCD && addresses(x.theirs, lab.Pref64) == 0 && addresses(x.theirs, "::/0") == 0
	}},
	{"mixed.example.com. AAAA", func(x answered) bool { // excluded
		return addresses(x.theirs, "::ffff:0:0/96") == 1 && addresses(x.ours, "::ffff:0:0/96") == 0 &&
			(addresses(x.ours, "2001:db8:a::/48") == addresses(x.theirs, "2001:db8:a::/48"))
	}},
	{"private.example.com. AAAA", func(x answered) bool { // refused by the dataplane
		return told(x.ours) == "NOERROR, SOA" && addresses(x.theirs, "2001:db8:64::a00:0/104")+addresses(x.theirs, "2001:db8:64::7f00:0/104") == 1
	}},
	{arpaName("2001:db8:64::c000:204") + " PTR", func(x answered) bool { // the alias is there
		return x.qtype == dns.TypePTR && told(x.theirs) == but(x.ours, func(rr dns.RR) dns.RR {
			if strings.HasSuffix(rr.Header().Name, ".ip6.arpa.") {
				return nil
			}
			return rr
		})
	}},
	{arpaName("2001:db8:64::c000:205") + " PTR", func(x answered) bool { // an alias to nothing
		return x.qtype == dns.TypePTR && told(x.ours) == "NXDOMAIN, SOA" && told(x.theirs) == "NXDOMAIN, CNAME five.example.net. 3600, SOA"
	}},
	{arpaName("2001:db8:64::c000:204") + " PTR DO CD", func(x answered) bool { // synthesised for who validates
		return x.qtype == dns.TypePTR && x.bits == do|cd && told(x.ours) == "NXDOMAIN, SOA"
	}},
}

func arpaName(addr string) string {
	name, _ := dns.ReverseAddr(addr) // an address has one
	return name
}

// TestLabDNSComparison asks natless and Debian's unbound with its module dns64
// the same. Where they differ docs/dns64.md says why, with an example, and who
// is right by RFC 6147.
func TestLabDNSComparison(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	needs(t, "unbound", "nsd", "ldns-keygen", "ldns-signzone")
	n, err := lab.Build(1)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	authority(t, n)
	plain := unbound(t, n, 5301, ` module-config: "iterator"`)
	other := unbound(t, n, 5364, " module-config: \"dns64 iterator\"\n dns64-prefix: "+lab.Pref64)
	w := &world{Network: n, client: n.Clients[0]}
	w.run(t, setup{flags: []string{"--pref64", lab.Pref64, "--dns64", dnsAddress},
		config: own + "private_ipv4 = \"deny\"\n[dns64]\nupstreams = [\"" + plain + "\"]\nsynthesise = \"missing\"\n"})

	page, err := os.ReadFile("../../docs/dns64.md")
	require.NoError(t, err)
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\| ([^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		rows[m[1]] = m[2] + " | " + m[3]
	}
	alike, apart := 0, 0
	before := map[string]string{}
	for _, q := range questions() {
		x := answered{asks: q}
		x.ours, err = exchange(t, w.client, dnsAddress, q.name, q.qtype, q.bits)
		require.NoError(t, err, q)
		x.theirs, err = exchange(t, w.client, other, q.name, q.qtype, q.bits)
		require.NoError(t, err, q)
		ours, theirs := told(level(x.ours)), told(level(x.theirs))
		before[q.String()] = ours
		x.withoutCD = before[asks{q.name, q.qtype, q.bits &^ cd}.String()]
		if ours == theirs {
			alike++
			assert.NotContains(t, rows, q.String(), "answered alike: %s", ours)
			continue
		}
		apart++
		i := slices.IndexFunc(differences, func(d difference) bool { return d.explains(x) })
		if assert.GreaterOrEqual(t, i, 0, "unexplained: | `%v` | %s | %s |", q, ours, theirs) && differences[i].example == q.String() {
			assert.Equal(t, rows[q.String()], ours+" | "+theirs, "docs/dns64.md: | `%v` | %s | %s |", q, ours, theirs)
			delete(rows, q.String())
		}
	}
	assert.Empty(t, rows, "docs/dns64.md has differences that there are not")
	assert.Contains(t, string(page), fmt.Sprintf("Of %d questions %d are answered alike", alike+apart, alike))
}

// asks is a question of the comparison.
type asks struct {
	name  string
	qtype uint16
	bits  bits
}

func (q asks) String() string {
	words := []string{q.name, dns.Type(q.qtype).String()}
	for _, w := range []struct {
		bit  bits
		name string
	}{{do, "DO"}, {cd, "CD"}, {tcp, "TCP"}} {
		if q.bits&w.bit != 0 {
			words = append(words, w.name)
		}
	}
	return strings.Join(words, " ")
}

// questions are about every name of the zones, and some that they do not have.
func questions() (list []asks) {
	names := []string{
		"both", "six", "four", "short", "web", "mixed", "some", "never", "private", "loopback",
		"alias", "alias2", "alias6", "outside", "dangling", "textual", "loop", "four.tree", "six.tree", "missing.tree",
		"x.wild", "x.wild6", "x.wildc", "text", "mail", "empty", "below.empty", "missing", "FOUR",
	}
	for i, name := range names {
		names[i] = name + ".example.com."
	}
	names = append(names, "example.com.", "into.example.net.", "four.example.net.", "missing.example.net.")
	for _, name := range names {
		for _, b := range []bits{0, do, cd, do | cd} {
			list = append(list, asks{name, dns.TypeAAAA, b})
		}
		list = append(list, asks{name, dns.TypeA, 0}, asks{name, dns.TypeA, do}, asks{name, dns.TypeMX, 0})
	}
	for _, a := range []string{
		"192.0.2.4", "192.0.2.5", "192.0.2.6", "2001:db8:64::c000:204", "2001:db8:64::c000:205", "2001:db8:64::c000:206",
		"2001:db8:a::6", "2001:db8:a::7",
	} {
		name := arpaName(a)
		list = append(list, asks{name, dns.TypePTR, 0}, asks{name, dns.TypePTR, do}, asks{name, dns.TypePTR, do | cd})
	}
	for _, qtype := range []uint16{dns.TypeAAAA, dns.TypeA, dns.TypeTXT} {
		list = append(list, asks{"ipv4only.arpa.", qtype, 0}, asks{"x.ipv4only.arpa.", qtype, 0})
	}
	return append(list, asks{"big.example.com.", dns.TypeTXT, 0}, asks{"big.example.com.", dns.TypeTXT, tcp},
		asks{"big.example.com.", dns.TypeTXT, do | tcp}, asks{"example.com.", dns.TypeDNSKEY, do}, asks{"example.com.", dns.TypeSOA, do})
}

// told is what an answer says, in words: its code, the records of the answer,
// and whether an SOA says how long it holds.
func told(m *dns.Msg) string {
	said := []string{dns.RcodeToString[m.Rcode]}
	if m.Truncated {
		said = append(said, "TC")
	}
	if m.AuthenticatedData {
		said = append(said, "AD")
	}
	for _, rr := range inOrder(m.Answer) {
		h := rr.Header()
		data := strings.TrimPrefix(rr.String(), h.String())
		if s, ok := rr.(*dns.RRSIG); ok {
			data = dns.TypeToString[s.TypeCovered]
		}
		said = append(said, fmt.Sprintf("%s %s %s", dns.TypeToString[h.Rrtype], data, ttl(h.Ttl)))
	}
	if slices.ContainsFunc(m.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA }) {
		said = append(said, "SOA")
	}
	return strings.Join(said, ", ")
}

// ttl rounds up what has counted down a little.
func ttl(seconds uint32) string { return fmt.Sprint((seconds + 9) / 10 * 10) }

func inOrder(section []dns.RR) []dns.RR {
	list := slices.Clone(section)
	slices.SortFunc(list, func(a, b dns.RR) int {
		return strings.Compare(dns.TypeToString[a.Header().Rrtype]+a.String(), dns.TypeToString[b.Header().Rrtype]+b.String())
	})
	return list
}

// TestLabDNS64 is DNS64 in the whole: an IPv6-only client reaches an IPv4-only server by name; a map
// made meanwhile counts, and so do upstreams after a reload; strangers get
// nothing of it; an address that comes later is answered at.
func TestLabDNS64(t *testing.T) {
	const (
		later    = "2001:db8:5::53"
		stranger = "2001:db8:ffff::"
	)
	answer := func(a string) func(t *testing.T, n *lab.Network, address string) {
		return func(t *testing.T, n *lab.Network, address string) {
			conn, err := n.Server.ListenPacket("udp", address)
			require.NoError(t, err)
			server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
				m := new(dns.Msg).SetReply(q)
				if q.Question[0].Qtype == dns.TypeA {
					to := a
					if strings.EqualFold(q.Question[0].Name, "mapped.example.com.") {
						to = lab.MappedIPv4
					}
					rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A " + to)
					m.Answer = []dns.RR{rr}
				}
				w.WriteMsg(m)
			})}
			go server.ActivateAndServe()
			t.Cleanup(func() { server.Shutdown() })
		}
	}
	conf := own + "[dns64]\nlisten = [\"" + dnsAddress + "\", \"" + later + "\"]\nupstreams = [\"" + lab.ServerIPv4 + "\"]\n"
	w := start(t, setup{config: conf, flags: []string{"--pref64", lab.Pref64}, before: func(t *testing.T, n *lab.Network) {
		answer(lab.ServerIPv4)(t, n, lab.ServerIPv4+":53")
		answer("192.0.2.66")(t, n, lab.ServerIPv4+":5353")
		require.NoError(t, n.Server.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"))
		require.NoError(t, n.Host.Address("wan", stranger+"1/64"))
		require.NoError(t, n.Server.Address("eth0", stranger+"2/64"))
		require.NoError(t, n.Server.Route("2001:db8:1::/64", stranger+"1", ""))
	}})
	untilNames(t, func() bool {
		return strings.Contains(w.daemon.Output(), "DNS64 at "+dnsAddress+", ["+later+"]:53, asking "+lab.ServerIPv4+":53")
	}, "natless says where it listens")

	for _, b := range []bits{0, tcp} {
		m, err := exchange(t, w.client, dnsAddress, "www.example.com.", dns.TypeAAAA, b)
		require.NoError(t, err)
		require.Equal(t, "NOERROR, AAAA "+lab.Server6+" 60", told(m))
	}
	_, err := lab.Download(t.Context(), w.client.HTTP(""), "["+lab.Server6+"]:8080", make([]byte, 1<<16), nil)
	require.NoError(t, err)

	// Who discovers pref64 by RFC 7050 finds it.
	m, err := exchange(t, w.client, dnsAddress, "ipv4only.arpa.", dns.TypeAAAA, 0)
	require.NoError(t, err)
	for _, rr := range m.Answer {
		a, _ := netip.AddrFromSlice(rr.(*dns.AAAA).AAAA)
		assert.True(t, netip.MustParsePrefix(lab.Pref64).Contains(a), a)
	}
	assert.Len(t, m.Answer, 2)

	out := w.query(t, "dns", "www.example.com")
	assert.Regexp(t, `(?m)^synthesised +yes$`, out)
	assert.Regexp(t, `(?m)^from +cache, then cache$|^from +upstream 198.51.100.2:53, then cache$`, out)
	assert.Regexp(t, `(?m)^answer +www.example.com. \d+ AAAA `+lab.Server6+`  of `+lab.ServerIPv4+` by pref64: behind pref64 2001:db8:64::/96$`, out)
	for _, rule := range []string{"pref64", "map"} {
		to := "2001:db8:64::cb00:7150"
		if rule == "map" {
			w.query(t, "map", "add", lab.MappedIPv4, lab.MappedIPv6)
			to = lab.MappedIPv6
		}
		assert.Contains(t, w.query(t, "dns", "mapped.example.com", "-o", "json"), `"data":"`+to+`","ipv4":"`+lab.MappedIPv4+`","rule":"`+rule+`"`)
		m, err = exchange(t, w.client, dnsAddress, "mapped.example.com.", dns.TypeAAAA, 0)
		require.NoError(t, err)
		assert.Equal(t, "NOERROR, AAAA "+to+" 60", told(m))
	}
	assert.Regexp(t, `(?m)^upstream +198.51.100.2:53$`, w.query(t, "status"))
	refused, err := w.daemon.Query(t.Context(), "dns", "www.example.com", "NONSENSE")
	assert.Error(t, err)
	assert.Contains(t, refused, "expected a type of records")

	m, err = exchange(t, w.Server, dnsAddress, "www.example.com.", dns.TypeAAAA, 0)
	require.NoError(t, err)
	assert.Equal(t, "REFUSED", told(m), "a neighbour on the uplink")
	_, err = exchange(t, w.Server, dnsAddress, "www.example.com.", dns.TypeAAAA, tcp)
	assert.Error(t, err)

	require.NoError(t, os.WriteFile(w.daemon.Config, []byte(strings.Replace(conf, "upstreams = [\""+lab.ServerIPv4+"\"]", "upstreams = [\""+lab.ServerIPv4+":5353\"]", 1)), 0o600))
	w.query(t, "reload")
	m, err = exchange(t, w.client, dnsAddress, "www.example.com.", dns.TypeAAAA, 0)
	require.NoError(t, err)
	assert.Equal(t, "NOERROR, AAAA 2001:db8:64::c000:242 60", told(m))

	require.NoError(t, w.Host.Address("lan1", later+"/128"))
	m, err = exchange(t, w.client, "["+later+"]:53", "www.example.com.", dns.TypeAAAA, 0)
	require.NoError(t, err, "an address that was not there at the start")
	assert.Equal(t, "NOERROR, AAAA 2001:db8:64::c000:242 60", told(m))
}

// TestLabDNS64PortTaken: nothing is done to a host where the address is taken.
func TestLabDNS64PortTaken(t *testing.T) {
	w := build(t, setup{})
	t.Parallel()
	conn, err := w.Host.ListenPacket("udp", dnsAddress)
	require.NoError(t, err)
	defer conn.Close()
	before := snapshot(t, w.Host)
	d := launch(t, w.Host, setup{flags: []string{"--pref64", lab.Pref64, "--dns64", "2001:db8:1::1"}})
	<-d.Exited
	assert.Contains(t, d.Output(), "listening for DNS at "+dnsAddress+": bind: address already in use")
	unchanged(t, w.Host, before, "the address is taken")
}

// TestLabForgedQuery: who takes a client's source has nothing sent to it, be it a
// stranger on the uplink's network or another container: neither an answer, from
// the cache or a new one, nor word that strangers may not ask.
func TestLabForgedQuery(t *testing.T) {
	w := start(t, setup{clients: 2, config: own + "[dns64]\nlisten = [\"" + dnsAddress + "\"]\nupstreams = [\"" + lab.ServerIPv4 + "\"]\n",
		flags: []string{"--pref64", lab.Pref64}, before: func(t *testing.T, n *lab.Network) {
			fixedAnswer(t, n, lab.ServerIPv4+":53", lab.ServerIPv4)
			require.NoError(t, n.Server.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"))
			require.NoError(t, n.Host.Address("wan", "2001:db8:ffff::1/64"))
			require.NoError(t, n.Server.Address("eth0", "2001:db8:ffff::2/64"))
			require.NoError(t, n.Server.Route("2001:db8:1::1/128", "2001:db8:ffff::1", ""))
		}})
	victim := w.Clients[0]
	_, err := exchange(t, victim, dnsAddress, "www.example.com.", dns.TypeAAAA, 0)
	require.NoError(t, err)
	c, err := victim.CaptureAll("eth0")
	require.NoError(t, err)
	for i, forger := range []*lab.Node{w.Clients[1], w.Server} {
		require.NoError(t, forger.Address("lo", "2001:db8:1::2/128"))
		for _, name := range []string{"www.example.com.", fmt.Sprintf("new%d.example.com.", i)} {
			conn, err := forger.DialFrom(t.Context(), "udp", "2001:db8:1::2", dnsAddress)
			require.NoError(t, err)
			m := new(dns.Msg)
			m.SetQuestion(name, dns.TypeAAAA)
			require.NoError(t, (&dns.Conn{Conn: conn}).WriteMsg(m))
			conn.Close()
		}
	}
	s := w.waitStatus(t, func(s api.Status) bool { return s.DNS64.WrongLink == 4 })
	assert.EqualValues(t, 1, s.DNS64.Queries)
	assert.Contains(t, w.query(t, "status"), "4 queries came by another link than their source is reached by")
	_, err = exchange(t, victim, dnsAddress, "www.example.com.", dns.TypeAAAA, 0)
	require.NoError(t, err, "the client itself goes on")
	answer := func(b []byte) bool { return len(b) > 48 && b[6] == 17 && b[40] == 0 && b[41] == 53 }
	require.NotNil(t, c.Wait(lab.Stall, answer))
	answers := 0
	for _, b := range c.Packets() {
		if answer(b) {
			answers++
		}
	}
	assert.Equal(t, 1, answers, "to the client's own query")
}

// fixedAnswer answers in the server about A with one address, and about AAAA with
// 2001:db8:a::1 for both.example.com.
func fixedAnswer(t *testing.T, n *lab.Network, at, address string) {
	t.Helper()
	conn, err := n.Server.ListenPacket("udp", at)
	require.NoError(t, err)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		switch to := map[string]string{"own": "169.254.64.1", "host": lab.HostIPv4, "pool": "169.254.64.2"}[strings.TrimSuffix(strings.ToLower(name), ".example.com.")]; {
		case q.Question[0].Qtype == dns.TypeA:
			rr, _ := dns.NewRR(name + " 60 IN A " + cmp.Or(to, address))
			m.Answer = []dns.RR{rr}
		case q.Question[0].Qtype == dns.TypeAAAA && strings.EqualFold(name, "both.example.com."):
			rr, _ := dns.NewRR(name + " 60 IN AAAA 2001:db8:a::1")
			m.Answer = []dns.RR{rr}
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
}

// TestLabRebinding: a name in whosever zone leads clients neither to natless, nor
// to the host, nor to one another; of names with AAAA records it depends on
// whether the host has a way to the IPv6 Internet, now.
func TestLabRebinding(t *testing.T) {
	w := start(t, setup{config: own + "[dns64]\nlisten = [\"" + dnsAddress + "\"]\nupstreams = [\"" + lab.ServerIPv4 + "\"]\n",
		flags: []string{"--pref64", lab.Pref64}, before: func(t *testing.T, n *lab.Network) {
			fixedAnswer(t, n, lab.ServerIPv4+":53", lab.ServerIPv4)
		}})
	_, err := lab.Download(t.Context(), w.client.HTTP(""), "["+lab.Server6+"]:8080", make([]byte, 1<<16), nil)
	require.NoError(t, err) // the client leases 169.254.64.2
	require.Contains(t, w.query(t, "lease", "ls"), "169.254.64.2")
	aaaa := func(name string) string {
		m, err := exchange(t, w.client, dnsAddress, name+".example.com.", dns.TypeAAAA, 0)
		require.NoError(t, err)
		return told(m)
	}
	for name, why := range map[string]string{"own": "natless itself", "host": "this host", "pool": "the pool 169.254.64.0/20"} {
		assert.Equal(t, "NOERROR", aaaa(name), name)
		assert.Contains(t, w.query(t, "dns", name+".example.com"), why)
	}
	assert.Equal(t, "NOERROR, AAAA "+lab.Server6+" 60", aaaa("www"))

	assert.Equal(t, "NOERROR, AAAA "+lab.Server6+" 60", aaaa("both"), "the host has IPv4 only")
	assert.Contains(t, w.query(t, "dns", "both.example.com"), "the host has no way to the IPv6 Internet")
	require.NoError(t, w.Host.Address("wan", "2001:db8:ffff::1/64"))
	require.NoError(t, w.Host.Route("::/0", "2001:db8:ffff::2", ""))
	untilNames(t, func() bool { return aaaa("both") == "NOERROR, AAAA 2001:db8:a::1 60" }, "it has a default route now")
	assert.Equal(t, "missing", w.status(t).DNS64.Synthesise)
}

// untilNames waits a few seconds for something.
func untilNames(t *testing.T, is func() bool, what string) {
	t.Helper()
	for range 100 {
		if is() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	assert.Fail(t, what)
}

// TestLabDNS64Reload: a reload turns DNS64 on and off, and changes where it
// listens; where it cannot listen nothing changes. Addresses that no link has are
// told of.
func TestLabDNS64Reload(t *testing.T) {
	const second = "2001:db8:5::53"
	w := start(t, setup{flags: []string{"--pref64", lab.Pref64}, before: func(t *testing.T, n *lab.Network) {
		fixedAnswer(t, n, lab.ServerIPv4+":53", lab.ServerIPv4)
	}})
	listen := func(addresses ...string) (string, error) {
		text := own
		if len(addresses) > 0 {
			text += "[dns64]\nlisten = [\"" + strings.Join(addresses, "\", \"") + "\"]\nupstreams = [\"" + lab.ServerIPv4 + "\"]\n"
		}
		require.NoError(t, os.WriteFile(w.daemon.Config, []byte(text), 0o600))
		return w.daemon.Query(t.Context(), "reload")
	}
	answers := func(address string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c, err := w.client.Dial(ctx, "udp", address)
		if err != nil {
			return false
		}
		defer c.Close()
		m := new(dns.Msg)
		m.SetQuestion("www.example.com.", dns.TypeAAAA)
		c.SetDeadline(time.Now().Add(time.Second))
		conn := &dns.Conn{Conn: c}
		if conn.WriteMsg(m) != nil {
			return false
		}
		_, err = conn.ReadMsg()
		return err == nil
	}
	assert.Nil(t, w.status(t).DNS64)
	assert.False(t, answers(dnsAddress))
	out, err := listen(dnsAddress)
	require.NoError(t, err, out)
	assert.Contains(t, out, "dns64.listen")
	assert.True(t, answers(dnsAddress), "it is on")

	out, err = listen(dnsAddress, second)
	require.NoError(t, err, out)
	assert.True(t, answers(dnsAddress))
	const absent = "DNS64 cannot be asked at [" + second + "]:53 yet: no link of this host that is up has the address"
	s := w.status(t)
	assert.Contains(t, strings.Join(s.Warnings, "\n"), absent)
	assert.False(t, s.Degraded, "it may come later")
	assert.Contains(t, w.query(t, "check", "-c", w.daemon.Config, "--pref64", lab.Pref64), absent)
	require.NoError(t, w.Host.Address("lan1", second+"/128"))
	untilNames(t, func() bool { return len(w.status(t).DNS64.Absent) == 0 }, "the address is there now")
	assert.True(t, answers("["+second+"]:53"))

	taken, err := w.Host.ListenPacket("udp", "[2001:db8:1::1]:5353")
	require.NoError(t, err)
	defer taken.Close()
	out, err = listen("[2001:db8:1::1]:5353")
	assert.Error(t, err)
	assert.Contains(t, out, "listening for DNS at [2001:db8:1::1]:5353: bind: address already in use")
	assert.True(t, answers(dnsAddress), "all stays as it was")

	out, err = listen("[" + second + "]:53")
	require.NoError(t, err, out)
	assert.True(t, answers("["+second+"]:53"))
	assert.False(t, answers(dnsAddress), "it was given up")
	out, err = listen()
	require.NoError(t, err, out)
	assert.False(t, answers("["+second+"]:53"))
	assert.Nil(t, w.status(t).DNS64, "it is off")
}
