package main

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/trace"
)

// captured writes a pcap file of raw IP packets, a second apart.
func captured(t *testing.T, path string, packets ...string) {
	t.Helper()
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0xa1b2c3d4)
	b = le.AppendUint16(le.AppendUint16(b, 2), 4)
	for _, v := range []uint32{0, 0, 65536, 101} {
		b = le.AppendUint32(b, v)
	}
	for i, words := range packets {
		p, err := trace.ReadPacket(words)
		require.NoError(t, err)
		for _, v := range []int{1_700_000_000 + i, 42, len(p), len(p)} {
			b = le.AppendUint32(b, uint32(v))
		}
		b = append(b, p...)
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

func TestPcap(t *testing.T) {
	t.Chdir(t.TempDir())
	captured(t, "in.pcap",
		"tcp 2001:db8::1 4000 2001:db8:64::203.0.113.9 80",
		"tcp 203.0.113.9 80 192.0.2.1 4000",
		"tcp 2001:db8:5::1 4000 2001:db8:64::203.0.113.9 80",
		"tcp 2001:db8:6::1 4000 2001:db8:64::203.0.113.9 80 len 2000",
	)
	require.NoError(t, os.WriteFile("natless.toml", []byte(traceConfig), 0o600))
	out, err := natless(t, "", strings.Fields("pcap in.pcap out.pcap -c natless.toml --pref64 2001:db8:64::/96 --pool 198.51.100.0/29 --clients 2001:db8:5::/64")...)
	require.NoError(t, err)
	assert.Equal(t, `frames                4
written               4
translated            3  Packets that left on the other side. (RFC 7915 4, 5)
client_not_permitted  1  An IPv6 source that no pool's clients permit. Add it to clients, or give it a map. (RFC 7915 5.4; answered with destination unreachable: source address policy)
errors_sent           1
`, out)
	b, err := os.ReadFile("out.pcap")
	require.NoError(t, err)
	assert.EqualValues(t, 101, binary.LittleEndian.Uint32(b[20:]))
	assert.Equal(t, "IPv4 192.0.2.1 > 203.0.113.9, ttl 63, 40 bytes; TCP 4000 > 80 SYN, 0 bytes of data", trace.Words(b[40:80]))

	out, err = natless(t, "", strings.Fields("pcap in.pcap out.pcap -o json -c natless.toml --pref64 2001:db8:64::/96 --pool 198.51.100.0/29 --clients 2001:db8:5::/64")...)
	require.NoError(t, err)
	assert.JSONEq(t, `{"frames": 4, "not_ip_frames": 0, "cut_short": 0, "verdicts": {"translated": 3, "client_not_permitted": 1}, "errors_sent": 1, "errors_suppressed": 0, "written": 4}`, out)
}

func TestPcapErrors(t *testing.T) {
	t.Chdir(t.TempDir())
	captured(t, "in.pcap")
	for args, want := range map[string]string{
		"pcap in.pcap":                              "pcap: OUT is missing",
		"pcap in.pcap out.pcap -o xml":              "--output xml: expected table or json",
		"pcap in.pcap out.pcap --queues 3":          "unknown flag: --queues",
		"pcap in.pcap in.pcap":                      "writing the capture in.pcap: it is the capture that is read: expected another file",
		"pcap none.pcap out.pcap":                   "reading the capture: open none.pcap: no such file or directory",
		"pcap in.pcap out.pcap -c none":             "reading the configuration: open none: no such file or directory",
		"pcap in.pcap out.pcap --pool 192.0.2.0/99": "--pool: 192.0.2.0/99: the prefix length 99 is none of 0 to 32",
	} {
		_, err := natless(t, "", strings.Fields(args)...)
		assert.ErrorContains(t, err, want, args)
		assert.Equal(t, !strings.Contains(want, "the capture"), usage(err), args)
		assert.NoFileExists(t, "out.pcap")
	}
}
