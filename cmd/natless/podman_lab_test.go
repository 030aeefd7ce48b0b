package main_test

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
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

func TestLabByName(t *testing.T) {
	requirePodman(t)
	requireNSD(t)
	t.Parallel()
	w := machine(t)
	w.serveNames(t)
	w.engine(t, startPodman, "podman")
	t.Log(w.sh(t, "busybox nslookup www.example.com 198.51.100.2"))
}
