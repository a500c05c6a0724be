// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func policyOf(t testing.TB, c Config) Policy {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Kind: "always"}, `policy "always": want sa2c, none, static, request or leastconn503`},
		{Config{Reading: "printed"}, `reading "printed": want repaired or literal`},
		{Config{Alpha: 1.1}, "alpha: 1.1: want at most 1"},
		{Config{Alpha: -0.1}, "alpha: -0.1: want a number above 0"},
		{Config{Alpha: math.NaN()}, "alpha: NaN"},
		{Config{T1: 0.5}, "t2: 0: want a number above 0"},
		{Config{T1: 0.5, T2: 0.4, T3: 0.8, C: 0.9}, "want t1 < t2 < t3 < c"},
		{Config{T1: 0.5, T2: 0.6, T3: 0.6, C: 0.9}, "want t1 < t2 < t3 < c"},
		{Config{T1: 0.5, T2: 0.6, T3: 0.9, C: 0.9}, "want t1 < t2 < t3 < c"},
		{Config{T1: 0.5, T2: 0.6, T3: 0.7, C: math.Inf(1)}, "c: +Inf"},
		{Config{T1: 0.5, T2: 0.6, T3: 0.7, C: 0.9, Gap: 0.11}, "each at least the gap of 0.11"},
		{Config{Gap: -1}, "gap: -1"},
		{Config{Interval: -time.Second}, "want 0 < floor <= interval"},
		{Config{Interval: time.Second, Floor: 2 * time.Second}, "want 0 < floor <= interval"},
		{Config{Connections: -1}, "connections: -1: want at least 1"},
	} {
		if p, err := New(tt.config); p != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want one with %q", tt.config, err, tt.want)
		}
	}
}

// nearTime allows for what rounding takes from a duration.
func nearTime() cmp.Option {
	return cmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() < time.Microsecond })
}

// TestDecisions plays loads through whole policies: eq. 2, then eq. 3, then eq. 4 for the next decision.
func TestDecisions(t *testing.T) {
	type row struct {
		head             float64
		newer, settled   float64
		state            State
		next             time.Duration
		t2, t3           float64 // by which it was decided
		boundConnections int
	}
	config := func(c Config) Config {
		c.T1, c.T2, c.T3, c.C, c.Interval = 0.5, 0.7, 0.8, 0.9, time.Second
		return c
	}
	const ms = time.Millisecond
	for _, tt := range []struct {
		name   string
		config Config
		rows   []row
	}{
		{"repaired", config(Config{}), []row{
			{0.3, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0},
			{0.5, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0},
			{0.6, 0.5, 0, Thinning, 500 * ms, 0.7, 0.8, 0},    // (1 - 0.5) * 1 s
			{0.55, 0.25, 0, Thinning, 375 * ms, 0.7, 0.8, 0},  // (1 - 0.25) * 500 ms
			{0.75, 1, 0, Closed, 100 * ms, 0.7, 0.8, 0},       // the floor; T2 to 0.7 - 0.05
			{0.84, 1, 0.4, Degrading, 100 * ms, 0.65, 0.8, 0}, // T2 to 0.65 - 0.19 = 0.46: 0.51; T3 to 0.8 * (1 - 0.04)
			{0.84, 1, 0.072 / 0.132, Degrading, 100 * ms, 0.51, 0.768, 0},
			{0.95, 1, 1, Full, 100 * ms, 0.51, 0.768 * (1 - 0.072), 0}, // T3 no lower than the operator's T2, and the gap
			{0.505, 0.5, 0, Thinning, 100 * ms, 0.51, 0.71, 0},
			{0.49, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0}, // all as the operator wants it
		}},
		{"fixed thresholds", config(Config{FixedThresholds: true}), []row{
			{0.75, 1, 0, Closed, 100 * ms, 0.7, 0.8, 0},
			{0.85, 1, 0.5, Degrading, 100 * ms, 0.7, 0.8, 0},
			{0.6, 0.5, 0, Thinning, 100 * ms, 0.7, 0.8, 0},
		}},
		{"literal", config(Config{Reading: Literal}), []row{
			{0.3, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0},
			{0.55, 0.75, 0, Thinning, 250 * ms, 0.7, 0.8, 0}, // T2 to 0.7 - 0.15, T3 to 0.8 * 0.25 = 0.2: T2 + gap
			{0.55, 0, 0, Accepting, 250 * ms, 0.55, 0.56, 0},
			{0.55, 0, 0, Accepting, 250 * ms, 0.55, 0.56, 0},
			{0.2, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0},
		}},
		{"static", config(Config{Kind: Static}), []row{
			{0.7, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0},
			{0.71, 1, 0, Closed, 1000 * ms, 0.7, 0.8, 0},
			{5, 1, 0, Closed, 1000 * ms, 0.7, 0.8, 0},
		}},
		{"request", config(Config{Kind: Request}), []row{
			{0.5, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0},
			{0.6, 0.5, 0.5, Degrading, 1000 * ms, 0.7, 0.8, 0},
			{0.75, 1, 1, Full, 1000 * ms, 0.7, 0.8, 0},
		}},
		{"none", config(Config{Kind: None}), []row{{7, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 0}}},
		{"least connections", config(Config{Kind: LeastConnections503, Connections: 50}), []row{{7, 0, 0, Accepting, 1000 * ms, 0.7, 0.8, 50}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := policyOf(t, tt.config)
			for i, r := range tt.rows {
				want := Decision{
					New: r.newer, Established: r.settled, Connections: r.boundConnections, Next: r.next, State: r.state, Load: r.head,
					Thresholds: Thresholds{0.5, r.t2, r.t3, 0.9},
				}
				if d := cmp.Diff(want, p.Update(Loads{Head: r.head}), near(), nearTime()); d != "" {
					t.Fatalf("row %d, load %v (-want +got):\n%s", i, r.head, d)
				}
			}
		})
	}
}

