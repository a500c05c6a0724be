// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops_test

import (
	"log"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/sockops"
)

func ExampleSeeder_Seed() {
	s, err := sockops.Open("")
	if err != nil {
		log.Print(err) // restored connections start slowly
		return
	}
	defer s.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		log.Fatal(err)
	}
	// Between making the socket and connecting it in repair mode.
	if err := s.Seed(fd, 200); err != nil {
		log.Print(err)
	}
}

func ExampleWatch() {
	w, err := sockops.Watch(sockops.WatchConfig{Services: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:80")}})
	if err != nil {
		log.Print(err) // whoever keeps something about connections has to find out by itself that they are over
		return
	}
	defer w.Close()
	var ends []sockops.End
	for {
		if ends, err = w.Read(ends[:0]); err != nil {
			log.Fatal(err)
		}
		for _, e := range ends {
			log.Printf("%v is over, last packets may come: %v", e.Flow, e.Lingers())
		}
		time.Sleep(10 * time.Millisecond) // so that many ends make one batch
	}
}
