// Package testenv is how tests that need more than Go (root, namespaces, a
// device) say that they could not run. No packet comes by here.
//
// A skipped test is invisible in the output of a plain go test, so a reason is
// also written to a file that `make test` prints at the end; and where nothing
// may be skipped it is a failure.
package testenv

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
)

const (
	// RequireEnv set to 1 turns every skip into a failure, but SkipAnyway's.
	RequireEnv = "NATLESS_REQUIRE_LAB"
	// SkipLogEnv names a file that takes one line per skip, "PACKAGE: reason".
	SkipLogEnv = "NATLESS_SKIP_LOG"
)

// TB is what is needed of testing.TB.
type TB interface {
	Helper()
	Skip(args ...any)
	Fatalf(format string, args ...any)
}

// Short reports whether this is go test -short, which leaves out what needs
// namespaces. A TestMain has to call flag.Parse before it asks.
func Short() bool {
	f := flag.Lookup("test.short")
	return f != nil && f.Value.String() == "true"
}

// Skip ends t, which cannot run for the reason given: skipped, or failed where
// RequireEnv says so.
func Skip(t TB, reason string) {
	t.Helper()
	if required() {
		t.Fatalf("cannot run here, and %s=1 forbids to skip it: %s", RequireEnv, reason)
	}
	SkipAnyway(t, reason)
}

// SkipAnyway is Skip for what cannot be had everywhere: RequireEnv does not
// forbid it.
func SkipAnyway(t TB, reason string) {
	t.Helper()
	note(reason)
	t.Skip(reason)
}

// SkipAll is Skip for a TestMain that can run none of its package's tests. It
// returns the exit code.
func SkipAll(reason string) int {
	if required() {
		fmt.Fprintf(os.Stderr, "FAIL: cannot run here, and %s=1 forbids to skip it: %s\n", RequireEnv, reason)
		return 1
	}
	note(reason)
	fmt.Println("SKIP:", reason)
	return 0
}

func required() bool { return os.Getenv(RequireEnv) == "1" }

// note appends to the skip log in one write, for packages are tested at the
// same time. The variable is read only here: a test that does run then stays
// in the go command's cache when the name of the log changes.
func note(reason string) {
	name := os.Getenv(SkipLogEnv)
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		fmt.Fprintf(os.Stderr, "testenv: %v\n", err) // the skip itself must not fail for it
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s: %s\n", packageName(), strings.ReplaceAll(reason, "\n", " "))
}

// packageName is the tested package's path in this module.
func packageName() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return os.Args[0]
	}
	return strings.TrimSuffix(strings.TrimPrefix(info.Path, info.Main.Path+"/"), ".test")
}
