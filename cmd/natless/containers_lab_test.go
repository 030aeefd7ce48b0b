package main_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/testenv"
)

// TestLabContainersPage types in what docs/containers.md says, where the lab's
// server is the server that the page speaks of.
func TestLabContainersPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/containers.md")
	require.NoError(t, err)
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?ms)^```sh ?(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		blocks[m[1]] += m[2]
	}
	run := func(t *testing.T, kind string, start func(t *testing.T, w *world)) {
		require.NotEmpty(t, blocks[kind])
		t.Parallel()
		w := machine(t)
		start(t, w)
		w.run(t, setup{flags: []string{"--firewall"}})
		before := snapshot(t, w.Host)
		out := w.sh(t, blocks[kind])
		assert.Regexp(t, "This is the lab's IPv4-only server|1 received", out)
		assert.Empty(t, w.ps(t))
		until(t, "without links of the containers", func() bool {
			return !strings.Contains(strings.Join(before.Diff(snapshot(t, w.Host)), "\n"), "new: link")
		})
	}
	t.Run("podman", func(t *testing.T) {
		requirePodman(t)
		run(t, "podman", func(t *testing.T, w *world) { w.engine(t, startPodman, "podman") })
	})
	t.Run("docker", func(t *testing.T) {
		requireDocker(t)
		run(t, "docker", func(t *testing.T, w *world) { w.engine(t, startDocker, "docker") })
	})
	needs := func(t *testing.T, programs ...string) {
		requireMachine(t)
		if what := lacking(programs...); what != "" {
			testenv.Skip(t, "the examples of docs/containers.md lack a command: "+what)
		}
	}
	t.Run("netns", func(t *testing.T) {
		needs(t, "ip", "ping")
		run(t, "netns", func(*testing.T, *world) {})
	})
	t.Run("nspawn", func(t *testing.T) {
		needs(t, "ip", "systemd-nspawn")
		// No systemd runs in the lab that the container could be registered with.
		blocks["nspawn"] = `alias systemd-nspawn="systemd-nspawn --register=no --keep-unit"` + "\n" + blocks["nspawn"]
		run(t, "nspawn", func(t *testing.T, w *world) {
			program, err := busybox()
			require.NoError(t, err)
			w.sh(t, `mkdir -p /var/lib/machines/box/bin /var/lib/machines/box/usr && cd /var/lib/machines/box/bin && cp "$1" busybox && ln -s busybox wget`, program)
		})
	})
}
