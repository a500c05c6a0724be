// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImportDirection holds that dispatcher and agent do not know each other, nor the laboratory, and that operators' programs need
// neither.
func TestImportDirection(t *testing.T) {
	const module = "github.com/rehome-net/rehome/"
	for pkg, forbidden := range map[string][]string{
		"dispatcher":           {"agent", "netns-lab", "cmd", "dispatcher/simulation"},
		"dispatcher/api":       {"dispatcher", "handoff", "tcprepair", "agent"},
		"dispatcher/admission": {"dispatcher"},
		"dispatcher/balance":   {"dispatcher"},
		"dispatcher/forecast":  {"dispatcher"},
		"agent":                {"dispatcher"},
		// Engines do not know one another.
		"dispatcher/availability": {"dispatcher/load", "dispatcher/health", "dispatcher/monitor", "dispatcher/forward"},
		"dispatcher/load":         {"dispatcher/availability", "dispatcher/health", "dispatcher/monitor", "dispatcher/forward"},
		"dispatcher/health":       {"dispatcher/availability", "dispatcher/load", "dispatcher/monitor", "dispatcher/forward"},
	} {
		out, err := exec.Command("go", "list", "-deps", module+pkg).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", pkg, err)
		}
		for _, dep := range strings.Fields(string(out)) {
			for _, f := range forbidden {
				if dep != module+pkg && (dep == module+f || strings.HasPrefix(dep, module+f+"/")) {
					t.Errorf("%s depends on %s", pkg, dep)
				}
			}
		}
	}
}
