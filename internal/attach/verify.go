package attach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"

	"github.com/natless/natless/mapping"
)

// behind is an address behind pref64: natless's own, which answers, if it has
// one.
func behind(pref64 netip.Prefix, own netip.Addr) (netip.Addr, error) {
	p, err := mapping.ParsePrefix64(pref64)
	if err != nil {
		return netip.Addr{}, err
	}
	if !own.IsValid() {
		own = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	return p.Embed(own), nil
}

// verify says what keeps packets of the namespace from natless, after all was
// done. The record is in force, or the daemon would not have answered.
func (w *work) verify(ctx context.Context, answers bool) []string {
	way, ok := w.n.wayTo(w.probe)
	if !ok {
		return []string{fmt.Sprintf("it has no route to %v any more", w.pref64)}
	}
	if way.src != w.record.IPv6 {
		return []string{fmt.Sprintf("connections to %v come from %v, and not from %v, which has the lease", w.pref64, way.src, w.record.IPv6)}
	}
	if !answers {
		return nil
	}
	err := w.n.do(func() error { return ping(ctx, w.record.IPv6, w.probe) })
	if err != nil {
		return []string{fmt.Sprintf("natless does not answer it: %v", err)}
	}
	return nil
}

// answerTime is how long natless's answer may take: the daemon may have to see a
// new link first, and to let it forward.
const answerTime = 5 * time.Second

// ping sends echo requests until one is answered.
func ping(ctx context.Context, from, to netip.Addr) error {
	conn, err := icmp.ListenPacket("ip6:ipv6-icmp", from.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	until := time.Now().Add(answerTime)
	request := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: 0x6464}}
	bytes, err := request.Marshal(nil) // the kernel fills in the checksum
	if err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for time.Now().Before(until) && ctx.Err() == nil {
		if _, err := conn.WriteTo(bytes, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		for {
			n, peer, err := conn.ReadFrom(buf)
			if err != nil {
				break // in time; the next request follows
			}
			m, err := icmp.ParseMessage(ipv6.ICMPTypeEchoReply.Protocol(), buf[:n])
			if err == nil && m.Type == ipv6.ICMPTypeEchoReply && peer.String() == to.String() {
				return nil
			}
		}
	}
	return fmt.Errorf("no echo reply from %v within %v", to, answerTime)
}
