package mapping

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestCheckLabel(t *testing.T) {
	for _, ok := range []string{"", "web", "a b", "Büro 2 (käse)", strings.Repeat("ä", MaxLabel/2)} {
		assert.NoError(t, CheckLabel(ok), ok)
	}
	assert.EqualError(t, CheckLabel(strings.Repeat("ä", MaxLabel/2)+"x"), "65 bytes long: expected at most 64")
	for _, bad := range []string{"a\nb", "a\tb", "\x1b[31m", "a\u00a0b", "a\u202eb", "\xff", "\ufffd"} {
		assert.EqualError(t, CheckLabel(bad), "expected printable characters only", "%q", bad)
	}
}
