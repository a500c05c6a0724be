// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestConnections counts those at services' addresses, over both IP versions, and no others.
func TestConnections(t *testing.T) {
	at, other := smallListener(t), smallListener(t)
	dual, err := net.Listen("tcp", "[::]:0") // IPv4 comes there, too
	if err != nil {
		t.Fatal(err)
	}
	defer dual.Close()
	port := netip.MustParseAddrPort(dual.Addr().String()).Port()
	mapped := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	six := netip.AddrPortFrom(netip.MustParseAddr("::1"), port)
	services := []netip.AddrPort{at, mapped, six}
	k := openKernel(procPath)
	defer k.close()
	count := func(want uint32) {
		t.Helper()
		if n, err := k.connections(services); err != nil || n != want {
			t.Errorf("%d connections, want %d: %v", n, want, err)
		}
	}
	count(0)
	clientsOf(t, at, 2)
	clientsOf(t, other, 2)
	clientsOf(t, mapped, 3)
	clientsOf(t, six, 1)
	count(6)
	services = services[:1]
	count(2)
	services = []netip.AddrPort{at, mapped, six}
	if n, err := k.connections(nil); n != 0 || err != nil {
		t.Errorf("without services %d, %v", n, err)
	}
	if _, err := k.read(); err != nil { // the socket is good for both questions
		t.Logf("cannot be read here: %v", err)
	}
	count(6)
}

// TestVectorsCount: load vectors tell how many connections there are.
func TestVectorsCount(t *testing.T) {
	d := newDispatcher(t, "127.0.0.1:0")
	at := smallListener(t)
	clientsOf(t, at, 3)
	r, _ := start(t, Config{
		Dispatchers: []netip.AddrPort{d.addr()}, Interval: time.Minute, LoadInterval: MinLoadInterval, Services: []netip.AddrPort{at},
	})
	first := d.vector()
	if first.Sessions != 3 {
		t.Errorf("%d sessions, want 3", first.Sessions)
	}
	r.SetSessions(10)
	for last := first; last.Sessions != 13; {
		if last = d.vector(); last.Seq-first.Seq > 100 {
			t.Fatalf("%+v: want 13 sessions", last)
		}
	}
}

func FuzzParseLocal(f *testing.F) {
	b := make([]byte, diagSize)
	b[0] = familyIPv4
	binary.BigEndian.PutUint16(b[diagPort:], 80)
	copy(b[diagAddress:], []byte{192, 0, 2, 1})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if at, err := parseLocal(b); err == nil && (!at.Addr().IsValid() || at.Addr().Is4In6()) {
			t.Errorf("%v", at)
		}
	})
}

func BenchmarkConnections(b *testing.B) {
	k := openKernel(procPath)
	defer k.close()
	for b.Loop() {
		_, _ = k.connections([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:80")})
	}
}
