package main_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
)

// requireNSD skips the test where there is no nsd to serve names.
func requireNSD(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("nsd"); err != nil {
		testenv.Skip(t, "no name server: "+err.Error()+" (Debian: apt-get install --no-install-recommends nsd)")
	}
}

const nsdConfig = `server:
	ip-address: ` + lab.ServerIPv4 + `
	server-count: 1
	username: ""
	chroot: ""
	database: ""
	zonesdir: "DIR"
	pidfile: "DIR/nsd.pid"
	xfrdfile: "DIR/xfrd.state"
	zonelistfile: "DIR/zone.list"
remote-control:
	control-enable: no
zone:
	name: example.com
	zonefile: example.com
`

// exampleZone has the lab's server by name, with IPv4 alone as it is.
const exampleZone = `$ORIGIN example.com.
$TTL 300
@	SOA	ns hostmaster 1 3600 600 86400 60
@	NS	ns
ns	A	` + lab.ServerIPv4 + `
www	A	` + lab.ServerIPv4 + `
`

// serveNames starts nsd on the world's server, with authority for example.com.
func (w *world) serveNames(t *testing.T) {
	t.Helper()
	dir := filepath.Join(w.Dir, "nsd")
	require.NoError(t, os.Mkdir(dir, 0o755))
	config := filepath.Join(dir, "nsd.conf")
	require.NoError(t, os.WriteFile(config, []byte(strings.ReplaceAll(nsdConfig, "DIR", dir)), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "example.com"), []byte(exampleZone), 0o644))
	require.NoError(t, w.Server.Machine()) // nsd has children
	var out strings.Builder
	nsd := w.Server.Command(context.Background(), "nsd", "-d", "-c", config)
	nsd.Stdout, nsd.Stderr = &out, &out
	require.NoError(t, nsd.Start())
	t.Cleanup(func() {
		assert.NoError(t, nsd.Process.Kill())
		_ = nsd.Wait() // it was killed
		if t.Failed() {
			t.Logf("nsd wrote:\n%s", &out)
		}
	})
	program, err := busybox()
	require.NoError(t, err)
	for range 100 {
		answer, err := w.Server.Command(t.Context(), program, "nslookup", "-type=a", "www.example.com", lab.ServerIPv4).CombinedOutput()
		if err == nil && strings.Contains(string(answer), "www.example.com") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	require.Fail(t, "nsd does not answer")
}
