package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

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
	var diff, words bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "What `natless run` would do to this host, and what stands in the way",
		Long: `Validates a configuration, prints exactly what "natless run" would do to this
host with it, and what stands in the way. Changes nothing. With --diff it prints
what differs from the configuration of the running daemon instead; what is not
marked as needing a restart, "natless reload" takes up. With --snippets it prints
what systemd-networkd, radvd, unbound, bind and CoreDNS are to have in their
configurations where these tell clients of pref64, or are their DNS64.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			c, err := settings.load()
			if err != nil {
				return err
			}
			if _, err := mapping.New(daemon.Mapping(c)); err != nil {
				return config.Wrong(err)
			}
			switch {
			case diff:
				return checkDiff(cmd.OutOrStdout(), c)
			case words:
				return snippets.Write(cmd.OutOrStdout(), c)
			}
			return checkHost(cmd.OutOrStdout(), c)
		}),
	}
	settings.register(cmd)
	cmd.Flags().BoolVar(&diff, "diff", false, "compare with the running daemon")
	cmd.Flags().BoolVar(&words, "snippets", false, "print the same for systemd-networkd, radvd, unbound, bind and CoreDNS")
	cmd.MarkFlagsMutuallyExclusive("diff", "snippets")
	return cmd
}

func checkHost(out io.Writer, c *config.Config) error {
	report, err := hostnet.Check(daemon.Plan(c))
	if err != nil {
		return err
	}
	if dns64 := c.DNS64.String(); dns64 != "" {
		report.Actions = append(report.Actions, "answer as "+dns64)
	}
	sends, warnings := daemon.Advertisements(c).Check()
	report.Actions = append(report.Actions, sends...)
	report.Warnings = slices.Concat(report.Warnings, warnings, c.Warnings(), c.Notes())
	fmt.Fprint(out, printable.Lines(report.String()))
	if len(report.Conflicts) > 0 {
		return errors.New("checking this host: it could not run, see what stands in the way")
	}
	return nil
}

// checkDiff prints the keys whose values differ, the running daemon's first.
func checkDiff(out io.Writer, c *config.Config) error {
	running, err := control.NewClient(c.Control.Socket).Config(context.Background())
	if err != nil {
		return err
	}
	checked, err := json.Marshal(c)
	if err != nil {
		return err
	}
	before, after := map[string]string{}, map[string]string{}
	if err := errors.Join(flatten(running, before), flatten(checked, after)); err != nil {
		return fmt.Errorf("comparing configurations: %w", err)
	}
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if before[key] == after[key] {
			continue
		}
		restart := ""
		if config.NeedsRestart(key) {
			restart = "  # needs a restart"
		}
		if before[key] != "" {
			fmt.Fprintf(out, "- %s = %s%s\n", key, before[key], restart)
		}
		if after[key] != "" {
			fmt.Fprintf(out, "+ %s = %s%s\n", key, after[key], restart)
		}
	}
	return nil
}

// flatten lays the values of a JSON document out by their keys.
func flatten(document []byte, into map[string]string) error {
	var tree any
	if err := json.Unmarshal(document, &tree); err != nil {
		return err
	}
	walk("", tree, into)
	return nil
}

func walk(path string, v any, into map[string]string) {
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
		text, _ := json.Marshal(v) // it came from JSON
		into[path] = string(text)
	}
}
