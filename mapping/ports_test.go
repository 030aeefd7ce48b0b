package mapping

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/natless/natless/translate"
)

const (
	sharedV4 = "192.0.2.7"
	server4  = "203.0.113.80"
	server6  = "64:ff9b::203.0.113.80"
)

// sharing makes a table of one shared address, which is natless's own, and of
// three clients; the third has an address for itself.
func sharing(t testing.TB) *Table {
	own := poolOf("198.51.100.0/30")
	own.Clients = []netip.Prefix{netip.PrefixFrom(lessee(3), 128)}
	p := rangesOf(sharedV4 + "/32")
	p.Ports = Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535}
	x, err := New(Config{
		Pref64: pfx("64:ff9b::/96"), Pools: []Pool{own, p}, OwnIPv4: addr(sharedV4), OwnIPv6: addr("fd00::1"), Hairpin: true,
	})
	require.NoError(t, err)
	for n := range 3 {
		f := flow(lessee(n+1).String(), server6)
		f.SrcPort = 1024 + 1024*uint16(n)
		_, v := x.Resolve(f, 1000)
		require.Equal(t, translate.OK.String(), v.String())
	}
	return x
}

func protoFlow(proto uint8, src string, srcPort uint16, dst string, dstPort uint16) translate.Flow {
	return translate.Flow{Src: addr(src), Dst: addr(dst), SrcPort: srcPort, DstPort: dstPort, Proto: proto}
}

