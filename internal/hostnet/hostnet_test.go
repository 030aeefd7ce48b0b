package hostnet

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// testPlan is what natless asks for by default, and a map.
func testPlan() Plan {
	pool := prefixes("169.254.64.0/20")
	return Plan{
		Device: "natless0", Manage: true, Local: true,
		IPv6:       prefixes("64:ff9b::/96", "fd00:64::1/128"),
		IPv4:       append(prefixes("198.51.100.7/32"), pool...),
		Masquerade: pool,
		Inbound:    prefixes("198.51.100.7/32"),
		Clients:    prefixes("2001:db8:7::/64"),
	}
}

// testHost makes what natless finds: an uplink, a link of clients, forwarding
// off, a table and a route of somebody else's.
func testHost(t *testing.T) {
	t.Helper()
	inNamespace(t)
	addLink(t, "uplink", "192.0.2.2/24", "2001:db8:ff::2/64")
	addLink(t, "clients", "2001:db8:1::1/64")
	addRoute(t, "0.0.0.0/0", "uplink", "192.0.2.1")
	addRoute(t, "::/0", "uplink", "2001:db8:ff::1")
	addRoute(t, "203.0.113.0/24", "uplink", "192.0.2.9")
	nft(t, `table inet foreign { chain c { type filter hook forward priority 5; ip saddr 203.0.113.1 drop; }; }`)
	calm(t)
}

// kill leaves h as a killed process would: the kernel closes its files.
func kill(h *Host, shut func()) {
	if h != nil {
		h.lock.file.Close()
	}
	shut()
}

func start(t *testing.T, p Plan) (*Host, func()) {
	t.Helper()
	h, err := Prepare(p)
	require.NoError(t, err)
	index, shut := openTUN(t, p.Device, false)
	require.NoError(t, h.Attach(index))
	return h, shut
}

func TestCloseLeavesTheHostAsItWas(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	h, shut := start(t, testPlan())
	t.Log(difference(before, snapshot(t)))
	stays, err := h.Close()
	require.NoError(t, err)
	require.Empty(t, stays)
	shut()
	require.Empty(t, difference(before, snapshot(t)))
	require.NoDirExists(t, runDir)
}

func TestDownClearsWhatAKilledRunLeft(t *testing.T) {
	testHost(t)
	before := snapshot(t)
	h, shut := start(t, testPlan())
	kill(h, shut)
	require.NotEmpty(t, difference(before, snapshot(t)))
	lines, err := Down()
	require.NoError(t, err)
	require.NotEmpty(t, lines)
	t.Log(lines)
	require.Empty(t, difference(before, snapshot(t)))
	require.NoDirExists(t, runDir)

	lines, err = Down()
	require.NoError(t, err)
	require.Empty(t, lines)
}

func TestKilledAtAnyStep(t *testing.T) {
	for n := 0; ; n++ {
		finished := false
		t.Run("", func(t *testing.T) {
			testHost(t)
			before := snapshot(t)
			h, err := Prepare(testPlan())
			require.NoError(t, err)
			index, shut := openTUN(t, "natless0", false)
			finished = attachUntil(h, index, n)
			kill(h, shut)
			_, err = Down()
			require.NoError(t, err)
			require.Empty(t, difference(before, snapshot(t)))
			require.NoDirExists(t, runDir)
		})
		if finished || t.Failed() {
			require.Greater(t, n, 10)
			return
		}
	}
}

// attachUntil stops dead before the n-th change, or tells that there was none.
func attachUntil(h *Host, index, n int) (finished bool) {
	type death struct{}
	beforeChange = func(string) {
		if n == 0 {
			panic(death{})
		}
		n--
	}
	defer func() {
		beforeChange = func(string) {}
		if r := recover(); r != nil {
			if _, ok := r.(death); !ok {
				panic(r)
			}
			h.mu.TryLock()
		}
	}()
	if err := h.Attach(index); err != nil {
		panic(err)
	}
	return true
}

func TestSecondInstanceIsRefused(t *testing.T) {
	testHost(t)
	h, _ := start(t, testPlan())
	before := snapshot(t)
	_, err := Prepare(testPlan())
	var running *RunningError
	require.ErrorAs(t, err, &running)
	require.Equal(t, os.Getpid(), running.PID)
	_, err = Down()
	require.ErrorContains(t, err, "stop it first")
	require.Empty(t, difference(before, snapshot(t)))
	_, err = h.Close()
	require.NoError(t, err)
}
