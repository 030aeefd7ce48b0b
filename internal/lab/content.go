package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Stall is how long a transfer may stand still before it counts as failed.
const Stall = 5 * time.Second

// chunk is how much Download reads at most before it tells of progress.
const chunk = 256 << 10

// block is what contents repeat: random, the same in every process, and of a
// length that no segment size divides, so that a segment lost, doubled or in
// the wrong place changes the hash.
var block = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<20+7)
	rand.NewChaCha8([32]byte{'n', 'a', 't', '6', '4'}).Read(b)
	return b
})

// Content is size bytes, the same whenever it is read.
func Content(size int64) io.Reader {
	return io.LimitReader(&repeat{}, size)
}

type repeat struct{ at int }

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, block()[r.at:])
	r.at = (r.at + n) % len(block())
	return n, nil
}

// Sum is the SHA-256 of Content(size), in hexadecimal.
func Sum(size int64) string {
	h := sha256.New()
	io.Copy(h, Content(size))
	return hex.EncodeToString(h.Sum(nil))
}

// Serve answers HTTP on the listener until it is closed.
//
//	GET /?bytes=N  Content(N)
//	POST /         the SHA-256 of the body in hexadecimal
//
// Both name the client's address as the server sees it in the header Client.
func Serve(ln net.Listener) {
	block()
	s := http.Server{Handler: http.HandlerFunc(serve), ReadHeaderTimeout: Stall}
	_ = s.Serve(ln) // returns when the listener is closed
}

func serve(w http.ResponseWriter, r *http.Request) {
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	w.Header().Set("Client", client)
	if r.Method == http.MethodPost {
		h := sha256.New()
		if _, err := io.Copy(h, r.Body); err == nil {
			fmt.Fprintf(w, "%x", h.Sum(nil))
		}
		return
	}
	size, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil {
		fmt.Fprintf(w, "This is the lab's IPv4-only server. You are %s. Try /?bytes=1000000.\n", client)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	for size > 0 {
		n, err := w.Write(block()[:min(size, int64(len(block())))])
		if err != nil {
			return
		}
		size -= int64(n)
	}
}

// HTTP is a client whose connections start in the node, from a source address
// or, when that is "", from whichever the kernel takes. Each request has a
// connection of its own, which fails when it stands still for Stall.
func (n *Node) HTTP(source string) *http.Client { return n.PatientHTTP(source, Stall) }

// PatientHTTP is HTTP with a time of its own to stand still.
func (n *Node) PatientHTTP(source string, stall time.Duration) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, stall)
			defer cancel()
			conn, err := n.DialFrom(ctx, network, source, address)
			if err != nil {
				return nil, err
			}
			return &impatient{Conn: conn, stall: stall}, nil
		},
		DisableKeepAlives:  true,
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
		WriteBufferSize:    64 << 10,
	}}
}

// impatient is a connection that does not wait for ever. What moves in one
// direction gives the other its time again: a reader of the answer waits while
// the request is still being written.
type impatient struct {
	net.Conn
	stall time.Duration
}

func (c *impatient) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *impatient) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Transfer is a completed download or upload.
type Transfer struct {
	Bytes  int64
	Took   time.Duration // from the first byte of the body to its last
	Client string        // the client's address, as the server saw it
}

// Rate is the throughput in bits per second.
func (t Transfer) Rate() float64 {
	return float64(8*t.Bytes) / t.Took.Seconds()
}

// Download fetches len(buf) bytes of Content from a server at host:port into
// buf, and fails unless their SHA-256 is as it should be. The hash is computed
// after the clock has stopped. progress, when not nil, is told of every read
// how many bytes there are now.
func Download(ctx context.Context, c *http.Client, server string, buf []byte, progress func(int)) (t Transfer, err error) {
	url := fmt.Sprintf("http://%s/?bytes=%d", server, len(buf))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return t, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return t, err
	}
	defer resp.Body.Close()
	t.Client = resp.Header.Get("Client")
	start := time.Now()
	got := 0
	for got < len(buf) {
		n, err := resp.Body.Read(buf[got:min(len(buf), got+chunk)])
		got += n
		if progress != nil {
			progress(got)
		}
		if err != nil && got < len(buf) {
			return t, fmt.Errorf("after %d of %d bytes: %w", got, len(buf), err)
		}
	}
	t.Bytes, t.Took = int64(got), time.Since(start)
	if sum := fmt.Sprintf("%x", sha256.Sum256(buf)); sum != Sum(t.Bytes) {
		return t, fmt.Errorf("SHA-256 of what came is %s, of what was sent %s", sum, Sum(t.Bytes))
	}
	return t, nil
}

// Upload sends size bytes of Content to a server at host:port, and fails
// unless it answers with their SHA-256.
func Upload(ctx context.Context, c *http.Client, server string, size int64) (t Transfer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+server+"/", Content(size))
	if err != nil {
		return t, err
	}
	req.ContentLength = size
	start := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return t, err
	}
	defer resp.Body.Close()
	sum, err := io.ReadAll(resp.Body)
	if err != nil {
		return t, err
	}
	t = Transfer{Bytes: size, Took: time.Since(start), Client: resp.Header.Get("Client")}
	if string(sum) != Sum(size) {
		return t, fmt.Errorf("SHA-256 of what came is %s, of what was sent %s", sum, Sum(size))
	}
	return t, nil
}

// Echo answers every datagram with itself until the socket is closed.
func Echo(conn net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteTo(buf[:n], from) // who misses the answer asks again
		}
	}
}

// Exchange sends a datagram of size bytes to an echo server and waits for the
// same to come back. UDP may lose it, so it tries three times within Stall.
func Exchange(ctx context.Context, n *Node, source, server string, size int) error {
	ctx, cancel := context.WithTimeout(ctx, Stall)
	defer cancel()
	conn, err := n.DialFrom(ctx, "udp", source, server)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	sent, buf := block()[:size], make([]byte, 64<<10)
	for try := 0; try < 3 && ctx.Err() == nil; try++ {
		conn.SetReadDeadline(time.Now().Add(Stall / 4))
		if _, err = conn.Write(sent); err != nil {
			continue
		}
		var got int
		if got, err = conn.Read(buf); err == nil {
			if !bytes.Equal(buf[:got], sent) {
				return fmt.Errorf("%d bytes came back changed", got)
			}
			return nil
		}
	}
	return fmt.Errorf("%d bytes to %s: %w", size, server, err)
}
