package attach

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/proc"
)

func TestMain(m *testing.M) { lab.Main(m) }

// object is JSON.
type object = map[string]any

// running is a container as both engines show it.
func running(id, name string, pid int) object {
	return object{
		"Id": id, "Name": name, "State": object{"Status": "running", "Running": true, "Pid": pid},
		"HostConfig": object{"NetworkMode": "bridge"}, "NetworkSettings": object{"SandboxKey": ""},
	}
}

// serveEngine is an engine with these containers by name, at the socket that env
// names.
func serveEngine(t *testing.T, env string, containers map[string]object) {
	t.Helper()
	dir, err := os.MkdirTemp("", "") // t.TempDir is too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/containers/"), "/json")
		c, ok := containers[name]
		switch {
		case name == "broken":
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"message":"out of order"}`)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"message":"No such container: %s"}`, name)
		default:
			assert.NoError(t, json.NewEncoder(w).Encode(c))
		}
	}))
	s.Listener.Close()
	s.Listener = ln
	s.Start()
	t.Cleanup(s.Close)
	t.Setenv(env, "unix://"+path)
}

// noEngines hides the engines of this machine.
func noEngines(t *testing.T) {
	t.Helper()
	t.Setenv("PATH", t.TempDir())
	for _, env := range []string{"CONTAINER_HOST", "DOCKER_HOST"} {
		t.Setenv(env, "unix://"+filepath.Join(t.TempDir(), "none"))
	}
}

// name gives a node's namespace a name, for this test only.
func name(t *testing.T, n *lab.Node, name string) {
	t.Helper()
	if !strings.HasPrefix(netnsDir, os.TempDir()) {
		was := netnsDir
		netnsDir = t.TempDir()
		t.Cleanup(func() { netnsDir = was })
	}
	require.NoError(t, os.Symlink(n.Path(), filepath.Join(netnsDir, name)))
}

// nodes are namespaces of a lab.
func nodes(t *testing.T, names ...string) (l *lab.Lab, list []*lab.Node) {
	t.Helper()
	lab.Require(t)
	l, err := lab.New()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.Close()) })
	for _, name := range names {
		n, err := l.Node(name)
		require.NoError(t, err)
		list = append(list, n)
	}
	return l, list
}

func find1(t *testing.T, given string) *Target {
	t.Helper()
	found, err := Find(t.Context(), given)
	require.NoError(t, err)
	assert.Equal(t, given, found.Given)
	return found
}