func TestSharedAddress(t *testing.T) {
	x := sharing(t)
	one, two, three := lessee(1).String(), lessee(2).String(), lessee(3).String()
	const shared6 = "64:ff9b::192.0.2.7"
	first := &Range{Client: lessee(1), IPv4: addr(sharedV4), First: 1024, Last: 2047, Session: 1920}
	second := &Range{Client: lessee(2), IPv4: addr(sharedV4), First: 2048, Last: 3071, Session: 2944}
	for name, c := range map[string]struct {
		in       translate.Flow
		src, dst string
		ranges   Ranges
		verdict  translate.Verdict // of who knows sessions
		alone    translate.Verdict
	}{
		"first port out":     {protoFlow(6, one, 1024, server6, 80), sharedV4, server4, Ranges{Src: first}, translate.OK, translate.OK},
		"last stateless out": {protoFlow(17, one, 1919, server6, 80), sharedV4, server4, Ranges{Src: first}, translate.OK, translate.OK},
		"session part out":   {protoFlow(17, one, 1920, server6, 80), sharedV4, server4, Ranges{Src: first}, translate.OK, translate.NoSession},
		"other's port out":   {protoFlow(6, one, 2048, server6, 80), sharedV4, server4, Ranges{Src: first}, translate.OK, translate.NoSession},
		"below out":          {protoFlow(6, two, 2047, server6, 80), sharedV4, server4, Ranges{Src: second}, translate.OK, translate.NoSession},
		"echo out":           {protoFlow(58, one, 1024, server6, 1024), sharedV4, server4, Ranges{Src: first}, translate.OK, translate.NoSession},
		"UDP-Lite out":       {protoFlow(136, one, 1024, server6, 80), sharedV4, server4, Ranges{Src: first}, translate.OK, translate.NoSession},
		"no range out":       {protoFlow(6, three, 1, server6, 80), "198.51.100.1", server4, Ranges{}, translate.OK, translate.OK},

		"first port in":     {protoFlow(6, server4, 80, sharedV4, 1024), server6, one, Ranges{Dst: first}, translate.OK, translate.OK},
		"last stateless in": {protoFlow(17, server4, 80, sharedV4, 2943), server6, two, Ranges{Dst: second}, translate.OK, translate.OK},
		"session part in":   {protoFlow(6, server4, 80, sharedV4, 2944), server6, two, Ranges{Dst: second}, translate.OK, translate.NoSession},
		"last port in":      {protoFlow(6, server4, 80, sharedV4, 3071), server6, two, Ranges{Dst: second}, translate.OK, translate.NoSession},
		"nobody's in":       {protoFlow(6, server4, 80, sharedV4, 3072), "", "", Ranges{}, translate.DestinationUnmapped, translate.DestinationUnmapped},
		"low port in":       {protoFlow(6, server4, 80, sharedV4, 1023), "", "", Ranges{}, translate.DestinationUnmapped, translate.DestinationUnmapped},
		"highest in":        {protoFlow(6, server4, 80, sharedV4, 65535), "", "", Ranges{}, translate.DestinationUnmapped, translate.DestinationUnmapped},
		"without ports in":  {protoFlow(47, server4, 0, sharedV4, 0), "", "", Ranges{}, translate.NoPorts, translate.NoPorts},
		"DCCP in":           {protoFlow(33, server4, 80, sharedV4, 1024), server6, one, Ranges{Dst: first}, translate.OK, translate.NoSession},
		"echo in":           {protoFlow(1, server4, 1024, sharedV4, 1024), server6, one, Ranges{Dst: first}, translate.OwnAddress, translate.OwnAddress},
		"nobody's echo in":  {protoFlow(1, server4, 7, sharedV4, 7), "", "", Ranges{}, translate.OwnAddress, translate.OwnAddress},

		"hairpin":            {protoFlow(6, one, 1024, shared6, 2048), sharedV4, sharedV4, Ranges{Src: first}, translate.Hairpin, translate.Hairpin},
		"hairpin to himself": {protoFlow(6, one, 1024, shared6, 1025), sharedV4, sharedV4, Ranges{Src: first}, translate.Hairpin, translate.Hairpin},
		"hairpin of session": {protoFlow(6, one, 99, shared6, 2048), sharedV4, sharedV4, Ranges{Src: first}, translate.Hairpin, translate.NoSession},
		"hairpin to nobody":  {protoFlow(6, one, 1024, shared6, 80), "", "", Ranges{}, translate.DestinationUnmapped, translate.DestinationUnmapped},
		"hairpin echo":       {protoFlow(58, one, 2048, shared6, 2048), sharedV4, sharedV4, Ranges{first, second}, translate.OwnAddress, translate.OwnAddress},
		"echo of a stranger": {protoFlow(58, "2001:db9::1", 2048, shared6, 2048), "", "", Ranges{}, translate.OwnAddress, translate.OwnAddress},
	} {
		t.Run(name, func(t *testing.T) {
			f := c.in
			ranges, v := x.ResolveRanges(&f, 1000)
			assert.Equal(t, c.verdict.String(), v.String())
			assert.Equal(t, c.ranges, ranges)
			if c.src != "" {
				assert.Equal(t, addr(c.src), f.Src)
				assert.Equal(t, addr(c.dst), f.Dst)
			}
			assert.Equal(t, [2]uint16{c.in.SrcPort, c.in.DstPort}, [2]uint16{f.SrcPort, f.DstPort}, "ports stay")
			same, sameRanges, v := x.LookupRanges(c.in)
			assert.Equal(t, c.verdict.String(), v.String())
			assert.Equal(t, []any{f, ranges}, []any{same, sameRanges})
			same, sameRanges, v = x.ForeseeRanges(c.in)
			assert.Equal(t, c.verdict.String(), v.String())
			assert.Equal(t, []any{f, ranges}, []any{same, sameRanges})
			_, v = x.Resolve(c.in, 1000)
			assert.Equal(t, c.alone.String(), v.String())
			_, v = x.Lookup(c.in)
			assert.Equal(t, c.alone.String(), v.String())
			_, v = x.Foresee(c.in)
			assert.Equal(t, c.alone.String(), v.String())
		})
	}
	assert.False(t, x.Own(addr(sharedV4)), "it is the clients' too")
	assert.False(t, x.Own(addr(shared6)))
	assert.True(t, x.Own(addr("fd00::1")))

	_, v := x.Release(addr(sharedV4), "me")
	assert.ErrorIs(t, v, ErrConflict)
	gone, err := x.Release(lessee(2), "me")
	require.NoError(t, err)
	assert.Equal(t, []any{"2048-3071", 128}, []any{gone.Ports, gone.SessionPorts})
	_, w := x.Lookup(protoFlow(6, server4, 80, sharedV4, 2048))
	assert.Equal(t, translate.DestinationUnmapped, w)
	info := x.Pools()[1]
	assert.Equal(t, []uint32{63, 63, 63, 1, 61}, []uint32{info.PerAddress, info.Size, info.Usable, info.Lent, info.Free})
	assert.EqualValues(t, 0, x.Pools()[0].PerAddress)
	assert.Contains(t, x.Explain(addr(sharedV4)).Detail, "1 of its 63 ranges are lent")
	assert.Contains(t, x.Explain(lessee(1)).Detail, "ports 1024-2047, of which the last 128 are for sessions")
	assert.Contains(t, x.Explain(addr(shared6)).Detail, "clients share by port")
}

