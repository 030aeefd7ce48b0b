package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/natless/natless/internal/dns64"
)

func dnsCommand() *cobra.Command {
	var ask asking
	cmd := &cobra.Command{
		Use:   "dns NAME [TYPE]",
		Short: "What the running DNS64 answers, and why",
		Long: `Asks the running daemon's DNS64, as a client would, and explains the answer:
whether it came from an upstream, from the cache or from natless itself, which
addresses were synthesised of which IPv4 addresses and by which rule, and which
were left out. TYPE is AAAA unless given. The answer may be from the cache, and
is in it afterwards.

The exit code is 0 whatever the answer is.`,
		Example: `  natless dns www.example.com
  natless dns 1.2.0.192.in-addr.arpa PTR
  natless dns www.example.com -o json | jq -r '.answers[].data'`,
		Args: cobra.RangeArgs(1, 2),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			ctx, stop := background()
			defer stop()
			qtype := "AAAA"
			if len(args) > 1 {
				qtype = args[1]
			}
			x, err := ask.client().DNS(ctx, args[0], qtype)
			if err != nil {
				return err
			}
			return ask.object(cmd.OutOrStdout(), x, func(r *rows) { tabulateDNS(r, x) })
		}),
	}
	ask.register(cmd)
	return cmd
}

func tabulateDNS(r *rows, x dns64.Explanation) {
	r.add("question", x.Name+" "+x.Type)
	r.add("code", x.Code)
	r.add("from", strings.Join(x.From, ", then "))
	r.add("synthesised", map[bool]string{true: "yes", false: "no"}[x.Synthesised])
	for _, a := range x.Answers {
		why := ""
		if a.IPv4.IsValid() {
			why = fmt.Sprintf("  of %v by %s: %s", a.IPv4, a.Rule, a.Detail)
		}
		r.add("answer", fmt.Sprintf("%s %d %s %s%s", a.Name, a.TTL, a.Type, a.Data, why))
	}
	for _, l := range x.Left {
		r.add("left out", fmt.Sprintf("%v: %s", l.Address, l.Why))
	}
	for _, s := range x.Steps {
		r.add("step", s)
	}
}
