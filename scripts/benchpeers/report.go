package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
)

// report is what --json writes.
type report struct {
	Machine  machineInfo `json:"machine"`
	Settings *settings   `json:"settings"`
	Summary  []line      `json:"summary"`
	Raw      []result    `json:"raw"`
	measures []measurement
}

type machineInfo struct {
	CPU    string   `json:"cpu"`
	CPUs   int      `json:"cpus"`
	Kernel string   `json:"kernel"`
	Load   string   `json:"load_at_start"`
	Others []string `json:"others"` // what else used the CPUs
	// OthersPercent counts also what came and went.
	OthersPercent float64 `json:"others_percent"`
}

// line is one contender in one measurement, over all rounds.
type line struct {
	Measure   string  `json:"measure"`
	Contender string  `json:"contender"`
	Rounds    int     `json:"rounds"` // that gave a figure
	Median    float64 `json:"median"`
	Min       float64 `json:"min"`
	Max       float64 `json:"max"`
	ToNative  float64 `json:"to_native,omitempty"` // ratio of medians
	ToTayga   float64 `json:"to_tayga,omitempty"`
	Loss      float64 `json:"loss_percent"` // median, as the following
	P99       float64 `json:"p99_us,omitempty"`
	CPUPacket float64 `json:"cpu_us_per_packet,omitempty"`
	CPUMiB    float64 `json:"cpu_us_per_mib,omitempty"`
	Error     string  `json:"error,omitempty"` // the last
}

func (r *report) summarize(contenders []contender, measures []measurement) {
	r.measures = measures
	for _, m := range measures {
		first := len(r.Summary)
		for _, c := range contenders {
			r.Summary = append(r.Summary, r.line(m.name, c.name))
		}
		lines := r.Summary[first:]
		native, tayga := medianOf(lines, "native"), medianOf(lines, "tayga")
		for i := range lines {
			if native > 0 {
				lines[i].ToNative = lines[i].Median / native
			}
			if tayga > 0 {
				lines[i].ToTayga = lines[i].Median / tayga
			}
		}
	}
}

func medianOf(lines []line, contender string) float64 {
	for _, l := range lines {
		if l.Contender == contender {
			return l.Median
		}
	}
	return 0
}

