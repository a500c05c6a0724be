// SPDX-License-Identifier: Apache-2.0

// Package handoff lets a server's live TCP connections move to another host, together with what the server knows about
// them. The client notices nothing.
//
// # In a server
//
// Listen returns a net.Listener, Accept a *Conn, and a server keeps its ordinary accept loop:
//
//	ln, err := handoff.Listen(ctx, "tcp", ":80", handoff.Config{Service: "files", Export: export})
//	for {
//		conn, err := ln.Accept()
//		…
//		go serve(conn.(*handoff.Conn))
//	}
//
// With no agent on the host it is an ordinary listener. Where one runs, the listener registers its service and from
// then on the agent may move the service's connections:
//
//   - At the source, the library pauses the connection: calls blocked in it are parked, later ones wait, and
//     BytesRead and BytesWritten are exact. Config.Export then returns the connection's State. When the connection
//     is at its new host, the parked calls return ErrMigrated; when the move fails they go on as if nothing had happened.
//   - At the target, Config.Import may check the State. When the connection is live it comes out of Accept like any
//     other, with Conn.Imported true and Conn.State holding what was exported.
//
// A net/http server needs no State at all: see HTTP.
//
// # What Export must take care of
//
// Export runs while the connection's own goroutine is anywhere: parked in Read or Write, or computing. A Read that had
// just returned is counted in BytesRead although its caller may not have looked at the bytes yet. So State is best
// expressed by the counts ("the file from BytesWritten on"), or else Export compares BytesRead with what has been
// understood and returns ErrNotNow when they differ. See the examples.
//
// # What the package does not do
//
// It needs no privilege and touches no TCP_REPAIR option: freezing, carrying and restoring the socket is the agent's
// work, by way of descriptors passed over a UNIX socket (docs/application-protocol.md). It does not move TLS: a tls.Conn
// on top of a Conn keeps its keys to itself, so Export must return ErrNotMovable, or bring the keys along itself.
package handoff
