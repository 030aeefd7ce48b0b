package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natless/natless/docs"
	"github.com/natless/natless/internal/config"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages into a directory",
		RunE: does(func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("making the directory for manual pages: %w", err)
			}
			for name, page := range manPages(cmd.Root()) {
				if err := os.WriteFile(filepath.Join(args[0], name), md2man.Render([]byte(page)), 0o644); err != nil {
					return fmt.Errorf("writing manual pages: %w", err)
				}
			}
			return nil
		}),
	}
}

// manPages are the pages in Markdown, by the names of their files: natless(8), one
// for each command, and natless.toml(5).
func manPages(root *cobra.Command) map[string]string {
	root.InitDefaultHelpCmd()
	pages := map[string]string{"natless.toml.5": configurationPage(docs.Configuration)}
	var add func(cmd *cobra.Command)
	add = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		pages[pageName(cmd)+".8"] = commandPage(cmd)
		for _, c := range cmd.Commands() {
			add(c)
		}
	}
	add(root)
	return pages
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// page is a manual page in the making.
type page struct{ strings.Builder }

func newPage(name, section, short string) *page {
	p := new(page)
	fmt.Fprintf(p, "%% %q %q %q %q %q\n", strings.ToUpper(name), section, "", "natless "+version, "natless")
	p.section("NAME", plain(name+" - "+short))
	return p
}

func (p *page) section(title, text string) {
	if text = strings.Trim(text, "\n"); text != "" {
		fmt.Fprintf(p, "\n# %s\n\n%s\n", title, text)
	}
}

// special are the characters that mean something in Markdown.
var special = regexp.MustCompile("[\\\\`*_{}\\[\\]()#|<>~]")

// plain is text as it is, in Markdown.
func plain(text string) string { return special.ReplaceAllString(text, `\$0`) }

// paragraphs are those of a help text, in Markdown: what is indented stays as it is.
func paragraphs(text string) string {
	var b strings.Builder
	indented := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if now := strings.HasPrefix(line, "  "); now != indented {
			indented = now
			b.WriteString("\n")
		}
		if indented {
			line = "    " + line
		} else {
			line = plain(line)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// entry is one of a list: what is meant and what there is to say of it.
func entry(what, text string) string { return what + "\n: " + text + "\n\n" }

func commandPage(cmd *cobra.Command) string {
	p := newPage(pageName(cmd), "8", cmd.Short)
	use := strings.TrimSpace(strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath()))
	if cmd.HasSubCommands() {
		use = "COMMAND"
	}
	p.section("SYNOPSIS", "**"+plain(cmd.CommandPath())+"** "+plain(use))
	p.section("DESCRIPTION", paragraphs(cmp.Or(cmd.Long, cmd.Short+".")))
	var commands strings.Builder
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			commands.WriteString(entry("**"+plain(pageName(c))+"**(8)", plain(c.Short)))
		}
	}
	p.section("COMMANDS", commands.String())
	p.section("OPTIONS", options(cmd.NonInheritedFlags()))
	if cmd.Example != "" {
		p.section("EXAMPLES", paragraphs(cmd.Example))
	}
	if !cmd.HasParent() {
		p.section("FILES", files())
		p.section("ENVIRONMENT", environment())
		p.section("EXIT STATUS", exitStatus)
	}
	see := []string{"**natless.toml**(5)"}
	for c := cmd.Parent(); c != nil; c = c.Parent() {
		see = append(see, "**"+pageName(c)+"**(8)")
	}
	slices.Reverse(see)
	p.section("SEE ALSO", strings.Join(see, ", "))
	return p.String()
}

