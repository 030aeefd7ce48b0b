package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
)

// attaching is a world whose clients lease from the default pool.
func attaching(t *testing.T) *world {
	t.Helper()
	return start(t, setup{flags: []string{"--pref64", lab.Pref64}})
}

// box is a namespace with nothing in it.
func (w *world) box(t *testing.T, name string) *lab.Node {
	t.Helper()
	n, err := w.Node(name)
	require.NoError(t, err)
	return n
}

// refused asserts that a command fails with exit code 1 and one line that says
// why.
func (w *world) refused(t *testing.T, want string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := w.daemon.Query(ctx, args...)
	var exit *exec.ExitError
	if assert.ErrorAs(t, err, &exit, out) {
		assert.Equal(t, 1, exit.ExitCode())
	}
	assert.Contains(t, out, want)
	assert.True(t, strings.HasPrefix(out, "natless: "), out)
	assert.Equal(t, 1, strings.Count(out, "\n"), out)
}

// ps is what is attached.
func (w *world) ps(t *testing.T) (list []mapping.Attachment) {
	t.Helper()
	for line := range strings.Lines(w.query(t, "ps", "-o", "json")) {
		var a mapping.Attachment
		require.NoError(t, json.Unmarshal([]byte(line), &a), line)
		list = append(list, a)
	}
	return list
}

// becomes waits until a node is as it was: natless follows what changes on the
// host in its own time.
func becomes(t *testing.T, n *lab.Node, before lab.Snapshot, when string) {
	t.Helper()
	for range 100 {
		if len(before.Diff(snapshot(t, n))) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	unchanged(t, n, before, when)
}

// reaches asserts that a node reaches the IPv4-only server.
func (w *world) reaches(t *testing.T, n *lab.Node) lab.Transfer {
	t.Helper()
	down, err := lab.Download(t.Context(), n.HTTP(""), server6+":8080", make([]byte, 1<<20), nil)
	require.NoError(t, err)
	return down
}

// From `natless run` to a working connection it is one more command.
func TestLabAttachLink(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	lo, err := box.Netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, box.Netlink.LinkSetDown(lo), "as in a namespace that somebody has just made")
	host, inside := snapshot(t, w.Host), snapshot(t, box)
	out := w.query(t, "attach", box.Path(), "--link", "--label", "box")
	list := w.ps(t)
	require.Len(t, list, 1)
	a := list[0]
	assert.Equal(t, "box", a.Label)
	assert.Equal(t, fmt.Sprintf("attached %s (box): %v is %v; made link %s, route to %s from %v; undo: natless detach %s\n",
		box.Path(), a.IPv6, a.IPv4, a.Host.Link, lab.Pref64, a.IPv6, box.Path()), out)
	w.reaches(t, box)
	_, err = lab.Ping(t.Context(), box, "", netip.MustParseAddr(lab.Server6), 1400)
	require.NoError(t, err)
	for _, listing := range []string{"ps", "lease ls"} {
		assert.Regexp(t, `(?m)^.*`+a.IPv4.String()+`\b.*$`, w.query(t, strings.Fields(listing)...), listing)
		assert.Contains(t, w.query(t, strings.Fields(listing)...), "box", listing)
	}

	assert.Equal(t, fmt.Sprintf("detached box: %v was %v\n", a.IPv6, a.IPv4), w.query(t, "detach", "box"))
	assert.Empty(t, w.ps(t))
	unchanged(t, box, inside, "after detach")
	becomes(t, w.Host, host, "after detach")
	assert.NotContains(t, w.query(t, "lease", "ls"), a.IPv4.String())
	assert.Contains(t, w.query(t, "status"), "1 in quarantine")

	// Attached again it has the same addresses.
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	again := w.ps(t)[0]
	assert.Equal(t, []netip.Addr{a.IPv6, a.IPv4}, []netip.Addr{again.IPv6, again.IPv4})
	w.reaches(t, box)
}

