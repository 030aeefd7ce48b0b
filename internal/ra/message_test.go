package ra

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/config"
)

// unhex reads hex with spaces.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	require.NoError(t, err)
	return b
}

// The head of every advertisement: type 134, code 0, the checksum left to the
// kernel; hop limit unspecified, no M, no O, preference medium, router lifetime
// 0; reachable time and retransmission timer unspecified.
const head = "86 00 0000  00 00 0000  00000000  00000000 "

// The options are put together by hand from the figure of RFC 8781 4: type 38,
// length 2, 13 bits of lifetime in units of 8 seconds, 3 bits of prefix length
// code, 96 bits of prefix.
func TestAdvertisement(t *testing.T) {
	for name, test := range map[string]struct {
		prefix   string
		lifetime time.Duration
		want     string
	}{
		// 600 s are 75 units: 75 << 3 is 0x258.
		"length 96": {"64:ff9b::/96", 10 * time.Minute, "26 02 0258 0064ff9b 00000000 00000000"},
		"length 64": {"2001:db8:1:2::/64", 10 * time.Minute, "26 02 0259 20010db8 00010002 00000000"},
		"length 56": {"2001:db8:1:200::/56", 10 * time.Minute, "26 02 025a 20010db8 00010200 00000000"},
		"length 48": {"2001:db8:1::/48", 10 * time.Minute, "26 02 025b 20010db8 00010000 00000000"},
		"length 40": {"2001:db8:100::/40", 10 * time.Minute, "26 02 025c 20010db8 01000000 00000000"},
		"length 32": {"2001:db8::/32", 10 * time.Minute, "26 02 025d 20010db8 00000000 00000000"},

		"a prefix of 96 bits": {"2001:db8:1:2:3:4::/96", 8 * time.Second, "26 02 0008 20010db8 00010002 00030004"},
		"withdrawn":           {"64:ff9b::/96", 0, "26 02 0000 0064ff9b 00000000 00000000"},
		"rounded up":          {"64:ff9b::/96", 17 * time.Second, "26 02 0018 0064ff9b 00000000 00000000"},
		"below a unit":        {"64:ff9b::/96", time.Millisecond, "26 02 0008 0064ff9b 00000000 00000000"},
		"longest":             {"64:ff9b::/96", 65528 * time.Second, "26 02 fff8 0064ff9b 00000000 00000000"},
		"longer":              {"64:ff9b::/96", 65529 * time.Second, "26 02 fff8 0064ff9b 00000000 00000000"},
		"far longer":          {"2001:db8::/32", 24 * 365 * time.Hour, "26 02 fffd 20010db8 00000000 00000000"},
	} {
		t.Run(name, func(t *testing.T) {
			prefix := netip.MustParsePrefix(test.prefix)
			b, err := ndp.MarshalMessage(advertisement(prefix, test.lifetime))
			require.NoError(t, err)
			assert.Equal(t, hex.EncodeToString(unhex(t, head+test.want)), hex.EncodeToString(b))

			h, ok := read(b, router, 255)
			require.True(t, ok, "what is sent is valid")
			assert.Equal(t, heard{from: router, router: true, pref64: []*ndp.PREF64{{Prefix: prefix, Lifetime: Rounded(test.lifetime)}}}, h)
		})
	}
}

var (
	router = netip.MustParseAddr("fe80::1")
	nobody = netip.IPv6Unspecified()
)

