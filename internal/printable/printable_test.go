package printable

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "",
		"eth0":                 "eth0",
		"größe 網":              "größe 網",
		`a "b" \n`:             `a "b" \n`,
		"\x1b[2Jweb":           `\x1b[2Jweb`,
		"a\nb\tc":              `a\nb\tc`,
		"\u009b31m":            `\u009b31m`, // CSI in one character
		"\x9b31m":              `\x9b31m`,   // and as a byte that is no UTF-8
		"a\u202eb":             `a\u202eb`,  // right to left from here on
		"\u200bzero":           `\u200bzero`,
		"\ufffd":               "\ufffd",
		"tab\x00and\x7fdelete": `tab\x00and\x7fdelete`,
	} {
		assert.Equal(t, want, Text(text))
	}
	assert.Equal(t, "a\n\tb"+`\x1b\r`, Lines("a\n\tb\x1b\r"))
}
