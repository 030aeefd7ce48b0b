package config

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// SocketVariable is the variable of the environment that names the socket.
const SocketVariable = "NATLESS_SOCKET"

// Flags are the flags of `natless run` that mirror the configuration.
type Flags struct {
	set *pflag.FlagSet

	device, pref64, poolMode, masquerade, firewall, onExit, offload, socket, stateDir string
	maps, pools, clients, dns64                                                       []string
	queues                                                                            int
}

// Register adds the flags to a command.
func (f *Flags) Register(of *pflag.FlagSet) {
	set := pflag.NewFlagSet("", pflag.ContinueOnError) // of these alone: a command has more
	d := Default()
	set.StringVar(&f.device, "device", d.Device.Name, "`NAME` of the TUN device")
	set.StringVar(&f.pref64, "pref64", d.Translation.Pref64.String(), "`PREFIX` that stands for IPv4 (RFC 6052); \"\" for explicit mappings only")
	set.StringArrayVar(&f.maps, "map", nil, "explicit mapping `V4=V6`, of addresses or prefixes (repeatable)")
	set.StringArrayVar(&f.pools, "pool", nil, "IPv4 `PREFIX` to lend addresses from, in place of the configured pools (repeatable; default "+d.Pools[0].IPv4.String()+")")
	set.StringVar(&f.poolMode, "pool-mode", d.Pools[0].Mode, "how pools are divided: `MODE` one-to-one or port-range")
	set.StringSliceVar(&f.clients, "clients", []string{"local"}, "IPv6 `PREFIX` that may lease from the pools, or \"local\" (repeatable)")
	set.StringVar(&f.masquerade, "masquerade", d.Network.Masquerade, "masquerade pool addresses that leave the host, `WHEN`: auto, on or off")
	set.StringVar(&f.firewall, "firewall", d.Network.Firewall, "`WHAT` becomes of firewalls of others (Docker, ufw, firewalld, iptables) that drop natless's packets: name, or open while natless runs")
	set.Lookup("firewall").NoOptDefVal = "open"
	set.StringVar(&f.onExit, "on-exit", d.Network.OnExit, "`WHAT` a clean stop leaves on the host: remove (nothing) or keep (for a restart that interrupts no flow)")
	set.StringVar(&f.offload, "offload", d.Device.Offload, "GSO and checksum offloads of the device, `WHEN`: auto or off")
	set.IntVar(&f.queues, "queues", d.Device.Queues, "`NUMBER` of queues of the device; 0: one per CPU, at most 8")
	set.StringSliceVar(&f.dns64, "dns64", nil, "answer DNS queries of clients at this `ADDRESS` of the host, with AAAA records made of A records (repeatable)")
	f.RegisterSocket(set)
	set.StringVar(&f.stateDir, "state-dir", d.State.Dir, "`DIR` of what outlives the daemon; \"\": leases are in memory")
	f.set = set
	of.AddFlagSet(set)
}

// RegisterSocket adds --socket alone, for the commands that ask the daemon.
func (f *Flags) RegisterSocket(set *pflag.FlagSet) {
	f.set = set
	set.StringVar(&f.socket, "socket", "", "socket of the daemon, by its `PATH` (default $"+SocketVariable+", then "+Default().Control.Socket+")")
}

// FlagWords are the words that a flag may be given, by its name.
func FlagWords() map[string][]string {
	words := map[string][]string{"clients": {"local"}}
	for flag, key := range map[string]struct {
		table reflect.Type
		field string
	}{
		"offload":    {reflect.TypeFor[Device](), "Offload"},
		"masquerade": {reflect.TypeFor[Network](), "Masquerade"},
		"firewall":   {reflect.TypeFor[Network](), "Firewall"},
		"on-exit":    {reflect.TypeFor[Network](), "OnExit"},
		"pool-mode":  {reflect.TypeFor[Pool](), "Mode"},
	} {
		field, _ := key.table.FieldByName(key.field)
		words[flag] = slices.DeleteFunc(strings.Fields(field.Tag.Get("enum")), func(w string) bool {
			return w == "stateful" // see checkNotYet
		})
	}
	return words
}

