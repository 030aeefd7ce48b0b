package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A configuration of Jool's is JSON ("atomic configuration" in its documentation),
// of one instance: global has the settings, eamt the explicit mappings.

// node is a value of a JSON document, and the line it is in.
type node struct {
	line  int
	value any // nil, bool, string, json.Number, []node or []member
}

// member is one of an object, in the order of the document.
type member struct {
	key string
	node
}

// readJSON reads a document whole, with the lines of its values.
func readJSON(data []byte) (node, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	line := func() int { return 1 + bytes.Count(data[:dec.InputOffset()], []byte("\n")) }
	root, err := readNode(dec, line, 0)
	if err != nil {
		return node{}, fmt.Errorf("line %d: not JSON: %w", line(), err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return node{}, fmt.Errorf("line %d: not JSON: expected nothing after it", line())
	}
	return root, nil
}

// deepest is how deep a document may be: one of Jool's has four levels.
const deepest = 32

func readNode(dec *json.Decoder, line func() int, depth int) (node, error) {
	token, err := dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	n := node{line: line(), value: token}
	switch {
	case err != nil:
		return n, err
	case depth > deepest:
		return n, errors.New("it is too deep")
	case token == json.Delim('['):
		list := []node{}
		for dec.More() {
			e, err := readNode(dec, line, depth+1)
			if err != nil {
				return n, err
			}
			list = append(list, e)
		}
		n.value = list
	case token == json.Delim('{'):
		object := []member{}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return n, err
			}
			e, err := readNode(dec, line, depth+1)
			if err != nil {
				return n, err
			}
			object = append(object, member{key.(string), e}) // or it would be an error
		}
		n.value = object
	default:
		return n, nil
	}
	_, err = dec.Token() // the end of it
	return n, err
}

// String is the value as messages show it.
func (n node) String() string {
	switch v := n.value.(type) {
	case []node:
		return fmt.Sprintf("(a list of %d)", len(v))
	case []member:
		return "(an object)"
	case string:
		return v
	}
	text, _ := json.Marshal(n.value)
	return string(text)
}

// joolInstead are the keys that are not taken over, and what to do here.
var joolInstead = map[string]string{
	"instance":                    "not needed: one natless serves one network namespace",
	"framework":                   "not needed: natless has a device of its own",
	"manually-enabled":            "not needed: natless translates while it runs",
	"pool4":                       "make a [[pool]] with its addresses as ipv4 and mode = \"port-range\": each client has ports of its own",
	"bib":                         "this version has no static entries of ports: make a [[map]] with an IPv4 address of its own",
	"denylist4":                   "no such list: what is in no map and no pool is translated by pref64 alone",
	"blacklist4":                  "no such list: what is in no map and no pool is translated by pref64 alone",
	"pool6791":                    "set translation.rfc6791_ipv4",
	"override-tos":                "no such key: set translation.traffic_class to \"copy\" or \"zero\"",
	"tos":                         "no such key: set translation.traffic_class to \"copy\" or \"zero\"",
	"mtu-plateaus":                "not needed: the plateaus of RFC 1191 are used",
	"randomize-rfc6791-addresses": "not needed: they are taken by random choice",
	"logging-debug":               "not needed: natless stats counts all packets by what became of them",
	"logging-bib":                 "not needed: natless lease ls --at tells who had which ports",
	"logging-session":             "not needed: natless lease ls --at tells who had which ports",
	"trace":                       "not needed: natless trace tells what becomes of a packet",
}

// ImportJool makes a configuration of one of Jool's. Of two mappings of one address
// the later wins.
func ImportJool(in io.Reader, file string) (Imported, error) {
	m, err := readJool(in, file)
	if err != nil {
		return Imported{}, err
	}
	has := func(key string) bool {
		return slices.ContainsFunc(m.items, func(i item) bool { return i.keys[0][0] == key })
	}
	m.items = append(m.items, item{keys: [][2]string{{"pool", "[]"}}, comment: "Explicit mappings and pref64 alone: nobody is lent an address."})
	if !has("pref64") {
		m.items = append(m.items, item{table: "translation", keys: [][2]string{{"pref64", `""`}}, comment: "No pool6: explicit mappings only."})
	}
	m.items = append(m.items, item{
		table: "translation", keys: [][2]string{{"ipv4", `"192.0.0.8"`}},
		comment: "Jool has no address of its own. Set one to be seen in traceroutes; this is the dummy of RFC 7600 4.8.",
	})
	if !has("udp_zero_checksum") {
		m.items = append(m.items, item{table: "translation", keys: [][2]string{{"udp_zero_checksum", `"drop"`}}, comment: "Jool's default; natless's is \"compute\"."})
	}
	return m.finish()
}

// readJool reads a configuration of Jool's.
func readJool(in io.Reader, file string) (*importing, error) {
	data, err := readAll(in, file)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of Jool%w", err)
	}
	m := &importing{from: "Jool's " + oneLine(file)}
	root, err := readJSON(data)
	top, ok := root.value.([]member)
	if err == nil && !ok {
		err = errors.New("expected an object, as jool file handle takes it")
	}
	if err != nil {
		return nil, Wrong(fmt.Errorf("%s: %w", file, err))
	}
	for _, part := range top {
		switch v := part.value.(type) {
		case []member:
			for _, key := range v {
				m.joolKey(part.key, key)
			}
		case []node:
			m.joolList(part, v)
		default:
			m.joolKey("", part)
		}
	}
	m.laterWins(func(i item) (names []string) {
		for _, k := range i.keys {
			if i.table == "map" {
				names = append(names, k[1])
			} else {
				names = append(names, k[0])
			}
		}
		return names
	})
	return m, nil
}

