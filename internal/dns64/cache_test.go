package dns64

import (
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
)

// TestLife: for how long answers are kept, and what their TTLs are meanwhile.
func TestLife(t *testing.T) {
	for name, c := range map[string]struct {
		zone []string
		do   func(w dns.ResponseWriter, q *dns.Msg)
		ask  string
		life time.Duration
		ttl  uint32 // of the record that comes first, when it was kept for half of that
	}{
		"positive":                       {zone: []string{"n.example. 60 IN A 192.0.2.1", "n.example. 100 IN A 192.0.2.2"}, ask: "n.example.", life: 60 * time.Second, ttl: 30},
		"an alias is shorter":            {zone: []string{"n.example. 20 IN CNAME m.example.", "m.example. 100 IN A 192.0.2.2"}, ask: "n.example.", life: 20 * time.Second, ttl: 10},
		"very long":                      {zone: []string{"n.example. 2147483647 IN A 192.0.2.1"}, ask: "n.example.", life: maxTTL * time.Second, ttl: maxTTL / 2},
		"zero":                           {zone: []string{"n.example. 0 IN A 192.0.2.1"}, ask: "n.example.", life: 0},
		"no such name (RFC 2308)":        {ask: "n.example.", life: 300 * time.Second, ttl: 750},
		"no such data (RFC 2308)":        {zone: []string{"n.example. 60 IN TXT x"}, ask: "n.example.", life: 300 * time.Second, ttl: 750},
		"negative for very long":         {ask: "n.longsoa.example.", life: maxNegative * time.Second, ttl: maxTTL - maxNegative/2},
		"negative without SOA":           {ask: "n.nosoa.", life: 0},
		"a server failure (RFC 9520)":    {do: rcode(dns.RcodeServerFailure), ask: "n.example.", life: failureLife},
		"no answer at all (RFC 9520)":    {do: func(dns.ResponseWriter, *dns.Msg) {}, ask: "n.example.", life: failureLife},
		"aliases in a circle (RFC 9520)": {zone: []string{"n.example. 60 IN CNAME n.example."}, ask: "n.example.", life: failureLife},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := scripted(t, c.zone...)
			if c.do != nil {
				u.script(func(w dns.ResponseWriter, q *dns.Msg, _ func()) { c.do(w, q) })
			}
			s := serverOf(t, small(), u.addr)
			now := time.Unix(1000, 0)
			s.now = func() time.Time { return now }
			first := get(t, s, c.ask, dns.TypeA)
			asked := len(u.questions())
			assert.Positive(t, asked)
			now = now.Add(c.life / 2)
			again := get(t, s, c.ask, dns.TypeA)
			assert.Equal(t, first.Rcode, again.Rcode)
			assert.Len(t, again.Answer, len(first.Answer))
			if c.life == 0 {
				assert.NotEmpty(t, u.questions())
				return
			}
			assert.Empty(t, u.questions(), "it is kept")
			if records := append(again.Answer, again.Ns...); len(records) > 0 {
				assert.Equal(t, c.ttl, records[0].Header().Ttl)
			}
			now = now.Add(c.life/2 + time.Millisecond)
			get(t, s, c.ask, dns.TypeA)
			assert.NotEmpty(t, u.questions(), "and asked for again")
		})
	}
}

// TestSettings: other upstreams or exclusions make the cache forget.
func TestSettings(t *testing.T) {
	one := scripted(t, "n.example. 60 IN A 192.0.2.1")
	two := scripted(t, "n.example. 60 IN A 192.0.2.2")
	s := serverOf(t, small(), one.addr)
	assert.Equal(t, []string{"n.example. 60 IN A 192.0.2.1"}, lines(get(t, s, "n.example.", dns.TypeA).Answer))
	c := *s.settings.Load()
	c.Upstreams = c.Upstreams[:0:0]
	c.Upstreams = append(c.Upstreams, two.addr)
	s.set(c)
	assert.Equal(t, []string{"n.example. 60 IN A 192.0.2.2"}, lines(get(t, s, "n.example.", dns.TypeA).Answer))
}
