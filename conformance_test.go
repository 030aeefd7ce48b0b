package natless

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// requirement is one row of docs/conformance.md; the head of the page tells
// the form.
type requirement struct {
	place          string // "RFC 7915 4.1, line 17"
	rfc, section   string
	level, text    string
	status, proof  string
	tests          []testRef
	argument       string // the proof without the tests
	malformedTests []string
}

// testRef names a test as `PACKAGE: TestName/subtest`; the package is its
// folder in the module.
type testRef struct{ pkg, name, sub string }

// tally is how many requirements there are of each status.
type tally struct{ held, argued, na int }

func (n tally) String() string {
	return fmt.Sprintf("%d requirements: %d held, %d argued, %d not applicable", n.held+n.argued+n.na, n.held, n.argued, n.na)
}

var (
	levels   = []string{"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "rule"}
	statuses = []string{"held", "argued", "n.a."}

	rfcHeading = regexp.MustCompile(`^## (RFC \d+)\b`)
	tallyLine  = regexp.MustCompile(`(?m)^\*\*(\d+ requirements: .*)\.\*\*$`)
	quoted     = regexp.MustCompile("`([^`]*)`")
	testName   = regexp.MustCompile(`^([a-z0-9/]+): ((?:Test|Fuzz)[A-Z0-9]\w*)(?:/(.+))?$`)
	sectionRE  = regexp.MustCompile(`^(\d+|[A-Z])(\.\d+)*$`)
)

// parseConformance reads the rows and the line of counts; problems are what it
// could not read.
func parseConformance(page string) (rows []requirement, said string, problems []string) {
	if m := tallyLine.FindAllStringSubmatch(page, -1); len(m) == 1 {
		said = m[0][1]
	} else {
		problems = append(problems, fmt.Sprintf("%d lines of counts, expected one", len(m)))
	}
	rfc, n := "", 0
	for line := range strings.Lines(page) {
		n++
		line = strings.TrimSpace(line)
		if m := rfcHeading.FindStringSubmatch(line); m != nil {
			rfc = m[1]
		} else if strings.HasPrefix(line, "## ") {
			rfc = ""
		}
		if rfc == "" || !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|--") || strings.HasPrefix(line, "| section |") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 5 {
			problems = append(problems, fmt.Sprintf("%s, line %d: %d cells, expected 5", rfc, n, len(cells)))
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		r := requirement{
			place: fmt.Sprintf("%s %s, line %d", rfc, cells[0], n), rfc: rfc,
			section: cells[0], level: cells[1], text: cells[2], status: cells[3], proof: cells[4],
		}
		for _, m := range quoted.FindAllStringSubmatch(r.proof, -1) {
			if t := testName.FindStringSubmatch(m[1]); t != nil {
				r.tests = append(r.tests, testRef{t[1], t[2], t[3]})
			} else if strings.Contains(m[1], "Test") || strings.Contains(m[1], "Fuzz") {
				r.malformedTests = append(r.malformedTests, m[1])
			}
		}
		r.argument = strings.Trim(quoted.ReplaceAllStringFunc(r.proof, func(s string) string {
			if testName.MatchString(strings.Trim(s, "`")) {
				return ""
			}
			return s
		}), " ,;")
		rows = append(rows, r)
	}
	return rows, said, problems
}

// checkConformance lists what is wrong with the rows, given the tests that
// there are.
func checkConformance(rows []requirement, said string, tests testIndex) (problems []string) {
	var n tally
	seen := map[string]string{}
	for i, r := range rows {
		bad := func(format string, args ...any) {
			problems = append(problems, r.place+": "+fmt.Sprintf(format, args...))
		}
		switch {
		case !sectionRE.MatchString(r.section):
			bad("section %q is none", r.section)
		case i > 0 && rows[i-1].rfc == r.rfc && compareSections(rows[i-1].section, r.section) > 0:
			bad("out of order: it follows %s", rows[i-1].section)
		}
		if !slices.Contains(levels, r.level) {
			bad("level %q, expected one of %v", r.level, levels)
		}
		if r.text == "" {
			bad("says nothing")
		}
		key := r.rfc + r.section + r.text
		if other, twice := seen[key]; twice {
			bad("the same as %s", other)
		}
		seen[key] = r.place

		switch r.status {
		case "held":
			n.held++
			if len(r.tests) == 0 {
				bad("held by no test")
			}
		case "argued":
			n.argued++
			if len(strings.Fields(r.argument)) < 5 || !strings.HasSuffix(r.argument, ".") {
				bad("argued without a sentence")
			}
		case "n.a.":
			n.na++
			if r.argument == "" {
				bad("not applicable, and no word why")
			}
		default:
			bad("status %q, expected one of %v", r.status, statuses)
		}
		for _, m := range r.malformedTests {
			bad("%q does not name a test, expected PACKAGE: TestName/subtest", m)
		}
		for _, t := range r.tests {
			if why := tests.lacks(t); why != "" {
				bad("%s", why)
			}
		}
	}
	if said != n.String() {
		problems = append(problems, fmt.Sprintf("the page says %q, but it has %q", said, n))
	}
	return problems
}

// compareSections orders 4.2 before 4.10 and appendices last.
func compareSections(a, b string) int {
	number := func(s string) (n []int) {
		for part := range strings.SplitSeq(s, ".") {
			i, err := strconv.Atoi(part)
			if err != nil {
				i = 1000 + int(part[0])
			}
			n = append(n, i)
		}
		return n
	}
	return slices.Compare(number(a), number(b))
}

// testIndex is what tests there are, by folder and name.
type testIndex map[string]map[string]foundTest

// foundTest is a test function.
type foundTest struct {
	file    string
	skipped bool            // whatever happens
	names   map[string]bool // the string literals in its file, among them the names of its subtests
}

// lacks says why a test does not hold anything: there is no such test or
// subtest, or it is always skipped. It is empty for a good test.
func (x testIndex) lacks(r testRef) string {
	t, ok := x[r.pkg][r.name]
	switch {
	case len(x[r.pkg]) == 0:
		return fmt.Sprintf("no package %s with tests", r.pkg)
	case !ok:
		return fmt.Sprintf("no test %s in %s", r.name, r.pkg)
	case t.skipped:
		return fmt.Sprintf("%s in %s is always skipped", r.name, r.pkg)
	case r.sub != "" && !t.names[r.sub]:
		return fmt.Sprintf("no subtest %q in the file of %s in %s", r.sub, r.name, r.pkg)
	}
	return ""
}

// add reads one test file. vectors are the names of the packets in the files
// that stand in testdata for the package; they name subtests where the test's
// file reads that folder.
func (x testIndex) add(pkg, file string, src any, vectors []string) error {
	f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	readsVectors := false
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				names[s] = true
				readsVectors = readsVectors || strings.HasSuffix(s, "testdata/"+pkg)
			}
		}
		return true
	})
	if readsVectors {
		for _, v := range vectors {
			names[v] = true
		}
	}
	if x[pkg] == nil {
		x[pkg] = map[string]foundTest{}
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && testName.MatchString("x: "+fn.Name.Name) {
			x[pkg][fn.Name.Name] = foundTest{file, alwaysSkips(fn.Body.List), names}
		}
	}
	return nil
}

