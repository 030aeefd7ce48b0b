package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/attach"
	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/hostnet"
)

func downCommand() *cobra.Command {
	var socket config.Flags
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove everything natless ever made on this host",
		Long: `Removes everything natless ever made on this host, also after it was killed.
Where there is nothing it does nothing. It refuses while natless runs.`,
		Args: cobra.NoArgs,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			path := socket.Socket()
			if control.RemoveStale(path) {
				fmt.Fprintln(cmd.OutOrStdout(), "remove socket", path)
			}
			lines, err := hostnet.Down()
			for _, line := range lines {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			if err == nil { // natless does not run: nobody uses them
				lines, err = attach.RemoveLinks()
				for _, line := range lines {
					fmt.Fprintln(cmd.OutOrStdout(), line)
				}
			}
			if err != nil {
				return fmt.Errorf("cleaning up the host: %w", err)
			}
			return nil
		}),
	}
	socket.RegisterSocket(cmd.Flags())
	return cmd
}
