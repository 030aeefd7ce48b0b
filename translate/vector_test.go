package translate

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const vectorDir = "../testdata/translate"

// vector is one packet of testdata/translate; the head of each file there
// tells its form.
type vector struct {
	name, place        string
	options            Options
	offload, offloadTo Offload
	in                 []byte
	to, quoted         Flow
	verdict            string
	out                [][]byte
}

func readVectors(t testing.TB) []vector {
	files, err := filepath.Glob(filepath.Join(vectorDir, "*.txt"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var all []vector
	for _, file := range files {
		all = append(all, readVectorFile(t, file)...)
	}
	return all
}

func readVectorFile(t testing.TB, file string) (all []vector) {
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	var v *vector
	var data *[]byte // what lines of hex go to
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		place := fmt.Sprintf("%s:%d", filepath.Base(file), n)
		line := lines.Text()
		if hexLine, ok := strings.CutPrefix(line, "  "); ok {
			b, err := hex.DecodeString(hexLine)
			require.NoError(t, err, place)
			*data = append(*data, b...)
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		require.True(t, ok, "%s: no key", place)
		value = strings.TrimSpace(value)
		if key == "packet" {
			all = append(all, vector{name: value, place: place, options: testOptions})
			v = &all[len(all)-1]
			continue
		}
		switch key {
		case "options":
			for _, option := range strings.Fields(value) {
				setOption(t, &v.options, option, place)
			}
		case "offload":
			v.offload = readOffload(t, value, place)
		case "offload out":
			v.offloadTo = readOffload(t, value, place)
		case "in":
			data = &v.in
		case "out":
			v.out = append(v.out, nil)
			data = &v.out[len(v.out)-1]
		case "to":
			v.to = readFlow(t, value, place)
		case "quoted":
			v.quoted = readFlow(t, value, place)
		case "verdict":
			v.verdict = value
		default:
			require.Fail(t, "no such key", "%s: %s", place, key)
		}
	}
	require.NoError(t, lines.Err())
	return all
}

func readFlow(t testing.TB, s, place string) (f Flow) {
	parts := strings.Fields(s)
	require.Len(t, parts, 2, place)
	f.Src, f.Dst = netip.MustParseAddr(parts[0]), netip.MustParseAddr(parts[1])
	return f
}

func readOffload(t testing.TB, s, place string) (f Offload) {
	_, err := fmt.Sscan(s, &f.Flags, &f.GSOType, &f.HdrLen, &f.GSOSize, &f.CsumStart, &f.CsumOffset)
	require.NoError(t, err, place)
	return f
}

func setOption(t testing.TB, o *Options, option, place string) {
	key, value, _ := strings.Cut(option, "=")
	var n int
	switch key {
	case "udp_zero":
		o.DropUDPZero, o.KeepUDPZero = value == "drop", value == "forward"
		return
	case "traffic_class":
		o.ZeroTOS = value == "zero"
		return
	}
	_, err := fmt.Sscan(value, &n)
	require.NoError(t, err, place)
	switch key {
	case "ipv4_mtu":
		o.IPv4MTU = n
	case "ipv6_mtu":
		o.IPv6MTU = n
	case "lowest_ipv6_mtu":
		o.LowestIPv6MTU = n
	default:
		require.Fail(t, "no such option", "%s: %s", place, key)
	}
}

// withPorts gives the flow to the ports of the flow f.
func withPorts(to, f Flow) Flow {
	to.SrcPort, to.DstPort = f.SrcPort, f.DstPort
	return to
}

func TestVectors(t *testing.T) {
	for _, c := range readVectors(t) {
		t.Run(c.place+" "+c.name, func(t *testing.T) {
			p := &Packet{ID: 0x1234}
			load(p, c.in, c.offload)
			v := p.Parse(&c.options)
			require.Equal(t, c.in, p.Buf[Headroom:Headroom+len(c.in)], "Parse changed the packet")
			if v == OK {
				v = p.Rewrite(&c.options, new(withPorts(c.to, p.Flow)), new(withPorts(c.quoted, p.Quoted)))
			}
			require.Equal(t, c.verdict, v.String())
			var out [][]byte
			switch {
			case v == OK:
				out = append(out, p.Buf[p.Off:p.Off+p.Len])
				assert.Equal(t, c.offloadTo, p.Offload)
			case v == Fragmented:
				for {
					dst := make([]byte, c.options.lowestIPv6MTU())
					n, ok := p.NextFragment(dst)
					if !ok {
						break
					}
					out = append(out, dst[:n])
				}
			default:
				assert.Equal(t, c.in, p.Buf[Headroom:Headroom+len(c.in)], "a refused packet changed")
			}
			require.Equal(t, len(c.out), len(out))
			for i := range out {
				assert.Equal(t, hex.EncodeToString(c.out[i]), hex.EncodeToString(out[i]))
			}
		})
	}
}