// alwaysSkips reports whether statements come to a skip without a condition,
// also in a subtest or in a loop over subtests.
func alwaysSkips(list []ast.Stmt) bool {
	return slices.ContainsFunc(list, func(s ast.Stmt) bool {
		switch s := s.(type) {
		case *ast.BlockStmt:
			return alwaysSkips(s.List)
		case *ast.ForStmt:
			return alwaysSkips(s.Body.List)
		case *ast.RangeStmt:
			return alwaysSkips(s.Body.List)
		case *ast.ExprStmt:
			call, ok := s.X.(*ast.CallExpr)
			if !ok {
				return false
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				return true
			}
			return slices.ContainsFunc(call.Args, func(arg ast.Expr) bool {
				fn, ok := arg.(*ast.FuncLit)
				return ok && alwaysSkips(fn.Body.List)
			})
		}
		return false
	})
}

// loadTests reads the tests of the module. The go command knows build
// constraints: what is not built holds nothing.
func loadTests(t *testing.T) testIndex {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "./...").Output()
	require.NoError(t, err)
	x := testIndex{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return x
		}
		require.NoError(t, err)
		pkg := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		vectors := readVectorNames(t, filepath.Join("testdata", pkg))
		for _, file := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			require.NoError(t, x.add(pkg, filepath.Join(p.Dir, file), nil, vectors))
		}
	}
}

