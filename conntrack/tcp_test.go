package conntrack

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// row is what a packet does to a flow: the state and the lifetime after it.
type row struct {
	state State
	lives lifetime
}

// event is a packet as RFC 6146 3.5.2.2 tells them apart.
type event uint8

const (
	v6SYN event = iota
	v4SYN
	v6FIN
	v4FIN
	v6RST
	v4RST
	v6Other
	v4Other

	events
)

var eventNames = [events]string{"V6 SYN", "V4 SYN", "V6 FIN", "V4 FIN", "V6 RST", "V4 RST", "V6 other", "V4 other"}

// transitions is RFC 6146 3.5.2.2 row by row. Marked rows are the departures
// that step documents.
var transitions = [stateCount][events]row{
	V6Init: {
		v6SYN: {V6Init, transitory}, v4SYN: {Established, established},
		v6FIN: {V6Init, keep}, v4FIN: {V6Init, keep}, v6RST: {V6Init, keep}, v4RST: {V6Init, keep},
		v6Other: {V6Init, keep}, v4Other: {V6Init, keep},
	},
	V4Init: {
		v6SYN: {Established, established}, v4SYN: {V4Init, keep},
		v6FIN: {V4Init, keep}, v4FIN: {V4Init, keep}, v6RST: {V4Init, keep}, v4RST: {V4Init, keep},
		v6Other: {V4Init, keep}, v4Other: {V4Init, keep},
	},
	Established: {
		v6SYN: {Established, established}, v4SYN: {Established, established},
		v6FIN: {V6Fin, established}, v4FIN: {V4Fin, established}, // refresh: departure
		v6RST: {Trans, transitory}, v4RST: {Trans, transitory},
		v6Other: {Established, established}, v4Other: {Established, established},
	},
	V6Fin: {
		v6SYN: {V6Fin, established}, v4SYN: {V6Fin, established},
		v6FIN: {V6Fin, established}, v4FIN: {BothFin, transitory},
		v6RST: {Trans, transitory}, v4RST: {Trans, transitory}, // departure
		v6Other: {V6Fin, established}, v4Other: {V6Fin, established},
	},
	V4Fin: {
		v6SYN: {V4Fin, established}, v4SYN: {V4Fin, established},
		v6FIN: {BothFin, transitory}, v4FIN: {V4Fin, established},
		v6RST: {Trans, transitory}, v4RST: {Trans, transitory}, // departure
		v6Other: {V4Fin, established}, v4Other: {V4Fin, established},
	},
	BothFin: {
		v6SYN: {V6Init, transitory}, v4SYN: {Trans, transitory}, // departure
		v6FIN: {BothFin, keep}, v4FIN: {BothFin, keep}, v6RST: {BothFin, keep}, v4RST: {BothFin, keep},
		v6Other: {BothFin, keep}, v4Other: {BothFin, keep},
	},
	Trans: {
		v6SYN: {Established, established}, v4SYN: {Established, established},
		v6FIN: {Established, established}, v4FIN: {Established, established},
		v6RST: {Trans, keep}, v4RST: {Trans, keep},
		v6Other: {Established, established}, v4Other: {Established, established},
	},
}

// eventOf is the event that flags make. A RST counts before a SYN, and that
// before a FIN: the RFC does not say.
func eventOf(v6 bool, flags uint8) event {
	e := v6Other
	switch {
	case flags&0x04 != 0:
		e = v6RST
	case flags&0x02 != 0:
		e = v6SYN
	case flags&0x01 != 0:
		e = v6FIN
	}
	if !v6 {
		e++
	}
	return e
}

// TestTransitions goes through every state and all 256 combinations of flags
// from either side.
func TestTransitions(t *testing.T) {
	for s := V6Init; s < stateCount; s++ {
		for flags := range 256 {
			for _, v6 := range []bool{true, false} {
				e := eventOf(v6, uint8(flags))
				state, lives := step(s, v6, uint8(flags))
				assert.Equal(t, transitions[s][e], row{state, lives}, "%s, %s (flags %#02x)", s, eventNames[e], flags)
			}
		}
	}
}

// TestBegin is RFC 6146's state CLOSED, as seen from the client.
func TestBegin(t *testing.T) {
	for _, c := range []struct {
		flags uint8
		state State
		opens bool
	}{
		{flagSYN, V6Init, true},
		{flagSYN | 0xc0, V6Init, true}, // ECN setup
		{flagSYN | flagACK, Trans, true},
		{flagACK, 0, false},
		{flagFIN | flagACK, 0, false},
		{flagRST, 0, false},
		{flagRST | flagSYN, 0, false},
		{0, 0, false},
	} {
		state, opens := begin(c.flags)
		assert.Equal(t, c.opens, opens, "flags %#02x", c.flags)
		assert.Equal(t, c.state, state, "flags %#02x", c.flags)
	}
}
