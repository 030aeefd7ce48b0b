package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/control"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/mapping"
	"github.com/natless/natless/translate"
)

func TestMapAddAndRemove(t *testing.T) {
	f := newFake()
	f.serve(t)
	assert.Equal(t, "added 192.0.2.7 = 2001:db8::7, revision 8\n", mustSay(t, "map add 192.0.2.7 2001:db8::7 --label x"))
	assert.Equal(t, "x", f.maps[2].Label)
	assert.JSONEq(t, `{"ipv4": "203.0.113.0/24", "ipv6": "2001:db8:2::/120", "revision": 9}`,
		mustSay(t, "map add 203.0.113.0/24 2001:db8:2::/120 -o json"))
	assert.Equal(t, "removed 192.0.2.7, revision 10\n", mustSay(t, "map rm 192.0.2.7"))
	assert.JSONEq(t, `{"prefix": "2001:db8:2::/120", "revision": 11}`, mustSay(t, "map rm 2001:db8:2::/120 -o json"))
	require.Len(t, f.maps, 2)

	// What is in force already is as good as added.
	assert.Equal(t, "already 192.0.2.1 = 2001:db8::1 (natless.toml:3), revision 11\n", mustSay(t, "map add 192.0.2.1 2001:db8::1"))
	out, _, err := says(t, "", "map", "add", "192.0.2.1", "2001:db8::1", "--label", "web 1", "-o", "json")
	require.NoError(t, err)
	assert.JSONEq(t, `{"ipv4": "192.0.2.1/32", "ipv6": "2001:db8::1/128", "label": "web 1", "revision": 11, "already": true}`, out)
	require.Len(t, f.maps, 2)

	for args, want := range map[string]string{
		"map add 192.0.2.1 2001:db8::1 --label other": "conflict: 192.0.2.1/32 is mapped",
		"map add 198.51.100.0/25 2001:db8:1::/120":    "conflict: 198.51.100.0/24 is mapped",
		"map add 192.0.2.1 2001:db8::7":               "conflict: 192.0.2.1/32 is mapped",
		"map rm 192.0.2.9":                            "192.0.2.9/32: no such entry",
	} {
		_, _, err := says(t, "", strings.Fields(args)...)
		assert.EqualError(t, err, want, args)
		assert.False(t, usage(err), args)
	}
}

