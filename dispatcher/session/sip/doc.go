// SPDX-License-Identifier: Apache-2.0

// Package sip reads SIP (RFC 3261) over UDP and TCP for the media flows of calls (SARA 7): package inspect says how its
// Parser and Pair are used. Heads are parsed by github.com/emiago/sipgo/sip and session descriptions by
// github.com/pion/sdp; this package gives them only what matters of a message, bounded and in the form that they want.
//
// Each side describes where it receives, in an offer or an answer (RFC 3264). What the client sends, it sends from where
// it receives (RFC 4961), so a medium that both have described is announced from the client's port to the server's.
//
//   - Offers in INVITE, UPDATE and PRACK, late offers in a 2xx or a reliable 1xx, with the answers in ACK and PRACK; either side
//     may call. Several places that answer one INVITE are kept apart by their tags.
//   - RTCP is on the next port, where an attribute says (RFC 3605), or on RTP's when both want that (RFC 5761).
//   - Rejected media (port 0), several media, several ports of one medium, an address of its own, other datagrams (T.38 fax).
//   - A client whose description names another address than its packets come from is behind NAT: its port is left open. So is that of
//     one that lists ICE candidates.
//   - BYE withdraws with its answer, and a refused INVITE with the refusal. A new description replaces the old one.
//
// # What it does not do
//
// SIP over TLS and WebSocket shows nothing; over TLS on TCP it says so. Descriptions that are compressed or encrypted are not read. Media over
// TCP are refused. Of an ICE session only the default address counts, and of a bundle (RFC 9143) each medium's own port. A client that
// sends media from another host than its signalling is not known from one behind NAT: its media find no session.
package sip
