// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/tcprepair"
)

// owing holds a flow and makes the kernel's count say that a frame of it is on its way to the tap, which never comes: as if a processor
// had counted it and not got to run since.
func owing(t *testing.T, g *Gate, f tcprepair.Flow) {
	t.Helper()
	if err := g.Hold(f, Ingress, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	owe(t, g, f, 1)
}

// owe adds to the kernel's count of a flow's held frames.
func owe(t *testing.T, g *Gate, f tcprepair.Flow, n int) {
	t.Helper()
	v := flowEntry(t, g, f)
	v.Held += uint64(n)
	k := gateKey4{
		Local: word4(f.Local.Addr()), Remote: word4(f.Remote.Addr()),
		LocalPort: networkOrder(f.Local.Port()), RemotePort: networkOrder(f.Remote.Port()), Proto: protoTCP,
	}
	if err := g.table.objects.Flows4.Update(&k, &v, ebpf.UpdateExist); err != nil {
		t.Fatal(err)
	}
}

func flowEntry(t *testing.T, g *Gate, f tcprepair.Flow) gateFlow {
	t.Helper()
	o := []gateOperation{newOperation(gateCodeOP_QUERY, f)}
	if err := errors.Join(g.table.run(o), answer(&o[0])); err != nil {
		t.Fatal(err)
	}
	return o[0].Flow
}

type ended struct {
	held Held
	err  error
	took time.Duration
}

// in runs an operation by itself.
func in(op func() (Held, error)) <-chan ended {
	done := make(chan ended, 1)
	go func() {
		began := time.Now()
		held, err := op()
		done <- ended{held, err, time.Since(began)}
	}()
	return done
}

// waits reports whether a release of the flow waits for frames on their way: it has muted the host.
func waits(t *testing.T, g *Gate, f tcprepair.Flow) bool {
	const holdACK = 4
	return flowEntry(t, g, f).Hold&holdACK != 0
}

// TestWaitOfOneFlow: while a release waits for frames that the kernel has counted, other flows are held and released.
func TestWaitOfOneFlow(t *testing.T) {
	for _, tt := range []struct {
		name string
		op   func(g *Gate, f tcprepair.Flow) (Held, error)
	}{
		{"release", (*Gate).Release},
		{"divert", func(g *Gate, f tcprepair.Flow) (Held, error) { return Held{}, g.Divert(f, 3, time.Second) }},
		{"forward", func(g *Gate, f tcprepair.Flow) (Held, error) {
			_, err := g.Forward(f, 3, time.Second)
			return Held{}, err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := network(t, 2)
			g := h[0].gated(t)
			if err := g.SetNode(3, h[0].index(t), h[1].mac(t), h[0].mac(t)); err != nil {
				t.Fatal(err)
			}
			late, other := benchFlow(1), benchFlow(2)
			owing(t, g, late)
			done := in(func() (Held, error) { return tt.op(g, late) })
			var others int
			var longest time.Duration
			for {
				began := time.Now()
				if err := g.Hold(other, Ingress, time.Second); err != nil {
					t.Fatal(err)
				}
				if _, err := g.Release(other); err != nil {
					t.Fatal(err)
				}
				others++
				longest = max(longest, time.Since(began))
				select {
				case e := <-done:
					if e.err != nil || e.took < waitTime {
						t.Errorf("it took %v: %v; want %v at least: the test has not tested anything", e.took, e.err, waitTime)
					}
					if longest > waitTime/2 {
						t.Errorf("another flow waited %v (%d went on in the %v)", longest, others, e.took)
					}
					return
				default:
				}
			}
		})
	}
}

// TestWaitsTakeTurns: what is asked of a flow whose release waits comes after it, as if it had come then.
func TestWaitsTakeTurns(t *testing.T) {
	for _, tt := range []struct {
		name string
		op   func(g *Gate, f tcprepair.Flow) error
		want error
		hold Direction // afterwards
	}{
		{"hold", func(g *Gate, f tcprepair.Flow) error { return g.Hold(f, Egress, time.Second) }, nil, Egress},
		{"hold of several", func(g *Gate, f tcprepair.Flow) error { return g.HoldAll(Ingress, time.Second, benchFlow(2), f) }, nil, Ingress},
		{"release", func(g *Gate, f tcprepair.Flow) error { _, err := g.Release(f); return err }, nil, 0},
		{"unhold", (*Gate).Unhold, nil, 0},
		{"take", func(g *Gate, f tcprepair.Flow) error { _, err := g.Take(f); return err }, ErrNoFlow, 0},
		{"resend", func(g *Gate, f tcprepair.Flow) error { return g.Resend(f, nil) }, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := network(t, 1)[0].gated(t)
			f := benchFlow(1)
			owing(t, g, f)
			began := time.Now()
			first := in(func() (Held, error) { return g.Release(f) })
			eventually(t, "the release waits", func() bool { return waits(t, g, f) })
			if err := tt.op(g, f); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if took := time.Since(began); took < waitTime {
				t.Errorf("it came %v after the release had begun, which waits for %v", took, waitTime)
			}
			if e := <-first; e.err != nil || e.held.Dropped != 1 {
				t.Errorf("release: %+v, %v; want one frame that never came", e.held, e.err)
			}
			if r, err := g.Route(f); err != nil || r.Hold != tt.hold {
				t.Errorf("held afterwards: %v, %v; want %v", r.Hold, err, tt.hold)
			}
		})
	}
}

// TestFramesDuringWait: what comes while a release waits is delivered by it, in order, and the release ends as soon as nothing is owed.
func TestFramesDuringWait(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	done := accept(server.listen(t, "10.66.0.2:8080"))
	g := server.gated(t)
	c, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := flowOf(c)
	owing(t, g, f)
	release := in(func() (Held, error) { return g.Release(f) })
	eventually(t, "the release waits", func() bool { return waits(t, g, f) })
	msg := make([]byte, 8000)
	ramp(msg, 0)
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what came is counted", func() bool { return flowEntry(t, g, f).Held > 1 })
	owe(t, g, f, -1)
	e := <-release
	if e.err != nil || e.held.Packets == 0 || e.held.Dropped != 0 {
		t.Errorf("Release = %+v, %v: want what came in the wait", e.held, e.err)
	}
	if e.took >= waitTime {
		t.Errorf("it waited %v, though nothing was owed any more", e.took)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wait(t, done, len(msg))
}

// TestCloseDuringWait: a gate that is closed does not cut a release off, nor wait out its patience.
func TestCloseDuringWait(t *testing.T) {
	h := network(t, 1)[0]
	g, err := h.open(t, Config{Interfaces: []string{"eth0"}})
	if err != nil {
		t.Fatal(err)
	}
	f := benchFlow(1)
	owing(t, g, f)
	release := in(func() (Held, error) { return g.Release(f) })
	eventually(t, "the release waits", func() bool { return waits(t, g, f) })
	after := in(func() (Held, error) { return g.Release(f) })
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if e := <-release; e.err != nil || e.held.Dropped != 1 || e.took >= waitTime {
		t.Errorf("release: %+v, %v, after %v", e.held, e.err, e.took)
	}
	if e := <-after; !errors.Is(e.err, ErrClosed) {
		t.Errorf("a release after it: %v", e.err)
	}
}
