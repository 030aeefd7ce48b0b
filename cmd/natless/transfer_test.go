package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const exported = `[[map]]
ipv4 = "192.0.2.1"
ipv6 = "2001:db8::1"
label = "web 1"

[[map]]
ipv4 = "198.51.100.0/24"
ipv6 = "2001:db8:1::/120"
label = "db"
`

func TestExportImport(t *testing.T) {
	f := newFake()
	f.serve(t)
	assert.Equal(t, exported, mustSay(t, "map export"))
	_, runtime, _ := strings.Cut(exported, "\n\n")
	assert.Equal(t, runtime, mustSay(t, "map export --runtime"))

	out, errs, err := says(t, exported, "map", "import", "-")
	require.NoError(t, err)
	assert.Equal(t, "added 0, in force already 2, revision 7\n", out)
	assert.Empty(t, errs)

	// Into one that has nothing; and what comes out again is the same.
	f.maps = nil
	out, _, err = says(t, exported, "map", "import", "-", "--dry-run")
	require.NoError(t, err)
	assert.Equal(t, `would add 192.0.2.1 = 2001:db8::1 (web 1)
would add 198.51.100.0/24 = 2001:db8:1::/120 (db)
would add 2, in force already 0
`, out)
	assert.Empty(t, f.maps)
	out, _, err = says(t, exported, "map", "import", "-")
	require.NoError(t, err)
	assert.Equal(t, "added 2, in force already 0, revision 8\n", out)
	assert.Equal(t, exported, mustSay(t, "map export"))
	assert.Equal(t, exported, mustSay(t, "map export --runtime"))

	// Another label is another entry, which finds its place taken: nothing comes.
	more := "[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"2001:db8::9\"\n" + exported + "x"
	_, _, err = says(t, more, "map", "import", "-")
	assert.ErrorContains(t, err, "standard input:13: column 1: not TOML")
	more = "[[map]]\nipv4 = \"203.0.113.1\"\nipv6 = \"2001:db8::9\"\n[[map]]\nipv4 = \"192.0.2.1\"\nipv6 = \"2001:db8::1\"\nlabel = \"web 2\"\n"
	_, _, err = says(t, more, "map", "import", "-")
	assert.ErrorContains(t, err, "importing -: conflict: ")
	assert.ErrorContains(t, err, "conflict: 192.0.2.1/32 is mapped")
	assert.Len(t, f.maps, 2)
}

func TestImportRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("NATLESS_SOCKET", "/nowhere") // nobody is asked
	for file, want := range map[string]string{
		exported + exported:                   "maps.toml:11: map.ipv4: 192.0.2.1/32: mapped before at maps.toml:1: expected each prefix once",
		exported + "[device]\nname = \"x\"\n": "maps.toml:10: device: expected [[map]] tables and nothing else",
		"map 192.0.2.1 2001:db8::1\n":         "maps.toml:1: column 5: not TOML",
	} {
		require.NoError(t, os.WriteFile("maps.toml", []byte(file), 0o600))
		_, _, err := says(t, "", "map", "import", "maps.toml")
		assert.ErrorContains(t, err, want)
		assert.True(t, usage(err), "a wrong configuration")
	}
	_, _, err := says(t, "", "map", "import", "none.toml")
	assert.EqualError(t, err, "reading maps: open none.toml: no such file or directory")
}

func TestImportTayga(t *testing.T) {
	f := newFake()
	f.maps = f.maps[:1]
	f.serve(t)
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("tayga.conf", []byte(`
tun-device nat64
prefix 2001:db8:64::/96
map 198.51.100.0/24 2001:db8:1::/120
map 203.0.113.7 2001:db8::7 # printer
`), 0o600))
	out, errs, err := says(t, "", "map", "import", "--tayga", "tayga.conf", "--dry-run")
	require.NoError(t, err)
	const left = "line 2: not imported: tun-device nat64: set device.name\nline 3: not imported: prefix 2001:db8:64::/96: set translation.pref64\n"
	assert.Equal(t, left, errs)
	assert.Equal(t, "would add 198.51.100.0/24 = 2001:db8:1::/120\nwould add 203.0.113.7 = 2001:db8::7\nwould add 2, in force already 0\n", out)

	out, errs, err = says(t, "", "map", "import", "--tayga", "tayga.conf")
	require.NoError(t, err)
	assert.Equal(t, left, errs)
	assert.Equal(t, "added 2, in force already 0, revision 8\n", out)

	out, errs, err = says(t, "", "map", "import", "--tayga", "tayga.conf", "-o", "json")
	require.NoError(t, err)
	assert.Empty(t, errs)
	assert.JSONEq(t, `{"added": [], "in_force": 2, "revision": 8, "not_imported": [
		{"line": 2, "directive": "tun-device nat64", "instead": "set device.name"},
		{"line": 3, "directive": "prefix 2001:db8:64::/96", "instead": "set translation.pref64"}]}`, out)
}

// TestImport holds that what is printed is accepted, and that what is not taken over
// is said on stderr, too.
func TestImport(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("NATLESS_SOCKET", "/nowhere") // nobody is asked
	for from, file := range map[string]string{
		"tayga": "ipv4-addr 192.0.2.1\nprefix 2001:db8:64::/96\nmap 203.0.113.7 2001:db8::7\nlog drop\n",
		"jool":  `{"framework": "netfilter", "global": {"pool6": "2001:db8:64::/96"}, "eamt": [{"ipv6 prefix": "2001:db8::7", "ipv4 prefix": "203.0.113.7"}]}`,
	} {
		out, errs, err := says(t, file, "import", from, "-")
		require.NoError(t, err, from)
		assert.Regexp(t, "^line \\d: not imported: (log drop|framework netfilter): not needed: ", errs)
		assert.Contains(t, out, "\n# Not taken over:\n# line ")
		require.NoError(t, os.WriteFile("natless.toml", []byte(out), 0o600))
		assert.Contains(t, mustSay(t, "map get 2001:db8::7 -c natless.toml"), "203.0.113.7")
		_, _, err = says(t, "nonsense", "import", from, "-")
		assert.Equal(t, exitUsage, exitCode(err), from)
		_, _, err = says(t, "", "import", from, "missing")
		assert.EqualError(t, err, "importing: open missing: no such file or directory")
		assert.Equal(t, exitFailed, exitCode(err), from)
	}
	_, _, err := says(t, "", "import", "tundra", "x")
	assert.Equal(t, exitUsage, exitCode(err))
}

func TestImportMapsOfJool(t *testing.T) {
	f := newFake()
	f.serve(t)
	const eamt = "IPv6 Prefix,IPv4 Prefix\n2001:db8::7,203.0.113.7/32\n2001:db8::1/128,192.0.2.1/32\n"
	out, errs, err := says(t, eamt, "map", "import", "--jool", "-")
	require.NoError(t, err, errs)
	assert.Equal(t, "added 1, in force already 1, revision 8\n", out)
	out, _, err = says(t, eamt, "map", "import", "--jool", "-")
	require.NoError(t, err)
	assert.Equal(t, "added 0, in force already 2, revision 8\n", out)
}
