// Package proc knows a process again. It is beside the way of a packet, for
// those who look after processes for longer than the kernel keeps a number from
// being used again: attachments and labs.
package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// goneError is the error for a process that is not there; it is fs.ErrNotExist.
type goneError string

func (e goneError) Error() string        { return string(e) }
func (e goneError) Is(target error) bool { return target == fs.ErrNotExist }

// Started is when a process started, in clock ticks since the host did, which
// tells it from a later one with the same number. One that is not there, or has
// ended and was not waited for yet, is the error fs.ErrNotExist.
func Started(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, goneError(fmt.Sprintf("there is no process %d", pid))
	}
	if err != nil {
		return 0, err
	}
	state, started, err := parse(string(stat))
	if err != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	if state == "Z" || state == "X" {
		return 0, goneError(fmt.Sprintf("process %d has ended", pid))
	}
	return started, nil
}

// parse reads the fields 3 and 22 of proc_pid_stat(5). The second is a name in
// parentheses, which may contain anything.
func parse(stat string) (state string, started uint64, err error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return "", 0, fmt.Errorf("expected more fields: %q", stat)
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0], started, err
}
