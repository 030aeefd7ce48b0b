// Package capture translates the packets of a capture file offline: it hands
// them one after the other to the same Translator that the workers have, and
// writes down what would have left. Time is the capture's own, so that leases
// come and go as they would have.
package capture

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/natless/natless/internal/dataplane"
	"github.com/natless/natless/translate"
	"github.com/natless/natless/tun"
)

// Config is what packets are translated by.
type Config struct {
	Resolver interface {
		dataplane.Resolver
		Expire(tick uint32)
	}
	Sharing    dataplane.Sharing
	Options    translate.Options
	IPv4, IPv6 netip.Addr // natless's own
}

// Summary counts what became of the frames of a capture. Frames that are not
// IP and those that the capture holds in part only were not translated; the
// others are among the verdicts. The JSON names are stable.
type Summary struct {
	Frames           uint64            `json:"frames"`            // read
	NotIP            uint64            `json:"not_ip_frames"`     // of them without an IP packet
	CutShort         uint64            `json:"cut_short"`         // of them cut by the snap length of the capture
	Verdicts         map[string]uint64 `json:"verdicts"`          // packets, by the name of their verdict
	ErrorsSent       uint64            `json:"errors_sent"`       // ICMP errors that natless originates
	ErrorsSuppressed uint64            `json:"errors_suppressed"` // and those that the rate limit keeps back
	Written          uint64            `json:"written"`           // packets, errors among them
}

// File translates the capture in the file in to the file out, which is made or
// replaced when all of it is done, and left alone before. An end of the context
// ends it with an error.
func File(ctx context.Context, c Config, in, out string) (s Summary, err error) {
	target, replaced, err := place(in, out)
	if err != nil {
		return s, err
	}
	from, err := openInput(ctx, in)
	if err != nil {
		return s, fmt.Errorf("reading the capture: %w", err)
	}
	defer from.Close()
	stop := context.AfterFunc(ctx, func() { from.Close() }) // a pipe may never say more
	defer stop()
	unfinished := filepath.Join(filepath.Dir(target), fmt.Sprintf(".%s.%x", filepath.Base(target), rand.Uint64()))
	to, err := os.OpenFile(unfinished, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return s, fmt.Errorf("writing the capture: %w", err)
	}
	defer os.Remove(unfinished) // nothing is there any more if all went well
	defer to.Close()

	buffered := bufio.NewWriter(to)
	if s, err = Translate(ctx, c, from, buffered); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return s, fmt.Errorf("translating the capture %s: %w", in, err)
	}
	if err = buffered.Flush(); err == nil && replaced != nil {
		err = to.Chmod(replaced.Mode().Perm())
	}
	if err = errors.Join(err, to.Close()); err == nil {
		err = os.Rename(unfinished, target)
	}
	if err != nil {
		return s, fmt.Errorf("writing the capture: %w", err)
	}
	return s, nil
}

// openInput opens a file, or a pipe, which nobody may ever open at its other
// end.
func openInput(ctx context.Context, in string) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	opened := make(chan result, 1)
	go func() {
		f, err := os.Open(in)
		opened <- result{f, err}
	}()
	select {
	case r := <-opened:
		return r.file, r.err
	case <-ctx.Done(): // the process is about to end, and the wait with it
		return nil, ctx.Err()
	}
}

// place is the file that out names, links followed, and what is there now, nil
// for nothing. What is no file, such as a device or a pipe, must not be
// replaced by one.
func place(in, out string) (target string, replaced fs.FileInfo, err error) {
	there, err := os.Stat(out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return out, nil, nil
	case err != nil:
		return "", nil, fmt.Errorf("writing the capture: %w", err)
	case !there.Mode().IsRegular():
		return "", nil, fmt.Errorf("writing the capture %s: it is there and is not a file: expected a new one, or a file to replace", out)
	}
	if source, err := os.Stat(in); err == nil && os.SameFile(source, there) {
		return "", nil, fmt.Errorf("writing the capture %s: it is the capture that is read: expected another file", out)
	}
	if err := ourLink(out); err != nil {
		return "", nil, fmt.Errorf("writing the capture %s: %w", out, err)
	}
	if target, err = filepath.EvalSymlinks(out); err != nil {
		return "", nil, fmt.Errorf("writing the capture: %w", err)
	}
	return target, there, nil
}

// ourLink refuses to follow a symbolic link of another user's, as the kernel does
// in /tmp (protected_symlinks in proc_sys_fs(5)): root would replace a file of
// that user's choice.
func ourLink(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return err
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return fmt.Errorf("it is a symbolic link of another user's (%d): expected a file, or a link of one's own", owner)
	}
	return nil
}

