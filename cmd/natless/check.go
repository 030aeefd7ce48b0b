package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/printable"
	"github.com/natless/natless/internal/snippets"
	"github.com/natless/natless/mapping"
)

func checkCommand() *cobra.Command {
	var settings settings
	var form output
	var diff, words bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "What `natless run` would do to this host, and what stands in the way",
		Long: `Validates a configuration, prints exactly what "natless run" would do to this
host with it, and what stands in the way: then it fails. Changes nothing.

With --diff it prints what differs from the configuration of the running daemon
instead, and fails where something does. The file is that of the daemon and the
flags are those that it was started with, but for what is given here; what is not
marked as needing a restart, "natless reload" takes up.

With --snippets it prints what systemd-networkd, radvd, unbound, bind and CoreDNS
are to have in their configurations where these tell clients of pref64, or are
their DNS64.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			c, err := loadChecked(&settings)
			switch {
			case err != nil:
				return err
			case diff:
				return checkDiff(cmd.OutOrStdout(), &form, &settings, c.Control.Socket)
			case words:
				return snippets.Write(cmd.OutOrStdout(), c)
			}
			return checkHost(cmd.OutOrStdout(), &form, c)
		}),
	}
	settings.register(cmd)
	form.register(cmd)
	cmd.Flags().BoolVar(&diff, "diff", false, "compare with the running daemon")
	cmd.Flags().BoolVar(&words, "snippets", false, "print the same for systemd-networkd, radvd, unbound, bind and CoreDNS")
	cmd.MarkFlagsMutuallyExclusive("diff", "snippets")
	cmd.MarkFlagsMutuallyExclusive("output", "snippets")
	return cmd
}

// loadChecked reads a configuration that a daemon would accept.
func loadChecked(s *settings) (*config.Config, error) {
	c, err := s.load()
	if err != nil {
		return nil, err
	}
	if _, err := mapping.New(daemon.Mapping(c)); err != nil {
		return nil, config.Wrong(err)
	}
	return c, control.CheckGroups(c.Control.Group, c.Control.ReadGroup)
}

func checkHost(out io.Writer, form *output, c *config.Config) error {
	report, err := hostnet.Check(daemon.Plan(c))
	if err != nil {
		return err
	}
	if dns64 := c.DNS64.String(); dns64 != "" {
		report.Actions = append(report.Actions, "answer as "+dns64)
	}
	sends, silent := daemon.Advertisements(c).Check()
	report.Actions = append(report.Actions, sends...)
	report.Obstacles = append(report.Obstacles, silent...)
	if err := stateWritable(c.State.Dir); err != nil {
		report.Obstacles = append(report.Obstacles, err.Error())
	}
	report.Warnings = slices.Concat(report.Warnings, c.Warnings(), c.Notes())
	if form.json() {
		if err := form.line(out, report, ""); err != nil {
			return err
		}
	} else {
		fmt.Fprint(out, printable.Lines(report.String()))
	}
	if len(report.Conflicts) > 0 {
		return errors.New("checking this host: it could not run, see what stands in the way")
	}
	if len(report.Obstacles) > 0 {
		return errors.New("checking this host: it would not do all it is asked for, see what stands in the way")
	}
	return nil
}

// stateWritable looks whether leases could be saved. It makes nothing.
func stateWritable(dir string) error {
	for path := dir; path != ""; path = filepath.Dir(path) {
		err := unix.Access(path, unix.W_OK|unix.X_OK)
		if errors.Is(err, fs.ErrNotExist) && path != "/" {
			continue // natless would make it
		}
		if err != nil {
			return fmt.Errorf("no lease can be saved: state.dir %s: %s: %w", dir, path, err)
		}
		return nil
	}
	return nil
}

// differing is a key whose value differs from that of the running daemon.
type differing struct {
	Key     string `json:"key"`
	Running any    `json:"running"` // absent: null
	Checked any    `json:"checked"`
	Restart bool   `json:"needs_restart"`
}

// checkDiff prints the keys whose values differ, the running daemon's first. The
// daemon reads its own file with its own flags when it is told to reload, and so
// does this.
func checkDiff(out io.Writer, form *output, s *settings, socket string) error {
	ctx, stop := background()
	defer stop()
	client := control.NewClient(socket)
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	running, err := client.Config(ctx)
	if err != nil {
		return err
	}
	if s.file == "" {
		s.file = status.File
	}
	if err := s.flags.Again(status.Flags); err != nil {
		return err
	}
	c, err := loadChecked(s)
	if err != nil {
		return err
	}
	checked, err := json.Marshal(c)
	if err != nil {
		return err
	}
	list, err := differences(running, checked)
	if err != nil {
		return fmt.Errorf("comparing configurations: %w", err)
	}
	for _, d := range list {
		if err := d.print(out, form); err != nil {
			return err
		}
	}
	if n := len(list); n > 0 {
		return fmt.Errorf("comparing with the running natless: %d values differ", n)
	}
	return nil
}

func differences(running, checked []byte) (list []differing, err error) {
	before, after := map[string]any{}, map[string]any{}
	if err := errors.Join(flatten(running, before), flatten(checked, after)); err != nil {
		return nil, err
	}
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if before[key] != after[key] {
			list = append(list, differing{key, before[key], after[key], config.NeedsRestart(key)})
		}
	}
	return list, nil
}

func (d differing) print(out io.Writer, form *output) error {
	if form.json() {
		return form.line(out, d, "")
	}
	restart := ""
	if d.Restart {
		restart = "  # needs a restart"
	}
	for _, side := range []struct {
		sign  string
		value any
	}{{"-", d.Running}, {"+", d.Checked}} {
		if side.value == nil {
			continue
		}
		text, _ := json.Marshal(side.value) // it came from JSON
		if err := form.line(out, nil, "%s %s = %s%s", side.sign, d.Key, text, restart); err != nil {
			return err
		}
	}
	return nil
}

// flatten lays the values of a JSON document out by their keys.
func flatten(document []byte, into map[string]any) error {
	var tree any
	numbers := json.NewDecoder(bytes.NewReader(document))
	numbers.UseNumber()
	if err := numbers.Decode(&tree); err != nil {
		return err
	}
	walk("", tree, into)
	return nil
}

func walk(path string, v any, into map[string]any) {
	switch v := v.(type) {
	case map[string]any:
		for key, child := range v {
			if path != "" {
				key = path + "." + key
			}
			walk(key, child, into)
		}
	case []any:
		for i, child := range v {
			walk(fmt.Sprintf("%s[%d]", path, i), child, into)
		}
	default:
		into[path] = v
	}
}
