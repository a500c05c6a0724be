// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops_test

import (
	"log"

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
