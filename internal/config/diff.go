package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// live are the keys, and the tables with all of their keys, that a running
// natless takes up when it reads its configuration again.
var live = []string{
	"map", "pool", "network.masquerade", "network.firewall", "network.uplinks", "network.client_links",
	"translation.rfc6791_ipv4", "translation.hairpin", "translation.private_ipv4",
	"state.history", "log.level", "ra", "dns64.upstreams", "dns64.exclude",
}

// NeedsRestart reports whether a key, such as "device.mtu" or "pool[0].idle",
// is one that a running natless cannot change.
func NeedsRestart(key string) bool {
	key = bare(key)
	table, _, _ := strings.Cut(key, ".")
	return !slices.Contains(live, key) && !slices.Contains(live, table)
}

// KeepOwn has c, which is to take the place of the running configuration, keep
// natless's own IPv4 address where neither gives one: it would else follow from
// pools and maps. It is an error when the address is not free any more.
func (c *Config) KeepOwn(running *Config) error {
	if c.Translation.IPv4.IsValid() || running.Translation.IPv4.IsValid() {
		return nil
	}
	own := running.OwnIPv4()
	if c.OwnIPv4() == own {
		return nil
	}
	c.own4 = own
	if err := c.Validate(); err != nil {
		return fmt.Errorf("natless's own IPv4 address, %v, cannot change while it runs: %v", c.own4, err)
	}
	return nil
}

// CheckReload tells what is different in the next configuration, in words and a
// line each, and refuses by name what of it cannot change while natless runs.
func (c *Config) CheckReload(next *Config) (changes []string, err error) {
	var errs []error
	for _, d := range c.diff(next) {
		same := d.key == "translation.ipv4" && c.OwnIPv4() == next.OwnIPv4() ||
			d.key == "translation.ipv6" && c.OwnIPv6() == next.OwnIPv6()
		if d.restart && !same {
			errs = append(errs, fmt.Errorf("needs a restart: %s", d))
		}
		changes = append(changes, d.String())
	}
	if next.SharesAddresses() && !c.SharesAddresses() {
		errs = append(errs, errors.New("needs a restart: pool.mode: port-range, where no pool had it: there is no room for sessions"))
	}
	return changes, errors.Join(errs...)
}

// difference is a key with another value, or a map or pool that is not in both.
type difference struct {
	key      string
	old, new string // "" for a map or pool that is not there
	restart  bool
}

func (d difference) String() string {
	switch {
	case d.old == "":
		return fmt.Sprintf("%s added: %s", d.key, d.new)
	case d.new == "":
		return fmt.Sprintf("%s removed: %s", d.key, d.old)
	}
	return fmt.Sprintf("%s: %s -> %s", d.key, d.old, d.new)
}

// diff compares key by key.
func (c *Config) diff(next *Config) []difference {
	var list []difference
	old, new := reflect.ValueOf(c).Elem(), reflect.ValueOf(next).Elem()
	for _, table := range reflect.VisibleFields(old.Type()) {
		if name := table.Tag.Get("toml"); isTable(table.Type) {
			list = append(list, diffTable(name, old.FieldByIndex(table.Index), new.FieldByIndex(table.Index))...)
		}
	}
	return slices.Concat(list, diffMaps(c.Maps, next.Maps), diffPools(c.Pools, next.Pools))
}

// diffTable compares the keys of two tables of one name.
func diffTable(name string, old, new reflect.Value) []difference {
	var list []difference
	for _, field := range reflect.VisibleFields(old.Type()) {
		name, before, after := join(name, field.Tag.Get("toml")), shown(old.FieldByIndex(field.Index)), shown(new.FieldByIndex(field.Index))
		if field.Tag.Get("toml") != "" && before != after {
			list = append(list, difference{name, before, after, NeedsRestart(name)})
		}
	}
	return list
}

// diffMaps tells maps apart by their IPv4 side: their numbers change with every
// one that is put in front.
func diffMaps(old, new []Map) []difference {
	same := func(m, n Map) bool { return m.IPv4 == n.IPv4 && m.IPv6 == n.IPv6 && m.Label == n.Label }
	for len(old) > 0 && len(new) > 0 && same(old[0], new[0]) { // of a million, most
		old, new = old[1:], new[1:]
	}
	for len(old) > 0 && len(new) > 0 && same(old[len(old)-1], new[len(new)-1]) {
		old, new = old[:len(old)-1], new[:len(new)-1]
	}
	var list []difference
	before := make(map[netip.Prefix]Map, len(old))
	for _, m := range old {
		before[m.IPv4] = m
	}
	for _, m := range new {
		was, ok := before[m.IPv4]
		delete(before, m.IPv4)
		switch {
		case !ok:
			list = append(list, difference{key: "map", new: words(m)})
		case !same(was, m):
			list = append(list, difference{key: "map", old: words(was), new: words(m)})
		}
	}
	for _, m := range old {
		if _, gone := before[m.IPv4]; gone {
			list = append(list, difference{key: "map", old: words(m)})
		}
	}
	return list
}

// diffPools tells pools apart by their addresses. Their order counts too.
func diffPools(old, new []Pool) []difference {
	find := func(pools []Pool, p netip.Prefix) int {
		return slices.IndexFunc(pools, func(q Pool) bool { return q.IPv4 == p })
	}
	var list []difference
	var before, after []int // the places in old, of pools that are in both
	for i, p := range old {
		if find(new, p.IPv4) < 0 {
			list = append(list, difference{key: "pool", old: p.IPv4.String()})
			continue
		}
		before = append(before, i)
	}
	for _, p := range new {
		i := find(old, p.IPv4)
		if i < 0 {
			list = append(list, difference{key: "pool", new: p.IPv4.String()})
			continue
		}
		after = append(after, i)
		for _, d := range diffTable("pool", reflect.ValueOf(old[i]), reflect.ValueOf(p)) {
			d.key = fmt.Sprintf("%s of %v", d.key, p.IPv4)
			list = append(list, d)
		}
	}
	if !slices.Equal(before, after) {
		list = append(list, difference{key: "pool", old: "one order", new: "another"})
	}
	return list
}

// words are the map with what it says, but for where.
func words(m Map) string {
	if m.Label == "" {
		return fmt.Sprintf("%v = %v", m.IPv4, m.IPv6)
	}
	return fmt.Sprintf("%v = %v %q", m.IPv4, m.IPv6, m.Label)
}

// shown is a value as messages show it, and check --diff.
func shown(v reflect.Value) string {
	text, _ := json.Marshal(plain(v)) // a tree of plain values
	return string(text)
}
