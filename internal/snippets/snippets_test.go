package snippets

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/config"
	"github.com/natless/natless/internal/daemon"
	"github.com/natless/natless/internal/testenv"
	"github.com/natless/natless/mapping"
)

// configs are what the snippets are made from: a prefix of every length, and
// all else that they tell of.
func configs() map[string]*config.Config {
	list := map[string]*config.Config{"default": config.Default()}
	for _, prefix := range []string{
		"2001:db8::/32", "2001:db8:100::/40", "2001:db8:1::/48", "2001:db8:1:200::/56", "2001:db8:1:2::/64", "2001:db8:1:2:3:4::/96",
	} {
		c := config.Default()
		c.Translation.Pref64 = netip.MustParsePrefix(prefix)
		list[prefix] = c
	}
	all := config.Default()
	all.RA.Interfaces, all.RA.Lifetime = []string{"br-lan", "eth7"}, 65521*time.Second
	for _, at := range []string{"[2001:db8::53]:53", "[2001:db8::53]:5353", "192.0.2.53:53"} {
		all.DNS64.Listen = append(all.DNS64.Listen, netip.MustParseAddrPort(at))
	}
	all.DNS64.Exclude = []netip.Prefix{netip.MustParsePrefix("2001:db8:dead::/48"), netip.MustParsePrefix("::ffff:0:0/96")}
	list["all"] = all
	none := config.Default()
	none.DNS64.Exclude = nil
	list["no excludes"] = none
	return list
}

// one is what a program is to have.
func one(t *testing.T, c *config.Config, name string) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, WriteOne(&b, c, name))
	return b.String()
}

// accepts has a program check a configuration file.
func accepts(t *testing.T, text, program string, args ...string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "conf")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	out, err := exec.Command(program, append(args, path)...).CombinedOutput()
	assert.NoError(t, err, "%s\n%s", out, text)
}

// needs finds a program of Debian's package.
func needs(t *testing.T, program, debian string) string {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // users do not always have these
	path, err := exec.LookPath(program)
	if err != nil {
		testenv.Skip(t, "no "+program+" to check the snippet with: apt-get install "+debian)
	}
	return path
}

func TestUnboundAccepts(t *testing.T) {
	check := needs(t, "unbound-checkconf", "unbound")
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) { accepts(t, one(t, c, "unbound"), check) })
	}
}

func TestBindAccepts(t *testing.T) {
	check := needs(t, "named-checkconf", "bind9-utils")
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			accepts(t, strings.Replace(one(t, c, "bind"), "options {", "options {\n\tdirectory \"/\";", 1), check)
		})
	}
}

var (
	version     = regexp.MustCompile(`Version: (\d+)\.(\d+)`)
	nat64prefix = regexp.MustCompile(`(?s)\tnat64prefix [0-9a-f:/]+ \{\n\t\tAdvValidLifetime \d+;\n\t\};\n`)
)

// Debian 12 has a radvd that does not know nat64prefix yet. It then checks the
// rest.
func TestRadvdAccepts(t *testing.T) {
	radvd := needs(t, "radvd", "radvd")
	out, _ := exec.Command(radvd, "--version").CombinedOutput()
	v := version.FindStringSubmatch(string(out))
	require.NotNil(t, v, "%s", out)
	old := len(v[1]+v[2]) < 3 || v[1]+"."+v[2] < "2.20"
	if old {
		t.Logf("radvd %s.%s has no nat64prefix (2.20 and later do): checked without", v[1], v[2])
	}
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			text := one(t, c, "radvd")
			if old {
				require.Len(t, nat64prefix.FindAllString(text, -1), max(1, len(c.RA.Interfaces)))
				text = nat64prefix.ReplaceAllString(text, "")
			}
			accepts(t, text, radvd, "-c", "-C")
		})
	}
}

// What they say, for a configuration that has something for every line.
func TestWrite(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Write(&b, configs()["all"]))
	want, err := os.ReadFile("testdata/all.txt")
	require.NoError(t, err)
	assert.Equal(t, string(want), b.String())
}

// The example of the page is what is printed.
func TestExample(t *testing.T) {
	page, err := os.ReadFile("../../docs/cli.md")
	require.NoError(t, err)
	text := strings.TrimSpace(one(t, config.Default(), "radvd"))
	assert.Contains(t, string(page), "    "+strings.ReplaceAll(text, "\n", "\n    ")+"\n")
}

func TestNothingToSay(t *testing.T) {
	c := config.Default()
	c.Translation.Pref64 = netip.Prefix{}
	assert.EqualError(t, Write(new(bytes.Buffer), c), "writing snippets: the configuration has no translation.pref64, and they are about nothing else")
}

// What bind is told not to synthesise is what natless does not translate.
func TestRefused(t *testing.T) {
	for _, private := range []string{"allow", "deny"} {
		c := config.Default()
		c.Pools = nil
		c.Translation.IPv4 = netip.MustParseAddr("192.0.3.1")
		c.Translation.PrivateIPv4 = private
		table, err := mapping.New(daemon.Mapping(c))
		require.NoError(t, err)
		listed := refused(c.AllowPrivate())
		for _, a := range []string{
			"0.0.0.1", "1.0.0.0", "9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0", "100.63.255.255", "100.64.0.0", "100.128.0.0",
			"127.0.0.1", "128.0.0.0", "169.253.255.255", "169.254.169.254", "169.255.0.0", "172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0",
			"192.0.0.0", "192.0.0.8", "192.0.0.9", "192.0.0.10", "192.0.0.11", "192.0.0.171", "192.0.1.0", "192.88.99.1", "198.18.0.1", "203.0.113.9",
			"192.0.2.7", "192.167.255.255", "192.168.0.0", "192.169.0.0", "198.51.100.1", "223.255.255.255", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		} {
			addr := netip.MustParseAddr(a)
			in := false
			for _, p := range listed {
				in = in || p.Contains(addr)
			}
			reached := table.Explain(addr).Other.IsValid()
			assert.Equal(t, in, !reached, "%s, private_ipv4 %s", a, private)
		}
	}
}
