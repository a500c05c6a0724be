// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
)

func processMoved(outcome, reason string) *api.MoveEvent {
	return &api.MoveEvent{Event: &api.MoveEvent_Process{Process: &api.ProcessMoved{
		Name: "redis-server", Pid: 4711, NewPid: 20155, To: "web-2", Outcome: outcome, Error: reason, FreezeMicros: 61_250, DumpMicros: 40_000,
		TotalMicros: 611_000, Connections: 50, Processes: 1, HeldPackets: 7, ImageBytes: 1 << 40,
	}}}
}

func TestProcessMove(t *testing.T) {
	f := &fakeAgent{moves: []*api.MoveEvent{
		processMoved(agent.OutcomeMoved, ""), summary(&api.Summary{Moved: 1, TotalMicros: 611_000, FreezeMedianMicros: 61_250, FreezeP99Micros: 61_250}),
	}}
	path := f.serve(t)
	code, out, said := command("migrate", "--process", "4711", "--to", "web-2", "--output", "json", "--agent", path)
	if code != 0 || said != "" {
		t.Errorf("exit code %d: %s", code, said)
	}
	golden(t, "move-process.json", []byte(out))
	code, out, _ = command("migrate", "--service", "redis", "--to", "web-2", "--agent", path)
	want := "redis-server (process 4711)  moved to web-2 as process 20155  1 processes, 50 connections, 1099511627776 bytes  freeze 61.3ms  total 611ms  held 7 packets\n"
	if code != 0 || out != want {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if f.asked.GetLazy() {
		t.Errorf("asked for %v", f.asked)
	}
	code, _, said = command("migrate", "--service", "redis", "--lazy", "--agent", path)
	if code != 0 || !f.asked.GetLazy() || !f.asked.GetWhole() || f.asked.GetService() != "redis" {
		t.Errorf("exit code %d: %s; asked for %v", code, said, f.asked)
	}
	f.moves = []*api.MoveEvent{processMoved(agent.OutcomeResumed, "criu dump: no"), summary(&api.Summary{Failed: 1})}
	code, out, said = command("migrate", "--process", "4711", "--to", "web-2", "--agent", path)
	if code != exitFailed || out != "" || said != "redis-server (process 4711)  stays here: criu dump: no\n" {
		t.Errorf("exit code %d: %s%s", code, out, said)
	}
}

// TestProcessMoveRefuses asks for what makes no sense.
func TestProcessMoveRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"--process", "-1"},
		{"--process", "7", "--all"},
		{"--process", "7", "x"},
		{"--process", "7", "--service", "s"},
		{"--service", "s", "x"},
		{"--process", "x"},
		{"--lazy", "x"},
		{"--lazy", "--all", "--service", "s"},
	} {
		code, _, said := command(append([]string{"migrate"}, args...)...)
		if code != exitUsage || !strings.Contains(said, "process") && !strings.Contains(said, "--service") {
			t.Errorf("%v: exit code %d: %s", args, code, said)
		}
	}
}
