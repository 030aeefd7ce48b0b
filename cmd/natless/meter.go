package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// meter tells how counters grow from one reading to the next.
type meter struct {
	at   time.Time // of the last reading; zero: there was none
	seen map[string]reading
}

type reading struct {
	n    uint64
	rate float64   // since the reading before, in a second
	grew time.Time // when it was found another; zero: never
}

// read takes the counters as they are now. Those that begin anew, in a daemon that
// was started again, have no rate.
func (m *meter) read(list []counter, now time.Time) {
	next := make(map[string]reading, len(list))
	for _, c := range list {
		last := m.seen[c.name]
		r := reading{n: c.n, grew: last.grew}
		if took := now.Sub(m.at).Seconds(); !m.at.IsZero() && c.n >= last.n && took > 0 {
			r.rate = float64(c.n-last.n) / took
		}
		if !m.at.IsZero() && c.n != last.n {
			r.grew = now
		}
		next[c.name] = r
	}
	m.seen, m.at = next, now
}

func (m *meter) rate(name string) string { return fmt.Sprintf("%.0f/s", m.seen[name].rate) }

// changed is how long ago a counter changed, as far as that was seen.
func (m *meter) changed(name string) string {
	grew := m.seen[name].grew
	if grew.IsZero() {
		return "-"
	}
	return ago(m.at.Sub(grew))
}

func ago(d time.Duration) string { return fmt.Sprintf("%v ago", d.Round(time.Second)) }

// change is the line of a table that changed last.
type change struct {
	lines [][]string
	text  string
	at    time.Time
}

// always are the lines that change each time, by their first cell.
var always = []string{"uptime", "packets"}

// read compares a table with the one before, and tells what changed last.
func (c *change) read(lines [][]string, now time.Time) string {
	lines = slices.DeleteFunc(slices.Clone(lines), func(l []string) bool { return slices.Contains(always, l[0]) })
	for _, line := range c.lines {
		if !slices.ContainsFunc(lines, func(l []string) bool { return l[0] == line[0] }) {
			c.text, c.at = "no more "+strings.Join(line, " "), now
		}
	}
	for _, line := range lines {
		if c.lines != nil && !slices.ContainsFunc(c.lines, func(l []string) bool { return slices.Equal(l, line) }) {
			c.text, c.at = strings.Join(line, " "), now
		}
	}
	c.lines = lines
	if c.text == "" {
		return ""
	}
	return fmt.Sprintf("%s: %s", ago(now.Sub(c.at)), c.text)
}
