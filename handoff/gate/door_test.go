// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// attempt is a client that connects in the background.
type attempt struct {
	conn net.Conn
	err  error
}

func (c *cluster) attempt(t *testing.T, at string) <-chan attempt {
	done := make(chan attempt, 1)
	go func() {
		conn, err := c.client.dial(t, 0, at)
		done <- attempt{conn, err}
	}()
	return done
}

// awaitHeld waits until the gate has held n packets.
func (c *cluster) awaitHeld(t *testing.T, n uint64) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); c.gate.Stats().Held < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d packets held, want %d", c.gate.Stats().Held, n)
		}
	}
}

// TestDoor lets new connections wait while the service's server changes; those that are there go on.
func TestDoor(t *testing.T) {
	c := newCluster(t, 2)
	for _, vip := range []string{vip4, vip6} {
		at := netip.MustParseAddrPort(net.JoinHostPort(vip, "80"))
		if err := c.gate.SetService(at, []Node{1}); err != nil {
			t.Fatal(err)
		}
		old, err := c.client.dial(t, 0, at.String())
		if err != nil {
			t.Fatal(err)
		}
		before := c.gate.Stats().Held
		for range 2 { // it may be renewed
			if err := c.gate.Shut(at, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		if got := who(t, old); got != "1" {
			t.Errorf("the old connection is at %s", got)
		}
		waiting := c.attempt(t, at.String())
		c.awaitHeld(t, before+1)
		select {
		case a := <-waiting:
			t.Fatalf("it did not wait: %v", a.err)
		default:
		}
		if err := c.gate.SetService(at, []Node{2}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		held, err := c.gate.Open(at)
		if err != nil || held.Packets < 1 || held.Dropped != 0 {
			t.Errorf("Open = %+v, %v", held, err)
		}
		a := <-waiting
		if a.err != nil {
			t.Fatal(a.err)
		}
		if took := time.Since(began); took > 900*time.Millisecond {
			t.Errorf("it was connected after %v: the client had to repeat its SYN", took)
		}
		if got := who(t, a.conn); got != "2" {
			t.Errorf("the new connection is at %s", got)
		}
		if _, err := old.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		_, _ = old.Close(), a.conn.Close()
		if held, err := c.gate.Open(at); err != nil || held != (Held{}) {
			t.Errorf("opened twice: %+v, %v", held, err)
		}
	}
}

// TestDoorOpensByItself keeps a door shut for longer than its time.
func TestDoorOpensByItself(t *testing.T) {
	c := newCluster(t, 1)
	at := netip.MustParseAddrPort(net.JoinHostPort(vip4, "80"))
	if err := c.gate.SetService(at, []Node{1}); err != nil {
		t.Fatal(err)
	}
	if err := c.gate.Shut(at, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	waiting := c.attempt(t, at.String())
	c.awaitHeld(t, 1)
	if a := <-waiting; a.err != nil {
		t.Error(a.err)
	} else if got := who(t, a.conn); got != "1" {
		t.Errorf("it is at %s", got)
	}
	if lapsed := c.gate.Stats().Lapsed; lapsed != 1 {
		t.Errorf("%d holds ended by their deadline", lapsed)
	}
}

func TestDoorRefuses(t *testing.T) {
	g := newCluster(t, 1).gate
	good := netip.MustParseAddrPort("10.1.2.3:80")
	if g.Shut(netip.AddrPort{}, time.Second) == nil || g.Shut(good, 0) == nil || g.Shut(netip.AddrPortFrom(good.Addr(), 0), time.Second) == nil {
		t.Error("shut what is no door")
	}
	if held, err := g.Open(good); err != nil || held.Packets != 0 {
		t.Errorf("an open door: %+v, %v", held, err)
	}
}

// TestDoorOpensWithNextProcess shuts a door and dies: the next process finds it open.
func TestDoorOpensWithNextProcess(t *testing.T) {
	pin := bpffs(t)
	h := network(t, 1)[0]
	at := netip.MustParseAddrPort("10.1.2.3:80")
	for range 2 {
		g, err := h.open(t, Config{Interfaces: []string{"eth0"}, PinPath: pin})
		if err != nil {
			t.Fatal(err)
		}
		var door gateDoor
		if err := g.table.objects.Doors.Lookup(serviceKey(at), &door); err == nil {
			t.Errorf("it is shut until %d", door.Until)
		}
		if err := g.Shut(at, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	g, err := h.open(t, Config{Interfaces: []string{"eth0"}, PinPath: pin})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
}
