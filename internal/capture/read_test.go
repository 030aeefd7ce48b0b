package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// block is a block of pcapng with a body.
func block(kind uint32, body []byte) []byte {
	le := binary.LittleEndian
	size := uint32(len(body)) + ngBlockSize
	return le.AppendUint32(append(le.AppendUint32(le.AppendUint32(nil, kind), size), body...), size)
}

var (
	section   = block(ngSection, []byte{0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255})
	described = func(options ...byte) []byte {
		return block(ngDescribes, append([]byte{101, 0, 0, 0, 0, 0, 0, 0}, options...))
	}
	// enhanced is a packet block of the interface 0 with a timestamp.
	enhanced = func(stamp uint64, captured, length uint32, data []byte) []byte {
		le := binary.LittleEndian
		b := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 0), uint32(stamp>>32)), uint32(stamp))
		b = append(le.AppendUint32(le.AppendUint32(b, captured), length), data...)
		return block(ngEnhanced, append(b, make([]byte, -len(b)&3)...))
	}
)

func joined(blocks ...[]byte) []byte { return bytes.Join(blocks, nil) }

// TestResolutions: whatever timestamps count, time is right where it means
// something, and nothing panics where it does not.
func TestResolutions(t *testing.T) {
	for b, want := range map[byte]struct {
		stamp uint64
		at    time.Time
	}{
		0:          {7, time.Unix(7, 0)},
		3:          {7_250, time.Unix(7, 250_000_000)},
		6:          {7_250_000, time.Unix(7, 250_000_000)},
		9:          {7_250_000_001, time.Unix(7, 250_000_001)},
		12:         {7_250_000_000_500, time.Unix(7, 250_000_000)},
		19:         {math.MaxUint64, time.Unix(1, 844_674_407)},
		20:         {math.MaxUint64, time.Unix(0, 0)},
		0x7f:       {math.MaxUint64, time.Unix(0, 0)},
		0x80:       {7, time.Unix(7, 0)},
		0x80 | 1:   {15, time.Unix(7, 500_000_000)},
		0x80 | 63:  {3 << 62, time.Unix(1, 500_000_000)},
		0x80 | 64:  {math.MaxUint64, time.Unix(0, 0)},
		0x80 | 127: {math.MaxUint64, time.Unix(0, 0)}, // 0xff, which divided by zero
	} {
		assert.Equal(t, want.at.UTC(), ngInterface{second: resolution(b)}.time(want.stamp), "%#x", b)
	}
	assert.Equal(t, time.Unix(5, 0).UTC(), ngInterface{second: 1, offset: 2}.time(3))
}

// hostile are files that say what is not so.
func hostile(t testing.TB) map[string][]byte {
	six := packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80")
	size := uint32(len(six))
	long := func(kind, size uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, kind), size)
	}
	good := pcap(t, layers.LinkTypeRaw, frame{data: six})
	claims := func(captured, length uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[24+8:], captured)
		binary.LittleEndian.PutUint32(b[24+12:], length)
		return b
	}
	return map[string][]byte{
		"resolution 0xff":              joined(section, described(9, 0, 1, 0, 0xff, 0, 0, 0), enhanced(math.MaxUint64, size, size, six)),
		"resolution of 64":             joined(section, described(9, 0, 1, 0, 64, 0, 0, 0), enhanced(1, size, size, six)),
		"an empty resolution":          joined(section, described(9, 0, 0, 0), enhanced(1, size, size, six)),
		"an offset of 2 bytes":         joined(section, described(14, 0, 2, 0, 1, 1, 0, 0), enhanced(1, size, size, six)),
		"an option beyond its block":   joined(section, described(9, 0, 255, 255), enhanced(1, size, size, six)),
		"half an option":               joined(section, described(9, 0), enhanced(1, size, size, six)),
		"a block of nothing":           joined(section, long(ngDescribes, 0)),
		"a block of 4 GiB":             joined(section, long(ngEnhanced, math.MaxUint32&^3)),
		"another block of 4 GiB":       joined(section, long(77, math.MaxUint32&^3)),
		"a block that ends otherwise":  joined(section, described()[:20-4], []byte{1, 2, 3, 4}),
		"a frame of 4 GiB":             joined(section, described(), enhanced(1, math.MaxUint32, math.MaxUint32, six)),
		"a frame beyond its block":     joined(section, described(), enhanced(1, size+5, size+5, six)),
		"more captured than there was": joined(section, described(), enhanced(1, size, size-1, six)),
		"no interface":                 joined(section, enhanced(1, size, size, six)),
		"no interface any more":        joined(section, described(), section, enhanced(1, size, size, six)),
		"a simple block without one":   joined(section, block(ngSimple, []byte{4, 0, 0, 0, 1, 2, 3, 4})),
		"a short simple block":         joined(section, described(), block(ngSimple, nil)),
		"a short packet":               joined(section, described(), block(ngEnhanced, make([]byte, 16))),
		"a short old packet":           joined(section, described(), block(ngOldPacket, make([]byte, 16))),
		"a short section":              block(ngSection, []byte{0x4d, 0x3c, 0x2b, 0x1a}),
		"a short interface":            joined(section, block(ngDescribes, []byte{1, 0})),
		"many interfaces":              joined(section, bytes.Repeat(described(), maxInterfaces+1)),
		"another order":                joined(section, block(ngSection, []byte{1, 2, 3, 4})),
		"pcap: a frame of 4 GiB":       claims(math.MaxUint32, math.MaxUint32),
		"pcap: a frame of 2 GiB":       claims(1<<31, 1<<31),
		"pcap: more than there was":    claims(size, size-1),
		"pcap: of 3 GiB":               claims(size, 3<<30),
	}
}

