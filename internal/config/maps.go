package config

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// Explicit mappings apart from a configuration, as `natless map` takes and
// gives them.

// NewMap is the mapping that the arguments of a command name: an IPv4 and an
// IPv6 address or prefix, and a label. Each problem is an error that begins
// with "V4", "V6" or "--label"; they are joined with errors.Join.
func NewMap(v4, v6, label string) (Map, error) {
	c := &Config{Maps: make([]Map, 1), given: map[string]place{}}
	d := decoder{report: report{c: c}}
	for _, side := range []struct{ key, name, given string }{{"ipv4", "V4", v4}, {"ipv6", "V6", v6}, {"label", "--label", label}} {
		d.flag = side.name
		d.table("map[0]", map[string]any{side.key: side.given}, reflect.ValueOf(&c.Maps[0]).Elem())
	}
	c.checkMaps(&d.report)
	return c.Maps[0], d.report.err()
}

// ReadMaps reads what WriteMaps writes: a configuration of [[map]] tables and
// nothing else. All that is wrong is in one error, as with Load; file stands
// for the input in errors and in the maps' origins.
func ReadMaps(in io.Reader, file string) ([]Map, error) {
	data, err := readAll(in, file)
	if err != nil {
		return nil, fmt.Errorf("reading maps%w", err)
	}
	d, doc, err := newDecoder(&Config{}, file, data)
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(doc)) {
		if path := join("", key); key != "map" {
			d.add(path, "expected [[map]] tables and nothing else")
			delete(doc, key)
		}
	}
	d.table("", doc, reflect.ValueOf(d.c).Elem())
	d.c.checkMaps(&d.report)
	return d.c.Maps, d.report.err()
}

// WriteMaps writes maps as the tables of a configuration, in the order they
// come in.
func WriteMaps(out io.Writer, list []Map) error {
	w := bufio.NewWriter(out)
	for i, m := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "[[map]]\nipv4 = %q\nipv6 = %q\n", Short(m.IPv4), Short(m.IPv6))
		if m.Label != "" {
			fmt.Fprintf(w, "label = %s\n", quote(m.Label))
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing maps: %w", err)
	}
	return nil
}

// Short is a prefix as people write it: of one address, the address.
func Short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// quote writes a basic string of TOML: a string of JSON, but for DEL, which
// JSON lets stand.
func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string into memory
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}
