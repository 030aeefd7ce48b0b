package mapping

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/natless/natless/translate"
)

// Around is what the host tells of the links that clients are behind. What comes
// to the device no longer shows the link it came from, so that two questions are
// answered from here: whether the host itself would let one client reach another,
// and who may say that a packet to a client failed. The zero value tells nothing.
type Around struct {
	Ways []Way    // sorted by prefix, each once
	Meet [][2]int // links between which packets would pass without natless, in both directions and each once
	All  bool     // all links are such
	Host bool     // the host would take packets of clients for itself
}

// Way is how the host reaches an IPv6 prefix.
type Way struct {
	Prefix netip.Prefix
	Link   int  // by interface index; 0: an address of the host itself
	Router bool // there is a router between, whose errors are to be heard
}

// Equal compares what two hosts tell.
func (a Around) Equal(b Around) bool {
	return a.All == b.All && a.Host == b.Host && slices.Equal(a.Ways, b.Ways) && slices.Equal(a.Meet, b.Meet)
}

// around is Around as workers ask it.
type around struct {
	told Around
	ways *bart.Fast[Way]
	meet map[[2]int]struct{}
}

func newAround(a Around) *around {
	x := &around{told: a, ways: new(bart.Fast[Way]), meet: map[[2]int]struct{}{}}
	for _, w := range a.Ways {
		x.ways.Insert(w.Prefix, w)
	}
	for _, pair := range a.Meet {
		x.meet[pair] = struct{}{}
		x.meet[[2]int{pair[1], pair[0]}] = struct{}{}
	}
	return x
}

// lets reports whether the host would pass packets between two IPv6 addresses
// without natless. Of an address that it does not reach over a link to clients
// nothing is known. What the host itself would send counts as what it would take,
// for it waits for an answer.
func (x *around) lets(a, b netip.Addr) bool {
	if a == b {
		return true
	}
	from, known := x.ways.Lookup(a)
	to, too := x.ways.Lookup(b)
	switch {
	case known && from.Link == 0 || too && to.Link == 0:
		return x.told.Host
	case x.told.All:
		return true
	case !known || !too:
		return false
	}
	_, meet := x.meet[[2]int{from.Link, to.Link}]
	return meet
}

// SetAround tells what the host knows of its links, from now on. Before it is
// called, no client reaches another where that depends on the host. Workers ask
// anew what they remember.
func (t *Table) SetAround(a Around) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.around.Load().told.Equal(a) {
		return
	}
	a.Ways, a.Meet = slices.Clone(a.Ways), slices.Clone(a.Meet)
	t.around.Store(newAround(a))
	s := *t.current.Load()
	t.announce(&s, []Event{{Op: OpChanged, By: "links of the host"}})
}

// hairpins reports whether a client reaches another, who has the IPv6 address to.
func (t *Table) hairpins(s *snapshot, from, to netip.Addr) bool {
	return s.hairpin && (!s.guarded || t.around.Load().lets(from, to))
}

// guardHairpin is the verdict on a packet to a client where policy alone says v.
func (t *Table) guardHairpin(s *snapshot, e *entry, f *translate.Flow, dst netip.Addr, v translate.Verdict) translate.Verdict {
	if v == translate.Hairpin && !t.hairpins(s, f.Src, e.to6(dst)) {
		return translate.HairpinOff
	}
	return v
}

// SpeaksFor reports whether the host at an IPv6 address may say that a packet to
// dst could not be delivered, or had to be smaller. dst itself may, and this host,
// which forwards the packet; and a router inside the prefix of a map, of what is in
// that prefix too. Of what is on a link of this host nobody else can know. Beyond
// routers one of these may speak, unless it is a client and the error is hard: one
// by which a connection ends.
func (t *Table) SpeaksFor(host, dst netip.Addr, hard bool) bool {
	if host == dst {
		return true
	}
	x, s := t.around.Load(), t.current.Load()
	if w, known := x.ways.Lookup(host); known && w.Link == 0 {
		return true
	}
	e, _ := s.v6.Lookup(host)
	if e != nil && e.kind == kindMap {
		if other, _ := s.v6.Lookup(dst); other == e {
			return true
		}
	}
	if w, known := x.ways.Lookup(dst); known && !w.Router {
		return false
	}
	client := e != nil && e.kind <= kindRange || s.permits(host)
	return !client || !hard
}
