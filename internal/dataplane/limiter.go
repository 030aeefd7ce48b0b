package dataplane

import "github.com/natless/natless/translate"

// errorsPerSecond bounds the ICMP errors one worker sends for one verdict in
// one second (RFC 4443 2.4 (f)). Verdicts are bounded apart so that a flood of
// packets to nowhere cannot silence path MTU discovery.
const errorsPerSecond = 200

// limiter is a token bucket per verdict, refilled at each tick.
type limiter struct {
	tick  uint32
	spent [translate.Verdicts]uint16
}

func (l *limiter) allow(v translate.Verdict, tick uint32) bool {
	if tick != l.tick {
		*l = limiter{tick: tick}
	}
	if l.spent[v] >= errorsPerSecond {
		return false
	}
	l.spent[v]++
	return true
}
