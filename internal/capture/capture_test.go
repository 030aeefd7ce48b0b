package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/internal/dataplane"
	"github.com/natless/natless/internal/trace"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

var begun = time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.UTC)

func config(t testing.TB) Config {
	t.Helper()
	table, err := mapping.New(mapping.Config{
		Pref64: netip.MustParsePrefix("64:ff9b::/96"),
		Maps:   []mapping.Map{{IPv4: netip.MustParsePrefix("192.0.2.1/32"), IPv6: netip.MustParsePrefix("2001:db8::1/128")}},
		Pools: []mapping.Pool{{
			IPv4: netip.MustParsePrefix("198.51.100.0/29"), Clients: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")},
			Idle: time.Minute, Quarantine: time.Minute,
		}},
		OwnIPv4: netip.MustParseAddr("198.51.100.1"), OwnIPv6: netip.MustParseAddr("2001:db8::ffff"),
		Hairpin: true,
	})
	require.NoError(t, err)
	return Config{
		Resolver: table,
		Options:  translate.Options{IPv4MTU: 1500, IPv6MTU: 1500, LowestIPv6MTU: 1280},
		IPv4:     netip.MustParseAddr("198.51.100.1"), IPv6: netip.MustParseAddr("2001:db8::ffff"),
	}
}

func packet(t testing.TB, words string) []byte {
	t.Helper()
	b, err := trace.ReadPacket(words)
	require.NoError(t, err)
	return b
}

// frame is a frame of a capture, so long after it began.
type frame struct {
	data  []byte
	after time.Duration
	cut   int // bytes that the capture lacks
}

func (f frame) info() gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: begun.Add(f.after), CaptureLength: len(f.data) - f.cut, Length: len(f.data)}
}

func pcap(t testing.TB, link layers.LinkType, frames ...frame) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	require.NoError(t, w.WriteFileHeader(65536, link))
	for _, f := range frames {
		require.NoError(t, w.WritePacket(f.info(), f.data[:len(f.data)-f.cut]))
	}
	return b.Bytes()
}

// read takes apart what was written.
func read(t *testing.T, b []byte) (times []time.Duration, packets []string) {
	t.Helper()
	r, err := pcapgo.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	assert.Equal(t, layers.LinkTypeRaw, r.LinkType())
	for {
		data, info, err := r.ReadPacketData()
		if err == io.EOF {
			return times, packets
		}
		require.NoError(t, err)
		times, packets = append(times, info.Timestamp.Sub(begun)), append(packets, trace.Words(data))
	}
}

func translated(t *testing.T, in []byte) (s Summary, times []time.Duration, packets []string) {
	t.Helper()
	var out bytes.Buffer
	s, err := Translate(t.Context(), config(t), bytes.NewReader(in), &out)
	require.NoError(t, err)
	times, packets = read(t, out.Bytes())
	assert.EqualValues(t, len(packets), s.Written)
	return s, times, packets
}

