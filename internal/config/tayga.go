package config

import (
	"fmt"
	"io"
	"iter"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Tayga is what ReadTayga found in a configuration of TAYGA.
type Tayga struct {
	Maps []Map  // its static mappings
	Left []Left // everything else, in the order of the file
}

// taygaDirectives are those of tayga.conf(5) besides map, and what to do here
// instead.
var taygaDirectives = map[string]string{
	"tun-device":      "set device.name",
	"ipv4-addr":       "set translation.ipv4",
	"ipv6-addr":       "set translation.ipv6",
	"prefix":          "set translation.pref64",
	"wkpf-strict":     "set translation.private_ipv4",
	"dynamic-pool":    "make a [[pool]] with it as ipv4, and those who may lease as clients",
	"data-dir":        "set state.dir; leases are not carried over",
	"map-file":        "import that file too",
	"strict-frag-hdr": "not needed: packets get a fragment header where RFC 7915 asks for one",
	"udp-cksum-mode":  "set translation.udp_zero_checksum, to \"compute\" or \"drop\"",
	"log":             "not needed: natless stats counts all packets by what became of them",
	"offlink-mtu":     "set translation.lowest_ipv6_mtu",
	"workers":         "set device.queues",
	"tun-up":          "not needed: natless sets its device up",
	"tun-ip":          "not needed: the device has no address",
	"tun-route":       "not needed: natless makes the routes",
}

// taygaLines are the directives of a configuration of TAYGA, by line: # begins a
// comment (tayga.conf(5)).
func taygaLines(data []byte) iter.Seq2[int, []string] {
	return func(yield func(int, []string) bool) {
		number := 0
		for line := range strings.Lines(string(data)) {
			number++
			line, _, _ = strings.Cut(line, "#")
			if words := strings.Fields(line); len(words) > 0 && !yield(number, words) {
				return
			}
		}
	}
}

// ReadTayga reads a configuration of TAYGA, or a file that its map-file names,
// for its static mappings: lines "map IPV4[/LENGTH] IPV6[/LENGTH]". Of those that
// map one address twice the later wins. All that is wrong with them is in one error,
// as with ReadMaps.
func ReadTayga(in io.Reader, file string) (Tayga, error) {
	data, err := readAll(in, file)
	if err != nil {
		return Tayga{}, fmt.Errorf("reading the configuration of TAYGA%w", err)
	}
	var t Tayga
	l := lastMaps{}
	c := &Config{File: file, given: map[string]place{}}
	d := decoder{report: report{c: c}}
	for number, words := range taygaLines(data) {
		if words[0] != "map" {
			t.Left = append(t.Left, left(number, words))
			continue
		}
		if d.taygaMap(fmt.Sprintf("%s:%d", file, number), words[1:]) {
			l.lines = append(l.lines, number)
		}
	}
	c.Maps, l.left = l.keep(c.Maps)
	c.checkMaps(&d.report)
	t.Maps = c.Maps
	t.Left = append(t.Left, l.left...)
	slices.SortStableFunc(t.Left, func(a, b Left) int { return a.Line - b.Line })
	return t, d.report.err()
}

// lastMaps are maps of another's file, of which the later wins.
type lastMaps struct {
	lines []int // of the maps, one each
	left  []Left
}

// keep leaves those out that have a side which one after them has.
func (l lastMaps) keep(list []Map) (kept []Map, left []Left) {
	last := make(map[netip.Prefix]int, 2*len(list))
	for i, m := range list {
		last[m.IPv4], last[m.IPv6] = i, i
	}
	for i, m := range list {
		later := max(last[m.IPv4], last[m.IPv6])
		if later == i || !m.IPv4.IsValid() || !m.IPv6.IsValid() { // or it is wrong anyhow
			kept = append(kept, m)
			continue
		}
		left = append(left, Left{l.lines[i], fmt.Sprintf("map %s %s", Short(m.IPv4), Short(m.IPv6)),
			fmt.Sprintf("given again in line %d, which wins", l.lines[later])})
	}
	return kept, left
}

func (d *decoder) taygaMap(origin string, sides []string) (read bool) {
	path := element("map", len(d.c.Maps))
	d.flag = origin + ": map"
	d.note(path)
	if len(sides) != 2 {
		d.add(path, "expected map IPV4[/LENGTH] IPV6[/LENGTH]")
		return false
	}
	d.c.Maps = append(d.c.Maps, Map{Origin: origin})
	d.table(path, map[string]any{"ipv4": sides[0], "ipv6": sides[1]}, reflect.ValueOf(&d.c.Maps[len(d.c.Maps)-1]).Elem())
	return true
}

func left(line int, words []string) Left {
	instead, known := taygaDirectives[words[0]]
	if !known {
		instead = "unknown to natless: compare docs/configuration.md"
	}
	return Left{line, strings.Join(words, " "), instead}
}

// ImportTayga makes a configuration of one of TAYGA. Of a directive that is given
// twice the later wins, and so does the later of two maps of one address.
func ImportTayga(in io.Reader, file string) (Imported, error) {
	data, err := readAll(in, file)
	if err != nil {
		return Imported{}, fmt.Errorf("reading the configuration of TAYGA%w", err)
	}
	m := &importing{from: "TAYGA's " + oneLine(file)}
	for number, words := range taygaLines(data) {
		i, instead := taygaItem(words)
		if instead != "" {
			m.leave(number, strings.Join(words, " "), instead)
			continue
		}
		i.line, i.what = number, strings.Join(words, " ")
		m.items = append(m.items, i)
	}
	m.laterWins(func(i item) (names []string) {
		if i.table != "map" {
			return []string{strings.Fields(i.what)[0]}
		}
		for _, k := range i.keys {
			names = append(names, k[1])
		}
		return names
	})
	if !slices.ContainsFunc(m.items, func(i item) bool { return i.table == "pool" }) {
		m.items = append(m.items, item{keys: [][2]string{{"pool", "[]"}}, comment: "No dynamic-pool: only maps reach IPv4."})
	}
	if !slices.ContainsFunc(m.items, func(i item) bool { return i.keys[0][0] == "pref64" }) {
		m.items = append(m.items, item{table: "translation", keys: [][2]string{{"pref64", `""`}}, comment: "No prefix: explicit mappings only."})
	}
	return m.finish()
}

// taygaKeys are the directives that are a key here, with its value as it stands.
var taygaKeys = map[string][2]string{
	"tun-device": {"device", "name"},
	"ipv4-addr":  {"translation", "ipv4"},
	"ipv6-addr":  {"translation", "ipv6"},
	"prefix":     {"translation", "pref64"},
}

// taygaItem is a directive as it is said here, or what to do instead.
func taygaItem(words []string) (i item, instead string) {
	directive, args := words[0], words[1:]
	set := func(table, key, value string) (item, string) {
		return item{table: table, keys: [][2]string{{key, value}}}, ""
	}
	if directive == "map" {
		if len(args) != 2 {
			return i, "expected map IPV4[/LENGTH] IPV6[/LENGTH]"
		}
		return item{table: "map", list: true, keys: [][2]string{{"ipv4", taygaSide(args[0])}, {"ipv6", taygaSide(args[1])}}}, ""
	}
	key, plain := taygaKeys[directive]
	if !plain && !slices.Contains([]string{"offlink-mtu", "workers", "wkpf-strict", "udp-cksum-mode", "dynamic-pool"}, directive) {
		return i, left(0, words).Instead
	}
	if len(args) != 1 {
		return i, fmt.Sprintf("expected one argument, not %d", len(args))
	}
	switch arg := args[0]; directive {
	case "offlink-mtu":
		return number("translation", "lowest_ipv6_mtu", arg, 0)
	case "workers":
		return number("device", "queues", arg, 1)
	case "wkpf-strict":
		if slices.Contains([]string{"off", "false", "0", "no"}, strings.ToLower(arg)) {
			return set("translation", "private_ipv4", `"allow"`)
		}
		return set("translation", "private_ipv4", `"auto"`)
	case "udp-cksum-mode":
		mode := strings.ToLower(arg)
		for prefix, here := range map[string]string{"calc": "compute", "drop": "drop", "forw": "forward", "fwd": "forward"} {
			if strings.HasPrefix(mode, prefix) {
				return set("translation", "udp_zero_checksum", quote(here))
			}
		}
		return i, "unknown to natless: set translation.udp_zero_checksum"
	case "dynamic-pool":
		return item{
			table: "pool", list: true, keys: [][2]string{{"ipv4", quote(arg)}, {"idle", `"2h4m"`}},
			comment: `TAYGA lends to every source that it sees. Here clients = ["local"] may lease; name others: clients = ["local", "2001:db8::/32"]`,
		}, ""
	default:
		return set(key[0], key[1], quote(arg))
	}
}

// taygaSide is an address or prefix of a map, in one notation, so that two of one
// are known.
func taygaSide(s string) string {
	if p, err := parsePrefix(s, either, false); err == nil {
		return quote(Short(p))
	}
	return quote(s)
}

// number is a directive with a number, below 0 as good as another.
func number(table, key, arg string, negative int) (i item, instead string) {
	n, err := strconv.Atoi(arg)
	if err != nil {
		return i, "expected a number"
	}
	if n < 0 {
		n = negative
	}
	return item{table: table, keys: [][2]string{{key, strconv.Itoa(n)}}}, ""
}
