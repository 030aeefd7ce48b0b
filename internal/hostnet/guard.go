package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// guard says whether natless's tables are in place. Without them strangers
// would use natless, so that it passes no packets then: the dataplane reads
// passing before each. The kernel's notices close it at once, and natless's own
// look at the tables opens it again.
//
// The kernel numbers the states of its ruleset. A notice of a state that was
// looked at already, as that of natless's own changes, is no news.
type guard struct {
	passing atomic.Bool

	mu     sync.Mutex
	why    string // nothing passes; "": it does
	seen   uint32 // the state that the tables were whole in
	doubt  uint32 // the state in which others changed them, when doubted
	doubts bool
}

// set opens the guard, or closes it and says why.
func (g *guard) set(open bool, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.put(open, why)
}

func (g *guard) put(open bool, why string) {
	if g.passing.Store(open); open {
		why = ""
	}
	g.why = why
}

const tablesChanged = "its nftables tables were removed or changed, and are not back yet"

// verify compares the tables with how they are to be, opens or closes the guard
// by that, and tells which.
func (g *guard) verify(print string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.compare(func(now string, _ int) bool { return now == print && print != "" }) != ""
}

// install calls do, which puts the tables in place, and returns their print; ""
// if others were quick to change them.
func (g *guard) install(do func() error, parts int) (print string, err error) {
	g.mu.Lock() // notices of it wait until it has been looked at
	defer g.mu.Unlock()
	if err := do(); err != nil {
		return "", err
	}
	return g.compare(func(_ string, n int) bool { return n == parts }), nil
}

// compare returns the print of the tables if they are right. mu is held.
func (g *guard) compare(right func(print string, parts int) bool) string {
	before, err := generation()
	if err != nil {
		g.put(false, err.Error())
		return ""
	}
	print, parts, err := tablePrint()
	if err != nil && !errors.Is(err, unix.ENOENT) { // which is a table that goes while it is read
		g.put(false, fmt.Sprintf("its nftables tables cannot be read: %v", err))
		return ""
	}
	if err != nil || !right(print, parts) || g.doubts && newer(g.doubt, before) {
		g.put(false, tablesChanged)
		return ""
	}
	g.seen, g.doubts = before, false
	g.put(true, "")
	return print
}

// newer tells whether a state comes after another. Their numbers wrap.
func newer(a, b uint32) bool { return int32(a-b) > 0 }

// doubtAt closes the guard for a state in which the tables were changed, unless
// it has been looked at, and tells whether it did.
func (g *guard) doubtAt(state uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !newer(state, g.seen) {
		return false
	}
	g.doubt, g.doubts = state, true
	g.put(false, tablesChanged)
	return true
}

// Guarded is true while natless may pass packets. The dataplane reads it.
func (h *Host) Guarded() *atomic.Bool { return &h.guard.passing }

// Unguarded says why natless passes no packets; "" when it does.
func (h *Host) Unguarded() string {
	h.guard.mu.Lock()
	defer h.guard.mu.Unlock()
	if h.guard.why == "" {
		return ""
	}
	return "natless passes no packets: " + h.guard.why
}

// Of linux/netfilter/nf_tables.h. The attribute that is 1 names the table in all
// messages about tables and what is in them, and in that about a new state its
// number.
const (
	nftMessage   = unix.NFNL_SUBSYS_NFTABLES << 8
	nftAttribute = 1
	nfgenmsgLen  = 4
)

// relayTables reads the kernel's notices about nftables, closes the guard where
// they are about natless's tables, and then calls urgent, else wake.
func (g *guard) relayTables(f *os.File, urgent, wake chan<- struct{}) {
	buf := make([]byte, 1<<16)
	touched := false // by the messages that the next state is the sum of
	for {
		n, err := f.Read(buf)
		lost := errors.Is(err, unix.ENOBUFS)
		if err != nil && !lost && !errors.Is(err, unix.EINTR) {
			return
		}
		to := wake
		if lost && g.doubtNow() || g.hear(buf[:max(n, 0)], &touched) {
			to = urgent
		}
		select {
		case to <- struct{}{}:
		default:
		}
	}
}

// doubtNow is for notices that were lost: nobody knows what they said.
func (g *guard) doubtNow() bool {
	state, err := generation()
	if err != nil {
		g.set(false, err.Error())
		return true
	}
	return g.doubtAt(state)
}

// hear takes notices in and tells whether the guard closed.
func (g *guard) hear(notices []byte, touched *bool) (closed bool) {
	messages, err := syscall.ParseNetlinkMessage(notices)
	if err != nil {
		return g.doubtNow()
	}
	for _, m := range messages {
		value := firstAttribute(m.Data)
		if m.Header.Type != nftMessage|unix.NFT_MSG_NEWGEN {
			*touched = *touched || string(value) == ownTable+"\x00"
			continue
		}
		if *touched && len(value) == 4 {
			closed = g.doubtAt(binary.BigEndian.Uint32(value)) || closed
		}
		*touched = false
	}
	return closed
}

// firstAttribute is the value of the attribute 1 of a message of nftables.
func firstAttribute(body []byte) []byte {
	for b := body[min(nfgenmsgLen, len(body)):]; len(b) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == nftAttribute {
			return b[unix.SizeofNlAttr:size]
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// generation is the number of the ruleset's present state.
func generation() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("reaching nftables: %w", err)
	}
	defer c.Close()
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: nftMessage | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, nfgenmsgLen),
	})
	if err != nil {
		return 0, fmt.Errorf("asking for the state of nftables: %w", err)
	}
	for _, m := range answers {
		if value := firstAttribute(m.Data); len(value) == 4 {
			return binary.BigEndian.Uint32(value), nil
		}
	}
	return 0, errors.New("asking for the state of nftables: the kernel does not tell")
}
