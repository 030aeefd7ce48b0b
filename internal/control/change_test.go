package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/mapping"
)

func add(v4, v6, label string) mapping.Change {
	return mapping.Change{Add: &mapping.Map{IPv4: pfx(v4), IPv6: pfx(v6), Label: label}}
}

// request is an HTTP request as bytes.
func request(line, body string) string {
	return fmt.Sprintf("%s HTTP/1.1\r\nHost: natless\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", line, len(body), body)
}

func TestChanges(t *testing.T) {
	c, j, _ := startJournal(t, 100, nil)
	ctx := t.Context()

	revision, err := c.AddMap(ctx, pfx("198.51.100.7/32"), pfx("2001:db8::7/128"), "web")
	require.NoError(t, err)
	assert.EqualValues(t, 1001, revision)
	list, err := c.ListMaps(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 1001, list.Revision)
	for r, err := range Decoded[Row](list.Rows) {
		require.NoError(t, err)
		assert.Equal(t, "web", r.Label)
		assert.Regexp(t, fmt.Sprintf(`^added 2026-03-14T15:09:26Z by uid %d (\(\S+\))?, pid %d$`, os.Getuid(), os.Getpid()), r.Origin)
	}

	_, err = c.AddMap(ctx, pfx("198.51.100.7/32"), pfx("2001:db8::8/128"), "")
	require.ErrorIs(t, err, mapping.ErrConflict)
	assert.EqualError(t, err, "map 198.51.100.7/32 = 2001:db8::8/128: conflict: 198.51.100.7/32 is mapped already, by map 198.51.100.7/32 = 2001:db8::7/128")
	_, err = c.RemoveMap(ctx, pfx("192.0.2.0/24"))
	require.ErrorIs(t, err, mapping.ErrUnknown)
	revision, err = c.RemoveMap(ctx, pfx("198.51.100.7/32"))
	require.NoError(t, err)
	assert.EqualValues(t, 1002, revision)

	revision, err = c.Batch(ctx, []mapping.Change{add("192.0.2.0/24", "2001:db8:1::/120", ""), add("192.0.2.9/32", "2001:db8::9/128", "db")})
	require.NoError(t, err)
	assert.EqualValues(t, 1003, revision)
	_, err = c.Batch(ctx, []mapping.Change{{Remove: pfx("192.0.2.0/24")}, {Remove: pfx("192.0.2.1/32")}})
	require.ErrorIs(t, err, mapping.ErrUnknown)
	assert.Len(t, j.maps, 2, "none of it is done")

	j.lacks = fmt.Errorf("saving: %w: no space left on device", mapping.ErrUnavailable)
	_, err = c.RemoveMap(ctx, pfx("192.0.2.0/24"))
	require.ErrorIs(t, err, mapping.ErrUnavailable)
	assert.EqualError(t, err, "saving: state not writable: no space left on device")

	j.lacks = errors.New("f:3: map.lable: unknown key")
	_, err = c.Reload(ctx)
	assert.EqualError(t, err, "f:3: map.lable: unknown key")
	j.lacks = nil
	changes, err := c.Reload(ctx)
	require.NoError(t, err)
	assert.Equal(t, []string{}, changes)
}

func TestLeases(t *testing.T) {
	c, j, _ := startJournal(t, 100, nil)
	ctx := t.Context()
	lease := mapping.Lease{IPv4: netip.MustParseAddr("192.0.2.9"), IPv6: netip.MustParseAddr("2001:db8::9"), Pool: pfx("192.0.2.0/24"), Since: j.now}
	j.leases = []mapping.Lease{lease}

	list, err := c.ListLeases(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 1000, list.Revision)
	for got, err := range Decoded[mapping.Lease](list.Rows) {
		require.NoError(t, err)
		assert.Equal(t, lease, got)
	}
	for zone, n := range map[*time.Location]int{time.UTC: 1, time.FixedZone("", 3600): 1} {
		for at, n := range map[time.Time]int{j.now.Add(time.Hour): n, j.now.Add(-time.Hour): 0} {
			got := 0
			for _, err := range c.LeasesAt(ctx, at.In(zone)) {
				require.NoError(t, err)
				got++
			}
			assert.Equal(t, n, got, at)
		}
	}
	for _, err := range c.LeasesAt(ctx, j.now.AddDate(-1, 0, 0)) {
		require.ErrorIs(t, err, mapping.ErrGone)
	}

	got, err := c.Release(ctx, lease.IPv6)
	require.NoError(t, err)
	assert.Equal(t, lease, got)
	_, err = c.Release(ctx, lease.IPv4)
	require.ErrorIs(t, err, mapping.ErrUnknown)
}

