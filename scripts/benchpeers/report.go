package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// report is what --json writes.
type report struct {
	Machine  machine   `json:"machine"`
	Settings *settings `json:"settings"`
	Rounds   []shared  `json:"rounds"`
	Summary  []line    `json:"summary"`
	Raw      []result  `json:"raw"`

	contenders []contender
}

// result is one measurement of one contender in one round.
type result struct {
	Round       int     `json:"round"`
	Measurement string  `json:"measurement"`
	Contender   string  `json:"contender"`
	Figures     figures `json:"figures,omitempty"`
	Error       string  `json:"error,omitempty"`
}

// tell is a result in a line.
func (m measurement) tell(r result) string {
	if r.Error != "" {
		return "failed: " + r.Error
	}
	var parts []string
	for _, c := range m.columns {
		if v, ok := r.Figures[c.key]; ok {
			parts = append(parts, digits(v)+" "+c.head)
		}
	}
	return strings.Join(parts, ", ")
}

// line is one figure of a contender over all rounds.
type line struct {
	Measurement string             `json:"measurement"`
	Contender   string             `json:"contender"`
	Figure      string             `json:"figure"`
	Rounds      int                `json:"rounds"` // that gave it
	Median      float64            `json:"median"`
	Min         float64            `json:"min"`
	Max         float64            `json:"max"`
	Ratios      map[string]float64 `json:"ratios,omitempty"` // of the median to that of each baseline
}

func (r *report) failures() (n int) {
	for _, v := range r.Raw {
		if v.Error != "" {
			n++
		}
	}
	return n
}

// summarize fills Summary from Raw.
func (r *report) summarize() {
	r.derive()
	for _, m := range r.Settings.measurements {
		for _, c := range slices.Concat(m.columns, []column{residentIdle, residentLoad}) {
			first := len(r.Summary)
			for _, who := range r.contenders {
				if values := r.values(m.name, who.name, c.key); len(values) > 0 {
					r.Summary = append(r.Summary, line{
						Measurement: m.name, Contender: who.name, Figure: c.key, Rounds: len(values),
						Median: median(values), Min: slices.Min(values), Max: slices.Max(values),
					})
				}
			}
			if c.compared {
				compare(r.Summary[first:], r.Settings.Baselines)
			}
		}
	}
}

// derive adds the figures that relate two results of the same round.
func (r *report) derive() {
	for _, v := range r.Raw {
		if v.Error != "" {
			continue
		}
		switch v.Measurement {
		case "rtt":
			if native, ok := r.figure(v.Round, "rtt", "native", p50); ok && v.Contender != "native" {
				v.Figures[added.key] = v.Figures[p50.key] - native
			}
		case "udp1400-gro":
			without, ok := r.figure(v.Round, "udp1400", v.Contender, perCPU)
			if with := v.Figures[perCPU.key]; ok && with > 0 {
				v.Figures[groGain.key] = with / without
			}
		}
	}
}

func (r *report) figure(round int, measurement, contender string, c column) (float64, bool) {
	for _, v := range r.Raw {
		if v.Round == round && v.Measurement == measurement && v.Contender == contender {
			f, ok := v.Figures[c.key]
			return f, ok
		}
	}
	return 0, false
}

func (r *report) values(measurement, contender, key string) (all []float64) {
	for _, v := range r.Raw {
		if f, ok := v.Figures[key]; ok && v.Measurement == measurement && v.Contender == contender {
			all = append(all, f)
		}
	}
	return all
}

// compare fills in the ratios of lines of one figure.
func compare(lines []line, baselines []string) {
	for _, name := range baselines {
		i := slices.IndexFunc(lines, func(l line) bool { return l.Contender == name })
		if i < 0 || lines[i].Median == 0 {
			continue
		}
		for j := range lines {
			if lines[j].Ratios == nil {
				lines[j].Ratios = map[string]float64{}
			}
			lines[j].Ratios[name] = lines[j].Median / lines[i].Median
		}
	}
}

