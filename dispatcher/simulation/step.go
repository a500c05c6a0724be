// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"math"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/balance"
)

// What happens in Step, and when.
const (
	// Joiner comes in empty at JoinAt.
	Joiner = 0
	JoinAt = time.Minute
	// Slowed has half its speed from SlowAt to FastAt.
	Slowed = 1
	SlowAt = 2 * time.Minute
	FastAt = 220 * time.Second
	// StepEnd is the end.
	StepEnd = 5 * time.Minute
)

// Balancer is a way to choose servers.
type Balancer struct {
	Name       string
	Kind       balance.Kind
	Unforecast bool
	Uncounted  bool
}

// Balancers are compared by Step. The last two are shell without one of its parts each.
func Balancers() []Balancer {
	return []Balancer{
		{Name: "round robin", Kind: balance.RoundRobin},
		{Name: "least connections", Kind: balance.LeastConnections},
		{Name: "power of two choices", Kind: balance.PowerOfTwo},
		{Name: "shell", Kind: balance.Shell},
		{Name: "shell, sessions not counted", Kind: balance.Shell, Uncounted: true},
		{Name: "shell, loads not forecast", Kind: balance.Shell, Unforecast: true},
	}
}

// Step lets a cluster of eight servers, which are busy for six tenths of the time, meet two steps: an empty server comes in, and another one
// loses half of its speed and gets it back. Sessions are connections, and loads are reported each second. It
// returns the loads of each second, averaged over the seeds.
func Step(b Balancer, seeds ...uint64) (Result, error) {
	config := Config{
		Offered: 0.6, Balance: b.Kind, Unforecast: b.Unforecast, Uncounted: b.Uncounted,
		KeptConnections: true, Report: time.Second, Trace: time.Second, WarmUp: 30 * time.Second,
		Admission: admission.Config{Kind: admission.None},
		Changes: []Change{
			{Server: Joiner, Leave: true},
			{At: JoinAt, Server: Joiner, Join: true},
			{At: SlowAt, Server: Slowed, Speed: 0.5},
			{At: FastAt, Server: Slowed, Speed: 1},
		},
	}
	// Some more than come on average, so that all runs are long enough.
	config.Sessions = int(1.05 * config.Capacity() * config.Offered * StepEnd.Seconds())
	var sum Result
	for _, seed := range seeds {
		config.Seed = seed
		r, err := Run(config)
		if err != nil {
			return Result{}, err
		}
		sum = sum.plus(r)
	}
	for _, row := range sum.Trace {
		for i := range row {
			row[i] /= float64(len(seeds))
		}
	}
	sum.Trace = sum.Trace[:min(len(sum.Trace), int(StepEnd/time.Second))]
	return sum, nil
}

// smoothing is over how many rows, the last one and those before it, a load is averaged before it is looked at: one
// second of a server has some hundred requests, and noise.
const smoothing = 5

// Response is how a load, averaged over five seconds, went to where it came to rest after a step.
type Response struct {
	// Final is where it came to rest: its mean in the last quarter of the time looked at.
	Final float64
	// Overshoot is by how much it went beyond, as a share of Final.
	Overshoot float64
	// Settled is after how long it stayed within a tenth of Final; as long as was looked at, if it did not.
	Settled time.Duration
	// Ripple is its standard deviation in the last quarter, as a share of Final.
	Ripple float64
}

// ResponseOf looks at a server's load between two times of a trace with a row for each second. Rising says which side of Final is beyond.
func ResponseOf(trace [][]float64, server int, from, to time.Duration, rising bool) Response {
	first, last := int(from/time.Second), min(int(to/time.Second), len(trace))
	if last-first < 4 {
		return Response{}
	}
	var r Response
	quarter := trace[last-(last-first)/4 : last]
	squares := 0.0
	for i, row := range quarter {
		difference := row[server] - r.Final
		r.Final += difference / float64(i+1)
		squares += difference * (row[server] - r.Final)
	}
	r.Ripple = ratio(math.Sqrt(squares/float64(len(quarter))), r.Final)
	for i := range last - first {
		beyond := ratio(recent(trace[first:first+i+1], server)-r.Final, r.Final)
		if math.Abs(beyond) > 0.1 {
			r.Settled = time.Duration(i+1) * time.Second
		}
		if !rising {
			beyond = -beyond
		}
		r.Overshoot = max(r.Overshoot, beyond)
	}
	return r
}

// recent is the mean of the last rows.
func recent(rows [][]float64, server int) float64 {
	rows = rows[max(0, len(rows)-smoothing):]
	sum := 0.0
	for _, row := range rows {
		sum += row[server]
	}
	return sum / float64(len(rows))
}
