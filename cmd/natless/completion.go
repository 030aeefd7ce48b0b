package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/attach"
	"github.com/natless/natless/internal/config"
)

// completeAll has the shell complete what it can know of every command below cmd,
// and no files where none are wanted.
func completeAll(cmd *cobra.Command) {
	cmd.InitDefaultCompletionCmd()
	if shells, _, err := cmd.Find([]string{"completion", "powershell"}); err == nil && shells.Name() == "powershell" {
		shells.Parent().RemoveCommand(shells) // natless is for Linux
	}
	completeBelow(cmd)
}

func completeBelow(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		completeBelow(c)
		if c.ValidArgsFunction == nil && !c.HasSubCommands() {
			c.ValidArgsFunction = completionOf(c)
		}
		for flag, words := range config.FlagWords() {
			if c.Flags().Lookup(flag) != nil {
				completeWords(c, flag, words)
			}
		}
		if c.Flags().Lookup("config") != nil {
			_ = c.MarkFlagFilename("config", "toml") // the flag is there
		}
		if c.Flags().Lookup("state-dir") != nil {
			_ = c.MarkFlagDirname("state-dir") // the flag is there
		}
	}
}

// completionOf completes arguments by what the usage line calls them.
func completionOf(c *cobra.Command) cobra.CompletionFunc {
	names := argumentsOf(c.Use).names
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= len(names) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		switch names[len(args)] {
		case "FILE", "IN", "OUT":
			return nil, cobra.ShellCompDirectiveDefault
		case "DIR":
			return nil, cobra.ShellCompDirectiveFilterDirs
		case "TARGET":
			if strings.Contains(typed, "/") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeTargets(), cobra.ShellCompDirectiveNoFileComp
		case "TYPE":
			return []cobra.Completion{"A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT"}, cobra.ShellCompDirectiveNoFileComp
		case "PACKET":
			return []cobra.Completion{"tcp", "udp", "icmp"}, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTargets are the namespaces and containers that can be named.
func completeTargets() (found []cobra.Completion) {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	for _, n := range attach.Names(ctx) {
		found = append(found, n.Name+"\t"+n.Of)
	}
	return found
}
