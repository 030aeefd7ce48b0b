package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Tayga is what ReadTayga found in a configuration of TAYGA.
type Tayga struct {
	Maps []Map  // its static mappings
	Left []Left // everything else, in the order of the file
}

// Left is a directive that is no mapping.
type Left struct {
	Line      int    `json:"line"`
	Directive string `json:"directive"` // with its arguments, as they stand there
	Instead   string `json:"instead"`   // what to do here, in words
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
	"udp-cksum-mode":  "set translation.udp_zero_checksum, to \"compute\", \"drop\" or \"forward\"",
	"log":             "not needed: natless stats counts all packets by what became of them",
	"offlink-mtu":     "set translation.lowest_ipv6_mtu",
	"tun-up":          "not needed: natless sets its device up",
	"tun-ip":          "not needed: the device has no address",
	"tun-route":       "not needed: natless makes the routes",
}

// ReadTayga reads a configuration of TAYGA, or a file that its map-file names,
// for its static mappings: lines "map IPV4[/LENGTH] IPV6[/LENGTH]", where # begins
// a comment (tayga.conf(5)). All that is wrong with them is in one error, as
// with ReadMaps.
func ReadTayga(in io.Reader, file string) (Tayga, error) {
	data, err := readAll(in, file)
	if err != nil {
		return Tayga{}, fmt.Errorf("reading the configuration of TAYGA%w", err)
	}
	var t Tayga
	c := &Config{File: file, given: map[string]place{}}
	d := decoder{report: report{c: c}}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "map":
			d.taygaMap(fmt.Sprintf("%s:%d", file, number), words[1:])
		default:
			t.Left = append(t.Left, left(number, words))
		}
	}
	c.checkMaps(&d.report)
	t.Maps = c.Maps
	return t, d.report.err()
}

func (d *decoder) taygaMap(origin string, sides []string) {
	path := element("map", len(d.c.Maps))
	d.flag = origin + ": map"
	d.note(path)
	if len(sides) != 2 {
		d.add(path, "expected map IPV4[/LENGTH] IPV6[/LENGTH]")
		return
	}
	d.c.Maps = append(d.c.Maps, Map{Origin: origin})
	d.table(path, map[string]any{"ipv4": sides[0], "ipv6": sides[1]}, reflect.ValueOf(&d.c.Maps[len(d.c.Maps)-1]).Elem())
}

func left(line int, words []string) Left {
	instead, known := taygaDirectives[words[0]]
	if !known {
		instead = "unknown to natless: compare docs/configuration.md"
	}
	return Left{line, strings.Join(words, " "), instead}
}
