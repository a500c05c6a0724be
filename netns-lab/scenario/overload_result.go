// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// OverloadResult is what came of the scene, in the form that --output json prints.
type OverloadResult struct {
	Scenario string   `json:"scenario"`
	OK       bool     `json:"ok"`
	Problems []string `json:"problems,omitempty"`
	// CompletedSessionsPerSecond is for each policy the mean over the seeds.
	CompletedSessionsPerSecond map[OverloadPolicy]float64 `json:"completedSessionsPerSecond"`
	// Noise is for each policy by how much SA2C may differ from it by chance, in useful requests per second: twice the standard error of the mean of their
	// difference over the seeds, and no less than by what the same runs differ when they are played again.
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
	// Useful is how many requests were answered per second in the whole run, of sessions that were completed or went on at the end. Chance, which lets in long
	// sessions in one run and short ones in another, moves it less than Rate.
	Useful float64 `json:"usefulRequestsPerSecond"`
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
	r.Useful = float64(useful) / length.Seconds()
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

// maxFailed is the share of sessions whose connection may break, and minKept that of those that were let in, under SA2C, that must be completed.
const (
	maxFailed = 0.01
	minKept   = 0.9
)

// judge fills in the means, and decides whether all is well.
func (r *OverloadResult) judge() {
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	for _, p := range slices.Sorted(maps.Keys(r.Runs)) {
		r.CompletedSessionsPerSecond[p] = mean(rates(r.Runs[p]))
		for _, run := range r.Runs[p] {
			for _, problem := range run.problems(p) {
				bad("%s, seed %d: %s", p, run.Seed, problem)
			}
		}
	}
	for _, s := range r.Surges {
		for _, problem := range s.problems() {
			bad("%s", problem)
		}
	}
	r.compare(OverloadSA2C, OverloadPolicy.datagrams, bad)
	r.compare(OverloadDatagram, func(p OverloadPolicy) bool { return !p.datagrams() }, bad)
	r.OK = len(r.Problems) == 0
}

// problems says what is wrong with a run of a policy.
func (r *OverloadRun) problems(p OverloadPolicy) (list []string) {
	bad := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if float64(r.Failed) > maxFailed*float64(r.Came) {
		bad("%d connections of %d broke", r.Failed, r.Came)
	}
	if r.Degraded > 0 {
		bad("%d packets of established sessions were dropped", r.Degraded)
	}
	if (p == OverloadSilent || p == OverloadDatagram) && r.Refused > 0 && r.Dropped == 0 {
		bad("%d sessions did not come to be, and the kernel has refused none", r.Refused)
	}
	if r.Completed == 0 {
		bad("no session was completed")
	}
	if p == OverloadDatagram && r.Kept < minKept {
		bad("of the sessions that were let in, %.0f %% were completed", 100*r.Kept)
	}
	if r.Datagrams == nil {
		return list
	}
	if problem := r.Datagrams.problem(); problem != "" {
		bad("%s", problem)
	}
	// A first datagram is sent once: who was refused is who has come to no server.
	if absent := r.Came - r.Datagrams.Sessions; math.Abs(float64(absent-r.Dropped)) > maxMissing*float64(r.Came) {
		bad("%d sessions have come to no server, and the kernel has refused %d first datagrams", absent, r.Dropped)
	}
	return list
}

// compare holds ours against the others, but for those that are not of the same service.
func (r *OverloadResult) compare(ours OverloadPolicy, apart func(OverloadPolicy) bool, bad func(string, ...any)) {
	if len(r.Runs[ours]) == 0 {
		return
	}
	for _, p := range slices.Sorted(maps.Keys(r.Runs)) {
		if p == ours || apart(p) {
			continue
		}
		behind, noise := compare(useful(r.Runs[p]), useful(r.Runs[ours]))
		r.Noise[p] = noise
		switch {
		case p.blind() && r.Offered >= 2 && behind >= -noise:
			bad("%s serves %.0f requests per second more than %s of sessions that are not lost: want more than the noise of %.0f", ours, -behind, p, noise)
		case behind > noise:
			bad("%s serves %.0f requests per second less than %s of sessions that are not lost, of %.0f; the noise is %.0f", ours, behind, p, mean(useful(r.Runs[p])), noise)
		}
	}
}

// blind reports whether the policy lets sessions in that it does not keep: under twice the load SA2C must be ahead of it.
func (p OverloadPolicy) blind() bool {
	switch p {
	case OverloadNone, OverloadRequest, OverloadDatagramNone, OverloadBare, OverloadDirect:
		return true
	}
	return false
}

func useful(runs []OverloadRun) []float64 {
	list := make([]float64, len(runs))
	for i, r := range runs {
		list[i] = r.Useful
	}
	return list
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

// repeatability is the share by which the mean of three runs may differ from that of the same three, played again: the machine has other things to do.
// Measured in useful requests: less than 1 % on the quiet machine; a disturbance of some hundred milliseconds costs one run of three 10 %. (Completed sessions per
// second differ by 3 to 4 % in any case: one run lets in longer sessions than another.)
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
