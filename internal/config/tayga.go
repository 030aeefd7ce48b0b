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
	Instead   string `json:"instead"`   // what does it here, in words
}

// taygaDirectives are those of tayga.conf(5) besides map, and what stands for
// each here.
var taygaDirectives = map[string]string{
	"tun-device":      "device.name",
	"ipv4-addr":       "translation.ipv4",
	"ipv6-addr":       "translation.ipv6",
	"prefix":          "translation.pref64",
	"wkpf-strict":     "translation.private_ipv4",
	"dynamic-pool":    "a [[pool]] with it as ipv4, and those who may lease as clients",
	"data-dir":        "state.dir; leases are not carried over",
	"map-file":        "a second import, of that file",
	"strict-frag-hdr": "nothing: packets get a fragment header where RFC 7915 asks for one",
	"udp-cksum-mode":  `translation.udp_zero_checksum: "compute" or "drop"`,
	"log":             "nothing: natless stats counts every packet by what became of it",
	"offlink-mtu":     "translation.lowest_ipv6_mtu",
	"tun-up":          "nothing: natless sets its device up itself",
	"tun-ip":          "nothing: the device needs no address",
	"tun-route":       "nothing: natless makes the routes itself",
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
		instead = "unknown: see docs/configuration.md"
	}
	return Left{line, strings.Join(words, " "), instead}
}
