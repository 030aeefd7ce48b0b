package dataplane

import (
	"sync/atomic"

	"github.com/natless/natless/translate"
)

// counters are one worker's own; nobody else writes them.
type counters struct {
	_             [64]byte // keeps another worker's counters off this cache line
	verdicts      [translate.Verdicts]atomic.Uint64
	in, out       [2]traffic // IPv4, IPv6
	errorsSent    atomic.Uint64
	errorsLimited atomic.Uint64
	writeErrors   atomic.Uint64
	held          atomic.Int32
	_             [64]byte
}

type traffic struct{ packets, bytes atomic.Uint64 }

func (t *traffic) add(packets, bytes int) {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
}

func family(firstByte byte) int {
	if firstByte>>4 == 6 {
		return 1
	}
	return 0
}

func (c *counters) countIn(packet []byte) {
	if len(packet) > 0 {
		c.in[family(packet[0])].add(1, len(packet))
	}
}

func (c *counters) countOut(firstByte byte, packets, bytes int) {
	c.out[family(firstByte)].add(packets, bytes)
}

func (c *counters) count(o Outcome) {
	if o.Held { // and counted when it comes again, or is lost
		return
	}
	c.verdicts[o.Verdict].Add(1)
	if o.Error {
		c.errorsSent.Add(1)
	}
	if o.Limited {
		c.errorsLimited.Add(1)
	}
}

// Traffic counts packets as the device gave or took them: a super-packet
// counts once, or if natless made it, as those it was made of.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Counters are the sums over all workers since the dataplane was made.
type Counters struct {
	Verdicts         [translate.Verdicts]uint64
	IPv4In, IPv6In   Traffic
	IPv4Out, IPv6Out Traffic
	ErrorsSent       uint64 // ICMP errors originated
	ErrorsLimited    uint64 // ICMP errors not sent because of the rate limit
	WriteErrors      uint64 // packets the device did not take
	Held             uint64 // packets held back now, which have no verdict yet
}

// Counters adds up what the workers have counted. It may run beside them.
func (p *Plane) Counters() Counters {
	var sum Counters
	for _, w := range p.workers {
		for v := range w.verdicts {
			sum.Verdicts[v] += w.verdicts[v].Load()
		}
		sum.IPv4In.add(&w.in[0])
		sum.IPv6In.add(&w.in[1])
		sum.IPv4Out.add(&w.out[0])
		sum.IPv6Out.add(&w.out[1])
		sum.ErrorsSent += w.errorsSent.Load()
		sum.ErrorsLimited += w.errorsLimited.Load()
		sum.WriteErrors += w.writeErrors.Load()
		sum.Held += uint64(w.held.Load())
	}
	sum.Verdicts[translate.FragmentPending] += p.sharing.Lost()
	return sum
}

func (t *Traffic) add(from *traffic) {
	t.Packets += from.packets.Load()
	t.Bytes += from.bytes.Load()
}
