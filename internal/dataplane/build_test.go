package dataplane

import (
	"net"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// ip is the IP header of a packet between two addresses of one family.
func ip(src, dst string, hops uint8) gopacket.SerializableLayer {
	a, b := net.IP(netip.MustParseAddr(src).AsSlice()), net.IP(netip.MustParseAddr(dst).AsSlice())
	if len(a) == 4 {
		return &layers.IPv4{Version: 4, TTL: hops, SrcIP: a, DstIP: b, Flags: layers.IPv4DontFragment}
	}
	return &layers.IPv6{Version: 6, HopLimit: hops, SrcIP: a, DstIP: b}
}

// build puts layers together, with lengths and checksums.
func build(stack ...gopacket.SerializableLayer) []byte {
	var next layers.IPProtocol
	switch l4 := stack[1].(type) {
	case *layers.TCP:
		next = layers.IPProtocolTCP
		l4.SetNetworkLayerForChecksum(stack[0].(gopacket.NetworkLayer))
	case *layers.UDP:
		next = layers.IPProtocolUDP
		l4.SetNetworkLayerForChecksum(stack[0].(gopacket.NetworkLayer))
	case *layers.ICMPv4:
		next = layers.IPProtocolICMPv4
	case *layers.ICMPv6:
		next = layers.IPProtocolICMPv6
		l4.SetNetworkLayerForChecksum(stack[0].(gopacket.NetworkLayer))
	}
	switch h := stack[0].(type) {
	case *layers.IPv4:
		h.Protocol = next
	case *layers.IPv6:
		h.NextHeader = next
	}
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// tcp is a TCP packet of so many bytes in all.
func tcp(src, dst string, size int) []byte {
	h := ip(src, dst, 64)
	headers := 60
	if _, v4 := h.(*layers.IPv4); v4 {
		headers = 40
	}
	return build(h, &layers.TCP{SrcPort: 4000, DstPort: 80, ACK: true}, payload(size-headers))
}

func payload(n int) gopacket.Payload { return make([]byte, n) }
