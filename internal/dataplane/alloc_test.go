package dataplane

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// TestNoAllocations holds that no packet on its way costs memory, whatever
// becomes of it.
func TestNoAllocations(t *testing.T) {
	table, err := mapping.New(mapping.Config{
		Pref64: netip.MustParsePrefix("64:ff9b::/96"),
		Maps: []mapping.Map{
			{IPv4: netip.MustParsePrefix(one4 + "/32"), IPv6: netip.MustParsePrefix(one6 + "/128")},
			{IPv4: netip.MustParsePrefix(two4 + "/32"), IPv6: netip.MustParsePrefix(two6 + "/128")},
		},
		OwnIPv4: addr(own4), OwnIPv6: addr(own6), Hairpin: true,
	})
	require.NoError(t, err)
	p := New(Config{
		Queues: []tun.Queue{nowhere{}}, Resolver: table, IPv4: addr(own4), IPv6: addr(own6),
		Options: translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
	})
	uncut := ip(server4, one4, 64).(*layers.IPv4)
	uncut.Flags = 0
	for _, c := range []struct {
		want   translate.Verdict
		packet []byte
	}{
		{translate.OK, tcp(one6, server6, 1500)},
		{translate.OK, tcp(server4, one4, 1480)},
		{translate.OK, unreachable4(server4, one4, tcp(one4, server4, 100))},
		{translate.Hairpin, tcp(one6, twoSeen, 1500)},
		{translate.Fragmented, build(uncut, &layers.UDP{}, payload(1400))},
		{translate.Answered, echo6(one6, own6)},
		{translate.DestinationUnmapped, tcp(one6, nobody6, 100)},
		{translate.TooBig, tcp(server4, one4, 1500)},
		{translate.Truncated, tcp(one6, server6, 100)[:41]},
	} {
		w := p.workers[0]
		before := p.Counters().Verdicts[c.want]
		allocs := testing.AllocsPerRun(500, func() {
			w.handle(copy(w.translator.packet.Buf[headroom:], c.packet), &tun.Header{})
		})
		assert.Zero(t, allocs, c.want)
		assert.EqualValues(t, 501, p.Counters().Verdicts[c.want]-before, c.want)
	}
}
