// SPDX-License-Identifier: Apache-2.0

// Package dispatcher is the daemon in front of a cluster (NEC N1-N6, SARA's dispatcher): it accepts the connections that come to
// virtual addresses, looks at their first request without taking it from the socket, chooses a backend, hands the connection over,
// and is off the path. Later packets of the flow are sent on at layer 2 by BPF; replies go from the server straight to the client.
//
//	Accepted ─ bytes ► Peeked ─ route, admission ► Chosen ─ hold, freeze, snapshot ► Sent ─ Commit ► Granted ─ Committed ► Given
//	   │                 │            │                       ▲                        │               │
//	   ▼                 ▼            ▼                       └── next backend ◄───────┴── refused ────┘
//	 closed      400, 408, alert   404, 503                            │
//	                                                                   └─ none left ► thawed, 503, alert or RST
//
// Until a backend has been granted the flow the connection is the dispatcher's, whatever happens to backends and networks; package
// migration's Giver is the state machine of one attempt. The dispatcher is also the entry of its services: when connections move
// on between backends later, it is asked for leases and commits as any entry is (package entry).
//
// A worker goroutine for each core accepts and peeks; a connection that is being handed over is under its own mutex and is pushed on
// by whoever has news of it. One goroutine for each backend reads that agent's answers.
//
// What the configuration says is a plan, which does not change and is read through one atomic pointer. One goroutine carries out what
// operators order, one thing after the other; a reload is the making of another plan, and workers change over to it between two
// events. Backends that are in no plan any more are kept for as long as a connection may still be handed to them.
package dispatcher
