// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/rehome-net/rehome/agent/api"
)

// TestDrainWaits holds what a drain says of connections that cannot move, and how long it waits for them.
func TestDrainWaits(t *testing.T) {
	for _, tt := range []struct {
		name string
		left []uint32
		args []string
		code int
		want string // of standard error
		json string
		rest int // answers of Status that nobody has asked for
	}{
		{"none", nil, nil, 0, "", "", 0},
		{"it says so", []uint32{2, 1}, nil, 0, "2 connections are still here, of servers that cannot give them away", `"left": 2`, 1},
		{"it waits", []uint32{2, 2, 1}, []string{"--wait"}, 0, "waiting for 2 connections that cannot move\nwaiting for 1 connections that cannot move\n", "", 0},
		{"not for ever", []uint32{2, 2, 2, 2, 2, 2}, []string{"--wait", "--timeout", "300ms"}, exitFailed, "2 connections are still here after 300ms", "", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakeAgent{left: tt.left, moves: []*api.MoveEvent{summary(&api.Summary{})}}
			path := f.serve(t)
			code, out, errs := command(append([]string{"drain", "--output", "json", "--agent", path}, tt.args...)...)
			if code != tt.code || !strings.Contains(errs, tt.want) || !strings.Contains(out, tt.json) || tt.want == "" && errs != "" {
				t.Errorf("exit code %d, %s%s; want %d, %q, %q", code, out, errs, tt.code, tt.want, tt.json)
			}
			if len(f.left) != tt.rest {
				t.Errorf("%d answers were not asked for, want %d", len(f.left), tt.rest)
			}
			if strings.Contains(out, "left") != (tt.json != "") {
				t.Errorf("it prints %s", out)
			}
		})
	}
}

// TestDrainDoesNotWaitInVain: when new connections may still come, or the agent has ended, there is nothing to wait for.
func TestDrainDoesNotWaitInVain(t *testing.T) {
	for name, moves := range map[string][]*api.MoveEvent{"not told": {summary(&api.Summary{Error: "front, the entry, could not be told"})}, "ended": nil} {
		f := &fakeAgent{left: []uint32{2, 2}, moves: moves}
		code, _, errs := command("drain", "--wait", "--agent", f.serve(t))
		if code != exitFailed || strings.Contains(errs, "waiting") || len(f.left) != 2 {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
}
