// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// TestDeadDispatcher: a dispatcher whose host is off the network, so that nobody answers ARP, costs the other one no heartbeat, however
// many wait for the first. At 1 ms they fill what a socket may have under way in a third of a second.
func TestDeadDispatcher(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(1))
	server, dispatcher := labtest.Host(t, lab, "a"), labtest.Host(t, lab, "entry")
	alive := netip.AddrPortFrom(dispatcher.Addr4(), 7072)
	conn, err := dispatcher.ListenPacket(t.Context(), "udp", alive.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	opener, err := vitals.NewOpener(vitals.OpenerConfig{Keys: []vitals.Key{key()}})
	if err != nil {
		t.Fatal(err)
	}
	var r *Reporter
	err = server.Do(func() (err error) { // sockets are of the namespace that they were made in
		r, err = New(Config{
			Host: 7, Key: key(), Interval: time.Millisecond, LoadInterval: time.Minute,
			Dispatchers: []netip.AddrPort{netip.MustParseAddrPort("10.77.0.240:7072"), alive},
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	// As many as fill the dead one's socket several times over.
	const beats = 1500
	b := make([]byte, vitals.MaxSize)
	var last uint16
	for n := range beats {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		size, _, err := conn.ReadFrom(b)
		if err != nil {
			t.Fatalf("heartbeat %d: %v", n, err)
		}
		d, err := opener.Open(b[:size], time.Now())
		if err != nil || d.Heartbeat == nil {
			t.Fatalf("heartbeat %d: %+v, %v", n, d, err)
		}
		if n > 0 && d.Heartbeat.Seq != last+1 {
			t.Fatalf("heartbeat %d has number %d after %d", n, d.Heartbeat.Seq, last)
		}
		last = d.Heartbeat.Seq
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := r.Stats(); s.Failed == 0 {
		t.Logf("%+v: the kernel threw what waited for ARP away before the socket was full", s)
	}
}
