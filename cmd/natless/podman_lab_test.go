package main_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
	"github.com/natless/natless/mapping"
)

// Nothing is done to the container: it is lent an address at its first packet.
func TestLabPodmanUntouched(t *testing.T) {
	requirePodman(t)
	t.Parallel()
	w := machine(t)
	w.engine(t, startPodman, "podman")
	w.run(t, setup{flags: []string{"--pref64", lab.Pref64}})
	w.sh(t, "podman network create --subnet 2001:db8:77::/64 --disable-dns ip6")
	w.sh(t, "podman run -d --name web --network ip6 "+image+" sleep 1d")
	assert.Equal(t, downloaded, w.sh(t, "podman exec web sh -c '"+download+"'"))
	assert.Contains(t, w.query(t, "lease", "ls"), " 2001:db8:77::2 ", "its own address, although Podman masquerades")
}

// download is a container's command that writes the SHA-256 of what the server
// sends within some seconds.
const download = `timeout ${patience:-60} wget -qO- "http://` + server6 + `:8080/?bytes=67108864" | sha256sum`

var downloaded = lab.Sum(64<<20) + "  -\n"

// Docker drops what it did not expect to forward. natless says so, and by which
// rules it lets pass.
func TestLabDockerUntouched(t *testing.T) {
	requireDocker(t)
	t.Parallel()
	w := machine(t)
	w.run(t, setup{flags: []string{"--pref64", lab.Pref64}})
	w.engine(t, startDocker, "docker")
	w.sh(t, "docker network create --ipv6 --subnet 2001:db8:77::/64 ip6 && docker run -d --name web --network ip6 "+image+" sleep 1d")
	within := `docker exec -e patience web sh -c '` + download + `'`
	require.NotEqual(t, downloaded, w.sh(t, "export patience=2; "+within))

	rules := regexp.MustCompile("Docker drops forwarded packets .* this lets natless's through: (.*)").FindAllStringSubmatch(w.sh(t, "natless status || true"), -1)
	require.NotEmpty(t, rules)
	for _, r := range rules {
		w.sh(t, r[1])
	}
	require.Equal(t, downloaded, w.sh(t, within))
	assert.Contains(t, w.query(t, "lease", "ls"), " 2001:db8:77::2 ", "its own address, although Docker masquerades")
}

// A container of Docker's with no network but natless's: attached with a link,
// through what Docker drops, found gone by the daemon.
func TestLabDockerAttached(t *testing.T) {
	requireDocker(t)
	t.Parallel()
	w := machine(t)
	w.engine(t, startDocker, "docker")
	w.run(t, setup{flags: []string{"--pref64", lab.Pref64, "--firewall"}})
	w.sh(t, "docker run -d --name web --network none "+image+" sleep 1d")
	w.sh(t, "natless attach --link docker:web")
	assert.Equal(t, downloaded, w.sh(t, "docker exec web sh -c '"+download+"'"))
	require.Len(t, w.ps(t), 1)
	assert.Equal(t, "web", w.ps(t)[0].Label)
	w.sh(t, "docker stop -t 0 web")
	until(t, "detached", func() bool { return len(w.ps(t)) == 0 })
	until(t, "without its link", func() bool { return !strings.Contains(w.sh(t, "ip -o link"), " nl-") })
}

// TestLabPodmanDownload is scripts/podman-download from an IPv4-only server, by
// its address and by its name, which a real name server knows.
func TestLabPodmanDownload(t *testing.T) {
	requirePodman(t)
	requireNSD(t)
	t.Parallel()
	w := machine(t)
	w.serveNames(t)
	w.engine(t, startPodman, "podman")
	config := filepath.Join(t.TempDir(), "natless.toml")
	require.NoError(t, os.WriteFile(config, []byte("[translation]\nprivate_ipv4 = \"allow\"\n[dns64]\nupstreams = [\""+lab.ServerIPv4+"\"]\n"), 0o644))
	script, err := filepath.Abs("../../scripts/podman-download")
	require.NoError(t, err)
	for _, server := range []string{"[64:ff9b::" + lab.ServerIPv4 + "]", "www.example.com"} {
		out := w.sh(t, script+` "$@"`, "http://"+server+":8080/?bytes=67108864", lab.Sum(64<<20), "-c", config)
		assert.Contains(t, out, "right: "+lab.Sum(64<<20))
	}
	assert.Empty(t, w.sh(t, "podman ps -aq; podman network ls -q --filter name=natless; ip link show natless0 2>/dev/null || true"))
}

