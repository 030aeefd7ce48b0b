package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Where the client finds the server.
const (
	direct     = "2001:db8:2::2"
	direct4    = "203.0.113.2"
	translated = "2001:db8:64::203.0.113.2"
)

// environment is what a contender's command may use beside DIR.
var environment = []string{
	"PREF64=2001:db8:64::/96",
	"POOL=198.51.100.0/24",
	"CLIENTS=2001:db8:1::/64",
	"OWN4=198.51.100.1",
	"OWN6=2001:db8:3::1",
}

// contender is one way from client to server.
type contender struct {
	name, target string
	command      string   // for sh, in the host's namespace; "": the kernel alone
	env          []string // beside environment
	needs        string   // a program
}

const tayga = `cat > $DIR/tayga.conf <<END
tun-device nat64
ipv4-addr $OWN4
ipv6-addr $OWN6
prefix $PREF64
dynamic-pool $POOL
data-dir $DIR
END
tayga --mktun -c $DIR/tayga.conf >&2 &&
ip link set nat64 up && ip route add $POOL dev nat64 && ip route add $PREF64 dev nat64 &&
exec tayga --nodetach -c $DIR/tayga.conf`

const nat44 = `nft add table ip nat && nft 'add chain ip nat post { type nat hook postrouting priority srcnat; }' &&
nft add rule ip nat post oifname server masquerade`

// An empty configuration file keeps the machine's own out.
const natless = `: > $DIR/empty.toml
exec "$NATLESS" run -c $DIR/empty.toml --device nl0 --pref64 $PREF64 --pool $POOL --clients $CLIENTS \
	--masquerade off --state-dir "" --socket $DIR/natless.sock`

// choose lists who competes and in what, and says on stderr who is missing.
func choose(s *settings) ([]contender, []measurement, error) {
	if os.Geteuid() != 0 {
		return nil, nil, errors.New("make network namespaces: not root: try sudo scripts/bench-peers")
	}
	for _, tool := range []string{"ip", "iperf3"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, nil, fmt.Errorf("find %s: not installed (packages iproute2, iperf3)", tool)
		}
	}
	binary, err := filepath.Abs(s.natless)
	if err != nil {
		return nil, nil, err
	}
	all := []contender{
		{name: "native", target: direct},
		{name: "nat44", target: direct4, command: nat44, needs: "nft"},
		{name: "tayga", target: translated, command: tayga, needs: "tayga"},
	}
	for _, v := range []struct{ name, flags string }{
		{"natless-1q", "--offload auto --queues 1"},
		{"natless-2q", "--offload auto --queues 2"},
		{"natless-off-1q", "--offload off --queues 1"},
		{"natless-off-2q", "--offload off --queues 2"},
	} {
		all = append(all, contender{name: v.name, target: translated, needs: binary,
			command: natless + " " + v.flags, env: []string{"NATLESS=" + binary}})
	}
	all = append(all, s.peers...)
	contenders, err := pick(all, s.Only, func(c contender) string { return c.name })
	if err != nil {
		return nil, nil, err
	}
	contenders = slices.DeleteFunc(contenders, func(c contender) bool { return missing(c.name, c.needs) })
	measures, err := pick(measurements, s.Measure, func(m measurement) string { return m.name })
	if err != nil {
		return nil, nil, err
	}
	measures = slices.DeleteFunc(measures, func(m measurement) bool { return missing(m.name, m.needs) })
	if len(contenders) == 0 || len(measures) == 0 {
		return nil, nil, errors.New("nothing left to measure")
	}
	return contenders, measures, nil
}

func missing(what, program string) bool {
	if program == "" {
		return false
	}
	if _, err := exec.LookPath(program); err == nil {
		return false
	}
	hint := ""
	if strings.HasPrefix(what, "natless") {
		hint = " (make build)"
	}
	fmt.Fprintf(os.Stderr, "%s is left out: %s is not there%s\n", what, program, hint)
	return true
}

// pick keeps the named ones; no names keep all.
func pick[T any](all []T, names []string, name func(T) string) ([]T, error) {
	if len(names) == 0 {
		return slices.Clone(all), nil
	}
	var known []string
	for _, v := range all {
		known = append(known, name(v))
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("%q is not known, expected of %s", n, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return !slices.Contains(names, name(v)) }), nil
}
