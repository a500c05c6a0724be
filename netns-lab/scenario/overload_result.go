// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"math"
	"time"
)

// OverloadResult is what came of the scene, in the form that --output json prints.
type OverloadResult struct {
	Scenario string   `json:"scenario"`
	OK       bool     `json:"ok"`
	Problems []string `json:"problems,omitempty"`
	// CompletedSessionsPerSecond is for each policy the mean over the seeds.
	CompletedSessionsPerSecond map[OverloadPolicy]float64 `json:"completedSessionsPerSecond"`
	// Noise is for each policy how far SA2C may be behind it, in sessions per second, and still be as good: twice the standard error of the mean
	// of their difference over the seeds, and no less than by what the same runs differ when they are played again.
	Noise map[OverloadPolicy]float64 `json:"noise"`
	// Capacity is how many sessions per second the servers could complete at the best, Offered how many came, in units of that.
	Capacity float64 `json:"capacity"`
	Offered  float64 `json:"offered"`
	// Seeds are those of the sessions; Runs has one for each, of each policy.
	Seeds []uint64                         `json:"seeds"`
	Runs  map[OverloadPolicy][]OverloadRun `json:"runs"`
	// Surges are the runs of the policy udp in which the load was above T3 for a while, one for each seed.
	Surges []OverloadSurge `json:"surges,omitempty"`
}

// OverloadRun is one run.
type OverloadRun struct {
	Seed uint64 `json:"seed"`
	// Rate is how many sessions were completed per second, after the warm-up.
	Rate float64 `json:"completedSessionsPerSecond"`
	// Came is how many sessions came in the whole run. They were Completed, Refused (with 503, or by silence), given up because an answer was Late, had Failed because
	// their connection broke, or went on at the end.
	Came      int `json:"came"`
	Completed int `json:"completed"`
	Refused   int `json:"refused"`
	Late      int `json:"late"`
	Failed    int `json:"failed"`
	GoingOn   int `json:"goingOn"`
	// Dropped are the first packets that the dispatcher's kernel refused, and Degraded those of established sessions.
	Dropped  int `json:"droppedFirstPackets"`
	Degraded int `json:"droppedEstablishedPackets"`
	// Kept is the share of the sessions that were let in, and have ended, that were completed.
	Kept float64 `json:"kept"`
	// InVain is the share of the servers' work that went into sessions that were not completed.
	InVain float64 `json:"inVain"`
	// Datagrams are those of sessions of datagrams.
	Datagrams *OverloadDatagrams `json:"datagrams,omitempty"`
}

func newOverloadResult(cfg OverloadConfig, servers int) OverloadResult {
	return OverloadResult{
		Scenario: "overload", CompletedSessionsPerSecond: map[OverloadPolicy]float64{}, Noise: map[OverloadPolicy]float64{},
		Capacity: cfg.Capacity(servers), Offered: cfg.Offered, Seeds: cfg.Seeds, Runs: map[OverloadPolicy][]OverloadRun{},
	}
}

// tallyRun counts how the sessions of a run have ended; given is how many requests came to the servers.
func tallyRun(seed uint64, ends []end, warmUp, length time.Duration, given int) OverloadRun {
	r := OverloadRun{Seed: seed, Came: len(ends)}
	counted, useful := 0, 0
	var by [fates]int
	for _, e := range ends {
		by[e.fate]++
		switch e.fate {
		case visitCompleted:
			useful += e.requests
			if e.at >= warmUp && e.at <= length {
				counted++
			}
		case visitCut:
			useful += e.requests
		}
	}
	r.Completed, r.Refused, r.Late, r.Failed, r.GoingOn = by[visitCompleted], by[visitRefused], by[visitLate], by[visitFailed], by[visitCut]
	r.Rate = float64(counted) / (length - warmUp).Seconds()
	if n := r.Completed + r.Late + r.Failed; n > 0 {
		r.Kept = float64(r.Completed) / float64(n)
	}
	if given > 0 {
		r.InVain = max(1-float64(useful)/float64(given), 0)
	}
	return r
}

// firstFailure returns the error of a session that failed.
func firstFailure(ends []end) error {
	for _, e := range ends {
		if e.fate == visitFailed {
			return e.err
		}
	}
	return nil
}

// maxFailed is the share of sessions whose connection may break.
const maxFailed = 0.01

// judge fills in the means, and decides whether all is well.
func (r *OverloadResult) judge() {
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	for p, runs := range r.Runs {
		r.CompletedSessionsPerSecond[p] = mean(rates(runs))
		for _, run := range runs {
			if float64(run.Failed) > maxFailed*float64(run.Came) {
				bad("%s, seed %d: %d connections of %d broke", p, run.Seed, run.Failed, run.Came)
			}
			if run.Degraded > 0 {
				bad("%s, seed %d: %d packets of established sessions were dropped", p, run.Seed, run.Degraded)
			}
			if p == OverloadSilent && run.Refused > 0 && run.Dropped == 0 {
				bad("%s, seed %d: %d sessions did not come to be, and the kernel has refused none", p, run.Seed, run.Refused)
			}
			if run.Completed == 0 {
				bad("%s, seed %d: no session was completed", p, run.Seed)
			}
		}
	}
	if ours := r.Runs[OverloadSA2C]; len(ours) > 0 {
		for p, theirs := range r.Runs {
			if p == OverloadSA2C {
				continue
			}
			behind, noise := compare(rates(theirs), rates(ours))
			r.Noise[p] = noise
			if behind > noise {
				bad("sa2c completes %.1f sessions per second less than %s, and the noise is %.1f", behind, p, noise)
			}
		}
	}
	r.OK = len(r.Problems) == 0
}

func rates(runs []OverloadRun) []float64 {
	list := make([]float64, len(runs))
	for i, r := range runs {
		list[i] = r.Rate
	}
	return list
}

func mean(list []float64) float64 {
	sum := 0.0
	for _, x := range list {
		sum += x
	}
	return sum / float64(max(len(list), 1))
}

// repeatability is the share by which the mean rate of three runs may differ from that of the same three, played again: the machine has other things to do.
// Measured: single runs of a policy and a seed differ by a standard deviation of 3 to 4 %.
const repeatability = 0.06

// compare returns by how much a is above b on average, where each a[i] belongs to b[i], and twice the standard error of that, but no less than
// repeatability lets expect.
func compare(a, b []float64) (difference, noise float64) {
	n := min(len(a), len(b))
	d := make([]float64, n)
	squares := 0.0
	for i := range n {
		d[i] = a[i] - b[i]
	}
	difference = mean(d)
	for _, x := range d {
		squares += (x - difference) * (x - difference)
	}
	if n > 1 {
		noise = 2 * math.Sqrt(squares/float64(n-1)/float64(n))
	}
	return difference, max(noise, repeatability*max(mean(a), mean(b)))
}
