// SPDX-License-Identifier: Apache-2.0

package availability_test

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/handoff/vitals"
)

func ExampleDetector() {
	detector, err := availability.New(availability.Config{Interval: 10 * time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	begin := time.Now()
	show := func(events []availability.Event) {
		for _, e := range events {
			fmt.Printf("after %v: host %d is %v: %s\n", e.At.Sub(begin), e.Host, e.To, e.Cause)
		}
	}
	detector.Add(begin, 7)
	show(detector.Beat(availability.Beat{
		Heartbeat: vitals.Heartbeat{Host: 7, Seq: 1, Flag: vitals.Available}, At: begin.Add(5 * time.Millisecond), Sent: begin,
	}))
	show(detector.Tick(detector.Deadline()))
	// Output:
	// after 5ms: host 7 is up: it is available
	// after 35ms: host 7 is down: silence
}
