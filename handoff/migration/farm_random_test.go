// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// randomFarm draws times and faults.
func randomFarm(r *rand.Rand) *farm {
	farms := []func() *farm{
		newFastFarm,
		func() *farm { return newFarm(Config{}, time.Second, 3*time.Second) },
		func() *farm { return newFarm(Config{}, 50*time.Millisecond, 3*time.Second) },
		func() *farm {
			return newFarm(Config{Retry: 7 * time.Millisecond}, 2900*time.Millisecond, 3*time.Second)
		},
	}
	f := farms[r.IntN(len(farms))]()
	f.atOnce = [2]bool{r.IntN(2) == 0, r.IntN(2) == 0}
	f.faults, f.ends = r.IntN(9), r.IntN(2)
	return f
}

// wander takes random steps until nothing can happen, and returns how many. Faults come while there are any left.
func (f *farm) wander(r *rand.Rand) int {
	var buf []farmStep
	faulty, late := 1+r.IntN(40), r.IntN(60)
	for n := range maxSteps {
		if f.broken != "" {
			return n
		}
		buf = f.free(buf[:0])
		free := len(buf)
		_, timer := f.next()
		switch {
		case f.faults > 0 && r.IntN(100) < faulty:
			for _, s := range buf[:free] {
				buf = farmCrashes(s, buf)
			}
			if buf = f.spoiled(buf)[free:]; len(buf) == 0 {
				break
			}
			undone := *f
			if !f.take(buf[r.IntN(len(buf))]) {
				*f = undone
				break
			}
			f.faults--
		case timer && (free == 0 || f.faults > 0 && r.IntN(200) < late):
			f.take(farmStep{op: farmTime, crash: never, long: free > 0})
		case r.IntN(20) == 0 && len(f.ending(nil)) > 0:
			f.take(f.ending(nil)[0])
		case free > 0:
			f.take(buf[r.IntN(free)])
		default:
			return n
		}
	}
	f.fail("no end after %d steps", maxSteps)
	return maxSteps
}

// seededFarm draws a farm and its course from one number.
func seededFarm(seed uint64, traced bool) (*farm, int) {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test wants to be repeated
	f := randomFarm(r)
	if traced {
		f.trace = &trace{}
	}
	n := f.wander(r)
	f.atRest()
	return f, n
}

// TestRandomHandoffs goes on for a while with other seeds each time; a failure names its seed, REHOME_MODEL_SEED repeats it.
func TestRandomHandoffs(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("REHOME_MODEL_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("REHOME_MODEL_SEED: %v", err)
		}
	}
	end := time.Now().Add(modelTime(t))
	runs, steps := 0, 0
	var s farmSearch
	for ; time.Now().Before(end); seed++ {
		f, n := seededFarm(seed, false)
		if f.broken != "" {
			f, _ = seededFarm(seed, true)
			t.Fatalf("REHOME_MODEL_SEED=%d: %s\nlimit %v, grace %v, at once %v\n%v", seed, f.broken, f.limit, f.grace, f.atOnce, f.trace)
		}
		runs++
		steps += n
		s.count(f)
	}
	t.Logf("%d runs, %d steps, ends: %+v", runs, steps, s.ends)
	if s.ends.given == 0 || s.ends.answered == 0 || s.ends.told == 0 {
		t.Errorf("%+v in %d runs: the model does too little", s.ends, runs)
	}
}
