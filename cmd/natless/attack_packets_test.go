package main_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/oracle/packetgen"
)

// Marks in attacking packets, for who judges what arrives.
const (
	markForged = "natless-attack:forged" // in the data of a packet that is nobody's to send
	markQuoted = "natless-attack:quoted" // in the quote of a forged ICMP error
)

// send has a station send packets to the host, whatever is in them.
func (s station) send(packets ...[]byte) error {
	return s.Do(func() error { return emit("eth0", s.gate, packets...) })
}

// emit sends packets on a link of the thread's namespace. What is too large for
// it is lost.
func emit(name string, gate net.HardwareAddr, packets ...[]byte) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6}
	copy(to.Addr[:], gate)
	for _, b := range packets {
		to.Protocol = htons(unix.ETH_P_IPV6)
		if len(b) > 0 && b[0]>>4 == 4 {
			to.Protocol = htons(unix.ETH_P_IP)
		}
		_ = unix.Sendto(fd, b, 0, &to)
	}
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// packet is an IP packet with right checksums.
func packet(src, dst netip.Addr, hops uint8, upper ...gopacket.SerializableLayer) []byte {
	var network gopacket.SerializableLayer
	protocol := layers.IPProtocolNoNextHeader
	switch upper[0].(type) {
	case *layers.UDP:
		protocol = layers.IPProtocolUDP
	case *layers.TCP:
		protocol = layers.IPProtocolTCP
	case *layers.ICMPv6:
		protocol = layers.IPProtocolICMPv6
	case *layers.ICMPv4:
		protocol = layers.IPProtocolICMPv4
	}
	if src.Is4() {
		network = &layers.IPv4{Version: 4, TTL: hops, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	} else {
		network = &layers.IPv6{Version: 6, HopLimit: hops, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	if summed, ok := upper[0].(interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}); ok {
		_ = summed.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)) // it is IP
	}
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, append([]gopacket.SerializableLayer{network}, upper...)...); err != nil {
		panic(err) // the harness is wrong
	}
	return buf.Bytes()
}

func udpPacket(src, dst netip.Addr, from, to uint16, data []byte) []byte {
	return packet(src, dst, 64, &layers.UDP{SrcPort: layers.UDPPort(from), DstPort: layers.UDPPort(to)}, gopacket.Payload(data))
}

func tcpPacket(src, dst netip.Addr, from, to uint16, flags, data string) []byte {
	t := &layers.TCP{SrcPort: layers.TCPPort(from), DstPort: layers.TCPPort(to), Seq: 1000, Ack: 2000, Window: 1000}
	for _, f := range flags {
		switch f {
		case 'S':
			t.SYN = true
		case 'A':
			t.ACK = true
		case 'F':
			t.FIN = true
		case 'R':
			t.RST = true
		}
	}
	return packet(src, dst, 64, t, gopacket.Payload(data))
}

func echoPacket(src, dst netip.Addr, hops uint8, data string) []byte {
	data = "\x12\x34\x00\x01" + data
	if src.Is4() {
		return packet(src, dst, hops, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 0x1234}, gopacket.Payload(data))
	}
	return packet(src, dst, hops, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}, gopacket.Payload(data))
}

// trouble is an ICMP error: an unreachable port, or with an MTU, in bytes, a
// packet too big.
func trouble(src, dst netip.Addr, mtu uint16, quote []byte) []byte {
	if src.Is4() {
		code := layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort)
		if mtu > 0 {
			code = layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded)
		}
		return packet(src, dst, 64, &layers.ICMPv4{TypeCode: code, Seq: mtu}, gopacket.Payload(quote))
	}
	code := layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodePortUnreachable)
	if mtu > 0 {
		code = layers.CreateICMPv6TypeCode(layers.ICMPv6TypePacketTooBig, 0)
	}
	rest := binary.BigEndian.AppendUint32(nil, uint32(mtu))
	return packet(src, dst, 64, &layers.ICMPv6{TypeCode: code}, gopacket.Payload(append(rest, quote...)))
}

// plain is a sound packet of some kind, with a mark in its data.
func plain(r *rand.Rand, src, dst netip.Addr, mark string) []byte {
	from, to := uint16(r.IntN(1<<16)), []uint16{7, 9, 22, 53, 80, 8080, uint16(r.IntN(1 << 16))}[r.IntN(7)]
	switch r.IntN(4) {
	case 0:
		return tcpPacket(src, dst, from, to, "S", mark)
	case 1:
		return echoPacket(src, dst, 64, mark)
	default:
		return udpPacket(src, dst, from, to, []byte(mark))
	}
}

// mad is a packet of packetgen's between two addresses; checksums of what it
// carries are mostly wrong then.
func mad(r *rand.Rand, src, dst netip.Addr) []byte {
	data := make([]byte, 128)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	if src.Is4() {
		b := packetgen.IPv4(packetgen.New(data))
		if len(b) >= 20 {
			copy(b[12:16], src.AsSlice())
			copy(b[16:20], dst.AsSlice())
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^checksum.Checksum(b[:min(len(b), max(20, int(b[0]&15)*4))], 0))
		}
		return b
	}
	b := packetgen.IPv6(packetgen.New(data))
	if len(b) >= 40 {
		copy(b[8:24], src.AsSlice())
		copy(b[24:40], dst.AsSlice())
	}
	return b
}

// seen is what a judge looks at in a packet.
type seen struct {
	src, dst  netip.Addr
	protocol  byte
	upper     []byte // behind the IP header; extension headers are not followed
	icmpError bool
	mtu       int // of a packet too big, or -1
}

func see(b []byte) (p seen, ok bool) {
	p.mtu = -1
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4:
		p.src, p.dst, p.protocol = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9]
		p.upper = b[int(b[0]&15)*4:]
		if p.protocol == unix.IPPROTO_ICMP && len(p.upper) >= 8 {
			p.icmpError = p.upper[0] == 3 || p.upper[0] == 5 || p.upper[0] == 11 || p.upper[0] == 12
			if p.upper[0] == 3 && p.upper[1] == 4 {
				p.mtu = int(binary.BigEndian.Uint16(p.upper[6:]))
			}
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		p.src, p.dst, p.protocol = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6]
		p.upper = b[40:]
		if p.protocol == unix.IPPROTO_ICMPV6 && len(p.upper) >= 8 {
			p.icmpError = p.upper[0] < 128
			if p.upper[0] == 2 {
				p.mtu = int(binary.BigEndian.Uint32(p.upper[4:]))
			}
		}
	default:
		return p, false
	}
	return p, true
}

func (p seen) String() string {
	return fmt.Sprintf("%v > %v protocol %d %x", p.src, p.dst, p.protocol, p.upper[:min(len(p.upper), 96)])
}

// behind is an IPv4 address by pref64.
func behind(ipv4 string) netip.Addr { return lab.Embed(lab.Pref64, ipv4) }
