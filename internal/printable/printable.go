// Package printable makes text safe for a terminal. It is beside the way of a
// packet, where natless shows what others have named: links and processes of a
// container, what an engine answers, labels. An escape sequence in such a name
// would reach the terminal of root, and could move what is shown or worse.
package printable

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text is s with every character that does not print written as Go writes it,
// such as \x1b and \n. Other text is returned as it is.
func Text(s string) string { return escaped(s, func(rune) bool { return false }) }

// Lines is Text for what has several lines, and columns with tabs between them.
func Lines(s string) string {
	return escaped(s, func(r rune) bool { return r == '\n' || r == '\t' })
}

func escaped(s string, keep func(rune) bool) string {
	odd := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) && !keep(r) }
	if strings.IndexFunc(s, odd) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if odd(r) {
			quoted := strconv.Quote(s[i : i+size]) // of a byte that is no UTF-8, too
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	return b.String()
}