// TestSharedErrors has ICMP errors led by the port of the packet they quote.
func TestExplainShared(t *testing.T) {
	x := sharing(t)
	for address, want := range map[string]string{
		sharedV4:           "an address of pool 192.0.2.7/32 that clients share by port: 2 of its 63 ranges are lent; natless answers ping",
		lessee(9).String(): "a client of pool 192.0.2.7/32; its first packet leases 1024 ports of an address",
		lessee(1).String(): ", ports 1024-2047, of which the last 128 are for sessions",
	} {
		assert.Contains(t, x.Explain(addr(address)).Detail, want, address)
	}
}

func TestSharedErrors(t *testing.T) {
	x := sharing(t)
	for port, want := range map[uint16]string{2048: lessee(2).String(), 3071: lessee(2).String(), 1024: lessee(1).String()} {
		f, v := x.ResolveError(protoFlow(1, "198.18.0.1", 0, sharedV4, port))
		require.Equal(t, translate.OK, v)
		assert.Equal(t, addr(want), f.Dst)
	}
	_, v := x.ResolveError(protoFlow(1, "198.18.0.1", 0, sharedV4, 80))
	assert.Equal(t, translate.DestinationUnmapped, v)
	f, v := x.ResolveError(protoFlow(58, lessee(1).String(), 0, server6, 80))
	require.Equal(t, translate.OK, v, "an error takes no session")
	assert.Equal(t, addr(sharedV4), f.Src)
}

func TestSharedHairpinBack(t *testing.T) {
	x := sharing(t)
	f := protoFlow(6, "198.51.100.1", 80, sharedV4, 2048)
	back, ranges, v := x.HairpinBackRanges(f)
	require.Equal(t, translate.OK, v)
	assert.Equal(t, []netip.Addr{addr("64:ff9b::198.51.100.1"), lessee(2)}, []netip.Addr{back.Src, back.Dst})
	assert.EqualValues(t, 2048, ranges.Dst.First)
	same, v := x.HairpinBack(f)
	assert.Equal(t, []any{back, translate.OK}, []any{same, v})
	f.DstPort = 3000
	_, v = x.HairpinBack(f)
	assert.Equal(t, translate.NoSession, v)
	f.DstPort = 4000
	_, ranges, v = x.HairpinBackRanges(f)
	assert.Equal(t, []any{Ranges{}, translate.DestinationUnmapped}, []any{ranges, v})
	_, ranges, v = x.HairpinBackRanges(protoFlow(6, sharedV4, 1024, "198.51.100.1", 80))
	assert.Equal(t, []any{Ranges{}, translate.OK}, []any{ranges, v})
}

// TestPortsFindTheirClients holds the arithmetic against a list of who has
// what, for pools divided in any way, some of whose clients have gone again.
func TestPortsFindTheirClients(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rangesOf("192.0.2.0/30")
		p.Ports.First = rapid.IntRange(1, 65534).Draw(t, "first")
		p.Ports.Last = rapid.IntRange(p.Ports.First+1, 65535).Draw(t, "last")
		room := p.Ports.Last - p.Ports.First + 1
		p.Ports.PerClient = rapid.IntRange(max(2, room/20), room).Draw(t, "per client")
		p.Ports.Session = rapid.IntRange(1, p.Ports.PerClient-1).Draw(t, "session")
		x, err := New(Config{Pref64: pfx("64:ff9b::/96"), Pools: []Pool{p}, OwnIPv4: addr("192.0.2.1")})
		require.NoError(t, err)
		for n := range rapid.IntRange(0, 70).Draw(t, "clients") {
			x.Resolve(flow(lessee(n).String(), server6), 1)
			if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
				x.Release(lessee(rapid.IntRange(0, n).Draw(t, "who")), "me")
			}
		}
		type span struct{ first, last int }
		owned := map[netip.Addr]map[netip.Addr]span{}
		for _, l := range x.Leases() {
			var s span
			fmt.Sscanf(l.Ports, "%d-%d", &s.first, &s.last)
			require.Equal(t, p.Ports.PerClient, s.last-s.first+1)
			require.True(t, s.first >= p.Ports.First && s.last <= p.Ports.Last)
			for client, other := range owned[l.IPv4] {
				require.True(t, s.last < other.first || s.first > other.last, "%v and %v", client, l.IPv6)
			}
			if owned[l.IPv4] == nil {
				owned[l.IPv4] = map[netip.Addr]span{}
			}
			owned[l.IPv4][l.IPv6] = s
		}
		for range 200 {
			a := addr4(0xc000_0202 + rapid.Uint32Range(0, 1).Draw(t, "address"))
			port := rapid.Uint16().Draw(t, "port")
			var owner netip.Addr
			var part span
			for client, s := range owned[a] {
				if int(port) >= s.first && int(port) <= s.last {
					owner, part = client, s
				}
			}
			f, v := x.Lookup(protoFlow(17, server4, 80, a.String(), port))
			stateless := owner.IsValid() && int(port) <= part.last-p.Ports.Session
			switch {
			case !owner.IsValid():
				require.Equal(t, translate.DestinationUnmapped.String(), v.String())
				continue
			case stateless:
				require.Equal(t, translate.OK.String(), v.String())
			default:
				require.Equal(t, translate.NoSession.String(), v.String())
			}
			require.Equal(t, owner, f.Dst)
			out, v := x.Lookup(protoFlow(17, owner.String(), port, server6, 80))
			require.Equal(t, a, out.Src)
			require.Equal(t, stateless, v == translate.OK)
		}
	})
}

