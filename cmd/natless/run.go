package main

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/daemon"
)

func runCommand() *cobra.Command {
	var settings settings
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Translate until SIGTERM or SIGINT",
		Long: `Makes the TUN device and the routes to it, translates between IPv6 and IPv4
until SIGTERM or SIGINT, and takes all of it down again. At SIGHUP it reads its
configuration again, as "natless reload" has it do.`,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return daemon.Run(ctx, version, cmp.Or(settings.file, settings.standard), settings.load, logger)
		}),
	}
	settings.register(cmd)
	return cmd
}

// settings are what `run`, `check` and `pcap` read their configuration from.
type settings struct {
	file     string
	standard string // the file to read without -c, when there
	flags    config.Flags
}

func (s *settings) register(cmd *cobra.Command) {
	s.standard = config.DefaultFile
	cmd.Flags().StringVarP(&s.file, "config", "c", "", "configuration `FILE` (default "+config.DefaultFile+" when there)")
	s.flags.Register(cmd.Flags())
}

// registerOnly registers those flags that mean something to a command.
func (s *settings) registerOnly(cmd *cobra.Command, names ...string) {
	all := new(cobra.Command)
	s.register(all)
	for _, name := range names {
		cmd.Flags().AddFlag(all.Flags().Lookup(name))
	}
}

// load reads the configuration. A standard file that was there once has to be
// there again: that it is gone for a moment is no wish for the defaults.
func (s *settings) load() (*config.Config, error) {
	if _, err := os.Stat(s.standard); s.file == "" && err == nil {
		s.file = s.standard
	}
	c, err := config.Load(s.file)
	if err != nil {
		return nil, err
	}
	return c, s.flags.Apply(c)
}

// background is the context of short-lived commands: Ctrl-C and SIGTERM end
// them, with time to clear up.
func background() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}
