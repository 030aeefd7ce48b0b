package trace

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/natless/natless/translate"
)

// Words says what a packet is, header by header. What cannot be decoded ends
// it.
func Words(packet []byte) string {
	if len(packet) == 0 {
		return "nothing"
	}
	var first gopacket.LayerType
	switch packet[0] >> 4 {
	case 4:
		first = layers.LayerTypeIPv4
	case 6:
		first = layers.LayerTypeIPv6
	default:
		return fmt.Sprintf("not IP: version %d", packet[0]>>4)
	}
	var said []string
	p := gopacket.NewPacket(packet, first, gopacket.NoCopy)
	for _, l := range p.Layers() {
		if text := layerWords(l); text != "" {
			said = append(said, text)
		}
	}
	if failed := p.ErrorLayer(); failed != nil {
		said = append(said, "cut short or damaged: "+failed.Error().Error())
	}
	return strings.Join(said, "; ")
}

func layerWords(l gopacket.Layer) string {
	switch l := l.(type) {
	case *layers.IPv4:
		return ipv4Words(l)
	case *layers.IPv6:
		if l.SrcIP == nil { // gopacket found it damaged
			return "IPv6"
		}
		return fmt.Sprintf("IPv6 %v > %v, hop limit %d, %d bytes%s", l.SrcIP, l.DstIP, l.HopLimit, 40+int(l.Length), tos(l.TrafficClass))
	case *layers.IPv6HopByHop:
		return "hop-by-hop options"
	case *layers.IPv6Destination:
		return "destination options"
	case *layers.IPv6Routing:
		return fmt.Sprintf("routing header with %d segments left", l.SegmentsLeft)
	case *layers.IPv6Fragment:
		return fmt.Sprintf("fragment %#x at %d%s", l.Identification, int(l.FragmentOffset)*8, more(l.MoreFragments))
	case *layers.TCP:
		return fmt.Sprintf("TCP %d > %d%s, %d bytes of data", l.SrcPort, l.DstPort, tcpFlags(l), len(l.Payload))
	case *layers.UDP:
		return fmt.Sprintf("UDP %d > %d, %d bytes of data", l.SrcPort, l.DstPort, len(l.Payload))
	case *layers.ICMPv4:
		return icmpv4Words(l)
	case *layers.ICMPv6:
		return icmpv6Words(l)
	case *layers.ICMPv6Echo:
		return fmt.Sprintf("id %d, seq %d", l.Identifier, l.SeqNumber)
	}
	return ""
}

func ipv4Words(l *layers.IPv4) string {
	if l.SrcIP == nil {
		return "IPv4"
	}
	text := fmt.Sprintf("IPv4 %v > %v, ttl %d, %d bytes%s", l.SrcIP, l.DstIP, l.TTL, l.Length, tos(l.TOS))
	if l.Flags&layers.IPv4DontFragment != 0 {
		text += ", DF"
	}
	if l.FragOffset != 0 || l.Flags&layers.IPv4MoreFragments != 0 {
		text += fmt.Sprintf(", fragment %#x at %d%s", l.Id, int(l.FragOffset)*8, more(l.Flags&layers.IPv4MoreFragments != 0))
	}
	return text
}

func tos(v uint8) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf(", traffic class %#x", v)
}

func more(is bool) string {
	if is {
		return ", more to come"
	}
	return ", the last"
}

func tcpFlags(l *layers.TCP) string {
	text := ""
	for _, f := range []struct {
		set  bool
		name string
	}{{l.SYN, " SYN"}, {l.FIN, " FIN"}, {l.RST, " RST"}, {l.PSH, " PSH"}, {l.ACK, " ACK"}, {l.URG, " URG"}, {l.ECE, " ECE"}, {l.CWR, " CWR"}} {
		if f.set {
			text += f.name
		}
	}
	return text
}

func icmpv4Words(l *layers.ICMPv4) string {
	text := "ICMP " + l.TypeCode.String()
	switch l.TypeCode.Type() {
	case layers.ICMPv4TypeEchoRequest, layers.ICMPv4TypeEchoReply:
		return fmt.Sprintf("%s; id %d, seq %d", text, l.Id, l.Seq)
	case layers.ICMPv4TypeDestinationUnreachable:
		if l.TypeCode.Code() == layers.ICMPv4CodeFragmentationNeeded {
			text += fmt.Sprintf(", MTU %d", l.Seq)
		}
	case layers.ICMPv4TypeTimeExceeded, layers.ICMPv4TypeParameterProblem:
	default:
		return text
	}
	return text + ", about [" + Words(l.Payload) + "]"
}

// icmpv6Words leaves to the layer behind what it says.
func icmpv6Words(l *layers.ICMPv6) string {
	text := "ICMPv6 " + l.TypeCode.String()
	if l.TypeCode.Type() >= 128 || len(l.Payload) < 4 {
		return text
	}
	rest := binary.BigEndian.Uint32(l.Payload)
	switch l.TypeCode.Type() {
	case layers.ICMPv6TypePacketTooBig:
		text += fmt.Sprintf(", MTU %d", rest)
	case layers.ICMPv6TypeParameterProblem:
		text += fmt.Sprintf(", pointing at byte %d", rest)
	}
	return text + ", about [" + Words(l.Payload[4:]) + "]"
}

// flowWords is a flow as Parse found it.
func flowWords(f translate.Flow) string {
	text := fmt.Sprintf("%s from %v to %v", protocol(f.Proto), f.Src, f.Dst)
	switch {
	case f.Frag == translate.Later:
		return text + ", a later fragment"
	case f.Proto == 1, f.Proto == 58:
		text = fmt.Sprintf("%s, identifier %d", text, f.SrcPort)
	case f.SrcPort != 0 || f.DstPort != 0:
		text = fmt.Sprintf("%s from %v port %d to %v port %d", protocol(f.Proto), f.Src, f.SrcPort, f.Dst, f.DstPort)
	}
	if f.Frag == translate.First {
		text += ", a first fragment"
	}
	return text
}

func protocol(number uint8) string {
	switch number {
	case 1:
		return "ICMP"
	case 58:
		return "ICMPv6"
	}
	if name := layers.IPProtocol(number).String(); !strings.HasPrefix(name, "Unknown") {
		return name
	}
	return fmt.Sprintf("protocol %d", number)
}