// A client with several addresses has one pinned, which is not the one of its
// map.
func TestLabAttachPins(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, setup{})
	inside := snapshot(t, w.client)
	out := w.query(t, "attach", w.client.Path(), "--label", "web")
	assert.Contains(t, out, client1+" is 169.254.64.")
	assert.Contains(t, out, "route to "+lab.Pref64+" from "+client1)
	assert.Contains(t, w.query(t, "map", "get", client1), "web")
	w.reaches(t, w.client)
	w.query(t, "detach", w.client.Path())
	unchanged(t, w.client, inside, "after detach")
}

// sleeper is a process in a namespace of its own.
func (w *world) sleeper(t *testing.T) (pid string, kill func()) {
	t.Helper()
	box := w.box(t, "box")
	c := box.Command(t.Context(), "sleep", "1000")
	require.NoError(t, c.Start())
	kill = func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	t.Cleanup(kill)
	return strconv.Itoa(c.Process.Pid), kill
}

// What goes away is detached by itself, and has its address when it comes back.
func TestLabAttachVanishes(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	host := snapshot(t, w.Host)
	var first netip.Addr
	for range 2 {
		pid, kill := w.sleeper(t)
		out := w.query(t, "attach", pid, "--link", "--label", "db")
		assert.Contains(t, out, "attached "+pid+" (db): ")
		list := w.ps(t)
		require.Len(t, list, 1)
		if first.IsValid() {
			assert.Equal(t, first, list[0].IPv4)
		}
		first = list[0].IPv4
		kill()
		for range 200 {
			if list = w.ps(t); len(list) == 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		require.Empty(t, list)
		becomes(t, w.Host, host, "after the target has gone")
		w.refused(t, "it is not attached", "detach", "db")
	}
}

// What is attached stays so while natless is killed and comes back.
func TestLabAttachSurvives(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	before := w.ps(t)
	require.Len(t, before, 1)
	require.NoError(t, w.daemon.Kill())
	w.run(t, setup{flags: []string{"--pref64", lab.Pref64}})
	assert.Equal(t, before, w.ps(t))
	w.reaches(t, box)
	w.query(t, "detach", "box")
	assert.Empty(t, w.ps(t))
}

func TestLabAttachRefuses(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	inside := snapshot(t, box)
	host := snapshot(t, w.Host)
	w.refused(t, "it has no IPv6 address that connections can come from: --link makes it a link of its own", "attach", box.Path())
	w.refused(t, "it has IPv4 of its own (198.51.100.2 on eth0)", "attach", w.Server.Path())
	w.refused(t, "host networking", "attach", w.Host.Path(), "--link")
	w.refused(t, "there is no process 4194304", "attach", "4194304")
	w.refused(t, "no namespace in /run/netns", "attach", "no-such-name-here")
	w.refused(t, "it is not attached", "detach", box.Path())
	w.refused(t, "it is not attached", "port-range", "unset", box.Path())
	w.refused(t, "no range of ports but all of 169.254.64.", "port-range", "set", w.client.Path())
	for _, args := range [][]string{{box.Path(), "--link", "--dns"}, {"--dns", box.Path(), "--link"}, {"--link", "--dns=natless", box.Path()}} {
		w.refused(t, "natless's DNS64 is off; natless run --dns64 ADDRESS has it on", append([]string{"attach"}, args...)...)
	}
	for _, args := range [][]string{{box.Path(), "--link", "--dns", "fd00::53"}, {"--dns", "fd00::53", box.Path()}, {"--dns=fd00::53", box.Path()}} {
		w.refused(t, "its resolver: a namespace that is known by its path alone has none", append([]string{"attach"}, args...)...)
	}
	for _, args := range [][]string{{"--timeout", "0", "one"}, {"one", "two"}, {"one", "two", "--dns"}, {"one", "fd00::53"}, {"one", "fd00::53", "--dns=fd00::54"}, {"one", "--dns=two"}} {
		out, err := w.daemon.Query(t.Context(), append([]string{"attach"}, args...)...)
		var exit *exec.ExitError
		if assert.ErrorAs(t, err, &exit, args) {
			assert.Equal(t, 2, exit.ExitCode(), out)
		}
	}
	unchanged(t, box, inside, "after refusals")
	unchanged(t, w.Host, host, "after refusals")
	assert.Empty(t, w.ps(t))

	w.query(t, "attach", box.Path(), "--link")
	inside = snapshot(t, box)
	already := w.query(t, "attach", box.Path(), "--link")
	assert.Regexp(t, `^already attached `+box.Path()+` \(.*\): .* is 169\.254\.64\..*; undo: natless detach `+box.Path()+`\n$`, already)
	assert.Contains(t, w.query(t, "attach", box.Path(), "-o", "json"), `"already":true`)
	w.refused(t, "it is attached already, with 169.254.64.", "attach", box.Path(), "--label", "other")
	w.refused(t, "no range of ports but all of 169.254.64.", "port-range", "set", box.Path())
	assert.Empty(t, inside.Diff(snapshot(t, box)))
	assert.Len(t, w.ps(t), 1)
	assert.Regexp(t, `(?m)^ports +32768-60999$`, w.query(t, "port-range", "show", box.Path()))

	require.NoError(t, w.daemon.Stop())
	w.refused(t, "is natless running?", "attach", w.client.Path())
}

// Two namespaces share a routed address by port ranges: what they download at
// once takes no session.
func TestLabAttachSharedAddress(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := start(t, sharing("", 1))
	boxes := []*lab.Node{w.box(t, "box1"), w.box(t, "box2")}
	var before []lab.Snapshot
	ranges := map[string]bool{}
	for k, box := range boxes {
		before = append(before, snapshot(t, box))
		label := fmt.Sprint("box", k+1)
		out := w.query(t, "attach", box.Path(), "--link", "--label", label)
		assert.Regexp(t, ` is ports [0-9]+-[0-9]+ of `+shared4+`; made link nl-.*, net\.ipv4\.ip_local_port_range = [0-9]+ [0-9]+, net\.ipv4\.tcp_tw_reuse = 1; undo: `, out)
	}
	for _, a := range w.ps(t) {
		ranges[a.Ports] = true
		first, _, _ := strings.Cut(a.Ports, "-")
		shown := w.query(t, "port-range", "show", a.Target)
		assert.Regexp(t, fmt.Sprintf(`(?m)^ports +%s-%d$`, first, a.StatelessLast), shown)
		assert.Contains(t, w.query(t, "ps"), a.Ports)
	}
	assert.Len(t, ranges, 2)
	var each sync.WaitGroup
	for _, box := range boxes {
		each.Go(func() {
			for range 3 {
				down, err := lab.Download(t.Context(), box.HTTP(""), server6+":8080", make([]byte, 4<<20), nil)
				assert.NoError(t, err)
				assert.Equal(t, shared4, down.Client)
			}
		})
	}
	each.Wait()
	assert.Empty(t, w.query(t, "session", "ls", "-o", "json"))

	assert.Contains(t, w.query(t, "port-range", "unset", "box1"), "box1 takes the ports it had before; undo: natless port-range set box1")
	assert.Regexp(t, `(?m)^ports +32768-60999$`, w.query(t, "port-range", "show", boxes[0].Path()))
	w.reaches(t, boxes[0])
	assert.NotEmpty(t, w.query(t, "session", "ls", "-o", "json"), "outside of its range")
	// It is called box1 wherever it shows.
	for _, a := range w.ps(t) {
		first, _, _ := strings.Cut(a.Ports, "-")
		for _, args := range [][]string{
			{"ps"}, {"lease", "ls"}, {"session", "ls", "--client", a.IPv6.String()}, {"map", "get", a.IPv6.String()},
			{"trace", "tcp", a.IPv6.String(), first, lab.Server6, "80"}, {"trace", "tcp", lab.ServerIPv4, "80", a.IPv4.String(), first},
		} {
			if args[0] != "session" || a.Label == "box1" {
				assert.Regexp(t, `\b`+a.Label+`\b`, w.query(t, args...), args)
			}
		}
	}
	assert.Contains(t, w.query(t, "port-range", "set", "box1"), "undo: natless detach box1")
	for k, box := range boxes {
		w.query(t, "detach", fmt.Sprint("box", k+1))
		unchanged(t, box, before[k], "after detach")
	}
}

// A container is found by its name, which is its label, and others of its pod
// share what it has.
func TestLabAttachContainer(t *testing.T) {
	lab.Require(t)
	w := attaching(t)
	box, pids := w.box(t, "box"), map[string]int{}
	for _, name := range []string{"web", "sidecar"} {
		c := box.Command(t.Context(), "sleep", "1000")
		require.NoError(t, c.Start())
		defer func() { _, _ = c.Process.Kill(), c.Wait() }()
		pids[name] = c.Process.Pid
	}
	socket := filepath.Join(w.Dir, "docker.sock")
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	engine := http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		name := strings.Split(r.URL.Path, "/")[2]
		pid, ok := pids[name]
		if !ok {
			http.Error(out, `{"message":"No such container"}`, http.StatusNotFound)
			return
		}
		fmt.Fprintf(out, `{"Id":"%s00","Name":"/%s","State":{"Status":"running","Running":true,"Pid":%d},"HostConfig":{"NetworkMode":"none"}}`, name, name, pid)
	})}
	go func() { _ = engine.Serve(ln) }()
	defer engine.Close()
	t.Setenv("DOCKER_HOST", "unix://"+socket)

	assert.Contains(t, w.query(t, "attach", "docker:web", "--link"), "attached docker:web (web): ")
	assert.Contains(t, w.query(t, "attach", "web"), "already attached web: ")
	w.query(t, "attach", "sidecar")
	list := w.ps(t)
	require.Len(t, list, 1)
	assert.Equal(t, 2, list[0].Count)
	assert.Equal(t, "web", list[0].Label)
	w.query(t, "detach", "web")
	list = w.ps(t)
	require.Len(t, list, 1)
	assert.Equal(t, 1, list[0].Count)
	assert.Equal(t, "sidecar", list[0].Label)
	w.query(t, "detach", "sidecar")
	assert.Empty(t, w.ps(t))
}