func TestAttachments(t *testing.T) {
	c, j, _ := startJournal(t, 100, nil)
	ctx := t.Context()
	client := netip.MustParseAddr("2001:db8::9")
	l, err := c.Lend(ctx, client, "web")
	require.NoError(t, err)
	assert.Equal(t, mapping.Lease{IPv4: netip.MustParseAddr("192.0.2.7"), IPv6: client, Label: "web", Since: j.now}, l)
	for _, want := range []error{mapping.ErrMapped, mapping.ErrNotPermitted, mapping.ErrPoolFull, mapping.ErrUnavailable} {
		j.lacks = fmt.Errorf("lease for %v: %w: told why", client, want)
		_, err := c.Lend(ctx, client, "")
		require.ErrorIs(t, err, want)
		assert.EqualError(t, err, ""+j.lacks.Error())
	}
	j.lacks = nil

	a := mapping.Attachment{
		ID: "4:f0000123", Target: "web", Namespace: "/proc/7/ns/net", PID: 7, Started: 1 << 60, IPv6: client, Count: 1,
		Undo: json.RawMessage(`{"sysctls":{"a":"b"}}`), Host: &mapping.HostSide{Link: "veth1", Index: 7, Made: true}, Since: j.now,
	}
	got, err := c.Attach(ctx, a)
	require.NoError(t, err)
	a.Seen = "seen"
	assert.Equal(t, a, got)
	for got, err := range c.Attachments(ctx) {
		require.NoError(t, err)
		assert.Equal(t, a, got)
	}
	_, err = c.Detach(ctx, "4:1")
	require.ErrorIs(t, err, mapping.ErrUnknown)
	got, err = c.Detach(ctx, a.ID)
	require.NoError(t, err)
	assert.Equal(t, a, got)
	for range c.Attachments(ctx) {
		assert.Fail(t, "there are none")
	}
}

