// Package dataplane is the loop that packets go round: each worker reads a
// packet from its queue of the TUN device, has package translate find its
// flow, asks the mapping which flow that becomes, has the headers rewritten and
// writes the packet back. What cannot go on is counted by its verdict and,
// where the RFCs ask for it and the rate allows it, answered with an ICMP
// error.
//
// A worker owns its queue, its buffers and its counters. What workers share is
// read-mostly: the mapping table and the tick.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// Resolver decides which flow a packet's flow becomes on the other side.
// Flows are passed as values: a pointer handed through an interface escapes to
// the heap. No method blocks on anything but memory.
type Resolver interface {
	// Resolve answers for an ordinary packet and may lease an address to its
	// source. tick is in seconds since the dataplane was made.
	Resolve(f translate.Flow, tick uint32) (translate.Flow, translate.Verdict)
	// ResolveError answers for the outer flow of an ICMP error: a source
	// without a counterpart gets a stand-in (RFC 6791). It leases nothing.
	ResolveError(f translate.Flow) (translate.Flow, translate.Verdict)
	// Lookup answers like Resolve and creates nothing.
	Lookup(f translate.Flow) (translate.Flow, translate.Verdict)
	// Own reports whether the address is natless's own.
	Own(a netip.Addr) bool
	// Expire is called about once a second, off the way of packets.
	Expire(tick uint32)
}

// Config is what a dataplane is made of.
type Config struct {
	Queues   []tun.Queue // one worker each; the dataplane closes them
	Resolver Resolver
	Options  translate.Options

	// IPv4 and IPv6 are the sources of the ICMP errors natless originates.
	// Without a valid one, no errors of that family are sent.
	IPv4, IPv6 netip.Addr
}

// Plane is a running dataplane.
type Plane struct {
	workers []*worker
	tick    atomic.Uint32
	expire  func(tick uint32)
}

// New makes a dataplane and allocates all it will ever need.
func New(c Config) *Plane {
	p := &Plane{expire: c.Resolver.Expire}
	for _, q := range c.Queues {
		p.workers = append(p.workers, newWorker(q, &c, &p.tick))
	}
	return p
}

// Run translates until the context ends, which is no error, or until a queue
// fails for good, which is one. It returns when every worker has stopped.
func (p *Plane) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := make([]error, len(p.workers))
	var wg sync.WaitGroup
	for i, w := range p.workers {
		wg.Go(func() {
			// The thread spends its life in the queue's system calls.
			runtime.LockOSThread()
			failures[i] = w.run()
			cancel()
		})
	}
	p.keepTime(ctx)
	for _, w := range p.workers {
		w.queue.Close()
	}
	wg.Wait()
	return errors.Join(failures...)
}

// keepTime moves the tick until the context ends. Workers read the tick rather
// than a clock.
func (p *Plane) keepTime(ctx context.Context) {
	start := time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			tick := uint32(now.Sub(start) / time.Second)
			p.tick.Store(tick)
			p.expire(tick)
		}
	}
}

// headroom is where a packet is put in a worker's buffer: room for the longer
// header of the other family twice over (a hairpinned packet is translated
// twice), and for the device's own header in front of that.
const headroom = 2*translate.Headroom + tun.HeaderLen + 6

// bufferSize holds the largest packet of either family behind the headroom.
const bufferSize = headroom + 40 + 1<<16

type worker struct {
	queue    tun.Queue
	resolver Resolver
	options  *translate.Options
	from4    netip.Addr
	from6    netip.Addr
	tick     *atomic.Uint32

	packet translate.Packet
	spare  []byte // for packets natless makes: fragments and ICMP errors
	limit  limiter
	counters
}

func newWorker(q tun.Queue, c *Config, tick *atomic.Uint32) *worker {
	w := &worker{
		queue: q, resolver: c.Resolver, options: &c.Options,
		from4: c.IPv4, from6: c.IPv6, tick: tick,
		spare: make([]byte, bufferSize),
	}
	w.packet.Buf = make([]byte, bufferSize)
	w.packet.ID = rand.Uint32()
	return w
}

