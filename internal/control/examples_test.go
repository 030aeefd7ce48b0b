package control_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/conntrack"
	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/internal/dns64"
	"github.com/natless/natless/internal/trace"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

var update = flag.Bool("update", false, "write the answers in docs/api.md anew")

const page = "../../docs/api.md"

// example is a daemon without a device: the table is a real one, what only a
// host could tell is made up.
type example struct {
	config *config.Config
	table  *mapping.Table
	now    time.Time

	sessions *conntrack.Table
}

func (x example) Status() control.Status {
	return control.Status{Version: "1.2.3", Device: "natless0", Pools: x.table.Pools(), Revision: x.table.Revision()}
}

func (x example) Stats() control.Stats {
	return control.Stats{Verdicts: map[string]uint64{"translated": 5}}
}
func (x example) Config() any              { return x.config }
func (x example) Explain(a netip.Addr) any { return x.table.Explain(a) }
func (x example) Trace(p []byte) any       { return trace.Trace(daemon.Tracing(x.config, x.table, 1500), p) }

func (x example) DNS(_ context.Context, name, qtype string) (any, error) {
	return dns64.Explanation{
		Name: name + ".", Type: qtype, Code: "NOERROR", Synthesised: true,
		From: []string{"upstream 192.0.2.53:53", "upstream 192.0.2.53:53"},
		Answers: []dns64.Record{{
			Name: name + ".", TTL: 300, Type: "AAAA", Data: "64:ff9b::cb00:7150",
			IPv4: netip.MustParseAddr("203.0.113.80"), Rule: "pref64", Detail: "behind pref64 64:ff9b::/96",
		}},
		Steps: []string{name + ". AAAA: asked upstream 192.0.2.53:53", name + ". A: asked upstream 192.0.2.53:53"},
	}, nil
}

func (x example) Revision() uint64         { return x.table.Revision() }
func (x example) Changed() <-chan struct{} { return x.table.Changed() }

func (x example) Maps() (uint64, iter.Seq[any]) {
	revision, maps := x.table.MapsAt()
	return revision, func(yield func(any) bool) {
		for m := range maps {
			if !yield(control.Row{Rule: mapping.RuleMap, MapInfo: m}) {
				return
			}
		}
		yield(control.Row{Rule: mapping.RulePref64, MapInfo: mapping.MapInfo{
			IPv4: netip.PrefixFrom(netip.IPv4Unspecified(), 0), IPv6: x.config.Translation.Pref64,
		}})
	}
}

func (x example) Leases() (uint64, iter.Seq[any]) {
	revision, leases := x.table.LeasesAt()
	return revision, func(yield func(any) bool) {
		for l := range leases {
			if !yield(l) {
				return
			}
		}
	}
}

func (x example) LeasesAt(at time.Time, yield func(any) bool) error {
	yield(control.PastLease{
		IPv4: netip.MustParseAddr("169.254.64.2"), IPv6: netip.MustParseAddr("2001:db8:c::9"),
		Since: at.Add(-time.Hour), Until: at.Add(5 * time.Minute),
	})
	return nil
}

func (x example) Sessions(client netip.Addr) iter.Seq[control.Session] {
	return func(yield func(control.Session) bool) {
		for s := range x.sessions.Sessions(client, 10) {
			if !yield(control.SessionOf(s, "")) {
				return
			}
		}
	}
}

func (x example) Change(c []mapping.Change, by string) (uint64, error) { return x.table.Apply(c, by) }

func (x example) Release(a netip.Addr, by string) (mapping.Lease, error) {
	return x.table.Release(a, by)
}

func (x example) Lend(a netip.Addr, label, by string) (mapping.Lease, error) {
	return x.table.Lend(context.Background(), a, label, by)
}

func (x example) Attachments() iter.Seq[any] {
	return control.Each(slices.Values(x.table.Attachments()))
}

func (x example) Attach(a mapping.Attachment, by string) (mapping.Attachment, error) {
	a.Boot, a.Seen = "7d1e6a52-6a0c-4c1e-9a86-1d0f6d0a9f3b", "file 1773500900.000000000"
	return x.table.Attach(a, by)
}

func (x example) Detach(id, by string) (mapping.Attachment, error) { return x.table.Detach(id, by) }

func (x example) Reload(string) ([]string, error) { return nil, nil }

func (x example) Events(after uint64, most int) ([]mapping.Event, error) {
	return x.table.Events(after, most)
}