// options are flags as people type them: with the name of a value where there is
// one, and the default where it says something.
func options(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name, usage := pflag.UnquoteUsage(f)
		what := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			what = "**-" + f.Shorthand + "**, " + what
		}
		switch {
		case f.Value.Type() == "bool":
		case f.NoOptDefVal != "":
			what += `\[=*` + plain(name) + `*\]`
		default:
			what += " *" + plain(name) + "*"
		}
		switch f.DefValue {
		case "", "false", "0", "0s", "[]":
		default:
			usage += " (default " + strings.Trim(f.DefValue, "[]") + ")"
		}
		b.WriteString(entry(what, plain(usage)))
	})
	return b.String()
}

func files() string {
	d := config.Default()
	var b strings.Builder
	for _, f := range []struct{ path, text string }{
		{config.DefaultFile, "the configuration, see natless.toml(5); not needed"},
		{config.DefaultFile + ".example", "every key with its default"},
		{d.Control.Socket, "the socket that the other commands ask the running natless at ([control] socket)"},
		{d.State.Dir + "/natless.db", "leases, their history, what is attached, and the mappings added while natless runs ([state] dir)"},
		{"/run/natless", "what was changed on the host: natless down takes it back by that, also after a crash"},
		{"/dev/net/tun", "makes the device"},
		{"/run/netns, /etc/netns", "the namespaces that natless attach finds by name, and their resolv.conf"},
	} {
		b.WriteString(entry("*"+plain(f.path)+"*", plain(f.text)))
	}
	return b.String()
}

func environment() string {
	var b strings.Builder
	for _, v := range []struct{ name, text string }{
		{config.SocketVariable, "the socket of the running natless, where --socket does not name one"},
		{"CONTAINER_HOST, DOCKER_HOST", "where Podman and Docker answer, as unix://PATH"},
		{"NOTIFY_SOCKET, WATCHDOG_USEC", "set by systemd: natless run says when it is ready, how it is, and that it is alive"},
		{"JOURNAL_STREAM", "set by systemd: lines of the log have a priority and no time where they go to the journal"},
		{"GOGC", "how often natless run collects garbage; natless chooses where it is not set"},
	} {
		b.WriteString(entry("**"+plain(v.name)+"**", plain(v.text)))
	}
	return b.String()
}

const exitStatus = `0
: done

1
: it failed, the host does not allow it, or **natless-status**(8), **natless-check**(8) or its **--diff** have something to say

2
: wrong usage, or a wrong configuration in a file, a flag or the environment: the same again fails the same

`

var (
	keyRow  = regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| (`[^`]*`|required) \\| (.*) \\|$")
	heading = regexp.MustCompile(`^(#+) (.*)$`)
	link    = regexp.MustCompile(`\[([^\]]+)\]\([^)]*\)`)
)

// configurationPage makes natless.toml(5) of the page of the keys. Its tables become
// lists, as people read them in a terminal.
func configurationPage(text string) string {
	p := newPage("natless.toml", "5", "the configuration of natless")
	p.WriteString("\n# DESCRIPTION\n")
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if !strings.HasPrefix(line, "    ") {
			line = link.ReplaceAllString(line, "$1")
		}
		h, row := heading.FindStringSubmatch(line), keyRow.FindStringSubmatch(line)
		switch {
		case h != nil && h[1] == "#": // the title
		case h != nil:
			title := h[2]
			if h[1] == "##" && !strings.HasPrefix(title, "[") {
				title = strings.ToUpper(title)
			}
			p.WriteString("\n" + h[1][1:] + " " + plain(title) + "\n")
		case row != nil:
			meaning := strings.Split(row[3], " | ")
			text := "(" + row[2] + ") " + meaning[0]
			if row[2] == "required" {
				text = "(required) " + meaning[0]
			}
			if len(meaning) > 1 && strings.TrimSpace(meaning[1]) != "" {
				text += ". Change it when " + meaning[1]
			}
			p.WriteString("\n" + entry("**"+plain(row[1])+"**", text))
		case strings.HasPrefix(line, "|"): // the head of a table
		default:
			p.WriteString(line + "\n")
		}
	}
	p.section("SEE ALSO", "**natless**(8), **natless-check**(8)")
	return p.String()
}
