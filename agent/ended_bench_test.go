// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// BenchmarkLook asks the kernel about a connection that it does not have: most of what an end costs the agent.
func BenchmarkLook(b *testing.B) {
	d, err := openDiagnosis()
	if err != nil {
		b.Skip(err)
	}
	defer d.close()
	for b.Loop() {
		if _, err := d.state(testFlow(1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEnd is all that an end costs the agent, from the ring to the link, in batches of 100.
func BenchmarkEnd(b *testing.B) {
	const batch = 100
	d, err := openDiagnosis()
	if err != nil {
		b.Skip(err)
	}
	defer d.close()
	e := testEngine(b, "b", "a", "b")
	near, far := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far)
	e.peers["b"].link = wire.NewLink(near)
	defer e.peers["b"].link.Close()
	s := newEnds(e, newFakeEnds(), d)
	over := make([]sockops.End, batch)
	for i := range over {
		over[i] = sockops.End{Flow: testFlow(i + 1), From: tcprepair.LastAck}
	}
	for n := 0; b.Loop(); n++ {
		if n%batch != 0 {
			continue // what follows is for as many
		}
		now := time.Now()
		s.sort(now.Add(-2*endDelay), over)
		s.hand(s.due(now))
		(<-e.events)(e)
		e.flush()
	}
}
