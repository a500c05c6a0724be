// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// TestOverloadServers has sessions come that the servers can bear, directly and through a dispatcher, and three times as many as they can, without admission
// control and with it.
func TestOverloadServers(t *testing.T) {
	for _, tt := range []struct {
		offered  float64
		policies []scenario.OverloadPolicy
	}{
		{0.3, []scenario.OverloadPolicy{scenario.OverloadDirect, scenario.OverloadBare}},
		{3, []scenario.OverloadPolicy{scenario.OverloadDirect, scenario.OverloadSA2C}},
	} {
		lab := labName("over")
		r, err := scenario.Overload(testContext(t, time.Minute), scenario.OverloadConfig{
			Command: binary(t), Lab: lab, Policies: tt.policies, Seeds: []uint64{1}, Offered: tt.offered, LogLevel: "warn", Report: log{t},
			Length: 3 * time.Second, WarmUp: 1500 * time.Millisecond, Patience: 500 * time.Millisecond, ServiceTime: 20 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		checkGone(t, lab)
		if !r.OK || len(r.Runs) != len(tt.policies) {
			t.Errorf("%v times the load: %+v", tt.offered, r)
		}
		for policy, runs := range r.Runs {
			// The servers' capacity is exact: nobody completes more, and below it nearly all sessions are.
			run, over := runs[0], tt.offered > 1 && policy != scenario.OverloadSA2C
			if policy == scenario.OverloadSA2C {
				if run.Refused < run.Came/4 || run.Kept < 0.8 || run.Rate < 2*r.CompletedSessionsPerSecond[scenario.OverloadDirect] {
					t.Errorf("%s, %v times the load: %+v", policy, tt.offered, run)
				}
				run.Refused = 0
			}
			if run.Came == 0 || run.Refused > 0 || run.InVain > 0.5 != over || run.Kept > 0.8 == over || run.Rate > 1.3*r.Capacity {
				t.Errorf("%s, %v times the load: %+v", policy, tt.offered, run)
			}
		}
	}
}

// TestOverloadDatagrams has sessions of datagrams come, twice as many as the servers can bear: the kernel refuses the first datagram of those that do not come in,
// and loses none of the others'. Then the load is above T3 for a second, when it does.
func TestOverloadDatagrams(t *testing.T) {
	needPrograms(t, "dnsmasq")
	lab := labName("overu")
	r, err := scenario.Overload(testContext(t, time.Minute), scenario.OverloadConfig{
		Command: binary(t), Lab: lab, Policies: []scenario.OverloadPolicy{scenario.OverloadDatagram}, Seeds: []uint64{1}, LogLevel: "warn", Report: log{t},
		Length: 3 * time.Second, WarmUp: 1500 * time.Millisecond, Patience: 500 * time.Millisecond, ServiceTime: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	if !r.OK || len(r.Runs[scenario.OverloadDatagram]) != 1 || len(r.Surges) != 1 {
		t.Fatalf("%+v", r)
	}
	if run := r.Runs[scenario.OverloadDatagram][0]; run.Dropped < run.Came/8 || run.Degraded > 0 || run.Datagrams.Arrived == 0 || run.Rate > 1.3*r.Capacity {
		t.Errorf("%+v, %+v", run, run.Datagrams)
	}
	if s := r.Surges[0]; s.DroppedAbove == 0 || s.DroppedBelow > 0 || s.Recovered == 0 {
		t.Errorf("%+v", s)
	}
}
