package ra

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

func TestInterval(t *testing.T) {
	for lifetime, want := range map[time.Duration][2]time.Duration{
		12 * time.Second:    {3 * time.Second, 4 * time.Second},
		15 * time.Second:    {3 * time.Second, 5 * time.Second},
		30 * time.Second:    {10 * time.Second / 3, 10 * time.Second},
		9 * time.Minute:     {time.Minute, 3 * time.Minute},
		90 * time.Minute:    {10 * time.Minute, 30 * time.Minute},
		65528 * time.Second: {10 * time.Minute, 30 * time.Minute},
	} {
		least, most := Interval(lifetime)
		assert.Equal(t, want, [2]time.Duration{least, most}, lifetime)
	}
}

// Whatever is solicited when: two advertisements are 3 seconds apart or more,
// an answer comes within 3.5 seconds of its question or, where nothing was
// sent before, within half a second; and without questions the times between
// two are those of RFC 4861 6.2.4.
func TestSchedule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lifetime := time.Duration(rapid.Int64Range(int64(MinLifetime), int64(MaxLifetime)).Draw(t, "lifetime"))
		least, most := Interval(lifetime)
		if least < 3*time.Second || 4*least > 3*most || most < 4*time.Second || most > 30*time.Minute || 3*most > lifetime {
			t.Fatalf("an interval of %v to %v", least, most)
		}
		now := time.Unix(1e9, 0)
		var before time.Time
		if ago := rapid.Int64Range(0, int64(10*time.Second)).Draw(t, "sent ago"); ago > 0 {
			before = now.Add(-time.Duration(ago))
		}
		s := begin(lifetime, before, now)
		asked := now // as is the beginning
		for n := 1; n < 20; n++ {
			if !asked.IsZero() {
				latest := asked
				if free := before.Add(3 * time.Second); free.After(latest) {
					latest = free
				}
				if s.next.After(latest.Add(500*time.Millisecond)) && s.next.After(now) {
					t.Fatalf("asked at %v, answered at %v", asked, s.next)
				}
			}
			if s.next.Before(before.Add(3 * time.Second)) {
				t.Fatalf("sent at %v and at %v", before, s.next)
			}
			now, asked = s.next, time.Time{}
			s.sent(now)
			before = now
			shortest, longest := least, most
			if n < 3 {
				shortest, longest = min(shortest, 16*time.Second), min(longest, 16*time.Second)
			}
			if wait := s.next.Sub(now); wait < shortest || wait > longest {
				t.Fatalf("%v to advertisement %d, expected %v to %v", wait, n+1, shortest, longest)
			}
			for range rapid.IntRange(0, 3).Draw(t, "solicitations") {
				later := now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(t, "after")))
				if later.After(s.next) {
					break
				}
				if now = later; asked.IsZero() {
					asked = now
				}
				s.solicited(now)
			}
		}
	})
}
