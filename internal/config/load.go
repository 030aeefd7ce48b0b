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

// maxFile is the size of the largest file that is read, in bytes. It is
// what some millions of maps take; beyond it somebody named a disk.
const maxFile = 256 << 20

// Load reads the file at path, laid over the defaults; with path "" it reads
// DefaultFile if there is one, and otherwise returns the defaults. What is
// wrong with the file is in one error, a line for each thing, joined with
// errors.Join; of very many things the first.
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
		return nil, Wrong(fmt.Errorf("reading the configuration: %w", err))
	}
	defer f.Close()
	data, err := readAll(f, path)
	if err != nil {
		return nil, Wrong(fmt.Errorf("reading the configuration%w", err))
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
	d = decoder{report: report{c: c, data: data}}
	c.given, d.mapLines = positions(data, false)
	return d, doc, nil
}

// syntaxError gives an error of the TOML library the shape of ours.
func syntaxError(file string, err error) error {
	why := strings.TrimPrefix(err.Error(), "toml: ")
	var de *toml.DecodeError
	if !errors.As(err, &de) {
		return Wrong(fmt.Errorf("%s: %s", file, why))
	}
	line, column := de.Position()
	return Wrong(fmt.Errorf("%s:%d: column %d: not TOML: %s", file, line, column, why))
}

// place is where a value was given: a line of the file, or a flag.
type place struct {
	line int
	flag string // as errors begin, "--flag"
}

// name is how errors about the value at path begin: "FILE:LINE: KEY" or the
// flag.
func (p place) name(file, path string) string {
	if p.flag != "" {
		return p.flag
	}
	return fmt.Sprintf("%s:%d: %s", file, p.line, bare(path))
}

// report collects what is wrong with a configuration.
type report struct {
	c        *Config
	data     []byte           // of the file
	inMaps   map[string]place // of what is inside maps; nil until it is asked for
	problems []problem
}

type problem struct {
	line int
	err  error
}

// add says that the value at path is wrong. The place is that of the value or,
// when it was not given, of the table that should have it.
func (r *report) add(path, format string, args ...any) {
	line, name := r.locate(path)
	r.problems = append(r.problems, problem{line, fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...))})
}

// given is the place of the value at path, if it was given. Of what is inside
// maps, of which there can be millions, places are found only when one of them
// is wrong.
func (r *report) given(path string) (at place, ok bool) {
	if at, ok = r.c.given[path]; ok || !strings.HasPrefix(path, "map[") {
		return at, ok
	}
	if r.inMaps == nil {
		r.inMaps, _ = positions(r.data, true)
	}
	at, ok = r.inMaps[path]
	return at, ok
}

func (r *report) locate(path string) (line int, name string) {
	c := r.c
	if at, ok := r.given(path); ok {
		return at.line, at.name(c.File, path)
	}
	if i := strings.LastIndexByte(path, '.'); i > 0 {
		if table, ok := r.given(path[:i]); ok {
			return table.line, table.name(c.File, path[:i]) + path[i:]
		}
	}
	var i int
	if _, err := fmt.Sscanf(path, "map[%d]", &i); err == nil && i < len(c.Maps) {
		return 0, c.Maps[i].Origin + ": " + bare(path)
	}
	if c.File != "" {
		return 0, c.File + ": " + bare(path)
	}
	return 0, bare(path)
}

// reported is how many problems an error tells of. One mistake of who wrote a
// million maps is a million problems.
const reported = 50

// err is everything in the order of the file, or nil.
func (r *report) err() error {
	slices.SortStableFunc(r.problems, func(a, b problem) int { return a.line - b.line })
	var errs []error
	for _, p := range r.problems[:min(reported, len(r.problems))] {
		errs = append(errs, p.err)
	}
	if more := len(r.problems) - reported; more > 0 {
		errs = append(errs, fmt.Errorf("and %d problems more", more))
	}
	return Wrong(errors.Join(errs...))
}

// decoder puts values, as the TOML library gives them, into a Config.
type decoder struct {
	report
	mapLines []int  // of the maps in the file
	flag     string // that the values come from; "": the file, and their places are known
}

