package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/mapping"
)

const (
	maxBody  = 64 << 10 // bytes, also of one line of a batch
	maxBatch = 16 << 20
)

var errBatchSize = fmt.Errorf("expected at most %d bytes", maxBatch)

// lineError is a batch that is malformed, rather than one that did not come.
type lineError struct {
	line int
	err  error
}

func (e lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }

// parseBatch reads changes, one JSON object a line; empty lines count for
// nothing. Errors other than a lineError are those of reading.
func parseBatch(r io.Reader) (changes []mapping.Change, err error) {
	in := bufio.NewReaderSize(r, maxBody)
	for line := 1; ; line++ {
		data, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, lineError{line, fmt.Errorf("expected at most %d bytes", maxBody)}
		case err != nil && err != io.EOF:
			return nil, err
		}
		if len(bytes.TrimSpace(data)) > 0 {
			c, err := parseChange(data)
			if err != nil {
				return nil, lineError{line, err}
			}
			changes = append(changes, c)
		}
		if err == nil {
			continue
		}
		if len(changes) == 0 {
			return nil, lineError{line, errors.New("expected at least one change")}
		}
		return changes, nil
	}
}

// parseChange reads one line of a batch.
func parseChange(data []byte) (c mapping.Change, err error) {
	f, err := parseFields(data)
	if err != nil {
		return c, err
	}
	switch op := f["op"]; op {
	case opAdd:
		if err := f.only("op", "ipv4", "ipv6", "label"); err != nil {
			return c, err
		}
		c.Add, err = f.mapping()
		return c, err
	case opRemove:
		if err := f.only("op", "prefix"); err != nil {
			return c, err
		}
		c.Remove, err = parsePrefix(f["prefix"])
		return c, err
	default:
		return c, fmt.Errorf(`op %s: expected "add" or "remove"`, quoted(op))
	}
}

// parseMap reads a mapping to add.
func parseMap(data []byte) (*mapping.Map, error) {
	f, err := parseFields(data)
	if err != nil {
		return nil, err
	}
	if err := f.only("ipv4", "ipv6", "label"); err != nil {
		return nil, err
	}
	return f.mapping()
}

// parseClient reads who is to have a lease, and what it is called.
func parseClient(data []byte) (a netip.Addr, label string, err error) {
	f, err := parseFields(data)
	if err != nil {
		return a, "", err
	}
	if err := f.only("ipv6", "label"); err != nil {
		return a, "", err
	}
	a, err = parseAddr(f["ipv6"])
	if err != nil || !a.Is6() {
		return a, "", fmt.Errorf("ipv6 %s: expected an IPv6 address", quoted(f["ipv6"]))
	}
	label, err = f.label()
	return a, label, err
}

// parseAttachment reads an attachment to record.
func parseAttachment(data []byte) (a mapping.Attachment, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return a, fmt.Errorf("expected an attachment: %s", quoted(err.Error()))
	}
	if _, err := dec.Token(); err != io.EOF {
		return a, errors.New("expected nothing after the JSON object")
	}
	if err := a.Check(); err != nil {
		return a, fmt.Errorf("the attachment: %w", err)
	}
	return a, nil
}

// parseQuery reads a query that may have the parameters expected, each once.
func parseQuery(raw, expected string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("the query %s: %w", quoted(raw), err)
	}
	for key, values := range q {
		if !slices.Contains(strings.Fields(expected), key) {
			return nil, fmt.Errorf("the query %s: no such parameter here", quoted(raw))
		}
		if len(values) > 1 {
			return nil, fmt.Errorf("the query %s: expected the parameter once", quoted(raw))
		}
	}
	return q, nil
}

// parseAddr reads an address of either family.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return a, fmt.Errorf("%s: expected an IPv4 or IPv6 address", quoted(s))
	}
	return a, nil
}

// parsePrefix reads a prefix of either family.
func parsePrefix(s string) (p netip.Prefix, err error) {
	switch {
	case strings.Contains(s, ":"):
		p, err = config.ParsePrefix(s, 6)
	case strings.Contains(s, "."):
		p, err = config.ParsePrefix(s, 4)
	default:
		err = errors.New("expected an IPv4 or IPv6 prefix")
	}
	if err != nil {
		return p, fmt.Errorf("prefix %s: %w", quoted(s), err)
	}
	return p, nil
}

// fields are those of a JSON object. All that this API reads are strings.
type fields map[string]string

// parseFields is stricter than encoding/json with a struct: a field that comes
// twice, or in other letters, is as likely a mistake as one that is unknown.
func parseFields(data []byte) (fields, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("expected JSON in UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	next := func() (json.Token, error) {
		t, err := dec.Token()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			err = fmt.Errorf("expected a JSON object: %w", err)
		}
		return t, err
	}
	if t, err := next(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, errors.New("expected a JSON object")
	}
	f := fields{}
	for dec.More() {
		key, err := next()
		if err != nil {
			return nil, err
		}
		name := key.(string) // or it would be an error
		value, err := next()
		if err != nil {
			return nil, err
		}
		text, ok := value.(string)
		if !ok {
			return nil, fmt.Errorf("field %s: expected a string", quoted(name))
		}
		if _, twice := f[name]; twice {
			return nil, fmt.Errorf("field %s: given twice", quoted(name))
		}
		f[name] = text
	}
	if _, err := next(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("expected nothing after the JSON object")
	}
	return f, nil
}

// only refuses every other field.
func (f fields) only(known ...string) error {
	for name := range f {
		if !slices.Contains(known, name) {
			return fmt.Errorf("field %s: unknown here: expected %s", quoted(name), strings.Join(known, ", "))
		}
	}
	return nil
}

func (f fields) mapping() (*mapping.Map, error) {
	v4, err := f.prefix("ipv4", 4)
	if err != nil {
		return nil, err
	}
	v6, err := f.prefix("ipv6", 6)
	if err != nil {
		return nil, err
	}
	label, err := f.label()
	if err != nil {
		return nil, err
	}
	return &mapping.Map{IPv4: v4, IPv6: v6, Label: label}, nil
}

func (f fields) label() (string, error) {
	label := f["label"]
	if err := mapping.CheckLabel(label); err != nil {
		return "", fmt.Errorf("label %s: %w", quoted(label), err)
	}
	return label, nil
}

func (f fields) prefix(name string, family int) (netip.Prefix, error) {
	p, err := config.ParsePrefix(f[name], family)
	if err != nil {
		return p, fmt.Errorf("%s %s: %w", name, quoted(f[name]), err)
	}
	return p, nil
}

// quoted is what somebody sent, as errors and logs show it: the head of it.
func quoted(s string) string {
	const most = 100
	if len(s) > most {
		return fmt.Sprintf("%q...", strings.ToValidUTF8(s[:most], ""))
	}
	return fmt.Sprintf("%q", s)
}
