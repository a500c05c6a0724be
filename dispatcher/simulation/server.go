// SPDX-License-Identifier: Apache-2.0

package simulation

// job is a request that waits at a server or is being served.
type job struct {
	session int32
	work    float64 // seconds at normal speed
}

// server serves jobs in the order in which they came.
type server struct {
	speed float64
	jobs  []job // jobs[head] is being served
	head  int

	waiting  float64 // work of all jobs
	busyTime float64 // in this interval, up to since
	since    float64 // when busyTime was brought up to date
	sessions int     // sessions that are its own and go on
}

func (s *server) queued() int { return len(s.jobs) - s.head }

// push adds a job and reports whether it is served at once.
func (s *server) push(now float64, j job) bool {
	s.account(now)
	s.jobs = append(s.jobs, j)
	s.waiting += j.work
	return s.queued() == 1
}

// pop removes the job that has been served, or is not to be.
func (s *server) pop(now float64) job {
	s.account(now)
	j := s.jobs[s.head]
	s.head++
	s.waiting -= j.work
	switch {
	case s.head == len(s.jobs):
		s.jobs, s.head, s.waiting = s.jobs[:0], 0, 0
	case s.head >= 1024 && s.head > len(s.jobs)/2:
		s.jobs = s.jobs[:copy(s.jobs, s.jobs[s.head:])]
		s.head = 0
	}
	return j
}

func (s *server) account(now float64) {
	if s.queued() > 0 {
		s.busyTime += now - s.since
	}
	s.since = now
}

// Shares of what a server reports; see the package's documentation.
const (
	busyPart    = 0.8
	backlogPart = 0.2
)

// parts returns the share of the interval that ends now in which the server was busy, and the share of a client's patience that its
// queue takes, and begins the next interval.
func (s *server) parts(now, interval, patience float64) (busy, backlog float64) {
	s.account(now)
	busy = min(1, s.busyTime/interval)
	s.busyTime = 0
	return busy, min(1, s.waiting/s.speed/patience)
}

// load makes one number of a server's parts.
func (c *Config) load(busy, backlog float64) float64 {
	if c.LargestPart > 0 {
		return max(c.LargestPart*busy, backlog)
	}
	return busyPart*busy + backlogPart*backlog
}