func TestBothFamilies(t *testing.T) {
	s, times, packets := translated(t, pcap(t, layers.LinkTypeRaw,
		frame{data: packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80")},
		frame{data: packet(t, "tcp 203.0.113.9 80 192.0.2.1 4000"), after: 5 * time.Millisecond},
		frame{data: packet(t, "udp 203.0.113.9 53 192.0.2.1 4000 len 1400"), after: 7 * time.Nanosecond},
		frame{data: packet(t, "udp 203.0.113.9 53 192.0.2.1 4000 ttl 1"), after: time.Hour},
		frame{data: packet(t, "icmp 2001:db8::1 2001:db8::ffff")},
		frame{data: packet(t, "tcp 2001:db8::1 4000 2001:db8:9::1 80")},
		frame{data: packet(t, "tcp 2001:db8:9::1 4000 64:ff9b::203.0.113.9 80")},
		frame{data: packet(t, "tcp 2001:db8::1 4000 64:ff9b::192.0.2.1 80")},
		frame{data: []byte("rubbish"), after: time.Second},
	))
	assert.Equal(t, Summary{
		Frames: 9, Written: 9, ErrorsSent: 3,
		Verdicts: map[string]uint64{
			"translated": 2, "fragmented": 1, "hop_limit": 1, "answered": 1, "destination_unmapped": 1,
			"client_not_permitted": 1, "hairpinned": 1, "not_ip": 1,
		},
	}, s)
	assert.Equal(t, []string{
		"IPv4 192.0.2.1 > 203.0.113.9, ttl 63, 40 bytes; TCP 4000 > 80 SYN, 0 bytes of data",
		"IPv6 64:ff9b::cb00:7109 > 2001:db8::1, hop limit 63, 60 bytes; TCP 80 > 4000 SYN, 0 bytes of data",
		"IPv6 64:ff9b::cb00:7109 > 2001:db8::1, hop limit 63, 1280 bytes; fragment 0x0 at 0, more to come",
		"IPv6 64:ff9b::cb00:7109 > 2001:db8::1, hop limit 63, 196 bytes; fragment 0x0 at 1232, the last",
		"IPv4 198.51.100.1 > 203.0.113.9, ttl 64, 56 bytes, traffic class 0xc0; ICMP TimeExceeded(TTLExceeded), about [IPv4 203.0.113.9 > 192.0.2.1, ttl 1, 28 bytes; UDP 53 > 4000, 0 bytes of data]",
		"IPv6 2001:db8::ffff > 2001:db8::1, hop limit 64, 48 bytes; ICMPv6 EchoReply; id 1, seq 1",
		"IPv6 2001:db8::ffff > 2001:db8::1, hop limit 64, 108 bytes; ICMPv6 DestinationUnreachable(AddressUnreachable), about [IPv6 2001:db8::1 > 2001:db8:9::1, hop limit 64, 60 bytes; TCP 4000 > 80 SYN, 0 bytes of data]",
		"IPv6 2001:db8::ffff > 2001:db8:9::1, hop limit 64, 108 bytes; ICMPv6 DestinationUnreachable(SrcAddressFailedPolicy), about [IPv6 2001:db8:9::1 > 64:ff9b::cb00:7109, hop limit 64, 60 bytes; TCP 4000 > 80 SYN, 0 bytes of data]",
		"IPv6 64:ff9b::c000:201 > 2001:db8::1, hop limit 63, 60 bytes; TCP 4000 > 80 SYN, 0 bytes of data",
	}, packets)
	assert.Equal(t, []time.Duration{0, 5 * time.Millisecond, 7, 7, time.Hour, 0, 0, 0, 0}, times)
}

// TestTime holds that leases end by the clock of the capture, second by second:
// idle after one minute, in quarantine for another.
// TestSharedPool translates what clients that share an address sent and got:
// sessions, their end, and fragments in the wrong order. The session part is
// of one port, so that it is known which.
func TestSharedPool(t *testing.T) {
	table, err := mapping.New(mapping.Config{
		Pref64: netip.MustParsePrefix("64:ff9b::/96"),
		Pools: []mapping.Pool{{
			IPv4: netip.MustParsePrefix("192.0.2.128/32"), Clients: []netip.Prefix{netip.MustParsePrefix("2001:db8:2::/64")},
			Quarantine: mapping.RestRange, Ports: mapping.Ports{PerClient: 2, Session: 1, First: 1024, Last: 65535},
		}},
		OwnIPv4: netip.MustParseAddr("198.51.100.1"), OwnIPv6: netip.MustParseAddr("2001:db8::ffff"), Hairpin: true,
	})
	require.NoError(t, err)
	sharing, err := dataplane.NewSharing(conntrack.Default())
	require.NoError(t, err)
	c := config(t)
	c.Resolver, c.Sharing = table, sharing

	piece := func(flags layers.IPv4Flag, offset uint16, data ...gopacket.SerializableLayer) []byte {
		b := gopacket.NewSerializeBuffer()
		h := &layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, Id: 7, Flags: flags, FragOffset: offset,
			SrcIP: netip.MustParseAddr("203.0.113.9").AsSlice(), DstIP: netip.MustParseAddr("192.0.2.128").AsSlice(),
		}
		require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append([]gopacket.SerializableLayer{h}, data...)...))
		return b.Bytes()
	}
	first := piece(layers.IPv4MoreFragments, 0, gopacket.Payload{0, 53, 4, 1, 0, 24, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8})
	later := piece(0, 2, gopacket.Payload("the rest"))

	var out bytes.Buffer
	s, err := Translate(t.Context(), c, bytes.NewReader(pcap(t, layers.LinkTypeRaw,
		frame{data: packet(t, "tcp 2001:db8:2::1 1024 64:ff9b::203.0.113.9 80")},
		frame{data: packet(t, "udp 2001:db8:2::1 53 64:ff9b::203.0.113.9 53")},
		frame{data: packet(t, "udp 203.0.113.9 53 192.0.2.128 1025"), after: time.Second},
		frame{data: later, after: 2 * time.Second},
		frame{data: first, after: 3 * time.Second},
		frame{data: packet(t, "icmp 203.0.113.9 192.0.2.128"), after: 4 * time.Second},
		frame{data: packet(t, "udp 203.0.113.9 53 192.0.2.128 1025"), after: time.Hour},
		frame{data: packet(t, "tcp 203.0.113.9 80 192.0.2.128 1024"), after: time.Hour},
		frame{data: later, after: time.Hour + time.Second},
		frame{data: packet(t, "tcp 203.0.113.9 80 192.0.2.128 1026"), after: 2 * time.Hour},
	)), &out)
	require.NoError(t, err)
	times, packets := read(t, out.Bytes())
	assert.Equal(t, Summary{
		Frames: 10, Written: 8, ErrorsSent: 1,
		Verdicts: map[string]uint64{"translated": 6, "answered": 1, "no_session": 1, "fragment_pending": 1, "destination_unmapped": 1},
	}, s)
	assert.Equal(t, []string{
		"IPv4 192.0.2.128 > 203.0.113.9, ttl 63, 40 bytes; TCP 1024 > 80 SYN, 0 bytes of data",
		"IPv4 192.0.2.128 > 203.0.113.9, ttl 63, 28 bytes; UDP 1025 > 53, 0 bytes of data",
		"IPv6 64:ff9b::cb00:7109 > 2001:db8:2::1, hop limit 63, 48 bytes; UDP 53 > 53, 0 bytes of data",
		"IPv6 64:ff9b::cb00:7109 > 2001:db8:2::1, hop limit 63, 64 bytes; fragment 0x7 at 0, more to come",
		"IPv6 64:ff9b::cb00:7109 > 2001:db8:2::1, hop limit 63, 56 bytes; fragment 0x7 at 16, the last",
		"IPv4 192.0.2.128 > 203.0.113.9, ttl 64, 28 bytes; ICMP EchoReply; id 1, seq 1",
		"IPv6 64:ff9b::cb00:7109 > 2001:db8:2::1, hop limit 63, 60 bytes; TCP 80 > 1024 SYN, 0 bytes of data",
		"IPv4 198.51.100.1 > 203.0.113.9, ttl 64, 68 bytes, traffic class 0xc0; ICMP DestinationUnreachable(Host), about [IPv4 203.0.113.9 > 192.0.2.128, ttl 64, 40 bytes; TCP 80 > 1026 SYN, 0 bytes of data]",
	}, packets)
	assert.Equal(t, 3*time.Second, times[4], "when it could leave")
}

