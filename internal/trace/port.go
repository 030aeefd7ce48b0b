package trace

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

// The witness is the Sessions of one packet too. It opens none.

// Shared reports what the table does. Only fragments are asked about.
func (w *witness) Shared(a netip.Addr) bool { return w.table.Shared(a) }

// stateless tells of the ports that arithmetic leaves alone.
func (w *witness) stateless(x mapping.Ranges, f *translate.Flow, v translate.Verdict) {
	if !v.Leaves() {
		return
	}
	for _, end := range []struct {
		r    *mapping.Range
		port uint16
		name string
	}{{x.Src, f.SrcPort, "source"}, {x.Dst, f.DstPort, "destination"}} {
		if end.r != nil && end.r.Stateless(f.Proto, end.port) {
			w.add(Step{Step: StepPort, Section: "RFC 7597 5.1", Text: fmt.Sprintf(
				"%s port %d is in the stateless part, %d-%d, of the range of %v: it stays, without a session",
				end.name, end.port, end.r.First, end.r.Session-1, end.r.Client)})
		}
	}
}

// Out tells of the session that a packet from a client takes.
func (w *witness) Out(r *mapping.Range, f *translate.Flow, flags uint8, now uint32) conntrack.Reason {
	was := f.SrcPort
	reason := w.peekOut(r, f, now)
	switch {
	case reason == conntrack.OK:
		w.port(StepPort, "source port %d becomes %d by the session there is", was, f.SrcPort)
		return reason
	case reason != conntrack.NoSession:
	case w.sessions != nil:
		reason = w.sessions.CanOpen(r, f, flags, now)
	default:
		reason = conntrack.OK
	}
	if reason != conntrack.OK {
		w.port(StepPort, "source port %d is not in the stateless part, %d-%d, of the range of %v, and takes no session: %v", was, r.First, r.Session-1, r.Client, reason)
		return reason
	}
	f.SrcPort = r.Session
	if !translate.HasPorts(f.Proto) {
		f.DstPort = r.Session
	}
	w.port(StepPort, "source port %d is not in the stateless part, %d-%d, of the range of %v: a session would begin, with a port of %d-%d by chance, such as %d",
		was, r.First, r.Session-1, r.Client, r.Session, r.Last, f.SrcPort)
	return reason
}

// In tells of the session that a packet to a client takes.
func (w *witness) In(r *mapping.Range, f *translate.Flow, _ uint8, now uint32) conntrack.Reason {
	was := f.DstPort
	reason := conntrack.NoSession
	if w.sessions != nil {
		reason = w.sessions.PeekIn(r, f, now)
	}
	w.in(StepPort, r, was, f.DstPort, reason)
	return reason
}

// Changes is of no use to one packet.
func (w *witness) Changes(*mapping.Range) *atomic.Uint32 { return new(atomic.Uint32) }

// PeekIn is asked about quoted packets alone, since a trace follows no
// fragments.
func (w *witness) PeekIn(r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason {
	was := f.DstPort
	reason := conntrack.NoSession
	if w.sessions != nil {
		reason = w.sessions.PeekIn(r, f, now)
	}
	w.in(StepQuotedPort, r, was, f.DstPort, reason)
	return reason
}

// PeekOut is asked about quoted packets alone.
func (w *witness) PeekOut(r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason {
	was := f.SrcPort
	reason := w.peekOut(r, f, now)
	if reason == conntrack.OK {
		w.port(StepQuotedPort, "port %d becomes %d by the session there is", was, f.SrcPort)
	} else {
		w.port(StepQuotedPort, "port %d of %v takes a session, and there is none: %v", was, r.Client, reason)
	}
	return reason
}

// Expire has nothing to do.
func (w *witness) Expire(uint32) bool { return false }

func (w *witness) peekOut(r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason {
	if w.sessions == nil {
		return conntrack.NoSession
	}
	return w.sessions.PeekOut(r, f, now)
}

func (w *witness) in(step string, r *mapping.Range, was, is uint16, reason conntrack.Reason) {
	if reason == conntrack.OK {
		w.port(step, "port %d becomes %d of %v by the session there is", was, is, r.Client)
		return
	}
	w.port(step, "port %d is in the session part, %d-%d, of the range of %v, and no session has it: %v", was, r.Session, r.Last, r.Client, reason)
}

func (w *witness) port(step, format string, args ...any) {
	w.add(Step{Step: step, Text: fmt.Sprintf(format, args...), Section: "RFC 6146 3.5"})
}
