// Package config is what the operator asked for: the TOML file, the flags of
// `natless run` laid over it, their defaults, and what follows from them. It
// stands before the way of a packet: nothing of it is read while packets are
// under way, and it touches nothing on the host.
//
// Load reads a file, Flags.Apply lays the command line over it, Validate
// checks the whole, and the methods of Config tell what follows. Every error
// names the place (FILE:LINE and key, or the flag), what was given there and
// what was expected.
package config

import (
	"net/netip"
	"time"

	"github.com/natless/natless/mapping"
)

// DefaultFile is read by Load when no file is named and it exists.
const DefaultFile = "/etc/natless/natless.toml"

// Config is a whole configuration: one field for each key of the file, named
// by the field's toml tag. An enum tag lists the words a string may be; an ip
// tag gives the family of an address or a prefix, and whether it is optional
// (may be "") or may be of IPv4-mapped addresses.
type Config struct {
	Device      Device      `toml:"device"`
	Network     Network     `toml:"network"`
	Translation Translation `toml:"translation"`
	Maps        []Map       `toml:"map"`
	Pools       []Pool      `toml:"pool"`
	Sessions    Sessions    `toml:"sessions"`
	Control     Control     `toml:"control"`
	State       State       `toml:"state"`
	Log         Log         `toml:"log"`
	DNS64       DNS64       `toml:"dns64"`
	RA          RA          `toml:"ra"`

	// File is the file that was read; "" when there was none.
	File string
	// Flags are those that were laid over it, as --NAME=VALUE.
	Flags []string

	// own4 is natless's own IPv4 address where the running one keeps it, see
	// KeepOwn.
	own4 netip.Addr
	// given holds the place of every value that was given rather than left to
	// its default, by its path, such as "pool[0].ipv4".
	given map[string]place
}

// Device is the TUN device.
type Device struct {
	Name    string `toml:"name"`
	MTU     int    `toml:"mtu"`    // bytes; 0: chosen from the host's links
	Queues  int    `toml:"queues"` // 0: one per CPU, at most 8
	Offload string `toml:"offload" enum:"auto off"`
}

// Network is what natless may do to its host.
type Network struct {
	Manage     bool   `toml:"manage"`
	Masquerade string `toml:"masquerade" enum:"auto on off"`
	Firewall   string `toml:"firewall" enum:"name open"`
	OnExit     string `toml:"on_exit" enum:"remove keep"`

	Uplinks     []string `toml:"uplinks"`      // besides those that carry or carried a default route
	ClientLinks []string `toml:"client_links"` // whatever routes they carry
}

// Translation is how packets and addresses are translated.
type Translation struct {
	Pref64          netip.Prefix   `toml:"pref64" ip:"6 optional"` // zero: explicit mappings only
	IPv4            netip.Addr     `toml:"ipv4" ip:"4 optional"`   // zero: see Config.OwnIPv4
	IPv6            netip.Addr     `toml:"ipv6" ip:"6 optional"`   // zero: see Config.OwnIPv6
	RFC6791         []netip.Prefix `toml:"rfc6791_ipv4" ip:"4"`    // empty: natless's own IPv4 address
	LowestIPv6MTU   int            `toml:"lowest_ipv6_mtu"`        // bytes
	IPv6MTU         int            `toml:"ipv6_mtu"`               // bytes; 0: the device's
	IPv4MTU         int            `toml:"ipv4_mtu"`               // bytes; 0: the device's
	UDPZeroChecksum string         `toml:"udp_zero_checksum" enum:"compute drop"`
	TrafficClass    string         `toml:"traffic_class" enum:"copy zero"`
	Hairpin         string         `toml:"hairpin" enum:"intrinsic off"`
	PrivateIPv4     string         `toml:"private_ipv4" enum:"auto allow deny"` // see Config.AllowPrivate
}

// Map is one explicit mapping (RFC 7757). Prefixes are masked. It is the
// table's own, so that a million of them are in memory once.
type Map = mapping.Map