// TestExamples holds that what docs/api.md shows is what happens, in its
// order. After a change: go test -run TestExamples ./internal/control -update.
func TestExamples(t *testing.T) {
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	dir := t.TempDir()
	x := exampleOf(t, dir, string(text))
	socket := filepath.Join(dir, "natless.sock")
	server, err := control.Listen(socket, "", "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- server.Serve(x) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}

	// Who asks, and the file, differ from one run to the next.
	asker := regexp.MustCompile(`uid \d+( \([^)]*\))?, pid \d+`)
	block := regexp.MustCompile("(?s)```sh\n(curl .*?)```\n(?:\n```json\n(.*?)```\n)?")
	ran := 0
	written := block.ReplaceAllStringFunc(string(text), func(part string) string {
		m := block.FindStringSubmatch(part)
		ran++
		c := parseCurl(t, m[1])
		lines := -1 // to its end
		if c.stream {
			lines = strings.Count(m[2], "\n")
		}
		answer := c.run(t, client, lines)
		if !strings.Contains(part, "```json") {
			return part
		}
		answer = strings.ReplaceAll(asker.ReplaceAllString(answer, "uid 0 (root), pid 4321"), x.config.File, config.DefaultFile)
		if !*update {
			assert.Equal(t, m[2], answer, m[1])
		}
		return strings.Replace(part, "```json\n"+m[2], "```json\n"+answer, 1)
	})
	assert.Greater(t, ran, 15)
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(written), 0o644))
	}
	require.NoError(t, server.Close())
	require.NoError(t, <-done)
}

// exampleOf has the configuration of the page and one lease.
func exampleOf(t *testing.T, dir, text string) example {
	t.Helper()
	_, toml, found := strings.Cut(text, "```toml\n")
	require.True(t, found)
	toml, _, _ = strings.Cut(toml, "```")
	file := filepath.Join(dir, "natless.toml")
	require.NoError(t, os.WriteFile(file, []byte(toml), 0o600))
	c, err := config.Load(file)
	require.NoError(t, err)
	x := example{config: c, now: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)}
	tc := daemon.Mapping(c)
	tc.GlobalOnly = false // documentation addresses stand for global ones
	tc.Now = func() time.Time { return x.now }
	tc.Revision = uint64(x.now.Unix()) * 1000
	x.table, err = mapping.New(tc)
	require.NoError(t, err)
	_, v := x.table.ResolveRanges(&translate.Flow{Src: netip.MustParseAddr("2001:db8:c::5"), Dst: netip.MustParseAddr("64:ff9b::c000:221"), Proto: 6}, 0)
	require.Equal(t, translate.OK, v)

	x.sessions, err = conntrack.New(conntrack.Default(), 0)
	require.NoError(t, err)
	// A session part of one port, so that it is not drawn by chance.
	client := &mapping.Range{Client: netip.MustParseAddr("2001:db8:5::5"), IPv4: netip.MustParseAddr("203.0.113.192"), First: 1024, Session: 2047, Last: 2047}
	dns := netip.MustParseAddr("192.0.2.53")
	for _, f := range []translate.Flow{{Proto: 17, SrcPort: 500, Dst: dns, DstPort: 53}, {Proto: 1, SrcPort: 7, Dst: dns, DstPort: 7}} {
		require.Equal(t, conntrack.OK, x.sessions.Out(client, &f, 0, 7))
	}
	return x
}

// curl is what of that command the page uses.
type curl struct {
	method, url, body string
	code, stream      bool // print the code; the answer does not end
}

func parseCurl(t *testing.T, text string) (c curl) {
	t.Helper()
	text, input, _ := strings.Cut(strings.ReplaceAll(text, "\\\n", " "), " <<'END'\n")
	input, _, _ = strings.Cut(input, "END\n")
	c.method = http.MethodGet
	args := regexp.MustCompile(`'[^']*'|[^\s']+`).FindAllString(text, -1)
	for i := 1; i < len(args); i++ {
		next := func() string {
			i++
			require.Less(t, i, len(args), text)
			return strings.Trim(args[i], "'")
		}
		switch arg := strings.Trim(args[i], "'"); arg {
		case "-s":
		case "-sN":
			c.stream = true
		case "-w":
			require.Equal(t, `%{http_code}\n`, next())
			c.code = true
		case "--unix-socket":
			require.Equal(t, config.Default().Control.Socket, next())
		case "-X":
			c.method = next()
		case "-d", "--data-binary":
			c.method, c.body = http.MethodPost, next()
			switch c.body {
			case "@-":
				c.body = input
			case "@packet":
				c.body = strings.Repeat("\x00", 40)
			}
		default:
			require.True(t, strings.HasPrefix(arg, "http://natless/"), arg)
			c.url = arg
		}
	}
	require.NotEmpty(t, c.url, text)
	return c
}

// run gives what curl would print, at most so many lines of it.
func (c curl) run(t *testing.T, client *http.Client, lines int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, c.method, c.url, bytes.NewReader([]byte(c.body)))
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	if lines >= 0 {
		var some strings.Builder
		in := bufio.NewReader(resp.Body)
		for range lines {
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			some.WriteString(line)
		}
		return some.String()
	}
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	if c.code {
		return fmt.Sprintf("%s%d\n", body, resp.StatusCode)
	}
	assert.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", c.url, body)
	return string(body)
}
