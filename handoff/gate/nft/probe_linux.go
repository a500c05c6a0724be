// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"os"
	"strconv"

	"github.com/rehome-net/rehome/handoff/gate"
)

// Probe makes a table with everything that a gate needs, at the loopback interface, and removes it.
func Probe() gate.Finding {
	f := gate.Finding{Name: "nftables can hold and forward packets", OK: true, Required: true}
	g, err := Open(Config{Interfaces: []string{"lo"}, Table: "rehome-probe-" + strconv.Itoa(os.Getpid())})
	if err == nil {
		err = g.Remove()
	}
	if err != nil {
		f.OK, f.Detail = false, err.Error()
	}
	return f
}
