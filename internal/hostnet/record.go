package hostnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natless/natless/mapping/trust"
)

// runDir holds the records and locks of all network namespaces that share it.
var runDir = "/run/natless"

// RunDir is the directory that holds what natless writes down of its host.
func RunDir() string { return runDir }

// record is what natless changed in a network namespace and how it was before.
// It is written before each change, so it may name changes that were never
// made; undoing looks whether they were.
type record struct {
	Boot     string       `json:"boot"` // boot id: cookies of namespaces start again with the kernel
	Device   string       `json:"device"`
	Was      *deviceState `json:"device_was,omitempty"`
	Settings []setting    `json:"sysctls,omitempty"`
	Opened   []opening    `json:"opened,omitempty"` // in firewalls of others
	Uplinks  []uplinkSeen `json:"uplinks,omitempty"`

	path   string
	damage error // why what is at the path says nothing; nil: it is good, or none is there
}

// deviceState is a device as natless found it.
type deviceState struct {
	Index       int    `json:"index"`
	MTU         int    `json:"mtu"`
	Up          bool   `json:"up"`
	AddrGenMode string `json:"addr_gen_mode"`
}

// readRecord is the record of a network namespace, of this boot. One that cannot
// be read is as none, and its damage says why.
func readRecord(key string) (*record, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading the boot id: %w", err)
	}
	fresh := &record{Boot: strings.TrimSpace(string(boot)), path: recordPath(key)}
	text, err := readOwn(fresh.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	old := &record{path: fresh.path}
	if err == nil {
		err = json.Unmarshal(text, old)
	}
	if err == nil && old.Boot == "" {
		err = errors.New("it says of no boot that it is of")
	}
	if err != nil {
		fresh.damage = err
		return fresh, nil
	}
	if old.Boot != fresh.Boot {
		return fresh, nil
	}
	return old, nil
}

// largestRecord is more than any record has, in bytes: a setting takes some
// 150, and a host has some thousand links at most.
const largestRecord = 16 << 20

// readOwn reads a regular file, and waits for nothing.
func readOwn(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() || info.Size() > largestRecord {
		return nil, errors.New("it is no file that natless makes")
	}
	return io.ReadAll(io.LimitReader(f, largestRecord))
}

// setAside gives what is in the place of a damaged record another name, and says
// so. What natless does bears its mark all the same: route protocol, table name,
// comments. What sysctls were before is known no more.
func (r *record) setAside(v *view) ([]string, error) {
	if r.damage == nil {
		return nil, nil
	}
	to := r.path + ".set-aside-" + time.Now().UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(r.path, to); err != nil {
		return nil, fmt.Errorf("the record of what natless changed is damaged (%w) and cannot be set aside: %w", r.damage, err)
	}
	line := fmt.Sprintf("the record of what natless changed here was damaged (%v): it is set aside as %s; what bears natless's marks is known without it", r.damage, to)
	r.damage = nil
	return append([]string{line}, v.unknown()...), nil
}

// unknown are the settings that have the value natless gives them, one line
// for each key.
func (v *view) unknown() (lines []string) {
	candidates := []struct{ family, key, value string }{
		{"ipv4", keyForwarding, yes}, {"ipv6", keyForceForwarding, yes}, {"ipv6", keyForwarding, yes},
		{"ipv6", keyAcceptRA, acceptRAForwarding}, {"ipv6", keyNDISCNotify, yes},
		{"ipv6", keyAcceptRA, no}, {"ipv6", keyAutoconf, no}, {"ipv6", keyAcceptRedirects, no}, {"ipv4", keyAcceptRedirects, no},
	}
	if all, _ := readSysctl(sysctlPath("ipv6", allLinks, keyForwarding)); all == yes && !hasForceForwarding() {
		lines = append(lines, "net.ipv6.conf.all.forwarding stays 1: whether natless set it is not known any more; set it back by hand where this host is no router")
	}
	for _, c := range candidates {
		var links []string
		for _, l := range v.sorted() {
			now, _ := readSysctl(sysctlPath(c.family, l.name, c.key))
			usual, _ := readSysctl(sysctlPath(c.family, newLinks, c.key))
			if now == c.value && usual != c.value && !l.loopback {
				links = append(links, l.name)
			}
		}
		if len(links) > 0 {
			lines = append(lines, fmt.Sprintf("net.%s.conf.LINK.%s stays %s on %s: whether natless set it is not known any more; set it back by hand where it should not be",
				c.family, c.key, c.value, strings.Join(links, ", ")))
		}
	}
	return lines
}

