package trace

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// MaxPacket is the size of the largest packet of either family, in bytes.
const MaxPacket = 40 + 65535

// Packet sizes and header values of packets made from words.
const (
	ipv4Header, ipv6Header = 20, 40
	defaultHops            = 64
)

// offset is what hex dumps print in front of a line: "0x0010:".
var offset = regexp.MustCompile(`^0x[0-9a-fA-F]+:$`)

// ReadPacket makes a packet of what a person writes: its bytes in hex, spaced
// as one likes and with the offsets of a hex dump or without, or words:
//
//	tcp SRC SPORT DST DPORT [ttl N] [len N] [df]
//	udp SRC SPORT DST DPORT [ttl N] [len N] [df]
//	icmp SRC DST [ttl N] [len N] [df]
//
// A TCP packet is a SYN, an ICMP packet an echo request. ttl is the TTL or hop
// limit, 64 without it; len the length of the whole packet in bytes, without it
// no more than its headers; df the Don't Fragment flag of IPv4.
func ReadPacket(text string) ([]byte, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, errors.New("reading the packet: there is none: expected hex, or words such as tcp SRC SPORT DST DPORT")
	}
	read := readHex
	if build := builders[words[0]]; build != nil {
		read = func([]string) ([]byte, error) { return build(&line{words: words[1:]}) }
	}
	b, err := read(words)
	if err != nil {
		return nil, fmt.Errorf("reading the packet: %w", err)
	}
	if len(b) > MaxPacket {
		return nil, fmt.Errorf("reading the packet: it has %d bytes: expected at most %d", len(b), MaxPacket)
	}
	return b, nil
}

func readHex(words []string) ([]byte, error) {
	var digits strings.Builder
	for _, w := range words {
		if !offset.MatchString(w) {
			digits.WriteString(w)
		}
	}
	b, err := hex.DecodeString(digits.String())
	var bad hex.InvalidByteError
	switch {
	case errors.As(err, &bad):
		return nil, fmt.Errorf("%q: expected hex digits, or words that begin with tcp, udp or icmp", words[0])
	case err != nil:
		return nil, fmt.Errorf("%d hex digits: expected two for each byte", digits.Len())
	}
	return b, nil
}

var builders = map[string]func(*line) ([]byte, error){"tcp": buildTCP, "udp": buildUDP, "icmp": buildEcho}

// line is what is left of the words. The first error stays.
type line struct {
	words []string
	err   error
}

// next is the next word, which is to be what is expected.
func (l *line) next(expected string) string {
	if l.err == nil && len(l.words) == 0 {
		l.err = fmt.Errorf("it ends too early: expected %s", expected)
	}
	if l.err != nil {
		return ""
	}
	w := l.words[0]
	l.words = l.words[1:]
	return w
}

func (l *line) addr(what string) netip.Addr {
	w := l.next(what)
	if l.err != nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(w)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		l.err = fmt.Errorf("%q: expected %s, an IPv4 or IPv6 address", w, what)
	}
	return a
}

func (l *line) number(what string, least, most int) int {
	w := l.next(what)
	if l.err != nil {
		return least
	}
	n, err := strconv.Atoi(w)
	if err != nil || n < least || n > most {
		l.err = fmt.Errorf("%q: expected %s, %d to %d", w, what, least, most)
	}
	return n
}

func (l *line) port(what string) uint16 { return uint16(l.number(what, 0, 65535)) }

// ends are the addresses of a packet and, where there are any, its ports.
type ends struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

func (l *line) ends(ports bool) (e ends) {
	e.src = l.addr("the source")
	if ports {
		e.srcPort = l.port("the source port")
	}
	e.dst = l.addr("the destination")
	if ports {
		e.dstPort = l.port("the destination port")
	}
	if l.err == nil && e.src.Is4() != e.dst.Is4() {
		l.err = fmt.Errorf("%v and %v: expected two addresses of one family", e.src, e.dst)
	}
	return e
}

// packet puts the transport header into a packet between the two ends, by the
// options that the line ends with. headers is the length of l4, in bytes.
func (l *line) packet(e ends, headers int, l4 ...gopacket.SerializableLayer) ([]byte, error) {
	least, most := ipv4Header+headers, 65535
	if e.src.Is6() {
		least, most = ipv6Header+headers, MaxPacket
	}
	hops, size, df := defaultHops, least, false
	for l.err == nil && len(l.words) > 0 {
		switch w := l.next("an option"); w {
		case "ttl":
			hops = l.number("a TTL", 0, 255)
		case "len":
			size = l.number("the length of the whole packet in bytes", least, most)
		case "df":
			if df = true; e.src.Is6() {
				l.err = errors.New("df: expected with IPv4 addresses only")
			}
		default:
			l.err = fmt.Errorf("%q: expected ttl N, len N or df", w)
		}
	}
	if l.err != nil {
		return nil, l.err
	}
	network := e.header(uint8(hops), df, l4[0].LayerType())
	if sum, ok := l4[0].(interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}); ok {
		if err := sum.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)); err != nil {
			return nil, err
		}
	}
	stack := append([]gopacket.SerializableLayer{network}, l4...)
	stack = append(stack, gopacket.Payload(make([]byte, size-least)))
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

var protocols = map[gopacket.LayerType]layers.IPProtocol{
	layers.LayerTypeTCP: layers.IPProtocolTCP, layers.LayerTypeUDP: layers.IPProtocolUDP,
	layers.LayerTypeICMPv4: layers.IPProtocolICMPv4, layers.LayerTypeICMPv6: layers.IPProtocolICMPv6,
}

func (e ends) header(hops uint8, df bool, next gopacket.LayerType) gopacket.SerializableLayer {
	src, dst := net.IP(e.src.AsSlice()), net.IP(e.dst.AsSlice())
	if e.src.Is6() {
		return &layers.IPv6{Version: 6, HopLimit: hops, NextHeader: protocols[next], SrcIP: src, DstIP: dst}
	}
	ip := &layers.IPv4{Version: 4, TTL: hops, Protocol: protocols[next], SrcIP: src, DstIP: dst}
	if df {
		ip.Flags = layers.IPv4DontFragment
	}
	return ip
}

func buildTCP(l *line) ([]byte, error) {
	e := l.ends(true)
	return l.packet(e, 20, &layers.TCP{SrcPort: layers.TCPPort(e.srcPort), DstPort: layers.TCPPort(e.dstPort), SYN: true, Window: 65535})
}

func buildUDP(l *line) ([]byte, error) {
	e := l.ends(true)
	return l.packet(e, 8, &layers.UDP{SrcPort: layers.UDPPort(e.srcPort), DstPort: layers.UDPPort(e.dstPort)})
}

func buildEcho(l *line) ([]byte, error) {
	e := l.ends(false)
	if e.src.Is4() {
		return l.packet(e, 8, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 1, Seq: 1})
	}
	return l.packet(e, 8, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}, &layers.ICMPv6Echo{Identifier: 1, SeqNumber: 1})
}
