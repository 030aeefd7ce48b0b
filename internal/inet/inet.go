// Package inet is what the Internet has laid down about addresses: which are
// special, by which RFC, and how far each means anything. It has the entries of
// IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), multicast,
// which has registries of its own, and one address that clouds made special.
//
// It is the one list of its kind: what is refused, masqueraded, proposed as a
// pool, and told to other programs all comes of it. It is a leaf: it imports
// nothing of natless's, so that every room but translate may import it.
package inet

import (
	"net/netip"
	"slices"
)

// Reach is how far from a host the addresses of a block mean anything. The
// registries' column "Globally Reachable" is true for Global and for no other,
// but that of Teredo and 6to4 says that it does not apply.
type Reach uint8

// How far blocks reach.
const (
	// Nobody: between two hosts no packet may have it as source or destination,
	// or it is no single host's.
	Nobody Reach = iota
	// Link: routers forward no packet with it. Reserved addresses count here:
	// some systems take them for addresses, others drop them.
	Link
	// Network: within a network, or some that agreed on it. Many have it at once.
	Network
	// Example: for documents. Tests and examples have it stand for Global.
	Example
	// Retired: it had a purpose, and nobody may use it any more.
	Retired
	// Global: anybody may be reached there. In the table for parts of a larger
	// block that is not.
	Global
)

// Block is a prefix of special addresses.
type Block struct {
	Prefix netip.Prefix
	Reach  Reach
	Name   string // in words, as of one of its addresses: "a NAME address"
	RFC    string // that made it special
}

// WellKnown is the prefix that everybody may have IPv4 addresses stand behind
// (RFC 6052 2.1), but only those that are Global (3.1).
var WellKnown = netip.MustParsePrefix("64:ff9b::/96")

// Mapped is how programs, and no packets, write IPv4 addresses in IPv6 (RFC
// 4291 2.5.5.2).
var Mapped = netip.MustParsePrefix("::ffff:0:0/96")

// Dummy is the source of ICMPv4 errors of a node that has no other IPv4 address
// (RFC 7600).
var Dummy = netip.MustParseAddr("192.0.0.8")

// Discovery are the addresses of ipv4only.arpa (RFC 7050, RFC 8880).
var Discovery = []netip.Addr{netip.MustParseAddr("192.0.0.170"), netip.MustParseAddr("192.0.0.171")}

// IPv4 is the table of IPv4, by address.
var IPv4 = []Block{
	block("0.0.0.0/8", Nobody, "unspecified", "RFC 791"),           // "this network", and as 0.0.0.0 "this host" (RFC 1122 3.2.1.3)
	block("10.0.0.0/8", Network, "private", "RFC 1918"),            // private use
	block("100.64.0.0/10", Network, "private", "RFC 6598"),         // shared address space, behind carriers' NAT
	block("127.0.0.0/8", Nobody, "loopback", "RFC 1122"),           // the host itself
	block("169.254.0.0/16", Link, "link-local", "RFC 3927"),        // routers must not forward it (7)
	block("169.254.169.254/32", Link, "cloud metadata", ""),        // of no registry: clouds serve credentials there, on the host's link
	block("172.16.0.0/12", Network, "private", "RFC 1918"),         // private use
	block("192.0.0.0/24", Network, "protocol", "RFC 6890"),         // IETF protocol assignments: DS-Lite (RFC 7335), dummy (RFC 7600), discovery (RFC 7050)
	block("192.0.0.9/32", Global, "PCP anycast", "RFC 7723"),       // globally reachable
	block("192.0.0.10/32", Global, "TURN anycast", "RFC 8155"),     // globally reachable
	block("192.0.2.0/24", Example, "documentation", "RFC 5737"),    // TEST-NET-1
	block("192.31.196.0/24", Global, "AS112", "RFC 7535"),          // globally reachable
	block("192.52.193.0/24", Global, "AMT", "RFC 7450"),            // globally reachable
	block("192.88.99.0/24", Retired, "6to4 relay", "RFC 7526"),     // 6to4 relay anycast, deprecated; 192.88.99.2 is RFC 6751
	block("192.168.0.0/16", Network, "private", "RFC 1918"),        // private use
	block("192.175.48.0/24", Global, "AS112", "RFC 7534"),          // globally reachable
	block("198.18.0.0/15", Network, "benchmarking", "RFC 2544"),    // between test devices
	block("198.51.100.0/24", Example, "documentation", "RFC 5737"), // TEST-NET-2
	block("203.0.113.0/24", Example, "documentation", "RFC 5737"),  // TEST-NET-3
	block("224.0.0.0/4", Nobody, "multicast", "RFC 1112"),          // no single host
	block("240.0.0.0/4", Link, "class E", "RFC 1112"),              // reserved for future use
	block("255.255.255.255/32", Nobody, "broadcast", "RFC 8190"),   // limited broadcast (RFC 919)
}

