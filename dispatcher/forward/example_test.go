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

// A SIP service over UDP: the first datagram of each client comes by user space, and so do all later ones, which are signalling.
func ExampleForwarder_Divert() {
	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}, Divert: true})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	vip := netip.MustParseAddrPort("198.51.100.1:5060")
	if err := f.UDP().SetHandling(vip, forward.Handling{Divert: true}); err != nil {
		log.Fatal(err)
	}
	choose := func(forward.Diverted) gate.Node { return 1 }
	promised := func([]byte) []forward.Announcement { return nil }
	log.Fatal(f.Divert(context.Background(), func(d forward.Diverted) {
		node := d.Node
		if d.Reason == forward.Undecided {
			route, err := f.UDP().Assign(d.Flow, choose(d), true)
			if err != nil && !errors.Is(err, gate.ErrExists) {
				return // over meanwhile; its next datagram begins anew
			}
			node = route.Node
		}
		// The server will not see the packet before its media has a way.
		if err := f.Announce(promised(d.Payload)...); err != nil {
			log.Print(err)
		}
		if err := f.Send(d, node); err != nil {
			log.Print(err)
		}
	}))
}

// The data connection of an FTP session in passive mode: the client may come from any port.
func ExampleForwarder_Announce() {
	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	ftp := netip.MustParseAddrPort("198.51.100.1:21")
	if err := f.Announce(forward.Announcement{
		Client: netip.MustParseAddrPort("192.0.2.7:0"), Server: netip.MustParseAddrPort("198.51.100.1:40123"), Protocol: 6,
		Node: 1, Service: forward.Service{Address: ftp, Protocol: 6}, Tag: 17,
	}); err != nil {
		log.Fatal(err)
	}
	log.Fatal(f.Watch(context.Background(), func(e forward.Event) {
		fmt.Printf("session %d: %v has begun at node %d\n", e.Tag, e.Flow, e.Node)
	}))
}

// Half of the new sessions are refused, and none of what is established.
func ExampleFlows_SetAdmission() {
	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	vip := netip.MustParseAddrPort("198.51.100.1:443")
	if err := f.SetService(vip, []gate.Node{0}); err != nil {
		log.Fatal(err)
	}
	if err := f.SetAdmission(vip, forward.Admission{New: 0.5}); err != nil {
		log.Fatal(err)
	}
}

// Who keeps sessions learns from time to time which of their flows are alive.
func ExampleForwarder_Scan() {
	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	flows := make([]forward.Known, 4096)
	for at := forward.Cursor(0); ; {
		n, next, err := f.Scan(at, flows)
		if err != nil {
			log.Fatal(err)
		}
		for _, k := range flows[:n] {
			fmt.Println(k.Protocol, k.Flow, k.Node, k.Idle)
		}
		if next == 0 {
			return
		}
		at = next
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
