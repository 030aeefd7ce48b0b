package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Answer is what came back for an echo request.
type Answer struct {
	From    netip.Addr
	Reached bool // an echo reply; otherwise an ICMP error quoting the request
	Type    icmp.Type
	Code    int
	Took    time.Duration
}

// pinger sends echo requests of one family from one node.
type pinger struct {
	conn   *icmp.PacketConn
	target netip.Addr
	id     int
}

func (n *Node) pinger(source string, target netip.Addr) (p *pinger, err error) {
	network := "ip6:ipv6-icmp"
	if target.Is4() {
		network = "ip4:icmp"
	}
	if source == "" && target.Is4() {
		source = "0.0.0.0"
	}
	p = &pinger{target: target, id: rand.IntN(1 << 16)}
	err = n.Do(func() error {
		p.conn, err = icmp.ListenPacket(network, source)
		return err
	})
	return p, err
}

func (p *pinger) limit(hops int) error {
	if p.target.Is4() {
		return p.conn.IPv4PacketConn().SetTTL(hops)
	}
	return p.conn.IPv6PacketConn().SetHopLimit(hops)
}

// once sends one request with size bytes of data and waits for what comes of
// it, at most until timeout or the deadline of
// ctx.
func (p *pinger) once(ctx context.Context, seq, size int, timeout time.Duration) (a Answer, err error) {
	m := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: block()[:size]}}
	if p.target.Is4() {
		m.Type = ipv4.ICMPTypeEcho
	}
	b, err := m.Marshal(nil) // the kernel fills in the checksum of ICMPv6
	if err != nil {
		return a, err
	}
	start := time.Now()
	deadline := start.Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := p.conn.SetDeadline(deadline); err != nil {
		return a, err
	}
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.target.AsSlice()}); err != nil {
		return a, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if err != nil {
			return a, err
		}
		m, err := icmp.ParseMessage(m.Type.Protocol(), buf[:n])
		if err != nil || !p.answers(m, seq) {
			continue
		}
		ip, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		_, reached := m.Body.(*icmp.Echo)
		return Answer{From: ip.Unmap(), Reached: reached, Type: m.Type, Code: m.Code, Took: time.Since(start)}, nil
	}
}

// answers reports whether a message is the reply to request seq, or an error
// that quotes it.
func (p *pinger) answers(m *icmp.Message, seq int) bool {
	var quote []byte
	switch b := m.Body.(type) {
	case *icmp.Echo:
		isReply := m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply
		return isReply && b.ID == p.id && b.Seq == seq
	case *icmp.TimeExceeded:
		quote = b.Data
	case *icmp.DstUnreach:
		quote = b.Data
	case *icmp.PacketTooBig:
		quote = b.Data
	default:
		return false
	}
	header := ipv6.HeaderLen
	if p.target.Is4() && len(quote) > 0 {
		header = int(quote[0]&0xf) * 4
	}
	if len(quote) < header+8 {
		return false
	}
	inner := quote[header:]
	return int(inner[4])<<8|int(inner[5]) == p.id && int(inner[6])<<8|int(inner[7]) == seq
}

// Ping sends echo requests with size bytes of data from the node until one is
// answered, three at most. An ICMP error is an error here.
func Ping(ctx context.Context, n *Node, source string, target netip.Addr, size int) (a Answer, err error) {
	p, err := n.pinger(source, target)
	if err != nil {
		return a, fmt.Errorf("ping %s: %w", target, err)
	}
	defer p.conn.Close()
	for seq := 1; seq <= 3 && ctx.Err() == nil; seq++ {
		if a, err = p.once(ctx, seq, size, Stall/4); err == nil && a.Reached {
			return a, nil
		}
		if err == nil {
			err = fmt.Errorf("%s says %s, code %d", a.From, a.Type, a.Code)
		}
	}
	return a, fmt.Errorf("ping %s: %w", target, errors.Join(err, ctx.Err()))
}

// Traceroute sends echo requests with growing hop limits and returns who
// answered each, ending with the target. A hop that keeps silent is the zero
// Answer.
func Traceroute(ctx context.Context, n *Node, source string, target netip.Addr) (hops []Answer, err error) {
	p, err := n.pinger(source, target)
	if err != nil {
		return nil, fmt.Errorf("traceroute %s: %w", target, err)
	}
	defer p.conn.Close()
	for limit := 1; limit <= 8 && ctx.Err() == nil; limit++ {
		if err := p.limit(limit); err != nil {
			return hops, fmt.Errorf("traceroute %s: %w", target, err)
		}
		var a Answer
		for try := 0; try < 2 && a.Type == nil; try++ { // routers limit their errors
			a, _ = p.once(ctx, 100*limit+try, 32, Stall/10) // silence is the zero Answer
		}
		hops = append(hops, a)
		if a.Reached {
			return hops, nil
		}
	}
	return hops, fmt.Errorf("traceroute %s: not reached in %d hops", target, len(hops))
}
