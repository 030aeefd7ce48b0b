package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/config"
)

func manual(t *testing.T) (dir string, pages map[string]string) {
	t.Helper()
	dir = t.TempDir()
	mustSay(t, "man "+dir)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	pages = map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		pages[e.Name()] = strings.ReplaceAll(string(text), `\-`, "-")
	}
	return dir, pages
}

// TestManual holds that there is a page for every command, and that natless(8) says
// what a page of section 8 has to say.
func TestManual(t *testing.T) {
	dir, pages := manual(t)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-")
		page := pages[name+".8"]
		require.NotEmpty(t, page, name)
		for _, section := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"} {
			assert.Contains(t, page, "\n.SH "+section+"\n", name)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	all := root()
	walk(all)
	top := pages["natless.8"]
	for _, section := range []string{"COMMANDS", "FILES", "ENVIRONMENT", "EXIT STATUS"} {
		assert.Contains(t, top, "\n.SH "+section+"\n")
	}
	for _, c := range all.Commands() {
		assert.Contains(t, top, "natless-"+c.Name()+`\fP(8)`)
	}
	for _, word := range []string{"NATLESS_SOCKET", config.DefaultFile, config.Default().Control.Socket, config.Default().State.Dir, "natless.toml\\fP(5)"} {
		assert.Contains(t, top, word)
	}
	artefact := regexp.MustCompile(`\[=("|false|true|\])|=""|=\[\]`)
	for name, page := range pages {
		assert.NotRegexp(t, artefact, page, name)
	}
	assert.Contains(t, pages["natless-attach.8"], `--dns\fP[=\fIADDRESS\fP]`)
	assert.Contains(t, pages["natless-lease-ls.8"], `--port\fP \fIPORT\fP`)
	assert.Contains(t, pages["natless-attach.8"], "\n.SH EXAMPLES\n")

	if groff, err := exec.LookPath("groff"); err == nil {
		for name := range pages {
			out, err := exec.Command(groff, "-man", "-t", "-Tutf8", "-ww", "-z", filepath.Join(dir, name)).CombinedOutput()
			assert.NoError(t, err, name)
			assert.NotContains(t, string(out), "not defined", name)
		}
	}
}

// keysOf lists TABLE and KEY of every key that there is.
func eachKey(f func(table, key string, list bool)) {
	for _, table := range reflect.VisibleFields(reflect.TypeFor[config.Config]()) {
		name, ok := table.Tag.Lookup("toml")
		if !ok {
			continue
		}
		of, list := table.Type, table.Type.Kind() == reflect.Slice
		if list {
			of = of.Elem()
		}
		for _, field := range reflect.VisibleFields(of) {
			if key, ok := field.Tag.Lookup("toml"); ok {
				f(name, key, list)
			}
		}
	}
}

// natless.toml(5) is made of docs/configuration.md, and has all of its keys.
func TestManualHasEveryKey(t *testing.T) {
	_, pages := manual(t)
	sections := map[string]string{}
	for part := range strings.SplitSeq(pages["natless.toml.5"], "\n.SH ") {
		title, text, _ := strings.Cut(part, "\n")
		sections[title] = text
	}
	eachKey(func(table, key string, list bool) {
		title := "[" + table + "]"
		if list {
			title = "[[" + table + "]]"
		}
		assert.Contains(t, sections[title], "\n\\fB"+key+"\\fP\n", "%s %s", title, key)
	})
	assert.NotContains(t, pages["natless.toml.5"], "](")
	assert.NotContains(t, pages["natless.toml.5"], "\n| ")
}

// The example file has every key, though some only where they mean something.
func TestExampleHasEveryKey(t *testing.T) {
	text, err := os.ReadFile("../../contrib/natless.toml")
	require.NoError(t, err)
	tables := map[string]string{}
	table := ""
	for line := range strings.Lines(string(text)) {
		if m := regexp.MustCompile(`^(?:# )?\[+([a-z0-9]+)\]+`).FindStringSubmatch(line); m != nil {
			table = m[1]
		}
		tables[table] += line
	}
	eachKey(func(table, key string, _ bool) {
		assert.Regexp(t, `(?m)^(# )?`+key+` *= `, tables[table], "contrib/natless.toml lacks %s.%s", table, key)
	})

	// What stands there in a comment is the default, too.
	shared := regexp.MustCompile(`(?m)^# (\[sessions\]|max|max_per_client|ports_per_client|session_ports|first_port|last_port)( |$)`).ReplaceAllString(string(text), "$1$2")
	shared = strings.Replace(shared, `mode       = "one-to-one"`, `mode       = "port-range"`, 1)
	file := filepath.Join(t.TempDir(), "natless.toml")
	require.NoError(t, os.WriteFile(file, []byte(shared), 0o600))
	c, err := config.Load(file)
	require.NoError(t, err)
	want := config.Default()
	want.Pools[0].Mode, want.Pools[0].Origin = "port-range", c.Pools[0].Origin
	assert.Equal(t, want.Pools, c.Pools)
	assert.Equal(t, want.Sessions, c.Sessions)
}
