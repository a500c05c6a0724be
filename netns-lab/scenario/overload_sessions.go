// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"math"
	"math/rand/v2"
	"time"
)

// visit is a session that will come: what it does is decided before, so that every policy sees the same.
type visit struct {
	// at is when it comes, from the beginning.
	at time.Duration
	// thinks are the pauses between its requests, of which there is one more.
	thinks []time.Duration
}

// visits returns the sessions of a seed, in order: they come at random (a Poisson process) at a rate, sessions per second, for as long as told. A third of
// requests, the mean, are sure, the rest is geometrically distributed; pauses are exponentially, with the mean think.
func visits(seed uint64, rate float64, length time.Duration, requests int, think time.Duration) []visit {
	r := rand.New(rand.NewPCG(seed, 1))
	exponential := func(mean float64) time.Duration { return time.Duration(r.ExpFloat64() * mean) }
	var all []visit
	for at := exponential(1e9 / rate); at < length; at += exponential(1e9 / rate) {
		v := visit{at: at}
		for range sessionLength(r, requests) - 1 {
			v.thinks = append(v.thinks, exponential(float64(think)))
		}
		all = append(all, v)
	}
	return all
}

// maxSession bounds the requests of a session; one of a million with a mean of 12 is longer.
const maxSession = 200

// sessionLength draws a number of requests with a mean: mean/3 are sure, and at least one of the others.
func sessionLength(r *rand.Rand, mean int) int {
	sure := mean / 3
	rest := float64(mean - sure)
	if rest <= 1 {
		return mean
	}
	n := 1 + int(math.Log(1-r.Float64())/math.Log(1-1/rest))
	return min(sure+n, maxSession)
}
