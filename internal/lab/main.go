package lab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
)

var (
	unavailable error // why there are no labs in this test binary
	binary      struct {
		once sync.Once
		dir  string
		err  error
	}
)

// Main runs the tests of a package that uses labs and ends the process; call
// it in TestMain. It finds out whether labs can be had, in a user namespace
// where this is not root.
func Main(m interface{ Run() int }) {
	flag.Parse()
	if !testenv.Short() {
		unavailable = Enter()
	}
	code := m.Run()
	if binary.dir != "" {
		if err := os.RemoveAll(binary.dir); err != nil {
			fmt.Fprintf(os.Stderr, "remove the built binary: %v\n", err)
		}
	}
	os.Exit(code)
}

// Require skips the test where no labs can be had.
func Require(t testenv.TB) {
	t.Helper()
	if testenv.Short() {
		t.Skip("namespaces are not for -short")
	}
	if unavailable != nil {
		testenv.Skip(t, "no network namespaces: "+unavailable.Error())
	}
}

// Binary is the path of natless, built once from the working tree, with the race
// detector when the tests have it: what it finds makes the daemon's exit code
// one of failure.
func Binary(t testenv.TB) string {
	t.Helper()
	binary.once.Do(func() {
		if binary.dir, binary.err = publicDir(); binary.err != nil {
			return
		}
		race, cgo := "-race=false", "CGO_ENABLED=0"
		if raced() {
			race, cgo = "-race=true", "CGO_ENABLED=1"
			// It sleeps a second before each exit otherwise.
			binary.err = os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
		}
		c := exec.Command("go", "build", "-buildvcs=false", race, "-o", binary.dir, "github.com/natless/natless/cmd/natless")
		c.Env = append(os.Environ(), cgo)
		if out, err := c.CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatalf("build natless: %v", binary.err)
	}
	return filepath.Join(binary.dir, "natless")
}

// publicDir makes a directory from which other users may run programs.
func publicDir() (string, error) {
	dir, err := os.MkdirTemp("", "natless-test-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// Alone waits until no other test binary is busy with what all labs share, the
// names below /run/netns, and keeps them off until the returned function is
// called. Where somebody's lab stands the test is skipped.
func Alone(t testenv.TB) (done func()) {
	t.Helper()
	run, err := os.Open("/run")
	if err == nil {
		err = unix.Flock(int(run.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatalf("lock /run: %v", err)
	}
	if names := Standing(); len(names) > 0 {
		run.Close()
		testenv.Skip(t, fmt.Sprintf("a lab stands: %s", names))
	}
	return func() { run.Close() }
}

// raced reports whether this test binary has the race detector.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
