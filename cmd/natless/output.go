package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

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
type output struct{ format string }

func (o *output) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "output `FORMAT`: table or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if o.format != "table" && o.format != "json" {
			return fmt.Errorf("--output %s: expected table or json", o.format)
		}
		return nil
	}
}

func (o *output) json() bool { return o.format == "json" }

// object writes one answer: itself as JSON, or the table's rows.
func (o *output) object(out io.Writer, v any, table func(rows *rows)) error {
	if o.json() {
		return json.NewEncoder(out).Encode(v)
	}
	r := newRows(out)
	table(r)
	return r.flush()
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
	w     *tabwriter.Writer
	count int
}

const piece = 4096 // lines

func newRows(out io.Writer) *rows { return &rows{w: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)} }

func (r *rows) add(cells ...any) {
	if r.count++; r.count%piece == 0 {
		_ = r.flush() // the last one fails too
	}
	fmt.Fprintln(r.w, strings.TrimRight(strings.Join(texts(cells), "\t"), "\t "))
}

func (r *rows) flush() error { return r.w.Flush() }

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
