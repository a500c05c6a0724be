// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk_test

import (
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/rehome-net/rehome/handoff/reqsk"
	"github.com/rehome-net/rehome/tcprepair"
)

// A snapshot that has come from the host that accepted the connection.
func ExampleInjector_Inject() {
	in, err := reqsk.Open(reqsk.Config{})
	if err != nil {
		log.Fatal(err) // use another delivery
	}
	defer in.Close()
	encoded, err := os.ReadFile("connection")
	if err != nil {
		log.Fatal(err)
	}
	s, err := tcprepair.Decode(encoded, tcprepair.Limits{})
	if err != nil {
		log.Fatal(err)
	}
	switch err := in.Inject(s); {
	case err == nil:
		fmt.Println("the server has it")
	case errors.Is(err, reqsk.ErrReset), errors.Is(err, reqsk.ErrUncertain):
		log.Fatal(err) // over
	default:
		log.Print(err) // another server may have it
	}
}

func ExampleOpen() {
	in, err := reqsk.Open(reqsk.Config{Device: "rehome0", Lanes: 2})
	switch {
	case errors.Is(err, reqsk.ErrUnsupported):
		fmt.Println("servers on this host must be linked with package handoff, or take descriptors")
	case err != nil:
		fmt.Println(err) // says what to set
	default:
		defer in.Close()
	}
}

func ExampleProbe() {
	for _, f := range reqsk.Probe() {
		if !f.OK {
			fmt.Println(f.Name, f.Detail)
		}
	}
}