// TestCareless holds what somebody is told who mistook something, and that the
// daemon is not asked then.
func TestCareless(t *testing.T) {
	t.Setenv("NATLESS_SOCKET", "/nowhere/natless.sock")
	for args, want := range map[string]string{
		"map add 2001:db8::7 192.0.2.7":               "adding a mapping: expected the IPv4 side first: natless map add 192.0.2.7 2001:db8::7",
		"map add 192.0.2.7/24 2001:db8::7":            "adding a mapping: V4: 192.0.2.7/24: bits are set behind the prefix: expected 192.0.2.0/24",
		"map add 192.0.2.7 2001:db8::7 --label a\x01": `adding a mapping: --label: "a\x01": expected printable characters only`,
		"map add 192.0.2.7":                           "map add: V6 is missing: expected natless map add V4 V6",
		"map add 192.0.2.0/24 2001:db8::7":            "adding a mapping: V6: 2001:db8::7/128: too small for 192.0.2.0/24: expected a prefix length of at most 120",
		"map rm web":                                  `removing "web": expected an IPv4 or IPv6 prefix, such as 192.0.2.0/24 or 2001:db8::/64`,
		"map rm 192.0.2.7/24":                         `removing "192.0.2.7/24": bits are set behind the prefix: expected 192.0.2.0/24`,
		"map get 192.0.2.0/24":                        `looking up "192.0.2.0/24": expected an IPv4 or IPv6 address`,
		"map get ::ffff:192.0.2.1":                    `looking up "::ffff:192.0.2.1": expected an IPv4 or IPv6 address as packets carry it: neither IPv4-mapped nor with a zone`,
		"map ls --client 192.0.2.0/24":                `invalid argument "192.0.2.0/24" for "--client" flag: an IPv4 prefix where an IPv6 prefix belongs`,
		"map ls --pool 192.0.2.1/24":                  `invalid argument "192.0.2.1/24" for "--pool" flag: bits are set behind the prefix: expected 192.0.2.0/24`,
		"map ls --label [":                            `invalid argument "[" for "--label" flag: expected a label, or a pattern such as web*`,
		"map import":                                  "map import: FILE is missing: expected natless map import FILE",
		"lease ls --port 0":                           `invalid argument "0" for "--port" flag: expected a port, 1 to 65535`,
		"lease ls -o xml":                             "--output xml: expected table, wide (with more columns) or json",
		"map ls -o wide":                              "--output wide: expected table or json",
		"status --wait=0s":                            "--wait=0s: expected a duration above 0, such as 30s",
		"status --wait=soon":                          `invalid argument "soon" for "--wait" flag: time: invalid duration "soon"`,
		"lease release web":                           `releasing "web": expected an IPv4 or IPv6 address`,
		"lease ls --at yesterday":                     `invalid argument "yesterday" for "--at" flag: expected a time such as 2026-01-31T14:05:00Z or "2026-01-31 14:05", or how long ago, such as 90m or 2d`,
		"lease ls --at 2999-01-01T00:00:00Z":          `invalid argument "2999-01-01T00:00:00Z" for "--at" flag: 2999-01-01T00:00:00Z is to come: expected a time that is over`,
		"lease ls --at 5m --watch":                    "if any flags in the group [at watch] are set none of the others can be; [at watch] were all set",
		"status --wait --watch":                       "if any flags in the group [wait watch] are set none of the others can be; [wait watch] were all set",
		"session ls --protocol 6":                     `invalid argument "6" for "--protocol" flag: expected one of dccp, icmp, sctp, tcp, udp, udplite`,
		"session ls --state closed":                   `invalid argument "closed" for "--state" flag: expected one of open, v6_init, v4_init, established, v6_fin, v4_fin, both_fin, trans`,
		"session ls --remote 192.0.2.0/24:80":         `invalid argument "192.0.2.0/24:80" for "--remote" flag: expected an IPv4 address or prefix, or an address and port such as 192.0.2.80:443`,
		"session ls --remote 192.0.2.1:0":             `invalid argument "192.0.2.1:0" for "--remote" flag: expected an IPv4 address or prefix, or an address and port such as 192.0.2.80:443`,
		"session ls --client 192.0.2.1":               `invalid argument "192.0.2.1" for "--client" flag: an IPv4 address where an IPv6 address belongs`,
		"map add":                                     "map add: V4 and V6 are missing: expected natless map add V4 V6",
		"map add 192.0.2.7 2001:db8::7 x":             `map add: expected V4 and V6, not "x" as well`,
		"dns":                                         "dns: NAME is missing: expected natless dns NAME TYPE",
		"dns a AAAA x":                                `dns: expected NAME and TYPE, not "x" as well`,
		"attach":                                      "attach: TARGET is missing: expected natless attach TARGET",
		"attach a --dns ::1 b":                        `attach: expected TARGET, not "b" as well`,
		"trace":                                       "trace: PACKET is missing: expected natless trace PACKET",
		"run x":                                       `run: expected no argument, not "x"`,
		"reload now":                                  `reload: expected no argument, not "now"`,
	} {
		_, _, err := says(t, "", strings.Split(args, " ")...)
		assert.EqualError(t, err, want, args)
		assert.True(t, usage(err), args)
	}
	for _, args := range []string{"map add 192.0.2.7 2001:db8::7", "map rm 192.0.2.7", "map ls", "map ls --watch", "map export", "lease ls", "lease ls --at 5m", "lease ls --watch", "lease release 192.0.2.7", "session ls", "status --watch", "stats --watch", "reload"} {
		_, _, err := says(t, "", strings.Fields(args)...)
		assert.ErrorContains(t, err, "/nowhere/natless.sock: no such file or directory: is natless running?", args)
		assert.False(t, usage(err), args)
	}
}