func TestTime(t *testing.T) {
	from := func(client, after string) frame {
		d, err := time.ParseDuration(after)
		require.NoError(t, err)
		return frame{data: packet(t, "udp 2001:db8:1::"+client+" 1 64:ff9b::203.0.113.9 2"), after: d}
	}
	wears := func(n string) string {
		return "IPv4 198.51.100." + n + " > 203.0.113.9, ttl 63, 28 bytes; UDP 1 > 2, 0 bytes of data"
	}
	s, _, packets := translated(t, pcap(t, layers.LinkTypeRaw,
		from("1", "0s"), from("2", "1s"), from("3", "2s"), from("4", "3s"), from("5", "4s"), from("6", "5s"),
		from("7", "30s"), // full
		from("1", "59s"), // in time
		from("7", "66s"), // 2 to 6 are over, and in quarantine
		from("7", "3h"),  // all is over: the address longest unused
		from("1", "2h"),  // the capture goes back: the clock does not
	))
	assert.Equal(t, map[string]uint64{"translated": 9, "pool_full": 2}, s.Verdicts)
	assert.Equal(t, []string{wears("2"), wears("3"), wears("4"), wears("5"), wears("6"), wears("7")}, packets[:6])
	assert.Contains(t, packets[6], "ICMPv6 DestinationUnreachable(AddressUnreachable)")
	assert.Equal(t, wears("2"), packets[7])
	assert.Contains(t, packets[8], "ICMPv6 DestinationUnreachable(AddressUnreachable)")
	assert.Equal(t, []string{wears("3"), wears("2")}, packets[9:])
}

