// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// echoPort is that of the servers that move as whole processes.
const processPort = 7000

// processBed builds a lab for processes; without a fitting CRIU the test is skipped.
func processBed(tb testing.TB, kind string, agents bool) *scenario.ProcessBed {
	tb.Helper()
	cfg := scenario.ProcessBedConfig{Command: binary(tb), Lab: labName(kind), Service: "moving", Port: processPort, NoAgents: !agents}
	b, err := scenario.StartProcessBed(testContext(tb, 2*time.Minute), cfg)
	if errors.Is(err, scenario.ErrNoCRIU) {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Error(err)
		}
		checkGone(tb, cfg.Lab)
	})
	return b
}

// cEcho returns the command of a static echo server in C, which it builds.
func cEcho(tb testing.TB) []string {
	tb.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		tb.Skip("no C compiler to build the server with")
	}
	program := filepath.Join(tb.TempDir(), "echo")
	if out, err := exec.Command(cc, "-static", "-O2", "-Wall", "-o", program, "testdata/process/echo.c").CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	return []string{program, fmt.Sprint(processPort)}
}

func criuAlone(tb testing.TB, b *scenario.ProcessBed, cfg scenario.CRIUAloneConfig) scenario.ProcessMover {
	tb.Helper()
	m, err := scenario.NewCRIUAlone(b, cfg)
	if err != nil {
		tb.Skip(err)
	}
	return m
}

func logJSON(tb testing.TB, v any) {
	tb.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Logf("%s", text)
}

// TestCRIUAlone moves a server without rehome: what the peer of the measurements does works.
func TestCRIUAlone(t *testing.T) {
	b := processBed(t, "alone", false)
	for _, n := range []int{1, 100} {
		p, err := scenario.MeasurePauses(testContext(t, time.Minute), b, criuAlone(t, b, scenario.CRIUAloneConfig{}), pauses(t, n, 4))
		if err != nil {
			t.Fatal(err)
		}
		logJSON(t, p)
		if p.Moves != 4 || p.Answers == 0 || p.ClientErrors != 0 {
			t.Errorf("%d moves, %d answers, %d errors: %v", p.Moves, p.Answers, p.ClientErrors, p.Errors)
		}
	}
}

// TestCRIUAloneStream moves a server under a stream.
func TestCRIUAloneStream(t *testing.T) {
	b := processBed(t, "alone", false)
	h, err := scenario.MeasureHops(testContext(t, time.Minute), b, criuAlone(t, b, scenario.CRIUAloneConfig{}), scenario.HopsConfig{
		Server: cEcho(t), Moves: 2, Bytes: 256 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	logJSON(t, h)
	if h.Moves != 2 || !h.SHA256Equal || h.Bytes < 256<<20 {
		t.Errorf("%d moves, %d bytes, equal: %v", h.Moves, h.Bytes, h.SHA256Equal)
	}
}

// TestProcessArrivals moves a server with kept connections while new ones come.
func TestProcessArrivals(t *testing.T) {
	b := processBed(t, "arrivals", true)
	a, err := scenario.MeasureArrivals(testContext(t, time.Minute), b, scenario.NewMigrator(b), scenario.ArrivalsConfig{Server: cEcho(t), Moves: 4})
	if err != nil {
		t.Fatal(err)
	}
	logJSON(t, a)
	if a.Moves != 4 || a.FailedMoves != 0 || a.New < 100 {
		t.Errorf("%d moves, %d failed, %d new connections", a.Moves, a.FailedMoves, a.New)
	}
	if a.Refused+a.Reset+a.Failed+a.Kept.ClientErrors != 0 {
		t.Errorf("%d refused, %d reset, %d failed, %d errors of the kept ones: %v %v", a.Refused, a.Reset, a.Failed, a.Kept.ClientErrors, a.Errors, a.Kept.Errors)
	}
}

// TestProcessHops moves a server to and fro under a stream.
func TestProcessHops(t *testing.T) {
	b := processBed(t, "hops", true)
	const bytes = 1 << 30
	h, err := scenario.MeasureHops(testContext(t, time.Minute), b, scenario.NewMigrator(b), scenario.HopsConfig{Server: cEcho(t), Moves: 10, Bytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	logJSON(t, h)
	if h.Moves != 10 || h.Bytes < bytes || !h.SHA256Equal {
		t.Errorf("%d moves, %d bytes, equal: %v", h.Moves, h.Bytes, h.SHA256Equal)
	}
	checkTimeouts(t, h.RetransmissionTimeouts, h.LongestGapMillis)
}

// TestProcessPauses moves a small server; its clients' kernels must not have to send anything again.
func TestProcessPauses(t *testing.T) {
	b := processBed(t, "pauses", true)
	for _, n := range []int{1, 100} {
		p, err := scenario.MeasurePauses(testContext(t, time.Minute), b, scenario.NewMigrator(b), pauses(t, n, 4))
		if err != nil {
			t.Fatal(err)
		}
		logJSON(t, p)
		if p.Moves != 4 || p.Answers == 0 || p.ClientErrors != 0 {
			t.Errorf("%d connections: %d moves, %d answers, %d errors: %v", n, p.Moves, p.Answers, p.ClientErrors, p.Errors)
		}
		checkTimeouts(t, p.RetransmissionTimeouts, p.PauseMillis.Max)
	}
}

// patienceMillis is for how long a client's kernel waits for an acknowledgement at least, less some time to spare.
const patienceMillis = 180

// checkTimeouts fails the test if clients had retransmission timeouts although no pause was long enough for one: packets were lost then. On a busy
// machine a pause may be longer, and nothing but an early acknowledgement could prevent the timeout.
func checkTimeouts(t *testing.T, timeouts int, longestMillis float64) {
	t.Helper()
	switch {
	case timeouts == 0:
	case longestMillis < patienceMillis:
		t.Errorf("%d retransmission timeouts, and the longest pause was %.0f ms", timeouts, longestMillis)
	default:
		t.Logf("%d retransmission timeouts: the longest pause was %.0f ms, which is too long", timeouts, longestMillis)
	}
}

// pauses is a measurement with n connections, which together ask 10,000 times a second at most.
func pauses(tb testing.TB, n, moves int) scenario.PauseConfig {
	return scenario.PauseConfig{Server: cEcho(tb), Connections: n, Interval: max(time.Millisecond, time.Duration(n)*100*time.Microsecond), Moves: moves}
}

// TestProcessScenario plays the demo's scene with less data.
func TestProcessScenario(t *testing.T) {
	need(t, "redis-server")
	need(t, "nft")
	lab := labName("process")
	r, err := scenario.Process(testContext(t, 2*time.Minute), scenario.ProcessConfig{
		Command: binary(t), Lab: lab, Moves: 4, AloneMoves: 2, Data: 50e6, Report: log{t},
	})
	if errors.Is(err, scenario.ErrNoCRIU) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	logJSON(t, r)
	if !r.OK || r.Moves != 4 || !r.DataEqual || r.CRIUAlone == nil || r.CRIUAlone.Moves != 2 {
		t.Errorf("%v\n%+v", r.Problems, r)
	}
}
