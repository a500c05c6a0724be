// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"io"
	"net"
	"testing"

	"github.com/rehome-net/rehome/handoff/wire"
)

// BenchmarkByte writes and reads one byte on loopback, through a *net.TCPConn and through a Conn on both ends: the
// difference is what being movable costs a Read and a Write together.
func BenchmarkByte(b *testing.B) {
	ln := listen(b, socketPath(b), Config{})
	for _, wrapped := range []bool{false, true} {
		b.Run(map[bool]string{false: "TCPConn", true: "Conn"}[wrapped], func(b *testing.B) {
			client, server := connect(b, ln)
			var w, r net.Conn = client, server.tcp
			if wrapped {
				w, r = newConn(client, func(*Conn) {}), server
			}
			buf := make([]byte, 1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := r.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkTurnstile is what a call passes beside the system call: the whole difference, without the kernel's noise.
func BenchmarkTurnstile(b *testing.B) {
	c := &Conn{phase: serving}
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pauses := c.pauses.Load()
			if !c.enter(&c.reading) {
				b.Fatal("shut")
			}
			c.reading.bytes.Add(1)
			c.leave(&c.reading)
			if c.interrupted(nil, pauses) {
				b.Fatal("interrupted")
			}
		}
	})
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.writeMu.Lock()
			if !c.enter(&c.writing) {
				b.Fatal("shut")
			}
			c.writing.bytes.Add(1)
			c.leave(&c.writing)
			c.writeMu.Unlock()
		}
	})
}

// BenchmarkExport is an export and its Resume, with a Read parked meanwhile, by way of the UNIX socket.
func BenchmarkExport(b *testing.B) {
	path := socketPath(b)
	agent := startAgent(b, path)
	ln := listen(b, path, Config{Export: exportNothing})
	app := agent.app()
	_, server := connect(b, ln)
	go func() { _, _ = io.Copy(io.Discard, server) }()
	untilBlocked(b, &server.reading)
	id := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		closeFD(app.export(id, server.Flow()).fd)
		app.send(id, &wire.Resume{})
		id++
	}
}