func TestClock(t *testing.T) {
	var ticks []uint32
	c := clock{expire: func(tick uint32) { ticks = append(ticks, tick) }}
	at := func(s time.Duration) uint32 { return c.tick(begun.Add(s * time.Second)) }
	assert.EqualValues(t, 0, at(0))
	assert.EqualValues(t, 3, at(3))
	assert.EqualValues(t, 3, at(-5))
	assert.Equal(t, []uint32{1, 2, 3}, ticks)
	assert.EqualValues(t, 1<<31-1, c.tick(begun.Add(1<<63-1)))
	assert.LessOrEqual(t, len(ticks), manySteps+3)
	assert.EqualValues(t, 1<<31-1, ticks[len(ticks)-1])
}

// TestClockOfJumps: frames whose times are far apart take no more than so many
// steps, however many frames there are.
func TestClockOfJumps(t *testing.T) {
	steps := 0
	c := clock{expire: func(uint32) { steps++ }}
	const frames = 20_000
	for n := range frames {
		c.tick(begun.Add(time.Duration(n) * manySteps * time.Second))
	}
	assert.LessOrEqual(t, steps, monthly+manySteps+frames*fewSteps)
	assert.EqualValues(t, (frames-1)*manySteps, c.now)
}

func TestErrorsAreLimited(t *testing.T) {
	flood := make([]frame, 250)
	for i := range flood {
		flood[i] = frame{data: packet(t, "tcp 2001:db8::1 4000 2001:db8:9::1 80")}
	}
	s, _, packets := translated(t, pcap(t, layers.LinkTypeRaw, flood...))
	assert.Len(t, packets, 200)
	assert.EqualValues(t, 200, s.ErrorsSent)
	assert.EqualValues(t, 50, s.ErrorsSuppressed)
}