// note notes where the value at path was given.
func (d *decoder) note(path string) {
	if d.flag != "" {
		d.c.given[path] = place{flag: d.flag}
	}
}

// table puts the keys of in into the struct out.
func (d *decoder) table(path string, in map[string]any, out reflect.Value) {
	for _, name := range slices.Sorted(maps.Keys(in)) { // errors of one place come in one order
		v, at := in[name], join(path, name)
		d.note(at)
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
	if list, ok := out.Addr().Interface().(*[]Map); ok {
		d.maps(path, in, *list, tag)
		return
	}
	for i, v := range in {
		at := element(path, i)
		d.note(at)
		// Tables know their line, and those with defaults start from them.
		if e, ok := out.Index(i).Addr().Interface().(*Pool); ok {
			*e = defaultPool()
			e.Origin = d.c.File + ":" + strconv.Itoa(d.c.given[at].line)
		}
		d.value(at, v, out.Index(i), tag)
	}
}

// maps is list for maps: there can be millions of them. Those with anything
// wrong go the long way, which says what it is.
func (d *decoder) maps(path string, in []any, out []Map, tag reflect.StructTag) {
	for i, v := range in {
		if !readMap(v, &out[i]) {
			out[i] = Map{}
			d.value(element(path, i), v, reflect.ValueOf(&out[i]).Elem(), tag)
		}
		out[i].Origin = d.c.File + ":" + strconv.Itoa(d.mapLines[i])
	}
}

// readMap reads the keys of a map, and reports whether all is well with each.
func readMap(v any, m *Map) bool {
	in, ok := v.(map[string]any)
	for key, v := range in {
		s, isString := v.(string)
		var err error
		switch key {
		case "ipv4":
			m.IPv4, err = parsePrefix(s, 4, false)
		case "ipv6":
			m.IPv6, err = parsePrefix(s, 6, false)
		case "label":
			m.Label = s
		default:
			return false
		}
		ok = ok && isString && err == nil
	}
	return ok
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
	for i := range t.NumField() {
		f := t.Field(i)
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
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return !isBare(r) }) {
		key = strconv.Quote(key) // as TOML has to; and no two keys have one path
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// isBare reports whether a letter of a key needs no quotes in TOML.
func isBare(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-'
}

// element is the path of an element of the list at path.
func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// bare is a path without the numbers of elements: their line tells which.
func bare(path string) string { return elementNumber.ReplaceAllString(path, "") }

var elementNumber = regexp.MustCompile(`\[\d+\]`)

// positions is the place of every table, key and element of a document that is
// known to be TOML, by its path; of what is inside maps only where asked for.
// The lines of the maps themselves are in a list.
func positions(data []byte, inMaps bool) (places map[string]place, maps []int) {
	w := walker{inMaps: inMaps, places: map[string]place{}, elements: map[string]int{}}
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
	return w.places, w.maps
}

type walker struct {
	p        unstable.Parser
	newlines []int // offsets
	inMaps   bool
	maps     []int // lines
	places   map[string]place
	elements map[string]int // [[tables]] so far, by path
}

func (w *walker) line(at unstable.Range) int {
	return 1 + sort.SearchInts(w.newlines, int(at.Offset))
}

// passes reports whether nobody asked for what is at a path.
func (w *walker) passes(path string) bool {
	return !w.inMaps && strings.HasPrefix(path, "map[")
}

// mark notes the line of a path at its first appearance.
func (w *walker) mark(path string, at unstable.Range) {
	if _, ok := w.places[path]; !ok && !w.passes(path) {
		w.places[path] = place{line: w.line(at)}
	}
}

// markElement is mark for an element of the list at a path.
func (w *walker) markElement(list string, i int, at unstable.Range) {
	if list == "map" && i == len(w.maps) {
		w.maps = append(w.maps, w.line(at))
	}
	w.mark(element(list, i), at)
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
			w.markElement(path, n-1, key.Raw)
			path = element(path, n-1)
		}
	}
	return path
}

func (w *walker) keyValue(table string, e *unstable.Node) {
	if w.passes(table) {
		return
	}
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
			w.markElement(path, i, at)
			w.value(element(path, i), at, it.Node())
		}
	}
}
