// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate_test

import (
	"errors"
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// The packets of one connection are kept while its socket is looked at.
func ExampleGate_Hold() {
	g, err := gate.Open(gate.Config{Interfaces: []string{"eth0"}})
	if err != nil {
		log.Fatal(err)
	}
	defer g.Close()
	flow, err := tcprepair.ParseFlow("192.0.2.7:40312-198.51.100.1:443")
	if err != nil {
		log.Fatal(err)
	}
	if err := g.Hold(flow, gate.Ingress|gate.Egress, 200*time.Millisecond); err != nil {
		log.Fatal(err)
	}
	// Freeze, snapshot, thaw.
	held, err := g.Release(flow)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d packets kept, %d lost\n", held.Packets, held.Dropped)
}

// The entry gives a flow to another server, unless somebody else was first.
func ExampleGate_Commit() {
	g, err := gate.Open(gate.Config{Interfaces: []string{"eth0"}, PinPath: "/sys/fs/bpf/rehome"})
	if err != nil {
		log.Fatal(err)
	}
	defer g.Close()
	if err := g.SetService(netip.MustParseAddrPort("198.51.100.1:443"), []gate.Node{1, 2}); err != nil {
		log.Fatal(err)
	}
	flow, err := tcprepair.ParseFlow("192.0.2.7:40312-198.51.100.1:443")
	if err != nil {
		log.Fatal(err)
	}
	route, err := g.Commit(flow, 1, 2)
	switch {
	case errors.Is(err, gate.ErrEpoch):
		fmt.Printf("node %d has it, epoch %d\n", route.Node, route.Epoch)
	case err != nil:
		log.Fatal(err)
	}
}

func ExampleProbe() {
	for _, f := range gate.Probe() {
		if !f.OK {
			fmt.Println(f.Name, f.Detail)
		}
	}
}
