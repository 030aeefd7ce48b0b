package hostnet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestDamagedRecord has what was written down unreadable: what bears natless's
// marks goes all the same, and what is not known is named.
func TestDamagedRecord(t *testing.T) {
	needsNamespaces(t)
	for name, spoil := range map[string]func(path string) error{
		"cut off":    func(path string) error { return os.Truncate(path, 20) },
		"empty":      func(path string) error { return os.Truncate(path, 0) },
		"of no boot": func(path string) error { return os.WriteFile(path, []byte("{}\n"), 0o600) },
		"other types": func(path string) error {
			return os.WriteFile(path, []byte(`{"boot": "x", "sysctls": {"a": 1}}`), 0o600)
		},
		"directory": func(path string) error { return mkdir(path) },
		"pipe": func(path string) error {
			_ = os.Remove(path)
			return unix.Mkfifo(path, 0o600)
		},
		"link": func(path string) error {
			_ = os.Remove(path)
			return os.Symlink("/etc/hostname", path)
		},
	} {
		for _, way := range []string{"down", "run"} {
			t.Run(name+", then "+way, func(t *testing.T) {
				testHost(t)
				before := snapshot(t)
				kill(start(t, testPlan()))
				key, err := namespaceKey()
				require.NoError(t, err)
				require.NoError(t, spoil(recordPath(key)))

				report, err := Check(testPlan())
				require.NoError(t, err)
				require.Empty(t, report.Conflicts)
				require.Contains(t, strings.Join(report.Warnings, "\n"), "the record of what natless changed here is damaged")

				var said []string
				if way == "run" {
					h, shut := start(t, testPlan())
					said = h.Aside()
					err = h.Close()
					shut()
				} else {
					said, err = Down()
				}
				require.NoError(t, err)
				text := strings.Join(said, "\n")
				require.Contains(t, text, "the record of what natless changed here was damaged")
				require.Contains(t, text, "net.ipv4.conf.LINK.forwarding stays 1 on uplink")
				kept, err := filepath.Glob(recordPath(key) + ".set-aside-*")
				require.NoError(t, err)
				require.Len(t, kept, 1)
				require.Contains(t, text, kept[0])
				if !hasForceForwarding() {
					require.Contains(t, text, "net.ipv6.conf.all.forwarding stays 1")
				}
				for line := range strings.Lines(difference(before, snapshot(t))) {
					if !hasForceForwarding() && strings.Contains(line, "Table: 255") {
						continue // anycast addresses, which the kernel has while all links forward
					}
					if strings.HasPrefix(line, "+") || strings.HasPrefix(line, "-") {
						path, _, _ := strings.Cut(line, " = ")
						require.Contains(t, text, "LINK."+filepath.Base(path), "only what is named stays")
					}
				}

				lines, err := Down()
				require.NoError(t, err)
				require.Empty(t, lines, "once")
				require.NoError(t, os.RemoveAll(kept[0]))
				_, err = Down()
				require.NoError(t, err)
				require.NoDirExists(t, runDir)
			})
		}
	}
}

func mkdir(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o700)
}

// TestRunDirOfOthers writes nothing down where another user could put something
// in its place.
func TestRunDirOfOthers(t *testing.T) {
	testHost(t)
	require.NoError(t, os.MkdirAll(runDir, 0o755))
	require.NoError(t, os.Chown(runDir, 65533, 65533))
	defer os.Remove(runDir)
	_, err := Prepare(testPlan())
	require.ErrorContains(t, err, runDir+" belongs to user 65533")
	_, err = Down()
	require.ErrorContains(t, err, runDir+" belongs to user 65533")
}
