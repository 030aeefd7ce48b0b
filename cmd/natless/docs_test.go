package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDocumentedCommandsExist holds that what the documents say to type are
// commands of natless, with flags that they have.
func TestDocumentedCommandsExist(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	found := 0
	for _, page := range append(pages, "../../README.md", "../../contrib/natless.toml") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, line := range typed(string(text)) {
			found++
			assert.Empty(t, wrong(line), "%s: %s", filepath.Base(page), line)
		}
	}
	assert.Greater(t, found, 100)
}

func TestWrongCommandsAreFound(t *testing.T) {
	lines := typed("Say `natless frob`, or:\n\n    sudo natless status --no-such && natless map\n\nnot natless frobs, and no `natless@NAME`; `natless lab demo [--keep]`, `natless map get\nADDRESS -c FILE`.\n" +
		"```sh\nnatless map frob 192.0.2.1 | cat\nx=$(natless -q stats)\n```\n")
	assert.Equal(t, []string{"natless status --no-such", "natless map", "natless map frob 192.0.2.1", "natless -q stats", "natless frob", "natless lab demo --keep", "natless map get ADDRESS -c FILE"}, lines)
	for i, bad := range []bool{true, false, true, true, true, false, false} {
		assert.Equal(t, bad, wrong(lines[i]) != "", lines[i])
	}
}

// alternatives are all but the first of a choice in a table: a\|b, a|b.
var alternatives = regexp.MustCompile(`\\?\|[\w-]+`)

// typed lists the commands in a document's code: spans, and blocks by fences or
// indentation.
func typed(text string) (lines []string) {
	var code []string
	fenced := false
	var prose strings.Builder
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			code = append(code, line)
		default:
			prose.WriteString(line)
		}
	}
	for _, span := range regexp.MustCompile("(?s)`[^`]+`").FindAllString(prose.String(), -1) {
		code = append(code, strings.Join(strings.Fields(strings.Trim(span, "`")), " "))
	}
	for _, c := range code {
		for _, m := range regexp.MustCompile(`(?:^|[\s(])natless( [^;&|>#)$"]*)`).FindAllStringSubmatch(alternatives.ReplaceAllString(c, ""), -1) {
			if strings.HasPrefix(m[1], " natless") {
				continue // the mark of its rules
			}
			lines = append(lines, strings.TrimSpace("natless"+strings.NewReplacer("[", "", "]", "").Replace(m[1])))
		}
	}
	return lines
}

// wrong says what is wrong with a command, if anything.
func wrong(line string) string {
	all := root()
	all.InitDefaultHelpCmd()
	all.InitDefaultCompletionCmd()
	cmd, rest, err := all.Find(strings.Fields(line)[1:])
	if err != nil {
		return err.Error()
	}
	cmd.InitDefaultHelpFlag()
	for _, word := range rest {
		var f *pflag.Flag
		switch name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "="); {
		case strings.HasPrefix(word, "--"):
			f = cmd.Flag(name)
		case strings.HasPrefix(word, "-") && len(word) == 2:
			f = cmd.Flags().ShorthandLookup(name)
		case word == strings.ToUpper(word): // stands for something
			continue
		case cmd.HasSubCommands():
			return cmd.CommandPath() + " has no " + word
		default:
			continue
		}
		if f == nil {
			return "no flag " + word
		}
	}
	return ""
}
