package natless

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/testenv"
)

// exposed is what docs/host.md says that systemd-analyze counts of the units. A
// unit says itself what is counted and why it stays.
const exposed = 2.3

func TestUnitsAreConfined(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		testenv.Skip(t, "nothing judges the units: systemd-analyze is missing")
	}
	units, err := filepath.Glob("contrib/systemd/*.service")
	require.NoError(t, err)
	require.Len(t, units, 2)
	for _, unit := range units {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", unit).CombinedOutput()
		m := regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+) `).FindSubmatch(out)
		require.NotNil(t, m, "%v: %s", err, out)
		level, err := strconv.ParseFloat(string(m[1]), 64)
		require.NoError(t, err)
		assert.LessOrEqual(t, level, exposed, "%s\n%s", unit, out)
		for _, key := range []string{"MemoryMax=", "TasksMax=", "LimitNOFILE="} {
			assert.Regexp(t, `(?m)^`+key+`[0-9]`, read(t, unit))
		}
	}
	assert.Contains(t, read(t, "docs/host.md"), "`systemd-analyze security natless` counts "+strconv.FormatFloat(exposed, 'f', -1, 64))
}
