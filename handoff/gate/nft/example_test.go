// SPDX-License-Identifier: Apache-2.0

//go:build linux

package nft_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/gate/nft"
	"github.com/rehome-net/rehome/tcprepair"
)

// A dispatcher hands a connection over on a host whose kernel refuses BPF.
func ExampleOpen() {
	f, err := nft.Open(nft.Config{Interfaces: []string{"eth0"}, Keep: true})
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
	if _, err := f.Commit(flow, 1, 1); err != nil {
		log.Fatal(err)
	}
}

// What a configuration asks for is checked before anything is opened.
func ExampleCheck() {
	fmt.Println(nft.Check(nft.Needs{UDP: true, Announced: true}))
	// Output: UDP services, announced flows: nftables cannot do this: it needs BPF
}
