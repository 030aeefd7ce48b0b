package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/printable"
	"github.com/natless/natless/mapping"
)

func mapExportCommand() *cobra.Command {
	var socket config.Flags
	var runtime bool
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print the explicit mappings as a configuration has them",
		Long: `Prints the explicit mappings as [[map]] tables, by IPv4 address: what "natless
map import" reads, and what may be put into a configuration.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := background()
			defer stop()
			_, inForce, err := explicit(ctx, control.NewClient(socket.Socket()))
			if err != nil {
				return err
			}
			var list []config.Map
			for _, m := range inForce {
				if m.Runtime || !runtime {
					list = append(list, asGiven(config.Map(m)))
				}
			}
			slices.SortFunc(list, func(a, b config.Map) int { return a.IPv4.Compare(b.IPv4) })
			return config.WriteMaps(cmd.OutOrStdout(), list)
		}),
	}
	socket.RegisterSocket(cmd.Flags())
	cmd.Flags().BoolVar(&runtime, "runtime", false, "only those added while natless ran, which no file has")
	return cmd
}

// explicit is the mappings in force without pref64, and their revision.
func explicit(ctx context.Context, c *control.Client) (revision uint64, list []mapping.MapInfo, err error) {
	l, err := c.ListMaps(ctx)
	if err != nil {
		return 0, nil, err
	}
	for row, err := range control.Decoded[control.Row](l.Rows) {
		if err != nil {
			return 0, nil, err
		}
		if row.Rule == mapping.RuleMap {
			list = append(list, row.MapInfo)
		}
	}
	return l.Revision, list, nil
}

func mapImportCommand() *cobra.Command {
	var ask asking
	var tayga, jool, dryRun bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Add the explicit mappings of a file while natless runs",
		Long: `Adds the [[map]] tables of a file, which must hold nothing else; with - it reads
standard input. All of them come into force at once, or none. Those that are in
force already are passed over.

With --tayga the file is a configuration of TAYGA, of which the lines with map are
taken; with --jool one of Jool's (JSON), or what "jool_siit eamt display --csv"
prints. What else stands there is listed, and what to use instead; of two mappings
of one address the later is taken. "natless import" makes a whole configuration.`,
		Example: `  natless map export | ssh other natless map import -
  natless map import --tayga /etc/tayga.conf --dry-run`,
		RunE: does(func(cmd *cobra.Command, args []string) error {
			maps, left, err := readMaps(args[0], tayga, jool, cmd.InOrStdin())
			if err != nil {
				return err
			}
			ctx, stop := background()
			defer stop()
			r, err := importMaps(ctx, ask.client(), maps, dryRun)
			if err != nil {
				return fmt.Errorf("importing %s: %w", args[0], err)
			}
			r.Left = left
			return r.print(cmd, &ask)
		}),
	}
	ask.register(cmd)
	cmd.Flags().BoolVar(&tayga, "tayga", false, "the file is a configuration of TAYGA")
	cmd.Flags().BoolVar(&jool, "jool", false, "the file is a configuration of Jool's, or its EAMT as CSV")
	cmd.MarkFlagsMutuallyExclusive("tayga", "jool")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be added")
	return cmd
}

func readMaps(name string, tayga, jool bool, stdin io.Reader) (maps []config.Map, left []config.Left, err error) {
	in, name, err := open(name, stdin)
	if err != nil {
		return nil, nil, fmt.Errorf("reading maps: %w", err)
	}
	defer in.Close()
	switch {
	case tayga:
		t, err := config.ReadTayga(in, name)
		return t.Maps, t.Left, err
	case jool:
		return config.ReadJool(in, name)
	}
	maps, err = config.ReadMaps(in, name)
	return maps, nil, err
}

// open opens a file, or for - standard input, and tells how it is called.
func open(name string, stdin io.Reader) (io.ReadCloser, string, error) {
	if name == "-" {
		return io.NopCloser(stdin), "standard input", nil
	}
	f, err := os.Open(name)
	return f, name, err
}

// imported is what became of an import, or would become of it.
type imported struct {
	Added    []mapping.MapInfo `json:"added"`
	InForce  int               `json:"in_force"` // before
	Revision uint64            `json:"revision"` // since which all of it is in force
	DryRun   bool              `json:"dry_run,omitempty"`
	Left     []config.Left     `json:"not_imported,omitempty"`
}

// asGiven is what a mapping says, without where it was asked for.
func asGiven(m config.Map) config.Map {
	return config.Map{IPv4: m.IPv4, IPv6: m.IPv6, Label: m.Label}
}

func importMaps(ctx context.Context, c *control.Client, maps []config.Map, dryRun bool) (imported, error) {
	r := imported{Added: []mapping.MapInfo{}, DryRun: dryRun}
	revision, inForce, err := explicit(ctx, c)
	if err != nil {
		return r, err
	}
	labels := make(map[config.Map]string, len(inForce)) // by the sides alone
	for _, m := range inForce {
		labels[config.Map{IPv4: m.IPv4, IPv6: m.IPv6}] = m.Label
	}
	var batch []mapping.Change
	for _, m := range maps {
		m = asGiven(m)
		label, there := labels[config.Map{IPv4: m.IPv4, IPv6: m.IPv6}]
		if there && (m.Label == "" || m.Label == label) {
			r.InForce++
			continue
		}
		r.Added = append(r.Added, mapping.MapInfo(m))
		batch = append(batch, mapping.Change{Add: &m})
	}
	r.Revision = revision
	if len(batch) > 0 && !dryRun {
		r.Revision, err = c.Batch(ctx, batch)
	}
	return r, err
}

// sayLeft says on stderr what of another's configuration is not taken over.
func sayLeft(cmd *cobra.Command, left []config.Left) {
	for _, l := range left {
		fmt.Fprintf(cmd.ErrOrStderr(), "line %d: not imported: %s: %s\n", l.Line, printable.Text(l.Directive), printable.Text(l.Instead))
	}
}

// print says in words, or as JSON, what was added; and on stderr what a
// configuration of TAYGA has that is not imported.
func (r *imported) print(cmd *cobra.Command, ask *asking) error {
	if ask.json() {
		return ask.line(cmd.OutOrStdout(), r, "")
	}
	sayLeft(cmd, r.Left)
	out := cmd.OutOrStdout()
	if !r.DryRun {
		fmt.Fprintf(out, "added %d, in force already %d, revision %d\n", len(r.Added), r.InForce, r.Revision)
		return nil
	}
	for _, m := range r.Added {
		label := ""
		if m.Label != "" {
			label = " (" + m.Label + ")"
		}
		fmt.Fprintf(out, "would add %s%s\n", sidesOf(config.Map(m)), label)
	}
	fmt.Fprintf(out, "would add %d, in force already %d\n", len(r.Added), r.InForce)
	return nil
}
