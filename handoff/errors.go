// SPDX-License-Identifier: Apache-2.0

package handoff

import "errors"

// Errors of connections and of exports; match them with errors.Is. Calls on a Conn return them inside a *net.OpError.
var (
	// ErrMigrated is what reads and writes return when the connection is at another host. The server forgets it:
	// nothing that it could do here reaches the client.
	ErrMigrated = errors.New("connection has moved to another host")
	// ErrNotNow is returned by an Exporter whose connection is not at a point where its State can be told. It
	// is asked again, see Conn.ExportReady.
	ErrNotNow = errors.New("connection cannot be exported at this moment")
	// ErrNotMovable is returned by an Exporter for a connection that will never be exportable.
	ErrNotMovable = errors.New("connection cannot be exported")
	// ErrAbandoned is what reads and writes return when the agent died in the middle of a move and no other came
	// to finish it within Config.RecoverTimeout. The connection has been closed.
	ErrAbandoned = errors.New("connection was closed: the agent died during its move and none came back; is rehome agent running?")
	// ErrNotActive is what reads and writes return inside an Importer, where the connection does not live yet.
	ErrNotActive = errors.New("connection is still being imported: use it when Accept has returned it")
	// ErrMultipath is returned for a listener with Multipath TCP, whose connections cannot be moved.
	ErrMultipath = errors.New("listener speaks Multipath TCP: create it with net.ListenConfig.SetMultipathTCP(false)")
	// ErrState is returned for State that no Conn of this package exported.
	ErrState = errors.New("state is not in package handoff's form")
)
