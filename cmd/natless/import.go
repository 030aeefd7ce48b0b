package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/config"
)

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Make a configuration of another translator's",
		RunE:  wantsCommand,
	}
	cmd.AddCommand(
		importFrom("tayga", `TAYGA`, "natless import tayga /etc/tayga.conf >natless.toml && natless check -c natless.toml", config.ImportTayga),
		importFrom("jool", `Jool (JSON, as "jool file handle" takes it)`, "natless import jool /etc/jool/jool.conf >natless.toml && natless check -c natless.toml", config.ImportJool),
	)
	return cmd
}

func importFrom(name, title, example string, read func(io.Reader, string) (config.Imported, error)) *cobra.Command {
	return &cobra.Command{
		Use:   name + " FILE",
		Short: "Make a configuration of one of " + title,
		Long: `Prints a natless.toml that does what a configuration of ` + title + `
asks for, with - one on standard input. What cannot be taken over is said on stderr,
and in comments at the end, with what to do instead; of what is given twice the later
is taken. natless accepts what is printed: "natless check -c" tells whether this host
does. Nothing is changed, and no daemon is asked.`,
		Example: "  " + example,
		RunE: does(func(cmd *cobra.Command, args []string) error {
			in, file, err := open(args[0], cmd.InOrStdin())
			if err != nil {
				return fmt.Errorf("importing: %w", err)
			}
			made, err := read(in, file)
			if err := errors.Join(err, in.Close()); err != nil {
				return err
			}
			sayLeft(cmd, made.Left)
			_, err = io.WriteString(cmd.OutOrStdout(), made.Text)
			return err
		}),
	}
}