// save replaces the file in one step. It need not survive a power cut, which
// undoes the changes too.
func (r *record) save() error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("writing down what natless changes: %w", err)
	}
	next := r.path + unfinished
	if err := os.WriteFile(next, append(text, '\n'), 0o600); err != nil {
		os.Remove(next)
		return fmt.Errorf("writing down what natless changes: %w", err)
	}
	if err := os.Rename(next, r.path); err != nil {
		return fmt.Errorf("writing down what natless changes: %w", err)
	}
	return nil
}

// unfinished ends the name of a record while it is written.
const unfinished = ".new"

func (r *record) remove() error {
	os.Remove(r.path + unfinished)
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of what natless changed: %w", err)
	}
	return nil
}

// removeEmpty removes a record that nothing was written to yet.
func (r *record) removeEmpty() error {
	if r.Was == nil && len(r.Settings) == 0 && len(r.Opened) == 0 && len(r.Uplinks) == 0 {
		return r.remove()
	}
	return nil
}

// leave is what undoing ends with: what is to be kept is which links are
// uplinks.
func (r *record) leave(keep bool) error {
	if !keep || len(r.Uplinks) == 0 {
		return r.remove()
	}
	r.Was, r.Settings, r.Opened = nil, nil, nil
	return r.save()
}

func recordPath(key string) string { return filepath.Join(runDir, "host-"+key+".json") }
func lockPath(key string) string   { return filepath.Join(runDir, "host-"+key+".lock") }

// namespaceKey names the network namespace of the calling thread: by its
// cookie, which is never used twice, or before Linux 5.14 by its inode.
func namespaceKey() (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("identifying the network namespace: %w", err)
	}
	defer unix.Close(fd)
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
		return strconv.FormatUint(cookie, 10), nil
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return "", fmt.Errorf("identifying the network namespace: %w", err)
	}
	return "inode-" + strconv.FormatUint(st.Ino, 10), nil
}

// RunningError says that another natless is at work in this network namespace.
type RunningError struct {
	PID int // 0: unknown
}

func (e *RunningError) Error() string {
	if e.PID == 0 {
		return "another natless runs in this network namespace"
	}
	return fmt.Sprintf("another natless runs in this network namespace (process %d)", e.PID)
}

// lock keeps a second natless out of a network namespace.
type lock struct {
	key  string
	file *trust.File
}

func acquire() (*lock, error) {
	key, err := namespaceKey()
	if err != nil {
		return nil, err
	}
	for {
		if err := os.MkdirAll(runDir, 0o755); err != nil {
			return nil, fmt.Errorf("making a place for records: %w", err)
		}
		err := trust.Dir(runDir)
		var file *trust.File
		if err == nil {
			file, err = trust.Lock(lockPath(key), 0)
		}
		var held *trust.HeldError
		switch {
		case err == nil:
			return &lock{key, file}, nil
		case errors.Is(err, fs.ErrNotExist):
			continue // whoever released it took the folder along
		case errors.As(err, &held):
			return nil, &RunningError{PID: held.PID}
		}
		return nil, fmt.Errorf("locking the network namespace: %w", err)
	}
}

// release removes the lock and, when nothing else is in it, the folder.
func (l *lock) release() {
	l.file.Release()
	os.Remove(runDir)
}

// Running is the natless at work in this network namespace, or nil. It leaves no
// trace.
func Running() *RunningError {
	key, err := namespaceKey()
	if err != nil {
		return nil
	}
	if held := trust.Held(lockPath(key)); held != nil {
		return &RunningError{PID: held.PID}
	}
	return nil
}
