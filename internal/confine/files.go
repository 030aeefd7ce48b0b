package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Files are those that may still be opened, and what is below the directories
// among them. What is not there when the process is confined is left out, and
// so is what later takes the place of a file: where one is replaced, its
// directory has to be named.
type Files struct {
	Read   []string
	Write  []string // may be changed, and files in directories be made and removed
	Change []string // may be read and written, and nothing be made or removed
	Remove []string // directories that files may be removed from
	Empty  []string // directories that empty ones may be removed from
}

const (
	readFile = ll.AccessFSReadFile
	readDir  = ll.AccessFSReadDir
	change   = readFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
	remove   = ll.AccessFSRemoveFile | ll.AccessFSRemoveDir
	manage   = change | readDir | remove | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSMakeSock
)

// onFiles are the rights of a directory that a file can have, too.
const onFiles = change | ll.AccessFSExecute

// Programs of the host take what iptables, ufw and firewall-cmd have been seen
// to need: to read and run what is installed, to write what they keep.
var (
	programsRead  = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/nix/store", "/gnu/store", "/run", "/sys", "/opt"}
	programsWrite = []string{"/run", "/etc/ufw", "/var/lib/ufw", "/lib/ufw", "/tmp", "/var/lock"}
)

// limitFiles has the kernel refuse to open what is not in files. It returns the
// version of Landlock that does, 0 where there is none. What is open stays so.
func limitFiles(f Files, programs bool) (version int, err error) {
	version, err = ll.LandlockGetABIVersion()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fmt.Errorf("this kernel has none, or has it switched off: %w", err)
	}
	if err != nil {
		return 0, err
	}
	read := landlock.AccessFSSet(readFile | readDir)
	var rules []landlock.Rule
	add := func(access landlock.AccessFSSet, paths []string) {
		for _, path := range paths {
			rules = append(rules, rule(access, path))
		}
	}
	add(read, f.Read)
	add(manage, f.Write)
	add(change|readDir, f.Change)
	add(ll.AccessFSRemoveFile, f.Remove)
	add(ll.AccessFSRemoveDir, f.Empty)
	if programs {
		add(read|ll.AccessFSExecute, programsRead)
		add(manage, programsWrite)
	}
	// The rights of version 5 are those on files: later ones are on sockets,
	// which natless and the programs need.
	if err := landlock.V5.BestEffort().RestrictPaths(rules...); err != nil {
		return 0, err
	}
	return version, nil
}

// rule is about a path, which may be a file, and may not be there.
func rule(access landlock.AccessFSSet, path string) landlock.Rule {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		access &= onFiles
	}
	return landlock.PathAccess(access, path).IgnoreIfMissing()
}

// Around is where a file, which others may replace while it is in use, is to be
// looked for: its directory, and that of what it is a symbolic link to.
func Around(path string) []string {
	dirs := []string{filepath.Dir(path)}
	if target, err := filepath.EvalSymlinks(path); err == nil && filepath.Dir(target) != dirs[0] {
		dirs = append(dirs, filepath.Dir(target))
	}
	return dirs
}

// Pin keeps the kernel from forgetting a directory of /proc while the process
// lives. Landlock knows files by their inodes, and what it holds of one does not
// keep /proc from making another when it has run out of memory for names.
func Pin(path string) error {
	_, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return nil
}
