// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// farm stands a farm up for a test or benchmark.
func farm(tb testing.TB, cfg scenario.FarmConfig) *scenario.Farm {
	tb.Helper()
	needPrograms(tb, scenario.FarmPrograms()...)
	cfg.Command = binary(tb)
	f, err := scenario.StartFarm(testContext(tb, time.Minute), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.Close(); err != nil {
			tb.Error(err)
		}
		checkGone(tb, cfg.Lab)
	})
	return f
}

func needPrograms(tb testing.TB, programs ...string) {
	tb.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			tb.Skipf("%s is missing: apt-get install %s", p, p)
		}
	}
}

// startFront starts a front, and stops it when the test ends.
func startFront(tb testing.TB, f *scenario.Farm, front scenario.Front) {
	tb.Helper()
	needPrograms(tb, front.Programs()...)
	if err := front.Start(testContext(tb, time.Minute), f); err != nil {
		tb.Fatalf("%v\n%s", err, f.Logs(scenario.FrontHost))
	}
	tb.Cleanup(func() {
		if err := front.Stop(); err != nil {
			tb.Error(err)
		}
	})
}

// TestDispatchClients runs every client against every front.
func TestDispatchClients(t *testing.T) {
	t.Parallel()
	f := farm(t, scenario.FarmConfig{Lab: labName("fclients")})
	for _, front := range scenario.Peers() {
		t.Run(front.Name(), func(t *testing.T) {
			startFront(t, f, front)
			for _, check := range scenario.ClientChecks() {
				t.Run(check.Name, func(t *testing.T) {
					needPrograms(t, check.Program)
					err := check.Run(testContext(t, time.Minute), f, front)
					if errors.Is(err, scenario.ErrNotServed) {
						t.Skip(err)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// TestDispatchClientsNotice lets the checks fail: with the backend gone none may pass.
func TestDispatchClientsNotice(t *testing.T) {
	t.Parallel()
	f := farm(t, scenario.FarmConfig{Lab: labName("fgone")})
	ctx := testContext(t, 2*time.Minute)
	for _, host := range f.Servers() {
		if err := f.KillBackend(host); err != nil {
			t.Fatal(err)
		}
	}
	for _, check := range scenario.ClientChecks() {
		if err := check.Run(ctx, f, scenario.Direct()); err == nil {
			t.Errorf("%s: no server, and no error", check.Name)
		}
	}
	for _, host := range f.Servers() {
		if err := f.StartBackend(ctx, host); err != nil {
			t.Error(err)
		}
	}
}

// TestDispatchMeasures takes every measurement in small, and lets those fail that can.
func TestDispatchMeasures(t *testing.T) {
	t.Parallel()
	needPrograms(t, "wrk", "curl")
	f := farm(t, scenario.FarmConfig{Lab: labName("fmeasure"), BigSize: 64 << 20, NoiseSize: 256 << 10, Pace: 128 << 10})
	for _, front := range scenario.Peers() {
		t.Run(front.Name(), func(t *testing.T) {
			startFront(t, f, front)
			ctx := testContext(t, 2*time.Minute)
			l, err := scenario.MeasureLatency(ctx, f, front, 50)
			if err != nil || l.Front.Total.Median <= 0 || l.Front.Total.Median < l.Front.Answer.Median {
				t.Errorf("latency: %+v %v", l, err)
			}
			for _, fresh := range []bool{false, true} {
				n, err := scenario.MeasureLoad(ctx, f, front, scenario.LoadConfig{Time: time.Second, NewConnections: fresh})
				if err != nil || n.Failed() > 0 || n.PerSecond < 100 {
					t.Errorf("load: %+v %v", n, err)
				}
			}
			d, err := scenario.MeasureDownload(ctx, f, front)
			if err != nil || d.MegabitsPerS <= 0 || d.Server <= 0 || d.Client <= 0 {
				t.Errorf("download: %+v %v", d, err)
			}
			r, err := scenario.MeasureRestart(ctx, f, front, scenario.RestartConfig{Downloads: 20, Down: 100 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if front.Name() == "direct" && (d.Front != 0 || d.FrontSent > 0.01) {
				t.Errorf("a front took part in a direct download: %+v", d)
			}
			// A proxy takes its connections with it.
			daemon, ok := front.(scenario.FrontDaemon)
			if want := map[bool]int{true: 20, false: 0}[ok]; r.Failed != want {
				t.Errorf("restart: %+v, want %d failures", r, want)
			}
			if !ok {
				return
			}
			if d.FrontSent < 0.9 {
				t.Errorf("a proxy that passes nothing on: %+v", d)
			}
			if d.Front <= 0 {
				t.Errorf("a proxy that costs nothing: %+v", d)
			}
			if m, err := scenario.MeasurePeekedMemory(ctx, f, daemon, 100); err != nil || m.BytesEach <= 0 {
				t.Errorf("memory: %+v %v", m, err)
			}
			reloader, ok := front.(scenario.FrontReloader)
			if !ok {
				return
			}
			if r, err := scenario.MeasureReload(ctx, f, reloader, 100, 2*time.Second); err != nil || r.Millis <= 0 || r.Load.Requests == 0 {
				t.Errorf("reload: %+v %v", r, err)
			}
		})
	}
}

// TestDispatchFarmWithAgents stands the farm up as the dispatcher needs it.
func TestDispatchFarmWithAgents(t *testing.T) {
	t.Parallel()
	f := farm(t, scenario.FarmConfig{Lab: labName("fagents"), Agents: true})
	ctx := testContext(t, time.Minute)
	for _, host := range f.Servers() {
		st, err := f.Status(ctx, host)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range st.GetServices() {
			if want := map[bool]uint32{true: 1, false: 0}[host != scenario.NginxHost]; uint32(s.GetApplications()) != want {
				t.Errorf("%s: %s has %d applications, want %d", host, s.GetName(), s.GetApplications(), want)
			}
		}
	}
	if _, err := f.Status(ctx, scenario.FrontHost); err == nil {
		t.Error("an agent runs in the front's place")
	}
	if err := f.StopBackend(scenario.LinkedHost); err != nil {
		t.Fatal(err)
	}
	if err := f.Ask(ctx, scenario.Direct(), scenario.Linked); err == nil {
		t.Error("the demo server answers after its end")
	}
	if err := f.StartBackend(ctx, scenario.LinkedHost); err != nil {
		t.Fatal(err)
	}
}

// counting is a front that claims handoffs, and drains by doing nothing.
type counting struct{ scenario.Front }

func (counting) Handoffs(context.Context, *scenario.Farm) (scenario.Handoffs, error) {
	return scenario.Handoffs{Delivered: map[string]int64{"linked": 3}}, nil
}

func (counting) Drain(context.Context, *scenario.Farm, string) error { return nil }

func (counting) Undrain(context.Context, *scenario.Farm, string) error { return nil }

// TestDispatchScene plays the whole scene. What comes of it is right for a server without a front, and not for a proxy, which
// dies with its connections.
func TestDispatchScene(t *testing.T) {
	t.Parallel()
	needPrograms(t, append(scenario.FarmPrograms(), "curl", "wrk", "openssl", "redis-cli", "haproxy")...)
	for _, tt := range []struct {
		front    scenario.Front
		lost     int
		handoffs map[string]int64
	}{{counting{scenario.Direct()}, 0, map[string]int64{"linked": 6}}, {scenario.HAProxyHTTP(), 20, nil}} {
		t.Run(tt.front.Name(), func(t *testing.T) {
			lab := labName("fscene")
			r, err := scenario.Dispatch(testContext(t, 2*time.Minute), scenario.DispatchConfig{
				Command: binary(t), Lab: lab, Front: tt.front, Downloads: 20, Report: log{t},
			})
			if err != nil {
				t.Fatal(err)
			}
			checkGone(t, lab)
			if r.Failed != tt.lost || r.OK != (tt.lost == 0) || r.Checks < 20 || r.Requests == 0 {
				t.Errorf("want %d lost downloads and nothing else: %+v", tt.lost, r)
			}
			if diff := cmp.Diff(tt.handoffs, r.Handoffs); diff != "" {
				t.Error(diff)
			}
		})
	}
}
