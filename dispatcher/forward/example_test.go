// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// A dispatcher takes new connections itself and hands one to a server.
func ExampleOpen() {
	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}, PinPath: "/sys/fs/bpf/rehome-forward"})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	go func() { log.Println(f.Run(context.Background())) }()
	own, server := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	if err := f.SetNode(1, 2, server, own); err != nil {
		log.Fatal(err)
	}
	if err := f.SetService(netip.MustParseAddrPort("198.51.100.1:443"), []gate.Node{0}); err != nil {
		log.Fatal(err)
	}
	flow, err := tcprepair.ParseFlow("192.0.2.7:40312-198.51.100.1:443")
	if err != nil {
		log.Fatal(err)
	}
	route, err := f.Commit(flow, 1, 1)
	switch {
	case errors.Is(err, gate.ErrEpoch):
		fmt.Printf("node %d has it, epoch %d\n", route.Node, route.Epoch)
	case err != nil:
		log.Fatal(err)
	}
}

// Datagrams of a service go to servers at once.
func ExampleForwarder_UDP() {
	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	if err := f.UDP().SetService(netip.MustParseAddrPort("198.51.100.1:53"), []gate.Node{1, 2}); err != nil {
		log.Fatal(err)
	}
}

// Operators see the table fill before it refuses anything.
func ExampleForwarder_Stats() {
	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}, MaxFlows: 1 << 22})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	if s := f.Stats(); s.Pressure > 0.7 {
		fmt.Printf("%d of %d slots used, %d connections refused\n", s.Flows, s.Capacity, s.Full)
	}
}

func ExampleProbe() {
	for _, f := range forward.Probe() {
		if !f.OK {
			fmt.Println(f.Name, f.Detail)
		}
	}
}
