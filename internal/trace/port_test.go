package trace

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/internal/dataplane"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// nowhere takes what leaves.
type nowhere struct{}

func (nowhere) Put([]byte, int, int, tun.Header) {}

// sharedConfig is a table of one shared address, where 2001:db8:2::1 has the
// ports 1024-2047, and a session of UDP from port 53.
func sharedConfig(t *testing.T, sizes conntrack.Config) (c Config, port uint16) {
	t.Helper()
	table, err := mapping.New(mapping.Config{
		Pref64: netip.MustParsePrefix("64:ff9b::/96"),
		Pools: []mapping.Pool{{
			IPv4: netip.MustParsePrefix("192.0.2.128/32"), Clients: []netip.Prefix{netip.MustParsePrefix("2001:db8:2::/64")}, Origin: "natless.toml:9",
			Quarantine: mapping.RestRange, Ports: mapping.Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535},
		}},
		OwnIPv4: addr("198.51.100.1"), OwnIPv6: addr("2001:db8:ffff::1"), Hairpin: true,
	})
	require.NoError(t, err)
	sessions, err := conntrack.New(sizes, 0)
	require.NoError(t, err)
	c = Config{
		Table: table, Sessions: sessions, Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
		IPv4: addr("198.51.100.1"), IPv6: addr("2001:db8:ffff::1"),
	}
	b, err := ReadPacket("udp 2001:db8:2::1 53 64:ff9b::203.0.113.9 53")
	require.NoError(t, err)
	d := dataplane.NewTranslator(table, dataplane.Sharing{Sessions: sessions}, c.Options, c.IPv4, c.IPv6)
	require.Equal(t, translate.OK, d.Translate(b, 0, nowhere{}).Verdict)
	for s := range sessions.Sessions(netip.Addr{}, 0) {
		port = s.Port
	}
	return c, port
}

// ports are the steps about ports.
func ports(r Report) (said []string) {
	for _, line := range lines(r) {
		if strings.HasPrefix(line, StepPort+": ") || strings.HasPrefix(line, StepQuotedPort+": ") {
			said = append(said, line)
		}
	}
	return said
}

func TestPorts(t *testing.T) {
	c, port := sharedConfig(t, conntrack.Default())
	other := 1920 + (port-1920+1)%128
	for _, x := range []struct {
		packet, verdict string
		steps           []string
	}{
		{"tcp 2001:db8:2::1 1024 64:ff9b::203.0.113.9 80", "translated", []string{
			"port: source port 1024 is in the stateless part, 1024-1919, of the range of 2001:db8:2::1: it stays, without a session (RFC 7597 5.1)"}},
		{"tcp 2001:db8:2::2 80 64:ff9b::203.0.113.9 80", "translated", []string{ // whose lease it would be
			"port: source port 80 is not in the stateless part, 2048-2943, of the range of 2001:db8:2::2: a session would begin, with one of 2944-3071 by chance, such as 2944 (RFC 6146 3.5)"}},
		{"udp 2001:db8:2::1 53 64:ff9b::203.0.113.9 80", "translated", []string{
			fmt.Sprintf("port: source port 53 becomes %d by the session there is (RFC 6146 3.5)", port)}},
		{"icmp 2001:db8:2::1 64:ff9b::203.0.113.9", "translated", []string{
			"port: source identifier 1 of 2001:db8:2::1: only TCP and UDP go without a session: a session would begin, with one of 1920-2047 by chance, such as 1920 (RFC 6146 3.5)"}},
		{"tcp 203.0.113.9 80 192.0.2.128 1024", "translated", []string{
			"port: destination port 1024 is in the stateless part, 1024-1919, of the range of 2001:db8:2::1: it stays, without a session (RFC 7597 5.1)"}},
		{fmt.Sprintf("udp 203.0.113.9 80 192.0.2.128 %d", port), "translated", []string{
			fmt.Sprintf("port: port %d becomes 53 of 2001:db8:2::1 by the session there is (RFC 6146 3.5)", port)}},
		{fmt.Sprintf("udp 203.0.113.9 80 192.0.2.128 %d", other), "no_session", []string{
			fmt.Sprintf("port: port %d is in the session part, 1920-2047, of the range of 2001:db8:2::1, and no session has it: no_session (RFC 6146 3.5)", other)}},
		{"tcp 203.0.113.9 80 192.0.2.128 1", "destination_unmapped", nil},
		{"icmp 203.0.113.9 192.0.2.128", "answered", nil},
		{"tcp 2001:db8:2::1 1024 64:ff9b::192.0.2.128 1025", "hairpinned", []string{
			"port: source port 1024 is in the stateless part, 1024-1919, of the range of 2001:db8:2::1: it stays, without a session (RFC 7597 5.1)",
			"port: destination port 1025 is in the stateless part, 1024-1919, of the range of 2001:db8:2::1: it stays, without a session (RFC 7597 5.1)"}},
		{fmt.Sprintf("udp 2001:db8:2::1 9 64:ff9b::192.0.2.128 %d", port), "hairpinned", []string{
			"port: source port 9 is not in the stateless part, 1024-1919, of the range of 2001:db8:2::1: a session would begin, with one of 1920-2047 by chance, such as 1920 (RFC 6146 3.5)",
			fmt.Sprintf("port: port %d becomes 53 of 2001:db8:2::1 by the session there is (RFC 6146 3.5)", port)}},
	} {
		r := words(t, c, x.packet)
		assert.Equal(t, x.verdict, r.Verdict, x.packet)
		assert.Equal(t, x.steps, ports(r), x.packet)
	}
	assert.Equal(t, 1, c.Sessions.Len(), "a trace opens none")
	assert.Len(t, c.Table.Leases(), 1)

	// What a client found undeliverable, and what it could not have got.
	r := Trace(c, unreachable(t, "2001:db8:2::1", "64:ff9b::203.0.113.9", "udp 64:ff9b::203.0.113.9 53 2001:db8:2::1 53"))
	assert.Equal(t, "translated", r.Verdict)
	assert.Equal(t, []string{fmt.Sprintf("quoted_port: port 53 becomes %d by the session there is (RFC 6146 3.5)", port)}, ports(r))
	r = Trace(c, unreachable(t, "2001:db8:2::1", "64:ff9b::203.0.113.9", "udp 64:ff9b::203.0.113.9 53 2001:db8:2::1 54"))
	assert.Equal(t, "quote_unmapped", r.Verdict)
	assert.Equal(t, []string{"quoted_port: port 54 of 2001:db8:2::1 takes a session, and there is none: no_session (RFC 6146 3.5)"}, ports(r))
}