func TestListings(t *testing.T) {
	newFake().serve(t)
	at := began.Local().Format(time.DateTime)
	assert.Equal(t, `RULE    IPV4             IPV6              LABEL  ORIGIN
map     192.0.2.1/32     2001:db8::1/128   web 1  natless.toml:3
map     198.51.100.0/24  2001:db8:1::/120  db     added then by somebody
pref64  0.0.0.0/0        64:ff9b::/96      -      -
`, mustSay(t, "map ls"))
	assert.Equal(t, `IPV4          PORTS      IPV6           IDLE   LABEL
169.254.64.2  -          2001:db8:c::5  3s     web
169.254.65.9  1024-2047  2001:db8:d::5  1m10s  -
`, mustSay(t, "lease ls"))
	assert.Equal(t, "IPV4          PORTS      IPV6           IDLE   LABEL  POOL             SINCE                PINNED\n"+
		"169.254.64.2  -          2001:db8:c::5  3s     web    169.254.64.0/20  "+at+"  yes\n"+
		"169.254.65.9  1024-2047  2001:db8:d::5  1m10s  -      169.254.64.0/20  "+at+"  -\n", mustSay(t, "lease ls -o wide"))

	for args, want := range map[string][]string{
		"map ls --label db":                               {"198.51.100.0/24"},
		"map ls --label w*1":                              {"192.0.2.1/32"},
		"map ls --label nobody":                           nil,
		"map ls --client 2001:db8::/32":                   {"192.0.2.1/32", "198.51.100.0/24"},
		"map ls --client 2001:db8:1::5":                   nil, // it is not the prefix that is inside
		"map ls --pool 198.51.0.0/16":                     {"198.51.100.0/24"},
		"map ls --pool 192.0.2.1":                         {"192.0.2.1/32"},
		"map ls --pool 198.51.0.0/16 --label web*":        nil,
		"lease ls --client 2001:db8:d::/48":               {"169.254.65.9"},
		"lease ls --pool 169.254.64.0/24":                 {"169.254.64.2"},
		"lease ls --pool 169.254.64.0/20":                 {"169.254.64.2", "169.254.65.9"},
		"lease ls --label w*":                             {"169.254.64.2"},
		"lease ls --port 1024":                            {"169.254.64.2", "169.254.65.9"},
		"lease ls --port 2047 --pool 169.254.65.9":        {"169.254.65.9"},
		"lease ls --port 2048 --pool 169.254.65.9":        nil,
		"lease ls --at 5m --port 100 --pool 169.254.64.3": {"169.254.64.3"},
		"lease ls --at 5m --port 101":                     {"169.254.64.2"},
		"lease ls --at 5m --label db":                     {"169.254.64.3"},
		"lease ls --at 5m --client 2001:db8:c::6":         {"169.254.64.3"},
		"lease ls --at 5m --pool 169.254.64.2":            {"169.254.64.2"},
		"lease ls --client ::/0 --pool 169.254.64.2":      {"169.254.64.2"},
		"lease ls --client 64:ff9b::/96 --pool 0.0.0.0/0": nil,
	} {
		var got []string
		for line := range strings.Lines(mustSay(t, args+" -o json")) {
			_, v4, _ := strings.Cut(line, `"ipv4":"`)
			v4, _, _ = strings.Cut(v4, `"`)
			got = append(got, v4)
		}
		assert.Equal(t, want, got, args)
	}
}

func TestLeaseAt(t *testing.T) {
	f := newFake()
	f.serve(t)
	since, until := began.Local().Format(time.DateTime), began.Add(time.Hour).Local().Format(time.DateTime)
	out, _, err := says(t, "", "lease", "ls", "--at", "2026-01-31T16:05:00+01:00")
	require.NoError(t, err)
	assert.True(t, f.asked.Equal(began.Add(time.Hour)), f.asked)
	assert.Equal(t, "IPV4          PORTS  IPV6           SINCE                LABEL\n"+
		"169.254.64.2  -      2001:db8:c::5  "+since+"  -\n"+
		"169.254.64.3  1-100  2001:db8:c::6  "+since+"  db\n", out)
	assert.Contains(t, mustSay(t, "lease ls --at 5m -o wide"), since+"  db     "+until+"\n")

	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"90m":                       now.Add(-90 * time.Minute),
		"2d":                        now.Add(-48 * time.Hour),
		"1d12h":                     now.Add(-36 * time.Hour),
		"0":                         now,
		"2026-01-31T14:05:00Z":      began,
		"2026-01-31T15:05:00+01:00": began,
		"2026-01-31 14:05":          time.Date(2026, 1, 31, 14, 5, 0, 0, time.Local),
		"2026-01-31 14:05:59":       time.Date(2026, 1, 31, 14, 5, 59, 0, time.Local),
	} {
		got, err := parseTime(s, now)
		require.NoError(t, err, s)
		assert.True(t, got.Equal(want), "%s: %v", s, got)
	}
}

func TestLeaseRelease(t *testing.T) {
	f := newFake()
	f.serve(t)
	assert.Equal(t, "released 169.254.64.2, which 2001:db8:c::5 had since "+began.Local().Format(time.DateTime)+"\n", mustSay(t, "lease release 169.254.64.2"))
	assert.Contains(t, mustSay(t, "lease release 2001:db8:d::5 -o json"), `"ipv4":"169.254.65.9"`)
	assert.Empty(t, f.leases)
	_, _, err := says(t, "", "lease", "release", "169.254.64.2")
	assert.EqualError(t, err, "169.254.64.2: no such entry")
}

