package dataplane

import "golang.org/x/sys/unix"

// pin keeps the calling thread on one CPU, the i-th of those the process may
// use. Left alone, the kernel would move a worker to another CPU at nearly
// every wake-up, away from the caches that hold its buffer.
func pin(i int) {
	var allowed unix.CPUSet
	if unix.SchedGetaffinity(0, &allowed) != nil || allowed.Count() == 0 {
		return // it works without
	}
	cpu := nth(&allowed, i%allowed.Count())
	var one unix.CPUSet
	one.Set(cpu)
	_ = unix.SchedSetaffinity(0, &one) // a sandbox may refuse it
}

// sleepExactly has the calling thread's sleeps end when they should. Left alone,
// the kernel makes each up to 50 µs longer, so that it can wake several threads
// at once; a worker's are shorter than that (tun.Queue.Gather).
func sleepExactly() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // a sandbox may refuse it
}

// nth is the n-th CPU of a set that has more, from 0.
func nth(set *unix.CPUSet, n int) (cpu int) {
	for ; ; cpu++ {
		if !set.IsSet(cpu) {
			continue
		}
		if n == 0 {
			return cpu
		}
		n--
	}
}
