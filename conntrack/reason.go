package conntrack

// Reason is why a packet is not translated.
type Reason uint8

// The reasons. Whoever counts packets makes verdicts of them.
const (
	OK            Reason = iota
	NoPorts              // a protocol without ports, or one natless does not know: it belongs to nobody on a shared address
	NoSession            // nothing has this external port; of Peek: or there is no session
	NotSYN               // a TCP packet that no session has and that begins none (RFC 6146 3.5.2.2)
	PartFull             // all ports of the client's session part are taken
	ClientFull           // the client has as many flows as one may have
	TableFull            // there are as many flows as there may be altogether
	Held                 // a fragment that waits for its first; not dropped yet
	FragmentsFull        // no room for a fragment to wait, or for a datagram to be known

	reasonCount
)

var reasons = [reasonCount]string{"ok", "no_ports", "no_session", "not_syn", "part_full", "client_full", "table_full", "held", "fragments_full"}

func (r Reason) String() string { return reasons[r] }

// protocol numbers those that may have sessions.
type protocol uint8

const (
	protocolTCP protocol = iota
	protocolUDP
	protocolICMP
	protocolDCCP
	protocolUDPLite
	protocolSCTP

	protocols
)

// numbers are the IANA's, in IPv4.
var numbers = [protocols]uint8{6, 17, 1, 33, 136, 132}

// numberICMPv6 is what an ICMP packet has on the other side.
const numberICMPv6 = 58

func protocolOf(number uint8) (protocol, Reason) {
	switch number {
	case numbers[protocolTCP]:
		return protocolTCP, OK
	case numbers[protocolUDP]:
		return protocolUDP, OK
	case numbers[protocolICMP], numberICMPv6:
		return protocolICMP, OK
	case numbers[protocolDCCP]:
		return protocolDCCP, OK
	case numbers[protocolUDPLite]:
		return protocolUDPLite, OK
	case numbers[protocolSCTP]:
		return protocolSCTP, OK
	}
	return 0, NoPorts
}

// lifetime names one of the Timeouts; keep leaves the deadline where it is.
type lifetime uint8

const (
	keep lifetime = iota
	established
	transitory
	incomingSYN
	udp
	icmp
	dccp

	lifetimes
)

// idle is the timeout of a protocol whose states are not observed.
var idle = [protocols]lifetime{protocolUDP: udp, protocolICMP: icmp, protocolDCCP: dccp, protocolUDPLite: udp, protocolSCTP: dccp}
