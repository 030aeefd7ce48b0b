package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/natless/natless/internal/printable"
)

// Imported is a configuration that was made of another translator's.
type Imported struct {
	Text string // a natless.toml, which Load accepts
	Left []Left // what could not be taken over, in the order of the other's file
}

// Left is what there is of another translator that could not be taken over.
type Left struct {
	Line      int    `json:"line"`
	Directive string `json:"directive"` // with its arguments, as they stand there
	Instead   string `json:"instead"`   // what to do here, in words
}

// item is something of the other's file, as it is said here.
type item struct {
	order   int    // among the items of the other's file, from 1; 0: it is of nothing there
	line    int    // of the other's file; several items may be in one
	what    string // the directive there
	table   string // [table] or, of a list, [[table]]; "": before all tables
	list    bool
	keys    [][2]string // and their values, as TOML
	comment string
}

// importing is an import under way.
type importing struct {
	from  string // whose configuration that is, and of which file
	items []item
	left  []Left
}

func (m *importing) leave(line int, what, instead string) {
	m.left = append(m.left, Left{line, what, instead})
}

// laterWins keeps the last of the items that set one thing, by its name.
func (m *importing) laterWins(named func(item) []string) {
	last := map[string]item{}
	for n := range m.items {
		i := &m.items[n]
		i.order = n + 1
		for _, name := range named(*i) {
			last[name] = *i
		}
	}
	m.drop(func(i item) string {
		for _, name := range named(i) {
			if later := last[name]; later.order > i.order {
				return fmt.Sprintf("given again in line %d, which wins", later.line)
			}
		}
		return ""
	})
}

// drop leaves the items that there is something against.
func (m *importing) drop(why func(item) string) (dropped bool) {
	m.items = slices.DeleteFunc(m.items, func(i item) bool {
		reason := why(i)
		if reason == "" {
			return false
		}
		dropped = true
		m.leave(i.line, i.what, reason)
		return true
	})
	return dropped
}

// finish leaves out what natless does not accept, until it accepts the rest.
func (m *importing) finish() (Imported, error) {
	for {
		text, owners := m.text()
		d, doc, err := newDecoder(Default(), "natless.toml", []byte(text))
		if err != nil {
			return Imported{}, err
		}
		d.table("", doc, reflect.ValueOf(d.c).Elem())
		d.c.check(&d.report)
		wrong := map[int]string{} // by the item's order
		for _, p := range d.report.problems {
			if owner := owners[p.line]; owner > 0 && wrong[owner] == "" {
				wrong[owner] = "natless does not accept it: " + said(p)
			}
		}
		if len(d.report.problems) == 0 {
			slices.SortStableFunc(m.left, func(a, b Left) int { return a.Line - b.Line })
			return Imported{text + m.leftText(), m.left}, nil
		}
		if !m.drop(func(i item) string { return wrong[i.order] }) {
			return Imported{}, fmt.Errorf("%s: nothing can be made of it that natless accepts: %w", m.from, d.report.err())
		}
	}
}

// said is a problem without its place, which is one of a text that nobody has seen.
func said(p problem) string {
	_, text, _ := strings.Cut(p.err.Error(), ": ")
	return text
}

// tables is the order of those that an import can have.
var tables = []string{"", "device", "network", "translation", "map", "pool", "sessions", "state"}

// text is the configuration, and for each of its lines the order of the item that it
// is of.
func (m *importing) text() (string, map[int]int) {
	var b strings.Builder
	owners, lines := map[int]int{}, 0
	line := func(owner int, format string, args ...any) {
		fmt.Fprintf(&b, format+"\n", args...)
		lines++
		owners[lines] = owner
	}
	line(0, "# Made by natless import of %s.", m.from)
	for _, table := range tables {
		open := false
		for _, i := range m.items {
			if i.table != table {
				continue
			}
			if table != "" && (i.list || !open) {
				line(0, "")
				header := map[bool]string{true: "[[%s]]", false: "[%s]"}[i.list]
				line(map[bool]int{true: i.order}[i.list], header, table)
				open = true
			}
			if i.comment != "" {
				line(0, "# %s", i.comment)
			}
			for _, k := range i.keys {
				line(i.order, "%s = %s", k[0], k[1])
			}
		}
	}
	return b.String(), owners
}

func (m *importing) leftText() string {
	if len(m.left) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n# Not taken over:\n")
	for _, l := range m.left {
		fmt.Fprintf(&b, "# line %d: %s: %s\n", l.Line, oneLine(l.Directive), oneLine(l.Instead))
	}
	return b.String()
}

// oneLine is text that stays inside of a comment.
func oneLine(s string) string { return printable.Text(strings.Join(strings.Fields(s), " ")) }