// TestRefusedRequests holds what a request may be, and that one that is not so
// changes nothing.
func TestRefusedRequests(t *testing.T) {
	c, j, _ := startJournal(t, 100, nil)
	long := strings.Repeat("x", maxBody)
	for _, test := range []struct {
		line, body string
		code       int
		want       string
	}{
		{"POST /v1/map", ``, 400, `expected a JSON object: unexpected EOF`},
		{"POST /v1/map", `[]`, 400, `expected a JSON object`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1"`, 400, `expected a JSON object: unexpected EOF`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1"} {}`, 400, `expected nothing after the JSON object`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv6":"2001:db8::1",}`, 400, `expected a JSON object: invalid character '}'`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv4":"192.0.2.2"}`, 400, `field "ipv4": given twice`},
		{"POST /v1/map", `{"ipv4":["192.0.2.1"],"ipv6":"2001:db8::1"}`, 400, `field "ipv4": expected a string`},
		{"POST /v1/map", `{"ipv4":null,"ipv6":"2001:db8::1"}`, 400, `field "ipv4": expected a string`},
		{"POST /v1/map", `{"IPv4":"192.0.2.1","ipv6":"2001:db8::1"}`, 400, `field "IPv4": unknown here: expected ipv4, ipv6, label`},
		{"POST /v1/map", `{"op":"add","ipv4":"192.0.2.1","ipv6":"2001:db8::1"}`, 400, `field "op": unknown here`},
		{"POST /v1/map", `{"ipv6":"2001:db8::1"}`, 400, `ipv4 "": expected an IPv4 prefix`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1/24","ipv6":"2001:db8::/120"}`, 400, `ipv4 "192.0.2.1/24": bits are set behind the prefix: expected 192.0.2.0/24`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv6":"::ffff:192.0.2.1"}`, 400, `ipv6 "::ffff:192.0.2.1": an IPv4-mapped IPv6 address`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv6":"2001:db8::1%eth0"}`, 400, `ipv6 "2001:db8::1%eth0": an address with a zone`},
		{"POST /v1/map", `{"ipv4":"2001:db8::1","ipv6":"192.0.2.1"}`, 400, `ipv4 "2001:db8::1": an IPv6 address where an IPv4 address belongs`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv6":"2001:db8::1","label":"` + long[:65] + `"}`, 400, `: 65 bytes long: expected at most 64`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv6":"2001:db8::1","label":"a\nb"}`, 400, `label "a\nb": expected printable characters only`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv6":"2001:db8::1","label":"\ud800"}`, 400, `expected printable characters only`},
		{"POST /v1/map", `{"ipv4":"192.0.2.1","ipv6":"2001:db8::1","label":"` + "\xff" + `"}`, 400, `expected JSON in UTF-8`},
		{"POST /v1/map", `{"label":"` + long, 413, `expected at most 65536 bytes`},
		{"POST /v1/map", strings.Repeat("[", maxBody), 400, `expected a JSON object`},
		{"POST /v1/map?dry=1", `{}`, 400, `the query "dry=1": no such parameter here`},
		{"DELETE /v1/map/web", ``, 400, `prefix "web": expected an IPv4 or IPv6 prefix`},
		{"DELETE /v1/map/", ``, 400, `prefix "": expected an IPv4 or IPv6 prefix`},
		{"DELETE /v1/map/192.0.2.1%2F24", ``, 400, `prefix "192.0.2.1/24": bits are set behind the prefix: expected 192.0.2.0/24`},
		{"DELETE /v1/map/192.0.2.0/24", ``, 404, `removing the map of 192.0.2.0/24: no such entry`},
		{"DELETE /v1/map/2001:db8::%2F64", ``, 404, `removing the map of 2001:db8::/64: no such entry`},
		{"DELETE /v1/map/" + long[:5000], ``, 400, `xxx"...: expected an IPv4 or IPv6 prefix`},
		{"DELETE /v1/map/192.0.2.1", `{}`, 413, `expected a request without a body`},
		{"DELETE /v1/lease/192.0.2.0%2F24", ``, 400, `"192.0.2.0/24": expected an IPv4 or IPv6 address`},
		{"DELETE /v1/lease/192.0.2.1", ``, 404, `releasing 192.0.2.1: no such entry`},
		{"DELETE /v1/lease", ``, 405, `DELETE: expected GET or POST`},
		{"POST /v1/lease", `{"ipv6":"192.0.2.1"}`, 400, `ipv6 "192.0.2.1": expected an IPv6 address`},
		{"POST /v1/lease", `{"ipv6":"fe80::1%eth0"}`, 400, `ipv6 "fe80::1%eth0": expected an IPv6 address`},
		{"POST /v1/lease", `{"label":"web"}`, 400, `ipv6 "": expected an IPv6 address`},
		{"POST /v1/lease", `{"ipv6":"2001:db8::1","ipv4":"192.0.2.1"}`, 400, `field "ipv4": unknown here: expected ipv6, label`},
		{"POST /v1/lease", `{"ipv6":"2001:db8::1","label":"a\nb"}`, 400, `label "a\nb": expected printable characters only`},
		{"POST /v1/attachment", ``, 400, `expected an attachment: "EOF"`},
		{"POST /v1/attachment", `{"ipv9":"2001:db8::1"}`, 400, `unknown field \"ipv9\"`},
		{"POST /v1/attachment", `{"ipv6":"` + long[:5000] + `"}`, 400, `expected an attachment: "ParseAddr`},
		{"POST /v1/attachment", `{"id":"` + long[:5000] + `"}`, 400, `the attachment: id: expected DEV:INODE in hex`},
		{"POST /v1/attachment", `{} {}`, 400, `expected nothing after the JSON object`},
		{"POST /v1/attachment", `{"undo":"` + long, 413, `expected at most 65536 bytes`},
		{"DELETE /v1/attachment/4:1", ``, 404, `detach 4:1: no such entry`},
		{"DELETE /v1/attachment/4:1/2", ``, 404, `no such path in this version`},
		{"GET /v1/lease?at=yesterday", ``, 400, `at="yesterday": expected a time such as 2006-01-02T15:04:05Z`},
		{"GET /v1/lease?at=2026-03-14T15:09:26+01:00", ``, 400, `with %2B for a +`},
		{"GET /v1/lease?at=%zz", ``, 400, `the query "at=%zz"`},
		{"GET /v1/lease?at=2026-03-14T15:09:26Z&at=2026-03-14T15:09:26Z", ``, 400, `expected the parameter once`},
		{"GET /v1/watch?after=now", ``, 400, `after="now": expected a revision`},
		{"GET /v1/watch?after=", ``, 400, `after="": expected a revision`},
		{"GET /v1/watch?after=1", ``, 410, `changes after revision 1: revision too old: list again, and watch from the revision of the list`},
		{"GET /v1/watch?after=1001", ``, 410, `revision too old`},
		{"POST /v1/reload", `{}`, 413, `expected a request without a body`},
		{"GET /v1/reload", ``, 405, `GET: expected POST`},
		{"POST /v1/batch", ``, 400, `line 1: expected at least one change`},
		{"POST /v1/batch", "\n\r\n \n", 400, `line 4: expected at least one change`},
		{"POST /v1/batch", `{"op":"remove","prefix":"192.0.2.1"}` + "\n\n" + `{"op":"remove","prefix":"192.0.2"}`, 400, `line 3: prefix "192.0.2": expected an IPv4 prefix`},
		{"POST /v1/batch", `{"op":"ad"}`, 400, `line 1: op "ad": expected "add" or "remove"`},
		{"POST /v1/batch", `{"prefix":"192.0.2.1"}`, 400, `line 1: op "": expected "add" or "remove"`},
		{"POST /v1/batch", `{"op":"remove","prefix":"192.0.2.1","label":"x"}`, 400, `line 1: field "label": unknown here: expected op, prefix`},
		{"POST /v1/batch", `{"op":"add","prefix":"192.0.2.1"}`, 400, `line 1: field "prefix": unknown here: expected op, ipv4, ipv6, label`},
		{"POST /v1/batch", "{\n" + `"op":"remove","prefix":"192.0.2.1"}`, 400, `line 1: expected a JSON object: unexpected EOF`},
		{"POST /v1/batch", "\n" + long + "x", 400, `line 2: expected at most 65536 bytes`},
		{"POST /v1/batch", `{"op":"add","ipv4":"192.0.2.1","ipv6":"2001:db8::1"}` + "\n" + `{"op":"remove","prefix":"192.0.2.2"}`, 404, `removing the map of 192.0.2.2/32: no such entry`},
	} {
		answer, err := io.ReadAll(say(t, c.path, request(test.line, test.body)))
		name := test.line + " " + quoted(test.body)
		if test.code != 413 { // whose body is not read: the connection is broken behind the answer
			require.NoError(t, err, name)
		}
		head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
		assert.Contains(t, head, fmt.Sprintf("HTTP/1.1 %d ", test.code), name)
		var f failure
		require.NoError(t, json.Unmarshal([]byte(body), &f), name)
		assert.Contains(t, f.Error, test.want, name)
		assert.Less(t, len(f.Error), 300, name)
	}
	assert.EqualValues(t, 1000, j.Revision())
}

