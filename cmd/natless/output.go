package main

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
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

// object writes one answer: itself as JSON, or the table's rows.
func (o *output) object(out io.Writer, v any, table func(rows *rows)) error {
	if o.format == "json" {
		return json.NewEncoder(out).Encode(v)
	}
	r := newRows(out)
	table(r)
	return r.flush()
}

// listing writes a list: JSON lines as they come, or a table.
func listing[T any](a *asking, out io.Writer, list iter.Seq2[json.RawMessage, error], head []any, row func(T) []any) error {
	if a.format == "json" {
		for line, err := range list {
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, "%s\n", line); err != nil {
				return err
			}
		}
		return nil
	}
	r := newRows(out)
	r.add(head...)
	for v, err := range control.Decoded[T](list) {
		if err != nil {
			return err
		}
		r.add(row(v)...)
	}
	return r.flush()
}

// rows are the lines of a table with aligned columns.
type rows struct{ w *tabwriter.Writer }

func newRows(out io.Writer) *rows { return &rows{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)} }

func (r *rows) add(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = fmt.Sprint(c)
	}
	fmt.Fprintln(r.w, strings.TrimRight(strings.Join(text, "\t"), "\t "))
}

func (r *rows) flush() error { return r.w.Flush() }