// median of no values is 0.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// quantile is the least of sorted values that at least the share q of them do
// not exceed; 0 without any.
func quantile[T cmp.Ordered](sorted []T, q float64) (v T) {
	if len(sorted) == 0 {
		return v
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func (r *report) write(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %d CPUs, Linux %s, %s; %s\n", r.Machine.CPU, r.Machine.CPUs, r.Machine.Kernel, r.Machine.Go,
		cmp.Or(r.Machine.Natless, "no natless"))
	fmt.Fprintf(w, "Rounds are interleaved; client, translator and server share the CPUs. Medians of %d rounds of %v,\n"+
		"least–most, ratios of medians. CPU and memory are of the translator's processes.\n", r.Settings.Rounds, r.Settings.takes())
	for _, s := range r.Rounds {
		fmt.Fprintf(w, "Round %d: load %.2f before, %.2f after; others used %.0f%% of the CPUs: %s\n", s.Round,
			s.LoadBefore, s.LoadAfter, s.Percent, cmp.Or(strings.Join(s.Others, ", "), "nobody for long"))
	}
	for _, m := range r.Settings.measurements {
		fmt.Fprintf(w, "\n%s: %s\n", m.name, m.title)
		r.table(m).print(w)
		r.printFailures(w, m.name)
	}
	r.printMemory(w)
}

func (r *report) printFailures(w io.Writer, measurement string) {
	for _, c := range r.contenders {
		n, why := 0, ""
		for _, v := range r.Raw {
			if v.Measurement == measurement && v.Contender == c.name && v.Error != "" {
				n, why = n+1, v.Error
			}
		}
		if n > 0 {
			fmt.Fprintf(w, "  %s failed in %d of %d rounds: %s\n", c.name, n, r.Settings.Rounds, why)
		}
	}
}

func (r *report) line(measurement, contender, figure string) (l line, ok bool) {
	i := slices.IndexFunc(r.Summary, func(l line) bool {
		return l.Measurement == measurement && l.Contender == contender && l.Figure == figure
	})
	if i < 0 {
		return l, false
	}
	return r.Summary[i], true
}

// table is cells by row and column; the first row is the head, the first column
// the contenders.
type table [][]string

func (r *report) table(m measurement) table {
	head := []string{""}
	for _, c := range m.columns {
		head = append(head, c.head)
		if c.compared {
			head = append(head, "least–most")
			for _, b := range r.Settings.Baselines {
				head = append(head, "×"+b)
			}
		}
	}
	t := table{head}
	for _, who := range r.contenders {
		row := []string{who.name}
		for _, c := range m.columns {
			l, ok := r.line(m.name, who.name, c.key)
			row = append(row, cell(l.Median, ok))
			if !c.compared {
				continue
			}
			spread := ""
			if ok {
				spread = digits(l.Min) + "–" + digits(l.Max)
			}
			row = append(row, spread)
			for _, b := range r.Settings.Baselines {
				ratio, ok := l.Ratios[b]
				row = append(row, cell(ratio, ok))
			}
		}
		t = append(t, row)
	}
	return t
}

// print leaves out columns without any figure.
func (t table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range t {
		for i, v := range row {
			if i == 0 || slices.ContainsFunc(t[1:], func(r []string) bool { return r[i] != "" }) {
				fmt.Fprint(tw, v, "\t")
			}
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// printMemory shows the resident sizes: before any traffic, and the largest
// under any of it.
func (r *report) printMemory(w io.Writer) {
	t := table{{"", residentIdle.head, "most at load MiB", "by"}}
	for _, c := range r.contenders {
		var idle []float64
		most, by := 0.0, ""
		for _, v := range r.Raw {
			if v.Contender != c.name || v.Error != "" {
				continue
			}
			if f, ok := v.Figures[residentIdle.key]; ok {
				idle = append(idle, f)
			}
			if f := v.Figures[residentLoad.key]; f > most {
				most, by = f, v.Measurement
			}
		}
		if len(idle) > 0 {
			t = append(t, []string{c.name, cell(median(idle), true), cell(most, most > 0), by})
		}
	}
	if len(t) > 1 {
		fmt.Fprintf(w, "\nresident size\n")
		t.print(w)
	}
}

func cell(v float64, known bool) string {
	if !known {
		return ""
	}
	return digits(v)
}

// digits are three of them, more where they are before the point.
func digits(v float64) string {
	decimals := 0
	switch a := math.Abs(v); {
	case a == 0:
	case a < 0.995:
		decimals = 3
	case a < 9.995:
		decimals = 2
	case a < 99.95:
		decimals = 1
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}