// run is the worker's loop. It ends when the queue is closed, or with an error
// when the queue cannot be read any more.
func (w *worker) run() error {
	for {
		n, h, err := w.queue.Read(w.packet.Buf, headroom)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading packets: %w", err)
		}
		w.handle(n, h)
	}
}

// handle takes the packet of n bytes at w.packet.Buf[headroom:] through all
// its steps.
func (w *worker) handle(n int, h tun.Header) {
	p := &w.packet
	p.Off, p.Len, p.Offload = headroom, n, translate.Offload(h)
	w.countIn(p)
	v := w.translate()
	w.count(v)
	switch {
	case v == translate.Fragmented:
		w.writeFragments()
	case v.Leaves():
		w.write(p.Buf, p.Off, p.Len, tun.Header(p.Offload))
	default:
		w.refuse(v)
	}
}

// translate turns the packet into what is to leave, or says why nothing may.
func (w *worker) translate() translate.Verdict {
	v := w.pass()
	if v != translate.Hairpin {
		return v
	}
	// The packet is IPv4 now and on its way to another client: RFC 7757 4.2.2
	// has it translated back at once instead of by way of the kernel.
	if v = w.pass(); v == translate.OK {
		return translate.Hairpin
	}
	return v
}

// pass translates the packet once, to the other family.
func (w *worker) pass() translate.Verdict {
	p := &w.packet
	if v := p.Parse(w.options); v != translate.OK {
		return v
	}
	if w.resolver.Own(p.Flow.Dst) {
		return w.answer()
	}
	to, quoted, v := w.resolve()
	if !v.Leaves() {
		return v
	}
	if rewritten := p.Rewrite(w.options, to, quoted); rewritten != translate.OK {
		return rewritten
	}
	return v
}

// answer serves a packet to natless's own address, of which only echo requests
// are served.
func (w *worker) answer() translate.Verdict {
	if !w.packet.IsEchoRequest() {
		return translate.OwnAddress
	}
	w.packet.AnswerEcho()
	return translate.Answered
}

// resolve asks for the packet's flow on the other side and, of an ICMP error,
// for that of the packet it quotes.
func (w *worker) resolve() (to, quoted translate.Flow, v translate.Verdict) {
	p := &w.packet
	if !p.HasQuote() {
		to, v = w.resolver.Resolve(p.Flow, w.tick.Load())
		return to, quoted, v
	}
	to, v = w.resolver.ResolveError(p.Flow)
	if !v.Leaves() {
		return to, quoted, v
	}
	// The quoted packet went the other way, so it is its answer's flow that
	// the mapping can find.
	back, found := w.resolver.Lookup(p.Quoted.Reversed())
	if !found.Leaves() {
		return to, quoted, translate.QuoteUnmapped
	}
	return to, back.Reversed(), v
}

// refuse answers a packet that cannot go on with the ICMP error its verdict
// calls for, if there is one and the rate allows it.
func (w *worker) refuse(v translate.Verdict) {
	if v.Info().Reply == "" {
		return
	}
	from := w.from6
	if w.packet.Flow.Src.Is4() {
		from = w.from4
	}
	if !from.IsValid() {
		return
	}
	if !w.limit.allow(v, w.tick.Load()) {
		w.errorsLimited.Add(1)
		return
	}
	n := translate.WriteError(w.spare[headroom:], &w.packet, v, from)
	if n == 0 {
		return
	}
	w.errorsSent.Add(1)
	w.write(w.spare, headroom, n, tun.Header{})
}

func (w *worker) writeFragments() {
	for {
		n, ok := w.packet.NextFragment(w.spare[headroom:])
		if !ok {
			return
		}
		w.write(w.spare, headroom, n, tun.Header{})
	}
}

func (w *worker) write(buf []byte, off, n int, h tun.Header) {
	if err := w.queue.Write(buf, off, n, h); err != nil {
		w.writeErrors.Add(1)
		return
	}
	w.countOut(buf[off], n)
}
