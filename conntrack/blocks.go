package conntrack

// blocks is the memory of waiting fragments: a fixed number of blocks, of
// which a packet takes as many as it needs. Block 0 is none.
type blocks struct {
	data   []byte
	meta   []block
	free   uint32 // chained by next
	unused uint32 // the first that was never used: it has not been touched
	left   int
}

type block struct {
	next   uint32 // of the same packet
	packet uint32 // of the first block of a packet: that of the next packet
	length uint32 // of the first block of a packet: of the packet, in bytes
}

// held is the packets that wait for one datagram, in their order.
type held struct {
	first, last uint32
	count       int
}

func newBlocks(n int) blocks {
	return blocks{data: make([]byte, (n+1)*blockSize), meta: make([]block, n+1), unused: 1, left: n}
}

// needed is how many blocks a packet of n bytes takes.
func (b *blocks) needed(n int) int { return max(1, (n+blockSize-1)/blockSize) }

func (b *blocks) bytes(i uint32) []byte { return b.data[int(i)*blockSize : int(i+1)*blockSize] }

// put copies a packet behind those held. There must be blocks enough.
func (b *blocks) put(h *held, packet []byte) {
	first := b.get()
	b.meta[first].length = uint32(len(packet))
	packet = packet[copy(b.bytes(first), packet):]
	for i := first; len(packet) > 0; {
		next := b.get()
		b.meta[i].next = next
		packet = packet[copy(b.bytes(next), packet):]
		i = next
	}
	if h.last != 0 {
		b.meta[h.last].packet = first
	} else {
		h.first = first
	}
	h.last = first
	h.count++
}

// take copies the first packet held to dst and gives its blocks back. There
// must be one.
func (b *blocks) take(h *held, dst []byte) (n, blocks int) {
	i := h.first
	if h.first = b.meta[i].packet; h.first == 0 {
		h.last = 0
	}
	h.count--
	left := int(b.meta[i].length)
	for i != 0 {
		size := min(left, blockSize)
		n += copy(dst[min(n, len(dst)):], b.bytes(i)[:size])
		left -= size
		blocks++
		next := b.meta[i].next
		b.meta[i].next = b.free
		b.free = i
		b.left++
		i = next
	}
	return n, blocks
}

// get takes one block out of the free ones.
func (b *blocks) get() uint32 {
	i := b.free
	if i != 0 {
		b.free = b.meta[i].next
	} else {
		i = b.unused
		b.unused++
	}
	b.meta[i] = block{}
	b.left--
	return i
}