// readVectorNames lists the packets of the vectors in a folder.
func readVectorNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "packet: "); ok {
				names = append(names, strings.TrimSpace(name))
			}
		}
	}
	return names
}

func TestConformance(t *testing.T) {
	rows, said, problems := parseConformance(read(t, "docs/conformance.md"))
	require.Greater(t, len(rows), 100)
	problems = append(problems, checkConformance(rows, said, loadTests(t))...)
	assert.Empty(t, problems, strings.Join(problems, "\n"))

	have := map[string]bool{}
	for _, r := range rows {
		have[r.rfc] = true
	}
	for _, n := range []string{"7915", "6052", "7757", "6791", "4884", "1191", "4443", "1812", "8200", "6946", "6147", "7050", "8880", "4787", "5382", "5508", "7597", "4861", "8781"} {
		assert.True(t, have["RFC "+n], "no row of RFC %s", n)
	}
}

func TestCheckConformance(t *testing.T) {
	x := testIndex{}
	require.NoError(t, x.add("room", "a_test.go", `package room
		const dir = "../testdata/room"
		func TestGood(t *testing.T) { for _, name := range []string{"one", "two"} { t.Run(name, check) } }
		func FuzzGood(f *testing.F) {}
		func TestSkipped(t *testing.T) { prepare(); t.Skip("later") }
		func TestSkippedf(t *testing.T) { t.Skipf("%d", 1) }
		func TestSkipNow(t *testing.T) { { t.SkipNow() } }
		func TestSkippedByHelper(t *testing.T) { testenv.Skip(t, "later") }
		func TestSkippedInLoop(t *testing.T) { for range 2 { t.Run("three", func(t *testing.T) { t.Skip() }) } }
		func TestSkippedInFor(t *testing.T) { for i := 0; i < 2; i++ { t.Skip() } }
		func TestSometimes(t *testing.T) { if hopeless { t.Skip() }; switch { case a: t.Skip() } }
		func Testlower(t *testing.T) {}
		func (r *room) TestMethod(t *testing.T) {}
		func helper() {}
		// func TestGone(t *testing.T) {}
	`, []string{"a packet, 4 to 6"}))
	require.NoError(t, x.add("room", "b_test.go", `package room; func TestOther(t *testing.T) { t.Run("elsewhere", check) }`, []string{"a packet, 4 to 6"}))
	require.NoError(t, x.add("empty", "c_test.go", `package empty`, nil))

	const one = "**1 requirements: 1 held, 0 argued, 0 not applicable.**\n## RFC 1\n| section | level | asks | status | by |\n|---|---|---|---|---|\n"
	row := func(proof string) string { return one + "| 1.2 | MUST | x | held | `" + proof + "` |\n" }
	for name, c := range map[string]struct{ page, want string }{
		"good":                  {row("room: TestGood"), ""},
		"a subtest":             {row("room: TestGood/two"), ""},
		"a vector":              {row("room: TestGood/a packet, 4 to 6"), ""},
		"a fuzz target":         {row("room: FuzzGood"), ""},
		"skipped on condition":  {row("room: TestSometimes"), ""},
		"two tests":             {row("room: TestGood`, `room: TestOther/elsewhere"), ""},
		"other tables":          {"| a | b |\n" + row("room: TestGood") + "## Other\n| a |\n", ""},
		"no package":            {row("rooms: TestGood"), "RFC 1 1.2, line 5: no package rooms"},
		"package without tests": {row("empty: TestGood"), "no package empty"},
		"no test":               {row("room: TestGone"), "no test TestGone in room"},
		"a method":              {row("room: TestMethod"), "no test TestMethod"},
		"second of two missing": {row("room: TestGood`, `room: TestGone"), "no test TestGone"},
		"no subtest":            {row("room: TestGood/four"), `no subtest "four"`},
		"part of a subtest":     {row("room: TestGood/tw"), `no subtest "tw"`},
		"subtest of another":    {row("room: TestGood/elsewhere"), `no subtest "elsewhere"`},
		"vector of another":     {row("room: TestOther/a packet, 4 to 6"), "no subtest"},
		"skipped":               {row("room: TestSkipped"), "TestSkipped in room is always skipped"},
		"skipped with format":   {row("room: TestSkippedf"), "always skipped"},
		"skipped now":           {row("room: TestSkipNow"), "always skipped"},
		"skipped by a helper":   {row("room: TestSkippedByHelper"), "always skipped"},
		"skipped in a loop":     {row("room: TestSkippedInLoop/three"), "always skipped"},
		"skipped in a for":      {row("room: TestSkippedInFor"), "always skipped"},
		"not the form":          {row("TestGood"), "does not name a test"},
		"lower case":            {row("room: Testlower"), "does not name a test"},
		"held by words":         {one + "| 1 | MUST | x | held | we promise that it is so. |\n", "held by no test"},
		"no status":             {one + "| 1 | MUST | x |  | `room: TestGood` |\n", `status ""`},
		"strange status":        {one + "| 1 | MUST | x | kept | `room: TestGood` |\n", `status "kept"`},
		"strange level":         {one + "| 1 | MAY | x | held | `room: TestGood` |\n", `level "MAY"`},
		"no requirement":        {one + "| 1 | MUST |  | held | `room: TestGood` |\n", "says nothing"},
		"no section":            {one + "|  | MUST | x | held | `room: TestGood` |\n", `section "" is none`},
		"a cell too few":        {one + "| 1 | MUST | x | held |\n", "RFC 1, line 5: 4 cells"},
		"argued":                {strings.Replace(one, "1 held, 0 argued", "0 held, 1 argued", 1) + "| 1 | MUST | x | argued | It is so because we say `so`. |\n", ""},
		"argued by tests alone": {strings.Replace(one, "1 held, 0 argued", "0 held, 1 argued", 1) + "| 1 | MUST | x | argued | `room: TestGood`, `room: TestOther` |\n", "argued without a sentence"},
		"argued in a word":      {strings.Replace(one, "1 held, 0 argued", "0 held, 1 argued", 1) + "| 1 | MUST | x | argued | No. |\n", "argued without a sentence"},
		"not applicable":        {strings.Replace(one, "1 held, 0 argued, 0 not", "0 held, 0 argued, 1 not", 1) + "| 1 | MUST | x | n.a. | hosts |\n", ""},
		"not applicable, why":   {strings.Replace(one, "1 held, 0 argued, 0 not", "0 held, 0 argued, 1 not", 1) + "| 1 | MUST | x | n.a. |  |\n", "no word why"},
		"wrong counts":          {strings.Replace(row("room: TestGood"), "1 held", "2 held", 1), `the page says "1 requirements: 2 held`},
		"wrong sum":             {strings.Replace(row("room: TestGood"), "1 requirements", "2 requirements", 1), "the page says"},
		"no counts":             {strings.Replace(row("room: TestGood"), "**", "", 2), "0 lines of counts"},
		"two counts":            {one + row("room: TestGood"), "2 lines of counts"},
		"out of order":          {row("room: TestGood") + "| 1.1 | MUST | x | held | `room: TestGood` |\n", "out of order"},
		"twice":                 {row("room: TestGood") + "| 1.2 | MUST | x | held | `room: TestGood` |\n", "the same as RFC 1 1.2, line 5"},
	} {
		t.Run(name, func(t *testing.T) {
			rows, said, problems := parseConformance(c.page)
			problems = append(problems, checkConformance(rows, said, x)...)
			if c.want == "" {
				assert.Empty(t, problems)
				return
			}
			assert.Contains(t, strings.Join(problems, "\n"), c.want)
		})
	}
	assert.Error(t, x.add("room", "d_test.go", "package", nil))
	assert.Equal(t, []string{"empty", "room"}, slices.Sorted(maps.Keys(x)))
}

func TestCompareSections(t *testing.T) {
	order := []string{"1", "2.4", "4", "4.1", "4.2.1", "4.2.2", "4.10", "5", "A", "B.1"}
	assert.True(t, slices.IsSortedFunc(order, compareSections))
	assert.Positive(t, compareSections("4.10", "4.9"))
}