func TestReload(t *testing.T) {
	f := newFake()
	f.serve(t)
	f.reload = func() ([]string, error) { return []string{"map added", "pool changed"}, nil }
	assert.Equal(t, "map added\npool changed\n", mustSay(t, "reload"))
	f.reload = func() ([]string, error) { return nil, nil }
	assert.Equal(t, "nothing changed\n", mustSay(t, "reload"))
	f.reload = func() ([]string, error) { return nil, assert.AnError }
	_, _, err := says(t, "", "reload")
	assert.ErrorContains(t, err, assert.AnError.Error())
	assert.False(t, usage(err))
}

func TestCheckDiff(t *testing.T) {
	f := newFake()
	f.serve(t)
	t.Chdir(t.TempDir())
	running := config.Default()
	running.Control.Socket = os.Getenv("NATLESS_SOCKET")
	f.config = running
	require.NoError(t, os.WriteFile("natless.toml", []byte("[device]\nmtu = 1400\n[translation]\nhairpin = \"off\"\n"), 0o600))
	out, _, err := says(t, "", "check", "--diff", "-c", "natless.toml")
	assert.EqualError(t, err, "comparing with the running natless: 2 values differ")
	assert.Equal(t, exitFailed, exitCode(err))
	assert.Equal(t, `- device.mtu = 0  # needs a restart
+ device.mtu = 1400  # needs a restart
- translation.hairpin = "intrinsic"
+ translation.hairpin = "off"
`, out)
	out, _, err = says(t, "", "check", "--diff", "-c", "natless.toml", "-o", "json")
	assert.Error(t, err)
	assert.Equal(t, `{"key":"device.mtu","running":0,"checked":1400,"needs_restart":true}
{"key":"translation.hairpin","running":"intrinsic","checked":"off","needs_restart":false}
`, out)
}

// TestCheckDiffAsStarted holds that the daemon's own file and flags are compared,
// but for what is given.
func TestCheckDiffAsStarted(t *testing.T) {
	f := newFake()
	f.serve(t)
	dir := t.TempDir()
	t.Chdir(dir)
	file := filepath.Join(dir, "running.toml")
	require.NoError(t, os.WriteFile(file, []byte("[device]\nmtu = 1400\n"), 0o600))
	var flags config.Flags
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	flags.Register(set)
	set.Bool("other", false, "of the command's own")
	given := []string{"--clients=2001:db8::/64", "--clients=local", "--firewall=open", "--map=192.0.2.1=2001:db8::1", "--on-exit=keep", "--state-dir="}
	require.NoError(t, set.Parse(append(given, "--other", "-c", file)[:7]))
	running, err := config.Load(file)
	require.NoError(t, err)
	require.NoError(t, flags.Apply(running))
	assert.Equal(t, append([]string{"--socket=" + os.Getenv("NATLESS_SOCKET")}, given...), running.Flags)
	f.config, f.status.File, f.status.Flags = running, file, running.Flags

	assert.Empty(t, mustSay(t, "check --diff"))
	assert.Empty(t, mustSay(t, "check --diff -o json"))
	out, _, err := says(t, "", "check", "--diff", "--on-exit", "remove", "--clients", "local")
	assert.Error(t, err)
	assert.Equal(t, `- network.on_exit = "keep"  # needs a restart
+ network.on_exit = "remove"  # needs a restart
- pool[0].clients[0] = "2001:db8::/64"
+ pool[0].clients[0] = "local"
- pool[0].clients[1] = "local"
`, out)
	require.NoError(t, os.WriteFile(file, []byte("[device]\nmtu = 5\n"), 0o600))
	_, _, err = says(t, "", "check", "--diff")
	assert.Equal(t, exitUsage, exitCode(err))
	assert.ErrorContains(t, err, file+":2: device.mtu")
	f.status.Flags = []string{"--of-the-future=1"}
	_, _, err = says(t, "", "check", "--diff")
	assert.ErrorContains(t, err, "taking over the flag --of-the-future=1 of the running natless")
}

func TestAnswersAsJSON(t *testing.T) {
	f := newFake()
	f.serve(t)
	f.reload = func() ([]string, error) { return []string{"map added"}, nil }
	assert.Equal(t, `{"changes":["map added"]}`+"\n", mustSay(t, "reload -o json"))
	f.reload = func() ([]string, error) { return nil, nil }
	assert.Equal(t, `{"changes":[]}`+"\n", mustSay(t, "reload -o json"))
	assert.Regexp(t, `^{"version":"devel","go":"go[^"]+","os":"linux","arch":"[^"]+"}`+"\n$", mustSay(t, "version -o json"))
}