// A forward policy of drop is named, with what opens it.
func TestLabAttachNamesFirewall(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	theirs, drop := &nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet}, nftables.ChainPolicyDrop
	ruleset(t, w.Host, func(c *nftables.Conn) {
		c.AddChain(&nftables.Chain{
			Name: "forward", Table: c.AddTable(theirs), Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
	})
	out := w.query(t, "attach", box.Path(), "--link", "--label", "box")
	assert.Contains(t, out, "natless: note: natless does not answer it: no echo reply from "+lab.Embed(lab.Pref64, ownIPv4).String())
	assert.Contains(t, out, "natless: note: a firewall drops forwarded packets (inet theirs forward); this lets natless's through: nft ")
	assert.Contains(t, out, "\nattached ")
	ruleset(t, w.Host, func(c *nftables.Conn) { c.DelTable(theirs) })
	w.reaches(t, box)
	w.query(t, "detach", "box")
}

func TestLabAttachNeedsRoot(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	if inside, err := os.ReadFile("/proc/self/uid_map"); err != nil || len(strings.Fields(string(inside))) != 3 || !strings.HasSuffix(strings.TrimSpace(string(inside)), "4294967295") {
		testenv.Skip(t, "there is one user in this user namespace")
	}
	w := attaching(t)
	c := w.Host.Command(t.Context(), lab.Binary(t), "attach", w.client.Path(), "--socket", w.daemon.Socket)
	c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	out, err := c.CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "permission denied: it takes root")
}

