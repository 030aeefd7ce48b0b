package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A reload while the standard file is away must not take up the defaults.
func TestStandardFileIsGone(t *testing.T) {
	var s settings
	s.register(new(cobra.Command))
	s.standard = filepath.Join(t.TempDir(), "natless.toml")
	require.NoError(t, os.WriteFile(s.standard, []byte("[device]\nname = \"nat1\"\n"), 0o600))
	c, err := s.load()
	require.NoError(t, err)
	assert.Equal(t, "nat1", c.Device.Name)
	require.NoError(t, os.Remove(s.standard))
	_, err = s.load()
	assert.ErrorIs(t, err, fs.ErrNotExist)
}
