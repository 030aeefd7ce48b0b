package main

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/natless/natless/internal/lab"
)

// Where the client finds the server.
const (
	direct6    = "2001:db8:2::2"
	direct4    = "203.0.113.2"
	translated = "2001:db8:64::203.0.113.2"
)

// What a translator may use, by its environment.
const (
	pref64  = "2001:db8:64::/96"
	pool    = "198.51.100.0/24"
	clients = "2001:db8:1::/48"
	own4    = "198.51.100.1"
	own6    = "2001:db8:3::1"
)

// contender is one way from client to server.
type contender struct {
	name, target string
	command      string                // for sh, in the host; "": the kernel alone
	env          []string              // beside what every command has
	prepare      func(*lab.Node) error // the host; nil: nothing to do
	needs        string                // a program
}

const taygaCommand = `cat > $DIR/tayga.conf <<END
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

// An empty configuration file keeps the machine's own out.
const natlessCommand = `exec "$NATLESS" run -c /dev/null --device nl0 --pref64 $PREF64 --pool $POOL --clients $CLIENTS \
	--masquerade off --state-dir "" --socket $DIR/natless.sock --queues $QUEUES --offload $OFFLOAD`

func natless(name, binary, queues, offload string) contender {
	return contender{name: name, target: translated, command: natlessCommand, needs: binary,
		env: []string{"NATLESS=" + binary, "QUEUES=" + queues, "OFFLOAD=" + offload}}
}

// chooseContenders lists who competes, and says to progress who is missing.
func chooseContenders(s *settings, progress io.Writer) ([]contender, error) {
	binary, err := filepath.Abs(s.natless)
	if err != nil {
		return nil, fmt.Errorf("find natless: %w", err)
	}
	all := append([]contender{
		{name: "native", target: direct6},
		{name: "nat44", target: direct4, prepare: masquerade},
		natless("natless1", binary, "1", "auto"),
		natless("natless2", binary, "2", "auto"),
		natless("natless4", binary, "4", "auto"),
		natless("natless1-off", binary, "1", "off"),
		natless("natless2-off", binary, "2", "off"),
		{name: "tayga", target: translated, command: taygaCommand, needs: "tayga"},
	}, s.peers...)
	name := func(c contender) string { return c.name }
	for i, c := range all {
		if slices.ContainsFunc(all[:i], func(o contender) bool { return o.name == c.name }) {
			return nil, fmt.Errorf("two contenders are called %q", c.name)
		}
	}
	if _, err := pick("contender", all, s.Baselines, name); err != nil {
		return nil, err
	}
	chosen, err := pick("contender", all, s.contenders, name)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(chosen, func(c contender) bool { return c.missing(progress) }), nil
}

func (c contender) missing(progress io.Writer) bool {
	if c.needs == "" {
		return false
	}
	_, err := exec.LookPath(c.needs)
	if err == nil {
		return false
	}
	hint := ""
	if strings.HasPrefix(c.name, "natless") {
		hint = " (make build)"
	}
	fmt.Fprintf(progress, "%s is left out: %v%s\n", c.name, err, hint)
	return true
}

// masquerade makes the host a NAT44: what leaves for the server bears the
// host's address.
func masquerade(host *lab.Node) error {
	return host.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
		chain := conn.AddChain(&nftables.Chain{
			Name: "post", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("server\x00")},
			&expr.Masq{},
		}})
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("masquerade: %w", err)
		}
		return nil
	})
}