// Translate translates the capture in, pcap or pcapng, to out, which becomes
// pcap of link type RAW, with timestamps in nanoseconds.
func Translate(ctx context.Context, c Config, in io.Reader, out io.Writer) (s Summary, err error) {
	frames, err := open(in)
	if err != nil {
		return s, err
	}
	w := &writer{out: pcapgo.NewWriterNanos(out)}
	if err := w.out.WriteFileHeader(maxFrame, layers.LinkTypeRaw); err != nil {
		return s, fmt.Errorf("writing: %w", err)
	}
	s.Verdicts = map[string]uint64{}
	t := dataplane.NewTranslator(c.Resolver, c.Sharing, c.Options, c.IPv4, c.IPv6)
	clock := clock{expire: func(tick uint32) { c.Resolver.Expire(tick); c.Sharing.Expire(tick) }}
	for ctx.Err() == nil {
		frame, link, info, err := frames.next()
		if err == io.EOF {
			s.Written = w.packets
			if lost := c.Sharing.Lost(); lost > 0 {
				s.Verdicts[translate.FragmentPending.String()] += lost
			}
			return s, nil
		}
		if err != nil {
			return s, fmt.Errorf("frame %d: %w", s.Frames+1, err)
		}
		s.Frames++
		packet, known, ip := network(frame, link)
		switch {
		case !known:
			return s, fmt.Errorf("frame %d: link type %v: expected raw IP, IPv4, IPv6, Ethernet or Linux cooked", s.Frames, link)
		case !ip:
			s.NotIP++
			continue
		case info.CaptureLength < info.Length && cutShort(packet):
			s.CutShort++
			continue
		}
		w.time = info.Timestamp
		tick := clock.tick(info.Timestamp)
		o := t.Translate(packet, tick, w)
		for ok := true; ok; o, ok = t.Next(tick, w) {
			s.count(o)
		}
		if w.err != nil {
			return s, fmt.Errorf("writing: %w", w.err)
		}
	}
	return s, ctx.Err()
}

func (s *Summary) count(o dataplane.Outcome) {
	if o.Held {
		return
	}
	s.Verdicts[o.Verdict.String()]++
	if o.Error {
		s.ErrorsSent++
	}
	if o.Limited {
		s.ErrorsSuppressed++
	}
}

// maxFrame is the snap length that tools agree on as the largest.
const maxFrame = 262144

// writer writes what a packet became, at the time of the packet. The first
// error stays.
type writer struct {
	out     *pcapgo.Writer
	time    time.Time
	packets uint64
	err     error
}

// Put implements dataplane.Sink.
func (w *writer) Put(buf []byte, off, n int, _ tun.Header) {
	if w.err != nil {
		return
	}
	w.packets++
	w.err = w.out.WritePacket(gopacket.CaptureInfo{Timestamp: w.time, CaptureLength: n, Length: n}, buf[off:off+n])
}

// clock turns the timestamps of a capture into ticks. It never goes back,
// though captures do.
type clock struct {
	expire func(tick uint32)
	start  time.Time
	now    uint32
	steps  int // taken
}

// manySteps is for how many seconds the clock goes through every one, as a run
// does. A longer pause, or a broken timestamp, is gone through in as many steps,
// and when those of a month have been taken in fewSteps: a few frames whose times
// are far apart would take hours.
const (
	manySteps = 86400
	monthly   = 31 * manySteps
	fewSteps  = 60
)

func (c *clock) tick(at time.Time) uint32 {
	if c.start.IsZero() {
		c.start = at
	}
	const end = 1<<31 - 1 // ticks are told apart up to here
	to := uint32(min(max(at.Sub(c.start)/time.Second, 0), end))
	if to <= c.now {
		return c.now
	}
	most := uint32(manySteps)
	if c.steps > monthly {
		most = fewSteps
	}
	step := (to-c.now)/most + 1
	for c.now < to {
		c.now += min(step, to-c.now)
		c.steps++
		c.expire(c.now)
	}
	return c.now
}

// cutShort reports whether bytes of an IP packet are missing. If what is
// missing is padding it is whole.
func cutShort(packet []byte) bool {
	switch {
	case len(packet) == 0:
		return true
	case packet[0]>>4 == 4:
		return len(packet) < 20 || len(packet) < int(binary.BigEndian.Uint16(packet[2:]))
	case packet[0]>>4 == 6:
		return len(packet) < 40 || len(packet) < 40+int(binary.BigEndian.Uint16(packet[4:]))
	}
	return false
}
