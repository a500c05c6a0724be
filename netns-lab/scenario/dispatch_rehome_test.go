// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// TestDispatcherClients runs every client against the project's own dispatcher.
func TestDispatcherClients(t *testing.T) {
	name := labName("disp")
	f := farm(t, scenario.FarmConfig{
		Lab: name, Agents: true, LogLevel: "debug", Adjust: scenario.DispatchedAgents(scenario.DispatchTopology(name).VIPs),
	})
	front := scenario.Rehome()
	startFront(t, f, front)
	for _, k := range scenario.ClientChecks() {
		t.Run(k.Name, func(t *testing.T) {
			if err := k.Run(testContext(t, time.Minute), f, front); err != nil {
				t.Errorf("%v\n%s", err, f.Logs(scenario.FrontHost))
			}
		})
	}
}
