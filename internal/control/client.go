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
	"syscall"
	"time"
)

// Client asks the daemon at a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient is a client of the daemon at the socket. It connects at every
// question.
func NewClient(path string) *Client {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: 10 * time.Second,
	}}}
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
	body, err := c.ask(ctx, http.MethodPost, tracePath, packet)
	if err != nil {
		return nil, err
	}
	return decoded[json.RawMessage](c, body)
}

// Maps asks for the mapping table, one JSON object after the other. It ends
// after an error.
func (c *Client) Maps(ctx context.Context) iter.Seq2[json.RawMessage, error] {
	return c.list(ctx, "/v1/map")
}

// Leases asks what is lent from pools, as Maps does.
func (c *Client) Leases(ctx context.Context) iter.Seq2[json.RawMessage, error] {
	return c.list(ctx, "/v1/lease")
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
	body, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return v, err
	}
	return decoded[T](c, body)
}

// decoded reads an answer of one object, and closes it.
func decoded[T any](c *Client, body io.ReadCloser) (v T, err error) {
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&v); err != nil {
		return v, c.failed(err)
	}
	return v, nil
}

func (c *Client) list(ctx context.Context, path string) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		body, err := c.ask(ctx, http.MethodGet, path, nil)
		if err != nil {
			yield(nil, err)
			return
		}
		defer body.Close()
		for dec := json.NewDecoder(body); ; {
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
}

// ask asks, and turns every answer but OK into an error.
func (c *Client) ask(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://natless"+path, bytes.NewReader(body))
	if err != nil {
		return nil, c.failed(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, c.failed(err)
	}
	var f failure
	if json.Unmarshal(text, &f) != nil || f.Error == "" {
		f.Error = fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return nil, c.failed(errors.New(f.Error))
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
		hint = ": only root may ask, and the group that control.group names"
	}
	return fmt.Errorf("asking the daemon at %s: %w%s", c.path, err, hint)
}
