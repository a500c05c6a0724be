// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// TestAnnounce has operators announce failures at the agents of live servers.
func TestAnnounce(t *testing.T) {
	t.Parallel()
	lab := labName("ann")
	r, err := scenario.Announce(testContext(t, time.Minute), scenario.AnnounceConfig{Command: binary(t), Lab: lab, Report: log{t}})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	if !r.OK || r.Connections[0] != 30 || r.LeftBeforeCancel < 15 || r.ClientErrors != 0 || r.SecondsToSpare <= 0 {
		t.Errorf("%+v", r)
	}
	t.Logf("%+v", r)
}