// TestHugeBodies holds that what is too large is not read.
func TestHugeBodies(t *testing.T) {
	c, _, _ := startJournal(t, 100, nil)
	for path, most := range map[string]int{"/v1/map": maxBody, "/v1/batch": maxBatch, "/v1/trace": maxPacket} {
		answer, err := io.ReadAll(say(t, c.path, "POST "+path+" HTTP/1.1\r\nHost: natless\r\nContent-Length: 1000000000\r\n\r\n"))
		require.NoError(t, err, "closed after the answer")
		assert.Contains(t, string(answer), "HTTP/1.1 413 ", path)
		assert.Contains(t, string(answer), fmt.Sprintf(`{"error":"expected at most %d bytes"}`, most), path)
	}

	// One that does not say how large it is.
	conn := say(t, c.path, "POST /v1/batch HTTP/1.1\r\nHost: natless\r\nTransfer-Encoding: chunked\r\n\r\n")
	chunk := "10000\r\n" + strings.Repeat(" ", 0xfffe) + "\r\n" + "\r\n"
	sent := 0
	for ; sent < 10*maxBatch; sent += 0x10000 {
		if _, err := io.WriteString(conn, chunk); err != nil {
			break // it reads no more
		}
	}
	assert.Less(t, sent, 2*maxBatch)
	answer, _ := io.ReadAll(conn)
	assert.Contains(t, string(answer), "HTTP/1.1 413 ")

	large := add("192.0.2.1/32", "2001:db8::1/128", strings.Repeat("x", maxBody/2))
	_, err := c.Batch(t.Context(), slices.Repeat([]mapping.Change{large}, 513))
	assert.EqualError(t, err, "asking the daemon at "+c.path+": expected at most 16777216 bytes")
}

