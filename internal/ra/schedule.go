package ra

import (
	"math/rand/v2"
	"time"
)

// The constants of RFC 4861 10, and the bounds of 6.2.1.
const (
	maxInitial      = 3                      // MAX_INITIAL_RTR_ADVERTISEMENTS
	initialInterval = 16 * time.Second       // MAX_INITIAL_RTR_ADVERT_INTERVAL
	betweenTwo      = 3 * time.Second        // MIN_DELAY_BETWEEN_RAS
	answerDelay     = 500 * time.Millisecond // MAX_RA_DELAY_TIME
	leastMaximum    = 4 * time.Second        // of MaxRtrAdvInterval
	mostMaximum     = 30 * time.Minute       // the same
	leastMinimum    = 3 * time.Second        // of MinRtrAdvInterval
)

// answered is when a solicitation has its answer, if there is a router.
const answered = betweenTwo + 2*answerDelay

// MinLifetime is the shortest a prefix may live, so that it is advertised three
// times before it ends (RFC 8781 4.1).
const MinLifetime = 3 * leastMaximum

// Interval is how long it takes from one unsolicited advertisement to the
// next: a random time between these (RFC 4861 6.2.1, 6.2.4).
func Interval(lifetime time.Duration) (least, most time.Duration) {
	most = min(lifetime/3, mostMaximum)
	return max(most/3, leastMinimum), most
}

// schedule is when the next advertisement is due on an interface. All of them
// go to all nodes, so that one timer serves unsolicited ones and answers.
type schedule struct {
	least, most time.Duration
	initial     int       // of the first advertisements are still to come
	last        time.Time // when one was sent; zero: never
	next        time.Time
}

// begin starts a schedule on an interface where one was sent last at a time.
func begin(lifetime time.Duration, last, now time.Time) *schedule {
	s := &schedule{initial: maxInitial, last: last}
	s.least, s.most = Interval(lifetime)
	s.next = s.soonest(now)
	return s
}

// soonest is when one may be sent in answer to now (RFC 4861 6.2.6).
func (s *schedule) soonest(now time.Time) time.Time {
	at := now
	if free := s.free(); at.Before(free) {
		at = free
	}
	return at.Add(rand.N(answerDelay))
}

// free is when two advertisements are far enough apart.
func (s *schedule) free() time.Time { return s.last.Add(betweenTwo) }

// sent notes that one was sent and chooses the time of the next.
func (s *schedule) sent(now time.Time) {
	wait := s.least + rand.N(s.most-s.least+1)
	if s.initial--; s.initial > 0 {
		wait = min(wait, initialInterval)
	}
	s.initial = max(s.initial, 0)
	s.last, s.next = now, now.Add(wait)
}

// solicited has an answer sent soon, unless one is due sooner: then that one
// is the answer.
func (s *schedule) solicited(now time.Time) {
	if at := s.soonest(now); at.Before(s.next) {
		s.next = at
	}
}
