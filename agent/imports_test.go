// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImportDirection holds the direction in which packages may depend on one another: cmd -> agent -> handoff -> tcprepair, and
// production code never on the laboratory.
func TestImportDirection(t *testing.T) {
	const module = "github.com/rehome-net/rehome/"
	rules := []struct{ pkg, forbidden string }{
		{"tcprepair", "handoff"},
		{"tcprepair", "agent"},
		{"tcprepair", "netns-lab"},
		{"handoff", "agent"},
		{"handoff", "netns-lab"},
		{"handoff", "handoff/gate"},
		{"handoff", "handoff/migration"},
		{"handoff/wire", "handoff/migration"},
		{"handoff/wire", "handoff/gate"},
		{"handoff/migration", "handoff/wire"},
		{"handoff/migration", "handoff/gate"},
		{"handoff/gate", "handoff/wire"},
		{"handoff/gate", "handoff/migration"},
		{"handoff/gate", "agent"},
		{"handoff/sockops", "handoff/gate"},
		{"agent/api", "handoff"},
		{"agent/report", "agent"},
		{"handoff/vitals", "handoff"},
		{"handoff/realtime", "handoff"},
		{"handoff/calm", "handoff"},
		{"agent", "netns-lab"},
		{"agent/criu", "handoff"},
		{"agent/criu", "handoff/gate"},
		{"agent/criu", "handoff/wire"},
		{"agent/criu", "tcprepair"},
		{"agent/criu", "netns-lab"},
		{"handoff/entry", "agent"},
		{"agent", "cmd"},
	}
	deps := make(map[string][]string)
	for _, r := range rules {
		if deps[r.pkg] == nil {
			out, err := exec.Command("go", "list", "-deps", module+r.pkg).Output()
			if err != nil {
				t.Fatalf("go list %s: %v", r.pkg, err)
			}
			deps[r.pkg] = strings.Fields(string(out))
		}
		for _, d := range deps[r.pkg] {
			if d == module+r.forbidden && r.pkg != r.forbidden {
				t.Errorf("%s depends on %s", r.pkg, r.forbidden)
			}
		}
	}
}

// TestMigrationIsPure holds that what decides has no clock, socket or log of its own.
func TestMigrationIsPure(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, "github.com/rehome-net/rehome/handoff/migration").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, imp := range strings.Fields(string(out)) {
		switch imp {
		case "container/list", "errors", "fmt", "time", "github.com/rehome-net/rehome/tcprepair":
		default:
			t.Errorf("handoff/migration imports %s", imp)
		}
	}
}
