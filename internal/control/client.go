package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/natless/natless/internal/dns64"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/mapping/trust"
)

const (
	askTime    = 10 * time.Second // until an answer begins
	changeTime = 2 * time.Minute  // the same, where the daemon has work to do before
	silence    = 3 * keepAlive    // of a watch, before the daemon counts as hanging
)

// Client asks the daemon at a socket. An error of the daemon's wraps one of
// mapping's Err... where it is one.
type Client struct {
	path    string
	asks    http.Client
	changes http.Client
	silence time.Duration
}

// NewClient is a client of the daemon at the socket. It connects at every
// question.
func NewClient(path string) *Client {
	waiting := func(d time.Duration) http.Client {
		return http.Client{Transport: &http.Transport{
			DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
			DisableKeepAlives:     true,
			ResponseHeaderTimeout: d,
		}}
	}
	return &Client{path: path, asks: waiting(askTime), changes: waiting(changeTime), silence: silence}
}

// dial connects to root's daemon and to no other: anybody can have made a socket
// where there was none. Who may not use the socket may be a reader.
func dial(ctx context.Context, path string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	c, err := dialer.DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrPermission) {
		if r, readErr := dialer.DialContext(ctx, "unix", ReaderPath(path)); readErr == nil {
			c, err = r, nil
		}
	}
	if err != nil {
		return nil, err
	}
	// The kernel tells who it was that began to listen (unix(7), SO_PEERCRED).
	if at := peerOf(c.(*net.UnixConn)); !at.known || !trust.UID(at.Uid) {
		c.Close()
		return nil, fmt.Errorf("not natless listens there but a program of another user (%v): it is not asked", at)
	}
	return c, nil
}

// Status asks what the daemon is and has.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return one[Status](ctx, c, "/v1/status")
}

// Stats asks what the daemon has counted.
func (c *Client) Stats(ctx context.Context) (Stats, error) { return one[Stats](ctx, c, "/v1/stats") }

// Config asks for the configuration in force, as JSON.
func (c *Client) Config(ctx context.Context) (json.RawMessage, error) {
	return one[json.RawMessage](ctx, c, "/v1/config")
}

// Explain asks what becomes of an address of either family, as JSON.
func (c *Client) Explain(ctx context.Context, a netip.Addr) (json.RawMessage, error) {
	return one[json.RawMessage](ctx, c, "/v1/map/"+url.PathEscape(a.String()))
}

// Trace asks what would become of a packet, as JSON.
func (c *Client) Trace(ctx context.Context, packet []byte) (json.RawMessage, error) {
	return answered[json.RawMessage](c.ask(ctx, &c.asks, http.MethodPost, "/v1/trace", packet))
}

// DNS asks what DNS64 answers, and why.
func (c *Client) DNS(ctx context.Context, name, qtype string) (dns64.Explanation, error) {
	return one[dns64.Explanation](ctx, c, "/v1/dns?"+url.Values{"name": {name}, "type": {qtype}}.Encode())
}

// Listing is a list of one revision of the table.
type Listing struct {
	Revision uint64 // to Watch what changes after it

	// Rows are the JSON objects as they come, once. They end after an error.
	// Who does not range over them ends the context of the question.
	Rows iter.Seq2[json.RawMessage, error]
}

// ListMaps asks for the mapping table.
func (c *Client) ListMaps(ctx context.Context) (Listing, error) { return c.list(ctx, "/v1/map") }

// ListLeases asks what is lent from pools.
func (c *Client) ListLeases(ctx context.Context) (Listing, error) { return c.list(ctx, "/v1/lease") }

// Maps asks for the mapping table, one JSON object after the other. It ends
// after an error.
func (c *Client) Maps(ctx context.Context) iter.Seq2[json.RawMessage, error] {
	return c.rows(ctx, "/v1/map")
}

// Leases asks what is lent from pools, as Maps does.
func (c *Client) Leases(ctx context.Context) iter.Seq2[json.RawMessage, error] {
	return c.rows(ctx, "/v1/lease")
}

// LeasesAt asks what was lent at a time, as Maps does.
func (c *Client) LeasesAt(ctx context.Context, at time.Time) iter.Seq2[json.RawMessage, error] {
	return c.rows(ctx, "/v1/lease?at="+url.QueryEscape(at.Format(time.RFC3339Nano)))
}

