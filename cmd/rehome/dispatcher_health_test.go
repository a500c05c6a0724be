// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/rehome-net/rehome/dispatcher/api"
)

// TestPrintHealth shows why a check fails, and nothing of pools without checks.
func TestPrintHealth(t *testing.T) {
	pools := poolStatuses([]*api.Pool{{Name: "files", Delivery: "unmodified", Backends: []*api.Backend{
		{Name: "b1", State: "unhealthy", Health: "down", HealthError: "http: status 503, want 200 to 399"},
		{Name: "b2", State: "up", Health: "up"},
		{Name: "b3", State: "up"},
	}}})
	if b := pools[0].Backends; b[0].Health != "down" || b[0].HealthError == "" || b[1].Health != "up" || b[2].Health != "" {
		t.Errorf("in JSON: %+v", b)
	}
	var out strings.Builder
	if err := printPools(&out, pools); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[1], "unhealthy (check: http: status 503, want 200 to 399)") || strings.Contains(lines[2]+lines[3], "check") {
		t.Errorf("printed:\n%s", out.String())
	}
}
