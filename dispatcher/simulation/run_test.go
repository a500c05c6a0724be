// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/forecast"
)

func resultOf(t testing.TB, c Config) Result {
	t.Helper()
	r, err := Run(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestQueue compares the model with queueing theory. Sessions of one request at one server without admission are M/M/1, where a request
// is answered after more than t with the probability exp(-(mu-lambda)t). With mu = 200/s, lambda = 160/s and t = 50 ms that
// is exp(-2) = 0.1353; so many are too late.
func TestQueue(t *testing.T) {
	r := resultOf(t, Config{
		Seed: 5, Sessions: 400_000, Servers: 1, Requests: 1, Offered: 0.8, Patience: 50 * time.Millisecond, Admission: admission.Config{Kind: admission.None},
	})
	if got, want := 1-r.Success(), math.Exp(-2); math.Abs(got-want) > 0.005 {
		t.Errorf("%.4f of requests are late, want %.4f", got, want)
	}
	if math.Abs(r.Busy-0.8) > 0.01 {
		t.Errorf("the server is busy for %.3f of the time, want 0.8", r.Busy)
	}
	// The mean is 1/(mu-lambda).
	if got := r.Wait(); (got - 25*time.Millisecond).Abs() > time.Millisecond {
		t.Errorf("an answer takes %v on average, want 25 ms", got)
	}
	// What was wasted is the late requests' own service, which is longer than average: at least their share.
	if r.Wasted < 0.8*0.135 || r.Wasted > 0.8 {
		t.Errorf("%.3f of the time was wasted", r.Wasted)
	}
	if got := float64(r.Offered) / r.Time.Seconds(); math.Abs(got-160) > 1 {
		t.Errorf("%.1f sessions/s came, want 160", got)
	}
}

// TestIdle holds that a cluster with room to spare completes everything, under every policy.
func TestIdle(t *testing.T) {
	for _, c := range Contenders() {
		r := resultOf(t, Config{Seed: 6, Sessions: 8000, Offered: 0.4, Admission: c.Admission, Balance: c.Balance})
		if r.Refused != 0 || r.Lost != 0 || r.Wasted != 0 || r.Success() != 1 {
			t.Errorf("%s: %+v", c.Name, r)
		}
		if got := r.CompletedPerSecond() / (Config{}).Capacity(); math.Abs(got-0.4) > 0.02 {
			t.Errorf("%s: completed %.3f of what it could, want 0.4", c.Name, got)
		}
	}
}

// TestSameSessions holds that runs can be repeated, that seeds matter, and that policies meet the same sessions.
func TestSameSessions(t *testing.T) {
	c := Config{Seed: 7, Sessions: 30_000}
	first := resultOf(t, c)
	if d := cmp.Diff(first, resultOf(t, c)); d != "" {
		t.Errorf("the same run, another result:\n%s", d)
	}
	other := c
	other.Seed++
	if cmp.Equal(first, resultOf(t, other)) {
		t.Error("the seed does not matter")
	}
	other = c
	other.Admission.Kind = admission.None
	if r := resultOf(t, other); r.Offered != first.Offered || r.Time != first.Time || r.Completed == first.Completed {
		t.Errorf("other sessions, or the policy does not matter: %+v and %+v", first, r)
	}
}

// TestNothingIsLost holds that every session is accounted for.
func TestNothingIsLost(t *testing.T) {
	for _, c := range Contenders() {
		config := Config{Seed: 8, Sessions: 20_000, Admission: c.Admission, Balance: c.Balance, NewRetries: 1, WarmUp: time.Nanosecond}
		config = config.withDefaults()
		r := resultOf(t, config)
		going := r.Offered - r.Refused - r.Completed - r.Lost
		// Those that go on are no more than come in four minutes: twelve requests and patience for each.
		if r.Offered != 20_000 || going < 0 || going > 20_000/2 {
			t.Errorf("%s: %d go on of %+v", c.Name, going, r)
		}
		if r.Busy > 1+1e-9 || r.Wasted > r.Busy+1e-9 || r.Late > r.Lost || r.LongCompleted > r.Long {
			t.Errorf("%s: impossible: %+v", c.Name, r)
		}
	}
}

// TestBound holds what a bound on connections means with and without connections that are kept.
func TestBound(t *testing.T) {
	bound := admission.Config{Kind: admission.LeastConnections503, Connections: 100}
	kept := resultOf(t, Config{Seed: 9, Sessions: 40_000, Admission: bound, KeptConnections: true})
	if kept.Lost != 0 || kept.Refused == 0 {
		t.Errorf("sessions that keep their connection were lost: %+v", kept)
	}
	each := resultOf(t, Config{Seed: 9, Sessions: 40_000, Admission: bound})
	if each.Lost == 0 || each.Late != 0 {
		t.Errorf("of sessions with many connections none was refused in the middle, or one was late: %+v", each)
	}
}

// TestRefuseAll has a number worked out by hand. Of all requests p = 0.4 are refused, and sent again after 1 s and 3 s, within the patience of
// 4 s. A session of one request is let in with 0.6; one with two requests is then completed with 1 - 0.4^3 = 0.936.
func TestRefuseAll(t *testing.T) {
	r := resultOf(t, Config{Seed: 11, Sessions: 150_000, Offered: 0.3, Requests: 1, RefuseAll: 0.4})
	if got := float64(r.Refused) / float64(r.Offered); math.Abs(got-0.4) > 0.005 || r.Lost != 0 {
		t.Errorf("%.4f of sessions with one request were refused, want 0.4, and %d lost", got, r.Lost)
	}
	// Requests: 1.5 without memory: with 1/3 there is one more, each time. So n further requests come with (2/3)(1/3)^n, and success is
	// 2/3 / (1 - 0.936/3) = 0.969.
	r = resultOf(t, Config{Seed: 11, Sessions: 150_000, Offered: 0.3, Requests: 1.5, Memoryless: true, RefuseAll: 0.4})
	if got, want := r.Success(), 2.0/3/(1-0.936/3); math.Abs(got-want) > 0.003 {
		t.Errorf("%.4f of sessions were completed, want %.4f", got, want)
	}
}

// TestChanges holds that servers can leave, join and slow down.
func TestChanges(t *testing.T) {
	c := Config{
		Seed: 10, Sessions: 12_000, Servers: 2, Offered: 0.5, Trace: 10 * time.Second, WarmUp: time.Second, Admission: admission.Config{Kind: admission.None},
		Changes: []Change{
			{Server: 0, Leave: true},
			{At: 100 * time.Second, Server: 0, Join: true},
			{At: 200 * time.Second, Server: 1, Speed: 4},
			{At: 300 * time.Second, Offered: 0.1},
		},
	}
	trace := resultOf(t, c).Trace
	if len(trace) < 40 {
		t.Fatalf("%d rows of trace", len(trace))
	}
	busy := func(row, server int) float64 { return trace[row][server] }
	if busy(5, 0) != 0 || busy(5, 1) < 0.7 {
		t.Errorf("server 0 has left, and loads are %v", trace[5])
	}
	if busy(15, 0) < 0.3 || busy(15, 1) > 0.5 {
		t.Errorf("server 0 has joined, and loads are %v", trace[15])
	}
	if busy(25, 1) > busy(25, 0)/2 {
		t.Errorf("server 1 is four times as fast, and loads are %v", trace[25])
	}
	if busy(38, 0) > 0.15 {
		t.Errorf("a fifth of the load is left, and loads are %v", trace[38])
	}
	c.Changes = []Change{{Server: 0, Leave: true}, {Server: 1, Leave: true}}
	if r := resultOf(t, c); r.Refused != r.Offered || r.Offered == 0 {
		t.Errorf("all have left: %+v", r)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Sessions: -1}, "sessions: -1"},
		{Config{Servers: -1}, "servers: -1"},
		{Config{Servers: 1 << 20}, "servers: 1048576"},
		{Config{Requests: 0.5}, "requests: 0.5"},
		{Config{Requests: math.NaN()}, "requests: NaN"},
		{Config{Offered: -2}, "offered: -2"},
		{Config{ServiceTime: -1}, "service time: -1ns"},
		{Config{Report: -1}, "report: -1ns"},
		{Config{NewRetries: -1}, "new retries: -1"},
		{Config{RefuseAll: 1.5}, "refuse all: 1.5"},
		{Config{RefuseAll: math.NaN()}, "refuse all: NaN"},
		{Config{LargestPart: 2}, "largest part: 2"},
		{Config{Trace: -1}, "trace: -1ns"},
		{Config{Changes: []Change{{Server: 8}}}, "changes[0]: server: 8: want 0 to 7"},
		{Config{Changes: []Change{{At: -1}}}, "changes[0]: at -1ns"},
		{Config{Changes: []Change{{Speed: -1}}}, "want no negative"},
		{Config{Changes: []Change{{Leave: true, Join: true}}}, "leave or join"},
		{Config{Changes: []Change{{At: 2}, {At: 1}}}, "changes[1]: at 1ns: want them in order"},
		{Config{Admission: admission.Config{Kind: "?"}}, `simulation: admission: policy "?"`},
		{Config{Balance: "?"}, `simulation: balance: policy "?"`},
		{Config{Forecast: forecast.Config{Window: 1}}, "simulation: forecast: window: 1"},
	} {
		if _, err := Run(tt.config); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want one with %q", tt.config, err, tt.want)
		}
	}
}

func BenchmarkSession(b *testing.B) {
	for _, c := range Contenders() {
		b.Run(c.Name, func(b *testing.B) {
			sessions := max(b.N, 1000)
			r := resultOf(b, Config{Seed: 1, Sessions: sessions, Admission: c.Admission, Balance: c.Balance, WarmUp: time.Second})
			b.ReportMetric(r.CompletedPerSecond(), "completed/s")
		})
	}
}
