package conntrack

import (
	"math/bits"
	"math/rand/v2"
)

// portSet is which ports of a session part are taken, for one protocol.
type portSet struct {
	taken []uint64 // one bit each, nil before the first
	used  int
}

// draws is how often take tries its luck. Until a part is nearly full that
// finds a port; after that, a word is looked at for 64 ports.
const draws = 8

// take takes one of the n ports, each free one with the same chance, and
// returns its place. One must be free.
func (p *portSet) take(n int) int {
	if p.taken == nil {
		p.taken = make([]uint64, (n+63)/64)
	}
	i := p.draw(n)
	p.taken[i/64] |= 1 << (i % 64)
	p.used++
	return i
}

func (p *portSet) draw(n int) int {
	for range draws {
		if i := rand.IntN(n); !p.has(i) {
			return i
		}
	}
	return p.free(rand.IntN(n - p.used))
}

// free is the place of the k-th free port.
func (p *portSet) free(k int) int {
	for w, taken := range p.taken {
		free := ^taken
		if n := bits.OnesCount64(free); k >= n {
			k -= n
			continue
		}
		for range k {
			free &= free - 1
		}
		return w*64 + bits.TrailingZeros64(free)
	}
	panic("conntrack: more free ports counted than there are")
}

func (p *portSet) has(i int) bool { return p.taken[i/64]>>(i%64)&1 != 0 }

func (p *portSet) release(i int) {
	p.taken[i/64] &^= 1 << (i % 64)
	p.used--
}

// next is the first taken port from place i on, -1 if there is none.
func (p *portSet) next(i int) int {
	if p.taken == nil || i >= len(p.taken)*64 {
		return -1
	}
	word := p.taken[i/64] >> (i % 64) << (i % 64)
	for w := i / 64; ; word = p.taken[w] {
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
		if w++; w == len(p.taken) {
			return -1
		}
	}
}
