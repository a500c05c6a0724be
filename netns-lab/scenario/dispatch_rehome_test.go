// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// TestDispatcherClients runs every client against the project's own dispatcher.
func TestDispatcherClients(t *testing.T) {
	t.Parallel()
	name := labName("disp")
	f := farm(t, scenario.FarmConfig{
		Lab: name, Agents: true, Adjust: scenario.DispatchedAgents(scenario.DispatchTopology(name).VIPs),
	})
	for _, front := range []scenario.Front{scenario.Rehome(), scenario.RehomeSocketless(), scenario.RehomeNFT()} {
		t.Run(front.Name(), func(t *testing.T) {
			startFront(t, f, front)
			for _, k := range scenario.ClientChecks() {
				t.Run(k.Name, func(t *testing.T) {
					if err := k.Run(testContext(t, time.Minute), f, front); err != nil {
						t.Errorf("%v\n%s", err, f.Logs(scenario.FrontHost))
					}
				})
			}
		})
	}
}

// TestDispatcherScene plays the whole scene with the project's own dispatcher: it is killed and started again, and a backend is drained,
// and no client notices.
func TestDispatcherScene(t *testing.T) {
	for _, front := range []scenario.Front{scenario.Rehome(), scenario.RehomeSocketless()} {
		t.Run(front.Name(), func(t *testing.T) { dispatcherScene(t, front) })
	}
}

func dispatcherScene(t *testing.T, front scenario.Front) {
	needPrograms(t, append(scenario.FarmPrograms(), "curl", "wrk", "openssl", "redis-cli")...)
	lab := labName("dscene")
	r, err := scenario.Dispatch(testContext(t, 2*time.Minute), scenario.DispatchConfig{
		Command: binary(t), Lab: lab, Front: front, Adjust: scenario.DispatchedAgents(scenario.DispatchTopology(lab).VIPs),
		Downloads: 100, Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	if !r.OK || r.Failed != 0 || r.Skipped != 0 || r.BytesRelayed != 0 {
		t.Errorf("%+v", r)
	}
	if r.Handoffs["linked"] == 0 || r.Handoffs["unmodified"] < r.Requests {
		t.Errorf("%d requests, handoffs %v", r.Requests, r.Handoffs)
	}
	if n := r.Handoffs["fd"]; n != int64(r.DescriptorRequests) || n < 20 {
		t.Errorf("%d connections handed off by delivery fd, %d came", n, r.DescriptorRequests)
	}
}
