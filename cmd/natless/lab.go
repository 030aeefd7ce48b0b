package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/natless/natless/internal/lab"
)

func labCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "natless at work in throwaway network namespaces",
		RunE:  wantsCommand,
	}
	cmd.AddCommand(labDemoCommand(), labDownCommand())
	return cmd
}

func labDemoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show an IPv6-only client reach an IPv4-only server",
		Long: `Builds three network namespaces, an IPv6-only client, a host that runs natless
and an IPv4-only server, and shows what works between them, with a tick or a
cross for each thing. It succeeds only if all of it held. Nothing outside the
namespaces is touched, and they are removed at the end.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := background()
			defer stop()
			return lab.Demo(ctx, lab.DemoOptions{
				Keep: keep, Out: cmd.OutOrStdout(), Terminal: term.IsTerminal(int(os.Stdout.Fd())),
			})
		}),
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it standing and print the commands to enter it")
	return cmd
}

func labDownCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove what earlier labs left",
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			lines, err := lab.Down()
			for _, line := range lines {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			if err != nil {
				return fmt.Errorf("removing labs: %w", err)
			}
			return nil
		}),
	}
}
