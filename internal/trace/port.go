package trace

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

const (
	protoTCP = 6
	protoUDP = 17
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
	was, what := f.SrcPort, "source "+portOf(f.Proto)
	reason := w.peekOut(r, f, now)
	switch {
	case reason == conntrack.OK:
		w.port(StepPort, "%s %d becomes %d by the session there is", what, was, f.SrcPort)
		return reason
	case reason != conntrack.NoSession:
	case w.sessions != nil:
		reason = w.sessions.CanOpen(r, f, flags, now)
	default:
		reason = conntrack.OK
	}
	why := fmt.Sprintf("%s %d is not in the stateless part, %d-%d, of the range of %v", what, was, r.First, r.Session-1, r.Client)
	if f.Proto != protoTCP && f.Proto != protoUDP {
		why = fmt.Sprintf("%s %d of %v: only TCP and UDP go without a session", what, was, r.Client)
	}
	if reason != conntrack.OK {
		w.port(StepPort, "%s, and takes no session: %v", why, reason)
		return reason
	}
	f.SrcPort = r.Session
	if !translate.HasPorts(f.Proto) {
		f.DstPort = r.Session
	}
	w.port(StepPort, "%s: a session would begin, with one of %d-%d by chance, such as %d", why, r.Session, r.Last, f.SrcPort)
	return reason
}

// In tells of the session that a packet to a client takes.
func (w *witness) In(r *mapping.Range, f *translate.Flow, _ uint8, now uint32) conntrack.Reason {
	return w.in(StepPort, r, f, now)
}

// Changes is of no use to one packet.
func (w *witness) Changes(*mapping.Range) *atomic.Uint32 { return new(atomic.Uint32) }

// PeekIn is asked about quoted packets alone, since a trace follows no
// fragments.
func (w *witness) PeekIn(r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason {
	return w.in(StepQuotedPort, r, f, now)
}

// PeekOut is asked about quoted packets alone.
func (w *witness) PeekOut(r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason {
	was := f.SrcPort
	reason := w.peekOut(r, f, now)
	if reason == conntrack.OK {
		w.port(StepQuotedPort, "%s %d becomes %d by the session there is", portOf(f.Proto), was, f.SrcPort)
	} else {
		w.port(StepQuotedPort, "%s %d of %v takes a session, and there is none: %v", portOf(f.Proto), was, r.Client, reason)
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

func (w *witness) in(step string, r *mapping.Range, f *translate.Flow, now uint32) conntrack.Reason {
	was, what := f.DstPort, portOf(f.Proto)
	reason := conntrack.NoSession
	if w.sessions != nil {
		reason = w.sessions.PeekIn(r, f, now)
	}
	switch {
	case reason == conntrack.OK:
		w.port(step, "%s %d becomes %d of %v by the session there is", what, was, f.DstPort, r.Client)
	case was < r.Session:
		w.port(step, "%s %d is in the range of %v, where only TCP and UDP go without a session, and none has it: %v", what, was, r.Client, reason)
	default:
		w.port(step, "%s %d is in the session part, %d-%d, of the range of %v, and no session has it: %v", what, was, r.Session, r.Last, r.Client, reason)
	}
	return reason
}

// portOf is what a protocol has for a port.
func portOf(proto uint8) string {
	if translate.HasPorts(proto) {
		return "port"
	}
	return "identifier"
}

func (w *witness) port(step, format string, args ...any) {
	w.add(Step{Step: step, Text: fmt.Sprintf(format, args...), Section: "RFC 6146 3.5"})
}
