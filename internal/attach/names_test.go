package attach

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestNames holds what can be typed: namespaces and running containers, and nothing
// that would reach the terminal as anything but itself.
func TestNames(t *testing.T) {
	was := netnsDir
	netnsDir = t.TempDir()
	t.Cleanup(func() { netnsDir = was })
	for _, name := range []string{"lab", "a\x1b[2J", "two words"} {
		require.NoError(t, os.WriteFile(filepath.Join(netnsDir, name), nil, 0o600))
	}
	socket := filepath.Join(t.TempDir(), "podman/podman.sock")
	require.NoError(t, os.MkdirAll(filepath.Dir(socket), 0o700))
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/containers/json", r.URL.String())
		w.Write([]byte(`[{"Names":["/web","/alias"]},{"Names":[]},{"Names":["db"]}]`))
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	podman := engine{kind: KindPodman, title: "Podman", sockets: func() []string { return []string{filepath.Join(t.TempDir(), "none"), socket} }}
	before := engines[KindPodman]
	engines[KindPodman] = podman
	t.Cleanup(func() { engines[KindPodman] = before })
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker"), []byte("#!/bin/sh\n[ \"$*\" = 'ps --format {{.Names}}' ] && echo app\n"), 0o755))
	t.Setenv("PATH", dir)
	docker := engines[KindDocker]
	engines[KindDocker] = engine{kind: KindDocker, title: "Docker", sockets: func() []string { return nil }}
	t.Cleanup(func() { engines[KindDocker] = docker })
	assert.Equal(t, []Name{{"lab", "namespace"}, {"web", "Podman container"}, {"db", "Podman container"}, {"app", "Docker container"}}, Names(t.Context()))
}
