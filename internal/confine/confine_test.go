package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// tryEnv has the test binary confine itself in the directory it names, and try
// what a natless in other hands would.
const tryEnv = "NATLESS_TEST_CONFINE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(tryEnv); dir != "" {
		try(dir)
		return
	}
	os.Exit(m.Run())
}

// report is what became of it.
type report struct {
	State   State
	Threads []map[string]string // /proc/PID/task/TID/status
	Results map[string]string   // errors, "" for none
}

func try(dir string) {
	for range 5 { // threads that are there already
		go func() { runtime.LockOSThread(); select {} }()
	}
	time.Sleep(20 * time.Millisecond)
	secret, err := os.Open(filepath.Join(dir, "secret/before"))
	r := report{Results: map[string]string{"open before": said(err)}}
	r.State = Apply(Needs{
		Capabilities: []cap.Value{cap.NET_ADMIN},
		Programs:     strings.HasSuffix(dir, "programs"),
		Files: Files{
			Read:   []string{"/proc", filepath.Join(dir, "read"), filepath.Join(dir, "never/there")},
			Write:  []string{filepath.Join(dir, "write")},
			Change: []string{filepath.Join(dir, "change"), "/dev/null"},
			Remove: []string{filepath.Join(dir, "remove")},
			Empty:  []string{filepath.Join(dir, "empty")},
		},
	})
	for range 5 { // and those that come
		go func() { runtime.LockOSThread(); select {} }()
	}
	time.Sleep(20 * time.Millisecond)
	_, err = secret.Read(make([]byte, 1))
	r.Results["read what is open"] = said(err)
	for name, do := range attempts(dir) {
		r.Results[name] = said(do())
	}
	r.Threads = threads()
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

func said(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func attempts(dir string) map[string]func() error {
	at := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string) func() error {
		return func() error { _, err := os.ReadFile(name); return err }
	}
	write := func(name string) func() error {
		return func() error { return os.WriteFile(name, []byte("x"), 0o600) }
	}
	list := map[string]func() error{
		"read: permitted":         read(at("read/file")),
		"read: secret":            read(at("secret/file")),
		"read: by a link":         read(at("read/link")),
		"read: by /proc":          read("/proc/self/root" + at("secret/file")),
		"read: another's memory":  read(fmt.Sprintf("/proc/%d/environ", os.Getppid())),
		"write: permitted":        write(at("write/new")),
		"write: beside":           write(at("secret/new")),
		"write: what is readable": write(at("read/file")),
		"write: changeable":       write(at("change/file")),
		"write: new, changeable":  write(at("change/new")),
		"rename": func() error {
			return errors.Join(write(at("write/a"))(), os.Rename(at("write/a"), at("write/b")), os.Remove(at("write/b")))
		},
		"remove: permitted":          func() error { return os.Remove(at("remove/file")) },
		"remove: an empty directory": func() error { return os.Remove(at("empty/dir")) },
		"remove: a file beside it":   func() error { return os.Remove(at("empty/file")) },
		"remove: beside":             func() error { return os.Remove(at("secret/file")) },
		"exec":                       func() error { return exec.Command("/bin/sh", "-c", "exit 0").Run() },
		"packet socket":              func() error { return socket(unix.AF_PACKET) },
		"unix socket":                func() error { return socket(unix.AF_UNIX) },
		"type into terminal": func() error {
			return call(unix.SYS_IOCTL, 0, unix.TIOCSTI)
		},
		"type, with more bits": func() error {
			return call(unix.SYS_IOCTL, 0, uintptr(uint64(unix.TIOCSTI)|uint64(1)<<(unix.SizeofPtr*8-4)))
		},
		"signal to others": func() error { return unix.Kill(os.Getppid(), unix.SIGCONT) },
		"signal to itself": func() error { return unix.Kill(os.Getpid(), unix.SIGCONT) },
		"is it there":      func() error { return unix.Kill(1<<22+1, 0) },
		"namespace":        func() error { return call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0) },
	}
	numbers, _ := arch.GetInfo("")
	for _, name := range append([]string{"clone3"}, dangerous...) {
		if n, there := numbers.SyscallNames[name]; there {
			list["call: "+name] = func() error { return call(uintptr(n), ^uintptr(0), ^uintptr(0)) }
		}
	}
	return list
}

func socket(family int) error {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func call(n, a, b uintptr) error {
	if _, _, errno := unix.Syscall(n, a, b, 0); errno != 0 {
		return errno
	}
	return nil
}

func threads() (list []map[string]string) {
	paths, _ := filepath.Glob("/proc/self/task/*/status")
	for _, path := range paths {
		text, _ := os.ReadFile(path)
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			fields[key] = strings.TrimSpace(value)
		}
		list = append(list, fields)
	}
	return list
}

// confined has a process confine itself and try.
func confined(t *testing.T, name string) (r report) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	for _, file := range []string{"secret/before", "secret/file", "read/file", "write/file", "change/file", "remove/file", "empty/file"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(file)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte("x"), 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "empty/dir"), 0o700))
	require.NoError(t, os.Symlink("../secret/file", filepath.Join(dir, "read/link")))
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), tryEnv+"="+dir)
	c.Stderr = os.Stderr
	out, err := c.Output()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &r))
	return r
}