// TestLargeBatch holds that a batch of many changes passes, and that its
// refusal gets through to who is still writing.
func TestLargeBatch(t *testing.T) {
	c, j, _ := startJournal(t, 1<<20, nil)
	var changes []mapping.Change
	for i := range 20_000 {
		v4 := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		v6 := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
		changes = append(changes, mapping.Change{Add: &mapping.Map{IPv4: netip.PrefixFrom(v4, 32), IPv6: netip.PrefixFrom(v6, 128), Label: "a"}})
	}
	revision, err := c.Batch(t.Context(), changes)
	require.NoError(t, err)
	assert.EqualValues(t, 1001, revision)
	assert.Len(t, j.maps, len(changes))

	// Who writes all of it before reading anything is not cut off.
	body := "{}\n" + strings.Repeat(" ", maxBatch-10)
	answer, err := io.ReadAll(say(t, c.path, request("POST /v1/batch", body)))
	require.NoError(t, err)
	assert.Contains(t, string(answer), `line 1: op \"\": expected`)
}

// TestHalfBatch holds that a batch that does not come to its end is none.
func TestHalfBatch(t *testing.T) {
	c, j, _ := startJournal(t, 100, func(l *limits) { l.read, l.batch = 50*time.Millisecond, 50*time.Millisecond })
	const line = `{"op":"add","ipv4":"192.0.2.1","ipv6":"2001:db8::1"}` + "\n"
	for _, head := range []string{"Content-Length: 1000\r\n\r\n" + line, "Transfer-Encoding: chunked\r\n\r\n35\r\n" + line + "\r\n"} {
		conn := say(t, c.path, "POST /v1/batch HTTP/1.1\r\nHost: natless\r\n"+head)
		answer, err := io.ReadAll(conn)
		require.NoError(t, err, "the server closes")
		assert.Contains(t, string(answer), "HTTP/1.1 400 ")
		assert.Contains(t, string(answer), "reading the batch: ")

		conn = say(t, c.path, "POST /v1/batch HTTP/1.1\r\nHost: natless\r\n"+head)
		conn.Close()
	}
	conn := say(t, c.path, "POST /v1/map HTTP/1.1\r\nHost: natless\r\nContent-Length: 100\r\n\r\n"+`{"ipv4":"192.0.2.1"`)
	answer, err := io.ReadAll(conn)
	require.NoError(t, err, "the server closes")
	assert.Contains(t, string(answer), "reading the mapping: ")
	_, err = c.Status(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 1000, j.Revision())
}

