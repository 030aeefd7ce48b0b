package mapping

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLabel is how many bytes the label of a Map may have.
const MaxLabel = 64

// CheckLabel says what is wrong with the label of a Map: it stands in tables
// and logs, one line each. The error tells what was expected, not the label.
func CheckLabel(label string) error {
	odd := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	switch {
	case len(label) > MaxLabel:
		return fmt.Errorf("%d bytes long: expected at most %d", len(label), MaxLabel)
	case strings.ContainsFunc(label, odd):
		return errors.New("expected printable characters only")
	}
	return nil
}