// IPv6 is the table of IPv6, by address.
var IPv6 = []Block{
	block("::/128", Nobody, "unspecified", "RFC 4291"),
	block("::1/128", Nobody, "loopback", "RFC 4291"),
	block("::ffff:0:0/96", Nobody, "v4-mapped", "RFC 4291"),
	block("64:ff9b::/96", Global, "NAT64", "RFC 6052"),           // the well-known prefix
	block("64:ff9b:1::/48", Network, "local NAT64", "RFC 8215"),  // for translators within a network
	block("100::/64", Network, "discard-only", "RFC 6666"),       // packets to it are dropped
	block("100:0:0:1::/64", Network, "dummy", "RFC 9780"),        // the dummy prefix
	block("2001::/23", Network, "protocol", "RFC 2928"),          // IETF protocol assignments
	block("2001::/32", Global, "Teredo", "RFC 4380"),             // reachable as far as relays go (the registry: not applicable)
	block("2001:1::1/128", Global, "PCP anycast", "RFC 7723"),    // globally reachable
	block("2001:1::2/128", Global, "TURN anycast", "RFC 8155"),   // globally reachable
	block("2001:1::3/128", Global, "SRP anycast", "RFC 9665"),    // globally reachable
	block("2001:2::/48", Network, "benchmarking", "RFC 5180"),    // between test devices
	block("2001:3::/32", Global, "AMT", "RFC 7450"),              // globally reachable
	block("2001:4:112::/48", Global, "AS112", "RFC 7535"),        // globally reachable
	block("2001:10::/28", Retired, "ORCHID", "RFC 4843"),         // deprecated
	block("2001:20::/28", Global, "ORCHIDv2", "RFC 7343"),        // globally reachable
	block("2001:30::/28", Global, "drone identity", "RFC 9374"),  // globally reachable
	block("2001:db8::/32", Example, "documentation", "RFC 3849"), //
	block("2002::/16", Global, "6to4", "RFC 3056"),               // reachable as far as relays go (the registry: not applicable)
	block("2620:4f:8000::/48", Global, "AS112", "RFC 7534"),      // globally reachable
	block("3fff::/20", Example, "documentation", "RFC 9637"),     //
	block("5f00::/16", Network, "segment routing", "RFC 9602"),   // SRv6 SIDs
	block("fc00::/7", Network, "unique local", "RFC 4193"),       //
	block("fe80::/10", Link, "link-local", "RFC 4291"),           //
	block("ff00::/8", Nobody, "multicast", "RFC 4291"),           // no single host
}

func block(prefix string, reach Reach, name, rfc string) Block {
	return Block{netip.MustParsePrefix(prefix), reach, name, rfc}
}

// String names a block as errors do.
func (b Block) String() string {
	s := b.Prefix.String() + ", " + b.Name
	if b.RFC != "" {
		s += " (" + b.RFC + ")"
	}
	return s
}

// Of lists the blocks of a table that reach so far. Parts that reach
// otherwise are still in them.
func Of(table []Block, reaches ...Reach) []Block {
	var list []Block
	for _, b := range table {
		if slices.Contains(reaches, b.Reach) {
			list = append(list, b)
		}
	}
	return list
}

// Around is the longest block that all of p lies in.
func Around(p netip.Prefix) (b Block, ok bool) {
	table := IPv6
	if p.Addr().Is4() {
		table = IPv4
	}
	for _, x := range table {
		if x.Prefix.Bits() <= p.Bits() && x.Prefix.Contains(p.Addr()) && (!ok || x.Prefix.Bits() > b.Prefix.Bits()) {
			b, ok = x, true
		}
	}
	return b, ok
}

// Narrow are the blocks of IPv4 that mean something to hosts and are not
// globally reachable, without their parts that are: what must not stand behind
// WellKnown (RFC 6052 3.1) besides what nobody may send to at all.
func Narrow() []Block {
	var list []Block
	for _, b := range Of(IPv4, Network, Example, Retired) {
		for _, p := range without(b.Prefix, Of(IPv4, Global)) {
			list = append(list, Block{p, b.Reach, b.Name, b.RFC})
		}
	}
	return list
}

// without is a prefix less the holes inside it, as prefixes by address.
func without(p netip.Prefix, holes []Block) []netip.Prefix {
	i := slices.IndexFunc(holes, func(h Block) bool { return p.Overlaps(h.Prefix) })
	switch {
	case i < 0:
		return []netip.Prefix{p}
	case holes[i].Prefix.Bits() <= p.Bits():
		return nil
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	high := p.Addr().As4()
	high[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	return append(without(low, holes), without(netip.PrefixFrom(netip.AddrFrom4(high), p.Bits()+1), holes)...)
}

// Prefixes are those of blocks.
func Prefixes(blocks []Block) []netip.Prefix {
	list := make([]netip.Prefix, len(blocks))
	for i, b := range blocks {
		list[i] = b.Prefix
	}
	return list
}