func TestRead(t *testing.T) {
	const (
		solicitation = "85 00 0000 00000000 "
		lladdr       = "01 01 020000000001 "
	)
	for name, test := range map[string]struct {
		message  string
		from     netip.Addr
		hopLimit int
		want     bool
	}{
		"solicitation":                       {solicitation, router, 255, true},
		"solicitation with its address":      {solicitation + lladdr, router, 255, true},
		"solicitation of a global address":   {solicitation, netip.MustParseAddr("2001:db8::1"), 255, true},
		"solicitation without address":       {solicitation, nobody, 255, true},
		"solicitation with unknown option":   {solicitation + "fd 01 000000000000", router, 255, true},
		"without address, but with one":      {solicitation + lladdr, nobody, 255, false},
		"solicitation from elsewhere":        {solicitation, router, 254, false},
		"solicitation with code":             {"85 01 0000 00000000", router, 255, false},
		"short solicitation":                 {"85 00 0000 000000", router, 255, false},
		"option of no length":                {solicitation + "fd 00 000000000000", router, 255, false},
		"option cut short":                   {solicitation + "fd 02 000000000000", router, 255, false},
		"half an option":                     {solicitation + "fd", router, 255, false},
		"solicitation with another option":   {solicitation + "05 01 0000 000005dc" + "02 01 020000000001", router, 255, true},
		"a link-layer address of 20 bytes":   {solicitation + "01 03 00000000 00000000000000000000000000000000 0000", router, 255, true},
		"the same, without address":          {solicitation + "01 03 00000000 00000000000000000000000000000000 0000", nobody, 255, false},
		"advertisement":                      {head, router, 255, true},
		"short advertisement":                {"86 00 0000  00 00 0000  00000000  000000", router, 255, false},
		"advertisement, option of no length": {head + "26 00 0258 0064ff9b", router, 255, false},
		"advertisement with unknown option":  {head + "fd 01 000000000000", router, 255, true},
		"advertisement from elsewhere":       {head, router, 64, false},
		"advertisement of a global address":  {head, netip.MustParseAddr("2001:db8::1"), 255, false},
		"advertisement with code":            {"86 01 0000  00 00 0000  00000000  00000000", router, 255, false},
		"PREF64 of another length":           {head + "26 01 0258 0064ff9b", router, 255, true},
		"PREF64 with code 6":                 {head + "26 02 025e 0064ff9b 00000000 00000000", router, 255, true},
		"neighbour solicitation":             {"87 00 0000 00000000 fe800000000000000000000000000001", router, 255, false},
		"echo request":                       {"80 00 0000 00000000", router, 255, false},
		"nothing":                            {"", router, 255, false},
	} {
		t.Run(name, func(t *testing.T) {
			h, ok := read(unhex(t, test.message), test.from, test.hopLimit)
			assert.Equal(t, test.want, ok)
			assert.Empty(t, h.pref64)
		})
	}

	h, ok := read(unhex(t, "86 00 0000  40 c0 0708  00000000  00000000  26 02 0008 20010db8 00000000 00000000"), router.WithZone("eth0"), 255)
	require.True(t, ok)
	assert.Equal(t, heard{from: router, router: true, lifetime: 30 * time.Minute,
		pref64: []*ndp.PREF64{{Prefix: netip.MustParsePrefix("2001:db8::/96"), Lifetime: 8 * time.Second}}}, h)

	// Among options of all kinds, and ones that are to be ignored.
	h, ok = read(unhex(t, head+"26 01 0258 0064ff9b 26 02 025f 0064ff9b 00000000 00000000"+
		"19 01 0000 00000258 26 02 0010 20010db8 00000000 00000000 01 01 020000000001 26 02 0001 20010db8 00010002 00000001"), router, 255)
	require.True(t, ok)
	assert.Equal(t, []*ndp.PREF64{
		{Prefix: netip.MustParsePrefix("2001:db8::/96"), Lifetime: 16 * time.Second},
		{Prefix: netip.MustParsePrefix("2001:db8:1:2::/64")},
	}, h.pref64)
}

// FuzzRead holds that no message of the wire does harm, and that nothing is
// answered that a router passed on.
func FuzzRead(f *testing.F) {
	f.Add(unhex(f, "85 00 0000 00000000 01 01 020000000001"), byte(255), true)
	f.Add(unhex(f, head+"26 02 0258 0064ff9b 00000000 00000000"), byte(255), false)
	f.Add(unhex(f, head+"19 03 0000 00000258 20010db8000000000000000000000001"), byte(255), false)
	f.Fuzz(func(t *testing.T, b []byte, hopLimit byte, anonymous bool) {
		from := router
		if anonymous {
			from = nobody
		}
		h, ok := read(b, from, int(hopLimit))
		if !ok {
			return
		}
		if hopLimit != 255 || b[1] != 0 {
			t.Fatalf("accepted with hop limit %d and code %d", hopLimit, b[1])
		}
		if want := byte(134); h.router && b[0] != want || !h.router && b[0] != 133 {
			t.Fatalf("type %d read as router %v", b[0], h.router)
		}
		for _, p := range h.pref64 {
			if p.Prefix != p.Prefix.Masked() || p.Lifetime < 0 || p.Lifetime > MaxLifetime {
				t.Fatalf("a PREF64 of %v for %v", p.Prefix, p.Lifetime)
			}
		}
	})
}

// The configuration admits just the lifetimes that can be sent.
func TestLimits(t *testing.T) {
	c := config.Default()
	for lifetime, good := range map[time.Duration]bool{
		MinLifetime: true, MinLifetime - 1: false, MaxLifetime: true, MaxLifetime + 1: false,
	} {
		c.RA.Lifetime = lifetime
		assert.Equal(t, good, c.Validate() == nil, lifetime)
	}
}