func TestShare(t *testing.T) {
	for _, tt := range []struct {
		p    float64
		want Share
	}{
		{0, 0},
		{-1, 0},
		{math.NaN(), 0},
		{math.Inf(-1), 0},
		{1e-12, 0},
		{0.25, 1 << 30},
		{0.5, 1 << 31},
		{1.0 / (1 << 32), 1},
		{1 - 1e-12, math.MaxUint32 - 1},
		{1, math.MaxUint32},
		{2, math.MaxUint32},
		{math.Inf(1), math.MaxUint32},
	} {
		if got := ShareOf(tt.p); got != tt.want {
			t.Errorf("%v is %d, want %d", tt.p, got, tt.want)
		}
	}
	for _, tt := range []struct {
		share   Share
		random  uint32
		refuses bool
	}{
		{0, 0, false},
		{0, math.MaxUint32, false},
		{1, 0, true},
		{1, 1, false},
		{1 << 31, 1<<31 - 1, true},
		{1 << 31, 1 << 31, false},
		{math.MaxUint32 - 1, math.MaxUint32 - 1, false},
		{math.MaxUint32, math.MaxUint32, true},
		{math.MaxUint32, 0, true},
	} {
		if got := tt.share.Refuses(tt.random); got != tt.refuses {
			t.Errorf("share %d with random number %d: %v", tt.share, tt.random, got)
		}
	}
	for _, p := range []float64{0, 0.1, 0.5, 0.999, 1} {
		if got := ShareOf(p).Probability(); math.Abs(got-p) > 1e-9 {
			t.Errorf("%v comes back as %v", p, got)
		}
	}
}

func TestStates(t *testing.T) {
	for state, want := range map[State]string{Accepting: "accepting", Thinning: "thinning", Closed: "closed", Degrading: "degrading", Full: "full", 9: "state 9"} {
		if got := state.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestUpdateAllocates holds that a decision costs no memory.
func TestUpdateAllocates(t *testing.T) {
	loads := Loads{Nodes: make([]float64, 64)}
	for _, kind := range []Kind{SA2C, None, Static, Request, LeastConnections503} {
		p := policyOf(t, Config{Kind: kind})
		if n := testing.AllocsPerRun(1000, func() { p.Update(loads) }); n != 0 {
			t.Errorf("%s: %v allocations for each decision", kind, n)
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	loads := Loads{Head: 0.2, Nodes: make([]float64, 64)}
	for i := range loads.Nodes {
		loads.Nodes[i] = 0.5 + float64(i)/200
	}
	for _, reading := range []Reading{Repaired, Literal} {
		b.Run(string(reading), func(b *testing.B) {
			b.ReportAllocs()
			p := policyOf(b, Config{Reading: reading})
			for b.Loop() {
				p.Update(loads)
			}
		})
	}
}

func BenchmarkRefuses(b *testing.B) {
	share, refused := ShareOf(0.3), 0
	var random uint32
	b.ReportAllocs()
	for b.Loop() {
		random += 0x9e3779b9
		if share.Refuses(random) {
			refused++
		}
	}
	if refused == 0 {
		b.Error("nothing was refused")
	}
}
