// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// modelTime is how long the model's tests may take together; REHOME_MODEL_TIME sets another, such as 10m.
func modelTime(t testing.TB) time.Duration {
	v := os.Getenv("REHOME_MODEL_TIME")
	if v == "" {
		return 2 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("REHOME_MODEL_TIME: %v", err)
	}
	return d
}

// thorough reports whether more than the usual time was asked for.
func thorough() bool { return os.Getenv("REHOME_MODEL_TIME") != "" }

// randomWorld draws a configuration, clocks and faults.
func randomWorld(r *rand.Rand) *world {
	configs := []Config{{}, smallTimes(), {Limit: 10 * time.Minute, Grace: 10 * time.Second, Retry: time.Second}}
	w := newWorld(configs[r.IntN(len(configs))])
	w.harsh, w.ahead, w.large = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	w.migrations = 1 + r.IntN(5)
	w.faults = r.IntN(9)
	for n := range w.skew {
		w.skew[n] = int64(r.IntN(21) - 10)
	}
	return w
}

// maxSteps is far above what any run takes: one that reaches it goes round in circles.
const maxSteps = 20_000

// wander takes random steps until nothing can happen, and returns how many. Faults come while there are any left.
func (w *world) wander(r *rand.Rand) int {
	var buf []step
	faulty, late := 1+r.IntN(40), 1+r.IntN(60)
	for n := range maxSteps {
		if w.broken != "" {
			return n
		}
		buf = w.free(buf[:0])
		free := len(buf)
		_, timer := w.next()
		switch {
		case w.faults > 0 && r.IntN(100) < faulty:
			for _, f := range buf[:free] {
				buf = crashes(f, buf)
			}
			buf = w.spoiled(buf)[free:]
			if len(buf) == 0 {
				continue
			}
			s := buf[r.IntN(len(buf))]
			undone := *w
			if !w.take(s) {
				*w = undone
				continue
			}
			w.faults--
		case timer && (free == 0 || w.faults > 0 && r.IntN(200) < late):
			w.take(step{op: opTime, crash: never, long: free > 0})
		case free == 0:
			return n
		default:
			w.take(buf[r.IntN(free)])
		}
	}
	w.fail("no end after %d steps", maxSteps)
	return maxSteps
}

// seeded draws a world and its course from one number.
func seeded(seed uint64, traced bool) (*world, int) {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test wants to be repeated
	w := randomWorld(r)
	if traced {
		w.trace = &trace{}
	}
	n := w.wander(r)
	w.atRest()
	return w, n
}

// TestRandomRuns goes on for a while with other seeds each time; a failure names its seed, REHOME_MODEL_SEED repeats it.
func TestRandomRuns(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("REHOME_MODEL_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("REHOME_MODEL_SEED: %v", err)
		}
	}
	end := time.Now().Add(modelTime(t))
	runs, steps, moved, told := 0, 0, 0, 0
	for ; time.Now().Before(end); seed++ {
		w, n := seeded(seed, false)
		if w.broken != "" {
			w, _ = seeded(seed, true)
			t.Fatalf("REHOME_MODEL_SEED=%d: %s\n%+v skew %v harsh %v\n%v", seed, w.broken, w.cfg, w.skew, w.harsh, w.trace)
		}
		runs++
		steps += n
		moved += int(w.entry.owner.Epoch - 1)
		if w.clientTold {
			told++
		}
	}
	t.Logf("%d runs, %d steps, %d moves, %d connections ended", runs, steps, moved, told)
	if moved == 0 || told == 0 {
		t.Errorf("%d moves and %d ended connections in %d runs: the model does too little", moved, told, runs)
	}
}

// TestBrokenRules holds the checker itself to account: it must find what is wrong with each weaker protocol.
func TestBrokenRules(t *testing.T) {
	tests := []struct {
		name           string
		rules          rules
		faults, delays int
		harsh          bool
		skew           int64 // of the entry's clock, per mille
		want           string
	}{
		{
			"a target that goes on before the answer",
			rules{thawBeforeAnswer: true},
			0, 0, false, 0,
			"host b is live while the entry names a/1",
		},
		{
			"an entry that commits without a lease",
			rules{commitWithoutLease: true},
			0, 1, false, 0,
			"host a is live while the entry names b/2",
		},
		{
			"a source that goes on when it has lost the target",
			rules{resumeOnPeerLost: true},
			1, 0, false, 0,
			"two live owners",
		},
		{
			"a new target agent that asks instead of committing",
			rules{recoverByQuery: true},
			1, 0, false, 0,
			"nobody has the connection, and the client was not told",
		},
		{
			"a new target agent that commits",
			rules{recoverByCommit: true},
			1, 1, false, -10,
			"host a is live while the entry names b/2",
		},
		{
			"an entry that forgets what was aborted",
			rules{forgetAborted: true},
			1, 1, true, 0,
			"host a is live while the entry names b/2",
		},
		{
			"a hold shorter than the lease",
			rules{shortHold: true},
			1, 2, false, 0,
			"the flow changed hands after host a's hold had ended: its frozen socket may have acknowledged data",
		},
		{
			"a hold that dies with its agent",
			rules{holdDies: true},
			1, 0, false, 0,
			"the flow changed hands after host a's hold had ended: its frozen socket may have acknowledged data",
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			world := func() *world {
				w := newWorld(smallTimes())
				w.rules, w.faults, w.delays, w.harsh, w.skew[entryE] = tc.rules, tc.faults, tc.delays, tc.harsh, tc.skew
				return w
			}
			s := shortest(world(), 2_000_000)
			if s.broken != tc.want {
				t.Fatalf("found %q after %d states, want %q", s.broken, s.states, tc.want)
			}
			w := world()
			t.Logf("\n%s", replay(*w, s.found))
		})
	}
}
