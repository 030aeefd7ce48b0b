package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/attach"
	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/internal/lockfile"
	"github.com/natless/natless/internal/printable"
)

func downCommand() *cobra.Command {
	var socket config.Flags
	var file, dir string
	var wait waiting
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove everything natless ever made on this host",
		Long: `Removes everything natless ever made on this host, also after it was killed, and
detaches what is attached: that is written down where natless keeps its state, by
the configuration's state.dir. Where there is nothing it does nothing. It refuses
while natless runs.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			say := func(lines []string) {
				for _, line := range lines {
					fmt.Fprintln(cmd.OutOrStdout(), printable.Text(line))
				}
			}
			dir, unknown := stateDir(cmd, file, dir)
			if unknown != nil && file != "" {
				return unknown // before anything changes
			}
			path := socket.Socket()
			if control.RemoveStale(path) {
				fmt.Fprintln(cmd.OutOrStdout(), "remove socket", path)
			}
			lines, err := hostnet.Down()
			say(lines)
			// While natless runs they are in use. Whatever else failed, the rest goes.
			if !errors.As(err, new(*hostnet.RunningError)) {
				lines, wrong := detachAll(dir, wait.lock(cmd))
				say(lines)
				err = errors.Join(err, unknown, wrong)
				lines, wrong = attach.RemoveLinks()
				say(lines)
				err = errors.Join(err, wrong)
			}
			if err != nil {
				return fmt.Errorf("cleaning up the host: %w", err)
			}
			return nil
		}),
	}
	socket.RegisterSocket(cmd.Flags())
	wait.register(cmd)
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE` that natless had (default "+config.DefaultFile+" when there)")
	cmd.Flags().StringVar(&dir, "state-dir", "", `directory of the state that natless had, in place of the configuration's; "": none`)
	return cmd
}

// stateDir is where the state of a natless is: the directory given, or that of its
// configuration.
func stateDir(cmd *cobra.Command, file, given string) (string, error) {
	if cmd.Flags().Changed("state-dir") {
		return given, nil
	}
	c, err := config.Load(file)
	if err != nil {
		return "", fmt.Errorf("where what is attached is written down (--state-dir tells too): %w", err)
	}
	return c.State.Dir, nil
}

func detachAll(dir string, wait lockfile.Wait) ([]string, error) {
	ctx, stop := background()
	defer stop()
	return daemon.DetachAll(ctx, dir, wait)
}