// A client that shares its address is named by its label at either end.
func TestPortsLabelled(t *testing.T) {
	c, port := sharedConfig(t, conntrack.Default())
	_, err := c.Table.Lend(t.Context(), addr("2001:db8:2::1"), "web", "me")
	require.NoError(t, err)
	for packet, steps := range map[string][]string{
		"tcp 2001:db8:2::1 1024 64:ff9b::203.0.113.9 80":       {StepSource},
		"tcp 203.0.113.9 80 192.0.2.128 1024":                  {StepDestination},
		fmt.Sprintf("udp 203.0.113.9 80 192.0.2.128 %d", port): {StepDestination},
		"tcp 2001:db8:2::1 1024 64:ff9b::192.0.2.128 1025":     {StepSource, StepHairpinDestination},
		"tcp 203.0.113.9 80 192.0.2.128 5000":                  nil, // nobody's
		"tcp 2001:db8:2::2 1024 64:ff9b::203.0.113.9 80":       nil,
	} {
		var named []string
		for _, s := range words(t, c, packet).Steps {
			if strings.Contains(s.Text, `labelled "web"`) {
				named = append(named, s.Step)
			}
		}
		assert.Equal(t, steps, named, packet)
	}
}

func TestPortsRefused(t *testing.T) {
	sizes := conntrack.Default()
	sizes.ClientSessions = 1
	c, _ := sharedConfig(t, sizes)
	r := words(t, c, "udp 2001:db8:2::1 54 64:ff9b::203.0.113.9 80")
	assert.Equal(t, "client_sessions_full", r.Verdict)
	assert.NotNil(t, r.Error)
	assert.Equal(t, []string{"port: source port 54 is not in the stateless part, 1024-1919, of the range of 2001:db8:2::1, and takes no session: client_full (RFC 6146 3.5)"}, ports(r))

	c.Sessions = nil // a table without its daemon
	r = words(t, c, "udp 2001:db8:2::1 53 64:ff9b::203.0.113.9 80")
	assert.Equal(t, "translated", r.Verdict)
	assert.Contains(t, ports(r)[0], "a session would begin")
	assert.Equal(t, "no_session", words(t, c, "udp 203.0.113.9 80 192.0.2.128 1920").Verdict)
}