func TestConfined(t *testing.T) {
	for _, name := range []string{"natless", "programs"} {
		t.Run(name, func(t *testing.T) {
			r := confined(t, name)
			t.Logf("%v", r.State)
			if mentions(r.State.Problems, "Landlock") {
				t.Skip(r.State.Problems)
			}
			assert.Empty(t, r.State.Problems)
			assert.Equal(t, name, r.State.Seccomp)
			assert.True(t, r.State.NoNewPrivs)
			assert.Positive(t, r.State.Landlock)
			want := map[string]string{
				"open before": "", "read what is open": "",
				"read: permitted": "", "read: secret": "EACCES", "read: by a link": "EACCES", "read: by /proc": "EACCES", "read: another's memory": "EACCES",
				"write: permitted": "", "write: beside": "EACCES", "write: what is readable": "EACCES", "write: changeable": "", "write: new, changeable": "EACCES",
				"rename": "", "remove: permitted": "", "remove: beside": "EACCES", "remove: an empty directory": "", "remove: a file beside it": "EACCES",
				"exec": "EPERM", "packet socket": "EPERM", "unix socket": "",
				"type into terminal": "EPERM", "type, with more bits": "EPERM",
				"signal to others": "EPERM", "signal to itself": "", "is it there": "ESRCH", "namespace": "EPERM",
			}
			if name == "programs" {
				want["exec"], want["signal to others"] = "", ""
				delete(want, "packet socket") // CAP_NET_RAW says
			}
			if strings.Contains(os.TempDir(), "/tmp") && name == "programs" { // which programs may use
				for _, name := range []string{"read: secret", "read: by a link", "read: by /proc", "write: beside", "write: what is readable", "write: new, changeable", "remove: beside", "remove: a file beside it"} {
					delete(want, name)
				}
			}
			for what, err := range want {
				assert.Equal(t, err, r.Results[what], what)
			}
			for what, err := range r.Results {
				if what == "call: clone3" {
					assert.Equal(t, "ENOSYS", err, what)
				} else if strings.HasPrefix(what, "call: ") {
					assert.Equal(t, "EPERM", err, what)
				}
			}
			require.Greater(t, len(r.Threads), 10)
			for _, thread := range r.Threads {
				allowed := fmt.Sprintf("%016x", 0)
				if os.Geteuid() == 0 {
					allowed = fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN)
					assert.Equal(t, allowed, thread["CapBnd"])
				}
				assert.Equal(t, allowed, thread["CapEff"])
				assert.Equal(t, allowed, thread["CapPrm"])
				assert.Equal(t, fmt.Sprintf("%016x", 0), thread["CapInh"])
				assert.Equal(t, fmt.Sprintf("%016x", 0), thread["CapAmb"])
				assert.Equal(t, "1", thread["NoNewPrivs"])
				assert.Equal(t, "2", thread["Seccomp"])
			}
		})
	}
}

func mentions(list []string, part string) bool {
	return strings.Contains(strings.Join(list, "\n"), part)
}

// TestOverriding asks for more rights only where what belongs to others is in
// the way.
func TestOverriding(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has them")
	}
	dir := t.TempDir()
	mine, theirs := filepath.Join(dir, "mine"), filepath.Join(dir, "theirs")
	for _, path := range []string{mine, theirs} {
		require.NoError(t, os.Mkdir(path, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o600))
	}
	require.NoError(t, os.Chown(theirs, 65533, 65533))
	for _, c := range []struct {
		read, write []string
		want        []cap.Value
	}{
		{nil, nil, nil},
		{[]string{filepath.Join(mine, "file")}, []string{mine}, nil},
		{[]string{filepath.Join(dir, "absent")}, nil, nil},
		{[]string{filepath.Join(theirs, "file")}, []string{mine}, []cap.Value{cap.DAC_READ_SEARCH}},
		{nil, []string{theirs}, []cap.Value{cap.DAC_OVERRIDE}},
	} {
		got, err := Overriding(c.read, c.write)
		require.NoError(t, err)
		assert.Equal(t, c.want, got, "%v %v", c.read, c.write)
	}
	_, err := os.ReadFile(filepath.Join(theirs, "file"))
	assert.NoError(t, err, "the rest of the process has them still")
}

func TestAround(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "real"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "real/file"), nil, 0o600))
	require.NoError(t, os.Symlink("real/file", filepath.Join(dir, "link")))
	assert.Equal(t, []string{dir}, Around(filepath.Join(dir, "absent")))
	assert.Equal(t, []string{filepath.Join(dir, "real")}, Around(filepath.Join(dir, "real/file")))
	assert.Equal(t, []string{dir, filepath.Join(dir, "real")}, Around(filepath.Join(dir, "link")))
	assert.ErrorIs(t, Pin(filepath.Join(dir, "absent")), fs.ErrNotExist)
	assert.NoError(t, Pin("/proc/sys/net"))
}

// TestPolicies has both filters made, of a size that the kernel takes.
func TestPolicies(t *testing.T) {
	for _, programs := range []bool{false, true} {
		p, err := policy(programs)
		require.NoError(t, err)
		instructions, err := p.Assemble()
		require.NoError(t, err)
		t.Logf("%d instructions", len(instructions))
		assert.Less(t, len(instructions), 4096, "BPF_MAXINSNS")
	}
}
