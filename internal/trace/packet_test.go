package trace

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestReadWords(t *testing.T) {
	for words, want := range map[string]string{
		"tcp 2001:db8::5 4000 2001:db8:64::c000:201 80":       "IPv6 2001:db8::5 > 2001:db8:64::c000:201, hop limit 64, 60 bytes; TCP 4000 > 80 SYN, 0 bytes of data",
		"tcp 192.0.2.1 4000 198.51.100.1 80":                  "IPv4 192.0.2.1 > 198.51.100.1, ttl 64, 40 bytes; TCP 4000 > 80 SYN, 0 bytes of data",
		"udp 192.0.2.1 0 198.51.100.1 65535 ttl 0 len 28 df":  "IPv4 192.0.2.1 > 198.51.100.1, ttl 0, 28 bytes, DF; UDP 0 > 65535, 0 bytes of data",
		"udp 192.0.2.1 1 198.51.100.1 2 len 65535":            "IPv4 192.0.2.1 > 198.51.100.1, ttl 64, 65535 bytes; UDP 1 > 2, 65507 bytes of data",
		"udp 2001:db8::1 1 2001:db8::2 2 len 65575 ttl 255":   "IPv6 2001:db8::1 > 2001:db8::2, hop limit 255, 65575 bytes; UDP 1 > 2, 65527 bytes of data",
		"icmp 192.0.2.1 198.51.100.1 df":                      "IPv4 192.0.2.1 > 198.51.100.1, ttl 64, 28 bytes, DF; ICMP EchoRequest; id 1, seq 1",
		" icmp\t2001:db8::1 \n 2001:db8:64::192.0.2.1 ttl 3 ": "IPv6 2001:db8::1 > 2001:db8:64::c000:201, hop limit 3, 48 bytes; ICMPv6 EchoRequest; id 1, seq 1",
	} {
		b, err := ReadPacket(words)
		require.NoError(t, err, words)
		assert.Equal(t, want, Words(b), words)
	}
}

func TestReadHex(t *testing.T) {
	want, err := ReadPacket("udp 192.0.2.1 1 198.51.100.1 2 len 40")
	require.NoError(t, err)
	digits := hex.EncodeToString(want)
	for _, text := range []string{
		digits, strings.ToUpper(digits),
		digits[:32] + " \n" + digits[32:33] + "\t" + digits[33:],
		"\t0x0000:  " + digits[:4] + " " + digits[4:32] + "\n\t0x0010:  " + digits[32:],
	} {
		b, err := ReadPacket(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, b)
	}
}

func TestReadErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "there is none: expected hex, or words such as tcp SRC SPORT DST DPORT",
		" \n":                                    "there is none: expected hex, or words such as tcp SRC SPORT DST DPORT",
		"45 0":                                   "3 hex digits: expected two for each byte",
		"sctp 1":                                 `"sctp": expected hex digits, or words that begin with tcp, udp or icmp`,
		"45 0x":                                  `"45": expected hex digits, or words that begin with tcp, udp or icmp`,
		"tcp":                                    "it ends too early: expected the source",
		"tcp 192.0.2.1 1 198.51.100.1":           "it ends too early: expected the destination port",
		"tcp host 1 198.51.100.1 2":              `"host": expected the source, an IPv4 or IPv6 address`,
		"icmp fe80::1%eth0 2001:db8::1":          `"fe80::1%eth0": expected the source, an IPv4 or IPv6 address`,
		"icmp 2001:db8::1 ::ffff:192.0.2.1":      `"::ffff:192.0.2.1": expected the destination, an IPv4 or IPv6 address`,
		"icmp 2001:db8::1 192.0.2.1":             "2001:db8::1 and 192.0.2.1: expected two addresses of one family",
		"udp 192.0.2.1 65536 198.51.100.1 2":     `"65536": expected the source port, 0 to 65535`,
		"udp 192.0.2.1 1 198.51.100.1 http":      `"http": expected the destination port, 0 to 65535`,
		"udp 192.0.2.1 1 198.51.100.1 2 ttl":     "it ends too early: expected a TTL",
		"udp 192.0.2.1 1 198.51.100.1 2 ttl 256": `"256": expected a TTL, 0 to 255`,
		"udp 192.0.2.1 1 198.51.100.1 2 len 27":  `"27": expected the length of the whole packet in bytes, 28 to 65535`,
		"tcp 2001:db8::1 1 2001:db8::2 2 len 65576": `"65576": expected the length of the whole packet in bytes, 60 to 65575`,
		"tcp 2001:db8::1 1 2001:db8::2 2 df":        "df: expected with IPv4 addresses only",
		"tcp 2001:db8::1 1 2001:db8::2 2 syn":       `"syn": expected ttl N, len N or df`,
		strings.Repeat("00", MaxPacket+1):           "it has 65576 bytes: expected at most 65575",
	} {
		_, err := ReadPacket(text)
		assert.EqualError(t, err, "reading the packet: "+want, text)
	}
}

func TestWordsOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "packet")
		if len(b) > 0 && rapid.Bool().Draw(t, "ip") {
			b[0] = rapid.SampledFrom([]byte{0x45, 0x46, 0x60}).Draw(t, "version")
		}
		assert.NotEmpty(t, Words(b))
	})
	assert.Equal(t, "nothing", Words(nil))
	assert.Equal(t, "not IP: version 0", Words([]byte{1}))
	assert.Equal(t, "IPv6; cut short or damaged: Invalid ip6 header. Length 2 less than 40", Words([]byte{0x60, 0}))
}