func TestFind(t *testing.T) {
	_, ns := nodes(t, "web", "db")
	noEngines(t)
	name(t, ns[0], "web")
	web, err := identify(ns[0].Path())
	require.NoError(t, err)

	sleep := ns[1].Command(t.Context(), "/bin/sleep", "60")
	require.NoError(t, sleep.Start())
	defer func() { sleep.Process.Kill(); sleep.Wait() }()
	pid := sleep.Process.Pid
	db, err := identify(ns[1].Path())
	require.NoError(t, err)
	require.NotEqual(t, web, db)

	podmans := map[string]object{"db": running("f00", "db", pid), "stopped": {"Id": "f01", "Name": "stopped", "State": object{"Status": "exited"}}}
	podmans["f00"] = podmans["db"]
	shared := running("f02", "shared", pid)
	shared["NetworkSettings"] = object{"SandboxKey": ns[1].Path()}
	podmans["shared"] = shared
	other := running("f03", "other", pid)
	other["NetworkSettings"] = object{"SandboxKey": ns[0].Path()}
	podmans["other"] = other
	podmans["gone"] = running("f04", "gone", 1<<22)
	hosted := running("f05", "hosted", pid)
	hosted["HostConfig"] = object{"NetworkMode": "host"}
	podmans["hosted"] = hosted
	podmans["web"] = running("f06", "web", pid)
	podmans["same"] = running("f07", "same", pid)
	serveEngine(t, "CONTAINER_HOST", podmans)
	serveEngine(t, "DOCKER_HOST", map[string]object{"docked": running("d00", "/docked", pid), "same": running("d01", "/same", pid)})

	started, err := proc.Started(pid)
	require.NoError(t, err)
	process := fmt.Sprintf("/proc/%d/ns/net", pid)
	label := processLabel(pid, started)
	thread, err := pathLabel(ns[0].Path())
	require.NoError(t, err)
	require.NotEqual(t, label, thread)
	for given, want := range map[string]Target{
		"netns:web":                    {Kind: KindNetNS, Label: "web", Path: filepath.Join(netnsDir, "web"), ID: web},
		filepath.Join(netnsDir, "web"): {Kind: KindNetNS, Label: "web", Path: filepath.Join(netnsDir, "web"), ID: web},
		ns[0].Path():                   {Kind: KindPath, Label: thread, Path: ns[0].Path(), ID: web},
		strconv.Itoa(pid):              {Kind: KindPID, Label: label, Path: process, ID: db, PID: pid, Started: started},
		process:                        {Kind: KindPID, Label: label, Path: process, ID: db, PID: pid, Started: started},
		"pid:" + strconv.Itoa(pid):     {Kind: KindPID, Label: label, Path: process, ID: db, PID: pid, Started: started},
		"db":                           {Kind: KindPodman, Label: "db", Path: process, ID: db, PID: pid, Started: started},
		"f00":                          {Kind: KindPodman, Label: "db", Path: process, ID: db, PID: pid, Started: started},
		"podman:db":                    {Kind: KindPodman, Label: "db", Path: process, ID: db, PID: pid, Started: started},
		"docked":                       {Kind: KindDocker, Label: "docked", Path: process, ID: db, PID: pid, Started: started},
		"shared":                       {Kind: KindPodman, Label: "shared", Path: ns[1].Path(), ID: db, PID: pid, Started: started},
		"other":                        {Kind: KindPodman, Label: "other", Path: process, ID: db, PID: pid, Started: started},
		"hosted":                       {Kind: KindPodman, Label: "hosted", Path: process, ID: db, PID: pid, Started: started, HostNetwork: true},
		"same":                         {Kind: KindPodman, Label: "same", Path: process, ID: db, PID: pid, Started: started},
	} {
		want.Given = given
		assert.Equal(t, want, *find1(t, given), given)
	}
	for given, want := range map[string]string{
		"web":               "it may be netns:web or podman:web: say which",
		"nobody":            "no namespace in " + netnsDir + " and no container of Podman or Docker has this name",
		"netns:nobody":      "there is no namespace " + netnsDir + "/nobody",
		"podman:nobody":     "Podman has no container nobody",
		"docker:db":         "Docker has no container db",
		"stopped":           "Podman container stopped is not running (exited)",
		"gone":              "Podman container gone: there is no process 4194304",
		"4194304":           "there is no process 4194304",
		"pid:x":             `"x" is no PID`,
		"netns:../x":        `"../x" is no name of a namespace`,
		"/dev/null":         "/dev/null is not a network namespace",
		"/proc/self/ns/pid": "/proc/self/ns/pid is not a network namespace",
		"./nothing":         "no such file or directory",
		"broken":            "out of order; asking Docker at",
		"podman:":           "the name of the Podman container is empty",
		"999999999999":      "no namespace in",
	} {
		_, err := Find(t.Context(), given)
		require.Error(t, err, given)
		assert.Contains(t, err.Error(), want)
		assert.Contains(t, err.Error(), "finding "+given+": ")
	}
}

// Where nobody listens at an engine's socket, its command is asked.
func TestFindByCommand(t *testing.T) {
	noEngines(t)
	dir := t.TempDir()
	answer, err := json.Marshal([]object{running("f00", "web", os.Getpid())})
	require.NoError(t, err)
	script := "#!/bin/sh\n[ \"$*\" = 'container inspect -- web' ] && { echo '" + string(answer) + "'; exit; }\n" +
		"[ \"$4\" = hurt ] && { echo 'Error: it hurts' >&2; exit 125; }\necho \"Error: no such container $4\" >&2; exit 125\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "podman"), []byte(script), 0o700))
	t.Setenv("PATH", dir)
	web := find1(t, "web")
	assert.Equal(t, KindPodman, web.Kind)
	assert.Equal(t, os.Getpid(), web.PID)
	_, err = Find(t.Context(), "podman:db")
	assert.ErrorContains(t, err, "Podman has no container db")
	_, err = Find(t.Context(), "hurt")
	assert.ErrorContains(t, err, "asking Podman: Error: it hurts")
	_, err = Find(t.Context(), "docker:web")
	assert.ErrorContains(t, err, "Docker is not here")
	t.Setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
	_, err = Find(t.Context(), "docker:web")
	assert.ErrorContains(t, err, "its containers are not of this host")
}

func TestFindEndedProcess(t *testing.T) {
	c := exec.Command("/bin/true")
	require.NoError(t, c.Start())
	ended := ""
	for range 1000 { // not waited for yet
		if _, err := Find(t.Context(), strconv.Itoa(c.Process.Pid)); err != nil {
			ended = err.Error()
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	assert.Contains(t, ended, "has ended")
	require.NoError(t, c.Wait())
	_, err := Find(t.Context(), strconv.Itoa(c.Process.Pid))
	assert.ErrorContains(t, err, "there is no process")
}
