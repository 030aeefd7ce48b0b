package translate

// Verdict is what became of a packet. Its name is stable: counters, traces and
// scripts use it.
type Verdict uint8

// The verdicts. Those up to Answered mean that a packet leaves.
const (
	OK         Verdict = iota
	Hairpin            // translated, and its destination is natless's own again (RFC 7757 4)
	Fragmented         // translated into several packets: ask NextFragment for each
	Answered           // an echo request to an address of natless itself

	// Malformed packets: counted, no answer.
	NotIP
	Truncated
	BadHeader
	BadIPv4Checksum
	BadFragment

	// Refused by RFC 7915 itself.
	HopLimit
	TooBig
	SourceRoute
	RoutingHeader
	ICMPFragment
	ICMPType
	ICMPQuote
	UDPZeroChecksum
	UDPZeroFragment

	// Refused by the mapping.
	SourceRefused
	DestinationRefused
	SourceUnmapped
	DestinationUnmapped
	PrivateIPv4
	ClientNotPermitted
	PoolFull
	LeasePending
	LeaseLimited
	StateUnavailable
	HairpinOff
	OwnAddress
	QuoteUnmapped
	NoPorts
	NoSession
	NotSYN
	SessionPortsFull
	ClientSessionsFull
	SessionsFull
	FragmentPending
	SCTPFragment

	Unguarded
	ErrorForAnother

	verdictCount
)

// Verdicts is how many verdicts there are; a Verdict indexes an array of it.
const Verdicts = int(verdictCount)

// Info is one row of the table of verdicts.
type Info struct {
	Name    string // stable, snake_case
	Section string // the RFC section that asks for it
	Reply   string // the ICMP error that answers it, in words; "" for none
	Advice  string // what it means and what an operator should do
}