// An attach that is killed at any moment leaves nothing that detach does not
// undo.
func TestLabAttachKilled(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := attaching(t)
	box := w.box(t, "box")
	host, inside := snapshot(t, w.Host), snapshot(t, box)
	begun := time.Now()
	w.query(t, "attach", box.Path(), "--link")
	took := time.Since(begun)
	w.query(t, "detach", box.Path())
	const rounds = 12
	for k := range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), took*time.Duration(k+1)/rounds)
		_, killed := w.daemon.Query(ctx, "attach", box.Path(), "--link")
		cancel()
		if len(w.ps(t)) == 0 {
			require.Error(t, killed)
		} else {
			w.query(t, "detach", box.Path())
		}
		unchanged(t, box, inside, fmt.Sprintf("killed in moment %d", k))
		becomes(t, w.Host, host, fmt.Sprintf("killed in moment %d", k))
	}
}

// A natless that is gone leaves nothing of what attach made, neither on the host
// nor inside, but where it does not know of it.
func TestLabAttachDown(t *testing.T) {
	lab.Require(t)
	t.Parallel()
	w := build(t, setup{})
	host := snapshot(t, w.Host)
	flags := sharing("", 1)
	w.run(t, flags)
	box, gone := w.box(t, "box"), w.box(t, "gone")
	inside, outside := snapshot(t, box), snapshot(t, gone)
	pid, kill := w.sleeper(t)
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	w.query(t, "attach", pid, "--link")
	list := w.ps(t)
	require.Len(t, list, 2)
	require.NotEmpty(t, inside.Diff(snapshot(t, box)))
	state := "--state-dir=" + w.Host.StateDir()
	w.refused(t, "stop it first", "down", state)
	require.Len(t, w.ps(t), 2)
	require.NoError(t, w.daemon.Kill())
	kill()

	// Another network namespace's natless has the same state, by mistake.
	c := gone.Command(t.Context(), lab.Binary(t), "down", state)
	out, err := c.CombinedOutput()
	require.NoError(t, err)
	assert.Empty(t, string(out))
	unchanged(t, gone, outside, "after down elsewhere")

	said := w.query(t, "down", state)
	assert.Regexp(t, `(?m)^detached `+box.Path()+`: took back link `+list[0].Host.Link+`, route to `+lab.Pref64+` from .*, net\.ipv4\.ip_local_port_range = .*$`, said)
	assert.Contains(t, said, "detached "+pid+", which is gone\n")
	assert.NotContains(t, said, "removed link")
	unchanged(t, w.Host, host, "after down")
	unchanged(t, box, inside, "after down")
	assert.Empty(t, w.query(t, "down", state))
	w.run(t, flags)
	assert.Empty(t, w.ps(t))

	// With no state known, the links go.
	w.query(t, "attach", box.Path(), "--link", "--label", "box")
	require.NoError(t, w.daemon.Kill())
	assert.Contains(t, w.query(t, "down", "--state-dir="), "removed link "+list[0].Host.Link)
	unchanged(t, w.Host, host, "after down")
	file := filepath.Join(t.TempDir(), "natless.toml")
	require.NoError(t, os.WriteFile(file, []byte("[state]\ndir = \""+w.Host.StateDir()+"\"\n"), 0o600))
	assert.Contains(t, w.query(t, "down", "-c", file), "detached "+box.Path())
	unchanged(t, box, inside, "after down")
	require.NoError(t, os.WriteFile(file, []byte("nonsense\n"), 0o600))
	refusal, err := w.daemon.Query(t.Context(), "down", "-c", file)
	assert.ErrorContains(t, err, "exit status 2")
	assert.Contains(t, refusal, "where what is attached is written down (--state-dir tells too): ")
}
