// Package snippets says a configuration of natless in the words of other
// programs, for those who run them already and have them tell clients of pref64,
// or synthesise addresses with it, in natless's place. It stands beside the way
// of a packet: `natless check --snippets` prints it.
package snippets

import (
	"embed"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/inet"
	"github.com/natless/natless/internal/ra"
)

// never and private are the IPv4 that natless does not translate behind pref64,
// always and unless private_ipv4 allows it. What maps and pools make of it is
// between clients, and in no name server's answers.
var (
	never   = outermost(inet.Of(inet.IPv4, inet.Nobody, inet.Link))
	private = outermost(inet.Narrow())
)

// outermost are the prefixes of blocks but those inside others.
func outermost(blocks []inet.Block) (list []netip.Prefix) {
	for _, p := range inet.Prefixes(blocks) {
		if n := len(list); n == 0 || !list[n-1].Contains(p.Addr()) {
			list = append(list, p)
		}
	}
	return list
}

func refused(allowPrivate bool) []netip.Prefix {
	if allowPrivate {
		return never
	}
	return slices.Concat(never, private)
}

// Names are the programs, in the order of Write.
var Names = []string{"systemd-networkd", "radvd", "unbound", "bind", "coredns"}

//go:embed *.conf
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{"join": strings.Join}).ParseFS(files, "*.conf"))

// values are what the templates say.
type values struct {
	Pref64     netip.Prefix
	Interfaces []string         // with clients; never empty
	Lifetime   int64            // seconds
	Interval   int64            // seconds, the longest from one advertisement to the next
	Listen     []netip.AddrPort // of the resolver; empty: where it listens anyway
	Exclude    []netip.Prefix
	Default    bool           // Exclude is what resolvers exclude anyway
	Refused    []netip.Prefix // IPv4 that is not reached through pref64
}

// Write writes what each program is to have in its configuration. It is an
// error that a configuration has no pref64.
func Write(out io.Writer, c *config.Config) error {
	for i, name := range Names {
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := WriteOne(out, c, name); err != nil {
			return err
		}
	}
	return nil
}

// WriteOne writes what one program of Names is to have.
func WriteOne(out io.Writer, c *config.Config, name string) error {
	v, err := read(c)
	if err != nil {
		return err
	}
	return templates.ExecuteTemplate(out, name+".conf", v)
}

func read(c *config.Config) (v values, err error) {
	if !c.Translation.Pref64.IsValid() {
		return v, fmt.Errorf("writing snippets: the configuration has no translation.pref64, and they are about nothing else")
	}
	_, most := ra.Interval(c.RA.Lifetime)
	v = values{
		Pref64: c.Translation.Pref64, Interfaces: c.RA.Interfaces,
		Lifetime: seconds(ra.Rounded(c.RA.Lifetime)), Interval: seconds(most),
		Listen: c.DNS64.Listen, Exclude: c.DNS64.Exclude, Default: slices.Equal(c.DNS64.Exclude, config.Default().DNS64.Exclude),
		Refused: refused(c.AllowPrivate()),
	}
	if len(v.Interfaces) == 0 {
		v.Interfaces = []string{"eth1"}
	}
	return v, nil
}

// Each is the same for each address that the resolver listens on apart.
func (v values) Each() []values {
	if len(v.Listen) == 0 {
		return []values{v}
	}
	var list []values
	for i := range v.Listen {
		list = append(list, v)
		list[i].Listen = v.Listen[i : i+1]
	}
	return list
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }
