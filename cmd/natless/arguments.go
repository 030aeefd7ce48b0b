package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// nameArguments has every command below cmd count its arguments by its usage line,
// and name those that are missing or too many.
func nameArguments(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		if c.HasSubCommands() {
			nameArguments(c)
			continue
		}
		c.Args = argumentsOf(c.Use).check
	}
}

// arguments are those of a command.
type arguments struct {
	names []string // in order, the optional ones last
	least int
	most  int // -1: any number
}

// flagInUse is a flag in a usage line, whose value may stand apart: [--dns [ADDRESS]].
var flagInUse = regexp.MustCompile(`\[--[^\]]*\]*`)

// argumentsOf reads a usage line: NAME is one that is needed, [NAME] may be left out,
// NAME... are one or more.
func argumentsOf(use string) arguments {
	var a arguments
	for _, word := range strings.Fields(flagInUse.ReplaceAllString(use, ""))[1:] {
		name := strings.Trim(word, "[].")
		a.names = append(a.names, name)
		if !strings.HasPrefix(word, "[") {
			a.least++
		}
		if a.most++; strings.HasSuffix(word, "...") {
			a.most = -1
		}
	}
	if strings.Contains(flagInUse.FindString(use), " [") {
		a.most++ // the flag takes it from the arguments
	}
	return a
}

func (a arguments) check(cmd *cobra.Command, args []string) error {
	name := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
	switch {
	case len(args) < a.least:
		return fmt.Errorf("%s: %s missing: expected natless %s %s", name, isOrAre(a.names[len(args):a.least]), name, strings.Join(a.names, " "))
	case a.most < 0 || len(args) <= a.most:
		return nil
	case len(a.names) == 0:
		return fmt.Errorf("%s: expected no argument, not %q", name, args[0])
	}
	return fmt.Errorf("%s: expected %s, not %q as well", name, strings.Join(a.names, " and "), args[a.most])
}

func isOrAre(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return strings.Join(names, " and ") + " are"
}
