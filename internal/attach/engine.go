package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// engine is a program that runs containers. Podman answers at its socket as
// Docker does, and its command as Docker's.
type engine struct {
	kind    Kind
	title   string
	env     string          // names the socket, as unix://PATH
	sockets func() []string // where it is otherwise
}

var engines = map[Kind]engine{
	KindPodman: {kind: KindPodman, title: "Podman", env: "CONTAINER_HOST", sockets: podmanSockets},
	KindDocker: {kind: KindDocker, title: "Docker", env: "DOCKER_HOST", sockets: dockerSockets},
}

func podmanSockets() []string {
	paths := []string{"/run/podman/podman.sock"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		paths = append(paths, filepath.Join(dir, "podman/podman.sock"))
	}
	return paths
}

func dockerSockets() []string { return []string{"/var/run/docker.sock"} }

// container is what matters of an engine's answer about one.
type container struct {
	ID    string `json:"Id"`
	Name  string
	State struct {
		Status  string
		Running bool
		Pid     int
	}
	HostConfig      struct{ NetworkMode string }
	NetworkSettings struct{ SandboxKey string } // the file of its network namespace
	ResolvConfPath  string

	owner uint32 // of the engine: who names its containers
}

// unasked is an error of an engine that cannot say whether it has a container.
type unasked struct{ error }

// find is the namespace of a running container, by its name or id.
func (e engine) find(ctx context.Context, name string) (*Target, error) {
	c, err := e.inspect(ctx, name)
	if isNotFound(err) {
		return nil, err
	}
	if err != nil {
		return nil, unasked{err}
	}
	c.Name = strings.TrimPrefix(c.Name, "/") // Docker's have one
	if !c.State.Running || c.State.Pid <= 0 {
		return nil, fmt.Errorf("%s container %s is not running (%s)", e.title, c.Name, c.State.Status)
	}
	t, err := byPID(c.State.Pid)
	if err != nil {
		return nil, fmt.Errorf("%s container %s: %w", e.title, c.Name, err)
	}
	t.Kind, t.Label = e.kind, ownedLabel(c.Name, c.owner)
	t.HostNetwork = c.HostConfig.NetworkMode == "host"
	t.resolvConf = c.ResolvConfPath
	// The file stays when the process ends and others share the namespace. That of
	// another user's engine lies where that user may put anything later.
	if key := c.NetworkSettings.SandboxKey; c.owner == 0 || int(c.owner) == os.Geteuid() {
		if id, err := identify(key); err == nil && id == t.ID {
			t.Path = key
		}
	}
	return t, nil
}

// patience is how long an engine may take to answer.
const patience = 10 * time.Second

// inspect asks the engine about a container: at its sockets, or by its command
// where nobody listens. Where there is neither, notFound.
func (e engine) inspect(ctx context.Context, name string) (*container, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if name == "" {
		return nil, fmt.Errorf("the name of the %s container is empty", e.title)
	}
	paths := e.sockets()
	if host := os.Getenv(e.env); host != "" {
		path, unixSocket := strings.CutPrefix(host, "unix://")
		if !unixSocket {
			return nil, fmt.Errorf("%s is at %s (%s): its containers are not of this host", e.title, host, e.env)
		}
		paths = []string{path}
	}
	answered := false
	for _, path := range paths {
		c, err := e.ask(ctx, path, name)
		switch {
		case err == nil:
			return c, nil
		case isNotFound(err):
			answered = true
		case !nobodyThere(err):
			return nil, err
		}
	}
	if answered {
		return nil, notFound(e.title + " has no container " + name)
	}
	return e.run(ctx, name)
}

func nobodyThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// at is a client of what listens at a socket.
func at(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// ask asks at a socket.
func (e engine) ask(ctx context.Context, socket, name string) (*container, error) {
	client := at(socket)
	failed := func(err error) error { return fmt.Errorf("asking %s at %s: %w", e.title, socket, err) }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/containers/"+url.PathEscape(name)+"/json", nil)
	if err != nil {
		return nil, failed(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // its URL says nothing to the user
		}
		return nil, failed(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, notFound("no such container")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, failed(err)
	}
	if resp.StatusCode != http.StatusOK {
		var said struct{ Message string }
		if json.Unmarshal(body, &said) != nil || said.Message == "" {
			said.Message = resp.Status
		}
		return nil, failed(errors.New(said.Message))
	}
	c := new(container)
	var st unix.Stat_t
	if err := errors.Join(json.Unmarshal(body, c), unix.Stat(socket, &st)); err != nil {
		return nil, failed(err)
	}
	c.owner = st.Uid
	return c, nil
}

// run asks by the engine's command.
func (e engine) run(ctx context.Context, name string) (*container, error) {
	path, err := exec.LookPath(string(e.kind))
	if err != nil {
		return nil, notFound(e.title + " is not here")
	}
	out, err := exec.CommandContext(ctx, path, "container", "inspect", "--", name).Output()
	if err != nil {
		said := err.Error()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
			said = strings.TrimSpace(string(exit.Stderr))
		}
		if low := strings.ToLower(said); strings.Contains(low, "no such container") {
			return nil, notFound(e.title + " has no container " + name)
		}
		return nil, fmt.Errorf("asking %s: %s", e.title, said)
	}
	var list []container
	if err := json.Unmarshal(out, &list); err != nil || len(list) != 1 {
		return nil, fmt.Errorf("asking %s: its answer is not one container: %v", e.title, err)
	}
	return &list[0], nil
}