// TestHostileCaptures: no file crashes it, or has it take more memory than a
// frame can need.
func TestHostileCaptures(t *testing.T) {
	fine := map[string]bool{"resolution 0xff": true, "resolution of 64": true, "an empty resolution": true, "an offset of 2 bytes": true}
	for name, in := range hostile(t) {
		c := config(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, err := Translate(t.Context(), c, bytes.NewReader(in), io.Discard)
		runtime.ReadMemStats(&after)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4*maxBlock), name)
		assert.Equal(t, fine[name], err == nil, "%s: %v", name, err)
		if fine[name] {
			assert.EqualValues(t, 1, s.Verdicts["translated"], name)
		}
	}
	many := joined(section, described(), bytes.Repeat(block(77, make([]byte, 8)), 1000), block(ngSimple, joined([]byte{4, 0, 0, 0}, []byte{1, 2, 3, 4})))
	s, err := Translate(t.Context(), config(t), bytes.NewReader(many), io.Discard)
	require.NoError(t, err)
	assert.EqualValues(t, 1, s.Frames, "blocks of other types are passed over")
	for n := range many[:200] {
		_, err := Translate(t.Context(), config(t), bytes.NewReader(many[:n]), io.Discard)
		assert.Equal(t, n == len(section) || n == len(section)+len(described()) || n > 48 && (n-48)%20 == 0, err == nil, "%d bytes: %v", n, err)
	}
}

// FuzzCapture: no file crashes it, and what it makes is a capture.
func FuzzCapture(f *testing.F) {
	for _, in := range hostile(f) {
		if len(in) < 1<<10 { // of longer ones the fuzzer would spend its time on making shorter ones
			f.Add(in)
		}
	}
	c := config(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var out bytes.Buffer
		s, err := Translate(ctx, c, bytes.NewReader(in), &out)
		if s.Frames > uint64(len(in)) && !bytes.HasPrefix(in, []byte{0x1f, 0x8b}) {
			t.Fatalf("%d frames", s.Frames)
		}
		if err != nil {
			return
		}
		frames, err := open(bytes.NewReader(out.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		for n := uint64(0); ; n++ {
			switch _, _, _, err := frames.next(); {
			case err == io.EOF && n == s.Written:
				return
			case err != nil:
				t.Fatalf("packet %d of %d: %v", n, s.Written, err)
			}
		}
	})
}

// TestPipes: a pipe is read; one that nobody writes to does not keep it from
// ending, nor is what is no file replaced.
func TestPipes(t *testing.T) {
	dir := t.TempDir()
	fifo, out := filepath.Join(dir, "fifo"), filepath.Join(dir, "out")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	ends := func(do func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- do(ctx) }()
		select {
		case err := <-ended:
			return err
		case <-time.After(5 * time.Second):
			t.Fatal("it hangs")
			return nil
		}
	}
	read := func(ctx context.Context) error {
		_, err := File(ctx, config(t), fifo, out)
		return err
	}
	assert.ErrorIs(t, ends(read), context.DeadlineExceeded, "nobody opens it")
	w, err := os.OpenFile(fifo, os.O_RDWR, 0)
	require.NoError(t, err)
	defer w.Close()
	assert.ErrorIs(t, ends(read), context.DeadlineExceeded, "nobody writes")
	_, err = w.Write(pcap(t, layers.LinkTypeRaw, frame{data: packet(t, "tcp 2001:db8::1 4000 64:ff9b::203.0.113.9 80")}))
	require.NoError(t, err)
	assert.ErrorIs(t, ends(read), context.DeadlineExceeded, "there is no end")
	assert.NoFileExists(t, out)

	assert.Error(t, ends(func(ctx context.Context) error { _, err := File(ctx, config(t), dir, out); return err }), "a directory")
	assert.ErrorContains(t, ends(func(ctx context.Context) error { _, err := File(ctx, config(t), out, fifo); return err }), "it is there and is not a file")
}

// TestForeignLink: a link of another user's is not followed.
func TestForeignLink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to give a link away")
	}
	dir := t.TempDir()
	in, precious, link := filepath.Join(dir, "in"), filepath.Join(dir, "precious"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(in, pcap(t, layers.LinkTypeRaw), 0o600))
	require.NoError(t, os.WriteFile(precious, []byte("of root"), 0o600))
	require.NoError(t, os.Symlink(precious, link))
	require.NoError(t, os.Lchown(link, 65534, 65534))
	_, err := File(t.Context(), config(t), in, link)
	assert.ErrorContains(t, err, "it is a symbolic link of another user's (65534)")
	b, err := os.ReadFile(precious)
	require.NoError(t, err)
	assert.Equal(t, "of root", string(b))
}