var verdicts = [Verdicts]Info{
	OK:         {"translated", "RFC 7915 4, 5", "", "Packets that left on the other side."},
	Hairpin:    {"hairpinned", "RFC 7757 4.2.2", "", "Packets between two clients of natless, translated there and back."},
	Fragmented: {"fragmented", "RFC 7915 4.1", "", "IPv4 packets without DF that were cut to lowest_ipv6_mtu. Harmless; many of them cost speed."},
	Answered:   {"answered", "RFC 4443 4.2, RFC 792", "", "Echo requests to natless's own addresses."},

	NotIP:           {"not_ip", "RFC 791 3.1, RFC 8200 3", "", "Neither IPv4 nor IPv6. Somebody writes rubbish to the device."},
	Truncated:       {"truncated", "RFC 791 3.1, RFC 8200 3", "", "Shorter than its headers say. A broken sender or a broken link."},
	BadHeader:       {"bad_header", "RFC 791 3.1, RFC 8200 4", "", "Lengths, extension headers or offloads that contradict each other. A broken sender, or somebody probing."},
	BadIPv4Checksum: {"bad_ipv4_checksum", "RFC 791 3.1", "", "The IPv4 header checksum is wrong. Damage on the way."},
	BadFragment:     {"bad_fragment", "RFC 791 3.2, RFC 8200 4.5, RFC 1858", "", "A fragment that is too small for its transport header, has an impossible offset or length, or overlaps a header. Broken, or somebody probing."},

	HopLimit:        {"hop_limit", "RFC 7915 4.1, 5.1", "time exceeded", "TTL or hop limit used up here. Traceroute does this; many of them otherwise mean a routing loop."},
	TooBig:          {"too_big", "RFC 7915 4.1, 5.1", "packet too big / fragmentation needed", "Larger than the MTU of the other side. Normal in path MTU discovery."},
	SourceRoute:     {"source_route", "RFC 7915 4.1", "source route failed", "An IPv4 source route that has not run out cannot be translated."},
	RoutingHeader:   {"routing_header", "RFC 7915 5.1", "parameter problem at segments left", "An IPv6 routing header with segments left cannot be translated."},
	ICMPFragment:    {"icmp_fragment", "RFC 7915 1.2", "", "A fragmented ICMP message: its checksum cannot be adjusted. Use smaller pings."},
	ICMPType:        {"icmp_type", "RFC 7915 4.2, 5.2", "", "An ICMP type or code without a counterpart in the other family, dropped as the RFC asks."},
	ICMPQuote:       {"icmp_quote", "RFC 7915 4.3, 5.3", "", "An ICMP error whose quoted packet is too short or damaged, or itself an ICMP error."},
	UDPZeroChecksum: {"udp_zero_checksum", "RFC 7915 4.5", "", "IPv4 UDP without checksum, dropped because udp_zero_checksum = \"drop\"."},
	UDPZeroFragment: {"udp_zero_fragment", "RFC 7915 4.5", "", "A fragment of IPv4 UDP without checksum: it cannot be computed. Have the sender switch checksums on."},

	SourceRefused:       {"source_refused", "RFC 7915 4.1, 5.1", "", "A source address that no packet may carry: loopback, multicast, unspecified, link-local, class E, or one that would loop."},
	DestinationRefused:  {"destination_refused", "RFC 7915 4.1, 5.1", "", "A destination that natless does not reach: loopback, multicast, unspecified, link-local (cloud metadata), class E."},
	SourceUnmapped:      {"source_unmapped", "RFC 7757 3, RFC 7915 4.1, 5.1, 5.4", "destination unreachable: source address policy (IPv6 only)", "The source has no counterpart in the other family: no map covers it, and it is not behind pref64 or a pool."},
	DestinationUnmapped: {"destination_unmapped", "RFC 7757 3", "destination unreachable: address", "The destination has no counterpart in the other family: no map, no lease, not in pref64."},
	PrivateIPv4:         {"private_ipv4", "RFC 6052 3.1", "destination unreachable: prohibited", "A private IPv4 address behind 64:ff9b::/96. Use another prefix, such as 64:ff9b:1::/96, or private_ipv4 = \"allow\"."},
	ClientNotPermitted:  {"client_not_permitted", "RFC 7915 5.4", "destination unreachable: source address policy", "An IPv6 source that no pool's clients permit. Add it to clients, or give it a map."},
	PoolFull:            {"pool_full", "RFC 7915 5.1", "destination unreachable: address", "Every address of the client's pools is lent. Add a pool, or shorten idle."},
	LeasePending:        {"lease_pending", "RFC 7915 5.1", "", "The first packets of a client whose lease was not durable in time. They are held back a moment, and dropped when there are too many of them. Senders try again; if it lasts, the disk of state.dir is slow."},
	LeaseLimited:        {"lease_limited", "RFC 7915 5.1", "", "More new clients at once than leases are made for, as when somebody makes up source addresses. Senders try again."},
	StateUnavailable:    {"state_unavailable", "RFC 7915 5.1", "destination unreachable: address", "A new client found no lease because state.dir cannot be written: the disk is full, broken or read-only. Leases already made go on; new ones come when it can be written again."},
	HairpinOff:          {"hairpin_off", "RFC 7757 4", "destination unreachable: prohibited", "A packet from one client of natless to another, with hairpin = \"off\", or with hairpin = \"guarded\" (the default) where the host itself would not pass packets between the two. hairpin = \"intrinsic\" always lets them meet."},
	OwnAddress:          {"own_address", "RFC 1122 3.2.2", "", "Something other than an echo request to an address of natless itself."},
	QuoteUnmapped:       {"quote_unmapped", "RFC 7915 4.3, 5.3", "", "An ICMP error about a packet that natless cannot have translated."},

	// Of clients that share an IPv4 address.
	NoPorts:            {"no_ports", "RFC 6146 3.4", "destination unreachable: port (IPv6), protocol (IPv4)", "A protocol without ports to or from an address that clients share: nothing tells whose it is. Give the client an address of its own."},
	NoSession:          {"no_session", "RFC 6146 3.5", "", "A packet to or from a client that shares its IPv4 address, whose port or echo identifier takes a session, and there is none. Strangers who try ports cause this."},
	NotSYN:             {"not_syn", "RFC 6146 3.5.2.2", "", "A TCP packet in the midst of a connection that no session has: natless has been started since, or it was idle for two hours. Connections from the stateless part of a range do not end so: natless port-range set."},
	SessionPortsFull:   {"session_ports_full", "RFC 6146 3.5.1.1", "destination unreachable: address", "Every port in the session part of the client's range is taken. Have its sockets bind within the stateless part (natless port-range set), or raise session_ports."},
	ClientSessionsFull: {"client_sessions_full", "RFC 6146 3.5", "destination unreachable: address", "The client has as many sessions as one may have. Something opens connections and never ends them, or it scans."},
	SessionsFull:       {"sessions_full", "RFC 6146 3.5", "destination unreachable: address", "All clients together have as many sessions as there may be."},
	FragmentPending:    {"fragment_pending", "RFC 6146 3.4", "", "Later fragments to an address that clients share, whose first, which has the ports, did not come within two seconds, or for which there was no room to wait."},
	SCTPFragment:       {"sctp_fragment", "RFC 9260 6.8", "", "A fragment of SCTP whose port takes a session: the CRC over the whole datagram cannot be adjusted. Use a smaller path MTU."},

	ErrorForAnother: {"error_for_another", "RFC 5508 4.2", "", "An ICMP error about a packet to one client, from a host that is neither that client nor a router on the way to it. Whom it went to would take it as the client's, and end its connection or cut its packets."},

	Unguarded: {"unguarded", "RFC 2827", "", "natless's own nftables tables were not in place, as right after nft flush ruleset. Without them strangers would get in, so that nothing passes until they are back; natless status says why they are not."},
}

// Info is the verdict's row in the table.
func (v Verdict) Info() Info { return verdicts[v] }

// String is the verdict's stable name.
func (v Verdict) String() string { return verdicts[v].Name }

// Leaves reports whether the packet goes on its way (translated or answered)
// rather than being dropped.
func (v Verdict) Leaves() bool { return v <= Answered }