// A container that stops leaves nothing, and has its IPv4 address again when it
// is started again, although Podman gives it another IPv6 address; alone or with
// others, and natless may have been killed meanwhile.
func TestLabPodmanStops(t *testing.T) {
	requirePodman(t)
	t.Parallel()
	w := machine(t)
	w.engine(t, startPodman, "podman")
	flags := setup{flags: []string{"--pref64", lab.Pref64}}
	w.run(t, flags)
	w.sh(t, "podman network create --subnet 2001:db8:77::/64 --disable-dns ip6")
	// What Podman leaves behind itself is there already.
	w.sh(t, "podman run -d --name web --network ip6 "+image+" sleep 1d && podman stop -t 0 web")
	before := calm(t, w.Host)

	w.sh(t, "podman start web && natless attach web")
	list := w.ps(t)
	require.Len(t, list, 1)
	lent, from := list[0].IPv4, list[0].IPv6
	assert.Equal(t, "web", list[0].Label)
	assert.Equal(t, downloaded, w.sh(t, "podman exec web sh -c '"+download+"'"))

	w.sh(t, "podman stop -t 0 web")
	until(t, "detached", func() bool { return len(w.ps(t)) == 0 })
	until(t, "in quarantine", func() bool { return strings.Contains(w.query(t, "status"), "0 of 4094 lent, 1 in quarantine") })
	// The bridge is Podman's: its addresses follow those of its ports.
	var left []string
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("not as it was: ", left)
		}
	})
	until(t, "as it was", func() bool {
		left = slices.DeleteFunc(before.Diff(snapshot(t, w.Host)), func(line string) bool { return strings.Contains(line, "podman") })
		return len(left) == 0
	})
	w.sh(t, "podman run -d --name other --network ip6 "+image+" sleep 1d && natless attach other")

	w.sh(t, "podman start web && natless attach web")
	again := w.called(t, "web")
	assert.Equal(t, lent, again.IPv4)
	assert.NotEqual(t, from, again.IPv6, "Podman's wish; else this shows less than it could")
	assert.NotEqual(t, lent, w.called(t, "other").IPv4)
	assert.Equal(t, downloaded, w.sh(t, "podman exec web sh -c '"+download+"'"))

	require.NoError(t, w.daemon.Kill())
	w.sh(t, "podman stop -t 0 web")
	w.run(t, flags)
	w.sh(t, "podman start web && natless attach web")
	last := w.called(t, "web")
	assert.Equal(t, lent, last.IPv4)
	assert.NotEqual(t, again.IPv6, last.IPv6)
	assert.Equal(t, downloaded, w.sh(t, "podman exec web sh -c '"+download+"'"))
}

// called is the attachment with a label.
func (w *world) called(t *testing.T, label string) mapping.Attachment {
	t.Helper()
	list := slices.DeleteFunc(w.ps(t), func(a mapping.Attachment) bool { return a.Label != label })
	require.Len(t, list, 1)
	return list[0]
}

// Two containers have one routed address between them, and a range of ports
// each: what they download takes no session.
func TestLabPodmanShares(t *testing.T) {
	requirePodman(t)
	t.Parallel()
	w := machine(t)
	w.engine(t, startPodman, "podman")
	w.run(t, setup{flags: []string{"--pref64", lab.Pref64, "--pool", shared4 + "/32", "--pool-mode", "port-range"}})
	w.sh(t, "podman network create --subnet 2001:db8:77::/64 --disable-dns ip6")
	for _, name := range []string{"one", "two"} {
		w.sh(t, "podman run -d --name "+name+" --network ip6 "+image+" sleep 1d && natless attach "+name)
	}
	list := w.ps(t)
	require.Len(t, list, 2)
	assert.NotEqual(t, list[0].Ports, list[1].Ports)
	for _, a := range list {
		assert.Equal(t, shared4, a.IPv4.String())
	}
	download := func() {
		t.Helper()
		both := w.sh(t, "for name in one two; do podman exec $name sh -c '"+download+"' & done; wait")
		assert.Equal(t, downloaded+downloaded, both)
	}
	download()
	assert.Empty(t, w.query(t, "session", "ls", "-o", "json"))

	// One that leaves the bridge and comes back changes the bridge's MAC address.
	before := w.called(t, "one")
	w.sh(t, "podman stop -t 0 one && podman start one && natless attach one")
	after := w.called(t, "one")
	assert.Equal(t, before.Ports, after.Ports)
	assert.NotEqual(t, before.IPv6, after.IPv6)
	download()
	assert.Empty(t, w.query(t, "session", "ls", "-o", "json"))
}
