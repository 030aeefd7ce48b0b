package conntrack

// State is how far a flow has come. All but Open are those of RFC 6146
// 3.5.2.1.
type State uint8

// The states.
const (
	Open        State = iota // not TCP
	V6Init                   // the client sent a SYN
	V4Init                   // a SYN came from outside
	Established              // SYNs went both ways
	V6Fin                    // the client has finished
	V4Fin                    // the other side has finished
	BothFin                  // both have
	Trans                    // reset, perhaps

	stateCount
)

var states = [stateCount]string{"open", "v6_init", "v4_init", "established", "v6_fin", "v4_fin", "both_fin", "trans"}

func (s State) String() string { return states[s] }

// The flags of TCP that are observed, as they are in its header.
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// begin is the state of a flow that the client's packet opens, and whether it
// opens one. A SYN with ACK answers a SYN from outside that is not remembered,
// because it came more than six seconds ago or there was no room: such a flow
// is established by whatever comes next.
func begin(flags uint8) (State, bool) {
	switch flags & (flagSYN | flagRST | flagACK) {
	case flagSYN:
		return V6Init, true
	case flagSYN | flagACK:
		return Trans, true
	}
	return 0, false
}

// step is RFC 6146 3.5.2.2: what a packet makes of a flow, and the lifetime it
// then has. v6 says that the client sent it. It differs from the RFC:
//
//   - A RST after one FIN ends the connection as it does before. In the RFC
//     such a session lives on for two hours, and there are few ports.
//   - A SYN after both FINs begins a new connection, for clients that use their
//     port again. In the RFC the session ends four minutes after the FINs,
//     whatever is going on.
//   - A FIN refreshes as any packet of an open connection does.
//   - A SYN from outside is remembered for six seconds (TCP_INCOMING_SYN)
//     rather than, as the RFC has it where nothing is filtered, four minutes:
//     strangers would fill a client's sessions (RFC 7857 2.1 leaves it open).
//     An answer that comes later begins a flow, see begin.
//
// An established connection that has been idle for its lifetime ends without
// the probe that the RFC recommends: this package sends nothing.
func step(s State, v6 bool, flags uint8) (State, lifetime) {
	var (
		rst = flags&flagRST != 0
		syn = flags&flagSYN != 0 && !rst
		fin = flags&flagFIN != 0 && !rst && !syn
	)
	switch s {
	case V6Init:
		switch {
		case syn && v6:
			return V6Init, transitory
		case syn:
			return Established, established
		}
		return s, keep
	case V4Init:
		if syn && v6 {
			return Established, established
		}
		return s, keep
	case Established, V6Fin, V4Fin:
		switch {
		case rst:
			return Trans, transitory
		case fin:
			return finish(s, v6)
		}
		return s, established
	case BothFin:
		switch {
		case syn && v6:
			return V6Init, transitory
		case syn:
			return Trans, transitory
		}
		return s, keep
	case Trans:
		if rst {
			return s, keep
		}
		return Established, established
	}
	return s, keep
}

// finish is the state after a FIN.
func finish(s State, v6 bool) (State, lifetime) {
	switch {
	case s == V4Fin && v6, s == V6Fin && !v6:
		return BothFin, transitory
	case v6:
		return V6Fin, established
	}
	return V4Fin, established
}