func TestLinks(t *testing.T) {
	six, four := packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80"), packet(t, "tcp 203.0.113.9 80 192.0.2.1 4000")
	before := func(header ...byte) func(etherType uint16, b []byte) []byte {
		return func(etherType uint16, b []byte) []byte {
			return append(binary.BigEndian.AppendUint16(header[:len(header):len(header)], etherType), b...)
		}
	}
	macs := make([]byte, 12)
	ethernet := before(macs...)
	tagged := before(append(macs, 0x88, 0xa8, 0, 5, 0x81, 0, 0, 7)...)
	cooked := before(make([]byte, 14)...)
	cooked2 := func(etherType uint16, b []byte) []byte {
		return append(append(binary.BigEndian.AppendUint16(nil, etherType), make([]byte, 18)...), b...)
	}
	padded := append(bytes.Clone(four), make([]byte, 6)...)
	for _, c := range []struct {
		name   string
		link   layers.LinkType
		frames [][]byte
		notIP  uint64
	}{
		{"raw", layers.LinkTypeRaw, [][]byte{six, four}, 0},
		{"raw 12", 12, [][]byte{six, four}, 0},
		{"ipv4", layers.LinkTypeIPv4, [][]byte{four, four}, 0},
		{"ipv6", layers.LinkTypeIPv6, [][]byte{six, six}, 0},
		{"ethernet", layers.LinkTypeEthernet, [][]byte{ethernet(0x86dd, six), ethernet(0x0806, four), macs, ethernet(0x0800, padded)}, 2},
		{"vlan", layers.LinkTypeEthernet, [][]byte{tagged(0x86dd, six), tagged(0x0800, four), ethernet(0x8100, []byte{1})}, 1},
		{"cooked", layers.LinkTypeLinuxSLL, [][]byte{cooked(0x86dd, six), cooked(0x0800, four), cooked(0x0806, nil)}, 1},
		{"cooked 2", 20, [][]byte{cooked2(0x86dd, six), cooked2(0x0800, four), {8, 0}}, 1},
	} {
		var frames []frame
		for _, f := range c.frames {
			frames = append(frames, frame{data: f})
		}
		capture := pcap(t, c.link, frames...)
		if c.link == 20 {
			binary.LittleEndian.PutUint32(capture[20:], 276)
		}
		s, _, _ := translated(t, capture)
		assert.EqualValues(t, len(frames), s.Frames, c.name)
		assert.Equal(t, c.notIP, s.NotIP, c.name)
		assert.Equal(t, map[string]uint64{"translated": 2}, s.Verdicts, c.name)
	}
	_, err := Translate(t.Context(), config(t), bytes.NewReader(pcap(t, layers.LinkTypePPP, frame{data: six})), io.Discard)
	assert.EqualError(t, err, "frame 1: link type PPP: expected raw IP, IPv4, IPv6, Ethernet or Linux cooked")
}

func TestCutShort(t *testing.T) {
	six, four := packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80 len 200"), packet(t, "udp 203.0.113.9 80 192.0.2.1 4000 len 200")
	s, _, packets := translated(t, pcap(t, layers.LinkTypeRaw,
		frame{data: six, cut: 100}, frame{data: four, cut: 1}, frame{data: four, cut: 190}, frame{data: six, cut: 200},
		frame{data: append(bytes.Clone(four), 0, 0, 0), cut: 3}, // padding
		frame{data: append(bytes.Clone(six), 0, 0, 0), cut: 2},
		frame{data: six[:100]}, // the sender's fault
	))
	assert.EqualValues(t, 4, s.CutShort)
	assert.Equal(t, map[string]uint64{"translated": 2, "truncated": 1}, s.Verdicts)
	assert.Len(t, packets, 2)
}

func TestPcapng(t *testing.T) {
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&b, pcapgo.NgInterface{LinkType: layers.LinkTypeRaw, SnapLength: 65536}, pcapgo.DefaultNgWriterOptions)
	require.NoError(t, err)
	_, err = w.AddInterface(pcapgo.NgInterface{LinkType: layers.LinkTypeEthernet, SnapLength: 65536})
	require.NoError(t, err)
	six := frame{data: packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80"), after: 3 * time.Millisecond}
	require.NoError(t, w.WritePacket(six.info(), six.data))
	six.data = append([]byte{12: 0x86, 13: 0xdd}, six.data...)
	info := six.info()
	info.InterfaceIndex = 1
	require.NoError(t, w.WritePacket(info, six.data))
	require.NoError(t, w.Flush())

	s, times, _ := translated(t, b.Bytes())
	assert.Equal(t, map[string]uint64{"translated": 2}, s.Verdicts)
	assert.Equal(t, []time.Duration{3 * time.Millisecond, 3 * time.Millisecond}, times)
}

