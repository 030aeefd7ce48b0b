package control

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/mapping/trust"
)

// memberEnv has the test binary be a program of another user: what it does, and
// the path of the socket.
const memberEnv = "NATLESS_TEST_MEMBER"

func TestMain(m *testing.M) {
	if task := os.Getenv(memberEnv); task != "" {
		name, path, _ := strings.Cut(task, " ")
		members[name](path)
		return
	}
	os.Exit(m.Run())
}

// members are what one of a group may do to others. Each prints a line when it
// has begun, and goes on until its input ends.
var members = map[string]func(path string){
	// requests prints the code and the text of each answer.
	"requests": func(path string) {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: unixDialer(path)}}
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			method, target, _ := strings.Cut(lines.Text(), " ")
			r, _ := http.NewRequest(method, "http://natless"+target, nil)
			resp, err := client.Do(r)
			if err != nil {
				fmt.Println(err)
				continue
			}
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			fmt.Println(resp.StatusCode, strings.Join(strings.Fields(string(text)), " "))
		}
	},
	"client": func(path string) {
		status, err := NewClient(path).Status(context.Background())
		fmt.Println(status.Version, err)
		_, err = NewClient(path).Reload(context.Background())
		fmt.Println(err)
	},
	"half-open":  func(path string) { many(path, 10_000, "GET /v1/sta") },
	"never-read": func(path string) { many(path, 100, "GET /v1/map HTTP/1.1\r\nHost: natless\r\n\r\n") },
	"watch":      func(path string) { many(path, 100, "GET /v1/watch HTTP/1.1\r\nHost: natless\r\n\r\n") },
	"bodies": func(path string) {
		many(path, 100, "POST /v1/batch HTTP/1.1\r\nHost: natless\r\nContent-Length: 60000\r\n\r\n{")
	},
	"huge": func(path string) {
		many(path, 100, "POST /v1/map HTTP/1.1\r\nHost: natless\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n"+strings.Repeat("x", 100_000))
	},
	"busy": func(path string) {
		began := make(chan struct{}, 100)
		for range 100 {
			go func() {
				for {
					_, _ = NewClient(path).Config(context.Background())
					began <- struct{}{}
				}
			}()
		}
		<-began
		fmt.Println("begun")
		go func() {
			for range began {
			}
		}()
		_, _ = io.Copy(io.Discard, os.Stdin)
	},
	"squat": func(path string) {
		l, err := net.Listen("unix", path)
		fmt.Println("begun", err)
		for {
			if _, err := l.Accept(); err != nil { // and never answers
				return
			}
		}
	},
}

func unixDialer(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
}

// many opens connections and lets them be.
func many(path string, n int, request string) {
	var limit syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	limit.Cur = limit.Max
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	var all []net.Conn
	for range n {
		c, err := net.Dial("unix", path)
		if err != nil {
			continue
		}
		_ = c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		_, _ = io.WriteString(c, request)
		all = append(all, c)
	}
	fmt.Println("begun", len(all))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// as runs a task as another user, and says what it wrote after a line of input.
func as(t *testing.T, uid, gid uint32, task, path string) (in io.WriteCloser, out *bufio.Scanner) {
	t.Helper()
	// Its own path leads through a directory that only root may enter.
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), memberEnv+"="+task+" "+path)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	in, err := c.StdinPipe()
	require.NoError(t, err)
	stdout, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		in.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return in, bufio.NewScanner(stdout)
}

const (
	member = 65501
	reader = 65502
)

// startMembers serves at a path that others get to.
func startMembers(t *testing.T, src Source) (path string, s *Server) {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Skip(t, "only root has programs run as another user")
	}
	top, err := os.MkdirTemp("", "natless-control-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(top) })
	require.NoError(t, os.Chmod(top, 0o755))
	path = filepath.Join(top, "natless.sock")
	s, err = Listen(path, fmt.Sprint(member), fmt.Sprint(reader), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- s.Serve(src) }()
	t.Cleanup(func() {
		assert.NoError(t, s.Close())
		assert.NoError(t, <-done)
		assert.NoFileExists(t, path)
		assert.NoFileExists(t, ReaderPath(path))
	})
	return path, s
}

