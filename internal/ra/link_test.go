package ra

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
)

// What others say is remembered while it holds, of a few routers, and fills no
// log.
func TestCompare(t *testing.T) {
	var log bytes.Buffer
	l := &link{log: slog.New(slog.NewTextHandler(&log, nil)), others: map[netip.Addr]other{}}
	ours, theirs := netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("2001:db8::/96")
	doing := task{prefix: ours, lifetime: time.Minute}
	now := time.Now()
	say := func(n int, p ...*ndp.PREF64) {
		l.compare(heard{from: netip.MustParseAddr(fmt.Sprintf("fe80::%x", n)), router: true, pref64: p}, doing, now)
	}
	same := &ndp.PREF64{Prefix: ours, Lifetime: time.Hour}
	another := &ndp.PREF64{Prefix: theirs, Lifetime: time.Hour}

	say(1, same)
	say(2)
	say(3, &ndp.PREF64{Prefix: theirs})
	assert.Empty(t, l.now().Others, "the same, nothing, and another that is gone")
	say(1, same, another)
	assert.Equal(t, []string{"router fe80::1 advertises another prefix, 2001:db8::/96"}, l.now().Others)
	say(1, &ndp.PREF64{Prefix: ours})
	assert.Equal(t, []string{"router fe80::1 takes 64:ff9b::/96 back"}, l.now().Others)
	say(1, same)
	assert.Empty(t, l.now().Others)

	for n := range 100 {
		say(n, another)
	}
	assert.Len(t, l.now().Others, remembered)
	now = now.Add(again + time.Second)
	say(0, same)
	say(0, another)
	assert.Equal(t, 2, bytes.Count(log.Bytes(), []byte("\n")), "%s", log.String())
	now = now.Add(2 * time.Hour)
	say(100, another)
	assert.Len(t, l.now().Others, 1)
}
