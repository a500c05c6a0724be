// SPDX-License-Identifier: Apache-2.0

// Package vitals is what a server tells its dispatchers over UDP: that it is alive (Heartbeat, SARA 24-25) and how loaded it is
// (Vector, SARA 29).
//
// A datagram is a body and a seal. The body of a heartbeat is the paper's eleven bytes, unchanged; the seal authenticates it
// and tells it from an old one:
//
//	body (11 or 24) kind(1) key(2) sent(8) mac(16)                   big-endian
//
//	sealer, err := vitals.NewSealer(key)
//	b := sealer.Append(nil, vitals.Heartbeat{Host: 7, Seq: 1, Flag: vitals.Available, Stamp: vitals.StampOf(now)}, now)
//
//	opener, err := vitals.NewOpener(vitals.OpenerConfig{Keys: ring})
//	d, err := opener.Open(b, arrived)          // d.Heartbeat or d.Vector, and d.Sent
//
// Sent is the time of sending in nanoseconds since 1970, made strictly increasing by the Sealer. It is the number that the replay window
// goes by, so that a sender that starts again needs no memory, and it bounds what a receiver that starts again may be shown of the
// past (OpenerConfig.Skew). The MAC is HMAC-SHA256 over all that stands before it, cut to 16 bytes (RFC 2104 section 5).
//
// A key has a number, which goes into the datagram: a new key is added at the receivers first, then at the senders, and the old one is
// taken away last. A key can be bound to one host; then nobody who has it can speak for another.
//
// What it does not do: it hides nothing, and has no socket and no clock.
package vitals
