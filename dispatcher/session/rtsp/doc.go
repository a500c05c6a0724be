// SPDX-License-Identifier: Apache-2.0

// Package rtsp reads RTSP 1.0 (RFC 2326) and 2.0 (RFC 7826) for the flows that a session is going to have (SARA 7): package
// inspect says how its Parser and Pair are used.
//
// A SETUP's request names the client's ports, in several alternatives, and its answer the server's. Of the media themselves nothing
// comes by the dispatcher, for they go from the server to the client. What comes is the client's half of RTCP, its receiver
// reports; RTP of a client that records; and what clients send to open their NAT. So both ports of each stream are announced.
//
//   - Interleaved streams need no announcement; their frames in the connection are skipped.
//   - Multicast is refused, and so is a destination that is not the client (RFC 2326, 16).
//   - Setting a stream up again replaces its flows. TEARDOWN withdraws with its positive answer.
//   - The session's identifier and timeout are told to the caller. A connection that ends does not end its session.
//   - An encrypted connection (RTSPS) shows nothing, and says so.
//
// # What it does not do
//
// RTSP over UDP and RTSP tunnelled through HTTP are not read. RTSP shows no sign of a client behind NAT: Config.OpenClientPorts is for
// networks where there are such clients.
package rtsp
