// SPDX-License-Identifier: Apache-2.0

// Package availability knows which hosts can be given sessions, by the heartbeats that they send (SARA 24-27).
//
// A Detector is told of heartbeats and of the time, and answers with what has changed:
//
//	detector, err := availability.New(availability.Config{Interval: 10 * time.Millisecond})
//	detector.Add(now, 7)
//	events := detector.Beat(availability.Beat{At: arrived, Sent: sent, Heartbeat: h})
//	events = detector.Tick(now) // by detector.Deadline() at the latest
//
// # States
//
//	          a beat says:          available
//	          available        ┌──────────────────────┐
//	unknown ─────────────► up ◄┘   application down   └─ application down
//	   │                  │ ▲ └─────────────────────────►     │
//	   │  planned failure │ │ available: called off           │
//	   │                  ▼ │                                 │
//	   │                draining                              │
//	   │                    │ the announced time              │
//	   ▼                    ▼                                 ▼
//	 down ◄──────── from any state: nothing heard for n·d ────┘
//	   └──────► Rise beats in a row: the state that they name
//
// The print takes a host out as soon as a failure is announced ("Announced Failure: return Crashed"). Here an announcement drains it,
// which keeps its sessions, and the announced time takes it out (SARA 27): who announces a failure wants its sessions to end well.
// The announced time is read as so much after the time of sending, so that it holds also where clocks differ.
//
// # Silence
//
// A host is down when nothing has arrived from it for n·d (SARA 26): n is Config.Misses, d Config.Interval. What counts is when a
// heartbeat arrived at the receiving host, not when somebody found the time to read it: the caller passes the kernel's time of
// arrival, reads all that has arrived before it calls Tick, and tells by Blind when it has not been running itself. A heartbeat in the
// socket's buffer, or a processor that was taken away from the receiver, is not silence.
//
// What it does not do: it has no clock and no socket (package dispatcher/monitor has), checks no signature, and asks nobody.
package availability