// Pool is a range of IPv4 addresses that are lent to IPv6 clients.
type Pool struct {
	IPv4           netip.Prefix  `toml:"ipv4" ip:"4"`
	Clients        []Client      `toml:"clients"`
	Mode           string        `toml:"mode" enum:"one-to-one port-range stateful"`
	Idle           time.Duration `toml:"idle"`
	MaxLife        time.Duration `toml:"max_life"` // 0: none
	Quarantine     time.Duration `toml:"quarantine"`
	PortsPerClient int           `toml:"ports_per_client"`
	SessionPorts   int           `toml:"session_ports"`
	FirstPort      int           `toml:"first_port"`
	LastPort       int           `toml:"last_port"`

	Origin string // FILE:LINE, the flag, or "default"
}

// Sessions bounds the flows that take memory: those of clients that share an
// IPv4 address, outside the stateless part of their ports.
type Sessions struct {
	Max          int `toml:"max"`
	MaxPerClient int `toml:"max_per_client"`
}

// Client is one entry of a pool's clients: the word "local", or a prefix.
type Client struct {
	Local bool
	IPv6  netip.Prefix
}

// Control is the socket of the running daemon.
type Control struct {
	Socket    string `toml:"socket"`
	Group     string `toml:"group"`      // as good as root on the network; "": root only
	ReadGroup string `toml:"read_group"` // may read; "": nobody else
}

// State is what outlives the daemon.
type State struct {
	Dir     string        `toml:"dir"` // "": in memory
	History time.Duration `toml:"history"`
}

// Log is what the daemon says while it runs.
type Log struct {
	Level  string `toml:"level" enum:"debug info warn error"`
	Format string `toml:"format" enum:"auto text json"`
}

// DNS64 is the name server for IPv6-only clients.
type DNS64 struct {
	Listen    []netip.AddrPort `toml:"listen"`    // none: off
	Upstreams []netip.AddrPort `toml:"upstreams"` // none: the host's own resolvers
	Exclude   []netip.Prefix   `toml:"exclude" ip:"6 mapped"`
}

// RA is router advertisements with PREF64 (RFC 8781).
type RA struct {
	Interfaces []string      `toml:"interfaces"`
	Lifetime   time.Duration `toml:"lifetime"`
}

// Default is the configuration of a `natless run` with no file and no flags.
func Default() *Config {
	return &Config{
		Device:  Device{Name: "natless0", Offload: "auto"},
		Network: Network{Manage: true, Masquerade: "auto", Firewall: "name", OnExit: "remove"},
		Translation: Translation{
			Pref64:          wellKnown,
			LowestIPv6MTU:   1280,
			UDPZeroChecksum: "compute",
			TrafficClass:    "copy",
			Hairpin:         "intrinsic",
			PrivateIPv4:     "auto",
		},
		Pools:    []Pool{defaultPool()},
		Sessions: Sessions{Max: 1_000_000, MaxPerClient: 4096},
		Control:  Control{Socket: "/run/natless/natless.sock"},
		State:    State{Dir: "/var/lib/natless", History: 30 * day},
		Log:      Log{Level: "info", Format: "auto"},
		DNS64:    DNS64{Exclude: []netip.Prefix{netip.MustParsePrefix("::ffff:0:0/96")}},
		RA:       RA{Lifetime: 10 * time.Minute},
	}
}

// defaultPool is also what the keys that a [[pool]] leaves out stand at.
func defaultPool() Pool {
	return Pool{
		IPv4:           netip.MustParsePrefix("169.254.64.0/20"),
		Clients:        []Client{{Local: true}},
		Mode:           "one-to-one",
		Idle:           time.Hour,
		Quarantine:     5 * time.Minute,
		PortsPerClient: 1024,
		SessionPorts:   128,
		FirstPort:      1024,
		LastPort:       65535,
		Origin:         "default",
	}
}
