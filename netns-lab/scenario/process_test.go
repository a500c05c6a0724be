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
		p, err := scenario.MeasurePauses(testContext(t, time.Minute), b, criuAlone(t, b, scenario.CRIUAloneConfig{}), scenario.PauseConfig{
			Server: cEcho(t), Connections: n, Interval: time.Duration(n) * 100 * time.Microsecond, Moves: 4,
		})
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