func TestCompletion(t *testing.T) {
	newFake().serve(t)
	out, _, err := says(t, "", "__complete", "map", "rm", "")
	require.NoError(t, err)
	assert.Equal(t, "198.51.100.0/24\t2001:db8:1::/120 db\n:4\n", out)
	out, _, err = says(t, "", "__complete", "lease", "release", "")
	require.NoError(t, err)
	assert.Equal(t, "169.254.64.2\t2001:db8:c::5\n2001:db8:d::5\t169.254.65.9 1024-2047\n:4\n", out)
	for args, want := range map[string]string{
		"run --masquerade ":      "auto\non\noff\n:4\n",
		"check --on-exit ":       "remove\nkeep\n:4\n",
		"pcap --pool-mode ":      "one-to-one\nport-range\n:4\n",
		"status -o ":             "table\njson\n:4\n",
		"lease ls -o ":           "table\nwide\njson\n:4\n",
		"session ls --protocol ": "dccp\nicmp\nsctp\ntcp\nudp\nudplite\n:4\n",
		"run -c ":                "toml\n:8\n",
		"down --state-dir ":      ":16\n",
		"man ":                   ":16\n",
		"pcap ":                  ":0\n",
		"pcap in out ":           ":4\n",
		"map get ":               ":4\n",
		"run ":                   ":4\n",
		"dns name ":              "A\nAAAA\nCNAME\nHTTPS\nMX\nNS\nPTR\nSOA\nSRV\nSVCB\nTXT\n:4\n",
		"attach ./":              ":0\n",
		"completion ":            "bash\tGenerate the autocompletion script for bash\nfish\tGenerate the autocompletion script for fish\nzsh\tGenerate the autocompletion script for zsh\n:4\n",
	} {
		out, _, err = says(t, "", append([]string{"__complete"}, strings.Split(args, " ")...)...)
		require.NoError(t, err, args)
		assert.Equal(t, want, out, args)
	}
	t.Setenv("NATLESS_SOCKET", "/nowhere")
	out, _, err = says(t, "", "__complete", "map", "rm", "")
	require.NoError(t, err)
	assert.Equal(t, ":4\n", out)
}

// live is a daemon with a real table.
type live struct {
	control.Source
	table *mapping.Table
}

func (l live) Explain(a netip.Addr) any { return l.table.Explain(a) }

func (l live) Change(changes []mapping.Change, _ string) (uint64, error) {
	return l.table.Apply(changes, "uid 0 (root), pid 4321")
}

// TestMapGetAsDocumented holds that docs/cli.md shows what the commands print,
// by a table made from the configuration there in which 2001:db8::5 has a
// lease.
func TestMapGetAsDocumented(t *testing.T) {
	session := documented(t, "natless map get")
	require.Len(t, session, 8)
	t.Chdir(t.TempDir())
	require.Equal(t, "cat natless.toml", session[0][0])
	require.NoError(t, os.WriteFile("natless.toml", []byte(session[0][1]), 0o600))
	c, err := config.Load("natless.toml")
	require.NoError(t, err)
	settings := daemon.Mapping(c)
	settings.Now = func() time.Time { return began }
	settings.Revision = uint64(began.Unix()) * 1000
	table, err := mapping.New(settings)
	require.NoError(t, err)
	flow := translate.Flow{Src: netip.MustParseAddr("2001:db8::5"), Dst: netip.MustParseAddr("2001:db8:64::203.0.113.9"), Proto: 17}
	_, verdict := table.ResolveRanges(&flow, 1)
	require.Equal(t, translate.OK, verdict)
	flow = flow.Reversed()
	_, verdict = table.ResolveRanges(&flow, 1)
	require.Equal(t, translate.OK, verdict)

	path := filepath.Join(t.TempDir(), "natless.sock")
	t.Setenv("NATLESS_SOCKET", path)
	serveAt(t, path, live{table: table})
	for _, s := range session[1:] {
		got, _, err := says(t, "", strings.Fields(s[0])[1:]...)
		if err != nil {
			assert.True(t, usage(err))
			got += "natless: " + err.Error() + "\n"
		}
		want := strings.ReplaceAll(s[1], "2026-01-31 14:05:00", began.Local().Format(time.DateTime))
		assert.Equal(t, want, got, s[0])
	}
}
