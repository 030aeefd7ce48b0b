package control

import (
	"net/netip"

	"github.com/natless/natless/conntrack"
)

// Session is a flow that takes memory: of a client that shares its IPv4
// address, outside the stateless part of its ports.
type Session struct {
	Protocol   string     `json:"protocol"` // of Protocols
	Client     netip.Addr `json:"client"`
	ClientPort uint16     `json:"client_port"` // or echo identifier
	IPv4       netip.Addr `json:"ipv4"`
	Port       uint16     `json:"port"`                  // of it, in place of the client's
	Remote     netip.Addr `json:"remote"`                // of protocols other than TCP, whom the client last sent to
	RemotePort uint16     `json:"remote_port,omitempty"` // not of ICMP
	State      string     `json:"state"`                 // of States
	Idle       uint32     `json:"idle_seconds"`          // since its last packet
	Expires    uint32     `json:"expires_seconds"`       // until it ends unless a packet comes
	Label      string     `json:"label,omitempty"`       // of the client's lease
}

// Protocols are those of sessions, by their number in IPv4.
var Protocols = map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}

// States are those of sessions: of TCP, RFC 6146 3.5.2.1; of all others, open.
func States() []string {
	var names []string
	for s := conntrack.Open; s <= conntrack.Trans; s++ {
		names = append(names, s.String())
	}
	return names
}

// SessionOf is a session as it is listed, with the label of its client's lease.
func SessionOf(s conntrack.Session, label string) Session {
	return Session{
		Protocol: Protocols[s.Protocol],
		Client:   s.Client, ClientPort: s.ClientPort,
		IPv4: s.IPv4, Port: s.Port,
		Remote: s.Remote.Addr(), RemotePort: s.Remote.Port(),
		State: s.State.String(), Idle: s.Idle, Expires: s.Expires, Label: label,
	}
}