// TestDividedAnew changes how a pool is divided: what was lent rests, whoever
// has it then.
func TestDividedAnew(t *testing.T) {
	p := rangesOf("192.0.2.2/32")
	r := rigOf(t, newMemory(), p)
	require.True(t, r.leases(1))
	require.True(t, r.leases(2))
	r.answerPort(addr("192.0.2.2"), 1)
	r.pass(1)

	same := r.config
	same.Pools = []Pool{p}
	same.Pools[0].Idle = time.Hour
	diff, err := r.x.Reload(same, "me")
	require.NoError(t, err)
	require.Empty(t, diff.LeasesEnded)
	require.True(t, diff.PoolsChanged)

	anew := same
	anew.Pools = []Pool{p}
	anew.Pools[0].Ports.PerClient = 50
	diff, err = r.x.Reload(anew, "me")
	require.NoError(t, err)
	require.Len(t, diff.LeasesEnded, 2)
	assert.EqualValues(t, 6, r.x.Pools()[0].Quarantined)
	r.stopped(1, translate.PoolFull)
	r.pass(239)
	r.stopped(3, translate.PoolFull)
	r.pass(4)
	require.True(t, r.leases(3))
	assert.Equal(t, "1-50", r.x.Leases()[0].Ports)

	one := same
	one.Pools = []Pool{poolOf("192.0.2.2/31")}
	diff, err = r.x.Reload(one, "me")
	require.NoError(t, err)
	require.Len(t, diff.LeasesEnded, 1)
	require.True(t, r.leases(4))
	assert.Equal(t, []any{addr("192.0.2.3"), ""}, []any{r.x.Leases()[0].IPv4, r.x.Leases()[0].Ports}, "what 3 had rests, though nobody answered")
}

// TestRangesRestWhileNotLent sees that the ranges of an address rest although it
// was not lent for a while, restarted or not: natless's own, and what looks like
// a network, in a larger pool.
func TestRangesRestWhileNotLent(t *testing.T) {
	for address, prefix := range map[string]string{"192.0.2.1": "192.0.2.1/32", "192.0.2.0": "192.0.2.0/31"} {
		for name, meanwhile := range map[string]func(r *rig){
			"running":   func(*rig) {},
			"restarted": func(r *rig) { r.start() },
		} {
			t.Run(address+" "+name, func(t *testing.T) {
				r := rigOf(t, newMemory(), rangesOf(prefix))
				for n := range 3 {
					require.True(t, r.leases(1+n))
				}
				alone, among := r.config, r.config
				among.Pools = []Pool{rangesOf("192.0.2.0/30")}
				diff, err := r.x.Reload(among, "me")
				require.NoError(t, err)
				require.Len(t, diff.LeasesEnded, 3)
				r.config = among
				meanwhile(r)
				r.pass(100)
				alone.Now = r.config.Now
				_, err = r.x.Reload(alone, "me")
				require.NoError(t, err)
				r.stopped(4, translate.PoolFull)
				require.True(t, r.leases(2))
				assert.Equal(t, []string{address + " 2001:db8::2 101-200"}, r.lent())
				r.pass(138)
				r.stopped(4, translate.PoolFull)
				r.pass(10)
				require.True(t, r.leases(4))
			})
		}
	}
}

