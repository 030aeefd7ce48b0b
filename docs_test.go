package natless

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/config"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// assertDefaults checks that a configuration says in words what the program
// does without them. Explicit mappings are left aside: by default there are
// none. So is the default mode of a pool, which has no use for all of the keys.
func assertDefaults(t *testing.T, text string) {
	t.Helper()
	const mode, shared = "mode = \"one-to-one\"\n", "port-range"
	require.Contains(t, text, mode)
	text = strings.Replace(text, mode, "mode = \""+shared+"\"\n", 1)
	path := filepath.Join(t.TempDir(), "natless.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	c, err := config.Load(path)
	require.NoError(t, err, text)
	c.Maps = nil
	got, err := json.MarshalIndent(c, "", " ")
	require.NoError(t, err)
	defaults := config.Default()
	defaults.Pools[0].Mode = shared
	want, err := json.MarshalIndent(defaults, "", " ")
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got), text)
}

// documented is the configuration that the tables of docs/configuration.md
// amount to, and the names of all keys that page has, as TABLE.KEY.
func documented(t *testing.T) (text string, keys map[string]bool) {
	t.Helper()
	heading := regexp.MustCompile(`^## (\[+([a-z0-9]+)\]+)$`)
	row := regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| (`([^`]*)`|required) \\|")
	keys = map[string]bool{}
	table := ""
	for line := range strings.Lines(read(t, "docs/configuration.md")) {
		line = strings.TrimSuffix(line, "\n")
		if m := heading.FindStringSubmatch(line); m != nil {
			if table = m[2]; table != "map" {
				text += m[1] + "\n"
			}
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		keys[table+"."+m[1]] = true
		if table != "map" {
			text += m[1] + " = " + m[3] + "\n"
		}
	}
	return text, keys
}

func TestConfigurationIsDocumented(t *testing.T) {
	text, keys := documented(t)
	assertDefaults(t, text)

	_, later, found := strings.Cut(read(t, "docs/configuration.md"), "## Not in this version")
	require.True(t, found)
	for _, table := range reflect.VisibleFields(reflect.TypeFor[config.Config]()) {
		name, ok := table.Tag.Lookup("toml")
		if !ok {
			continue
		}
		of := table.Type
		if of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		for _, key := range reflect.VisibleFields(of) {
			k, ok := key.Tag.Lookup("toml")
			if !ok {
				continue
			}
			assert.True(t, keys[name+"."+k] || strings.Contains(later, "`"+k+"`"), "docs/configuration.md lacks %s.%s", name, k)
			delete(keys, name+"."+k)
		}
	}
	assert.Empty(t, keys, "docs/configuration.md has keys that there are not")
}

func TestFlagsAreDocumented(t *testing.T) {
	page := read(t, "docs/cli.md")
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	new(config.Flags).Register(set)
	set.VisitAll(func(f *pflag.Flag) {
		assert.Regexp(t, "[|] `--"+f.Name+"[ [`]", page)
	})
}

// The two units differ in the configuration and the state alone.
func TestUnitsAgree(t *testing.T) {
	settings := func(path string) string {
		_, text, _ := strings.Cut(read(t, path), "[Unit]")
		return text
	}
	one := settings("contrib/systemd/natless.service")
	named := strings.NewReplacer(" (%i)", "", " -c /etc/natless/%i.toml --state-dir /var/lib/natless/%i", "", "natless/%i", "natless").Replace(settings("contrib/systemd/natless@.service"))
	assert.Equal(t, one, named)
}

func TestReadmeIsShort(t *testing.T) {
	readme := read(t, "README.md")
	assert.LessOrEqual(t, strings.Count(readme, "\n"), 120)
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, m := range link.FindAllStringSubmatch(readme, -1) {
		assert.FileExists(t, m[1])
	}
}