// Socket is where the daemon is asked: --socket, NATLESS_SOCKET, or the
// default.
func (f *Flags) Socket() string {
	return cmp.Or(f.socket, os.Getenv(SocketVariable), Default().Control.Socket)
}

// Apply lays the flags that were given over the configuration and checks the
// whole. --pool takes the place of every pool, --pool-mode and --clients go for
// all pools, and --map adds to the maps. All errors are in one, joined with
// errors.Join; those of a flag begin with it.
func (f *Flags) Apply(c *Config) error {
	if c.given == nil {
		c.given = map[string]place{}
	}
	d := decoder{report: report{c: c}}
	put := func(name, table string, out any, key string, v any) {
		if d.flag = "--" + name; f.set.Changed(name) {
			d.table(table, map[string]any{key: v}, reflect.ValueOf(out).Elem())
		}
	}
	if socket := os.Getenv(SocketVariable); socket != "" {
		d.flag = "$" + SocketVariable
		d.table("control", map[string]any{"socket": socket}, reflect.ValueOf(&c.Control).Elem())
	}
	put("device", "device", &c.Device, "name", f.device)
	put("queues", "device", &c.Device, "queues", int64(f.queues))
	put("offload", "device", &c.Device, "offload", f.offload)
	put("masquerade", "network", &c.Network, "masquerade", f.masquerade)
	put("firewall", "network", &c.Network, "firewall", f.firewall)
	put("on-exit", "network", &c.Network, "on_exit", f.onExit)
	put("pref64", "translation", &c.Translation, "pref64", f.pref64)
	put("socket", "control", &c.Control, "socket", f.socket)
	put("state-dir", "state", &c.State, "dir", f.stateDir)
	put("dns64", "dns64", &c.DNS64, "listen", anys(f.dns64))
	for _, m := range f.maps {
		path := element("map", len(c.Maps))
		d.flag = "--map " + m
		d.note(path)
		v4, v6, ok := strings.Cut(m, "=")
		if !ok {
			d.add(path, "expected V4=V6, such as 192.0.2.1=2001:db8::1")
			continue
		}
		c.Maps = append(c.Maps, Map{Origin: "--map"})
		d.table(path, map[string]any{"ipv4": v4, "ipv6": v6}, reflect.ValueOf(&c.Maps[len(c.Maps)-1]).Elem())
	}
	if len(f.pools) > 0 {
		c.Pools = nil
		maps.DeleteFunc(c.given, func(path string, _ place) bool { return strings.HasPrefix(path, "pool[") })
	}
	for i, p := range f.pools {
		c.Pools = append(c.Pools, defaultPool())
		c.Pools[i].Origin = "--pool"
		put("pool", element("pool", i), &c.Pools[i], "ipv4", p)
	}
	clients := anys(f.clients)
	for i := range c.Pools {
		put("pool-mode", element("pool", i), &c.Pools[i], "mode", f.poolMode)
		put("clients", element("pool", i), &c.Pools[i], "clients", clients)
	}
	c.Flags = f.given()
	c.check(&d.report)
	return d.err()
}

// given are the flags, and what the environment gives in the place of one, as they
// could be given again.
func (f *Flags) given() (list []string) {
	if socket := os.Getenv(SocketVariable); socket != "" && !f.set.Changed("socket") {
		list = append(list, "--socket="+socket)
	}
	f.set.VisitAll(func(flag *pflag.Flag) {
		values := []string{flag.Value.String()}
		if v, ok := flag.Value.(pflag.SliceValue); ok {
			values = v.GetSlice()
		}
		for _, value := range values {
			if flag.Changed {
				list = append(list, "--"+flag.Name+"="+value)
			}
		}
	})
	return list
}

// Again gives the flags that another natless was given, but for those that this one
// was given itself.
func (f *Flags) Again(flags []string) error {
	mine := map[string]bool{}
	f.set.VisitAll(func(flag *pflag.Flag) { mine[flag.Name] = flag.Changed })
	for _, flag := range flags {
		name, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if mine[name] {
			continue
		}
		if err := f.set.Set(name, value); err != nil {
			return fmt.Errorf("taking over the flag %s of the running natless: %w", flag, err)
		}
	}
	return nil
}

// anys is a list as the file would have it.
func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
