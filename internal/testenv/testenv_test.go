package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// recorder is a test that remembers how it ended.
type recorder struct {
	skipped, failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Skip(...any)           { r.skipped = true }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; panic(r) }

func TestSkipIsLogged(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	t.Setenv(SkipLogEnv, log)
	t.Setenv(RequireEnv, "")

	var r recorder
	Skip(&r, "no\nroot")
	assert.True(t, r.skipped)
	assert.Equal(t, 0, SkipAll("no device"))

	text, err := os.ReadFile(log)
	require.NoError(t, err)
	assert.Equal(t, "internal/testenv: no root\ninternal/testenv: no device\n", string(text))
}

func TestSkipWithoutLog(t *testing.T) {
	t.Setenv(SkipLogEnv, "")
	t.Setenv(RequireEnv, "0")
	var r recorder
	Skip(&r, "no root")
	assert.True(t, r.skipped)
}

func TestRequiredForbidsToSkip(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	t.Setenv(SkipLogEnv, log)
	t.Setenv(RequireEnv, "1")

	var r recorder
	assert.Panics(t, func() { Skip(&r, "no root") })
	assert.True(t, r.failed)
	assert.False(t, r.skipped)
	assert.Equal(t, 1, SkipAll("no device"))
	assert.NoFileExists(t, log)

	SkipAnyway(&r, "no engine")
	assert.True(t, r.skipped)
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	assert.Equal(t, "internal/testenv: no engine\n", string(text))
}

func TestShort(t *testing.T) {
	assert.Equal(t, testing.Short(), Short())
}
