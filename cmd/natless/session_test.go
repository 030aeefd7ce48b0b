package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/natless/natless/internal/control"
)

func TestSessionListing(t *testing.T) {
	f := newFake()
	addr := netip.MustParseAddr
	f.sessions = []control.Session{
		{Protocol: "tcp", Client: addr("2001:db8:c::5"), ClientPort: 40000, IPv4: addr("203.0.113.7"), Port: 1930, Remote: addr("192.0.2.80"), RemotePort: 443, State: "established", Idle: 3, Expires: 7437, Label: "web"},
		{Protocol: "udp", Client: addr("2001:db8:c::5"), ClientPort: 500, IPv4: addr("203.0.113.7"), Port: 1931, Remote: addr("192.0.2.53"), RemotePort: 53, State: "open", Expires: 300},
		{Protocol: "icmp", Client: addr("2001:db8:d::5"), ClientPort: 7, IPv4: addr("203.0.113.7"), Port: 2950, Remote: addr("198.51.100.1"), State: "open", Idle: 1, Expires: 59},
	}
	f.serve(t)
	assert.Equal(t, `PROTOCOL  CLIENT                 IPV4              REMOTE          STATE
tcp       [2001:db8:c::5]:40000  203.0.113.7:1930  192.0.2.80:443  established
udp       [2001:db8:c::5]:500    203.0.113.7:1931  192.0.2.53:53   open
icmp      [2001:db8:d::5]:7      203.0.113.7:2950  198.51.100.1    open
`, mustSay(t, "session ls"))
	assert.Equal(t, `PROTOCOL  CLIENT                 IPV4              REMOTE          STATE        IDLE  EXPIRES  LABEL
tcp       [2001:db8:c::5]:40000  203.0.113.7:1930  192.0.2.80:443  established  3s    2h3m57s  web
udp       [2001:db8:c::5]:500    203.0.113.7:1931  192.0.2.53:53   open         0s    5m0s     -
icmp      [2001:db8:d::5]:7      203.0.113.7:2950  198.51.100.1    open         1s    59s      -
`, mustSay(t, "session ls -o wide"))
	assert.Equal(t, `{"protocol":"icmp","client":"2001:db8:d::5","client_port":7,"ipv4":"203.0.113.7","port":2950,"remote":"198.51.100.1","state":"open","idle_seconds":1,"expires_seconds":59}
`, mustSay(t, "session ls --protocol icmp -o json"))

	for args, want := range map[string]string{
		"":                                     "tcp udp icmp",
		"--client 2001:db8:c::/64":             "tcp udp",
		"--client 2001:db8:d::5":               "icmp",
		"--protocol udp":                       "udp",
		"--state open":                         "udp icmp",
		"--remote 192.0.2.0/24":                "tcp udp",
		"--remote 192.0.2.53":                  "udp",
		"--remote 192.0.2.80:443":              "tcp",
		"--label w*":                           "tcp",
		"--remote 192.0.2.80:80":               "",
		"--remote 0.0.0.0/0 --state open":      "udp icmp",
		"--state established --protocol udp":   "",
		"--protocol sctp --client ::/0":        "",
		"--client 2001:db8:c::5 --state open":  "udp",
		"--client 2001:db8:c::5 --remote ::/0": "",
	} {
		out, _, err := says(t, "", append(strings.Fields("session ls -o json"), strings.Fields(args)...)...)
		if strings.HasSuffix(args, "--remote ::/0") {
			assert.ErrorContains(t, err, "expected an IPv4 address or prefix, or an address and port")
			continue
		}
		assert.NoError(t, err)
		var got []string
		for line := range strings.Lines(out) {
			got = append(got, strings.Split(line, `"`)[3])
		}
		assert.Equal(t, want, strings.Join(got, " "), args)
	}
	mustSay(t, "session ls --client 2001:db8:d::5")
	assert.Equal(t, "2001:db8:d::5", f.client.String(), "the daemon need not list all")
	mustSay(t, "session ls --client 2001:db8:d::/64")
	assert.False(t, f.client.IsValid())

	// A list that is long comes in pieces, whole.
	f.sessions = make([]control.Session, 3*piece)
	out := mustSay(t, "session ls")
	assert.Equal(t, 3*piece+1, strings.Count(out, "\n"))
}
