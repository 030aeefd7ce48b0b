package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine is where it was measured.
type machine struct {
	CPU     string `json:"cpu"`
	CPUs    int    `json:"cpus"`
	Kernel  string `json:"kernel"`
	Go      string `json:"go"`
	Natless string `json:"natless"`
	Date    string `json:"date"`
}

func thisMachine(natless string) machine {
	m := machine{CPU: "unknown CPU", CPUs: runtime.NumCPU(), Go: runtime.Version(), Date: time.Now().UTC().Format(time.DateTime)}
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpuinfo)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(kernel))
	version, _ := exec.Command(natless, "version").Output() // it may not be there
	m.Natless, _, _ = strings.Cut(string(version), "\n")
	return m
}

// shared is what else used the machine during a round.
type shared struct {
	Round      int     `json:"round"`
	LoadBefore float64 `json:"load_before"` // of the last minute
	LoadAfter  float64 `json:"load_after"`
	// Percent of all CPU time went to others, or to the hypervisor.
	Percent float64 `json:"others_cpu_percent"`
	// Others are those who used most of it, and are still there.
	Others []string `json:"others"`
}

// look is the CPU time used so far.
type look struct {
	load      float64
	total     time.Duration
	idle      time.Duration
	steal     time.Duration
	own       time.Duration // this program, what it ran, and the kernel's work for them
	processes map[process]time.Duration
}

type process struct {
	pid  int
	name string
}

// tick is the unit of /proc.
const tick = 10 * time.Millisecond

func lookAround() look {
	l := look{processes: map[process]time.Duration{}}
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	l.load, _ = strconv.ParseFloat(first, 64)
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	// cpu user nice system idle iowait irq softirq steal …
	if f := strings.Fields(line); len(f) > 8 {
		for _, v := range f[1:9] {
			l.total += ticks(v)
		}
		l.idle, l.steal = ticks(f[4])+ticks(f[5]), ticks(f[8])
	}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		b, _ := os.ReadFile(path)
		p, used, ok := parseStat(b)
		switch {
		case !ok: // it has ended
		case strings.HasPrefix(p.name, "ksoftirqd/"):
			l.own += used // our packets
		case p.pid != os.Getpid():
			l.processes[p] = used
		}
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if syscall.Getrusage(who, &r) == nil {
			l.own += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	return l
}

// parseStat reads /proc/PID/stat.
func parseStat(b []byte) (p process, used time.Duration, ok bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return p, 0, false
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 13 {
		return p, 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:open])))
	return process{pid, string(b[open+1 : end])}, ticks(f[11]) + ticks(f[12]), err == nil
}

func ticks(s string) time.Duration {
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Duration(n) * tick
}

// until says what others used between two looks: all together, and the five
// that used most of those that used a tenth of a second.
func (l look) until(now look, round int) shared {
	s := shared{Round: round, LoadBefore: l.load, LoadAfter: now.load}
	type use struct {
		name string
		time time.Duration
	}
	all := []use{{"the hypervisor", now.steal - l.steal}}
	for p, t := range now.processes {
		all = append(all, use{p.name, t - l.processes[p]})
	}
	var seen time.Duration
	for _, u := range all {
		seen += u.time
	}
	all = slices.DeleteFunc(all, func(u use) bool { return u.time < 100*time.Millisecond })
	slices.SortFunc(all, func(a, b use) int { return cmp.Or(cmp.Compare(b.time, a.time), cmp.Compare(a.name, b.name)) })
	for _, u := range all[:min(5, len(all))] {
		s.Others = append(s.Others, fmt.Sprintf("%s %.1f s", u.name, u.time.Seconds()))
	}
	total := now.total - l.total
	// What was neither idle nor our own includes those who came and went, but
	// the kernel only samples it: it may be less than what was seen.
	others := max(seen, total-(now.idle-l.idle)-(now.own-l.own))
	s.Percent = 100 * others.Seconds() / max(tick, total).Seconds()
	return s
}
