package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/printable"
)

func reloadCommand() *cobra.Command {
	var ask asking
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running natless read its configuration again",
		Long: `The running natless reads its configuration again, as it does at SIGHUP, and
changes to it: all of it or, where something in it is wrong or cannot change
while it runs, nothing. Prints what changed; flows of mappings that did not
change go on. "natless check --diff" tells beforehand.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := background()
			defer stop()
			changes, err := ask.client().Reload(ctx)
			switch {
			case err == nil:
			case asExecReload() && control.Refused(err):
				return told{err}
			default:
				return err
			}
			if ask.json() {
				return ask.line(cmd.OutOrStdout(), struct {
					Changes []string `json:"changes"`
				}{changes}, "")
			}
			if asExecReload() {
				return nil
			}
			for _, line := range changes {
				fmt.Fprintln(cmd.OutOrStdout(), printable.Text(line))
			}
			if len(changes) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing changed")
			}
			return nil
		}),
	}
	ask.register(cmd)
	return cmd
}

// asExecReload reports whether this is the unit's own ExecReload=, whose output is in
// the journal beside the daemon's, which tells the same (systemd.service(5)).
func asExecReload() bool { return os.Getenv("MAINPID") != "" && toJournal(os.Stderr) }
