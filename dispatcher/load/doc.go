// SPDX-License-Identifier: Apache-2.0

// Package load knows how loaded each host is (SARA 29), and which sessions to move away from one that is too loaded (M-TCP 8).
//
// A Manager keeps the newest load vector of each host and makes one number l of it:
//
//	manager, err := load.NewManager(load.Config{})
//	manager.Add(now, 7)
//	events := manager.Report(arrived, vector)
//	events = manager.Tick(now)    // hosts whose monitor has failed: no vector for 3·delta
//	l, ok := manager.Load(7)
//
// A Shedder is asked now and then what to move, and remembers what it has said:
//
//	shedder, err := load.NewShedder(load.ShedConfig{High: 0.9, Low: 0.65})
//	moves := shedder.Plan(now, servers)
//
// # Shedding
//
// A server that has been above High for Hold begins to shed, and goes on until it is expected below Low: two thresholds, so that one
// that stands near a threshold does not go back and forth. A session weighs what its server's load divided by its sessions' weights gives; what has
// been moved within the last Settle is counted as gone there and as come here, because the next reports do not show it yet. The target
// is the server that is expected to be the least loaded, and never one that the session would lift above Low. At most Rate sessions a
// second are moved, all servers together, heavy ones first, and none that came within the last Stay: it would go round in circles.
//
// # Announced failures
//
// A server that has announced its failure (Server.Fails, SARA 27) gives all its sessions away, at Rate, or faster where they would not all be gone
// 2 s before the announced time. They go to the least loaded servers, above Low if need be. When the announcement is taken back, who has not left
// stays.
//
// A session is moved as a whole, with all its flows; what it consists of is the caller's business.
//
// What the package does not do: it has no clock and no socket, and moves nothing itself.
package load
