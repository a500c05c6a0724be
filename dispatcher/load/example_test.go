// SPDX-License-Identifier: Apache-2.0

package load_test

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/vitals"
)

func ExampleManager() {
	manager, err := load.NewManager(load.Config{Weights: vitals.Weights{vitals.CPU: 1, vitals.Memory: 0.5}})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	manager.Add(now, 7)
	v := vitals.Vector{Host: 7, Interval: 100 * time.Millisecond}
	v.Shares[vitals.CPU], v.Shares[vitals.Memory] = vitals.ShareOf(0.4), vitals.ShareOf(0.9)
	manager.Report(now, v)
	l, ok := manager.Load(7)
	fmt.Println(l, ok)
	fmt.Println("failed:", manager.Tick(now.Add(300 * time.Millisecond))[0].Failed)
	// Output:
	// 0.45 true
	// failed: true
}

func ExampleShedder() {
	shedder, err := load.NewShedder(load.ShedConfig{High: 0.8, Low: 0.6, Hold: -1})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	old := now.Add(-time.Hour)
	moves := shedder.Plan(now, []load.Server{
		{Host: 1, Load: 0.9, Takes: true, Sessions: []load.Session{
			{ID: 100, Weight: 1, Since: old}, {ID: 101, Weight: 1, Since: old}, {ID: 102, Weight: 1, Since: old},
		}},
		{Host: 2, Load: 0.2, Takes: true},
	})
	for _, m := range moves {
		fmt.Printf("session %d: host %d to host %d, %.2f\n", m.Session, m.From, m.To, m.Share)
	}
	// Output: session 100: host 1 to host 2, 0.30
}
