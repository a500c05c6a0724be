// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/agent/report"
	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/monitor"
	"github.com/rehome-net/rehome/handoff/vitals"
)

// A dispatcher's monitor hears of a server, until the server ends.
func Example() {
	key := vitals.Key{ID: 1, Secret: []byte("sixteen or more bytes of secret")}
	changes := make(chan availability.Event, 10)
	m, err := monitor.Open(monitor.Config{
		Listen: "127.0.0.1:0", Keys: []vitals.Key{key}, Availability: availability.Config{Interval: time.Second},
		Changed: func(e availability.Event) { changes <- e },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	m.SetHosts([]uint32{7})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()

	server, err := report.New(report.Config{Host: 7, Dispatchers: []netip.AddrPort{m.Addr()}, Key: key, Interval: time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	serving, stop := context.WithCancel(ctx)
	go server.Run(serving)
	fmt.Println((<-changes).To)
	stop()
	e := <-changes
	fmt.Println(e.To, "because", e.Cause)

	cancel()
	fmt.Println(<-done)
	// Output:
	// up
	// down because the announced time has come
	// <nil>
}
