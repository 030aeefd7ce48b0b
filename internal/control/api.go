// Package control is how the other commands ask the running daemon, and change
// its mappings: HTTP and JSON on a Unix socket. It stands beside the way of a
// packet: no worker waits for anything here. docs/api.md is the whole of it:
//
//	GET    /v1/status          a Status
//	GET    /v1/stats           a Stats
//	GET    /v1/config          the configuration in force
//	GET    /v1/map             the mapping table, one JSON object a line
//	GET    /v1/map/{addr}      what becomes of an address of either family, and why
//	POST   /v1/map             adds a mapping
//	DELETE /v1/map/{prefix}    removes one that was added at runtime
//	POST   /v1/batch           several of these at once, or none of them
//	GET    /v1/lease           what is lent from pools, or was at a time, one JSON object a line
//	POST   /v1/lease           makes sure that a client has a lease
//	DELETE /v1/lease/{addr}    ends a lease
//	GET    /v1/session         the flows that take memory, of a client or of all, one JSON object a line
//	GET    /v1/attachment      the namespaces that are attached, one JSON object a line
//	POST   /v1/attachment      records one, and pins its lease
//	DELETE /v1/attachment/{id} forgets one, and ends its lease
//	GET    /v1/watch           every change after a revision, one JSON object a line
//	POST   /v1/reload          reads the configuration again
//	GET    /v1/dns             what DNS64 answers, and why
//	POST   /v1/trace           what would become of the packet in the body, step by step
//
// Anything else, and what went wrong, is answered with {"error": "..."}.
package control

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/netip"
	"time"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/confine"
	"github.com/natless/natless/internal/dns64"
	"github.com/natless/natless/internal/hostnet"
	"github.com/natless/natless/mapping"
)

// Source is the daemon as the server asks it, from several goroutines. What it
// returns as any is encoded by encoding/json. Reading a list may take as long
// as its reader likes: the iterators hold nothing, no lock and no transaction,
// while they yield.
//
// A change is in force when its method returns, and with an error nothing has
// changed. Errors wrap one of mapping's Err... where one fits. by says who
// asks, such as "uid 0 (root), pid 123".
type Source interface {
	Status() Status
	Stats() Stats
	Config() any
	Explain(netip.Addr) any
	Trace(packet []byte) any
	// DNS is what DNS64 answers to a question, and why.
	DNS(ctx context.Context, name, qtype string) (any, error)

	// Maps and Leases are of one revision, which they tell.
	Maps() (revision uint64, rows iter.Seq[any])
	Leases() (revision uint64, rows iter.Seq[any])
	// LeasesAt yields each PastLease of a time by IPv4 address, until yield returns false. Its
	// error is of the time before the first row, or breaks the list off.
	LeasesAt(at time.Time, yield func(any) bool) error

	// Sessions are those of a client, or of all for the zero Addr.
	Sessions(client netip.Addr) iter.Seq[Session]

	// Change does all of the changes, or none.
	Change(changes []mapping.Change, by string) (revision uint64, err error)
	// Release ends the lease of an address of either side, and returns it.
	Release(a netip.Addr, by string) (mapping.Lease, error)
	// Lend makes sure that a client has a lease. It returns when that is durable,
	// or, after some time, with an error.
	Lend(client netip.Addr, label, by string) (mapping.Lease, error)

	// Attachments are those that are recorded, the oldest first.
	Attachments() iter.Seq[any]
	// Attach records one, in the place of one with its ID, and returns it as it is
	// recorded.
	Attach(a mapping.Attachment, by string) (mapping.Attachment, error)
	// Detach forgets one and returns it.
	Detach(id, by string) (mapping.Attachment, error)

	// Reload reads the configuration again and returns what changed, in words.
	Reload(by string) (changes []string, err error)

	// Revision is that of the table now.
	Revision() uint64
	// Events are those of the revisions after one, in order and only whole
	// revisions: about max of them, or those of one revision; none when nothing
	// has changed since. Where they are forgotten, or after is of the future,
	// the error is mapping.ErrGone.
	Events(after uint64, max int) ([]mapping.Event, error)
	// Changed is closed at the next change.
	Changed() <-chan struct{}
}