// TestReaders holds what control.read_group may and may not.
func TestReaders(t *testing.T) {
	src := onlyOne{source{maps: rows(3), config: 1}, newJournal(10)}
	path, s := startMembers(t, src)
	for p, gid := range map[string]uint32{path: member, ReaderPath(path): reader} {
		info, err := os.Stat(p)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o660), info.Mode().Perm())
		assert.Equal(t, gid, info.Sys().(*syscall.Stat_t).Gid)
	}

	in, out := as(t, 65500, reader, "requests", ReaderPath(path))
	ask := func(request string) string {
		t.Helper()
		fmt.Fprintln(in, request)
		require.True(t, out.Scan())
		return out.Text()
	}
	before := src.Revision()
	for _, r := range routes {
		target := strings.NewReplacer("{addr...}", "192.0.2.1", "{addr}", "192.0.2.1", "{id}", "x").Replace(r.pattern)
		if r.method == "GET" {
			if r.pattern != "/v1/watch" && r.pattern != "/v1/dns" && r.pattern != "/v1/attachment" {
				assert.Regexp(t, "^200 ", ask("GET "+target), target)
			}
			continue
		}
		answer := ask(r.method + " " + target)
		if r.pattern == "/v1/trace" {
			assert.Equal(t, `400 {"error":"expected a packet"}`, answer)
			continue
		}
		assert.Equal(t, fmt.Sprintf(`403 {"error":"%s %s: %v"}`, r.method, r.pattern, errReader), answer)
	}
	assert.Equal(t, before, src.Revision())

	// The commands find their way.
	_, out = as(t, 65500, reader, "client", path)
	require.True(t, out.Scan())
	assert.Equal(t, "1.2.3 <nil>", out.Text())
	require.True(t, out.Scan())
	assert.Equal(t, "POST /v1/reload: "+errReader.Error(), out.Text())
	_, out = as(t, 65500, 65500, "client", path)
	require.True(t, out.Scan())
	assert.Contains(t, out.Text(), "permission denied: only root may ask, and the groups that control.group and control.read_group name")

	// Where there are readers no more, nothing is left of their socket.
	require.NoError(t, s.Close())
	stale(t, ReaderPath(path))
	next, err := Listen(path, "", "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.NoFileExists(t, ReaderPath(path))
	require.NoError(t, next.Close())
}

// onlyOne is a source of fixed answers that journals.
type onlyOne struct {
	source
	j *journal
}

func (o onlyOne) Revision() uint64                                { return o.j.Revision() }
func (o onlyOne) Changed() <-chan struct{}                        { return o.j.Changed() }
func (o onlyOne) Events(a uint64, m int) ([]mapping.Event, error) { return o.j.Events(a, m) }

// TestMembersDoNotSlowRoot has the members of both groups do their worst.
func TestMembersDoNotSlowRoot(t *testing.T) {
	for task := range members {
		if task == "requests" || task == "client" || task == "squat" {
			continue
		}
		t.Run(task, func(t *testing.T) {
			path, s := startMembers(t, onlyOne{source{maps: rows(1_000_000), config: json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)}, newJournal(10)})
			for uid, gid := range map[uint32]uint32{65500: member, 65499: reader} {
				at := path
				if gid == reader {
					at = ReaderPath(path)
				}
				_, out := as(t, uid, gid, task, at)
				require.True(t, out.Scan())
				t.Log(task, out.Text())
			}
			c := NewClient(path)
			for range 20 {
				began := time.Now()
				_, err := c.Status(t.Context())
				require.NoError(t, err)
				require.Less(t, time.Since(began), 5*time.Second)
			}
			w := watching(t, path, "")
			assert.Equal(t, http.StatusOK, w.code, "root watches")
			conn := say(t, path, "POST /v1/batch HTTP/1.1\r\nHost: natless\r\nContent-Length: 0\r\n\r\n")
			began := time.Now()
			_, err := bufio.NewReader(conn).ReadString('\n')
			require.NoError(t, err)
			assert.Less(t, time.Since(began), 5*time.Second, "root's batch has its turn")
			for _, socket := range s.sockets {
				socket.places.mu.Lock()
				assert.LessOrEqual(t, socket.places.all, s.limits.userConnections)
				socket.places.mu.Unlock()
			}
		})
	}
}

