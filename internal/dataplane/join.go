package dataplane

import (
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// Most of what a small packet costs is its write, in which the kernel routes,
// filters and forwards it. So a worker writes as one super-packet what it reads
// of a flow of UDP without waiting. Nothing waits for a datagram that is not
// there yet, and before anything else leaves, those joined do: no packet
// overtakes another.

// gatherAt is how many datagrams at once tell that their flow is so fast that it
// is worth letting more of it gather.
const gatherAt = 4

// join takes a copy of a packet that is to leave later, or has those before it
// leave now.
func (w *worker) join(packet []byte, h tun.Header) bool {
	if w.train.Buf == nil {
		return false
	}
	o := translate.Offload(h)
	if w.train.Join(packet, &o) {
		return true
	}
	w.flush()
	return w.train.Join(packet, &o)
}

// flush writes the datagrams that are joined and returns how many they were.
func (w *worker) flush() (datagrams int) {
	t := &w.train
	if datagrams = t.Datagrams; datagrams > 0 {
		n, o := t.Finish()
		w.write(t.Buf, t.Off, n, tun.Header(o), datagrams)
	}
	return datagrams
}

// read reads the next packet. What is joined leaves before that could wait.
func (w *worker) read() (int, tun.Header, error) {
	if w.train.Datagrams > 0 {
		if n, h, ok := w.queue.ReadMore(w.translator.packet.Buf, headroom); ok {
			return n, h, nil
		}
		if w.flush() >= gatherAt {
			w.queue.Gather()
		}
	}
	return w.queue.Read(w.translator.packet.Buf, headroom)
}