// joolList takes a list over: of the mappings each.
func (m *importing) joolList(part member, list []node) {
	if part.key != "eamt" {
		m.joolKey("", part)
		return
	}
	for _, e := range list {
		i := item{line: e.line, table: "map", list: true, what: "eamt"}
		sides := map[string]string{}
		entry, _ := e.value.([]member)
		for _, s := range entry {
			sides[s.key] = s.String()
			i.line = max(i.line, s.line)
		}
		v4, v6 := sides["ipv4 prefix"], sides["ipv6 prefix"]
		i.what = fmt.Sprintf("eamt %s %s", v4, v6)
		i.keys = [][2]string{{"ipv4", taygaSide(v4)}, {"ipv6", taygaSide(v6)}}
		m.items = append(m.items, i)
	}
}

// joolKey takes a key over.
func (m *importing) joolKey(part string, key member) {
	what := strings.TrimPrefix(part+"."+key.key, ".") + " " + key.String()
	set := func(name, value string) {
		m.items = append(m.items, item{line: key.line, what: what, table: "translation", keys: [][2]string{{name, value}}})
	}
	on, isBool := key.value.(bool)
	switch {
	case key.key == "comment" || part == "comment":
	case key.key == "pool6" && key.value == nil:
		set("pref64", `""`)
	case key.key == "pool6":
		set("pref64", quote(key.String()))
	case key.key == "lowest-ipv6-mtu":
		set("lowest_ipv6_mtu", tomlNumber(key.node))
	case key.key == "zeroize-traffic-class" && isBool:
		set("traffic_class", map[bool]string{true: `"zero"`, false: `"copy"`}[on])
	case key.key == "amend-udp-checksum-zero" && isBool:
		set("udp_zero_checksum", map[bool]string{true: `"compute"`, false: `"drop"`}[on])
	case key.key == "rfc6791v4-prefix" && key.value == nil:
	case key.key == "rfc6791v4-prefix":
		set("rfc6791_ipv4", "["+quote(key.String())+"]")
	case key.key == "eam-hairpin-mode":
		m.joolHairpin(what, key, set)
	default:
		instead, known := joolInstead[key.key]
		if !known {
			instead = "no such key here: compare docs/configuration.md"
		}
		m.leave(key.line, what, instead)
	}
}

// joolHairpin are off, simple and intrinsic, in older files by number.
func (m *importing) joolHairpin(what string, key member, set func(name, value string)) {
	switch key.String() {
	case "off", "0":
		set("hairpin", `"off"`)
	case "intrinsic", "2":
		set("hairpin", `"intrinsic"`)
	default:
		m.leave(key.line, what, "clients reach one another as with \"intrinsic\": set translation.hairpin for \"off\"")
	}
}

// tomlNumber is a number; anything else is a string, which is refused by what was
// expected.
func tomlNumber(n node) string {
	if number, ok := n.value.(json.Number); ok && !strings.ContainsAny(number.String(), ".eE") {
		return number.String()
	}
	return quote(n.String())
}

// ReadJool reads the explicit mappings of a configuration of Jool's, or of what
// `jool_siit eamt display --csv` prints: an IPv4 and an IPv6 prefix a line. Of those
// that map one address twice the later wins. All that is wrong with them is in one
// error, as with ReadMaps.
func ReadJool(in io.Reader, file string) ([]Map, []Left, error) {
	data, err := readAll(in, file)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the mappings of Jool%w", err)
	}
	m := &importing{}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		if m, err = readJool(bytes.NewReader(data), file); err != nil {
			return nil, nil, err
		}
	} else {
		m.joolCSV(string(data))
	}
	c := &Config{File: file, given: map[string]place{}}
	d := decoder{report: report{c: c}}
	l := lastMaps{left: m.left}
	for _, i := range m.items {
		if i.table != "map" {
			l.left = append(l.left, Left{i.line, i.what, "set translation." + i.keys[0][0]})
			continue
		}
		sides := []string{unquoted(i.keys[0][1]), unquoted(i.keys[1][1])}
		if d.taygaMap(fmt.Sprintf("%s:%d", file, i.line), sides) {
			l.lines = append(l.lines, i.line)
		}
	}
	kept, repeated := l.keep(c.Maps)
	c.Maps, l.left = kept, append(l.left, repeated...)
	c.checkMaps(&d.report)
	slices.SortStableFunc(l.left, func(a, b Left) int { return a.Line - b.Line })
	return c.Maps, l.left, d.report.err()
}

// joolCSV takes the lines of a list with commas; its head has no prefixes.
func (m *importing) joolCSV(text string) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		a, b, ok := strings.Cut(strings.TrimSpace(line), ",")
		if !ok || number == 1 && !strings.ContainsAny(a, ":.") {
			continue
		}
		if strings.Contains(a, ":") {
			a, b = b, a
		}
		m.items = append(m.items, item{line: number, table: "map", list: true, keys: [][2]string{{"ipv4", quote(strings.TrimSpace(a))}, {"ipv6", quote(strings.TrimSpace(b))}}})
	}
}

func unquoted(s string) string {
	var text string
	_ = json.Unmarshal([]byte(s), &text) // quote made it
	return text
}
