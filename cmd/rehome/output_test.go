// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag

// golden compares with a file in testdata; `go test -update` writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

// TestStatusJSON holds what programs read: every field, and numbers that are numbers whatever their size.
func TestStatusJSON(t *testing.T) {
	full := &api.StatusResponse{
		Host: "web-1", Version: "v1", Draining: true,
		Services: []*api.Service{
			{Name: "files", Address: "198.51.100.1:80", Entry: "e", Servers: []string{"web-1", "web-2"}, Applications: 1},
			{Name: "none", Address: "[2001:db8::1]:80", Entry: "web-1"},
		},
		Migrations: []*api.Migration{{
			Id: math.MaxUint64, Flow: "192.0.2.7:1-198.51.100.1:80", Role: "source", Peer: "web-2", State: "sent", AgeMicros: math.MaxInt64,
		}},
		Peers: []*api.Peer{
			{Name: "web-2", Address: "10.0.0.2:7070", Connected: true, Mac: "02:00:00:00:00:01"},
			{Name: "e", Address: "10.0.0.3:7070", Error: "connection refused"},
		},
		Counters: &api.Counters{
			MovedOut: 1 << 53, MovedIn: 2, Resumed: 3, Refused: 4, Lost: 5, Recovered: 6, PacketsHeld: 1 << 60, PacketsDropped: 8,
		},
	}
	flows := []*api.Flow{{Flow: "192.0.2.7:1-198.51.100.1:80", Service: "files", Epoch: 3, AgeMicros: 1 << 54, Movable: true}}
	for _, tt := range []struct {
		file  string
		st    *api.StatusResponse
		list  []*api.Flow
		flows bool
	}{
		{"status.json", full, flows, true},
		{"status-empty.json", &api.StatusResponse{Host: "web-1"}, nil, true},
		{"status-no-flows.json", &api.StatusResponse{Host: "web-1"}, nil, false},
	} {
		var b bytes.Buffer
		if err := printJSON(&b, agentOutputOf(tt.st, tt.list, tt.flows)); err != nil {
			t.Fatal(err)
		}
		golden(t, tt.file, b.Bytes())
	}
}

// TestMoveJSON does so for migrate and drain.
func TestMoveJSON(t *testing.T) {
	f := &fakeAgent{moves: []*api.MoveEvent{
		{Event: &api.MoveEvent_Planned{Planned: &api.Planned{Total: 2}}},
		{Event: &api.MoveEvent_Moved{Moved: &api.Moved{
			Flow: "192.0.2.7:1-198.51.100.1:80", To: "web-2", Outcome: agent.OutcomeMoved, FreezeMicros: 600, TotalMicros: 1 << 54,
			SnapshotMicros: 70, HeldPackets: 3, StateBytes: 1 << 55, SnapshotBytes: 1 << 56,
		}}},
		moved(agent.OutcomeLost, "gone"),
		summary(&api.Summary{Moved: 1, Failed: 2, Lost: 1, Gone: 4, TotalMicros: 1 << 57, FreezeMedianMicros: 1 << 58, FreezeP99Micros: 1 << 59, Error: "late"}),
	}}
	path := f.serve(t)
	for _, args := range [][]string{{"migrate", "--all"}, {"drain"}} {
		_, out, _ := command(append(args, "--output", "json", "--agent", path)...)
		golden(t, "move.json", []byte(out))
	}
	f.moves = []*api.MoveEvent{summary(&api.Summary{})}
	_, out, _ := command("drain", "--output", "json", "--agent", path)
	golden(t, "move-empty.json", []byte(out))
}