func (r *report) line(measure, contender string) line {
	l := line{Measure: measure, Contender: contender}
	var values, loss, p99, packet, mib []float64
	for _, v := range r.Raw {
		if v.Measure != measure || v.Contender != contender {
			continue
		}
		if v.Error != "" {
			l.Error = v.Error
			continue
		}
		values, loss, p99 = append(values, v.Value), append(loss, v.Loss), append(p99, v.P99)
		if v.CPUPacket != nil {
			packet = append(packet, *v.CPUPacket)
		}
		if v.CPUMiB != nil {
			mib = append(mib, *v.CPUMiB)
		}
	}
	if l.Rounds = len(values); l.Rounds == 0 {
		return l
	}
	l.Median, l.Min, l.Max = median(values), slices.Min(values), slices.Max(values)
	l.Loss, l.P99, l.CPUPacket, l.CPUMiB = median(loss), median(p99), median(packet), median(mib)
	return l
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (r *report) failures() (n int) {
	for _, v := range r.Raw {
		if v.Error != "" {
			n++
		}
	}
	return n
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %d CPUs, Linux %s; load at start %s\n", r.Machine.CPU, r.Machine.CPUs, r.Machine.Kernel, r.Machine.Load)
	fmt.Fprintf(w, "Client, translator and server shared the CPUs; others used %.0f%% of them: %s\n", r.Machine.OthersPercent,
		cmp.Or(strings.Join(r.Machine.Others, ", "), "none for long"))
	fmt.Fprintf(w, "%d rounds of %d s, interleaved; medians, ratios of medians; CPU of the translator's\nprocesses, for UDP per packet that left the host\n", r.Settings.Rounds, r.Settings.Seconds)
	for _, m := range r.measures {
		fmt.Fprintf(w, "\n%s\n", m.title)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(t, "\t%s\tmin\tmax\t×native\t×tayga\tloss %%\tp99 µs\tCPU µs/packet\tCPU µs/MiB\t\n", m.unit)
		for _, l := range r.Summary {
			if l.Measure != m.name {
				continue
			}
			if l.Rounds == 0 {
				fmt.Fprintf(t, "%s\tfailed\t\t\t\t\t\t\t\t\t\n", l.Contender)
				continue
			}
			loss := ""
			if strings.HasPrefix(m.name, "udp") {
				loss = fmt.Sprintf("%.1f", l.Loss)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", l.Contender, figure(l.Median), figure(l.Min), figure(l.Max),
				ratio(l.ToNative), ratio(l.ToTayga), loss, figure(l.P99), figure(l.CPUPacket), figure(l.CPUMiB))
		}
		t.Flush()
		for _, l := range r.Summary {
			if l.Measure == m.name && l.Error != "" {
				fmt.Fprintf(w, "  %s failed in %d of %d rounds: %s\n", l.Contender, r.Settings.Rounds-l.Rounds, r.Settings.Rounds, l.Error)
			}
		}
	}
}

// figure prints three digits, and nothing for what was not measured.
func figure(v float64) string {
	switch {
	case v == 0:
		return ""
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

func ratio(v float64) string {
	if v == 0 {
		return ""
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func machine() machineInfo {
	m := machineInfo{CPU: "unknown CPU", CPUs: runtime.NumCPU()}
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	for l := range bytes.Lines(cpuinfo) {
		if k, v, ok := strings.Cut(string(l), ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(kernel))
	load, _ := os.ReadFile("/proc/loadavg")
	m.Load = strings.Join(strings.Fields(string(load))[:1], "")
	return m
}

// cpuUse is CPU time used so far, in ticks of 10 ms.
type cpuUse struct {
	total, idle, own int64 // own: this program and what it ran
	each             map[process]int64
}

type process struct {
	pid  int
	name string
}

func cpuNow() cpuUse {
	u := cpuUse{each: make(map[process]int64)}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		b, _ := os.ReadFile(path)
		open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
		f := strings.Fields(string(b[end+1:]))
		if open < 0 || len(f) < 13 {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:open])))
		u.each[process{pid, string(b[open+1 : end])}] = ticks(f[11]) + ticks(f[12])
	}
	b, _ := os.ReadFile("/proc/stat")
	if f := strings.Fields(strings.SplitN(string(b), "\n", 2)[0]); len(f) > 8 {
		for _, v := range f[1:9] {
			u.total += ticks(v)
		}
		u.idle = ticks(f[4]) + ticks(f[5])
		u.each[process{0, "the hypervisor (steal)"}] = ticks(f[8])
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		syscall.Getrusage(who, &r)
		u.own += (r.Utime.Nano() + r.Stime.Nano()) / 1e7
	}
	return u
}

func ticks(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// othersSince names the five that used most since then and at least a second,
// among those that are still there, and says what share of all CPU time went to
// anything but this program and what it ran.
func (u cpuUse) othersSince() (top []string, percent float64) {
	now := cpuNow()
	type used struct {
		p     process
		ticks int64
	}
	var all []used
	for p, t := range now.each {
		if d := t - u.each[p]; d >= 100 && p.pid != os.Getpid() {
			all = append(all, used{p, d})
		}
	}
	slices.SortFunc(all, func(a, b used) int { return cmp.Or(cmp.Compare(b.ticks, a.ticks), cmp.Compare(a.p.pid, b.p.pid)) })
	for _, v := range all[:min(5, len(all))] {
		top = append(top, fmt.Sprintf("%s %d s", v.p.name, v.ticks/100))
	}
	total := now.total - u.total
	others := total - (now.idle - u.idle) - (now.own - u.own)
	return top, max(0, 100*float64(others)/float64(max(1, total)))
}
