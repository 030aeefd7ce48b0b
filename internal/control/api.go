// Package control is how the other commands ask the running daemon: HTTP and
// JSON on a Unix socket. It stands beside the way of a packet and reads what
// the daemon tells of itself; it changes nothing.
//
//	GET /v1/status      a Status
//	GET /v1/stats       a Stats
//	GET /v1/map         the mapping table, one JSON object a line
//	GET /v1/map/{addr}  what becomes of an address of either family, and why
//	GET /v1/lease       what is lent from pools, one JSON object a line
//	GET /v1/config      the configuration in force
//	POST /v1/trace      what would become of the packet in the body, step by step
//
// Anything else, and what went wrong, is answered with {"error": "..."}.
package control

import (
	"iter"
	"net/netip"

	"github.com/natless/natless/mapping"
)

// Source is the daemon as the server asks it, from several goroutines. What it
// returns is encoded by encoding/json. Reading a list may take as long as its
// reader likes: the iterators hold no lock while they yield.
type Source interface {
	Status() Status
	Stats() Stats
	Maps() iter.Seq[any]
	Explain(netip.Addr) any
	Leases() iter.Seq[any]
	Config() any
	Trace(packet []byte) any
}

// Each gives the elements of a slice as a Source's lists do.
func Each[T any](s []T) iter.Seq[any] {
	return func(yield func(any) bool) {
		for _, v := range s {
			if !yield(v) {
				return
			}
		}
	}
}

// Row is one row of the mapping table: pref64, or an explicit mapping.
type Row struct {
	Rule mapping.Rule `json:"rule"`
	mapping.MapInfo
}

// Status is what the daemon is and has.
type Status struct {
	Version  string             `json:"version"`
	Uptime   int64              `json:"uptime_seconds"`
	Device   string             `json:"device"`
	Offloads string             `json:"offloads"` // those in force, in words
	Queues   int                `json:"queues"`
	MTU      int                `json:"mtu"`    // bytes
	Pref64   netip.Prefix       `json:"pref64"` // "" for explicit mappings only
	OwnIPv4  netip.Addr         `json:"own_ipv4"`
	OwnIPv6  netip.Addr         `json:"own_ipv6"`
	Pools    []mapping.PoolInfo `json:"pools"`
	Revision uint64             `json:"revision"` // of the mapping table
	Refused  []string           `json:"refused"`  // what natless does not translate, in words
	Warnings []string           `json:"warnings"`
	Degraded bool               `json:"degraded"` // something that was asked for does not work
}

// Stats is what the daemon has counted since it started.
type Stats struct {
	Verdicts         map[string]uint64 `json:"verdicts"` // packets, by the name of their verdict
	IPv6In           Traffic           `json:"ipv6_in"`  // read from the device
	IPv4In           Traffic           `json:"ipv4_in"`
	IPv6Out          Traffic           `json:"ipv6_out"` // written to it
	IPv4Out          Traffic           `json:"ipv4_out"`
	ErrorsSent       uint64            `json:"errors_sent"`       // ICMP errors that natless originated
	ErrorsSuppressed uint64            `json:"errors_suppressed"` // and those that the rate limit kept back
	WriteErrors      uint64            `json:"write_errors"`
	DeviceDrops      uint64            `json:"device_drops"` // packets that found the device's queue full, by the kernel's count
}

// Traffic counts packets of one family. A super-packet is one packet.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}
