// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"math"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/wire"
)

// reported plays an agent until the application has registered, and returns its link.
func reported(t *testing.T, ln *net.UnixListener, loads bool) (link *wire.Link, next func() *wire.Load) {
	t.Helper()
	if err := ln.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	link = wire.NewLink(conn)
	t.Cleanup(func() { _ = link.Close() })
	for {
		f, fd, err := link.Receive()
		closeFD(fd)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := f.Message.(*wire.Register); ok {
			_ = link.Send(f.ID, &wire.Registered{Loads: loads})
			break
		}
		_ = link.Send(0, wire.NewHello("test", ""))
	}
	return link, func() *wire.Load {
		t.Helper()
		for {
			f, fd, err := link.Receive()
			closeFD(fd)
			if err != nil {
				t.Fatal(err)
			}
			if m, ok := f.Message.(*wire.Load); ok {
				return m
			}
		}
	}
}

// TestReport: what the server says reaches the agent, the newest value at last, and the next agent hears it, too.
func TestReport(t *testing.T) {
	path := socketPath(t)
	agent, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	ln, err := Listen(t.Context(), "tcp", "127.0.0.1:0", Config{Service: "files", Agent: path})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ln.ReportLoad(0.25) // before there is an agent

	link, next := reported(t, agent, true)
	check := func(want wire.Load) {
		t.Helper()
		want.Service = "files"
		if d := cmp.Diff(&want, next()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	check(wire.Load{Load: 2500})
	ln.ReportLoad(0.25) // nothing new
	ln.ReportLoad(7)
	check(wire.Load{Load: 10_000})
	begin := time.Now()
	const calls = 1000
	for i := range calls {
		ln.ReportLoad(float64(i+1) / (2 * calls))
	}
	frames, last := 0, uint16(0)
	for ; last != 5000; frames++ {
		last = next().Load
	}
	if most := int(time.Since(begin)/reportEvery) + 2; frames > most {
		t.Errorf("%d frames for %d calls, want at most %d", frames, calls, most)
	}
	ln.ReportDown(true)
	check(wire.Load{Load: 5000, Down: true})
	_ = link.Close()
	_, next = reported(t, agent, true)
	check(wire.Load{Load: 5000, Down: true})
	ln.ReportLoad(math.NaN())
	check(wire.Load{Unknown: true, Down: true})
	ln.ReportDown(false)
	check(wire.Load{Unknown: true})
}

// TestReportUnwanted: an agent that does not say that it knows the frame does not get it, and the link stands.
func TestReportUnwanted(t *testing.T) {
	path := socketPath(t)
	agent, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	ln, err := Listen(t.Context(), "tcp", "127.0.0.1:0", Config{Service: "files", Agent: path})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	link, _ := reported(t, agent, false)
	ln.ReportLoad(0.5)
	ln.ReportDown(true)
	if err := link.Send(77, &wire.Ping{}); err != nil {
		t.Fatal(err)
	}
	f, fd, err := link.Receive()
	closeFD(fd)
	if _, pong := f.Message.(*wire.Pong); err != nil || !pong || f.ID != 77 {
		t.Errorf("%v, %v: want the Pong, and nothing before it", f.Message, err)
	}
}