func TestDamagedCaptures(t *testing.T) {
	good := pcap(t, layers.LinkTypeRaw, frame{data: packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80")})
	for what, in := range map[string][]byte{
		"it is neither pcap nor pcapng: EOF":                    nil,
		"it is neither pcap nor pcapng: unknown magic 73656c6c": []byte("sellers of captures and other goods"),
		"it is neither pcap nor pcapng: unexpected EOF":         good[:20],
		"frame 1: unexpected EOF":                               good[:24+16+20],
	} {
		_, err := Translate(t.Context(), config(t), bytes.NewReader(in), io.Discard)
		assert.EqualError(t, err, what)
	}
	for _, n := range []int{24 + 1, 24 + 16, len(good) - 1} {
		_, err := Translate(t.Context(), config(t), bytes.NewReader(good[:n]), io.Discard)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "%d", n)
	}
	s, err := Translate(t.Context(), config(t), bytes.NewReader(good[:24]), io.Discard)
	require.NoError(t, err)
	assert.Equal(t, Summary{Verdicts: map[string]uint64{}}, s)
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestWriteError(t *testing.T) {
	_, err := Translate(t.Context(), config(t), bytes.NewReader(pcap(t, layers.LinkTypeRaw)), full{})
	assert.EqualError(t, err, "writing: no space left")
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.pcap"), filepath.Join(dir, "out.pcap")
	require.NoError(t, os.WriteFile(in, pcap(t, layers.LinkTypeRaw, frame{data: packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80")}), 0o600))
	written := func(path string) int {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		_, packets := read(t, b)
		return len(packets)
	}
	alone := func(want int) {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Len(t, entries, want, "nothing is left lying about")
	}
	s, err := File(t.Context(), config(t), in, out)
	require.NoError(t, err)
	assert.EqualValues(t, 1, s.Written)
	assert.Equal(t, 1, written(out))
	alone(2)

	// What is there is replaced, and keeps its mode; a link stays a link.
	require.NoError(t, os.WriteFile(out, []byte("old"), 0o600))
	require.NoError(t, os.Chmod(out, 0o640))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink("out.pcap", link))
	_, err = File(t.Context(), config(t), in, link)
	require.NoError(t, err)
	assert.Equal(t, 1, written(out))
	info, err := os.Lstat(out)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o640), info.Mode())
	alone(3)

	// Whatever fails leaves it as it was.
	bad := filepath.Join(dir, "bad")
	require.NoError(t, os.WriteFile(bad, []byte("sellers of captures"), 0o600))
	_, err = File(t.Context(), config(t), bad, out)
	assert.ErrorContains(t, err, "translating the capture "+bad+": it is neither pcap nor pcapng")
	ended, end := context.WithCancel(t.Context())
	end()
	_, err = File(ended, config(t), in, out)
	assert.ErrorIs(t, err, context.Canceled)
	_, err = File(t.Context(), config(t), filepath.Join(dir, "none"), out)
	assert.EqualError(t, err, "reading the capture: open "+dir+"/none: no such file or directory")
	assert.Equal(t, 1, written(out))

	require.NoError(t, os.Link(in, filepath.Join(dir, "same")))
	for _, same := range []string{in, filepath.Join(dir, "same")} {
		_, err = File(t.Context(), config(t), in, same)
		assert.EqualError(t, err, "writing the capture "+same+": it is the capture that is read: expected another file")
	}
	for _, not := range []string{dir, "/dev/null"} {
		_, err = File(t.Context(), config(t), in, not)
		assert.EqualError(t, err, "writing the capture "+not+": it is there and is not a file: expected a new one, or a file to replace")
	}
	_, err = File(t.Context(), config(t), in, filepath.Join(dir, "none", "out"))
	assert.ErrorContains(t, err, "writing the capture: open "+dir+"/none/")
	alone(5)
}
