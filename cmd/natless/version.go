package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	var form output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			return form.line(cmd.OutOrStdout(), struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH},
				"natless %s %s %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		}),
	}
	form.register(cmd)
	return cmd
}
