// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// compete returns the contenders' results by name.
func compete(t *testing.T, v Variation, sessions int, seeds ...uint64) map[string]Result {
	t.Helper()
	results := make(map[string]Result)
	for _, c := range Contenders() {
		r, err := Compete(c, v, sessions, seeds...)
		if err != nil {
			t.Fatal(err)
		}
		results[c.Name] = r
	}
	return results
}

// TestOverload holds, on a smaller scale, what docs/sara.md claims of twice the load, whoever it speaks for.
func TestOverload(t *testing.T) {
	r := compete(t, Variations()[0], 50_000, 1, 2)
	capacity := Config{}.Capacity()
	for _, tt := range []struct {
		better, worse string
		least, most   float64 // completed sessions/s of one, as a multiple of the other's
	}{
		{"sa2c", "none", 1.5, 2},
		{"sa2c", "leastconn503, 20", 1.3, 1.7},
		{"sa2c", "leastconn503, 200", 1.4, 1.8},
		{"sa2c", "request, 1 s", 1.02, 1.2},
		{"sa2c", "request, 100 ms", 1.05, 1.3},
		{"sa2c", "sa2c literal", 1.03, 1.2},
		// A fixed threshold does as well.
		{"sa2c", "static", 0.98, 1.02},
		{"sa2c", "sa2c, fixed", 0.97, 1.03},
		{"sa2c", "sa2c, shell", 0.97, 1.03},
	} {
		ratio := r[tt.better].CompletedPerSecond() / r[tt.worse].CompletedPerSecond()
		if ratio < tt.least || ratio > tt.most {
			t.Errorf("%s completes %.3f times as many as %s, want %v to %v", tt.better, ratio, tt.worse, tt.least, tt.most)
		}
	}
	for _, name := range []string{"sa2c", "static", "sa2c, shell"} {
		if s := r[name].Success(); s < 0.999 {
			t.Errorf("%s: %.4f of the sessions let in were completed", name, s)
		}
	}
	if share := r["sa2c"].CompletedPerSecond() / capacity; share < 0.97 || share > 1.02 { // demands vary a little
		t.Errorf("sa2c completes %.3f of what is possible", share)
	}
	if none := r["none"]; none.Wasted < 0.5 || none.Success() > 0.4 {
		t.Errorf("without admission %.3f of all work is wasted and %.3f succeed: where is the overload?", none.Wasted, none.Success())
	}
}

// TestLongSessions holds that SA2C does not prefer short sessions, while those who know no sessions do.
func TestLongSessions(t *testing.T) {
	r := compete(t, Variations()[0], 40_000, 3)
	if s := r["sa2c"].LongSuccess(); s < 0.999 {
		t.Errorf("sa2c: %.4f of the long sessions let in were completed", s)
	}
	for _, name := range []string{"none", "leastconn503, 20", "request, 100 ms", "sa2c literal"} {
		if long, all := r[name].LongSuccess(), r[name].Success(); long > 0.7*all {
			t.Errorf("%s: %.3f of the long sessions, %.3f of all", name, long, all)
		}
	}
}

// TestVariations holds that each of them is a world of its own, and can be run.
func TestVariations(t *testing.T) {
	base := Variations()[0]
	c := Contenders()[6]
	want, err := Compete(c, base, 28_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range Variations()[1:] {
		got, err := Compete(c, v, 28_000, 1)
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		// SA2C's sessions are too seldom late for it to matter who notices.
		if cmp.Equal(want, got) && !v.Config.Notices {
			t.Errorf("%s: the same as the base", v.Name)
		}
	}
}

// TestResponse has numbers worked out by hand.
func TestResponse(t *testing.T) {
	// 1 for 8 s; then 3 for 3 s, 2.4 for 2 s, and 2 for 19 s. The last quarter of these 24 s is 2.
	// Means of five: 3, 3, 3, 2.85, 2.76 (3+3+3+2.4+2.4 = 13.8), 2.56, 2.36, 2.16, 2.08, 2: within a tenth from the eighth one on.
	var trace [][]float64
	for i := range 32 {
		v := 2.0
		switch {
		case i < 8:
			v = 1
		case i < 11:
			v = 3
		case i < 13:
			v = 2.4
		}
		trace = append(trace, []float64{0, v})
	}
	got := ResponseOf(trace, 1, 8*time.Second, 32*time.Second, true)
	if d := cmp.Diff(Response{Final: 2, Overshoot: 0.5, Settled: 7 * time.Second}, got, cmpopts.EquateApprox(0, 1e-9)); d != "" {
		t.Errorf("an overshoot (-want +got):\n%s", d)
	}
	// The other way round nothing goes beyond.
	if got := ResponseOf(trace, 1, 8*time.Second, 32*time.Second, false); got.Overshoot != 0 {
		t.Errorf("overshoot %v downwards", got.Overshoot)
	}
	// 2, 1, 2, 1, …: mean 1.5, standard deviation 0.5. Means of five are 1.6 and 1.4 in turns, within a tenth; before them 2, 1.5, 5/3 and 1.5.
	for i := range trace {
		trace[i][1] = float64(2 - i%2)
	}
	got = ResponseOf(trace, 1, 0, 32*time.Second, true)
	if d := cmp.Diff(Response{Final: 1.5, Overshoot: 1.0 / 3, Settled: 3 * time.Second, Ripple: 1.0 / 3}, got, cmpopts.EquateApprox(0, 1e-9)); d != "" {
		t.Errorf("to and fro (-want +got):\n%s", d)
	}
	if got := ResponseOf(trace, 1, 31*time.Second, time.Hour, true); got != (Response{}) {
		t.Errorf("%+v of one second", got)
	}
}

// TestStep holds what docs/sara.md claims of the balancers.
func TestStep(t *testing.T) {
	slowed, joined := make(map[string]Response), make(map[string]Response)
	for _, b := range Balancers() {
		r, err := Step(b, 1, 2, 3, 4)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Trace) != int(StepEnd/time.Second) {
			t.Fatalf("%s: %d rows", b.Name, len(r.Trace))
		}
		joined[b.Name] = ResponseOf(r.Trace, Joiner, JoinAt, SlowAt, true)
		slowed[b.Name] = ResponseOf(r.Trace, Slowed, SlowAt, FastAt, true)
	}
	for name, r := range slowed {
		switch name {
		case "round robin", "least connections", "power of two choices":
			// 0.8 is a server that is busy all the time: they do not see that it is.
			if r.Final < 0.75 {
				t.Errorf("%s leaves the slowed server at %.2f", name, r.Final)
			}
		default:
			if r.Final > 0.72 {
				t.Errorf("%s leaves the slowed server at %.2f", name, r.Final)
			}
		}
	}
	if with, without := slowed["shell"].Ripple, slowed["shell, sessions not counted"].Ripple; with > without {
		t.Errorf("the slowed server's load swings by %.3f with sessions counted, and by %.3f without", with, without)
	}
	if rr, shell := joined["round robin"].Settled, joined["shell"].Settled; shell > rr {
		t.Errorf("an empty server takes %v to its load with shell, and %v with round robin", shell, rr)
	}
}
