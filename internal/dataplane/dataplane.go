// Package dataplane is the loop that packets go round: each worker reads a
// packet from its queue of the TUN device, has package translate find its
// flow, asks the mapping which flow that becomes, has the headers rewritten and
// writes the packet back. What cannot go on is counted by its verdict and,
// where the RFCs ask for it and the rate allows it, answered with an ICMP
// error. What waits for its lease is held back a moment.
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

// Config is what a dataplane is made of.
type Config struct {
	Queues   []tun.Queue // one worker each; the dataplane closes them
	Options  translate.Options
	Resolver interface {
		Resolver
		// Expire is called about once a second, off the way of packets, with
		// the tick that ResolveIn is given.
		Expire(tick uint32)
	}
	Sharing Sharing
	Join    bool // datagrams of one flow may be written as one super-packet (tun.Features.USO)

	// Open is true while packets may pass; nil: always. Those that come while it
	// is false are dropped as translate.Unguarded.
	Open *atomic.Bool

	// IPv4 and IPv6 are the sources of the ICMP errors natless originates.
	// Without a valid one, no errors of that family are sent.
	IPv4, IPv6 netip.Addr
}

// Plane is a running dataplane.
type Plane struct {
	workers []*worker
	tick    atomic.Uint32
	wakes   atomic.Uint32 // calls of Wake
	expire  func(tick uint32)
	sharing Sharing
}

// New makes a dataplane and allocates all it will ever need.
func New(c Config) *Plane {
	p := &Plane{expire: c.Resolver.Expire, sharing: c.Sharing}
	if c.Open == nil {
		c.Open = new(atomic.Bool)
		c.Open.Store(true)
	}
	for _, q := range c.Queues {
		p.workers = append(p.workers, newWorker(q, &c, p))
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
			pin(i)
			sleepExactly()
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
			p.sharing.Expire(tick)
			p.Wake() // for packets held too long, where no other comes
		}
	}
}

// Tick is the clock that sessions go by, in seconds since Run.
func (p *Plane) Tick() uint32 { return p.tick.Load() }

type worker struct {
	queue      tun.Queue
	translator *Translator
	tick       *atomic.Uint32
	wakes      *atomic.Uint32
	open       *atomic.Bool // written when the guard of the host opens or closes
	holding    holding
	train      translate.Train // without a buffer, nothing is joined
	counters
}

func newWorker(q tun.Queue, c *Config, p *Plane) *worker {
	w := &worker{queue: q, translator: NewTranslator(c.Resolver, c.Sharing, c.Options, c.IPv4, c.IPv6), tick: &p.tick, wakes: &p.wakes, open: c.Open}
	if c.Join {
		w.train = translate.Train{Buf: make([]byte, bufferSize), Off: headroom}
	}
	w.holding.bytes = make([]byte, heldBytes)
	w.translator.packet.ID = rand.Uint32()
	return w
}

// run is the worker's loop. It ends when the queue is closed, or with an error
// when the queue cannot be read any more.
func (w *worker) run() error {
	for {
		w.retryIfDue()
		n, h, err := w.read()
		switch {
		case err == nil:
			w.handle(n, &h)
		case errors.Is(err, tun.ErrWoken):
			w.retry()
		case errors.Is(err, os.ErrClosed):
			return nil
		default:
			return fmt.Errorf("reading packets: %w", err)
		}
	}
}

// handle takes the packet of n bytes that was read into the translator's
// buffer through all its steps.
func (w *worker) handle(n int, h *tun.Header) {
	packet := w.translator.packet.Buf[headroom : headroom+n]
	w.countIn(packet)
	if !w.open.Load() {
		w.verdicts[translate.Unguarded].Add(1)
		return
	}
	if w.holding.holds(packet) {
		w.hold(packet, h)
		return
	}
	tick := w.tick.Load()
	o := w.translator.handle(n, h, tick, w)
	if o.Verdict == translate.LeasePending { // and the packet is as it came
		w.hold(packet, h)
		return
	}
	w.done(o, tick)
}

// done counts what became of a packet, and takes the fragments that waited for
// it through all their steps.
func (w *worker) done(o Outcome, tick uint32) {
	for ok := true; ok; o, ok = w.translator.Next(tick, w) {
		w.count(o)
	}
}

// Put writes a packet that the translator gives, or keeps it for a moment to join
// others. It implements Sink.
func (w *worker) Put(buf []byte, off, n int, h tun.Header) {
	if !w.join(buf[off:off+n], h) {
		w.write(buf, off, n, h, 1)
	}
}

// write writes what was that many packets when they were read.
func (w *worker) write(buf []byte, off, n int, h tun.Header, packets int) {
	if err := w.queue.Write(buf, off, n, h); err != nil {
		w.writeErrors.Add(uint64(packets))
		return
	}
	w.countOut(buf[off], packets, n+(packets-1)*int(h.HdrLen))
}
