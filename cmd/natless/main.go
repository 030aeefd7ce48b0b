// Command natless gives IPv6-only containers IPv4 reach: `natless run` is the
// daemon, everything else is short-lived and sets it up, inspects it or shows
// it off. The commands here turn flags into calls and results into text; what
// they call lives in the packages of this module.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
)

// Exit codes people script against.
const (
	exitFailed = 1
	exitUsage  = 2
)

// version is set by the linker.
var version = "devel"

func main() {
	err := root().Execute()
	if err == nil {
		return
	}
	complain(os.Stderr, err)
	os.Exit(exitCode(err))
}

// exitCode tells what trying again may mend from what it cannot: wrong usage, and
// a wrong configuration.
func exitCode(err error) int {
	if errors.As(err, new(*failure)) && !errors.Is(err, config.ErrWrong) {
		return exitFailed
	}
	return exitUsage
}

// failure marks an error of a command that was called rightly: cobra's own
// errors, all about usage, come without it.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// does wraps what a command does so that its errors are told from wrong usage.
func does(run func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil {
			return &failure{err}
		}
		return nil
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "natless",
		Short: "IPv4 reach for IPv6-only containers, by stateless address mappings",
		Long: `natless gives IPv6-only containers and hosts reach to IPv4.

"natless run" makes a TUN device and the routes to it, and translates between
IPv6 and IPv4 until it is stopped; then it takes all of it down again. The
other commands inspect the running daemon, check a configuration, clean up, or
show the whole thing at work in throwaway namespaces ("natless lab demo").`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.AddCommand(
		runCommand(), checkCommand(), reloadCommand(), downCommand(),
		statusCommand(), statsCommand(), mapCommand(), leaseCommand(), sessionCommand(),
		attachCommand(), detachCommand(), psCommand(), portRangeCommand(),
		traceCommand(), dnsCommand(), pcapCommand(), importCommand(),
		labCommand(), versionCommand(), manCommand(),
	)
	nameArguments(cmd)
	completeAll(cmd)
	return cmd
}