// TestFlowsOfSharedAddresses sees that connection tracking of an address is
// deleted for the ports that change hands, and not for those of the others who
// share it.
func TestFlowsOfSharedAddresses(t *testing.T) {
	r := rigOf(t, newMemory(), rangesOf("192.0.2.2/32"))
	require.True(t, r.leases(1))
	r.answerPort(addr("192.0.2.2"), 1)
	r.pass(101)
	require.Empty(t, r.x.Leases(), "idle")
	r.pass(240)
	for n := range 3 {
		require.True(t, r.leases(2+n))
	}
	assert.Equal(t, []Portion{{addr("192.0.2.2"), 1, 100}}, r.forgot)
}

func TestImpossiblePorts(t *testing.T) {
	base := rangesOf("192.0.2.0/24")
	for want, change := range map[string]func(*Pool){
		"a quarantine of 3m59s: expected at least 4m0s, since clients share addresses":     func(p *Pool) { p.Quarantine -= time.Second },
		"ports 0 to 320: expected a first and a last one of 1 to 65535":                    func(p *Pool) { p.Ports.First = 0 },
		"ports 321 to 320: expected a first and a last one of 1 to 65535":                  func(p *Pool) { p.Ports.First = 321 },
		"ports 1 to 65536: expected a first and a last one of 1 to 65535":                  func(p *Pool) { p.Ports.Last = 65536 },
		"321 ports per client: expected 2 to 320, which is all of 1 to 320":                func(p *Pool) { p.Ports.PerClient = 321 },
		"100 of 100 ports for sessions: expected 1 to 99":                                  func(p *Pool) { p.Ports.Session = 100 },
		"0 of 100 ports for sessions: expected 1 to 99":                                    func(p *Pool) { p.Ports.Session = 0 },
		"160 ranges in each of 16777216 addresses: expected at most 1073741824 altogether": func(p *Pool) { p.IPv4 = pfx("10.0.0.0/8"); p.Ports.PerClient, p.Ports.Session = 2, 1 },
	} {
		p := base
		change(&p)
		_, err := New(Config{Pools: []Pool{p}})
		if assert.Error(t, err) {
			assert.Equal(t, fmt.Sprintf("pool %v: %s", p.IPv4, want), err.Error())
		}
	}
}

func TestSharedAddressesCostNoMemory(t *testing.T) {
	x := sharing(t)
	for _, f := range []translate.Flow{
		protoFlow(6, lessee(1).String(), 1024, server6, 80),
		protoFlow(6, lessee(1).String(), 99, server6, 80),
		protoFlow(6, lessee(1).String(), 99, "64:ff9b::192.0.2.7", 2048),
		protoFlow(6, server4, 80, sharedV4, 2048),
		protoFlow(1, server4, 3000, sharedV4, 3000),
		protoFlow(6, server4, 80, sharedV4, 80),
	} {
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			g := f
			x.ResolveRanges(&g, 1000)
			x.LookupRanges(f)
			x.ResolveError(f)
			x.HairpinBackRanges(f)
		}), "%+v", f)
	}
}

// BenchmarkShared is BenchmarkResolve for clients that share addresses.
func BenchmarkShared(b *testing.B) {
	c := benchConfig()
	c.Pools[0].Ports = Ports{PerClient: 1024, Session: 128, First: 1024, Last: 65535}
	c.Pools[0].Quarantine = RestRange
	x, err := New(c)
	require.NoError(b, err)
	clients := make([]netip.Addr, 1000)
	for i := range clients {
		clients[i] = addr6(0x2001_0db8_000c_0000, uint64(i)*0x9e3779b97f4a7c15)
		x.Resolve(flow(clients[i].String(), server6), 1)
	}
	for _, active := range []int{1, 1000} {
		var out, back []translate.Flow
		for _, l := range x.Leases()[:active] {
			f := protoFlow(6, l.IPv6.String(), firstPort(l), server6, 80)
			out = append(out, f)
			f, v := x.Resolve(f, 1)
			require.Equal(b, translate.OK, v)
			back = append(back, f.Reversed())
		}
		for _, way := range []struct {
			name  string
			flows []translate.Flow
		}{{"6to4", out}, {"4to6", back}} {
			b.Run(fmt.Sprintf("ranges=1000/active=%d/%s", active, way.name), func(b *testing.B) {
				b.ReportAllocs()
				var f translate.Flow
				for i := 0; b.Loop(); {
					f = way.flows[i]
					if r, v := x.ResolveRanges(&f, 1); v != translate.OK || r == (Ranges{}) {
						b.Fatal(v)
					}
					if i++; i == active {
						i = 0
					}
				}
			})
		}
	}
}
