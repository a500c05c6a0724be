// SPDX-License-Identifier: Apache-2.0

// Package streamer is a server of RTSP, or the called side of SIP over TCP, written with package handoff, for the laboratory: whole sessions move,
// signalling and media together.
//
// A session is a connection with one medium over UDP, G.711 at 50 packets a second: played by the client (PLAY), or recorded by the server
// (RECORD), or both ways (a call), with RTCP. The connection moves by live migration; its State has the session's name, ports, SSRC, sequence number and
// timestamp, and what has been received. The sockets of the media do not move: the target opens others with the same addresses.
//
//	source                                     target
//	Export: sends no more, reads what has come,
//	        returns the record as State ─────► Import: opens the sockets, which may receive from now on
//	Await: ErrMigrated: closes its sockets     Await: nil: sends on, from the next sequence number
//	Await: nil (the move failed): sends on     Await: an error: closes its sockets
//
// The entry holds what clients send between Export and Import, so neither direction loses a packet. See handoff.Conn.Await.
//
// Sockets are connected, and share their port (SO_REUSEADDR): sessions of several servers may have the same port, and come together by moving.
//
// It is no server for the world: one medium, no authentication, no interleaving, and one call of SIP at a time on a connection.
package streamer
