// Package natless holds no code: the tests here hold what concerns the whole
// repository: which room may import which, and that its documents are true.
package natless

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/natless/natless"

// rooms says which rooms each room may import besides itself. Imports run one
// way: cmd → internal → conntrack → mapping → translate, and tun beside them.
var rooms = map[string][]string{
	"translate": {},
	"tun":       {},
	"mapping":   {"translate"},
	"conntrack": {"translate", "mapping"},
	"internal":  {"translate", "tun", "mapping", "conntrack"},
	"docs":      {},
	"cmd":       {"translate", "tun", "mapping", "conntrack", "internal", "docs"},
	"scripts":   {"translate", "tun", "mapping", "conntrack", "internal"},
}

// pureImports are the packages outside the standard library that translate may
// import: it has to stay pure functions over bytes.
var pureImports = []string{"gvisor.dev/gvisor/pkg/tcpip/checksum"}

// graph maps an import path to what its non-test files import.
type graph map[string][]string

// room is the folder at the root of the module that a package of ours is in:
// "" for the root itself. ours is false for packages of others.
func room(pkg string) (name string, ours bool) {
	if pkg == module {
		return "", true
	}
	rest, ours := strings.CutPrefix(pkg, module+"/")
	name, _, _ = strings.Cut(rest, "/")
	return name, ours
}

// violations lists every import that runs against the arrows, in the order of
// the importing packages' paths.
func violations(g graph) []string {
	var bad []string
	for _, pkg := range sortedKeys(g) {
		from, ours := room(pkg)
		if !ours || from == "" && len(g[pkg]) == 0 {
			continue
		}
		allowed, known := rooms[from]
		if !known {
			bad = append(bad, fmt.Sprintf("%s: is in no room that the design names", pkg))
			continue
		}
		for _, imp := range g[pkg] {
			to, ours := room(imp)
			switch {
			case ours && to != from && !slices.Contains(allowed, to):
				bad = append(bad, fmt.Sprintf("%s: imports %s: %s may not import %s", pkg, imp, from, to))
			case from == "translate" && !ours && !standard(imp) && !slices.Contains(pureImports, imp):
				bad = append(bad, fmt.Sprintf("%s: imports %s: translate imports the standard library and a checksum library only", pkg, imp))
			}
		}
	}
	if path := reach(g, module+"/internal/oracle", module+"/translate"); path != nil {
		bad = append(bad, fmt.Sprintf("%s: the oracle may not share code with what it judges", strings.Join(path, " → ")))
	}
	return bad
}

// standard reports whether imp is of the standard library: its first element
// is not a host name.
func standard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".")
}

// reach is a chain of imports that leads from one package to another or to a
// package below it; nil when there is none.
func reach(g graph, from, to string) []string {
	seen := map[string]bool{}
	var walk func(pkg string) []string
	walk = func(pkg string) []string {
		if pkg == to || strings.HasPrefix(pkg, to+"/") {
			return []string{pkg}
		}
		if seen[pkg] {
			return nil
		}
		seen[pkg] = true
		for _, imp := range g[pkg] {
			if path := walk(imp); path != nil {
				return append([]string{pkg}, path...)
			}
		}
		return nil
	}
	return walk(from)
}

func sortedKeys(g graph) []string {
	var keys []string
	for k := range g {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// loadGraph asks the go command, which knows build constraints.
func loadGraph(t *testing.T) graph {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Logf("go list: %s", exit.Stderr)
	}
	require.NoError(t, err)
	g := graph{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return g
		}
		require.NoError(t, err)
		g[p.ImportPath] = p.Imports
	}
}

func TestImportsRunOneWay(t *testing.T) {
	g := loadGraph(t)
	require.Contains(t, g, module+"/translate", "go list found the module")
	assert.Empty(t, violations(g))
}

func TestViolations(t *testing.T) {
	const m = module
	for name, c := range map[string]struct {
		imports graph
		want    []string // a part of each violation, in order
	}{
		"the way down is free": {graph{
			m:                         nil,
			m + "/cmd/natless":        {m + "/internal/dataplane", m + "/translate", m + "/tun", "github.com/spf13/cobra"},
			m + "/internal/dataplane": {m + "/internal/config", m + "/conntrack", m + "/mapping", m + "/tun"},
			m + "/conntrack":          {m + "/mapping", m + "/translate"},
			m + "/mapping":            {m + "/mapping/store", m + "/translate", "github.com/gaissmai/bart"},
			m + "/translate":          {"net/netip", "gvisor.dev/gvisor/pkg/tcpip/checksum"},
			m + "/tun":                {"golang.org/x/sys/unix"},
			m + "/scripts/peers":      {m + "/internal/lab"},
			m + "/internal/oracle":    {"github.com/google/gopacket"},
		}, nil},
		"translate imports none of ours":   {graph{m + "/translate": {m + "/mapping"}}, []string{"translate may not import mapping"}},
		"translate stays pure":             {graph{m + "/translate": {"golang.org/x/sys/unix"}}, []string{"translate imports the standard library"}},
		"tun imports none of ours":         {graph{m + "/tun": {m + "/translate"}}, []string{"tun may not import translate"}},
		"mapping does not look up":         {graph{m + "/mapping": {m + "/conntrack"}}, []string{"mapping may not import conntrack"}},
		"a room's cellar is the room":      {graph{m + "/mapping/store": {m + "/internal/config"}}, []string{"mapping may not import internal"}},
		"conntrack does not look up":       {graph{m + "/conntrack": {m + "/internal/dataplane"}}, []string{"conntrack may not import internal"}},
		"conntrack has no device":          {graph{m + "/conntrack": {m + "/tun"}}, []string{"conntrack may not import tun"}},
		"internal never imports cmd":       {graph{m + "/internal/lab": {m + "/cmd/natless"}}, []string{"internal may not import cmd"}},
		"internal never imports scripts":   {graph{m + "/internal/lab": {m + "/scripts/peers"}}, []string{"internal may not import scripts"}},
		"scripts do not import cmd":        {graph{m + "/scripts/peers": {m + "/cmd/natless"}}, []string{"scripts may not import cmd"}},
		"a new room has to be named":       {graph{m + "/util": nil}, []string{"/util: is in no room"}},
		"the root holds no code":           {graph{m: {"fmt"}}, []string{"is in no room"}},
		"all of them are listed, in order": {graph{m + "/tun": {m + "/translate"}, m + "/mapping": {m + "/tun"}}, []string{"mapping may not", "tun may not"}},
		"the oracle stands alone":          {graph{m + "/internal/oracle": {m + "/translate"}}, []string{"the oracle may not share"}},
		"also by way of others": {graph{
			m + "/internal/oracle": {m + "/internal/config"},
			m + "/internal/config": {m + "/mapping", m + "/internal/oracle"},
			m + "/mapping":         {m + "/translate"},
		}, []string{"oracle → " + m + "/internal/config → " + m + "/mapping → " + m + "/translate: the oracle"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := violations(c.imports)
			require.Len(t, got, len(c.want), "%q", got)
			for i, want := range c.want {
				assert.Contains(t, got[i], want)
			}
		})
	}
}