// ListSessions asks for the sessions of a client, or of all for the zero Addr.
// They have no revision.
func (c *Client) ListSessions(ctx context.Context, client netip.Addr) (Listing, error) {
	path := "/v1/session"
	if client.IsValid() {
		path += "?client=" + url.QueryEscape(client.String())
	}
	return c.list(ctx, path)
}

// AddMap adds a mapping that outlives the daemon. Like the other changes it
// is in force on return, from the revision on.
func (c *Client) AddMap(ctx context.Context, v4, v6 netip.Prefix, label string) (revision uint64, err error) {
	body := encoded(change{IPv4: v4.String(), IPv6: v6.String(), Label: label})
	return c.change(ctx, http.MethodPost, "/v1/map", body)
}

// RemoveMap removes a mapping that was added at runtime, by the prefix of
// either side.
func (c *Client) RemoveMap(ctx context.Context, prefix netip.Prefix) (revision uint64, err error) {
	return c.change(ctx, http.MethodDelete, "/v1/map/"+url.PathEscape(prefix.String()), nil)
}

// Batch does all of the changes, or none.
func (c *Client) Batch(ctx context.Context, changes []mapping.Change) (revision uint64, err error) {
	var body []byte
	for _, x := range changes {
		line := change{Op: opRemove, Prefix: x.Remove.String()}
		if x.Add != nil {
			line = change{Op: opAdd, IPv4: x.Add.IPv4.String(), IPv6: x.Add.IPv6.String(), Label: x.Add.Label}
		}
		body = append(append(body, encoded(line)...), '\n')
	}
	if len(body) > maxBatch {
		return 0, c.failed(errBatchSize) // it would not read all of it to say so
	}
	return c.change(ctx, http.MethodPost, "/v1/batch", body)
}

// Release ends the lease of an address of either side, and returns it.
func (c *Client) Release(ctx context.Context, a netip.Addr) (mapping.Lease, error) {
	return answered[mapping.Lease](c.ask(ctx, &c.changes, http.MethodDelete, "/v1/lease/"+url.PathEscape(a.String()), nil))
}

// Lend makes sure that a client has a lease, and returns it. It is durable. A
// label that is not "" becomes the lease's.
func (c *Client) Lend(ctx context.Context, client netip.Addr, label string) (mapping.Lease, error) {
	body := encoded(struct {
		IPv6  netip.Addr `json:"ipv6"`
		Label string     `json:"label,omitempty"`
	}{client, label})
	return answered[mapping.Lease](c.ask(ctx, &c.changes, http.MethodPost, "/v1/lease", body))
}

// ListAttachments asks what is attached, the oldest first.
func (c *Client) ListAttachments(ctx context.Context) (Listing, error) {
	return c.list(ctx, "/v1/attachment")
}

// Attachments is ListAttachments, decoded.
func (c *Client) Attachments(ctx context.Context) iter.Seq2[mapping.Attachment, error] {
	return Decoded[mapping.Attachment](c.rows(ctx, "/v1/attachment"))
}

// Attach has an attachment recorded, in the place of one with its ID, and its
// lease pinned. It returns what is recorded, durably.
func (c *Client) Attach(ctx context.Context, a mapping.Attachment) (mapping.Attachment, error) {
	if err := a.Check(); err != nil {
		return a, fmt.Errorf("attach %s: %w", a.Target, err)
	}
	return answered[mapping.Attachment](c.ask(ctx, &c.changes, http.MethodPost, "/v1/attachment", encoded(a)))
}

// Detach has an attachment forgotten and its lease ended, and returns it.
func (c *Client) Detach(ctx context.Context, id string) (mapping.Attachment, error) {
	return answered[mapping.Attachment](c.ask(ctx, &c.changes, http.MethodDelete, "/v1/attachment/"+url.PathEscape(id), nil))
}

// Reload has the daemon read its configuration again, and returns what
// changed, in words.
func (c *Client) Reload(ctx context.Context) ([]string, error) {
	r, err := answered[reloaded](c.ask(ctx, &c.changes, http.MethodPost, "/v1/reload", nil))
	return r.Changes, err
}

func (c *Client) change(ctx context.Context, method, path string, body []byte) (uint64, error) {
	r, err := answered[changed](c.ask(ctx, &c.changes, method, path, body))
	return r.Revision, err
}

