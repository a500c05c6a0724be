// SPDX-License-Identifier: Apache-2.0

package simulation

import "time"

// Result is what came of a run, counted from the end of the warm-up to the coming of the last session.
type Result struct {
	// Time is how long was counted.
	Time time.Duration
	// Offered are the sessions that came in this time; Refused those that were not let in; Completed and Lost those that ended in it.
	Offered, Refused, Completed, Lost int
	// Late are those of the lost ones that had to wait for an answer for too long; the others were refused in the middle too often.
	Late int
	// Long are the sessions with more than twice the average number of requests that ended, and LongCompleted those of them that were
	// completed.
	Long, LongCompleted int
	// Answers are the requests that were answered, and Waited is how long their clients waited for them in all, from when they first sent
	// them.
	Answers int
	Waited  time.Duration
	// Busy is the servers' working time, and Wasted what of it went into sessions that were lost; both as shares of all time.
	Busy, Wasted float64
	// Trace has the servers' loads, if they were asked for: a row for each Config.Trace, in it a number for each server.
	Trace [][]float64
}

// CompletedPerSecond is the useful throughput that SARA is about.
func (r Result) CompletedPerSecond() float64 { return ratio(float64(r.Completed), r.Time.Seconds()) }

// Wait is how long an answer took on average.
func (r Result) Wait() time.Duration { return r.Waited / time.Duration(max(1, r.Answers)) }

// Success is the share that was completed of the sessions that were let in and have ended.
func (r Result) Success() float64 { return ratio(float64(r.Completed), float64(r.Completed+r.Lost)) }

// LongSuccess is Success of sessions that are more than twice as long as the average.
func (r Result) LongSuccess() float64 { return ratio(float64(r.LongCompleted), float64(r.Long)) }

func ratio(part, whole float64) float64 {
	if whole == 0 {
		return 0
	}
	return part / whole
}

// Sum adds up the figures of several runs; busy and wasted shares are averaged, and traces added row by row.
func Sum(results ...Result) Result {
	var sum Result
	for _, r := range results {
		sum = sum.plus(r)
	}
	return sum
}

func (r Result) plus(other Result) Result {
	seconds, more := r.Time.Seconds(), other.Time.Seconds()
	sum := Result{
		Time:    r.Time + other.Time,
		Offered: r.Offered + other.Offered, Refused: r.Refused + other.Refused, Completed: r.Completed + other.Completed,
		Lost: r.Lost + other.Lost, Late: r.Late + other.Late, Long: r.Long + other.Long, LongCompleted: r.LongCompleted + other.LongCompleted,
		Answers: r.Answers + other.Answers, Waited: r.Waited + other.Waited,
		Busy:   ratio(r.Busy*seconds+other.Busy*more, seconds+more),
		Wasted: ratio(r.Wasted*seconds+other.Wasted*more, seconds+more),
		Trace:  other.Trace,
	}
	if r.Trace == nil {
		return sum
	}
	sum.Trace = r.Trace[:min(len(r.Trace), len(other.Trace))]
	for i, row := range sum.Trace {
		for j := range row {
			row[j] += other.Trace[i][j]
		}
	}
	return sum
}
