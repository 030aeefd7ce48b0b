package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/printable"
)

// asking is what the commands that ask the daemon have in common.
type asking struct {
	output
	socket config.Flags
}

func (a *asking) register(cmd *cobra.Command) {
	a.output.register(cmd)
	a.socket.RegisterSocket(cmd.Flags())
}

func (a *asking) client() *control.Client { return control.NewClient(a.socket.Socket()) }

// output is the form of what a command prints.
type output struct {
	format string
	more   bool // its table has columns that are shown when they are asked for
}

func (o *output) register(cmd *cobra.Command) {
	forms, text := []string{"table", "json"}, "table or json"
	if o.more {
		forms, text = []string{"table", "wide", "json"}, "table, wide (with more columns) or json"
	}
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "output `FORMAT`: "+text)
	completeWords(cmd, "output", forms)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains(forms, o.format) {
			return fmt.Errorf("--output %s: expected %s", o.format, text)
		}
		return nil
	}
}

func (o *output) json() bool { return o.format == "json" }
func (o *output) wide() bool { return o.format == "wide" }

// completeWords has the shell complete a flag by words.
func completeWords(cmd *cobra.Command, flag string, words []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

// object writes one answer: itself as JSON, or the table's rows.
func (o *output) object(out io.Writer, v any, table func(rows *rows)) error {
	if o.json() {
		return json.NewEncoder(out).Encode(v)
	}
	r := newRows(out)
	r.width = widthOf(out)
	table(r)
	return r.flush()
}

// widthOf is that of the terminal that out is, in columns; 0 where it is none.
func widthOf(out io.Writer) int {
	f, ok := out.(interface{ Fd() uintptr })
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// line writes one answer: itself as JSON, or a line in words.
func (o *output) line(out io.Writer, v any, format string, args ...any) error {
	if o.json() {
		return json.NewEncoder(out).Encode(v)
	}
	_, err := fmt.Fprintln(out, printable.Text(fmt.Sprintf(format, args...)))
	return err
}

// rows are the lines of a table with aligned columns. The columns of a long
// one, which is not to be held in memory, are aligned a piece at a time.
type rows struct {
	out   io.Writer
	width int // columns that lines are folded at; 0: they are not
	lines [][]string
}

const piece = 4096 // lines

func newRows(out io.Writer) *rows { return &rows{out: out} }

func (r *rows) add(cells ...any) {
	if len(r.lines) == piece {
		_ = r.flush() // the last one fails too
	}
	r.lines = append(r.lines, texts(cells))
}

// insert puts a row before the i-th of those that are not yet flushed.
func (r *rows) insert(i int, cells ...any) { r.lines = slices.Insert(r.lines, i, texts(cells)) }

func (r *rows) flush() error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, cells := range r.lines {
		fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), "\t "))
	}
	r.lines = r.lines[:0]
	_ = w.Flush() // into memory
	text := b.String()
	if r.width > 0 {
		text = fold(text, r.width)
	}
	_, err := io.WriteString(r.out, text)
	return err
}

// columns are what comes before the last column of a line, as far as that can be told.
var columns = regexp.MustCompile(`^.*?\S  +`)

// fold breaks lines between words where they do not fit a width. What goes on is
// below the second column.
func fold(text string, width int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		indent := utf8.RuneCountInString(columns.FindString(line))
		if indent == 0 || indent > width/2 {
			indent = 2
		}
		for utf8.RuneCountInString(line) > width {
			runes := []rune(line)
			at := width
			for at > indent && runes[at] != ' ' {
				at--
			}
			if at == indent {
				at = width // a word that is longer than there is room
			}
			b.WriteString(strings.TrimRight(string(runes[:at]), " ") + "\n")
			line = strings.Repeat(" ", indent) + strings.TrimLeft(string(runes[at:]), " ")
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

func texts[T any](cells []T) []string {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = printable.Text(fmt.Sprint(c))
	}
	return text
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// sides are the filters that listings have in common.
type sides struct {
	client, pool prefix
	label        pattern
}

func (s *sides) register(cmd *cobra.Command) {
	s.client.family, s.pool.family = 6, 4
	cmd.Flags().Var(&s.client, "client", "only those whose IPv6 side is inside this `PREFIX`")
	cmd.Flags().Var(&s.pool, "pool", "only those whose IPv4 side is inside this `PREFIX`")
	cmd.Flags().Var(&s.label, "label", "only those with this label, or with one that this `PATTERN` matches (*, ?, [a-z])")
}

func (s *sides) admit(v4, v6 netip.Prefix, label string) bool {
	return s.pool.admits(v4) && s.client.admits(v6) && s.label.admits(label)
}

// pattern is a flag: of labels, or "" for all.
type pattern string

func (p *pattern) Type() string   { return "pattern" }
func (p *pattern) String() string { return string(*p) }

func (p *pattern) Set(s string) error {
	if _, err := path.Match(s, ""); err != nil {
		return errors.New("expected a label, or a pattern such as web*")
	}
	*p = pattern(s)
	return nil
}

func (p *pattern) admits(label string) bool {
	matches, _ := path.Match(string(*p), label) // Set saw to it
	return *p == "" || matches || label == string(*p)
}

// prefix is a flag: a prefix of a family, or none.
type prefix struct {
	netip.Prefix
	family int
}

func (p *prefix) Type() string { return "prefix" }

func (p *prefix) String() string {
	if !p.IsValid() {
		return ""
	}
	return p.Prefix.String()
}

func (p *prefix) Set(s string) (err error) {
	p.Prefix, err = config.ParsePrefix(s, p.family)
	return err
}

func (p *prefix) admits(inside netip.Prefix) bool {
	return !p.IsValid() || p.Bits() <= inside.Bits() && p.Contains(inside.Addr())
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
