package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxFile is the size of the largest file that is read, in bytes. A million
// maps with labels fit; beyond it somebody named a disk.
const maxFile = 128 << 20

// Load reads the file at path, laid over the defaults; with path "" it reads
// DefaultFile if there is one, and otherwise returns the defaults. All that is
// wrong with the file is in one error, a line for each thing, joined with
// errors.Join.
func Load(path string) (*Config, error) {
	if path != "" {
		return loadFile(path)
	}
	c, err := loadFile(DefaultFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	return c, err
}

func loadFile(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := readAll(f, path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration%w", err)
	}
	return parse(path, data)
}

// readAll reads all of a file. Its error follows what was attempted.
func readAll(in io.Reader, file string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf(": %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf(" %s: it is larger than %d MiB", file, maxFile>>20)
	}
	return data, nil
}

// parse is Load with the bytes of the file.
func parse(file string, data []byte) (*Config, error) {
	d, doc, err := newDecoder(Default(), file, data)
	if err != nil {
		return nil, err
	}
	c := d.c
	d.table("", doc, reflect.ValueOf(c).Elem())
	c.check(&d.report)
	if err := d.report.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// newDecoder reads a file as TOML. What it holds is to be laid over c.
func newDecoder(c *Config, file string, data []byte) (d decoder, doc map[string]any, err error) {
	if err := toml.Unmarshal(data, &doc); err != nil {
		return d, nil, syntaxError(file, err)
	}
	c.File = file
	c.given = map[string]place{}
	lines := positions(data)
	return decoder{report: report{c: c}, place: func(path string) place {
		line := lines[path]
		return place{line, fmt.Sprintf("%s:%d: %s", file, line, bare(path))}
	}}, doc, nil
}

// syntaxError gives an error of the TOML library the shape of ours.
func syntaxError(file string, err error) error {
	why := strings.TrimPrefix(err.Error(), "toml: ")
	var de *toml.DecodeError
	if !errors.As(err, &de) {
		return fmt.Errorf("%s: %s", file, why)
	}
	line, column := de.Position()
	return fmt.Errorf("%s:%d: column %d: not TOML: %s", file, line, column, why)
}

// place is where a value was given: a line of the file and the key there, or
// a flag.
type place struct {
	line int    // 0 for a flag
	name string // as errors begin: "FILE:LINE: KEY", or "--flag"
}

// report collects what is wrong with a configuration.
type report struct {
	c        *Config
	problems []problem
}

type problem struct {
	line int
	err  error
}

// add says that the value at path is wrong. The place is that of the value or,
// when it was not given, of the table that should have it.
func (r *report) add(path, format string, args ...any) {
	at, ok := r.c.given[path]
	if !ok {
		at = place{name: bare(path)}
		if i := strings.LastIndexByte(path, '.'); i > 0 {
			if table, ok := r.c.given[path[:i]]; ok {
				at = place{table.line, table.name + path[i:]}
			}
		}
		if at.line == 0 && r.c.File != "" {
			at.name = r.c.File + ": " + at.name
		}
	}
	r.problems = append(r.problems, problem{at.line, fmt.Errorf("%s: %w", at.name, fmt.Errorf(format, args...))})
}

// err is everything in the order of the file, or nil.
func (r *report) err() error {
	slices.SortStableFunc(r.problems, func(a, b problem) int { return a.line - b.line })
	errs := make([]error, len(r.problems))
	for i, p := range r.problems {
		errs[i] = p.err
	}
	return errors.Join(errs...)
}

// decoder puts values, as the TOML library gives them, into a Config.
type decoder struct {
	report
	place func(path string) place
}

// table puts the keys of in into the struct out.
func (d *decoder) table(path string, in map[string]any, out reflect.Value) {
	for _, name := range slices.Sorted(maps.Keys(in)) { // errors of one place come in one order
		v, at := in[name], join(path, name)
		d.c.given[at] = d.place(at)
		field, ok := fieldByKey(out.Type(), name)
		if !ok {
			d.add(at, "unknown key: %s", suggest(path, name, out.Type()))
			continue
		}
		d.value(at, v, out.FieldByIndex(field.Index), field.Tag)
	}
}

// value puts v into out, a field with the tag or an element of its list.
func (d *decoder) value(path string, v any, out reflect.Value, tag reflect.StructTag) {
	switch {
	case isTable(out.Type()):
		in, ok := v.(map[string]any)
		if !ok {
			d.add(path, "%s: expected a table, [%s]", given(v), bare(path))
			return
		}
		d.table(path, in, out)
	case out.Kind() == reflect.Slice:
		in, ok := v.([]any)
		if !ok {
			d.add(path, "%s: expected %s", given(v), listOf(path, out.Type()))
			return
		}
		d.list(path, in, out, tag)
	default:
		if err := setValue(out.Addr().Interface(), v, tag); err != nil {
			d.add(path, "%w", err)
		}
	}
}

func listOf(path string, t reflect.Type) string {
	if isTable(t.Elem()) {
		return fmt.Sprintf("a list of tables, [[%s]]", bare(path))
	}
	return "a list, in brackets"
}

func (d *decoder) list(path string, in []any, out reflect.Value, tag reflect.StructTag) {
	out.Set(reflect.MakeSlice(out.Type(), len(in), len(in)))
	for i, v := range in {
		at := element(path, i)
		d.c.given[at] = d.place(at)
		// Tables know their line, and those with defaults start from them.
		switch e := out.Index(i).Addr().Interface().(type) {
		case *Pool:
			*e = defaultPool()
			e.Origin = fmt.Sprintf("%s:%d", d.c.File, d.c.given[at].line)
		case *Map:
			e.Origin = fmt.Sprintf("%s:%d", d.c.File, d.c.given[at].line)
		}
		d.value(at, v, out.Index(i), tag)
	}
}

// isTable reports whether a type stands for a table: a struct with keys.
func isTable(t reflect.Type) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	for i := range t.NumField() {
		if _, ok := t.Field(i).Tag.Lookup("toml"); ok {
			return true
		}
	}
	return false
}

// fieldByKey finds the field of the struct t that stands for a key.
func fieldByKey(t reflect.Type, key string) (reflect.StructField, bool) {
	for _, f := range reflect.VisibleFields(t) {
		if name, ok := f.Tag.Lookup("toml"); ok && name == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// keysOf are the keys of the table t.
func keysOf(t reflect.Type) []string {
	var keys []string
	for _, f := range reflect.VisibleFields(t) {
		if name, ok := f.Tag.Lookup("toml"); ok {
			keys = append(keys, name)
		}
	}
	return keys
}

// suggest says what a key that the table t does not have may have meant: the
// nearest of its keys, the same key of another table, or any of its keys.
func suggest(path, name string, t reflect.Type) string {
	best, nearest := "", 1+len(name)/3
	for _, key := range keysOf(t) {
		if n := distance(name, key); n <= nearest {
			best, nearest = key, n-1
		}
	}
	if best != "" {
		return "did you mean " + join(bare(path), best) + "?"
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		table := f.Type
		if table.Kind() == reflect.Slice {
			table = table.Elem()
		}
		if key := f.Tag.Get("toml"); key != "" && isTable(table) && slices.Contains(keysOf(table), name) {
			return "did you mean " + key + "." + name + "?"
		}
	}
	return "expected one of " + strings.Join(keysOf(t), ", ")
}

// distance is how many letters to put in, take out or change to get from a to
// b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// join is the path of a key of the table at path.
func join(path, key string) string {
	if key == "" || strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
		key = strconv.Quote(key) // as TOML has to; and no two keys have one path
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// element is the path of an element of the list at path.
func element(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// bare is a path without the numbers of elements: their line tells which.
func bare(path string) string { return elementNumber.ReplaceAllString(path, "") }

var elementNumber = regexp.MustCompile(`\[\d+\]`)

// positions is the line of every table, key and element of a document that is
// known to be TOML, by its path.
func positions(data []byte) map[string]int {
	w := walker{lines: map[string]int{}, elements: map[string]int{}}
	for i, b := range data {
		if b == '\n' {
			w.newlines = append(w.newlines, i)
		}
	}
	w.p.Reset(bytes.Clone(data))
	table := ""
	for w.p.NextExpression() {
		e := w.p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = w.header(e)
		case unstable.KeyValue:
			w.keyValue(table, e)
		}
	}
	return w.lines
}

type walker struct {
	p        unstable.Parser
	newlines []int          // offsets
	lines    map[string]int // by path
	elements map[string]int // [[tables]] so far, by path
}

// mark notes the line of a path at its first appearance.
func (w *walker) mark(path string, at unstable.Range) {
	if _, ok := w.lines[path]; !ok {
		w.lines[path] = 1 + sort.SearchInts(w.newlines, int(at.Offset))
	}
}

// header is the path that a [table] or [[table]] opens.
func (w *walker) header(e *unstable.Node) string {
	path := ""
	for it := e.Key(); it.Next(); {
		key := it.Node()
		path = join(path, string(key.Data))
		w.mark(path, key.Raw)
		if e.Kind == unstable.ArrayTable && it.IsLast() {
			w.elements[path]++
		}
		if n := w.elements[path]; n > 0 {
			path = element(path, n-1)
			w.mark(path, key.Raw)
		}
	}
	return path
}

func (w *walker) keyValue(table string, e *unstable.Node) {
	path := table
	var at unstable.Range
	for it := e.Key(); it.Next(); {
		at = it.Node().Raw
		path = join(path, string(it.Node().Data))
		w.mark(path, at)
	}
	w.value(path, at, e.Value())
}

// value marks what is inside a value; at stands in for values that the parser
// gives no place.
func (w *walker) value(path string, at unstable.Range, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			w.keyValue(path, it.Node())
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			if raw := it.Node().Raw; raw.Length > 0 {
				at = raw
			}
			w.mark(element(path, i), at)
			w.value(element(path, i), at, it.Node())
		}
	}
}