// Each gives the elements of a sequence as a Source's lists do.
func Each[T any](s iter.Seq[T]) iter.Seq[any] {
	return func(yield func(any) bool) {
		for v := range s {
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

// PastLease is a lease as the history has it.
type PastLease struct {
	IPv4  netip.Addr `json:"ipv4"`
	IPv6  netip.Addr `json:"ipv6"`
	Ports string     `json:"ports,omitempty"` // "FIRST-LAST", if clients share the IPv4 address
	Since time.Time  `json:"since"`
	Until time.Time  `json:"until,omitzero"` // absent: still lent
	Label string     `json:"label,omitempty"`
}

// Status is what the daemon is and has.
type Status struct {
	Version  string             `json:"version"`
	Uptime   int64              `json:"uptime_seconds"`
	File     string             `json:"config_file"` // that natless read; "": none
	Flags    []string           `json:"flags"`       // that are laid over it, as --NAME=VALUE
	Device   string             `json:"device"`
	Offloads string             `json:"offloads"` // those in force, in words
	Queues   int                `json:"queues"`
	Rings    int                `json:"rings"`  // of each queue, in which the kernel keeps packets
	MTU      int                `json:"mtu"`    // bytes
	Pref64   netip.Prefix       `json:"pref64"` // "" for explicit mappings only
	OwnIPv4  netip.Addr         `json:"own_ipv4"`
	OwnIPv6  netip.Addr         `json:"own_ipv6"`
	Pools    []mapping.PoolInfo `json:"pools"`
	Networks []mapping.Network  `json:"networks"`           // the /64s with the most leases
	Sessions *Sessions          `json:"sessions,omitempty"` // absent: no clients share an address
	Attached int                `json:"attached"`           // namespaces
	State    State              `json:"state"`
	Revision uint64             `json:"revision"`        // of the mapping table
	RA       []Advertising      `json:"ra"`              // where router advertisements are sent
	DNS64    *dns64.Status      `json:"dns64,omitempty"` // absent when it is off
	Links    []hostnet.LinkRole `json:"links"`           // of the host, and what they count as
	Refused  []string           `json:"refused"`         // what natless does not translate, in words
	Confined confine.State      `json:"confinement"`
	Warnings []string           `json:"warnings"`
	Problems []string           `json:"problems"` // of the warnings those that make it degraded
	Degraded bool               `json:"degraded"` // something that was asked for does not work
}

// Sessions is how many there are.
type Sessions struct {
	Open int `json:"open"`
	Max  int `json:"max"`
}

// State is what outlives the daemon.
type State struct {
	Dir     string `json:"dir"`               // "": nothing does
	Problem string `json:"problem,omitempty"` // why nothing can be saved now
}

// Advertising is how it goes with router advertisements on one interface.
type Advertising struct {
	Interface string     `json:"interface"`
	Address   netip.Addr `json:"address"`           // their source; "" while none can be sent
	Sent      uint64     `json:"sent"`              // advertisements
	Last      time.Time  `json:"last,omitzero"`     // when the last one was; absent: none
	Problem   string     `json:"problem,omitempty"` // why none is sent
	Others    []string   `json:"others,omitempty"`  // what other routers say against it, in words
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
	Held             uint64            `json:"held"`         // packets held back now, until their client's lease is durable
	DeviceDrops      uint64            `json:"device_drops"` // packets that found the device's queue full, by the kernel's count
}

// Traffic counts packets of one family. A super-packet is one packet.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// revisionHeader is of a list: the revision of the table that it shows.
const revisionHeader = "Natless-Revision"

// changed answers a change: from this revision on it is in force.
type changed struct {
	Revision uint64 `json:"revision"`
}

// reloaded answers a reload.
type reloaded struct {
	Changes []string `json:"changes"` // in words
}

// change is one line of a batch, and without Op the body that adds a mapping.
type change struct {
	Op     string `json:"op,omitempty"` // add, with IPv4 and IPv6; remove, with Prefix
	IPv4   string `json:"ipv4,omitempty"`
	IPv6   string `json:"ipv6,omitempty"`
	Label  string `json:"label,omitempty"`
	Prefix string `json:"prefix,omitempty"` // of either side
}

// failure is the answer when there is no other, and the last line of a watch
// that cannot go on.
type failure struct {
	Error  string `json:"error"`
	Reason string `json:"reason,omitempty"` // of the reasons
}

// reasons are what programs tell errors apart by. Their names are stable.
var reasons = []struct {
	err  error
	name string
	code int
}{
	{mapping.ErrConflict, "conflict", http.StatusConflict},
	{mapping.ErrUnknown, "unknown", http.StatusNotFound},
	{mapping.ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
	{mapping.ErrGone, "gone", http.StatusGone},
	{mapping.ErrMapped, "mapped", http.StatusConflict},
	{mapping.ErrNotPermitted, "not_permitted", http.StatusForbidden},
	{mapping.ErrPoolFull, "pool_full", http.StatusServiceUnavailable},
	{config.ErrWrong, "wrong_configuration", http.StatusUnprocessableEntity},
}

// failureOf is an error as it is answered, and the code that goes with it;
// otherwise is the code of errors without a reason.
func failureOf(err error, otherwise int) (failure, int) {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return failure{err.Error(), r.name}, r.code
		}
	}
	return failure{Error: err.Error()}, otherwise
}

// err is the failure at the client's end; it wraps the error of its reason.
func (f failure) err() error {
	for _, r := range reasons {
		if f.Reason == r.name {
			return refusal{f.Error, r.err}
		}
	}
	return refusal{f.Error, nil}
}

// Refused reports whether an error is the daemon's answer, rather than that there
// was none.
func Refused(err error) bool { return errors.As(err, new(refusal)) }

// refusal has the daemon's words, which contain those of the reason already.
type refusal struct {
	text   string
	reason error
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.reason } // nil: the daemon gave none