// TestSlowBodies holds that those who send a byte at a time keep nobody from
// anything for longer than their time, and hold no memory.
func TestSlowBodies(t *testing.T) {
	c, _, _ := startJournal(t, 100, func(l *limits) { l.read, l.batch = 200*time.Millisecond, 200*time.Millisecond })
	var wg sync.WaitGroup
	for i := range 20 {
		path := []string{"/v1/batch", "/v1/map"}[i%2]
		conn := say(t, c.path, "POST "+path+" HTTP/1.1\r\nHost: natless\r\nContent-Length: 60000\r\n\r\n")
		wg.Go(func() {
			for range 10_000 {
				if _, err := conn.Write([]byte(" ")); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
			assert.Fail(t, "still read")
		})
	}
	_, err := c.Status(t.Context())
	require.NoError(t, err)
	wg.Wait()
	_, err = c.Batch(t.Context(), []mapping.Change{add("192.0.2.1/32", "2001:db8::1/128", "")})
	assert.NoError(t, err)
}

// TestConflictsAtOnce holds that of two who ask for the same at once one gets
// it, and that a watch tells of exactly those, in order.
func TestConflictsAtOnce(t *testing.T) {
	c, j, _ := startJournal(t, 10_000, nil)
	const rounds = 200
	type winner struct {
		revision uint64
		label    string
	}
	var mu sync.Mutex
	won := map[netip.Prefix][]winner{}
	var wg sync.WaitGroup
	for who := range 2 {
		wg.Go(func() {
			for i := range rounds {
				label := fmt.Sprint(who)
				v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 32)
				revision, err := c.AddMap(t.Context(), v4, pfx("2001:db8::1/128"), label)
				if err != nil {
					assert.ErrorIs(t, err, mapping.ErrConflict)
					continue
				}
				mu.Lock()
				won[v4] = append(won[v4], winner{revision, label})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Len(t, won, rounds)
	after := j.first
	for e, err := range c.Watch(t.Context(), &after) {
		require.NoError(t, err)
		after++
		require.Equal(t, after, e.Revision)
		require.Equal(t, []winner{{e.Revision, e.Map.Label}}, won[e.Map.IPv4])
		if after == j.first+rounds {
			break
		}
	}
}

// TestChangeLog holds that the log tells who changed what, and who was refused
// what.
func TestChangeLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "natless.sock")
	var buf bytes.Buffer
	s, err := Listen(path, "", "", slog.New(slog.NewJSONHandler(&buf, nil)))
	require.NoError(t, err)
	done := make(chan error)
	j := newJournal(10)
	j.leases = []mapping.Lease{{IPv4: netip.MustParseAddr("192.0.2.9"), IPv6: netip.MustParseAddr("2001:db8::9")}}
	go func() { done <- s.Serve(j) }()
	c, ctx := NewClient(path), t.Context()
	ask := func(_ any, err error) { _ = err }
	ask(c.AddMap(ctx, pfx("192.0.2.1/32"), pfx("2001:db8::1/128"), "a\tb"))
	ask(c.AddMap(ctx, pfx("192.0.2.1/32"), pfx("2001:db8::1/128"), "web"))
	ask(c.AddMap(ctx, pfx("192.0.2.1/32"), pfx("2001:db8::1/128"), ""))
	ask(c.RemoveMap(ctx, pfx("192.0.2.1/32")))
	ask(c.Release(ctx, netip.MustParseAddr("192.0.2.9")))
	ask(c.Reload(ctx))
	ask(c.Batch(ctx, slices.Repeat([]mapping.Change{{Remove: pfx("192.0.2.1/32")}}, 10)))
	require.NoError(t, s.Close())
	require.NoError(t, <-done)

	type entry struct {
		Level, Msg, Change, Error string
		Revision                  uint64
		UID, GID, PID             int
		User                      string
	}
	var got []entry
	for line := range strings.Lines(buf.String()) {
		var e entry
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		require.Equal(t, []int{os.Getuid(), os.Getgid(), os.Getpid()}, []int{e.UID, e.GID, e.PID}, line)
		if os.Getuid() == 0 {
			require.Equal(t, "root", e.User)
		}
		e.UID, e.GID, e.PID, e.User = 0, 0, 0, ""
		got = append(got, e)
	}
	const yes, no = "control change", "control change refused"
	many := strings.TrimSuffix(strings.Repeat("removing the mapping of 192.0.2.1/32, ", 8), " ") + " and 2 changes more"
	assert.Equal(t, []entry{
		{Level: "WARN", Msg: no, Change: "adding a mapping", Error: `label "a\tb": expected printable characters only`},
		{Level: "INFO", Msg: yes, Change: "adding the mapping 192.0.2.1/32 = 2001:db8::1/128 (web)", Revision: 1001},
		{Level: "WARN", Msg: no, Change: "adding the mapping 192.0.2.1/32 = 2001:db8::1/128",
			Error: "map 192.0.2.1/32 = 2001:db8::1/128: conflict: 192.0.2.1/32 is mapped already, by map 192.0.2.1/32 = 2001:db8::1/128"},
		{Level: "INFO", Msg: yes, Change: "removing the mapping of 192.0.2.1/32", Revision: 1002},
		{Level: "INFO", Msg: yes, Change: "releasing the lease of 192.0.2.9"},
		{Level: "WARN", Msg: no, Change: many, Error: "removing the map of 192.0.2.1/32: no such entry"},
	}, got)
}

// TestSlowChange holds that a change that takes longer than requests and
// readers may is answered all the same.
func TestSlowChange(t *testing.T) {
	path, _ := start(t, slowly{newJournal(10)}, func(l *limits) { l.read, l.stall = 20*time.Millisecond, 20*time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	revision, err := NewClient(path).AddMap(ctx, pfx("192.0.2.1/32"), pfx("2001:db8::1/128"), "")
	require.NoError(t, err)
	assert.EqualValues(t, 1001, revision)
}

type slowly struct{ *journal }

func (s slowly) Change(changes []mapping.Change, by string) (uint64, error) {
	time.Sleep(200 * time.Millisecond)
	return s.journal.Change(changes, by)
}

// What an attachment says root does later: those of control.group say nothing.
func TestTrusted(t *testing.T) {
	assert.True(t, peer{Ucred: unix.Ucred{Uid: 0}, known: true}.trusted())
	assert.True(t, peer{Ucred: unix.Ucred{Uid: uint32(os.Geteuid())}, known: true}.trusted())
	assert.False(t, peer{Ucred: unix.Ucred{Uid: uint32(os.Geteuid()) + 1000}, known: true}.trusted())
	assert.False(t, peer{}.trusted())
}
