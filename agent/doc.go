// SPDX-License-Identifier: Apache-2.0

// Package agent is rehome's daemon on a server: it gives live connections of the host's applications to other
// hosts' agents and takes over theirs, on an operator's word.
//
// # Parts
//
//	application.go   programs on this host, over a UNIX socket (docs/application-protocol.md)
//	outgoing.go      connections that this agent opens to others, to make requests
//	incoming.go      connections that others have opened to this one
//	source.go        carries out what a migration.Source decides
//	target.go        carries out what a migration.Target decides
//	ended.go         tells entries that connections of this host are over
//	entry.go         the entry's part: leases, owners, the flow table
//	recovery.go      moves that an agent which died has left behind
//	operation.go     migrate --all and drain: many moves
//	reload.go        another configuration, while it runs (plan.go: what needs a restart; change.go: what follows)
//	report.go        what dispatchers hear of this host (package report)
//	directory.go     which hosts there are, and were
//	share.go         what moves keep in memory together
//	control.go       operators, over gRPC (package api)
//	engine.go        the one goroutine that owns all of the above
//
// # What it does not do
//
// It keeps nothing about idle connections: who wants to know asks the applications. It holds no state on disk: what has
// to survive its death is with the application (the socket), with the entry (the owner) and in the kernel (the
// packet gate).
package agent
