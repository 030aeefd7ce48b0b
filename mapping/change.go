package mapping

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Change is one change that somebody asks for while the table is in use: an
// explicit mapping to add, or one to remove.
type Change struct {
	Add    *Map         // nil: Remove
	Remove netip.Prefix // either side of an explicit mapping that was added at runtime
}

// Why a change is refused; errors of Apply and Release wrap one of them, or are
// about a malformed change.
var (
	ErrConflict    = errors.New("conflict")           // with something that is there
	ErrUnknown     = errors.New("no such entry")      // nothing to remove or release
	ErrUnavailable = errors.New("state not writable") // the store cannot make it durable now
	ErrGone        = errors.New("revision too old")   // its events are forgotten, or the leases of a time
	ErrDamaged     = errors.New("the state was damaged while in use")

	// Of Lend.
	ErrMapped       = errors.New("mapped explicitly")  // which comes before a lease
	ErrNotPermitted = errors.New("not permitted")      // by any pool
	ErrPoolFull     = errors.New("no address is left") // or range
)

// Op is what an Event tells of.
type Op string

// The kinds of events. Their names are stable.
const (
	OpMapAdded   Op = "map_added"
	OpMapRemoved Op = "map_removed"
	OpLeaseMade  Op = "lease_made"
	OpLeaseEnded Op = "lease_ended"
	OpLeaseNoted Op = "lease_noted" // it has another label, or is pinned or no longer
	OpChanged    Op = "changed"     // something else: pools, who may lease, the rules of translation
)

// Event is one change of the table that is in force. Those of one revision
// came into force together.
type Event struct {
	Revision uint64    `json:"revision"`
	Time     time.Time `json:"time"`
	Op       Op        `json:"op"`
	By       string    `json:"by,omitempty"`  // who asked for it, or why it came
	Map      *MapInfo  `json:"map,omitempty"` // of OpMapAdded and OpMapRemoved
	Lease    *Lease    `json:"lease,omitempty"`
}

// Store keeps what a table must not forget. Its methods may be called from
// any goroutine. Package mapping/store has one.
type Store interface {
	// Load is all that was saved and not forgotten since.
	Load() (Saved, error)
	// Save makes all of the batch durable, or, with an error, none of it. It
	// may take as long as a disk does. Where what was saved is there no more as
	// it was, the error is ErrDamaged.
	Save(Batch) error
	// Renew begins anew with what is given, in place of what was damaged. The
	// history is lost.
	Renew(Saved) error
	// History calls yield with every lease that was in force at a time, by IPv4
	// address, until yield returns false. It is ErrGone for a time of which some
	// may be forgotten.
	History(at time.Time, yield func(SavedLease) bool) error
}

// Saved is what a Store holds.
type Saved struct {
	Maps   []Map        // added at runtime
	Leases []SavedLease // the last of each address or range, by IPv4 address

	Attachments []Attachment // by ID
}

// SavedLease is a lease as a Store keeps it.
type SavedLease struct {
	IPv4, IPv6  netip.Addr
	First, Last uint16 // the range of ports of the IPv4 address that is lent; 0: all of it
	Since       time.Time
	Until       time.Time // the zero time: still lent
	Proven      bool      // something came back for it, or it was attached; only such leases enter the history when they end
	Label       string
}

// Ports is the range in words, "FIRST-LAST"; "" for a whole address.
func (l SavedLease) Ports() string {
	if l.First == 0 {
		return ""
	}
	return fmt.Sprintf("%d-%d", l.First, l.Last)
}

// Batch is what becomes durable at once.
type Batch struct {
	PutMaps    []Map          // by their IPv4 side; what was there is replaced
	RemoveMaps []netip.Prefix // IPv4 sides
	Leases     []SavedLease   // each replaces what was saved of its IPv4 address and first port

	PutAttachments    []Attachment // by their ID; what was there is replaced
	RemoveAttachments []string     // IDs
}
