// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func near() cmp.Option { return cmpopts.EquateApprox(0, 1e-9) }

// tenths are thresholds that are easy to compute with.
func tenths() Thresholds { return Thresholds{T1: 0.5, T2: 0.7, T3: 0.8, C: 0.9} }

// TestClusterLoad is eq. 1.
func TestClusterLoad(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, tt := range []struct {
		name    string
		loads   Loads
		alpha   float64
		x, want float64
	}{
		// mean 1.5/3 = 0.5; variance (0.09 + 0.01 + 0.16)/3 = 0.26/3; 0.9*0.5 + 0.1*0.26/3 = 0.45 + 0.026/3
		{"three", Loads{Nodes: []float64{0.2, 0.4, 0.9}}, 0.9, 0.45 + 0.026/3, 0.45 + 0.026/3},
		// the same with equal weights: 0.25 + 0.13/3
		{"alpha 1/2", Loads{Nodes: []float64{0.2, 0.4, 0.9}}, 0.5, 0.25 + 0.13/3, 0.25 + 0.13/3},
		{"alpha 1 is the mean", Loads{Nodes: []float64{0.2, 0.4, 0.9}}, 1, 0.5, 0.5},
		// the greatest variance that there is, (0.25 + 0.25)/2: 0.9*0.5 + 0.1*0.25 = 0.475, below the mean
		{"half are idle", Loads{Nodes: []float64{0, 1}}, 0.9, 0.475, 0.475},
		{"all are full", Loads{Nodes: []float64{1, 1, 1, 1}}, 0.9, 0.9, 0.9},
		{"the head is busier", Loads{Head: 0.6, Nodes: []float64{0.2, 0.4, 0.9}}, 0.9, 0.6, 0.45 + 0.026/3},
		{"one", Loads{Nodes: []float64{0.5}}, 0.9, 0.45, 0.45},
		{"none", Loads{Head: 0.3}, 0.9, 0.3, 0},
		{"no loads", Loads{Head: nan, Nodes: []float64{nan, inf, -1, 0.5}}, 0.9, 0.45, 0.45},
		{"nothing", Loads{Head: -1, Nodes: []float64{nan}}, 0.9, 0, 0},
	} {
		x, cluster := tt.loads.decisive(tt.alpha)
		if d := cmp.Diff([]float64{tt.x, tt.want}, []float64{x, cluster}, near()); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

// TestVarianceNeverRaises holds what the package's documentation says of eq. 1: below 1, alpha makes the cluster's load less than the mean.
func TestVarianceNeverRaises(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 12))
	for range 20_000 {
		nodes := make([]float64, 1+random.IntN(20))
		for i := range nodes {
			nodes[i] = random.Float64()
			if random.IntN(2) == 0 {
				nodes[i] = math.Round(nodes[i])
			}
		}
		alpha := random.Float64()
		if mean, load := clusterLoad(1, nodes), clusterLoad(alpha, nodes); load > mean+1e-12 {
			t.Fatalf("alpha %v: %v of %v, whose mean is %v", alpha, load, nodes, mean)
		}
	}
}

// TestRefuse is eq. 2 in both readings, at T1 = 0.5, T2 = 0.7, T3 = 0.8, C = 0.9.
func TestRefuse(t *testing.T) {
	for _, tt := range []struct {
		x                 float64
		repaired, literal [2]float64 // new, established
	}{
		{0, [2]float64{0, 0}, [2]float64{0, 0}},
		{0.5, [2]float64{0, 0}, [2]float64{0, 0}},
		// (0.55-0.5)/0.2 = 0.25; in print 1 - 0.25
		{0.55, [2]float64{0.25, 0}, [2]float64{0.75, 0}},
		{0.6, [2]float64{0.5, 0}, [2]float64{0.5, 0}},
		// At T2: (0.7-0.5)/0.2 = 1; in print 1 - 1: nobody is refused where nobody should be taken.
		{0.7, [2]float64{1, 0}, [2]float64{0, 0}},
		{0.75, [2]float64{1, 0}, [2]float64{1, 0}},
		// g = (0.82-0.8)/0.1 = 0.2; in print max(0.2, 0.8), for new sessions too
		{0.82, [2]float64{1, 0.2}, [2]float64{0.8, 0.8}},
		{0.85, [2]float64{1, 0.5}, [2]float64{0.5, 0.5}},
		{0.88, [2]float64{1, 0.8}, [2]float64{0.8, 0.8}},
		{0.9, [2]float64{1, 1}, [2]float64{1, 1}},
		// g = 1.5, which is no probability
		{0.95, [2]float64{1, 1}, [2]float64{1, 1}},
		{40, [2]float64{1, 1}, [2]float64{1, 1}},
	} {
		var repaired, literal [2]float64
		repaired[0], repaired[1] = tenths().refuse(tt.x)
		literal[0], literal[1] = tenths().refuseLiteral(tt.x)
		if d := cmp.Diff(tt.repaired, repaired, near()); d != "" {
			t.Errorf("x = %v, repaired (-want +got):\n%s", tt.x, d)
		}
		if d := cmp.Diff(tt.literal, literal, near()); d != "" {
			t.Errorf("x = %v, literal (-want +got):\n%s", tt.x, d)
		}
	}
}