// TestOneMemberBesideAnother holds that one user's many connections leave other
// members theirs.
func TestOneMemberBesideAnother(t *testing.T) {
	path, _ := startMembers(t, source{})
	_, out := as(t, 65500, member, "half-open", path)
	require.True(t, out.Scan())
	in, out := as(t, 65499, member, "requests", path)
	began := time.Now()
	fmt.Fprintln(in, "GET /v1/status")
	require.True(t, out.Scan())
	assert.Regexp(t, "^200 ", out.Text())
	assert.Less(t, time.Since(began), 5*time.Second)
}

// TestPlaces counts.
func TestPlaces(t *testing.T) {
	l := defaultLimits
	l.read = 20 * time.Millisecond
	p := newPlaces(l)
	who := func(uid uint32) peer { return peer{Ucred: unix.Ucred{Uid: uid}, known: true} }
	var leaves []func()
	for uid := uint32(100_000); uid < 100_010; uid++ {
		for i := range 2 * l.userConnections {
			leave, ok := p.enter(who(uid))
			assert.Equal(t, i < l.userConnections && len(leaves) < l.connections, ok)
			if ok {
				leaves = append(leaves, leave)
			}
		}
	}
	assert.Len(t, leaves, l.connections)
	for range 1000 {
		_, ok := p.enter(who(uint32(os.Geteuid())))
		require.True(t, ok, "there is always a place")
	}
	for i := range 2 * l.userWatches {
		_, ok := p.watch(who(100_000))
		assert.Equal(t, i < l.userWatches, ok)
	}
	for i := range l.userTurns + 1 {
		_, ok := p.turn(who(100_000))
		assert.Equal(t, i < l.userTurns, ok)
	}
	for _, leave := range leaves {
		leave()
		leave()
	}
	assert.Zero(t, p.all)
	assert.Empty(t, p.users)
	_, ok := p.enter(peer{})
	assert.True(t, ok, "who is not known is not trusted, and counted")
	assert.Equal(t, 1, p.all)
}

// TestSquatter has another user listen where natless is expected.
func TestSquatter(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "only root has programs run as another user")
	}
	dir, err := os.MkdirTemp("", "natless-control-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o777|os.ModeSticky))
	path := filepath.Join(dir, "natless.sock")
	_, out := as(t, 65500, 65500, "squat", path)
	require.True(t, out.Scan())
	require.Equal(t, "begun <nil>", out.Text())
	began := time.Now()
	_, err = NewClient(path).Status(t.Context())
	assert.ErrorContains(t, err, "asking the daemon at "+path+": not natless listens there but a program of another user (pid ")
	_, err = Listen(path, "", "", slog.New(slog.DiscardHandler))
	assert.Error(t, err)
	assert.Less(t, time.Since(began), 5*time.Second)

	// Nor is a socket made where its owner could put another in its place.
	theirs := filepath.Join(dir, "theirs")
	require.NoError(t, os.Mkdir(theirs, 0o755))
	require.NoError(t, os.Chown(theirs, 65500, 65500))
	_, err = Listen(filepath.Join(theirs, "natless.sock"), "", "", slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, theirs+" belongs to user 65500")
}

// TestLockedDirectory holds that whoever may open the directory cannot keep
// natless from starting by a lock of it.
func TestLockedDirectory(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, syscall.Flock(int(d.Fd()), syscall.LOCK_EX))
	began := time.Now()
	s, err := Listen(filepath.Join(dir, "natless.sock"), "", "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.Less(t, time.Since(began), lockWait)
	require.NoError(t, s.Close())

	held, err := trust.Lock(filepath.Join(dir, "natless.sock.lock"), 0)
	require.NoError(t, err)
	defer held.Release()
	_, err = Listen(filepath.Join(dir, "natless.sock"), "", "", slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, fmt.Sprintf("is locked by process %d", os.Getpid()))
	assert.Less(t, time.Since(began), 5*time.Second)
}