// encoded is a change as JSON.
func encoded(x any) []byte {
	data, err := json.Marshal(x)
	if err != nil {
		panic(err) // what this package encodes can be
	}
	return data
}

// Watch follows every change of the table after a revision, without gaps;
// from now on when after is nil. It ends with an error: that of the context,
// mapping.ErrGone when the reader fell behind what the daemon remembers (list
// again, then watch from there), or what became of the daemon.
func (c *Client) Watch(ctx context.Context, after *uint64) iter.Seq2[mapping.Event, error] {
	path := "/v1/watch"
	if after != nil {
		path += fmt.Sprintf("?after=%d", *after)
	}
	return func(yield func(mapping.Event, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		hangs := time.AfterFunc(c.silence, func() { cancel(fmt.Errorf("no word of it for %v", c.silence)) })
		defer hangs.Stop()
		for data, err := range c.rows(ctx, path) {
			hangs.Stop()
			var line struct {
				mapping.Event
				failure
			}
			switch {
			case err != nil && ctx.Err() != nil:
				err = c.failed(context.Cause(ctx))
			case err != nil:
			default:
				if err = json.Unmarshal(data, &line); err == nil && line.Error != "" {
					err = line.failure.err()
				} else if err != nil {
					err = c.failed(err)
				}
			}
			if (err != nil || line.Op != "") && !yield(line.Event, err) || err != nil {
				return
			}
			hangs.Reset(c.silence)
		}
		yield(mapping.Event{}, c.failed(io.ErrUnexpectedEOF))
	}
}

// Decoded reads each object of a list into a T.
func Decoded[T any](list iter.Seq2[json.RawMessage, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for data, err := range list {
			var v T
			if err == nil {
				err = json.Unmarshal(data, &v)
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

func one[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	return answered[T](c.ask(ctx, &c.asks, http.MethodGet, path, nil))
}

// answered reads an answer of one object, and closes it.
func answered[T any](a answer, err error) (v T, _ error) {
	if err != nil {
		return v, err
	}
	defer a.Body.Close()
	if err := json.NewDecoder(a.Body).Decode(&v); err != nil {
		return v, a.failed(err)
	}
	return v, nil
}

// list asks for a list.
func (c *Client) list(ctx context.Context, path string) (l Listing, err error) {
	a, err := c.ask(ctx, &c.asks, http.MethodGet, path, nil)
	if err != nil {
		return l, err
	}
	if text := a.Header.Get(revisionHeader); text != "" {
		if l.Revision, err = strconv.ParseUint(text, 10, 64); err != nil {
			a.Body.Close()
			return l, c.failed(fmt.Errorf("reading its revision: %w", err))
		}
	}
	l.Rows = func(yield func(json.RawMessage, error) bool) {
		defer a.Body.Close()
		for dec := json.NewDecoder(a.Body); ; {
			var v json.RawMessage
			err := dec.Decode(&v)
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, c.failed(err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
	return l, nil
}

// rows asks for a list when it is ranged over.
func (c *Client) rows(ctx context.Context, path string) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		l, err := c.list(ctx, path)
		if err != nil {
			yield(nil, err)
			return
		}
		l.Rows(yield)
	}
}

// answer is one that went well.
type answer struct {
	*http.Response
	*Client
}

// ask asks, and turns every answer but OK into an error.
func (c *Client) ask(ctx context.Context, by *http.Client, method, path string, body []byte) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://natless"+path, bytes.NewReader(body))
	if err != nil {
		return a, c.failed(err)
	}
	resp, err := by.Do(req)
	if err != nil {
		return a, c.failed(err)
	}
	if resp.StatusCode == http.StatusOK {
		return answer{resp, c}, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return a, c.failed(err)
	}
	var f failure
	if json.Unmarshal(text, &f) != nil || f.Error == "" {
		return a, c.failed(fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text)))
	}
	return a, f.err() // the daemon's own words, which say what was refused
}

// failed says what was attempted, and what to look at when nobody is there.
func (c *Client) failed(err error) error {
	hint := ""
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // its URL says nothing to the user
	}
	switch err = bare(err); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		hint = ": is natless running?"
	case errors.Is(err, fs.ErrPermission):
		hint = ": only root may ask, and the groups that control.group and control.read_group name"
	}
	return fmt.Errorf("asking the daemon at %s: %w%s", c.path, err, hint)
}