// TestInterval is eq. 3, with a floor of 100 ms.
func TestInterval(t *testing.T) {
	for _, tt := range []struct {
		interval time.Duration
		p        float64
		want     time.Duration
	}{
		{time.Second, 0, time.Second},
		{time.Second, 0.25, 750 * time.Millisecond},
		{750 * time.Millisecond, 0.5, 375 * time.Millisecond},
		{375 * time.Millisecond, 0.9, 100 * time.Millisecond}, // 37.5 ms
		{time.Second, 1, 100 * time.Millisecond},              // 0
		{100 * time.Millisecond, 0.1, 100 * time.Millisecond},
	} {
		if got := nextInterval(tt.interval, tt.p, 100*time.Millisecond); got != tt.want {
			t.Errorf("after %v with p = %v: %v, want %v", tt.interval, tt.p, got, tt.want)
		}
	}
}

// TestMove is eq. 4 in both readings, with a gap of 0.01. Each row starts where the row before has led.
func TestMove(t *testing.T) {
	type row struct {
		x      float64
		t2, t3 float64
	}
	play := func(name string, move func(Thresholds, float64, float64) Thresholds, rows []row) {
		now := tenths()
		for i, r := range rows {
			now = move(now, r.x, 0.01)
			if d := cmp.Diff(Thresholds{0.5, r.t2, r.t3, 0.9}, now, near()); d != "" {
				t.Fatalf("%s: row %d, x = %v (-want +got):\n%s", name, i, r.x, d)
			}
		}
	}
	repaired := func(t Thresholds, x, gap float64) Thresholds { return t.move(x, gap, tenths()) }
	play("repaired", repaired, []row{
		{0.6, 0.7, 0.8},    // below T2: no excess
		{0.75, 0.65, 0.8},  // e2 = 0.05: 0.7 - 0.05
		{0.75, 0.55, 0.8},  // e2 = 0.1: 0.65 - 0.1
		{0.75, 0.51, 0.8},  // e2 = 0.2: 0.35 would be below T1 + gap
		{0.9, 0.51, 0.72},  // e3 = 0.1: 0.8 * 0.9
		{0.6, 0.51, 0.72},  // they do not come back by themselves
		{5, 0.51, 0.71},    // e3 is 1 at most: 0 would be below the operator's T2 + gap
		{0.51, 0.51, 0.71}, // nor from there
	})
	play("literal", Thresholds.moveLiteral, []row{
		{0.6, 0.6, 0.61},   // 0.7 - |0.7-0.6|, although there is no excess; 0.8*|0.8-0.6| = 0.16, below T2 + gap
		{0.75, 0.51, 0.52}, // 0.6 - 0.15 = 0.45; 0.61*0.14
		{0.51, 0.51, 0.52},
		{9, 0.51, 0.52}, // 0.52*8.48 = 4.4: up is no way
	})
}

// TestOrder holds that, whatever loads come, thresholds stay in order and probabilities are probabilities.
func TestOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 15))
	for _, reading := range []Reading{Repaired, Literal} {
		for range 300 {
			c := randomConfig(random, reading)
			p := policyOf(t, c)
			for range 300 {
				x := random.Float64() * 1.2
				if random.IntN(10) == 0 {
					x *= 1000
				}
				d := p.Update(Loads{Head: x})
				if got := d.Thresholds; got.T2-got.T1 < c.Gap-1e-12 || got.T3-got.T2 < c.Gap-1e-12 || got.C <= got.T3 || got.T2 > c.T2 || got.T3 > c.T3 {
					t.Fatalf("%s: thresholds %+v of %+v", reading, got, c)
				}
				if !(d.New >= 0 && d.New <= 1 && d.Established >= 0 && d.Established <= 1) || d.Established > d.New {
					t.Fatalf("%s: %+v", reading, d)
				}
				if d.Next < c.Floor || d.Next > c.Interval {
					t.Fatalf("%s: next decision after %v, want %v to %v", reading, d.Next, c.Floor, c.Interval)
				}
			}
		}
	}
}

func randomConfig(random *rand.Rand, reading Reading) Config {
	c := Config{Reading: reading, Gap: 0.001 + 0.02*random.Float64(), Interval: time.Second, Floor: 50 * time.Millisecond}
	step := func() float64 { return c.Gap + 0.001 + 0.2*random.Float64() }
	c.T1 = 0.01 + 0.4*random.Float64()
	c.T2 = c.T1 + step()
	c.T3 = c.T2 + step()
	c.C = c.T3 + step()
	return c
}

// TestMonotone holds that in the repaired reading more load never means less refusal; in the literal one it does.
func TestMonotone(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 13))
	falls := 0
	for range 2000 {
		c := randomConfig(random, Repaired)
		th := Thresholds{c.T1, c.T2, c.T3, c.C}
		low, high := random.Float64(), random.Float64()
		low, high = min(low, high), max(low, high)
		n1, e1 := th.refuse(low)
		n2, e2 := th.refuse(high)
		if n2 < n1 || e2 < e1 {
			t.Fatalf("%+v: from %v to %v refusal falls", th, low, high)
		}
		l1, _ := th.refuseLiteral(low)
		if l2, _ := th.refuseLiteral(high); l2 < l1 {
			falls++
		}
	}
	if falls == 0 {
		t.Error("the literal reading is monotone: is it the literal one?")
	}
}
